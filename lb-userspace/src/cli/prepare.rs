//! What `ebb run` does with all the rights it was started with, before there is a second thread: what can be refused is refused,
//! then the datapath is loaded.

use std::{
    fs::{File as OsFile, TryLockError},
    io,
    net::{SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
};

use tokio::{
    net::TcpListener,
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
};

use super::{args::RunArgs, failure::Failure, files, remote::Door, settings::Settings};
use crate::{
    api::socket::{Aside, Socket},
    config::file::File,
    daemon::store::Store,
    datapath::{self, EbpfDatapath, OpenError},
    privilege,
};

/// All that a daemon starts with.
pub(super) struct Prepared {
    pub(super) settings: Settings,
    /// What it is to apply, and where that was read.
    pub(super) file: Option<(File, PathBuf)>,
    pub(super) store: Store,
    pub(super) datapath: EbpfDatapath,
    pub(super) socket: Aside,
    pub(super) doors: Doors,
    pub(super) signals: Signals,
    /// Dropped after the datapath.
    pub(super) undo: Undo,
    /// Held for as long as it runs.
    pub(super) lock: OsFile,
}

impl Prepared {
    /// Loads the datapath. On an error nothing has changed.
    pub(super) fn make(args: &RunArgs, socket: &Path) -> Result<Self, Failure> {
        let file = args.config.as_deref().map(files::load_here).transpose()?;
        let settings = Settings::merge(args, &file.as_ref().map(|file| file.daemon.clone()).unwrap_or_default());
        log_to_stderr();
        // What can be refused without touching anything comes first.
        if !privilege::missing().is_empty() {
            return Err(failed(OpenError::Privilege));
        }
        Socket::check(socket, &settings.access).map_err(failed)?;
        let signals = Signals::new()?;
        let doors = Doors::take(&settings)?;
        let store = Store::open(&settings.state_dir).map_err(failed)?;
        let lock = lock(&settings.state_dir)?;
        let undo = Undo::of(&settings.datapath.pin_path);
        let datapath = EbpfDatapath::open(&settings.datapath).map_err(failed)?;
        let socket = Socket::prepare(socket, &settings.access).map_err(failed)?;
        let file = file.zip(args.config.clone());
        Ok(Self { settings, file, store, datapath, socket, doors, signals, undo, lock })
    }

    /// Says which files took rights to read that the daemon has given up meanwhile: a reload would fail.
    pub(super) fn warn_of_what_cannot_be_read_again(&self) {
        let remote = self.settings.remote.iter().flat_map(|remote| [&remote.cert, &remote.key, &remote.client_ca]);
        for path in self.file.iter().map(|(_, path)| path).chain(remote) {
            if OsFile::open(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
                tracing::warn!(
                    "{} can be read by its owner only, which the running daemon is not: a reload will fail until root owns it",
                    path.display()
                );
            }
        }
    }
}

/// Takes a datapath away that a start has made and that has come to nothing.
pub(super) struct Undo(Option<PathBuf>);

impl Undo {
    /// Undoes nothing if there is something already.
    fn of(pin_path: &Path) -> Self {
        Self((!pin_path.exists()).then(|| pin_path.to_owned()))
    }

    /// All is well.
    pub(super) fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let Some(pin_path) = &self.0 else { return };
        if let Err(error) = datapath::unload(pin_path, &[]) {
            tracing::error!("what this start had loaded is still there ({error}); \"ebb unload\" removes it");
        }
    }
}

/// Where others than those on this host are answered, taken before anything that would have to be undone.
pub(super) struct Doors {
    pub(super) metrics: Option<Listener>,
    pub(super) page: Option<Listener>,
    pub(super) remote: Option<Door>,
}

impl Doors {
    fn take(settings: &Settings) -> Result<Self, Failure> {
        let option = |name: &str, address: Option<SocketAddr>| {
            address
                .map(|address| Listener::take(address, &format!("cannot serve --{name}"), &format!("--{name}")))
                .transpose()
        };
        let remote = settings.remote.as_ref().map(Door::take).transpose()?;
        Ok(Self { metrics: option("metrics", settings.metrics)?, page: option("status", settings.status)?, remote })
    }
}

/// A port that is taken, at which nobody is answered yet.
pub(super) struct Listener(StdListener);

impl Listener {
    /// Takes it. An error begins and ends with these words.
    pub(super) fn take(address: SocketAddr, cannot: &str, option: &str) -> Result<Self, Failure> {
        let taken = StdListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(Self(listener))
        });
        taken.map_err(|error| Failure::failed(format!("{cannot} on {address}: {error}; choose another with {option}")))
    }

    /// For callers to be waited for. Must be called within a tokio runtime.
    pub(super) fn open(self) -> Result<TcpListener, Failure> {
        TcpListener::from_std(self.0).map_err(failed)
    }
}

/// Holds a directory of state for as long as the returned file is open, however this process ends.
pub(super) fn lock(state_dir: &Path) -> Result<OsFile, Failure> {
    let cannot = |error| Failure::failed(format!("cannot lock {}: {error}", state_dir.display()));
    let directory = OsFile::open(state_dir).map_err(cannot)?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(Failure::failed(format!(
            "the state in {} is held by another running ebb: stop it, or give this one another --state-dir",
            state_dir.display()
        ))),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

/// The signals a daemon answers to. Registered before anything is loaded, so that none ends it half-way.
pub(super) struct Signals {
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
    pub(super) hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let cannot = |error| Failure::failed(format!("cannot watch for signals: {error}"));
        // Signals are the process's: what this runtime registers the daemon's own tells of.
        let runtime = Builder::new_current_thread().enable_io().build().map_err(cannot)?;
        let _within = runtime.enter();
        let watch = |kind| signal(kind).map_err(cannot);
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}

/// `EBB_LOG` takes levels as `info` or `lb_userspace=debug`. Under systemd the journal has the time already.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .with_env_var("EBB_LOG")
        .from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let log = log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let installed =
        if std::env::var_os("JOURNAL_STREAM").is_some() { log.without_time().try_init() } else { log.try_init() };
    // Only a second call could fail, and then the first one's logger stands.
    drop(installed);
}
