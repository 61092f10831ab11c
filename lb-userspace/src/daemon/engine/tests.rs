use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    control::{
        ErrorKind,
        duration::{Limit, Seconds},
        model::{
            BackendPatch, BackendSpec, BackendStatus, CutPolicy, DrainRequest, EventKind, Outcome, ServicePatch,
            ServiceSpec, State, WaitFor, WantedService,
        },
    },
    daemon::{
        NextHopUpdate,
        fake::{FakeClock, FakeDatapath, Rig, next_hop},
    },
    datapath::{BackendSlot, BackendState, RingSlot, ServiceSlot},
};

fn service() -> ServiceSpec {
    serde_json::from_value(serde_json::json!({ "name": "web", "vip": "10.0.0.100:80/tcp" })).expect("a service")
}

fn backend(number: u32) -> BackendSpec {
    serde_json::from_value(
        serde_json::json!({ "name": format!("web-{number}"), "address": format!("10.0.0.{}", 10 + number) }),
    )
    .expect("a backend")
}

/// A service with three active backends.
async fn three() -> Rig {
    let rig = Rig::new();
    fill(&rig).await;
    rig
}

async fn fill(rig: &Rig) {
    rig.handle.add_service(service()).await.expect("a service");
    for number in 1..=3 {
        rig.handle.add_backend("web", backend(number)).await.expect("a backend");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for number in 1..=3 {
        assert_eq!(get(rig, number).await.state, State::Active);
    }
}

async fn get(rig: &Rig, number: u32) -> BackendStatus {
    let name = format!("web-{number}");
    let all = rig.handle.backends("web").await.expect("the service is there");
    all.into_iter().find(|backend| backend.name == name).expect("the backend is there")
}

fn timeout(seconds: u64) -> DrainRequest {
    DrainRequest { timeout_s: Some(Limit::seconds(seconds)), ..DrainRequest::default() }
}

const WEB: ServiceSlot = ServiceSlot(0);

fn slot(number: u32) -> BackendSlot {
    BackendSlot(number - 1)
}

fn ring(rig: &Rig) -> Vec<RingSlot> {
    rig.kernel().rings[&WEB].clone()
}

#[tokio::test(start_paused = true)]
async fn a_backend_becomes_active_when_its_next_hop_resolves() {
    let rig = three().await;
    let kernel = rig.kernel();
    assert_eq!(kernel.vips, [WEB]);
    assert!(kernel.backends.values().all(|row| row.state == BackendState::Active && row.next_hop.is_some()));
    assert!(kernel.rings[&WEB].iter().all(|slot| slot.owner.is_some()));
}

#[tokio::test(start_paused = true)]
async fn a_drain_marks_publishes_waits_and_only_then_counts() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(2), 5, now_ns);
    let mut late = rig.kernel().flows[0].clone();
    late.created_ns = now_ns;
    rig.kernel().in_flight = Some(late);
    rig.kernel().calls.clear();
    let started = rig.handle.drain("web", "web-2", DrainRequest::default()).await.expect("a drain");
    let calls: Vec<String> = rig.kernel().calls.iter().map(|call| call.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(calls[..3], ["set_backend_state", "set_ring_slots", "grace"]);
    let drain = started.drain.expect("it runs");
    assert_eq!((drain.initial_flows, drain.remaining_flows), (6, 6), "the flow in flight is counted");
    assert_eq!(drain.remaining_s, Some(300.0));
    for slot_number in 0..ring(&rig).len() {
        assert_ne!(rig.kernel().steer(WEB, slot_number), Some(slot(2)));
    }
    let moved = ring(&rig).iter().filter(|ring| ring.previous == Some(slot(2))).count();
    assert!(moved > 1_300, "a third of the table remembers its owner");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_with_its_last_flow() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 3, now_ns);
    rig.handle.drain("web", "web-1", timeout(60)).await.expect("a drain");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(get(&rig, 1).await.state, State::Draining);
    rig.kernel().close(slot(1), 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(get(&rig, 1).await.drain.expect("it runs").remaining_flows, 1);
    rig.kernel().close(slot(1), 1);
    let before = tokio::time::Instant::now();
    let ended = rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("it ends");
    assert!(before.elapsed() <= Duration::from_secs(1));
    let last = ended.last_drain.expect("it ended");
    assert_eq!((last.outcome, last.initial_flows, last.cut_flows), (Outcome::Completed, 3, 0));
    assert_eq!(ended.state, Some(State::Drained));
    assert_eq!(rig.kernel().backends[&slot(1)].state, BackendState::Drained);
    assert!(ring(&rig).iter().all(|ring| ring.previous.is_none()));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_cuts_what_is_left() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 4, now_ns);
    let before = tokio::time::Instant::now();
    rig.handle.drain("web", "web-1", timeout(7)).await.expect("a drain");
    let ended = rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("it ends");
    let took = before.elapsed();
    assert!(took >= Duration::from_secs(7) && took < Duration::from_millis(7_050), "{took:?}");
    let last = ended.last_drain.expect("it ended");
    assert_eq!((last.outcome, last.cut_flows), (Outcome::Deadline, 4));
    assert!(rig.kernel().flows.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_0_forces_the_end() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 4, now_ns);
    let started = rig.handle.drain("web", "web-1", timeout(0)).await.expect("a drain");
    assert_eq!(started.state, State::Drained);
    let last = started.last_drain.expect("it is over");
    assert_eq!((last.outcome, last.initial_flows, last.cut_flows), (Outcome::Forced, 4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_drain_can_be_extended_shortened_and_cancelled() {
    let rig = three().await;
    let before = ring(&rig);
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 1, now_ns);
    rig.handle.drain("web", "web-1", timeout(5)).await.expect("a drain");
    let again = DrainRequest { on_timeout: Some(CutPolicy::Silent), ..timeout(100) };
    let drain = rig.handle.drain("web", "web-1", again).await.expect("it changes").drain.expect("it runs");
    assert_eq!((drain.remaining_s, drain.on_timeout), (Some(100.0), CutPolicy::Silent));
    assert_eq!(rig.kernel().backends[&slot(1)].on_timeout, CutPolicy::Silent);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(get(&rig, 1).await.state, State::Draining);
    let forever = DrainRequest { timeout_s: Some(Limit::NONE), ..DrainRequest::default() };
    let drain = rig.handle.drain("web", "web-1", forever).await.expect("it changes").drain.expect("it runs");
    assert_eq!((drain.deadline, drain.remaining_s), (None, None));
    assert_eq!(rig.kernel().backends[&slot(1)].deadline_ns, None);

    let waiting = tokio::spawn({
        let handle = rig.handle.clone();
        async move { handle.wait("web", "web-1", WaitFor::Drained, None).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let back = rig.handle.activate("web", "web-1").await.expect("it comes back");
    assert_eq!(back.state, State::Active);
    assert_eq!(ring(&rig), before);
    let ended = waiting.await.expect("no panic").expect("the wait ends");
    assert_eq!(ended.last_drain.expect("it was cancelled").outcome, Outcome::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn removing_drains_first_then_deletes_and_the_row_is_reused_under_a_new_generation() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 2, now_ns);
    rig.handle.remove_backend("web", "web-1", false).await.expect("it goes");
    let going = get(&rig, 1).await;
    assert_eq!((going.state, going.removing), (State::Draining, true));
    rig.kernel().close(slot(1), 2);
    let ended = rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("it ends");
    assert_eq!(ended.state, None);
    assert_eq!(ended.last_drain.expect("it drained").outcome, Outcome::Completed);
    assert_eq!(rig.handle.backends("web").await.expect("the service").len(), 2);
    assert_eq!(rig.kernel().backends[&slot(1)].state, BackendState::Free);
    let again = rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("it is remembered");
    assert_eq!(again.state, None);

    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(rig.kernel().calls.iter().any(|call| call.starts_with("purge")));
    rig.handle.add_backend("web", backend(9)).await.expect("a backend");
    assert_eq!(rig.kernel().backends[&slot(1)].generation, 2);
    let fresh = get(&rig, 9).await;
    assert_eq!((fresh.new_flows_total, fresh.packets_total), (0, 0), "it does not inherit counts");
}

#[tokio::test(start_paused = true)]
async fn removing_now_cuts() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 2, now_ns);
    rig.handle.remove_backend("web", "web-1", true).await.expect("it goes");
    let ended = rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("it is gone");
    let last = ended.last_drain.expect("it was drained");
    assert_eq!((last.outcome, last.cut_flows), (Outcome::Forced, 2));
    assert_eq!(rig.handle.backends("web").await.expect("the service").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn removing_a_service_drains_it_and_clears_it() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(3), 1, now_ns);
    rig.handle.remove_service("web", false).await.expect("it goes");
    assert_eq!(rig.handle.services().await.expect("a list").len(), 1);
    rig.kernel().close(slot(3), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(rig.handle.services().await.expect("a list").is_empty());
    {
        let kernel = rig.kernel();
        assert!(kernel.vips.is_empty() && kernel.services.is_empty() && kernel.rings.is_empty());
    }
    rig.handle.add_service(service()).await.expect("its name and VIP are free again");
}

#[tokio::test(start_paused = true)]
async fn guards_refuse_and_force_overrides() {
    let rig = three().await;
    let patch: ServicePatch = serde_json::from_value(serde_json::json!({ "max_out": 1 })).expect("a patch");
    rig.handle.set_service("web", patch).await.expect("it is set");
    rig.handle.drain("web", "web-1", timeout(60)).await.expect("the first");
    rig.handle.drain("web", "web-1", timeout(30)).await.expect("changing a running drain is no new one");
    let refused = rig.handle.drain("web", "web-2", timeout(60)).await.expect_err("the second");
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.to_string().contains("--force"));
    let force = DrainRequest { force: true, ..timeout(60) };
    rig.handle.drain("web", "web-2", force).await.expect("forced");
    let patch: ServicePatch = serde_json::from_value(serde_json::json!({ "max_out": null })).expect("a patch");
    rig.handle.set_service("web", patch).await.expect("it is set");
    let refused = rig.handle.drain("web", "web-3", timeout(60)).await.expect_err("the last active one");
    assert!(refused.to_string().contains("without a backend"), "{refused}");
    assert_eq!(get(&rig, 3).await.state, State::Active);
    rig.handle.drain("web", "web-3", force).await.expect("forced");
}

#[tokio::test(start_paused = true)]
async fn draining_an_address_is_all_or_nothing() {
    let rig = three().await;
    let mut other = service();
    "other".clone_into(&mut other.name);
    other.vip = "10.0.0.101:80/tcp".parse().expect("a VIP");
    rig.handle.add_service(other).await.expect("a service");
    rig.handle.add_backend("other", backend(1)).await.expect("a backend");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let address = "10.0.0.11".parse().expect("an address");
    let refused = rig.handle.drain_address(address, timeout(9)).await.expect_err("the last of 'other'");
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert_eq!(get(&rig, 1).await.state, State::Active);
    let force = DrainRequest { force: true, ..timeout(9) };
    let drained = rig.handle.drain_address(address, force).await.expect("forced");
    assert_eq!(drained.len(), 2);
    let nobody = rig.handle.drain_address("10.9.9.9".parse().expect("an address"), timeout(9)).await;
    assert_eq!(nobody.expect_err("nobody has it").kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn bad_requests_change_nothing() {
    let rig = three().await;
    let before = rig.handle.status(None).await.expect("a status");
    let mut same_vip = service();
    "web2".clone_into(&mut same_vip.name);
    assert_eq!(rig.handle.add_service(service()).await.expect_err("name").kind(), ErrorKind::Conflict);
    assert_eq!(rig.handle.add_service(same_vip).await.expect_err("VIP").kind(), ErrorKind::Conflict);
    assert_eq!(rig.handle.add_backend("web", backend(1)).await.expect_err("name").kind(), ErrorKind::Conflict);
    let mut same_address = backend(1);
    "other".clone_into(&mut same_address.name);
    assert_eq!(rig.handle.add_backend("web", same_address).await.expect_err("address").kind(), ErrorKind::Conflict);
    let mut six = backend(4);
    six.address = "fd00::1".parse().expect("an address");
    assert_eq!(rig.handle.add_backend("web", six).await.expect_err("family").kind(), ErrorKind::Invalid);
    let mut port = backend(4);
    port.address = "10.0.0.14:8080".parse().expect("an address");
    assert_eq!(rig.handle.add_backend("web", port).await.expect_err("port").kind(), ErrorKind::Invalid);
    for error in [
        rig.handle.add_backend("nope", backend(4)).await.expect_err("service").kind(),
        rig.handle.drain("web", "nope", timeout(1)).await.expect_err("backend").kind(),
        rig.handle.activate("nope", "web-1").await.expect_err("service").kind(),
        rig.handle.remove_backend("web", "nope", true).await.expect_err("backend").kind(),
        rig.handle.remove_service("nope", true).await.expect_err("service").kind(),
        rig.handle.wait("web", "nope", WaitFor::Drained, None).await.expect_err("backend").kind(),
        rig.handle.status(Some("nope")).await.expect_err("service").kind(),
    ] {
        assert_eq!(error, ErrorKind::NotFound);
    }
    assert_eq!(rig.handle.status(None).await.expect("a status"), before);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_times_out_leaves_the_drain_alone() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 1, now_ns);
    rig.handle.drain("web", "web-1", timeout(60)).await.expect("a drain");
    let late = rig.handle.wait("web", "web-1", WaitFor::Drained, Some(Duration::from_secs(2))).await;
    assert_eq!(late.expect_err("too early").kind(), ErrorKind::Timeout);
    assert_eq!(get(&rig, 1).await.state, State::Draining);
    let active = rig.handle.wait("web", "web-2", WaitFor::Active, None).await.expect("it is");
    assert_eq!(active.state, Some(State::Active));
}

#[tokio::test(start_paused = true)]
async fn a_killed_daemon_goes_on_with_the_drain_it_had() {
    let rig = three().await;
    let before = ring(&rig);
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 3, now_ns);
    rig.handle.drain("web", "web-1", timeout(20)).await.expect("a drain");
    let during = ring(&rig);
    let deadline_ns = rig.kernel().backends[&slot(1)].deadline_ns;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (datapath, clock, directory) = rig.kill().await;
    datapath.kernel().calls.clear();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
    assert_eq!(ring(&rig), during);
    assert_eq!(rig.kernel().backends[&slot(1)].deadline_ns, deadline_ns);
    let drain = get(&rig, 1).await.drain.expect("it runs");
    assert_eq!((drain.initial_flows, drain.remaining_flows, drain.remaining_s), (3, 3, Some(10.0)));
    assert_eq!(get(&rig, 2).await.state, State::Active);
    let started = tokio::time::Instant::now();
    let ended = rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("it ends");
    assert!(started.elapsed() < Duration::from_millis(10_050));
    assert_eq!(ended.last_drain.expect("it ended").cut_flows, 3);
    rig.handle.activate("web", "web-1").await.expect("it comes back");
    assert_eq!(ring(&rig), before, "slot for slot, over the restart");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_came_while_nobody_was_there_is_made_good() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 3, now_ns);
    rig.handle.drain("web", "web-1", timeout(20)).await.expect("a drain");
    let (datapath, clock, directory) = rig.stop().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
    let backend = get(&rig, 1).await;
    assert_eq!(backend.state, State::Drained);
    let last = backend.last_drain.expect("it ended");
    assert_eq!((last.outcome, last.initial_flows, last.cut_flows), (Outcome::Deadline, 3, 3));
}

#[tokio::test(start_paused = true)]
async fn with_the_flow_table_gone_no_drain_ends_early_for_one_idle_timeout() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 3, now_ns);
    rig.handle.drain("web", "web-1", timeout(1_000)).await.expect("a drain");
    let during = ring(&rig);
    let (datapath, clock, directory) = rig.kill().await;
    datapath.kernel().pins_gone = true;
    let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
    assert_eq!(ring(&rig), during, "the former owners are remembered");
    tokio::time::sleep(Duration::from_secs(345)).await;
    assert_eq!(get(&rig, 1).await.state, State::Draining, "none are seen, but none is not known");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let backend = get(&rig, 1).await;
    assert_eq!(backend.last_drain.expect("it ended").outcome, Outcome::Completed);
    let events = rig.handle.events(0).await.expect("events");
    assert!(events.backlog.iter().any(|event| event.kind == EventKind::FlowStateLost));
}

