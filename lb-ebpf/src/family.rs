//! What differs between IPv4 and IPv6; everything else is generic over [`Family`] and monomorphised.

use lb_common::{addr::Addr, checksum, outcome::Outcome};
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use crate::{
    packet::Packet,
    parse::{Fragment, Ip, protocol},
};

/// One IP version.
pub trait Family {
    /// Bytes of the header without options or extensions.
    const HEADER: usize;
    /// Whether this is IPv6.
    const V6: bool;
    /// Protocol number of its ICMP.
    const ICMP: u8;
    /// EtherType, as loaded.
    const ETHERTYPE: u16;

    /// Reads the header at `offset`.
    fn parse(packet: &Packet, offset: usize) -> Result<Ip, Outcome>;

    /// Turns the header round for an answer with `payload` bytes behind it: addresses swapped, a fresh hop limit.
    fn answer_header(packet: &Packet, ip: &Ip, payload: usize) -> Option<()>;
}

/// Hop limit of packets that the packet path makes itself.
const HOP_LIMIT: u8 = 64;

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

impl Family for V4 {
    const HEADER: usize = Ipv4Hdr::LEN;
    const V6: bool = false;
    const ICMP: u8 = protocol::ICMP;
    const ETHERTYPE: u16 = crate::parse::ether::IPV4;

    #[inline(always)]
    fn parse(packet: &Packet, offset: usize) -> Result<Ip, Outcome> {
        parse_v4(packet, offset).ok_or(Outcome::PassedMalformed)
    }

    #[inline(always)]
    fn answer_header(packet: &Packet, ip: &Ip, payload: usize) -> Option<()> {
        let len = (Ipv4Hdr::LEN + payload) as u16;
        let [l0, l1] = len.to_be_bytes();
        let words = [
            u32::from_ne_bytes([0x45, 0, l0, l1]),
            // Identification 0 with "don't fragment" (RFC 6864, section 4.1).
            u32::from_ne_bytes([0, 0, 0x40, 0]),
            u32::from_ne_bytes([HOP_LIMIT, ip.protocol, 0, 0]),
            ip.destination.v4_word(),
            ip.source.v4_word(),
        ];
        let mut sum = 0;
        for word in words {
            sum = checksum::add32(sum, word);
        }
        let check = !checksum::fold(sum);
        let header = packet.window::<{ Ipv4Hdr::LEN }>(ip.offset)?;
        header.put::<u32, 0>(words[0]);
        header.put::<u32, 4>(words[1]);
        header.put::<u32, 8>(words[2]);
        header.put::<u16, 10>(check);
        header.put::<u32, 12>(words[3]);
        header.put::<u32, 16>(words[4]);
        Some(())
    }
}

#[inline(always)]
fn parse_v4(packet: &Packet, offset: usize) -> Option<Ip> {
    let ip = packet.window::<{ Ipv4Hdr::LEN }>(offset)?;
    let first = ip.get::<u8, 0>();
    let header = ((first & 0xf) as usize) * 4;
    let len = u16::from_be(ip.get::<u16, 2>()) as usize;
    if first >> 4 != 4 || header < Ipv4Hdr::LEN || len < header || offset + len > packet.len() {
        return None;
    }
    let fragment = u16::from_be(ip.get::<u16, 6>());
    let id = ip.get::<u16, 4>() as u32;
    Some(Ip {
        source: Addr::from_v4_word(ip.get::<u32, 12>()),
        destination: Addr::from_v4_word(ip.get::<u32, 16>()),
        protocol: ip.get::<u8, 9>(),
        offset,
        payload: offset + header,
        len,
        fragment: match fragment & 0x3fff {
            0 => Fragment::Whole,
            // Offset 0 with "more fragments".
            0x2000 => Fragment::First { id },
            _ => Fragment::Later { id },
        },
    })
}

impl Family for V6 {
    const HEADER: usize = Ipv6Hdr::LEN;
    const V6: bool = true;
    const ICMP: u8 = protocol::ICMPV6;
    const ETHERTYPE: u16 = crate::parse::ether::IPV6;

