//! Taking the packet path out of the kernel, with or without a daemon.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    attach,
    error::{OpenError, While as _},
    pins::{self, Pins},
};
use crate::net::links;

/// What [`unload`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unloaded {
    /// Interfaces that the program was detached from: their names, or numbers where they are not of this namespace.
    pub interfaces: Vec<String>,
    /// Whether the maps went too, and with them all flows; they stay while the program is on some other interface.
    pub maps: bool,
}

/// Detaches the program from `interfaces`, or from all if none is named, and removes the maps once it is on none.
///
/// A running daemon's own hold on a link does not keep the program attached. Nothing to unload is no error.
pub fn unload(pin_path: &Path, interfaces: &[String]) -> Result<Unloaded, OpenError> {
    unload_directories(&[pin_path.to_owned()], interfaces)
}

/// The directories of pins that there are at `pin_path`. A default one stands for those of every layout, so that one build can
/// make way for another.
///
/// # Errors
///
/// Fails when there may be one that this process may not look into.
pub fn pinned_at(pin_path: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let named = if pins::is_default(pin_path) { pins::default_directories()? } else { vec![pin_path.to_owned()] };
    let mut there = Vec::new();
    for directory in named {
        if pins::entries(&directory)?.is_some() {
            there.push(directory);
        }
    }
    Ok(there)
}

/// As [`unload`], for several directories.
pub fn unload_directories(directories: &[PathBuf], interfaces: &[String]) -> Result<Unloaded, OpenError> {
    let known = links::list().opening(|| "cannot list the interfaces".into())?;
    let mut wanted = Vec::new();
    for name in interfaces {
        wanted.push(attach::find(&known, name)?.index);
    }
    let mut unloaded = Unloaded::default();
    for directory in directories.iter().filter(|directory| directory.is_dir()) {
        unload_directory(directory, &wanted, &known, &mut unloaded)?;
    }
    for (name, index) in interfaces.iter().zip(wanted) {
        let still = known.iter().find(|link| link.index == index).and_then(|link| link.xdp);
        if let (Some((_, program)), false) = (still, unloaded.interfaces.contains(name)) {
            return Err(OpenError::Occupied { interface: name.clone(), program });
        }
    }
    Ok(unloaded)
}

fn unload_directory(
    directory: &Path,
    wanted: &[u32],
    known: &[links::Link],
    unloaded: &mut Unloaded,
) -> Result<(), OpenError> {
    // What is removed below must be pins, and of ours.
    if !pins::is_bpffs(directory).opening(|| format!("cannot look at {}", directory.display()))? {
        return Err(OpenError::NotBpffs { path: directory.into() });
    }
    pins::refuse_foreign(directory)?;
    // A running daemon holds the lock, and does not mind: what it maps stays in memory as long as it runs.
    let mut left = 0;
    for link in Pins::unlocked(directory).links()? {
        if !wanted.is_empty() && !wanted.contains(&link.ifindex) {
            left += 1;
            continue;
        }
        attach::remove_link(&link)?;
        // An index means something in its own namespace only: elsewhere another interface may have it.
        let is_here = |known: &&links::Link| {
            known.index == link.ifindex && known.xdp.is_some_and(|(_, program)| program == link.program)
        };
        let name = known.iter().find(is_here).map(|known| known.name.clone());
        unloaded.interfaces.push(name.unwrap_or_else(|| link.ifindex.to_string()));
    }
    if left > 0 {
        return Ok(());
    }
    for path in pins::pin_paths(directory)? {
        fs::remove_file(&path).opening(|| format!("cannot remove {}", path.display()))?;
        unloaded.maps = true;
    }
    pins::remove_directory(directory)
}
