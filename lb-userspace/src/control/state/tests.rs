mod hold;
mod ids;
mod sharers;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use proptest::prelude::*;

use super::{
    Now,
    backend::{self, Backend},
    balancer::{Balancer, Work},
};
use crate::{
    control::{
        duration::{Limit, Seconds},
        hold::HoldAnswer,
        model::{
            BackendPatch, BackendSpec, DrainRequest, Event, EventKind, Outcome, ServicePatch, ServiceSpec, State,
            WhenUnhealthy,
        },
    },
    datapath::{BackendFlows, BackendSlot, CutPolicy, FlowTotals, Limits, NextHop, Sweep},
};

const LIMITS: Limits = Limits { services: 4, backends: 64 };
const SECOND_NS: u64 = 1_000_000_000;

/// The core with the least of an engine around it, and what really happened to flows.
struct World {
    balancer: Balancer,
    now: Now,
    flows: HashMap<(BackendSlot, u32), u64>,
    /// The state each backend was in by the events told.
    told: HashMap<String, State>,
    events: Vec<Event>,
    /// Live flows that ended by being cut, by backend name.
    cut: HashMap<String, u64>,
}

impl World {
    fn new(checked: bool) -> Self {
        let mut world = Self {
            balancer: Balancer::default(),
            now: Now { mono_ns: 1_000 * SECOND_NS, wall: Timestamp::from_second(1_700_000_000).expect("in range") },
            flows: HashMap::new(),
            told: HashMap::new(),
            events: Vec::new(),
            cut: HashMap::new(),
        };
        let mut spec = serde_json::json!({ "name": "web", "vip": "10.0.0.100:80/tcp", "idle_timeout_s": 30 });
        if checked {
            spec["health_check"] = serde_json::json!({ "check": { "kind": "tcp" }, "rise": 1, "fall": 2 });
        }
        let spec: ServiceSpec = serde_json::from_value(spec).expect("a service");
        world.balancer.add_service(spec, LIMITS, world.now).expect("a service");
        for number in 0..4 {
            world.add(number);
            world.resolve(number, true);
            world.check(number, true);
        }
        world.cycle();
        world
    }

    fn add(&mut self, number: u32) {
        let spec: BackendSpec = serde_json::from_value(
            serde_json::json!({ "name": format!("b{number}"), "address": format!("10.0.0.{}", 11 + number) }),
        )
        .expect("a backend");
        // It may be there already: then this is one more thing that changes nothing.
        let _ = self.balancer.add_backend("web", spec, LIMITS, self.now);
    }

    fn resolve(&mut self, number: u32, found: bool) {
        let next_hop = NextHop { ifindex: 2, dst_mac: [1; 6], src_mac: [2; 6], mtu: 1_500, source: None, vlan: None };
        let address = format!("10.0.0.{}", 11 + number).parse().expect("an address");
        self.balancer.next_hops(&HashMap::from([(address, found.then_some(next_hop))]), self.now);
    }

    fn check(&mut self, number: u32, passed: bool) -> bool {
        self.balancer.check("web", &format!("b{number}"), passed, "refused".to_owned(), self.now)
    }

    fn machine(&self, number: u32) -> Option<&Backend> {
        let service = self.balancer.services.first()?;
        Some(&service.backends[service.position(&format!("b{number}"))?].machine)
    }

    fn state(&self, number: u32) -> State {
        self.machine(number).expect("it is there").state
    }

    fn key(&self, number: u32) -> Option<(BackendSlot, u32)> {
        let service = self.balancer.services.first()?;
        let entry = &service.backends[service.position(&format!("b{number}"))?];
        Some((entry.slot, entry.generation))
    }

    fn open(&mut self, number: u32, count: u64) {
        let taking = self.key(number).filter(|(slot, _)| self.balancer.services[0].ring.is_in(*slot));
        if let Some(key) = taking {
            *self.flows.entry(key).or_default() += count;
        }
    }

