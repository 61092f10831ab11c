//! The engine: sole owner of the control core and of the datapath.
//!
//! A cycle writes what has changed to the datapath, looks at the flow table if that is due, lets time act, and carries out what
//! follows. Requests are answered after their cycle and after what they changed is on disk.
//!
//! **Invariant:** the order in which a drain begins: the backend's row is marked, the ring is published without it, packets in
//! flight are waited out, from then on looks count, the drain is on disk, the row gets its deadline, and only then is the caller
//! answered.

mod adopt;
mod host;
mod publish;
mod requests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{broadcast, mpsc, watch},
    time::Instant,
};

use host::Announcements;

use super::{
    clock::Clock,
    flow_log::FlowLog,
    handle::{CheckTarget, Handle, Reply, Request, Way},
    resolver::{NextHopUpdate, Resolver},
    store::{Store, StoreError},
};
use crate::{
    control::{
        Error,
        model::{Event, EventKind, Forward, State, WaitFor, WaitResult},
        state::{
            Now, backend,
            balancer::{Balancer, Work},
            service::Service,
        },
        view,
    },
    datapath::{
        BackendConfig, BackendCounters, BackendSlot, Datapath, DatapathError, FlowTotals, NextHop, ServiceConfig,
        ServiceSlot,
    },
    net::host::Host,
};

/// Between two looks while a drain runs: it has to end within a second of its last flow.
const BUSY_LOOK: Duration = Duration::from_millis(250);
/// Between two looks otherwise.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// Between two steps of a slow start.
const RAMP_STEP: Duration = Duration::from_millis(250);
/// What happened by itself is on disk after so long.
const LAZY_SAVE: Duration = Duration::from_millis(200);
/// Counters are saved so often, even if nothing happens.
const ROUTINE_SAVE: Duration = Duration::from_mins(1);
/// After a failure of the datapath or the disk.
const RETRY: Duration = Duration::from_millis(500);
/// Events kept for those who come late or lag. One step may have more: who is told by id sees the gap.
const EVENT_BACKLOG: usize = 10_000;
/// Events a slow subscriber may lag behind.
const EVENT_LAG: usize = 4_096;
/// Requests waiting for the engine; more make their senders wait.
const REQUEST_QUEUE: usize = 256;
/// Requests answered with one write to disk.
const BATCH: usize = 64;

/// What the engine is made of.
pub struct EngineOptions {
    /// The packet path.
    pub datapath: Box<dyn Datapath>,
    /// Who resolves next hops.
    pub resolver: Box<dyn Resolver>,
    /// What it finds.
    pub next_hops: mpsc::Receiver<NextHopUpdate>,
    /// What the host has: interfaces and addresses.
    pub host: watch::Receiver<Arc<Host>>,
    /// Where the state is kept.
    pub store: Store,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Where flows that are over are told, if anywhere.
    pub flow_log: Option<FlowLog>,
    /// Who is told all that happens, from the start on and leaving nothing out, if anybody. Without a bound, since the engine waits
    /// for nobody: the hooks only write it to their queues, which have one.
    pub hooks: Option<mpsc::UnboundedSender<Arc<Event>>>,
}

/// Why the engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The datapath could not be taken over.
    #[error("cannot take over the datapath: {0}")]
    Datapath(#[from] DatapathError),
}

/// The owner of everything.
pub struct Engine {
    balancer: Balancer,
    datapath: Box<dyn Datapath>,
    resolver: Box<dyn Resolver>,
    next_hops: mpsc::Receiver<NextHopUpdate>,
    host: watch::Receiver<Arc<Host>>,
    announcements: Announcements,
    store: Store,
    clock: Arc<dyn Clock>,
    requests: mpsc::Receiver<Request>,
    written: Written,
    /// Rows and services to be freed once nothing published names them.
    retiring: Vec<Work>,
    /// Freed rows whose entries are cleared after a rest.
    purges: VecDeque<(u64, BackendSlot, u32)>,
    known_hops: HashMap<IpAddr, Option<NextHop>>,
    watched: BTreeSet<IpAddr>,
    slot_counts: HashMap<BackendSlot, BackendCounters>,
    totals: FlowTotals,
    last_look: Instant,
    retry_at: Option<Instant>,
    save_at: Option<Instant>,
    /// What a request changed is not on disk yet.
    behind: bool,
    events: VecDeque<Arc<Event>>,
    subscribers: broadcast::Sender<Arc<Event>>,
    targets: watch::Sender<Arc<Vec<CheckTarget>>>,
    waiters: Vec<Waiter>,
    flow_log: Option<FlowLog>,
    hooks: Option<mpsc::UnboundedSender<Arc<Event>>>,
}

