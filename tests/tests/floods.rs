//! Floods at the highest rate that the machine makes, while established flows and drains go on.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use ebb_tests::{
    flood::{Came, Flooder, KINDS, Kind, Targets},
    lab::{Arms, Family},
    scene::{Forward, SOON, Scene, Setting},
    traffic::{Conversation, DatagramGroup, Group},
    verdict::{Drained, Verdict},
    wait_until,
};
use lb_common::outcome::Outcome;

/// A flood takes all that it can get: two at once would only test each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Room for so few flows that a flood fills the table at once.
const MAX_FLOWS: &str = "100000";
const API_PORT: u16 = 8080;
const NAMES_PORT: u16 = 53;
/// Packets of a flood that are a flood.
const MANY: u64 = 50_000;
/// A connection's patience: the cable loses what no queue has room for, up to a third in places, and a segment may be sent seven times.
const PATIENCE: Duration = Duration::from_mins(1);
/// A drain's deadline, which no drain here should see.
const TIMEOUT: Duration = Duration::from_mins(2);
/// How long a command may take while the machine has no CPU to spare.
const ANSWER: Duration = Duration::from_secs(5);
/// How much longer than otherwise the daemon may take to see that a drain is over, as it shares a CPU with clients and servers then.
const BUSY: Duration = Duration::from_secs(3);
/// What the daemon's memory may grow by, in KiB.
const GROWTH_KIB: u64 = 16 * 1024;

/// A scene with three services: `web` and `names`, which are flooded, and `api`, whose connections see all floods.
struct Stage {
    flooder: Flooder,
    kept: Group,
    datagrams: DatagramGroup,
    targets: Targets,
    scene: Scene,
}

impl Stage {
    fn set(forward: Forward, family: Family) -> Result<Self> {
        let mut scene = Scene::set_with(Setting::of(forward, Arms::One, family), &["--max-flows", MAX_FLOWS])?;
        scene.add_web(&[])?;
        scene.add_service("names", 0, NAMES_PORT, "udp", &[])?;
        scene.add_service("api", 1, API_PORT, "tcp", &[])?;
        let kept = scene.client.open(patient(scene.vip(1, API_PORT)), 100);
        kept.wait_open(100, SOON)?;
        let names = scene.vip(0, NAMES_PORT);
        let datagrams = scene.client.datagrams(names, 20, Duration::from_millis(100));
        datagrams.wait_answered(SOON)?;
        let flooder = Flooder::start(&mut scene.lab)?;
        Ok(Self { flooder, kept, datagrams, targets: Targets { tcp: scene.web(), udp: names }, scene })
    }

    /// A flood, in the midst of which b1 is drained while it has connections.
    fn is_flooded(&self, kind: Kind, cpus: usize) -> Result<()> {
        let scene = &self.scene;
        let web = patient(scene.web());
        let leaving = scene.client.open(web.clone(), 60);
        leaving.wait_open(60, SOON)?;
        let at_b1 = leaving.tally().open_at("b1") as u64;
        let before = self.flooder.came();
        let flood = self.flooder.flood(kind, self.targets, cpus)?;
        wait_until("the flood to come", SOON, || self.flooder.came().since(&before).expected(kind) > MANY)
            .with_context(|| format!("{:?}", self.flooder.came().since(&before)))?;

        let asked = Instant::now();
        scene.ebb.ok(&["drain", "web/b1", "--timeout", "120s"])?;
        let answered = Instant::now();
        let late = scene.client.open(web, 20);
        wait_until("new connections to be made or given up", PATIENCE + SOON, || {
            let tally = late.tally();
            tally.opened + tally.could_not_connect() == 20
        })
        .with_context(|| format!("{:?}", late.tally()))?;
        thread::sleep(Duration::from_millis(500));
        let asked_again = Instant::now();
        let backend = scene.ebb.backend("web/b1")?;
        let looked = asked_again.elapsed();
        assert_eq!(backend.state, "draining", "{kind}: its connections are open: {backend:?}");
        let counted = backend.drain.context("a drain")?.remaining_flows;
        assert!(counted >= at_b1, "{kind}: {counted} of {at_b1} connections are counted");
        leaving.finish_and_wait(PATIENCE)?;
        late.finish_and_wait(PATIENCE)?;
        let backend = scene.ebb.wait_state("web/b1", "drained", TIMEOUT)?;
        let over = Instant::now();
        let sent = flood.stop()?;
        let came = self.flooder.came().since(&before);
        // One whose SYN was forgotten before its handshake was over may have come to the backend that its slot was taken from.
        let late = late.connections().into_iter().filter(|connection| connection.served_by.is_some());
        let accounts: Vec<_> = leaving.connections().into_iter().chain(late).collect();
        assert!(accounts.len() >= 60 + 15, "{kind}: {} of 80 connections were made", accounts.len());
        let drained = Drained { asked, answered, over, timeout: TIMEOUT };
        let mut verdict = Verdict::on(drained, &scene.servers[1], &accounts, &scene.servers);
        verdict.after_last_end = verdict.after_last_end.map(|after| after.saturating_sub(BUSY));
        println!(
            "{kind}: {} frames in {:?}; drain answered after {:?}, status after {looked:?}; {came:?}\n{verdict}",
            sent.frames,
            sent.took,
            answered - asked,
        );
        assert_eq!(verdict.complaints(), Vec::<String>::new(), "{kind}\n{verdict}");
        let last = backend.last_drain.context("a record")?;
        assert_eq!((last.outcome.as_str(), last.cut_flows), ("completed", 0), "{kind}");
        assert!(
            looked < ANSWER && answered - asked < ANSWER,
            "{kind}: answers after {looked:?}, {:?}",
            answered - asked
        );
        check(kind, &came, sent.frames);
        scene.ebb.ok(&["activate", "web/b1"])?;
        scene.wait_all_active("web")
    }

