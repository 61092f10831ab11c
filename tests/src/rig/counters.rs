//! What the program counted.

use std::fmt;

use lb_common::{
    backend::BackendStats,
    outcome::{Outcome, UNTOLD},
};

use super::Mapped;

/// Counters of one CPU in `OUTCOMES`.
pub const OUTCOME_STRIDE: u32 = 64;

/// A snapshot, added up over the CPUs.
#[derive(Clone, PartialEq, Eq)]
pub struct Counters {
    outcomes: Vec<u64>,
    backends: Vec<BackendStats>,
}

impl Counters {
    pub(super) fn read(outcomes: &Mapped<u64>, stats: &Mapped<BackendStats>, backends: u32) -> Self {
        let mut counters = Self {
            outcomes: vec![0; OUTCOME_STRIDE as usize],
            backends: vec![BackendStats::default(); backends as usize],
        };
        for (row, count) in outcomes.iter().enumerate() {
            counters.outcomes[row % OUTCOME_STRIDE as usize] += count;
        }
        // Nothing that becomes of a packet.
        counters.outcomes[UNTOLD as usize] = 0;
        for (row, stats) in stats.iter().enumerate() {
            let sum = &mut counters.backends[row % backends as usize];
            sum.packets += stats.packets;
            sum.bytes += stats.bytes;
            sum.new_flows += stats.new_flows;
            sum.resets += stats.resets;
        }
        counters
    }

    /// How many packets had that outcome.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// What was counted for a backend slot.
    pub fn backend(&self, slot: u32) -> BackendStats {
        self.backends[slot as usize]
    }

    /// Adds one packet with that outcome.
    #[must_use]
    pub fn plus(mut self, outcome: Outcome) -> Self {
        self.outcomes[outcome as usize] += 1;
        self
    }

    /// Adds to what was counted for a backend slot.
    #[must_use]
    pub fn plus_backend(mut self, slot: u32, add: BackendStats) -> Self {
        let sum = &mut self.backends[slot as usize];
        sum.packets += add.packets;
        sum.bytes += add.bytes;
        sum.new_flows += add.new_flows;
        sum.resets += add.resets;
        self
    }
}

/// Only what is not zero.
impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (number, count) in self.outcomes.iter().enumerate().filter(|(_, count)| **count != 0) {
            let name = Outcome::ALL.get(number).map_or("?", |outcome| outcome.name());
            map.entry(&name, count);
        }
        for (slot, stats) in self.backends.iter().enumerate() {
            if *stats != BackendStats::default() {
                map.entry(&slot, stats);
            }
        }
        map.finish()
    }
}
