//! A datapath, a clock and a resolver for tests: in memory, and open to inspection.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{Engine, EngineOptions, Handle, NextHopUpdate, Resolver, clock::Clock, store::Store};
use crate::{
    control::{model::Event, state::Now},
    datapath::{
        Adopted, AdoptedBackend, BackendConfig, BackendCounters, BackendFlows, BackendSlot, BackendState, Counters,
        CutPolicy, CutReport, Datapath, DatapathError, EndedFlow, FlowFilter, FlowRecord, FlowState, FlowTotals,
        InterfaceChange, InterfaceInfo, Limits, Named, NextHop, RingSlot, ServiceConfig, ServiceSlot, Sweep,
    },
    net::{host::Host, links::Link},
};

/// One flow of the fake table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FakeFlow {
    pub(crate) backend: BackendSlot,
    pub(crate) generation: u32,
    pub(crate) service: ServiceSlot,
    pub(crate) state: FlowState,
    pub(crate) created_ns: u64,
    pub(crate) last_seen_ns: u64,
}

/// What the kernel would hold: it outlives the engine.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) services: BTreeMap<ServiceSlot, ServiceConfig>,
    pub(crate) backends: BTreeMap<BackendSlot, BackendConfig>,
    pub(crate) rings: HashMap<ServiceSlot, Vec<RingSlot>>,
    pub(crate) vips: Vec<ServiceSlot>,
    pub(crate) named: Named,
    /// Published as the host's own too.
    pub(crate) own: BTreeSet<IpAddr>,
    /// What neighbours were told.
    pub(crate) announced: Vec<Vec<IpAddr>>,
    /// What the next look at the interfaces finds.
    pub(crate) interface_changes: Vec<InterfaceChange>,
    pub(crate) flows: Vec<FakeFlow>,
    pub(crate) counters: BTreeMap<BackendSlot, BackendCounters>,
    pub(crate) untracked: u64,
    /// Flows over since the last look.
    pub(crate) ended: Vec<EndedFlow>,
    pub(crate) wiped: bool,
    /// The calls that change something, in order.
    pub(crate) calls: Vec<String>,
    /// Calls whose name is here fail.
    pub(crate) failing: BTreeSet<&'static str>,
    /// A packet in flight opens this flow while a grace period is waited for.
    pub(crate) in_flight: Option<FakeFlow>,
    /// So many more calls are made; at the next one the daemon dies, as by `kill -9`.
    pub(crate) calls_left: Option<usize>,
    /// Pins are gone: the next engine finds nothing.
    pub(crate) pins_gone: bool,
}

impl Kernel {
    fn call(&mut self, name: &'static str, detail: impl std::fmt::Debug) -> Result<(), DatapathError> {
        if self.failing.contains(name) {
            return Err(DatapathError::Kernel {
                action: format!("fake {name}"),
                source: std::io::Error::other("told to fail"),
            });
        }
        if let Some(left) = &mut self.calls_left {
            *left = left.checked_sub(1).unwrap_or_else(|| std::panic::panic_any("killed"));
        }
        self.calls.push(format!("{name} {detail:?}"));
        Ok(())
    }

    /// Who would get a new flow that hashes to `slot`.
    pub(crate) fn steer(&self, service: ServiceSlot, slot: usize) -> Option<BackendSlot> {
        let owner = self.rings.get(&service)?.get(slot)?.owner?;
        (self.backends.get(&owner)?.state == BackendState::Active).then_some(owner)
    }

    /// Opens `count` flows on a backend.
    pub(crate) fn open(&mut self, backend: BackendSlot, count: usize, now_ns: u64) {
        let row = &self.backends[&backend];
        let flow = FakeFlow {
            backend,
            generation: row.generation,
            service: row.service,
            state: FlowState::Established,
            created_ns: now_ns,
            last_seen_ns: now_ns,
        };
        self.flows.extend(std::iter::repeat_n(flow, count));
        let counters = self.counters.entry(backend).or_default();
        counters.new_flows += count as u64;
        counters.packets += 10 * count as u64;
        counters.bytes += 1_000 * count as u64;
    }

    /// Closes `count` flows of a backend.
    pub(crate) fn close(&mut self, backend: BackendSlot, count: usize) {
        for _ in 0..count {
            let at = self.flows.iter().position(|flow| flow.backend == backend).expect("a flow to close");
            self.flows.remove(at);
        }
    }

    fn end(&mut self, slot: BackendSlot, generation: u32, which: impl Fn(&FakeFlow) -> bool) -> CutReport {
        let before = self.flows.len();
        self.flows.retain(|flow| flow.backend != slot || flow.generation != generation || !which(flow));
        let remaining = self.flows.iter().filter(|flow| flow.backend == slot && flow.generation == generation).count();
        CutReport { cut: (before - self.flows.len()) as u64, remaining: remaining as u64 }
    }
}

