//! The chains of stand-ins.
//!
//! Most have one member, which stands in an array that is quick to search; the few longer ones go on in a map.

use std::collections::BTreeMap;

use super::table::NOBODY;

/// So many slots are looked at together when a member's are searched for.
const STRIDE: usize = 256;

/// By slot, who stands in for its base owner: each for the one before, the last has the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chains {
    /// The first of each slot's chain.
    first: Vec<u32>,
    /// Those after the first.
    more: BTreeMap<u32, Vec<u32>>,
}

impl Chains {
    /// Nobody stands in for anybody.
    pub(super) fn new(size: u32) -> Self {
        Self { first: vec![NOBODY; size as usize], more: BTreeMap::new() }
    }

    /// Whether the slot has a chain.
    pub(super) fn has(&self, slot: u32) -> bool {
        self.first[slot as usize] != NOBODY
    }

    /// A slot's chain.
    pub(super) fn of(&self, slot: u32) -> impl Iterator<Item = u32> {
        let first = Some(self.first[slot as usize]).filter(|first| *first != NOBODY);
        first.into_iter().chain(self.more.get(&slot).into_iter().flatten().copied())
    }

    /// The last of a slot's chain.
    pub(super) fn last(&self, slot: u32) -> Option<u32> {
        let more = if self.more.is_empty() { None } else { self.more.get(&slot) };
        more.and_then(|more| more.last().copied()).or(Some(self.first[slot as usize])).filter(|last| *last != NOBODY)
    }

    /// Puts a member at the end of a slot's chain.
    pub(super) fn push(&mut self, slot: u32, index: u32) {
        let first = &mut self.first[slot as usize];
        if *first == NOBODY {
            *first = index;
        } else {
            self.more.entry(slot).or_default().push(index);
        }
    }

    /// Takes the last off a slot's chain.
    pub(super) fn pop(&mut self, slot: u32) {
        let length = self.of(slot).count();
        self.shorten(slot, length.saturating_sub(1));
    }

    /// Leaves only the first `length` in a slot's chain.
    pub(super) fn shorten(&mut self, slot: u32, length: usize) {
        if length == 0 {
            self.first[slot as usize] = NOBODY;
        }
        match self.more.get_mut(&slot) {
            Some(more) if length > 1 => more.truncate(length - 1),
            Some(_) => drop(self.more.remove(&slot)),
            None => {}
        }
    }

    /// Takes a member out of all chains.
    pub(super) fn forget(&mut self, index: u32) {
        for slot in self.with(index) {
            let rest: Vec<u32> = self.of(slot).filter(|member| *member != index).collect();
            self.shorten(slot, 0);
            for member in rest {
                self.push(slot, member);
            }
        }
    }

    /// The slots in whose chains a member stands.
    pub(super) fn with(&self, index: u32) -> Vec<u32> {
        let mut slots = positions(&self.first, index);
        slots.extend(self.more.iter().filter(|(_, more)| more.contains(&index)).map(|(slot, _)| *slot));
        slots
    }

    /// The slots that have a chain, from `start` on and around.
    pub(super) fn slots_from(&self, start: u32) -> impl Iterator<Item = u32> {
        let size = self.first.len() as u32;
        (start..size).chain(0..start).filter(|slot| self.has(*slot))
    }
}

/// Where `wanted` stands in `all`.
pub(super) fn positions(all: &[u32], wanted: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for (stride, some) in all.chunks(STRIDE).enumerate() {
        // Counting has no early end, so the compiler compares many at a time.
        if some.iter().filter(|one| **one == wanted).count() > 0 {
            let first = (stride * STRIDE) as u32;
            found.extend((first..).zip(some).filter(|(_, one)| **one == wanted).map(|(at, _)| at));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_grow_and_shrink_at_the_end() {
        let mut chains = Chains::new(1_000);
        assert_eq!(chains.last(7), None);
        for index in [3, 1, 4] {
            chains.push(7, index);
        }
        chains.push(999, 1);
        assert_eq!(chains.of(7).collect::<Vec<_>>(), [3, 1, 4]);
        assert_eq!((chains.last(7), chains.with(1)), (Some(4), vec![999, 7]));
        assert_eq!(chains.slots_from(500).collect::<Vec<_>>(), [999, 7]);
        chains.forget(3);
        assert_eq!(chains.of(7).collect::<Vec<_>>(), [1, 4]);
        chains.pop(7);
        assert_eq!(chains.last(7), Some(1));
        chains.pop(7);
        chains.shorten(999, 0);
        assert_eq!(chains, Chains::new(1_000));
    }
}
