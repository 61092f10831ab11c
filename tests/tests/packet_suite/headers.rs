//! Fixtures: what stands around and in the headers. Tags, options, extensions, lies, cuts, and what is not for a
//! service.

use ebb_tests::packets::{Extension, Mac, not_ip, tcp_flag::ACK};
use lb_common::outcome::Outcome;

use crate::fixture::{
    ACKED, B0, B1, Change, Fixture, ISN, Input, ack, data, datagram, drop, more, open, opens_to, pass, reset, syn, to,
};

pub fn all() -> Vec<Fixture> {
    let mut all = around();
    all.extend(truncated());
    all.extend(lies());
    all.extend(not_for_us());
    all
}

/// Two no-operations and an end of options, then padding (RFC 791, section 3.1).
const OPTIONS: [u8; 8] = [1, 1, 0, 0, 0, 0, 0, 0];

fn optioned(input: Input) -> Input {
    input.with(|frame| frame.ip_options = OPTIONS.to_vec())
}

fn around() -> Vec<Fixture> {
    const BOTH: &[Extension] = &[Extension::HopByHop, Extension::Destination];
    let tagged = |name, about, tags| {
        Fixture::new(name, about).send(open().tags(tags), opens_to(B0)).send(more().tags(tags), to(B0))
    };
    vec![
        tagged("one VLAN tag", "Kept.", &[100]),
        tagged("two VLAN tags", "Kept.", &[100, 200]),
        Fixture::new("past the deadline, tagged", "The RST carries the tags that the segment had.")
            .tcp()
            .send(syn(ISN).tags(&[100, 200]), opens_to(B0))
            .send(ack(ISN + 1, ACKED).tags(&[100, 200]), to(B0))
            .set(Change::Drain(B0, B1, -1))
            .send(data(ISN + 1, ACKED, 64).tags(&[100]), reset(ACKED))
            .send(data(ISN + 1, ACKED, 64).tags(&[100, 200]), reset(ACKED)),
        Fixture::new("IPv4 options", "Kept.").v4().send(optioned(open()), opens_to(B0)).send(optioned(more()), to(B0)),
        Fixture::new("past the deadline, IPv4 options", "An answer would need them back: none is given.")
            .tcp()
            .v4()
            .send(optioned(syn(ISN)), opens_to(B0))
            .send(optioned(ack(ISN + 1, ACKED)), to(B0))
            .set(Change::Drain(B0, B1, -1))
            .send(optioned(data(ISN + 1, ACKED, 4)), drop(Outcome::DroppedCut)),
        Fixture::new("IPv6 extension headers", "Hop-by-hop and destination options are passed over.")
            .v6()
            .send(open().extensions(BOTH), opens_to(B0))
            .send(more().extensions(&[Extension::HopByHop]), to(B0))
            .send(more().extensions(&[Extension::Destination]), to(B0))
            .send(more(), to(B0)),
        Fixture::new("past the deadline, extension headers", "An answer would need them back: none is given.")
            .tcp()
            .v6()
            .send(syn(ISN), opens_to(B0))
            .send(ack(ISN + 1, ACKED), to(B0))
            .set(Change::Drain(B0, B1, -1))
            .send(data(ISN + 1, ACKED, 4).extensions(BOTH), drop(Outcome::DroppedCut)),
        Fixture::new("TCP options", "Not data: they do not count into sequence numbers.")
            .tcp()
            .send(
                syn(ISN).with(|frame| {
                    if let ebb_tests::packets::Transport::Tcp { options, .. } = &mut frame.transport {
                        // Maximum segment size (RFC 9293, section 3.2).
                        *options = vec![2, 4, 5, 0xb4];
                    }
                }),
                opens_to(B0),
            )
            .flows(&[crate::fixture::flow(B0, 0).seq(ISN + 1)]),
        Fixture::new("Ethernet padding", "What stands behind the IP packet is no data.")
            .tcp()
            .send(syn(ISN).with(|frame| frame.padding = vec![0xee; 6]), opens_to(B0))
            .answered(B0)
            .send(ack(ISN + 1, ACKED).with(|frame| frame.padding = vec![0xee; 6]), to(B0))
            .flows(&[crate::fixture::flow(B0, lb_common::flow::flow_flag::ESTABLISHED).seq(ISN + 1)]),
    ]
}

/// Frames cut short at every byte: the IP header says that more should be there, so nothing of it is believed.
fn truncated() -> Vec<Fixture> {
    let cut = |name, about, tags: &'static [u16]| {
        let mut fixture = Fixture::new(name, about);
        let ip = 14 + 4 * tags.len();
        // The shortest whole packet is an IPv4 datagram of 28 bytes, and test-run takes no frame below 14 bytes.
        for length in 14..ip + 28 {
            // A tag announces two more bytes of EtherType.
            let outcome = if length < ip { Outcome::NotForService } else { Outcome::PassedMalformed };
            fixture = fixture.send(more().tags(tags).patched(move |_, bytes| bytes.truncate(length)), pass(outcome));
        }
        // And from the other end, to within one byte of the whole.
        for missing in 1..=10 {
            let input = more().tags(tags).patched(move |_, bytes| bytes.truncate(bytes.len() - missing));
            fixture = fixture.send(input, pass(Outcome::PassedMalformed));
        }
        fixture.flows(&[])
    };
    vec![
        cut("truncated at every byte", "Passed, and nothing recorded.", &[]),
        cut("truncated at every byte, one tag", "Passed, and nothing recorded.", &[7]),
        cut("truncated at every byte, two tags", "Passed, and nothing recorded.", &[7, 8]),
    ]
}

