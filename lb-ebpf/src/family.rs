//! What differs between IPv4 and IPv6; everything else is generic over [`Family`] and monomorphised.

use lb_common::{addr::Addr, checksum, outcome::Outcome};
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use crate::{
    packet::Packet,
    parse::{Fragment, Ip, Part, protocol},
    rewrite::Side,
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

    /// Reads the header of a packet that an ICMP error quotes, which may be cut short behind it.
    fn parse_quoted(packet: &Packet, offset: usize) -> Result<Ip, Outcome>;

    /// Types of its echo request and reply.
    const ECHO: (u8, u8);
    /// Type and code that tell a sender of a smaller MTU.
    const TOO_BIG: (u8, u8);

    /// Whether an ICMP type is an error about a packet.
    fn is_error(kind: u8) -> bool;

    /// Replaces an address, mends the header's own checksum, and takes one off the hop limit if `hop`. Gives what the
    /// change of address adds to the checksum of a payload that sums it.
    fn rewrite_address(packet: &Packet, offset: usize, side: Side, addr: Addr, hop: bool) -> Result<u64, Outcome>;

    /// Gives it the hop limit that `to` makes of its own.
    fn map_hop_limit(packet: &Packet, offset: usize, to: impl FnOnce(u8) -> Result<u8, Outcome>)
    -> Result<(), Outcome>;

    /// Takes one off the hop limit.
    #[inline(always)]
    fn decrement_hop_limit(packet: &Packet, offset: usize) -> Result<(), Outcome> {
        Self::map_hop_limit(packet, offset, lowered)
    }

    /// Gives it the hop limit of a packet that is made here.
    #[inline(always)]
    fn renew_hop_limit(packet: &Packet, offset: usize) -> Result<(), Outcome> {
        Self::map_hop_limit(packet, offset, |_| Ok(HOP_LIMIT))
    }

    /// The source address.
    fn source(packet: &Packet, offset: usize) -> Option<Addr>;

    /// Swaps source and destination.
    fn swap_addresses(packet: &Packet, offset: usize) -> Option<()>;

    /// DSCP and ECN.
    fn traffic_class(packet: &Packet, offset: usize) -> Option<u8>;

    /// Replaces DSCP and ECN.
    fn set_traffic_class(packet: &Packet, offset: usize, class: u8) -> Option<()>;

    /// Whether routers must not fragment it.
    fn is_never_fragmented(packet: &Packet, offset: usize) -> bool;

    /// Turns the header round for an answer with `payload` bytes behind it: addresses swapped, a fresh hop limit.
    fn answer_header(packet: &Packet, ip: &Ip, payload: usize) -> Option<()>;
}

/// Hop limit of packets that the packet path makes itself.
pub const HOP_LIMIT: u8 = 64;

