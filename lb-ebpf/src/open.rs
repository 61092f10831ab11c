//! Opening a flow: its backend is chosen, an entry is found and linked.

use lb_common::{
    flow::{FlowInit, FlowKey, Life, Phase, Timers, flow_flag, phase},
    flow_table::{self, Entries, Entry, Insert, Lookup, SET},
    outcome::Outcome,
    service::{Service, UDP, forward},
    tcp::{Segment, flag},
    time,
};

use crate::{
    count,
    entry::FlowMap,
    maps::{CONTROL, SERVICES},
    nat_port::{self, TAKEN},
    peers,
    scratch::{self, Decision, NONE, New, Request},
    steer::{self, Choice},
    tally,
    track::Place,
};

/// Chooses a backend for this CPU's request and records the flow as `scratch::New` says; `None` if no backend takes it.
///
/// With [`flow_flag::PROVISIONAL`] the flow is adopted in mid-stream, with [`flow_flag::CANDIDATE`] it is the second on
/// its tuple. Where the table has no place the flow goes on untracked: the hash keeps it until the backends change.
#[inline(always)]
pub fn open() -> Option<()> {
    match ebb_choose() {
        CHOSEN => {}
        CHOSEN_NAT if take_nat_port()? => {}
        CHOSEN_NAT => return Some(()),
        _ => return None,
    }
    ebb_record();
    Some(())
}

/// Settles by which port the backend knows the client; false if there is none left, and then nothing is sent.
#[inline(always)]
fn take_nat_port() -> Option<bool> {
    let scratch = scratch::row()?;
    match nat_port::choose(scratch.decision.backend, scratch.request.ports as u16) {
        TAKEN => {
            scratch.decision =
                Decision { backend: 0, entry: NONE, outcome: Outcome::DroppedNatConflict, cut: true, silent: true };
            Some(false)
        }
        port => {
            scratch.init.nat_port = port as u16;
            Some(true)
        }
    }
}

const CHOSEN: u32 = 0;
const CHOSEN_NAT: u32 = 1;
const NO_BACKEND: u32 = 2;

/// Chooses the backend: the scratch row then has the facts of the new entry.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_choose() -> u32 {
    let Some(scratch) = scratch::row() else { return NO_BACKEND };
    let request = &scratch.request;
    let Some(service) = SERVICES.get(request.service) else { return NO_BACKEND };
    let flags = scratch.new.flags;
    let Some(choice) = named(request).or_else(|| by_ring(request, service, flags)) else { return NO_BACKEND };
    scratch.init = FlowInit {
        backend: choice.backend,
        generation: choice.generation,
        now: time::ticks(request.now_ns),
        flags: flags | kind_flags(service) | fin_flag(&request.segment),
        client_seq: request.segment.resumes_at(),
        client_ack: if request.segment.has(flag::ACK) { request.segment.ack } else { 0 },
        peer: peers::row_of(request.source_mac, request.own_mac, request.ingress),
        nat_port: 0,
    };
    let outcome = choice.outcome;
    scratch.decision = Decision { backend: choice.backend, entry: NONE, outcome, cut: false, silent: false };
    if service.forward == forward::NAT { CHOSEN_NAT } else { CHOSEN }
}

/// The backend that the packet itself names.
#[inline(always)]
fn named(request: &Request) -> Option<Choice> {
    if request.named == NONE {
        return None;
    }
    let key = FlowKey::new(request.client, request.ports as u16, request.service as u16);
    let share = Place::of(CONTROL.get(0)?, key).share;
    steer::named(request.service, request.named, share, request.now_ns)
}

/// The backend that the ring has for the flow.
#[inline(always)]
fn by_ring(request: &Request, service: &Service, flags: u16) -> Option<Choice> {
    let hash = steer::hash(service, &request.client, request.ports);
    if flags & flow_flag::PROVISIONAL == 0 {
        steer::new_flow(request.service, service, hash)
    } else {
        steer::forgotten(request.service, service, hash, request.now_ns)
    }
}

