//! What the engine asks of the packet path, done on its maps.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16, os::fd::AsFd as _, sync::atomic::Ordering};

use aya::programs::ProgramInfo;
use bytemuck::Zeroable as _;
use lb_common::{
    backend::{Backend, BackendState as State, BackendStats},
    control::control_flag,
    flow::{FlowEntry, Meta, Phase, flow_flag},
    outcome::{Outcome, UNTOLD},
    service::Service,
    tally::FlowTally,
    time::{self, TICK_SHIFT},
};

use super::{
    Adopted, BackendConfig, BackendCounters, BackendFlows, BackendSlot, BackendState, Carried, Counters, CutPolicy,
    CutReport, Datapath, DatapathError, FlowEnd, FlowFilter, FlowRecord, FlowState, FlowTotals, Forward,
    InterfaceChange, InterfaceInfo, Limits, LoggedFlow, Named, NextHop, Protocol, RingSlot, ServiceConfig, ServiceSlot,
    Sweep, clock,
    ebpf::EbpfDatapath,
    error::While as _,
    flows::{CutList, Facts, Kept, Row, Scan, Tally, Tap},
    maps::Maps,
    pins, ring_store, rows, vips,
};
use crate::net::links::Link;

impl Datapath for EbpfDatapath {
    fn limits(&self) -> Limits {
        self.row_limits()
    }

    fn adopted(&mut self) -> Result<Adopted, DatapathError> {
        Ok(self.adopted.clone())
    }

    fn put_service(&mut self, slot: ServiceSlot, config: &ServiceConfig) -> Result<(), DatapathError> {
        let before = self.service(slot)?;
        self.maps.services.write(u32::from(slot.0), &rows::service(config, before.ring)?);
        Ok(())
    }

    fn clear_service(&mut self, slot: ServiceSlot) -> Result<(), DatapathError> {
        self.service(slot)?;
        self.maps.services.write(u32::from(slot.0), &Service::zeroed());
        let removed = self.rings.remove(self.maps.rings.as_fd(), slot.0);
        removed.working(|| format!("cannot free the ring of service row {}", slot.0))
    }

    fn publish_vips(
        &mut self,
        services: &[(ServiceSlot, &ServiceConfig)],
        own: &BTreeSet<IpAddr>,
        named: &Named,
    ) -> Result<(), DatapathError> {
        let half_rows = self.maps.vips.rows() / 2;
        let table = vips::build(&vips::keys(services, own, named), half_rows).map_err(|vips::Full| {
            DatapathError::Full { what: "VIP, NAT endpoint or server id", capacity: half_rows.into() }
        })?;
        let missing = || DatapathError::Unsupported("the control map has no row".into());
        let published = self.maps.published_vips().ok_or_else(missing)?;
        let base = if published.load(Ordering::Relaxed) >> 32 == 0 { half_rows } else { 0 };
        for (index, entry) in (base..).zip(&table.entries) {
            self.maps.vips.write(index, entry);
        }
        let nat = services.iter().any(|(_, service)| service.forward == Forward::Nat);
        let announced: BTreeSet<IpAddr> =
            services.iter().filter(|(_, service)| service.announce).map(|(_, service)| service.vip.ip()).collect();
        let flags =
            if nat { control_flag::NAT } else { 0 } | if announced.is_empty() { 0 } else { control_flag::ANSWERS };
        self.maps.set_control(|control| {
            control.vip_seeds[usize::from(base != 0)] = table.seed;
            control.flags |= flags;
        });
        let word = u64::from(base) << 32 | (table.entries.len() as u64 - 1);
        published.store(word, Ordering::Release);
        self.maps.set_control(|control| control.flags = flags);
        let places = self.places();
        self.announcer.set(announced, &places);
        // The half that was in force is written next time: no packet may be reading it then.
        self.grace()
    }

