//! The operations on the server's side: each takes its request apart, asks the engine and wraps the answer.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Json as Answer, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    error::{ApiError, Kind},
    events,
    extract::{Json, Path, Query},
    guard::{Change, Tagged, tagged},
    openapi::{self, Api},
    rights::{self, Needs},
    wire::{
        ApplyQuery, BackendView, Backends, Drains, Events, EventsQuery, Flows, HostBackends, Removal, RemoveQuery,
        ServiceView, Services, StatusQuery, WaitQuery, Wanted,
    },
};
use crate::{
    control::{
        Error,
        advisor::Advice,
        hold::HoldRequest,
        model::{
            ApplyReport, BackendPatch, BackendSpec, CountersView, DrainRequest, DrainStarted, FlowsRequest,
            ServicePatch, ServiceSpec, Status, WaitResult,
        },
        revision::Scope,
    },
    daemon::Handle,
};

type Result<T> = std::result::Result<T, ApiError>;

/// Flows listed unless another number is asked for.
const FLOWS_LISTED: usize = 1_000;
/// The most flows one request lists.
const FLOWS_LIMIT: usize = 1_000_000;

/// All operations on this engine, and the document that describes them.
pub fn router(engine: Handle) -> Router {
    served(engine).0
}

/// The operations of both routers, each for those remote callers who have the right to it; `more` is for readers to look at and for
/// admins to change.
pub fn remote_router(engine: Handle, more: Router) -> Router {
    let (router, needs) = served(engine.clone());
    rights::guarded(router.merge(more), needs, engine)
}

fn served(engine: Handle) -> (Router, Needs) {
    let (router, document, needs) = operations().finish();
    let document = Arc::new(document);
    let router = router
        .route("/v1/openapi.json", get(move || async move { Answer((*document).clone()) }))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(engine);
    (router, needs)
}

fn operations() -> Api<Handle> {
    let api = Api::new();
    host_operations(backend_operations(service_operations(api)))
        .operation(
            &openapi::get("/v1/status", "What services, backends and the datapath are doing")
                .query::<StatusQuery>()
                .answer::<Status>(),
            status,
        )
        .operation(
            &openapi::get("/v1/flows", "The flows being tracked").query::<FlowsRequest>().answer::<Flows>(),
            flows,
        )
        .operation(&openapi::get("/v1/counters", "Packets by what became of them").answer::<CountersView>(), counters)
        .operation(
            &openapi::get("/v1/events", "What happened; with follow=true also what happens, as server-sent events")
                .query::<EventsQuery>()
                .answer::<Events>()
                .streams(),
            list_events,
        )
        .operation(
            &openapi::post(
                "/v1/apply",
                "Make the services exactly these; what is not among them is drained and removed",
            )
            .query::<ApplyQuery>()
            .body::<Wanted>()
            .answer::<ApplyReport>(),
            apply,
        )
}

fn host_operations(api: Api<Handle>) -> Api<Handle> {
    api.operation(
        &openapi::get("/v1/hosts/{address}", "A host's backends in every service").answer::<HostBackends>().own(),
        host,
    )
    .operation(
        &openapi::post("/v1/hosts/{address}/drain", "Drain a host's backends in every service; all of them or none")
            .body::<DrainRequest>()
            .answer::<Drains>()
            .own(),
        drain_host,
    )
    .operation(
        &openapi::post(
            "/v1/hosts/{address}/activate",
            "Cancel the drains of a host's backends in every service that is not being removed, or bring them back",
        )
        .answer::<HostBackends>()
        .own(),
        activate_host,
    )
}

fn service_operations(api: Api<Handle>) -> Api<Handle> {
    let (all, one) = ("/v1/services", "/v1/services/{service}");
    api.operation(
        &openapi::get(all, "All services with their settings and backends").answer::<Services>().tagged(),
        services,
    )
    .operation(
        &openapi::post(all, "Add a service").body::<ServiceSpec>().answer::<ServiceSpec>().creates(),
        add_service,
    )
    .operation(
        &openapi::get(one, "One service with its settings and backends").answer::<ServiceView>().tagged(),
        service,
    )
    .operation(
        &openapi::get("/v1/services/{service}/advice", "What delay its drains want, from how long its flows last")
            .answer::<Advice>(),
        advice,
    )
    .operation(
        &openapi::patch(one, "Change a service's settings; a missing field stays as it is")
            .body::<ServicePatch>()
            .answer::<ServiceSpec>(),
        set_service,
    )
    .operation(
        &openapi::delete(one, "Drain a service's backends, then remove it").query::<RemoveQuery>().answer::<Removal>(),
        remove_service,
    )
}

