//! `cargo xtask setup`: finds what the project needs, installs what is missing, records what was found.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    command::{self, root},
    linker, machine, packages,
    record::{RECORD_PATH, Record},
    toolchain::{self, Toolchain},
};

/// The whole set-up, or only what the build needs. Says what was found.
pub(crate) fn setup(build_only: bool) -> Result<()> {
    let record = ebpf()?;
    println!("eBPF compiler  {} ({})", record.toolchain, record.compiler);
    println!("eBPF linker    {}", record.linker.display());
    if !build_only {
        lab()?;
        println!("programs       {}", packages::names().join(" "));
        println!("kernel         {}", machine::describe());
    }
    Ok(())
}

/// How much of the set-up a task needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// The eBPF compiler and linker.
    Build,
    /// Also root, a kernel and the programs that the tests and the demo use.
    Lab,
}

/// Sets up what a task needs; silent when nothing is missing. Privilege is asked for first: it is the quickest to lack.
pub(crate) fn ensure(needs: Needs) -> Result<()> {
    if needs == Needs::Lab {
        lab()?;
    }
    ebpf().map(drop)
}

/// What the tests and the demo need on top: programs, privilege, a kernel.
fn lab() -> Result<()> {
    machine::check()?;
    packages::ensure()
}

/// The recorded compiler and linker if they are still there, else new ones.
fn ebpf() -> Result<Record> {
    let recorded = Record::read(root()).context("cannot read the record of the last set-up")?;
    if let Some(record) = recorded.filter(still_holds) {
        return Ok(record);
    }
    let (toolchain, linker) = match installed()? {
        Some(pair) => pair,
        None => debian()?,
    };
    let record = Record { toolchain: toolchain.name, compiler: toolchain.compiler, linker };
    write(&record)?;
    Ok(record)
}

/// Writes the record for the build script. Only when it changes, since a newer file makes Cargo run that again.
fn write(record: &Record) -> Result<()> {
    let path = root().join(RECORD_PATH);
    let linker = record.linker.strip_prefix(root()).unwrap_or(&record.linker);
    let text = format!(
        "# Found by `cargo xtask setup` for lb-userspace/build.rs. Delete it to search again.\n\
         toolchain = \"{}\"\ncompiler = \"{}\"\nlinker = \"{}\"\n",
        record.toolchain,
        record.compiler,
        linker.display()
    );
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// An updated compiler may have a newer LLVM than the linker.
fn still_holds(record: &Record) -> bool {
    record.linker.is_file()
        && Toolchain::query(&record.toolchain).is_ok_and(|toolchain| toolchain.compiler == record.compiler)
}

/// The first installed compiler with sources for which there is, or can be built, a linker.
fn installed() -> Result<Option<(Toolchain, PathBuf)>> {
    for toolchain in toolchain::with_sources()? {
        if let Some(linker) = linker::find(&toolchain) {
            return Ok(Some((toolchain, linker)));
        }
        let package = format!("llvm-{}-dev", toolchain.llvm.major());
        let prefix = linker::llvm_prefix(toolchain.llvm).or_else(|| {
            packages::install(&[&package, "g++"]).ok()?;
            linker::llvm_prefix(toolchain.llvm)
        });
        if let Some(prefix) = prefix {
            let linker = linker::install(&toolchain, &prefix)?;
            return Ok(Some((toolchain, linker)));
        }
        eprintln!(
            "toolchain {} passed over: no bpf-linker and no development files of LLVM {} or a later {}.x",
            toolchain.name,
            toolchain.llvm,
            toolchain.llvm.major()
        );
    }
    Ok(None)
}

/// Debian's compiler, its sources and its LLVM, made known to rustup.
fn debian() -> Result<(Toolchain, PathBuf)> {
    if !toolchain::has_sources(toolchain::DEBIAN_SYSROOT.as_ref()) {
        packages::install(toolchain::DEBIAN_PACKAGES).context(NO_COMPILER)?;
    }
    command::run(Command::new("rustup").args([
        "toolchain",
        "link",
        toolchain::LINKED_NAME,
        toolchain::DEBIAN_SYSROOT,
    ]))?;
    installed()?.context(NO_COMPILER)
}

const NO_COMPILER: &str = "no Rust compiler with its own sources (rust-src) and a matching LLVM was found; \
    run: rustup toolchain install nightly --component rust-src, \
    and either put bpf-linker 0.13.0 in PATH or install the development files of that compiler's LLVM \
    (its version: rustup run nightly rustc -vV); then run again: cargo xtask setup";
