//! `ebb run`: puts the daemon together, runs it until a signal, and takes it apart. The datapath forwards on without it.

use std::{
    fs::{File as OsFile, TryLockError},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use axum::Router;
use sd_notify::NotifyState;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
};

use super::{
    args::RunArgs,
    doctor::machine,
    failure::{Exit, Failure},
    files,
    remote::{Door, Remote},
    settings::Settings,
};
use crate::{
    api::{self, DaemonInfo, metrics, page, socket::Socket},
    config::{
        self,
        file::{self, File},
    },
    daemon::{
        Engine, EngineOptions, Handle, NextHopUpdate,
        clock::SystemClock,
        flow_log::{FlowLog, FlowLogSpec, Reopen},
        health, hooks,
        store::Store,
    },
    datapath::{self, EbpfDatapath, OpenError},
    net::{self, NetlinkResolver},
};

/// News about next hops that wait for the engine.
const NEXT_HOP_QUEUE: usize = 256;

/// `ebb run`.
pub(super) async fn run(args: &RunArgs, socket: &Path) -> Result<Exit, Failure> {
    let file = args.config.as_deref().map(files::load_here).transpose()?;
    let settings = Settings::merge(args, &file.as_ref().map(|file| file.daemon.clone()).unwrap_or_default());
    log_to_stderr();
    Daemon::serve(settings, file.zip(args.config.clone()), socket).await
}

/// What runs.
struct Daemon {
    handle: Handle,
    engine: JoinHandle<()>,
    server: tokio::task::JoinHandle<()>,
    stop: watch::Sender<bool>,
    remote: Option<Remote>,
    reopen: Option<Reopen>,
    /// The file it was started with, and what that said about the daemon itself.
    config: Option<(PathBuf, file::Daemon)>,
}

impl Daemon {
    async fn serve(settings: Settings, file: Option<(File, PathBuf)>, socket: &Path) -> Result<Exit, Failure> {
        // What can be refused without touching anything comes first.
        if !machine::may_load_programs() {
            return Err(failed(OpenError::Privilege));
        }
        Socket::check(socket, &settings.access).map_err(failed)?;
        let mut signals = Signals::new()?;
        let doors = Doors::open(&settings).await?;
        let store = Store::open(&settings.state_dir).map_err(failed)?;
        let _lock = lock(&settings.state_dir)?;
        let untouched = !settings.datapath.pin_path.exists();
        let started = Self::start(&settings, store, file, socket, doors).await;
        let daemon = match started {
            Ok(daemon) => daemon,
            Err(failure) => {
                if untouched {
                    undo(&settings.datapath.pin_path);
                }
                return Err(failure);
            }
        };
        notify(&[NotifyState::Ready]);
        daemon.until_stopped(&mut signals).await;
        notify(&[NotifyState::Stopping]);
        daemon.stop().await;
        Ok(Exit::Done)
    }

    async fn start(
        settings: &Settings,
        store: Store,
        file: Option<(File, PathBuf)>,
        socket: &Path,
        doors: Doors,
    ) -> Result<Self, Failure> {
        let mut datapath = EbpfDatapath::open(&settings.datapath).map_err(failed)?;
        if let Some(log) = datapath.take_log() {
            tokio::spawn(async move {
                if let Err(error) = log.run().await {
                    tracing::warn!("the program's log is no longer read: {error}");
                }
            });
        }
        let (updates, next_hops) = next_hop_queue();
        let resolver = NetlinkResolver::start(updates)
            .map_err(|error| Failure::failed(format!("cannot follow the network over netlink: {error}")))?;
        let host = net::host::follow()
            .await
            .map_err(|error| Failure::failed(format!("cannot see the host's interfaces over netlink: {error}")))?;
        let flow_log = settings.flow_log.clone().map(open_flow_log).transpose()?;
        let reopen = flow_log.as_ref().map(FlowLog::reopener);
        let (engine, handle) = Engine::start(EngineOptions {
            datapath: Box::new(datapath),
            resolver: Box::new(resolver),
            next_hops,
            host,
            store,
            clock: Arc::new(SystemClock),
            flow_log,
        })
        .map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let engine = engine.spawn(wait_for(stopped.clone())).map_err(failed)?;
        let applied = match &file {
            Some((file, _)) => apply(&handle, file).await,
            None => Ok(()),
        };
        let config = file.map(|(file, path)| (path, file.daemon));
        let answering =
            applied.and_then(|()| Self::begin(settings, socket, doors, handle.clone(), stop.clone(), stopped));
        match answering {
            Ok((server, remote)) => Ok(Self { handle, engine, server, stop, remote, reopen, config }),
            Err(failure) => {
                stop.send_replace(true);
                join(engine).await;
                Err(failure)
            }
        }
    }

