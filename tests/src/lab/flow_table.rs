//! Access to the packet path's flow table behind its owners' backs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::sys;

/// Zeroes the flow table pinned somewhere below `pin_path`.
pub(super) fn wipe(pin_path: &Path) -> Result<()> {
    let pinned = find(pin_path).with_context(|| format!("no flow table pinned below {}", pin_path.display()))?;
    let map = sys::open_pinned(&pinned).with_context(|| format!("open {}", pinned.display()))?;
    let (value_size, entries) = sys::map_size(&map)?;
    ensure!(value_size > 0 && entries > 1, "{} is no table: {entries} of {value_size} bytes", pinned.display());
    sys::zero_mapped(&map, value_size * entries).context("zero the flow table")
}

fn find(directory: &Path) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().collect();
    // A map here is found before one in a deeper directory.
    entries.sort_by_key(|entry| entry.path().is_dir());
    entries.iter().find_map(|entry| {
        let path = entry.path();
        let named = path.file_name().is_some_and(|name| name.eq_ignore_ascii_case("flows"));
        if path.is_dir() { find(&path) } else { named.then_some(path) }
    })
}