/// The hop limit that a packet is forwarded with.
#[inline(always)]
fn lowered(limit: u8) -> Result<u8, Outcome> {
    if limit <= 1 { Err(Outcome::DroppedHopLimit) } else { Ok(limit - 1) }
}

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
        parse_v4(packet, offset, packet.len()).ok_or(Outcome::PassedMalformed)
    }

    #[inline(always)]
    fn parse_quoted(packet: &Packet, offset: usize) -> Result<Ip, Outcome> {
        parse_v4(packet, offset, usize::MAX).ok_or(Outcome::PassedMalformed)
    }

    const ECHO: (u8, u8) = (8, 0);
    const TOO_BIG: (u8, u8) = (3, 4);

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Unreachable, time exceeded, parameter problem (RFC 792).
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn rewrite_address(packet: &Packet, offset: usize, side: Side, addr: Addr, hop: bool) -> Result<u64, Outcome> {
        let header = packet.window::<{ Ipv4Hdr::LEN }>(offset).ok_or(Outcome::DroppedMalformed)?;
        let life = header.get::<u16, 8>();
        let [limit, protocol] = life.to_ne_bytes();
        let left = if hop { u16::from_ne_bytes([lowered(limit)?, protocol]) } else { life };
        let new = addr.v4_word();
        let old = match side {
            Side::Source => header.get::<u32, 12>(),
            Side::Destination => header.get::<u32, 16>(),
        };
        let delta = checksum::replace32(0, old, new);
        let mut own = delta;
        if hop {
            own = checksum::replace16(own, life, left);
            header.put::<u16, 8>(left);
        }
        header.put::<u16, 10>(checksum::update(header.get::<u16, 10>(), own));
        match side {
            Side::Source => header.put::<u32, 12>(new),
            Side::Destination => header.put::<u32, 16>(new),
        }
        Ok(delta)
    }

    #[inline(always)]
    fn map_hop_limit(
        packet: &Packet,
        offset: usize,
        to: impl FnOnce(u8) -> Result<u8, Outcome>,
    ) -> Result<(), Outcome> {
        let header = packet.window::<{ Ipv4Hdr::LEN }>(offset).ok_or(Outcome::DroppedMalformed)?;
        let old = header.get::<u16, 8>();
        let [limit, protocol] = old.to_ne_bytes();
        let new = u16::from_ne_bytes([to(limit)?, protocol]);
        header.put::<u16, 8>(new);
        header.put::<u16, 10>(checksum::update(header.get::<u16, 10>(), checksum::replace16(0, old, new)));
        Ok(())
    }

    #[inline(always)]
    fn source(packet: &Packet, offset: usize) -> Option<Addr> {
        Some(Addr::from_v4_word(packet.window::<{ Ipv4Hdr::LEN }>(offset)?.get::<u32, 12>()))
    }

    #[inline(always)]
    fn swap_addresses(packet: &Packet, offset: usize) -> Option<()> {
        let header = packet.window::<{ Ipv4Hdr::LEN }>(offset)?;
        let (source, destination) = (header.get::<u32, 12>(), header.get::<u32, 16>());
        header.put::<u32, 12>(destination);
        header.put::<u32, 16>(source);
        Some(())
    }

    #[inline(always)]
    fn traffic_class(packet: &Packet, offset: usize) -> Option<u8> {
        Some(packet.window::<{ Ipv4Hdr::LEN }>(offset)?.get::<u8, 1>())
    }

    #[inline(always)]
    fn set_traffic_class(packet: &Packet, offset: usize, class: u8) -> Option<()> {
        let header = packet.window::<{ Ipv4Hdr::LEN }>(offset)?;
        let old = header.get::<u16, 0>();
        let new = u16::from_ne_bytes([old.to_ne_bytes()[0], class]);
        header.put::<u16, 0>(new);
        header.put::<u16, 10>(checksum::update(header.get::<u16, 10>(), checksum::replace16(0, old, new)));
        Some(())
    }

    #[inline(always)]
    fn is_never_fragmented(packet: &Packet, offset: usize) -> bool {
        packet.window::<{ Ipv4Hdr::LEN }>(offset).is_some_and(|header| header.get::<u8, 6>() & 0x40 != 0)
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
fn parse_v4(packet: &Packet, offset: usize, end: usize) -> Option<Ip> {
    let ip = packet.window::<{ Ipv4Hdr::LEN }>(offset)?;
    let first = ip.get::<u8, 0>();
    let header = ((first & 0xf) as usize) * 4;
    let len = u16::from_be(ip.get::<u16, 2>()) as usize;
    if first >> 4 != 4 || header < Ipv4Hdr::LEN || len < header || offset + len > end {
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
        fragment: Fragment::new(id, fragment & 0x1fff, fragment & 0x2000 != 0),
    })
}

impl Family for V6 {
    const HEADER: usize = Ipv6Hdr::LEN;
    const V6: bool = true;
    const ICMP: u8 = protocol::ICMPV6;
    const ETHERTYPE: u16 = crate::parse::ether::IPV6;

    #[inline(always)]
    fn parse(packet: &Packet, offset: usize) -> Result<Ip, Outcome> {
        parse_v6(packet, offset, packet.len()).ok_or(Outcome::PassedMalformed)
    }

    #[inline(always)]
    fn parse_quoted(packet: &Packet, offset: usize) -> Result<Ip, Outcome> {
        parse_v6(packet, offset, usize::MAX).ok_or(Outcome::PassedMalformed)
    }

