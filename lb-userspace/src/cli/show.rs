//! What people see of the daemon's answers. What scripts see is the answers themselves.

use std::{
    io::{self, Write},
    time::Duration,
};

use super::{
    progress::Look,
    table::{Align, Table},
};
use crate::{
    api::wire::ServiceView,
    config::health,
    control::{
        duration::{self, Limit},
        hold::HoldResult,
        model::{
            BackendStatus, CutPolicy, DatapathStatus, DrainStatus, Echo, FlowState, FlowView, Forward, LastDrain,
            Outcome, ServiceStatus, State, Status, WhenUnhealthy,
        },
    },
};

/// `ebb status`.
pub(super) fn status(out: &mut impl Write, status: &Status) -> io::Result<()> {
    for service in &status.services {
        service_block(out, service)?;
        writeln!(out)?;
    }
    if status.services.is_empty() {
        writeln!(out, "no services; add one with \"ebb service add\"")?;
    }
    datapath(out, &status.datapath)
}

/// A service's heading and its backends.
fn service_block(out: &mut impl Write, service: &ServiceStatus) -> io::Result<()> {
    writeln!(
        out,
        "{}  {}  {}  drain timeout {}, then {}",
        service.name,
        service.vip,
        forward(service.forward),
        service.drain_timeout_s,
        policy(service.on_drain_timeout),
    )?;
    backends_block(out, &service.name, &service.backends)
}

/// `ebb service show`.
pub(super) fn service(out: &mut impl Write, service: &ServiceView) -> io::Result<()> {
    let ServiceView { revision, settings, backends } = service;
    let idle = match settings.idle_timeout_s {
        Some(idle) => idle.to_string(),
        None => "the default".to_owned(),
    };
    for (what, value) in [
        ("service", settings.name.clone()),
        ("vip", settings.vip.to_string()),
        ("forward", forward(settings.forward).to_owned()),
        ("drain timeout", settings.drain_timeout_s.to_string()),
        ("on drain timeout", policy(settings.on_drain_timeout).to_owned()),
        ("idle timeout", idle),
        ("fin quiet", settings.fin_quiet_s.to_string()),
        ("cut window", settings.cut_window_s.to_string()),
        ("drain idle", settings.drain_idle_s.to_string()),
        ("drain hold", drain_hold(settings.drain_hold_s, settings.on_hold_timeout)),
        ("slow start", settings.slow_start_s.to_string()),
        ("max out", settings.max_out.map_or_else(|| "none".to_owned(), |max| max.to_string())),
        ("affinity", settings.affinity.map_or_else(|| "none".to_owned(), |affinity| affinity.to_string())),
        ("health check", settings.health.as_ref().map_or_else(|| "none".to_owned(), health::describe)),
        ("unhealthy drain", settings.unhealthy_drain_s.to_string()),
        ("when unhealthy", when_unhealthy(settings.when_unhealthy).to_owned()),
        ("per datagram", if settings.per_datagram { "yes" } else { "no" }.to_owned()),
        ("quic cid", settings.quic_cid.map_or_else(|| "none".to_owned(), |cid| cid.to_string())),
        ("echo", echo(settings.echo).to_owned()),
        ("announce", if settings.announce { "yes" } else { "no" }.to_owned()),
        ("revision", revision.clone()),
    ] {
        writeln!(out, "{what:17} {value}")?;
    }
    writeln!(out)?;
    backends_block(out, &settings.name, backends)
}

