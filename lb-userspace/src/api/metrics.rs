//! What a scraper gets on `--metrics`: the state of one moment, read from the engine at each scrape, and what drains came to
//! since the daemon started.
//!
//! Labels are names that the operator chose and words from fixed lists; no address and no flow ever becomes one.

use std::{collections::HashSet, fmt, future::Future, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::broadcast::error::RecvError,
};

use super::{
    error::ApiError,
    serve::{attend, converse},
};
use crate::{
    control::model::{BackendStatus, CountersView, EventKind, LastDrain, Outcome, State as BackendState, Status},
    daemon::Handle,
};

/// Upper bounds for how long drains took: from "nothing was open" to the longest delay a cloud balancer allows.
const DRAIN_SECONDS: [f64; 13] = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
const STATES: [BackendState; 6] = [
    BackendState::Initial,
    BackendState::Active,
    BackendState::Draining,
    BackendState::Drained,
    BackendState::Unhealthy,
    BackendState::UnhealthyDraining,
];
/// Scrapers served at once; more wait in the kernel's queue.
pub(crate) const CALLERS: usize = 32;
/// For scrapers that do not ask for OpenMetrics.
const OLDER_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What the specification of OpenMetrics asks to be sent.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `/metrics` until `shutdown` resolves.
pub async fn serve(listener: TcpListener, engine: Handle, shutdown: impl Future<Output = ()>) {
    let drains = Drains::default();
    let watching = tokio::spawn(drains.clone().watch(engine.clone()));
    let router = Router::new().route("/metrics", get(scrape)).with_state(Arc::new((engine, drains)));
    let answer = move |(stream, _): (TcpStream, _)| converse(stream, router.clone());
    attend(listener, CALLERS, answer, shutdown).await;
    watching.abort();
}

async fn scrape(State(state): State<Arc<(Handle, Drains)>>, headers: HeaderMap) -> Result<impl IntoResponse, ApiError> {
    let (engine, drains) = &*state;
    let moment = Moment { status: engine.status(None).await?, counters: engine.counters().await? };
    let page = page(moment, drains).map_err(|error| {
        ApiError::new(super::error::Kind::Internal, format!("the metrics cannot be written: {error}"))
    })?;
    let accepted = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepted.contains("application/openmetrics-text") {
        return Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], page));
    }
    Ok(([(header::CONTENT_TYPE, OLDER_CONTENT_TYPE)], older_format(&page)))
}

/// The text format that came before OpenMetrics: counters carry their suffix in the comments too, and nothing marks the end.
fn older_format(page: &str) -> String {
    let counters: HashSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut older = String::with_capacity(page.len());
    for line in page.lines().filter(|line| *line != "# EOF") {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", what, name, rest] if counters.contains(name) => {
                older.extend(["# ", *what, " ", *name, "_total ", *rest, "\n"]);
            }
            _ => older.extend([line, "\n"]),
        }
    }
    older
}

fn page(moment: Moment, drains: &Drains) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ebb");
    registry.register_collector(Box::new(moment));
    drains.register(&mut registry);
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

