//! Draining a backend under traffic: how it begins, goes on, and ends.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ebb_tests::{
    lab::LastDrain,
    patient,
    scene::{SOON, Scene, Setting},
    traffic::{Connection, End, Fault, Group, last_end},
    verdict::END_SLACK,
    wait_until,
};

/// How far a deadline may be missed: the daemon's step, and the looking.
const PUNCTUAL: Duration = Duration::from_millis(1500);

fn last_drain(scene: &Scene, which: &str) -> Result<LastDrain> {
    scene.ebb.backend(which)?.last_drain.with_context(|| format!("{which} has no last drain"))
}

/// The ends of the connections that `server` had.
fn ends(connections: &[Connection], server: &str) -> Vec<Option<End>> {
    connections.iter().filter(|c| c.is_served_by(server)).map(|c| c.end.map(|(end, _)| end)).collect()
}

/// Waits until the clients have noticed that `server`'s connections are lost.
fn wait_broken(group: &Group, server: &str, count: usize) -> Result<()> {
    wait_until("the clients to notice", SOON, || {
        ends(&group.connections(), server).iter().filter(|end| matches!(end, Some(End::Broken(_)))).count() == count
    })
}

#[test]
fn it_ends_early_when_the_last_connection_has_ended() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(60)?;
    let at_b1 = held.tally().open_at("b1");
    assert!(at_b1 > 0, "b1 has a share of 60 connections: {:?}", held.tally());

    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    let backend = scene.ebb.backend("web/b1")?;
    assert_eq!(backend.state, "draining");
    let drain = backend.drain.context("a draining backend shows its drain")?;
    assert_eq!((drain.initial_flows, drain.remaining_flows), (at_b1 as u64, at_b1 as u64));
    let remaining = drain.remaining_s.context("it has a deadline")?;
    assert!((55.0..=60.0).contains(&remaining), "{remaining} s are left of 60");

    let tally = scene.visit(200)?;
    assert_eq!(tally.served_by("b1"), 0, "new connections go elsewhere: {tally:?}");
    assert_eq!(scene.servers[1].accepted(), at_b1, "b1's own account");

    let tally = held.finish_and_wait(SOON)?;
    let ended = last_end(&held.connections(), "b1").context("all of b1's connections have ended")?;
    scene.ebb.wait_state("web/b1", "drained", SOON)?;
    let after = ended.elapsed();
    assert!(after <= patient(END_SLACK), "it ended {after:?} after its last connection");
    assert_eq!((tally.broken(), tally.clean), (0, 60), "{tally:?}");

    let last = last_drain(&scene, "web/b1")?;
    assert_eq!((last.outcome.as_str(), last.initial_flows, last.cut_flows), ("completed", at_b1 as u64, 0));
    Ok(())
}

#[test]
fn it_says_how_fast_it_goes_and_how_long_it_will_take() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(90)?;
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    let (mut last, mut told) = (None, 0);
    wait_until("a rate and an estimate below the deadline", SOON, || {
        // One after the other, of whichever backend they are; some stay.
        told = (told + 1).min(70);
        held.finish_some(told);
        last = scene.ebb.backend("web/b1").ok().and_then(|backend| backend.drain);
        last.as_ref().is_some_and(|drain| {
            let estimate = drain.estimate_s.zip(drain.remaining_s);
            drain.rate_per_s.is_some_and(|rate| rate > 0.0) && estimate.is_some_and(|(estimate, left)| estimate < left)
        })
    })
    .with_context(|| format!("last seen: {last:?}"))?;
    let oldest = last.and_then(|drain| drain.oldest_flow_s).context("an oldest flow")?;
    assert!(oldest > 0.5, "the oldest is {oldest} s old");
    held.finish_and_wait(SOON).map(drop)
}

#[test]
fn at_the_deadline_both_ends_are_reset() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(60)?;
    let at_b1 = held.tally().open_at("b1");

    let begun = Instant::now();
    let output = scene.ebb.cli(&["drain", "web/b1", "--timeout", "3s", "--wait"])?;
    let took = begun.elapsed();
    assert_eq!(output.code, 3, "a drain that cut flows says so: {output:?}");
    let punctual = Duration::from_secs(3)..Duration::from_secs(3) + patient(PUNCTUAL);
    assert!(punctual.contains(&took), "it took {took:?} of 3 s");

    wait_broken(&held, "b1", at_b1)?;
    let connections = held.connections();
    assert_eq!(ends(&connections, "b1"), vec![Some(End::Broken(Fault::Reset)); at_b1], "the clients' sockets");
    wait_until("b1 to let go", SOON, || scene.servers[1].open() == 0)?;
    let at_server: Vec<_> = scene.servers[1].connections().iter().map(|c| c.end.map(|(end, _)| end)).collect();
    assert_eq!(at_server, vec![Some(End::Broken(Fault::Reset)); at_b1], "the servers' sockets");

    let last = last_drain(&scene, "web/b1")?;
    assert_eq!((last.outcome.as_str(), last.cut_flows), ("deadline", at_b1 as u64));
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!(tally.clean, 60 - at_b1, "the others were left alone: {tally:?}");
    Ok(())
}

