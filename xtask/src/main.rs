//! Project tasks: everything a checkout needs beyond `cargo build`.

mod command;
mod linker;
mod machine;
mod packages;
mod record;
mod setup;
mod toolchain;

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
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Setup { build_only } => setup::setup(build_only),
    }
}
