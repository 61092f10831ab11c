//! Fixtures: ICMP errors about a flow, echo requests to a VIP, fragments, and packets that do not fit their way.

use std::net::{IpAddr, SocketAddr};

use ebb_tests::{
    packets::{Extension, Frame, Piece, Transport, tcp_flag::ACK},
    rig::{Mode, Protocol},
};
use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, NetHeaders, TransportHeader};
use lb_common::{outcome::Outcome, service::address_flag};

use crate::fixture::{
    ACKED, B0, B1, Change, Fixture, HEARD, Heard, ISN, Input, ack, data, drop, echo_reply, goes_with, more, open,
    opens_to, pass, segment, syn, to, too_big, too_big_for_tunnel,
};

pub fn all() -> Vec<Fixture> {
    let mut all = fragments();
    all.extend(echoes());
    all.extend(errors());
    all.extend(sizes());
    all.extend(limits());
    all
}

const ID: u32 = 0xbeef;

fn first() -> Piece {
    Piece { id: ID, offset: 0, more: true }
}

/// A later fragment: no header, just bytes.
pub fn later(offset: u16, more: bool) -> Input {
    let piece = Piece { id: ID, offset, more };
    open().with(move |frame| {
        let number = if matches!(frame.transport, Transport::Tcp { .. }) { 6 } else { 17 };
        frame.transport = Transport::Other(number);
        frame.payload = vec![0x77; 64];
        frame.piece = Some(piece);
    })
}

/// The first fragment of a long packet that opens a flow.
fn first_of_flow() -> Input {
    open().long(992).piece(first())
}

fn fragments() -> Vec<Fixture> {
    vec![
        Fixture::new("fragments", "Later ones follow their first, wherever the ring points by now.")
            .send(first_of_flow(), opens_to(B0))
            .set(Change::Ring(Some(B1), None))
            .send(later(126, true), goes_with(B0, Outcome::Fragment))
            .send(later(134, false), goes_with(B0, Outcome::Fragment)),
        Fixture::new("fragments of a known flow", "They go where the flow goes.")
            .send(open(), opens_to(B0))
            .set(Change::Ring(Some(B1), None))
            .send(more().long(992).piece(first()), to(B0))
            .send(later(126, false), goes_with(B0, Outcome::Fragment)),
        Fixture::new("fragment without its first", "Dropped where the address is a VIP and nothing else.")
            .set(Change::Address(0))
            .send(later(126, true), drop(Outcome::DroppedFragment)),
        Fixture::new("fragment without its first, address shared", "Passed where the host uses the address too.")
            .set(Change::Address(address_flag::SHARED_WITH_HOST))
            .send(later(126, true), pass(Outcome::PassedHost)),
        Fixture::new("fragment for nobody here", "Passed.").send(later(126, true), pass(Outcome::NotForService)),
        Fixture::new("tiny fragments", "A later one that would overwrite the TCP header is dropped (RFC 3128).")
            .tcp()
            .send(first_of_flow(), opens_to(B0))
            .send(later(1, true), drop(Outcome::DroppedFragment))
            .send(later(2, false), drop(Outcome::DroppedFragment))
            .send(later(3, false), goes_with(B0, Outcome::Fragment)),
        Fixture::new("a first fragment without a whole header", "Dropped: nothing says whose it is.")
            .tcp()
            .v4()
            .send(
                open().piece(first()).patched(|frame, bytes| {
                    let at = frame.ip_offset();
                    bytes.truncate(at + 36);
                    bytes[at + 3] = 36;
                }),
                drop(Outcome::DroppedMalformed),
            )
            .flows(&[]),
        Fixture::new("fragment, and its backend is another by now", "Dropped: a slot's heir gets nothing of it.")
            .send(first_of_flow(), opens_to(B0))
            .set(Change::Replace(B0))
            .send(later(126, false), drop(Outcome::DroppedFragment)),
        Fixture::new("an overlapping first fragment", "The flow decides, and it has not moved.")
            .send(first_of_flow(), opens_to(B0))
            .set(Change::Ring(Some(B1), None))
            .send(first_of_flow(), to(B0))
            .send(later(126, false), goes_with(B0, Outcome::Fragment)),
        Fixture::new("a reply in fragments", "All of them reach the client as the VIP's.")
            .nat()
            .send(open(), opens_to(B0))
            .says(B0, segment(ACK, ACKED.wrapping_sub(1), ISN + 1, 992).piece(first()), HEARD)
            .says(B0, later(126, false), Heard::Fragment),
    ]
}

