//! A service: its backends, who of them is in rotation, and what guards say to a drain.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Now,
    backend::{Action, Backend, ComesBack, Context, Event, step},
};
use crate::{
    control::{
        Error,
        advisor::Lengths,
        model::{BackendSpec, MaxOut, Protocol, ServiceSpec, State, WhenUnhealthy},
        quic::{QuicCid, ServerId},
        ring::{Entrant, Member, Ring, member_key},
    },
    datapath::{
        self, BackendConfig, BackendCounters, BackendFlows, BackendSlot, BackendState, CutPolicy, NextHop,
        ServiceConfig, ServiceSlot, TCP_IDLE,
    },
};

/// Idle timeout of UDP flows where none is set, as AWS's network load balancer has it.
const UDP_IDLE: Duration = Duration::from_mins(2);
/// The share of its slots that a slow starter begins with, in thousandths.
const SLOW_START_FLOOR: u128 = 50;
/// All of them.
const WHOLE: u32 = 1_000;

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// What was asked for.
    pub spec: ServiceSpec,
    /// Its row.
    pub slot: ServiceSlot,
    /// It goes once its last backend has gone.
    pub removing: bool,
    /// Its backends, in the order in which they were added.
    pub backends: Vec<Entry>,
    /// Its ring.
    pub ring: Ring,
    /// Backends have been deleted of which the table still knows.
    pub members_stale: bool,
    /// No backend is healthy and the unhealthy serve.
    pub failing_open: bool,
    /// How long its flows have lasted.
    pub lengths: Lengths,
}

/// A backend within its service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What was asked for.
    pub spec: BackendSpec,
    /// Its server id, where it needs one and was given none.
    #[serde(default)]
    pub assigned_id: Option<ServerId>,
    /// Its row.
    pub slot: BackendSlot,
    /// Tells it from the row's earlier holders.
    pub generation: u32,
    /// Its state machine.
    pub machine: Backend,
    /// The latest known next hop.
    pub next_hop: Option<NextHop>,
    /// When its slow start began. Kept while a drain has it out of rotation: cancelling brings it back to where it would be.
    pub ramp_since_ns: Option<u64>,
    /// What its row's counters said when it got the row.
    pub baseline: BackendCounters,
    /// What it had counted when the row's counters began anew.
    pub carried: BackendCounters,
    /// What the row's counters said at the latest reading.
    pub counted: BackendCounters,
    /// Established flows of it that were found to be over.
    #[serde(default)]
    pub finished: u64,
    /// Its flows at the latest look.
    #[serde(skip)]
    pub flows: Option<BackendFlows>,
}

impl Entry {
    /// Its counts since it was added.
    pub fn totals(&self) -> BackendCounters {
        let since = |now: u64, base: u64, carried: u64| carried + now.saturating_sub(base);
        BackendCounters {
            new_flows: since(self.counted.new_flows, self.baseline.new_flows, self.carried.new_flows),
            packets: since(self.counted.packets, self.baseline.packets, self.carried.packets),
            bytes: since(self.counted.bytes, self.baseline.bytes, self.carried.bytes),
            resets: since(self.counted.resets, self.baseline.resets, self.carried.resets),
        }
    }

    /// Takes in a reading of its row's counters. Counters that went back have begun anew.
    pub fn count(&mut self, reading: BackendCounters) {
        let went_back = reading.new_flows < self.counted.new_flows
            || reading.packets < self.counted.packets
            || reading.bytes < self.counted.bytes;
        if went_back {
            self.carry_over();
        }
        self.counted = reading;
    }

    /// Its row's counters begin anew.
    pub fn carry_over(&mut self) {
        self.carried = self.totals();
        self.baseline = BackendCounters::default();
        self.counted = BackendCounters::default();
    }

    fn member(&self) -> Member {
        Member {
            id: self.slot,
            key: member_key(&self.spec.name, &self.spec.address.to_string()),
            weight: self.spec.weight,
        }
    }

    /// It is out of the rotation unless there is none better.
    fn is_unhealthy(&self) -> bool {
        matches!(self.machine.state, State::Unhealthy | State::UnhealthyDraining)
    }

    /// An operator has it out of rotation.
    pub fn is_out(&self) -> bool {
        matches!(self.machine.state, State::Draining | State::Drained)
    }
}

impl Service {
    /// A service without backends.
    pub fn new(spec: ServiceSpec, slot: ServiceSlot) -> Self {
        Self {
            spec,
            slot,
            removing: false,
            backends: Vec::new(),
            ring: Ring::new(&[]),
            members_stale: false,
            failing_open: false,
            lengths: Lengths::default(),
        }
    }

    /// Silence after which one of its flows counts as finished.
    pub fn idle_timeout(&self) -> Duration {
        let default = match self.spec.vip.protocol {
            Protocol::Tcp => TCP_IDLE,
            Protocol::Udp => UDP_IDLE,
        };
        self.spec.idle_timeout_s.map_or(default, |idle| idle.0)
    }