fn backend_operations(api: Api<Handle>) -> Api<Handle> {
    let all = "/v1/services/{service}/backends";
    let one = "/v1/services/{service}/backends/{backend}";
    api.operation(&openapi::get(all, "A service's backends").answer::<Backends>().tagged(), backends)
        .operation(
            &openapi::post(all, "Add a backend").body::<BackendSpec>().answer::<BackendView>().creates(),
            add_backend,
        )
        .operation(&openapi::get(one, "One backend").answer::<BackendView>().tagged().own(), backend)
        .operation(
            &openapi::patch(one, "Change a backend; a missing field stays as it is")
                .body::<BackendPatch>()
                .answer::<BackendView>(),
            set_backend,
        )
        .operation(
            &openapi::delete(one, "Drain a backend, then remove it").query::<RemoveQuery>().answer::<Removal>(),
            remove_backend,
        )
        .operation(
            &openapi::post(
                "/v1/services/{service}/backends/{backend}/drain",
                "Start a drain, or change the one that runs; once answered, no new flow goes to the backend",
            )
            .body::<DrainRequest>()
            .answer::<DrainStarted>()
            .own(),
            drain,
        )
        .operation(
            &openapi::post(
                "/v1/services/{service}/backends/{backend}/activate",
                "Cancel a drain, or bring a drained backend back",
            )
            .answer::<BackendView>()
            .own(),
            activate,
        )
        .operation(
            &openapi::post(
                "/v1/services/{service}/backends/{backend}/hold",
                "Answer a drain whose end is held: let it end, or have it wait on",
            )
            .body::<HoldRequest>()
            .answer::<BackendView>()
            .own(),
            answer_hold,
        )
        .operation(
            &openapi::get(
                "/v1/services/{service}/backends/{backend}/wait",
                "Answer once the latest drain is over, or the backend active",
            )
            .query::<WaitQuery>()
            .answer::<WaitResult>()
            .own(),
            wait,
        )
}

async fn status(State(engine): State<Handle>, Query(query): Query<StatusQuery>) -> Result<Answer<Status>> {
    Ok(Answer(engine.status(query.service.as_deref()).await?))
}

async fn services(State(engine): State<Handle>) -> Result<Tagged<Services>> {
    let revision = engine.revision(Scope::All).await?;
    let settings = engine.services().await?;
    let mut backends = engine.status(None).await?.services;
    // A service removed between the two looks is gone; one added between them comes with the next.
    let services = settings
        .into_iter()
        .filter_map(|settings| {
            let at = backends.iter().position(|b| b.name == settings.name)?;
            let backends = backends.swap_remove(at).backends;
            Some(ServiceView { revision: String::new(), settings, backends })
        })
        .collect();
    Ok(tagged(&revision, Services { revision: revision.clone(), services }))
}

async fn service(State(engine): State<Handle>, Path(service): Path<String>) -> Result<Tagged<ServiceView>> {
    let revision = engine.revision(Scope::Service(service.clone())).await?;
    let (settings, backends) = (engine.service(&service).await?, engine.backends(&service).await?);
    Ok(tagged(&revision, ServiceView { revision: revision.clone(), settings, backends }))
}

async fn add_service(
    Change(engine): Change,
    Json(spec): Json<ServiceSpec>,
) -> Result<(StatusCode, Answer<ServiceSpec>)> {
    let added = engine.add_service(spec).await?;
    Ok((StatusCode::CREATED, Answer(added)))
}

async fn advice(State(engine): State<Handle>, Path(service): Path<String>) -> Result<Answer<Advice>> {
    Ok(Answer(engine.advice(&service).await?))
}

async fn set_service(
    Change(engine): Change,
    Path(service): Path<String>,
    Json(patch): Json<ServicePatch>,
) -> Result<Answer<ServiceSpec>> {
    Ok(Answer(engine.set_service(&service, patch).await?))
}

