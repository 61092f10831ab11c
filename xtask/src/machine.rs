//! What the tests and the demo need of the machine: root, and a kernel that can load the program.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::command;

const BTF: &str = "/sys/kernel/btf/vmlinux";
const BPFFS: &str = "/sys/fs/bpf";

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Fails unless network namespaces can be made and the program can be loaded here; mounts bpffs when it is not.
pub(crate) fn check() -> Result<()> {
    if !is_root() {
        bail!(
            "loading XDP programs and making network namespaces needs root; run it as root: \
             sudo -E env \"PATH=$PATH\" cargo xtask …"
        );
    }
    if !Path::new(BTF).exists() {
        bail!("this kernel has no {BTF}; it must be built with CONFIG_DEBUG_INFO_BTF=y");
    }
    if !bpffs_is_mounted()? {
        command::run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
    }
    Ok(())
}

/// One line about the kernel, for the report.
pub(crate) fn describe() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} with BTF, bpffs at {BPFFS}", release.trim())
}

fn bpffs_is_mounted() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    }))
}
