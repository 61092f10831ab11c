//! Mistakes: each is answered by one line that says what is wrong, with the contract's exit code, and changes nothing.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use ebb_tests::{
    lab::{Ebb, Lab, Output, Plan},
    scene::{SOON, Scene, Setting},
    wait_until,
};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NO_DAEMON: i32 = 5;

/// Checks that an answer is an error as errors should be.
fn check(what: &str, output: &Output, code: i32, mentions: &str) {
    assert_eq!(output.code, code, "{what}: {output:?}");
    assert_eq!(output.stdout, "", "{what}: errors go to stderr");
    assert_eq!(output.stderr.trim_end().lines().count(), 1, "{what}: one line: {output:?}");
    assert!(output.stderr.contains(mentions), "{what}: should mention {mentions:?}: {output:?}");
    assert!(!output.stderr.contains("panicked"), "{what}: {output:?}");
}

/// What a mistake must not change: all but counters and clocks.
fn state(scene: &Scene) -> Result<String> {
    let status = scene.ebb.status()?;
    let services = status.services.iter().map(|service| {
        let backends = service.backends.iter().map(|b| (&b.name, &b.address, b.weight, &b.state, b.drain.is_some()));
        let backends: Vec<_> = backends.collect();
        format!("{:?}", (&service.name, &service.vip, &service.forward, service.drain_timeout_s, backends))
    });
    Ok(services.collect::<Vec<_>>().join("\n"))
}

#[test]
fn commands_with_mistakes_change_nothing() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let before = state(&scene)?;
    let vip = scene.web().to_string() + "/tcp";
    let cases: &[(&[&str], i32, &str)] = &[
        // Names that are not there.
        (&["drain", "nope/b1"], FAILED, "nope"),
        (&["drain", "web/nope"], FAILED, "nope"),
        (&["activate", "web/nope"], FAILED, "nope"),
        (&["wait", "web/nope"], FAILED, "nope"),
        (&["drain", "--address", "10.99.99.99"], FAILED, "10.99.99.99"),
        (&["status", "nope"], FAILED, "nope"),
        (&["flows", "nope"], FAILED, "nope"),
        (&["service", "show", "nope"], FAILED, "nope"),
        (&["service", "set", "nope", "--drain-timeout", "5s"], FAILED, "nope"),
        (&["service", "remove", "nope"], FAILED, "nope"),
        (&["backend", "list", "nope"], FAILED, "nope"),
        (&["backend", "add", "nope", "b9", "10.2.0.99"], FAILED, "nope"),
        (&["backend", "set", "web", "nope", "--weight", "2"], FAILED, "nope"),
        (&["backend", "remove", "web", "nope"], FAILED, "nope"),
        // Things that are there already.
        (&["service", "add", "web", "--vip", "10.9.0.9:80/tcp"], FAILED, "web"),
        (&["service", "add", "web2", "--vip", &vip], FAILED, "web"),
        (&["backend", "add", "web", "b1", "10.2.0.99"], FAILED, "b1"),
        (&["backend", "add", "web", "b9", "10.2.0.11"], FAILED, "10.2.0.11"),
        // Another port, where only the address is rewritten.
        (&["backend", "add", "web", "b9", "10.2.0.99:8080"], FAILED, "port"),
        // QUIC runs over UDP.
        (&["service", "set", "web", "--quic-cid", "4"], FAILED, "UDP"),
        // Neither goes with TCP, nor so long a prefix with IPv4.
        (&["service", "set", "web", "--per-datagram", "true"], FAILED, "UDP"),
        (&["service", "set", "web", "--affinity", "source/64"], FAILED, "1 to 32"),
        // Malformed values.
        (&["service", "set", "web", "--quic-cid", "16"], USAGE, "'16'"),
        (&["backend", "set", "web", "b1", "--server-id", "0x0a"], USAGE, "0x0a"),
        (&["backend", "set", "web", "b1"], USAGE, "--weight"),
        (&["drain", "web/b1", "--timeout", "5 parsecs"], USAGE, "parsecs"),
        (&["drain", "web/b1", "--timeout", "-3s"], USAGE, "-3"),
        (&["drain", "web/b1", "--timeout", "99999999999999999999s"], USAGE, "99999999999999999999"),
        (&["drain", "web/b1", "--on-timeout", "explode"], USAGE, "explode"),
        (&["drain", "web"], USAGE, "web"),
        (&["wait", "web/b1", "--for", "godot"], USAGE, "godot"),
        (&["service", "add", "x", "--vip", "10.9.0.9:80/icmp"], USAGE, "icmp"),
        (&["service", "add", "x", "--vip", "10.9.0.9:99999/tcp"], USAGE, "99999"),
        (&["service", "add", "x", "--vip", "10.9.0.999:80/tcp"], USAGE, "10.9.0.999"),
        (&["service", "add", "x", "--vip", "fd00::1:80/tcp"], USAGE, "fd00::1"),
        (&["service", "add", "x", "--vip", "10.9.0.9:80/tcp", "--forward", "pigeon"], USAGE, "pigeon"),
        (&["service", "add", "", "--vip", "10.9.0.9:80/tcp"], USAGE, "name"),
        (&["backend", "add", "web", "b9", "not-an-address"], USAGE, "not-an-address"),
        (&["backend", "add", "web", "b9", "10.2.0.99", "--weight", "-1"], USAGE, "-1"),
        (&["backend", "add", "web", "a/b", "10.2.0.99"], USAGE, "a/b"),
    ];
    let mut wrong = Vec::new();
    for (arguments, code, mentions) in cases {
        let output = scene.ebb.cli(arguments)?;
        let lines = output.stderr.trim_end().lines().count();
        // Usage errors of the argument parser may add its hints; a first line that says it all is what counts.
        let brief = lines == 1 || *code == USAGE && output.stderr.lines().next().is_some_and(|l| l.contains(mentions));
        let good = output.code == *code && output.stdout.is_empty() && brief && output.stderr.contains(mentions);
        if !good {
            wrong.push(format!("ebb {} wanted code {code} and {mentions:?}: {output:?}", arguments.join(" ")));
        }
        assert_eq!(state(&scene)?, before, "after `ebb {}`", arguments.join(" "));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    scene.visit(20).map(drop)
}

