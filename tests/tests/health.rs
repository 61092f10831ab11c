//! Health checks against real servers: what a backend says of itself decides whether it gets new connections.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::Program,
    scene::{SOON, Scene, Setting},
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

fn reason(scene: &Scene, backend: &str) -> Result<String> {
    let list: serde_json::Value = scene.ebb.json(&["backend", "list", "web"])?;
    let backends = list["backends"].as_array().context("there are backends")?;
    let found = backends.iter().find(|candidate| candidate["name"] == backend).context("it is among them")?;
    Ok(found["reason"].as_str().context("it has a reason")?.to_owned())
}