type ServiceLabel = [(&'static str, String); 1];
type OutcomeLabels = [(&'static str, String); 2];

/// What drains came to since the daemon started.
#[derive(Clone, Debug)]
struct Drains {
    ended: Family<OutcomeLabels, Counter>,
    cut_flows: Family<ServiceLabel, Counter>,
    seconds: Family<ServiceLabel, Histogram>,
}

impl Default for Drains {
    fn default() -> Self {
        Self {
            ended: Family::default(),
            cut_flows: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(DRAIN_SECONDS)),
        }
    }
}

impl Drains {
    /// Counts the ends of drains for as long as the engine runs. Those before the daemon's start were another process's.
    async fn watch(self, engine: Handle) {
        // Ids only grow, so this asks for none of the past.
        let Ok(mut events) = engine.events(u64::MAX).await else { return };
        loop {
            match events.live.recv().await {
                Ok(event) if event.kind == EventKind::DrainEnded => {
                    if let (Some(service), Some(drain)) = (&event.service, &event.last_drain) {
                        self.count(service, drain);
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => tracing::warn!("the metrics missed {missed} events"),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn count(&self, service: &str, drain: &LastDrain) {
        let service_label = [("service", service.to_owned())];
        let labels = [("service", service.to_owned()), ("outcome", outcome(drain.outcome).to_owned())];
        self.ended.get_or_create(&labels).inc();
        self.cut_flows.get_or_create(&service_label).inc_by(drain.cut_flows);
        let took = drain.ended_at.duration_since(drain.started_at);
        self.seconds.get_or_create(&service_label).observe(took.as_secs_f64().max(0.0));
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("drains", "Drains that ended, by outcome", self.ended.clone());
        registry.register("drain_cut_flows", "Connections cut at the end of drains", self.cut_flows.clone());
        registry.register("drain_duration_seconds", "How long drains took", self.seconds.clone());
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Deadline => "deadline",
        Outcome::Forced => "forced",
        Outcome::Cancelled => "cancelled",
    }
}

fn state(state: BackendState) -> &'static str {
    match state {
        BackendState::Initial => "initial",
        BackendState::Active => "active",
        BackendState::Draining => "draining",
        BackendState::Drained => "drained",
        BackendState::Unhealthy => "unhealthy",
        BackendState::UnhealthyDraining => "unhealthy_draining",
    }
}

/// Name, help and value of a metric that each backend has.
type BackendMetric = (&'static str, &'static str, fn(&BackendStatus) -> u64);

/// What the engine knew at one scrape.
#[derive(Debug)]
struct Moment {
    status: Status,
    counters: CountersView,
}

impl Moment {
    fn each_backend(&self) -> impl Iterator<Item = ([(&str, &str); 2], &BackendStatus)> {
        self.status.services.iter().flat_map(|service| {
            service
                .backends
                .iter()
                .map(|backend| ([("service", service.name.as_str()), ("backend", backend.name.as_str())], backend))
        })
    }

    fn backends(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauges: [BackendMetric; 2] = [
            ("backend_active_flows", "Live flows", |backend| backend.active_flows),
            ("backend_weight", "Share of new flows relative to the service's others", |backend| backend.weight.into()),
        ];
        for (name, help, value) in gauges {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, backend) in self.each_backend() {
                gauge(&mut metric, &labels, value(backend))?;
            }
        }
        let counters: [BackendMetric; 5] = [
            ("backend_new_flows", "Flows opened", |backend| backend.new_flows_total),
            ("backend_finished_flows", "Flows that were established and are over", |backend| {
                backend.finished_flows_total
            }),
            ("backend_reset_flows", "Flows that an RST has ended", |backend| backend.reset_flows_total),
            ("backend_packets", "Packets forwarded to it", |backend| backend.packets_total),
            ("backend_bytes", "Bytes forwarded to it", |backend| backend.bytes_total),
        ];
        for (name, help, value) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, backend) in self.each_backend() {
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value(backend), None)?;
            }
        }
        let mut metric =
            encoder.encode_descriptor("backend_state", "1 for the present state", None, MetricType::Gauge)?;
        for ([service, backend], status) in self.each_backend() {
            for candidate in STATES {
                let labels = [service, backend, ("state", state(candidate))];
                gauge(&mut metric, &labels, u64::from(status.state == candidate))?;
            }
        }
        Ok(())
    }

    fn services(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of_state: [(&str, &str, &[BackendState]); 3] = [
            (
                "service_healthy_backends",
                "Backends that do not fail their checks, also those out of rotation; one not checked yet is none",
                &[BackendState::Active, BackendState::Draining, BackendState::Drained],
            ),
            (
                "service_unhealthy_backends",
                "Backends that fail their checks",
                &[BackendState::Unhealthy, BackendState::UnhealthyDraining],
            ),
            ("service_active_backends", "Backends that take new flows", &[BackendState::Active]),
        ];
        for (name, help, states) in of_state {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for service in &self.status.services {
                let count = service.backends.iter().filter(|backend| states.contains(&backend.state)).count();
                gauge(&mut metric, &[("service", service.name.as_str())], count as u64)?;
            }
        }
        Ok(())
    }

    fn running_drains(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "drain_remaining_flows",
            "Live flows a drain waits for",
            None,
            MetricType::Gauge,
        )?;
        for (labels, drain) in
            self.each_backend().filter_map(|(labels, backend)| Some((labels, backend.drain.as_ref()?)))
        {
            gauge(&mut metric, &labels, drain.remaining_flows)?;
        }
        let help = "Seconds until a drain's deadline; missing where there is none";
        let mut metric = encoder.encode_descriptor("drain_remaining_seconds", help, None, MetricType::Gauge)?;
        for (labels, backend) in self.each_backend() {
            if let Some(seconds) = backend.drain.as_ref().and_then(|drain| drain.remaining_s) {
                metric.encode_family(&labels)?.encode_gauge(&seconds)?;
            }
        }
        Ok(())
    }

    fn datapath(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let flows = &self.status.datapath.flows;
        let mut metric = encoder.encode_descriptor("flows", "Tracked flows", None, MetricType::Gauge)?;
        for (state, count) in [("live", flows.live), ("opening", flows.opening), ("closing", flows.closing)] {
            gauge(&mut metric, &[("state", state)], count)?;
        }
        encoder
            .encode_descriptor("flow_table_capacity", "Flows the table can hold", None, MetricType::Gauge)?
            .encode_gauge(&flows.capacity)?;
        encoder
            .encode_descriptor("flows_untracked", "Flows that found the table full", None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&flows.untracked, None)?;
        if let Some(log) = &self.status.datapath.flow_log {
            encoder
                .encode_descriptor("flow_log_lines", "Lines written to the flow log", None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, f64>(&log.written, None)?;
            encoder
                .encode_descriptor("flow_log_lost", "Flows missing from the flow log", None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, f64>(&log.lost, None)?;
        }
        if let Some(program) = &self.counters.program {
            let help = "Time that the packet path has taken, where kernel.bpf_stats_enabled counts it";
            encoder
                .encode_descriptor("program_run_seconds", help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, f64>(&program.run_time_s, None)?;
            encoder
                .encode_descriptor("program_runs", "Packets that took it", None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, f64>(&program.runs, None)?;
        }
        let mut metric =
            encoder.encode_descriptor("packets", "Packets by what became of them", None, MetricType::Counter)?;
        for outcome in &self.counters.outcomes {
            let labels = [("outcome", outcome.name.as_str())];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&outcome.packets, None)?;
        }
        let mut metric = encoder.encode_descriptor(
            "interface",
            "Where the program is attached, and how",
            None,
            MetricType::Gauge,
        )?;
        for interface in &self.status.datapath.interfaces {
            gauge(&mut metric, &[("interface", interface.name.as_str()), ("mode", interface.mode.as_str())], 1)?;
        }
        // An info metric would be neater, but what reads the older text format does not know the type.
        let mut metric = encoder.encode_descriptor("build_info", "This build", None, MetricType::Gauge)?;
        gauge(&mut metric, &[("version", env!("CARGO_PKG_VERSION"))], 1)
    }
}

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.services(&mut encoder)?;
        self.backends(&mut encoder)?;
        self.running_drains(&mut encoder)?;
        self.datapath(&mut encoder)
    }
}

fn gauge<const N: usize>(metric: &mut MetricEncoder<'_>, labels: &[(&str, &str); N], value: u64) -> fmt::Result {
    metric.encode_family(labels)?.encode_gauge(&value)
}

#[cfg(test)]
mod tests;
