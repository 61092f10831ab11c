//! Project tasks: everything a checkout needs beyond `cargo build`.

mod ci;
mod command;
mod dist;
mod fuzz;
mod kernel;
mod linker;
mod machine;
mod mutants;
mod packages;
mod programs;
mod record;
mod sanitize;
mod setup;
mod test;
mod toolchain;
mod tools;
#[cfg(test)]
mod unsafe_code;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what the build, the tests and the demo need; quick when nothing is missing
    Setup {
        /// Only what the build needs: neither root nor the programs that the tests and the demo use
        #[arg(long)]
        build_only: bool,
    },
    /// Run the tests: host, packet suite, namespace scenarios (the latter two as root)
    Test(test::TestOptions),
    /// Drain a backend under load in network namespaces, and judge it by what clients and servers saw
    Demo {
        /// Passed on to the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measure the XDP program beside a conventional balancer, in release mode (as root)
    Bench {
        /// Passed on to the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Make faults in random order while thousands of connections go on, and judge it by what clients and servers saw (as root)
    Chaos {
        /// Passed on: --seconds, --seed and others
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Put mistakes into the XDP program, one at a time, and see that the tests notice (as root)
    Mutants {
        /// Only the first few
        #[arg(long)]
        quick: bool,
    },
    /// Run the fuzz targets under libFuzzer (as root: packets go through the real program too)
    Fuzz(fuzz::FuzzOptions),
    /// Run the host tests, and every input that fuzzing has kept, under AddressSanitizer
    Sanitize,
    /// Everything that must hold before a change lands; what .ci/run calls
    Ci,
    /// Check licences and sources of the dependencies; builds cargo-deny the first time
    Deny,
    /// Build the Debian package
    Dist {
        /// Then install, upgrade under traffic and remove it, on a machine of its own (as root)
        #[arg(long)]
        test: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup { build_only } => setup::setup(build_only),
        Task::Test(options) => test::test(&options),
        Task::Demo { arguments } => Err(command::become_it(test::demo(test::Build::Release)?.args(arguments))),
        Task::Bench { arguments } => Err(command::become_it(test::bench(test::Build::Release)?.args(arguments))),
        Task::Chaos { arguments } => Err(command::become_it(test::chaos(test::Build::Release)?.args(arguments))),
        Task::Mutants { quick } => mutants::mutants(quick),
        Task::Fuzz(options) => fuzz::fuzz(&options),
        Task::Sanitize => sanitize::sanitize(),
        Task::Ci => ci::ci(),
        Task::Deny => ci::deny(),
        Task::Dist { test } => dist::dist(test),
    }
}