    /// The place of a backend in the list.
    pub fn position(&self, backend: &str) -> Option<usize> {
        self.backends.iter().position(|entry| entry.spec.name == backend)
    }

    /// Takes one backend through an event.
    pub fn step(&mut self, at: usize, event: Event, now: Now) -> Vec<Action> {
        let entry = &mut self.backends[at];
        let inside = self.ring.is_in(entry.slot);
        let context = Context { service: &self.spec, failing_open: self.failing_open && inside, inside };
        let (machine, actions) = step(entry.machine.clone(), event, context, now);
        entry.machine = machine;
        actions
    }

    /// Tells the ring who its members are.
    pub fn refresh_members(&mut self) {
        let members: Vec<Member> = self.backends.iter().map(Entry::member).collect();
        self.ring.set_members(&members);
        self.members_stale = false;
    }

    /// The ring's members.
    pub fn members(&self) -> Vec<Member> {
        self.backends.iter().map(Entry::member).collect()
    }

    /// Whether it has to do without a healthy backend, and whether each is wanted in the rotation.
    fn rotation(&self) -> (bool, Vec<bool>) {
        let active = |entry: &Entry| entry.machine.state == State::Active;
        let serving = self.backends.iter().any(|entry| active(entry) && entry.spec.weight > 0);
        let failing_open = !serving && self.spec.when_unhealthy == WhenUnhealthy::FailOpen;
        let stands_in = |entry: &Entry| failing_open && entry.is_unhealthy() && entry.next_hop.is_some();
        (failing_open, self.backends.iter().map(|entry| active(entry) || stands_in(entry)).collect())
    }

    /// Backends that serve though they are unhealthy, and have to no longer. They may have flows, so they have to be told before
    /// [`Service::settle`] takes them out.
    pub fn relieved(&self) -> Vec<usize> {
        if !self.failing_open {
            return Vec::new();
        }
        let (_, wanted) = self.rotation();
        let leaves = |at: &usize| {
            let entry = &self.backends[*at];
            !wanted[*at] && entry.is_unhealthy() && self.ring.is_in(entry.slot)
        };
        (0..wanted.len()).filter(leaves).collect()
    }

    /// Brings the ring to what the states say: who is in rotation, who is remembered, how far slow starts are.
    pub fn settle(&mut self, now: Now) {
        let (failing_open, wanted) = self.rotation();
        self.failing_open = failing_open;
        let entering: Vec<usize> =
            (0..wanted.len()).filter(|at| wanted[*at] && !self.ring.is_in(self.backends[*at].slot)).collect();
        self.enter(&entering, now);
        let mut leaving = Vec::new();
        for (entry, wanted) in self.backends.iter_mut().zip(wanted) {
            let remembered = match &entry.machine.drain {
                Some(drain) => drain.was_in,
                None => entry.machine.state == State::UnhealthyDraining && !wanted,
            };
            self.ring.set_draining(entry.slot, remembered);
            if !wanted && self.ring.is_in(entry.slot) {
                leaving.push(entry.slot);
                if entry.machine.drain.is_none() {
                    entry.ramp_since_ns = None;
                }
            }
        }
        self.ring.leave_all(&leaving);
        self.ramp(now);
    }

    fn enter(&mut self, entering: &[usize], now: Now) {
        let may_be_slow = !self.spec.slow_start_s.0.is_zero() && !self.failing_open;
        let mut entrants = Vec::new();
        for at in entering {
            let entry = &mut self.backends[*at];
            let comes_back = std::mem::take(&mut entry.machine.comes_back);
            // A cancelled drain goes back to what there was, which may have been a slow start.
            let since = match comes_back {
                ComesBack::Cancelled => entry.ramp_since_ns,
                _ => Some(now.mono_ns),
            };
            entry.ramp_since_ns = since.filter(|_| may_be_slow);
            entrants.push(Entrant {
                id: entry.slot,
                rebalance: comes_back == ComesBack::ByItself,
                share: entry
                    .ramp_since_ns
                    .map(|since| slow_start_share(&self.spec, since, now))
                    .filter(|share| *share < WHOLE),
            });
        }
        self.ring.enter_all(&entrants);
    }

    fn ramp(&mut self, now: Now) {
        for entry in &mut self.backends {
            let inside = self.ring.is_in(entry.slot);
            let Some(since) = entry.ramp_since_ns.filter(|_| inside) else { continue };
            self.ring.ramp(entry.slot, slow_start_share(&self.spec, since, now));
            if !self.ring.is_ramping(entry.slot) {
                entry.ramp_since_ns = None;
            }
        }
    }

    /// Whether a slow start has to go on.
    pub fn is_ramping(&self) -> bool {
        self.backends.iter().any(|entry| entry.ramp_since_ns.is_some() && self.ring.is_in(entry.slot))
    }

