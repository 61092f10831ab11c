//! What a scraper reads.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::*;
use crate::daemon::fake::Rig;

fn moment() -> Moment {
    let status = r#"{"services":[{"name":"web","vip":"10.0.0.100:80/tcp","forward":"dsr","drain_timeout_s":300,
        "on_drain_timeout":"reset","backends":[{"name":"web-1","address":"10.0.0.11","weight":1,"state":"draining",
        "reason":"asked","since":"2026-01-01T00:00:00Z","removing":false,"active_flows":7,"new_flows_total":9,"reset_flows_total":3,"finished_flows_total":5,
        "packets_total":100,"bytes_total":6400,"drain":{"started_at":"2026-01-01T00:00:00Z","deadline":null,
        "remaining_s":41.5,"initial_flows":9,"remaining_flows":7,"on_timeout":"reset","idle_flows":0,
        "oldest_flow_s":null,"rate_per_s":null,"estimate_s":null},"last_drain":null}]}],
        "datapath":{"interfaces":[{"name":"eth0","mode":"native"}],
        "flows":{"live":7,"opening":1,"closing":2,"untracked":0,"capacity":65536},"flow_log":{"written":8,"lost":1}}}"#;
    Moment {
        status: serde_json::from_str(status).expect("a status"),
        counters: serde_json::from_str(
            r#"{"outcomes":[{"name":"forwarded","packets":100}],"program":{"run_time_s":0.5,"runs":100}}"#,
        )
        .expect("counters"),
    }
}

#[test]
fn a_page_has_what_a_dashboard_needs() {
    let drains = Drains::default();
    drains.count(
        "web",
        &LastDrain {
            started_at: "2026-01-01T00:00:00Z".parse().expect("a time"),
            ended_at: "2026-01-01T00:00:09Z".parse().expect("a time"),
            outcome: Outcome::Deadline,
            initial_flows: 5,
            cut_flows: 2,
            idle_flows: 0,
            held: None,
        },
    );
    let page = page(moment(), &drains).expect("writes");
    for line in [
        r#"ebb_backend_active_flows{service="web",backend="web-1"} 7"#,
        r#"ebb_backend_bytes_total{service="web",backend="web-1"} 6400"#,
        r#"ebb_backend_state{service="web",backend="web-1",state="draining"} 1"#,
        r#"ebb_service_active_backends{service="web"} 0"#,
        r#"ebb_drain_remaining_seconds{service="web",backend="web-1"} 41.5"#,
        r#"ebb_backend_reset_flows_total{service="web",backend="web-1"} 3"#,
        r#"ebb_backend_finished_flows_total{service="web",backend="web-1"} 5"#,
        "ebb_flow_log_lines_total 8",
        "ebb_flow_log_lost_total 1",
        "ebb_program_run_seconds_total 0.5",
        "ebb_program_runs_total 100",
        r#"ebb_packets_total{outcome="forwarded"} 100"#,
        r#"ebb_flows{state="closing"} 2"#,
        r#"ebb_drains_total{service="web",outcome="deadline"} 1"#,
        r#"ebb_drain_cut_flows_total{service="web"} 2"#,
        r#"ebb_drain_duration_seconds_bucket{le="10.0",service="web"} 1"#,
        r#"ebb_interface{interface="eth0",mode="native"} 1"#,
        "# EOF",
    ] {
        assert!(page.lines().any(|candidate| candidate == line), "no {line} in\n{page}");
    }
}

#[test]
fn the_older_format_names_counters_in_full() {
    let page = "# HELP ebb_drains Drains that ended.\n# TYPE ebb_drains counter\nebb_drains_total{a=\"b c\"} 1\n\
                # HELP ebb_flows Tracked.\n# TYPE ebb_flows gauge\nebb_flows 2\n# EOF\n";
    let older = "# HELP ebb_drains_total Drains that ended.\n# TYPE ebb_drains_total counter\n\
                 ebb_drains_total{a=\"b c\"} 1\n# HELP ebb_flows Tracked.\n# TYPE ebb_flows gauge\nebb_flows 2\n";
    assert_eq!(older_format(page), older);
}

/// A metric that was renamed here and not there would be an alert that never comes.
#[test]
fn what_the_dashboard_and_the_alerts_ask_for_is_there() {
    let drains = Drains::default();
    let ended = r#"{"started_at":"2026-01-01T00:00:00Z","ended_at":"2026-01-01T00:00:09Z","outcome":"completed",
        "initial_flows":5,"cut_flows":0}"#;
    drains.count("web", &serde_json::from_str(ended).expect("a drain"));
    let page = page(moment(), &drains).expect("writes");
    let shipped = [
        include_str!("../../../../packaging/grafana/ebb.json"),
        include_str!("../../../../packaging/prometheus/ebb.rules.yml"),
    ];
    let mut names = std::collections::BTreeSet::new();
    for text in shipped {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        names.extend(words.filter(|word| word.starts_with("ebb_")));
    }
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let starts = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        assert!(page.lines().any(starts), "no {name} in\n{page}");
    }
}

/// Each would be a descriptor that a check or an operator needs.
#[tokio::test(start_paused = true)]
async fn connections_that_ask_nothing_are_few_and_end() {
    const IDLE: usize = 64;
    let rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(serve(listener, rig.handle.clone(), std::future::pending()));
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(TcpStream::connect(address).await.expect("it listens"));
    }
    let mut scraper = TcpStream::connect(address).await.expect("it listens");
    let begun = Instant::now();
    scraper.write_all(b"GET /metrics HTTP/1.1\r\nhost: ebb\r\n\r\n").await.expect("it is queued");
    let mut first = [0];
    let early = timeout(Duration::from_secs(1), scraper.read(&mut first)).await;
    assert!(early.is_err(), "{IDLE} are more than are served at once");
    let answered = timeout(Duration::from_mins(2), scraper.read_exact(&mut first)).await;
    answered.expect("those before it are sent away").expect("it is answered");
    assert_eq!(&first, b"H", "after {:?}", begun.elapsed());
    for mut stream in idle {
        assert_eq!(stream.read(&mut first).await.ok(), Some(0), "closed");
    }
}
