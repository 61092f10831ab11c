//! What is shown of it all.

use super::{Error, model::State};
use super::{
    model::{BackendStatus, DatapathStatus, DrainStarted, InterfaceStatus, ServiceStatus, Status, WaitFor, WaitResult},
    state::{
        Now,
        balancer::{Balancer, Departed},
        service::{Entry, Service},
    },
};
use crate::datapath::{FlowTotals, InterfaceInfo};

/// `ebb status`, of one service or of all.
pub fn status(
    balancer: &Balancer,
    service: Option<&str>,
    interfaces: &[InterfaceInfo],
    flows: FlowTotals,
    now: Now,
) -> Result<Status, Error> {
    let services = match service {
        Some(name) => vec![self::service(&balancer.services[balancer.find(name)?], now)],
        None => balancer.services.iter().map(|service| self::service(service, now)).collect(),
    };
    let interfaces = interfaces
        .iter()
        .map(|interface| InterfaceStatus { name: interface.name.clone(), mode: interface.mode.clone() })
        .collect();
    Ok(Status { services, datapath: DatapathStatus { interfaces, flows, flow_log: None } })
}

fn service(service: &Service, now: Now) -> ServiceStatus {
    ServiceStatus {
        name: service.spec.name.clone(),
        vip: service.spec.vip,
        forward: service.spec.forward,
        drain_timeout_s: service.spec.drain_timeout_s,
        on_drain_timeout: service.spec.on_drain_timeout,
        backends: service.backends.iter().map(|entry| backend(service, entry, now)).collect(),
    }
}

/// One of a service's backends.
pub fn backend(service: &Service, entry: &Entry, now: Now) -> BackendStatus {
    let totals = entry.totals();
    let machine = &entry.machine;
    BackendStatus {
        name: entry.spec.name.clone(),
        address: entry.spec.address,
        weight: entry.spec.weight,
        server_id: service.server_id(entry),
        state: machine.state,
        reason: machine.reason.clone(),
        since: machine.since,
        removing: machine.removing,
        active_flows: machine.live,
        new_flows_total: totals.new_flows,
        finished_flows_total: entry.finished,
        reset_flows_total: totals.resets,
        packets_total: totals.packets,
        bytes_total: totals.bytes,
        drain: machine.drain.as_ref().map(|drain| drain.status(now)),
        last_drain: machine.last_drain.clone(),
    }
}

/// The answer to a drain.
pub fn drain_started(service: &str, entry: &Entry, now: Now) -> DrainStarted {
    DrainStarted {
        service: service.to_owned(),
        backend: entry.spec.name.clone(),
        state: entry.machine.state,
        drain: entry.machine.drain.as_ref().map(|drain| drain.status(now)),
        last_drain: entry.machine.last_drain.clone(),
    }
}

/// The answer to a wait, if what is waited for has come: `None` means wait on.
pub fn awaited(balancer: &Balancer, service: &str, name: &str, what: WaitFor) -> Option<Result<WaitResult, Error>> {
    let result =
        |state, last_drain| WaitResult { service: service.to_owned(), backend: name.to_owned(), state, last_drain };
    let (at, backend) = match balancer.find_backend(service, name) {
        Ok(found) => found,
        Err(error) => {
            let departed = |departed: &&Departed| departed.service == service && departed.backend == name;
            let departed = balancer.departed.iter().rev().find(departed).filter(|_| what == WaitFor::Drained);
            return Some(departed.map(|departed| result(None, departed.last_drain.clone())).ok_or(error));
        }
    };
    let machine = &balancer.services[at].backends[backend].machine;
    let done = match what {
        WaitFor::Active => machine.state == State::Active,
        WaitFor::Drained => {
            machine.drain.is_none() && (machine.state == State::Drained || machine.last_drain.is_some())
        }
    };
    done.then(|| Ok(result(Some(machine.state), machine.last_drain.clone())))
}
