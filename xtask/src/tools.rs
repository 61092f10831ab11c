//! Cargo subcommands that few tasks need: taken from `PATH`, else built into `.toolchain/` when such a task is run.

use std::path::PathBuf;

use anyhow::Result;

use crate::command::{self, cargo, root};

/// A Cargo subcommand and the release it was tried with.
pub(crate) struct CargoTool {
    name: &'static str,
    version: &'static str,
}

/// Packs the Debian package.
pub(crate) const CARGO_DEB: CargoTool = CargoTool { name: "cargo-deb", version: "3.8.0" };

/// Checks dependencies against deny.toml.
pub(crate) const CARGO_DENY: CargoTool = CargoTool { name: "cargo-deny", version: "0.20.2" };

/// Where the tool is, if it is installed.
pub(crate) fn find(tool: &CargoTool) -> Option<PathBuf> {
    command::which(tool.name).or_else(|| Some(own(tool)).filter(|path| path.is_file()))
}

/// Where the tool is; built first when it is not installed, which takes a few minutes.
pub(crate) fn install(tool: &CargoTool) -> Result<PathBuf> {
    if let Some(path) = find(tool) {
        return Ok(path);
    }
    let install = ["install", tool.name, "--version", tool.version, "--locked", "--root"];
    command::run(cargo().args(install).arg(prefix(tool)))?;
    Ok(own(tool))
}

fn prefix(tool: &CargoTool) -> PathBuf {
    root().join(".toolchain").join(tool.name)
}

fn own(tool: &CargoTool) -> PathBuf {
    prefix(tool).join("bin").join(tool.name)
}
