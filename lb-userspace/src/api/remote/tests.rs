//! Rights without the network: requests with a caller, as the listener would have named it.

use axum::{Extension, Router, http::StatusCode};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};

use super::{ClientRule, Settings, Terms};
use crate::{
    api::{
        remote_router,
        rights::{Caller, Right},
        tests::{ask, web},
    },
    daemon::fake::Rig,
    tls,
};

async fn rig() -> (Rig, Router) {
    let rig = Rig::new();
    web(&crate::api::router(rig.handle.clone())).await;
    let router = remote_router(rig.handle.clone(), Router::new());
    (rig, router)
}

fn as_caller(router: &Router, right: Option<Right>) -> Router {
    let addresses = vec!["10.0.0.11".parse().expect("an address")];
    router.clone().layer(Extension(Caller { name: "host-1".to_owned(), right, addresses }))
}

/// Every operation of the document, and what the document says about it.
#[tokio::test]
async fn each_operation_takes_the_right_that_the_document_says() {
    let (_rig, router) = rig().await;
    let (_, document) = ask(&as_caller(&router, Some(Right::Admin)), "GET", "/v1/openapi.json", "").await;
    let mut seen = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let method = method.to_uppercase();
            // Somebody else's backend, and nothing that changes anything if it is let through.
            let target = path.replace("{address}", "10.0.0.12").replace("{service}", "web").replace("{backend}", "b2");
            for right in [Right::Admin, Right::Read, Right::OwnAddress] {
                let caller = as_caller(&router, Some(right));
                let listed = operation["x-rights"].as_array().expect("rights").iter().any(|word| word == right.word());
                let body = if method == "GET" || method == "DELETE" { "" } else { "[]" };
                let target = if method == "DELETE" { format!("{target}?now=maybe") } else { target.clone() };
                let target = if target.ends_with("/wait") { format!("{target}?timeout_s=0.01") } else { target };
                let (status, answer) = ask(&caller, &method, &target, body).await;
                let expected = listed && right != Right::OwnAddress;
                assert_eq!(status != StatusCode::FORBIDDEN, expected, "{right:?} {method} {path}: {answer}");
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "{seen}");
    for right in [None, Some(Right::OwnAddress)] {
        let (status, answer) = ask(&as_caller(&router, right), "GET", "/v1/status", "").await;
        assert_eq!((status, &answer["error"]["kind"]), (StatusCode::FORBIDDEN, &"forbidden".into()), "{answer}");
    }
    let (status, _) = ask(&router, "GET", "/v1/status", "").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "a request that nobody is named for");
}

#[tokio::test]
async fn own_backends_are_those_at_the_address() {
    let (_rig, router) = rig().await;
    let caller = as_caller(&router, Some(Right::OwnAddress));
    for (method, path, body, expected) in [
        ("GET", "/v1/hosts/10.0.0.11", "", 200),
        ("GET", "/v1/hosts/::ffff:10.0.0.11", "", 404),
        ("GET", "/v1/hosts/10.0.0.12", "", 403),
        ("GET", "/v1/services/web/backends/b1", "", 200),
        ("GET", "/v1/services/web/backends/b2", "", 403),
        ("GET", "/v1/services/web", "", 403),
        ("POST", "/v1/services/web/backends/b2/hold", r#"{"answer":"continue"}"#, 403),
        ("POST", "/v1/services/web/backends/b1/hold", r#"{"answer":"continue"}"#, 409),
        ("POST", "/v1/services/web/backends/b1/drain", "{}", 200),
        ("GET", "/v1/services/web/backends/b1/wait?timeout_s=5", "", 200),
        ("POST", "/v1/hosts/10.0.0.11/activate", "", 200),
        ("POST", "/v1/hosts/10.0.0.11/drain", "{}", 200),
        ("POST", "/v1/services/web/backends/b1/activate", "", 200),
        ("DELETE", "/v1/services/web/backends/b1", "", 403),
        ("POST", "/v1/services/web/backends/b2/activate", "", 403),
    ] {
        let (status, answer) = ask(&caller, method, path, body).await;
        assert_eq!(status.as_u16(), expected, "{method} {path} {body}: {answer}");
    }
}

fn certificate(subject: &str, alternative: &[SanType]) -> rcgen::Certificate {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, subject);
    params.subject_alt_names = alternative.to_vec();
    params.self_signed(&KeyPair::generate().expect("a key")).expect("signs")
}

#[test]
fn a_certificate_is_of_whom_its_authority_answers_for() {
    let dns = SanType::DnsName("host-1.example.net".try_into().expect("a name"));
    let uri = SanType::URI("spiffe://example.net/host/1".try_into().expect("a name"));
    let address = SanType::IpAddress("10.0.0.11".parse().expect("an address"));
    for (alternative, expected) in [
        (vec![], vec!["host-1"]),
        (vec![address.clone()], vec!["host-1"]),
        (vec![dns.clone(), address], vec!["host-1.example.net"]),
        (vec![dns, uri], vec!["host-1.example.net", "spiffe://example.net/host/1"]),
    ] {
        assert_eq!(tls::names(certificate("host-1", &alternative).der()), expected);
    }
}

#[test]
fn files_that_do_not_fit_are_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let own = certificate("balancer", &[]);
    std::fs::write(path("cert"), own.pem()).expect("writes");
    std::fs::write(path("key"), KeyPair::generate().expect("a key").serialize_pem()).expect("writes");
    std::fs::write(path("empty"), "").expect("writes");
    let settings = Settings {
        listen: "127.0.0.1:0".parse().expect("an address"),
        cert: path("cert"),
        key: path("key"),
        client_ca: path("cert"),
        clients: vec![ClientRule { name: "a".to_owned(), right: Right::Admin, addresses: Vec::new() }],
    };
    for (changed, key, said) in [
        (settings.clone(), "key", "is not the key of the certificate in"),
        (Settings { cert: path("none"), ..settings.clone() }, "cert", "No such file"),
        (Settings { cert: path("empty"), ..settings.clone() }, "cert", "has no certificate in it"),
        (Settings { key: path("cert"), ..settings.clone() }, "key", "has no private key in it"),
        (Settings { client_ca: path("key"), ..settings }, "client_ca", "has no certificate in it"),
    ] {
        let error = Terms::load(&changed).expect_err("it does not fit");
        assert!(error.key == key && error.message.contains(said), "{}: {}", error.key, error.message);
    }
}
