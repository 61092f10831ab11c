//! Fixtures: ICMP errors about a flow, echo requests to a VIP, fragments, and packets that do not fit their way.

use ebb_tests::{
    packets::{Frame, Piece, Transport, tcp_flag::ACK},
    rig::Mode,
};
use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type};
use lb_common::{outcome::Outcome, service::address_flag};

use crate::fixture::{
    ACKED, B0, B1, Change, Fixture, ISN, Input, ack, data, datagram, drop, echo_reply, goes_with, more, open, opens_to,
    pass, syn, to, too_big,
};

pub fn all() -> Vec<Fixture> {
    let mut all = fragments();
    all.extend(echoes());
    all.extend(errors());
    all.extend(sizes());
    all
}

const ID: u32 = 0xbeef;

fn first() -> Piece {
    Piece { id: ID, offset: 0, more: true }
}

/// A later fragment of a datagram: no header, just bytes.
fn later(offset: u16, more: bool) -> Input {
    let piece = Piece { id: ID, offset, more };
    datagram(64).with(move |frame| {
        frame.transport = Transport::Other(17);
        frame.piece = Some(piece);
    })
}

fn fragments() -> Vec<Fixture> {
    vec![
        Fixture::new("fragments", "Later ones follow their first, wherever the ring points by now.")
            .udp()
            .send(datagram(1000).piece(first()), opens_to(B0))
            .set(Change::Ring(Some(B1), None))
            .send(later(126, true), goes_with(B0, Outcome::Fragment))
            .send(later(134, false), goes_with(B0, Outcome::Fragment)),
        Fixture::new("fragment without its first", "Dropped where the address is a VIP and nothing else.")
            .udp()
            .set(Change::Address(0))
            .send(later(126, true), drop(Outcome::DroppedFragment)),
        Fixture::new("fragment without its first, address shared", "Passed where the host uses the address too.")
            .udp()
            .set(Change::Address(address_flag::SHARED_WITH_HOST))
            .send(later(126, true), pass(Outcome::PassedHost)),
        Fixture::new("fragment for nobody here", "Passed.").udp().send(later(126, true), pass(Outcome::NotForService)),
    ]
}

