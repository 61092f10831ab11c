//! The run this process is: where its labs keep their things, and how they are removed whatever happens.
//!
//! Everything a lab makes outside the process bears the run's name, and a lock in the run's directory
//! is held as long as the process lives. So whoever starts later can tell a dead run's leftovers from
//! a live run's possessions, even when a process number has come round again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{netns::Namespace, sys};

const RUNS: &str = "/run/ebb-lab";
const BPFFS: &str = "/sys/fs/bpf";

/// The daemon's state directory, in a lab's directory.
pub(crate) const STATE: &str = "state";

/// In the environment of every daemon, so that it can be told from a stranger that has got its process number.
pub(crate) const LABEL_VARIABLE: &str = "EBB_LAB";

/// This process's run. Its directory is there while it has labs.
#[derive(Debug)]
pub(crate) struct Run {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    labs_made: u32,
    labs_left: u32,
    lock: Option<File>,
}

/// One lab's names.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// `PID-N`: unique while the run lives.
    pub(crate) label: String,
    /// Directory for sockets, state and logs.
    pub(crate) directory: PathBuf,
}

impl Run {
    /// The run of this process; the first call clears away what dead runs have left behind.
    pub(crate) fn current() -> Result<&'static Self> {
        static CURRENT: OnceLock<Result<Run, String>> = OnceLock::new();
        let run = CURRENT.get_or_init(|| Self::begin().map_err(|error| format!("{error:#}")));
        run.as_ref().map_err(|error| anyhow!("{error}"))
    }

    fn begin() -> Result<Self> {
        ensure!(
            sys::is_root(),
            "the namespace lab needs root: it makes network namespaces and loads XDP programs (try `sudo -E`)"
        );
        fs::create_dir_all(RUNS).with_context(|| format!("make {RUNS}"))?;
        sys::ensure_bpffs().context("mount bpffs at /sys/fs/bpf")?;
        sys::raise_file_limit().context("raise the limit on open files")?;
        remove_dead_runs()?;

        let directory = Path::new(RUNS).join(std::process::id().to_string());
        remove_on_signals(directory.clone())?;
        Ok(Self { directory, state: Mutex::default() })
    }

    /// Names for one more lab, to be given back by [`Run::remove_lab`].
    pub(crate) fn name_lab(&self) -> Result<Names> {
        let mut state = self.state();
        if state.lock.is_none() {
            fs::create_dir_all(&self.directory)?;
            let lock = File::create(lock_path(&self.directory))?;
            ensure!(sys::try_lock(&lock)?, "{} is locked by another process", self.directory.display());
            state.lock = Some(lock);
        }
        let number = state.labs_made;
        let directory = self.directory.join(number.to_string());
        fs::create_dir_all(&directory)?;
        state.labs_made += 1;
        state.labs_left += 1;
        Ok(Names { label: format!("{}-{number}", std::process::id()), directory })
    }

    /// Removes all that bears a lab's names.
    pub(crate) fn remove_lab(&self, names: &Names) {
        remove_labelled(&names.label, &names.directory);
        let mut state = self.state();
        state.labs_left -= 1;
        if state.labs_left == 0 {
            let _ = fs::remove_dir_all(&self.directory);
            state.lock = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    /// The full name of the namespace that the lab calls `host`.
    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("ebb-{}-{host}", self.label)
    }

    /// Where the lab's daemon pins its maps.
    pub(crate) fn pin_path(&self) -> PathBuf {
        Path::new(BPFFS).join(format!("ebb-test-{}", self.label))
    }
}

fn lock_path(directory: &Path) -> PathBuf {
    directory.join("lock")
}

fn remove_dead_runs() -> io::Result<()> {
    for entry in fs::read_dir(RUNS)? {
        let directory = entry?.path();
        let Some(name) = directory.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        // A run that is just starting has no lock file yet and is left alone.
        let Ok(lock) = File::open(lock_path(&directory)) else {
            continue;
        };
        if sys::try_lock(&lock)? {
            remove_run(name, &directory);
        }
    }
    Ok(())
}

fn remove_run(name: &str, directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if let Some(lab) = entry.file_name().to_str().filter(|lab| lab.bytes().all(|c| c.is_ascii_digit())) {
            remove_labelled(&format!("{name}-{lab}"), &entry.path());
        }
    }
    let _ = fs::remove_dir_all(directory);
}

/// Removes one lab: its daemons, then its pins (which takes the programs off), then its namespaces.
/// Each step is tried whatever became of the others, since this also runs after a half-built lab.
fn remove_labelled(label: &str, directory: &Path) {
    stop_daemons(label, directory);
    let _ = fs::remove_dir_all(Path::new(BPFFS).join(format!("ebb-test-{label}")));
    let prefix = format!("ebb-{label}-");
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if let Some(name) = entry.file_name().to_str().filter(|name| name.starts_with(&prefix)) {
            let path = Namespace::path_of(name);
            let _ = sys::detach_mount(&path);
            let _ = fs::remove_file(path);
        }
    }
    // Where the daemon's state had a disk of its own.
    let _ = sys::detach_mount(&directory.join(STATE));
    let _ = fs::remove_dir_all(directory);
}

/// Kills the daemons whose process numbers the lab wrote down, if they still are what they were.
fn stop_daemons(label: &str, directory: &Path) {
    let mark = format!("{LABEL_VARIABLE}={label}");
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "pid") {
            continue;
        }
        let Some(pid) = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) else {
            continue;
        };
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            let _ = sys::signal(pid, libc::SIGKILL);
        }
    }
}

/// Ctrl-C must not leave namespaces and daemons behind: clean up, then die of it.
fn remove_on_signals(directory: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let signal = runtime.block_on(first_signal());
        if let Ok(signal) = signal {
            eprintln!("\ninterrupted: removing the lab");
            remove_run(&std::process::id().to_string(), &directory);
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}

async fn first_signal() -> io::Result<i32> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => libc::SIGINT,
        _ = terminate.recv() => libc::SIGTERM,
        _ = hang_up.recv() => libc::SIGHUP,
    })
}