async fn remove_service(
    Change(engine): Change,
    Path(service): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<Answer<Removal>> {
    engine.remove_service(&service, query.now).await?;
    let left = engine.services().await?;
    Ok(Answer(Removal { removed: left.iter().all(|spec| spec.name != service), service, backend: None }))
}

async fn backends(State(engine): State<Handle>, Path(service): Path<String>) -> Result<Tagged<Backends>> {
    let revision = engine.revision(Scope::Service(service.clone())).await?;
    let backends = engine.backends(&service).await?;
    Ok(tagged(&revision, Backends { backends }))
}

async fn backend(
    State(engine): State<Handle>,
    Path((service, backend)): Path<(String, String)>,
) -> Result<Tagged<BackendView>> {
    let revision = engine.revision(Scope::Service(service.clone())).await?;
    let found = engine.backends(&service).await?.into_iter().find(|candidate| candidate.name == backend);
    match found {
        Some(backend) => Ok(tagged(&revision, BackendView { service, backend })),
        None => Err(ApiError::new(
            Kind::NotFound,
            format!("service '{service}' has no backend '{backend}': 'ebb backend list {service}' shows those it has"),
        )),
    }
}

async fn add_backend(
    Change(engine): Change,
    Path(service): Path<String>,
    Json(spec): Json<BackendSpec>,
) -> Result<(StatusCode, Answer<BackendView>)> {
    let backend = engine.add_backend(&service, spec).await?;
    Ok((StatusCode::CREATED, Answer(BackendView { service, backend })))
}

async fn set_backend(
    Change(engine): Change,
    Path((service, backend)): Path<(String, String)>,
    Json(patch): Json<BackendPatch>,
) -> Result<Answer<BackendView>> {
    let backend = engine.set_backend(&service, &backend, patch).await?;
    Ok(Answer(BackendView { service, backend }))
}

async fn remove_backend(
    Change(engine): Change,
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
    Change(engine): Change,
    Path((service, backend)): Path<(String, String)>,
    Json(request): Json<DrainRequest>,
) -> Result<Answer<DrainStarted>> {
    Ok(Answer(engine.drain(&service, &backend, request).await?))
}

async fn drain_host(
    Change(engine): Change,
    Path(address): Path<String>,
    Json(request): Json<DrainRequest>,
) -> Result<Answer<Drains>> {
    let drains = engine.drain_address(host_address(&address)?, request).await?;
    Ok(Answer(Drains { drains }))
}

async fn host(State(engine): State<Handle>, Path(address): Path<String>) -> Result<Answer<HostBackends>> {
    Ok(Answer(backends_at(&engine, host_address(&address)?).await?))
}

async fn activate_host(Change(engine): Change, Path(address): Path<String>) -> Result<Answer<HostBackends>> {
    let backends = engine.activate_address(host_address(&address)?).await?;
    let backends = backends.into_iter().map(|(service, backend)| BackendView { service, backend }).collect();
    Ok(Answer(HostBackends { backends }))
}

fn host_address(segment: &str) -> Result<IpAddr> {
    segment.parse().map_err(|_| {
        ApiError::invalid(format!("the path: '{segment}' is not a host's address: write 10.0.0.11 or fd00::b"))
    })
}

async fn backends_at(engine: &Handle, address: IpAddr) -> Result<HostBackends> {
    let status = engine.status(None).await?;
    let backends = status.services.into_iter().flat_map(|service| {
        let own = service.backends.into_iter().filter(|backend| backend.address.ip == address).collect::<Vec<_>>();
        own.into_iter().map(move |backend| BackendView { service: service.name.clone(), backend })
    });
    let backends: Vec<BackendView> = backends.collect();
    if backends.is_empty() {
        let message = format!("no service has a backend at {address}: 'ebb status' shows those there are");
        return Err(ApiError::new(Kind::NotFound, message));
    }
    Ok(HostBackends { backends })
}

async fn activate(
    Change(engine): Change,
    Path((service, backend)): Path<(String, String)>,
) -> Result<Answer<BackendView>> {
    let backend = engine.activate(&service, &backend).await?;
    Ok(Answer(BackendView { service, backend }))
}

async fn answer_hold(
    Change(engine): Change,
    Path((service, backend)): Path<(String, String)>,
    Json(request): Json<HoldRequest>,
) -> Result<Answer<BackendView>> {
    let backend = engine.answer_hold(&service, &backend, request.answer).await?;
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
    let limit = request.limit.unwrap_or(FLOWS_LISTED).min(FLOWS_LIMIT);
    request.limit = Some(limit);
    let flows = engine.flows(request).await?;
    Ok(Answer(Flows { truncated: flows.len() >= limit, flows }))
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
    let missed = happened.first().and_then(|first| events::missed(after, first));
    let events = missed.into_iter().chain(happened.iter().map(|event| (**event).clone())).collect();
    Ok(Answer(Events { events }).into_response())
}

async fn apply(
    Change(engine): Change,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_describes_the_operations() {
        let (_, document, _) = operations().finish();
        let drain = &document["paths"]["/v1/services/{service}/backends/{backend}/drain"]["post"];
        assert_eq!(drain["parameters"][1]["name"], "backend");
        let body = &drain["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(body["additionalProperties"], false, "unknown fields are refused: {body}");
        let properties = body["properties"].as_object().expect("an object");
        assert_eq!(properties.keys().collect::<Vec<_>>(), ["force", "on_timeout", "timeout_s"]);
        let status = &document["components"]["schemas"]["BackendStatus"]["properties"];
        assert!(status["active_flows"].is_object() && status["last_drain"].is_object(), "{status}");
        let query = &document["paths"]["/v1/events"]["get"]["parameters"];
        assert_eq!(query.as_array().map(Vec::len), Some(2), "{query}");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let (_, document, _) = operations().finish();
        let text = document.to_string();
        let mut seen = 0;
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().expect("a string ends");
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            seen += 1;
        }
        assert!(seen > 20, "{seen} references");
    }
}
