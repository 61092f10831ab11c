//! What was asked of the daemon and answered, and what follows from it: who may be cut from when on, and who gets nothing new.

use std::time::{Duration, Instant, SystemTime};

use super::{
    plan::{Place, Target},
    roster::BACKENDS,
};
use crate::{
    lab::{Backend, Status},
    traffic::Connection,
};

/// How exact times of the daemon's are, told in wall-clock time.
pub(super) const CLOCKS: Duration = Duration::from_millis(50);

/// A time from which a drain may cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    /// Not before.
    pub from: Instant,
    /// Not after, as long as a daemon is there.
    pub to: Instant,
    /// Another one was set then.
    pub replaced: Option<Instant>,
}

/// How a drain ended.
#[derive(Clone, Debug)]
pub(super) struct Over {
    /// When, by the daemon's account.
    pub at: Instant,
    /// `completed`, `deadline`, `forced`, `cancelled`; `gone` when the backend was deleted before anybody looked.
    pub outcome: String,
    /// How many flows were cut, by the daemon's account.
    pub cut_flows: u64,
}

/// A drain.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// When the command was given.
    pub asked: Instant,
    /// When it had been answered: from then on the backend gets nothing new.
    pub answered: Instant,
    /// By which the daemon tells it from others.
    pub started_at: String,
    /// The deadlines it had.
    pub deadlines: Vec<Deadline>,
    /// The backend is deleted afterwards.
    pub removing: bool,
    /// Its end.
    pub over: Option<Over>,
    /// When the command was given by which the backend gets connections again.
    pub reopened: Option<Instant>,
    /// Its end was judged.
    pub judged: bool,
}

/// All that was asked.
#[derive(Debug)]
pub(super) struct Ledger {
    places: Vec<[Place; BACKENDS]>,
    lines: Vec<Vec<Vec<Line>>>,
    /// When packets were lost, or the daemon was away or held up, padded.
    pub disturbances: Vec<(Instant, Instant)>,
}

impl Line {
    /// The deadline in force.
    pub(super) fn deadline(&self) -> Option<Deadline> {
        self.deadlines.last().copied()
    }

    /// Another deadline was set, and answered then.
    fn set_deadline(&mut self, deadline: Deadline, answered: Instant) {
        self.deadlines.last_mut().map(|before| before.replaced.replace(answered));
        self.deadlines.push(deadline);
    }

    /// It takes nothing new at this time.
    pub(super) fn is_closed_at(&self, at: Instant) -> bool {
        at > self.answered && self.reopened.is_none_or(|reopened| at < reopened)
    }

    /// A deadline that it had has come by this time.
    pub(super) fn was_due(&self, by: Instant) -> bool {
        self.deadlines.iter().any(|deadline| {
            by + CLOCKS >= deadline.from && deadline.replaced.is_none_or(|replaced| deadline.from <= replaced)
        })
    }

    /// It may have cut what was open, so that it shows at this time.
    pub(super) fn may_have_cut(&self, by: Instant) -> bool {
        let spared = self.over.as_ref().is_some_and(|over| matches!(over.outcome.as_str(), "completed" | "cancelled"));
        !spared && self.was_due(by)
    }
}

impl Ledger {
    /// Backends as the run finds them.
    pub(super) fn new(places: Vec<[Place; BACKENDS]>) -> Self {
        let lines = places.iter().map(|_| vec![Vec::new(); BACKENDS]).collect();
        Self { places, lines, disturbances: Vec::new() }
    }

    /// What a backend is meant to be.
    pub(super) fn place(&self, target: Target) -> Place {
        self.places[target.service][target.backend]
    }

    /// Notes what a backend is meant to be from now on.
    pub(super) fn put(&mut self, target: Target, place: Place) {
        self.places[target.service][target.backend] = place;
    }

    /// The service is there.
    pub(super) fn has_service(&self, service: usize) -> bool {
        self.places[service].iter().any(|place| matches!(place, Place::In | Place::Out))
    }

    /// All backends of all services.
    pub(super) fn targets(&self) -> impl Iterator<Item = Target> + use<> {
        (0..self.places.len()).flat_map(|service| (0..BACKENDS).map(move |backend| Target { service, backend }))
    }

    /// A backend's drains.
    pub(super) fn lines(&self, target: Target) -> &[Line] {
        &self.lines[target.service][target.backend]
    }

    /// The same, to change them.
    pub(super) fn lines_mut(&mut self, target: Target) -> &mut Vec<Line> {
        &mut self.lines[target.service][target.backend]
    }

