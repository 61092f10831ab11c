//! What is held against the promises after each step.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    faults::last,
    judge::{Judge, Sums, seats, unseated},
    ledger::Line,
    plan::{Place, Target},
    roster::{Role, backend_name},
    run::Run,
};
use crate::{traffic::End, wait_until};

/// How soon new connections must be made again.
const SERVES: Duration = Duration::from_secs(20);
/// How long a drain's end is left before it is judged: clients write ends down a little late.
pub(super) const RIPE: Duration = Duration::from_secs(2);
/// How old the daemon's counts may be when it tells them.
const STATUS_AGE: Duration = Duration::from_millis(300);
/// How late after its deadline a drain may still be seen to run.
const OVERDUE: Duration = Duration::from_secs(5);

impl Run {
    /// Holds everything against the promises.
    pub(super) fn check(&mut self) -> Result<()> {
        self.agrees()?;
        self.serves()?;
        self.judge();
        self.stays()
    }

    /// The daemon's status is what was answered and what clients see; it has a while to get there.
    pub(super) fn agrees(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (differences, compared) = self.differences()?;
            if differences.is_empty() {
                self.summary.counts += compared;
                return Ok(());
            }
            if begun.elapsed() > self.agrees_within {
                self.complain_all(differences);
                return Ok(());
            }
            last(200);
        }
    }

    /// Where the daemon's status differs from what it should be, and how many counts were compared.
    fn differences(&mut self) -> Result<(Vec<String>, usize)> {
        let from = Instant::now().checked_sub(STATUS_AGE).unwrap_or(self.begun);
        let status = self.answers()?;
        let to = Instant::now();
        self.ledger.observe(&status, &self.names);
        let accounts = self.world.accounts();
        self.summary.sums.at_once = self.summary.sums.at_once.max(accounts.sums(&self.ledger).at_once);
        let judge = Judge { services: &self.world.services, ledger: &self.ledger, accounts: &accounts };
        let mut differences = Vec::new();
        let mut compared = 0;
        for target in self.ledger.targets() {
            let name = format!("{}/{}", self.names[target.service], backend_name(target.backend));
            let backend = status.backend(&self.names[target.service], &backend_name(target.backend));
            differences.extend(
                self.misplaced(target, backend.map(|backend| backend.state.as_str()))
                    .map(|what| format!("{name} {what}")),
            );
            let Some(backend) =
                backend.filter(|_| matches!(self.world.services[target.service].role, Role::Short | Role::Long))
            else {
                continue;
            };
            let (least, most) = judge.bounds(target, from, to);
            compared += 1;
            if !(least as u64..=most as u64).contains(&backend.active_flows) {
                differences.push(format!(
                    "{name} has {} live flows by the daemon's account, and {least} to {most} by the clients'",
                    backend.active_flows
                ));
            }
        }
        Ok((differences, compared))
    }

    /// What is wrong with a backend's state.
    fn misplaced(&self, target: Target, state: Option<&str>) -> Option<String> {
        let place = self.ledger.place(target);
        let line = self.ledger.lines(target).last();
        let overdue = line.filter(|line| line.over.is_none()).and_then(Line::deadline).is_some_and(|deadline| {
            let now = Instant::now();
            now > deadline.to + OVERDUE && !self.ledger.is_disturbed(deadline.to, now)
        });
        if overdue && state == Some("draining") {
            return Some("drains past its deadline".to_owned());
        }
        let fits = match (place, state) {
            (Place::In, state) => state == Some("active"),
            (Place::Out, state) => matches!(state, Some("draining" | "drained")),
            // It may be on its way out.
            (Place::Gone | Place::Never, state) => matches!(state, None | Some("draining")),
        };
        (!fits).then(|| format!("is {}, and should be {place:?}", state.unwrap_or("not there")))
    }

    /// New connections are made.
    fn serves(&mut self) -> Result<()> {
        let before = self.world.opened();
        let more = wait_until("new connections in every service", SERVES, || {
            self.world.opened().iter().zip(&before).all(|((_, now), (_, before))| now > before)
        });
        if more.is_err() {
            let now = self.world.opened();
            let stuck = now.iter().zip(&before).filter(|((_, now), (_, before))| now == before);
            let stuck: Vec<&str> = stuck.map(|((service, _), _)| self.names[*service].as_str()).collect();
            self.complain(format!("no new connection for {SERVES:?} at {}", stuck.join(", ")));
        }
        for service in 0..self.world.services.len() {
            let extra = self.world.services[service].role == Role::Extra && self.ledger.has_service(service);
            let visitors = if extra { self.world.visit(service)? } else { Vec::new() };
            let failed = visitors.iter().filter(|c| !matches!(c.end, Some((End::Clean, _)))).count();
            if failed > 0 {
                self.complain(format!("{failed} of {} visits to {} failed", visitors.len(), self.names[service]));
            }
        }
        Ok(())
    }

    /// The accounts say that every promise was kept.
    pub(super) fn judge(&mut self) {
        let accounts = self.world.accounts();
        // Ends that are not ripe are left for the next time.
        let targets: Vec<Target> = self.ledger.targets().collect();
        let mut unripe = Vec::new();
        for &target in &targets {
            for (at, line) in self.ledger.lines_mut(target).iter_mut().enumerate() {
                if !line.judged && line.over.as_ref().is_none_or(|over| over.at.elapsed() < RIPE) {
                    line.judged = true;
                    unripe.push((target, at));
                }
            }
        }
        let judge = Judge { services: &self.world.services, ledger: &self.ledger, accounts: &accounts };
        let complaints = judge.complaints();
        self.summary.sums = Sums { at_once: self.summary.sums.at_once, ..accounts.sums(&self.ledger) };
        for target in targets {
            for (at, line) in self.ledger.lines_mut(target).iter_mut().enumerate() {
                if unripe.contains(&(target, at)) {
                    line.judged = false;
                } else if !std::mem::replace(&mut line.judged, true) {
                    let outcome = line.over.as_ref().map(|over| over.outcome.clone());
                    *self.summary.drains.entry(outcome.unwrap_or_default()).or_default() += 1;
                }
            }
        }
        self.complain_all(complaints);
    }

    /// Promises 6 and 7: no client is moved whose backend is in rotation.
    fn stays(&mut self) -> Result<()> {
        for (service, baseline) in self.baseline.clone() {
            let now = seats(&self.world.visit(service)?);
            self.summary.seats += now.len();
            let place = |server: &str| {
                let backend = server.trim_start_matches('b').parse().unwrap_or(0);
                self.ledger.place(Target { service, backend })
            };
            let moved = unseated(&baseline, &now, place);
            let name = self.names[service].clone();
            self.complain_all(moved.into_iter().map(|what| format!("{name}: {what}")));
        }
        Ok(())
    }
}
