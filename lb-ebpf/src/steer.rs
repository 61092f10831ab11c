//! Choosing a backend for a flow that the table does not know.

use lb_common::{
    addr::Addr,
    backend::{Backend, Keep},
    hash,
    outcome::Outcome,
    ring::{self, Published, RingSlot},
    service::{Service, service_flag},
};

use crate::maps::{BACKENDS, RINGS};

/// Ring slots tried before a flow is given up for want of a backend that takes it. The first is the flow's own; others
/// count only in the moment between a backend's change of state and the ring's.
const TRIES: u32 = 4;

/// A backend and why it was chosen.
#[derive(Clone, Copy)]
pub struct Choice {
    /// Backend slot.
    pub backend: u32,
    /// Its generation.
    pub generation: u32,
    /// [`Outcome::NewFlow`], or how a forgotten or migrated flow was placed.
    pub outcome: Outcome,
}

/// Steering hash of a flow at a service.
#[inline(always)]
pub fn hash(service: &Service, client: &Addr, ports: u32) -> u32 {
    if service.flags & service_flag::AFFINITY == 0 {
        return hash::steering(client, &service.vip, ports, service.protocol);
    }
    hash::steering(&masked(client, service.affinity_prefix), &service.vip, 0, service.protocol)
}

/// The leading `prefix` bits of a (mapped) address.
#[inline(always)]
fn masked(addr: &Addr, prefix: u8) -> Addr {
    let high = if prefix >= 64 { 64 } else { prefix };
    let low = if prefix >= 64 { (prefix - 64) & 127 } else { 0 };
    Addr::from_v6_halves([keep(addr.halves[0], high), keep(addr.halves[1], low)])
}

/// The leading bits of a half in network order.
#[inline(always)]
fn keep(half: u64, bits: u8) -> u64 {
    let mask = if bits == 0 { 0 } else { u64::MAX << ((64 - bits as u32) & 63) };
    half & mask.to_be()
}

/// The slot of a service's ring.
#[inline(always)]
fn slot(service_slot: u32, service: &Service, hash: u32) -> Option<RingSlot> {
    // SAFETY: an aligned word of a map's value, which the daemon changes by one store.
    let ring = Published::unpack(unsafe { core::ptr::read_volatile(&raw const service.ring) })?;
    let index = ring::slot_of(hash, ring.size);
    let word = RINGS.get_value_ptr_mut(ring.map_index(service_slot as u16), &index)?;
    // SAFETY: one aligned word of a map's value, which the daemon changes by whole stores.
    Some(RingSlot::unpack(unsafe { core::ptr::read_volatile(word) }))
}

/// The backend that a new flow goes to: the ring's, if its state when looked at says that it takes new flows.
///
/// **Invariant:** a backend that the daemon has marked before the look gets no flow, whatever the ring still says.
#[inline(always)]
pub fn new_flow(service_slot: u32, service: &Service, hash: u32) -> Option<Choice> {
    let mut salted = hash;
    for attempt in 0..TRIES {
        if let Some(backend) = slot(service_slot, service, salted)?.owner_slot()
            && let Some(row) = BACKENDS.get(backend)
            && row.takes_new()
            && row.service as u32 == service_slot
        {
            return Some(Choice { backend, generation: row.generation, outcome: Outcome::NewFlow });
        }
        salted = (hash::mix((hash as u64) << 8 | (attempt + 1) as u64) >> 32) as u32;
    }
    None
}

/// The backend for a segment of a flow that this node has forgotten or never had: the one that owned its slot before
/// a drain that still runs, or else the present owner.
#[inline(always)]
pub fn forgotten(service_slot: u32, service: &Service, hash: u32, now_ns: u64) -> Option<Choice> {
    if let Some(backend) = slot(service_slot, service, hash)?.previous_slot()
        && let Some(row) = BACKENDS.get(backend)
        && row.remembers(now_ns)
        && row.service as u32 == service_slot
    {
        return Some(Choice { backend, generation: row.generation, outcome: Outcome::RemembersOwner });
    }
    let choice = new_flow(service_slot, service, hash)?;
    Some(Choice { outcome: Outcome::Adopted, ..choice })
}

/// The backend that a flow's QUIC connection id names, if it keeps such a flow: the connection is one of its, and has come
/// from elsewhere so far. To a draining one it is no new flow.
#[inline(always)]
pub fn named(service_slot: u32, backend: u32, share: u16, now_ns: u64) -> Option<Choice> {
    let row = BACKENDS.get(backend)?;
    let generation = row.generation;
    let keeps = row.takes_new() || row.keeps(generation, false, share, now_ns) == Keep::Forward;
    (keeps && row.service as u32 == service_slot).then_some(Choice { backend, generation, outcome: Outcome::NamedById })
}

/// A backend's row.
#[inline(always)]
pub fn row(backend: u32) -> Option<&'static Backend> {
    BACKENDS.get(backend)
}
