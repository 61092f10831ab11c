//! The state machines: one backend's ([`backend`]), a service's around it ([`service`]), and all of them ([`balancer`]).

pub mod backend;
pub mod balancer;
pub mod drain;
pub mod health;
pub mod service;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The present, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Coarse monotonic nanoseconds: what deadlines go by.
    pub mono_ns: u64,
    /// What people read, and what decides after a reboot.
    pub wall: Timestamp,
}

impl Now {
    /// The moment `after` from now; far beyond anybody's patience where it would not fit.
    pub fn after(&self, after: Duration) -> Deadline {
        let nanos = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX / 2);
        let at = SignedDuration::try_from(after).ok().and_then(|after| self.wall.checked_add(after).ok());
        Deadline { mono_ns: self.mono_ns.saturating_add(nanos), at: at.unwrap_or(Timestamp::MAX) }
    }
}

/// A moment to come, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Deadline {
    /// By the monotonic clock of this boot.
    pub mono_ns: u64,
    /// By the wall clock as it stood when the deadline was set.
    pub at: Timestamp,
}

/// Clocks that are less apart than this have been neither stepped nor stopped: one is coarse, the other is slewed. A deadline is
/// then shown as it was set, the same at every look.
const CLOCKS_APART: SignedDuration = SignedDuration::from_secs(1);

impl Deadline {
    /// Whether it has come.
    pub fn reached(&self, now: Now) -> bool {
        now.mono_ns >= self.mono_ns
    }

    /// How long until then.
    pub fn left(&self, now: Now) -> Duration {
        Duration::from_nanos(self.mono_ns.saturating_sub(now.mono_ns))
    }

    /// When it comes by the wall clock, for people. That is another time than [`Deadline::at`] once the wall clock has been
    /// stepped or the machine has slept: the monotonic clock, by which it comes, took part in neither.
    pub fn wall(&self, now: Now) -> Timestamp {
        let nanos = i128::from(self.mono_ns) - i128::from(now.mono_ns);
        let left = i64::try_from(nanos).map_or(SignedDuration::MAX, SignedDuration::from_nanos);
        let wall = now.wall.checked_add(left).unwrap_or(Timestamp::MAX);
        if wall.duration_since(self.at).abs() < CLOCKS_APART { self.at } else { wall }
    }

    /// The same moment after a reboot, when only the wall clock is left to go by.
    #[must_use]
    pub fn after_reboot(&self, now: Now) -> Self {
        let left = Duration::try_from(self.at.duration_since(now.wall)).unwrap_or_default();
        Self { mono_ns: now.after(left).mono_ns, at: self.at }
    }
}
