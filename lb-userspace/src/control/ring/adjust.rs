//! Members come, go and change weight: the base is brought to their shares by the fewest moves.
//!
//! A table built afresh for each change moves about half a slot in a hundred needlessly at 65,537 slots, and more in smaller
//! tables. So what the shares ask for is moved first, where there is a choice to where the fresh table has it; of the needless
//! moves to the fresh table at most [`MENDED_PER_10_000`] are made with a change, and none while a drain runs. Up to some four
//! backends that is all of them, and the table is the fresh one whatever came before. With more, nodes that start from the same
//! file or go through the same changes have the same table; nodes that came to a configuration by different ways may not.

use std::collections::{BTreeMap, BinaryHeap, HashMap};

use super::{
    Chains, Changed, Member, Ring,
    overlay::{FRACTION_BITS, Taker},
    table,
    table::{NOBODY, Permutation},
};
use crate::datapath::BackendSlot;

/// At most so many slots in ten thousand are moved needlessly with a change.
const MENDED_PER_10_000: u64 = 55;

/// Beyond this size (some 2,600 backends) a change costs what its own slots cost: building afresh would take 75 ms.
const LARGEST_BUILT_AFRESH: u32 = 262_147;

impl Ring {
    /// Makes these the members. New ones are out of rotation until they enter; those no longer named leave.
    pub fn set_members(&mut self, members: &[Member]) {
        let keep: HashMap<BackendSlot, Member> = members.iter().map(|member| (member.id, *member)).collect();
        let gone: Vec<u32> = self.indices().filter(|i| !keep.contains_key(&self.place(*i).member.id)).collect();
        for index in &gone {
            let id = self.place(*index).member.id;
            self.leave(id);
            self.set_draining(id, false);
        }
        let draining = self.indices().any(|index| self.place(index).draining);
        let size = table::size_for(members.len());
        for member in members {
            match self.index_of.get(&member.id).copied() {
                Some(index) => self.place_mut(index).member.weight = member.weight,
                None => {
                    self.admit(*member);
                }
            }
        }
        let empty = self.base.iter().all(|owner| *owner == NOBODY);
        if empty || (size > self.size && !draining) {
            self.remove(&gone);
            self.size = size.max(self.size);
            self.build_afresh();
        } else {
            self.adjust(&gone);
            self.remove(&gone);
        }
    }

    /// Where the base differs from the one built afresh, as (slot, index of the owner).
    pub(super) fn drift(&mut self) -> &[(u32, u32)] {
        if self.drift.is_none() {
            let fresh = self.fresh_base();
            let drift = (0..self.size).filter(|slot| self.base[*slot as usize] != fresh[*slot as usize]);
            self.drift = Some(drift.map(|slot| (slot, self.base[slot as usize])).collect());
        }
        self.drift.as_deref().unwrap_or_default()
    }

    /// The base that depends on nothing but the members.
    fn fresh_base(&self) -> Vec<u32> {
        self.fresh_table(&self.indices().collect::<Vec<_>>())
    }

    /// The table of some of the members.
    pub(super) fn fresh_table(&self, of: &[u32]) -> Vec<u32> {
        let mut order: Vec<u32> = of.iter().copied().filter(|index| self.place(*index).member.weight > 0).collect();
        order.sort_by_key(|index| (self.place(*index).member.key, self.place(*index).member.id));
        let members: Vec<(u64, u32)> =
            order.iter().map(|index| (self.place(*index).member.key, self.place(*index).member.weight)).collect();
        let mut base = table::fill(&members, self.size);
        for owner in &mut base {
            if let Some(index) = order.get(*owner as usize) {
                *owner = *index;
            }
        }
        base
    }

    /// Starts over: the fresh base, with stand-ins for those that are out.
    pub(super) fn build_afresh(&mut self) {
        for index in self.indices().collect::<Vec<_>>() {
            let walk = Permutation::new(self.place(index).member.key, self.size);
            self.place_mut(index).walk = walk;
            self.place_mut(index).ramp = None;
        }
        self.base = self.fresh_base();
        self.chains = Chains::new(self.size);
        self.ghosts = BTreeMap::new();
        self.changed = Changed::All;
        self.drift = None;
        self.recount();
        self.cover_orphans();
    }

    /// Gives stand-ins to slots whose owner is out, if anybody is in.
    fn cover_orphans(&mut self) {
        if self.indices().any(|index| self.place(index).inside) {
            let orphans: Vec<u32> = (0..self.size).filter(|slot| self.owner(*slot) == NOBODY).collect();
            self.hand_out(&orphans);
        }
    }

    fn remove(&mut self, gone: &[u32]) {
        if gone.is_empty() {
            return;
        }
        for index in gone {
            self.chains.forget(*index);
            if let Some(place) = self.places[*index as usize].take() {
                self.index_of.remove(&place.member.id);
            }
        }
    }