/// Records the flow that [`ebb_choose`] prepared, and completes the decision; always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_record() -> u32 {
    let (Some(scratch), Some(control)) = (scratch::row(), CONTROL.get(0)) else { return 0 };
    let request = &scratch.request;
    let key = FlowKey::new(request.client, request.ports as u16, request.service as u16);
    let place = Place { key, geometry: control.geometry(), home: scratch.new.home, share: 0 };
    let index = record(&place, &scratch.new, &scratch.init);
    let decision = &mut scratch.decision;
    let Some(entry) = FlowMap.at(index) else {
        // Also where a remembered owner has placed it: a drain must learn that it has flows which it cannot count.
        decision.outcome = Outcome::Untracked;
        return 0;
    };
    decision.entry = index;
    // Another CPU may have been first with this very flow: then its choice counts.
    let backend = entry.backend();
    if backend != decision.backend {
        decision.backend = backend;
        decision.outcome = Outcome::Forwarded;
    }
    0
}

/// Flags that follow from the service.
#[inline(always)]
fn kind_flags(service: &Service) -> u16 {
    let datagram = if service.protocol == UDP { flow_flag::DATAGRAM } else { 0 };
    let both_ways = if service.forward == forward::NAT { flow_flag::BOTH_WAYS } else { 0 };
    datagram | both_ways
}

/// A flow may be adopted by its FIN, which is not said again.
#[inline(always)]
fn fin_flag(segment: &Segment) -> u16 {
    if segment.has(flag::FIN) { flow_flag::CLIENT_FIN } else { 0 }
}

/// Attempts at linking an entry while other CPUs change the home.
const ATTEMPTS: u32 = 3;

/// Puts the flow into the table; its entry, or [`NONE`].
#[inline(always)]
fn record(place: &Place, new: &New, init: &FlowInit) -> u32 {
    let mut hop = new.hop;
    let mut old = if new.replaces == NONE { None } else { Some(new.replaces) };
    let mut crowded = false;
    for _ in 0..ATTEMPTS {
        let index = if crowded { ebb_relieve(place.home, init.now) } else { claim(place.home, init.now) };
        if index == NONE {
            return NONE;
        }
        tally::begin(index);
        // In a full table the entry given up may be the very one that was to be replaced.
        if index == new.replaces {
            old = None;
        }
        hop = flow_table::after_claim(FlowMap, place.geometry, place.home, hop, index);
        let replaced = old.and_then(|old| FlowMap.at(old)).map_or(0, |old| old.meta().flags());
        match flow_table::insert(FlowMap, place.geometry, place.home, hop, index, (&place.key, init), old) {
            Insert::Done => {
                // Only now: one that was given up for it has been counted, and one that stays will be told of.
                count::untold(replaced);
                return index;
            }
            Insert::Crowded => {
                crowded = true;
                continue;
            }
            Insert::Raced => crowded = false,
        }
        // Some flow of this home came or went: perhaps it is this very one.
        hop = FlowMap.at(place.home).map_or(0, Entry::hop);
        let found = if init.flags & flow_flag::CANDIDATE == 0 { place.main() } else { place.second() };
        match found {
            Lookup::Missing { hop: seen } => {
                hop = seen;
                old = None;
            }
            Lookup::Found { index, .. } if index != new.replaces => return index,
            Lookup::Found { .. } => {}
        }
    }
    NONE
}

/// How long a CPU takes the table for full after it found none of a home's 48 places free: 64 ms.
const FULL_TICKS: u32 = time::duration_ticks(64_000_000);
/// Entries from the home on that may be given up in a full table before more is read.
const NEAR: u32 = 2;
/// Silence after which the handshake of an unverified flow near by is thought to have failed, so that the nearest will do:
/// 128 ms. The home's own entry is the cheapest to give up, since then no other line is touched.
const NEAR_TICKS: u32 = time::duration_ticks(128_000_000);

/// Claims an entry for a flow of `home`: a free one near by, else one in the emptiest of the home's sets, else one that
/// may be given up.
///
/// In a full table it is of no use to read 48 entries for each new flow to learn that none is free: a CPU that has
/// learnt so gives up entries near the home at once, for as long as [`FULL_TICKS`].
#[inline(always)]
fn claim(home: u32, now: u32) -> u32 {
    if is_full(now) {
        if let Some(index) = flow_table::claim_at(FlowMap, home, now) {
            return index;
        }
        let index = ebb_make_room(home, now, NEAR);
        if index != NONE {
            return index;
        }
    } else if let Some(index) = flow_table::claim_near(FlowMap, home, now) {
        return index;
    }
    match ebb_claim(home, now) {
        NONE => {
            note_full(now);
            ebb_make_room(home, now, SET)
        }
        index => index,
    }
}

