//! `ebb run`: puts the daemon together, runs it until a signal, and takes it apart. The datapath forwards on without it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use axum::Router;
use sd_notify::NotifyState;
use tokio::{
    runtime::Builder,
    sync::{mpsc, watch},
};

use super::{
    args::RunArgs,
    failure::{Exit, Failure},
    files,
    prepare::{Doors, Prepared, Signals},
    remote::{Door, Remote},
    settings::Settings,
};
use crate::{
    api::{self, DaemonInfo, metrics, page, socket::Aside},
    config::{
        self,
        file::{self, File},
    },
    control::model::Event,
    daemon::{
        Engine, EngineOptions, Handle, NextHopUpdate,
        clock::SystemClock,
        flow_log::{FlowLog, FlowLogSpec, Reopen},
        health, hooks,
        store::Store,
    },
    datapath::EbpfDatapath,
    descriptors,
    net::{self, NetlinkResolver},
    privilege,
};

/// News about next hops that wait for the engine.
const NEXT_HOP_QUEUE: usize = 256;
/// How long a stop waits until all that has happened is in the hooks' queues.
const QUEUEING: Duration = Duration::from_secs(5);

/// `ebb run`.
pub(super) fn run(args: &RunArgs, socket: &Path) -> Result<Exit, Failure> {
    let prepared = Prepared::make(args, socket)?;
    // From here on there are threads, whose rights nobody could take away any more.
    privilege::keep_what_runs()
        .map_err(|error| Failure::failed(format!("cannot give up the rights of the start: {error}")))?;
    if let Err(error) = descriptors::raise() {
        tracing::warn!("cannot raise the limit on open files: {error}");
    }
    prepared.warn_of_what_cannot_be_read_again();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?.block_on(Daemon::serve(prepared))
}

/// All that happens, for the hooks.
type Events = mpsc::UnboundedReceiver<Arc<Event>>;

/// What runs.
struct Daemon {
    handle: Handle,
    engine: JoinHandle<()>,
    answering: Answering,
    stop: watch::Sender<bool>,
    reopen: Option<Reopen>,
    /// The file it was started with, and what that said about the daemon itself.
    config: Option<(PathBuf, file::Daemon)>,
}

/// What others ask and are told by.
struct Answering {
    server: tokio::task::JoinHandle<()>,
    remote: Option<Remote>,
    hooks: Option<tokio::task::JoinHandle<()>>,
}

impl Daemon {
    async fn serve(prepared: Prepared) -> Result<Exit, Failure> {
        let Prepared { settings, file, store, datapath, socket, doors, mut signals, undo, lock: _lock } = prepared;
        let daemon = Self::start(&settings, store, file, datapath, socket, doors).await?;
        undo.forget();
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
        mut datapath: EbpfDatapath,
        socket: Aside,
        doors: Doors,
    ) -> Result<Self, Failure> {
        if let Some(log) = datapath.take_log() {
            tokio::spawn(async move {
                if let Err(error) = log.run().await {
                    tracing::warn!("the program's log is no longer read: {error}");
                }
            });
        }
        let clock = SystemClock::new().map_err(failed)?;
        let (updates, next_hops) = next_hop_queue();
        let resolver = NetlinkResolver::start(updates)
            .map_err(|error| Failure::failed(format!("cannot follow the network over netlink: {error}")))?;
        let host = net::host::follow()
            .await
            .map_err(|error| Failure::failed(format!("cannot see the host's interfaces over netlink: {error}")))?;
        let flow_log = settings.flow_log.clone().map(open_flow_log).transpose()?;
        let reopen = flow_log.as_ref().map(FlowLog::reopener);
        let (hooks, events) = (!settings.hooks.is_empty()).then(mpsc::unbounded_channel).unzip();
        let (engine, handle) = Engine::start(EngineOptions {
            datapath: Box::new(datapath),
            resolver: Box::new(resolver),
            next_hops,
            host,
            store,
            clock: Arc::new(clock),
            flow_log,
            hooks,
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
            applied.and_then(|()| Self::begin(settings, socket, doors, handle.clone(), events, stop.clone(), stopped));
        match answering {
            Ok(answering) => Ok(Self { handle, engine, answering, stop, reopen, config }),
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
        socket: Aside,
        doors: Doors,
        handle: Handle,
        events: Option<Events>,
        stop: watch::Sender<bool>,
        stopped: watch::Receiver<bool>,
    ) -> Result<Answering, Failure> {
        if let Some(listener) = doors.metrics {
            tokio::spawn(metrics::serve(listener.open()?, handle.clone(), wait_for(stopped.clone())));
        }
        tokio::spawn(health::run(handle.clone(), Arc::new(health::NetworkProber), wait_for(stopped.clone())));
        let hooks = events.map(|events| tokio::spawn(tell_hooks(events, settings.clone())));
        let info = DaemonInfo::of_this(&settings.datapath.pin_path, &settings.state_dir);
        let of_daemon = api::daemon_router(info, stop);
        if let Some(listener) = doors.page {
            let operations = api::remote_router(handle.clone(), Router::new());
            tokio::spawn(page::serve(listener.open()?, operations, wait_for(stopped.clone())));
        }
        let socket = socket.put_in_place().map_err(failed)?;
        let serve = |door: Door| {
            let operations = api::remote_router(handle.clone(), of_daemon.clone());
            door.serve(page::with_page(operations), wait_for(stopped.clone()))
        };
        let remote = doors.remote.map(serve).transpose()?;
        let router = page::on_socket(api::router(handle).merge(of_daemon));
        let server = tokio::spawn(api::serve::serve(socket, router, wait_for(stopped)));
        Ok(Answering { server, remote, hooks })
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
        if let Some(remote) = &self.answering.remote {
            remote.renew(renewal);
        }
        Ok(())
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        let Answering { server, hooks, .. } = self.answering;
        if let Err(error) = server.await {
            tracing::error!("the API ended badly: {error}");
        }
        join(self.engine).await;
        // With the engine's last event in their queues they end by themselves.
        let Some(hooks) = hooks else { return };
        if tokio::time::timeout(QUEUEING, hooks).await.is_err() {
            tracing::error!(
                "hooks will not be told of all that has happened: their queues were not written in {QUEUEING:?}"
            );
        }
    }
}

/// What of `[daemon]` cannot change while it runs: all but who may control it from afar.
fn fixed(daemon: &file::Daemon) -> (file::Daemon, Option<SocketAddr>) {
    let listen = daemon.remote.as_ref().map(|remote| remote.listen);
    (file::Daemon { remote: None, ..daemon.clone() }, listen)
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

async fn tell_hooks(events: Events, settings: Settings) {
    let directory = settings.state_dir.join("hooks");
    if let Err(error) = hooks::run(events, settings.hooks, &directory).await {
        tracing::error!("hooks are told nothing: cannot keep their queues in {}: {error}", directory.display());
    }
}

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the daemon.
    let _ = stopped.wait_for(|stopped| *stopped).await;
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
