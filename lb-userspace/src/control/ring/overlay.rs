//! Members go out of rotation and come back.

use std::{cmp::Ordering, collections::BinaryHeap};

use super::{Ring, table, table::NOBODY};
use crate::datapath::BackendSlot;

/// Up to this size a drain looks at the table that is to come; it takes 1.5 ms to build.
const LARGEST_GUIDED: u32 = 65_537;

/// Fractions of a slot are kept in so many bits.
pub(super) const FRACTION_BITS: u32 = 20;

impl Ring {
    /// Takes a member out of rotation: its slots, and no others, go to those that lack most of their share.
    pub fn leave(&mut self, id: BackendSlot) {
        let Some(index) = self.index_of.get(&id).copied().filter(|index| self.place(*index).inside) else {
            return;
        };
        let slots = self.slots_of(index);
        let place = self.place_mut(index);
        place.inside = false;
        place.ramp = None;
        place.held = 0;
        self.hand_out(&slots);
    }

    /// Puts a member into rotation: it takes the slots that are its own and those it stood in for when it left. With
    /// `rebalance` (not after a drain) it also takes over its part of what others stand in for. With `share` (in
    /// thousandths) it takes only so much of its own slots, until [`Ring::ramp`] gives it more.
    pub fn enter(&mut self, id: BackendSlot, rebalance: bool, share: Option<u32>) {
        let Some(index) = self.index_of.get(&id).copied().filter(|index| !self.place(*index).inside) else {
            return;
        };
        let others = self.indices().any(|other| self.is_full(other) && self.place(other).member.weight > 0);
        let share = share.filter(|_| others);
        let place = self.place_mut(index);
        place.inside = true;
        place.ramp = share.map(|_| 0);
        self.take_back(index);
        if let Some(share) = share {
            self.ramp(id, share);
        } else if !others {
            self.take_orphans();
        }
        if rebalance && self.is_full(index) {
            self.take_stand_ins(index);
        }
    }

    /// During a slow start: the member may have `share` thousandths of its own slots; from 1,000 on the slow start is over.
    pub fn ramp(&mut self, id: BackendSlot, share: u32) {
        let Some(index) = self.index_of.get(&id).copied().filter(|index| self.place(*index).ramp.is_some()) else {
            return;
        };
        let mut own: Vec<u32> = self.base_slots(index);
        let walk = self.place(index).walk;
        own.sort_unstable_by_key(|slot| walk.place_of(*slot, self.size));
        let allowed = (own.len() as u64 * u64::from(share.min(1_000))).div_ceil(1_000) as u32;
        let done = share >= 1_000;
        self.place_mut(index).ramp = Some(allowed).filter(|_| !done);
        for slot in own.into_iter().take(allowed as usize) {
            if self.chains.contains_key(&slot) {
                self.release_chain(slot);
            }
        }
        self.place_mut(index).held = self.slots_of(index).len() as u32;
        if done {
            self.take_stand_ins(index);
        }
    }

    /// Whether the member is taking up its share slowly.
    pub fn is_ramping(&self, id: BackendSlot) -> bool {
        self.index_of.get(&id).is_some_and(|index| self.place(*index).ramp.is_some())
    }

    /// Has a member's former slots remember it while its drain runs, or forget it.
    pub fn set_draining(&mut self, id: BackendSlot, draining: bool) {
        let Some(index) = self.index_of.get(&id).copied().filter(|index| self.place(*index).draining != draining)
        else {
            return;
        };
        self.place_mut(index).draining = draining;
        let base = self.base_slots(index);
        let stood_in: Vec<u32> =
            self.chains.iter().filter(|(_, chain)| chain.contains(&index)).map(|(slot, _)| *slot).collect();
        let ghosts: Vec<u32> =
            self.ghosts.iter().filter(|(_, ghosts)| ghosts.contains(&index)).map(|(slot, _)| *slot).collect();
        for slot in base.into_iter().chain(stood_in).chain(ghosts.iter().copied()) {
            self.mark(slot);
        }
        if !draining {
            self.forget_ghosts(index, &ghosts);
        }
    }

