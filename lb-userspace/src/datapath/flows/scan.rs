//! Scans of the whole table: counting, ageing, purging, listing, marking flows cut.

use std::{
    cell::{Cell, RefCell},
    num::NonZeroU16,
};

use lb_common::{
    backend::NO_DEADLINE,
    flow::{FlowEntry, FlowKey, Life, Meta, Phase, flow_flag, phase},
    flow_table::Entry as _,
    tally::FlowTally,
    time,
};

use crate::datapath::{BackendSlot, EndedFlow, ServiceSlot};

use super::{Brief, Facts, Slot, Table};

/// An entry that has been dying for longer lost whoever took it out: a daemon killed on the way.
const STUCK_TICKS: u32 = time::duration_ticks(5_000_000_000);
/// Attempts at changing an entry that packets keep touching.
const ATTEMPTS: u32 = 16;

/// One backend's flows of its present generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// By [`Phase`]; none is dead.
    counts: [u64; PHASES],
    /// Age in ticks of the oldest live flow.
    pub(crate) oldest_age: u32,
}

const PHASES: usize = Phase::Dead as usize;

impl Tally {
    /// Flows in a phase.
    pub(crate) fn of(&self, phase: Phase) -> u64 {
        self.counts.get(phase as usize).copied().unwrap_or(0)
    }

    /// Flows that a drain waits for.
    pub(crate) fn live(&self) -> u64 {
        self.of(Phase::Opening) + self.of(Phase::Established) + self.of(Phase::HalfClosed)
    }

    /// Nothing to tell.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    #[inline]
    fn count(&mut self, phase: Phase, age: u32) {
        if let Some(count) = self.counts.get_mut(phase as usize) {
            *count += 1;
        }
        if phase.is_live() {
            self.oldest_age = self.oldest_age.max(age);
        }
    }
}

/// What marking flows cut found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CutList {
    /// Connections now marked.
    pub(crate) marked: Vec<u32>,
    /// Datagram flows taken out, to be steered anew.
    pub(crate) resteered: u64,
    /// Live flows whose own moment is still ahead.
    pub(crate) remaining: u64,
}

/// One look at the table.
pub(crate) struct Scan<'a> {
    pub(crate) table: Table<'a>,
    pub(crate) facts: &'a Facts,
    /// The coarse clock.
    pub(crate) now_ns: u64,
    /// Where flows that are taken out are kept.
    pub(crate) log: Option<&'a Tap>,
}

/// The most flows kept between two emptyings.
const KEPT: usize = 65_536;

/// Keeps flows that are over until they are logged.
#[derive(Debug)]
pub(crate) struct Tap {
    sample: u16,
    flows: RefCell<Vec<Kept>>,
    missed: Cell<u64>,
}

/// A flow that was taken out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) meta: Meta,
    pub(crate) flow: FlowEntry,
    /// What it has carried, if that is counted.
    pub(crate) tally: Option<FlowTally>,
}

impl Tap {
    /// One that keeps one flow in so many.
    pub(crate) fn new(sample: NonZeroU16) -> Self {
        Self { sample: sample.get(), flows: RefCell::default(), missed: Cell::new(0) }
    }

    /// What was kept, and how many flows there was no room for.
    pub(crate) fn empty(&self) -> (Vec<Kept>, u64) {
        (self.flows.take(), self.missed.take())
    }

    /// One in how many flows is kept.
    pub(crate) fn sample(&self) -> u64 {
        self.sample.into()
    }

    /// One that never established itself was no flow.
    fn keep(&self, kept: Kept, share: u16) {
        const UNPROVEN: u16 = flow_flag::PROVISIONAL | flow_flag::CANDIDATE;
        let meta = kept.meta;
        if !meta.any(flow_flag::ESTABLISHED) || meta.any(UNPROVEN) || !share.is_multiple_of(self.sample) {
            return;
        }
        let mut flows = self.flows.borrow_mut();
        if flows.len() < KEPT {
            flows.push(kept);
        } else {
            self.missed.set(self.missed.get() + 1);
        }
    }
}

impl<'a> Scan<'a> {
    fn now(&self) -> u32 {
        time::ticks(self.now_ns)
    }