#[test]
fn a_wait_that_times_out_fails_and_the_drain_goes_on() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(30)?;
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    let output = scene.ebb.cli(&["wait", "web/b1", "--timeout", "1s"])?;
    check("wait", &output, FAILED, "web/b1");
    assert_eq!(scene.ebb.backend("web/b1")?.state, "draining");
    held.finish_and_wait(SOON).map(drop)
}

#[test]
fn without_a_daemon_commands_say_so() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let ebb = Ebb::new(&lab, &[])?;
    for arguments in [&["status"][..], &["drain", "web/b1"], &["service", "list"], &["wait", "web/b1"]] {
        let output = ebb.cli(arguments)?;
        check(&arguments.join(" "), &output, NO_DAEMON, &ebb.socket().display().to_string());
    }
    Ok(())
}

/// What no service could be set to is refused before a daemon is asked, as other malformed values are.
#[test]
fn settings_that_make_no_sense_are_usage() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let ebb = Ebb::new(&lab, &[])?;
    let cases: &[(&[&str], &str)] = &[
        (&["--idle-timeout", "0"], "idle timeout"),
        (&["--drain-idle", "0"], "drain_idle"),
        (&["--drain-hold", "0"], "drain_hold"),
        (&["--affinity", "source/0"], "affinity"),
        (&["--affinity", "source/129"], "affinity"),
        (&["--check", "tcp", "--check-interval", "1ms"], "interval"),
        (&["--check", "tcp", "--check-timeout", "0"], "timeout"),
        (&["--check", "tcp", "--check-rise", "0"], "rise"),
        (&["--check", "tcp", "--check-jitter", "5"], "jitter"),
        (&["--check", "http", "--check-status", "999"], "statuses"),
        (&["--check", "http", "--check-path", "up"], "path"),
    ];
    for (flags, mentions) in cases {
        let add = [&["service", "add", "x", "--vip", "10.9.0.9:80/tcp"], *flags].concat();
        check(&add.join(" "), &ebb.cli(&add)?, USAGE, mentions);
        // Without the kind it is that of the check that is there, which only the daemon knows.
        let flags = if flags[0] == "--check" { &flags[2..] } else { flags };
        let set = [&["service", "set", "x"], flags].concat();
        check(&set.join(" "), &ebb.cli(&set)?, USAGE, mentions);
    }
    let output = ebb.cli(&["service", "set", "x", "--check-path", "/up"])?;
    check("set", &output, NO_DAEMON, &ebb.socket().display().to_string());
    Ok(())
}