    /// Notes a drain, or another deadline of the one that runs. `seen` is the backend since.
    pub(super) fn drained(
        &mut self,
        target: Target,
        (asked, answered): (Instant, Instant),
        timeout: Duration,
        removing: bool,
        seen: Option<&Backend>,
    ) {
        let started_at = seen.and_then(started_at).unwrap_or_default();
        let deadline = Deadline { from: asked + timeout, to: answered + timeout, replaced: None };
        let lines = self.lines_mut(target);
        let is_known = |line: &&mut Line| line.started_at == started_at && line.over.is_some() && seen.is_some();
        if let Some(line) = lines.last_mut().filter(is_known) {
            // Nothing new began: it was over already, or has ended since, and then by this deadline.
            if line.over.as_ref().is_some_and(|over| over.at + CLOCKS >= asked) {
                line.set_deadline(deadline, answered);
            }
            return;
        }
        if let Some(line) = lines.last_mut().filter(|line| line.over.is_none() && line.reopened.is_none()) {
            line.removing |= removing;
            // One that has ended meanwhile keeps the deadline it had.
            if seen.is_none_or(|backend| backend.drain.is_some()) {
                line.set_deadline(deadline, answered);
            }
            return;
        }
        lines.push(Line {
            asked,
            answered,
            started_at,
            deadlines: vec![deadline],
            removing,
            over: None,
            reopened: None,
            judged: false,
        });
    }

    /// Notes that the drain that was the latest then may have had another deadline, or not: its end is not judged.
    pub(super) fn forgive(&mut self, target: Target, asked: Instant, timeout: Duration) {
        let line = self.lines_mut(target).last_mut();
        if let Some(line) = line.filter(|line| line.over.as_ref().is_some_and(|over| over.at > asked)) {
            line.deadlines.push(Deadline { from: asked + timeout, to: asked + timeout, replaced: None });
            line.judged = true;
        }
    }

    /// Notes that a backend takes connections again, as asked then.
    pub(super) fn reopened(&mut self, target: Target, asked: Instant) {
        // One that was drained and then removed was out by both.
        for line in self.lines_mut(target) {
            line.reopened.get_or_insert(asked);
        }
    }

    /// Takes note of which drains are over.
    pub(super) fn observe(&mut self, status: &Status, names: &[String]) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        for target in self.targets() {
            let backend = status.backend(&names[target.service], &super::roster::backend_name(target.backend));
            let Some(line) = self.lines_mut(target).last_mut().filter(|line| line.over.is_none()) else { continue };
            line.over = match backend {
                None if line.removing => Some(Over { at: now, outcome: "gone".to_owned(), cut_flows: 0 }),
                None => None,
                Some(backend) => {
                    backend.last_drain.as_ref().filter(|last| last.started_at == line.started_at).map(|last| {
                        let ended = last.ended_at.parse::<jiff::Timestamp>().map_or(wall, SystemTime::from);
                        let ago = wall.duration_since(ended).unwrap_or_default();
                        let at = now.checked_sub(ago).unwrap_or(now);
                        Over { at, outcome: last.outcome.clone(), cut_flows: last.cut_flows }
                    })
                }
            };
        }
    }

    /// Whether a connection of a service may have been cut, so that it shows at this time.
    pub(super) fn may_be_cut(&self, service: usize, connection: &Connection, by: Instant) -> bool {
        let Some((server, _)) = connection.served_by else { return false };
        let index = server.as_str().trim_start_matches('b').parse().unwrap_or(usize::MAX);
        let lines = self.lines[service].get(index).map_or(&[] as &[Line], Vec::as_slice);
        lines.iter().any(|line| connection.asked <= line.answered && line.may_have_cut(by))
    }

    /// Whether any backend of a service may have been cut at about this time.
    pub(super) fn cuts_about(&self, service: usize, at: Instant) -> bool {
        let lines = self.lines[service].iter().flatten();
        lines
            .flat_map(|line| &line.deadlines)
            .any(|deadline| at + CLOCKS >= deadline.from && at <= deadline.to + Duration::from_secs(10))
    }

    /// Whether anything went wrong between the two.
    pub(super) fn is_disturbed(&self, from: Instant, to: Instant) -> bool {
        self.disturbances.iter().any(|(begun, over)| *begun <= to && *over >= from)
    }
}

/// By what the daemon tells a backend's latest drain from others.
fn started_at(backend: &Backend) -> Option<String> {
    let running = backend.drain.as_ref().map(|drain| drain.started_at.clone());
    running.or_else(|| backend.last_drain.as_ref().map(|last| last.started_at.clone()))
}
