//! The directory of pins: made, locked, listed.

use std::{
    ffi::CString,
    fs::{self, File, ReadDir, TryLockError},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use lb_common::LAYOUT_VERSION;

use super::{
    error::{OpenError, While as _},
    sys,
};
use crate::ownership::Trusted;

/// Where the BPF filesystem is by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// Ebb's own directory, with one for each layout.
const ROOT: &str = "/sys/fs/bpf/ebb";
/// Pin of the program.
pub(crate) const PROGRAM: &str = "prog";
/// Pins of links: this and the interface's index. (A name may have a dot, which bpffs refuses, and may change.)
const LINK: &str = "link-";

/// The directory used unless another is asked for: it tells the layout of what is in it.
pub fn default_pin_path() -> PathBuf {
    Path::new(ROOT).join(format!("v{LAYOUT_VERSION}"))
}

/// Directory in the directory that tells the layout of what is pinned there, where the path does not.
fn layout_mark(layout: u32) -> String {
    format!("layout-{layout}")
}

/// An open directory of pins.
#[derive(Debug)]
pub(crate) struct Pins {
    path: PathBuf,
    /// A daemon's lock on it; the kernel lets go of it however we end.
    _lock: Option<File>,
}

/// A pinned link of an interface that still exists.
#[derive(Debug)]
pub(crate) struct PinnedLink {
    pub(crate) ifindex: u32,
    pub(crate) program: u32,
    pub(crate) link: OwnedFd,
    pub(crate) path: PathBuf,
}

impl Pins {
    /// Makes the directory, and mounts the BPF filesystem, where they are missing; takes the lock.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        // First, since names that this filesystem does not take cannot be looked at there.
        ensure_bpffs(path)?;
        refuse_foreign(path)?;
        refuse_other_layout(path)?;
        trusted(path).make_directory(0o700)?;
        let directory = File::open(path).opening(|| format!("cannot open {}", path.display()))?;
        match directory.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path.into() }),
            Err(TryLockError::Error(source)) => {
                return Err(OpenError::Refused { action: format!("cannot lock {}", path.display()), source });
            }
        }
        let pins = Self { path: path.into(), _lock: Some(directory) };
        pins.check_mark()?;
        Ok(pins)
    }

    /// An existing directory, whoever has it locked.
    pub(crate) fn unlocked(path: &Path) -> Self {
        Self { path: path.into(), _lock: None }
    }

    /// Refuses what is marked as another layout's; marks it as ours otherwise.
    fn check_mark(&self) -> Result<(), OpenError> {
        let context = || format!("cannot list {}", self.path.display());
        let ours = layout_mark(LAYOUT_VERSION);
        for entry in fs::read_dir(&self.path).opening(context)?.flatten() {
            let name = entry.file_name();
            if name.as_bytes().starts_with(b"layout-") && name.as_bytes() != ours.as_bytes() {
                let what = format!("{}, this build's is {ours}", name.display());
                return Err(OpenError::Layout { path: self.path.clone(), what });
            }
        }
        let mark = self.of(&ours);
        match fs::create_dir(&mark) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.opening(|| format!("cannot make {}", mark.display())),
        }
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a map or the program is pinned.
    pub(crate) fn of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where an interface's link is pinned.
    pub(crate) fn of_link(&self, ifindex: u32) -> PathBuf {
        self.path.join(format!("{LINK}{ifindex}"))
    }

    /// Whether there is a pin of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.of(name).exists()
    }

    /// Opens a map.
    pub(crate) fn map(&self, name: &str) -> Result<OwnedFd, OpenError> {
        let path = self.of(name);
        sys::open_pin(&path).opening(|| format!("cannot open the pinned map {}", path.display()))
    }

    /// Pins an object under a name, in place of what may be pinned there.
    pub(crate) fn replace(&self, name: &str, object: BorrowedFd<'_>) -> Result<(), OpenError> {
        let (aside, path) = (self.of(&format!("{name}-new")), self.of(name));
        // Left over by one who was killed between the two steps.
        let _ = fs::remove_file(&aside);
        sys::pin(object, &aside).opening(|| format!("cannot pin {}", aside.display()))?;
        fs::rename(&aside, &path).opening(|| format!("cannot pin {}", path.display()))
    }

    /// The links. Pins of those whose interface is gone are removed.
    pub(crate) fn links(&self) -> Result<Vec<PinnedLink>, OpenError> {
        let mut links = Vec::new();
        for path in link_paths(&self.path)? {
            let context = || format!("cannot read the pinned link {}", path.display());
            let link = sys::open_pin(&path).opening(context)?;
            let info = sys::link_info(link.as_fd()).opening(context)?;
            if info.ifindex == 0 {
                fs::remove_file(&path).opening(|| format!("cannot remove {}", path.display()))?;
            } else {
                links.push(PinnedLink { ifindex: info.ifindex, program: info.prog_id, link, path });
            }
        }
        Ok(links)
    }
}

