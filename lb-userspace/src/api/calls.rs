//! Every operation as a method of the client: the one place on its side that knows the paths.

use std::{net::IpAddr, time::Duration};

use hyper::Method;
use serde::Serialize;

use super::{
    DaemonInfo, Stopping,
    client::{Client, ClientError, EventStream},
    wire::{BackendView, Backends, Drains, Events, Flows, HostBackends, Removal, ServiceView, Services, Wanted},
};
use crate::control::advisor::Advice;
use crate::control::hold::{HoldAnswer, HoldRequest};
use crate::control::model::{
    ApplyReport, BackendPatch, BackendSpec, DrainRequest, DrainStarted, ServicePatch, ServiceSpec, Status, WaitFor,
    WaitResult,
};

type Answer<T> = Result<T, ClientError>;

const NOTHING: Option<&()> = None;

impl Client {
    /// Which daemon answers here.
    pub async fn daemon(&self) -> Answer<DaemonInfo> {
        self.get("/v1/daemon").await
    }

    /// Has the daemon end. The datapath forwards on.
    pub async fn stop_daemon(&self) -> Answer<Stopping> {
        self.call(Method::POST, "/v1/daemon/stop", NOTHING).await
    }

    /// Everything, or one service.
    pub async fn status(&self, service: Option<&str>) -> Answer<Status> {
        let query = service.map_or_else(String::new, |service| format!("?service={service}"));
        self.get(&format!("/v1/status{query}")).await
    }

    /// What delay a service's drains want.
    pub async fn advice(&self, service: &str) -> Answer<Advice> {
        self.get(&format!("/v1/services/{service}/advice")).await
    }

    /// All services.
    pub async fn services(&self) -> Answer<Services> {
        self.get("/v1/services").await
    }

    /// One service.
    pub async fn service(&self, service: &str) -> Answer<ServiceView> {
        self.get(&service_path(service)).await
    }

    /// Adds a service.
    pub async fn add_service(&self, spec: &(impl Serialize + Sync)) -> Answer<ServiceSpec> {
        self.call(Method::POST, "/v1/services", Some(spec)).await
    }

    /// Changes a service's settings.
    pub async fn set_service(&self, service: &str, patch: &ServicePatch) -> Answer<ServiceSpec> {
        self.call(Method::PATCH, &service_path(service), Some(patch)).await
    }

    /// Drains a service's backends, then removes it; or cuts and removes it now.
    pub async fn remove_service(&self, service: &str, now: bool) -> Answer<Removal> {
        let path = format!("{}?now={now}", service_path(service));
        self.call(Method::DELETE, &path, NOTHING).await
    }

    /// The backends of a service.
    pub async fn backends(&self, service: &str) -> Answer<Backends> {
        self.get(&format!("{}/backends", service_path(service))).await
    }

    /// One backend.
    pub async fn backend(&self, service: &str, backend: &str) -> Answer<BackendView> {
        self.get(&backend_path(service, backend)).await
    }

    /// Adds a backend.
    pub async fn add_backend(&self, service: &str, spec: &BackendSpec) -> Answer<BackendView> {
        let path = format!("{}/backends", service_path(service));
        self.call(Method::POST, &path, Some(spec)).await
    }

    /// Changes a backend's settings.
    pub async fn set_backend(&self, service: &str, backend: &str, patch: &BackendPatch) -> Answer<BackendView> {
        self.call(Method::PATCH, &backend_path(service, backend), Some(patch)).await
    }

    /// Drains a backend, then removes it; or cuts and removes it now.
    pub async fn remove_backend(&self, service: &str, backend: &str, now: bool) -> Answer<Removal> {
        let path = format!("{}?now={now}", backend_path(service, backend));
        self.call(Method::DELETE, &path, NOTHING).await
    }

    /// Starts or changes a drain.
    pub async fn drain(&self, service: &str, backend: &str, request: &DrainRequest) -> Answer<DrainStarted> {
        self.post(&format!("{}/drain", backend_path(service, backend)), request).await
    }

    /// Drains a host's backends in every service.
    pub async fn drain_host(&self, host: IpAddr, request: &DrainRequest) -> Answer<Drains> {
        self.post(&format!("/v1/hosts/{host}/drain"), request).await
    }

    /// Cancels the drains of a host's backends in every service, or brings them back.
    pub async fn activate_host(&self, host: IpAddr) -> Answer<HostBackends> {
        self.call(Method::POST, &format!("/v1/hosts/{host}/activate"), NOTHING).await
    }

    /// Cancels a drain, or brings a drained backend back.
    pub async fn activate(&self, service: &str, backend: &str) -> Answer<BackendView> {
        let path = format!("{}/activate", backend_path(service, backend));
        self.call(Method::POST, &path, NOTHING).await
    }

    /// Answers a drain whose end is held.
    pub async fn answer_hold(&self, service: &str, backend: &str, answer: HoldAnswer) -> Answer<BackendView> {
        self.post(&format!("{}/hold", backend_path(service, backend)), &HoldRequest { answer }).await
    }

    /// Answers once the goal is reached, or with an error after the timeout.
    pub async fn wait(
        &self,
        service: &str,
        backend: &str,
        goal: WaitFor,
        timeout: Option<Duration>,
    ) -> Answer<WaitResult> {
        let goal = match goal {
            WaitFor::Drained => "drained",
            WaitFor::Active => "active",
        };
        let path = backend_path(service, backend);
        let timeout = timeout.map_or_else(String::new, |timeout| format!("&timeout_s={}", timeout.as_secs_f64()));
        self.get(&format!("{path}/wait?for={goal}{timeout}")).await
    }

    /// The tracked flows, of one service or backend if named.
    pub async fn flows(&self, scope: Option<(&str, Option<&str>)>, limit: u32) -> Answer<Flows> {
        let scope = match scope {
            None => String::new(),
            Some((service, None)) => format!("&service={service}"),
            Some((service, Some(backend))) => format!("&service={service}&backend={backend}"),
        };
        self.get(&format!("/v1/flows?limit={limit}{scope}")).await
    }

    /// What happened lately.
    pub async fn events(&self) -> Answer<Events> {
        self.get("/v1/events").await
    }

    /// What happens, as it happens; with what came after `after`, if that is given.
    pub async fn follow_events(&self, after: Option<u64>) -> Answer<EventStream> {
        let after = after.map_or_else(String::new, |id| format!("&after={id}"));
        self.follow(&format!("/v1/events?follow=true{after}")).await
    }

    /// Makes the services exactly these, or tells what that would change.
    pub async fn apply(&self, wanted: &Wanted, dry_run: bool) -> Answer<ApplyReport> {
        self.post(&format!("/v1/apply?dry_run={dry_run}"), wanted).await
    }

    async fn post<T: serde::de::DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Answer<T> {
        self.call(Method::POST, path, Some(body)).await
    }
}

/// Names have been checked to need no escaping in a path.
fn service_path(service: &str) -> String {
    format!("/v1/services/{service}")
}

fn backend_path(service: &str, backend: &str) -> String {
    format!("/v1/services/{service}/backends/{backend}")
}