#[tokio::test(start_paused = true)]
async fn a_full_flow_table_holds_drains_open() {
    let rig = three().await;
    rig.kernel().untracked = 5;
    tokio::time::sleep(Duration::from_secs(2)).await;
    rig.handle.drain("web", "web-1", timeout(1_000)).await.expect("a drain");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(get(&rig, 1).await.state, State::Draining);
    tokio::time::sleep(Duration::from_secs(251)).await;
    assert_eq!(get(&rig, 1).await.state, State::Drained);
}

#[tokio::test(start_paused = true)]
async fn flows_that_found_no_room_while_nobody_was_there_hold_drains_open() {
    let rig = three().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (datapath, clock, directory) = rig.kill().await;
    datapath.kernel().untracked = 5;
    let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
    rig.handle.drain("web", "web-1", timeout(1_000)).await.expect("a drain");
    tokio::time::sleep(Duration::from_secs(340)).await;
    assert_eq!(get(&rig, 1).await.state, State::Draining);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(get(&rig, 1).await.state, State::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_wiped_flow_table_holds_drains_open() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 3, now_ns);
    rig.handle.drain("web", "web-1", timeout(1_000)).await.expect("a drain");
    {
        let mut kernel = rig.kernel();
        kernel.flows.clear();
        kernel.wiped = true;
    }
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert_eq!(get(&rig, 1).await.state, State::Draining, "none are seen, but none is not known");
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(get(&rig, 1).await.state, State::Drained);
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_the_wall_clock_decides() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 3, now_ns);
    rig.handle.drain("web", "web-1", timeout(600)).await.expect("a drain");
    let (datapath, clock, directory) = rig.kill().await;
    datapath.kernel().pins_gone = true;
    let mut clock = std::sync::Arc::into_inner(clock).expect("nobody else has it");
    clock.reboot(Duration::from_secs(200));
    let rig = Rig::start(datapath, clock.into(), directory, BTreeSet::new());
    let left = get(&rig, 1).await.drain.expect("it runs").remaining_s.expect("it has a deadline");
    assert!((left - 400.0).abs() < 1.0, "{left}");
}