    /// The phase of a linked entry of a service and a backend.
    ///
    /// A connection that was open at a deadline that has passed is open: since then the packet path has refused it, so its silence
    /// since then is not its own, and it is to be told and counted as cut, however late that is.
    #[inline]
    fn phase(&self, meta: Meta, service: u16, backend: u32, generation: u32) -> Phase {
        let Some(timers) = self.facts.timers(service) else { return Phase::Dead };
        let is_connection = meta.any(flow_flag::ESTABLISHED) && !meta.any(flow_flag::CUT | flow_flag::DATAGRAM);
        let until = if is_connection { self.facts.refused_from_ns(backend, generation) } else { NO_DEADLINE };
        let now = time::ticks(self.now_ns.min(until));
        phase(meta.flags(), time::age(now, meta.last_seen()), timers)
    }

    /// Linked entries.
    fn linked(&self) -> impl Iterator<Item = (u32, Slot<'a>, Meta, FlowEntry)> {
        self.table.view.iter().filter_map(|(index, entry)| {
            let meta = entry.meta();
            if meta.life() != Life::Linked {
                return None;
            }
            entry.snapshot(meta).map(|flow| (index, entry, meta, flow))
        })
    }

    /// Linked entries of one generation of a backend.
    fn of(&self, backend: u32, generation: u32) -> impl Iterator<Item = (u32, Slot<'a>, Meta, Brief)> {
        self.table.view.iter().filter_map(move |(index, entry)| {
            let meta = entry.meta();
            if meta.life() != Life::Linked {
                return None;
            }
            let flow = entry.brief(meta)?;
            (flow.backend == backend && flow.generation == generation).then_some((index, entry, meta, flow))
        })
    }

    /// Counts all flows by backend slot, and reclaims what is dead. `tallies` has a place for each backend slot.
    pub(crate) fn sweep(&self, tallies: &mut [Tally], ended: &mut Vec<EndedFlow>) {
        let now = self.now();
        for (index, entry) in self.table.view.iter() {
            let meta = entry.meta();
            match meta.life() {
                Life::Linked => {
                    if let Some(flow) = entry.brief(meta) {
                        self.sweep_flow(index, entry, meta, flow, tallies, ended);
                    }
                }
                Life::Dying if time::age(now, meta.last_seen()) > STUCK_TICKS => {
                    self.table.finish(index, entry);
                }
                Life::Free | Life::Claimed | Life::Dying => {}
            }
        }
    }

    #[inline]
    fn sweep_flow(
        &self,
        index: u32,
        entry: Slot<'a>,
        meta: Meta,
        flow: Brief,
        tallies: &mut [Tally],
        ended: &mut Vec<EndedFlow>,
    ) {
        let now = self.now();
        let current = self.facts.is_current(flow.backend, flow.generation);
        let phase = self.phase(meta, flow.service, flow.backend, flow.generation);
        // A flow whose backend is gone has nowhere to go; one that was cut is remembered for what is still said on it.
        if phase == Phase::Dead || (!current && phase != Phase::Cut) {
            // Only who takes an entry out tells of it, so that it is told once.
            if self.take_out(index, entry, meta) && (current || meta.any(flow_flag::CUT)) {
                ended.extend(ended_flow(meta, flow, now));
            }
        } else if current && let Some(tally) = tallies.get_mut(flow.backend as usize) {
            tally.count(phase, time::age(now, flow.started));
        }
    }

    /// Takes out a linked entry that still is as `seen`, and keeps what it was for the log.
    fn take_out(&self, index: u32, entry: Slot<'_>, seen: Meta) -> bool {
        self.take_out_as(index, entry, seen, seen)
    }

    fn take_out_as(&self, index: u32, entry: Slot<'_>, seen: Meta, logged: Meta) -> bool {
        // Once it is out the memory may be another's.
        let was = self.log.and_then(|tap| {
            let tally = self.table.tallies.and_then(|tallies| tallies.read(index));
            Some((tap, Kept { meta: logged, flow: entry.snapshot(seen)?, tally }))
        });
        let out = self.table.take_out(index, entry, seen, self.now());
        if let Some((tap, kept)) = was.filter(|_| out) {
            let key = FlowKey { client: kept.flow.client, port_service: kept.flow.port_service };
            tap.keep(kept, self.table.share(&key));
        }
        out
    }

    /// Frees every entry of one generation of a backend; returns how many.
    pub(crate) fn purge(&self, backend: u32, generation: u32) -> u64 {
        let mut freed = 0;
        for (index, entry, mut meta, _) in self.of(backend, generation) {
            let version = meta.version();
            for _ in 0..ATTEMPTS {
                if self.take_out(index, entry, meta) {
                    freed += 1;
                    break;
                }
                meta = entry.meta();
                if meta.version() != version || meta.life() != Life::Linked {
                    break;
                }
            }
        }
        freed
    }

