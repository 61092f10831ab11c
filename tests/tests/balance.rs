//! Spreading connections over backends, and backends that come and go.

use std::time::Duration;

use anyhow::{Context, Result};
use ebb_tests::{
    lab::{Family, Plan},
    scene::{SOON, Scene, Setting, WEB_PORT},
    traffic::{Conversation, DatagramFlow, End, Fault, Server, Transport},
    wait_until,
};

#[test]
fn connections_spread_evenly_and_are_counted_exactly() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(300)?;
    let tally = held.tally();
    for server in &scene.servers {
        // 300 at random over three: 100 each with a standard deviation of 8.2; six of them are 49.
        let share = tally.served_by(server.name());
        assert!((51..=149).contains(&share), "{} has {share} of 300: {tally:?}", server.name());
        assert_eq!(server.accepted(), share, "clients' and servers' accounts agree");
        let which = format!("web/{}", server.name());
        // Counts are right within a second.
        wait_until("its flows to be counted", Duration::from_millis(1500), || {
            scene.ebb.backend(&which).is_ok_and(|backend| backend.active_flows == share as u64)
        })
        .with_context(|| format!("{share} wanted: {:?}", scene.ebb.backend(&which)))?;
        let backend = scene.ebb.backend(&which)?;
        assert_eq!(backend.new_flows_total, share as u64);
        assert!(backend.packets_total > 0 && backend.bytes_total > backend.packets_total, "{backend:?}");
    }
    assert_eq!(scene.ebb.status()?.datapath.flows.live, 300);

    let tally = held.finish_and_wait(SOON)?;
    assert_eq!(tally.clean, 300, "{tally:?}");
    wait_until("no flow to be live", SOON, || scene.ebb.status().is_ok_and(|s| s.datapath.flows.live == 0))
}

#[test]
fn datagram_flows_keep_their_backend() -> Result<()> {
    let scene = Scene::set(Setting::default())?;
    scene.add_service("dns", 0, 53, "udp", &[])?;
    let group = scene.client.datagrams(scene.vip(0, 53), 60, Duration::from_millis(20));
    group.wait_answered(SOON)?;
    wait_until("fifty answers each", SOON, || group.flows().iter().all(|flow| flow.answered >= 50))?;
    group.finish();
    let flows = group.flows();
    assert!(flows.iter().all(|flow| flow.servers.len() == 1 && flow.wrong == 0), "{flows:?}");
    let used: std::collections::BTreeSet<_> = flows.iter().filter_map(DatagramFlow::served_by).collect();
    assert_eq!(used.len(), 3, "all three backends serve: {used:?}");
    Ok(())
}

#[test]
fn weights_are_heeded() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    scene.ebb.ok(&["backend", "set", "web", "b0", "--weight", "0"])?;
    scene.ebb.ok(&["backend", "set", "web", "b1", "--weight", "3"])?;
    let tally = scene.visit(400)?;
    // A quarter of 400 is 100 with a standard deviation of 8.7; six of them are 52.
    assert_eq!(tally.served_by("b0"), 0, "{tally:?}");
    assert!((48..=152).contains(&tally.served_by("b2")), "{tally:?}");
    Ok(())
}

#[test]
fn removing_drains_first() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(60)?;
    let mut removal = scene.ebb.background(&["backend", "remove", "web", "b1", "--wait"])?;
    scene.ebb.wait_state("web/b1", "draining", SOON)?;
    assert_eq!(scene.visit(100)?.served_by("b1"), 0);
    assert!(removal.is_running(), "it waits for the connections");
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.clean), (0, 60), "{tally:?}");
    let output = removal.wait(SOON)?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(scene.ebb.status()?.backend("web", "b1").is_none());
    scene.visit(50).map(drop)
}

/// The place of a backend removed in haste is taken by another at once: its old connections must be
/// reset, and none of their packets may reach the newcomer.
#[test]
fn a_reused_place_gets_nothing_of_its_predecessor() -> Result<()> {
    let scene = Scene::set(Setting::with_backends(4))?;
    scene.add_web(&[])?;
    scene.ebb.ok(&["backend", "remove", "web", "b3", "--now", "--wait"])?;
    let held = scene.hold(90)?;
    let at_b1 = held.tally().open_at("b1");
    let resets_before = resets_sent(&scene, 3)?;

    scene.ebb.ok(&["backend", "remove", "web", "b1", "--now", "--wait"])?;
    scene.add_backend("web", "b3", 3)?;
    scene.wait_all_active("web")?;
    wait_until("b1's clients to notice", SOON, || held.tally().broken() == at_b1)?;
    let lost: Vec<_> = held.connections().into_iter().filter(|c| c.is_served_by("b1")).collect();
    let reset = |end| matches!(end, Some((End::Broken(Fault::Reset), _)));
    assert!(lost.iter().all(|c| reset(c.end)), "{lost:?}");

    let tally = scene.visit(100)?;
    assert!(tally.served_by("b3") > 0, "the newcomer serves: {tally:?}");
    assert_eq!(tally.served_by("b1"), 0);
    // A host resets what it does not know: had a segment come astray, b3 would have sent one.
    assert_eq!(resets_sent(&scene, 3)?, resets_before, "b3 got segments of connections it does not have");
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!(tally.clean, 90 - at_b1, "{tally:?}");
    Ok(())
}

/// TCP resets that the kernel of backend `index` has sent: `OutRsts` in its /proc/net/snmp.
fn resets_sent(scene: &Scene, index: usize) -> Result<u64> {
    let snmp = scene.lab.backends[index].run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = tcp.next().zip(tcp.next()).context("two Tcp: lines")?;
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "OutRsts");
    Ok(found.context("OutRsts")?.1.parse()?)
}

#[test]
fn what_is_not_for_a_service_passes_untouched() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    for family in [Family::V4, Family::V6] {
        // The balancer's own host goes on serving, at the very port of the service too.
        let own = Server::start(&scene.lab.balancer, "host")?;
        for port in [WEB_PORT, 8080] {
            let address = std::net::SocketAddr::new(Plan::balancer(family), port);
            own.serve(address)?;
            let big = Conversation { payload_len: 100_000, ..Conversation::with(address) };
            let group = scene.client.open(big, 10);
            group.wait_open(10, SOON)?;
            let tally = group.finish_and_wait(SOON)?;
            assert_eq!((tally.clean, tally.served_by("host")), (10, 10), "{address}: {tally:?}");
            let datagrams = scene.client.datagrams(address, 5, Duration::from_millis(10));
            datagrams.wait_answered(SOON)?;
        }
        // Past the balancer, from client to backend.
        let direct = Server::start(&scene.lab.backends[0], "direct")?;
        let address = std::net::SocketAddr::new(Plan::backend(family, 0), WEB_PORT);
        direct.listen(address, Transport::Tcp)?;
        let group = scene.client.open(Conversation::with(address), 10);
        group.wait_open(10, SOON)?;
        group.finish_and_wait(SOON)?;
    }
    let status = scene.ebb.status()?;
    let counted: u64 = status.services.iter().flat_map(|s| &s.backends).map(|b| b.packets_total).sum();
    assert_eq!((counted, status.datapath.flows.live), (0, 0), "none of it was Ebb's business");
    Ok(())
}

#[test]
fn a_service_that_is_removed_stops_serving() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    scene.visit(10)?;
    scene.ebb.ok(&["service", "remove", "web", "--now"])?;
    wait_until("the service to be gone", SOON, || scene.ebb.status().is_ok_and(|s| s.services.is_empty()))?;
    assert!(scene.visit(1).is_err());
    Ok(())
}