#[tokio::test(start_paused = true)]
async fn a_stepped_wall_clock_moves_no_deadline() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 3, now_ns);
    let started = tokio::time::Instant::now();
    rig.handle.drain("web", "web-1", timeout(60)).await.expect("a drain");
    *rig.clock.skew.lock().expect("not poisoned") = jiff::SignedDuration::from_hours(-5);
    tokio::time::sleep(Duration::from_secs(1)).await;
    *rig.clock.skew.lock().expect("not poisoned") = jiff::SignedDuration::from_hours(5);
    rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("it ends");
    let took = started.elapsed().as_secs_f64();
    assert!((took - 60.0).abs() < 0.1, "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_datapath_is_tried_again() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 1, now_ns);
    // Slot by slot, and whole at the second attempt.
    rig.kernel().failing.extend(["set_ring_slots", "put_ring"]);
    let error = rig.handle.drain("web", "web-1", timeout(60)).await.expect_err("it fails");
    assert_eq!(error.kind(), ErrorKind::Internal);
    rig.kernel().failing.clear();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let drain = get(&rig, 1).await.drain.expect("it runs after all");
    assert_eq!(drain.initial_flows, 1);
    let kernel = rig.kernel();
    assert!((0..kernel.rings[&WEB].len()).all(|at| kernel.steer(WEB, at).is_some_and(|to| to != slot(1))));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_put_into_force_is_taken_back() {
    let rig = three().await;
    rig.kernel().failing.insert("put_backend");
    rig.handle.add_backend("web", backend(4)).await.expect_err("it fails");
    rig.kernel().failing.clear();
    assert_eq!(rig.handle.backends("web").await.expect("the service").len(), 3);
    rig.handle.add_backend("web", backend(4)).await.expect("now it works");
}

#[tokio::test(start_paused = true)]
async fn silent_flows_are_ended_by_drain_idle() {
    let rig = three().await;
    let patch = ServicePatch { drain_idle_s: Some(Limit::seconds(10)), ..ServicePatch::default() };
    rig.handle.set_service("web", patch).await.expect("it is set");
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 2, now_ns);
    rig.handle.drain("web", "web-1", timeout(600)).await.expect("a drain");
    tokio::time::sleep(Duration::from_secs(12)).await;
    let last = get(&rig, 1).await.last_drain.expect("it ended");
    assert_eq!((last.outcome, last.cut_flows, last.idle_flows), (Outcome::Completed, 0, 2));
}