/// The fake as the engine holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeDatapath(pub(crate) Arc<Mutex<Kernel>>);

impl FakeDatapath {
    pub(crate) fn kernel(&self) -> MutexGuard<'_, Kernel> {
        // A daemon that was killed in the midst of a call leaves the kernel as it is.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Datapath for FakeDatapath {
    fn limits(&self) -> Limits {
        Limits { services: 64, backends: 4_096 }
    }

    fn adopted(&mut self) -> Result<Adopted, DatapathError> {
        let mut kernel = self.kernel();
        if std::mem::take(&mut kernel.pins_gone) {
            *kernel = Kernel { in_flight: kernel.in_flight.take(), ..Kernel::default() };
            return Ok(Adopted::default());
        }
        let backends = kernel.backends.iter().map(|(slot, row)| AdoptedBackend {
            slot: *slot,
            generation: row.generation,
            state: row.state,
            deadline_ns: row.deadline_ns,
        });
        let found = !kernel.backends.is_empty();
        Ok(Adopted { flow_table_kept: found, rows_kept: found, backends: backends.collect() })
    }

    fn put_service(&mut self, slot: ServiceSlot, config: &ServiceConfig) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("put_service", slot)?;
        kernel.services.insert(slot, config.clone());
        Ok(())
    }

    fn clear_service(&mut self, slot: ServiceSlot) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("clear_service", slot)?;
        assert!(!kernel.vips.contains(&slot), "a published service is cleared");
        kernel.services.remove(&slot);
        kernel.rings.remove(&slot);
        Ok(())
    }

    fn publish_vips(
        &mut self,
        services: &[(ServiceSlot, &ServiceConfig)],
        own: &BTreeSet<IpAddr>,
        named: &Named,
    ) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("publish_vips", services.len())?;
        kernel.vips = services.iter().map(|(slot, _)| *slot).collect();
        kernel.named.clone_from(named);
        kernel.own.clone_from(own);
        Ok(())
    }

    fn put_backend(&mut self, slot: BackendSlot, config: &BackendConfig) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("put_backend", (slot, config.state))?;
        if config.state == BackendState::Free {
            let named =
                kernel.rings.values().flatten().any(|ring| ring.owner == Some(slot) || ring.previous == Some(slot));
            assert!(!named, "a row is freed that a ring names");
        }
        kernel.backends.insert(slot, config.clone());
        Ok(())
    }

    fn set_backend_state(
        &mut self,
        slot: BackendSlot,
        state: BackendState,
        deadline_ns: Option<u64>,
        on_timeout: CutPolicy,
    ) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("set_backend_state", (slot, state))?;
        let row = kernel.backends.get_mut(&slot).expect("a row that was put");
        row.state = state;
        row.deadline_ns = deadline_ns;
        row.on_timeout = on_timeout;
        Ok(())
    }

    fn set_next_hop(&mut self, slot: BackendSlot, next_hop: &NextHop) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("set_next_hop", slot)?;
        kernel.backends.get_mut(&slot).expect("a row that was put").next_hop = Some(*next_hop);
        Ok(())
    }

    fn put_ring(&mut self, service: ServiceSlot, ring: &[RingSlot]) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("put_ring", (service, ring.len()))?;
        kernel.rings.insert(service, ring.to_vec());
        Ok(())
    }

    fn set_ring_slots(&mut self, service: ServiceSlot, changes: &[(u32, RingSlot)]) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("set_ring_slots", (service, changes.len()))?;
        let ring = kernel.rings.get_mut(&service).expect("a ring that was put");
        for (slot, now) in changes {
            ring[*slot as usize] = *now;
        }
        Ok(())
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("grace", ())?;
        let arrived = kernel.in_flight.take();
        kernel.flows.extend(arrived);
        Ok(())
    }

    fn sweep(&mut self, now_ns: u64) -> Result<Sweep, DatapathError> {
        let mut kernel = self.kernel();
        if kernel.failing.contains("sweep") {
            kernel.call("sweep", ())?;
        }
        let mut backends: BTreeMap<(BackendSlot, u32), BackendFlows> = BTreeMap::new();
        let current: HashMap<BackendSlot, u32> =
            kernel.backends.iter().map(|(slot, row)| (*slot, row.generation)).collect();
        for flow in kernel.flows.iter().filter(|flow| current.get(&flow.backend) == Some(&flow.generation)) {
            let counts = backends.entry((flow.backend, flow.generation)).or_insert(BackendFlows {
                slot: flow.backend,
                generation: flow.generation,
                opening: 0,
                established: 0,
                half_closed: 0,
                closing: 0,
                oldest_ns: None,
            });
            match flow.state {
                FlowState::Opening => counts.opening += 1,
                FlowState::Established => counts.established += 1,
                FlowState::HalfClosed => counts.half_closed += 1,
                FlowState::Closing => counts.closing += 1,
            }
            counts.oldest_ns = Some(counts.oldest_ns.map_or(flow.created_ns, |oldest| oldest.min(flow.created_ns)));
        }
        let live = backends.values().map(BackendFlows::live).sum();
        let totals = FlowTotals { live, untracked: kernel.untracked, capacity: 1_024, ..FlowTotals::default() };
        Ok(Sweep {
            begun_ns: now_ns,
            backends: backends.into_values().collect(),
            totals,
            wiped: std::mem::take(&mut kernel.wiped),
            ended: std::mem::take(&mut kernel.ended),
        })
    }

    fn purge(&mut self, slot: BackendSlot, generation: u32) -> Result<u64, DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("purge", (slot, generation))?;
        Ok(kernel.end(slot, generation, |_| true).cut)
    }

    fn cut(
        &mut self,
        slot: BackendSlot,
        generation: u32,
        policy: CutPolicy,
        now_ns: u64,
    ) -> Result<CutReport, DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("cut", (slot, policy))?;
        let due = kernel.backends[&slot].deadline_ns.is_some_and(|deadline| deadline <= now_ns);
        Ok(kernel.end(slot, generation, |_| due))
    }

    fn cut_idle(
        &mut self,
        slot: BackendSlot,
        generation: u32,
        policy: CutPolicy,
        silent_since_ns: u64,
    ) -> Result<CutReport, DatapathError> {
        let mut kernel = self.kernel();
        kernel.call("cut_idle", (slot, policy))?;
        Ok(kernel.end(slot, generation, |flow| flow.last_seen_ns <= silent_since_ns))
    }

    fn flows(&mut self, filter: FlowFilter, limit: usize) -> Result<Vec<FlowRecord>, DatapathError> {
        let kernel = self.kernel();
        let wanted = |flow: &&FakeFlow| {
            filter.service.is_none_or(|service| service == flow.service)
                && filter.backend.is_none_or(|backend| backend == flow.backend)
        };
        let record = |flow: &FakeFlow| FlowRecord {
            protocol: crate::datapath::Protocol::Tcp,
            client: "192.0.2.1:1234".parse().expect("an address"),
            service: flow.service,
            backend: flow.backend,
            generation: flow.generation,
            state: flow.state,
            created_ns: flow.created_ns,
            last_seen_ns: flow.last_seen_ns,
        };
        Ok(kernel.flows.iter().filter(wanted).take(limit).map(record).collect())
    }

    fn open_lengths(
        &mut self,
        service: ServiceSlot,
        now_ns: u64,
        see: &mut dyn FnMut(u64),
    ) -> Result<(), DatapathError> {
        let kernel = self.kernel();
        let open = |flow: &&FakeFlow| {
            flow.service == service && matches!(flow.state, FlowState::Established | FlowState::HalfClosed)
        };
        kernel.flows.iter().filter(open).for_each(|flow| see(now_ns.saturating_sub(flow.created_ns)));
        Ok(())
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        let kernel = self.kernel();
        Ok(Counters {
            program: None,
            backends: kernel.counters.iter().map(|(slot, counters)| (*slot, *counters)).collect(),
            outcomes: vec![("forwarded", 7)],
        })
    }

    fn follow_links(&mut self, _links: &[Link]) -> Vec<InterfaceChange> {
        std::mem::take(&mut self.kernel().interface_changes)
    }

    fn announce(&mut self, addresses: &[IpAddr]) {
        self.kernel().announced.push(addresses.to_vec());
    }

    fn interfaces(&self) -> Vec<InterfaceInfo> {
        vec![InterfaceInfo { name: "eth0".to_owned(), ifindex: 2, mode: "native".to_owned() }]
    }
}

