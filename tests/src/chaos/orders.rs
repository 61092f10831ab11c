//! Commands of a run: how they are put to the daemon, and whether what was answered is what is so.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    ledger::Ledger,
    plan::{Command, Place, Target},
    roster::backend_name,
    world::World,
};
use crate::{
    lab::{Backend, Background, Output, Plan, Status},
    wait_until,
};

/// How long an answer may take once nothing is in the way.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// The longest drain of a removal.
const REMOVAL: Duration = Duration::from_mins(1);

/// A command that was given.
#[derive(Debug)]
pub(super) struct Given {
    command: Command,
    asked: Instant,
    before: Status,
    process: Background,
    answered: Option<Instant>,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The daemon said that it was done.
    Done,
    /// The daemon said that it was not.
    Refused,
    /// Nobody answered.
    Unanswered,
}

/// A command's end.
#[derive(Debug)]
pub(super) struct Ended {
    /// Which.
    pub command: Command,
    /// What was answered, if anything.
    pub fate: Fate,
    asked: Instant,
    answered: Instant,
    before: Status,
    /// What it printed as its error.
    pub said: String,
}

impl World {
    /// The words for it on Ebb's command line.
    pub(super) fn words(&self, command: Command) -> Vec<String> {
        let service = |number: usize| self.services[number].name.clone();
        let backend = |target: Target| format!("{}/{}", service(target.service), backend_name(target.backend));
        let host = |index| Plan::backend(crate::lab::Family::V4, index).to_string();
        let seconds = |timeout_ms: u32| format!("{timeout_ms}ms");
        let words: Vec<String> = match command {
            Command::Drain { target, timeout_ms, silent } => {
                let policy = if silent { "silent" } else { "reset" };
                vec![
                    "drain".into(),
                    backend(target),
                    "--timeout".into(),
                    seconds(timeout_ms),
                    "--on-timeout".into(),
                    policy.into(),
                ]
            }
            Command::Activate(target) => vec!["activate".into(), backend(target)],
            Command::Remove(Target { service: of, backend: index }) => {
                vec!["backend".into(), "remove".into(), service(of), backend_name(index)]
            }
            Command::RemoveNow(Target { service: of, backend: index }) => {
                vec!["backend".into(), "remove".into(), service(of), backend_name(index), "--now".into()]
            }
            Command::Add(Target { service: of, backend: index }) => {
                let address = Plan::backend(self.services[of].family, index).to_string();
                vec!["backend".into(), "add".into(), service(of), backend_name(index), address]
            }
            Command::DrainHost { backend: index, timeout_ms } => {
                vec!["drain".into(), "--address".into(), host(index), "--timeout".into(), seconds(timeout_ms)]
            }
            Command::ActivateHost(index) => vec!["activate".into(), "--address".into(), host(index)],
            Command::AddService(of) => {
                let (forward, timeout) = (self.services[of].forward.word(), self.services[of].drain_timeout_s());
                let vip = self.services[of].vip_text();
                let words = ["service", "add", &service(of), "--vip", &vip, "--forward", forward, "--drain-timeout"];
                words.iter().map(ToString::to_string).chain([timeout.to_string()]).collect()
            }
            Command::RemoveService { service: of, now } => {
                let words = ["service".to_owned(), "remove".to_owned(), service(of)];
                words.into_iter().chain(now.then(|| "--now".to_owned())).collect()
            }
        };
        words
    }

    /// Gives a command and does not wait for its answer.
    pub(super) fn give(&self, command: Command, ledger: &Ledger) -> Result<Given> {
        self.make_room(command, ledger)?;
        let before = self.ebb.status()?;
        self.give_knowing(command, before)
    }

