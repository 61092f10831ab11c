//! The operations on the server's side: each takes its request apart, asks the engine and wraps the answer.

use std::net::IpAddr;

use axum::{
    Json as Answer, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};

use super::{
    error::{ApiError, Kind},
    events,
    extract::{Json, Path, Query},
    wire::{
        ApplyQuery, BackendView, Backends, Drains, Events, EventsQuery, Flows, Removal, RemoveQuery, ServiceView,
        Services, StatusQuery, WaitQuery, Wanted,
    },
};
use crate::{
    control::{
        Error,
        model::{
            ApplyReport, BackendPatch, BackendSpec, CountersView, DrainRequest, DrainStarted, FlowsRequest,
            ServicePatch, ServiceSpec, Status, WaitResult,
        },
    },
    daemon::Handle,
};

type Result<T> = std::result::Result<T, ApiError>;

/// The most flows one request lists.
const FLOWS_LIMIT: usize = 1_000_000;

/// All operations on this engine.
pub fn router(engine: Handle) -> Router {
    let backend = "/v1/services/{service}/backends/{backend}";
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services).post(add_service))
        .route("/v1/services/{service}", get(service).patch(set_service).delete(remove_service))
        .route("/v1/services/{service}/backends", get(backends).post(add_backend))
        .route(backend, get(self::backend).patch(set_backend).delete(remove_backend))
        .route(&format!("{backend}/drain"), post(drain))
        .route(&format!("{backend}/activate"), post(activate))
        .route(&format!("{backend}/wait"), get(wait))
        .route("/v1/hosts/{address}/drain", post(drain_host))
        .route("/v1/flows", get(flows))
        .route("/v1/counters", get(counters))
        .route("/v1/events", get(list_events))
        .route("/v1/apply", post(apply))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(engine)
}

async fn status(State(engine): State<Handle>, Query(query): Query<StatusQuery>) -> Result<Answer<Status>> {
    Ok(Answer(engine.status(query.service.as_deref()).await?))
}

async fn services(State(engine): State<Handle>) -> Result<Answer<Services>> {
    let settings = engine.services().await?;
    let mut backends = engine.status(None).await?.services;
    // A service removed between the two looks is gone; one added between them comes with the next.
    let services = settings
        .into_iter()
        .filter_map(|settings| {
            let at = backends.iter().position(|b| b.name == settings.name)?;
            let backends = backends.swap_remove(at).backends;
            Some(ServiceView { settings, backends })
        })
        .collect();
    Ok(Answer(Services { services }))
}

async fn service(State(engine): State<Handle>, Path(service): Path<String>) -> Result<Answer<ServiceView>> {
    Ok(Answer(ServiceView { settings: engine.service(&service).await?, backends: engine.backends(&service).await? }))
}

async fn add_service(
    State(engine): State<Handle>,
    Json(spec): Json<ServiceSpec>,
) -> Result<(StatusCode, Answer<ServiceSpec>)> {
    let added = engine.add_service(spec).await?;
    Ok((StatusCode::CREATED, Answer(added)))
}

async fn set_service(
    State(engine): State<Handle>,
    Path(service): Path<String>,
    Json(patch): Json<ServicePatch>,
) -> Result<Answer<ServiceSpec>> {
    Ok(Answer(engine.set_service(&service, patch).await?))
}