/// The whole ICMP message of an echo, with its checksum.
pub fn echo_payload(frame: &Frame, reply: bool) -> Vec<u8> {
    let echo = IcmpEchoHeader { id: 7, seq: 9 };
    let data = [0xab; 24];
    let mut bytes = match (frame.source.ip(), frame.destination.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let kind = if reply { Icmpv4Type::EchoReply(echo) } else { Icmpv4Type::EchoRequest(echo) };
            etherparse::Icmpv4Header::with_checksum(kind, &data).to_bytes().to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let kind = if reply { Icmpv6Type::EchoReply(echo) } else { Icmpv6Type::EchoRequest(echo) };
            let header = etherparse::Icmpv6Header::with_checksum(kind, source.octets(), destination.octets(), &data);
            header.expect("short").to_bytes().to_vec()
        }
        _ => unreachable!("both addresses are of one family"),
    };
    bytes.extend_from_slice(&data);
    bytes
}

fn echo() -> Input {
    open().with(|frame| {
        frame.transport = Transport::Other(if frame.source.is_ipv4() { 1 } else { 58 });
        frame.payload = echo_payload(frame, false);
    })
}

fn echoes() -> Vec<Fixture> {
    vec![
        Fixture::new("echo request", "Answered where that is wanted.")
            .set(Change::Address(address_flag::ANSWER_ECHO))
            .send(echo(), echo_reply())
            .send(echo().with(|frame| frame.hop_limit = 3), echo_reply()),
        Fixture::new("echo request, not to be answered", "Passed: the host answers, or nobody does.")
            .set(Change::Address(0))
            .send(echo(), pass(Outcome::NotForService)),
        Fixture::new("echo request to no VIP", "Passed.").send(echo(), pass(Outcome::NotForService)),
    ]
}

/// The error that a router sends about `quoted` when that is too big for its next link (1,400 bytes).
fn error_payload(source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let header = match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
            let kind = Icmpv4Type::DestinationUnreachable(kind);
            etherparse::Icmpv4Header::with_checksum(kind, quoted).to_bytes().to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let kind = Icmpv6Type::PacketTooBig { mtu: 1400 };
            let header = etherparse::Icmpv6Header::with_checksum(kind, source.octets(), destination.octets(), quoted);
            header.expect("short").to_bytes().to_vec()
        }
        _ => unreachable!("both addresses are of one family"),
    };
    [&header[..], quoted].concat()
}

/// Makes the frame an ICMP error about a packet between those ends, of the frame's own protocol, quoted whole.
fn make_error(frame: &mut Frame, source: SocketAddr, destination: SocketAddr) {
    let transport = match frame.transport {
        Transport::Tcp { .. } => Transport::tcp(ACK, ACKED, ISN + 1),
        _ => frame.transport.clone(),
    };
    let quoted = Frame::new(source, destination, transport).bytes();
    frame.payload = error_payload(frame.source.ip(), frame.destination.ip(), &quoted[14..]);
    frame.transport = Transport::Other(if source.is_ipv4() { 1 } else { 58 });
}

/// An error from the way to the client, about a packet that the service sent it.
pub fn error() -> Input {
    open().with(|frame| {
        let (vip, client) = (frame.destination, frame.source);
        make_error(frame, vip, client);
    })
}

/// An error from the way to a backend (`nat`), about a packet that was sent on to it, from its own address or from a
/// router's. Its port for the client may be another than the client's own.
pub fn error_from(router: bool) -> Input {
    open().with(move |frame| {
        let (backend, client) = (frame.source, frame.destination);
        if router {
            let address = match backend.ip() {
                IpAddr::V4(_) => "10.2.0.254",
                IpAddr::V6(_) => "fd00:2::fe",
            };
            frame.source.set_ip(address.parse().expect("an address"));
        }
        make_error(frame, client, backend);
    })
}

/// Whether the frame was made by [`make_error`].
pub fn is_error(frame: &Frame) -> bool {
    let kind = match frame.transport {
        Transport::Other(1) => 3,
        Transport::Other(58) => 2,
        _ => return false,
    };
    frame.payload.first() == Some(&kind) && frame.piece.is_none()
}

