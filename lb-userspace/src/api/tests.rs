//! The server as a caller meets it, on an engine with a fake datapath.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use super::{
    client::Client,
    router,
    serve::serve,
    socket::{Access, Socket},
};
use crate::{control::model::WaitFor, daemon::fake::Rig};

pub(super) async fn ask(router: &Router, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method.parse::<Method>().expect("a method"))
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_owned()))
        .expect("a request");
    let answer = router.clone().oneshot(request).await.expect("routers do not fail");
    let status = answer.status();
    let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

const WEB: &str = r#"{"name":"web","vip":"10.0.0.100:80/tcp","drain_timeout_s":60}"#;

/// A service with two backends that are active.
pub(super) async fn web(router: &Router) {
    assert_eq!(ask(router, "POST", "/v1/services", WEB).await.0, StatusCode::CREATED);
    for (name, address) in [("b1", "10.0.0.11"), ("b2", "10.0.0.12")] {
        let body = json!({ "name": name, "address": address }).to_string();
        let (status, view) = ask(router, "POST", "/v1/services/web/backends", &body).await;
        assert_eq!((status, &view["service"]), (StatusCode::CREATED, &json!("web")), "{view}");
        let path = format!("/v1/services/web/backends/{name}/wait?for=active&timeout_s=5");
        assert_eq!(ask(router, "GET", &path, "").await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_backend_is_drained_and_comes_back() {
    let rig = Rig::new();
    let router = router(rig.handle.clone());
    web(&router).await;
    let (status, drain) = ask(&router, "POST", "/v1/services/web/backends/b1/drain", r#"{"timeout_s":"1m"}"#).await;
    assert_eq!(status, StatusCode::OK, "{drain}");
    let (status, waited) = ask(&router, "GET", "/v1/services/web/backends/b1/wait?timeout_s=5", "").await;
    assert_eq!((status, &waited["last_drain"]["outcome"]), (StatusCode::OK, &json!("completed")), "{waited}");
    let (_, view) = ask(&router, "POST", "/v1/services/web/backends/b1/activate", "").await;
    assert_eq!(view["state"], "active", "{view}");
    let (_, removal) = ask(&router, "DELETE", "/v1/services/web/backends/b1?now=true", "").await;
    assert_eq!(removal, json!({ "service": "web", "backend": "b1", "removed": true }));
    let (_, list) = ask(&router, "GET", "/v1/services", "").await;
    assert_eq!(list["services"][0]["backends"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list["services"][0]["drain_timeout_s"], 60, "{list}");
}

#[tokio::test]
async fn refusals_have_one_shape() {
    let rig = Rig::new();
    let router = router(rig.handle.clone());
    web(&router).await;
    for (method, path, body, status, kind) in [
        ("GET", "/v1/services/nope", "", 404, "not_found"),
        ("GET", "/v1/services/web/backends/nope", "", 404, "not_found"),
        ("POST", "/v1/services/web/backends/nope/drain", "{}", 404, "not_found"),
        ("GET", "/v1/status?service=nope", "", 404, "not_found"),
        ("GET", "/nope", "", 404, "not_found"),
        ("PUT", "/v1/status", "", 405, "invalid"),
        ("POST", "/v1/services", WEB, 409, "conflict"),
        ("POST", "/v1/services", "{{{", 400, "invalid"),
        ("POST", "/v1/services", "", 400, "invalid"),
        ("POST", "/v1/services", r#"{"name":"x","vip":"10.0.0.1:80/tcp","colour":"red"}"#, 400, "invalid"),
        ("POST", "/v1/services", r#"{"name":"x","vip":"10.0.0.1:80/icmp"}"#, 400, "invalid"),
        ("POST", "/v1/services", r#"{"name":"a/b","vip":"10.0.0.1:80/tcp"}"#, 400, "invalid"),
        ("PATCH", "/v1/services/web", r#"{"drain_timeout_s":-1}"#, 400, "invalid"),
        ("PATCH", "/v1/services/web", r#"{"drain_timeout_s":1e300}"#, 400, "invalid"),
        ("PATCH", "/v1/services/web/backends/b1", r#"{"weight":-1}"#, 400, "invalid"),
        ("POST", "/v1/services/web/backends/b1/drain", r#"{"timeout_s":"soon"}"#, 400, "invalid"),
        ("POST", "/v1/hosts/not-an-address/drain", "{}", 400, "invalid"),
        ("POST", "/v1/hosts/10.9.9.9/drain", "{}", 404, "not_found"),
        ("GET", "/v1/services/web/backends/b1/wait?timeout_s=0.01", "", 408, "timeout"),
        ("GET", "/v1/services/web/backends/b1/wait?for=godot", "", 400, "invalid"),
        ("GET", "/v1/flows?limit=many", "", 400, "invalid"),
        ("GET", "/v1/services/%ff", "", 400, "invalid"),
        ("POST", "/v1/apply", r#"{"services":[{"service":{},"backends":[]}]}"#, 400, "invalid"),
    ] {
        let (found, answer) = ask(&router, method, path, body).await;
        let error = &answer["error"];
        assert_eq!((found.as_u16(), &error["kind"]), (status, &json!(kind)), "{method} {path} {body}: {answer}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
    }
}

#[tokio::test]
async fn a_body_without_end_or_of_another_kind_is_refused() {
    let rig = Rig::new();
    let router = router(rig.handle.clone());
    let long = |size: usize| format!(r#"{{"timeout_s":"{}"}}"#, "x".repeat(size));
    for (path, size) in
        [("/v1/services/web/backends/b1/drain", 1 << 20), ("/v1/services", 1 << 20), ("/v1/apply", 65 << 20)]
    {
        let (status, answer) = ask(&router, "POST", path, &long(size)).await;
        assert_eq!(
            (status, &answer["error"]["kind"]),
            (StatusCode::PAYLOAD_TOO_LARGE, &json!("invalid")),
            "{path}: {answer}"
        );
    }
    let deep = "[".repeat(200_000);
    assert_eq!(ask(&router, "POST", "/v1/apply", &deep).await.0, StatusCode::BAD_REQUEST);
    let form = Request::post("/v1/services").header(header::CONTENT_TYPE, "text/plain").body(Body::from(WEB));
    let answer = router.oneshot(form.expect("a request")).await.expect("routers do not fail");
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

/// One that stops a byte short would hold its place for ever.
#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_ended() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ebb.sock");
    let socket = Socket::bind(&path, &Access::default()).expect("binds");
    tokio::spawn(serve(socket, router(rig.handle.clone()), std::future::pending()));
    for (operation, length) in [("/v1/services/web/backends/b1/drain", 3), ("/v1/apply", 60 << 20)] {
        let mut stream = tokio::net::UnixStream::connect(&path).await.expect("it listens");
        let head = format!("POST {operation} HTTP/1.1\r\nhost: ebb\r\ncontent-length: {length}\r\n\r\n{{ ");
        stream.write_all(head.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        let ended = tokio::time::timeout(Duration::from_mins(2), stream.read_to_string(&mut answer)).await;
        ended.expect("it is not held for ever").expect("and answered");
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(r#"{"kind":"timeout","#), "{answer}");
    }
}

#[tokio::test]
async fn applying_tells_then_does() {
    let rig = Rig::new();
    let router = router(rig.handle.clone());
    web(&router).await;
    let wanted = json!({ "services": [{
        "service": { "name": "web", "vip": "10.0.0.100:80/tcp", "drain_timeout_s": 90 },
        "backends": [{ "name": "b2", "address": "10.0.0.12" }, { "name": "b3", "address": "10.0.0.13" }],
    }] });
    let (_, told) = ask(&router, "POST", "/v1/apply?dry_run=true", &wanted.to_string()).await;
    assert_eq!((&told["dry_run"], told["changes"].as_array().map(Vec::len)), (&json!(true), Some(3)), "{told}");
    let (_, status) = ask(&router, "GET", "/v1/status", "").await;
    assert_eq!(status["services"][0]["drain_timeout_s"], 60, "nothing was changed");
    let (_, done) = ask(&router, "POST", "/v1/apply", &wanted.to_string()).await;
    assert_eq!(done["changes"], told["changes"]);
    let (_, status) = ask(&router, "GET", "/v1/status", "").await;
    assert_eq!(status["services"][0]["drain_timeout_s"], 90);
}

/// Every request that the document describes is known to the server: a made-up name is not found, but the path is.
#[tokio::test]
async fn what_the_document_describes_is_served() {
    let rig = Rig::new();
    let router = router(rig.handle.clone());
    let (status, document) = ask(&router, "GET", "/v1/openapi.json", "").await;
    assert_eq!(status, StatusCode::OK);
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.len() > 10, "{}", paths.len());
    for (path, operations) in paths {
        for method in operations.as_object().expect("operations").keys() {
            let path = path.replace("{address}", "10.9.9.9").replace("{service}", "s").replace("{backend}", "b");
            let (status, answer) = ask(&router, &method.to_uppercase(), &path, "").await;
            let unknown = answer["error"]["message"].as_str().is_some_and(|message| message.contains("no such path"));
            assert!(status != StatusCode::METHOD_NOT_ALLOWED && !unknown, "{method} {path}: {answer}");
        }
    }
}

#[tokio::test]
async fn the_client_speaks_to_the_server_over_the_socket() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ebb.sock");
    let socket = Socket::bind(&path, &Access::default()).expect("binds");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = router(rig.handle.clone());
    web(&router).await;
    let server = tokio::spawn(serve(socket, router, async move { drop(stopped.await) }));

    let client = Client::new(&path);
    let mut events = client.follow_events(None).await.expect("a stream");
    let first: crate::control::model::Event = events.next().await.expect("an event").expect("not the end");
    assert_eq!(first.id, 1.min(first.id), "ids begin at the beginning");
    let drain = client.drain("web", "b1", &crate::control::model::DrainRequest::default()).await.expect("drains");
    assert_eq!(drain.backend, "b1");
    let waited = client.wait("web", "b1", WaitFor::Drained, None).await.expect("ends");
    assert!(waited.last_drain.is_some());
    let mut last = first.id;
    while let Some(event) = events.next::<crate::control::model::Event>().await.expect("events") {
        assert_eq!(event.id, last + 1, "none is missing");
        last = event.id;
        if event.kind == crate::control::model::EventKind::DrainEnded {
            break;
        }
    }
    stop.send(()).expect("the server listens");
    server.await.expect("the server ends, though a stream is open");
    assert!(!path.exists());
}

/// A request with `If-Match`: its status and its answer.
pub(super) async fn ask_if(router: &Router, method: &str, path: &str, tag: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).header(header::IF_MATCH, tag);
    let request = request.body(Body::from(body.to_owned())).expect("a request");
    let answer = router.clone().oneshot(request).await.expect("routers do not fail");
    let status = answer.status();
    let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn tag(router: &Router, path: &str) -> String {
    let request = Request::get(path).body(Body::empty()).expect("a request");
    let answer = router.clone().oneshot(request).await.expect("routers do not fail");
    answer.headers().get(header::ETAG).expect("a tag").to_str().expect("text").to_owned()
}

#[tokio::test]
async fn what_was_thought_out_on_something_older_is_refused() {
    let rig = Rig::new();
    let router = router(rig.handle.clone());
    web(&router).await;
    let (service, b1, all) = ("/v1/services/web", "/v1/services/web/backends/b1", "/v1/services");
    let (old, old_all) = (tag(&router, service).await, tag(&router, all).await);
    assert_eq!(tag(&router, b1).await, old, "a backend's is its service's");
    let changed = ask_if(&router, "PATCH", service, &old, r#"{"drain_timeout_s":61}"#).await;
    assert_eq!(changed.0, StatusCode::OK, "{changed:?}");
    let other = r#"{"name":"c","vip":"10.0.0.1:80/tcp"}"#;
    let none = r#"{"services":[]}"#;
    for (method, path, tag, body) in [
        ("PATCH", service, &old, r#"{"drain_timeout_s":62}"#),
        ("DELETE", service, &old, ""),
        ("PATCH", b1, &old, r#"{"weight":7}"#),
        ("DELETE", b1, &old, ""),
        ("POST", "/v1/services/web/backends", &old, r#"{"name":"b9","address":"10.0.0.19"}"#),
        ("POST", "/v1/services/web/backends/b1/drain", &old, "{}"),
        ("POST", "/v1/services/web/backends/b1/activate", &old, ""),
        ("POST", "/v1/hosts/10.0.0.11/drain", &old_all, "{}"),
        ("POST", all, &old_all, other),
        ("POST", "/v1/apply", &old_all, none),
    ] {
        let (status, answer) = ask_if(&router, method, path, tag, body).await;
        assert_eq!(status, StatusCode::PRECONDITION_FAILED, "{method} {path}: {answer}");
        assert_eq!(answer["error"]["kind"], "changed", "{method} {path}: {answer}");
    }
    let (_, view) = ask(&router, "GET", service, "").await;
    assert_eq!((&view["drain_timeout_s"], view["backends"].as_array().map(Vec::len)), (&json!(61), Some(2)), "{view}");
    assert!(view["backends"].as_array().expect("backends").iter().all(|b| b["state"] == "active"), "{view}");
    assert_eq!(json!(tag(&router, service).await.trim_matches('"')), view["revision"]);
    // Not what changes by itself: a drain's state is none of the configuration.
    let now = tag(&router, service).await;
    assert_eq!(ask(&router, "POST", "/v1/services/web/backends/b1/drain", "{}").await.0, StatusCode::OK);
    assert_eq!(tag(&router, service).await, now);
    for (tag, expected) in [("*", 200), ("web", 400), (r#""0", W/"1""#, 400)] {
        let (status, answer) = ask_if(&router, "PATCH", b1, tag, r#"{"weight":2}"#).await;
        assert_eq!(status.as_u16(), expected, "{tag}: {answer}");
    }
    let listed = format!("\"0000000000000000\", {}", tag(&router, service).await);
    assert_eq!(ask_if(&router, "PATCH", b1, &listed, r#"{"weight":3}"#).await.0, StatusCode::OK);
    // Taken back, it is what it was.
    let _ = ask(&router, "PATCH", b1, r#"{"weight":1}"#).await;
    let _ = ask(&router, "PATCH", service, r#"{"drain_timeout_s":60}"#).await;
    assert_eq!(tag(&router, service).await, old);
    assert_eq!(ask_if(&router, "POST", "/v1/apply", &old_all, none).await.0, StatusCode::OK);
}

/// Who got no answer asks again: what is then done is what was done already.
#[tokio::test]
async fn a_repeated_request_does_the_same_thing() {
    let rig = Rig::new();
    let router = router(rig.handle.clone());
    web(&router).await;
    let b1 = "/v1/services/web/backends/b1";
    let with = |verb: &str| format!("{b1}/{verb}");
    let (_, first) = ask(&router, "POST", &with("drain"), "{}").await;
    for path in [with("drain"), "/v1/hosts/10.0.0.11/drain".to_owned()] {
        let (status, again) = ask(&router, "POST", &path, "{}").await;
        assert_eq!(status, StatusCode::OK, "{again}");
        let drain = if again["drains"].is_array() { &again["drains"][0] } else { &again };
        assert_eq!(drain["drain"]["started_at"], first["drain"]["started_at"], "{again}");
        assert_eq!(drain["drain"]["deadline"], first["drain"]["deadline"], "{again}");
    }
    let (_, ended) = ask(&router, "GET", &format!("{b1}/wait?timeout_s=5"), "").await;
    let (status, again) = ask(&router, "POST", &with("drain"), "{}").await;
    assert_eq!((status, &again["last_drain"]), (StatusCode::OK, &ended["last_drain"]), "no second drain: {again}");
    for _ in 0..2 {
        let (status, view) = ask(&router, "POST", &with("activate"), "").await;
        assert_eq!((status, &view["state"]), (StatusCode::OK, &json!("active")), "{view}");
    }
    for _ in 0..2 {
        let (status, view) = ask(&router, "PATCH", b1, r#"{"weight":3}"#).await;
        assert_eq!((status, &view["weight"]), (StatusCode::OK, &json!(3)), "{view}");
    }
    let (_, one) = ask(&router, "DELETE", b1, "").await;
    let (status, two) = ask(&router, "DELETE", b1, "").await;
    assert!(status == StatusCode::OK || status == StatusCode::NOT_FOUND, "{one} then {two}");
    let (_, view) = ask(&router, "GET", "/v1/services/web", "").await;
    assert!(view["backends"].as_array().is_some_and(|left| left.iter().any(|b| b["name"] == "b2")), "{view}");
}
