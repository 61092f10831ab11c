//! Headers: Ethernet with up to two VLAN tags, IPv4, IPv6 with its extension headers, TCP, UDP.

use lb_common::{addr::Addr, outcome::Outcome, tcp::Segment, vlan::Tag};
use network_types::{eth::EthHdr, ip::IpProto};

use crate::{packet::Packet, rare::Frame};

/// EtherTypes as the 16-bit word loaded from the frame.
pub mod ether {
    /// IPv4.
    pub const IPV4: u16 = 0x0800u16.to_be();
    /// IPv6.
    pub const IPV6: u16 = 0x86ddu16.to_be();
    /// ARP.
    pub const ARP: u16 = 0x0806u16.to_be();
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100u16.to_be();
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

/// The way that a frame with its payload at `offset` came by. Of two tags nothing is known: they stay.
#[inline(always)]
pub fn tag(packet: &Packet, offset: usize) -> Tag {
    const ONE: usize = EthHdr::LEN + 4;
    match offset {
        EthHdr::LEN => Tag::NONE,
        ONE => packet.window::<2>(EthHdr::LEN).map_or(Tag::KEEP, |tag| Tag::tagged(u16::from_be(tag.get::<u16, 0>()))),
        _ => Tag::KEEP,
    }
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

impl Ip {
    /// Where this header is and of which family.
    #[inline(always)]
    pub fn frame(&self) -> Frame {
        Frame::new(self.offset, !self.source.is_v4())
    }
}

/// A packet's place in a fragmented datagram. A struct and not an enum with fields, so that no field is ever undefined:
/// the verifier refuses arithmetic on whatever a register happens to hold.
#[derive(Clone, Copy)]
pub struct Fragment {
    /// Which one it is.
    pub part: Part,
    /// Identification, as loaded.
    pub id: u32,
    /// Where its payload belongs, in units of 8 bytes.
    pub at: u16,
}

/// See [`Fragment`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Not fragmented.
    Whole,
    /// The first fragment: it has the payload's header.
    First,
    /// A later one: it has none.
    Later,
}

impl Fragment {
    /// From the place of its payload and whether more follow.
    #[inline(always)]
    pub fn new(id: u32, at: u16, more: bool) -> Self {
        let part = if at != 0 {
            Part::Later
        } else if more {
            Part::First
        } else {
            Part::Whole
        };
        Self { part, id, at }
    }

    /// Whether this is that part.
    #[inline(always)]
    pub fn is(self, part: Part) -> bool {
        self.part as u8 == part as u8
    }
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

/// Whether a datagram's own length agrees with the packet's: a whole one's header and data lie within it.
#[inline(always)]
pub fn is_datagram(packet: &Packet, ip: &Ip) -> bool {
    let Some(udp) = packet.window::<8>(ip.payload) else { return false };
    let len = u16::from_be(udp.get::<u16, 4>()) as usize;
    let in_packet = ip.len.wrapping_sub(ip.payload - ip.offset);
    len >= 8 && (8..=0xffff).contains(&in_packet) && (len <= in_packet || !ip.fragment.is(Part::Whole))
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