fn lies() -> Vec<Fixture> {
    let malformed = || pass(Outcome::PassedMalformed);
    let mut v4 = Fixture::new("IPv4 header lies", "Version, header length and total length are checked.").v4();
    for version in (0..16).filter(|version| *version != 4) {
        v4 = v4.send(more().ip_byte(0, version << 4 | 5), malformed());
    }
    for words in 0..5 {
        v4 = v4.send(more().ip_byte(0, 0x40 | words), malformed());
    }
    v4 = v4.send(more().ip_byte(2, 0xff), malformed()).send(more().ip_byte(3, 19), malformed()).flows(&[]);

    let mut v6 = Fixture::new("IPv6 header lies", "Version and payload length are checked.").v6();
    for version in (0..16).filter(|version| *version != 6) {
        v6 = v6.send(more().ip_byte(0, version << 4), malformed());
    }
    v6 = v6.send(more().ip_byte(4, 0xff), malformed()).flows(&[]);

    let mut tcp = Fixture::new("TCP header lies", "The data offset is checked against the packet.").tcp();
    for words in 0..5 {
        tcp = tcp.send(more().transport_byte(12, words << 4), drop(Outcome::DroppedMalformed));
    }
    // Ten bytes of payload: a header of eight words ends beyond them.
    for words in 8..16 {
        tcp = tcp.send(more().transport_byte(12, words << 4), drop(Outcome::DroppedMalformed));
    }
    tcp = tcp.flows(&[]);

    let mut udp = Fixture::new("UDP header lies", "The datagram's own length is checked against the packet's.").udp();
    // A header of eight bytes and ten of payload.
    for length in (0..8).chain(19..40).chain([255]) {
        udp = udp.send(more().transport_byte(5, length), drop(Outcome::DroppedMalformed));
    }
    udp = udp.send(more().transport_byte(4, 0xff), drop(Outcome::DroppedMalformed)).flows(&[]);

    let mut extensions = Fixture::new(
        "IPv6 extension header lies",
        "A length that leads out of the packet, or beyond 256 bytes, or over other headers than there are.",
    )
    .v6();
    let lying = |length| {
        let long = more().with(|frame| frame.payload = vec![0; 40]);
        long.extensions(&[Extension::HopByHop]).ip_byte(41, length)
    };
    for length in [30, 31, 255] {
        extensions = extensions.send(lying(length), malformed());
    }
    // Two words too long: what is taken for ports is no service's.
    extensions = extensions.send(lying(2), pass(Outcome::NotForService));
    vec![v4, v6, tcp, udp, extensions.flows(&[])]
}

fn not_for_us() -> Vec<Fixture> {
    const DESTINATION: Mac = [2, 0, 0, 0, 0x0b, 1];
    const SOURCE: Mac = [2, 0, 0, 0, 0x0c, 1];
    let untouched = || pass(Outcome::NotForService);
    let frame = |ether_type, payload: &'static [u8]| {
        open().patched(move |_, bytes| *bytes = not_ip(DESTINATION, SOURCE, ether_type, payload))
    };
    let other = |number| open().with(move |frame| frame.transport = ebb_tests::packets::Transport::Other(number));
    vec![
        Fixture::new("another port", "Passed.").send(open().port(81), untouched()).flows(&[]),
        Fixture::new("another address", "Passed.")
            .send(
                open().with(|frame| {
                    let elsewhere = frame.source.ip();
                    frame.destination.set_ip(elsewhere);
                }),
                untouched(),
            )
            .flows(&[]),
        Fixture::new("the other protocol", "The port counts only with its protocol.")
            .tcp()
            .send(datagram(10), untouched())
            .flows(&[]),
        Fixture::new("the other protocol", "The port counts only with its protocol.")
            .udp()
            .send(crate::fixture::segment(ACK, ISN, ACKED, 0), untouched())
            .flows(&[]),
        Fixture::new("no IP packet", "ARP, LLDP, 802.3 and unknown EtherTypes pass.")
            .send(frame(0x0806, &[0; 28]), untouched())
            .send(frame(0x88cc, &[0; 46]), untouched())
            .send(frame(0x0026, &[0; 46]), untouched())
            .send(frame(0xffff, &[]), untouched()),
        Fixture::new("protocols without ports", "SCTP, GRE, ESP and 255 pass.")
            .send(other(132), untouched())
            .send(other(47), untouched())
            .send(other(50), untouched())
            .send(other(255), untouched()),
        Fixture::new("three VLAN tags", "More than two are not looked behind.").send(
            more().tags(&[1, 2]).patched(|_, bytes| {
                bytes.splice(12..12, [0x81, 0x00, 0, 3]);
            }),
            untouched(),
        ),
    ]
}
