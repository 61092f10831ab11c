//! Opening a flow: its backend is chosen, an entry is found and linked.

use lb_common::{
    flow::{FlowInit, Life, Phase, Timers, flow_flag, phase},
    flow_table::{self, Entries, Entry, Insert, Lookup, SET},
    outcome::Outcome,
    service::{Service, UDP, forward},
    time,
};

use crate::{
    entry::FlowMap,
    maps::{CONTROL, SERVICES},
    peers,
    scratch::{Decision, NONE, Request},
    slow::NoBackend,
    steer,
    track::Place,
};

/// Chooses a backend and records the flow.
///
/// `hop` is the home's when the look-up missed, or before the entry that is replaced was found. With
/// [`flow_flag::PROVISIONAL`] the flow is adopted in mid-stream, with [`flow_flag::CANDIDATE`] it is the second on its
/// tuple. Where the table has no place the flow goes on untracked: the hash keeps it until the backends change.
#[inline(always)]
pub fn open(
    request: &Request,
    service: &Service,
    place: &Place,
    hop: u64,
    replaces: u32,
    flags: u16,
) -> Result<Decision, NoBackend> {
    let hash = steer::hash(service, &request.client, request.ports);
    let choice = if flags & flow_flag::PROVISIONAL == 0 {
        steer::new_flow(request.service, service, hash)
    } else {
        steer::forgotten(request.service, service, hash, request.now_ns)
    };
    let choice = choice.ok_or(NoBackend)?;
    let init = FlowInit {
        backend: choice.backend,
        generation: choice.generation,
        now: time::ticks(request.now_ns),
        flags: flags | kind_flags(service),
        client_seq: request.segment.end(),
        client_ack: request.segment.ack,
        peer: peers::row_of(request.source_mac, request.own_mac, request.ingress),
        nat_port: 0,
    };
    let decision = |backend, entry, outcome| Decision { backend, entry, outcome, cut: false, silent: false };
    Ok(match record(place, hop, &init, replaces) {
        Recorded::New(index) => decision(choice.backend, index, choice.outcome),
        Recorded::Other(index) => {
            let entry = FlowMap.at(index).ok_or(NoBackend)?;
            decision(entry.backend(), index, Outcome::Forwarded)
        }
        Recorded::Not => {
            let remembered = matches!(choice.outcome, Outcome::RemembersOwner);
            decision(choice.backend, NONE, if remembered { choice.outcome } else { Outcome::Untracked })
        }
    })
}

/// Flags that follow from the service.
#[inline(always)]
fn kind_flags(service: &Service) -> u16 {
    let datagram = if service.protocol == UDP { flow_flag::DATAGRAM } else { 0 };
    let both_ways = if service.forward == forward::NAT { flow_flag::BOTH_WAYS } else { 0 };
    datagram | both_ways
}

/// What became of the entry.
enum Recorded {
    /// Linked.
    New(u32),
    /// Another CPU was first with this very flow.
    Other(u32),
    /// No place, or too much traffic on the home.
    Not,
}

/// Attempts at linking an entry while other CPUs change the home.
const ATTEMPTS: u32 = 3;

#[inline(always)]
fn record(place: &Place, hop: u64, init: &FlowInit, replaces: u32) -> Recorded {
    let mut hop = hop;
    let old = if replaces == NONE { None } else { Some(replaces) };
    for _ in 0..ATTEMPTS {
        let index = claim(place.home, init.now);
        if index == NONE {
            return Recorded::Not;
        }
        match flow_table::insert(FlowMap, place.geometry, place.home, hop, index, (&place.key, init), old) {
            Insert::Done => return Recorded::New(index),
            Insert::Crowded => return Recorded::Not,
            Insert::Raced => {}
        }
        // Some flow of this home came or went: perhaps it is this very one.
        let found = if init.flags & flow_flag::CANDIDATE == 0 { place.main() } else { place.second() };
        match found {
            Lookup::Missing { hop: seen } if old.is_none() => hop = seen,
            Lookup::Found { index, .. } if index != replaces => return Recorded::Other(index),
            _ => return Recorded::Not,
        }
    }
    Recorded::Not
}

#[inline(always)]
fn claim(home: u32, now: u32) -> u32 {
    match flow_table::claim_near(FlowMap, home, now) {
        Some(index) => index,
        None => match ebb_claim(home, now) {
            NONE => ebb_make_room(home, now),
            index => index,
        },
    }
}

/// Claims an entry in the emptiest of the home's sets; [`NONE`] if all are full.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_claim(home: u32, now: u32) -> u32 {
    let Some(control) = CONTROL.get(0) else { return NONE };
    flow_table::claim_emptiest(FlowMap, control.geometry(), home, now).unwrap_or(NONE)
}

/// Takes the entry of a dead flow in the home's set, or of the unverified one that has been silent for longest.
///
/// **Invariant:** no established flow is ever displaced. The daemon may be away, so this must do without it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_make_room(home: u32, now: u32) -> u32 {
    let set = home & !(SET - 1);
    let mut victim = NONE;
    let mut oldest = 0;
    for i in 0..SET {
        let Some(entry) = FlowMap.at(set + i) else { return NONE };
        let meta = entry.meta();
        let rank = rank(entry.key().service(), meta.flags(), time::age(now, meta.last_seen()));
        if meta.life() as u16 == Life::Linked as u16 && rank > oldest {
            oldest = rank;
            victim = set + i;
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
    let geometry = control.geometry();
    let home = geometry.home(entry.key().hash(&control.table_keys));
    if !flow_table::unlink(FlowMap, geometry, home, index) {
        return NONE;
    }
    flow_table::reclaim(entry, now);
    index
}
