//! Frames with one TCP segment without data, built whole, and how they are sent past the stack.

mod send;

use std::net::{IpAddr, SocketAddr};

use lb_common::{checksum, service::TCP, tcp::flag};

pub(crate) use send::Sender;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP_HEADER: usize = 20;
/// EtherType of a VLAN tag, and its bytes.
const VLAN: u16 = 0x8100;
const TAG: usize = 4;
/// The largest: Ethernet with a tag, two IPv6 headers, TCP.
const CAPACITY: usize = ETHERNET + TAG + 2 * IPV6 + TCP_HEADER;

/// Hop limit of what starts here.
const HOPS: u8 = 64;
/// IPv4's "don't fragment".
const DONT_FRAGMENT: u16 = 0x4000;
/// Protocol numbers of IP in IP (RFC 2003, RFC 2473).
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;

/// What carries the segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    /// Interface it leaves by.
    pub(crate) ifindex: u32,
    pub(crate) dst: [u8; 6],
    pub(crate) src: [u8; 6],
    /// Source and destination of an outer IP header.
    pub(crate) tunnel: Option<(IpAddr, IpAddr)>,
    /// The VLAN whose tag it has.
    pub(crate) vlan: Option<u16>,
}

/// The segment itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) seq: u32,
    /// Without, the ACK flag is not set.
    pub(crate) ack: Option<u32>,
    /// The other flags.
    pub(crate) flags: u8,
}

/// A frame ready to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) ifindex: u32,
    bytes: [u8; CAPACITY],
    len: usize,
}

impl Frame {
    /// A frame made of these parts, if it is not too long.
    pub(crate) fn of(ifindex: u32, parts: &[&[u8]]) -> Option<Self> {
        let mut frame = Self { ifindex, bytes: [0; CAPACITY], len: 0 };
        if parts.iter().map(|part| part.len()).sum::<usize>() > CAPACITY {
            return None;
        }
        for part in parts {
            frame.push(part);
        }
        Some(frame)
    }

    /// What goes onto the wire.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, bytes: &[u8]) {
        // CAPACITY is the sum of all that is ever pushed.
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

/// Builds the frame; `None` if the two ends, or those of the tunnel, are of different families.
pub(crate) fn build(envelope: &Envelope, segment: &Segment) -> Option<Frame> {
    let inner = ip_header(segment.from.ip(), segment.to.ip(), TCP, TCP_HEADER)?;
    let outer = match envelope.tunnel {
        Some((from, to)) => {
            let protocol = if segment.to.is_ipv4() { IPV4_IN_IP } else { IPV6_IN_IP };
            Some(ip_header(from, to, protocol, inner.len() + TCP_HEADER)?)
        }
        None => None,
    };
    let ethertype: u16 = if outer.as_ref().unwrap_or(&inner).len() == IPV4 { 0x0800 } else { 0x86dd };
    let mut frame = Frame { ifindex: envelope.ifindex, bytes: [0; CAPACITY], len: 0 };
    frame.push(&envelope.dst);
    frame.push(&envelope.src);
    if let Some(vlan) = envelope.vlan {
        frame.push(&VLAN.to_be_bytes());
        frame.push(&vlan.to_be_bytes());
    }
    frame.push(&ethertype.to_be_bytes());
    if let Some(outer) = outer {
        frame.push(&outer);
    }
    frame.push(&inner);
    frame.push(&tcp_header(segment));
    Some(frame)
}

fn ip_header(from: IpAddr, to: IpAddr, protocol: u8, payload: usize) -> Option<Vec<u8>> {
    let mut header;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header = vec![0u8; IPV4];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((IPV4 + payload) as u16).to_be_bytes());
            header[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
            header[8] = HOPS;
            header[9] = protocol;
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let check = !checksum::fold(checksum::sum(&header));
            header[10..12].copy_from_slice(&check.to_ne_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            header = vec![0u8; IPV6];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
            header[6] = protocol;
            header[7] = HOPS;
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
        }
        _ => return None,
    }
    Some(header)
}

