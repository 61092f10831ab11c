//! `cargo xtask dist`: the Debian package.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    command::{self, root},
    setup, test, tools,
};

/// Builds the release binary, its manual and completions, and packs them; says where the package is.
pub(crate) fn dist(try_it: bool) -> Result<()> {
    setup::ensure(if try_it { setup::Needs::Lab } else { setup::Needs::Build })?;
    let cargo_deb = tools::install(&tools::CARGO_DEB)?;
    generate(&test::build_release()?)?;

    let directory = root().join("target/dist");
    let printed = command::output(
        Command::new(cargo_deb)
            .current_dir(root())
            // Line tables are for those who build it; a package has 80 MB less without.
            .args(["--package", "lb-userspace", "--no-build", "--strip", "--output"])
            .arg(&directory),
    )?;
    let package = printed.trim();
    println!("{}", command::output(Command::new("dpkg-deb").args(["--info", package]))?.trim_end());
    println!("{}", command::output(Command::new("dpkg-deb").args(["--contents", package]))?.trim_end());
    println!("\n{package}");
    if try_it { try_package(package) } else { Ok(()) }
}

/// Installs, upgrades under traffic and removes the package, on a machine that is gone afterwards.
fn try_package(package: &str) -> Result<()> {
    let test = ["test", "-p", "ebb-tests", "--test", "package", "--", "--include-ignored"];
    command::run(command::cargo().args(test).env("EBB_DEB", package))
}

/// Has the binary write its manual and completions to where the description in lb-userspace/Cargo.toml looks for them.
fn generate(ebb: &Path) -> Result<()> {
    let directory = root().join("target/dist/generated");
    let pages = directory.join("man");
    fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
    command::run(Command::new(ebb).arg("man").arg(&pages))?;
    for (shell, file) in [("bash", "ebb.bash"), ("zsh", "_ebb"), ("fish", "ebb.fish")] {
        let script = command::output(Command::new(ebb).args(["completions", shell]))?;
        let path = directory.join(file);
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
