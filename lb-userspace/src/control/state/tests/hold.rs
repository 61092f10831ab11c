//! Drains whose end is held.

use super::*;
use crate::control::{
    ErrorKind,
    hold::{Held, HoldResult},
    model::LastDrain,
};

/// A world whose drains are held for 60 s, with a drain of b0 that has 100 s and two flows.
fn draining() -> World {
    let mut world = World::new(false);
    world.hold_drains(Some(60));
    world.open(0, 2);
    let request = DrainRequest { timeout_s: Some(Limit::seconds(100)), ..DrainRequest::default() };
    world.balancer.drain("web", "b0", request, world.now).expect("a drain");
    world.cycle();
    world
}

fn held() -> World {
    let mut world = draining();
    world.close(0, 2);
    world.cycle();
    world
}

impl World {
    fn answer(&mut self, answer: HoldAnswer) {
        self.balancer.answer_hold("web", "b0", answer, self.now).expect("it is held");
        self.hear();
    }

    fn is_held(&self) -> bool {
        self.machine(0).and_then(|machine| machine.drain.as_ref()).is_some_and(|drain| drain.hold.is_some())
    }

    fn last(&self) -> LastDrain {
        self.machine(0).expect("it is there").last_drain.clone().expect("it ended")
    }

    fn kinds(&self) -> Vec<EventKind> {
        self.events.iter().filter(|event| event.backend.as_deref() == Some("b0")).map(|event| event.kind).collect()
    }
}

#[test]
fn after_the_last_flow_it_waits_for_continue() {
    let mut world = held();
    assert!(world.is_held());
    assert_eq!(world.state(0), State::Draining);
    assert!(world.machine(0).expect("it is there").reason.contains("ebb hook continue"));
    let event = world.events.last().expect("it was told").clone();
    assert_eq!(
        (event.kind, event.drain.expect("which").hold.expect("until").remaining_s),
        (EventKind::DrainHeld, 60.0)
    );
    world.advance(59);
    world.cycle();
    assert!(world.is_held(), "nobody has answered");
    let since = world.now.wall - jiff::SignedDuration::from_secs(59);
    world.answer(HoldAnswer::Continue);
    assert_eq!(world.state(0), State::Drained);
    let last = world.last();
    assert_eq!((last.outcome, last.cut_flows), (Outcome::Completed, 0));
    assert_eq!(last.held, Some(Held { since, result: HoldResult::Continue, timed_out: false }));
    assert_eq!(world.kinds()[4..], [EventKind::DrainHeld, EventKind::DrainEnded, EventKind::BackendState]);
}

#[test]
fn nobody_waits_for_an_answer_before_the_last_flow() {
    let mut world = draining();
    let early = world.balancer.answer_hold("web", "b0", HoldAnswer::Continue, world.now);
    assert_eq!(early.expect_err("its flows go on").kind(), ErrorKind::Conflict);
    let never = world.balancer.answer_hold("web", "b1", HoldAnswer::Abandon, world.now);
    assert!(never.expect_err("it is active").to_string().contains("not draining"));
    assert_eq!(world.state(0), State::Draining);
}

#[test]
fn abandoning_ends_it_too_and_is_told() {
    let mut world = held();
    world.answer(HoldAnswer::Abandon);
    assert_eq!(world.state(0), State::Drained);
    assert_eq!(world.last().held.map(|held| held.result), Some(HoldResult::Abandon));
    assert!(world.machine(0).expect("it is there").reason.ends_with("its hook said abandon"));
}

#[test]
fn without_an_answer_the_service_s_default_stands() {
    let mut world = held();
    let patch = ServicePatch { on_hold_timeout: Some(HoldResult::Abandon), ..ServicePatch::default() };
    world.balancer.set_service("web", patch, world.now).expect("it is set");
    world.advance(60);
    world.cycle();
    assert_eq!(world.state(0), State::Drained);
    let held = world.last().held.expect("it was held");
    assert_eq!((held.result, held.timed_out), (HoldResult::Abandon, true));
}

#[test]
fn heartbeats_put_the_time_out_off_but_not_for_ever() {
    let mut world = held();
    for _ in 0..10 {
        world.advance(50);
        world.cycle();
        world.answer(HoldAnswer::Heartbeat);
    }
    assert!(world.is_held(), "500 s later");
    for _ in 0..200 {
        world.advance(50);
        world.cycle();
        if !world.is_held() {
            break;
        }
        world.answer(HoldAnswer::Heartbeat);
    }
    assert_eq!(world.state(0), State::Drained, "100 times 60 s is enough");
    assert!(world.last().held.expect("it was held").timed_out);
}

#[test]
fn the_deadline_cuts_as_ever_and_then_it_is_held() {
    let mut world = draining();
    world.advance(100);
    world.cycle();
    assert_eq!(world.cut["b0"], 2, "cut at the deadline");
    assert!(world.is_held());
    world.advance(10);
    world.cycle();
    world.answer(HoldAnswer::Continue);
    let last = world.last();
    assert_eq!((last.outcome, last.cut_flows), (Outcome::Deadline, 2));
}

#[test]
fn an_operator_is_not_held_up() {
    let mut world = held();
    let now = DrainRequest { timeout_s: Some(Limit::seconds(0)), ..DrainRequest::default() };
    world.balancer.drain("web", "b0", now, world.now).expect("it is ended");
    world.cycle();
    assert_eq!((world.state(0), world.last().outcome), (State::Drained, Outcome::Forced));

    let mut world = held();
    world.balancer.activate("web", "b0", world.now).expect("it comes back");
    world.cycle();
    assert_eq!((world.state(0), world.last().outcome), (State::Active, Outcome::Cancelled));

    let mut world = held();
    world.balancer.remove_backend("web", "b0", true, world.now).expect("it goes");
    world.cycle();
    assert!(world.machine(0).is_none(), "it is deleted");
}

#[test]
fn a_restart_changes_nothing() {
    let mut world = held();
    world.advance(30);
    restart(&mut world);
    world.cycle();
    assert!(world.is_held());
    restart(&mut world);
    world.answer(HoldAnswer::Continue);
    world.cycle();
    assert_eq!((world.state(0), world.last().outcome), (State::Drained, Outcome::Completed));
    assert!(!world.last().held.expect("it was held").timed_out);
}

#[test]
fn a_stepped_wall_clock_ends_nothing() {
    let mut world = held();
    world.now.wall += jiff::SignedDuration::from_hours(5);
    world.cycle();
    assert!(world.is_held(), "monotonic time decides");
    world.now.wall -= jiff::SignedDuration::from_hours(10);
    world.advance(60);
    world.cycle();
    assert_eq!(world.state(0), State::Drained);
}

#[test]
fn a_connection_thought_over_that_speaks_again_is_waited_for() {
    let mut world = held();
    let key = world.key(0).expect("it is there");
    world.flows.insert(key, 1);
    world.cycle();
    world.answer(HoldAnswer::Continue);
    world.cycle();
    assert_eq!(world.state(0), State::Draining, "it may finish");
    world.close(0, 1);
    world.cycle();
    assert_eq!(world.state(0), State::Drained);
    assert_eq!(world.last().held.map(|held| held.result), Some(HoldResult::Continue));
}