fn backends_block(out: &mut impl Write, service: &str, list: &[BackendStatus]) -> io::Result<()> {
    if list.is_empty() {
        return writeln!(out, "  no backends; add one with \"ebb backend add {service}\"");
    }
    let mut text = Vec::new();
    backends(&mut text, list)?;
    for line in String::from_utf8_lossy(&text).lines() {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// `ebb backend list`.
pub(super) fn backends(out: &mut impl Write, backends: &[BackendStatus]) -> io::Result<()> {
    const SERVER_ID: usize = 2;
    let mut columns = vec![
        ("BACKEND", Align::Left),
        ("ADDRESS", Align::Left),
        ("WEIGHT", Align::Right),
        ("STATE", Align::Left),
        ("FLOWS", Align::Right),
        ("NEW", Align::Right),
        ("PACKETS", Align::Right),
        ("BYTES", Align::Right),
        ("NOTE", Align::Left),
    ];
    // Only where servers have to be told their ids.
    let ids = backends.iter().any(|backend| backend.server_id.is_some());
    if ids {
        columns.insert(SERVER_ID, ("SERVER-ID", Align::Left));
    }
    let mut table = Table::new(&columns);
    for backend in backends {
        let mut cells = vec![
            backend.name.clone(),
            backend.address.to_string(),
            backend.weight.to_string(),
            state(backend.state).to_owned(),
            backend.active_flows.to_string(),
            backend.new_flows_total.to_string(),
            backend.packets_total.to_string(),
            bytes(backend.bytes_total),
            note(backend),
        ];
        if ids {
            cells.insert(SERVER_ID, backend.server_id.map(|id| id.to_string()).unwrap_or_default());
        }
        table.row(cells);
    }
    table.write(out)
}

/// `ebb service list`.
pub(super) fn services(out: &mut impl Write, services: &[ServiceView]) -> io::Result<()> {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("VIP", Align::Left),
        ("FORWARD", Align::Left),
        ("DRAIN-TIMEOUT", Align::Right),
        ("ON-TIMEOUT", Align::Left),
        ("BACKENDS", Align::Right),
        ("ACTIVE", Align::Right),
        ("FLOWS", Align::Right),
    ]);
    for view in services {
        let active = view.backends.iter().filter(|b| b.state == State::Active);
        let flows: u64 = view.backends.iter().map(|b| b.active_flows).sum();
        let service = &view.settings;
        table.row([
            service.name.clone(),
            service.vip.to_string(),
            forward(service.forward).to_owned(),
            service.drain_timeout_s.to_string(),
            policy(service.on_drain_timeout).to_owned(),
            view.backends.len().to_string(),
            active.count().to_string(),
            flows.to_string(),
        ]);
    }
    table.write(out)
}

/// `ebb flows`.
pub(super) fn flows(out: &mut impl Write, flows: &[FlowView]) -> io::Result<()> {
    let mut table = Table::new(&[
        ("PROTO", Align::Left),
        ("CLIENT", Align::Left),
        ("VIP", Align::Left),
        ("BACKEND", Align::Left),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("IDLE", Align::Right),
    ]);
    for flow in flows {
        table.row([
            flow.protocol.to_string(),
            flow.client.to_string(),
            flow.vip.to_string(),
            format!("{}/{}", flow.service, flow.backend),
            flow_state(flow.state).to_owned(),
            rough(flow.age_s),
            rough(flow.idle_s),
        ]);
    }
    table.write(out)
}

/// A drain that is over, in words.
pub(super) fn ended(drain: &LastDrain) -> String {
    let took = drain.ended_at.duration_since(drain.started_at).unsigned_abs();
    let took = took_words(took);
    let word = outcome(drain.outcome);
    let cut = match (drain.outcome, drain.cut_flows) {
        (Outcome::Completed | Outcome::Deadline, 0) => ", no flow cut".to_owned(),
        (_, 0) => String::new(),
        (_, 1) => ", 1 flow cut".to_owned(),
        (_, cut) => format!(", {cut} flows cut"),
    };
    let idle = if drain.idle_flows > 0 { format!(", {} idle ended", drain.idle_flows) } else { String::new() };
    let held = drain.held.as_ref().filter(|held| held.result == HoldResult::Abandon);
    let hook = match held.map(|held| held.timed_out) {
        None => "",
        Some(false) => ", abandoned by its hook",
        Some(true) => ", abandoned as its hook did not answer",
    };
    format!("{word} after {took}{cut}{idle}{hook}")
}

/// A running drain as the progress bar needs it.
pub(super) fn look(drain: &DrainStatus) -> Look {
    let duration = |seconds: Option<f64>| seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Look {
        initial_flows: drain.initial_flows,
        remaining_flows: drain.remaining_flows,
        remaining: drain.remaining_s.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
        estimate: duration(drain.estimate_s),
        oldest: duration(drain.oldest_flow_s),
        held: drain.hold.as_ref().map(|hold| Duration::try_from_secs_f64(hold.remaining_s).unwrap_or_default()),
        rate_per_s: drain.rate_per_s,
    }
}

/// A state's word in the contract.
pub(super) fn state(state: State) -> &'static str {
    match state {
        State::Initial => "initial",
        State::Active => "active",
        State::Draining => "draining",
        State::Drained => "drained",
        State::Unhealthy => "unhealthy",
        State::UnhealthyDraining => "unhealthy_draining",
    }
}

/// An outcome's word in the contract.
pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Deadline => "deadline",
        Outcome::Forced => "forced",
        Outcome::Cancelled => "cancelled",
    }
}