    fn close(&mut self, number: u32, count: u64) {
        if let Some(flows) = self.key(number).and_then(|key| self.flows.get_mut(&key)) {
            *flows = flows.saturating_sub(count);
        }
    }

    fn hold_drains(&mut self, seconds: Option<u64>) {
        let patch =
            ServicePatch { drain_hold_s: Some(seconds.map_or(Limit::NONE, Limit::seconds)), ..ServicePatch::default() };
        self.balancer.set_service("web", patch, self.now).expect("it is set");
    }

    fn advance(&mut self, seconds: u64) {
        self.now.mono_ns += seconds * SECOND_NS;
        self.now.wall += jiff::SignedDuration::from_secs(i64::try_from(seconds).expect("short"));
    }

    fn live(&self, key: (BackendSlot, u32)) -> u64 {
        self.flows.get(&key).copied().unwrap_or(0)
    }

    /// What the engine does in a cycle.
    fn cycle(&mut self) {
        let all: BTreeSet<BackendSlot> =
            self.balancer.services.iter().flat_map(|service| service.backends.iter().map(|entry| entry.slot)).collect();
        self.balancer.sealed(&all, self.now);
        let backends = self.flows.iter().map(|((slot, generation), live)| BackendFlows {
            slot: *slot,
            generation: *generation,
            opening: 0,
            established: *live,
            half_closed: 0,
            closing: 3,
            oldest_ns: Some(self.now.mono_ns),
        });
        let (backends, totals) = (backends.collect(), FlowTotals::default());
        let sweep = Sweep { begun_ns: self.now.mono_ns, backends, totals, ..Sweep::default() };
        self.balancer.look(&sweep, self.now);
        self.balancer.tick(self.now);
        for work in self.balancer.take_work() {
            if let Work::Cut(slot, generation, _) = work {
                let live = self.flows.remove(&(slot, generation)).unwrap_or(0);
                let entries = self.balancer.services.iter().flat_map(|service| &service.backends);
                let entry = entries.into_iter().find(|entry| entry.slot == slot);
                // In the window before the deadline the moment of some has come, of others not.
                let early = entry.and_then(|entry| entry.machine.drain.as_ref()).is_some_and(|d| !d.is_due(self.now));
                let cut = if early { live.div_ceil(2) } else { live };
                self.flows.insert((slot, generation), live - cut);
                if let Some(entry) = entry {
                    *self.cut.entry(entry.spec.name.clone()).or_default() += cut;
                }
                self.balancer.cut(slot, generation, backend::Event::Cut { cut }, self.now);
            }
        }
        self.balancer.tidy(self.now);
        self.balancer.take_work();
        self.hear();
    }

    /// Takes the events in and checks that they tell one story.
    fn hear(&mut self) {
        for event in self.balancer.take_events() {
            assert!(self.events.last().is_none_or(|last| last.id + 1 == event.id), "ids have no gaps");
            if let Some(name) = event.backend.clone() {
                match event.kind {
                    EventKind::BackendAdded => drop(self.told.insert(name, State::Initial)),
                    EventKind::BackendRemoved => drop(self.told.remove(&name)),
                    EventKind::BackendState => {
                        let to = event.state.expect("it says where to");
                        assert_eq!(self.told.insert(name, to), event.from, "{event:?}");
                    }
                    _ => {}
                }
            }
            self.events.push(event);
        }
    }

    fn ended(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(|event| event.kind == EventKind::DrainEnded)
    }

