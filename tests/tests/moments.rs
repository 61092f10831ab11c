//! Moments in which a start cannot go on: each is told in one line that says what to do, nothing is left half-done, what ran
//! goes on, and the next start works.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    lab::{Ebb, Lab, Output, Plan},
    scene::{Scene, Setting},
};

/// A start on `eth0` that must fail; `mentions` is what the one line of its error has to say.
fn fails(ebb: &Ebb, more: &[&str], mentions: &[&str]) -> Result<()> {
    let output = ebb.cli(&[&["run", "-i", "eth0"], more].concat())?;
    is_refused(&output, mentions);
    Ok(())
}

fn is_refused(output: &Output, mentions: &[&str]) {
    assert_eq!(output.code, 1, "{output:?}");
    // Lines of the log begin with a time.
    let errors: Vec<_> = output.stderr.lines().filter(|line| !line.starts_with("20")).collect();
    assert_eq!(errors.len(), 1, "one line: {output:?}");
    for mention in mentions {
        assert!(errors[0].contains(mention), "{mention:?} is missing: {output:?}");
    }
}

/// Neither a program on the interface nor a map that is pinned.
fn nothing_is_left(lab: &Lab) -> Result<()> {
    let shown = Command::new("ip").args(["-n", lab.balancer.name(), "-o", "link", "show", "eth0"]).output()?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains("eth0") && !shown.contains("xdp"), "still attached: {shown}");
    let left = pins(&lab.pin_path())?;
    ensure!(left.is_empty(), "still pinned: {left:?}");
    Ok(())
}