/// What the datapath has been told.
#[derive(Default)]
struct Written {
    services: HashMap<ServiceSlot, ServiceConfig>,
    backends: HashMap<BackendSlot, BackendConfig>,
    vips_stale: bool,
    /// VIPs that the host uses too, as published.
    own: BTreeSet<IpAddr>,
    /// VIPs that are announced, as published.
    announced: BTreeSet<IpAddr>,
}

struct Waiter {
    service: String,
    backend: String,
    what: WaitFor,
    reply: Reply<WaitResult>,
}

impl Engine {
    /// Restores the state, takes the datapath over and brings it up to date. Everything is in force when this returns.
    pub fn start(options: EngineOptions) -> Result<(Self, Handle), StartError> {
        let (sender, requests) = mpsc::channel(REQUEST_QUEUE);
        let (targets, target_updates) = watch::channel(Arc::new(Vec::new()));
        let mut engine = Self {
            balancer: Balancer::default(),
            datapath: options.datapath,
            resolver: options.resolver,
            next_hops: options.next_hops,
            host: options.host,
            announcements: Announcements::default(),
            store: options.store,
            clock: options.clock,
            requests,
            written: Written { vips_stale: true, ..Written::default() },
            retiring: Vec::new(),
            purges: VecDeque::new(),
            known_hops: HashMap::new(),
            watched: BTreeSet::new(),
            slot_counts: HashMap::new(),
            totals: FlowTotals::default(),
            last_look: Instant::now(),
            retry_at: None,
            save_at: None,
            behind: false,
            events: VecDeque::new(),
            subscribers: broadcast::Sender::new(EVENT_LAG),
            targets,
            waiters: Vec::new(),
            flow_log: options.flow_log,
            hooks: options.hooks,
        };
        if let Some(log) = &engine.flow_log {
            engine.datapath.log_flows(log.sample());
        }
        let restored = engine.adopt()?;
        engine.follow_up();
        engine.save_at_start(restored)?;
        Ok((engine, Handle::new(sender, target_updates)))
    }

