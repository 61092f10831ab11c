//! All services: what commands do to them, what is to be told and what is to be done about it.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
    slice,
    time::Duration,
};

use super::{
    Now,
    backend::{Action, Backend, Event, Notice},
    service::{Entry, Service},
};
use crate::{
    control::{
        Error,
        hold::HoldAnswer,
        model::{
            self, BackendPatch, BackendSpec, DrainRequest, EventKind, LastDrain, ServicePatch, ServiceSpec, State,
        },
        sharers::{self, Endpoint, Sharers},
        slots::Slots,
        validate,
    },
    datapath::{BackendCounters, BackendSlot, CutPolicy, EndedFlow, Limits, NextHop, ServiceSlot, Sweep},
};

/// So many deleted backends' last drains are remembered, for those who wait for them.
const DEPARTED_LIMIT: usize = 1_000;

/// Everything there is.
#[derive(Clone, Debug, Default)]
pub struct Balancer {
    /// The services, in the order in which they were added.
    pub services: Vec<Service>,
    /// Rows of services.
    pub service_slots: Slots,
    /// Rows of backends.
    pub backend_slots: Slots,
    /// When flows were last known to be missing from the table.
    pub flow_state_lost_ns: Option<u64>,
    /// How many flows the datapath had not been able to record at the latest look; unknown before the first.
    pub untracked: Option<u64>,
    /// The id of the next event.
    pub next_event: u64,
    /// Deleted backends and their last drains, the latest last.
    pub departed: VecDeque<Departed>,
    /// What happened and has not been told yet.
    events: Vec<model::Event>,
    /// What the engine has to do.
    work: Vec<Work>,
    /// Services whose rows, backends' rows or rings may have to be written.
    dirty: BTreeSet<ServiceSlot>,
}

/// A backend that is no more.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Departed {
    /// Its service.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// Its last drain.
    pub last_drain: Option<LastDrain>,
}

/// What only the owner of the datapath can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// End the live flows that are due.
    Cut(BackendSlot, u32, CutPolicy),
    /// End flows silent for so long.
    CutIdle(BackendSlot, u32, CutPolicy, Duration),
    /// Free the row.
    Retire(BackendSlot, u32),
    /// Clear the service's row and ring.
    Clear(ServiceSlot),
}

impl Balancer {
    /// Adds a service.
    pub fn add_service(&mut self, spec: ServiceSpec, limits: Limits, now: Now) -> Result<ServiceSpec, Error> {
        validate::service(&spec)?;
        for other in &self.services {
            if other.spec.name == spec.name {
                let going = if other.removing { " (it is being removed)" } else { "" };
                return Err(Error::Conflict(format!(
                    "there is a service '{}' already{going}: choose another name, or change it by 'ebb service set'",
                    spec.name
                )));
            }
            if other.spec.vip == spec.vip {
                return Err(Error::Conflict(format!(
                    "{} is service {}'s already: choose another VIP, port or protocol",
                    spec.vip, other.spec.name
                )));
            }
        }
        let (slot, _) = self.service_slots.allocate(u32::from(limits.services), now.mono_ns).ok_or_else(|| {
            Error::Refused(format!("there is no room for another service: {} is the limit", limits.services))
        })?;
        let slot = ServiceSlot(u16::try_from(slot).map_err(|_| Error::Internal("service rows ran out".to_owned()))?);
        let service = Service::new(spec, slot);
        self.tell(EventKind::ServiceAdded, Some(&service.spec.name), now);
        let spec = service.spec.clone();
        self.services.push(service);
        self.dirty.insert(slot);
        Ok(spec)
    }

    /// Changes a service's settings.
    pub fn set_service(&mut self, name: &str, patch: ServicePatch, now: Now) -> Result<ServiceSpec, Error> {
        let at = self.find(name)?;
        let before = &self.services[at].spec;
        let spec = validate::patched(before, patch);
        validate::service(&spec)?;
        if spec == *before {
            return Ok(spec);
        }
        let check_changed = spec.health != before.health;
        let ids = self.services[at].ids_for(&spec)?;
        self.services[at].spec = spec.clone();
        for (entry, id) in self.services[at].backends.iter_mut().zip(ids) {
            entry.assigned_id = id;
        }
        if check_changed {
            for backend in 0..self.services[at].backends.len() {
                self.step(at, backend, Event::CheckChanged, now);
            }
        }
        self.tell(EventKind::ServiceChanged, Some(name), now);
        self.settle(at, now);
        Ok(spec)
    }

