//! The status page: one document that carries all it needs and asks nobody but the daemon that served it.
//!
//! On its own listener it can only look. Where callers show certificates, the same page offers what theirs allows.

use std::{
    future::Future,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
};

use axum::{
    Extension, Router,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::{TcpListener, TcpStream};

use super::{
    error::{ApiError, Kind},
    rights::{Caller, Right},
    serve::{attend, converse},
};

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");

/// Readers served at once; an open page holds two connections.
pub(crate) const CALLERS: usize = 128;
/// What a browser is told beside the page.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// Serves the page, and what it looks at in `operations`, to readers until `shutdown` resolves.
pub async fn serve(listener: TcpListener, operations: Router, shutdown: impl Future<Output = ()>) {
    let reader = Caller { name: "the status page".to_owned(), right: Some(Right::Read), addresses: Vec::new() };
    let router = with_page(operations).layer(Extension(reader)).layer(middleware::from_fn(named_by_address));
    let answer = move |(stream, _): (TcpStream, _)| converse(stream, router.clone());
    attend(listener, CALLERS, answer, shutdown).await;
}

/// Operations with the page in front, which offers what the caller's right allows.
pub fn with_page(operations: Router) -> Router {
    let page = |caller: Option<Extension<Caller>>| async move {
        page(caller.and_then(|Extension(caller)| caller.right).map_or("none", Right::word))
    };
    operations.route("/", get(page)).layer(middleware::from_fn(same_origin))
}

/// The same on the socket, where who can connect may do everything: a browser gets there by `ssh -L 8080:/run/ebb/ebb.sock`.
pub fn on_socket(operations: Router) -> Router {
    let operations = operations.route("/", get(|| async { page(Right::Admin.word()) }));
    operations.layer(middleware::from_fn(same_origin)).layer(middleware::from_fn(browsers_by_address))
}

fn page(right: &str) -> Response {
    let nonce = nonce();
    let document = PAGE
        .replace("{right}", right)
        .replace("{version}", env!("CARGO_PKG_VERSION"))
        .replace("{nonce}", &nonce)
        .replace("{script}", SCRIPT);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut answer = (HEADERS, document).into_response();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    answer
}

/// Unlike for any two answers, and not to be guessed: the standard library keys these with what the system gives.
fn nonce() -> String {
    format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1))
}

/// A browser sends a certificate with whatever another site's page has it ask, and says for whom it asks.
async fn same_origin(request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && !is_same_origin(request.headers()) {
        return ApiError::new(Kind::Forbidden, "a page of another site may change nothing here").into_response();
    }
    next.run(request).await
}

/// What is no browser says nothing of an origin.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let site = text(&HeaderName::from_static("sec-fetch-site"));
    let origin = text(&header::ORIGIN).map(|origin| origin.split_once("://").unwrap_or_default().1);
    site.is_none_or(|site| site == "same-origin") && origin.is_none_or(|origin| Some(origin) == text(&header::HOST))
}

/// As [`named_by_address`] for browsers only: other callers of a socket may name it as they like.
async fn browsers_by_address(request: Request, next: Next) -> Response {
    if is_browser(request.headers()) {
        return named_by_address(request, next).await;
    }
    next.run(request).await
}

/// All browsers have called themselves this since the nineties, and hardly anything else has.
fn is_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    agent.is_some_and(|agent| agent.starts_with("Mozilla/"))
}

/// A name that somebody else's name server has made to lead here would let that somebody's page read everything.
async fn named_by_address(request: Request, next: Next) -> Response {
    if is_address(request.headers()) {
        return next.run(request).await;
    }
    let message = "the status page is found by its address, or as localhost, and by no other name";
    ApiError::new(Kind::Forbidden, message).into_response()
}

fn is_address(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::StatusCode, routing::post};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(router: Router, request: Request) -> (StatusCode, HeaderMap, String) {
        let answer = router.oneshot(request).await.expect("an answer");
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, headers, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn the_page_allows_itself_and_nothing_else() {
        let request = || Request::get("/").body(Body::empty()).expect("a request");
        let (status, headers, body) = ask(with_page(Router::new()), request()).await;
        assert_eq!(status, StatusCode::OK);
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().expect("text").to_owned();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
        assert_eq!(body.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "style and script");
        let (_, other, _) = ask(with_page(Router::new()), request()).await;
        assert_ne!(other[header::CONTENT_SECURITY_POLICY], headers[header::CONTENT_SECURITY_POLICY]);
        // Namespaces are names that nobody fetches.
        let outside = body.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http:") && !outside.contains("https:") && !outside.contains("innerHTML"));
    }

    #[tokio::test]
    async fn other_sites_change_nothing() {
        let router = with_page(Router::new().route("/v1/x", post(|| async { "done" })));
        for (headers, expected) in [
            (&[][..], StatusCode::OK),
            (&[("sec-fetch-site", "same-origin"), ("origin", "http://10.0.0.1:80")], StatusCode::OK),
            (&[("sec-fetch-site", "cross-site")], StatusCode::FORBIDDEN),
            (&[("sec-fetch-site", "same-site")], StatusCode::FORBIDDEN),
            (&[("origin", "http://evil.example")], StatusCode::FORBIDDEN),
            (&[("origin", "null")], StatusCode::FORBIDDEN),
        ] {
            let mut request = Request::post("/v1/x").header("host", "10.0.0.1:80");
            for &(name, value) in headers {
                request = request.header(name, value);
            }
            let (status, ..) = ask(router.clone(), request.body(Body::empty()).expect("a request")).await;
            assert_eq!(status, expected, "{headers:?}");
        }
    }

    #[tokio::test]
    async fn a_browser_on_the_socket_comes_by_an_address() {
        let router = on_socket(Router::new().route("/v1/x", get(|| async { "seen" })));
        for (agent, host, expected) in [
            ("curl/8", "ebb", StatusCode::OK),
            ("Mozilla/5.0", "localhost:8080", StatusCode::OK),
            ("Mozilla/5.0", "rebound.example", StatusCode::FORBIDDEN),
        ] {
            let request = Request::get("/v1/x").header("user-agent", agent).header("host", host);
            let (status, ..) = ask(router.clone(), request.body(Body::empty()).expect("a request")).await;
            assert_eq!(status, expected, "{agent} {host}");
        }
        let (_, _, body) = ask(router, Request::get("/").body(Body::empty()).expect("a request")).await;
        assert!(body.contains("data-right=\"admin\""));
    }

    #[test]
    fn only_addresses_lead_here() {
        let host =
            |value: &'static str| is_address(&HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(value))]));
        assert!(host("127.0.0.1:8080") && host("[::1]:8080") && host("localhost:8080") && host("10.0.0.1"));
        assert!(!host("rebound.example:8080") && !host("") && !host("localhost.example"));
    }
}
