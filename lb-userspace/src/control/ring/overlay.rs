//! Members go out of rotation and come back.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

use super::{Changed, Ring, chains, table, table::NOBODY};
use crate::datapath::BackendSlot;

/// Up to this size a drain looks at the table that is to come; it takes 1.5 ms to build.
const LARGEST_GUIDED: u32 = 65_537;

/// Fractions of a slot are kept in so many bits.
pub(super) const FRACTION_BITS: u32 = 20;

/// A member that comes into rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entrant {
    /// Which.
    pub id: BackendSlot,
    /// It also takes over its part of what others stand in for. Not after a drain: then nothing but its own slots moves.
    pub rebalance: bool,
    /// It takes only so many thousandths of its own slots, until [`Ring::ramp`] gives it more.
    pub share: Option<u32>,
}

impl Ring {
    /// Takes a member out of rotation: its slots, and no others, go to those that lack most of their share.
    pub fn leave(&mut self, id: BackendSlot) {
        self.leave_all(&[id]);
    }

    /// Takes members out of rotation at one go: none of them stands in for another.
    pub fn leave_all(&mut self, ids: &[BackendSlot]) {
        let mut slots = Vec::new();
        for id in ids {
            let Some(index) = self.index_of.get(id).copied().filter(|index| self.place(*index).inside) else {
                continue;
            };
            slots.extend(self.slots_of(index));
            let place = self.place_mut(index);
            place.inside = false;
            place.ramp = None;
            place.held = 0;
        }
        if !slots.is_empty() {
            self.hand_out(&slots);
        }
    }

    /// Puts a member into rotation; see [`Ring::enter_all`].
    pub fn enter(&mut self, id: BackendSlot, rebalance: bool, share: Option<u32>) {
        self.enter_all(&[Entrant { id, rebalance, share }]);
    }

    /// Puts members into rotation: they take the slots that are their own and those they stood in for when they left.
    pub fn enter_all(&mut self, entrants: &[Entrant]) {
        let others = self.indices().any(|other| self.is_full(other) && self.place(other).member.weight > 0);
        let mut entering = Vec::new();
        for entrant in entrants {
            let index = self.index_of.get(&entrant.id).copied();
            if let Some(index) = index.filter(|index| !self.place(*index).inside) {
                let share = entrant.share.filter(|_| others);
                let place = self.place_mut(index);
                place.inside = true;
                place.ramp = share.map(|_| 0);
                entering.push((index, Entrant { share, ..*entrant }));
            }
        }
        match entering.as_slice() {
            [] => return,
            [(index, _)] => self.take_back(*index),
            many => {
                // Their own slots are theirs even where there was no chain.
                for (index, _) in many {
                    self.mark_base(*index);
                }
                self.take_back_together();
            }
        }
        for (_, entrant) in &entering {
            if let Some(share) = entrant.share {
                self.ramp(entrant.id, share);
            }
        }
        if !others {
            self.take_orphans();
        }
        let targets = self.targets();
        for (index, _) in
            entering.iter().filter(|(index, entrant)| entrant.rebalance && self.is_full(*index)).collect::<Vec<_>>()
        {
            self.take_stand_ins(*index, &targets);
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
            if self.chains.has(slot) {
                self.release_chain(slot);
            }
        }
        self.place_mut(index).held = self.slots_of(index).len() as u32;
        if done {
            let targets = self.targets();
            self.take_stand_ins(index, &targets);
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
        let stood_in = self.chains.with(index);
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
                    self.chains.push(*slot, taker.index);
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
            self.chains.push(*slot, taker);
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
        for slot in self.chains.with(index) {
            self.count_out(slot, index);
            let at = self.chains.of(slot).position(|member| member == index);
            self.chains.shorten(slot, at.map_or(0, |at| at + 1));
            self.mark(slot);
        }
        self.place_mut(index).held = self.slots_of(index).len() as u32;
    }

    /// The same for several at one go: each chain ends at the first who is in.
    fn take_back_together(&mut self) {
        for slot in self.chains.slots_from(0).collect::<Vec<_>>() {
            let had = self.chains.last(slot);
            let base = self.base[slot as usize];
            let first_in = self.chains.of(slot).position(|member| self.place(member).inside);
            if base != NOBODY && self.is_full(base) {
                self.chains.shorten(slot, 0);
            } else if let Some(at) = first_in {
                self.chains.shorten(slot, at + 1);
            }
            if self.chains.last(slot) != had {
                self.mark(slot);
            }
        }
        self.recount();
    }

    /// A slot goes back to its base owner, who is in and whose own count the caller brings up to date.
    fn release_chain(&mut self, slot: u32) {
        let owner = self.base[slot as usize];
        self.count_out(slot, owner);
        self.chains.shorten(slot, 0);
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
    fn take_stand_ins(&mut self, index: u32, targets: &[i64]) {
        let lack = |index: u32| targets[index as usize] - (i64::from(self.place(index).held) << FRACTION_BITS);
        let wanted = usize::try_from(lack(index) >> FRACTION_BITS).unwrap_or(0);
        let mut given: HashMap<u32, i64> = HashMap::new();
        let mut taken = Vec::new();
        // From another place for each, so that one after the other does not search what those before have taken.
        let start = table::mix(self.place(index).member.key) % u64::from(self.size);
        for slot in self.chains.slots_from(start as u32) {
            if taken.len() >= wanted {
                break;
            }
            let Some(last) = self.chains.last(slot).filter(|last| *last != index) else { continue };
            let gave = given.entry(last).or_default();
            if self.base[slot as usize] != index && lack(last) + (*gave << FRACTION_BITS) < 0 {
                *gave += 1;
                taken.push((slot, last));
            }
        }
        for (slot, last) in taken {
            self.chains.pop(slot);
            self.chains.push(slot, index);
            self.place_mut(last).held -= 1;
            self.place_mut(index).held += 1;
            self.mark(slot);
        }
    }

    fn mark_base(&mut self, index: u32) {
        if matches!(self.changed, Changed::Slots(_)) {
            let slots = self.base_slots(index);
            self.mark_each(&slots);
        }
    }

    /// The slots a member has by the base.
    pub(super) fn base_slots(&self, index: u32) -> Vec<u32> {
        chains::positions(&self.base, index)
    }

    /// The slots a member has now.
    fn slots_of(&self, index: u32) -> Vec<u32> {
        let mut slots = self.base_slots(index);
        slots.retain(|slot| !self.chains.has(*slot));
        slots.extend(self.chains.with(index).into_iter().filter(|slot| self.chains.last(*slot) == Some(index)));
        slots
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