    /// Answers on the socket: the last step of a start, since whoever is answered may rely on everything before.
    fn begin(
        settings: &Settings,
        socket: &Path,
        doors: Doors,
        handle: Handle,
        stop: watch::Sender<bool>,
        stopped: watch::Receiver<bool>,
    ) -> Result<(tokio::task::JoinHandle<()>, Option<Remote>), Failure> {
        if let Some(listener) = doors.metrics {
            tokio::spawn(metrics::serve(listener, handle.clone(), wait_for(stopped.clone())));
        }
        tokio::spawn(health::run(handle.clone(), Arc::new(health::NetworkProber), wait_for(stopped.clone())));
        if !settings.hooks.is_empty() {
            tokio::spawn(tell_hooks(handle.clone(), settings.clone(), wait_for(stopped.clone())));
        }
        let info = DaemonInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            pin_path: settings.datapath.pin_path.clone(),
            state_dir: settings.state_dir.clone(),
        };
        let of_daemon = api::daemon_router(info, stop);
        if let Some(listener) = doors.page {
            let operations = api::remote_router(handle.clone(), Router::new());
            tokio::spawn(page::serve(listener, operations, wait_for(stopped.clone())));
        }
        let socket = Socket::bind(socket, &settings.access).map_err(failed)?;
        let remote = doors.remote.map(|door| {
            let operations = api::remote_router(handle.clone(), of_daemon.clone());
            door.serve(page::with_page(operations), wait_for(stopped.clone()))
        });
        let router = page::on_socket(api::router(handle).merge(of_daemon));
        Ok((tokio::spawn(api::serve::serve(socket, router, wait_for(stopped))), remote))
    }

    async fn until_stopped(&self, signals: &mut Signals) {
        let watchdog = tokio::spawn(feed_watchdog(self.handle.clone()));
        let asked = wait_for(self.stop.subscribe());
        tokio::pin!(asked);
        loop {
            tokio::select! {
                () = &mut asked => break,
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = signals.hangup.recv() => self.reload().await,
            }
        }
        watchdog.abort();
        tracing::info!("stopping; the datapath goes on forwarding, \"ebb unload\" removes it");
    }

    /// A file that is wrong changes nothing: what is wrong is logged, and the daemon goes on with what it has.
    async fn reload(&self) {
        if let Some(log) = &self.reopen {
            log.reopen();
        }
        let Some((path, daemon)) = &self.config else {
            tracing::warn!("SIGHUP: started without a file, so there is none to read again");
            return;
        };
        match self.reload_from(path, daemon).await {
            Ok(()) => tracing::info!("read {} again", path.display()),
            Err(failure) => tracing::error!("{failure}; nothing was changed"),
        }
    }

    async fn reload_from(&self, path: &Path, daemon: &file::Daemon) -> Result<(), Failure> {
        let file = files::load_here(path)?;
        if fixed(&file.daemon) != fixed(daemon) {
            tracing::warn!("[daemon] in {} has changed: that takes effect at the next start", path.display());
        }
        let settings = file.daemon.remote.as_ref().map(config::remote::Remote::settings);
        let renewal = Remote::look(settings.as_ref())?;
        apply(&self.handle, &file).await?;
        if let Some(remote) = &self.remote {
            remote.renew(renewal);
        }
        Ok(())
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.server.await {
            tracing::error!("the API ended badly: {error}");
        }
        join(self.engine).await;
    }
}

