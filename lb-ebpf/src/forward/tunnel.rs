//! IP in IP (RFC 2003, RFC 2473): the packet goes to the backend inside another, from whose end it is taken there.

use aya_ebpf::bindings::xdp_md;
use lb_common::{backend::Backend, checksum, outcome::Outcome};
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use super::{Sent, address_frame};
use crate::{
    by_family,
    family::{Family, HOP_LIMIT},
    packet::Packet,
    parse::ether,
    rare, steer, too_big,
};

/// Sends a packet of a client to its backend; `hash` varies with the flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_tunnel(ctx: *mut xdp_md, frame: u32, backend: u32, hash: u32) -> u64 {
    rare::word(by_family!(ctx, frame, encapsulate(backend, hash)))
}

#[inline(always)]
fn encapsulate<F: Family>(packet: &Packet, offset: usize, backend: u32, hash: u32) -> Result<Sent, Outcome> {
    let ip = F::parse(packet, offset)?;
    let row = steer::row(backend).ok_or(Outcome::DroppedNoBackend)?;
    let overhead = if row.addr.is_v4() { Ipv4Hdr::LEN } else { Ipv6Hdr::LEN };
    if ip.len + overhead > row.mtu as usize {
        return too_big::answer::<F>(packet, offset, (row.mtu as usize).saturating_sub(overhead));
    }
    // As part of forwarding the inner hop limit goes down by one (RFC 2003, section 3.1; RFC 2473, section 3.1).
    F::decrement_hop_limit(packet, offset)?;
    let class = F::traffic_class(packet, offset).ok_or(Outcome::DroppedMalformed)?;
    let link = link_header(packet, offset).ok_or(Outcome::DroppedMalformed)?;
    let inner = if F::V6 { IpProto::Ipv6 as u8 } else { IpProto::Ipv4 as u8 };
    let grown = packet.grow_front(overhead).ok_or(Outcome::DroppedResize)?;
    let ethertype = if row.addr.is_v4() { ether::IPV4 } else { ether::IPV6 };
    put_link_header(&grown, offset, link, ethertype).ok_or(Outcome::DroppedMalformed)?;
    let outer = Outer { offset, payload: ip.len, protocol: inner, class, hash };
    let put = if row.addr.is_v4() { put_v4(&grown, row, outer) } else { put_v6(&grown, row, outer) };
    put.ok_or(Outcome::DroppedMalformed)?;
    let ifindex = address_frame(&grown, offset, row)?;
    Ok(Sent { ifindex, outcome: Outcome::Forwarded })
}

/// What follows the frame's addresses: up to two tags (the EtherType after them is written anew).
pub type LinkHeader = [u32; 2];

/// Reads the tags of a frame whose payload is at `offset`.
#[inline(always)]
pub fn link_header(packet: &Packet, offset: usize) -> Option<LinkHeader> {
    if offset == 14 {
        return Some([0, 0]);
    }
    let first = packet.window::<4>(12)?.get::<u32, 0>();
    if offset == 18 {
        return Some([first, 0]);
    }
    Some([first, packet.window::<4>(16)?.get::<u32, 0>()])
}

/// Writes the tags and the EtherType of a frame; its addresses are for the caller.
#[inline(always)]
pub fn put_link_header(packet: &Packet, offset: usize, tags: LinkHeader, ethertype: u16) -> Option<()> {
    // Constants, since the verifier refuses a bounded offset less two.
    match offset {
        14 => packet.window::<2>(12)?.put::<u16, 0>(ethertype),
        18 => {
            let rest = packet.window::<6>(12)?;
            rest.put::<u32, 0>(tags[0]);
            rest.put::<u16, 4>(ethertype);
        }
        _ => {
            let rest = packet.window::<10>(12)?;
            rest.put::<u32, 0>(tags[0]);
            rest.put::<u32, 4>(tags[1]);
            rest.put::<u16, 8>(ethertype);
        }
    }
    Some(())
}

/// An outer header to write.
#[derive(Clone, Copy)]
struct Outer {
    offset: usize,
    /// Bytes of the inner packet.
    payload: usize,
    /// Protocol number of the inner packet.
    protocol: u8,
    /// Its traffic class, which the outer header copies: DSCP as RFC 2983's uniform model, ECN as RFC 6040.
    class: u8,
    hash: u32,
}

#[inline(always)]
fn put_v4(packet: &Packet, row: &Backend, outer: Outer) -> Option<()> {
    let [l0, l1] = ((Ipv4Hdr::LEN + outer.payload) as u16).to_be_bytes();
    let words = [
        u32::from_ne_bytes([0x45, outer.class, l0, l1]),
        // Never fragmented: what does not fit was answered above. So no identification is needed (RFC 6864).
        u32::from_ne_bytes([0, 0, 0x40, 0]),
        u32::from_ne_bytes([HOP_LIMIT, outer.protocol, 0, 0]),
        row.tunnel_source.v4_word(),
        row.addr.v4_word(),
    ];
    let mut sum = 0;
    for word in words {
        sum = checksum::add32(sum, word);
    }
    let header = packet.window::<{ Ipv4Hdr::LEN }>(outer.offset)?;
    header.put::<u32, 0>(words[0]);
    header.put::<u32, 4>(words[1]);
    header.put::<u32, 8>(words[2]);
    header.put::<u16, 10>(!checksum::fold(sum));
    header.put::<u32, 12>(words[3]);
    header.put::<u32, 16>(words[4]);
    Some(())
}

#[inline(always)]
fn put_v6(packet: &Packet, row: &Backend, outer: Outer) -> Option<()> {
    // The flow label varies with the flow, so that receivers spread their load by it (RFC 6438).
    let first = 6u32 << 28 | (outer.class as u32) << 20 | (outer.hash & 0xf_ffff);
    let [l0, l1] = (outer.payload as u16).to_be_bytes();
    let header = packet.window::<{ Ipv6Hdr::LEN }>(outer.offset)?;
    header.put::<u32, 0>(first.to_be());
    header.put::<u32, 4>(u32::from_ne_bytes([l0, l1, outer.protocol, HOP_LIMIT]));
    header.put::<u64, 8>(row.tunnel_source.halves[0]);
    header.put::<u64, 16>(row.tunnel_source.halves[1]);
    header.put::<u64, 24>(row.addr.halves[0]);
    header.put::<u64, 32>(row.addr.halves[1]);
    Some(())
}
