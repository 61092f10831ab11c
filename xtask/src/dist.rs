//! `cargo xtask dist`: the Debian package.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    command::{self, cargo, root},
    setup,
    test::{self, Profile},
    tools,
};

/// Builds the release binary, its manual and completions, and packs them; says where the package is.
pub(crate) fn dist() -> Result<()> {
    setup::ensure(setup::Needs::Build)?;
    let cargo_deb = tools::install(&tools::CARGO_DEB)?;
    test::build_binary(Profile::Release)?;

    // Where the description in lb-userspace/Cargo.toml looks for them.
    let generated = root().join("target/dist/generated");
    fs::create_dir_all(&generated).with_context(|| format!("cannot make {}", generated.display()))?;
    command::run(
        cargo().args(["run", "--release", "-p", "lb-userspace", "--example", "manual", "--"]).arg(&generated),
    )?;

    let directory = root().join("target/dist");
    let printed = command::output(
        Command::new(cargo_deb)
            .current_dir(root())
            .args(["--package", "lb-userspace", "--no-build", "--output"])
            .arg(&directory),
    )?;
    let package = printed.trim();
    println!("{}", command::output(Command::new("dpkg-deb").args(["--info", package]))?.trim_end());
    println!("{}", command::output(Command::new("dpkg-deb").args(["--contents", package]))?.trim_end());
    println!("\n{package}");
    Ok(())
}