fn forward(forward: Forward) -> &'static str {
    match forward {
        Forward::Dsr => "dsr",
        Forward::Nat => "nat",
        Forward::Tunnel => "tunnel",
    }
}

fn echo(echo: Echo) -> &'static str {
    match echo {
        Echo::Auto => "auto",
        Echo::Answer => "answer",
        Echo::Pass => "pass",
    }
}

fn when_unhealthy(when: WhenUnhealthy) -> &'static str {
    match when {
        WhenUnhealthy::FailOpen => "fail_open",
        WhenUnhealthy::Refuse => "refuse",
    }
}

fn drain_hold(hold: Limit, on_timeout: HoldResult) -> String {
    let word = match on_timeout {
        HoldResult::Continue => "continue",
        HoldResult::Abandon => "abandon",
    };
    if hold.0.is_some() { format!("{hold}, then {word}") } else { hold.to_string() }
}

fn policy(policy: CutPolicy) -> &'static str {
    match policy {
        CutPolicy::Reset => "reset",
        CutPolicy::Silent => "silent",
    }
}

fn flow_state(state: FlowState) -> &'static str {
    match state {
        FlowState::Opening => "opening",
        FlowState::Established => "established",
        FlowState::HalfClosed => "half_closed",
        FlowState::Closing => "closing",
    }
}

fn note(backend: &BackendStatus) -> String {
    let removing = if backend.removing { "removing; " } else { "" };
    match (&backend.drain, backend.state, &backend.last_drain) {
        (Some(drain), _, _) => format!("{removing}{}", look(drain)),
        (None, State::Drained, Some(last)) => format!("{removing}{}", ended(last)),
        _ => format!("{removing}{}", backend.reason),
    }
}

fn datapath(out: &mut impl Write, datapath: &DatapathStatus) -> io::Result<()> {
    let interfaces: Vec<String> =
        datapath.interfaces.iter().map(|interface| format!("{} ({})", interface.name, interface.mode)).collect();
    let flows = &datapath.flows;
    writeln!(
        out,
        "on {}; flows: {} live, {} opening, {} closing, {} untracked, room for {}",
        if interfaces.is_empty() { "no interface".to_owned() } else { interfaces.join(", ") },
        flows.live,
        flows.opening,
        flows.closing,
        flows.untracked,
        flows.capacity,
    )?;
    if let Some(log) = &datapath.flow_log {
        writeln!(out, "flow log: {} lines written, {} lost", log.written, log.lost)?;
    }
    Ok(())
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut tenths = u128::from(count) * 10;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    if unit == 0 {
        return format!("{count}B");
    }
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
}

/// To the tenth below a minute, to the second above.
fn took_words(took: Duration) -> String {
    let tenths = took.as_millis() / 100;
    if took < Duration::from_mins(1) && !tenths.is_multiple_of(10) {
        format!("{}.{}s", tenths / 10, tenths % 10)
    } else {
        duration::format(Duration::from_secs(took.as_secs()))
    }
}

fn rough(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO);
    if whole < Duration::from_secs(1) {
        duration::format(Duration::from_millis(whole.as_millis() as u64))
    } else {
        duration::format(Duration::from_secs(whole.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::hold::Held;

    #[test]
    fn bytes_are_rounded_down_to_a_unit() {
        for (count, text) in [(0, "0B"), (999, "999B"), (1000, "1.0kB"), (1_250_000, "1.2MB"), (u64::MAX, "18446.7PB")]
        {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn an_ended_drain_names_its_outcome() {
        let mut drain = LastDrain {
            started_at: "2026-01-01T00:00:00Z".parse().expect("a time"),
            ended_at: "2026-01-01T00:00:42.5Z".parse().expect("a time"),
            outcome: Outcome::Completed,
            initial_flows: 3,
            cut_flows: 0,
            idle_flows: 0,
            held: None,
        };
        assert_eq!(ended(&drain), "completed after 42.5s, no flow cut");
        drain.outcome = Outcome::Deadline;
        drain.cut_flows = 2;
        assert_eq!(ended(&drain), "deadline after 42.5s, 2 flows cut");
        drain.idle_flows = 3;
        let since = drain.started_at;
        drain.held = Some(Held { since, result: HoldResult::Abandon, timed_out: false });
        assert_eq!(ended(&drain), "deadline after 42.5s, 2 flows cut, 3 idle ended, abandoned by its hook");
    }
}
