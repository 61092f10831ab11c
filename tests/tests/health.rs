//! Health checks against real servers: what a backend says of itself decides whether it gets new connections.

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Arms, Family, Plan, Program, ip},
    scene::{Forward, SOON, Scene, Setting},
    traffic::Conversation,
    wait_until,
};

const CHECKED: [&str; 12] = [
    "--check",
    "http",
    "--check-path",
    "/up",
    "--check-port",
    "8080",
    "--check-interval",
    "200ms",
    "--check-fall",
    "2",
    "--check-timeout",
    "1s",
];

/// A backend's answer to checks, served beside what it does for clients.
struct Checkpoint {
    answer: PathBuf,
    _server: Program,
}

impl Checkpoint {
    fn open(scene: &Scene, index: usize) -> Result<Self> {
        let directory = scene.lab.directory();
        let answer = directory.join(format!("check-{index}"));
        let script = directory.join(format!("check-{index}.sh"));
        // The request is read to its end: closing before that would reset the connection.
        let lines = "while read -r line && [ ${#line} -gt 1 ]; do :; done";
        fs::write(&script, format!("{lines}\ncat {}\n", answer.display()))?;
        let run = format!("EXEC:/bin/sh {}", script.display());
        let listen = ["TCP-LISTEN:8080,fork,reuseaddr", &run];
        let server = Program::start(&scene.lab, &scene.lab.backends[index], "socat", &listen)?;
        let checkpoint = Self { answer, _server: server };
        checkpoint.say("200 OK")?;
        Ok(checkpoint)
    }

    /// From now on checks are answered with this status.
    fn say(&self, status: &str) -> Result<()> {
        let aside = self.answer.with_extension("new");
        fs::write(&aside, format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))?;
        Ok(fs::rename(aside, &self.answer)?)
    }
}

#[test]
fn a_backend_that_fails_its_checks_keeps_its_connections_and_comes_back() -> Result<()> {
    let scene = Scene::set(Setting::default())?;
    let backends = scene.lab.backends.len();
    let checkpoints = (0..backends).map(|index| Checkpoint::open(&scene, index)).collect::<Result<Vec<_>>>()?;
    scene.add_web(&CHECKED)?;
    let held = scene.hold(60)?;
    let at_b1 = held.tally().open_at("b1");
    ensure!(at_b1 > 0, "b1 has a share of 60 connections: {:?}", held.tally());

    checkpoints[1].say("503 Service Unavailable")?;
    let failed = scene.ebb.wait_state("web/b1", "unhealthy_draining", SOON)?;
    ensure!(failed.active_flows == at_b1 as u64, "{failed:?}");
    let reason = reason(&scene, "b1")?;
    ensure!(reason.ends_with("/up answered with status 503, not 200 to 399"), "{reason}");
    let tally = scene.visit(100)?;
    ensure!(tally.served_by("b1") == 0, "new connections go elsewhere: {tally:?}");
    ensure!(held.tally().open_at("b1") == at_b1, "its connections stay: {:?}", held.tally());

    checkpoints[1].say("200 OK")?;
    scene.ebb.wait_state("web/b1", "active", SOON)?;
    wait_until("new connections to reach b1 again", SOON, || {
        scene.visit(50).is_ok_and(|tally| tally.served_by("b1") > 0)
    })?;
    let tally = held.finish_and_wait(SOON)?;
    ensure!((tally.broken(), tally.clean) == (0, 60), "{tally:?}");

    checkpoints[1].say("500 Internal Server Error")?;
    scene.ebb.wait_state("web/b1", "unhealthy", SOON).context("without a connection there is nothing to wait for")?;
    scene.ebb.ok(&["service", "set", "web", "--check", "none"])?;
    scene.ebb.wait_state("web/b1", "active", SOON).context("nobody checks it any more")?;

    // Finished flows are kept for late segments for 15 s; only then is it known how long they lasted.
    wait_until("the advisor to have seen the flows end", Duration::from_secs(30), || {
        let advice: Result<serde_json::Value> = scene.ebb.json(&["advise", "web"]);
        advice.is_ok_and(|advice| advice["ended_flows"].as_u64() >= Some(60) && advice["recommended_s"].is_number())
    })?;
    Ok(())
}

const VIP_CHECKED: [&str; 10] = [
    "--check",
    "tcp",
    "--check-vip",
    "true",
    "--check-interval",
    "200ms",
    "--check-fall",
    "2",
    "--check-timeout",
    "1s",
];