    /// What holds at any time.
    fn assert_sound(&self) {
        let Some(service) = self.balancer.services.first() else { return };
        for entry in &service.backends {
            let machine = &entry.machine;
            assert_eq!(machine.drain.is_some(), machine.state == State::Draining, "{entry:?}");
            let inside = service.ring.is_in(entry.slot);
            match machine.state {
                State::Active => assert!(inside),
                State::Unhealthy | State::UnhealthyDraining => assert!(!inside || service.failing_open),
                State::Initial | State::Draining | State::Drained => assert!(!inside, "{entry:?}"),
            }
            assert_eq!(self.told.get(&entry.spec.name), Some(&machine.state), "events say where it is");
            let refused = matches!(machine.state, State::Unhealthy | State::Drained) && !inside;
            let live = self.live((entry.slot, entry.generation));
            assert!(!refused || live == 0, "what is not cut is not refused: {live} of {entry:?}");
            let failing = service.spec.health.is_some() && machine.health.is_bad();
            let limited = machine.state == State::UnhealthyDraining && machine.unhealthy_until.is_some();
            assert!(!limited || failing, "only who fails is limited: {entry:?}");
            if let Some(drain) = &machine.drain {
                let held = drain.hold.is_some();
                assert!(held || !drain.is_due(self.now), "a drain is over at its deadline at the latest");
                assert!(drain.initial_flows.is_some());
                if let Some(hold) = drain.hold {
                    assert!(!hold.until.reached(self.now), "nothing is held for longer than was said");
                    assert!(hold.until.mono_ns <= hold.latest.mono_ns);
                    assert!(drain.held.is_none(), "a drain is held once");
                }
            }
            assert!(!(machine.removing && machine.state == State::Drained), "it is deleted");
        }
        for event in self.ended() {
            let last = event.last_drain.as_ref().expect("it says how");
            match last.outcome {
                Outcome::Completed => assert_eq!(last.cut_flows, 0),
                Outcome::Deadline => assert!(last.cut_flows > 0),
                Outcome::Forced | Outcome::Cancelled => {}
            }
        }
        let told: u64 = self.ended().filter_map(|event| event.last_drain.as_ref()).map(|last| last.cut_flows).sum();
        let cut: u64 = self.cut.values().sum();
        assert!(told <= cut, "{told} cuts are told of, {cut} were made");
    }
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Open(u32, u64),
    Close(u32, u64),
    Drain(u32, Option<u64>),
    DrainForever(u32),
    Activate(u32),
    Remove(u32, bool),
    Add(u32),
    Resolve(u32, bool),
    Check(u32, bool),
    Weigh(u32, u32),
    Advance(u64),
    LoseTable,
    Restart,
    KeepUnhealthy(Option<u64>),
    Refuse(bool),
    HoldDrains(Option<u64>),
    CutOver(u64),
    Answer(u32, HoldAnswer),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let who = 0..5_u32;
    let deed = prop_oneof![
        4 => (who.clone(), 1..5_u64).prop_map(|(who, count)| Deed::Open(who, count)),
        3 => (who.clone(), 1..9_u64).prop_map(|(who, count)| Deed::Close(who, count)),
        4 => (who.clone(), proptest::option::of(0..60_u64)).prop_map(|(who, timeout)| Deed::Drain(who, timeout)),
        1 => who.clone().prop_map(Deed::DrainForever),
        2 => who.clone().prop_map(Deed::Activate),
        2 => (who.clone(), any::<bool>()).prop_map(|(who, now)| Deed::Remove(who, now)),
        2 => who.clone().prop_map(Deed::Add),
        2 => (who.clone(), any::<bool>()).prop_map(|(who, found)| Deed::Resolve(who, found)),
        4 => (who.clone(), any::<bool>()).prop_map(|(who, passed)| Deed::Check(who, passed)),
        1 => (who, 0..3_u32).prop_map(|(who, weight)| Deed::Weigh(who, weight)),
        4 => (0..40_u64).prop_map(Deed::Advance),
        1 => Just(Deed::LoseTable),
        2 => Just(Deed::Restart),
        1 => proptest::option::of(0..20_u64).prop_map(Deed::KeepUnhealthy),
        1 => any::<bool>().prop_map(Deed::Refuse),
        2 => proptest::option::of(1..30_u64).prop_map(Deed::HoldDrains),
        1 => (0..20_u64).prop_map(Deed::CutOver),
        2 => (0..5_u32, answers()).prop_map(|(who, answer)| Deed::Answer(who, answer)),
    ];
    proptest::collection::vec(deed, 1..60)
}

