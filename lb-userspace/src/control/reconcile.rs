//! From what there is to what a file wants.

use super::{
    Error,
    model::{BackendPatch, BackendSpec, Change, ChangeAction, ServicePatch, ServiceSpec, WantedService},
    quic::ServerId,
    state::service::Service,
    validate,
};

/// A step on the way, and how it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What is told.
    pub changes: Vec<Change>,
    /// What is done.
    pub command: Command,
}

/// What a [`Step`] does.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Add a service.
    AddService(Box<ServiceSpec>),
    /// Change its settings.
    SetService(String, Box<ServicePatch>),
    /// Keep a service that was being removed.
    KeepService(String),
    /// Drain and remove it.
    RemoveService(String),
    /// Add backends.
    AddBackends(String, Vec<BackendSpec>),
    /// Change its weight or its server id.
    SetBackend(String, String, BackendPatch),
    /// Keep a backend that was being removed.
    KeepBackend(String, String),
    /// Drain and remove it.
    RemoveBackend(String, String),
}

/// The steps from `present` to `wanted`, additions first. Refuses, before anything is done, what cannot be done in place.
pub fn plan(present: &[Service], wanted: &[WantedService]) -> Result<Vec<Step>, Error> {
    check(wanted)?;
    let mut steps = Vec::new();
    for want in wanted {
        let name = &want.service.name;
        match present.iter().find(|service| &service.spec.name == name) {
            None => {
                refuse_taken_vip(present, &want.service)?;
                let detail = format!("{} by {}", want.service.vip, forward(&want.service));
                steps.push(step(
                    ChangeAction::Add,
                    name,
                    None,
                    detail,
                    Command::AddService(Box::new(want.service.clone())),
                ));
                steps.extend(add_backends(name, &want.backends));
            }
            Some(service) => {
                steps.extend(keep_service(service));
                steps.extend(give_up_ids(service, &want.backends));
                steps.extend(set_service(service, &want.service)?);
                steps.extend(backends(service, &want.backends)?);
            }
        }
    }
    for service in present.iter().filter(|service| !service.removing) {
        let name = &service.spec.name;
        if wanted.iter().all(|want| &want.service.name != name) {
            let detail = "drained and removed".to_owned();
            steps.push(step(ChangeAction::Remove, name, None, detail, Command::RemoveService(name.clone())));
        }
    }
    Ok(steps)
}

/// Whether the file makes sense by itself.
fn check(wanted: &[WantedService]) -> Result<(), Error> {
    for (at, want) in wanted.iter().enumerate() {
        validate::service(&want.service)?;
        let earlier = &wanted[..at];
        if earlier.iter().any(|other| other.service.name == want.service.name) {
            return Err(Error::Conflict(format!(
                "service {} is there twice: give each its own name",
                want.service.name
            )));
        }
        if let Some(other) = earlier.iter().find(|other| other.service.vip == want.service.vip) {
            return Err(Error::Conflict(format!(
                "services {} and {} have the same VIP {}: give each its own",
                other.service.name, want.service.name, want.service.vip
            )));
        }
        for (at, backend) in want.backends.iter().enumerate() {
            validate::backend(&want.service, backend)?;
            let endpoint = |backend: &BackendSpec| backend.address.endpoint(want.service.vip);
            let same = |other: &BackendSpec| other.name == backend.name || endpoint(other) == endpoint(backend);
            let clash = want.backends[..at].iter().any(same);
            let same_id = |other: &BackendSpec| other.server_id.is_some() && other.server_id == backend.server_id;
            if want.backends[..at].iter().any(same_id) {
                return Err(Error::Conflict(format!(
                    "backend {}/{}: its server id is there twice: give each its own",
                    want.service.name, backend.name
                )));
            }
            if clash {
                return Err(Error::Conflict(format!(
                    "backend {}/{}: its name or address is there twice: give each its own",
                    want.service.name, backend.name
                )));
            }
        }
    }
    Ok(())
}

