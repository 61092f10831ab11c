//! Requests on the control socket.

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode, Uri, header},
};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::{in_no_time, later, soon};
use crate::{api::router, daemon::fake::Rig};

/// Between two requests.
const BETWEEN: &str = "\n%%\n";
/// Requests of an input that are made.
const REQUESTS: usize = 32;

/// Requests, one after the other, to an engine on a fake datapath. Each is a line with the method, the target and, where there
/// is a third word, an `If-Match`; behind the line its body. None is answered by an error of the server's, every error is
/// JSON with a message, and afterwards the engine still serves.
pub fn api(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    in_no_time(async {
        let rig = Rig::new();
        let router = router(rig.handle.clone());
        for request in text.split(BETWEEN).take(REQUESTS) {
            let (line, body) = request.split_once('\n').unwrap_or((request, ""));
            let mut words = line.splitn(3, ' ');
            let (Some(method), Some(target)) = (words.next(), words.next()) else { continue };
            ask(&router, method, target, words.next(), body).await;
        }
        let answered = ask(&router, "GET", "/v1/status", None, "").await;
        assert_eq!(answered, Some(StatusCode::OK), "the engine is gone");
        // Drains go on, checks are due, what was asked for is written down.
        later().await;
        rig.stop().await;
    });
}

async fn ask(router: &Router, method: &str, target: &str, tag: Option<&str>, body: &str) -> Option<StatusCode> {
    // What is no request gets no further than hyper.
    let (method, target) = (method.parse::<Method>().ok()?, target.parse::<Uri>().ok()?);
    let mut request = Request::builder().method(&method).uri(&target).header(header::CONTENT_TYPE, "application/json");
    if let Some(tag) = tag {
        request = request.header(header::IF_MATCH, tag);
    }
    let request = request.body(Body::from(body.to_owned())).ok()?;
    let answer = soon(router.clone().oneshot(request)).await?.expect("routers do not fail");
    let status = answer.status();
    assert!(!status.is_server_error(), "{method} {target} {body}: {status}");
    // An answer that follows what happens has no end.
    let bytes = soon(answer.into_body().collect()).await?.expect("a body").to_bytes();
    if status.is_client_error() {
        let error: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let said = error["error"]["message"].as_str().is_some_and(|message| !message.is_empty());
        assert!(said || method == Method::HEAD, "{method} {target} {body}: {status} {bytes:?}");
    }
    Some(status)
}
