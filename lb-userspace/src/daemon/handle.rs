//! How the rest of the daemon talks to the engine.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::control::{
    Error,
    advisor::Advice,
    hold::HoldAnswer,
    model::{
        ApplyReport, BackendPatch, BackendSpec, BackendStatus, CountersView, DrainRequest, DrainStarted, Event,
        FlowView, FlowsRequest, HealthSpec, ServicePatch, ServiceSpec, Status, WaitFor, WaitResult, WantedService,
    },
    revision::Scope,
    vip::{BackendAddress, Vip},
};
use crate::datapath::NextHop;

/// A cheap, cloneable way to the engine. Every answer comes after the change is in the datapath and on disk.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    targets: watch::Receiver<Arc<Vec<CheckTarget>>>,
    /// What changes depend on.
    only_if: Option<(Scope, Vec<String>)>,
}

/// Events from some id on: those already there, then those to come.
#[derive(Debug)]
pub struct EventStream {
    /// What happened before the subscription, oldest first.
    pub backlog: Vec<Arc<Event>>,
    /// The newest event's id at the subscription; 0 if there was none.
    pub newest: u64,
    /// What happens after it. A receiver that lags loses events and learns how many.
    pub live: broadcast::Receiver<Arc<Event>>,
}

/// A backend to be checked.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckTarget {
    /// Its service.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// Where it is.
    pub address: BackendAddress,
    /// The service's VIP.
    pub vip: Vip,
    /// How to check.
    pub health: HealthSpec,
    /// The way to the backend, where the VIP is to be checked there.
    pub way: Option<Way>,
}

/// The way that clients' packets take to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// In a tunnel.
    pub tunnel: bool,
    /// The next hop, once it is known.
    pub next_hop: Option<NextHop>,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The service.
    pub service: String,
    /// The backend.
    pub backend: String,
    /// Whether it passed.
    pub passed: bool,
    /// What was seen, in words: `connection refused`, `503`.
    pub detail: String,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the engine is asked.
#[derive(Debug)]
pub(super) enum Request {
    AddService(Box<ServiceSpec>, Reply<ServiceSpec>),
    SetService(String, Box<ServicePatch>, Reply<ServiceSpec>),
    RemoveService(String, bool, Reply<()>),
    Services(Reply<Vec<ServiceSpec>>),
    AddBackend(String, BackendSpec, Reply<BackendStatus>),
    SetBackend(String, String, BackendPatch, Reply<BackendStatus>),
    RemoveBackend(String, String, bool, Reply<()>),
    Drain(String, String, DrainRequest, Reply<DrainStarted>),
    DrainAddress(IpAddr, DrainRequest, Reply<Vec<DrainStarted>>),
    Activate(String, String, Reply<BackendStatus>),
    ActivateAddress(IpAddr, Reply<Vec<(String, BackendStatus)>>),
    AnswerHold(String, String, HoldAnswer, Reply<BackendStatus>),
    Wait(String, String, WaitFor, Reply<WaitResult>),
    Apply(Vec<WantedService>, bool, Reply<ApplyReport>),
    Status(Option<String>, Reply<Status>),
    Flows(FlowsRequest, Reply<Vec<FlowView>>),
    Counters(Reply<CountersView>),
    Advice(String, Reply<Advice>),
    Events(u64, Reply<EventStream>),
    Revision(Scope, Reply<String>),
    /// Only if the revision of that scope is one of these.
    If(Scope, Vec<String>, Box<Self>),
    Check(CheckReport),
}

/// Bytes by which one change to a backend lengthens what is kept, events and its service's ring included, unless very much in the
/// ring moves.
const BACKEND_GROWTH: u64 = 4 << 10;
/// The same for a service.
const SERVICE_GROWTH: u64 = 8 << 10;

impl Request {
    /// By how many bytes the state to be kept may grow, roughly; `None` if the request changes nothing.
    pub(super) fn growth(&self) -> Option<u64> {
        match self {
            Self::AddService(..) | Self::SetService(..) | Self::RemoveService(..) => Some(SERVICE_GROWTH),
            Self::AddBackend(..)
            | Self::SetBackend(..)
            | Self::RemoveBackend(..)
            | Self::Drain(..)
            | Self::DrainAddress(..)
            | Self::Activate(..)
            | Self::ActivateAddress(..)
            | Self::AnswerHold(..) => Some(BACKEND_GROWTH),
            Self::Apply(wanted, false, _) => {
                let backends: usize = wanted.iter().map(|service| service.backends.len()).sum();
                Some(wanted.len() as u64 * SERVICE_GROWTH + backends as u64 * BACKEND_GROWTH)
            }
            // Questions; and what comes with a condition is looked at once that holds.
            _ => None,
        }
    }

