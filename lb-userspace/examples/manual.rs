//! Writes the manual pages and the shells' completions that the package carries: `cargo run --example manual -- DIRECTORY`.
//!
//! An example rather than a hidden command: the definition of the command line is all it needs, and the binary that people run
//! needs none of it.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::{Shell, generate_to};
use lb_userspace::cli::args::Cli;

fn main() -> Result<()> {
    let directory = PathBuf::from(env::args_os().nth(1).context("usage: manual DIRECTORY")?);
    let pages = directory.join("man");
    fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;

    clap_mangen::generate_to(Cli::command(), &pages).context("cannot write the manual")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "ebb", &directory)
            .with_context(|| format!("cannot write the completions for {shell}"))?;
    }
    Ok(())
}