/// A service that has been given another name is refused: its flows would have to be cut for it.
fn refuse_taken_vip(present: &[Service], wanted: &ServiceSpec) -> Result<(), Error> {
    let Some(other) = present.iter().find(|service| service.spec.vip == wanted.vip) else { return Ok(()) };
    Err(Error::Conflict(format!(
        "{} is service {}'s, which cannot change its name: leave {} its name, or apply a file without it first, and this one once it is gone",
        wanted.vip, other.spec.name, wanted.name
    )))
}

/// Likewise a backend, whether it goes with this file or is still going.
fn refuse_taken_address(service: &Service, wanted: &BackendSpec) -> Result<(), Error> {
    let name = &service.spec.name;
    let endpoint = |backend: &BackendSpec| backend.address.endpoint(service.spec.vip);
    let holder = service.backends.iter().find(|entry| endpoint(&entry.spec) == endpoint(wanted));
    let Some(holder) = holder else { return Ok(()) };
    let holder = &holder.spec.name;
    Err(Error::Conflict(format!(
        "backend {name}/{new}: {} is {name}/{holder}'s, which cannot change its name: call {new} {holder}, or apply a file with neither \
         first, and this one once 'ebb wait {name}/{holder}' has ended",
        wanted.address,
        new = wanted.name
    )))
}

fn keep_service(service: &Service) -> Option<Step> {
    let name = &service.spec.name;
    let command = Command::KeepService(name.clone());
    service.removing.then(|| step(ChangeAction::Set, name, None, "kept after all".to_owned(), command))
}

fn set_service(service: &Service, wanted: &ServiceSpec) -> Result<Option<Step>, Error> {
    let name = &service.spec.name;
    if service.spec.vip != wanted.vip || service.spec.forward != wanted.forward {
        return Err(Error::Conflict(format!(
            "service {name}: its VIP and its forwarding cannot change while it runs: give the new one another name, or remove this one first"
        )));
    }
    if service.spec == *wanted {
        return Ok(None);
    }
    let patch = Box::new(whole_patch(wanted));
    let detail = differences(&service.spec, wanted);
    Ok(Some(step(ChangeAction::Set, name, None, detail, Command::SetService(name.clone(), patch))))
}

/// `drain_timeout_s 90 to 60, …`: the settings that differ, by their names on the wire.
fn differences(present: &ServiceSpec, wanted: &ServiceSpec) -> String {
    let fields =
        |spec| serde_json::to_value(spec).ok().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let (present, wanted) = (fields(present), fields(wanted));
    let differing = wanted.iter().filter_map(|(name, wanted)| {
        let present = present.get(name).unwrap_or(&serde_json::Value::Null);
        (present != wanted).then(|| format!("{name} {present} to {wanted}"))
    });
    differing.collect::<Vec<_>>().join(", ")
}

/// A patch that makes every setting the wanted one.
fn whole_patch(wanted: &ServiceSpec) -> ServicePatch {
    ServicePatch {
        drain_timeout_s: Some(wanted.drain_timeout_s),
        on_drain_timeout: Some(wanted.on_drain_timeout),
        cut_window_s: Some(wanted.cut_window_s),
        drain_idle_s: Some(wanted.drain_idle_s),
        drain_hold_s: Some(wanted.drain_hold_s),
        on_hold_timeout: Some(wanted.on_hold_timeout),
        idle_timeout_s: Some(wanted.idle_timeout_s),
        fin_quiet_s: Some(wanted.fin_quiet_s),
        affinity: Some(wanted.affinity),
        per_datagram: Some(wanted.per_datagram),
        quic_cid: Some(wanted.quic_cid),
        echo: Some(wanted.echo),
        announce: Some(wanted.announce),
        slow_start_s: Some(wanted.slow_start_s),
        max_out: Some(wanted.max_out),
        when_unhealthy: Some(wanted.when_unhealthy),
        unhealthy_drain_s: Some(wanted.unhealthy_drain_s),
        health: Some(wanted.health.clone()),
    }
}