fn answers() -> impl Strategy<Value = HoldAnswer> {
    prop_oneof![Just(HoldAnswer::Continue), Just(HoldAnswer::Abandon), Just(HoldAnswer::Heartbeat)]
}

fn perform(world: &mut World, deed: Deed) {
    let now = world.now;
    let name = |who: u32| format!("b{who}");
    let forced = |timeout_s| DrainRequest { timeout_s, force: true, ..DrainRequest::default() };
    // Deeds on backends that are not there are refused, and that is all they may do.
    match deed {
        Deed::Open(who, count) => world.open(who, count),
        Deed::Close(who, count) => world.close(who, count),
        Deed::Drain(who, timeout) => {
            let _ = world.balancer.drain("web", &name(who), forced(timeout.map(Limit::seconds)), now);
        }
        Deed::DrainForever(who) => {
            let _ = world.balancer.drain("web", &name(who), forced(Some(Limit::NONE)), now);
        }
        Deed::Activate(who) => {
            let _ = world.balancer.activate("web", &name(who), now);
        }
        Deed::Remove(who, at_once) => {
            let _ = world.balancer.remove_backend("web", &name(who), at_once, now);
        }
        Deed::Add(who) => world.add(who),
        Deed::Resolve(who, found) => world.resolve(who, found),
        Deed::Check(who, passed) => drop(world.check(who, passed)),
        Deed::Weigh(who, weight) => {
            let patch = BackendPatch { weight: Some(weight), ..BackendPatch::default() };
            let _ = world.balancer.set_backend("web", &name(who), &patch, now);
        }
        Deed::Advance(seconds) => world.advance(seconds),
        Deed::LoseTable => {
            world.flows.clear();
            world.balancer.lose_flow_state("lost", now);
        }
        Deed::Restart => restart(world),
        Deed::KeepUnhealthy(interval) => {
            let limit = interval.map_or(Limit::NONE, Limit::seconds);
            let patch = ServicePatch { unhealthy_drain_s: Some(limit), ..ServicePatch::default() };
            world.balancer.set_service("web", patch, now).expect("it is set");
        }
        Deed::HoldDrains(hold) => world.hold_drains(hold),
        Deed::CutOver(seconds) => {
            let window = Seconds(Duration::from_secs(seconds));
            let patch = ServicePatch { cut_window_s: Some(window), ..ServicePatch::default() };
            world.balancer.set_service("web", patch, now).expect("it is set");
        }
        Deed::Answer(who, answer) => {
            let _ = world.balancer.answer_hold("web", &name(who), answer, now);
        }
        Deed::Refuse(refuse) => {
            let what = if refuse { WhenUnhealthy::Refuse } else { WhenUnhealthy::FailOpen };
            let patch = ServicePatch { when_unhealthy: Some(what), ..ServicePatch::default() };
            world.balancer.set_service("web", patch, now).expect("it is set");
        }
    }
}