    fn forget_ghosts(&mut self, index: u32, slots: &[u32]) {
        for slot in slots {
            if let Some(list) = self.ghosts.get_mut(slot) {
                list.retain(|ghost| *ghost != index);
                if list.is_empty() {
                    self.ghosts.remove(slot);
                }
            }
        }
    }

    /// In rotation with its whole share.
    pub(super) fn is_full(&self, index: u32) -> bool {
        let place = self.place(index);
        place.inside && place.ramp.is_none()
    }

    /// The slots a member has by the base.
    pub(super) fn base_slots(&self, index: u32) -> Vec<u32> {
        let all = self.base.iter().enumerate();
        all.filter(|(_, owner)| **owner == index).map(|(slot, _)| slot as u32).collect()
    }

    /// The slots a member has now.
    pub(super) fn slots_of(&self, index: u32) -> Vec<u32> {
        let mut slots: Vec<u32> =
            self.base_slots(index).into_iter().filter(|slot| !self.chains.contains_key(slot)).collect();
        slots.extend(self.chains.iter().filter(|(_, chain)| chain.last() == Some(&index)).map(|(slot, _)| *slot));
        slots
    }

    /// Gives each slot, whose present owner has just gone out, a stand-in.
    ///
    /// Where there is a choice it falls on who has the slot in a table built afresh of those in rotation: if one that is out is
    /// deleted in the end, its slots are then where they should be. Large tables, slow to build, do without.
    pub(super) fn hand_out(&mut self, slots: &[u32]) {
        let rest = self.hand_out_by_table(slots);
        let mut lacking = self.lacking();
        for slot in &rest {
            self.mark(*slot);
            match lacking.pop() {
                Some(mut taker) => {
                    self.chains.entry(*slot).or_default().push(taker.index);
                    self.place_mut(taker.index).held += 1;
                    taker.lack -= 1 << FRACTION_BITS;
                    lacking.push(taker);
                }
                // Nobody is in: the chain stays, so that each finds its slots when it comes back.
                None => return self.mark_each(&rest),
            }
        }
    }

    /// Hands slots out by a fresh table as far as shares allow; returns the others.
    fn hand_out_by_table(&mut self, slots: &[u32]) -> Vec<u32> {
        let takers: Vec<u32> = self.indices().filter(|index| self.is_full(*index)).collect();
        if self.size > LARGEST_GUIDED || takers.len() < 2 {
            return slots.to_vec();
        }
        let table = self.fresh_table(&takers);
        let targets = self.targets();
        let mut rest = Vec::new();
        for slot in slots {
            let taker = table[*slot as usize];
            if taker == NOBODY || targets[taker as usize] <= i64::from(self.place(taker).held) << FRACTION_BITS {
                rest.push(*slot);
                continue;
            }
            self.mark(*slot);
            self.chains.entry(*slot).or_default().push(taker);
            self.place_mut(taker).held += 1;
        }
        rest
    }

    fn mark_each(&mut self, slots: &[u32]) {
        for slot in slots {
            self.mark(*slot);
        }
    }

    /// A member that has come back takes the slots in whose chains it stands.
    fn take_back(&mut self, index: u32) {
        let held_back = self.place(index).ramp.is_some();
        for slot in if held_back { Vec::new() } else { self.base_slots(index) } {
            self.release_chain(slot);
        }
        let standing: Vec<u32> =
            self.chains.iter().filter(|(_, chain)| chain.contains(&index)).map(|(slot, _)| *slot).collect();
        for slot in standing {
            self.count_out(slot, index);
            if let Some(chain) = self.chains.get_mut(&slot) {
                let at = chain.iter().position(|member| *member == index).unwrap_or(0);
                chain.truncate(at + 1);
            }
            self.mark(slot);
        }
        self.place_mut(index).held = self.slots_of(index).len() as u32;
    }