    /// Drains a service's backends, removes them, then the service.
    pub fn remove_service(&mut self, name: &str, at_once: bool, now: Now) -> Result<(), Error> {
        let at = self.find(name)?;
        if !std::mem::replace(&mut self.services[at].removing, true) {
            // Its backends may all be draining already, and what is not told is not written.
            self.tell(EventKind::ServiceChanged, Some(name), now);
        }
        for backend in (0..self.services[at].backends.len()).rev() {
            self.step(at, backend, Event::Remove { now: at_once }, now);
        }
        self.settle(at, now);
        self.tidy(now);
        Ok(())
    }

    /// Keeps a service that was being removed. Its backends go on leaving, each until it is kept too ([`Balancer::activate`]).
    pub fn keep_service(&mut self, name: &str, now: Now) -> Result<(), Error> {
        let at = self.find(name)?;
        if std::mem::take(&mut self.services[at].removing) {
            self.tell(EventKind::ServiceChanged, Some(name), now);
            self.settle(at, now);
        }
        Ok(())
    }

    /// Adds a backend.
    pub fn add_backend(&mut self, service: &str, spec: BackendSpec, limits: Limits, now: Now) -> Result<(), Error> {
        let mut sharers = self.sharers(self.find(service)?, slice::from_ref(&spec));
        let at = self.admit_backend(service, spec, &mut sharers, limits, now)?;
        self.services[at].refresh_members();
        self.settle(at, now);
        Ok(())
    }

    /// Adds several; the ring learns of them all at once. After an error those before it are added.
    pub fn add_backends(
        &mut self,
        service: &str,
        specs: Vec<BackendSpec>,
        limits: Limits,
        now: Now,
    ) -> Result<(), Error> {
        let at = self.find(service)?;
        let mut sharers = self.sharers(at, &specs);
        let added = specs
            .into_iter()
            .try_for_each(|spec| self.admit_backend(service, spec, &mut sharers, limits, now).map(drop));
        self.services[at].refresh_members();
        self.settle(at, now);
        added
    }

    /// How many backends of all services answer from where these are to, draining ones included.
    fn sharers(&self, at: usize, specs: &[BackendSpec]) -> Sharers {
        let service = &self.services[at].spec;
        let sought: HashSet<Endpoint> = specs.iter().filter_map(|spec| sharers::endpoint(service, spec)).collect();
        let mut sharers = Sharers::default();
        if sought.is_empty() {
            return sharers;
        }
        for service in &self.services {
            let endpoints = service.backends.iter().filter_map(|entry| sharers::endpoint(&service.spec, &entry.spec));
            endpoints.filter(|endpoint| sought.contains(endpoint)).for_each(|endpoint| sharers.note(endpoint));
        }
        sharers
    }

    /// Registers a backend, of which the ring has still to be told; returns the service's place.
    fn admit_backend(
        &mut self,
        service: &str,
        spec: BackendSpec,
        sharers: &mut Sharers,
        limits: Limits,
        now: Now,
    ) -> Result<usize, Error> {
        let at = self.find(service)?;
        validate::backend(&self.services[at].spec, &spec)?;
        let in_use = &self.services[at];
        if in_use.removing {
            return Err(Error::Conflict(format!("service {service} is being removed: add a new one once it is gone")));
        }
        if let Some(other) = in_use.backends.iter().find(|other| other.spec.name == spec.name) {
            let going = if other.machine.removing { " (it is still draining; 'ebb activate' keeps it)" } else { "" };
            return Err(Error::Conflict(format!(
                "service {service} has a backend '{}' already{going}: choose another name",
                spec.name
            )));
        }
        let endpoint = |spec: &BackendSpec| spec.address.endpoint(in_use.spec.vip);
        if let Some(other) = in_use.backends.iter().find(|other| endpoint(&other.spec) == endpoint(&spec)) {
            return Err(Error::Conflict(format!(
                "{} is backend {service}/{}'s address already: change that one's weight if it is to get more",
                spec.address, other.spec.name
            )));
        }
        sharers.admit(&in_use.spec, &spec)?;
        let assigned_id = in_use.id_for(&spec, None)?;
        let (slot, generation) = self.backend_slots.allocate(limits.backends, now.mono_ns).ok_or_else(|| {
            Error::Refused(format!("there is no room for another backend: {} is the limit", limits.backends))
        })?;
        let name = spec.name.clone();
        self.services[at].backends.push(Entry {
            spec,
            assigned_id,
            slot: BackendSlot(slot),
            generation,
            machine: Backend::new(now),
            next_hop: None,
            ramp_since_ns: None,
            baseline: BackendCounters::default(),
            carried: BackendCounters::default(),
            counted: BackendCounters::default(),
            finished: 0,
            flows: None,
        });
        self.departed.retain(|departed| departed.service != service || departed.backend != name);
        let backend = self.services[at].backends.len() - 1;
        self.tell_of(EventKind::BackendAdded, at, backend, now);
        Ok(at)
    }