    #[inline(always)]
    fn parse(packet: &Packet, offset: usize) -> Result<Ip, Outcome> {
        parse_v6(packet, offset).ok_or(Outcome::PassedMalformed)
    }

    #[inline(always)]
    fn answer_header(packet: &Packet, ip: &Ip, payload: usize) -> Option<()> {
        let [l0, l1] = (payload as u16).to_be_bytes();
        let first = u64::from_ne_bytes([0x60, 0, 0, 0, l0, l1, ip.protocol, HOP_LIMIT]);
        let header = packet.window::<{ Ipv6Hdr::LEN }>(ip.offset)?;
        header.put::<u64, 0>(first);
        header.put::<u64, 8>(ip.destination.halves[0]);
        header.put::<u64, 16>(ip.destination.halves[1]);
        header.put::<u64, 24>(ip.source.halves[0]);
        header.put::<u64, 32>(ip.source.halves[1]);
        Some(())
    }
}

#[inline(always)]
fn parse_v6(packet: &Packet, offset: usize) -> Option<Ip> {
    let header = packet.window::<{ Ipv6Hdr::LEN }>(offset)?;
    let first: [u8; 8] = header.get::<u64, 0>().to_ne_bytes();
    let len = u16::from_be_bytes([first[4], first[5]]) as usize + Ipv6Hdr::LEN;
    if first[0] >> 4 != 6 || offset + len > packet.len() {
        return None;
    }
    let mut ip = Ip {
        source: Addr::from_v6_halves([header.get::<u64, 8>(), header.get::<u64, 16>()]),
        destination: Addr::from_v6_halves([header.get::<u64, 24>(), header.get::<u64, 32>()]),
        protocol: first[6],
        offset,
        payload: offset + Ipv6Hdr::LEN,
        len,
        fragment: Fragment::Whole,
    };
    if is_extension(ip.protocol) {
        skip_extensions(packet, &mut ip)?;
    }
    Some(ip)
}

/// Hop-by-hop options, destination options, fragment header (RFC 8200, section 4). Whatever else, a routing header or
/// IPsec, is the host's business: its number stays as the protocol, which is no service's.
#[inline(always)]
fn is_extension(next: u8) -> bool {
    const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
    const DESTINATION: u8 = IpProto::Ipv6Opts as u8;
    const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
    matches!(next, HOP_BY_HOP | DESTINATION | FRAGMENT)
}

/// Most extension headers that are passed over, and most bytes of them; more is not taken for a service's packet.
const EXTENSIONS: usize = 4;
const EXTENSION_BYTES: usize = 256;

#[inline(always)]
fn skip_extensions(packet: &Packet, ip: &mut Ip) -> Option<()> {
    let mut skipped = 0usize;
    for _ in 0..EXTENSIONS {
        if !is_extension(ip.protocol) {
            break;
        }
        let at = ip.offset + Ipv6Hdr::LEN + (skipped & (EXTENSION_BYTES - 1));
        let header: [u8; 8] = packet.window::<8>(at)?.get::<u64, 0>().to_ne_bytes();
        let is_fragment = ip.protocol == IpProto::Ipv6Frag as u8;
        ip.protocol = header[0];
        if is_fragment {
            let place = u16::from_be_bytes([header[2], header[3]]);
            let id = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
            ip.fragment = match (place & 0xfff8, place & 1) {
                // An atomic fragment is a whole packet (RFC 6946).
                (0, 0) => Fragment::Whole,
                (0, _) => Fragment::First { id },
                _ => Fragment::Later { id },
            };
            skipped += 8;
            if place & 0xfff8 != 0 {
                break;
            }
        } else {
            skipped += (header[1] as usize + 1) * 8;
        }
        if skipped >= EXTENSION_BYTES {
            return None;
        }
    }
    let still_extension = is_extension(ip.protocol) && !matches!(ip.fragment, Fragment::Later { .. });
    if still_extension {
        return None;
    }
    ip.payload = ip.offset + Ipv6Hdr::LEN + (skipped & (EXTENSION_BYTES - 1));
    Some(())
}
