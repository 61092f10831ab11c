//! The machine goes to sleep (suspend to RAM) with connections through the balancer and a drain under way, and its clock wakes
//! it: time asleep is no time by the monotonic clock, and so counts for nobody's deadline, timeout or check.
//!
//! `cargo xtask test --kernel VERSION --test suspend` runs this, in a machine of its own.

use std::{
    env, fs,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Backend, Drain, Family, Plan},
    patient,
    scene::{SOON, Scene, Setting, WEB_PORT},
    traffic::{Group, Transport, last_end},
    wait_until,
};
use jiff::{SignedDuration, Timestamp};

/// Set where this may put the machine to sleep, and nowhere else.
const PERMISSION: &str = "EBB_MAY_SLEEP";

/// How long a drain may take: long enough for what is looked at after waking, on a machine that is slow …
const TIMEOUT: Duration = Duration::from_secs(90);
/// … and so much longer the machine is asleep.
const LONGER: Duration = Duration::from_secs(30);

/// How long it may take a slow machine to fall asleep once its alarm is set, and to show a drain.
const AT_ONCE: Duration = Duration::from_secs(8);

/// A service whose backends are checked far more often, and whose flows idle out sooner, than the machine wakes.
const WEB: [&str; 8] = ["--idle-timeout", "20s", "--check", "tcp", "--check-interval", "1s", "--check-fall", "2"];

/// Time by the clock that stands still while the machine sleeps, and by the one that goes on (since the machine's start).
struct Clocks {
    monotonic: Instant,
    boot: Duration,
}

impl Clocks {
    fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/uptime")?;
        let boot = text.split(' ').next().and_then(|seconds| seconds.parse().ok()).context("a number of seconds")?;
        Ok(Self { monotonic: Instant::now(), boot: Duration::from_secs_f64(boot) })
    }

    /// How long the machine has slept since they were read.
    fn slept(&self) -> Result<Duration> {
        let now = Self::read()?;
        Ok(now.boot.saturating_sub(self.boot).saturating_sub(now.monotonic - self.monotonic))
    }
}

/// Puts the machine to sleep.
fn sleep(time: Duration) -> Result<()> {
    ensure!(env::var_os(PERMISSION).is_some(), "this machine is not for putting to sleep: {PERMISSION} is not set");
    let set = |path: &str, value: &str| {
        fs::write(Path::new("/sys").join(path), value).with_context(|| format!("cannot write {value} to /sys/{path}"))
    };
    let before = Clocks::read()?;
    // To RAM. What is called suspend to idle is woken by no alarm of an emulated machine.
    set("power/mem_sleep", "deep")?;
    set("class/rtc/rtc0/wakealarm", "0")?;
    set("class/rtc/rtc0/wakealarm", &format!("+{}", time.as_secs()))?;
    set("power/state", "mem")?;
    let slept = before.slept()?;
    println!("asleep for {slept:.1?}, by the clocks' difference");
    ensure!(slept + AT_ONCE >= time, "of {time:?} the machine has slept for {slept:?} only");
    Ok(())
}

/// Connections held and b1 draining.
struct Draining {
    scene: Scene,
    held: Group,
    /// How many connections b1 has.
    at_b1: usize,
    /// When the drain was asked for, and when it had been answered.
    asked: Instant,
    answered: Instant,
}

const HELD: usize = 60;

impl Draining {
    fn begin(timeout: &str) -> Result<Self> {
        let scene = Scene::set(Setting::default())?;
        // Checks go to the backends themselves, not to the VIP.
        for (index, server) in scene.servers.iter().enumerate() {
            server.listen(SocketAddr::new(Plan::backend(Family::V4, index), WEB_PORT), Transport::Tcp)?;
        }
        scene.add_web(&WEB)?;
        let held = scene.hold(HELD)?;
        let at_b1 = held.tally().open_at("b1");
        ensure!(at_b1 > 0, "b1 has no connection: {:?}", held.tally());
        let asked = Instant::now();
        scene.ebb.ok(&["drain", "web/b1", "--timeout", timeout])?;
        Ok(Self { scene, held, at_b1, asked, answered: Instant::now() })
    }

    fn b1(&self) -> Result<Backend> {
        self.scene.ebb.backend("web/b1")
    }

    fn drain(&self) -> Result<Drain> {
        let backend = self.b1()?;
        ensure!(backend.state == "draining", "{backend:?}");
        backend.drain.context("it is draining")
    }

    /// No connection is lost or ended, those of the draining backend are answered still, and new ones keep off it.
    fn connections_go_on(&self) -> Result<()> {
        assert_eq!(self.held.tally().open, HELD, "{:?}", self.held.tally());
        let tally = self.scene.visit(30)?;
        assert_eq!(tally.served_by("b1"), 0, "{tally:?}");
        assert!(tally.served_by("b0") > 0 && tally.served_by("b2") > 0, "the others share: {tally:?}");
        Ok(())
    }