#[test]
fn a_silent_deadline_resets_nobody() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let conversation = ebb_tests::traffic::Conversation {
        patience: Duration::from_secs(2),
        ..ebb_tests::traffic::Conversation::with(scene.web())
    };
    let held = scene.client.open(conversation, 30);
    held.wait_open(30, SOON)?;
    let at_b1 = held.tally().open_at("b1");
    let output = scene.ebb.cli(&["drain", "web/b1", "--timeout", "1s", "--on-timeout", "silent", "--wait"])?;
    assert_eq!(output.code, 3, "{output:?}");
    wait_broken(&held, "b1", at_b1)?;
    assert_eq!(ends(&held.connections(), "b1"), vec![Some(End::Broken(Fault::Silence)); at_b1]);
    assert_eq!(scene.servers[1].open(), at_b1, "the server was told nothing");
    Ok(())
}

#[test]
fn activating_cancels_it() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(60)?;
    let at_b1 = held.tally().open_at("b1");
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    let mut waiting = scene.ebb.background(&["wait", "web/b1"])?;
    assert_eq!(scene.visit(50)?.served_by("b1"), 0);
    assert!(waiting.is_running(), "nothing has ended yet");

    scene.ebb.ok(&["activate", "web/b1"])?;
    let output = waiting.wait(SOON)?;
    assert_eq!(output.code, 4, "whoever waits learns that it was cancelled: {output:?}");
    let backend = scene.ebb.backend("web/b1")?;
    assert_eq!(backend.state, "active");
    assert!(backend.drain.is_none(), "{backend:?}");
    assert_eq!(last_drain(&scene, "web/b1")?.outcome, "cancelled");
    assert!(scene.visit(100)?.served_by("b1") > 0, "new connections come again");
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.clean, tally.served_by("b1")), (0, 60, at_b1), "{tally:?}");
    Ok(())
}

#[test]
fn a_drained_backend_comes_back_when_activated() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let output = scene.ebb.cli(&["drain", "web/b1", "--wait"])?;
    assert_eq!(output.code, 0, "a drain without flows is done at once: {output:?}");
    assert_eq!(scene.ebb.backend("web/b1")?.state, "drained");
    assert_eq!(scene.visit(50)?.served_by("b1"), 0);
    scene.ebb.ok(&["activate", "web/b1"])?;
    scene.ebb.wait_state("web/b1", "active", SOON)?;
    assert!(scene.visit(100)?.served_by("b1") > 0);
    Ok(())
}

#[test]
fn two_at_once_do_not_disturb_each_other() -> Result<()> {
    let scene = Scene::with_web(Setting::with_backends(4), &[])?;
    let held = scene.hold(80)?;
    let (at_b0, at_b1) = (held.tally().open_at("b0"), held.tally().open_at("b1"));
    scene.ebb.ok(&["drain", "web/b0", "--timeout", "60s"])?;
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "3s"])?;
    let tally = scene.visit(100)?;
    assert_eq!((tally.served_by("b0"), tally.served_by("b1")), (0, 0), "{tally:?}");

    // b1 runs into its deadline while b0 goes on.
    scene.ebb.wait_state("web/b1", "drained", SOON)?;
    wait_broken(&held, "b1", at_b1)?;
    assert_eq!(last_drain(&scene, "web/b1")?.outcome, "deadline");
    assert_eq!(scene.ebb.backend("web/b0")?.state, "draining");
    assert_eq!(held.tally().open_at("b0"), at_b0, "b0's connections are alive");

    let tally = held.finish_and_wait(SOON)?;
    scene.ebb.wait_state("web/b0", "drained", SOON)?;
    let last = last_drain(&scene, "web/b0")?;
    assert_eq!((last.outcome.as_str(), last.cut_flows), ("completed", 0));
    assert_eq!((tally.broken(), tally.clean), (at_b1, 80 - at_b1), "{tally:?}");
    Ok(())
}

#[test]
fn a_second_drain_command_moves_the_deadline() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(30)?;
    let at_b1 = held.tally().open_at("b1");
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "none"])?;
    let drain = scene.ebb.backend("web/b1")?.drain.context("it is draining")?;
    assert_eq!((drain.remaining_s, drain.deadline), (None, None));
    let output = scene.ebb.cli(&["drain", "web/b1", "--timeout", "1s", "--wait"])?;
    assert_eq!(output.code, 3, "{output:?}");
    wait_broken(&held, "b1", at_b1)
}