/// All pinned objects below a directory.
fn pins(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return Ok(found) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(pins(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The last step of a start fails: the program cannot be pinned. (A BPF filesystem has no quota and is never full; a
/// directory in the place of the pin is refused by the same call.)
#[test]
fn a_pin_that_cannot_be_made() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let mut ebb = Ebb::new(&lab, &[])?;
    let obstacle = lab.pin_path().join("prog-new");
    fs::create_dir_all(&obstacle)?;
    fails(&ebb, &[], &["cannot pin", "prog-new"])?;
    nothing_is_left(&lab)?;
    fs::remove_dir(&obstacle)?;
    // And one that is in the way of a map.
    let obstacle = lab.pin_path().join("STATS");
    fs::create_dir_all(&obstacle)?;
    fails(&ebb, &[], &["STATS"])?;
    nothing_is_left(&lab)?;
    fs::remove_dir(&obstacle)?;
    ebb.run()
}

#[test]
fn a_pin_that_cannot_be_made_while_an_earlier_program_forwards() -> Result<()> {
    let mut scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(30)?;
    scene.ebb.terminate()?;
    let obstacle = scene.lab.pin_path().join("prog-new");
    fs::create_dir(&obstacle)?;
    let before = pins(&scene.lab.pin_path())?;
    fails(&scene.ebb, &[], &["cannot pin", "prog-new"])?;
    assert_eq!(pins(&scene.lab.pin_path())?, before, "the pins are what they were");
    scene.visit(20).context("it goes on forwarding")?;
    fs::remove_dir(&obstacle)?;
    scene.ebb.run()?;
    scene.visit(20)?;
    let tally = held.finish_and_wait(ebb_tests::scene::SOON)?;
    assert_eq!((tally.broken(), tally.clean), (0, 30), "{tally:?}");
    Ok(())
}

/// A map of another kind under the name of the one that says how to read the others.
#[test]
fn maps_of_another_kind() -> Result<()> {
    let mut scene = Scene::with_web(Setting::default(), &[])?;
    scene.ebb.terminate()?;
    let at = |name: &str| scene.lab.pin_path().join(name);
    let swap = || -> Result<()> {
        fs::rename(at("CONTROL"), at("aside"))?;
        fs::rename(at("FRAGMENTS"), at("CONTROL"))?;
        Ok(fs::rename(at("aside"), at("FRAGMENTS"))?)
    };
    swap()?;
    let before = pins(&scene.lab.pin_path())?;
    fails(&scene.ebb, &[], &["CONTROL", "another layout", "ebb unload"])?;
    assert_eq!(pins(&scene.lab.pin_path())?, before, "nothing was taken away");
    scene.visit(20).context("it goes on forwarding")?;
    swap()?;
    scene.ebb.run()?;
    scene.visit(20).map(drop)
}

/// Another build, older or newer, has marked the pins as its own.
#[test]
fn pins_of_an_older_and_of_a_newer_build() -> Result<()> {
    let mut scene = Scene::with_web(Setting::default(), &[])?;
    scene.ebb.terminate()?;
    for mark in ["layout-1", "layout-4000000000"] {
        fs::create_dir(scene.lab.pin_path().join(mark))?;
        fails(&scene.ebb, &[], &[mark, "ebb unload"])?;
        scene.visit(20).context("it goes on forwarding")?;
        fs::remove_dir(scene.lab.pin_path().join(mark))?;
    }
    scene.ebb.run()?;
    scene.visit(20).map(drop)
}

/// A start by way of another program, which limits it.
fn start_under(limiter: &[&str], lab: &Lab, ebb: &Ebb, more: &[&str]) -> Result<Output> {
    let (program, arguments) = limiter.split_first().context("a program")?;
    let mut command = lab.balancer.command(program)?;
    command.args(arguments).arg(ebb.program());
    command.args(["run", "-i", "eth0", "--mode", "native"]).arg("--socket").arg(ebb.socket());
    command.arg("--pin-path").arg(lab.pin_path()).arg("--state-dir").arg(ebb.state_directory()).args(more);
    let output = command.output()?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The same with so many KiB of address space.
fn start_within(kib: u32, lab: &Lab, ebb: &Ebb, more: &[&str]) -> Result<Output> {
    start_under(&["sh", "-c", &format!("ulimit -v {kib} && exec \"$@\""), "sh"], lab, ebb, more)
}

/// Flows whose table alone takes more address space than [`TOO_LITTLE_KIB`].
const MANY_FLOWS: [&str; 2] = ["--max-flows", "4000000"];
/// Enough for all but that table.
const TOO_LITTLE_KIB: u32 = 300 * 1024;

#[test]
fn no_memory_for_the_flow_table() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let mut ebb = Ebb::new(&lab, &[])?;
    let output = start_within(TOO_LITTLE_KIB, &lab, &ebb, &MANY_FLOWS)?;
    is_refused(&output, &["FLOWS", "into memory", "MiB"]);
    nothing_is_left(&lab)?;
    ebb.run()
}

/// Wherever memory runs out in a start, also where that ends the daemon on the spot: what forwards goes on, and the next start
/// finds all as it was.
#[test]
fn no_memory_while_an_earlier_program_forwards() -> Result<()> {
    let mut scene = Scene::set_with(Setting::default(), &MANY_FLOWS)?;
    scene.add_web(&[])?;
    let held = scene.hold(30)?;
    scene.ebb.terminate()?;
    for kib in (1..=10).map(|part| TOO_LITTLE_KIB / 10 * part) {
        let output = start_within(kib, &scene.lab, &scene.ebb, &MANY_FLOWS)?;
        assert!(!matches!(output.code, 0 | 101), "within {kib} KiB: {output:?}");
        scene.visit(5).with_context(|| format!("it goes on forwarding after a start within {kib} KiB"))?;
    }
    scene.ebb.run()?;
    scene.visit(20)?;
    let tally = held.finish_and_wait(ebb_tests::scene::SOON)?;
    assert_eq!((tally.broken(), tally.clean), (0, 30), "{tally:?}");
    Ok(())
}

/// In a time namespace the daemon's monotonic clock may not be the packet path's: all flows would seem idle, or no deadline
/// would ever come.
#[test]
fn a_clock_that_is_not_the_kernels() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let mut ebb = Ebb::new(&lab, &[])?;
    let output = start_under(&["unshare", "--time", "--monotonic", "86400", "--fork"], &lab, &ebb, &[])?;
    is_refused(&output, &["time namespace", "86400", "outside"]);
    nothing_is_left(&lab)?;
    ebb.run()
}