    /// Changes a backend.
    pub fn set_backend(&mut self, service: &str, name: &str, patch: &BackendPatch, now: Now) -> Result<(), Error> {
        let (at, backend) = self.find_backend(service, name)?;
        let service = &self.services[at];
        let before = &service.backends[backend].spec;
        let spec = BackendSpec {
            weight: patch.weight.unwrap_or(before.weight),
            server_id: patch.server_id.unwrap_or(before.server_id),
            ..before.clone()
        };
        if spec == *before {
            return Ok(());
        }
        validate::backend(&service.spec, &spec)?;
        let reweighted = spec.weight != before.weight;
        if spec.server_id != before.server_id {
            let assigned_id = service.id_for(&spec, Some(backend))?;
            self.services[at].backends[backend].assigned_id = assigned_id;
        }
        self.services[at].backends[backend].spec = spec;
        if reweighted {
            self.services[at].refresh_members();
        }
        self.tell_of(EventKind::BackendChanged, at, backend, now);
        self.settle(at, now);
        Ok(())
    }

    /// Drains a backend, then deletes it.
    pub fn remove_backend(&mut self, service: &str, name: &str, at_once: bool, now: Now) -> Result<(), Error> {
        let (at, backend) = self.find_backend(service, name)?;
        if !self.services[at].backends[backend].machine.removing {
            self.services[at].backends[backend].machine.removing = true;
            self.tell_of(EventKind::BackendChanged, at, backend, now);
        }
        self.step(at, backend, Event::Remove { now: at_once }, now);
        self.settle(at, now);
        self.tidy(now);
        Ok(())
    }

    /// Starts or changes a drain, unless a guard refuses.
    pub fn drain(&mut self, service: &str, name: &str, request: DrainRequest, now: Now) -> Result<(), Error> {
        let (at, backend) = self.find_backend(service, name)?;
        if !request.force {
            self.services[at].guard(&[backend])?;
        }
        self.start_drain(at, backend, request, now);
        Ok(())
    }

    /// Drains all backends with this address, unless a guard refuses one of them; returns (service, backend).
    pub fn drain_address(
        &mut self,
        address: IpAddr,
        request: DrainRequest,
        now: Now,
    ) -> Result<Vec<(String, String)>, Error> {
        let found = self.at_address(address)?;
        if !request.force {
            for (at, backends) in &found {
                self.services[*at].guard(backends)?;
            }
        }
        let mut drained = Vec::new();
        for (at, backends) in found {
            for backend in backends {
                let service = &self.services[at];
                drained.push((service.spec.name.clone(), service.backends[backend].spec.name.clone()));
                self.start_drain(at, backend, request, now);
            }
        }
        Ok(drained)
    }

    /// The backends with this address, by the places of their services.
    fn at_address(&self, address: IpAddr) -> Result<Vec<(usize, Vec<usize>)>, Error> {
        let of = |service: &Service| -> Vec<usize> {
            let entries = service.backends.iter().enumerate();
            entries.filter(|(_, entry)| entry.spec.address.ip == address).map(|(at, _)| at).collect()
        };
        let found: Vec<(usize, Vec<usize>)> =
            self.services.iter().enumerate().map(|(at, service)| (at, of(service))).collect();
        if found.iter().all(|(_, backends)| backends.is_empty()) {
            return Err(Error::NotFound(format!(
                "no backend has the address {address}: 'ebb status' shows those there are"
            )));
        }
        Ok(found)
    }

    fn start_drain(&mut self, at: usize, backend: usize, request: DrainRequest, now: Now) {
        self.step(at, backend, Event::Drain { timeout: request.timeout_s, on_timeout: request.on_timeout }, now);
        self.settle(at, now);
    }

