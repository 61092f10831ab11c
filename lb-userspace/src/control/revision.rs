//! A short name for what is configured, by which a change can be refused that was thought out on something older.
//!
//! It says nothing of states, counts or drains: those change by themselves. It is made from the configuration alone, so it is the
//! same after a restart, and the same again when a change is taken back.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Error, state::service::Service};

/// What a revision is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All services and their backends.
    All,
    /// One service and its backends.
    Service(String),
}

/// The revision of a part of the configuration.
pub fn of(services: &[Service], scope: &Scope) -> Result<String, Error> {
    let mut hasher = DefaultHasher::new();
    match scope {
        Scope::All => services.iter().for_each(|service| add(service, &mut hasher)),
        Scope::Service(name) => {
            let found = services.iter().find(|service| service.spec.name == *name);
            let missing =
                || Error::NotFound(format!("there is no service '{name}': 'ebb service list' shows those there are"));
            add(found.ok_or_else(missing)?, &mut hasher);
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Refuses when none of `known` is the revision now.
pub fn check(services: &[Service], scope: &Scope, known: &[String]) -> Result<(), Error> {
    let now = of(services, scope)?;
    if known.contains(&now) {
        return Ok(());
    }
    let (what, command) = match scope {
        Scope::All => ("the configuration".to_owned(), "ebb service list -o json".to_owned()),
        Scope::Service(name) => (format!("service '{name}'"), format!("ebb service show {name}")),
    };
    Err(Error::Changed(format!(
        "{what} has changed: its revision is {now}, not {}; look at it again ('{command}') and repeat the change if it is still right",
        known.join(" or ")
    )))
}

fn add(service: &Service, hasher: &mut DefaultHasher) {
    let backends = service.backends.iter().map(|entry| (&entry.spec, entry.machine.removing));
    let all = (&service.spec, service.removing, backends.collect::<Vec<_>>());
    // Plain data, which always can be written.
    serde_json::to_string(&all).unwrap_or_default().hash(hasher);
}