/// Three backends, of which web-1 has just begun a slow start of 20 s; the ring as it was before.
async fn slow_starter() -> (Rig, Vec<RingSlot>) {
    let rig = three().await;
    let patch = ServicePatch { slow_start_s: Some(Seconds::new(20)), ..ServicePatch::default() };
    rig.handle.set_service("web", patch).await.expect("it is set");
    let full = ring(&rig);
    rig.handle.drain("web", "web-1", timeout(0)).await.expect("a drain");
    rig.handle.activate("web", "web-1").await.expect("it comes back");
    (rig, full)
}

/// How many slots of a ring are web-1's.
fn share(ring: &[RingSlot]) -> usize {
    ring.iter().filter(|ring| ring.owner == Some(slot(1))).count()
}

#[tokio::test(start_paused = true)]
async fn a_slow_start_ramps_up_and_a_cancelled_drain_starts_none() {
    let (rig, full) = slow_starter().await;
    let whole = share(&full);
    assert!(share(&ring(&rig)) > 0 && share(&ring(&rig)) < whole / 10);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!((share(&ring(&rig)) * 2).abs_diff(whole) < whole / 10);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(ring(&rig), full);
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 1, now_ns);
    rig.handle.drain("web", "web-1", timeout(60)).await.expect("a drain");
    rig.handle.activate("web", "web-1").await.expect("it comes back");
    assert_eq!(ring(&rig), full);
}

#[tokio::test(start_paused = true)]
async fn a_drain_cancelled_during_a_slow_start_lets_it_go_on() {
    let (rig, full) = slow_starter().await;
    let whole = share(&full);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 1, now_ns);
    let before = ring(&rig);
    rig.handle.drain("web", "web-1", timeout(60)).await.expect("a drain");
    rig.handle.activate("web", "web-1").await.expect("it is cancelled");
    let after = ring(&rig);
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    // The command itself takes some of the slow start's time.
    let forward = moved.iter().all(|(_, after)| after.owner == Some(slot(1)));
    assert!(forward && moved.len() < whole / 20, "{} slots are not where they were", moved.len());
    rig.handle.drain("web", "web-1", timeout(60)).await.expect("a drain");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(share(&ring(&rig)), 0, "a slow start gives a draining backend nothing");
    rig.handle.activate("web", "web-1").await.expect("it is cancelled");
    assert!((share(&ring(&rig)) * 2).abs_diff(whole) < whole / 10, "half of the time is over");
    rig.handle.drain("web", "web-1", timeout(60)).await.expect("a drain");
    tokio::time::sleep(Duration::from_secs(15)).await;
    rig.handle.activate("web", "web-1").await.expect("it is cancelled");
    assert!(ring(&rig) == full, "it would be over by now");
}