    /// Cancels a drain, or brings a drained backend back.
    pub fn activate(&mut self, service: &str, name: &str, now: Now) -> Result<(), Error> {
        let (at, backend) = self.find_backend(service, name)?;
        if self.services[at].removing {
            return Err(Error::Conflict(format!(
                "service {service} is being removed: its backends cannot come back; add it again once it is gone"
            )));
        }
        self.step(at, backend, Event::Activate, now);
        self.settle(at, now);
        Ok(())
    }

    /// Does so for all backends with this address, but for those that leave with their service; returns (service, backend) of all.
    pub fn activate_address(&mut self, address: IpAddr, now: Now) -> Result<Vec<(String, String)>, Error> {
        let found = self.at_address(address)?;
        if found.iter().all(|(at, backends)| backends.is_empty() || self.services[*at].removing) {
            return Err(Error::Conflict(format!(
                "every service with a backend at {address} is being removed: its backends cannot come back"
            )));
        }
        let mut all = Vec::new();
        for (at, backends) in found {
            for backend in backends {
                let service = &self.services[at];
                let names = (service.spec.name.clone(), service.backends[backend].spec.name.clone());
                if !service.removing {
                    self.step(at, backend, Event::Activate, now);
                    self.settle(at, now);
                }
                all.push(names);
            }
        }
        Ok(all)
    }

    /// Answers a drain whose end is held.
    pub fn answer_hold(&mut self, service: &str, name: &str, answer: HoldAnswer, now: Now) -> Result<(), Error> {
        let (at, backend) = self.find_backend(service, name)?;
        let drain = self.services[at].backends[backend].machine.drain.as_ref();
        if drain.is_none_or(|drain| drain.hold.is_none()) {
            let now = if drain.is_some() { "its connections are not over yet" } else { "it is not draining" };
            return Err(Error::Conflict(format!(
                "no drain of {service}/{name} is held: {now}; the event drain_held tells when one is"
            )));
        }
        self.step(at, backend, Event::Hold(answer), now);
        self.settle(at, now);
        self.tidy(now);
        Ok(())
    }

    /// News of next hops.
    pub fn next_hops(&mut self, news: &HashMap<IpAddr, Option<NextHop>>, now: Now) {
        for at in 0..self.services.len() {
            let mut touched = false;
            for backend in 0..self.services[at].backends.len() {
                let entry = &mut self.services[at].backends[backend];
                let Some(next_hop) = news.get(&entry.spec.address.ip) else { continue };
                touched = true;
                // Pinned flows keep the last known one.
                entry.next_hop = next_hop.or(entry.next_hop);
                if entry.machine.resolved != next_hop.is_some() {
                    self.step(at, backend, Event::Resolved(next_hop.is_some()), now);
                }
            }
            if touched {
                self.settle(at, now);
            }
        }
    }

    /// The result of a check. True when it changed the backend's state, or until when it keeps its flows.
    pub fn check(&mut self, service: &str, name: &str, passed: bool, detail: String, now: Now) -> bool {
        let Ok((at, backend)) = self.find_backend(service, name) else {
            return false;
        };
        let stands = |machine: &Backend| (machine.state, machine.unhealthy_until);
        let before = stands(&self.services[at].backends[backend].machine);
        self.step(at, backend, Event::Check { passed, detail }, now);
        let changed = stands(&self.services[at].backends[backend].machine) != before;
        if changed {
            self.settle(at, now);
        }
        changed
    }

    /// The packet path gives backends in a drain no new flow any more.
    pub fn sealed(&mut self, slots: &BTreeSet<BackendSlot>, now: Now) {
        for at in 0..self.services.len() {
            for backend in 0..self.services[at].backends.len() {
                let entry = &self.services[at].backends[backend];
                if slots.contains(&entry.slot) && entry.machine.drain.is_some() {
                    self.step(at, backend, Event::Sealed, now);
                }
            }
        }
    }

