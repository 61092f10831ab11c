//! Rows of the packet path's arrays: who gets which, and under which generation.

use std::collections::{BTreeMap, HashSet, VecDeque};

use serde::{Deserialize, Serialize};

/// A freed row rests so long before it is used again: cut flows are remembered for about a minute.
pub const REST_NS: u64 = 60_000_000_000;

/// Free and used rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// The generation under which each row was used last.
    generations: BTreeMap<u32, u32>,
    /// Rows free again, in the order in which they became so.
    freed: VecDeque<Freed>,
    /// The lowest row never used.
    fresh: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Freed {
    slot: u32,
    #[serde(skip)]
    since_ns: u64,
}

impl Slots {
    /// A row and its new generation: one that has rested if there is one, else a fresh one, else the one longest free.
    pub fn allocate(&mut self, limit: u32, now_ns: u64) -> Option<(u32, u32)> {
        while self.generations.contains_key(&self.fresh) {
            self.fresh += 1;
        }
        let rested = self.freed.front().is_some_and(|freed| now_ns.saturating_sub(freed.since_ns) >= REST_NS);
        let slot = if !rested && self.fresh < limit {
            self.fresh += 1;
            self.fresh - 1
        } else {
            self.freed.pop_front()?.slot
        };
        Some((slot, self.renew(slot)))
    }

    /// Gives a row back.
    pub fn free(&mut self, slot: u32, now_ns: u64) {
        if self.freed.iter().all(|freed| freed.slot != slot) {
            self.freed.push_back(Freed { slot, since_ns: now_ns });
        }
    }

    /// The rows that somebody has.
    pub fn held(&self) -> HashSet<u32> {
        let freed: HashSet<u32> = self.freed.iter().map(|freed| freed.slot).collect();
        self.generations.keys().copied().filter(|slot| !freed.contains(slot)).collect()
    }

    /// The generation after the latest of a row: for a holder that must not inherit what the row's last one left.
    pub fn renew(&mut self, slot: u32) -> u32 {
        let generation = self.generations.entry(slot).or_insert(0);
        *generation = generation.wrapping_add(1).max(1);
        *generation
    }

    /// Learns that a row has been used under this generation; true if that was not known.
    pub fn observe(&mut self, slot: u32, generation: u32) -> bool {
        let known = self.generations.get(&slot).copied();
        if known.is_some_and(|known| known >= generation) {
            return false;
        }
        self.generations.insert(slot, generation);
        if known.is_none() {
            self.freed.push_back(Freed { slot, since_ns: 0 });
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_under_a_higher_generation_after_a_rest() {
        let mut slots = Slots::default();
        assert_eq!(slots.allocate(3, 0), Some((0, 1)));
        assert_eq!(slots.allocate(3, 0), Some((1, 1)));
        slots.free(0, 5);
        assert_eq!(slots.allocate(3, 6), Some((2, 1)), "row 0 still rests");
        assert_eq!(slots.allocate(3, 7), Some((0, 2)), "nothing else is left");
        assert_eq!(slots.allocate(3, 8), None);
        slots.free(1, 10);
        slots.free(1, 11);
        assert_eq!(slots.allocate(3, 10 + REST_NS), Some((1, 2)));
        assert_eq!(slots.allocate(3, 10 + REST_NS), None);
    }

    #[test]
    fn rows_found_in_use_are_not_fresh() {
        let mut slots = Slots::default();
        assert!(slots.observe(0, 7));
        assert!(!slots.observe(0, 7));
        assert_eq!(slots.allocate(8, REST_NS), Some((0, 8)));
        assert_eq!(slots.allocate(8, REST_NS), Some((1, 1)));
    }
}
