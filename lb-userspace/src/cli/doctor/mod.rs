//! `ebb doctor`: what stands in the way here, and the command that mends it.

mod device;
mod interface;
pub(super) mod machine;

use std::io::{self, Write};

use serde::Serialize;

use super::{
    failure::{Exit, Failure},
    print::Printer,
};
use crate::{
    api::client::{Client, ClientError},
    control::{
        model::{Forward, State, Status},
        vip::Vip,
    },
    net::links,
};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could, or not in every case.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at: `kernel`, `eth0: offloads`.
    pub(super) check: String,
    /// How bad it is.
    pub(super) level: Level,
    /// What was found.
    pub(super) detail: String,
    /// The command that mends it, where there is one.
    pub(super) fix: Option<String>,
}

impl Finding {
    /// Nothing to do.
    pub(super) fn ok(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Ok, detail: detail.into(), fix: None }
    }

    /// Something to do.
    pub(super) fn bad(
        level: Level,
        check: impl Into<String>,
        detail: impl Into<String>,
        fix: impl Into<Option<String>>,
    ) -> Self {
        Self { check: check.into(), level, detail: detail.into(), fix: fix.into() }
    }
}

/// Everything looked at.
#[derive(Debug, Serialize)]
struct Report {
    healthy: bool,
    checks: Vec<Finding>,
}

/// `ebb doctor`.
pub(super) async fn doctor(wanted: &[String], client: &Client, print: Printer) -> Result<Exit, Failure> {
    let daemon = client.status(None).await;
    let mut checks = machine::findings();
    let running: Vec<String> =
        daemon.iter().flat_map(|status| &status.datapath.interfaces).map(|interface| interface.name.clone()).collect();
    let services = daemon.iter().flat_map(|status| &status.services);
    let nat: Vec<Vip> = services.filter(|service| service.forward == Forward::Nat).map(|service| service.vip).collect();
    checks.extend(machine::forwarding(&nat, &running));
    checks.extend(interfaces(if wanted.is_empty() { &running } else { wanted }, &running));
    checks.extend(of_daemon(&daemon, client));
    let healthy = checks.iter().all(|finding| finding.level < Level::Fail);
    print.show(&Report { healthy, checks }, write)?;
    Ok(if healthy { Exit::Done } else { Exit::Failed })
}

/// The named interfaces; without names, those that could be balanced on.
fn interfaces(names: &[String], running: &[String]) -> Vec<Finding> {
    let links = match links::list() {
        Ok(links) => links,
        Err(error) => {
            return vec![Finding::bad(Level::Fail, "interfaces", format!("cannot list them: {error}"), None)];
        }
    };
    if names.is_empty() {
        let candidates = links.iter().filter(|link| link.up && link.mac.is_some() && link.name != "lo");
        return candidates.flat_map(|link| interface::findings(link, false)).collect();
    }
    let mut findings = Vec::new();
    for name in names {
        if let Some(link) = links.iter().find(|link| link.name == *name) {
            findings.extend(interface::findings(link, running.contains(name)));
            continue;
        }
        if running.contains(name) {
            let detail = "the daemon balances on it, in another network namespace than this one";
            let fix = "nsenter --net=/run/netns/NAME ebb doctor".to_owned();
            findings.push(Finding::bad(Level::Warn, name, detail, Some(fix)));
            continue;
        }
        let known: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        let detail = format!("there is no interface '{name}'; there are {}", known.join(", "));
        findings.push(Finding::bad(Level::Fail, name, detail, Some("ip link".to_owned())));
    }
    findings
}

fn of_daemon(daemon: &Result<Status, ClientError>, client: &Client) -> Vec<Finding> {
    let status = match daemon {
        Ok(status) => status,
        Err(ClientError::NoDaemon { .. }) => {
            let detail = format!("none answers at {}", client.place());
            return vec![Finding::bad(Level::Warn, "daemon", detail, Some("ebb run -i IFACE".to_owned()))];
        }
        Err(error) => return vec![Finding::bad(Level::Fail, "daemon", error.to_string(), None)],
    };
    let detail = format!("answers at {}, {} services", client.place(), status.services.len());
    let mut findings = vec![Finding::ok("daemon", detail)];
    for service in &status.services {
        let fails = |state| matches!(state, State::Initial | State::Unhealthy | State::UnhealthyDraining);
        for backend in service.backends.iter().filter(|backend| fails(backend.state)) {
            findings.push(Finding::bad(
                Level::Warn,
                format!("{}/{}", service.name, backend.name),
                format!("gets no new flows: {}", backend.reason),
                Some(format!("ping -c1 {ip}; ip neigh get {ip} dev IFACE", ip = backend.address.ip)),
            ));
        }
    }
    let flows = &status.datapath.flows;
    if flows.untracked > 0 {
        findings.push(Finding::bad(
            Level::Warn,
            "flow table",
            format!("{} flows found it full (room for {})", flows.untracked, flows.capacity),
            Some(format!("ebb unload, then ebb run --max-flows {}", flows.capacity.saturating_mul(2))),
        ));
    }
    findings
}

fn write(out: &mut Vec<u8>, report: &Report) -> io::Result<()> {
    for finding in &report.checks {
        let level = match finding.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        writeln!(out, "{level}  {}: {}", finding.check, finding.detail)?;
        if let Some(fix) = &finding.fix {
            writeln!(out, "        try: {fix}")?;
        }
    }
    Ok(())
}