    fn put_backend(&mut self, slot: BackendSlot, config: &BackendConfig) -> Result<(), DatapathError> {
        let before = self.backend(slot)?;
        if before.generation != config.generation {
            self.retire(slot, &before)?;
        }
        self.write_backend(slot, &rows::backend(config));
        Ok(())
    }

    fn set_backend_state(
        &mut self,
        slot: BackendSlot,
        state: BackendState,
        deadline_ns: Option<u64>,
        on_timeout: CutPolicy,
    ) -> Result<(), DatapathError> {
        let mut row = self.backend(slot)?;
        rows::set_state(&mut row, state, deadline_ns, on_timeout);
        self.write_backend(slot, &row);
        Ok(())
    }

    fn set_next_hop(&mut self, slot: BackendSlot, next_hop: &NextHop) -> Result<(), DatapathError> {
        let mut row = self.backend(slot)?;
        rows::set_next_hop(&mut row, next_hop);
        self.write_backend(slot, &row);
        Ok(())
    }

    fn put_ring(&mut self, service: ServiceSlot, ring: &[RingSlot]) -> Result<(), DatapathError> {
        let mut row = self.service(service)?;
        let words: Vec<u64> = ring.iter().map(ring_store::word).collect();
        let outer = self.maps.rings.as_fd();
        let context = || format!("cannot put the ring of service row {}", service.0);
        if words.is_empty() {
            row.ring = 0;
            self.maps.services.write(u32::from(service.0), &row);
            return self.rings.remove(outer, service.0).working(context);
        }
        if self.rings.size(service.0) as usize == words.len() {
            self.rings.store(service.0, (0..).zip(words));
            return Ok(());
        }
        let built = self.rings.build(outer, self.maps.services.rows(), service.0, &words).working(context)?;
        row.ring = built.published().pack();
        self.maps.services.write(u32::from(service.0), &row);
        self.rings.put_in_force(built);
        Ok(())
    }

    fn set_ring_slots(&mut self, service: ServiceSlot, changes: &[(u32, RingSlot)]) -> Result<(), DatapathError> {
        self.service(service)?;
        let words = changes.iter().map(|(index, slot)| (*index, ring_store::word(slot)));
        if self.rings.store(service.0, words) {
            return Ok(());
        }
        let size = self.rings.size(service.0);
        Err(DatapathError::Unsupported(format!("service row {} has a ring of {size} slots only", service.0)))
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        self.grace.wait().working(|| "cannot wait for packets in flight".into())?;
        self.unsettled.clear();
        Ok(())
    }

    fn sweep(&mut self, now_ns: u64) -> Result<Sweep, DatapathError> {
        let facts = self.facts();
        let mut tallies = std::mem::take(&mut self.tallies);
        tallies.clear();
        tallies.resize(self.highest_backend as usize + 1, Tally::default());
        let mut ended = Vec::new();
        self.scan(&facts, now_ns).sweep(&mut tallies, &mut ended);
        let sweep = report(&self.maps, now_ns, &tallies);
        self.tallies = tallies;
        Ok(Sweep { ended, ..sweep })
    }

    fn log_flows(&mut self, sample: NonZeroU16) {
        self.tap = Some(Tap::new(sample));
        self.untold = self.maps.outcome(UNTOLD);
    }

    fn take_logged(&mut self) -> (Vec<LoggedFlow>, u64) {
        let now_ns = clock::coarse_ns();
        let Some(tap) = &self.tap else { return (Vec::new(), 0) };
        let (flows, missed) = tap.empty();
        // Of as many as are left over by the division it is told another time.
        let untold = self.maps.outcome(UNTOLD).wrapping_sub(self.untold) / tap.sample();
        self.untold = self.untold.wrapping_add(untold * tap.sample());
        (flows.iter().map(|kept| logged(kept, now_ns)).collect(), missed + untold)
    }

    fn purge(&mut self, slot: BackendSlot, generation: u32) -> Result<u64, DatapathError> {
        let facts = Facts::default();
        Ok(self.scan(&facts, clock::coarse_ns()).purge(slot.0, generation))
    }