    /// A complete look at the flow table.
    pub fn look(&mut self, sweep: &Sweep, now: Now) {
        if self.untracked.is_some_and(|before| sweep.totals.untracked > before) {
            self.lose_flow_state("the flow table is full: new flows are steered by the hash alone", now);
        }
        self.untracked = Some(sweep.totals.untracked);
        if sweep.wiped {
            self.lose_flow_state("the flow table was wiped", now);
        }
        self.learn_lengths(&sweep.ended);
        let by_slot: HashMap<_, _> =
            sweep.backends.iter().map(|flows| ((flows.slot, flows.generation), *flows)).collect();
        for at in 0..self.services.len() {
            let since_lost = self.flow_state_lost_ns.map(|lost| sweep.begun_ns.saturating_sub(lost));
            let idle_ns = u64::try_from(self.services[at].idle_timeout().as_nanos()).unwrap_or(u64::MAX);
            let complete = since_lost.is_none_or(|since| since >= idle_ns);
            let mut moved = false;
            for backend in (0..self.services[at].backends.len()).rev() {
                let entry = &mut self.services[at].backends[backend];
                let flows = by_slot.get(&(entry.slot, entry.generation)).copied();
                entry.flows = flows;
                let quiet = entry.machine.drain.is_none() && entry.machine.state != State::UnhealthyDraining;
                let live = flows.map_or(0, |flows| flows.live());
                if quiet {
                    entry.machine.live = live;
                    continue;
                }
                let before = entry.machine.state;
                let oldest_ns = flows.and_then(|flows| flows.oldest_ns);
                self.step(at, backend, Event::Look { begun_ns: sweep.begun_ns, live, oldest_ns, complete }, now);
                moved |= self.services[at].backends.get(backend).is_none_or(|entry| entry.machine.state != before);
            }
            if moved {
                self.settle(at, now);
            }
        }
        self.tidy(now);
    }

    fn learn_lengths(&mut self, ended: &[EndedFlow]) {
        if ended.is_empty() {
            return;
        }
        let mut lengths: HashMap<_, _> =
            self.services.iter_mut().map(|service| (service.slot, &mut service.lengths)).collect();
        let mut finished: HashMap<_, u64> = HashMap::new();
        for flow in ended {
            *finished.entry((flow.backend, flow.generation)).or_default() += 1;
            if let Some(lengths) = lengths.get_mut(&flow.service) {
                let histogram = if flow.cut { &mut lengths.cut } else { &mut lengths.ended };
                histogram.record(flow.length_ms);
            }
        }
        for entry in self.services.iter_mut().flat_map(|service| &mut service.backends) {
            entry.finished += finished.get(&(entry.slot, entry.generation)).copied().unwrap_or(0);
        }
    }

    /// From now on, and for one idle timeout, a count of none proves nothing.
    pub fn lose_flow_state(&mut self, reason: &str, now: Now) {
        let again = self.flow_state_lost_ns.is_some_and(|lost| now.mono_ns.saturating_sub(lost) < 10_000_000_000);
        self.flow_state_lost_ns = Some(now.mono_ns);
        if !again {
            let mut event = self.event(EventKind::FlowStateLost, now);
            event.reason = Some(reason.to_owned());
            self.events.push(event);
        }
    }

    /// Time passes: deadlines, slow starts.
    pub fn tick(&mut self, now: Now) {
        for at in 0..self.services.len() {
            let mut moved = self.services[at].is_ramping();
            // From the end: a backend may be deleted.
            for backend in (0..self.services[at].backends.len()).rev() {
                let machine = &self.services[at].backends[backend].machine;
                if machine.drain.is_some() || machine.unhealthy_until.is_some() {
                    let before = machine.state;
                    self.step(at, backend, Event::Tick, now);
                    moved |= self.services[at].backends.get(backend).is_none_or(|entry| entry.machine.state != before);
                }
            }
            if moved {
                self.settle(at, now);
            }
        }
        self.tidy(now);
    }

    /// What came of [`Work`]: connections were cut. [`Balancer::tidy`] is due after the last.
    pub fn cut(&mut self, slot: BackendSlot, generation: u32, event: Event, now: Now) {
        let found = self.services.iter().enumerate().find_map(|(at, service)| {
            let here = |entry: &Entry| entry.slot == slot && entry.generation == generation;
            service.backends.iter().position(here).map(|backend| (at, backend))
        });
        if let Some((at, backend)) = found {
            let before = self.services[at].backends[backend].machine.state;
            self.step(at, backend, event, now);
            if self.services[at].backends.get(backend).is_none_or(|entry| entry.machine.state != before) {
                self.settle(at, now);
            }
        }
    }

    /// Takes in a reading of the counters.
    pub fn count(&mut self, readings: &[(BackendSlot, BackendCounters)]) {
        let by_slot: HashMap<_, _> = readings.iter().copied().collect();
        for entry in self.services.iter_mut().flat_map(|service| &mut service.backends) {
            if let Some(reading) = by_slot.get(&entry.slot) {
                entry.count(*reading);
            }
        }
    }