    /// Ends the live flows of one generation of a backend for which `due` says so (it is given the flow's share of the
    /// cut window and its latest tick): connections are given these flags, datagram flows taken out.
    pub(crate) fn mark_cut(
        &self,
        backend: u32,
        generation: u32,
        flags: u16,
        due: impl Fn(u16, u32) -> bool,
    ) -> CutList {
        let mut list = CutList::default();
        for (index, entry, meta, flow) in self.of(backend, generation) {
            if !self.phase(meta, flow.service, flow.backend, flow.generation).is_live() {
                continue;
            }
            if !due(self.table.share(&entry.key()), meta.last_seen()) {
                list.remaining += 1;
            } else if meta.any(flow_flag::DATAGRAM) {
                list.resteered +=
                    u64::from(self.take_out_as(index, entry, meta, meta.with(flags, 0, meta.last_seen())));
            } else if self.mark_one(entry, meta, flags) {
                list.marked.push(index);
            } else if entry.meta().version() == meta.version() {
                // Packets won every attempt; the next call gets it.
                list.remaining += 1;
            }
        }
        list
    }

    fn mark_one(&self, entry: Slot<'_>, mut seen: Meta, flags: u16) -> bool {
        let version = seen.version();
        for _ in 0..ATTEMPTS {
            let was = entry.swap_meta(seen, seen.with(flags, 0, self.now()));
            if was == seen {
                return true;
            }
            if was.version() != version || was.life() != Life::Linked {
                return false;
            }
            seen = was;
        }
        false
    }

    /// A flow by its index, as long as it is one.
    pub(crate) fn flow(&self, index: u32) -> Option<(Meta, FlowEntry)> {
        use lb_common::flow_table::Entries as _;
        let entry = self.table.view.at(index)?;
        let meta = entry.meta();
        if meta.life() != Life::Linked {
            return None;
        }
        entry.snapshot(meta).map(|flow| (meta, flow))
    }

    /// Shows the age in ticks of each flow of a service whose handshake is complete and whose end has not been seen.
    pub(crate) fn open_ages(&self, service: u16, mut see: impl FnMut(u32)) {
        let now = self.now();
        for (_, entry) in self.table.view.iter() {
            let meta = entry.meta();
            if meta.life() != Life::Linked {
                continue;
            }
            let Some(flow) = entry.brief(meta).filter(|flow| flow.service == service) else { continue };
            let phase = self.phase(meta, flow.service, flow.backend, flow.generation);
            let open = matches!(phase, Phase::Established | Phase::HalfClosed);
            if open && self.facts.is_current(flow.backend, flow.generation) {
                see(time::age(now, flow.started));
            }
        }
    }

    /// Flows of current generations that `wanted` accepts, with their phases, at most `limit`.
    pub(crate) fn list(&self, limit: usize, wanted: impl Fn(&FlowEntry) -> bool) -> Vec<(Meta, FlowEntry, Phase)> {
        self.linked()
            .filter(|(_, _, _, flow)| wanted(flow) && self.facts.is_current(flow.backend, flow.generation))
            .map(|(_, _, meta, flow)| (meta, flow, self.phase(meta, service_of(&flow), flow.backend, flow.generation)))
            .filter(|(_, _, phase)| phase.is_live() || *phase == Phase::Closing)
            .take(limit)
            .collect()
    }
}

/// What a dead entry tells of its flow, if it was one.
#[cold]
fn ended_flow(meta: Meta, flow: Brief, now: u32) -> Option<EndedFlow> {
    let flags = meta.flags();
    if flags & flow_flag::ESTABLISHED == 0 || flags & (flow_flag::PROVISIONAL | flow_flag::CANDIDATE) != 0 {
        return None;
    }
    let fins = flags & flow_flag::BOTH_FINS_ACKED == flow_flag::BOTH_FINS_ACKED;
    let one_way_fin = flags & flow_flag::CLIENT_FIN != 0 && flags & flow_flag::BOTH_WAYS == 0;
    let cut = flags & flow_flag::CUT != 0;
    let seen_to_end = cut || fins || one_way_fin || flags & flow_flag::RST != 0;
    let ticks = time::age(if seen_to_end { meta.last_seen() } else { now }, flow.started);
    let length_ms = (u64::from(ticks) << time::TICK_SHIFT) / 1_000_000;
    Some(EndedFlow {
        service: ServiceSlot(flow.service),
        backend: BackendSlot(flow.backend),
        generation: flow.generation,
        length_ms: u32::try_from(length_ms).unwrap_or(u32::MAX),
        cut,
    })
}

fn service_of(flow: &FlowEntry) -> u16 {
    (flow.port_service >> 16) as u16
}
