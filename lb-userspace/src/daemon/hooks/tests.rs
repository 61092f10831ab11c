use std::fs;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::{
    control::model::{DrainRequest, WaitFor},
    daemon::fake::Rig,
};

fn spec(more: &serde_json::Value) -> HookSpec {
    let mut spec = serde_json::json!({ "name": "pager" });
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    serde_json::from_value(spec).expect("a hook")
}

fn shell(script: &str) -> HookSpec {
    spec(&serde_json::json!({ "command": ["/bin/sh", "-c", script], "retries": 1 }))
}

type Events = mpsc::UnboundedReceiver<Arc<Event>>;

/// A service with one backend that has been drained: five things to tell.
async fn drained() -> (Rig, Events) {
    let mut rig = Rig::new();
    let events = rig.events();
    let service = serde_json::json!({ "name": "web", "vip": "10.0.0.100:80/tcp" });
    rig.handle.add_service(serde_json::from_value(service).expect("a service")).await.expect("added");
    let backend = serde_json::json!({ "name": "b", "address": "10.0.0.11" });
    rig.handle.add_backend("web", serde_json::from_value(backend).expect("a backend")).await.expect("added");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let force = serde_json::from_value(serde_json::json!({ "force": true })).expect("a request");
    rig.handle.drain("web", "b", force).await.expect("it drains");
    rig.handle.wait("web", "b", WaitFor::Drained, None).await.expect("it ends");
    (rig, events)
}

async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1_000 {
        if let Some(seen) = look() {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it has not come within ten seconds");
}

fn told(file: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn kinds(told: &[serde_json::Value]) -> Vec<String> {
    told.iter().map(|told| format!("{} {}", told["kind"], told["state"]).replace('"', "")).collect()
}

const STORY: [&str; 5] = [
    "backend_state active",
    "backend_state draining",
    "drain_started null",
    "drain_ended null",
    "backend_state drained",
];

#[tokio::test]
async fn a_command_is_told_everything_in_order_though_its_first_attempt_fails() {
    let (rig, events) = drained().await;
    let file = rig.directory.path().join("told");
    let once = rig.directory.path().join("once");
    let script = format!("test -e {1} || {{ touch {1}; exit 1; }}; cat >> {0}", file.display(), once.display());
    let directory = rig.directory.path().join("hooks");
    let running = run(events, vec![shell(&script)], &directory);
    let looking = until(|| Some(told(&file)).filter(|told| told.len() == STORY.len()));
    let story = tokio::select! { seen = looking => seen, _ = running => panic!("hooks do not end") };
    assert_eq!(kinds(&story), STORY);
    assert!(story.iter().all(|told| told["service"] == "web" && told["backend"] == "b" && told["hook"] == "pager"));
    assert_eq!((&story[3]["outcome"], &story[3]["last_drain"]["cut_flows"]), (&"completed".into(), &0.into()));
    assert_eq!(story[1]["reason"], "drained by an operator");
}

#[tokio::test]
async fn what_a_hook_was_not_told_it_is_told_after_a_restart() {
    let (rig, events) = drained().await;
    let file = rig.directory.path().join("told");
    let directory = rig.directory.path().join("hooks");
    let hung = shell("sleep 1000");
    let looking = until(|| {
        let journal = fs::read_to_string(directory.join("pager.journal")).unwrap_or_default();
        (journal.lines().count() == STORY.len()).then_some(())
    });
    let running = run(events, vec![hung], &directory);
    tokio::select! { () = looking => {}, _ = running => panic!("hooks do not end") };

    let mut next = Rig::new();
    let running = run(next.events(), vec![shell(&format!("cat >> {}", file.display()))], &directory);
    let looking = until(|| Some(told(&file)).filter(|told| told.len() == STORY.len()));
    let story = tokio::select! { seen = looking => seen, _ = running => panic!("hooks do not end") };
    assert_eq!(kinds(&story), STORY);
}

#[tokio::test]
async fn what_happens_up_to_the_stop_is_queued() {
    let (rig, events) = drained().await;
    let directory = rig.directory.path().join("hooks");
    let journal = directory.join("pager.journal");
    let lines = move || fs::read_to_string(&journal).unwrap_or_default().lines().count();
    let running = {
        let directory = directory.clone();
        tokio::spawn(async move { run(events, vec![shell("sleep 1000")], &directory).await })
    };
    until(|| (lines() == STORY.len()).then_some(())).await;
    for _ in 0..10 {
        rig.handle.activate("web", "b").await.expect("it is back");
        let force = DrainRequest { force: true, ..DrainRequest::default() };
        rig.handle.drain("web", "b", force).await.expect("it drains");
    }
    let events = rig.handle.events(0).await.expect("events").backlog;
    let wanted = events.iter().filter(|event| shell("true").wants(event)).count();
    let _files = rig.stop().await;
    running.await.expect("it ends by itself").expect("the queue is kept");
    assert_eq!(lines(), wanted);
}

#[tokio::test]
async fn one_that_always_fails_or_hangs_is_given_up_and_the_next_thing_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("told");
    let script = format!("read -r line; case $line in *bad*) sleep 1000;; *) echo $line >> {};; esac", file.display());
    let spec = HookSpec { timeout: Seconds(Duration::from_millis(200)), retries: 0, ..shell(&script) };
    deliver(&spec, "bad").await;
    deliver(&spec, "good").await;
    assert_eq!(fs::read_to_string(file).expect("something was told"), "good\n");
}

#[tokio::test]
async fn a_url_gets_a_post() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/ebb?x=1", listener.local_addr().expect("an address"));
    let serving = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in ["HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"] {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut text = Vec::new();
            while !text.ends_with(b"{\"id\":1}") {
                text.push(stream.read_u8().await.expect("the body comes"));
            }
            asked.push(String::from_utf8(text).expect("text"));
            stream.write_all(answer.as_bytes()).await.expect("it can answer");
        }
        asked
    });
    let refused = post(&url, "{\"id\":1}").await;
    assert_eq!(refused, Err(format!("{url}: answered with status 500, not 200 to 299")));
    assert_eq!(post(&url, "{\"id\":1}").await, Ok(()));
    let asked = serving.await.expect("it served");
    assert!(asked[1].starts_with("POST /ebb?x=1 HTTP/1.1\r\n"), "{asked:?}");
    assert!(asked[1].contains("content-type: application/json\r\n"), "{asked:?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    assert!(shell("true").check().is_ok());
    assert!(spec(&serde_json::json!({ "url": "http://[::1]:8080" })).check().is_ok());
    assert!(spec(&serde_json::json!({ "url": "http://{address}:9000/{backend}" })).check().is_ok());
    for bad in [
        serde_json::json!({}),
        serde_json::json!({ "command": [] }),
        serde_json::json!({ "command": ["a"], "url": "http://a/" }),
        serde_json::json!({ "url": "https://example.org/" }),
        serde_json::json!({ "url": "example.org" }),
        serde_json::json!({ "url": "http://{host}:9000/" }),
        serde_json::json!({ "command": ["a"], "timeout": 0 }),
        serde_json::json!({ "command": ["a"], "events": ["events_missed"] }),
        serde_json::json!({ "url": "http://a/", "timeout": 0 }),
        serde_json::json!({ "command": ["a"], "name": "a/b" }),
    ] {
        let spec = spec(&bad);
        assert!(spec.check().is_err(), "{spec:?}");
    }
}