/// The payload of an error of [`make_error`] with the quoted packet's ends changed, and every checksum made anew, for a
/// frame whose own addresses are `frame`'s.
pub fn requoted(frame: &Frame, payload: &[u8], change: impl Fn(&mut SocketAddr, &mut SocketAddr)) -> Vec<u8> {
    let quoted = etherparse::PacketHeaders::from_ip_slice(&payload[8..]).expect("a whole packet");
    let (ports, transport) = match quoted.transport {
        Some(TransportHeader::Tcp(tcp)) => {
            let transport = Transport::tcp(ACK, tcp.sequence_number, tcp.acknowledgment_number);
            ((tcp.source_port, tcp.destination_port), transport)
        }
        Some(TransportHeader::Udp(udp)) => {
            ((udp.source_port, udp.destination_port), Transport::Udp { checksum: udp.checksum != 0 })
        }
        _ => unreachable!("errors are made about packets of flows"),
    };
    let addresses: (IpAddr, IpAddr) = match quoted.net {
        Some(NetHeaders::Ipv4(ip, _)) => (ip.source.into(), ip.destination.into()),
        Some(NetHeaders::Ipv6(ip, _)) => (ip.source.into(), ip.destination.into()),
        _ => unreachable!("errors are made about IP packets"),
    };
    let mut source = SocketAddr::new(addresses.0, ports.0);
    let mut destination = SocketAddr::new(addresses.1, ports.1);
    change(&mut source, &mut destination);
    let quoted = Frame::new(source, destination, transport).bytes();
    error_payload(frame.source.ip(), frame.destination.ip(), &quoted[14..])
}

fn errors() -> Vec<Fixture> {
    vec![
        Fixture::new("ICMP error about a flow", "It goes to the backend that owns the flow, found by what it quotes.")
            .set(Change::Address(0))
            .send(open(), opens_to(B0))
            .send(more(), to(B0))
            .set(Change::Ring(Some(B1), None))
            .send(error(), goes_with(B0, Outcome::IcmpError)),
        Fixture::new("ICMP error about a flow whose backend is gone", "A slot's heir gets nothing of it.")
            .set(Change::Address(0))
            .send(open(), opens_to(B0))
            .set(Change::Replace(B0))
            .send(error(), drop(Outcome::DroppedNoBackend)),
        Fixture::new("ICMP error about an unknown flow", "It goes where the ring would send the flow's packets.")
            .set(Change::Address(0))
            .send(error(), goes_with(B0, Outcome::IcmpError)),
        Fixture::new("ICMP error in a drain, table lost", "It goes to the remembered owner.")
            .tcp()
            .set(Change::Address(0))
            .set(Change::Drain(B0, B1, 300))
            .send(error(), goes_with(B0, Outcome::IcmpError)),
        Fixture::new("ICMP error to no VIP", "Passed: it is about no flow of ours.")
            .send(open(), opens_to(B0))
            .send(error(), pass(Outcome::NotForService)),
        Fixture::new("ICMP error about a datagram without checksum", "None is made up for it.")
            .udp()
            .v4()
            .set(Change::Address(0))
            .send(open(), opens_to(B0))
            .send(
                open().with(|frame| frame.transport = Transport::Udp { checksum: false }).with(|frame| {
                    let (vip, client) = (frame.destination, frame.source);
                    make_error(frame, vip, client);
                }),
                goes_with(B0, Outcome::IcmpError),
            ),
    ]
}

/// Bytes of payload with which a packet has that length.
fn filling(length: usize, v4: bool, protocol: Protocol) -> usize {
    let headers = if v4 { 20 } else { 40 } + if protocol == Protocol::Tcp { 20 } else { 8 };
    length - headers
}

/// To the byte: what just fits, and one byte more, for every kind of header that is put in front.
fn limits() -> Vec<Fixture> {
    let mut all = Vec::new();
    for (mode, outer_v4, outer) in
        [(Mode::Nat, true, 0), (Mode::Nat, false, 0), (Mode::Tunnel, true, 20), (Mode::Tunnel, false, 40)]
            .into_iter()
            .chain([(Mode::Across, true, 20), (Mode::Across, false, 40)])
    {
        let v4 = outer_v4 == (mode != Mode::Across);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let bytes = filling(1500 - outer, v4, protocol);
            let mut fixture = Fixture::new("as big as can be", "What fits goes; what is one byte longer is answered.")
                .only(mode)
                .send(open(), opens_to(B0))
                .send(more().long(bytes), to(B0))
                .send(more().long(bytes + 1), too_big(1500 - outer as u16));
            fixture = if v4 { fixture.v4() } else { fixture.v6() };
            all.push(if protocol == Protocol::Tcp { fixture.tcp() } else { fixture.udp() });
        }
    }
    all
}