    fn cut(
        &mut self,
        slot: BackendSlot,
        generation: u32,
        policy: CutPolicy,
        now_ns: u64,
    ) -> Result<CutReport, DatapathError> {
        let row = self.backend(slot)?;
        // A row that is another's by now has no deadline to say about these flows: they are due.
        let applies = row.generation == generation;
        self.cut_where(slot, generation, (policy, flow_flag::CUT), now_ns, move |share, _| {
            !applies || row.flow_deadline_ns(share) <= now_ns || row.deadline_ns == lb_common::backend::NO_DEADLINE
        })
    }

    fn cut_idle(
        &mut self,
        slot: BackendSlot,
        generation: u32,
        policy: CutPolicy,
        silent_since_ns: u64,
    ) -> Result<CutReport, DatapathError> {
        let now_ns = clock::coarse_ns();
        let limit = time::age(time::ticks(now_ns), time::ticks(silent_since_ns));
        let flags = flow_flag::CUT | flow_flag::SILENT;
        self.cut_where(slot, generation, (policy, flags), now_ns, move |_, last_seen| {
            time::age(time::ticks(now_ns), last_seen) > limit
        })
    }

    fn flows(&mut self, filter: FlowFilter, limit: usize) -> Result<Vec<FlowRecord>, DatapathError> {
        let facts = self.facts();
        let now_ns = clock::coarse_ns();
        let wanted = |flow: &FlowEntry| {
            filter.service.is_none_or(|service| flow.port_service >> 16 == u32::from(service.0))
                && filter.backend.is_none_or(|backend| flow.backend == backend.0)
        };
        let found = self.scan(&facts, now_ns).list(limit, wanted);
        Ok(found.iter().filter_map(|(meta, flow, phase)| record(*meta, flow, *phase, now_ns)).collect())
    }

    fn open_lengths(
        &mut self,
        service: ServiceSlot,
        now_ns: u64,
        see: &mut dyn FnMut(u64),
    ) -> Result<(), DatapathError> {
        let facts = self.facts();
        let lasted = |age: u32| see(u64::from(age) << time::TICK_SHIFT);
        self.scan(&facts, now_ns).open_ages(service.0, lasted);
        Ok(())
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        let backends = (0..=self.highest_backend)
            .map(|slot| (BackendSlot(slot), self.maps.stats_of(slot)))
            .filter(|(_, stats)| stats.packets != 0 || stats.new_flows != 0)
            .map(|(slot, stats)| {
                let BackendStats { new_flows, packets, bytes, resets } = stats;
                (slot, BackendCounters { new_flows, packets, bytes, resets })
            })
            .collect();
        let outcomes = (0..).zip(Outcome::ALL).map(|(n, outcome)| (outcome.name(), self.maps.outcome(n))).collect();
        // Where the kernel does not count, it says that the program has never run.
        let program = ProgramInfo::from_pin(self.pins.path().join(pins::PROGRAM)).ok();
        let program = program.map(|info| (info.run_time(), info.run_count())).filter(|(_, runs)| *runs > 0);
        Ok(Counters { backends, outcomes, program })
    }

    fn follow_links(&mut self, links: &[Link]) -> Vec<InterfaceChange> {
        self.follow(links)
    }

    fn announce(&mut self, addresses: &[IpAddr]) {
        let places = self.places();
        self.announcer.send(addresses, &places);
    }

    fn interfaces(&self) -> Vec<InterfaceInfo> {
        self.attached()
    }
}

impl EbpfDatapath {
    fn service(&self, slot: ServiceSlot) -> Result<Service, DatapathError> {
        let capacity = u64::from(self.maps.services.rows());
        self.maps.services.read(u32::from(slot.0)).ok_or(DatapathError::Full { what: "service", capacity })
    }