#[test]
fn services_and_kinds_are_chosen() {
    let event = |service: &str, kind: &str| -> Event {
        let event = serde_json::json!({ "id": 1, "at": "2026-01-01T00:00:00Z", "kind": kind, "service": service });
        serde_json::from_value(event).expect("an event")
    };
    let spec = spec(&serde_json::json!({ "url": "http://a/", "services": ["web"] }));
    assert!(spec.wants(&event("web", "drain_ended")));
    assert!(!spec.wants(&event("dns", "drain_ended")));
    assert!(!spec.wants(&event("web", "service_changed")));
}

#[tokio::test]
async fn a_hook_is_told_all_of_a_step_that_is_longer_than_what_the_engine_remembers() {
    const SERVICES: usize = 42;
    const BACKENDS: usize = 50;
    let mut rig = Rig::new();
    let mut events = rig.events();
    let (sender, to_hook) = mpsc::unbounded_channel();
    let service = |of: usize| {
        let backend = |number: usize| serde_json::json!({ "name": format!("b{number}"), "address": format!("10.1.{of}.{}", 1 + number) });
        let service = serde_json::json!({ "name": format!("s{of}"), "vip": format!("10.0.0.{}:80/tcp", 100 + of) });
        serde_json::json!({ "service": service, "backends": (0..BACKENDS).map(backend).collect::<Vec<_>>() })
    };
    let wanted = (0..SERVICES).map(|of| serde_json::from_value(service(of)).expect("a service")).collect();
    rig.handle.apply(wanted, false).await.expect("applied");
    rig.handle.apply(Vec::new(), false).await.expect("removed");
    let (mut last, mut removed) = (0, 0);
    while removed < SERVICES {
        let event = events.recv().await.expect("the engine runs");
        assert_eq!(event.id, last + 1, "none is missing");
        last = event.id;
        removed += usize::from(event.kind == EventKind::ServiceRemoved);
        sender.send(event).expect("the hook listens");
    }
    let remembered = rig.handle.events(0).await.expect("events").backlog;
    assert!(remembered.len() == 10_000 && remembered[0].id > 1, "{last} events are more than it remembers");

    let directory = rig.directory.path().join("hooks");
    let drains = HookSpec { events: vec![EventKind::DrainStarted], ..shell("sleep 1000") };
    drop(sender);
    run(to_hook, vec![drains], &directory).await.expect("the queue is kept");
    let told = told(&directory.join("pager.journal"));
    assert_eq!(told.len(), SERVICES * BACKENDS);
    assert!(told.is_sorted_by_key(|told| told["id"].as_u64()));
}
