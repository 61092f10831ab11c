use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::*;
use crate::{
    control::model::{BackendStatus, CutPolicy, DrainRequest, ServicePatch, State, WhenUnhealthy},
    daemon::fake::Rig,
    datapath::BackendSlot,
};

/// Some backend with a check every five seconds.
pub(super) fn target(number: usize) -> CheckTarget {
    let mut target = target_of(IpAddr::from([192, 0, 2, 1]), None, &serde_json::json!({ "kind": "tcp" }));
    target.backend = format!("b{number}");
    target
}

pub(super) fn target_of(ip: IpAddr, port: Option<u16>, check: &serde_json::Value) -> CheckTarget {
    CheckTarget {
        service: "web".to_owned(),
        backend: "b".to_owned(),
        address: crate::control::vip::BackendAddress { ip, port },
        vip: "10.0.0.100:80/tcp".parse().expect("a VIP"),
        health: serde_json::from_value(serde_json::json!({ "check": check })).expect("a check"),
        way: None,
    }
}

/// Backends that pass unless told otherwise, and some that never answer.
#[derive(Default)]
struct FakeProber {
    failing: Mutex<BTreeSet<String>>,
    /// What this host is short of.
    short: Mutex<Option<i32>>,
    hanging: bool,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    probes: Mutex<Vec<(Instant, String)>>,
}

impl FakeProber {
    fn fail(&self, backend: &str) {
        self.failing.lock().expect("not poisoned").insert(backend.to_owned());
    }

    fn pass(&self, backend: &str) {
        self.failing.lock().expect("not poisoned").remove(backend);
    }
}

impl Prober for FakeProber {
    fn probe<'a>(&'a self, target: &'a CheckTarget) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            self.probes.lock().expect("not poisoned").push((Instant::now(), target.backend.clone()));
            let at_once = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_at_once.fetch_max(at_once, Ordering::Relaxed);
            let _leave = Leave(&self.at_once);
            if self.hanging {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Some(number) = *self.short.lock().expect("not poisoned") {
                return Err(probe::fault(
                    &"192.0.2.1:80".parse().expect("an address"),
                    &io::Error::from_raw_os_error(number),
                ));
            }
            let failing = self.failing.lock().expect("not poisoned").contains(&target.backend);
            if failing { Err(Fault::Theirs("connection refused".to_owned())) } else { Ok(()) }
        })
    }
}

struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Stage {
    rig: Rig,
    prober: Arc<FakeProber>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Stage {
    /// A service with backends `web-1`, …, checked every second: two passes and three failures decide.
    async fn set(prober: FakeProber, backends: u32, more: serde_json::Value) -> Self {
        let rig = Rig::new();
        let prober = Arc::new(prober);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(run(rig.handle.clone(), prober.clone(), async {
            let _ = stopped.await;
        }));
        let mut spec = serde_json::json!({
            "name": "web", "vip": "10.0.0.100:80/tcp",
            "health_check": { "check": { "kind": "tcp" }, "interval_s": 1, "timeout_s": 0.5, "jitter": 0 },
        });
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        rig.handle.add_service(serde_json::from_value(spec).expect("a service")).await.expect("a service");
        for number in 1..=backends {
            let address = format!("10.0.{}.{}", number / 200, 1 + number % 200);
            let spec = serde_json::json!({ "name": format!("web-{number}"), "address": address });
            let spec = serde_json::from_value(spec).expect("a backend");
            rig.handle.add_backend("web", spec).await.expect("a backend");
        }
        Self { rig, prober, _stop: stop }
    }

    async fn two() -> Self {
        let stage = Self::set(FakeProber::default(), 2, serde_json::json!({})).await;
        stage.after(3.0).await;
        assert_eq!(stage.states().await, [State::Active, State::Active]);
        stage
    }

    async fn after(&self, seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    async fn all(&self) -> Vec<BackendStatus> {
        self.rig.handle.backends("web").await.expect("the service is there")
    }

    async fn states(&self) -> Vec<State> {
        self.all().await.iter().map(|backend| backend.state).collect()
    }

    fn open(&self, number: u32, flows: usize) {
        let now_ns = self.rig.clock.now().mono_ns;
        self.rig.kernel().open(BackendSlot(number - 1), flows, now_ns);
    }

    async fn patch(&self, patch: serde_json::Value) {
        let patch: ServicePatch = serde_json::from_value(patch).expect("a patch");
        self.rig.handle.set_service("web", patch).await.expect("it is a good one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_is_initial_until_enough_checks_have_passed() {
    let stage = Stage::set(FakeProber::default(), 1, serde_json::json!({})).await;
    stage.after(0.5).await;
    let backend = stage.all().await.remove(0);
    assert_eq!((backend.state, &*backend.reason), (State::Initial, "not checked often enough yet"));
    stage.after(1.0).await;
    let backend = stage.all().await.remove(0);
    assert_eq!((backend.state, &*backend.reason), (State::Active, "its checks pass"));
}

#[tokio::test(start_paused = true)]
async fn one_that_never_passes_never_serves() {
    let prober = FakeProber::default();
    prober.fail("web-2");
    let stage = Stage::set(prober, 2, serde_json::json!({})).await;
    stage.after(1.5).await;
    let reason = stage.all().await[1].reason.clone();
    assert_eq!(reason, "not checked often enough yet; the latest failed: connection refused");
    stage.after(2.0).await;
    assert_eq!(stage.states().await, [State::Active, State::Unhealthy]);
    assert_eq!(stage.all().await[1].reason, "its checks fail: connection refused");
}

#[tokio::test(start_paused = true)]
async fn a_balancer_that_is_short_of_something_says_nothing_of_backends() {
    let stage = Stage::two().await;
    stage.prober.fail("web-2");
    stage.after(4.0).await;
    let before = stage.states().await;
    assert_eq!(before, [State::Active, State::Unhealthy]);
    for number in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL] {
        *stage.prober.short.lock().expect("not poisoned") = Some(number);
        stage.after(10.0).await;
        assert_eq!(stage.states().await, before, "{number}");
    }
    *stage.prober.short.lock().expect("not poisoned") = None;
    stage.prober.pass("web-2");
    stage.prober.fail("web-1");
    stage.after(4.0).await;
    assert_eq!(stage.states().await, [State::Unhealthy, State::Active], "it goes on");
}

#[tokio::test(start_paused = true)]
async fn failing_keeps_flows_and_passing_brings_it_back() {
    let stage = Stage::two().await;
    stage.open(1, 3);
    stage.prober.fail("web-1");
    stage.after(2.0).await;
    assert_eq!(stage.states().await[0], State::Active, "two failures are not three");
    stage.after(2.0).await;
    let backend = stage.all().await.remove(0);
    assert_eq!((backend.state, backend.active_flows), (State::UnhealthyDraining, 3));
    assert_eq!(backend.reason, "its checks fail: connection refused");
    stage.prober.pass("web-1");
    stage.after(3.5).await;
    let backend = stage.all().await.remove(0);
    assert_eq!((backend.state, backend.active_flows), (State::Active, 3));
}

#[tokio::test(start_paused = true)]
async fn the_interval_cuts_what_is_left_and_0_cuts_at_once() {
    let stage = Stage::two().await;
    stage.patch(serde_json::json!({ "unhealthy_drain_s": 10 })).await;
    stage.open(1, 3);
    stage.prober.fail("web-1");
    stage.after(4.0).await;
    assert_eq!(stage.states().await[0], State::UnhealthyDraining);
    stage.after(10.0).await;
    let backend = stage.all().await.remove(0);
    assert_eq!((backend.state, backend.active_flows), (State::Unhealthy, 0));

    stage.patch(serde_json::json!({ "unhealthy_drain_s": 0 })).await;
    stage.prober.pass("web-1");
    stage.after(3.0).await;
    stage.open(1, 3);
    stage.prober.fail("web-1");
    stage.after(3.5).await;
    let backend = stage.all().await.remove(0);
    assert_eq!((backend.state, backend.active_flows), (State::Unhealthy, 0));
    let cuts = stage.rig.kernel().calls.iter().filter(|call| call.starts_with("cut ")).count();
    assert!(cuts >= 2, "both times they were cut");
}

#[tokio::test(start_paused = true)]
async fn nothing_brings_a_drained_backend_back_unasked() {
    let stage = Stage::two().await;
    stage.rig.handle.drain("web", "web-1", DrainRequest::default()).await.expect("it drains");
    stage.after(2.0).await;
    stage.prober.fail("web-1");
    stage.after(5.0).await;
    assert_eq!(stage.states().await[0], State::Drained);
    stage.prober.pass("web-1");
    stage.after(5.0).await;
    assert_eq!(stage.states().await[0], State::Drained);
    stage.rig.handle.activate("web", "web-1").await.expect("it comes back");
    assert_eq!(stage.states().await[0], State::Active);
}

#[tokio::test(start_paused = true)]
async fn with_nobody_healthy_the_service_does_as_it_is_told() {
    let stage = Stage::two().await;
    stage.rig.handle.drain("web", "web-2", DrainRequest::default()).await.expect("it drains");
    stage.prober.fail("web-1");
    stage.after(4.5).await;
    assert!(matches!(stage.states().await[0], State::Unhealthy | State::UnhealthyDraining));
    let service = crate::datapath::ServiceSlot(0);
    let owner = stage.rig.kernel().steer(service, 7);
    assert_eq!(owner, Some(BackendSlot(0)), "the unhealthy one serves, not the drained");
    stage.patch(serde_json::json!({ "when_unhealthy": WhenUnhealthy::Refuse })).await;
    assert_eq!(stage.rig.kernel().steer(service, 7), None);
}

#[tokio::test(start_paused = true)]
async fn one_that_never_answers_fails_by_its_timeout() {
    let stage = Stage::set(FakeProber { hanging: true, ..FakeProber::default() }, 1, serde_json::json!({})).await;
    stage.after(4.0).await;
    let backend = stage.all().await.remove(0);
    assert_eq!((backend.state, &*backend.reason), (State::Unhealthy, "its checks fail: no answer within 500ms"));
    assert_eq!(stage.prober.at_once.load(Ordering::Relaxed), 0, "none is left behind");
}

#[tokio::test(start_paused = true)]
async fn another_check_is_used_at_once_and_none_makes_it_active() {
    let prober = FakeProber::default();
    prober.fail("web-1");
    let stage = Stage::set(prober, 1, serde_json::json!({ "on_drain_timeout": CutPolicy::Silent })).await;
    stage.after(4.0).await;
    assert_eq!(stage.states().await, [State::Unhealthy]);
    stage.patch(serde_json::json!({ "health_check": null })).await;
    assert_eq!(stage.states().await, [State::Active]);
    let before = stage.prober.probes.lock().expect("not poisoned").len();
    stage.after(5.0).await;
    assert_eq!(stage.prober.probes.lock().expect("not poisoned").len(), before, "nothing is checked any more");
}

#[tokio::test(start_paused = true)]
async fn thousands_come_neither_together_nor_too_many_at_once() {
    const COUNT: usize = 2_000;
    let rig = Rig::new();
    let prober = Arc::new(FakeProber { hanging: true, ..FakeProber::default() });
    let targets: Vec<CheckTarget> = (0..COUNT).map(target).collect();
    let (sender, receiver) = watch::channel(Arc::new(targets));
    let shared = Arc::new(Shared {
        handle: rig.handle.clone(),
        prober: prober.clone(),
        network: Semaphore::new(50),
        commands: Semaphore::new(1),
        warned: Mutex::default(),
    });
    let begun = Instant::now();
    let following = tokio::spawn(async move { follow(receiver, &shared).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let most = prober.most_at_once.load(Ordering::Relaxed);
    assert_eq!(most, 50, "as many as there are places");
    let early = prober.probes.lock().expect("not poisoned").iter().filter(|(at, _)| *at - begun < APART_FEW).count();
    assert!(early < 20, "{early} of {COUNT} began within {APART_FEW:?}");
    drop(sender);
    following.await.expect("it ends when the engine does");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(prober.at_once.load(Ordering::Relaxed), 0, "and takes its checks with it");
}

const APART_FEW: Duration = Duration::from_millis(20);
