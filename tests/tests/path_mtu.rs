//! Path-MTU discovery through Ebb: links that are narrower than both ends believe, big transfers in both directions.
//! The transfers must complete, and the end that sent too much must have been told.

use std::{net::IpAddr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Arms, Family, Namespace, Plan, ip},
    scene::{Forward, SOON, Scene, Setting},
    traffic::{Closer, Conversation, Tally},
};

/// Bytes that the narrow links take; both ends' own links take 1,500.
const NARROW: u32 = 1400;

/// What fits a packet of 1,500 bytes beside the headers.
fn full_mss(family: Family) -> u32 {
    match family {
        Family::V4 => 1460,
        Family::V6 => 1440,
    }
}

/// Two segments, with the switch as a router beside the balancer.
fn scene(forward: Forward, family: Family, forwarding: bool) -> Result<Scene> {
    let mut setting = Setting::of(forward, Arms::Two, family);
    setting.plan.forwarding = forwarding;
    Scene::set(setting)
}

/// Big transfers both ways, all of which must go well.
fn transfer(scene: &Scene) -> Result<Tally> {
    scene.add_web(&[])?;
    let pause = Duration::from_millis(5);
    let talk = Conversation { payload_len: 300_000, closer: Closer::Client, pause, ..Conversation::with(scene.web()) };
    let group = scene.client.open(talk, 12);
    group.wait_open(12, SOON)?;
    let tally = group.finish_and_wait(SOON)?;
    ensure!(tally.clean == 12, "{tally:?}");
    Ok(tally)
}

