//! What a service or a run can be set to, seen in traffic.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ebb_tests::{
    lab::{Arms, Ebb, Family, Lab, Plan, ip},
    scene::{Forward, SOON, Scene, Setting},
    traffic::{Client, Connection, Conversation, End, Fault, Lasting, Server},
    wait_until,
};

fn many_addresses() -> Setting {
    Setting { plan: Plan { client_addresses: 24, ..Plan::default() }, ..Setting::default() }
}

/// Which servers each client address was served by.
fn servers_by_source(connections: &[Connection]) -> BTreeMap<IpAddr, BTreeSet<String>> {
    let mut servers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for connection in connections {
        if let (Some(local), Some((server, _))) = (connection.local, connection.served_by) {
            servers.entry(local.ip()).or_default().insert(server.to_string());
        }
    }
    servers
}

#[test]
fn affinity_keeps_a_client_with_its_backend_but_never_with_a_draining_one() -> Result<()> {
    let scene = Scene::with_web(many_addresses(), &["--affinity", "source"])?;
    let held = scene.hold(24 * 5)?;
    let before = servers_by_source(&held.connections());
    assert_eq!(before.len(), 24);
    assert!(before.values().all(|servers| servers.len() == 1), "{before:?}");
    let used: BTreeSet<_> = before.values().flatten().collect();
    assert_eq!(used.len(), 3, "{before:?}");

    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    let late = scene.hold(24 * 5)?;
    let during = servers_by_source(&late.connections());
    for (source, servers) in &during {
        assert!(!servers.contains("b1"), "{source} was sent to the draining backend");
        let own = &before[source];
        assert!(own.contains("b1") || servers == own, "{source} was moved from {own:?} to {servers:?} for nothing");
    }
    held.finish_and_wait(SOON)?;
    let tally = late.finish_and_wait(SOON)?;
    assert_eq!(tally.broken(), 0);
    scene.ebb.wait_state("web/b1", "drained", SOON)?;
    scene.ebb.ok(&["activate", "web/b1"])?;
    scene.wait_all_active("web")?;
    let again = scene.hold(24 * 5)?;
    assert_eq!(servers_by_source(&again.connections()), before, "everything is where it was");
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    scene.ebb.ok(&["activate", "web/b1"])?;
    let cancelled = scene.hold(24 * 5)?;
    assert_eq!(servers_by_source(&cancelled.connections()), before, "cancelled, it is as if it had never been");
    Ok(())
}

#[test]
fn datagrams_are_spread_one_by_one() -> Result<()> {
    let scene = Scene::set(Setting::default())?;
    scene.add_service("dns", 0, 53, "udp", &["--per-datagram", "true"])?;
    let group = scene.client.datagrams(scene.vip(0, 53), 60, Duration::from_millis(10));
    group.wait_answered(SOON)?;
    wait_until("fifty answers each", SOON, || group.flows().iter().all(|flow| flow.answered >= 50))?;
    assert_eq!(scene.ebb.status()?.datapath.flows.live, 0, "no flow is kept");
    let begun = Instant::now();
    scene.ebb.ok(&["drain", "dns/b1", "--timeout", "60s"])?;
    let answered = Instant::now();
    scene.ebb.wait_state("dns/b1", "drained", SOON)?;
    assert!(begun.elapsed() < Duration::from_secs(3), "there is nothing to wait for");
    wait_until("many more answers", SOON, || group.flows().iter().all(|flow| flow.answered >= 100))?;
    let strays = group.flows().into_iter().flat_map(|flow| flow.servers).filter(|(server, when)| {
        // The last answer may have been under way.
        server.as_str() == "b1" && *when > answered + Duration::from_millis(200)
    });
    assert_eq!(strays.count(), 0, "no datagram goes to the drained backend");
    Ok(())
}

#[test]
fn a_host_is_drained_in_every_service() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    scene.add_service("other", 1, 8080, "tcp", &[])?;
    let held = scene.hold(30)?;
    let address = Plan::backend(scene.setting.family, 1).to_string();
    let waiting = scene.ebb.background(&["drain", "--address", &address, "--timeout", "60s", "--wait"])?;
    scene.ebb.wait_state("other/b1", "drained", SOON)?;
    assert_eq!(scene.ebb.backend("web/b1")?.state, "draining");
    assert_eq!(scene.ebb.backend("web/b0")?.state, "active");
    held.finish_and_wait(SOON)?;
    let output = waiting.wait(SOON)?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(scene.ebb.backend("web/b1")?.state, "drained");
    Ok(())
}