/// Refuses a directory of pins that others could change, and one with something in it that others have made: a map of theirs
/// would be taken for ours.
pub(crate) fn refuse_foreign(directory: &Path) -> Result<(), OpenError> {
    trusted(directory).check_directory()?;
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let metadata = fs::symlink_metadata(&path).opening(|| format!("cannot look at {}", path.display()))?;
        trusted(&path).check_owner(&metadata)?;
    }
    Ok(())
}

fn trusted(path: &Path) -> Trusted<'_> {
    Trusted { path, option: "--pin-path" }
}

/// Pins of links in a directory.
pub(crate) fn link_paths(directory: &Path) -> Result<Vec<PathBuf>, OpenError> {
    Ok(pin_paths(directory)?
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(LINK.as_bytes())))
        .collect())
}

/// All pins in a directory.
pub(crate) fn pin_paths(directory: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let context = || format!("cannot list {}", directory.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).opening(context)? {
        let entry = entry.opening(context)?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Directories of Ebb's pins with links in them, but for `mine`: another build's, if `mine` is a default one.
fn refuse_other_layout(mine: &Path) -> Result<(), OpenError> {
    if mine.parent() != Some(Path::new(ROOT)) {
        return Ok(());
    }
    let Ok(siblings) = fs::read_dir(ROOT) else { return Ok(()) };
    for sibling in siblings.flatten() {
        let path = sibling.path();
        let is_layout = sibling.file_name().as_bytes().starts_with(b"v");
        if path != mine && is_layout && path.is_dir() && !link_paths(&path)?.is_empty() {
            let what = format!("{}, this build's is v{LAYOUT_VERSION}", sibling.file_name().display());
            return Err(OpenError::Layout { path, what });
        }
    }
    Ok(())
}

/// Removes an emptied directory of pins.
pub(crate) fn remove_directory(directory: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(directory).opening(|| format!("cannot list {}", directory.display()))?.flatten() {
        if entry.file_name().as_bytes().starts_with(b"layout-") {
            fs::remove_dir(entry.path()).opening(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    fs::remove_dir(directory).opening(|| format!("cannot remove {}", directory.display()))?;
    // Its parent may be ours alone, or not.
    let _ = fs::remove_dir(ROOT);
    Ok(())
}

/// The default directories that exist, of whatever layout.
pub(crate) fn default_directories() -> Result<Vec<PathBuf>, OpenError> {
    let entries = entries(Path::new(ROOT))?.into_iter().flatten().flatten();
    Ok(entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

/// What is in a directory, or `None` if there is no such directory. One that may not be looked into may be there.
pub(crate) fn entries(directory: &Path) -> Result<Option<ReadDir>, OpenError> {
    fs::read_dir(directory).map(Some).or_else(|source| match source.raw_os_error() {
        // The second is what the BPF filesystem says of names that it does not take.
        Some(libc::ENOENT | libc::EPERM) => Ok(None),
        Some(libc::EACCES) => Err(OpenError::Hidden { path: directory.into() }),
        _ => Err(OpenError::Refused { action: format!("cannot list {}", directory.display()), source }),
    })
}

/// Whether `path` is one of the default directories.
pub(crate) fn is_default(path: &Path) -> bool {
    path.parent() == Some(Path::new(ROOT))
}

/// Makes sure that `path` is, or will be, on a BPF filesystem.
fn ensure_bpffs(path: &Path) -> Result<(), OpenError> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    if is_bpffs(existing).opening(|| format!("cannot look at {}", existing.display()))? {
        let new = path.strip_prefix(existing).unwrap_or(path);
        let dotted = new.as_os_str().as_bytes().contains(&b'.');
        return if dotted { Err(OpenError::Dotted { path: path.into() }) } else { Ok(()) };
    }
    if !path.starts_with(BPFFS) {
        return Err(OpenError::NotBpffs { path: path.into() });
    }
    mount_bpffs().opening(|| format!("cannot mount the BPF filesystem on {BPFFS}"))?;
    if !shares_mounts_with_init() {
        tracing::warn!(
            "this process has mounts of its own, so the pins in {} vanish when it and its children end; enter a network \
             namespace with nsenter --net=/run/netns/NAME instead of ip netns exec",
            path.display()
        );
    }
    Ok(())
}

pub(crate) fn is_bpffs(path: &Path) -> io::Result<bool> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: any bytes are a statfs.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated string and a struct that the kernel fills, both ours.
    if unsafe { libc::statfs(c_path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.f_type == libc::BPF_FS_MAGIC)
}

fn mount_bpffs() -> io::Result<()> {
    let (target, kind) = (CString::new(BPFFS)?, CString::new("bpf")?);
    // SAFETY: terminated strings that outlive the call; no data.
    let ret =
        unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null::<libc::c_void>()) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn shares_mounts_with_init() -> bool {
    match (fs::read_link("/proc/self/ns/mnt"), fs::read_link("/proc/1/ns/mnt")) {
        (Ok(own), Ok(init)) => own == init,
        // No telling; say nothing.
        _ => true,
    }
}
