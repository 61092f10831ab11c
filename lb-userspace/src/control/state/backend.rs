//! One backend's state machine: pure, every transition by [`step`].
//!
//! ```text
//!            resolved, checks pass                    drain                   no live flow, or the deadline
//!  initial ───────────────────────▶ active ───────────────────▶ draining ────────────────────────▶ drained
//!     │ checks fail                 ▲ │ checks fail,     ▲          │ activate (cancels)                │ activate
//!     ▼                             │ ▼ next hop lost    └──────────┴───────────────────────────────────┘
//!  unhealthy ◀───────────── unhealthy_draining          back to what its checks and its next hop say
//!            no live flow left, or the interval is over
//! ```
//!
//! Where the service holds the ends of its drains, `draining` goes on after the last flow until somebody answers or the wait is over.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Deadline, Now, drain::Drain, health::Health};
use crate::control::{
    duration::{self, Limit},
    hold::{Hold, HoldAnswer, HoldResult},
    model::{CutPolicy, LastDrain, Outcome, ServiceSpec, State},
};

/// One backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Its state.
    pub state: State,
    /// Why, in words.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// Its next hop is known.
    pub resolved: bool,
    /// What its checks say.
    pub health: Health,
    /// The drain that runs; there is one exactly while it is draining.
    pub drain: Option<Drain>,
    /// The latest that is over.
    pub last_drain: Option<LastDrain>,
    /// The latest drain's policy: who belongs to it and comes late is treated as those that were there at the deadline.
    #[serde(default)]
    pub last_policy: Option<CutPolicy>,
    /// It is deleted once it is drained.
    pub removing: bool,
    /// How it comes back into rotation, if an operator brings it.
    pub comes_back: ComesBack,
    /// `unhealthy_draining`: when its flows are cut; `None` for never.
    pub unhealthy_until: Option<Deadline>,
    /// Live flows at the latest look.
    #[serde(skip)]
    pub live: u64,
}

/// How a backend gets its slots again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComesBack {
    /// By itself: with a slow start, if the service has one, and its part of what others stand in for.
    #[default]
    ByItself,
    /// Its drain was cancelled: exactly as it was, at once; a slow start that was on is as far as it would be.
    Cancelled,
    /// It was drained: exactly its own slots, with a slow start.
    Activated,
}

/// What happens to a backend.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Its next hop was found (true) or lost.
    Resolved(bool),
    /// A check passed or failed.
    Check {
        /// Which.
        passed: bool,
        /// What was seen.
        detail: String,
    },
    /// The service has another health check, or none any more.
    CheckChanged,
    /// An operator drains it, or changes its drain. Guards were asked before.
    Drain {
        /// How long from now. Without it a new drain takes the service's, a running one keeps its own.
        timeout: Option<Limit>,
        /// How flows end then; likewise.
        on_timeout: Option<CutPolicy>,
    },
    /// An operator removes it: it is drained, then deleted; with `now` its drain is forced.
    Remove {
        /// Do not wait.
        now: bool,
    },
    /// An operator cancels its drain or brings it back.
    Activate,
    /// It served for want of a healthy one, and leaves the rotation.
    Relieved,
    /// Somebody answers a drain whose end is held.
    Hold(HoldAnswer),
    /// The packet path gives it no new flow any more, and packets in flight have left.
    Sealed,
    /// A complete look at the flow table.
    Look {
        /// When it began.
        begun_ns: u64,
        /// Live flows.
        live: u64,
        /// When the oldest was first seen.
        oldest_ns: Option<u64>,
        /// Whether "none" can be believed: no flow state was lost within an idle timeout.
        complete: bool,
    },
    /// Connections were cut as asked.
    Cut {
        /// How many.
        cut: u64,
    },
    /// Silent connections were ended as asked.
    CutIdle {
        /// How many.
        cut: u64,
    },
    /// Time passes.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// End the live flows that are due and report [`Event::Cut`].
    Cut(CutPolicy),
    /// End flows silent for so long and report [`Event::CutIdle`].
    CutIdle(CutPolicy, Duration),
    /// Delete it.
    Delete,
    /// Tell whoever listens.
    Notify(Notice),
}

