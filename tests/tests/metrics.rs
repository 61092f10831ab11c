//! The metrics, the alert rules and their tests, as Prometheus's own tool sees them.

use std::{
    fs::File,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Arms, Family},
    scene::{Forward, Scene, Setting},
};

fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/prometheus")
}

fn promtool(arguments: &[&str], input: Option<File>) -> Result<String> {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(rules());
    if let Some(input) = input {
        command.stdin(input);
    }
    let output = command.output().context("promtool is in Debian's package prometheus: cargo xtask setup")?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "promtool {}: {text}", arguments.join(" "));
    Ok(text)
}

#[test]
fn the_alert_rules_are_right() -> Result<()> {
    promtool(&["check", "rules", "ebb.rules.yml"], None)?;
    let said = promtool(&["test", "rules", "ebb.test.yml"], None)?;
    ensure!(said.contains("SUCCESS"), "{said}");
    Ok(())
}

#[test]
fn the_endpoint_is_what_prometheus_reads() -> Result<()> {
    let scene = Scene::set_with(Setting::with_backends(2), &["--metrics", "127.0.0.1:9090"])?;
    scene.add_web(&[])?;
    scene.visit(20)?;
    let held = scene.hold(10)?;
    scene.ebb.ok(&["drain", "web/b0", "--timeout", "1s", "--wait"]).unwrap_err();
    let directory = tempfile::tempdir()?;
    let page = directory.path().join("metrics.txt");
    let mut curl = scene.lab.balancer.command("curl")?;
    let got = curl.args(["-sS", "-o"]).arg(&page).arg("http://127.0.0.1:9090/metrics").output()?;
    ensure!(got.status.success(), "{got:?}");
    promtool(&["check", "metrics"], Some(File::open(&page)?))?;
    let page = std::fs::read_to_string(page)?;
    for line in [
        "ebb_backend_new_flows_total{service=\"web\",backend=\"b1\"}",
        "ebb_backend_finished_flows_total{service=\"web\",backend=\"b1\"}",
        "ebb_backend_reset_flows_total{service=\"web\",backend=\"b1\"}",
        "ebb_drains_total{service=\"web\",outcome=\"deadline\"} 1",
    ] {
        assert!(page.lines().any(|found| found.starts_with(line)), "no {line} in\n{page}");
    }
    held.finish();
    Ok(())
}

/// Whoever reaches the endpoint may connect to it, and that is all that it takes.
#[test]
fn idle_connections_leave_descriptors_to_checks_and_operators() -> Result<()> {
    // Fewer than the connections that are made, more than the metrics take.
    const SPARE: u64 = 64;
    let scene = Scene::set_with(Setting::of(Forward::Nat, Arms::Two, Family::V4), &["--metrics", "127.0.0.1:9090"])?;
    scene.add_web(&["--check", "tcp", "--check-interval", "200ms", "--check-fall", "2"])?;
    scene.ebb.spare_files(SPARE)?;
    let connect = || (0..2 * SPARE).map(|_| TcpStream::connect("127.0.0.1:9090")).collect::<std::io::Result<Vec<_>>>();
    let idle = scene.lab.balancer.run(connect)??;
    // Many times what a backend takes to fail.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let status = scene.ebb.status()?;
        let web = status.service("web").context("web")?;
        ensure!(
            web.backends.iter().all(|backend| backend.state == "active"),
            "{:?}\n{}",
            web.backends,
            scene.ebb.log()
        );
        thread::sleep(Duration::from_millis(50));
    }
    // Checks that cannot be made change nothing either.
    ensure!(!scene.ebb.log().contains("cannot be checked"), "{}", scene.ebb.log());
    drop(idle);
    Ok(())
}