    /// The drain has the time left that it had, and says so.
    fn goes_on_after(&self, before: &Drain, read: Instant) -> Result<()> {
        let after = self.drain()?;
        let (now, passed) = (Timestamp::now(), read.elapsed());
        println!("before {before:?}\nafter {after:?}, {passed:.1?} later by the monotonic clock");
        assert_eq!(after.started_at, before.started_at);
        assert_eq!((after.initial_flows, after.remaining_flows), (self.at_b1 as u64, self.at_b1 as u64));
        let seconds = |drain: &Drain| drain.remaining_s.context("it has a deadline");
        let (left_before, left) = (seconds(before)?, seconds(&after)?);
        assert!(left > 0.0 && left <= left_before, "{left} of {left_before}");
        assert!(left + passed.as_secs_f64() + 1.0 >= left_before, "{left} of {left_before} after {passed:?}");
        let deadline: Timestamp = after.deadline.context("it has one")?.parse()?;
        let to_come = deadline.duration_since(now);
        let apart = (to_come - SignedDuration::try_from_secs_f64(left)?).abs();
        assert!(apart <= SignedDuration::try_from(AT_ONCE)?, "{to_come} to the deadline shown, {left} s left");
        Ok(())
    }

    /// It is over when all connections have been ended, none of them cut.
    fn ends_with_its_last_connection(&self) -> Result<()> {
        let tally = self.held.finish_and_wait(SOON)?;
        assert_eq!((tally.broken(), tally.clean), (0, HELD), "{tally:?}");
        let last = self.scene.ebb.wait_state("web/b1", "drained", SOON)?.last_drain.context("a record")?;
        assert_eq!((last.outcome.as_str(), last.cut_flows), ("completed", 0));
        Ok(())
    }

    /// b1's connections are cut at the deadline, neither before nor late, and no other one is.
    fn ends_at_its_deadline(self) -> Result<()> {
        let Self { scene, held, at_b1, asked, answered } = self;
        wait_until("b1's connections to be cut", TIMEOUT, || held.tally().open_at("b1") == 0)?;
        let ended = last_end(&held.connections(), "b1").context("all have ended")?;
        let first = held.connections().iter().filter_map(|c| c.end.map(|(_, when)| when)).min().context("one")?;
        assert!(first >= asked + TIMEOUT, "cut {:?} after the drain was asked for", first - asked);
        assert!(ended <= answered + TIMEOUT + patient(SOON), "cut {:?} after the answer", ended - answered);
        let backend = scene.ebb.wait_state("web/b1", "drained", SOON)?;
        let last = backend.last_drain.context("a record")?;
        assert_eq!((last.outcome.as_str(), last.cut_flows), ("deadline", at_b1 as u64));
        let tally = held.finish_and_wait(SOON)?;
        assert_eq!((tally.broken(), tally.clean), (at_b1, HELD - at_b1), "{tally:?}");
        Ok(())
    }
}

#[test]
#[ignore = "puts the machine to sleep: cargo xtask test --kernel runs this in one of its own"]
fn a_drain_goes_on_with_the_time_it_had_left() -> Result<()> {
    let draining = Draining::begin("90s")?;
    let (read, before) = (Instant::now(), draining.drain()?);
    sleep(TIMEOUT + LONGER)?;
    draining.goes_on_after(&before, read)?;
    draining.connections_go_on()?;
    draining.ends_at_its_deadline()
}

#[test]
#[ignore = "puts the machine to sleep: cargo xtask test --kernel runs this in one of its own"]
fn a_drain_ends_with_its_last_connection() -> Result<()> {
    let mut draining = Draining::begin("none")?;
    let mut waiting = draining.scene.ebb.background(&["wait", "web/b1"])?;
    sleep(LONGER)?;
    draining.connections_go_on()?;
    assert_eq!(draining.drain()?.remaining_flows, draining.at_b1 as u64);
    assert!(waiting.is_running(), "{:?}", waiting.output_so_far());

    // Long enough for two checks in a row to fail. Time itself is what this is about.
    thread::sleep(Duration::from_secs(5));
    let events = draining.scene.ebb.ok(&["events"])?.stdout;
    assert!(events.contains("web/b1") && !events.contains("unhealthy"), "a sleep is no failure: {events}");
    draining.ends_with_its_last_connection()?;
    assert_eq!(waiting.wait(SOON)?.code, 0);

    // Checks are still made: one that fails is noticed.
    drop(draining.scene.servers.remove(2));
    draining.scene.ebb.wait_state("web/b2", "unhealthy", SOON).map(drop)
}

#[test]
#[ignore = "puts the machine to sleep: cargo xtask test --kernel runs this in one of its own"]
fn a_daemon_that_was_away_meanwhile_goes_by_the_time_awake() -> Result<()> {
    // Emulated, a start takes minutes.
    let mut draining = Draining::begin("600s")?;
    let (read, before) = (Instant::now(), draining.drain()?);
    draining.scene.ebb.kill()?;
    sleep(TIMEOUT + LONGER)?;
    draining.scene.ebb.run()?;
    draining.goes_on_after(&before, read)?;
    draining.connections_go_on()?;
    draining.ends_with_its_last_connection()
}