    /// What saw all the floods is whole.
    fn finish(self, resident_kib: u64) -> Result<()> {
        for flow in self.datagrams.flows() {
            assert_eq!((flow.servers.len(), flow.wrong), (1, 0), "a datagram flow moved: {flow:?}");
        }
        let tally = self.kept.finish_and_wait(PATIENCE)?;
        assert_eq!((tally.broken(), tally.could_not_connect(), tally.clean), (0, 0, 100), "{tally:?}");
        let grown = self.scene.ebb.resident_kib()?.saturating_sub(resident_kib);
        assert!(grown < GROWTH_KIB, "the daemon has grown by {grown} KiB from {resident_kib}");
        Ok(())
    }
}

fn patient(target: std::net::SocketAddr) -> Conversation {
    Conversation { patience: PATIENCE, ..Conversation::with(target) }
}

/// Nothing comes back that is more than what came in, and what became of it is counted.
fn check(kind: Kind, came: &Came, sent: u64) {
    let expected = came.expected(kind);
    assert!(came.packets() > 0 && expected > came.packets() / 10 * 9, "{kind}: {came:?}");
    assert!(came.answered[0] <= sent && came.answered[1] <= sent * 128, "{kind}: {sent} sent: {came:?}");
    assert!(came.forwarded[0] <= sent, "{kind}: {sent} sent: {came:?}");
    assert_eq!(came.outcome(Outcome::Untracked), 0, "{kind}: every flow is known: {came:?}");
}

fn withstands(forward: Forward, family: Family, kinds: &[Kind]) -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let stage = Stage::set(forward, family)?;
    let resident_kib = stage.scene.ebb.resident_kib()?;
    for kind in kinds {
        stage.is_flooded(*kind, 1).with_context(|| format!("a flood of {kind}"))?;
    }
    stage.finish(resident_kib)
}

#[test]
fn under_dsr() -> Result<()> {
    withstands(Forward::Dsr, Family::V4, &KINDS)
}

#[test]
fn under_nat() -> Result<()> {
    withstands(Forward::Nat, Family::V4, &[Kind::Syn, Kind::Udp, Kind::Unreachable])
}

/// What is open stays open here too, but a table that ACKs turn over six times a second may forget a new connection's handshake time
/// and again: one in some five hundred is given up after its minute.
#[test]
fn under_nat_by_acks() -> Result<()> {
    withstands(Forward::Nat, Family::V4, &[Kind::Ack])
}

#[test]
fn under_dsr_with_ipv6() -> Result<()> {
    withstands(Forward::Dsr, Family::V6, &[Kind::Syn, Kind::Ack])
}

#[test]
fn under_nat_with_ipv6() -> Result<()> {
    withstands(Forward::Nat, Family::V6, &[Kind::Syn])
}

#[test]
#[ignore = "leaves a machine of two CPUs none for clients and daemon"]
fn from_all_cpus() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let stage = Stage::set(Forward::Dsr, Family::V4)?;
    let resident_kib = stage.scene.ebb.resident_kib()?;
    for kind in [Kind::Syn, Kind::Ack, Kind::Udp] {
        stage.is_flooded(kind, 2)?;
    }
    stage.finish(resident_kib)
}