    /// A slot goes back to its base owner, who is in and whose own count the caller brings up to date.
    fn release_chain(&mut self, slot: u32) {
        let owner = self.base[slot as usize];
        self.count_out(slot, owner);
        self.chains.remove(&slot);
        self.mark(slot);
    }

    /// Before `slot` goes to `to`: takes it from the count of who has it, if that is somebody else.
    fn count_out(&mut self, slot: u32, to: u32) {
        let had = self.owner(slot);
        if had != NOBODY && had != to {
            self.place_mut(had).held -= 1;
        }
    }

    /// Slots that nobody had are given to those in rotation.
    fn take_orphans(&mut self) {
        let orphans: Vec<u32> = (0..self.size).filter(|slot| self.owner(*slot) == NOBODY).collect();
        self.hand_out(&orphans);
    }

    /// A member takes over from others, that have more than their share, its part of what they stand in for.
    pub(super) fn take_stand_ins(&mut self, index: u32) {
        let targets = self.targets();
        let lack =
            |ring: &Self, index: u32| targets[index as usize] - (i64::from(ring.place(index).held) << FRACTION_BITS);
        let candidates: Vec<(u32, u32)> = self
            .chains
            .iter()
            .filter_map(|(slot, chain)| chain.last().map(|last| (*slot, *last)))
            .filter(|(_, last)| *last != index)
            .collect();
        for (slot, last) in candidates {
            if lack(self, index) < 1 << FRACTION_BITS {
                return;
            }
            if lack(self, last) < 0 && self.base[slot as usize] != index {
                let chain = self.chains.get_mut(&slot).expect("just listed");
                chain.pop();
                chain.push(index);
                self.place_mut(last).held -= 1;
                self.place_mut(index).held += 1;
                self.mark(slot);
            }
        }
    }

    /// What each of those in rotation should have, in fractions of a slot; by index, 0 for those out.
    pub(super) fn targets(&self) -> Vec<i64> {
        let mut weights = vec![0_u64; self.places.len()];
        for index in self.indices() {
            let place = self.place(index);
            if place.inside {
                // A slow starter's share is what it has been given so far.
                let weight = u64::from(place.member.weight);
                weights[index as usize] = if place.ramp.is_some() { 0 } else { weight };
            }
        }
        let ramping: u32 =
            self.indices().filter(|index| self.place(*index).ramp.is_some()).map(|i| self.place(i).held).sum();
        let total: u64 = weights.iter().sum();
        let slots = u128::from(self.size - ramping) << FRACTION_BITS;
        weights
            .iter()
            .map(|weight| if total == 0 { 0 } else { (slots * u128::from(*weight) / u128::from(total)) as i64 })
            .collect()
    }

    /// Those that may stand in, the one that lacks most of its share first.
    fn lacking(&self) -> BinaryHeap<Taker> {
        let targets = self.targets();
        let mut may: Vec<u32> =
            self.indices().filter(|index| self.is_full(*index) && self.place(*index).member.weight > 0).collect();
        if may.is_empty() {
            may = self.indices().filter(|i| self.place(*i).inside && self.place(*i).member.weight > 0).collect();
        }
        may.into_iter()
            .map(|index| Taker {
                lack: targets[index as usize] - (i64::from(self.place(index).held) << FRACTION_BITS),
                tie: table::mix(self.place(index).member.key),
                index,
            })
            .collect()
    }
}

/// Ordered by what it lacks; among equals by key, so that nodes agree.
#[derive(PartialEq, Eq)]
pub(super) struct Taker {
    pub(super) lack: i64,
    pub(super) tie: u64,
    pub(super) index: u32,
}

impl Ord for Taker {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.lack, self.tie, self.index).cmp(&(other.lack, other.tie, other.index))
    }
}

impl PartialOrd for Taker {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
