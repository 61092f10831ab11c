//! Headers: Ethernet with up to two VLAN tags, IPv4, IPv6 with its extension headers, TCP, UDP.

use lb_common::{addr::Addr, outcome::Outcome, tcp::Segment};
use network_types::{eth::EthHdr, ip::IpProto};

use crate::packet::Packet;

/// EtherTypes as the 16-bit word loaded from the frame.
pub mod ether {
    /// IPv4.
    pub const IPV4: u16 = 0x0800u16.to_be();
    /// IPv6.
    pub const IPV6: u16 = 0x86ddu16.to_be();
    /// ARP.
    pub const ARP: u16 = 0x0806u16.to_be();
    /// 802.1Q tag.
    const VLAN: u16 = 0x8100u16.to_be();
    /// 802.1ad tag.
    const QINQ: u16 = 0x88a8u16.to_be();

    /// Whether a tag follows.
    #[inline(always)]
    pub const fn is_vlan(ethertype: u16) -> bool {
        ethertype == VLAN || ethertype == QINQ
    }
}

/// The frame's EtherType after its tags, and where its payload starts: 14, 18 or 22.
#[inline(always)]
pub fn ethernet(packet: &Packet) -> Option<(u16, usize)> {
    let ethertype = packet.window::<2>(12)?.get::<u16, 0>();
    if !ether::is_vlan(ethertype) {
        return Some((ethertype, EthHdr::LEN));
    }
    let ethertype = packet.window::<2>(16)?.get::<u16, 0>();
    if !ether::is_vlan(ethertype) {
        return Some((ethertype, EthHdr::LEN + 4));
    }
    Some((packet.window::<2>(20)?.get::<u16, 0>(), EthHdr::LEN + 8))
}

/// What an IP header says.
#[derive(Clone, Copy)]
pub struct Ip {
    /// Source.
    pub source: Addr,
    /// Destination.
    pub destination: Addr,
    /// Protocol of the payload, extension headers passed over.
    pub protocol: u8,
    /// Offset of the IP header in the frame.
    pub offset: usize,
    /// Offset of the payload in the frame.
    pub payload: usize,
    /// Length of the whole IP packet by its header, bytes.
    pub len: usize,
    /// Whether this is a fragment, and which.
    pub fragment: Fragment,
}

/// A packet's place in a fragmented datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment: it has the payload's header.
    First {
        /// Identification, as loaded.
        id: u32,
    },
    /// A later one: it has none.
    Later {
        /// Identification, as loaded.
        id: u32,
    },
}

/// Protocol numbers as bytes.
pub mod protocol {
    use super::IpProto;

    /// TCP.
    pub const TCP: u8 = IpProto::Tcp as u8;
    /// UDP.
    pub const UDP: u8 = IpProto::Udp as u8;
    /// ICMP for IPv4.
    pub const ICMP: u8 = IpProto::Icmp as u8;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
}

/// Source and destination port as one word: source in the low half, each in network order.
#[inline(always)]
pub fn ports(packet: &Packet, ip: &Ip) -> Option<u32> {
    Some(packet.window::<4>(ip.payload)?.get::<u32, 0>())
}

/// Reads a TCP segment's numbers; `Err` if its header contradicts the packet.
#[inline(always)]
pub fn segment(packet: &Packet, ip: &Ip) -> Result<Segment, Outcome> {
    let tcp = packet.window::<20>(ip.payload).ok_or(Outcome::DroppedMalformed)?;
    let header = ((tcp.get::<u8, 12>() >> 4) as usize) * 4;
    let in_packet = ip.len.wrapping_sub(ip.payload - ip.offset);
    if header < 20 || in_packet > 0xffff || header > in_packet {
        return Err(Outcome::DroppedMalformed);
    }
    Ok(Segment {
        seq: u32::from_be(tcp.get::<u32, 4>()),
        ack: u32::from_be(tcp.get::<u32, 8>()),
        len: (in_packet - header) as u32,
        flags: tcp.get::<u8, 13>(),
    })
}
