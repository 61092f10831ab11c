//! The chains of stand-ins, and the index of who stands where.

use super::Ring;

/// So many slots are looked at together when a member's are searched for.
const STRIDE: usize = 256;

impl Ring {
    /// Puts a member at the end of a slot's chain.
    pub(super) fn push_stand_in(&mut self, slot: u32, index: u32) {
        self.chains.entry(slot).or_default().push(index);
        self.place_mut(index).stands.insert(slot);
    }

    /// Leaves only the first `length` in a slot's chain.
    pub(super) fn shorten_chain(&mut self, slot: u32, length: usize) {
        let Some(chain) = self.chains.get_mut(&slot) else { return };
        let dropped = chain.split_off(length.min(chain.len()));
        if chain.is_empty() {
            self.chains.remove(&slot);
        }
        for index in dropped {
            self.place_mut(index).stands.remove(&slot);
        }
    }

    /// Takes a member out of all chains.
    pub(super) fn leave_chains(&mut self, index: u32) {
        for slot in std::mem::take(&mut self.place_mut(index).stands) {
            if let Some(chain) = self.chains.get_mut(&slot) {
                chain.retain(|member| *member != index);
                if chain.is_empty() {
                    self.chains.remove(&slot);
                }
            }
        }
    }

    /// Builds the index anew.
    pub(super) fn index_chains(&mut self) {
        for place in self.places.iter_mut().flatten() {
            place.stands.clear();
        }
        for (slot, chain) in &self.chains {
            for index in chain {
                if let Some(place) = self.places[*index as usize].as_mut() {
                    place.stands.insert(*slot);
                }
            }
        }
    }

    /// The slots a member has by the base.
    pub(super) fn base_slots(&self, index: u32) -> Vec<u32> {
        let mut slots = Vec::new();
        for (stride, owners) in self.base.chunks(STRIDE).enumerate() {
            // Counting has no early end, so the compiler compares many at a time.
            if owners.iter().filter(|owner| **owner == index).count() > 0 {
                let first = (stride * STRIDE) as u32;
                slots.extend((first..).zip(owners).filter(|(_, owner)| **owner == index).map(|(slot, _)| slot));
            }
        }
        slots
    }

    /// The slots a member has now.
    pub(super) fn slots_of(&self, index: u32) -> Vec<u32> {
        let mut slots: Vec<u32> =
            self.base_slots(index).into_iter().filter(|slot| !self.chains.contains_key(slot)).collect();
        let last = |slot: &&u32| self.chains.get(slot).and_then(|chain| chain.last()) == Some(&index);
        slots.extend(self.place(index).stands.iter().filter(last));
        slots
    }
}
