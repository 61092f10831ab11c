//! What `cargo xtask setup` found, written down for `lb-userspace/build.rs`.
//!
//! Both sides include this file, so that writer and reader cannot disagree; it therefore uses nothing but `std`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the record lies, relative to the workspace root. The directory is git-ignored.
pub(crate) const RECORD_PATH: &str = ".toolchain/ebpf.toml";

/// A compiler with its own sources and a linker that reads its bitcode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The toolchain's name, as `rustup run` takes it.
    pub(crate) toolchain: String,
    /// Its version and its LLVM's, so that an update of the compiler is noticed and the object rebuilt.
    pub(crate) compiler: String,
    /// The `bpf-linker` to use.
    pub(crate) linker: PathBuf,
}

impl Record {
    /// Reads the record below `root`. `Ok(None)` when there is none or it is not one of ours.
    pub(crate) fn read(root: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(root.join(RECORD_PATH)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Self::parse(&text, root))
    }

    fn parse(text: &str, root: &Path) -> Option<Self> {
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(name, _)| name.trim() == key)
                .map(|(_, value)| value.trim().trim_matches('"').to_owned())
                .filter(|value| !value.is_empty())
        };
        Some(Self {
            toolchain: value("toolchain")?,
            compiler: value("compiler")?,
            // A linker below the root is recorded relative to it, so that a checkout may be moved.
            linker: root.join(value("linker")?),
        })
    }
}
