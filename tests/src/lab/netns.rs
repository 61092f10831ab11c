//! Named network namespaces and how to work inside them.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};

use super::sys;

/// A network namespace under /run/netns. Whoever made it removes it; a clone is one more handle.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    descriptor: Arc<OwnedFd>,
}

impl Namespace {
    /// Opens the namespace called `name`, which must exist.
    pub fn open(name: &str) -> Result<Self> {
        let path = Self::path_of(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { name: name.into(), descriptor: Arc::new(file.into()) })
    }

    /// Where `ip netns` keeps the namespace called `name`.
    pub fn path_of(name: &str) -> PathBuf {
        Path::new("/run/netns").join(name)
    }

    /// The name, as `ip netns list` and `nsenter --net=/run/netns/NAME` know it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own inside the namespace and returns what it returns.
    ///
    /// The caller's thread never changes namespace, so nothing has to be put back.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                sys::enter_netns(self.descriptor.as_fd()).with_context(|| format!("enter {}", self.name))?;
                Ok(work())
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside the namespace that may outlive the caller.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let namespace = self.clone();
        thread::Builder::new()
            .name(self.name.to_string())
            .spawn(move || {
                sys::enter_netns(namespace.descriptor.as_fd()).with_context(|| format!("enter {}", namespace.name))?;
                work()
            })
            .with_context(|| format!("start a thread in {}", self.name))
    }

    /// A command whose process will run inside the namespace. `ip netns exec` is not used: it would
    /// give the process a /sys of its own, without the bpffs that pins live in.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        sys::enter_before_exec(&mut command, self.descriptor.try_clone()?);
        Ok(command)
    }

    /// Writes kernel settings inside the namespace. They are given as paths below /proc/sys, in which
    /// one directory may be `*`: all there are.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                for path in matching(name)? {
                    std::fs::write(&path, value).with_context(|| format!("set {} to {value}", path.display()))?;
                }
            }
            Ok(())
        })?
    }
}

fn matching(name: &str) -> Result<Vec<PathBuf>> {
    let root = Path::new("/proc/sys");
    let Some((parent, leaf)) = name.split_once("/*/") else {
        return Ok(vec![root.join(name)]);
    };
    let entries = std::fs::read_dir(root.join(parent)).with_context(|| format!("list {parent}"))?;
    entries.map(|entry| Ok(entry?.path().join(leaf))).collect()
}