    /// The same for a time when the daemon cannot be asked; `before` is how things stood.
    pub(super) fn give_knowing(&self, command: Command, before: Status) -> Result<Given> {
        let words = self.words(command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let asked = Instant::now();
        Ok(Given { command, asked, before, process: self.ebb.background(&words)?, answered: None })
    }

    /// What a command adds, or would keep, may still be on its way out.
    pub(super) fn make_room(&self, command: Command, ledger: &Ledger) -> Result<()> {
        let going = |status: &Status| match command {
            Command::Add(at) => status.backend(&self.services[at.service].name, &backend_name(at.backend)).is_some(),
            Command::AddService(of) => status.service(&self.services[of].name).is_some(),
            Command::DrainHost { backend, .. } | Command::ActivateHost(backend) => ledger.targets().any(|target| {
                target.backend == backend
                    && matches!(ledger.place(target), Place::Gone | Place::Never)
                    && status.backend(&self.services[target.service].name, &backend_name(backend)).is_some()
            }),
            _ => false,
        };
        let gone = wait_until("what was removed to be gone", REMOVAL, || {
            self.ebb.status().is_ok_and(|status| !going(&status))
        });
        gone.with_context(|| format!("before {}", self.words(command).join(" ")))
    }

    /// The backends that a command is about, as things stand.
    fn about(&self, command: Command, ledger: &Ledger) -> Vec<Target> {
        let all = |fits: &dyn Fn(Target) -> bool| ledger.targets().filter(|target| fits(*target)).collect();
        let here = |target: Target| self.services[target.service].family == crate::lab::Family::V4;
        match command {
            Command::Drain { target, .. }
            | Command::Activate(target)
            | Command::Remove(target)
            | Command::RemoveNow(target)
            | Command::Add(target) => vec![target],
            Command::DrainHost { backend, .. } => {
                all(&|t| t.backend == backend && here(t) && ledger.place(t) == Place::In)
            }
            Command::ActivateHost(backend) => {
                all(&|t| t.backend == backend && here(t) && ledger.place(t) == Place::Out)
            }
            Command::AddService(_) => Vec::new(),
            Command::RemoveService { service, .. } => {
                all(&|t| t.service == service && matches!(ledger.place(t), Place::In | Place::Out))
            }
        }
    }

    /// Whether a command is in force, given how things stood before and stand now.
    fn is_in_force(&self, ended: &Ended, after: &Status, ledger: &Ledger) -> bool {
        let seen = |status: &Status, target: Target| {
            status.backend(&self.services[target.service].name, &backend_name(target.backend)).cloned()
        };
        let is_out = |backend: &Backend| matches!(backend.state.as_str(), "draining" | "drained");
        let of = |target| (seen(&ended.before, target), seen(after, target));
        let each = |holds: &dyn Fn(Option<Backend>, Option<Backend>) -> bool| {
            let about = self.about(ended.command, ledger);
            about.into_iter().all(|target| {
                let (before, after) = of(target);
                holds(before, after)
            })
        };
        match ended.command {
            Command::Drain { .. } | Command::DrainHost { .. } => each(&|before, after| match (before, after) {
                (Some(before), Some(after)) if is_out(&before) => match (&before.drain, &after.drain) {
                    (Some(before), Some(after)) => before.deadline != after.deadline,
                    // It has ended meanwhile, with one deadline or the other.
                    _ => ended.fate == Fate::Done,
                },
                (_, Some(after)) => is_out(&after),
                (_, None) => false,
            }),
            Command::Activate(_) | Command::ActivateHost(_) => {
                each(&|_, after| after.is_some_and(|after| !is_out(&after)))
            }
            Command::Remove(_) | Command::RemoveNow(_) => each(&|_, after| after.as_ref().is_none_or(is_out)),
            Command::Add(_) => each(&|_, after| after.is_some()),
            Command::AddService(of) => after.service(&self.services[of].name).is_some(),
            Command::RemoveService { service, .. } => {
                let left = after.service(&self.services[service].name);
                left.is_none_or(|left| left.backends.iter().all(is_out))
            }
        }
    }

    /// Notes what a command led to; what was answered and is not so is a complaint. True when it is in force.
    pub(super) fn settle(
        &self,
        ended: &Ended,
        after: &Status,
        ledger: &mut Ledger,
        complaints: &mut Vec<String>,
    ) -> bool {
        let in_force = self.is_in_force(ended, after, ledger);
        let line = self.words(ended.command).join(" ");
        match (ended.fate, in_force) {
            (Fate::Done, false) => complaints.push(format!("ebb {line}: was answered as done, and is not in force")),
            (Fate::Refused, true) => {
                complaints.push(format!("ebb {line}: was refused, and is in force all the same: {}", ended.said));
            }
            _ => {}
        }
        if in_force {
            self.note(ended, after, ledger);
        } else if let (Command::Drain { target, timeout_ms, .. }, Fate::Unanswered) = (ended.command, ended.fate) {
            // The deadline of a drain that has ended meanwhile may have been changed, and nobody can tell.
            ledger.forgive(target, ended.asked, Duration::from_millis(timeout_ms.into()));
        }
        in_force
    }

    fn note(&self, ended: &Ended, after: &Status, ledger: &mut Ledger) {
        let times = (ended.asked, ended.answered);
        for target in self.about(ended.command, ledger) {
            let service = &self.services[target.service];
            let seen = after.backend(&service.name, &backend_name(target.backend));
            let own = Duration::from_secs(service.drain_timeout_s());
            let (place, drain) = match ended.command {
                Command::Drain { timeout_ms, .. } | Command::DrainHost { timeout_ms, .. } => {
                    (Place::Out, Some((Duration::from_millis(timeout_ms.into()), false)))
                }
                Command::Activate(_) | Command::ActivateHost(_) | Command::Add(_) => (Place::In, None),
                Command::Remove(_) | Command::RemoveService { now: false, .. } => (Place::Gone, Some((own, true))),
                Command::RemoveNow(_) | Command::RemoveService { now: true, .. } => {
                    (Place::Gone, Some((Duration::ZERO, true)))
                }
                Command::AddService(_) => continue,
            };
            match drain {
                Some((timeout, removing)) => ledger.drained(target, times, timeout, removing, seen),
                None => ledger.reopened(target, ended.asked),
            }
            ledger.put(target, place);
        }
    }
}

impl Given {
    /// Notes when the answer came, if it has.
    pub(super) fn look(&mut self) {
        if !self.process.is_running() {
            self.answered.get_or_insert_with(Instant::now);
        }
    }

    /// Waits for the answer.
    pub(super) fn wait(self) -> Result<Ended> {
        let Self { command, asked, before, process, answered } = self;
        let output = process.wait(ANSWER)?;
        let answered = answered.unwrap_or_else(Instant::now);
        let fate = fate(&output);
        ensure!(output.code != 2, "a malformed command: {}", output.stderr);
        let said = output.stderr.trim().to_owned();
        Ok(Ended { command, fate, asked, answered, before, said })
    }
}

impl Ended {
    /// The same as an answer that came only now: when nobody had answered, and things are looked at.
    pub(super) fn known_now(mut self) -> Self {
        if self.fate == Fate::Unanswered {
            self.answered = Instant::now();
        }
        self
    }
}

fn fate(output: &Output) -> Fate {
    let unheard = output.stderr.contains("went away") || output.stderr.contains("the daemon's answer on");
    match output.code {
        0 => Fate::Done,
        1 if !unheard => Fate::Refused,
        _ => Fate::Unanswered,
    }
}