/// What is kept of backends goes to disk and back; what is not is forgotten.
fn restart(world: &mut World) {
    world.hear();
    for entry in world.balancer.services.iter_mut().flat_map(|service| &mut service.backends) {
        let json = serde_json::to_string(&*entry).expect("plain data");
        *entry = serde_json::from_str(&json).expect("what was written");
    }
    world.balancer.touch_all();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_the_story_is_sound(checked in any::<bool>(), deeds in deeds()) {
        let mut world = World::new(checked);
        for deed in deeds {
            let live_before: HashMap<u32, u64> =
                (0..5).filter_map(|who| Some((who, world.live(world.key(who)?)))).collect();
            let deadline = |who| Some(world.machine(who)?.drain.as_ref()?.deadline?.mono_ns);
            let deadlines: HashMap<u32, u64> = (0..5).filter_map(|who| Some((who, deadline(who)?))).collect();
            let is_held = |who: &u32| world.machine(*who).and_then(|machine| machine.drain.as_ref()?.hold).is_some();
            let held: Vec<u32> = (0..5).filter(is_held).collect();
            let told = world.events.len();
            perform(&mut world, deed);
            world.cycle();
            world.assert_sound();
            // Early ends are for backends without a live flow, as far as anybody can know.
            for event in world.events[told..].iter().filter(|event| event.kind == EventKind::DrainEnded) {
                let last = event.last_drain.as_ref().expect("it says how");
                let who: u32 = event.backend.as_deref().expect("whose")[1..].parse().expect("a number");
                if last.outcome == Outcome::Completed {
                    let closed = if let Deed::Close(other, count) = deed && other == who { count } else { 0 };
                    prop_assert!(live_before[&who] <= closed, "{event:?} with {} live", live_before[&who]);
                    let lost = world.balancer.flow_state_lost_ns;
                    let known = lost.is_none_or(|lost| world.now.mono_ns - lost >= 30 * SECOND_NS);
                    let due = deadlines.get(&who).is_some_and(|deadline| *deadline <= world.now.mono_ns);
                    // What is held was known to be over when it began to be.
                    prop_assert!(known || due || held.contains(&who), "{event:?}");
                }
            }
        }
    }
}

#[test]
fn while_flow_state_is_lost_none_means_nothing() {
    let mut world = World::new(false);
    world.balancer.lose_flow_state("lost", world.now);
    world.balancer.drain("web", "b0", DrainRequest::default(), world.now).expect("a drain");
    for _ in 0..29 {
        world.cycle();
        assert_eq!(world.state(0), State::Draining);
        world.advance(1);
    }
    world.advance(1);
    world.cycle();
    assert_eq!(world.state(0), State::Drained);
}

#[test]
fn a_look_begun_before_the_seal_does_not_count() {
    let mut world = World::new(false);
    world.balancer.drain("web", "b0", DrainRequest::default(), world.now).expect("a drain");
    let early = Sweep { begun_ns: world.now.mono_ns, ..Sweep::default() };
    world.balancer.look(&early, world.now);
    assert_eq!(world.state(0), State::Draining, "not sealed yet");
    world.advance(1);
    let (slot, _) = world.key(0).expect("it is there");
    world.balancer.sealed(&BTreeSet::from([slot]), world.now);
    world.balancer.look(&early, world.now);
    assert_eq!(world.state(0), State::Draining, "begun before the seal");
    world.cycle();
    assert_eq!(world.state(0), State::Drained);
}

#[test]
fn checks_take_a_backend_out_and_bring_it_back() {
    let mut world = World::new(true);
    world.open(0, 2);
    world.check(0, false);
    assert_eq!(world.state(0), State::Active, "one failure is not enough");
    world.check(0, false);
    world.cycle();
    assert_eq!(world.state(0), State::UnhealthyDraining);
    assert!(world.machine(0).expect("it is there").reason.contains("refused"));
    world.close(0, 2);
    world.cycle();
    assert_eq!(world.state(0), State::Unhealthy);
    world.check(0, true);
    assert_eq!(world.state(0), State::Active);
    world.balancer.drain("web", "b0", DrainRequest::default(), world.now).expect("a drain");
    world.cycle();
    world.check(0, false);
    world.check(0, false);
    world.check(0, true);
    assert_eq!(world.state(0), State::Drained, "passing again does nothing unasked");
}

#[test]
fn a_failing_backend_is_cut_at_once_where_the_service_says_so() {
    let mut world = World::new(true);
    let patch = ServicePatch { unhealthy_drain_s: Some(Limit::seconds(0)), ..ServicePatch::default() };
    world.balancer.set_service("web", patch, world.now).expect("it is set");
    world.open(0, 2);
    world.check(0, false);
    world.check(0, false);
    world.cycle();
    assert_eq!(world.state(0), State::Unhealthy);
    assert_eq!(world.cut["b0"], 2);
}