    /// Answers a change with an error. What changes nothing is never asked for conditionally.
    pub(super) fn refuse(self, error: Error) {
        // Whoever asked may have gone away meanwhile.
        match self {
            Self::AddService(_, reply) | Self::SetService(_, _, reply) => drop(reply.send(Err(error))),
            Self::RemoveService(_, _, reply) | Self::RemoveBackend(_, _, _, reply) => drop(reply.send(Err(error))),
            Self::AddBackend(_, _, reply)
            | Self::SetBackend(_, _, _, reply)
            | Self::Activate(_, _, reply)
            | Self::AnswerHold(_, _, _, reply) => drop(reply.send(Err(error))),
            Self::Drain(_, _, _, reply) => drop(reply.send(Err(error))),
            Self::DrainAddress(_, _, reply) => drop(reply.send(Err(error))),
            Self::ActivateAddress(_, reply) => drop(reply.send(Err(error))),
            Self::Apply(_, _, reply) => drop(reply.send(Err(error))),
            _ => {}
        }
    }
}

impl Handle {
    pub(super) fn new(requests: mpsc::Sender<Request>, targets: watch::Receiver<Arc<Vec<CheckTarget>>>) -> Self {
        Self { requests, targets, only_if: None }
    }

    /// The same, whose changes are refused when the revision of `scope` is none of these by then. Questions are not affected.
    #[must_use]
    pub fn only_if(self, scope: Scope, revisions: Vec<String>) -> Self {
        Self { only_if: Some((scope, revisions)), ..self }
    }

    /// The revision of what is configured.
    pub async fn revision(&self, scope: Scope) -> Result<String, Error> {
        self.ask(|reply| Request::Revision(scope, reply)).await
    }

    /// Adds a service; returns it with its defaults filled in.
    pub async fn add_service(&self, spec: ServiceSpec) -> Result<ServiceSpec, Error> {
        self.change(|reply| Request::AddService(Box::new(spec), reply)).await
    }

    /// Changes a service's settings.
    pub async fn set_service(&self, service: &str, patch: ServicePatch) -> Result<ServiceSpec, Error> {
        self.change(|reply| Request::SetService(service.to_owned(), Box::new(patch), reply)).await
    }

    /// Drains a service's backends, removes them, then the service. Returns at once; with `now` they are cut first.
    pub async fn remove_service(&self, service: &str, now: bool) -> Result<(), Error> {
        self.change(|reply| Request::RemoveService(service.to_owned(), now, reply)).await
    }

    /// All services, in the order in which they were added.
    pub async fn services(&self) -> Result<Vec<ServiceSpec>, Error> {
        self.ask(Request::Services).await
    }

    /// One service.
    pub async fn service(&self, service: &str) -> Result<ServiceSpec, Error> {
        let all = self.services().await?;
        all.into_iter().find(|spec| spec.name == service).ok_or_else(|| no_service(service))
    }

    /// Adds a backend. It becomes active once its next hop is resolved and its checks pass.
    pub async fn add_backend(&self, service: &str, spec: BackendSpec) -> Result<BackendStatus, Error> {
        self.change(|reply| Request::AddBackend(service.to_owned(), spec, reply)).await
    }

    /// Changes a backend.
    pub async fn set_backend(&self, service: &str, backend: &str, patch: BackendPatch) -> Result<BackendStatus, Error> {
        self.change(|reply| Request::SetBackend(service.to_owned(), backend.to_owned(), patch, reply)).await
    }

    /// Drains a backend, then deletes it. Returns at once; `now` cuts its flows. To wait for the end, [`Handle::wait`]
    /// for [`WaitFor::Drained`], which also answers for a backend just deleted.
    pub async fn remove_backend(&self, service: &str, backend: &str, now: bool) -> Result<(), Error> {
        self.change(|reply| Request::RemoveBackend(service.to_owned(), backend.to_owned(), now, reply)).await
    }

    /// A service's backends.
    pub async fn backends(&self, service: &str) -> Result<Vec<BackendStatus>, Error> {
        let status = self.status(Some(service)).await?;
        Ok(status.services.into_iter().flat_map(|service| service.backends).collect())
    }

