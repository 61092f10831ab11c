//! `cargo xtask test` and `cargo xtask demo`.

use std::{
    fmt,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    command::{self, cargo, root},
    kernel, programs, setup,
};

/// Tells the scenarios and the demo which binary to drive.
pub(crate) const BINARY_VARIABLE: &str = "EBB_BIN";

/// Packages whose tests need neither root nor a network.
const HOST_TESTS: &[&str] = &["lb-common", "lb-userspace", "xtask"];

/// The packet suite and the scenarios, which load programs and make network namespaces.
const LAB_TESTS: &[&str] = &["ebb-tests", "ebb-fuzz"];

/// What `cargo xtask test` takes.
#[derive(Args, Default)]
pub(crate) struct TestOptions {
    /// Leave out the packet suite and the namespace scenarios, which need root
    #[arg(long)]
    host_only: bool,

    /// Run only tests whose name contains this
    #[arg(long, value_name = "SUBSTRING")]
    filter: Option<String>,

    /// Under Debian's kernel of this version (6.1, 6.12), in a virtual machine: what hangs on the kernel
    #[arg(long, value_name = "VERSION", conflicts_with = "host_only")]
    kernel: Option<String>,

    /// Under that kernel run this test program of the ebb-tests package (drain, modes); may be given several times
    #[arg(long, value_name = "NAME", requires = "kernel")]
    test: Vec<String>,

    /// Under that kernel make a short run: loading, the packet suite, a drain
    #[arg(long, requires = "kernel", conflicts_with_all = ["test", "filter"])]
    quick: bool,

    /// What runs that kernel
    #[arg(long, value_enum, default_value_t, requires = "kernel")]
    accelerator: kernel::Accelerator,
}

/// Sets up, builds and runs the tests; all run even if one fails.
pub(crate) fn test(options: &TestOptions) -> Result<()> {
    if let Some(version) = &options.kernel {
        let filter = options.filter.as_deref();
        return kernel::test(&if options.quick {
            kernel::Plan::quick(version, options.accelerator)
        } else {
            kernel::Plan::of(version, &options.test, filter, options.accelerator)
        });
    }
    setup::ensure(if options.host_only { setup::Needs::Build } else { setup::Needs::Lab })?;

    let programs = programs::build(&mut all_tests(!options.host_only)?)?;
    let (mut said, mut failed) = programs::run(&programs, options.filter.as_deref());
    failed.extend(doc_tests(options, &mut said)?);
    if options.host_only {
        println!("\n(--host-only: the packet suite and the namespace scenarios were not run)");
    }

    println!("\n{}", said.listings.join("\n"));
    println!("in all: {}", said.tally);
    if !failed.is_empty() {
        bail!("tests failed: {}", failed.join(", "));
    }
    if said.tally.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// `cargo test` for all that the host's Cargo builds. One command: dependencies are then compiled once, with the features that
/// any of them asks for, and so is `ebb` itself, which Cargo builds for the tests of its package.
pub(crate) fn all_tests(lab: bool) -> Result<Command> {
    let lab = if lab { LAB_TESTS } else { &[] };
    let mut all = cargo();
    all.arg("test").args(HOST_TESTS.iter().chain(lab).flat_map(|package| ["-p", package]));
    all.env(BINARY_VARIABLE, debug_binary()?);
    Ok(all)
}

/// What the test runners counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    failed: u32,
    ignored: u32,
}

impl Tally {
    /// Reads a runner's summary: `test result: ok. 7 passed; 0 failed; 0 ignored; …`.
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
        Some(Self { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, ignored } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} ignored")
    }
}

/// How the lines begin that are repeated: how many of the packet suite's fixtures passed in each mode, and what the verifier
/// had to do.
const LISTINGS: [&str; 2] = ["packet suite: ", "verifier: "];

/// What is repeated at the end of what the runners said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) tally: Tally,
    pub(crate) listings: Vec<String>,
}

impl Said {
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(counted) = Tally::parse(line) {
            self.tally.add(counted);
        } else if LISTINGS.iter().any(|listing| line.starts_with(listing)) {
            self.listings.push(line.to_owned());
        }
    }
}

/// Runs the examples in the documentation of the libraries; names them if one fails.
fn doc_tests(options: &TestOptions, said: &mut Said) -> Result<Option<String>> {
    let mut command = all_tests(!options.host_only)?;
    let mut child = command::start(command.arg("--doc").args(&options.filter).stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("the runner's output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read the runner's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        said.read(&line);
    }
    Ok((!child.wait()?.success()).then(|| "the documentation's examples".to_owned()))
}

/// How the demo, the faults and the benchmark are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// As users run them.
    Release,
    /// As the tests have them, which costs nothing after the tests: for runs that only look whether all goes right.
    AsTested,
}

/// Sets up and builds; returns the demo, ready to run.
pub(crate) fn demo(build: Build) -> Result<Command> {
    program("ebb-demo", build)
}

/// The same for the faults.
pub(crate) fn chaos(build: Build) -> Result<Command> {
    program("ebb-chaos", build)
}

/// The same for the benchmark.
pub(crate) fn bench(build: Build) -> Result<Command> {
    program("ebb-bench", build)
}

/// Builds `ebb` and the programs that drive it, in one command for the same reason as the tests; returns the one of that name.
fn program(name: &str, build: Build) -> Result<Command> {
    setup::ensure(setup::Needs::Lab)?;
    let (mut cargo, profile) = match build {
        Build::Release => {
            let mut release = cargo();
            release.args(["build", "--release", "-p", "lb-userspace", "-p", "ebb-tests", "--bins"]);
            (release, "release")
        }
        Build::AsTested => {
            let mut tests = all_tests(true)?;
            tests.arg("--no-run");
            (tests, "debug")
        }
    };
    command::run(&mut cargo)?;
    let directory = target_directory()?.join(profile);
    let mut program = Command::new(directory.join(name));
    program.env(BINARY_VARIABLE, directory.join("ebb"));
    Ok(program)
}

/// The `ebb` that is built with the tests.
pub(crate) fn debug_binary() -> Result<PathBuf> {
    Ok(target_directory()?.join("debug/ebb"))
}

/// Builds `ebb` as users run it; returns where it is.
pub(crate) fn build_release() -> Result<PathBuf> {
    command::run(cargo().args(["build", "--release", "-p", "lb-userspace", "--bin", "ebb"]))?;
    Ok(target_directory()?.join("release/ebb"))
}

/// Where Cargo puts what it builds. We are there ourselves, two levels down (`target/debug/xtask`).
pub(crate) fn target_directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("CARGO_TARGET_DIR") {
        return Ok(root().join(directory));
    }
    let own = std::env::current_exe().context("cannot tell where xtask runs from")?;
    own.parent()
        .and_then(Path::parent)
        .map(Path::to_owned)
        .with_context(|| format!("{} is not in a target directory", own.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_runners_are_read() {
        let line = "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.00s";
        let tally = Tally { passed: 7, failed: 1, ignored: 2 };
        assert_eq!(Tally::parse(line), Some(tally));
        assert_eq!(Tally::parse("test config::tests::a ... ok"), None);
        let mut said = Said::default();
        for line in [line, "packet suite: fixtures passed by mode: dsr 3, nat 4", "  dsr/ipv4/tcp 3 passed", line] {
            said.read(line);
        }
        assert_eq!(said.tally, Tally { passed: 14, failed: 2, ignored: 4 });
        assert_eq!(said.listings, ["packet suite: fixtures passed by mode: dsr 3, nat 4"]);
    }
}
