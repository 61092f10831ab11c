//! The flow log: a line for each flow that is over, with where it went and how it ended.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use ebb_tests::{
    lab::{Arms, Family},
    scene::{Forward, SOON, Scene, Setting},
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

    // Nothing but these flows has reached the backends: what they carried is what was forwarded.
    for service in ["web", "dns"] {
        for backend in ["b0", "b1", "b2"] {
            let counted: Value = scene.ebb.json(&["status", service])?;
            let rows = counted["services"][0]["backends"].as_array().cloned().unwrap_or_default();
            let row = rows.into_iter().find(|row| row["name"] == backend).expect("it is registered");
            let of_it = |line: &&Value| line["service"] == service && line["backend"] == backend;
            let sum = |what: &str| told.iter().filter(of_it).filter_map(|line| line[what].as_u64()).sum::<u64>();
            assert_eq!(sum("packets"), row["packets_total"], "{service}/{backend}: {row}");
            assert_eq!(sum("bytes"), row["bytes_total"], "{service}/{backend}: {row}");
        }
    }
    assert!(told.iter().all(|line| line["reply_packets"].is_null()), "nobody sees replies under dsr");

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

/// A scene whose daemon logs flows, and the log.
fn logged(directory: &Path, forward: Forward, more: &[&str]) -> Result<(Scene, PathBuf)> {
    let (log, file) = (directory.join("flows.json"), directory.join("ebb.toml"));
    fs::write(&file, format!("[daemon.flow_log]\npath = \"{}\"\n", log.display()))?;
    let file = file.to_string_lossy();
    let scene = Scene::set_with(Setting::of(forward, Arms::One, Family::V4), &[&["-c", &file], more].concat())?;
    Ok((scene, log))
}

#[test]
fn what_each_flow_carried_is_told_both_ways() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (mut scene, log) = logged(directory.path(), Forward::Nat, &[])?;
    scene.add_service("dns", 0, 53, "udp", &["--idle-timeout", "2s"])?;
    let datagrams = scene.client.datagrams_of(100, scene.vip(0, 53), 6, Duration::from_millis(20));
    wait_until("answers", SOON, || datagrams.flows().iter().all(|flow| flow.answered >= 10))?;
    // Counts outlive the daemon, as flows do.
    scene.ebb.kill()?;
    scene.ebb.run()?;
    wait_until("more answers", SOON, || datagrams.flows().iter().all(|flow| flow.answered >= 20))?;
    datagrams.finish();
    wait_until("the flows to be told", TOLD, || ended(&log, "idle", None) == 6)?;
    for flow in datagrams.flows() {
        let local = flow.local.expect("it had a socket").to_string();
        let line = lines(&log).into_iter().find(|line| line["client"] == *local).expect("it was told");
        // IP and UDP headers, and the datagram's own.
        assert_eq!(
            (&line["packets"], &line["bytes"]),
            (&flow.sent.into(), &(flow.sent * (20 + 8 + 8 + 100)).into()),
            "{flow:?}"
        );
        // What came too late for the client has come by here.
        let replies = line["reply_packets"].as_u64().expect("under nat");
        assert!((flow.answered..=flow.sent).contains(&u32::try_from(replies)?), "{line} {flow:?}");
        assert!(line["reply_bytes"].as_u64() > Some(replies * (20 + 8 + 8)), "{line}");
    }
    Ok(())
}

#[test]
fn what_the_packet_path_has_taken_out_is_counted() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (scene, _) = logged(directory.path(), Forward::Dsr, &["--max-flows", "100"])?;
    scene.add_web(&[])?;
    for _ in 0..6 {
        scene.visit(40)?;
        // Until then it is not sure that they are over, and they may not be taken out.
        let over = |flows: Value| {
            flows["flows"].as_array().is_some_and(|all| all.iter().all(|flow| flow["state"] == "closing"))
        };
        wait_until("these to be over", SOON, || scene.ebb.json(&["flows"]).is_ok_and(over))?;
    }
    let count = |what: &str| -> u64 {
        let status: Result<Value> = scene.ebb.json(&["status"]);
        status.ok().and_then(|status| status["datapath"]["flow_log"][what].as_u64()).unwrap_or(0)
    };
    wait_until("all to be told or counted", TOLD, || count("written") + count("lost") == 240).with_context(|| {
        let entries = std::fs::read_to_string(directory.path().join("flows.json")).unwrap_or_default();
        let outcomes = scene.ebb.ok(&["status", "-o", "json"]).map(|out| out.stdout).unwrap_or_default();
        format!("{} told, {} lost; {outcomes}\n{entries}", count("written"), count("lost"))
    })?;
    println!("{} told, {} lost", count("written"), count("lost"));
    assert!(count("lost") > 100, "{} of 240, with room for 122", count("lost"));
    Ok(())
}