#[test]
fn a_cut_window_spreads_the_cuts_and_none_is_late() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &["--cut-window", "4s"])?;
    let held = scene.hold(150)?;
    let begun = Instant::now();
    let output = scene.ebb.cli(&["drain", "web/b1", "--timeout", "5s", "--wait"])?;
    assert_eq!(output.code, 3, "{output:?}");
    let at_b1 = held.tally().served_by("b1");
    wait_until("all to be cut", SOON, || held.tally().broken() == at_b1)?;
    let connections = held.connections();
    let cut = connections.iter().filter_map(|c| match c.end {
        Some((End::Broken(Fault::Reset), when)) => Some(when.duration_since(begun)),
        _ => None,
    });
    let cut: Vec<_> = cut.collect();
    assert_eq!(cut.len(), at_b1, "all of them by resets: {:?}", held.tally());
    let (first, last) = (cut.iter().min().context("a first")?, cut.iter().max().context("a last")?);
    assert!(*first >= Duration::from_millis(900), "the first at {first:?}, before the window");
    assert!(*last <= Duration::from_millis(6500), "the last at {last:?}, after the deadline");
    // In four seconds; half of them in each half, within what chance allows.
    let early = cut.iter().filter(|at| **at < Duration::from_secs(3)).count();
    assert!((at_b1 / 5..=at_b1 * 4 / 5).contains(&early), "{early} of {at_b1} in the first half");
    Ok(())
}

#[test]
fn idle_connections_can_be_ended_during_a_drain() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &["--drain-idle", "3s"])?;
    let busy = scene.hold(20)?;
    let idle = Conversation { pause: Duration::from_mins(1), ..Conversation::rarely_talking_with(scene.web()) };
    let idle = scene.client.open(idle, 20);
    idle.wait_open(20, SOON)?;
    let (busy_there, idle_there) = (busy.tally().open_at("b1"), idle.tally().open_at("b1"));
    assert!(busy_there > 0 && idle_there > 0);
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    wait_until("the idle ones to be ended", SOON, || idle.tally().open_at("b1") == 0)?;
    assert_eq!(busy.tally().open_at("b1"), busy_there, "who talks is left alone");
    assert_eq!(idle.tally().broken(), idle_there, "who is elsewhere too: {:?}", idle.tally());
    busy.finish_and_wait(SOON)?;
    let last = scene.ebb.wait_state("web/b1", "drained", SOON)?.last_drain.context("a record")?;
    let reported = (last.outcome.as_str(), last.cut_flows, last.idle_flows);
    assert_eq!(reported, ("completed", 0, idle_there as u64), "idle is not cut");
    Ok(())
}

#[test]
fn a_limit_on_how_many_are_out_is_a_guard() -> Result<()> {
    let scene = Scene::with_web(Setting::with_backends(4), &["--max-out", "1"])?;
    scene.ebb.ok(&["drain", "web/b0", "--wait"])?;
    let refused = scene.ebb.cli(&["drain", "web/b1"])?;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(scene.ebb.backend("web/b1")?.state, "active");
    scene.ebb.ok(&["drain", "web/b1", "--force", "--wait"])?;
    Ok(())
}

#[test]
fn a_share_that_may_be_out_is_a_guard_too() -> Result<()> {
    let scene = Scene::with_web(Setting::with_backends(4), &["--max-out", "50%"])?;
    scene.ebb.ok(&["drain", "web/b0", "--wait"])?;
    scene.ebb.ok(&["drain", "web/b1", "--wait"])?;
    let refused = scene.ebb.cli(&["drain", "web/b2"])?;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("allows 2"), "{refused:?}");
    let address = Plan::backend(scene.setting.family, 2).to_string();
    assert_eq!(scene.ebb.cli(&["drain", "--address", &address])?.code, 1, "a host is no way round it");
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"]).context("one that is out already is no further one")?;
    scene.ebb.ok(&["activate", "web/b0"])?;
    scene.ebb.wait_state("web/b0", "active", SOON)?;
    scene.ebb.ok(&["drain", "web/b2", "--wait"])?;
    assert_eq!(scene.visit(30)?.served_by("b2"), 0);
    Ok(())
}

#[test]
fn no_weight_means_no_new_flows_and_no_flow_lost() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(60)?;
    let at_b1 = held.tally().open_at("b1");
    assert!(at_b1 > 0, "{:?}", held.tally());
    scene.ebb.ok(&["backend", "set", "web", "b1", "--weight", "0"])?;
    let tally = scene.visit(150)?;
    assert_eq!(tally.served_by("b1"), 0, "{tally:?}");
    assert_eq!(scene.ebb.backend("web/b1")?.state, "active", "it is not drained");
    assert_eq!(held.tally().open_at("b1"), at_b1, "{:?}", held.tally());
    let refused = scene.ebb.cli(&["drain", "web/b0"])?;
    assert_eq!(refused.code, 0, "b2 still serves: {refused:?}");
    let refused = scene.ebb.cli(&["drain", "web/b2"])?;
    assert_eq!(refused.code, 1, "b1 would have to serve alone, and has no weight: {refused:?}");
    scene.ebb.ok(&["activate", "web/b0"])?;
    scene.ebb.ok(&["backend", "set", "web", "b1", "--weight", "3"])?;
    let tally = scene.visit(300)?;
    assert!(tally.served_by("b1") > 120, "three parts of five: {tally:?}");
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.clean), (0, 60), "{tally:?}");
    Ok(())
}

