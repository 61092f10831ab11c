//! One drain, from its start to its outcome.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Deadline, Now};
use crate::control::{
    hold::{Held, Hold},
    model::{CutPolicy, DrainStatus, LastDrain, Outcome},
};

/// A drain that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// When it began.
    pub started_at: Timestamp,
    /// When it ends at the latest.
    pub deadline: Option<Deadline>,
    /// How what is left then ends.
    pub on_timeout: CutPolicy,
    /// An operator ended it with a timeout of 0.
    pub forced: bool,
    /// The backend was in rotation: its former slots remember it.
    pub was_in: bool,
    /// From here on no new flow can have been made: only looks begun later count. `None` until the packet path has been told
    /// and packets in flight have left it; a restart asks again.
    #[serde(skip)]
    pub sealed_ns: Option<u64>,
    /// Live flows at the first look that counted.
    pub initial_flows: Option<u64>,
    /// Live flows at the latest look.
    pub remaining_flows: u64,
    /// Connections cut so far.
    pub cut_flows: u64,
    /// Connections ended because they were silent.
    pub idle_flows: u64,
    /// Its flows are over and its end is held.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// Its end was held, and that is over.
    #[serde(default)]
    pub held: Option<Held>,
    /// When the oldest live flow was first seen.
    #[serde(skip)]
    pub oldest_ns: Option<u64>,
    #[serde(skip)]
    pace: Pace,
}

/// How fast flows end: their number at looks a little apart, smoothed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pace {
    last: Option<(u64, u64)>,
    per_s: Option<f64>,
}

/// Looks closer together than this say little about the pace.
const PACE_INTERVAL_NS: u64 = 1_000_000_000;
/// How much a new interval counts against the past.
const PACE_WEIGHT: f64 = 0.3;

impl Drain {
    /// A drain that begins now.
    pub fn new(timeout: Option<Duration>, on_timeout: CutPolicy, was_in: bool, now: Now) -> Self {
        Self {
            started_at: now.wall,
            deadline: timeout.map(|timeout| now.after(timeout)),
            on_timeout,
            forced: timeout.is_some_and(|timeout| timeout.is_zero()),
            was_in,
            sealed_ns: None,
            initial_flows: None,
            remaining_flows: 0,
            cut_flows: 0,
            idle_flows: 0,
            hold: None,
            held: None,
            oldest_ns: None,
            pace: Pace::default(),
        }
    }

    /// Takes in a look that began when no new flow could be made any more; true for the first one.
    pub fn look(&mut self, begun_ns: u64, live: u64, oldest_ns: Option<u64>) -> bool {
        let first = self.initial_flows.is_none();
        self.initial_flows.get_or_insert(live);
        self.remaining_flows = live;
        self.oldest_ns = oldest_ns;
        self.pace.look(begun_ns, live);
        first
    }

    /// Whether the deadline has come.
    pub fn is_due(&self, now: Now) -> bool {
        self.deadline.is_some_and(|deadline| deadline.reached(now))
    }

    /// For people, now.
    pub fn status(&self, now: Now) -> DrainStatus {
        let left = self.deadline.map(|deadline| deadline.left(now));
        let rate = self.pace.per_s.filter(|rate| *rate > 0.0);
        let by_rate = rate.map(|rate| count(self.remaining_flows) / rate);
        let estimate = match (by_rate, left.map(|left| left.as_secs_f64())) {
            (Some(by_rate), Some(left)) => Some(by_rate.min(left)),
            (by_rate, left) => by_rate.or(left),
        };
        DrainStatus {
            started_at: self.started_at,
            deadline: self.deadline.map(|deadline| deadline.wall(now)),
            remaining_s: left.map(|left| rounded(left.as_secs_f64())),
            initial_flows: self.initial_flows.unwrap_or(self.remaining_flows),
            remaining_flows: self.remaining_flows,
            on_timeout: self.on_timeout,
            idle_flows: self.idle_flows,
            oldest_flow_s: self
                .oldest_ns
                .map(|oldest| rounded(Duration::from_nanos(now.mono_ns.saturating_sub(oldest)).as_secs_f64())),
            rate_per_s: self.pace.per_s.map(rounded),
            estimate_s: estimate.map(rounded),
            hold: self.hold.map(|hold| hold.status(now)),
        }
    }

    /// For the books, once it is over.
    pub fn ended(&self, outcome: Outcome, now: Now) -> LastDrain {
        LastDrain {
            started_at: self.started_at,
            ended_at: now.wall,
            outcome,
            initial_flows: self.initial_flows.unwrap_or(self.remaining_flows),
            cut_flows: self.cut_flows,
            idle_flows: self.idle_flows,
            held: self.held.clone(),
        }
    }
}

impl Pace {
    fn look(&mut self, at_ns: u64, live: u64) {
        let Some((last_ns, last_live)) = self.last else {
            self.last = Some((at_ns, live));
            return;
        };
        let elapsed_ns = at_ns.saturating_sub(last_ns);
        if elapsed_ns < PACE_INTERVAL_NS {
            return;
        }
        let ended = count(last_live.saturating_sub(live));
        let now_per_s = ended / Duration::from_nanos(elapsed_ns).as_secs_f64();
        self.per_s = Some(match self.per_s {
            Some(before) => before + (now_per_s - before) * PACE_WEIGHT,
            None => now_per_s,
        });
        self.last = Some((at_ns, live));
    }
}

/// A number of flows for arithmetic with rates; beyond 2^32 the rate is not what anybody looks at.
fn count(flows: u64) -> f64 {
    f64::from(u32::try_from(flows).unwrap_or(u32::MAX))
}

/// To the millisecond: more is noise.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1_000.0).round() / 1_000.0
}