/// Follows tokio's clock, which tests stop and advance; the wall clock can be set apart from it.
#[derive(Debug)]
pub(crate) struct FakeClock {
    start: Instant,
    start_ns: u64,
    pub(crate) skew: Mutex<jiff::SignedDuration>,
    pub(crate) boot: Mutex<String>,
}

impl FakeClock {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            start_ns: 1_000_000_000_000,
            skew: Mutex::new(jiff::SignedDuration::ZERO),
            boot: Mutex::new("first boot".to_owned()),
        }
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono_ns: self.mono_ns(), wall: self.wall() }
    }

    /// The machine is booted again: monotonic time starts anew, wall time has gone on for so long.
    pub(crate) fn reboot(&mut self, took: Duration) {
        let wall = self.wall();
        self.start = Instant::now();
        self.start_ns = 5_000_000_000;
        let took = jiff::SignedDuration::try_from(took).expect("short");
        *self.skew.lock().expect("not poisoned") = (wall + took).duration_since(self.wall_unskewed());
        "second boot".clone_into(&mut self.boot.lock().expect("not poisoned"));
    }

    fn wall_unskewed(&self) -> Timestamp {
        let elapsed = jiff::SignedDuration::try_from(self.start.elapsed()).expect("short");
        Timestamp::from_second(1_700_000_000).expect("in range") + elapsed
    }
}

