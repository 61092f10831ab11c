//! Looking for a compiler that can build `core` for the BPF target, that is, one with its own sources.

use std::{
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use anyhow::{Context as _, Result};

use crate::command;

/// Where Debian's compiler lives.
pub(crate) const DEBIAN_SYSROOT: &str = "/usr";

/// Debian's current compiler (the one it keeps for building browsers), its sources, and what bpf-linker is built with.
pub(crate) const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "rust-web-src", "llvm-22-dev", "g++"];

/// Name given to Debian's compiler when it is linked as a toolchain.
pub(crate) const LINKED_NAME: &str = "ebb-bpf";

/// The workspace's `rust-version`: an older compiler need not be considered.
const OLDEST_COMPILER: Version = Version([1, 95, 0]);

/// A dotted version; a suffix such as `-nightly` is left aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) [u32; 3]);

impl Version {
    /// The first of its numbers.
    pub(crate) fn major(self) -> u32 {
        self.0[0]
    }
}

impl FromStr for Version {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim().split(|c: char| c != '.' && !c.is_ascii_digit()).next().unwrap_or_default();
        let mut version = [0; 3];
        for (number, part) in version.iter_mut().zip(digits.split('.')) {
            *number = part.parse()?;
        }
        Ok(Self(version))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// An installed toolchain.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    /// As `rustup run` takes it.
    pub(crate) name: String,
    /// `rustc`'s first line and its LLVM, as recorded.
    pub(crate) compiler: String,
    /// The compiler's version.
    pub(crate) version: Version,
    /// Its LLVM's.
    pub(crate) llvm: Version,
}

impl Toolchain {
    /// Asks the compiler of the toolchain called `name` for its versions.
    pub(crate) fn query(name: &str) -> Result<Self> {
        let text = command::output(Command::new("rustup").args(["run", name, "rustc", "-vV"]))?;
        let field = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key))
                .with_context(|| format!("rustc -vV of toolchain {name} has no line \"{key}\""))
        };
        let (release, llvm) = (field("release: ")?, field("LLVM version: ")?);
        let first = text.lines().next().unwrap_or_default();
        Ok(Self {
            name: name.to_owned(),
            compiler: format!("{first}, LLVM {llvm}"),
            version: release.parse().with_context(|| format!("version {release}"))?,
            llvm: llvm.parse().with_context(|| format!("LLVM version {llvm}"))?,
        })
    }
}

/// Every installed toolchain with `rust-src` that is new enough, the most suitable first: nightlies, then the newest.
pub(crate) fn with_sources() -> Result<Vec<Toolchain>> {
    let list = command::output(Command::new("rustup").args(["toolchain", "list", "-v"]))
        .context("Ebb's build needs rustup (https://rustup.rs) to run a second compiler")?;
    let mut found = Vec::new();
    for (name, sysroot) in list.lines().filter_map(parse_listed) {
        if !has_sources(&sysroot) {
            continue;
        }
        match Toolchain::query(name) {
            Ok(toolchain) if toolchain.version >= OLDEST_COMPILER => found.push(toolchain),
            Ok(toolchain) => {
                eprintln!("toolchain {name} passed over: {} is older than {OLDEST_COMPILER}", toolchain.version);
            }
            Err(error) => eprintln!("toolchain {name} passed over: {error:#}"),
        }
    }
    found.sort_by_key(|toolchain| {
        let nightly = toolchain.compiler.contains("-nightly");
        std::cmp::Reverse((nightly, toolchain.version))
    });
    Ok(found)
}

/// A line of `rustup toolchain list -v`: `NAME [(active, default)] PATH`.
fn parse_listed(line: &str) -> Option<(&str, PathBuf)> {
    let name = line.split_whitespace().next()?;
    let path = &line[line.find('/')?..];
    Some((name, PathBuf::from(path.trim())))
}

/// Whether `-Z build-std` finds the standard library's sources there.
pub(crate) fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        let parse = |text: &str| text.parse::<Version>().unwrap();
        assert_eq!(parse("1.97.0-nightly"), Version([1, 97, 0]));
        assert_eq!(parse("22.1.8\n"), Version([22, 1, 8]));
        assert!(parse("22.1.10") > parse("22.1.9"));
        assert!("x".parse::<Version>().is_err());
    }

    #[test]
    fn listed_toolchains_are_split_into_name_and_path() {
        let (name, path) = parse_listed("stable-x86_64 (active, default) /root/a b").unwrap();
        assert_eq!((name, path), ("stable-x86_64", PathBuf::from("/root/a b")));
        assert_eq!(parse_listed("ebb-bpf /usr").unwrap().1, PathBuf::from("/usr"));
        assert!(parse_listed("no installed toolchains").is_none());
    }
}
