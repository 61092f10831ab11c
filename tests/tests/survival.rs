//! The daemon stops, restarts or dies in the middle of a drain.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Ebb, Family, Lab, Plan},
    scene::{SOON, Scene, Setting},
    traffic::{Conversation, End, Fault, Group, Lasting, given_after},
    wait_until,
};

/// A scene with connections held and b1 draining, how many connections b1 has, and when the drain was asked for.
fn in_mid_drain(timeout: &str) -> Result<(Scene, Group, usize, Instant)> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(60)?;
    let at_b1 = held.tally().open_at("b1");
    ensure!(at_b1 > 0, "b1 has no connection: {:?}", held.tally());
    let asked = Instant::now();
    scene.ebb.ok(&["drain", "web/b1", "--timeout", timeout])?;
    Ok((scene, held, at_b1, asked))
}

/// The daemon is away, then back: connections live on, new ones keep off the draining backend, and the
/// drain ends with the deadline and the counts it had.
fn is_survived(end: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let (mut scene, held, at_b1, _) = in_mid_drain("60s")?;
    let before = scene.ebb.backend("web/b1")?.drain.context("it is draining")?;
    end(&mut scene)?;
    assert_eq!(scene.ebb.cli(&["status"])?.code, 5, "nobody answers");
    let tally = scene.visit(100)?;
    assert_eq!(tally.served_by("b1"), 0, "without the daemon: {tally:?}");
    assert!(tally.served_by("b0") > 0 && tally.served_by("b2") > 0, "the others share: {tally:?}");
    assert_eq!(held.tally().open, 60, "{:?}", held.tally());

    scene.ebb.run()?;
    let backend = scene.ebb.backend("web/b1")?;
    assert_eq!(backend.state, "draining");
    let after = backend.drain.context("it goes on draining")?;
    assert_eq!((&after.started_at, &after.deadline), (&before.started_at, &before.deadline));
    assert_eq!((after.initial_flows, after.remaining_flows), (at_b1 as u64, at_b1 as u64));
    assert_eq!(scene.visit(100)?.served_by("b1"), 0, "with the daemon back");

    let tally = held.finish_and_wait(SOON)?;
    let last = scene.ebb.wait_state("web/b1", "drained", SOON)?.last_drain.context("a record")?;
    assert_eq!((last.outcome.as_str(), last.cut_flows), ("completed", 0));
    assert_eq!((tally.broken(), tally.clean), (0, 60), "{tally:?}");
    Ok(())
}

#[test]
fn a_restart_is_survived() -> Result<()> {
    is_survived(|scene| {
        let status = scene.ebb.terminate()?;
        ensure!(status.success(), "SIGTERM is a request to end, not a failure: {status}");
        Ok(())
    })
}

#[test]
fn being_killed_is_survived() -> Result<()> {
    is_survived(|scene| scene.ebb.kill().map(drop))
}

/// Connections come and go all the time, some end long after they began, and none notices.
#[test]
fn upgrades_in_mid_drain_under_load_break_nothing() -> Result<()> {
    let mut scene = Scene::with_web(Setting::default(), &[])?;
    let lasting = Lasting::Between(Duration::from_millis(5), Duration::from_secs(4));
    let load = scene.client.keep(Conversation { lasting, ..Conversation::with(scene.web()) }, 60);
    let held = scene.hold(30)?;
    let at_b1 = held.tally().open_at("b1");
    ensure!(at_b1 > 0, "{:?}", held.tally());
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "none"])?;
    let drained_from = Instant::now();
    let mut waiting = scene.ebb.background(&["wait", "web/b1"])?;
    for kill in [false, true, false] {
        // Another file each time, as a package brings it; the program in the kernel is replaced.
        let next = scene.lab.directory().join(format!("ebb-{}", drained_from.elapsed().as_millis()));
        fs::copy(scene.ebb.program(), &next)?;
        let before = load.tally().clean;
        if kill {
            scene.ebb.kill()?
        } else {
            scene.ebb.terminate()?
        };
        scene.ebb.upgrade_to(next);
        scene.ebb.run()?;
        assert_eq!(scene.ebb.backend("web/b1")?.state, "draining");
        wait_until("more connections to have come and gone", SOON, || load.tally().clean >= before + 60)?;
    }
    assert_eq!(held.tally().open_at("b1"), at_b1, "{:?}", held.tally());
    assert!(waiting.is_running(), "whoever waits bears with restarts");
    let late = load.connections();
    let strays = given_after(&late, "b1", drained_from);
    assert!(strays.is_empty(), "new connections reached the draining backend: {strays:?}");
    let tally = load.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.could_not_connect()), (0, 0), "{tally:?}");
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.clean), (0, 30), "{tally:?}");
    let output = waiting.wait(SOON)?;
    assert_eq!(output.code, 0, "{output:?}");
    Ok(())
}