    fn backend(&self, slot: BackendSlot) -> Result<Backend, DatapathError> {
        let capacity = u64::from(self.maps.backends.rows());
        self.maps.backends.read(slot.0).ok_or(DatapathError::Full { what: "backend", capacity })
    }

    /// Stores a row whose generation is as before, or that no packet uses. The word with generation and state comes last
    /// (see `Mapped::write`), so a state never stands beside a deadline that is not its own.
    fn write_backend(&mut self, slot: BackendSlot, row: &Backend) {
        self.maps.backends.write(slot.0, row);
        self.highest_backend = self.highest_backend.max(slot.0);
        if row.state == State::Free as u8 {
            self.unsettled.insert(slot.0);
        }
    }

    /// Makes sure that no packet is under way with what stands in a row, before another backend's address is written
    /// there: it would go to a host that does not know its flow.
    fn retire(&mut self, slot: BackendSlot, before: &Backend) -> Result<(), DatapathError> {
        if before.state != State::Free as u8 {
            self.write_backend(slot, &Backend { state: State::Free as u8, ..*before });
        }
        if self.unsettled.contains(&slot.0) {
            self.grace()?;
        }
        Ok(())
    }

    fn facts(&self) -> Facts {
        facts(&self.maps, self.highest_backend)
    }

    fn scan<'a>(&'a self, facts: &'a Facts, now_ns: u64) -> Scan<'a> {
        Scan { table: self.maps.flow_table(), facts, now_ns, log: self.tap.as_ref() }
    }

    /// Marks flows cut with these flags, then (when no packet in flight can still be changing them) tells both their ends.
    fn cut_where(
        &mut self,
        slot: BackendSlot,
        generation: u32,
        (policy, flags): (CutPolicy, u16),
        now_ns: u64,
        due: impl Fn(u16, u32) -> bool,
    ) -> Result<CutReport, DatapathError> {
        let facts = self.facts();
        let list = self.scan(&facts, now_ns).mark_cut(slot.0, generation, flags, due);
        let CutList { marked, resteered, remaining } = list;
        tracing::debug!("backend row {}: {} cut, {resteered} steered anew, {remaining} remain", slot.0, marked.len());
        if policy == CutPolicy::Reset && !marked.is_empty() {
            self.grace()?;
            let row = self.backend(slot)?;
            let scan = Scan { table: self.maps.flow_table(), facts: &facts, now_ns, log: None };
            let flows = marked.iter().filter_map(|&index| scan.flow(index));
            let flows: Vec<(Meta, FlowEntry)> = flows.filter(|(meta, _)| meta.any(flow_flag::CUT)).collect();
            self.resets.send(&self.maps, &row, generation, &flows);
        }
        Ok(CutReport { cut: marked.len() as u64, remaining })
    }
}

/// What scans of the flow table have to know of the other maps; backend rows beyond the highest were never used.
pub(super) fn facts(maps: &Maps, highest_backend: u32) -> Facts {
    let services = (0..maps.services.rows()).filter_map(|slot| maps.services.read(slot));
    let backends = (0..=highest_backend).filter_map(|slot| maps.backends.read(slot)).map(|row| Row {
        generation: row.generation,
        state: State::from_u8(row.state),
        deadline_ns: row.deadline_ns,
    });
    Facts::new(services, backends)
}

/// A sweep in the words of those who asked for it.
pub(super) fn report(maps: &Maps, now_ns: u64, tallies: &[Tally]) -> Sweep {
    let mut totals = FlowTotals {
        untracked: maps.outcome(Outcome::Untracked as u32),
        // The reverse of `flow_table::slots_for`.
        capacity: u64::from(maps.flow_slots()) * 100 / 122,
        ..FlowTotals::default()
    };
    let mut backends = Vec::new();
    for (slot, tally) in (0u32..).zip(tallies).filter(|(_, tally)| !tally.is_empty()) {
        totals.live += tally.live();
        totals.opening += tally.of(Phase::Opening);
        totals.closing += tally.of(Phase::Closing);
        let Some(row) = maps.backends.read(slot) else { continue };
        backends.push(BackendFlows {
            slot: BackendSlot(slot),
            generation: row.generation,
            opening: tally.of(Phase::Opening),
            established: tally.of(Phase::Established),
            half_closed: tally.of(Phase::HalfClosed),
            closing: tally.of(Phase::Closing),
            oldest_ns: (tally.live() > 0).then(|| before(now_ns, tally.oldest_age)),
        });
    }
    Sweep { begun_ns: now_ns, backends, totals, wiped: maps.flows_were_wiped(), ended: Vec::new() }
}

