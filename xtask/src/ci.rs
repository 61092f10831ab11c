//! `cargo xtask ci`: everything that must hold before a change lands, the quickest first.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{self, cargo, root},
    mutants, packages,
    record::Record,
    setup,
    test::{self, Build::AsTested},
    toolchain, tools,
};

type Step = (&'static str, fn() -> Result<()>);

const STEPS: &[Step] = &[
    ("format", || command::run(cargo().args(["fmt", "--all", "--check"]))),
    ("lint for the host", lint_host),
    ("lint for the kernel", lint_ebpf),
    ("licences and sources", deny_if_installed),
    ("documentation", documentation),
    ("tests", || test::test(&test::TestOptions::default())),
    ("a mutant", || mutants::mutants(true)),
    ("benchmark, to see that it runs", || command::run(test::bench(AsTested)?.arg("--quick"))),
    ("demo", || command::run(&mut test::demo(AsTested)?)),
    ("faults", || command::run(test::chaos(AsTested)?.args(["--seconds", "90", "--seed", SEED]))),
];

/// Its first thirty steps have every kind of fault. One and the same for every run: what is new on a commit is to blame on it.
const SEED: &str = "41";

/// Runs every step, so that one run shows all that is wrong; without the set-up there is no point.
pub(crate) fn ci() -> Result<()> {
    setup::setup(false).context("set-up")?;

    let mut report: Vec<(&str, Duration, Result<()>)> = Vec::new();
    for (name, step) in STEPS {
        println!("\n==== {name}");
        let started = Instant::now();
        let outcome = step();
        if let Err(error) = &outcome {
            eprintln!("error: {error:#}");
        }
        report.push((name, started.elapsed(), outcome));
    }

    println!("\n==== in short");
    for (name, took, outcome) in &report {
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("{word:<6} {:>5} s  {name}", took.as_secs());
    }
    let failed = report.iter().filter(|(_, _, outcome)| outcome.is_err()).count();
    if failed > 0 {
        bail!("{failed} of {} steps failed", report.len());
    }
    Ok(())
}

/// All targets but the eBPF program itself, which has no `main` on the host.
fn lint_host() -> Result<()> {
    let deny = ["--", "-D", "warnings"];
    let host = ["clippy", "--workspace", "--exclude", "lb-ebpf", "--exclude", "ebb-tests-ebpf"];
    command::run(cargo().args(host).arg("--all-targets").args(deny))?;
    command::run(cargo().args(["clippy", "-p", "lb-ebpf", "-p", "ebb-tests-ebpf", "--lib", "--tests"]).args(deny))
}

/// The eBPF program for the target it is built for, with the compiler it is built with.
fn lint_ebpf() -> Result<()> {
    let record = Record::read(root())?.context("no record of the eBPF compiler")?;
    let clippy = |arguments: &[&str]| {
        let mut command = Command::new("rustup");
        command.current_dir(root()).args(["run", &record.toolchain, "cargo", "clippy"]).args(arguments);
        command
    };
    if command::output(&mut clippy(&["--version"])).is_err() {
        if record.toolchain != toolchain::LINKED_NAME {
            bail!("toolchain {0} has no clippy; run: rustup component add clippy --toolchain {0}", record.toolchain);
        }
        packages::install(&["rust-web-clippy"])?;
    }
    let flags = format!("--cfg=bpf_target_arch=\"{}\"\x1f-Dwarnings", std::env::consts::ARCH);
    let build = ["-Z", "build-std=core", "--target", "bpfel-unknown-none"];
    command::run(
        clippy(&["-p", "lb-ebpf", "-p", "ebb-tests-ebpf", "--bins", "--release"])
            .args(build)
            .arg("--target-dir")
            .arg(test::target_directory()?.join("ebpf-clippy"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &record.linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags),
    )
}

/// Holds the dependencies against deny.toml, building cargo-deny first if need be. Advisories need a download from
/// GitHub and are left to a plain `cargo deny check`.
pub(crate) fn deny() -> Result<()> {
    deny_with(&tools::install(&tools::CARGO_DENY)?)
}

/// The same where it costs no build: that one alone takes longer than all the other steps' set-up.
fn deny_if_installed() -> Result<()> {
    if let Some(program) = tools::find(&tools::CARGO_DENY) {
        return deny_with(&program);
    }
    println!("not checked: cargo-deny is not installed; run: cargo xtask deny");
    Ok(())
}

fn deny_with(program: &Path) -> Result<()> {
    let check = ["check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
    command::run(Command::new(program).current_dir(root()).args(check))
}

/// The documentation of every library and program, with dead links as errors.
fn documentation() -> Result<()> {
    for packages in [
        &["--workspace", "--exclude", "lb-ebpf", "--exclude", "ebb-tests-ebpf"] as &[&str],
        &["-p", "lb-ebpf", "-p", "ebb-tests-ebpf", "--lib"],
    ] {
        let mut doc = cargo();
        command::run(doc.args(["doc", "--no-deps"]).args(packages).env("RUSTDOCFLAGS", "-D warnings"))?;
    }
    Ok(())
}