/// What of `[daemon]` cannot change while it runs: all but who may control it from afar.
fn fixed(daemon: &file::Daemon) -> (file::Daemon, Option<SocketAddr>) {
    let listen = daemon.remote.as_ref().map(|remote| remote.listen);
    (file::Daemon { remote: None, ..daemon.clone() }, listen)
}

/// Where others than those on this host are answered, taken before anything that would have to be undone.
struct Doors {
    metrics: Option<TcpListener>,
    page: Option<TcpListener>,
    remote: Option<Door>,
}

impl Doors {
    async fn open(settings: &Settings) -> Result<Self, Failure> {
        let metrics = listen("metrics", settings.metrics).await?;
        let page = listen("status", settings.status).await?;
        let remote = match &settings.remote {
            Some(remote) => Some(Door::open(remote).await?),
            None => None,
        };
        Ok(Self { metrics, page, remote })
    }
}

/// The resolver must never wait, as it would lose what the kernel says; the engine takes updates as it can.
fn next_hop_queue() -> (mpsc::UnboundedSender<NextHopUpdate>, mpsc::Receiver<NextHopUpdate>) {
    let (updates, mut found) = mpsc::unbounded_channel();
    let (sender, next_hops) = mpsc::channel(NEXT_HOP_QUEUE);
    tokio::spawn(async move {
        while let Some(update) = found.recv().await {
            if sender.send(update).await.is_err() {
                return;
            }
        }
    });
    (updates, next_hops)
}

async fn apply(handle: &Handle, file: &File) -> Result<(), Failure> {
    let wanted = file.wanted().map_err(failed)?;
    let report = handle.apply(wanted, false).await.map_err(failed)?;
    for change in report.changes {
        let backend = change.backend.map_or_else(String::new, |backend| format!("/{backend}"));
        tracing::info!("{}{backend}: {}", change.service, change.detail);
    }
    Ok(())
}

/// The engine writes the state last; its thread is waited for without blocking the runtime it uses.
async fn join(engine: JoinHandle<()>) {
    let joined = tokio::task::spawn_blocking(move || engine.join()).await;
    if !matches!(joined, Ok(Ok(()))) {
        tracing::error!("the engine ended badly; the state is as it was last saved");
    }
}

fn open_flow_log(spec: FlowLogSpec) -> Result<FlowLog, Failure> {
    let path = spec.path.clone();
    FlowLog::open(spec).map_err(|error| {
        Failure::failed(format!("cannot write the flow log {}: {error}; see [daemon.flow_log]", path.display()))
    })
}

async fn tell_hooks(handle: Handle, settings: Settings, stopped: impl Future<Output = ()>) {
    let directory = settings.state_dir.join("hooks");
    if let Err(error) = hooks::run(handle, settings.hooks, &directory, stopped).await {
        tracing::error!("hooks are told nothing: cannot keep their queues in {}: {error}", directory.display());
    }
}

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the daemon.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Takes a datapath away that a failed start had made.
fn undo(pin_path: &Path) {
    if let Err(error) = datapath::unload(pin_path, &[]) {
        tracing::error!("what this start had loaded is still there ({error}); \"ebb unload\" removes it");
    }
}

async fn listen(option: &str, address: Option<SocketAddr>) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::failed(format!("cannot serve --{option} on {address}: {error}; choose another with --{option}"))
    })?;
    Ok(Some(listener))
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

/// Tells systemd that the daemon lives, for as long as its engine answers.
async fn feed_watchdog(handle: Handle) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(limit / 3);
    loop {
        ticks.tick().await;
        if handle.services().await.is_ok() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}

/// The signals a daemon answers to. Registered before anything is loaded, so that none ends it half-way.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let watch = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot watch for signals: {error}")));
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }
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