/// The whole ICMP message of an echo, with its checksum.
pub fn echo_payload(frame: &Frame, reply: bool) -> Vec<u8> {
    let echo = IcmpEchoHeader { id: 7, seq: 9 };
    let data = [0xab; 24];
    let mut bytes = match (frame.source.ip(), frame.destination.ip()) {
        (std::net::IpAddr::V4(_), std::net::IpAddr::V4(_)) => {
            let kind = if reply { Icmpv4Type::EchoReply(echo) } else { Icmpv4Type::EchoRequest(echo) };
            etherparse::Icmpv4Header::with_checksum(kind, &data).to_bytes().to_vec()
        }
        (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => {
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
            .send(echo(), echo_reply()),
        Fixture::new("echo request, not to be answered", "Passed: the host answers, or nobody does.")
            .set(Change::Address(0))
            .send(echo(), pass(Outcome::NotForService)),
        Fixture::new("echo request to no VIP", "Passed.").send(echo(), pass(Outcome::NotForService)),
    ]
}

/// An error from a router on the way to the client, about a segment that the server sent it.
fn error() -> Input {
    open().with(|frame| {
        let quoted = Frame::new(frame.destination, frame.source, Transport::tcp(ACK, ACKED, ISN + 1));
        let quoted = &quoted.bytes()[14..];
        let mut router = frame.source;
        router.set_port(0);
        let (mut bytes, number) = match (router.ip(), frame.destination.ip()) {
            (std::net::IpAddr::V4(_), std::net::IpAddr::V4(_)) => {
                let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
                let kind = Icmpv4Type::DestinationUnreachable(kind);
                (etherparse::Icmpv4Header::with_checksum(kind, quoted).to_bytes().to_vec(), 1)
            }
            (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => {
                let kind = Icmpv6Type::PacketTooBig { mtu: 1400 };
                let header =
                    etherparse::Icmpv6Header::with_checksum(kind, source.octets(), destination.octets(), quoted);
                (header.expect("short").to_bytes().to_vec(), 58)
            }
            _ => unreachable!("both addresses are of one family"),
        };
        bytes.extend_from_slice(quoted);
        frame.transport = Transport::Other(number);
        frame.payload = bytes;
    })
}

fn errors() -> Vec<Fixture> {
    vec![
        Fixture::new("ICMP error about a flow", "It goes to the backend that owns the flow, found by what it quotes.")
            .tcp()
            .one_way()
            .set(Change::Address(0))
            .send(syn(ISN), opens_to(B0))
            .send(ack(ISN + 1, ACKED), to(B0))
            .set(Change::Ring(Some(B1), None))
            .send(error(), goes_with(B0, Outcome::IcmpError)),
        Fixture::new("ICMP error about an unknown flow", "It goes where the ring would send the flow's segments.")
            .tcp()
            .one_way()
            .set(Change::Address(0))
            .send(error(), goes_with(B0, Outcome::IcmpError)),
        Fixture::new("ICMP error in a drain, table lost", "It goes to the remembered owner.")
            .tcp()
            .one_way()
            .set(Change::Address(0))
            .set(Change::Drain(B0, B1, 300))
            .send(error(), goes_with(B0, Outcome::IcmpError)),
    ]
}

/// What leaves of the MTU of 1,500 after an outer header.
fn inner_mtu(cell_is_v4: bool) -> u16 {
    if cell_is_v4 { 1480 } else { 1460 }
}

fn sizes() -> Vec<Fixture> {
    let long = |bytes| more().with(move |frame| frame.payload = vec![7; bytes]);
    let hop_limit = |limit| more().with(move |frame| frame.hop_limit = limit);
    let tunnel = |name, about| Fixture::new(name, about).only(Mode::Tunnel);
    vec![
        tunnel("too big for the tunnel", "The client learns in the VIP's name how long a packet may be.")
            .v4()
            .send(open(), opens_to(B0))
            .send(long(1441 + 12), too_big(inner_mtu(true))),
        tunnel("too big for the tunnel", "The client learns in the VIP's name how long a packet may be.")
            .v6()
            .send(open(), opens_to(B0))
            .send(long(1440), too_big(inner_mtu(false))),
        tunnel("too big, and may be fragmented", "Refused: a tunnel's middle is no place to fragment.")
            .v4()
            .send(open(), opens_to(B0))
            .send(long(1460).with(|frame| frame.dont_fragment = false), drop(Outcome::DroppedTooBig)),
        tunnel("just fits the tunnel", "To the byte.").v4().tcp().send(open(), opens_to(B0)).send(long(1440), to(B0)),
        tunnel("the other family's tunnel", "Either family in either.")
            .set(Change::OtherFamily(B0))
            .send(open(), opens_to(B0))
            .send(more(), to(B0)),
        tunnel("traffic class", "DSCP and ECN are copied to the outer header.")
            .send(open().with(|frame| frame.class = 0xb9), opens_to(B0))
            .send(more().with(|frame| frame.class = 0x03), to(B0)),
        Fixture::new("hop limit used up", "Who forwards as a router counts hops.")
            .only(Mode::Nat)
            .send(open(), opens_to(B0))
            .send(hop_limit(1), drop(Outcome::DroppedHopLimit))
            .send(hop_limit(0), drop(Outcome::DroppedHopLimit))
            .send(hop_limit(2), to(B0)),
        Fixture::new("hop limit used up", "Who forwards as a router counts hops.")
            .only(Mode::Tunnel)
            .send(open(), opens_to(B0))
            .send(hop_limit(1), drop(Outcome::DroppedHopLimit))
            .send(hop_limit(2), to(B0)),
        Fixture::new("hop limit in dsr", "The balancer is no hop there.")
            .only(Mode::Dsr)
            .send(open(), opens_to(B0))
            .send(hop_limit(1), to(B0)),
        Fixture::new("data both ways", "What the backend says reaches the client as the VIP's, to the byte.")
            .only(Mode::Nat)
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .answered(B0)
            .send(data(ISN + 1, ACKED, 100), to(B0))
            .reply(B0, ACK, ACKED, ISN + 101, 777)
            .send(ack(ISN + 101, ACKED + 777), to(B0)),
    ]
}