impl Clock for FakeClock {
    fn mono_ns(&self) -> u64 {
        self.start_ns + u64::try_from(self.start.elapsed().as_nanos()).expect("short")
    }

    fn wall(&self) -> Timestamp {
        self.wall_unskewed() + *self.skew.lock().expect("not poisoned")
    }

    fn boot_id(&self) -> String {
        self.boot.lock().expect("not poisoned").clone()
    }
}

/// Finds every address at once, except those in `silent`.
pub(crate) struct FakeResolver {
    pub(crate) updates: mpsc::Sender<NextHopUpdate>,
    pub(crate) silent: BTreeSet<IpAddr>,
}

impl Resolver for FakeResolver {
    fn watch(&mut self, address: IpAddr) {
        if !self.silent.contains(&address) {
            let update = NextHopUpdate { address, next_hop: Some(next_hop()) };
            self.updates.try_send(update).expect("there is room");
        }
    }

    fn unwatch(&mut self, _address: IpAddr) {}
}

/// Some next hop.
pub(crate) fn next_hop() -> NextHop {
    NextHop {
        ifindex: 2,
        dst_mac: [2, 0, 0, 0, 0, 1],
        src_mac: [2, 0, 0, 0, 0, 2],
        mtu: 1_500,
        source: None,
        vlan: None,
    }
}

/// An engine on fakes.
pub(crate) struct Rig {
    pub(crate) handle: Handle,
    pub(crate) datapath: FakeDatapath,
    pub(crate) clock: Arc<FakeClock>,
    pub(crate) directory: Arc<tempfile::TempDir>,
    pub(crate) next_hops: mpsc::Sender<NextHopUpdate>,
    pub(crate) host: watch::Sender<Arc<Host>>,
    events: Option<mpsc::UnboundedReceiver<Arc<Event>>>,
    task: tokio::task::JoinHandle<()>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Rig {
    /// A fresh one.
    pub(crate) fn new() -> Self {
        let directory = Arc::new(tempfile::tempdir().expect("a directory"));
        Self::start(FakeDatapath::default(), Arc::new(FakeClock::new()), directory, BTreeSet::new())
    }

    pub(crate) fn start(
        datapath: FakeDatapath,
        clock: Arc<FakeClock>,
        directory: Arc<tempfile::TempDir>,
        silent: BTreeSet<IpAddr>,
    ) -> Self {
        Self::try_start(datapath, clock, directory, silent).expect("the engine starts")
    }

    /// One on a state that may be refused.
    pub(crate) fn try_start(
        datapath: FakeDatapath,
        clock: Arc<FakeClock>,
        directory: Arc<tempfile::TempDir>,
        silent: BTreeSet<IpAddr>,
    ) -> Option<Self> {
        let (updates, next_hops) = mpsc::channel(4_096);
        let (host, watched) = watch::channel(Arc::default());
        let (hooks, events) = mpsc::unbounded_channel();
        let options = EngineOptions {
            datapath: Box::new(datapath.clone()),
            resolver: Box::new(FakeResolver { updates: updates.clone(), silent }),
            next_hops,
            host: watched,
            store: Store::open(directory.path()).expect("a store"),
            clock: clock.clone(),
            flow_log: None,
            hooks: Some(hooks),
        };
        let (engine, handle) = Engine::start(options).ok()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(engine.run(async {
            // A dropped sender stops the engine as well.
            let _ = stopped.await;
        }));
        Some(Self { handle, datapath, clock, directory, next_hops: updates, host, events: Some(events), task, stop })
    }

    /// What hooks are told. To be had once.
    pub(crate) fn events(&mut self) -> mpsc::UnboundedReceiver<Arc<Event>> {
        self.events.take().expect("not taken yet")
    }

    /// As `kill -9` does: what is not on disk is lost. The datapath goes on.
    pub(crate) async fn kill(self) -> (FakeDatapath, Arc<FakeClock>, Arc<tempfile::TempDir>) {
        self.task.abort();
        // It was aborted: that is what it says.
        let _ = self.task.await;
        (self.datapath, self.clock, self.directory)
    }

    /// As SIGTERM does.
    pub(crate) async fn stop(self) -> (FakeDatapath, Arc<FakeClock>, Arc<tempfile::TempDir>) {
        drop(self.stop);
        self.task.await.expect("the engine ends");
        (self.datapath, self.clock, self.directory)
    }

    pub(crate) fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.datapath.kernel()
    }
}
