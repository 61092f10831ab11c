//! Health checks: a task for each backend of a service that has a check, and what they find told to the engine. When checks make
//! a backend healthy or unhealthy is the control core's affair.

pub(super) mod http;
mod probe;
mod schedule;
#[cfg(test)]
mod tests;
mod vip;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::Instant,
};

use super::handle::{CheckReport, CheckTarget, Handle};
use crate::{
    control::{duration, model::Check},
    descriptors,
};

pub use super::fault::Fault;
pub use probe::NetworkProber;

/// Checks over the network that may be under way at once; no more than a quarter of the descriptors that the process may have.
pub(crate) const NETWORK_LIMIT: usize = 512;
/// Commands that may run at once.
pub(crate) const COMMAND_LIMIT: usize = 16;
/// A warning that checks cannot be made is not repeated sooner.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// Carries out one check.
pub trait Prober: Send + Sync + 'static {
    /// Fails with what was seen, or with why nothing could be. The time is limited by the caller, who drops what takes too long.
    fn probe<'a>(&'a self, target: &'a CheckTarget) -> BoxFuture<'a, Result<(), Fault>>;
}

/// Checks what there is to be checked until `shutdown`.
pub async fn run(handle: Handle, prober: Arc<dyn Prober>, shutdown: impl Future<Output = ()>) {
    let targets = handle.check_targets();
    let shared = Arc::new(Shared {
        handle,
        prober,
        network: Semaphore::new(NETWORK_LIMIT.min(descriptors::limit() / 4).max(1)),
        commands: Semaphore::new(COMMAND_LIMIT),
        warned: Mutex::default(),
    });
    tokio::select! {
        () = follow(targets, &shared) => {}
        () = shutdown => {}
    }
}

struct Shared {
    handle: Handle,
    prober: Arc<dyn Prober>,
    network: Semaphore,
    commands: Semaphore,
    /// When it was last said that a check could not be made.
    warned: Mutex<Option<Instant>>,
}

impl Shared {
    /// Whoever is short of something is so for every check: said once, that is enough.
    fn warn(&self, target: &CheckTarget, why: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
            *warned = Some(Instant::now());
            tracing::warn!(
                "{}/{} cannot be checked, and maybe others: {why}; until they can be, they stay as they are",
                target.service,
                target.backend
            );
        }
    }
}

/// A backend being checked; dropping it ends that.
struct Checked {
    target: CheckTarget,
    task: JoinHandle<()>,
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a task for each target, and the tasks of those that stay as they are.
async fn follow(mut targets: watch::Receiver<Arc<Vec<CheckTarget>>>, shared: &Arc<Shared>) {
    let mut checked: HashMap<(String, String), Checked> = HashMap::new();
    loop {
        let wanted = targets.borrow_and_update().clone();
        let mut before = std::mem::take(&mut checked);
        let mut fresh = Vec::new();
        for target in wanted.iter() {
            let key = (target.service.clone(), target.backend.clone());
            match before.remove(&key) {
                Some(same) if same.target == *target => drop(checked.insert(key, same)),
                _ => fresh.push((key, target)),
            }
        }
        drop(before);
        let count = fresh.len();
        for (key, target) in fresh {
            let first = schedule::first(target, count);
            let task = tokio::spawn(check_for_ever(target.clone(), first, shared.clone()));
            checked.insert(key, Checked { target: target.clone(), task });
        }
        if targets.changed().await.is_err() {
            return;
        }
    }
}

async fn check_for_ever(target: CheckTarget, first: Duration, shared: Arc<Shared>) {
    tokio::time::sleep(first).await;
    for round in 0.. {
        let begun = Instant::now();
        let seen = match check(&target, &shared).await {
            Ok(()) => Some((true, String::new())),
            Err(Fault::Theirs(seen)) => Some((false, seen)),
            Err(Fault::Own(why)) => {
                shared.warn(&target, &why);
                None
            }
        };
        if let Some((passed, detail)) = seen {
            let (service, backend) = (target.service.clone(), target.backend.clone());
            shared.handle.report_check(CheckReport { service, backend, passed, detail }).await;
        }
        tokio::time::sleep_until(begun + schedule::interval(&target, round)).await;
    }
}

async fn check(target: &CheckTarget, shared: &Shared) -> Result<(), Fault> {
    let places = match target.health.check {
        Check::Command { .. } => &shared.commands,
        _ => &shared.network,
    };
    // They are never closed.
    let _place = places.acquire().await;
    let timeout = target.health.timeout_s.0;
    let limited = tokio::time::timeout(timeout, shared.prober.probe(target)).await;
    limited.unwrap_or_else(|_| Err(Fault::Theirs(format!("no answer within {}", duration::format(timeout)))))
}