#[test]
fn the_deadline_holds_without_the_daemon() -> Result<()> {
    let (mut scene, held, at_b1, asked) = in_mid_drain("3s")?;
    let drained_at = asked + Duration::from_secs(3);
    scene.ebb.kill()?;
    assert_eq!(held.tally().broken(), 0, "not before the deadline");
    wait_until("the packet path to cut", SOON, || held.tally().broken() >= at_b1)?;
    assert!(Instant::now() >= drained_at, "not before the deadline");
    let resets = |group: &Group| {
        let connections = group.connections();
        connections.iter().filter(|c| matches!(c.end, Some((End::Broken(Fault::Reset), _)))).count()
    };
    assert_eq!((resets(&held), held.tally().broken()), (at_b1, at_b1), "{:?}", held.tally());
    assert_eq!(scene.visit(60)?.served_by("b1"), 0);

    scene.ebb.run()?;
    let last = scene.ebb.wait_state("web/b1", "drained", SOON)?.last_drain.context("a record")?;
    assert_eq!(last.outcome, "deadline");
    // Without the daemon whoever speaks is answered; it tells the servers that have been silent.
    wait_until("b1's server to be reset", SOON, || scene.servers[1].open() == 0)
        .with_context(|| format!("{} of {at_b1} are open", scene.servers[1].open()))?;
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!(tally.clean, 60 - at_b1, "{tally:?}");
    Ok(())
}

#[test]
fn a_deadline_passed_while_the_daemon_was_away_is_made_good() -> Result<()> {
    let (mut scene, held, ..) = in_mid_drain("2s")?;
    scene.ebb.terminate()?;
    // Time itself is what this is about.
    thread::sleep(Duration::from_secs(3));
    scene.ebb.run()?;
    let backend = scene.ebb.wait_state("web/b1", "drained", Duration::from_secs(2))?;
    assert_eq!(backend.last_drain.context("a record")?.outcome, "deadline");
    assert_eq!(held.tally().open_at("b1"), 0);
    Ok(())
}

#[test]
fn a_deadline_that_passed_long_ago_has_cut_what_it_cut() -> Result<()> {
    let (mut scene, held, at_b1, _) = in_mid_drain("3s")?;
    scene.ebb.ok(&["service", "set", "web", "--idle-timeout", "5s"])?;
    scene.ebb.kill()?;
    wait_until("the packet path to cut", SOON, || held.tally().broken() >= at_b1)?;
    // Silent for longer than an idle timeout, though not of themselves. Time itself is what this is about.
    thread::sleep(Duration::from_secs(7));
    scene.ebb.run()?;
    let last = scene.ebb.wait_state("web/b1", "drained", SOON)?.last_drain.context("a record")?;
    assert_eq!((last.outcome.as_str(), last.cut_flows), ("deadline", at_b1 as u64));
    assert_eq!(scene.ebb.cli(&["wait", "web/b1"])?.code, 3);
    assert_eq!((held.tally().broken(), held.tally().open), (at_b1, 60 - at_b1), "{:?}", held.tally());
    Ok(())
}

#[test]
fn all_connections_ended_while_the_daemon_was_away() -> Result<()> {
    let (mut scene, held, at_b1, _) = in_mid_drain("none")?;
    scene.ebb.kill()?;
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!(tally.clean, 60, "{tally:?}");
    scene.ebb.run()?;
    let last = scene.ebb.wait_state("web/b1", "drained", SOON)?.last_drain.context("a record")?;
    assert_eq!((last.outcome.as_str(), last.initial_flows, last.cut_flows), ("completed", at_b1 as u64, 0));
    Ok(())
}