/// What is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// It went from this state to its present one.
    State(State),
    /// A drain began and its flows are counted.
    DrainStarted,
    /// The drain's deadline or policy is another, or its hold was answered before its flows were over.
    DrainChanged,
    /// The drain's flows are over and its end is held.
    DrainHeld,
    /// It is held for longer.
    HoldExtended,
    /// A drain is over.
    DrainEnded(LastDrain),
}

/// What a step needs to know of the service.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Its settings.
    pub service: &'a ServiceSpec,
    /// No backend is healthy and this one serves all the same: its flows are not cut for failing its checks.
    pub failing_open: bool,
    /// It is in rotation.
    pub inside: bool,
}

impl Backend {
    /// A backend just registered.
    pub fn new(now: Now) -> Self {
        Self {
            state: State::Initial,
            reason: WAITING_FOR_NEXT_HOP.to_owned(),
            since: now.wall,
            resolved: false,
            health: Health::default(),
            drain: None,
            last_drain: None,
            last_policy: None,
            removing: false,
            comes_back: ComesBack::ByItself,
            unhealthy_until: None,
            live: 0,
        }
    }

    /// When [`Event::Tick`] is due next, in monotonic nanoseconds.
    pub fn next_tick_ns(&self, service: &ServiceSpec) -> Option<u64> {
        let drain = self.drain.as_ref().and_then(|drain| drain.deadline);
        let window_ns = u64::try_from(service.cut_window_s.0.as_nanos()).unwrap_or(u64::MAX);
        let drain = drain.map(|deadline| deadline.mono_ns.saturating_sub(window_ns));
        let unhealthy = self.unhealthy_until.filter(|_| self.state == State::UnhealthyDraining);
        let hold = self.drain.as_ref().and_then(|drain| drain.hold).map(|hold| hold.until);
        drain.into_iter().chain(unhealthy.or(hold).map(|until| until.mono_ns)).min()
    }
}

const WAITING_FOR_NEXT_HOP: &str = "its next hop is not resolved yet";
const WAITING_FOR_CHECKS: &str = "not checked often enough yet";
const NEXT_HOP_LOST: &str = "its next hop does not answer";

/// Takes a backend through one event.
#[must_use]
pub fn step(backend: Backend, event: Event, context: Context<'_>, now: Now) -> (Backend, Vec<Action>) {
    let mut step = Step { backend, context, now, actions: Vec::new() };
    match event {
        Event::Resolved(resolved) => {
            step.backend.resolved = resolved;
            step.reconsider();
        }
        Event::Check { passed, detail } => {
            if let Some(spec) = &context.service.health {
                step.backend.health.check(passed, &detail, spec);
                step.reconsider();
            }
        }
        Event::CheckChanged => {
            step.backend.health.reset();
            step.reconsider();
        }
        Event::Drain { timeout, on_timeout } => step.drain(timeout, on_timeout),
        Event::Remove { now: at_once } => step.remove(at_once),
        Event::Activate => step.activate(),
        Event::Relieved => step.relieved(),
        Event::Hold(answer) => step.answer(answer),
        Event::Sealed => {
            if let Some(drain) = &mut step.backend.drain {
                drain.sealed_ns.get_or_insert(now.mono_ns);
            }
        }
        Event::Look { begun_ns, live, oldest_ns, complete } => step.look(begun_ns, live, oldest_ns, complete),
        Event::Cut { cut } => step.cut(cut),
        Event::CutIdle { cut } => {
            if let Some(drain) = &mut step.backend.drain {
                drain.idle_flows += cut;
            }
        }
        Event::Tick => step.tick(),
    }
    (step.backend, step.actions)
}

struct Step<'a> {
    backend: Backend,
    context: Context<'a>,
    now: Now,
    actions: Vec<Action>,
}

