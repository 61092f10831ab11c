//! `cargo xtask test --kernel VERSION`: the tests that hang on the kernel, under another one.
//!
//! A virtual machine boots Debian's kernel of that version with this machine's files below a throw-away layer, so that the
//! very programs that Cargo built here run there, with the `ip`, `ethtool` and libraries of here.

mod guest;
mod image;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{packages, programs, setup, test::Said};

/// What takes the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accelerator {
    /// Emulation: works everywhere, about ten times slower
    #[default]
    Tcg,
    /// The processor's own virtualization
    Kvm,
}

/// What is run under another kernel.
pub(crate) struct Plan {
    /// Debian's kernels begin with this: `6.1`.
    pub(crate) version: String,
    /// Test programs, by their names for Cargo, each with what the names of its tests must contain, if not all are run.
    pub(crate) programs: Vec<(String, Vec<String>)>,
    pub(crate) accelerator: Accelerator,
}

/// The test programs that are run if none is named: those that fail where a kernel takes the program or its packets otherwise.
const PROGRAMS: &[&str] = &[
    "object",
    "packet_suite",
    "random_packets",
    "one_bucket",
    "kernel",
    "packet_path",
    "drain",
    "survival",
    "modes",
    "suspend",
];

/// The short run: the programs load, every fixture of the packet suite, a drain with real connections.
const QUICK: &[(&str, &[&str])] =
    &[("object", &[]), ("packet_suite", &[]), ("drain", &["it_ends_early_when_the_last_connection_has_ended"])];

impl Plan {
    /// All of them, or those named, each with the tests whose names contain `filter`.
    pub(crate) fn of(version: &str, chosen: &[String], filter: Option<&str>, accelerator: Accelerator) -> Self {
        let filters: Vec<String> = filter.into_iter().map(str::to_owned).collect();
        let names: Vec<String> =
            if chosen.is_empty() { PROGRAMS.iter().map(ToString::to_string).collect() } else { chosen.to_vec() };
        let programs = names.into_iter().map(|name| (name, filters.clone())).collect();
        Self { version: version.to_owned(), programs, accelerator }
    }

    /// The short run.
    pub(crate) fn quick(version: &str, accelerator: Accelerator) -> Self {
        let owned = |filters: &[&str]| filters.iter().map(ToString::to_string).collect();
        let programs = QUICK.iter().map(|(name, filters)| ((*name).to_owned(), owned(filters))).collect();
        Self { version: version.to_owned(), programs, accelerator }
    }
}

/// Fetches the kernel, builds the tests, boots and runs them.
pub(crate) fn test(plan: &Plan) -> Result<()> {
    setup::ensure(setup::Needs::Lab)?;
    packages::ensure_emulator()?;
    let kernel = image::fetch(&plan.version)?;
    let programs = programs::named(&plan.programs)?;
    let started = Instant::now();
    let said = guest::run(&kernel, &programs, plan.accelerator)?;
    conclude(&kernel.release, &said, programs.len(), started.elapsed())
}

fn conclude(release: &str, heard: &guest::Heard, programs: usize, took: Duration) -> Result<()> {
    let Said { tally, listings } = &heard.said;
    println!("\n{}", listings.join("\n"));
    println!("in all, under Linux {release}: {tally}; {} s with the boot", took.as_secs());
    if !heard.finished {
        bail!("the guest ended before its tests did");
    }
    if !heard.failed.is_empty() {
        bail!("under Linux {release} failed: {}", heard.failed.join(", "));
    }
    if heard.ended != programs || tally.passed == 0 {
        bail!("of {programs} test programs {} ran, and {} tests", heard.ended, tally.passed);
    }
    Ok(())
}