#[test]
fn an_interface_that_is_not_there_is_named() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let ebb = Ebb::new(&lab, &[])?;
    let output = ebb.cli(&["run", "-i", "eth9"])?;
    assert_eq!(output.code, FAILED, "{output:?}");
    assert!(output.stderr.contains("eth9"), "{output:?}");
    assert!(!lab.pin_path().exists(), "nothing is left pinned");
    Ok(())
}

#[test]
fn another_program_on_the_interface_is_left_there() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let foreign = lab.bounce(Plan::vip(ebb_tests::lab::Family::V4, 0), 0)?;
    let ebb = Ebb::new(&lab, &[])?;
    let output = ebb.cli(&["run", "-i", "eth0"])?;
    assert_eq!(output.code, FAILED, "{output:?}");
    assert!(output.stderr.contains("eth0"), "{output:?}");
    drop(foreign);
    Ok(())
}

#[test]
fn a_second_daemon_is_refused() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let output = scene.ebb.cli(&["run", "-i", "eth0"])?;
    assert_eq!(output.code, FAILED, "{output:?}");
    assert!(!output.stderr.is_empty());
    scene.visit(20)?;
    assert_eq!(scene.ebb.status()?.services.len(), 1, "the first goes on");
    Ok(())
}

#[test]
fn a_stale_socket_is_replaced() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let mut ebb = Ebb::new(&lab, &[])?;
    drop(std::os::unix::net::UnixListener::bind(ebb.socket())?);
    ebb.run().map(drop)
}

#[test]
fn without_privilege_it_says_what_it_needs() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let ebb = Ebb::new(&lab, &[])?;
    let output = as_nobody(&ebb, &["run", "-i", "lo", "--socket", "/tmp/ebb-unprivileged.sock"])?;
    assert_eq!(output.code, FAILED, "{output:?}");
    assert!(output.stderr.contains("root") || output.stderr.contains("CAP_"), "{output:?}");
    assert_eq!(output.stderr.trim_end().lines().count(), 1, "{output:?}");
    Ok(())
}

/// Runs the CLI as a user who may do nothing.
fn as_nobody(ebb: &Ebb, arguments: &[&str]) -> Result<Output> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // A copy that nobody may read, whatever the directories of the checkout allow.
    let copy = std::env::temp_dir().join(format!("ebb-unprivileged-{}-{number}", std::process::id()));
    std::fs::copy(ebb.program(), &copy)?;
    let mut command = std::process::Command::new(&copy);
    command.args(arguments).uid(65_534).gid(65_534);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().context("run as nobody")?;
    let ended = wait_until("it to give up", Duration::from_secs(10), || matches!(child.try_wait(), Ok(Some(_))));
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    std::fs::remove_file(&copy)?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[test]
fn who_may_not_ask_does_not_wait() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let socket = scene.ebb.socket();
    // Within the time that a user who may do nothing is given, which is less than a daemon is borne with.
    let output = as_nobody(&scene.ebb, &["wait", "web/b1", "--socket", &socket.to_string_lossy()])?;
    check("wait", &output, FAILED, "no permission to use");
    Ok(())
}

#[test]
fn what_nobody_may_look_at_is_not_called_unattached() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let pins = scene.lab.pin_path();
    let unload = |path: &Path| {
        let path = path.to_string_lossy();
        as_nobody(&scene.ebb, &["unload", "--socket", "/nowhere/ebb.sock", "--pin-path", &path])
    };
    // As the default is below a directory of its own.
    for path in [&pins, &pins.join("v1")] {
        check("unload", &unload(path)?, FAILED, "run this as root");
    }
    let output = unload(Path::new("/nowhere/pins"))?;
    assert_eq!((output.code, output.stdout.as_str()), (0, "nothing was attached\n"), "{output:?}");
    scene.visit(20).map(drop)
}
