//! A kernel of Debian's, unpacked below `target/kernels`, and what it boots from.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, packages, test};

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// As `uname -r` gives it there.
    pub(crate) release: String,
    /// Where its package is unpacked.
    pub(crate) directory: PathBuf,
}

impl Kernel {
    fn in_directory(directory: PathBuf, package: &str) -> Self {
        let release = package.strip_prefix(PREFIX).unwrap_or(package).to_owned();
        Self { release, directory }
    }

    /// What the boot loader loads.
    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join(format!("boot/vmlinuz-{}", self.release))
    }
}

/// What Debian's packages of kernels are called, without flavour.
const PREFIX: &str = "linux-image-";
const FLAVOUR: &str = "-amd64";

/// Kernels of other flavours have the same numbers.
const OTHERS: [&str; 2] = ["cloud", "rt"];

/// The newest kernel of a version that Debian's archive has, from the last time or fetched now. It is not installed: that
/// would have this machine boot it.
pub(crate) fn fetch(version: &str) -> Result<Kernel> {
    let all = test::target_directory()?.join("kernels");
    fs::create_dir_all(&all).with_context(|| format!("cannot make {}", all.display()))?;
    if let Some(package) = newest(version, &names_in(&all)?) {
        return Ok(Kernel::in_directory(all.join(&package), &package));
    }
    packages::update_lists()?;
    let names = command::output(Command::new("apt-cache").args(["pkgnames", PREFIX]))?;
    let names: Vec<String> = names.lines().map(str::to_owned).collect();
    let Some(package) = newest(version, &names) else {
        let mut known: Vec<Vec<u32>> = names.iter().filter_map(|name| numbers(name)).map(|n| n[..2].to_vec()).collect();
        known.sort();
        known.dedup();
        let known: Vec<String> = known.iter().map(|n| format!("{}.{}", n[0], n[1])).collect();
        bail!("Debian's archive, as this machine knows it, has no kernel {version}; it has: {}", known.join(", "));
    };
    unpack(&all, &package)?;
    Ok(Kernel::in_directory(all.join(&package), &package))
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// The numbers in the name of a kernel's package: `linux-image-6.1.0-56-amd64` is 6, 1, 0, 56. None for other packages.
fn numbers(package: &str) -> Option<Vec<u32>> {
    let release = package.strip_prefix(PREFIX)?.strip_suffix(FLAVOUR)?;
    if OTHERS.iter().any(|other| release.split('-').any(|part| part == *other)) {
        return None;
    }
    let numbers: Vec<u32> = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    // Less is a package that only names the newest.
    (numbers.len() > 2).then_some(numbers)
}

/// The one with the highest numbers of those that begin with the version's.
fn newest(version: &str, packages: &[String]) -> Option<String> {
    let wanted: Vec<u32> = version.split('.').filter_map(|number| number.parse().ok()).collect();
    let found = packages.iter().filter_map(|package| Some((numbers(package)?, package)));
    let found = found.filter(|(numbers, _)| !wanted.is_empty() && numbers.starts_with(&wanted));
    found.max_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, package)| package.clone())
}

/// Downloads the package and takes it apart. Only a whole one gets its name.
fn unpack(all: &Path, package: &str) -> Result<()> {
    let part = all.join(format!("part-{}", std::process::id()));
    fs::create_dir_all(&part)?;
    command::run(Command::new("apt-get").args(["download", "--quiet", package]).current_dir(&part))?;
    let files = names_in(&part)?;
    let deb = files.iter().find(|name| name.starts_with(package)).context("apt-get has downloaded no package")?;
    let tree = part.join("tree");
    command::run(Command::new("dpkg-deb").arg("-x").arg(part.join(deb)).arg(&tree))?;
    // Later releases have the modules below /usr, where /lib then points.
    if !tree.join("lib").exists() {
        symlink("usr/lib", tree.join("lib"))?;
    }
    let release = Kernel::in_directory(tree.clone(), package).release;
    command::run(Command::new(program("depmod")?).arg("-b").arg(&tree).arg(&release))?;
    fs::rename(&tree, all.join(package)).with_context(|| format!("cannot move {}", tree.display()))?;
    fs::remove_dir_all(&part).with_context(|| format!("cannot remove {}", part.display()))
}