    /// Brings the base to the members' shares. Those `gone` keep nothing.
    fn adjust(&mut self, gone: &[u32]) {
        let weights = self.weights_without(gone);
        let mut shares = Shares::new(&weights, &self.base, self.size);
        let mut moves: BTreeMap<u32, u32> = BTreeMap::new();
        let staying: Vec<u32> = self.indices().filter(|index| !gone.contains(index)).collect();
        let fresh = (self.size <= LARGEST_BUILT_AFRESH).then(|| self.fresh_table(&staying));
        let free = self.free_surplus(&mut shares, fresh.as_deref());
        self.place_free(free, &weights, fresh.as_deref(), &mut shares, &mut moves);
        if let Some(fresh) = &fresh {
            self.take_fresh(fresh, &mut shares, &mut moves);
        }
        for index in shares.short() {
            self.take_from_rich(index, &mut shares, &mut moves);
        }
        self.rebase(&moves);
        self.drift = None;
        if let Some(fresh) = &fresh
            && !self.indices().any(|index| self.place(index).draining)
        {
            self.mend(fresh, &mut shares);
        }
    }

    fn weights_without(&self, gone: &[u32]) -> Vec<u32> {
        let weight = |index: u32| self.places[index as usize].as_ref().map_or(0, |place| place.member.weight);
        (0..self.places.len() as u32).map(|index| if gone.contains(&index) { 0 } else { weight(index) }).collect()
    }

    /// Gives slots that are free a new base owner: their stand-in if that has room, so that they need not move a second time;
    /// else who has them in the fresh table; else who lacks most.
    fn place_free(
        &self,
        mut free: Vec<u32>,
        weights: &[u32],
        fresh: Option<&[u32]>,
        shares: &mut Shares,
        moves: &mut BTreeMap<u32, u32>,
    ) {
        let in_fresh = |slot: u32| fresh.map_or(NOBODY, |fresh| fresh[slot as usize]);
        for choice in [&|slot| self.owner(slot), &in_fresh as &dyn Fn(u32) -> u32] {
            free.retain(|slot| {
                let taker = choice(*slot);
                let fits = taker != NOBODY && shares.room(taker);
                if fits {
                    shares.give(taker);
                    moves.insert(*slot, taker);
                }
                !fits
            });
        }
        let mut lacking = if free.is_empty() { BinaryHeap::new() } else { self.lacking_base(shares, weights) };
        for slot in free {
            let Some(mut taker) = lacking.pop() else {
                moves.insert(slot, NOBODY);
                continue;
            };
            shares.give(taker.index);
            moves.insert(slot, taker.index);
            taker.lack -= ONE;
            lacking.push(taker);
        }
    }

    /// Members that lack whole slots take, of those that the fresh table gives them, what others can spare.
    fn take_fresh(&self, fresh: &[u32], shares: &mut Shares, moves: &mut BTreeMap<u32, u32>) {
        if shares.short().is_empty() {
            return;
        }
        for slot in 0..self.size {
            let to = fresh[slot as usize];
            let owner = moves.get(&slot).copied().unwrap_or(self.base[slot as usize]);
            if to != NOBODY && owner != NOBODY && owner != to && shares.is_short(to) && shares.can_spare(owner) {
                shares.take(owner, 1);
                shares.give(to);
                moves.insert(slot, to);
            }
        }
    }

    /// Those with a weight, the one that lacks most of its share of the base first.
    fn lacking_base(&self, shares: &Shares, weights: &[u32]) -> BinaryHeap<Taker> {
        let takers = (0..weights.len() as u32).filter(|index| weights[*index as usize] > 0);
        takers
            .map(|index| Taker { lack: shares.lack(index), tie: table::mix(self.place(index).member.key), index })
            .collect()
    }

    /// Takes from those that have more than their share, rounded up, what is too much: first what is not theirs in the fresh
    /// table, then what they would have taken last.
    fn free_surplus(&self, shares: &mut Shares, fresh: Option<&[u32]>) -> Vec<u32> {
        let rich: Vec<u32> = (0..self.places.len() as u32).filter(|index| shares.surplus(*index) > 0).collect();
        let mut free: Vec<u32> = if shares.nobody() > 0 { self.base_slots(NOBODY) } else { Vec::new() };
        for index in rich {
            let walk = self.place(index).walk;
            let surplus = shares.surplus(index) as usize;
            let mut slots = self.base_slots(index);
            let theirs = |slot: u32| fresh.is_some_and(|fresh| fresh[slot as usize] == index);
            slots.sort_unstable_by_key(|slot| (!theirs(*slot), walk.place_of(*slot, self.size)));
            free.extend(slots.into_iter().rev().take(surplus));
            shares.take(index, surplus as u32);
        }
        free
    }

