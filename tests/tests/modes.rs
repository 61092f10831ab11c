//! The main job in every forwarding mode, both topologies and both families.

use std::time::Duration;

use anyhow::{Context, Result};
use ebb_tests::{
    lab::{Arms, Family, Plan, ip},
    patient,
    scene::{Forward, SOON, Scene, Setting},
    traffic::{Closer, Connection, Conversation, End, Fault, Group, last_end},
    verdict::END_SLACK,
    wait_until,
};

/// Balances, pins, drains early, and cuts: each with real connections.
fn does_its_job(forward: Forward, arms: Arms, family: Family) -> Result<()> {
    let scene = Scene::with_web(Setting::of(forward, arms, family), &[])?;
    carries_all_sizes(&scene).context("all sizes")?;
    carries_datagrams(&scene).context("datagrams")?;
    drains_early(&scene).context("a drain that ends early")?;
    resets_both_ends(&scene).context("a drain that ends at its deadline")
}

fn carries_all_sizes(scene: &Scene) -> Result<()> {
    for payload_len in [1, 1000, 1460, 30_000, 1_000_000] {
        for closer in [Closer::Client, Closer::Server] {
            let pause = Duration::from_millis(5);
            let talk = Conversation { payload_len, closer, pause, ..Conversation::with(scene.web()) };
            let group = scene.client.open(talk, 8);
            group.wait_open(8, SOON).with_context(|| format!("{payload_len} bytes"))?;
            let tally = group.finish_and_wait(SOON)?;
            assert_eq!(tally.clean, 8, "{payload_len} bytes: {tally:?}");
        }
    }
    Ok(())
}

fn carries_datagrams(scene: &Scene) -> Result<()> {
    scene.add_service("dns", 1, 53, "udp", &[])?;
    if scene.setting.forward == Forward::Tunnel {
        // A packet that does not fit the tunnel and may be fragmented is refused: such paths need a smaller MTU.
        let (vip, via) = (scene.vip(1, 53).ip(), Plan::balancer(scene.setting.family));
        ip(Some(&scene.lab.client), &format!("route change {vip} via {via} mtu 1400"))?;
    }
    // The longer ones travel in fragments.
    for len in [64, 3_000] {
        let group = scene.client.datagrams_of(len, scene.vip(1, 53), 30, Duration::from_millis(20));
        group.wait_answered(SOON).with_context(|| format!("{len} bytes"))?;
        wait_until("twenty answers each", SOON, || group.flows().iter().all(|flow| flow.answered >= 20))?;
        let flows = group.flows();
        assert!(flows.iter().all(|flow| flow.servers.len() == 1 && flow.wrong + flow.lost == 0), "{flows:?}");
    }
    Ok(())
}

fn drains_early(scene: &Scene) -> Result<()> {
    let held = scene.hold(60)?;
    let at_b1 = held.tally().open_at("b1");
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    let drain = scene.ebb.backend("web/b1")?.drain.context("it is draining")?;
    assert_eq!(drain.initial_flows, at_b1 as u64);
    assert_eq!(scene.visit(60)?.served_by("b1"), 0);
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.clean), (0, 60), "{tally:?}");
    let ended = last_end(&held.connections(), "b1").context("all have ended")?;
    let last = scene.ebb.wait_state("web/b1", "drained", SOON)?.last_drain.context("a record")?;
    assert!(ended.elapsed() <= patient(END_SLACK), "{:?} after its last connection", ended.elapsed());
    assert_eq!((last.outcome.as_str(), last.cut_flows), ("completed", 0));
    scene.ebb.ok(&["activate", "web/b1"])?;
    scene.wait_all_active("web")
}

fn resets_both_ends(scene: &Scene) -> Result<()> {
    // Some talk all the time, some are in the middle of long transfers both ways, some are silent when they are cut.
    let busy =
        scene.client.open(Conversation { pause: Duration::from_millis(2), ..Conversation::with(scene.web()) }, 20);
    let idle = Conversation { pause: Duration::from_secs(30), ..Conversation::rarely_talking_with(scene.web()) };
    let idle = scene.client.open(idle, 20);
    let pause = Duration::ZERO;
    let bulk = scene.client.open(Conversation { pause, payload_len: 1_000_000, ..Conversation::with(scene.web()) }, 12);
    let groups = [&busy, &idle, &bulk];
    busy.wait_open(20, SOON)?;
    idle.wait_open(20, SOON)?;
    bulk.wait_open(12, SOON)?;
    let at_b1: usize = groups.iter().map(|group| group.tally().open_at("b1")).sum();
    let before = scene.servers[1].accepted();
    let output = scene.ebb.cli(&["drain", "web/b1", "--timeout", "1s", "--wait"])?;
    assert_eq!(output.code, 3, "{output:?}");

    let accounts = || groups.map(Group::connections).concat();
    let reset = |c: &Connection| matches!(c.end, Some((End::Broken(Fault::Reset), _)));
    wait_until("the clients to be reset", SOON, || {
        accounts().iter().filter(|c| c.is_served_by("b1") && reset(c)).count() == at_b1
    })
    .with_context(|| format!("{at_b1} of {:?}", groups.map(Group::tally)))?;
    wait_until("the server to be reset", SOON, || scene.servers[1].open() == 0)?;
    let server = scene.servers[1].connections();
    let reset_there = server[before - at_b1..].iter().filter(|c| matches!(c.end, Some((End::Broken(Fault::Reset), _))));
    assert_eq!(reset_there.count(), at_b1, "{:?}", &server[before - at_b1..]);
    let mut clean = 0;
    for group in groups {
        clean += group.finish_and_wait(SOON)?.clean;
    }
    assert_eq!(clean, 52 - at_b1, "the others were left alone");
    Ok(())
}

macro_rules! matrix {
    ($($name:ident: $forward:ident $arms:ident $family:ident;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            does_its_job(Forward::$forward, Arms::$arms, Family::$family)
        })*
    };
}

matrix! {
    dsr_one_arm_v4: Dsr One V4;
    dsr_one_arm_v6: Dsr One V6;
    dsr_two_arms_v4: Dsr Two V4;
    dsr_two_arms_v6: Dsr Two V6;
    nat_one_arm_v4: Nat One V4;
    nat_one_arm_v6: Nat One V6;
    nat_two_arms_v4: Nat Two V4;
    nat_two_arms_v6: Nat Two V6;
    tunnel_one_arm_v4: Tunnel One V4;
    tunnel_one_arm_v6: Tunnel One V6;
    tunnel_two_arms_v4: Tunnel Two V4;
    tunnel_two_arms_v6: Tunnel Two V6;
}