    /// Starts a drain, or changes the one that runs. Once this returns no new flow goes to the backend.
    pub async fn drain(&self, service: &str, backend: &str, request: DrainRequest) -> Result<DrainStarted, Error> {
        self.change(|reply| Request::Drain(service.to_owned(), backend.to_owned(), request, reply)).await
    }

    /// Drains the backends with this address in every service, or, when a guard refuses one of them, none.
    pub async fn drain_address(&self, address: IpAddr, request: DrainRequest) -> Result<Vec<DrainStarted>, Error> {
        self.change(|reply| Request::DrainAddress(address, request, reply)).await
    }

    /// Cancels a drain, or brings a drained backend back.
    pub async fn activate(&self, service: &str, backend: &str) -> Result<BackendStatus, Error> {
        self.change(|reply| Request::Activate(service.to_owned(), backend.to_owned(), reply)).await
    }

    /// Does so for the backends with this address in every service that is not being removed; all backends there, each with its
    /// service's name.
    pub async fn activate_address(&self, address: IpAddr) -> Result<Vec<(String, BackendStatus)>, Error> {
        self.change(|reply| Request::ActivateAddress(address, reply)).await
    }

    /// Answers a drain whose end is held. Once this returns, a heartbeat is on disk, and anything else has ended it.
    pub async fn answer_hold(&self, service: &str, backend: &str, answer: HoldAnswer) -> Result<BackendStatus, Error> {
        self.change(|reply| Request::AnswerHold(service.to_owned(), backend.to_owned(), answer, reply)).await
    }

    /// Waits until the latest drain is over, or until the backend is active. Answers at once when that is so already.
    /// Nothing but the waiting ends with `timeout`.
    pub async fn wait(
        &self,
        service: &str,
        backend: &str,
        what: WaitFor,
        timeout: Option<Duration>,
    ) -> Result<WaitResult, Error> {
        let waiting = self.ask(|reply| Request::Wait(service.to_owned(), backend.to_owned(), what, reply));
        let Some(timeout) = timeout else {
            return waiting.await;
        };
        tokio::time::timeout(timeout, waiting).await.unwrap_or_else(|_| {
            let goal = match what {
                WaitFor::Drained => "drained",
                WaitFor::Active => "active",
            };
            Err(Error::Timeout(format!(
                "{service}/{backend} is not {goal} after {}: wait longer, or see 'ebb status {service}'",
                crate::control::duration::format(timeout)
            )))
        })
    }

    /// Makes the services and backends what `wanted` says; what it lacks is drained and then removed.
    pub async fn apply(&self, wanted: Vec<WantedService>, dry_run: bool) -> Result<ApplyReport, Error> {
        self.change(|reply| Request::Apply(wanted, dry_run, reply)).await
    }

    /// Everything, or one service.
    pub async fn status(&self, service: Option<&str>) -> Result<Status, Error> {
        self.ask(|reply| Request::Status(service.map(str::to_owned), reply)).await
    }

    /// Lists flows.
    pub async fn flows(&self, request: FlowsRequest) -> Result<Vec<FlowView>, Error> {
        self.ask(|reply| Request::Flows(request, reply)).await
    }

    /// What delay a service's drains want.
    pub async fn advice(&self, service: &str) -> Result<Advice, Error> {
        self.ask(|reply| Request::Advice(service.to_owned(), reply)).await
    }

    /// The packet path's counts.
    pub async fn counters(&self) -> Result<CountersView, Error> {
        self.ask(Request::Counters).await
    }

    /// Events with an id above `after` that are still remembered, and all that follow, without a gap between them.
    pub async fn events(&self, after: u64) -> Result<EventStream, Error> {
        self.ask(|reply| Request::Events(after, reply)).await
    }

    /// The backends to be checked, kept up to date.
    pub fn check_targets(&self) -> watch::Receiver<Arc<Vec<CheckTarget>>> {
        self.targets.clone()
    }

    /// Tells the engine what a check found. A backend that has gone meanwhile is passed over.
    pub async fn report_check(&self, report: CheckReport) {
        // The engine is gone only when the daemon ends, and then nobody needs the report.
        let _ = self.requests.send(Request::Check(report)).await;
    }

    async fn change<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        self.ask(|reply| match &self.only_if {
            None => request(reply),
            Some((scope, known)) => Request::If(scope.clone(), known.clone(), Box::new(request(reply))),
        })
        .await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Error::Internal("the daemon is stopping: start it again and repeat the command".to_owned());
        self.requests.send(request(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

pub(super) fn no_service(service: &str) -> Error {
    Error::NotFound(format!("there is no service '{service}': 'ebb service list' shows those there are"))
}