fn program(name: &str) -> Result<PathBuf> {
    command::which(name).with_context(|| format!("{name} is not installed"))
}

/// What the kernel must be able to do before it has this machine's files.
const FIRST_MODULES: [&str; 4] = ["virtio_pci", "9p", "9pnet_virtio", "overlay"];

/// The first program: mounts this machine's files, read-only and with a layer above them that takes what is written, and
/// has the shell there run the job. As the kernel's first process it takes with it, where it changes its root, the processes
/// in which the kernel loads modules.
const INIT: &str = r#"#!/bin/sh
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs dev /dev
for module in /modules/*; do $busybox insmod "$module"; done
$busybox mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=262144,ro host /below
$busybox mount -t tmpfs -o mode=755 layer /layer
$busybox mkdir /layer/upper /layer/work
$busybox mount -t overlay -o lowerdir=/below,upperdir=/layer/upper,workdir=/layer/work root /root
for place in proc sys dev; do $busybox mount --move /$place /root/$place; done
exec $busybox chroot /root /bin/sh "$($busybox sed -n 's/.*ebb_job=\([^ ]*\).*/\1/p' /root/proc/cmdline)"
"#;

/// Builds the file system that the kernel finds itself in, and says where it is.
pub(crate) fn initramfs(kernel: &Kernel) -> Result<PathBuf> {
    let tree = kernel.directory.join("initramfs");
    let _ = fs::remove_dir_all(&tree);
    for directory in ["bin", "modules", "proc", "sys", "dev", "below", "layer", "root"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::copy(program("busybox")?, tree.join("bin/busybox")).context("cannot copy busybox")?;
    symlink("busybox", tree.join("bin/sh"))?;
    let init = tree.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    for (number, module) in modules(kernel)?.iter().enumerate() {
        put_module(module, &tree.join("modules"), number)?;
    }
    let archive = kernel.directory.join("initramfs.cpio");
    let pack = r#"cd "$1" && find . | cpio --quiet -o -H newc >"$2""#;
    command::run_as("cpio", Command::new("sh").args(["-c", pack, "sh"]).arg(&tree).arg(&archive))?;
    Ok(archive)
}

/// The files of [`FIRST_MODULES`] and of what they need, in the order in which they are to be loaded.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for name in FIRST_MODULES {
        let mut modprobe = Command::new(program("modprobe")?);
        modprobe.arg("-d").arg(&kernel.directory).args(["-S", &kernel.release, "--show-depends", name]);
        // Those built in are `builtin NAME`.
        for line in command::output(&mut modprobe)?.lines() {
            if let Some(file) = line.strip_prefix("insmod ").map(|file| PathBuf::from(file.trim()))
                && !files.contains(&file)
            {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// Puts a module into the initramfs, unpacked: busybox loads it as it is.
fn put_module(module: &Path, directory: &Path, number: usize) -> Result<()> {
    let to = directory.join(format!("{number:02}"));
    let unpacker = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::copy(module, &to).map(drop).with_context(|| format!("cannot copy {}", module.display())),
    };
    let out = fs::File::create(&to)?;
    let status = Command::new(unpacker).arg("-dc").arg(module).stdout(out).status();
    if !status.with_context(|| format!("cannot start {unpacker}"))?.success() {
        bail!("{unpacker} cannot unpack {}", module.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_a_version_is_found() {
        let packages: Vec<String> = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.1.0-57-amd64-unsigned",
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-6.12-amd64",
            "linux-image-amd64",
            "part-17",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(newest("6.1", &packages).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest("6.1.0", &packages).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest("6.12", &packages).as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(newest("6", &packages).as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!((newest("5.10", &packages), newest("", &packages)), (None, None));
        let kernel = Kernel::in_directory("/k".into(), "linux-image-6.1.0-56-amd64");
        assert_eq!(kernel.image(), Path::new("/k/boot/vmlinuz-6.1.0-56-amd64"));
    }
}