/// What `host` takes for the MTU of the path to an address.
fn path_mtu(host: &Namespace, to: IpAddr, from: IpAddr) -> Result<u32> {
    let (to, from) = (to.to_string(), from.to_string());
    let output = Command::new("ip").args(["-n", host.name(), "route", "get", &to, "from", &from]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mtu = said.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap_or("1500");
    mtu.parse().with_context(|| format!("an MTU in {said}"))
}

/// Every backend that was needed has learned what the way to the client takes.
fn backends_know(scene: &Scene, tally: &Tally) -> Result<()> {
    let family = scene.setting.family;
    let needed = |(index, _): &(usize, &Namespace)| tally.served_by(&format!("b{index}")) > 0;
    for (index, backend) in scene.lab.backends.iter().enumerate().filter(needed) {
        let from = scene.lab.plan.listen(family, index, 0, 80).ip();
        let mtu = path_mtu(backend, Plan::client(family, 0), from)?;
        ensure!(mtu == NARROW, "b{index} takes the path to the client for {mtu} bytes wide");
    }
    Ok(())
}

/// The client has learned what the way to the backends takes.
fn client_knows(scene: &Scene, outer: u32) -> Result<()> {
    let family = scene.setting.family;
    let mtu = path_mtu(&scene.lab.client, scene.vip(0, 80).ip(), Plan::client(family, 0))?;
    ensure!(mtu == NARROW - outer, "the client takes the path to the VIP for {mtu} bytes wide");
    Ok(())
}

/// A router between Ebb (or the backends) and the client whose link to the client is narrow, and, where Ebb sends to
/// backends as a router does, a narrow route to them.
fn routers_are_heard(forward: Forward, family: Family, forwarding: bool) -> Result<()> {
    let scene = scene(forward, family, forwarding)?;
    let (client, balancer) = (Plan::client(family, 0), Plan::balancer(family));
    let vip = scene.vip(0, 80).ip();
    let router = Plan::router(family);
    // What the router says to a VIP goes to the balancer.
    ip(
        Some(&scene.lab.switch),
        &format!("route add {vip} via {balancer}\nroute add {client} dev outside mtu {NARROW}\n"),
    )?;
    // Replies go back to whom the client's packets came from: under nat that is to be the router.
    let via = if forward == Forward::Nat { router } else { balancer };
    // A client that knows the narrow path offers a small MSS to whom it meets next, and a backend whose connections all
    // begin after that never sends too much and learns nothing. With an MSS of the route's own it goes on as it began.
    let mss = full_mss(family);
    ip(Some(&scene.lab.client), &format!("route replace {vip} via {via} advmss {mss}\n"))?;
    if forward == Forward::Nat {
        scene
            .lab
            .client
            .sysctl(&[("net/ipv4/conf/*/accept_redirects", "0"), ("net/ipv6/conf/*/accept_redirects", "0")])?;
    }
    if forward != Forward::Dsr {
        for index in 0..scene.lab.backends.len() {
            let backend = Plan::backend(family, index);
            ip(Some(&scene.lab.balancer), &format!("route add {backend} dev eth1 mtu {NARROW}\n"))?;
        }
    }
    let tally = transfer(&scene)?;
    backends_know(&scene, &tally)?;
    match forward {
        Forward::Dsr => Ok(()),
        Forward::Nat => client_knows(&scene, 0),
        Forward::Tunnel => client_knows(&scene, if family == Family::V4 { 20 } else { 40 }),
    }
}

/// A router between the balancer and the backends has a narrow link to them, of which the balancer hears by its answers to
/// tunnels' packets alone.
fn routers_on_the_way_of_tunnels_are_heard(family: Family) -> Result<()> {
    let scene = scene(Forward::Tunnel, family, false)?;
    let (vip, balancer) = (scene.vip(0, 80).ip(), Plan::balancer(family));
    // It is on the backends' own segment, and is not to say so.
    let silent = [("net/ipv4/conf/*/send_redirects", "0"), ("net/ipv4/conf/*/accept_redirects", "0")];
    let deaf = [("net/ipv4/conf/*/accept_redirects", "0"), ("net/ipv6/conf/*/accept_redirects", "0")];
    scene.lab.switch.sysctl(&silent)?;
    scene.lab.balancer.sysctl(&deaf)?;
    let router = Plan::router_inside(family);
    for index in 0..scene.lab.backends.len() {
        let backend = Plan::backend(family, index);
        ip(Some(&scene.lab.balancer), &format!("route add {backend} via {router} dev eth1\n"))?;
        ip(Some(&scene.lab.switch), &format!("route add {backend} dev inside mtu {NARROW}\n"))?;
    }
    let mss = full_mss(family);
    ip(Some(&scene.lab.client), &format!("route replace {vip} via {balancer} advmss {mss}\n"))?;
    transfer(&scene)?;
    client_knows(&scene, if family == Family::V4 { 20 } else { 40 })
}

/// The balancer's own interface to the clients is narrow, which only it can tell the backends.
fn own_interface_is_minded(family: Family, forwarding: bool) -> Result<()> {
    let scene = scene(Forward::Nat, family, forwarding)?;
    let (vip, balancer) = (scene.vip(0, 80).ip(), Plan::balancer(family));
    ip(Some(&scene.lab.balancer), &format!("link set eth0 mtu {NARROW}\n"))?;
    // The client keeps to it, but lets the backends send more.
    let mss = full_mss(family);
    ip(Some(&scene.lab.client), &format!("route replace {vip} via {balancer} mtu {NARROW} advmss {mss}\n"))?;
    let tally = transfer(&scene)?;
    backends_know(&scene, &tally)
}

macro_rules! each {
    ($($name:ident: $function:ident($($argument:expr),*);)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                $function($($argument),*)
            }
        )*
    };
}

each! {
    way_of_tunnels_v4: routers_on_the_way_of_tunnels_are_heard(Family::V4);
    way_of_tunnels_v6: routers_on_the_way_of_tunnels_are_heard(Family::V6);
    dsr_v4: routers_are_heard(Forward::Dsr, Family::V4, false);
    dsr_v6: routers_are_heard(Forward::Dsr, Family::V6, false);
    nat_v4: routers_are_heard(Forward::Nat, Family::V4, false);
    nat_v6: routers_are_heard(Forward::Nat, Family::V6, false);
    nat_v4_ip_forward: routers_are_heard(Forward::Nat, Family::V4, true);
    nat_v6_ip_forward: routers_are_heard(Forward::Nat, Family::V6, true);
    tunnel_v4: routers_are_heard(Forward::Tunnel, Family::V4, false);
    tunnel_v6: routers_are_heard(Forward::Tunnel, Family::V6, false);
    nat_v4_own_interface: own_interface_is_minded(Family::V4, false);
    nat_v6_own_interface: own_interface_is_minded(Family::V6, true);
}
