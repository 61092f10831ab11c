//! Why the packet path could not be opened or removed.

use std::{io, path::PathBuf};

use super::{DatapathError, kernel::Version};
use crate::ownership::Untrusted;

/// One line each: what is wrong, on what, and what to do. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No privilege.
    #[error(
        "not permitted to load BPF programs: run as root (or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW)"
    )]
    Privilege,
    /// Too old.
    #[error("this kernel is Linux {found}; Ebb needs {needed} or later")]
    Kernel {
        /// This one's release.
        found: String,
        /// The oldest that has all it needs.
        needed: Version,
    },
    /// A monotonic clock that is not the packet path's.
    #[error(
        "this process is in a time namespace, whose monotonic clock is {offset_s} s off the kernel's, by which flows and \
         deadlines go: run ebb outside it"
    )]
    TimeNamespace {
        /// By how many seconds.
        offset_s: i64,
    },
    /// Pins of another user's.
    #[error("not permitted to look into {}, where something may be attached: run this as root", path.display())]
    Hidden {
        /// The directory.
        path: PathBuf,
    },
    /// No such interface.
    #[error("there is no interface named {name:?} here; there are: {known}")]
    NoInterface {
        /// As given.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// No interface was named, and none was attached before.
    #[error("no interface to attach to: name one with -i or under [daemon] in the file")]
    NoInterfaces,
    /// Somebody else's XDP program is there.
    #[error(
        "{interface} already runs another XDP program (id {program}): detach it (ip link set dev {interface} xdp off), \
         or choose another interface"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The program's id; see `bpftool prog show id`.
        program: u32,
    },
    /// Another daemon is at work on the same pins.
    #[error("the pins in {} are held by another running ebb: stop it, or give this one another --pin-path", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The pins are of another network namespace.
    #[error(
        "the pins in {} belong to an ebb of another network namespace: give this one another --pin-path",
        path.display()
    )]
    ForeignNamespace {
        /// The directory.
        path: PathBuf,
    },
    /// Others could change the pins.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// Not a place for pins.
    #[error(
        "{} is not on a BPF filesystem: choose a directory under /sys/fs/bpf as --pin-path (or mount one: mount -t bpf \
         bpf DIR)",
        path.display()
    )]
    NotBpffs {
        /// As given.
        path: PathBuf,
    },
    /// The BPF filesystem refuses the name.
    #[error("{} has a dot in a name, which the BPF filesystem does not take: choose another --pin-path", path.display())]
    Dotted {
        /// As given.
        path: PathBuf,
    },
    /// More flows than a table can hold.
    #[error("a table of {flows} flows is too large: at most {most}")]
    TooManyFlows {
        /// As asked for.
        flows: u32,
        /// The most.
        most: u32,
    },
    /// Pinned maps that this build would misread.
    #[error("the maps pinned in {} are of another layout ({what}): run ebb unload first, which ends its flows", path.display())]
    Layout {
        /// The directory.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// The interface takes no XDP program in the mode asked for.
    #[error("cannot attach to {interface} in {mode} mode ({source}){hint}")]
    Attach {
        /// The interface.
        interface: String,
        /// The mode.
        mode: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        hint: String,
    },
    /// The verifier or the loader.
    #[error("the kernel did not take the XDP program or its maps: {0}")]
    Program(String),
    /// Anything else the kernel refused.
    #[error("{action}: {source}")]
    Refused {
        /// What was being done, on what.
        action: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A call on the maps.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// Puts what was being done to an I/O error.
pub(crate) trait While<T> {
    /// For opening and removing.
    fn opening(self, action: impl FnOnce() -> String) -> Result<T, OpenError>;
    /// For work on the maps.
    fn working(self, action: impl FnOnce() -> String) -> Result<T, DatapathError>;
}

impl<T> While<T> for io::Result<T> {
    fn opening(self, action: impl FnOnce() -> String) -> Result<T, OpenError> {
        self.map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM) => OpenError::Privilege,
            _ => OpenError::Refused { action: action(), source },
        })
    }

    fn working(self, action: impl FnOnce() -> String) -> Result<T, DatapathError> {
        self.map_err(|source| DatapathError::Kernel { action: action(), source })
    }
}
