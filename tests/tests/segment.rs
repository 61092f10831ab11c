//! What Ebb does on the segment it is on: VIPs that need no route, echo requests, interfaces that come and go.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Arms, Ebb, FAMILIES, Family, Lab, Namespace, Plan, ip, ping, run_program},
    scene::{Forward, SOON, Scene, Setting, WEB_PORT},
    traffic::{Conversation, Transport},
    wait_until,
};
use serde::Deserialize;

/// An address on the clients' own segment, to which they have no route but the segment's.
fn on_link(family: Family) -> Result<IpAddr> {
    Ok(match family {
        Family::V4 => "10.1.0.200".parse()?,
        Family::V6 => "fd00:1::c8".parse()?,
    })
}

/// A service on such an address, whose backends answer by `nat`.
fn on_link_scene(family: Family, more: &[&str]) -> Result<(Scene, IpAddr)> {
    let scene = Scene::set(Setting::of(Forward::Nat, Arms::One, family))?;
    let vip = on_link(family)?;
    let vip_text = format!("{}/tcp", std::net::SocketAddr::new(vip, WEB_PORT));
    let add = ["service", "add", "web", "--vip", &vip_text, "--forward", "nat"];
    scene.ebb.ok(&[&add, more].concat())?;
    for (index, server) in scene.servers.iter().enumerate() {
        server.listen(scene.lab.plan.listen(family, index, 0, WEB_PORT), Transport::Tcp)?;
        scene.add_backend("web", server.name(), index)?;
    }
    scene.wait_all_active("web")?;
    Ok((scene, vip))
}

