//! The load test of draining: ten thousand connections at once, three drains that overlap, and the
//! daemon killed in the middle of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    lab::Plan,
    scene::{Scene, Setting},
    traffic::{Connection, Conversation, given_after, last_end},
    verdict::END_SLACK,
    wait_until,
};

const CONNECTIONS: usize = 10_000;
const BACKENDS: usize = 6;
const VISITORS: usize = 300;
/// For steps that ten thousand connections take part in, on a small machine.
const LONG: Duration = Duration::from_mins(1);

#[test]
fn three_overlapping_drains_and_a_killed_daemon_break_nothing() -> Result<()> {
    let plan = Plan { backends: BACKENDS, client_addresses: 8, ..Plan::default() };
    let server_program = Some(env!("CARGO_BIN_EXE_ebb-test-server"));
    let mut scene = Scene::with_web(Setting { plan, server_program, ..Setting::default() }, &[])?;
    let quiet = Conversation {
        pause: Duration::from_secs(5),
        patience: LONG,
        ..Conversation::rarely_talking_with(scene.web())
    };
    let held = scene.client.open(quiet, CONNECTIONS);
    held.wait_open(CONNECTIONS, LONG)?;
    let at_start = held.tally();
    println!("{CONNECTIONS} connections: {:?}", at_start.by_server);

    let mut answered = Vec::new();
    let mut late = Vec::new();
    for (number, drained) in ["b0", "b1", "b2"].into_iter().enumerate() {
        if number == 2 {
            scene.ebb.kill()?;
            late.push(visitors(&scene)?);
            scene.ebb.run()?;
        }
        scene.ebb.ok(&["drain", &format!("web/{drained}"), "--timeout", "120s"])?;
        answered.push((drained, Instant::now()));
        let drain = scene.ebb.backend(&format!("web/{drained}"))?.drain;
        let initial = drain.context("it is draining")?.initial_flows;
        // Visitors who have just left may still count, for `fin_quiet`.
        let held = at_start.served_by(drained) as u64;
        ensure!((held..=held + VISITORS as u64).contains(&initial), "{drained}: {initial} of {held}");
        late.push(visitors(&scene)?);
    }
    held.finish();
    wait_until("all connections to end", LONG, || held.tally().open == 0)?;
    for (drained, since) in answered {
        let backend = scene.ebb.wait_state(&format!("web/{drained}"), "drained", END_SLACK)?;
        let outcome = backend.last_drain.map(|last| (last.outcome, last.cut_flows));
        assert_eq!(outcome, Some(("completed".to_owned(), 0)), "{drained}");
        assert!(last_end(&held.connections(), drained).is_some(), "{drained} was drained with connections open");
        for group in &late {
            let new = given_after(group, drained, since);
            assert!(new.is_empty(), "{drained} was draining and got {new:?}");
        }
    }
    let tally = held.tally();
    assert_eq!((tally.broken(), tally.clean), (0, CONNECTIONS), "{tally:?}");
    Ok(())
}

/// Makes some short connections and returns their accounts.
fn visitors(scene: &Scene) -> Result<Vec<Connection>> {
    let group = scene.client.open(Conversation { patience: LONG, ..Conversation::with(scene.web()) }, VISITORS);
    group.finish();
    wait_until("visitors to leave", LONG, || group.tally().clean == VISITORS)?;
    Ok(group.connections())
}