#[test]
fn no_time_at_all_means_at_once() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(30)?;
    let at_b1 = held.tally().open_at("b1");
    let begun = Instant::now();
    let output = scene.ebb.cli(&["drain", "web/b1", "--timeout", "0", "--wait"])?;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(begun.elapsed() < patient(PUNCTUAL), "it took {:?}", begun.elapsed());
    wait_broken(&held, "b1", at_b1)?;
    let last = last_drain(&scene, "web/b1")?;
    assert_eq!((last.outcome.as_str(), last.cut_flows), ("forced", at_b1 as u64));
    Ok(())
}

#[test]
fn datagram_flows_move_at_the_deadline_and_lose_nothing_before() -> Result<()> {
    let scene = Scene::set(Setting::default())?;
    scene.add_service("dns", 0, 53, "udp", &[])?;
    let group = scene.client.datagrams(scene.vip(0, 53), 60, Duration::from_millis(50));
    group.wait_answered(SOON)?;
    let on_b1 = |group: &ebb_tests::traffic::DatagramGroup| {
        group.flows().iter().filter(|flow| flow.served_by().is_some_and(|name| name.as_str() == "b1")).count()
    };
    let before = on_b1(&group);
    assert!(before > 0, "b1 has a share of 60 flows");

    scene.ebb.ok(&["drain", "dns/b1", "--timeout", "2s"])?;
    assert_eq!(on_b1(&group), before, "existing flows stay");
    let late = scene.client.datagrams(scene.vip(0, 53), 60, Duration::from_millis(50));
    late.wait_answered(SOON)?;
    assert_eq!(on_b1(&late), 0, "new flows go elsewhere");

    scene.ebb.wait_state("dns/b1", "drained", SOON)?;
    wait_until("all flows to have moved", SOON, || on_b1(&group) == 0)?;
    let last = last_drain(&scene, "dns/b1")?;
    assert_eq!(last.cut_flows, 0, "re-steering a datagram flow is not a cut: {last:?}");
    let unanswered: u32 = group.flows().iter().map(|flow| flow.lost + flow.wrong).sum();
    assert!(
        unanswered as usize <= before,
        "at most what was under way at the deadline: {unanswered} of {before} flows"
    );
    Ok(())
}

#[test]
fn the_last_active_backend_is_guarded() -> Result<()> {
    let scene = Scene::with_web(Setting::with_backends(2), &[])?;
    scene.ebb.ok(&["drain", "web/b0", "--wait"])?;
    let refused = scene.ebb.cli(&["drain", "web/b1"])?;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("--force"), "it says how to do it all the same: {refused:?}");
    assert_eq!(scene.ebb.backend("web/b1")?.state, "active", "nothing changed");
    scene.visit(10)?;
    scene.ebb.ok(&["drain", "web/b1", "--force", "--wait"])?;
    assert_eq!(scene.ebb.backend("web/b1")?.state, "drained");
    Ok(())
}

/// As under `| head`: what a wait has come to is in its exit code, whoever reads along.
#[test]
fn a_reader_that_goes_away_does_not_end_the_wait() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(30)?;
    for arguments in [&["drain", "web/b1", "--timeout", "3s", "--wait"][..], &["wait", "web/b1", "-o", "json"]] {
        let mut command = scene.lab.balancer.command(scene.ebb.program())?;
        command.args(arguments).env("EBB_SOCKET", scene.ebb.socket());
        let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        drop(waiting.stdout.take());
        wait_until("it to end", SOON, || matches!(waiting.try_wait(), Ok(Some(_))))?;
        let output = waiting.wait_with_output()?;
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(3), &b""[..]), "{arguments:?}: {output:?}");
        assert_eq!(last_drain(&scene, "web/b1")?.outcome, "deadline", "it was waited for");
    }
    drop(held);
    Ok(())
}

#[test]
fn interrupting_whoever_waits_does_not_stop_it() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(30)?;
    let waiting = scene.ebb.background(&["drain", "web/b1", "--timeout", "60s", "--wait"])?;
    scene.ebb.wait_state("web/b1", "draining", SOON)?;
    waiting.interrupt()?;
    waiting.wait(SOON)?;
    assert_eq!(scene.ebb.backend("web/b1")?.state, "draining");
    held.finish_and_wait(SOON)?;
    scene.ebb.wait_state("web/b1", "drained", SOON)?;
    let again = scene.ebb.cli(&["wait", "web/b1"])?;
    assert_eq!(again.code, 0, "the outcome can be asked for later: {again:?}");
    Ok(())
}