#[tokio::test(start_paused = true)]
async fn events_tell_the_whole_story_without_a_gap() {
    let rig = three().await;
    let stream = rig.handle.events(0).await.expect("events");
    assert_eq!(stream.backlog[0].kind, EventKind::Started);
    let ids: Vec<u64> = stream.backlog.iter().map(|event| event.id).collect();
    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1));
    let mut live = stream.live;
    rig.handle.drain("web", "web-1", timeout(9)).await.expect("a drain");
    let mut kinds = Vec::new();
    while let Ok(event) = live.try_recv() {
        kinds.push(event.kind);
    }
    let expected = [EventKind::BackendState, EventKind::DrainStarted, EventKind::DrainEnded, EventKind::BackendState];
    assert_eq!(kinds[..2], expected[..2]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    while let Ok(event) = live.try_recv() {
        kinds.push(event.kind);
    }
    assert_eq!(kinds, expected);
}

#[tokio::test(start_paused = true)]
async fn a_lost_next_hop_takes_a_backend_out_and_keeps_its_flows() {
    let rig = three().await;
    let before = ring(&rig);
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 1, now_ns);
    let address = "10.0.0.11".parse().expect("an address");
    rig.next_hops.send(NextHopUpdate { address, next_hop: None }).await.expect("the engine listens");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(get(&rig, 1).await.state, State::UnhealthyDraining);
    {
        let kernel = rig.kernel();
        let row = &kernel.backends[&slot(1)];
        assert_eq!(
            (row.state, row.next_hop, row.deadline_ns),
            (BackendState::UnhealthyDraining, Some(next_hop()), None)
        );
    }
    rig.next_hops.send(NextHopUpdate { address, next_hop: Some(next_hop()) }).await.expect("the engine listens");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get(&rig, 1).await.state, State::Active);
    assert_eq!(ring(&rig), before);
}