#[test]
fn with_nobody_healthy_the_unhealthy_serve_but_never_the_draining() {
    let mut world = World::new(true);
    world.balancer.drain("web", "b3", DrainRequest::default(), world.now).expect("a drain");
    for number in 0..3 {
        world.check(number, false);
        world.check(number, false);
    }
    world.cycle();
    let service = &world.balancer.services[0];
    assert!(service.failing_open);
    let inside: Vec<bool> = service.backends.iter().map(|entry| service.ring.is_in(entry.slot)).collect();
    assert_eq!(inside, [true, true, true, false]);
    let patch = ServicePatch { when_unhealthy: Some(WhenUnhealthy::Refuse), ..ServicePatch::default() };
    world.balancer.set_service("web", patch, world.now).expect("it is set");
    let service = &world.balancer.services[0];
    assert!(service.backends.iter().all(|entry| !service.ring.is_in(entry.slot)));
    world.check(1, true);
    let service = &world.balancer.services[0];
    let inside: Vec<bool> = service.backends.iter().map(|entry| service.ring.is_in(entry.slot)).collect();
    assert_eq!(inside, [false, true, false, false]);
}

#[test]
fn who_stood_in_keeps_what_it_took() {
    for interval in [Limit::NONE, Limit::seconds(30)] {
        let mut world = World::new(true);
        let patch = ServicePatch { unhealthy_drain_s: Some(interval), ..ServicePatch::default() };
        world.balancer.set_service("web", patch, world.now).expect("it is set");
        for number in 0..4 {
            world.check(number, false);
            world.check(number, false);
        }
        world.cycle();
        assert_eq!(world.state(0), State::Unhealthy);
        world.open(0, 2);
        world.advance(60);
        world.cycle();
        world.check(1, true);
        world.cycle();
        let machine = world.machine(0).expect("it is there");
        assert_eq!((machine.state, machine.live), (State::UnhealthyDraining, 2), "{interval:?}");
        let left = machine.unhealthy_until.map(|until| until.left(world.now));
        assert_eq!(left, interval.0, "from now on");
        world.close(0, 2);
        world.cycle();
        assert_eq!(world.state(0), State::Unhealthy);
        assert!(world.cut.is_empty());
    }
}

#[test]
fn cancelling_gives_a_backend_back_what_it_would_have_been() {
    let mut world = World::new(true);
    world.open(0, 2);
    world.resolve(0, false);
    world.check(0, false);
    world.check(0, false);
    world.cycle();
    world.balancer.drain("web", "b0", DrainRequest::default(), world.now).expect("a drain");
    world.cycle();
    world.balancer.activate("web", "b0", world.now).expect("it is there");
    world.cycle();
    world.resolve(0, true);
    world.cycle();
    assert_eq!(world.state(0), State::UnhealthyDraining);
    world.assert_sound();
}

#[test]
fn the_interval_of_one_that_fails_begins_also_while_its_next_hop_is_lost() {
    let mut world = World::new(true);
    let patch = ServicePatch { unhealthy_drain_s: Some(Limit::seconds(10)), ..ServicePatch::default() };
    world.balancer.set_service("web", patch, world.now).expect("it is set");
    world.open(0, 2);
    world.resolve(0, false);
    world.advance(60);
    world.cycle();
    assert_eq!(world.machine(0).expect("it is there").unhealthy_until, None, "it does not fail its checks");
    assert!(!world.check(0, false));
    assert!(world.check(0, false), "the row has to learn of it");
    world.advance(9);
    world.cycle();
    assert_eq!(world.state(0), State::UnhealthyDraining);
    world.advance(2);
    world.cycle();
    assert_eq!(world.state(0), State::Unhealthy);
    assert_eq!(world.cut["b0"], 2);
}