/// The time that many ticks before another.
fn before(now_ns: u64, age: u32) -> u64 {
    now_ns.saturating_sub(u64::from(age) << TICK_SHIFT)
}

/// What a flow that is over was.
pub(super) fn logged(kept: &Kept, now_ns: u64) -> LoggedFlow {
    let Kept { meta, ref flow, tally } = *kept;
    let goodbye = meta.flags() & flow_flag::BOTH_FINS_ACKED == flow_flag::BOTH_FINS_ACKED
        || (meta.any(flow_flag::CLIENT_FIN) && !meta.any(flow_flag::BOTH_WAYS));
    let end = match () {
        () if meta.any(flow_flag::SILENT) => FlowEnd::Idle,
        () if meta.any(flow_flag::CUT) => FlowEnd::Cut,
        () if meta.any(flow_flag::RST) => FlowEnd::Rst,
        () if goodbye => FlowEnd::Fin,
        () => FlowEnd::Idle,
    };
    let carried = tally.as_ref().and_then(FlowTally::complete);
    let carried = carried.map(|[packets, bytes, reply_packets, reply_bytes]| Carried {
        packets,
        bytes,
        reply_packets,
        reply_bytes,
    });
    let both_ways = meta.any(flow_flag::BOTH_WAYS);
    LoggedFlow { flow: recorded(meta, flow, FlowState::Closing, now_ns), carried, both_ways, end }
}

pub(super) fn record(meta: Meta, flow: &FlowEntry, phase: Phase, now_ns: u64) -> Option<FlowRecord> {
    let state = match phase {
        Phase::Opening => FlowState::Opening,
        Phase::Established => FlowState::Established,
        Phase::HalfClosed => FlowState::HalfClosed,
        Phase::Closing => FlowState::Closing,
        Phase::Provisional | Phase::Cut | Phase::Dead => return None,
    };
    Some(recorded(meta, flow, state, now_ns))
}

fn recorded(meta: Meta, flow: &FlowEntry, state: FlowState, now_ns: u64) -> FlowRecord {
    let now = time::ticks(now_ns);
    FlowRecord {
        protocol: if meta.any(flow_flag::DATAGRAM) { Protocol::Udp } else { Protocol::Tcp },
        client: (std::net::IpAddr::from(flow.client), u16::from_be(flow.port_service as u16)).into(),
        service: ServiceSlot((flow.port_service >> 16) as u16),
        backend: BackendSlot(flow.backend),
        generation: flow.generation,
        state,
        created_ns: before(now_ns, time::age(now, flow.started)),
        last_seen_ns: before(now_ns, time::age(now, meta.last_seen())),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::flow::Life;

    use super::*;

    #[test]
    fn what_was_cut_for_its_silence_was_idle() {
        use flow_flag::{CUT, ESTABLISHED, RST, SILENT};
        for (flags, end) in [
            (ESTABLISHED, FlowEnd::Idle),
            (ESTABLISHED | RST, FlowEnd::Rst),
            (ESTABLISHED | CUT, FlowEnd::Cut),
            (ESTABLISHED | CUT | SILENT, FlowEnd::Idle),
        ] {
            let meta = Meta::new(1, flags, Life::Linked, 0);
            assert_eq!(logged(&Kept { meta, flow: FlowEntry::zeroed(), tally: None }, 0).end, end, "{flags:x}");
        }
    }
}
