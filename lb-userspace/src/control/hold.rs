//! The end of a drain, held: its flows are over, and somebody outside (an autoscaler that wants to save logs, a hook that takes a
//! node out of a cluster) has still to say that the backend may go. As the cloud's lifecycle hooks have it, with a time-out that
//! heartbeats put off and a result that stands when nobody answers.

use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    model::Outcome,
    state::{Deadline, Now},
};

/// Heartbeats keep a drain held for so many times the service's `drain_hold` at most …
const LONGEST_FACTOR: u32 = 100;
/// … and never longer than this, unless a single `drain_hold` is.
const LONGEST: Duration = Duration::from_hours(48);

/// How the wait at the end of a drain ended. The drain ends either way; it is told which it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HoldResult {
    /// What was to be done has been done.
    #[default]
    Continue,
    /// It has not, and will not be.
    Abandon,
}

/// What is said of a drain that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HoldAnswer {
    /// It may end.
    Continue,
    /// It may end, though what it waited for has failed.
    Abandon,
    /// Wait on: the time-out begins anew.
    Heartbeat,
}

/// The answer as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// What is said.
    pub answer: HoldAnswer,
}

/// A wait at the end of a drain, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HoldStatus {
    /// Since when the flows are over.
    pub since: Timestamp,
    /// When it ends, unless somebody answers before.
    pub until: Timestamp,
    /// Seconds until then.
    pub remaining_s: f64,
    /// How the drain will have ended.
    pub outcome: Outcome,
}

/// A wait at the end of a drain that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    /// Since when the flows were over.
    pub since: Timestamp,
    /// How it ended.
    pub result: HoldResult,
    /// Nobody answered in time: the result is the service's default.
    pub timed_out: bool,
}

/// A wait at the end of a drain, in the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Since when the flows are over.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Deadline,
    /// How far heartbeats can put that off.
    pub latest: Deadline,
    /// How the drain will have ended.
    pub outcome: Outcome,
}

impl Hold {
    /// A wait that begins now and ends by itself after `time`.
    pub fn new(time: Duration, outcome: Outcome, now: Now) -> Self {
        let latest = time.saturating_mul(LONGEST_FACTOR).min(LONGEST).max(time);
        Self { since: now.wall, until: now.after(time), latest: now.after(latest), outcome }
    }

    /// Begins the time-out anew.
    pub fn extend(&mut self, time: Duration, now: Now) {
        let until = now.after(time);
        self.until = if until.mono_ns < self.latest.mono_ns { until } else { self.latest };
    }

    /// For the books, once it is over.
    pub fn over(&self, result: HoldResult, timed_out: bool) -> Held {
        Held { since: self.since, result, timed_out }
    }

    /// For people, now.
    pub fn status(&self, now: Now) -> HoldStatus {
        let left = self.until.left(now).as_secs_f64();
        HoldStatus {
            since: self.since,
            until: self.until.wall(now),
            remaining_s: (left * 1_000.0).round() / 1_000.0,
            outcome: self.outcome,
        }
    }

    /// The same wait after a reboot.
    #[must_use]
    pub fn after_reboot(&self, now: Now) -> Self {
        Self { until: self.until.after_reboot(now), latest: self.latest.after_reboot(now), ..*self }
    }
}