    /// Takes back the addition of a service, with its backends, that could not be put into force.
    pub fn forget_service(&mut self, name: &str, now: Now) {
        if let Ok(at) = self.find(name) {
            let service = self.services.remove(at);
            for entry in &service.backends {
                self.backend_slots.free(entry.slot.0, now.mono_ns);
                self.work.push(Work::Retire(entry.slot, entry.generation));
            }
            self.service_slots.free(u32::from(service.slot.0), now.mono_ns);
            self.dirty.remove(&service.slot);
            self.work.push(Work::Clear(service.slot));
            self.forget_events(|event| event.service.as_deref() == Some(name));
        }
    }

    /// Takes back the addition of a backend that could not be put into force.
    pub fn forget_backend(&mut self, service: &str, name: &str, now: Now) {
        if let Ok((at, backend)) = self.find_backend(service, name) {
            let entry = self.services[at].backends.remove(backend);
            self.services[at].refresh_members();
            self.dirty.insert(self.services[at].slot);
            self.backend_slots.free(entry.slot.0, now.mono_ns);
            self.work.push(Work::Retire(entry.slot, entry.generation));
            self.forget_events(|event| {
                event.service.as_deref() == Some(service) && event.backend.as_deref() == Some(name)
            });
        }
    }

    /// Takes back events that nobody has been told of. Those that follow move up: a gap between ids means events that were lost.
    fn forget_events(&mut self, which: impl Fn(&model::Event) -> bool) {
        let told = self.next_event - self.events.len() as u64;
        self.events.retain(|event| !which(event));
        for (event, id) in self.events.iter_mut().zip(told + 1..) {
            event.id = id;
        }
        self.next_event = told + self.events.len() as u64;
    }

    /// Has the whole of everything written again.
    pub fn touch_all(&mut self) {
        self.dirty = self.services.iter().map(|service| service.slot).collect();
    }

    /// Says that the daemon has started.
    pub fn announce_start(&mut self, now: Now) {
        let event = self.event(EventKind::Started, now);
        self.events.push(event);
    }

    /// Something happened to an interface.
    pub fn interface(&mut self, kind: EventKind, name: &str, reason: String, now: Now) {
        let mut event = self.event(kind, now);
        event.interface = Some(name.to_owned());
        event.reason = Some(reason);
        self.events.push(event);
    }

    /// Something has happened that has not been told yet.
    pub fn has_news(&self) -> bool {
        !self.events.is_empty()
    }

    /// What happened since this was last asked.
    pub fn take_events(&mut self) -> Vec<model::Event> {
        std::mem::take(&mut self.events)
    }

    /// What is to be done since this was last asked.
    pub fn take_work(&mut self) -> Vec<Work> {
        std::mem::take(&mut self.work)
    }

