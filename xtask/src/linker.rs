//! Finding or building the `bpf-linker` that goes with a compiler.
//!
//! A linker reads bitcode only of its own LLVM's version or older, so it is chosen for a compiler, not by itself.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    command::{self, root},
    toolchain::{Toolchain, Version},
};

/// The release of bpf-linker that the build was tried with.
const RELEASE: &str = "0.13.0";

/// The majors of LLVM that this release can be built for.
const LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;

/// Takes a linker at its word, whatever its LLVM.
const OVERRIDE: &str = "EBB_BPF_LINKER";

/// A linker that exists already and suits `toolchain`: the one named by `EBB_BPF_LINKER`, ours, or one in `PATH`.
pub(crate) fn find(toolchain: &Toolchain) -> Option<PathBuf> {
    if let Some(path) = env::var_os(OVERRIDE).map(PathBuf::from) {
        return Some(path);
    }
    [Some(own_prefix(toolchain.llvm.major()).join("bin/bpf-linker")), command::which("bpf-linker")]
        .into_iter()
        .flatten()
        .find(|path| path.is_file() && suits(path, toolchain.llvm))
}

/// Builds a linker for `toolchain` below `.toolchain/`, with the LLVM installed at `llvm_prefix`.
pub(crate) fn install(toolchain: &Toolchain, llvm_prefix: &Path) -> Result<PathBuf> {
    let prefix = own_prefix(toolchain.llvm.major());
    let feature = format!("llvm-{}", toolchain.llvm.major());
    // Cargo would otherwise advise to add the directory to PATH, which nobody needs.
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([prefix.join("bin")].into_iter().chain(env::split_paths(&path)))?;
    command::run(
        command::cargo()
            .args(["install", "bpf-linker", "--version", RELEASE, "--locked"])
            .args(["--no-default-features", "--features", &feature, "--root"])
            .arg(&prefix)
            .env("LLVM_PREFIX", llvm_prefix)
            .env("PATH", path)
            // A build directory that outlives the install would only waste disk; --root alone is kept.
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    Ok(prefix.join("bin/bpf-linker"))
}

/// Where an LLVM that can read the compiler's bitcode is installed, headers included.
pub(crate) fn llvm_prefix(needed: Version) -> Option<PathBuf> {
    if !LLVM_MAJORS.contains(&needed.major()) {
        return None;
    }
    let named = env::var_os("LLVM_PREFIX").map(PathBuf::from);
    let debian = PathBuf::from(format!("/usr/lib/llvm-{}", needed.major()));
    named.into_iter().chain([debian]).find(|prefix| {
        prefix.join("include/llvm-c/Core.h").is_file()
            && command::output(Command::new(prefix.join("bin/llvm-config")).arg("--version"))
                .ok()
                .and_then(|text| text.parse::<Version>().ok())
                .is_some_and(|version| version.major() == needed.major() && version >= needed)
    })
}

/// Each major has its own directory, so that changing compilers does not rebuild back and forth.
fn own_prefix(llvm_major: u32) -> PathBuf {
    root().join(format!(".toolchain/bpf-linker-llvm{llvm_major}"))
}

/// Whether the linker is of the right release and not known to have an older LLVM than needed.
fn suits(path: &Path, needed: Version) -> bool {
    let release = command::output(Command::new(path).arg("--version")).unwrap_or_default();
    if release.trim() != format!("bpf-linker {RELEASE}") {
        return false;
    }
    // The linker does not tell its LLVM. A dynamic one names the library it loads; a static one (the published
    // binaries) has the newest LLVM of its release and is tried.
    match linked_llvm_major(path) {
        Ok(Some(major)) if major == needed.major() => llvm_prefix(needed).is_some(),
        Ok(Some(major)) => major > needed.major(),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// The major of the LLVM library that an executable loads, if it loads one.
fn linked_llvm_major(path: &Path) -> Result<Option<u32>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(soname_major(&bytes))
}

/// The number in `libLLVM.so.22.1` or `libLLVM-22.so`, as it stands in an executable's string table.
fn soname_major(bytes: &[u8]) -> Option<u32> {
    [b"\0libLLVM.so.".as_slice(), b"\0libLLVM-"].into_iter().find_map(|prefix| {
        let start = bytes.windows(prefix.len()).position(|w| w == prefix)? + prefix.len();
        let digits: Vec<u8> = bytes[start..].iter().copied().take_while(u8::is_ascii_digit).collect();
        std::str::from_utf8(&digits).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_library_is_read_from_the_string_table() {
        assert_eq!(soname_major(b"\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(soname_major(b"\0libLLVM-21.so\0"), Some(21));
        assert_eq!(soname_major(b"\0libc.so.6\0"), None);
    }
}