/// Whether this CPU has found the table full a moment ago.
#[inline(always)]
fn is_full(now: u32) -> bool {
    // Not an age: one of more than 26 days would count as none.
    scratch::row().is_some_and(|row| row.full_ticks != 0 && now.wrapping_sub(row.full_ticks) < FULL_TICKS)
}

#[inline(always)]
fn note_full(now: u32) {
    if let Some(row) = scratch::row() {
        row.full_ticks = now;
    }
}

/// Claims an entry in the emptiest of the home's sets; [`NONE`] if all are full.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_claim(home: u32, now: u32) -> u32 {
    let Some(control) = CONTROL.get(0) else { return NONE };
    flow_table::claim_emptiest(FlowMap, control.geometry(), home, now).unwrap_or(NONE)
}

/// Takes the entry of a dead flow, or of the unverified one that has been silent for longest, among the first `tries`
/// of the home's set from the home on.
///
/// **Invariant:** no established flow is ever displaced. The daemon may be away, so this must do without it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_make_room(home: u32, now: u32, tries: u32) -> u32 {
    let set = home & !(SET - 1);
    let mut victim = NONE;
    let mut oldest = 0;
    for i in 0..SET {
        if i >= tries || (tries == NEAR && oldest == NEAR_TICKS) {
            break;
        }
        let index = set + (home.wrapping_add(i) & (SET - 1));
        let Some(entry) = FlowMap.at(index) else { return NONE };
        let meta = entry.meta();
        let rank = rank(entry.key().service(), meta.flags(), time::age(now, meta.last_seen()));
        let rank = if tries == NEAR && rank > NEAR_TICKS { NEAR_TICKS } else { rank };
        if meta.life() as u16 == Life::Linked as u16 && rank > oldest {
            oldest = rank;
            victim = index;
        }
    }
    if victim == NONE { NONE } else { evict(victim, now) }
}

/// Takes the entry of the dead flow, or of the unverified one silent for longest, of a home that has as many as it can. In a
/// full table that befalls one new flow in 10^9, and at the rate of a flood that is often.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_relieve(home: u32, now: u32) -> u32 {
    let (Some(entry), Some(control)) = (FlowMap.at(home), CONTROL.get(0)) else { return NONE };
    let geometry = control.geometry();
    let mut places = flow_table::places(entry);
    let mut victim = NONE;
    let mut oldest = 0;
    for _ in 0..flow_table::MAX_PER_HOME {
        if places == 0 {
            break;
        }
        let index = geometry.place(home, places.trailing_zeros() & 63);
        places &= places - 1;
        let Some(entry) = FlowMap.at(index) else { return NONE };
        let meta = entry.meta();
        let rank = rank(entry.key().service(), meta.flags(), time::age(now, meta.last_seen()));
        if meta.life() as u16 == Life::Linked as u16 && rank > oldest {
            oldest = rank;
            victim = index;
        }
    }
    if victim == NONE { NONE } else { evict(victim, now) }
}

/// How readily an entry is given up; 0 is never.
#[inline(always)]
fn rank(service: u16, flags: u16, age: u32) -> u32 {
    let Some(service) = SERVICES.get(service as u32) else { return 0 };
    let timers = Timers { idle_ticks: service.idle_ticks, fin_quiet_ticks: service.fin_quiet_ticks };
    match phase(flags, age, timers) {
        Phase::Dead => u32::MAX,
        Phase::Opening | Phase::Provisional | Phase::Closing => age.saturating_add(1),
        Phase::Established | Phase::HalfClosed | Phase::Cut => 0,
    }
}

/// Unlinks an entry and claims it, unless a packet has touched it since.
#[inline(always)]
fn evict(index: u32, now: u32) -> u32 {
    let (Some(entry), Some(control)) = (FlowMap.at(index), CONTROL.get(0)) else { return NONE };
    let meta = entry.meta();
    // Looked at once more, since it may have become established; from here on the compare-and-swap decides.
    let rank = rank(entry.key().service(), meta.flags(), time::age(now, meta.last_seen()));
    if meta.life() as u16 != Life::Linked as u16 || rank == 0 || !flow_table::condemn(entry, meta, now) {
        return NONE;
    }
    count::untold(meta.flags());
    let geometry = control.geometry();
    let home = geometry.home(entry.key().hash(&control.table_keys));
    if !flow_table::unlink(FlowMap, geometry, home, index) {
        return NONE;
    }
    flow_table::reclaim(entry, now);
    index
}