/// Drains a backend with three flows, lets them end, and brings it back; false when the daemon died on the way.
async fn drain_and_return(rig: &Rig, acknowledged: &mut bool) -> Result<bool, crate::control::Error> {
    rig.handle.drain("web", "web-1", timeout(20)).await?;
    *acknowledged = true;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let left = rig.kernel().flows.len();
    rig.kernel().close(slot(1), left);
    let ended = rig.handle.wait("web", "web-1", WaitFor::Drained, None).await?;
    assert_eq!(ended.last_drain.map(|last| last.outcome), Some(Outcome::Completed));
    rig.handle.activate("web", "web-1").await?;
    Ok(true)
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_of_a_drain_it_comes_out_right() {
    for step in 0.. {
        let rig = three().await;
        let before = ring(&rig);
        let now_ns = rig.clock.now().mono_ns;
        rig.kernel().open(slot(1), 3, now_ns);
        rig.kernel().calls_left = Some(step);
        let mut acknowledged = false;
        let survived = drain_and_return(&rig, &mut acknowledged).await.unwrap_or(false);
        rig.kernel().calls_left = None;
        if survived {
            assert!(step > 5, "it dies at every step first");
            return;
        }
        let (datapath, clock, directory) = rig.kill().await;
        let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
        let state = get(&rig, 1).await.state;
        assert!(!acknowledged || state != State::Active || ring(&rig) == before, "step {step}: {state:?}");
        if acknowledged && state != State::Active {
            let kernel = rig.kernel();
            assert!((0..before.len()).all(|at| kernel.steer(WEB, at).is_some_and(|to| to != slot(1))), "step {step}");
        }
        if state != State::Draining {
            rig.handle.drain("web", "web-1", timeout(20)).await.expect("it can be drained again");
        }
        let left = rig.kernel().flows.iter().filter(|flow| flow.backend == slot(1)).count();
        rig.kernel().close(slot(1), left);
        let ended = rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("it ends");
        let last = ended.last_drain.expect("it drained");
        assert_eq!((last.outcome, last.cut_flows), (Outcome::Completed, 0), "step {step}");
        rig.handle.activate("web", "web-1").await.expect("it comes back");
        assert_eq!(ring(&rig), before, "step {step}: slot for slot");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_survives_though_it_only_confirms_what_goes_on() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    for number in 1..=3 {
        rig.kernel().open(slot(number), 1, now_ns);
        let force = DrainRequest { force: true, ..timeout(60) };
        rig.handle.drain("web", &format!("web-{number}"), force).await.expect("a drain");
    }
    for number in 1..=3 {
        rig.handle.remove_backend("web", &format!("web-{number}"), false).await.expect("it is to go");
    }
    rig.handle.remove_service("web", false).await.expect("so is the service");
    let (datapath, clock, directory) = rig.kill().await;
    let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
    (1..=3).for_each(|number| rig.kernel().close(slot(number), 1));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.handle.services().await.expect("a list").is_empty(), "it goes with its last backend");
}

#[tokio::test(start_paused = true)]
async fn a_host_comes_back_in_every_service_that_stays() {
    let rig = three().await;
    for (name, address) in [("old", "10.0.0.101:80/tcp"), ("new", "10.0.0.102:80/tcp")] {
        let mut other = service();
        name.clone_into(&mut other.name);
        other.vip = address.parse().expect("a VIP");
        rig.handle.add_service(other).await.expect("a service");
        for number in [1, 2] {
            rig.handle.add_backend(name, backend(number)).await.expect("a backend");
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let now_ns = rig.clock.now().mono_ns;
    let host = backend(1).address.ip;
    let slots: Vec<_> = rig.kernel().backends.iter().filter(|(_, row)| row.address == host).map(|row| *row.0).collect();
    for slot in &slots {
        rig.kernel().open(*slot, 1, now_ns);
    }
    rig.handle.drain_address(host, timeout(600)).await.expect("drains");
    rig.handle.remove_service("old", false).await.expect("it is to go");
    let all = rig.handle.activate_address(host).await.expect("the others stay");
    let states: Vec<_> = all.iter().map(|(service, status)| (service.as_str(), status.state)).collect();
    assert_eq!(states, [("web", State::Active), ("old", State::Draining), ("new", State::Active)]);
    for service in ["web", "new"] {
        rig.handle.remove_service(service, false).await.expect("they are to go");
    }
    let refused = rig.handle.activate_address(host).await.expect_err("all of them go");
    assert!(refused.to_string().contains("being removed"), "{refused}");
}

/// Found by a run of faults: a daemon killed while its disk was full did not come back before somebody had made room.
#[tokio::test(start_paused = true)]
async fn a_disk_that_cannot_be_written_to_keeps_no_daemon_from_coming_back() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 3, now_ns);
    rig.handle.drain("web", "web-1", timeout(20)).await.expect("a drain");
    let (datapath, clock, directory) = rig.kill().await;
    let spare = directory.path().join("state.json.new");
    std::fs::remove_file(&spare).expect("it was there");
    // Nobody can write to that, root neither.
    std::fs::create_dir(&spare).expect("made");

    let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
    assert_eq!(get(&rig, 1).await.state, State::Draining);
    let refused = rig.handle.drain("web", "web-2", timeout(20)).await.expect_err("it would not survive a restart");
    assert!(refused.to_string().contains("nothing was changed"), "{refused}");
    let ended = rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("its deadline comes");
    assert_eq!(ended.last_drain.expect("it ended").cut_flows, 3);

    std::fs::remove_dir(&spare).expect("removed");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (datapath, clock, directory) = rig.kill().await;
    let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
    assert_eq!(get(&rig, 1).await.state, State::Drained, "written as soon as that was possible");
    rig.handle.drain("web", "web-2", timeout(20)).await.expect("commands are taken again");

    let empty = Arc::new(tempfile::tempdir().expect("a directory"));
    std::fs::create_dir(empty.path().join("state.json.new")).expect("made");
    let first = Rig::try_start(FakeDatapath::default(), Arc::new(FakeClock::new()), empty, BTreeSet::new());
    assert!(first.is_none(), "one that has served nobody yet says what is wrong");
}

/// Found by a run of faults (`cargo xtask chaos`): killed in the midst of `ebb drain`, the packet path cut at the deadline, and the backend was
/// back in rotation.
#[tokio::test(start_paused = true)]
async fn killed_in_the_midst_of_a_drain_the_next_daemon_knows_of_what_is_in_force() {
    let (mut lost, mut known) = (0, 0);
    for seconds in [0, 20] {
        for step in 1.. {
            let rig = three().await;
            let now_ns = rig.clock.now().mono_ns;
            rig.kernel().open(slot(1), 3, now_ns);
            rig.kernel().calls_left = Some(step);
            if rig.handle.drain("web", "web-1", timeout(seconds)).await.is_ok() {
                assert!(step > 2, "it dies at every step first");
                break;
            }
            let row = rig.kernel().backends[&slot(1)].clone();
            assert_ne!(row.state, BackendState::Active, "the row is marked first");
            rig.kernel().calls_left = None;
            let (datapath, clock, directory) = rig.kill().await;
            let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
            let state = get(&rig, 1).await.state;
            if row.deadline_ns.is_none() && state == State::Active {
                // Killed before it was on disk: nobody was told of it, and nothing is left of it.
                let kernel = rig.kernel();
                assert_eq!((kernel.backends[&slot(1)].state, kernel.flows.len()), (BackendState::Active, 3));
                lost += 1;
                continue;
            }
            let expected = if seconds == 0 { State::Drained } else { State::Draining };
            assert_eq!(state, expected, "{seconds} s, killed at step {step}");
            known += 1;
        }
    }
    assert!(lost > 0 && known > 0, "{lost} {known}");
}

/// Found by a run of faults: killed in the midst of `ebb activate`, the next daemon reset the connections that had come since.
#[tokio::test(start_paused = true)]
async fn what_came_to_a_backend_before_its_daemon_was_killed_is_kept() {
    let fourth = slot(4);
    for adds in [false, true] {
        let mut opened = 0;
        for step in 0.. {
            let rig = three().await;
            let target = if adds {
                // Its host is known already, so that it is active at once.
                let mut other = service();
                "other".clone_into(&mut other.name);
                other.vip = "10.0.0.101:80/tcp".parse().expect("a VIP");
                rig.handle.add_service(other).await.expect("a service");
                fourth
            } else {
                rig.handle.drain("web", "web-1", timeout(20)).await.expect("a drain");
                rig.handle.wait("web", "web-1", WaitFor::Drained, None).await.expect("it has no flows");
                slot(1)
            };
            rig.kernel().calls_left = Some(step);
            let done = if adds {
                rig.handle.add_backend("other", backend(1)).await.is_ok()
            } else {
                rig.handle.activate("web", "web-1").await.is_ok()
            };
            if done {
                break;
            }
            let now_ns = rig.clock.now().mono_ns;
            let takes_new = rig.kernel().backends.get(&target).is_some_and(|row| row.state == BackendState::Active);
            if takes_new {
                rig.kernel().open(target, 3, now_ns);
                opened += 1;
            }
            rig.kernel().calls_left = None;
            let (datapath, clock, directory) = rig.kill().await;
            let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
            rig.handle.status(None).await.expect("it has started");
            if takes_new {
                let kernel = rig.kernel();
                assert_eq!(
                    (kernel.backends[&target].state, kernel.flows.len()),
                    (BackendState::Active, 3),
                    "step {step}"
                );
            }
        }
        assert!(opened > 0, "it dies after the row was written too");
    }
}

#[tokio::test(start_paused = true)]
async fn rows_that_nobody_knows_are_freed_and_their_generations_never_come_again() {
    let rig = three().await;
    let (datapath, clock, _) = rig.kill().await;
    let empty = std::sync::Arc::new(tempfile::tempdir().expect("a directory"));
    let rig = Rig::start(datapath, clock, empty, BTreeSet::new());
    assert!(rig.handle.services().await.expect("a list").is_empty());
    {
        let kernel = rig.kernel();
        assert!(kernel.vips.is_empty());
        assert!(kernel.backends.values().all(|row| row.state == BackendState::Free));
    }
    fill(&rig).await;
    assert!(
        rig.kernel().backends.values().filter(|row| row.state == BackendState::Active).all(|row| row.generation == 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_file_is_applied_and_what_it_lacks_is_drained() {
    let rig = three().await;
    let mut other = service();
    "api".clone_into(&mut other.name);
    other.vip = "10.0.0.101:443/tcp".parse().expect("a VIP");
    let mut heavy = backend(2);
    heavy.weight = 5;
    let wanted = vec![
        WantedService { service: service(), backends: vec![heavy, backend(3), backend(4)] },
        WantedService { service: other, backends: vec![backend(1)] },
    ];
    let before = rig.handle.status(None).await.expect("a status");
    let dry = rig.handle.apply(wanted.clone(), true).await.expect("a plan");
    assert_eq!(dry.changes.len(), 5, "{:?}", dry.changes);
    assert_eq!(rig.handle.status(None).await.expect("a status"), before);
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 1, now_ns);
    let done = rig.handle.apply(wanted.clone(), false).await.expect("it is applied");
    assert_eq!(done.changes, dry.changes);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let going = get(&rig, 1).await;
    assert_eq!((going.state, going.removing), (State::Draining, true));
    assert_eq!((get(&rig, 2).await.weight, get(&rig, 4).await.state), (5, State::Active));
    assert_eq!(rig.handle.backends("api").await.expect("the service")[0].state, State::Active);
    assert!(rig.handle.apply(wanted.clone(), false).await.expect("nothing to do").changes.is_empty());

    let mut moved = wanted;
    moved[0].service.vip = "10.0.0.102:80/tcp".parse().expect("a VIP");
    let refused = rig.handle.apply(moved, false).await.expect_err("a VIP cannot move");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    rig.handle.apply(Vec::new(), false).await.expect("everything goes");
    rig.kernel().close(slot(1), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(rig.handle.services().await.expect("a list").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_file_of_many_services_is_put_into_force_at_once_or_not_at_all() {
    let rig = three().await;
    let mut wanted =
        vec![WantedService { service: service(), backends: (1..=3).map(backend).collect::<Vec<BackendSpec>>() }];
    wanted.extend((0..50).map(|n| {
        let mut more = service();
        more.name = format!("more{n}");
        more.vip = format!("10.0.1.{n}:80/tcp").parse().expect("a VIP");
        WantedService { service: more, backends: vec![backend(1), backend(2)] }
    }));
    rig.kernel().failing.insert("publish_vips");
    assert!(rig.handle.apply(wanted.clone(), false).await.is_err());
    rig.kernel().failing.clear();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.handle.services().await.expect("a list").len(), 1);
    assert_eq!(rig.kernel().backends.values().filter(|row| row.state != BackendState::Free).count(), 3);

    rig.kernel().calls.clear();
    rig.handle.apply(wanted, false).await.expect("it is applied");
    let publications = rig.kernel().calls.iter().filter(|call| call.starts_with("publish_vips")).count();
    assert_eq!(publications, 1, "each is followed by a grace period");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.handle.backends("more49").await.expect("the service")[1].state, State::Active);
}

/// What a file wants of the service `three` has.
fn wanted(backends: Vec<BackendSpec>) -> WantedService {
    WantedService { service: service(), backends }
}

#[tokio::test(start_paused = true)]
async fn a_file_of_which_one_thing_cannot_be_taken_changes_nothing() {
    let rig = three().await;
    let mut api = service();
    "api".clone_into(&mut api.name);
    api.vip = "10.0.0.101:80/tcp".parse().expect("a VIP");
    let api = |backends| WantedService { service: api.clone(), backends };
    let all = || vec![wanted((1..=3).map(backend).collect()), api(vec![backend(1)])];
    rig.handle.apply(all(), false).await.expect("it is applied");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = rig.handle.status(None).await.expect("a status");
    let events = || async { rig.handle.events(0).await.expect("events").backlog.len() };
    let (told, file) = (events().await, std::fs::read(rig.directory.path().join("state.json")).expect("the state"));

    let renamed = |number: u32| BackendSpec { name: "other".to_owned(), ..backend(number) };
    let mut slow = service();
    slow.drain_timeout_s = Limit::seconds(1);
    let mut twin = service();
    "twin".clone_into(&mut twin.name);
    let first = || WantedService { service: slow.clone(), backends: vec![backend(2), backend(9)] };
    let many = (0..5_000).map(|number| BackendSpec {
        name: format!("m{number}"),
        address: format!("10.1.{}.{}", number / 250, number % 250).parse().expect("an address"),
        ..backend(1)
    });
    let impossible: [(&str, Vec<WantedService>); 4] = [
        ("a backend by another name", vec![first(), api(vec![renamed(1)])]),
        ("a service by another name", vec![WantedService { service: twin, backends: Vec::new() }, api(vec![])]),
        (
            "an address twice",
            vec![
                first(),
                api(vec![
                    backend(1),
                    BackendSpec {
                        name: "other".to_owned(),
                        address: "10.0.0.11:80".parse().expect("an address"),
                        ..backend(1)
                    },
                ]),
            ],
        ),
        ("too many", vec![first(), api(many.collect())]),
    ];
    for (what, file) in impossible {
        let tried = rig.handle.apply(file.clone(), true).await.expect_err(what);
        let applied = rig.handle.apply(file, false).await.expect_err(what);
        assert_eq!(tried, applied, "{what}: a dry run foresees it");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.handle.status(None).await.expect("a status"), before);
    assert_eq!(events().await, told);
    assert_eq!(std::fs::read(rig.directory.path().join("state.json")).expect("the state"), file);
    rig.handle.apply(all(), false).await.expect("what was in force is");
}

#[tokio::test(start_paused = true)]
async fn a_file_brings_back_a_service_that_is_being_removed_and_what_it_leaves_out_to_its_default() {
    let rig = three().await;
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 1, now_ns);
    let seven = ServicePatch { idle_timeout_s: Some(Some(Seconds::new(7))), ..ServicePatch::default() };
    rig.handle.set_service("web", seven).await.expect("it is set");
    rig.handle.remove_service("web", false).await.expect("it drains");
    assert_eq!(get(&rig, 1).await.state, State::Draining);
    // The others had no flows to wait for.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let file = vec![wanted(vec![backend(1), backend(2)])];
    rig.handle.apply(file.clone(), false).await.expect("it is applied");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for number in [1, 2] {
        assert_eq!(get(&rig, number).await.state, State::Active);
    }
    assert_eq!(rig.kernel().flows.len(), 1, "its connection is where it was");
    assert_eq!(rig.handle.services().await.expect("a list")[0].idle_timeout_s, None);
    let again = rig.handle.apply(file, false).await.expect("it is applied");
    assert_eq!(again.changes, [], "there is nothing left to do");
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(get(&rig, 1).await.state, State::Active, "it stays");
}

#[tokio::test(start_paused = true)]
async fn advice_comes_from_flows_that_ended_and_counts_those_that_have_not() {
    use crate::datapath::{BackendSlot, EndedFlow};
    let rig = three().await;
    let ended = |length_ms| EndedFlow { service: WEB, backend: BackendSlot(0), generation: 1, length_ms, cut: false };
    rig.kernel().ended = (1..=1_000).map(ended).chain([EndedFlow { cut: true, ..ended(5) }]).collect();
    let now_ns = rig.clock.now().mono_ns;
    rig.kernel().open(slot(1), 20, now_ns);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let advice = rig.handle.advice("web").await.expect("the service is there");
    assert_eq!((advice.ended_flows, advice.censored_flows), (1_000, 21));
    assert_eq!(advice.recommended_s, None, "20 flows of 1,021 are older than all that ended");
    assert_eq!(advice.percentiles[0].at_most_s, Some(0.511));

    let (datapath, clock, directory) = rig.stop().await;
    datapath.kernel().flows.clear();
    let rig = Rig::start(datapath, clock, directory, BTreeSet::new());
    let advice = rig.handle.advice("web").await.expect("it is there again");
    assert_eq!((advice.ended_flows, advice.censored_flows), (1_000, 1));
    assert_eq!(advice.recommended_s, Some(Seconds::new(2)));
    assert!(rig.handle.advice("none").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_vip_is_announced_a_few_times_when_it_appears_and_when_an_interface_is_back() {
    use crate::datapath::{InterfaceChange, InterfaceNews};
    let rig = Rig::new();
    let mut spec = service();
    spec.announce = true;
    let vip = spec.vip.address.ip();
    rig.handle.add_service(spec).await.expect("added");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.kernel().announced, vec![vec![vip]; 3]);
    let back = InterfaceNews::Attached("native".to_owned());
    rig.kernel().interface_changes.push(InterfaceChange { interface: "eth0".to_owned(), news: back });
    rig.host.send_replace(Arc::default());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.kernel().announced, vec![vec![vip]; 6]);
    let events = rig.handle.events(0).await.expect("events").backlog;
    let told = events.iter().find(|event| event.kind == EventKind::InterfaceBack).expect("it is told");
    assert_eq!(told.interface.as_deref(), Some("eth0"));
    rig.handle.remove_service("web", true).await.expect("removed");
    rig.host.send_replace(Arc::default());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.kernel().announced.len(), 6, "nothing is announced that is not there");
}

#[tokio::test(start_paused = true)]
async fn vips_that_the_host_uses_too_are_published_as_such_and_followed() {
    use crate::net::host::Host;
    let rig = Rig::new();
    let spec = service();
    let vip = spec.vip.address.ip();
    rig.handle.add_service(spec).await.expect("added");
    assert!(rig.kernel().own.is_empty());
    let other = "192.0.2.200".parse().expect("an address");
    rig.host.send_replace(Arc::new(Host { links: Vec::new(), addresses: [vip, other].into() }));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.kernel().own, [vip].into());
    rig.host.send_replace(Arc::default());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(rig.kernel().own.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_addition_that_is_taken_back_leaves_no_gap_between_ids() {
    let rig = three().await;
    let mut api = service();
    "api".clone_into(&mut api.name);
    api.vip = "10.0.0.101:80/tcp".parse().expect("a VIP");
    rig.kernel().failing.insert("put_service");
    rig.handle.add_service(api.clone()).await.expect_err("it cannot be put into force");
    rig.kernel().failing.clear();
    rig.handle.add_service(api).await.expect("added");
    rig.kernel().failing.insert("put_backend");
    rig.handle.add_backend("api", backend(1)).await.expect_err("it cannot be put into force");
    rig.kernel().failing.clear();
    rig.handle.drain("web", "web-1", timeout(9)).await.expect("a drain");
    let events = rig.handle.events(0).await.expect("events").backlog;
    assert!(events.iter().any(|event| event.kind == EventKind::DrainStarted));
    assert!(events.iter().map(|event| event.id).eq(1..=events.len() as u64));
}

#[tokio::test(start_paused = true)]
async fn server_ids_are_published_when_they_change_and_only_then() {
    let rig = Rig::new();
    let quic = serde_json::json!({ "name": "web", "vip": "10.0.0.100:443/udp", "quic_cid": 2 });
    rig.handle.add_service(serde_json::from_value(quic).expect("a service")).await.expect("a service");
    let id = |text: &str| Some(text.parse().expect("an id"));
    rig.handle.add_backend("web", BackendSpec { server_id: id("0102"), ..backend(1) }).await.expect("a backend");
    rig.handle.add_backend("web", backend(2)).await.expect("a backend");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let first = |rig: &Rig| rig.kernel().named.ids.iter().map(|named| (named.backend, named.id[..3].to_vec())).next();
    assert_eq!(first(&rig), Some((slot(1), vec![1, 2, 0])));
    assert_eq!(rig.kernel().named.ids.len(), 2);

    rig.kernel().calls.clear();
    rig.handle.drain("web", "web-1", timeout(10)).await.expect("a drain");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get(&rig, 1).await.state, State::Drained);
    assert_eq!(rig.kernel().named.ids.len(), 2, "its state is what packets go by");
    assert!(rig.kernel().calls.iter().all(|call| !call.starts_with("publish_vips")));

    let patch = BackendPatch { server_id: Some(id("0304")), ..BackendPatch::default() };
    rig.handle.set_backend("web", "web-1", patch).await.expect("changed");
    assert_eq!(first(&rig), Some((slot(1), vec![3, 4, 0])));
    let off = ServicePatch { quic_cid: Some(None), ..ServicePatch::default() };
    rig.handle.set_service("web", off).await.expect("off");
    assert_eq!(first(&rig), None);
}
