//! How many descriptors the daemon may have open, and what for.
//!
//! Programs get 1,024 unless they ask for more, for the sake of those that use `select`. The daemon does not, and asks.

use std::{io, sync::OnceLock};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::{
    api::{metrics, page, remote, serve},
    daemon::health,
};

/// What the kernel lets a process have that asks, unless an administrator or a service manager has set something else
/// (`INR_OPEN_MAX` of its `include/uapi/linux/fs.h`). systemd lets its services have 524,288.
/// Where there are fewer, callers wait in the kernel's queue, and a check for which none is left says nothing of its backend.
const USUAL: usize = 4_096;
/// Callers have one each. A check of a VIP has three: a port that is held, what listens and what sends. A command has two pipes,
/// which have two ends each until it runs, one to learn whether it does, and one to learn when it has ended.
const BUDGET: usize = serve::CALLERS
    + remote::CALLERS
    + page::CALLERS
    + metrics::CALLERS
    + 3 * health::NETWORK_LIMIT
    + 8 * health::COMMAND_LIMIT;
/// For maps, listeners, queues on disk, deliveries of hooks.
const REST: usize = 1_024;
const _: () = assert!(BUDGET + REST <= USUAL, "more descriptors are promised than there are");

/// The soft limit that the daemon was started with; none is no limit.
static FIRST: OnceLock<Option<u64>> = OnceLock::new();

/// Takes all that the hard limit allows. Programs that are started from then on are to be given the earlier limit back.
///
/// # Errors
///
/// Fails when the kernel refuses, and leaves the limit as it is.
pub fn raise() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    let first = limit.current;
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    FIRST.get_or_init(|| first);
    Ok(())
}

/// Whether there is anything to [`lower`].
pub(crate) fn are_raised() -> bool {
    FIRST.get().is_some()
}

/// Goes back to the limit that the daemon was started with: a program that uses `select` overwrites its own memory with descriptors
/// beyond it. Between `fork` and `exec` this is allowed: it makes system calls and nothing else.
pub(crate) fn lower() -> io::Result<()> {
    let Some(first) = FIRST.get() else { return Ok(()) };
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = [*first, limit.maximum].into_iter().flatten().min();
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// How many this process may have now.
pub(crate) fn limit() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