fn sizes() -> Vec<Fixture> {
    let hop_limit = |limit| more().with(move |frame| frame.hop_limit = limit);
    let tunnel = |name, about| Fixture::new(name, about).tunnels();
    let resized = |name, about| {
        let mut fixture = Fixture::new(name, about);
        fixture.modes.retain(|mode| *mode != Mode::Dsr);
        fixture
    };
    vec![
        tunnel("too big for the tunnel", "The client learns in the VIP's name how long a packet may be.")
            .send(open(), opens_to(B0))
            .send(more().long(1453), too_big_for_tunnel())
            .send(more().long(1453).tags(&[5, 6]), too_big_for_tunnel()),
        resized("too big, and may be fragmented", "Refused: a way's middle is no place to fragment.")
            .v4()
            .send(open(), opens_to(B0))
            .send(more().long(1490).with(|frame| frame.dont_fragment = false), drop(Outcome::DroppedTooBig)),
        tunnel("too big, with extension headers", "All are quoted, or nobody could tell whose packet it was.")
            .v6()
            .send(open(), opens_to(B0))
            .send(more().long(1490).extensions(&[Extension::HopByHop, Extension::Destination]), too_big_for_tunnel()),
        tunnel("too big, with options", "They are quoted too.")
            .v4()
            .send(open(), opens_to(B0))
            .send(more().long(1453).with(|frame| frame.ip_options = vec![1; 8]), too_big_for_tunnel()),
        tunnel("fragment too big for the tunnel", "IPv6 senders fragment to what they are told, so they are told.")
            .v6()
            .udp()
            .send(open(), opens_to(B0))
            .send(more().long(1448).piece(first()), too_big_for_tunnel()),
        resized("too big, and no room for an answer", "Dropped, and counted as what it is.")
            .send(open(), opens_to(B0))
            .send(more().long(1490).crowded(), drop(Outcome::DroppedResize)),
        tunnel("no room for the outer header", "Dropped, and counted as what it is.")
            .send(open().crowded(), drop(Outcome::DroppedResize)),
        Fixture::new("a narrower way to the backend", "The client learns in the VIP's name how long a packet may be.")
            .nat()
            .set(Change::Mtu(B0, 1300))
            .send(open(), opens_to(B0))
            .send(more().long(1290), too_big(1300))
            .send(more().long(1200), to(B0)),
        Fixture::new("a narrower way to the client", "The backend learns how long a packet may be.")
            .nat()
            .send(open(), opens_to(B0))
            .answered(B0)
            .send(more(), to(B0))
            .says(B0, segment(ACK, ACKED, ISN + 11, 0).long(1490), Heard::TooBig { mtu: 1500 })
            .says(B0, segment(ACK, ACKED, ISN + 11, 0).long(1400), HEARD),
        tunnel("traffic class", "DSCP and ECN are copied to the outer header.")
            .send(open().with(|frame| frame.class = 0xb9), opens_to(B0))
            .send(more().with(|frame| frame.class = 0x03), to(B0)),
        Fixture::new("hop limit used up", "Who forwards as a router counts hops.")
            .nat()
            .send(open(), opens_to(B0))
            .send(hop_limit(1), drop(Outcome::DroppedHopLimit))
            .send(hop_limit(0), drop(Outcome::DroppedHopLimit))
            .send(hop_limit(2), to(B0)),
        Fixture::new("hop limit used up", "Who forwards as a router counts hops.")
            .tunnels()
            .send(open(), opens_to(B0))
            .send(hop_limit(1), drop(Outcome::DroppedHopLimit))
            .send(hop_limit(2), to(B0)),
        Fixture::new("hop limit in dsr", "The balancer is no hop there.")
            .only(Mode::Dsr)
            .send(open(), opens_to(B0))
            .send(hop_limit(1), to(B0)),
        Fixture::new("data both ways", "What the backend says reaches the client as the VIP's, to the byte.")
            .nat()
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .answered(B0)
            .send(data(ISN + 1, ACKED, 100), to(B0))
            .reply(B0, ACK, ACKED, ISN + 101, 777)
            .send(ack(ISN + 101, ACKED + 777), to(B0)),
    ]
}