    /// Services to be looked at since this was last asked.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceSlot> {
        std::mem::take(&mut self.dirty)
    }

    /// Has a service looked at again.
    pub fn touch(&mut self, slot: ServiceSlot) {
        self.dirty.insert(slot);
    }

    /// The service in this row.
    pub fn by_slot(&mut self, slot: ServiceSlot) -> Option<&mut Service> {
        self.services.iter_mut().find(|service| service.slot == slot)
    }

    /// The place of a service in the list.
    pub fn find(&self, name: &str) -> Result<usize, Error> {
        self.services.iter().position(|service| service.spec.name == name).ok_or_else(|| {
            Error::NotFound(format!("there is no service '{name}': 'ebb service list' shows those there are"))
        })
    }

    /// The places of a service and of a backend in it.
    pub fn find_backend(&self, service: &str, name: &str) -> Result<(usize, usize), Error> {
        let at = self.find(service)?;
        let backend = self.services[at].position(name).ok_or_else(|| {
            Error::NotFound(format!(
                "service {service} has no backend '{name}': 'ebb backend list {service}' shows those there are"
            ))
        })?;
        Ok((at, backend))
    }

    fn settle(&mut self, at: usize, now: Now) {
        for backend in self.services[at].relieved() {
            self.step(at, backend, Event::Relieved, now);
        }
        self.services[at].settle(now);
        self.dirty.insert(self.services[at].slot);
    }

    /// Takes a backend through an event and sees to what follows. The backend may be gone afterwards.
    fn step(&mut self, at: usize, backend: usize, event: Event, now: Now) {
        let actions = self.services[at].step(backend, event, now);
        let (slot, generation) = {
            let entry = &self.services[at].backends[backend];
            (entry.slot, entry.generation)
        };
        if !actions.is_empty() {
            self.dirty.insert(self.services[at].slot);
        }
        let mut gone = false;
        for action in actions {
            match action {
                Action::Cut(policy) => self.work.push(Work::Cut(slot, generation, policy)),
                Action::CutIdle(policy, idle) => self.work.push(Work::CutIdle(slot, generation, policy, idle)),
                Action::Notify(notice) => self.notify(at, backend, notice, now),
                Action::Delete => gone = true,
            }
        }
        if gone {
            self.delete(at, backend, now);
        }
    }

    fn notify(&mut self, at: usize, backend: usize, notice: Notice, now: Now) {
        let machine = &self.services[at].backends[backend].machine;
        let drain = machine.drain.as_ref().map(|drain| drain.status(now));
        let reason = Some(machine.reason.clone());
        let state = Some(machine.state);
        let mut event = self.event(EventKind::BackendState, now);
        event.service = Some(self.services[at].spec.name.clone());
        event.backend = Some(self.services[at].backends[backend].spec.name.clone());
        event.address = Some(self.services[at].backends[backend].spec.address);
        match notice {
            Notice::State(from) => {
                event.from = Some(from);
                event.state = state;
                event.reason = reason;
            }
            Notice::DrainStarted => {
                event.kind = EventKind::DrainStarted;
                event.drain = drain;
            }
            Notice::DrainChanged => {
                event.kind = EventKind::DrainChanged;
                event.drain = drain;
            }
            Notice::DrainHeld => {
                event.kind = EventKind::DrainHeld;
                event.reason = reason;
                event.drain = drain;
            }
            Notice::HoldExtended => {
                event.kind = EventKind::HoldExtended;
                event.drain = drain;
            }
            Notice::DrainEnded(last_drain) => {
                event.kind = EventKind::DrainEnded;
                event.last_drain = Some(last_drain);
            }
        }
        self.events.push(event);
    }

    fn delete(&mut self, at: usize, backend: usize, now: Now) {
        self.tell_of(EventKind::BackendRemoved, at, backend, now);
        let entry = self.services[at].backends.remove(backend);
        self.services[at].members_stale = true;
        self.dirty.insert(self.services[at].slot);
        self.work.push(Work::Retire(entry.slot, entry.generation));
        self.backend_slots.free(entry.slot.0, now.mono_ns);
        if self.departed.len() == DEPARTED_LIMIT {
            self.departed.pop_front();
        }
        self.departed.push_back(Departed {
            service: self.services[at].spec.name.clone(),
            backend: entry.spec.name,
            last_drain: entry.machine.last_drain,
        });
    }

    /// After deletions: the rings learn of them, all at one go, and services being removed go once they are empty.
    pub fn tidy(&mut self, now: Now) {
        for service in &mut self.services {
            if service.members_stale && !(service.removing && service.backends.is_empty()) {
                service.refresh_members();
            }
        }
        while let Some(at) = self.services.iter().position(|service| service.removing && service.backends.is_empty()) {
            let service = self.services.remove(at);
            self.dirty.remove(&service.slot);
            self.work.push(Work::Clear(service.slot));
            self.service_slots.free(u32::from(service.slot.0), now.mono_ns);
            self.tell(EventKind::ServiceRemoved, Some(&service.spec.name), now);
        }
    }

    fn event(&mut self, kind: EventKind, now: Now) -> model::Event {
        self.next_event += 1;
        model::Event::new(self.next_event, now.wall, kind)
    }

    fn tell(&mut self, kind: EventKind, service: Option<&str>, now: Now) {
        let mut event = self.event(kind, now);
        event.service = service.map(str::to_owned);
        self.events.push(event);
    }

    fn tell_of(&mut self, kind: EventKind, at: usize, backend: usize, now: Now) {
        let mut event = self.event(kind, now);
        let entry = &self.services[at].backends[backend];
        event.service = Some(self.services[at].spec.name.clone());
        event.backend = Some(entry.spec.name.clone());
        event.address = Some(entry.spec.address);
        event.state = Some(entry.machine.state);
        self.events.push(event);
    }
}