/// What the kernel of a host has as an address's link-layer address.
fn neighbour(host: &Namespace, address: IpAddr) -> Result<String> {
    run_program(host, "ip", &["neigh", "show", &address.to_string()])
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn visit(scene: &Scene, vip: IpAddr, count: usize) -> Result<usize> {
    let group = scene.client.open(Conversation::with((vip, WEB_PORT).into()), count);
    group.finish();
    let ended = || {
        let tally = group.tally();
        tally.clean + tally.broken() + tally.could_not_connect() == count
    };
    wait_until("connections to end", SOON, ended)?;
    Ok(group.tally().clean)
}

#[test]
fn an_announced_vip_needs_no_route_and_no_daemon() -> Result<()> {
    for family in FAMILIES {
        let (mut scene, vip) = on_link_scene(family, &[])?;
        assert_eq!(visit(&scene, vip, 1)?, 0, "{family:?}: nobody answers for it yet");
        scene.ebb.ok(&["service", "set", "web", "--announce"])?;
        assert_eq!(visit(&scene, vip, 20)?, 20, "{family:?}");
        let known = neighbour(&scene.lab.client, vip)?;
        ensure!(known.contains(&mac_text(Plan::balancer_mac())), "{family:?}: {known}");
        scene.ebb.kill()?;
        ip(Some(&scene.lab.client), &format!("neigh flush to {vip} dev eth0"))?;
        assert_eq!(visit(&scene, vip, 20)?, 20, "{family:?}: without the daemon");
    }
    Ok(())
}

#[test]
fn neighbours_are_told_when_a_vip_moves_here() -> Result<()> {
    for family in FAMILIES {
        let (mut scene, vip) = on_link_scene(family, &[])?;
        let ours = mac_text(Plan::balancer_mac());
        let elsewhere = || {
            // As if another balancer had had it: the entry is in use, and nothing makes the client ask again.
            let entry = format!("neigh replace {vip} lladdr 02:00:00:00:00:99 dev eth0 nud reachable");
            ip(Some(&scene.lab.client), &entry)
        };
        let told = |why: &str| {
            wait_until(why, SOON, || neighbour(&scene.lab.client, vip).is_ok_and(|entry| entry.contains(&ours)))
                .with_context(|| format!("{family:?}: {:?}", neighbour(&scene.lab.client, vip)))
        };
        elsewhere()?;
        scene.ebb.ok(&["service", "set", "web", "--announce"])?;
        told("the client to be told of the service")?;
        elsewhere()?;
        ip(Some(&scene.lab.balancer), "link set eth0 down")?;
        wait_until("the interface to be seen going down", SOON, || scene.ebb.log().contains("eth0: down"))?;
        ip(Some(&scene.lab.balancer), "link set eth0 up")?;
        told("the client to be told after the interface was down")?;
        elsewhere()?;
        scene.ebb.terminate()?;
        scene.ebb.run()?;
        told("the client to be told by a daemon that starts")?;
    }
    Ok(())
}

/// Whether the host's own stack answers echo requests; the program's answers do not ask it.
fn host_answers(scene: &Scene, answers: bool) -> Result<()> {
    let ignore = if answers { "0" } else { "1" };
    let settings = [("net/ipv4/icmp_echo_ignore_all", ignore), ("net/ipv6/icmp/echo_ignore_all", ignore)];
    scene.lab.balancer.sysctl(&settings)
}

#[test]
fn echo_requests_are_answered_by_whom_the_setting_says() -> Result<()> {
    for family in FAMILIES {
        let scene = Scene::with_web(Setting::of(Forward::Dsr, Arms::One, family), &[])?;
        let vip = Plan::vip(family, 0);
        let reached = || ping(&scene.lab.client, vip).unwrap_or(false);
        host_answers(&scene, false)?;
        wait_until("Ebb to answer for an address that is wholly a VIP", SOON, reached)?;

        let owns = |word| ip(Some(&scene.lab.balancer), &format!("addr {word} {vip} dev lo"));
        owns("add")?;
        wait_until("requests for the host's own address to be left to it", SOON, || !reached())?;
        host_answers(&scene, true)?;
        wait_until("the host to answer", SOON, reached)?;
        host_answers(&scene, false)?;
        scene.ebb.ok(&["service", "set", "web", "--echo", "answer"])?;
        wait_until("Ebb to answer since it is told to", SOON, reached)?;

        scene.ebb.ok(&["service", "set", "web", "--echo", "pass"])?;
        owns("del")?;
        assert!(!reached(), "{family:?}: it must pass");
        scene.ebb.ok(&["service", "set", "web", "--echo", "auto"])?;
        wait_until("Ebb to answer again, the address being the host's no more", SOON, reached)?;
    }
    Ok(())
}

/// What `ebb events` tells of interfaces.
#[derive(Deserialize)]
struct Events {
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    kind: String,
    interface: Option<String>,
}

#[test]
fn an_interface_that_is_deleted_and_made_again_is_attached_again() -> Result<()> {
    for forward in [Forward::Dsr, Forward::Nat] {
        let mut scene = Scene::with_web(Setting::of(forward, Arms::One, Family::V4), &[])?;
        let held = scene.hold(60)?;
        scene.replug()?;
        // Connections that were open go on: their flows were not the interface's.
        let tally = held.finish_and_wait(Duration::from_secs(20))?;
        assert_eq!((tally.broken(), tally.clean), (0, 60), "{forward:?}: {tally:?}");
        assert_eq!(scene.visit(30)?.clean, 30, "{forward:?}");
        let told: Events = scene.ebb.json(&["events"])?;
        for kind in ["interface_gone", "interface_back"] {
            let said = |event: &Event| event.kind == kind && event.interface.as_deref() == Some("eth0");
            assert!(told.events.iter().any(said), "{forward:?}: {kind}");
        }
        // It is pinned as it was: a daemon that starts takes it over.
        scene.ebb.terminate()?;
        scene.ebb.run()?;
        assert_eq!(scene.visit(30)?.clean, 30, "{forward:?}, after a restart");
    }
    Ok(())
}

#[test]
fn an_interface_for_jumbo_frames_is_refused_in_native_mode_and_served_in_generic() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    ip(Some(&lab.switch), "link set lb0 mtu 9000")?;
    let mut refused = Ebb::new(&lab, &[])?;
    refused.show_log = false;
    let error = refused.run().expect_err("the driver takes no such program");
    let said = format!("{error:#}");
    for word in ["eth0", "MTU", "3498", "--mode generic"] {
        ensure!(said.contains(word), "{word} is missing: {said}");
    }
    drop(refused);
    drop(lab);

    let mut scene = Scene::set_with(Setting::default(), &["--mode", "generic"])?;
    scene.lab.bare_far_ends();
    let far_ends = (0..scene.lab.backends.len()).map(|index| format!("b{index}"));
    for port in far_ends.chain(["client".to_owned(), "lb0".to_owned()]) {
        ip(Some(&scene.lab.switch), &format!("link set {port} mtu 9000"))?;
    }
    for host in scene.lab.backends.iter().chain([&scene.lab.balancer, &scene.lab.client]) {
        ip(Some(host), "link set eth0 mtu 9000")?;
    }
    scene.add_web(&[])?;
    assert_eq!(scene.visit(30)?.clean, 30);
    // Datagrams that only such frames carry whole.
    scene.add_service("dns", 1, 53, "udp", &[])?;
    let group = scene.client.datagrams_of(8000, scene.vip(1, 53), 10, Duration::from_millis(20));
    group.wait_answered(SOON)?;
    Ok(())
}