/// Servers listen at the VIP alone: a check of the backend's own address would find nobody.
fn a_backend_without_the_vip_is_unhealthy(forward: Forward, arms: Arms, family: Family) -> Result<()> {
    let mut scene = Scene::set(Setting::of(forward, arms, family))?;
    scene.add_web(&VIP_CHECKED)?;
    let host = scene.lab.backends[1].clone();
    let bits = if family == Family::V4 { 32 } else { 128 };
    let address = format!("{}/{bits} dev lo", Plan::vip(family, 0));
    ip(Some(&host), &format!("addr del {address}"))?;
    scene.ebb.wait_state("web/b1", "unhealthy", SOON)?;
    let seen = reason(&scene, "b1")?;
    ensure!(seen.contains("is the VIP on the backend's loopback?"), "{seen}");
    // The host is there all along.
    let own = SocketAddr::new(Plan::backend(family, 1), 9);
    let answer = scene.lab.balancer.run(|| TcpStream::connect_timeout(&own, SOON))?;
    ensure!(answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused), "{answer:?}");
    let tally = scene.visit(60)?;
    ensure!(tally.served_by("b1") == 0, "{tally:?}");
    ip(Some(&host), &format!("addr add {address}"))?;
    scene.ebb.wait_state("web/b1", "active", SOON)?;

    let accepted = scene.servers[2].accepted();
    std::thread::sleep(Duration::from_secs(1));
    ensure!(scene.servers[2].accepted() == accepted, "checks do not get as far as the server");
    drop(scene.servers.remove(2));
    scene.ebb.wait_state("web/b2", "unhealthy", SOON)?;
    let seen = reason(&scene, "b2")?;
    ensure!(seen.ends_with("connection refused there"), "{seen}");
    Ok(())
}

#[test]
fn the_vip_is_checked_under_dsr() -> Result<()> {
    a_backend_without_the_vip_is_unhealthy(Forward::Dsr, Arms::One, Family::V4)
}

#[test]
fn the_vip_is_checked_under_dsr_by_another_interface_over_ipv6() -> Result<()> {
    a_backend_without_the_vip_is_unhealthy(Forward::Dsr, Arms::Two, Family::V6)
}

#[test]
fn the_vip_is_checked_through_tunnels() -> Result<()> {
    a_backend_without_the_vip_is_unhealthy(Forward::Tunnel, Arms::One, Family::V4)?;
    a_backend_without_the_vip_is_unhealthy(Forward::Tunnel, Arms::Two, Family::V6)
}

#[test]
fn the_vip_of_a_udp_service_is_there_when_it_refuses() -> Result<()> {
    let scene = Scene::set(Setting::default())?;
    scene.add_service("dns", 0, 53, "udp", &VIP_CHECKED)?;
    ip(Some(&scene.lab.backends[1]), &format!("addr del {}/32 dev lo", Plan::vip(Family::V4, 0)))?;
    scene.ebb.wait_state("dns/b1", "unhealthy", SOON)?;
    let refused = scene.ebb.cli(&[
        "service",
        "add",
        "x",
        "--vip",
        "10.9.0.9:80/tcp",
        "--forward",
        "nat",
        "--check",
        "tcp",
        "--check-vip",
        "true",
    ])?;
    ensure!(refused.code == 2 && refused.stderr.contains("nat"), "{refused:?}");
    Ok(())
}

#[test]
fn with_nobody_healthy_the_service_fails_open_or_refuses() -> Result<()> {
    let scene = Scene::set(Setting::default())?;
    let backends = scene.lab.backends.len();
    let checkpoints = (0..backends).map(|index| Checkpoint::open(&scene, index)).collect::<Result<Vec<_>>>()?;
    scene.add_web(&CHECKED)?;
    scene.ebb.ok(&["drain", "web/b2", "--wait"])?;
    for checkpoint in &checkpoints {
        checkpoint.say("503 Service Unavailable")?;
    }
    for backend in ["web/b0", "web/b1"] {
        wait_until("a backend to be found unhealthy", SOON, || {
            scene.ebb.backend(backend).is_ok_and(|backend| backend.state.starts_with("unhealthy"))
        })?;
    }
    let tally = scene.visit(60).context("the unhealthy serve")?;
    ensure!(tally.served_by("b0") > 0 && tally.served_by("b1") > 0 && tally.served_by("b2") == 0, "{tally:?}");

    scene.ebb.ok(&["service", "set", "web", "--when-unhealthy", "refuse"])?;
    let held =
        scene.client.open(Conversation { patience: Duration::from_secs(2), ..Conversation::with(scene.web()) }, 10);
    wait_until("nobody to be served", SOON, || held.tally().could_not_connect() == 10)?;
    checkpoints[0].say("200 OK")?;
    scene.ebb.wait_state("web/b0", "active", SOON)?;
    let tally = scene.visit(30)?;
    ensure!(tally.served_by("b0") == 30, "{tally:?}");
    Ok(())
}

fn reason(scene: &Scene, backend: &str) -> Result<String> {
    let list: serde_json::Value = scene.ebb.json(&["backend", "list", "web"])?;
    let backends = list["backends"].as_array().context("there are backends")?;
    let found = backends.iter().find(|candidate| candidate["name"] == backend).context("it is among them")?;
    Ok(found["reason"].as_str().context("it has a reason")?.to_owned())
}
