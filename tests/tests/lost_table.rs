//! A drain that outlives its flow table: what was open before it began stays where it is, because every
//! slot that moved remembers its owner from before.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::Plan,
    scene::{Scene, Setting},
    traffic::{Conversation, Group},
    wait_until,
};

const HELD: usize = 4_000;
/// Short, since a drain must not end early until one of these after the loss.
const IDLE_TIMEOUT: Duration = Duration::from_secs(40);
const LONG: Duration = Duration::from_mins(1);

/// Four thousand connections over four backends, one of them draining; how many are on it.
fn in_mid_drain() -> Result<(Scene, Group, usize)> {
    let plan = Plan { backends: 4, client_addresses: 4, queues: 2, ..Plan::default() };
    let scene = Scene::set(Setting { plan, ..Setting::default() })?;
    scene.add_web(&["--idle-timeout", &format!("{}s", IDLE_TIMEOUT.as_secs())])?;
    let talk = Conversation { pause: Duration::from_secs(1), patience: LONG, ..Conversation::with(scene.web()) };
    let held = scene.client.open(talk, HELD);
    held.wait_open(HELD, LONG)?;
    let at_b1 = held.tally().open_at("b1");
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "5m"])?;
    Ok((scene, held, at_b1))
}

/// After the loss: nothing breaks, the counts come back, and the drain takes one idle timeout to trust them.
fn nothing_is_lost(scene: &Scene, held: &Group, at_b1: usize, lost: Instant) -> Result<()> {
    wait_until("the drain to count its flows again", IDLE_TIMEOUT / 2, || {
        let drain = scene.ebb.backend("web/b1").ok().and_then(|backend| backend.drain);
        drain.is_some_and(|drain| drain.remaining_flows == at_b1 as u64)
    })
    .with_context(|| format!("of {at_b1}: {:?}", scene.ebb.backend("web/b1")))?;
    // Two rounds of talk on every connection.
    thread::sleep(Duration::from_secs(2));
    assert_eq!((held.tally().broken(), held.tally().open), (0, HELD), "{:?}", held.tally());

    let tally = held.finish_and_wait(LONG)?;
    assert_eq!((tally.broken(), tally.clean), (0, HELD), "{tally:?}");
    ensure!(
        lost.elapsed() + Duration::from_secs(2) < IDLE_TIMEOUT,
        "this machine is too slow to tell: {:?}",
        lost.elapsed()
    );
    let mut drained_at = None;
    while lost.elapsed() < IDLE_TIMEOUT * 2 && drained_at.is_none() {
        let state = scene.ebb.backend("web/b1")?.state;
        drained_at = (state == "drained").then(|| lost.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    let drained_at = drained_at.context("the drain never ended")?;
    assert!(drained_at >= IDLE_TIMEOUT, "it ended {drained_at:?} after the loss, sooner than an idle timeout");
    let record = scene.ebb.backend("web/b1")?.last_drain.context("a record")?;
    assert_eq!((record.outcome.as_str(), record.cut_flows), ("completed", 0));
    Ok(())
}

#[test]
fn the_table_is_wiped() -> Result<()> {
    let (scene, held, at_b1) = in_mid_drain()?;
    scene.lab.wipe_flow_table()?;
    nothing_is_lost(&scene, &held, at_b1, Instant::now())
}

#[test]
fn the_process_and_its_pins_are_gone() -> Result<()> {
    let (mut scene, held, at_b1) = in_mid_drain()?;
    scene.ebb.kill()?;
    fs::remove_dir_all(scene.lab.pin_path())?;
    let lost = Instant::now();
    scene.ebb.run()?;
    let drain = scene.ebb.backend("web/b1")?.drain.context("it goes on draining")?;
    assert_eq!(drain.initial_flows, at_b1 as u64);
    nothing_is_lost(&scene, &held, at_b1, lost)
}