    /// Whether these backends may be drained together.
    pub fn guard(&self, drained: &[usize]) -> Result<(), Error> {
        let goes = |at: usize| drained.contains(&at);
        let serves = |entry: &Entry| self.ring.is_in(entry.slot) && entry.spec.weight > 0;
        let serving_go = self.backends.iter().enumerate().any(|(at, entry)| goes(at) && serves(entry));
        let serving_stay = self.backends.iter().enumerate().any(|(at, entry)| !goes(at) && serves(entry));
        let service = &self.spec.name;
        if serving_go && !serving_stay {
            return Err(Error::Refused(format!(
                "this would leave service {service} without a backend for new flows: bring another one up first, or use --force"
            )));
        }
        let Some(max_out) = self.spec.max_out else {
            return Ok(());
        };
        let all = self.backends.len();
        let allowed = match max_out {
            MaxOut::Count(count) => count as usize,
            MaxOut::Percent(0) => 0,
            MaxOut::Percent(percent) => (all * usize::from(percent) / 100).max(1),
        };
        let newly = drained.iter().any(|at| !self.backends[*at].is_out());
        let out = self.backends.iter().enumerate().filter(|(at, entry)| goes(*at) || entry.is_out()).count();
        if newly && out > allowed {
            return Err(Error::Refused(format!(
                "this would have {out} of {all} backends of service {service} out at once, and it allows {allowed}: wait for a drain to end and activate that backend, or use --force"
            )));
        }
        Ok(())
    }

    /// Its row.
    pub fn config(&self) -> ServiceConfig {
        let whole = if self.spec.vip.address.is_ipv4() { 32 } else { 128 };
        ServiceConfig {
            vip: self.spec.vip.address,
            protocol: self.spec.vip.protocol,
            forward: self.spec.forward,
            idle_timeout: self.idle_timeout(),
            fin_quiet: self.spec.fin_quiet_s.0,
            on_drain_timeout: self.spec.on_drain_timeout,
            affinity: self.spec.affinity.map(|affinity| affinity.prefix.unwrap_or(whole)),
            per_datagram: self.spec.per_datagram,
            quic_cid: self.spec.quic_cid.map(QuicCid::format),
            echo: self.spec.echo,
            announce: self.spec.announce,
        }
    }

    /// A backend's row.
    pub fn backend_config(&self, entry: &Entry) -> BackendConfig {
        let drain = entry.machine.drain.as_ref();
        BackendConfig {
            service: self.slot,
            address: entry.spec.address.ip,
            port: entry.spec.address.endpoint(self.spec.vip).port(),
            generation: entry.generation,
            state: self.row_state(entry),
            deadline_ns: self.row_deadline(entry),
            on_timeout: self.cut_policy(entry),
            cut_window: drain.map_or(Duration::ZERO, |_| self.spec.cut_window_s.0),
            next_hop: entry.next_hop,
            server_id: self.server_id(entry).map(ServerId::padded),
        }
    }

    /// How the backend's flows end, if they have to.
    pub fn cut_policy(&self, entry: &Entry) -> CutPolicy {
        let machine = &entry.machine;
        let of_drain = match (&machine.drain, machine.state) {
            (Some(drain), _) => Some(drain.on_timeout),
            (None, State::Drained) => machine.last_policy,
            (None, _) => None,
        };
        of_drain.unwrap_or(self.spec.on_drain_timeout)
    }

    fn row_state(&self, entry: &Entry) -> BackendState {
        if self.ring.is_in(entry.slot) {
            return BackendState::Active;
        }
        match entry.machine.state {
            // An active one is not in the ring yet: it takes no new flow before `settle` has put it there.
            State::Initial | State::Active => BackendState::Initial,
            State::Draining => BackendState::Draining,
            State::Drained => BackendState::Drained,
            State::Unhealthy => BackendState::Unhealthy,
            State::UnhealthyDraining => BackendState::UnhealthyDraining,
        }
    }

    fn row_deadline(&self, entry: &Entry) -> Option<u64> {
        match self.row_state(entry) {
            BackendState::Draining => entry.machine.drain.as_ref()?.deadline.map(|deadline| deadline.mono_ns),
            BackendState::UnhealthyDraining => entry.machine.unhealthy_until.map(|until| until.mono_ns),
            _ => None,
        }
    }

    /// Where its backends answer from, if it forwards by `nat`.
    pub fn nat_endpoints(&self) -> impl Iterator<Item = datapath::NatEndpoint> {
        let nat = self.spec.forward == datapath::Forward::Nat;
        self.backends.iter().filter(move |_| nat).map(|entry| datapath::NatEndpoint {
            backend: entry.slot,
            service: self.slot,
            address: entry.spec.address.ip,
            port: entry.spec.address.endpoint(self.spec.vip).port(),
            protocol: self.spec.vip.protocol,
        })
    }
}

/// How many thousandths of its slots a backend may have whose slow start began then.
fn slow_start_share(spec: &ServiceSpec, since_ns: u64, now: Now) -> u32 {
    let whole_ns = spec.slow_start_s.0.as_nanos().max(1);
    let elapsed_ns = u128::from(now.mono_ns.saturating_sub(since_ns));
    (elapsed_ns * u128::from(WHOLE) / whole_ns).clamp(SLOW_START_FLOOR, WHOLE.into()) as u32
}