    /// Runs the engine on a thread of its own, so that a look at millions of flows keeps nobody waiting but those who ask it.
    /// Must be called within a tokio runtime.
    pub fn spawn(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || runtime.block_on(self.run(shutdown)))
    }

    /// Serves until `shutdown`; then writes the state. The datapath goes on without it.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let wake = self.next_wake();
            tokio::select! {
                () = &mut shutdown => break,
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request),
                    None => break,
                },
                Some(update) = self.next_hops.recv() => self.resolve(update),
                Ok(()) = self.host.changed() => self.follow_host(),
                () = tokio::time::sleep_until(wake) => self.wake(),
            }
        }
        self.count();
        if let Err(error) = self.save() {
            tracing::error!("{error}");
        }
    }

    fn now(&self) -> Now {
        Now { mono_ns: self.clock.mono_ns(), wall: self.clock.wall() }
    }

    /// When something is due next.
    fn next_wake(&self) -> Instant {
        let now = self.now();
        let look = self.last_look + if self.is_busy() { BUSY_LOOK } else { IDLE_LOOK };
        let ramp = self.balancer.services.iter().any(Service::is_ramping).then(|| Instant::now() + RAMP_STEP);
        let purge_ns = self.purges.front().map(|(at_ns, _, _)| *at_ns);
        let ticks =
            self.balancer.services.iter().flat_map(|service| {
                service.backends.iter().filter_map(|entry| entry.machine.next_tick_ns(&service.spec))
            });
        // A moment that is due already and still there has failed or waits for the next look.
        let coming = |at_ns: u64| {
            let left_ns = at_ns.saturating_sub(now.mono_ns);
            (left_ns > 0).then(|| Instant::now() + Duration::from_nanos(left_ns))
        };
        let moments = ticks.chain(purge_ns).filter_map(coming);
        let announcement = self.announcements.next();
        moments
            .chain([look])
            .chain(announcement)
            .chain(ramp)
            .chain(self.retry_at)
            .chain(self.save_at)
            .min()
            .unwrap_or(look)
    }

    /// Whether looks have to be frequent.
    fn is_busy(&self) -> bool {
        let machines = self.balancer.services.iter().flat_map(|service| &service.backends);
        machines.into_iter().any(|entry| {
            matches!(entry.machine.state, State::Draining | State::UnhealthyDraining) || entry.machine.removing
        })
    }

    fn serve(&mut self, first: Request) {
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            answers.extend(self.handle(request));
            next = if answers.len() < BATCH { self.requests.try_recv().ok() } else { None };
        }
        let saved = if std::mem::take(&mut self.behind) && self.follow_up() {
            self.save_or_say_why()
        } else {
            // What follows from what was written ahead comes about again after a restart.
            self.follow_up_lazily();
            Ok(())
        };
        for answer in answers {
            answer(&saved);
        }
    }

    fn resolve(&mut self, update: NextHopUpdate) {
        let mut news = HashMap::from([(update.address, update.next_hop)]);
        while let Ok(update) = self.next_hops.try_recv() {
            news.insert(update.address, update.next_hop);
        }
        let now = self.now();
        self.balancer.next_hops(&news, now);
        self.known_hops.extend(news);
        let asks_by_way = |service: &Service| service.spec.health.as_ref().is_some_and(|health| health.vip);
        if self.balancer.services.iter().any(asks_by_way) {
            self.follow_targets();
        }
        self.cycle_and_log(false);
        self.follow_up_lazily();
    }

    fn wake(&mut self) {
        let interval = if self.is_busy() { BUSY_LOOK } else { IDLE_LOOK };
        let look = self.last_look.elapsed() >= interval;
        self.retry_at = None;
        self.follow_returning();
        self.cycle_and_log(look);
        self.announce_due();
        self.purge_rested();
        self.follow_up_lazily();
        if self.save_at.is_some_and(|at| at <= Instant::now()) {
            self.count();
            if self.save_or_say_why().is_err() {
                self.save_at = Some(Instant::now() + RETRY);
            }
        }
    }

    fn cycle_and_log(&mut self, look: bool) {
        if let Err(error) = self.cycle(look) {
            tracing::error!("the datapath failed, trying again: {error}");
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    /// Brings the datapath to where the core is, and the core to where time and the flow table are.
    fn cycle(&mut self, look: bool) -> Result<(), DatapathError> {
        self.publish()?;
        if look || self.must_look() {
            self.look()?;
        }
        self.balancer.tick(self.now());
        // Each round can only lead to fewer: cuts end drains, ended drains delete backends, deleted backends free rows.
        for _ in 0..4 {
            let work = self.balancer.take_work();
            let (to_retire, cuts): (Vec<_>, Vec<_>) =
                work.into_iter().partition(|work| matches!(work, Work::Retire(..) | Work::Clear(_)));
            self.retiring.extend(to_retire);
            // What fails here is asked for again by the next tick.
            let carried_out = cuts.into_iter().try_for_each(|work| self.carry_out(work));
            let now = self.now();
            self.balancer.tidy(now);
            carried_out?;
            self.publish()?;
            self.retire()?;
        }
        Ok(())
    }

    /// A drain that has just begun is to be counted; one that is due is counted once more before it is cut.
    fn must_look(&self) -> bool {
        let now = self.now();
        let machines = self.balancer.services.iter().flat_map(|service| &service.backends);
        machines
            .filter_map(|entry| entry.machine.drain.as_ref())
            .any(|drain| drain.initial_flows.is_none() || (drain.is_due(now) && drain.hold.is_none()))
    }

    fn look(&mut self) -> Result<(), DatapathError> {
        let sweep = self.datapath.sweep(self.clock.mono_ns())?;
        self.last_look = Instant::now();
        self.totals = sweep.totals;
        let now = self.now();
        // Before a backend that is found empty is deleted.
        self.log_flows();
        self.balancer.look(&sweep, now);
        Ok(())
    }

    fn log_flows(&mut self) {
        let now = self.now();
        if let Some(log) = &mut self.flow_log {
            log.learn(&self.balancer.services);
            let (flows, missed) = self.datapath.take_logged();
            log.take(flows, missed, now);
        }
    }

    /// Why the flows of a backend are cut, for the log.
    fn note_cut(&mut self, slot: BackendSlot, generation: u32) {
        if let Some(log) = &mut self.flow_log {
            let entries = self.balancer.services.iter().flat_map(|service| &service.backends);
            let mut cut = entries.filter(|entry| entry.slot == slot && entry.generation == generation);
            let state = cut.next().map(|entry| entry.machine.state);
            log.note_cut(slot, generation, matches!(state, Some(State::Unhealthy | State::UnhealthyDraining)));
        }
    }

    fn carry_out(&mut self, work: Work) -> Result<(), DatapathError> {
        match work {
            Work::Cut(slot, generation, policy) => {
                self.note_cut(slot, generation);
                let report = self.datapath.cut(slot, generation, policy, self.clock.mono_ns())?;
                let now = self.now();
                self.balancer.cut(slot, generation, backend::Event::Cut { cut: report.cut }, now);
            }
            Work::CutIdle(slot, generation, policy, idle) => {
                let idle_ns = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
                let since_ns = self.clock.mono_ns().saturating_sub(idle_ns);
                let report = self.datapath.cut_idle(slot, generation, policy, since_ns)?;
                let now = self.now();
                self.balancer.cut(slot, generation, backend::Event::CutIdle { cut: report.cut }, now);
            }
            Work::Retire(..) | Work::Clear(_) => self.retiring.push(work),
        }
        Ok(())
    }

    /// After a cycle: tells what happened and answers those who waited for it. True when something is to be saved.
    fn follow_up(&mut self) -> bool {
        let events = self.balancer.take_events();
        let changed = !events.is_empty();
        let others = events.iter().any(|event| {
            use EventKind::{BackendAdded, BackendRemoved, ServiceChanged, ServiceRemoved, Started};
            matches!(event.kind, BackendAdded | BackendRemoved | ServiceChanged | ServiceRemoved | Started)
        });
        for event in events {
            let event = Arc::new(event);
            if let Some(hooks) = &self.hooks {
                // They end before the engine only when their queues cannot be kept, which they say.
                let _ = hooks.send(event.clone());
            }
            if self.events.len() == EVENT_BACKLOG {
                self.events.pop_front();
            }
            self.events.push_back(event.clone());
            // Nobody listening is fine.
            let _ = self.subscribers.send(event);
        }
        if others {
            self.follow_addresses();
            self.follow_targets();
        }
        self.answer_waiters();
        changed
    }

    fn follow_up_lazily(&mut self) {
        let last_told = self.events.back().map_or(0, |event| event.id);
        let changed = self.follow_up();
        // How a drain ended cannot be told again from the flow table.
        let new = self.events.iter().rev().take_while(|event| event.id > last_told);
        let urgent = new.into_iter().any(|event| event.kind == EventKind::DrainEnded);
        let delay = match (urgent, changed) {
            (true, _) => Duration::ZERO,
            (false, true) => LAZY_SAVE,
            (false, false) => ROUTINE_SAVE,
        };
        let at = Instant::now() + delay;
        self.save_at = Some(self.save_at.map_or(at, |before| before.min(at)));
    }

    fn answer_waiters(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            if waiter.reply.is_closed() {
                continue;
            }
            match view::awaited(&self.balancer, &waiter.service, &waiter.backend, waiter.what) {
                // Whoever waited may have gone away meanwhile.
                Some(answer) => drop(waiter.reply.send(answer)),
                None => self.waiters.push(waiter),
            }
        }
    }

    /// Follows the next hops of exactly the addresses there are.
    fn follow_addresses(&mut self) {
        let wanted: BTreeSet<IpAddr> = self
            .balancer
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(|entry| entry.spec.address.ip))
            .collect();
        for address in wanted.difference(&self.watched) {
            self.resolver.watch(*address);
        }
        for address in self.watched.difference(&wanted) {
            self.resolver.unwatch(*address);
            self.known_hops.remove(address);
        }
        self.watched = wanted;
    }

    fn follow_targets(&self) {
        let targets: Vec<CheckTarget> = self
            .balancer
            .services
            .iter()
            .filter_map(|service| service.spec.health.as_ref().map(|health| (service, health)))
            .flat_map(|(service, health)| {
                service.backends.iter().map(move |entry| CheckTarget {
                    service: service.spec.name.clone(),
                    backend: entry.spec.name.clone(),
                    address: entry.spec.address,
                    vip: service.spec.vip,
                    health: health.clone(),
                    way: health
                        .vip
                        .then(|| Way { tunnel: service.spec.forward == Forward::Tunnel, next_hop: entry.next_hop }),
                })
            })
            .collect();
        self.targets.send_if_modified(|present| {
            let changed = **present != targets;
            if changed {
                *present = Arc::new(targets);
            }
            changed
        });
    }

    fn save(&mut self) -> Result<(), StoreError> {
        self.save_at = None;
        let bytes = Store::render(&mut self.balancer, &self.clock.boot_id());
        self.store.write(&bytes)
    }

    /// A disk that cannot be written to leaves nothing without a daemon that has served before: deadlines and checks go on, and what
    /// is on the disk leads here again.
    fn save_at_start(&mut self, restored: bool) -> Result<(), StoreError> {
        match self.save() {
            Err(error) if restored => {
                tracing::error!("{error}; the daemon starts from what is there, and keeps trying");
                self.save_at = Some(Instant::now() + RETRY);
                Ok(())
            }
            saved => saved,
        }
    }

    fn save_or_say_why(&mut self) -> Result<(), Error> {
        self.save().map_err(|error| {
            tracing::error!("{error}");
            self.save_at = Some(Instant::now() + RETRY);
            Error::Internal(format!(
                "the change is in force but would not survive a restart: {error}; the daemon keeps trying"
            ))
        })
    }

    /// Reads the counters.
    fn count(&mut self) {
        match self.datapath.counters() {
            Ok(counters) => {
                self.balancer.count(&counters.backends);
                self.slot_counts = counters.backends.into_iter().collect();
            }
            Err(error) => tracing::warn!("cannot read the counters: {error}"),
        }
    }
}
