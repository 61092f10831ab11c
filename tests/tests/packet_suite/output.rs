//! What must leave the balancer, made from what came in by means that share nothing with the program: etherparse builds
//! whole packets with their checksums where the program patches bytes.

use std::net::{IpAddr, SocketAddr};

use ebb_tests::{
    packets::{Frame, Transport},
    rig::{CLIENT_MAC, Mode, NEIGHBOUR_MAC, OWN_MAC, ROUTE_MAC},
};
use lb_common::backend::Backend;

use crate::icmp;

/// Length of the IP packet by its own header.
pub fn ip_length(frame: &Frame, bytes: &[u8]) -> usize {
    let ip = &bytes[frame.ip_offset()..];
    match frame.source {
        SocketAddr::V4(_) => u16::from_be_bytes([ip[2], ip[3]]).into(),
        SocketAddr::V6(_) => 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])),
    }
}

/// The frame that a backend gets. `sent` is what the program sent, from which the one field that is free is taken: the
/// flow label of an outer IPv6 header.
///
/// With the backend comes the port by which it knows the client, if not the client's own (`nat`).
pub fn forwarded(
    mode: Mode,
    frame: &Frame,
    bytes: &[u8],
    (backend, nat_port): (&Backend, Option<u16>),
    sent: &[u8],
) -> Vec<u8> {
    let mut out = match mode {
        Mode::Dsr => bytes.to_vec(),
        Mode::Nat => {
            let mut to = frame.clone();
            to.destination = (IpAddr::from(backend.addr), u16::from_be(backend.port)).into();
            if let Some(port) = nat_port {
                to.source.set_port(port);
            }
            to.hop_limit -= 1;
            if icmp::is_error(frame) {
                // The quoted packet is one from the VIP, as the backend sent it.
                to.payload = icmp::requoted(&to, &frame.payload, |source, destination| {
                    *source = to.destination;
                    destination.set_port(nat_port.unwrap_or(destination.port()));
                });
            }
            to.bytes()
        }
        Mode::Tunnel | Mode::Across => tunnelled(frame, bytes, backend, sent),
    };
    out[..6].copy_from_slice(&backend.dst_mac);
    out[6..12].copy_from_slice(&backend.src_mac);
    out
}

/// The packet in another one (RFC 2003, RFC 2473): DSCP and ECN are copied (RFC 2983, RFC 6040), the hop limit of the
/// inner one goes down, and that of the outer one starts anew.
fn tunnelled(frame: &Frame, bytes: &[u8], backend: &Backend, sent: &[u8]) -> Vec<u8> {
    let mut inner = frame.clone();
    inner.hop_limit -= 1;
    let at = frame.ip_offset();
    let end = at + ip_length(frame, bytes);
    let (source, destination) = (IpAddr::from(backend.tunnel_source), IpAddr::from(backend.addr));
    let number = if frame.source.is_ipv4() { 4 } else { 41 };
    let mut outer = Frame::new((source, 0).into(), (destination, 0).into(), Transport::Other(number));
    outer.tags.clone_from(&frame.tags);
    outer.hop_limit = 64;
    outer.class = frame.class;
    outer.payload = inner.bytes()[at..end].to_vec();
    outer.padding.clone_from(&frame.padding);
    let mut out = outer.bytes();
    if destination.is_ipv6() && sent.len() > at + 4 {
        out[at + 1] |= sent[at + 1] & 0x0f;
        out[at + 2..at + 4].copy_from_slice(&sent[at + 2..at + 4]);
    }
    out
}

/// The frame that a client gets, at that port, from a backend behind `nat`.
pub fn returned(frame: &Frame, vip: SocketAddr, port: u16) -> Vec<u8> {
    let mut to = frame.clone();
    to.source = vip;
    to.destination.set_port(port);
    to.hop_limit -= 1;
    (to.source_mac, to.destination_mac) = (OWN_MAC, CLIENT_MAC);
    to.bytes()
}

/// The same where the kernel's routes lead to the client.
pub fn returned_by_route(frame: &Frame, vip: SocketAddr) -> Vec<u8> {
    let mut to = frame.clone();
    to.source = vip;
    to.hop_limit -= 1;
    (to.source_mac, to.destination_mac) = (ROUTE_MAC, NEIGHBOUR_MAC);
    to.bytes()
}

/// The ICMP error that a client gets about a packet that it sent to the VIP.
pub fn error_returned(frame: &Frame, vip: SocketAddr, client: SocketAddr, from_backend: bool) -> Vec<u8> {
    let mut to = frame.clone();
    if from_backend {
        to.source.set_ip(vip.ip());
    }
    to.hop_limit -= 1;
    (to.source_mac, to.destination_mac) = (OWN_MAC, CLIENT_MAC);
    to.payload = icmp::requoted(&to, &frame.payload, |source, destination| (*source, *destination) = (client, vip));
    to.bytes()
}

/// The segment that answers the frame: addresses and ports swapped, tags kept, no options.
pub fn answer(frame: &Frame, transport: Transport) -> Vec<u8> {
    let mut answer = Frame::new(frame.destination, frame.source, transport);
    (answer.source_mac, answer.destination_mac) = (frame.destination_mac, frame.source_mac);
    answer.tags.clone_from(&frame.tags);
    answer.hop_limit = 64;
    answer.bytes()
}

/// The router's answer to a packet that does not fit, in the VIP's name: it quotes the IP header and eight bytes.
/// Tags stay.
pub fn too_big(frame: &Frame, bytes: &[u8], mtu: u16) -> Vec<u8> {
    let (at, end) = (frame.ip_offset(), frame.payload_offset() + 8);
    let link = etherparse::PacketBuilder::ethernet2(frame.destination_mac, frame.source_mac);
    let mut out = Vec::new();
    match (frame.source.ip(), frame.destination.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            use etherparse::{Icmpv4Type, icmpv4::DestUnreachableHeader};
            let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
            link.ipv4(vip.octets(), client.octets(), 64)
                .icmpv4(Icmpv4Type::DestinationUnreachable(kind))
                .write(&mut out, &bytes[at..end])
                .expect("short");
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            let kind = etherparse::Icmpv6Type::PacketTooBig { mtu: mtu.into() };
            link.ipv6(vip.octets(), client.octets(), 64).icmpv6(kind).write(&mut out, &bytes[at..end]).expect("short");
        }
        _ => unreachable!("both addresses are of one family"),
    }
    out.splice(12..12, bytes[12..at - 2].iter().copied());
    out
}

/// The answer to an echo request that [`crate::icmp::echo`] made.
pub fn echo_reply(frame: &Frame) -> Vec<u8> {
    let mut answer = frame.clone();
    std::mem::swap(&mut answer.source, &mut answer.destination);
    std::mem::swap(&mut answer.source_mac, &mut answer.destination_mac);
    answer.hop_limit = 64;
    answer.payload = icmp::echo_payload(frame, true);
    answer.bytes()
}