fn tcp_header(segment: &Segment) -> [u8; TCP_HEADER] {
    let mut header = [0u8; TCP_HEADER];
    header[0..2].copy_from_slice(&segment.from.port().to_be_bytes());
    header[2..4].copy_from_slice(&segment.to.port().to_be_bytes());
    header[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    header[8..12].copy_from_slice(&segment.ack.unwrap_or(0).to_be_bytes());
    header[12] = ((TCP_HEADER / 4) << 4) as u8;
    header[13] = segment.flags | if segment.ack.is_some() { flag::ACK } else { 0 };
    let mut sum = checksum::sum(&header);
    for ip in [segment.from.ip(), segment.to.ip()] {
        sum += match ip {
            IpAddr::V4(ip) => checksum::sum(&ip.octets()),
            IpAddr::V6(ip) => checksum::sum(&ip.octets()),
        };
    }
    // The rest of the pseudo header: protocol and length.
    sum += checksum::sum(&[0, TCP, 0, TCP_HEADER as u8]);
    header[16..18].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use etherparse::{LinkSlice, NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const ENVELOPE: Envelope =
        Envelope { ifindex: 9, dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2], tunnel: None, vlan: None };

    fn rst(from: &str, to: &str, ack: Option<u32>) -> Segment {
        Segment { from: from.parse().unwrap(), to: to.parse().unwrap(), seq: 0xdead_beef, ack, flags: flag::RST }
    }

    /// Checks one IP packet with a reset in it, checksums included, by another implementation.
    fn check_packet(net: &NetSlice<'_>, transport: &TransportSlice<'_>, rst: &Segment) {
        let TransportSlice::Tcp(tcp) = transport else { panic!("{transport:?}") };
        let header = tcp.to_header();
        assert_eq!((header.source_port, header.destination_port), (rst.from.port(), rst.to.port()));
        assert_eq!((header.sequence_number, header.acknowledgment_number), (rst.seq, rst.ack.unwrap_or(0)));
        assert_eq!(
            (header.rst, header.ack, header.syn, header.fin, header.psh),
            (true, rst.ack.is_some(), false, false, false)
        );
        assert!(tcp.payload().is_empty());
        let expected = match net {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header().to_header();
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                assert!(ip.dont_fragment);
                assert_eq!((IpAddr::from(ip.source), IpAddr::from(ip.destination)), (rst.from.ip(), rst.to.ip()));
                header.calc_checksum_ipv4(&ip, &[])
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header().to_header();
                assert_eq!((IpAddr::from(ip.source), IpAddr::from(ip.destination)), (rst.from.ip(), rst.to.ip()));
                header.calc_checksum_ipv6(&ip, &[])
            }
            NetSlice::Arp(arp) => panic!("{arp:?}"),
        };
        assert_eq!(header.checksum, expected.unwrap());
    }

    #[test]
    fn both_families_are_well_formed() {
        for (from, to) in [("10.0.0.100:80", "192.0.2.7:45001"), ("[2001:db8::100]:443", "[2001:db8:1::7]:45001")] {
            for ack in [None, Some(77)] {
                let rst = rst(from, to, ack);
                let frame = build(&ENVELOPE, &rst).unwrap();
                let packet = SlicedPacket::from_ethernet(frame.bytes()).unwrap();
                let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link else { panic!() };
                assert_eq!((ethernet.destination(), ethernet.source()), (ENVELOPE.dst, ENVELOPE.src));
                check_packet(packet.net.as_ref().unwrap(), packet.transport.as_ref().unwrap(), &rst);
            }
        }
    }

    #[test]
    fn a_tunnel_carries_any_family_in_any() {
        let outers = [("10.0.0.1", "10.0.0.11"), ("2001:db8::1", "2001:db8::11")];
        let inners = [("192.0.2.7:45001", "10.0.0.100:80"), ("[2001:db8:1::7]:45001", "[2001:db8::100]:443")];
        for outer in outers {
            for (from, to) in inners {
                let tunnel = Some((outer.0.parse().unwrap(), outer.1.parse().unwrap()));
                let rst = rst(from, to, None);
                let frame = build(&Envelope { tunnel, ..ENVELOPE }, &rst).unwrap();
                let packet = SlicedPacket::from_ethernet(frame.bytes()).unwrap();
                let payload = packet.net.as_ref().unwrap().ip_payload_ref().unwrap();
                let number = if rst.to.is_ipv4() { IPV4_IN_IP } else { IPV6_IN_IP };
                assert_eq!(payload.ip_number.0, number);
                let inner = SlicedPacket::from_ip(payload.payload).unwrap();
                check_packet(inner.net.as_ref().unwrap(), inner.transport.as_ref().unwrap(), &rst);
            }
        }
    }

    #[test]
    fn ends_of_different_families_make_no_frame() {
        assert!(build(&ENVELOPE, &rst("10.0.0.100:80", "[2001:db8::7]:45001", None)).is_none());
    }

    #[test]
    fn a_tag_stands_before_the_ethertype() {
        let segment = rst("10.0.0.100:80", "192.0.2.7:45001", None);
        let plain = build(&ENVELOPE, &segment).unwrap();
        let tagged = build(&Envelope { vlan: Some(0x123), ..ENVELOPE }, &segment).unwrap();
        assert_eq!(tagged.bytes()[12..18], [0x81, 0, 1, 0x23, 8, 0]);
        assert_eq!(tagged.bytes()[16..], plain.bytes()[12..]);
    }
}