#[test]
fn a_slow_starter_s_share_grows() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &["--slow-start", "12s"])?;
    wait_until("the first slow starts to be over", Duration::from_secs(30), || {
        scene.visit(120).is_ok_and(|tally| ["b0", "b1", "b2"].iter().all(|name| tally.served_by(name) > 20))
    })?;
    scene.ebb.ok(&["drain", "web/b1", "--wait"])?;
    scene.ebb.ok(&["activate", "web/b1"])?;
    scene.ebb.wait_state("web/b1", "active", SOON)?;
    let begun = Instant::now();
    let early = scene.visit(300)?.served_by("b1");
    // A third of them would be 100; a quarter of the time is a quarter of that, and chance has room.
    if begun.elapsed() < Duration::from_secs(3) {
        assert!(early < 55, "{early} of 300 at once");
    }
    wait_until("its share to be whole", Duration::from_secs(30), || {
        scene.visit(300).is_ok_and(|tally| tally.served_by("b1") > 75)
    })
}

#[test]
fn generic_mode_does_the_same_job() -> Result<()> {
    let scene = Scene::set_with(Setting::default(), &["--mode", "generic"])?;
    scene.add_web(&[])?;
    assert_eq!(scene.ebb.status()?.datapath.interfaces[0].mode, "generic");
    let held = scene.hold(60)?;
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    assert_eq!(scene.visit(60)?.served_by("b1"), 0);
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!(tally.clean, 60, "{tally:?}");
    scene.ebb.wait_state("web/b1", "drained", SOON).map(drop)
}

#[test]
fn an_interface_that_goes_down_and_comes_back_breaks_nothing() -> Result<()> {
    for forward in [Forward::Dsr, Forward::Nat] {
        let mut setting = Setting::of(forward, Arms::One, Family::V4);
        setting.plan.client_addresses = 2;
        let scene = Scene::with_web(setting, &[])?;
        let held = scene.hold(60)?;
        ip(Some(&scene.lab.balancer), "link set eth0 down")?;
        std::thread::sleep(Duration::from_secs(1));
        ip(Some(&scene.lab.balancer), "link set eth0 up")?;
        scene.wait_all_active("web")?;
        let tally = held.finish_and_wait(Duration::from_secs(20))?;
        assert_eq!((tally.broken(), tally.clean), (0, 60), "{forward:?}: {tally:?}");
        assert_eq!(scene.visit(30)?.clean, 30);
    }
    Ok(())
}

#[test]
fn a_configuration_file_says_it_all() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let path = lab.directory().join("ebb.toml");
    let backend = |index: usize| {
        let address = Plan::backend(Family::V4, index);
        format!("[[service.backend]]\nname = \"b{index}\"\naddress = \"{address}\"\n")
    };
    let service =
        "[[service]]\nname = \"web\"\nvip = \"10.9.0.1:80/tcp\"\nforward = \"dsr\"\ndrain_timeout = \"77s\"\n";
    std::fs::write(&path, format!("{service}{}{}", backend(0), backend(1)))?;
    let file = path.display().to_string();
    let ebb = Ebb::start_with(&lab, &["-c", &file])?;
    let server = |index: usize| -> Result<Server> {
        let server = Server::start(&lab.backends[index], &format!("b{index}"))?;
        server.serve(lab.plan.listen(Family::V4, index, 0, 80))?;
        Ok(server)
    };
    let _servers = [server(0)?, server(1)?, server(2)?];
    let client = Client::start(&lab)?;
    ebb.wait_state("web/b0", "active", SOON)?;
    ebb.wait_state("web/b1", "active", SOON)?;
    assert_eq!(ebb.status()?.service("web").context("web")?.drain_timeout_s, Some(77.0));

    // Connections live on while a new file takes one backend out and puts another in.
    let lasting = Lasting::Between(Duration::from_millis(10), Duration::from_secs(3));
    let talk = Conversation { lasting, ..Conversation::with((Plan::vip(Family::V4, 0), 80).into()) };
    let kept = client.keep(talk, 50);
    kept.wait_open(30, SOON)?;
    std::fs::write(&path, format!("{service}{}{}", backend(0), backend(2)))?;
    ebb.ok(&["check", &file])?;
    ebb.ok(&["apply", &file])?;
    wait_until("b1 to be drained and removed", Duration::from_secs(20), || {
        ebb.status().is_ok_and(|status| status.backend("web", "b1").is_none())
    })?;
    wait_until("b2 to serve", SOON, || kept.tally().served_by("b2") > 10)?;
    let tally = kept.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.could_not_connect()), (0, 0), "{tally:?}");
    Ok(())
}