async fn remove_service(
    State(engine): State<Handle>,
    Path(service): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<Answer<Removal>> {
    engine.remove_service(&service, query.now).await?;
    let left = engine.services().await?;
    Ok(Answer(Removal { removed: left.iter().all(|spec| spec.name != service), service, backend: None }))
}

async fn backends(State(engine): State<Handle>, Path(service): Path<String>) -> Result<Answer<Backends>> {
    let backends = engine.backends(&service).await?;
    Ok(Answer(Backends { backends }))
}

async fn backend(
    State(engine): State<Handle>,
    Path((service, backend)): Path<(String, String)>,
) -> Result<Answer<BackendView>> {
    let found = engine.backends(&service).await?.into_iter().find(|candidate| candidate.name == backend);
    match found {
        Some(backend) => Ok(Answer(BackendView { service, backend })),
        None => Err(ApiError::new(
            Kind::NotFound,
            format!("service '{service}' has no backend '{backend}': 'ebb backend list {service}' shows those it has"),
        )),
    }
}

async fn add_backend(
    State(engine): State<Handle>,
    Path(service): Path<String>,
    Json(spec): Json<BackendSpec>,
) -> Result<(StatusCode, Answer<BackendView>)> {
    let backend = engine.add_backend(&service, spec).await?;
    Ok((StatusCode::CREATED, Answer(BackendView { service, backend })))
}

async fn set_backend(
    State(engine): State<Handle>,
    Path((service, backend)): Path<(String, String)>,
    Json(patch): Json<BackendPatch>,
) -> Result<Answer<BackendView>> {
    let backend = engine.set_backend(&service, &backend, patch).await?;
    Ok(Answer(BackendView { service, backend }))
}

async fn remove_backend(
    State(engine): State<Handle>,
    Path((service, backend)): Path<(String, String)>,
    Query(query): Query<RemoveQuery>,
) -> Result<Answer<Removal>> {
    engine.remove_backend(&service, &backend, query.now).await?;
    let left = match engine.backends(&service).await {
        Err(Error::NotFound(_)) => Vec::new(),
        left => left?,
    };
    Ok(Answer(Removal { removed: left.iter().all(|status| status.name != backend), service, backend: Some(backend) }))
}

async fn drain(
    State(engine): State<Handle>,
    Path((service, backend)): Path<(String, String)>,
    Json(request): Json<DrainRequest>,
) -> Result<Answer<DrainStarted>> {
    Ok(Answer(engine.drain(&service, &backend, request).await?))
}

async fn drain_host(
    State(engine): State<Handle>,
    Path(address): Path<String>,
    Json(request): Json<DrainRequest>,
) -> Result<Answer<Drains>> {
    let address: IpAddr = address.parse().map_err(|_| {
        ApiError::invalid(format!("the path: '{address}' is not a host's address: write 10.0.0.11 or fd00::b"))
    })?;
    let drains = engine.drain_address(address, request).await?;
    Ok(Answer(Drains { drains }))
}

async fn activate(
    State(engine): State<Handle>,
    Path((service, backend)): Path<(String, String)>,
) -> Result<Answer<BackendView>> {
    let backend = engine.activate(&service, &backend).await?;
    Ok(Answer(BackendView { service, backend }))
}

async fn wait(
    State(engine): State<Handle>,
    Path((service, backend)): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
) -> Result<Answer<WaitResult>> {
    let timeout = query.timeout_s.map(|timeout| timeout.0);
    let waited = engine.wait(&service, &backend, query.goal, timeout).await?;
    Ok(Answer(waited))
}

async fn flows(State(engine): State<Handle>, Query(mut request): Query<FlowsRequest>) -> Result<Answer<Flows>> {
    request.limit = request.limit.map(|limit| limit.min(FLOWS_LIMIT));
    let flows = engine.flows(request).await?;
    Ok(Answer(Flows { flows }))
}

async fn counters(State(engine): State<Handle>) -> Result<Answer<CountersView>> {
    Ok(Answer(engine.counters().await?))
}

async fn list_events(
    State(engine): State<Handle>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let after = query.after.or_else(|| events::last_seen(&headers));
    let after = after.unwrap_or(0);
    if query.follow {
        return Ok(events::follow(engine, after).await?.into_response());
    }
    let happened = engine.events(after).await?.backlog;
    let events = happened.iter().map(|event| (**event).clone()).collect();
    Ok(Answer(Events { events }).into_response())
}

async fn apply(
    State(engine): State<Handle>,
    Query(query): Query<ApplyQuery>,
    Json(wanted): Json<Wanted>,
) -> Result<Answer<ApplyReport>> {
    let report = engine.apply(wanted.services, query.dry_run).await?;
    Ok(Answer(report))
}

async fn no_such_path() -> ApiError {
    ApiError::new(Kind::NotFound, "no such path; see /v1/openapi.json")
}

async fn no_such_method() -> ApiError {
    ApiError::invalid("this path does not take that method; see /v1/openapi.json")
        .with_status(StatusCode::METHOD_NOT_ALLOWED)
}
