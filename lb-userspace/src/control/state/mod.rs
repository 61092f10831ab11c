//! The state machines: one backend's ([`backend`]), a service's around it ([`service`]), and all of them ([`balancer`]).

pub mod backend;
pub mod balancer;
pub mod drain;
pub mod health;
pub mod service;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;

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
        let at = jiff::SignedDuration::try_from(after).ok().and_then(|after| self.wall.checked_add(after).ok());
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

impl Deadline {
    /// Whether it has come.
    pub fn reached(&self, now: Now) -> bool {
        now.mono_ns >= self.mono_ns
    }

    /// How long until then.
    pub fn left(&self, now: Now) -> Duration {
        Duration::from_nanos(self.mono_ns.saturating_sub(now.mono_ns))
    }

    /// The same moment after a reboot, when only the wall clock is left to go by.
    #[must_use]
    pub fn after_reboot(&self, now: Now) -> Self {
        let left = Duration::try_from(self.at.duration_since(now.wall)).unwrap_or_default();
        Self { mono_ns: now.after(left).mono_ns, at: self.at }
    }
}