    const ECHO: (u8, u8) = (128, 129);
    const TOO_BIG: (u8, u8) = (2, 0);

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Unreachable, too big, time exceeded, parameter problem (RFC 4443).
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn rewrite_address(packet: &Packet, offset: usize, side: Side, addr: Addr, hop: bool) -> Result<u64, Outcome> {
        let header = packet.window::<{ Ipv6Hdr::LEN }>(offset).ok_or(Outcome::DroppedMalformed)?;
        if hop {
            Self::decrement_hop_limit(packet, offset)?;
        }
        let old = match side {
            Side::Source => [header.get::<u64, 8>(), header.get::<u64, 16>()],
            Side::Destination => [header.get::<u64, 24>(), header.get::<u64, 32>()],
        };
        match side {
            Side::Source => {
                header.put::<u64, 8>(addr.halves[0]);
                header.put::<u64, 16>(addr.halves[1]);
            }
            Side::Destination => {
                header.put::<u64, 24>(addr.halves[0]);
                header.put::<u64, 32>(addr.halves[1]);
            }
        }
        let old = Addr::from_v6_halves(old).words();
        let new = addr.words();
        let mut delta = 0;
        for i in 0..4 {
            delta = checksum::replace32(delta, old[i], new[i]);
        }
        Ok(delta)
    }

    #[inline(always)]
    fn map_hop_limit(
        packet: &Packet,
        offset: usize,
        to: impl FnOnce(u8) -> Result<u8, Outcome>,
    ) -> Result<(), Outcome> {
        let header = packet.window::<{ Ipv6Hdr::LEN }>(offset).ok_or(Outcome::DroppedMalformed)?;
        let limit = header.get::<u8, 7>();
        header.put::<u8, 7>(to(limit)?);
        Ok(())
    }

    #[inline(always)]
    fn source(packet: &Packet, offset: usize) -> Option<Addr> {
        let header = packet.window::<{ Ipv6Hdr::LEN }>(offset)?;
        Some(Addr::from_v6_halves([header.get::<u64, 8>(), header.get::<u64, 16>()]))
    }

    #[inline(always)]
    fn swap_addresses(packet: &Packet, offset: usize) -> Option<()> {
        let header = packet.window::<{ Ipv6Hdr::LEN }>(offset)?;
        let source = [header.get::<u64, 8>(), header.get::<u64, 16>()];
        let destination = [header.get::<u64, 24>(), header.get::<u64, 32>()];
        header.put::<u64, 8>(destination[0]);
        header.put::<u64, 16>(destination[1]);
        header.put::<u64, 24>(source[0]);
        header.put::<u64, 32>(source[1]);
        Some(())
    }

    #[inline(always)]
    fn traffic_class(packet: &Packet, offset: usize) -> Option<u8> {
        let first = u16::from_be(packet.window::<{ Ipv6Hdr::LEN }>(offset)?.get::<u16, 0>());
        Some((first >> 4) as u8)
    }

    #[inline(always)]
    fn set_traffic_class(packet: &Packet, offset: usize, class: u8) -> Option<()> {
        let header = packet.window::<{ Ipv6Hdr::LEN }>(offset)?;
        let first = u16::from_be(header.get::<u16, 0>());
        header.put::<u16, 0>(((first & 0xf00f) | (class as u16) << 4).to_be());
        Some(())
    }

    #[inline(always)]
    fn is_never_fragmented(_packet: &Packet, _offset: usize) -> bool {
        true
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
fn parse_v6(packet: &Packet, offset: usize, end: usize) -> Option<Ip> {
    let header = packet.window::<{ Ipv6Hdr::LEN }>(offset)?;
    let first: [u8; 8] = header.get::<u64, 0>().to_ne_bytes();
    let len = u16::from_be_bytes([first[4], first[5]]) as usize + Ipv6Hdr::LEN;
    if first[0] >> 4 != 6 || offset + len > end {
        return None;
    }
    let mut ip = Ip {
        source: Addr::from_v6_halves([header.get::<u64, 8>(), header.get::<u64, 16>()]),
        destination: Addr::from_v6_halves([header.get::<u64, 24>(), header.get::<u64, 32>()]),
        protocol: first[6],
        offset,
        payload: offset + Ipv6Hdr::LEN,
        len,
        fragment: Fragment::new(0, 0, false),
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
            // Offset 0 without more is an atomic fragment: a whole packet (RFC 6946).
            ip.fragment = Fragment::new(id, place >> 3, place & 1 != 0);
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
    let still_extension = is_extension(ip.protocol) && !ip.fragment.is(Part::Later);
    if still_extension {
        return None;
    }
    ip.payload = ip.offset + Ipv6Hdr::LEN + (skipped & (EXTENSION_BYTES - 1));
    Some(())
}