#[test]
fn what_was_configured_comes_back() -> Result<()> {
    let mut scene = Scene::with_web(Setting::default(), &["--drain-timeout", "77s", "--on-drain-timeout", "silent"])?;
    scene.ebb.ok(&["backend", "set", "web", "b2", "--weight", "3"])?;
    scene.ebb.ok(&["drain", "web/b0", "--wait"])?;
    scene.ebb.kill()?;
    scene.ebb.run()?;
    let status = scene.ebb.status()?;
    let web = status.service("web").context("the service")?;
    assert_eq!((web.drain_timeout_s, web.on_drain_timeout.as_str()), (Some(77.0), "silent"));
    let backends: Vec<_> = web.backends.iter().map(|b| (b.name.as_str(), b.state.as_str(), b.weight)).collect();
    assert_eq!(backends, [("b0", "drained", 1), ("b1", "active", 1), ("b2", "active", 3)]);
    assert_eq!(scene.visit(100)?.served_by("b0"), 0, "drained it was, drained it is");
    Ok(())
}

#[test]
fn unloading_takes_everything_off() -> Result<()> {
    let mut scene = Scene::with_web(Setting::default(), &[])?;
    scene.visit(10)?;
    scene.ebb.terminate()?;
    scene.visit(10).context("stopping the daemon leaves the packet path forwarding")?;
    scene.ebb.ok(&["unload"])?;
    assert!(!scene.lab.pin_path().exists(), "the pins are gone");
    assert!(scene.visit(1).is_err(), "nothing forwards any more");
    Ok(())
}

#[test]
fn unloading_asks_the_daemon_what_to_take_off() -> Result<()> {
    let mut scene = Scene::with_web(Setting::default(), &[])?;
    scene.visit(10)?;
    let socket = scene.ebb.socket();
    // Without the daemon's --pin-path and --state-dir, as where they are in its file.
    let unload = scene.ebb.background_on(&scene.lab.balancer, &[("EBB_SOCKET", &socket)], &["unload"])?;
    let output = unload.wait(SOON)?;
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (0, "detached from eth0\nthe daemon has stopped\n"),
        "{output:?}"
    );
    assert!(!scene.lab.pin_path().exists(), "the pins are gone");
    assert!(scene.ebb.terminate()?.success(), "it has ended by itself");
    scene.ebb.run().context("its state is free")
}

/// Room on the disk is reserved before a command takes force: a full one refuses what would need more, and that alone.
#[test]
fn a_full_disk_forgets_no_change() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    lab.give_state_a_disk(4 << 20)?;
    let mut ebb = Ebb::start(&lab)?;
    ebb.ok(&["service", "add", "web", "--vip", &format!("{}:80/tcp", Plan::vip(Family::V4, 0))])?;
    for name in ["b0", "b1"] {
        let index = usize::from(name == "b1");
        ebb.ok(&["backend", "add", "web", name, &Plan::backend(Family::V4, index).to_string()])?;
        ebb.wait_state(&format!("web/{name}"), "active", SOON)?;
    }
    let filler = ebb.state_directory().join("filler");
    let error = fill(&filler);
    ensure!(error.kind() == io::ErrorKind::StorageFull, "{error}");

    // What was reserved is enough for this.
    ebb.ok(&["drain", "web/b1", "--wait"])?;
    let backends = |count: usize| -> String {
        let backend =
            |n| format!("[[service.backend]]\nname = \"x{n}\"\naddress = \"10.77.{}.{}\"\n", n / 250, n % 250 + 1);
        (0..count).map(backend).collect()
    };
    let file = ebb.state_directory().join("../big.toml");
    fs::write(&file, format!("[[service]]\nname = \"big\"\nvip = \"10.77.99.1:80/tcp\"\n{}", backends(500)))?;
    let file = file.to_str().context("a path in words")?.to_owned();
    let refused = ebb.cli(&["apply", &file])?;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("no room") && refused.stderr.contains("nothing was changed"), "{refused:?}");
    assert_eq!(ebb.status()?.services.len(), 1);

    // Nothing that was answered for is lost, though the disk is still full.
    ebb.kill()?;
    ebb.run()?;
    assert_eq!(ebb.backend("web/b1")?.state, "drained");
    assert_eq!(ebb.status()?.services.len(), 1);

    fs::remove_file(&filler)?;
    ebb.ok(&["apply", &file])?;
    assert_eq!(ebb.status()?.services.len(), 1, "web had no live flow: it is gone at once");
    Ok(())
}

/// Writes into a file until its disk takes no more; why it took no more.
fn fill(path: &Path) -> io::Error {
    let filled = fs::File::create(path).and_then(|mut file| io::copy(&mut io::repeat(b'x'), &mut file));
    filled.err().unwrap_or_else(|| io::Error::other("endless bytes came to an end"))
}
