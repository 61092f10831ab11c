//! The flow log: a line for each flow that is over, with where it went and how it ended.

use std::{fs, path::Path, time::Duration};

use anyhow::Result;
use ebb_tests::{
    scene::{SOON, Scene, Setting},
    wait_until,
};
use serde_json::Value;

/// A flow is told once its entry goes: up to 15 s after its end, and a look later.
const TOLD: Duration = Duration::from_mins(1);

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last line may be under way.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn ended(path: &Path, how: &str, backend: Option<&str>) -> usize {
    let fits = |line: &&Value| line["ended"] == how && backend.is_none_or(|backend| line["backend"] == backend);
    lines(path).iter().filter(fits).count()
}

#[test]
fn each_flow_is_told_with_its_end() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("flows.json");
    let file = directory.path().join("ebb.toml");
    fs::write(&file, format!("[daemon.flow_log]\npath = \"{}\"\n", log.display()))?;
    let scene = Scene::set_with(Setting::default(), &["-c", &file.to_string_lossy()])?;
    scene.add_web(&[])?;
    scene.add_service("dns", 0, 53, "udp", &["--idle-timeout", "1s"])?;

    let visits = scene.visit(40)?;
    let datagrams = scene.client.datagrams(scene.vip(0, 53), 5, Duration::from_millis(10));
    wait_until("answers", SOON, || datagrams.flows().iter().all(|flow| flow.answered >= 3))?;
    datagrams.finish();
    wait_until("the datagram flows to be told", TOLD, || ended(&log, "idle", None) == 5)?;
    wait_until("the visits to be told", TOLD, || ended(&log, "fin", None) == 40)?;
    for backend in ["b0", "b1", "b2"] {
        assert_eq!(ended(&log, "fin", Some(backend)), visits.served_by(backend), "{backend}");
    }
    let told = lines(&log);
    let line = told.iter().find(|line| line["ended"] == "fin").expect("there are forty");
    assert_eq!((&line["protocol"], &line["service"]), (&"tcp".into(), &"web".into()), "{line}");
    assert!(line["client"].as_str().is_some_and(|client| client.starts_with("10.1.0.10:")), "{line}");
    assert!(line["duration_s"].as_f64().is_some_and(|seconds| seconds < 30.0), "{line}");

    // A file moved away is left alone, and nothing is told twice.
    fs::rename(&log, directory.path().join("flows.json.1"))?;
    scene.ebb.reload()?;
    wait_until("the daemon to read its file", SOON, || scene.ebb.log().contains("again"))?;
    let status: Value = scene.ebb.json(&["status"])?;
    let flow_log = &status["datapath"]["flow_log"];
    assert!(flow_log["written"].as_u64() >= Some(45) && flow_log["lost"] == 0, "{flow_log}");
    let mut clients: Vec<String> = told.iter().map(|line| format!("{}{}", line["client"], line["protocol"])).collect();
    clients.sort();
    clients.dedup();
    assert_eq!(clients.len(), told.len(), "each flow once");
    Ok(())
}