impl Step<'_> {
    fn notify(&mut self, notice: Notice) {
        self.actions.push(Action::Notify(notice));
    }

    fn go(&mut self, state: State, reason: impl Into<String>) {
        let from = std::mem::replace(&mut self.backend.state, state);
        self.backend.reason = reason.into();
        if from != state {
            self.backend.since = self.now.wall;
            if state != State::UnhealthyDraining {
                self.backend.unhealthy_until = None;
            }
            self.notify(Notice::State(from));
        }
    }

    /// Where its next hop and its checks have it, apart from drains.
    fn verdict(&self) -> (State, String) {
        let checked = self.context.service.health.is_some();
        let health = &self.backend.health;
        if !self.backend.resolved {
            (State::Initial, WAITING_FOR_NEXT_HOP.to_owned())
        } else if checked && health.is_bad() {
            (State::Unhealthy, format!("its checks fail: {}", health.detail()))
        } else if checked && !health.is_good() {
            let seen = health.failing().map(|detail| format!("; the latest failed: {detail}"));
            (State::Initial, format!("{WAITING_FOR_CHECKS}{}", seen.unwrap_or_default()))
        } else if checked {
            (State::Active, "its checks pass".to_owned())
        } else {
            (State::Active, "its next hop is resolved".to_owned())
        }
    }

    fn reconsider(&mut self) {
        let (verdict, reason) = self.verdict();
        match (self.backend.state, verdict) {
            (State::Draining | State::Drained, _) => {}
            (_, State::Active) => {
                if self.backend.state != State::Active {
                    self.go(State::Active, reason);
                }
            }
            // A drain that was cancelled may have left it flows.
            (State::Initial, State::Unhealthy) if self.backend.live > 0 => self.fail(reason),
            (State::Initial, _) => self.go(verdict, reason),
            // A check that is new does not take a backend out before it has failed.
            (State::Active, State::Initial) if self.backend.resolved => {}
            (State::Active, State::Initial) => self.go(State::UnhealthyDraining, NEXT_HOP_LOST),
            (State::Active, _) => self.fail(reason),
            (State::UnhealthyDraining, _) => {
                self.backend.reason = self.why_unhealthy(reason);
                self.keep_for_the_interval();
            }
            (State::Unhealthy, _) => self.backend.reason = self.why_unhealthy(reason),
        }
    }

    fn why_unhealthy(&self, reason: String) -> String {
        if self.backend.resolved { reason } else { NEXT_HOP_LOST.to_owned() }
    }

    fn drain(&mut self, timeout: Option<Limit>, on_timeout: Option<CutPolicy>) {
        let service = self.context.service;
        let forced = timeout == Some(Limit(Some(Duration::ZERO)));
        match &mut self.backend.drain {
            None if self.backend.state == State::Drained => {}
            None => {
                let timeout = timeout.unwrap_or(service.drain_timeout_s);
                let on_timeout = on_timeout.unwrap_or(service.on_drain_timeout);
                let mut drain = Drain::new(timeout.0, on_timeout, self.context.inside, self.now);
                drain.remaining_flows = self.backend.live;
                // A service whose delay is 0 ends its drains at their deadline; only the operator's 0 is an order.
                drain.forced = forced;
                self.backend.drain = Some(drain);
                self.backend.comes_back = ComesBack::ByItself;
                let why = if self.backend.removing { "being removed" } else { "drained by an operator" };
                self.go(State::Draining, why);
            }
            Some(drain) => {
                let before = (drain.deadline, drain.on_timeout);
                if let Some(timeout) = timeout {
                    drain.deadline = timeout.0.map(|timeout| self.now.after(timeout));
                    drain.forced = forced;
                }
                drain.on_timeout = on_timeout.unwrap_or(drain.on_timeout);
                if (drain.deadline, drain.on_timeout) != before && drain.initial_flows.is_some() {
                    self.notify(Notice::DrainChanged);
                }
            }
        }
    }

    fn remove(&mut self, at_once: bool) {
        self.backend.removing = true;
        if self.backend.state == State::Drained {
            self.actions.push(Action::Delete);
            return;
        }
        if self.backend.state == State::Draining {
            "being removed".clone_into(&mut self.backend.reason);
        }
        self.drain(at_once.then_some(Limit(Some(Duration::ZERO))), None);
    }

    fn activate(&mut self) {
        self.backend.removing = false;
        let (verdict, reason) = self.verdict();
        match &self.backend.drain {
            Some(drain) => {
                let was_in = drain.was_in;
                self.end_drain(Outcome::Cancelled);
                self.backend.comes_back = ComesBack::Cancelled;
                match verdict {
                    // Its flows are kept for it, as they would have been without the drain.
                    State::Unhealthy => self.fail(reason),
                    State::Initial if !self.backend.resolved && (was_in || self.backend.live > 0) => {
                        self.go(State::UnhealthyDraining, NEXT_HOP_LOST);
                        self.keep_for_the_interval();
                    }
                    State::Initial if !was_in => self.go(State::Initial, reason),
                    _ => self.go(State::Active, "its drain was cancelled"),
                }
            }
            None if self.backend.state == State::Drained => {
                self.backend.comes_back = ComesBack::Activated;
                let reason = if verdict == State::Active { "activated by an operator".to_owned() } else { reason };
                self.go(verdict, reason);
            }
            None => {}
        }
    }

    /// It fails its checks.
    fn fail(&mut self, reason: String) {
        self.go(State::UnhealthyDraining, reason);
        self.keep_for_the_interval();
    }

    /// From when its checks fail its flows are kept for the set interval, also if it was out before for another reason.
    fn keep_for_the_interval(&mut self) {
        let service = self.context.service;
        if service.health.is_none() || !self.backend.health.is_bad() {
            self.backend.unhealthy_until = None;
        } else if self.backend.unhealthy_until.is_none() {
            self.backend.unhealthy_until = service.unhealthy_drain_s.0.map(|interval| self.now.after(interval));
        }
    }

    /// What it took while it had to serve is kept as the flows of one that has only begun to fail.
    fn relieved(&mut self) {
        if matches!(self.backend.state, State::Unhealthy | State::UnhealthyDraining) {
            let reason = self.backend.reason.clone();
            self.go(State::UnhealthyDraining, reason);
            self.backend.unhealthy_until = None;
            self.keep_for_the_interval();
        }
    }

    fn look(&mut self, begun_ns: u64, live: u64, oldest_ns: Option<u64>, complete: bool) {
        self.backend.live = live;
        if self.backend.state == State::UnhealthyDraining && live == 0 && complete {
            let reason = self.backend.reason.clone();
            self.go(State::Unhealthy, reason);
        }
        let Some(drain) = &mut self.backend.drain else {
            return;
        };
        if drain.sealed_ns.is_none_or(|sealed| begun_ns < sealed) {
            return;
        }
        if drain.look(begun_ns, live, oldest_ns) {
            self.notify(Notice::DrainStarted);
        }
        let (forced, cut) = self.backend.drain.as_ref().map_or((false, 0), |drain| (drain.forced, drain.cut_flows));
        if live == 0 && complete && !forced {
            // Of flows cut in the window before the deadline the last may be found gone before it.
            self.flows_over(if cut > 0 { Outcome::Deadline } else { Outcome::Completed });
        }
    }

    fn tick(&mut self) {
        let service = self.context.service;
        if self.backend.state == State::UnhealthyDraining
            && !self.context.failing_open
            && self.backend.unhealthy_until.is_some_and(|until| until.reached(self.now))
        {
            self.actions.push(Action::Cut(service.on_drain_timeout));
        }
        let held_until = self.backend.drain.as_ref().and_then(|drain| drain.hold).map(|hold| hold.until);
        if held_until.is_some_and(|until| until.reached(self.now)) {
            self.release(service.on_hold_timeout, true);
        }
        let Some(drain) = &self.backend.drain else {
            return;
        };
        // Before the first count nothing is cut: the count is the report's first number.
        if drain.initial_flows.is_none() {
            return;
        }
        if drain.is_due(self.now) && self.backend.live == 0 {
            // The latest look found nothing to cut, and nothing can have come since.
            self.cut(0);
            return;
        }
        let window = service.cut_window_s.0;
        let in_window = drain.deadline.is_some_and(|deadline| deadline.left(self.now) <= window);
        if drain.is_due(self.now) || (in_window && !window.is_zero()) {
            self.actions.push(Action::Cut(drain.on_timeout));
        } else if let Some(idle) = service.drain_idle_s.0 {
            self.actions.push(Action::CutIdle(drain.on_timeout, idle));
        }
    }

    fn cut(&mut self, cut: u64) {
        if self.backend.state == State::UnhealthyDraining {
            let reason = self.backend.reason.clone();
            self.backend.live = 0;
            self.go(State::Unhealthy, reason);
            return;
        }
        let Some(drain) = &mut self.backend.drain else {
            return;
        };
        drain.cut_flows += cut;
        if !drain.is_due(self.now) {
            return;
        }
        // Datagram flows are steered elsewhere rather than cut, but it is the deadline that ended them.
        let some_left = drain.cut_flows > 0 || self.backend.live > 0;
        let outcome = match (drain.forced, some_left) {
            (true, _) => Outcome::Forced,
            (false, true) => Outcome::Deadline,
            (false, false) => Outcome::Completed,
        };
        self.backend.live = 0;
        drain.remaining_flows = 0;
        self.flows_over(outcome);
    }

    /// No flow is left, by itself or because it was cut. That is the drain's end, unless the service holds it.
    fn flows_over(&mut self, outcome: Outcome) {
        let Some(drain) = &mut self.backend.drain else {
            return;
        };
        if let Some(hold) = &mut drain.hold {
            // What spoke again since and was cut at the deadline was cut all the same.
            if outcome == Outcome::Deadline {
                hold.outcome = outcome;
            }
            if outcome != Outcome::Forced {
                return;
            }
        }
        let time = self.context.service.drain_hold_s.0.filter(|_| outcome != Outcome::Forced && drain.held.is_none());
        let Some(time) = time else {
            self.finish(outcome);
            return;
        };
        drain.hold = Some(Hold::new(time, outcome, self.now));
        let why = match outcome {
            Outcome::Deadline => "the deadline came",
            _ => "no live flow is left",
        };
        self.backend.reason = format!("{why}; held for 'ebb hook continue', for {} at most", duration::format(time));
        self.notify(Notice::DrainHeld);
    }

    fn answer(&mut self, answer: HoldAnswer) {
        let hold = self.backend.drain.as_mut().and_then(|drain| drain.hold.as_mut());
        match (answer, hold) {
            (_, None) => {}
            (HoldAnswer::Continue, _) => self.release(HoldResult::Continue, false),
            (HoldAnswer::Abandon, _) => self.release(HoldResult::Abandon, false),
            (HoldAnswer::Heartbeat, Some(hold)) => {
                if let Some(time) = self.context.service.drain_hold_s.0 {
                    hold.extend(time, self.now);
                }
                self.notify(Notice::HoldExtended);
            }
        }
    }

    /// The end is not held any more.
    fn release(&mut self, result: HoldResult, timed_out: bool) {
        let Some(drain) = &mut self.backend.drain else {
            return;
        };
        let Some(hold) = drain.hold.take() else {
            return;
        };
        drain.held = Some(hold.over(result, timed_out));
        // After a restart, or when a connection thought over has spoken again, the next look decides.
        if drain.sealed_ns.is_some() && self.backend.live == 0 {
            self.finish(hold.outcome);
        } else {
            "drained by an operator".clone_into(&mut self.backend.reason);
            self.notify(Notice::DrainChanged);
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        let held = self.backend.drain.as_ref().and_then(|drain| drain.held.clone());
        self.end_drain(outcome);
        self.backend.live = 0;
        let why = match outcome {
            Outcome::Forced => "ended by an operator",
            Outcome::Deadline => "the deadline came",
            Outcome::Completed | Outcome::Cancelled => "no live flow was left",
        };
        let held = match held.map(|held| (held.result, held.timed_out)) {
            None => "",
            Some((HoldResult::Continue, false)) => "; its hook said continue",
            Some((HoldResult::Continue, true)) => "; its hook did not answer, which means continue here",
            Some((HoldResult::Abandon, false)) => "; its hook said abandon",
            Some((HoldResult::Abandon, true)) => "; its hook did not answer, which means abandon here",
        };
        self.go(State::Drained, format!("{why}{held}"));
        if self.backend.removing {
            self.actions.push(Action::Delete);
        }
    }

    fn end_drain(&mut self, outcome: Outcome) {
        if let Some(drain) = self.backend.drain.take() {
            self.backend.last_policy = Some(drain.on_timeout);
            let last = drain.ended(outcome, self.now);
            self.backend.last_drain = Some(last.clone());
            self.notify(Notice::DrainEnded(last));
        }
    }
}