    /// Along its walk, a member takes slots from those that have more than their exact share until it has its own.
    fn take_from_rich(&self, index: u32, shares: &mut Shares, moves: &mut BTreeMap<u32, u32>) {
        let walk = self.place(index).walk;
        let mut slot = walk.first();
        for _ in 0..self.size {
            if !shares.is_short(index) {
                return;
            }
            let owner = moves.get(&slot).copied().unwrap_or(self.base[slot as usize]);
            if owner != index && (owner == NOBODY || shares.can_spare(owner)) {
                if owner != NOBODY {
                    shares.take(owner, 1);
                }
                shares.give(index);
                moves.insert(slot, index);
            }
            slot = walk.after(slot, self.size);
        }
    }

    /// Gives slots new base owners. Whoever has a slot keeps it where the new owner is out, and a drain remembers it.
    fn rebase(&mut self, moves: &BTreeMap<u32, u32>) {
        let mut orphans = Vec::new();
        for (slot, to) in moves {
            let had = self.owner(*slot);
            self.remember(*slot);
            self.chains.shorten(*slot, 0);
            self.base[*slot as usize] = *to;
            self.mark(*slot);
            if had != NOBODY {
                self.place_mut(had).held -= 1;
            }
            if *to != NOBODY && self.is_full(*to) {
                self.place_mut(*to).held += 1;
            } else if had != NOBODY {
                self.chains.push(*slot, had);
                self.place_mut(had).held += 1;
            } else {
                orphans.push(*slot);
            }
        }
        if !orphans.is_empty() && self.indices().any(|index| self.place(index).inside) {
            self.hand_out(&orphans);
        }
    }

    /// Draining members that had the slot are kept in mind when its base owner changes.
    fn remember(&mut self, slot: u32) {
        let mut ghosts = self.ghosts.remove(&slot).unwrap_or_default();
        let base = Some(self.base[slot as usize]).filter(|owner| *owner != NOBODY);
        for index in base.into_iter().chain(self.chains.of(slot)) {
            if self.place(index).draining && !ghosts.contains(&index) {
                ghosts.push(index);
            }
        }
        if !ghosts.is_empty() {
            self.ghosts.insert(slot, ghosts);
        }
    }

    /// Moves slots to where the fresh base has them: all, if few enough differ; else some, keeping everyone's share within a slot.
    fn mend(&mut self, fresh: &[u32], shares: &mut Shares) {
        let differs = |slot: &u32| self.base[*slot as usize] != fresh[*slot as usize];
        let mut different: Vec<u32> = (0..self.size).filter(differs).collect();
        let most = (u64::from(self.size) * MENDED_PER_10_000 / 10_000) as usize;
        if different.len() > most {
            different.retain(|slot| {
                let (from, to) = (self.base[*slot as usize], fresh[*slot as usize]);
                let fits = from != NOBODY && to != NOBODY && shares.can_spare(from) && shares.room(to);
                if fits {
                    shares.take(from, 1);
                    shares.give(to);
                }
                fits
            });
            different.truncate(most);
        }
        let moves = different.into_iter().map(|slot| (slot, fresh[slot as usize])).collect();
        self.rebase(&moves);
    }
}

/// What members have of the base and should have, in fractions of a slot.
struct Shares {
    target: Vec<i64>,
    has: Vec<i64>,
    nobody: u32,
}

const ONE: i64 = 1 << FRACTION_BITS;

impl Shares {
    fn new(weights: &[u32], base: &[u32], size: u32) -> Self {
        let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        let slots = u128::from(size) << FRACTION_BITS;
        let target =
            weights.iter().map(|weight| (slots * u128::from(*weight)).checked_div(total).unwrap_or(0) as i64).collect();
        let mut has = vec![0; weights.len()];
        let mut nobody = 0;
        for owner in base {
            match has.get_mut(*owner as usize) {
                Some(count) => *count += ONE,
                None => nobody += 1,
            }
        }
        Self { target, has, nobody }
    }

    /// Slots that have no base owner.
    fn nobody(&self) -> u32 {
        self.nobody
    }

    fn lack(&self, index: u32) -> i64 {
        self.target[index as usize] - self.has[index as usize]
    }

    /// Whole slots beyond the share rounded up.
    fn surplus(&self, index: u32) -> u32 {
        let index = index as usize;
        let ceiling = (self.target[index] + ONE - 1) / ONE * ONE;
        u32::try_from((self.has[index] - ceiling) / ONE).unwrap_or(0)
    }

    /// One more slot stays within the share rounded up.
    fn room(&self, index: u32) -> bool {
        self.lack(index) > 0
    }

    /// One fewer stays within the share rounded down.
    fn can_spare(&self, index: u32) -> bool {
        self.lack(index) < 0
    }

    /// Lacks a whole slot.
    fn is_short(&self, index: u32) -> bool {
        self.lack(index) >= ONE
    }

    fn short(&self) -> Vec<u32> {
        (0..self.target.len() as u32).filter(|index| self.is_short(*index)).collect()
    }

    fn give(&mut self, index: u32) {
        self.has[index as usize] += ONE;
    }

    fn take(&mut self, index: u32, count: u32) {
        self.has[index as usize] -= i64::from(count) * ONE;
    }
}
