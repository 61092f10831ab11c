//! The commands that ask once and print the answer.

use std::{io::Write, net::Ipv6Addr};

use super::{
    args::{FlowsArgs, ServiceSettings},
    failure::{Exit, Failure},
    print::Printer,
    show,
};
use crate::{
    api::{client::Client, wire::Flows},
    config::file::NewService,
    control::{
        Error,
        model::{BackendPatch, BackendSpec, Protocol, ServicePatch, Status},
        vip::Vip,
    },
    datapath::Forward,
};

type Done = Result<Exit, Failure>;

/// An address for examples (RFC 3849).
const DOCUMENTATION: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// `ebb status`.
pub(super) async fn status(service: Option<&str>, client: &Client, print: Printer) -> Done {
    let status: Status = client.status(service).await?;
    print.show(&status, show::status)?;
    Ok(Exit::Done)
}

/// `ebb flows`.
pub(super) async fn flows(args: &FlowsArgs, client: &Client, print: Printer) -> Done {
    let scope = args.scope.as_ref().map(|scope| (scope.service.as_str(), scope.backend.as_deref()));
    let flows = client.flows(scope, args.limit).await?;
    print.show(&flows, |out, Flows { flows, truncated }| {
        show::flows(out, flows)?;
        if *truncated {
            writeln!(out, "there may be more: --limit shows them")?;
        }
        Ok(())
    })?;
    Ok(Exit::Done)
}

/// `ebb service add`.
pub(super) async fn add_service(
    name: &str,
    vip: Vip,
    forward: Option<Forward>,
    settings: &ServiceSettings,
    client: &Client,
    print: Printer,
) -> Done {
    let health = settings.check.health(None).map_err(|error| usage(&error))?;
    let service = NewService { name, vip, forward, settings: ServicePatch { health, ..settings.patch() } };
    service.check().map_err(|error| usage(&error))?;
    let added = client.add_service(&service).await?;
    print.say(&added, &format!("service {name} added: {vip}"))?;
    Ok(Exit::Done)
}

/// `ebb service list`.
pub(super) async fn list_services(client: &Client, print: Printer) -> Done {
    let list = client.services().await?;
    print.show(&list, |out, list| show::services(out, &list.services))?;
    Ok(Exit::Done)
}

/// `ebb service show`.
pub(super) async fn show_service(name: &str, client: &Client, print: Printer) -> Done {
    let service = client.service(name).await?;
    print.show(&service, show::service)?;
    Ok(Exit::Done)
}

/// `ebb service set`.
pub(super) async fn set_service(name: &str, settings: &ServiceSettings, client: &Client, print: Printer) -> Done {
    check_alone(name, settings).map_err(|error| usage(&error))?;
    let present = if settings.check.build_on_present() { client.service(name).await?.settings.health } else { None };
    let health = settings.check.health(present.as_ref()).map_err(|error| usage(&error))?;
    let patch = ServicePatch { health, ..settings.patch() };
    if patch == ServicePatch::default() {
        return Err(Failure::usage("nothing to change: name a setting, see \"ebb service set --help\""));
    }
    let service = client.set_service(name, &patch).await?;
    print.say(&service, &format!("service {name} changed"))?;
    Ok(Exit::Done)
}

/// Refuses what no service could be set to. Whether this one can, the daemon knows.
fn check_alone(name: &str, settings: &ServiceSettings) -> Result<(), Error> {
    let settings = ServicePatch { health: settings.check.alone()?, ..settings.patch() };
    // Some settings are for UDP only, and a prefix may be as long as the VIP: this one takes all.
    let vip = Vip { address: (DOCUMENTATION, 1).into(), protocol: Protocol::Udp };
    NewService { name, vip, forward: None, settings }.check()
}

fn usage(error: &Error) -> Failure {
    Failure::usage(error.to_string())
}

/// `ebb service remove`.
pub(super) async fn remove_service(name: &str, now: bool, client: &Client, print: Printer) -> Done {
    let removal = client.remove_service(name, now).await?;
    let sentence = if removal.removed {
        format!("service {name} removed")
    } else {
        format!("service {name} is draining and will then be removed; see \"ebb status {name}\"")
    };
    print.say(&removal, &sentence)?;
    Ok(Exit::Done)
}

/// `ebb backend add`.
pub(super) async fn add_backend(service: &str, spec: &BackendSpec, client: &Client, print: Printer) -> Done {
    let added = client.add_backend(service, spec).await?;
    let (name, address, state) = (&spec.name, spec.address, show::state(added.backend.state));
    let id = added.backend.server_id.map(|id| format!(", server id {id}")).unwrap_or_default();
    let sentence = format!("backend {service}/{name} added: {address}{id}, {state}");
    print.say(&added, &sentence)?;
    Ok(Exit::Done)
}

/// `ebb backend list`.
pub(super) async fn list_backends(service: &str, client: &Client, print: Printer) -> Done {
    let list = client.backends(service).await?;
    print.show(&list, |out, list| show::backends(out, &list.backends))?;
    Ok(Exit::Done)
}

/// `ebb backend set`.
pub(super) async fn set_backend(
    service: &str,
    name: &str,
    patch: &BackendPatch,
    client: &Client,
    print: Printer,
) -> Done {
    let backend = client.set_backend(service, name, patch).await?;
    print.say(&backend, &format!("backend {service}/{name} changed"))?;
    Ok(Exit::Done)
}