/// Backends whose server id changes give theirs up first, or one could not have another's, nor the service a longer form.
fn give_up_ids(service: &Service, wanted: &[BackendSpec]) -> Vec<Step> {
    let changes = |spec: &BackendSpec| {
        let want = wanted.iter().find(|want| want.name == spec.name);
        spec.server_id.is_some() && want.is_some_and(|want| want.server_id != spec.server_id)
    };
    let changing = service.backends.iter().map(|entry| &entry.spec).filter(|spec| changes(spec));
    let patch = BackendPatch { server_id: Some(None), ..BackendPatch::default() };
    let give_up = |spec: &BackendSpec| {
        let command = Command::SetBackend(service.spec.name.clone(), spec.name.clone(), patch.clone());
        // What it comes to is told where the new one is set.
        Step { changes: Vec::new(), command }
    };
    changing.map(give_up).collect()
}

fn backends(service: &Service, wanted: &[BackendSpec]) -> Result<Vec<Step>, Error> {
    let name = &service.spec.name;
    let new: Vec<&BackendSpec> = wanted.iter().filter(|want| service.position(&want.name).is_none()).collect();
    new.iter().try_for_each(|want| refuse_taken_address(service, want))?;
    let mut steps: Vec<Step> = add_backends(name, new).into_iter().collect();
    for want in wanted {
        let Some(at) = service.position(&want.name) else { continue };
        let entry = &service.backends[at];
        let backend = Some(want.name.clone());
        if entry.spec.address.endpoint(service.spec.vip) != want.address.endpoint(service.spec.vip) {
            return Err(Error::Conflict(format!(
                "backend {name}/{}: its address cannot change while it runs: give the new one another name, or remove this one first",
                want.name
            )));
        }
        if entry.machine.removing {
            let command = Command::KeepBackend(name.clone(), want.name.clone());
            steps.push(step(ChangeAction::Set, name, backend.clone(), "kept after all".to_owned(), command));
        }
        if entry.spec.weight != want.weight {
            let patch = BackendPatch { weight: Some(want.weight), ..BackendPatch::default() };
            let detail = format!("weight {} to {}", entry.spec.weight, want.weight);
            let command = Command::SetBackend(name.clone(), want.name.clone(), patch);
            steps.push(step(ChangeAction::Set, name, backend.clone(), detail, command));
        }
        if entry.spec.server_id != want.server_id {
            let patch = BackendPatch { server_id: Some(want.server_id), ..BackendPatch::default() };
            let word = |id: Option<ServerId>| id.map_or_else(|| "assigned".to_owned(), |id| id.to_string());
            let detail = format!("server id {} to {}", word(entry.spec.server_id), word(want.server_id));
            let command = Command::SetBackend(name.clone(), want.name.clone(), patch);
            steps.push(step(ChangeAction::Set, name, backend, detail, command));
        }
    }
    for entry in service.backends.iter().filter(|entry| !entry.machine.removing) {
        if wanted.iter().all(|want| want.name != entry.spec.name) {
            let backend = entry.spec.name.clone();
            let command = Command::RemoveBackend(name.clone(), backend.clone());
            steps.push(step(ChangeAction::Remove, name, Some(backend), "drained and removed".to_owned(), command));
        }
    }
    Ok(steps)
}

fn add_backends<'a>(service: &str, specs: impl IntoIterator<Item = &'a BackendSpec>) -> Option<Step> {
    let specs: Vec<BackendSpec> = specs.into_iter().cloned().collect();
    let change = |spec: &BackendSpec| Change {
        action: ChangeAction::Add,
        service: service.to_owned(),
        backend: Some(spec.name.clone()),
        detail: format!("{} with weight {}", spec.address, spec.weight),
    };
    let changes: Vec<Change> = specs.iter().map(change).collect();
    (!specs.is_empty()).then(|| Step { changes, command: Command::AddBackends(service.to_owned(), specs) })
}

fn step(action: ChangeAction, service: &str, backend: Option<String>, detail: String, command: Command) -> Step {
    Step { changes: vec![Change { action, service: service.to_owned(), backend, detail }], command }
}

fn forward(spec: &ServiceSpec) -> &'static str {
    match spec.forward {
        super::model::Forward::Dsr => "dsr",
        super::model::Forward::Nat => "nat",
        super::model::Forward::Tunnel => "tunnel",
    }
}
