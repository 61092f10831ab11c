//! Fragments: later ones follow their first.

use aya_ebpf::bindings::xdp_md;
use bytemuck::{Pod, Zeroable};
use lb_common::{
    addr::Addr,
    flow_table::Entry,
    outcome::Outcome,
    service::{address_flag, vip_kind},
};

use crate::{
    by_family, clock,
    entry::FlowRef,
    family::Family,
    forward::{Sent, nat},
    maps::{CONTROL, FRAGMENTS, SERVICES},
    packet::Packet,
    parse::{Fragment, Ip, protocol},
    rare,
    rewrite::{self, Side, Translation},
    scratch::NONE,
    services, steer,
};

/// What the fragments of one datagram have in common.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source.
    pub source: Addr,
    /// Destination.
    pub destination: Addr,
    /// Identification, as loaded.
    pub id: u32,
    /// Protocol (IPv4; 0 for IPv6, whose later fragments need not name it, RFC 8200 section 4.5).
    pub protocol: u32,
}

/// Where they go.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct FragmentOwner {
    /// Backend slot.
    pub backend: u32,
    /// Its generation.
    pub generation: u32,
    /// Coarse time of the first fragment, ns.
    pub seen_ns: u64,
    /// Service slot.
    pub service: u32,
    /// Row of the peer table if this is a reply on its way back (`nat`), else 0.
    pub reply_to: u32,
}

/// How long fragments are waited for: what RFC 8200, section 4.5 gives a receiver, halved, since identifications recur.
const WAIT_NS: u64 = 30_000_000_000;

/// Smallest offset of a later fragment, in units of 8 bytes, that cannot overwrite a TCP header (RFC 1858; RFC 3128).
const BEHIND_TCP_HEADER: u16 = 3;

#[inline(always)]
fn key(ip: &Ip, id: u32) -> FragmentKey {
    let protocol = if ip.source.is_v4() { ip.protocol as u32 } else { 0 };
    FragmentKey { source: ip.source, destination: ip.destination, id, protocol }
}

/// Remembers where a first fragment went; always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_remember(ctx: *mut xdp_md, frame: u32, backend: u32, service: u32) -> u32 {
    by_family!(ctx, frame, remember(backend, service));
    0
}

#[inline(always)]
fn remember<F: Family>(packet: &Packet, offset: usize, backend: u32, service: u32) {
    let Ok(ip) = F::parse(packet, offset) else { return };
    let Some(control) = CONTROL.get(0) else { return };
    let generation = steer::row(backend).map_or(0, |row| row.generation);
    let owner = FragmentOwner { backend, generation, seen_ns: clock(control), service, reply_to: 0 };
    // Without room the datagram is lost, as on any congested link.
    let _ = FRAGMENTS.insert(key(&ip, ip.fragment.id), owner, 0);
}

/// Remembers where a reply's first fragment went.
#[inline(always)]
pub fn remember_reply(ip: &Ip, entry: FlowRef, now_ns: u64) {
    let owner = FragmentOwner {
        backend: entry.backend(),
        generation: entry.generation(),
        seen_ns: now_ns,
        service: entry.key().service() as u32,
        reply_to: entry.peer() as u32,
    };
    let _ = FRAGMENTS.insert(key(ip, ip.fragment.id), owner, 0);
}

/// Handles a later fragment.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_fragment(ctx: *mut xdp_md, frame: u32) -> u64 {
    rare::word(by_family!(ctx, frame, follow()))
}

#[inline(always)]
fn follow<F: Family>(packet: &Packet, offset: usize) -> Result<Sent, Outcome> {
    let ip = F::parse(packet, offset)?;
    let Fragment { id, at, .. } = ip.fragment;
    // SAFETY: the value is copied out at once; a concurrent overwrite could at worst mis-send this one fragment.
    let owner = unsafe { FRAGMENTS.get(key(&ip, id)) }.copied();
    let control = CONTROL.get(0).ok_or(Outcome::NotForService)?;
    let owner = match owner {
        Some(owner) if clock(control).wrapping_sub(owner.seen_ns) < WAIT_NS => owner,
        _ => return Err(unplaced(&ip)),
    };
    let overwrites = ip.protocol == protocol::TCP && at < BEHIND_TCP_HEADER;
    let row = steer::row(owner.backend).ok_or(Outcome::DroppedFragment)?;
    if overwrites || row.generation != owner.generation {
        return Err(Outcome::DroppedFragment);
    }
    if owner.reply_to == 0 {
        return rare::send_on(owner.service, owner.backend, NONE, id, Outcome::Fragment);
    }
    let service = SERVICES.get(owner.service).ok_or(Outcome::DroppedFragment)?;
    let to = Translation { side: Side::Source, addr: service.vip, port: 0, other_port: 0 };
    rewrite::translate::<F>(packet, &ip, to)?;
    nat::to_peer(packet, offset, owner.reply_to as u16, Outcome::Fragment)
}

/// What becomes of a fragment whose first is not known: dropped where the address is a VIP and nothing else.
#[inline(always)]
fn unplaced(ip: &Ip) -> Outcome {
    let Some(control) = CONTROL.get(0) else { return Outcome::NotForService };
    match services::find(control, vip_kind::ADDRESS, &ip.destination, 0, 0, 0) {
        None => Outcome::NotForService,
        Some((flags, _)) if flags & address_flag::SHARED_WITH_HOST != 0 => Outcome::PassedHost,
        Some(_) => Outcome::DroppedFragment,
    }
}