#[test]
fn cuts_begin_a_window_before_the_deadline() {
    let mut world = World::new(false);
    let patch = ServicePatch { cut_window_s: Some(Seconds::new(10)), ..ServicePatch::default() };
    world.balancer.set_service("web", patch, world.now).expect("it is set");
    world.open(0, 2);
    let request = DrainRequest { timeout_s: Some(Limit::seconds(30)), ..DrainRequest::default() };
    world.balancer.drain("web", "b0", request, world.now).expect("a drain");
    world.cycle();
    world.advance(19);
    world.balancer.tick(world.now);
    assert!(world.balancer.take_work().is_empty());
    world.advance(2);
    world.balancer.tick(world.now);
    let (slot, generation) = world.key(0).expect("it is there");
    assert_eq!(world.balancer.take_work(), [Work::Cut(slot, generation, CutPolicy::Reset)]);
    world.balancer.cut(slot, generation, backend::Event::Cut { cut: 1 }, world.now);
    assert_eq!(world.state(0), State::Draining, "the other one has time until the deadline");
    world.advance(9);
    world.cycle();
    let last = world.machine(0).expect("it is there").last_drain.clone().expect("it ended");
    assert_eq!((last.outcome, last.cut_flows), (Outcome::Deadline, 3));
}

/// While a machine sleeps its wall clock goes on and its monotonic clock does not: what is left of a drain stays what it was, and
/// so its deadline is another time of the day.
#[test]
fn after_a_sleep_the_deadline_is_shown_as_when_it_will_come() {
    let mut world = World::new(false);
    world.open(0, 1);
    let request = DrainRequest { timeout_s: Some(Limit::seconds(100)), ..DrainRequest::default() };
    world.balancer.drain("web", "b0", request, world.now).expect("a drain");
    world.cycle();
    let set = world.now.wall + jiff::SignedDuration::from_secs(100);
    let shown = |world: &World| {
        let status = world.machine(0).expect("it is there").drain.as_ref().expect("it drains").status(world.now);
        (status.deadline.expect("it has one"), status.remaining_s.expect("it has one"))
    };
    world.advance(10);
    world.now.wall += jiff::SignedDuration::from_millis(-40);
    assert_eq!(shown(&world), (set, 90.0), "a coarse clock and a slewed one make no other deadline");
    let asleep = jiff::SignedDuration::from_hours(1);
    world.now.wall += asleep;
    let (deadline, left) = shown(&world);
    assert_eq!((deadline, left), (world.now.wall + jiff::SignedDuration::from_secs(90), 90.0));
    world.advance(89);
    world.cycle();
    assert_eq!((world.state(0), shown(&world)), (State::Draining, (deadline, 1.0)));
    world.advance(1);
    world.cycle();
    assert_eq!(world.state(0), State::Drained);
}

/// What there is no room for is refused with the limit named, and nothing is half-made.
#[test]
fn what_does_not_fit_is_refused() {
    let mut world = World::new(false);
    let spec = |number: u16| -> ServiceSpec {
        let vip = format!("10.0.1.{number}:80/tcp");
        serde_json::from_value(serde_json::json!({ "name": format!("more-{number}"), "vip": vip })).expect("a service")
    };
    for number in 1..LIMITS.services {
        world.balancer.add_service(spec(number), LIMITS, world.now).expect("there is room");
    }
    let error = world.balancer.add_service(spec(99), LIMITS, world.now).expect_err("there is none");
    assert!(error.to_string().contains("4 is the limit"), "{error}");
    assert_eq!(world.balancer.services.len(), usize::from(LIMITS.services));

    let backend = |number: u32| -> BackendSpec {
        let address = format!("10.1.0.{number}");
        serde_json::from_value(serde_json::json!({ "name": format!("more-{number}"), "address": address }))
            .expect("a backend")
    };
    let mut number = 0;
    let error = loop {
        number += 1;
        assert!(number <= LIMITS.backends, "there is a limit");
        if let Err(error) = world.balancer.add_backend("more-1", backend(number), LIMITS, world.now) {
            break error;
        }
    };
    assert!(error.to_string().contains("64 is the limit"), "{error}");
    let backends: usize = world.balancer.services.iter().map(|service| service.backends.len()).sum();
    assert_eq!(backends, LIMITS.backends as usize);
}
