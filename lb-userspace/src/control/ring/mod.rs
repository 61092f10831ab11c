//! A service's ring: who gets the flows that hash to a slot.
//!
//! Two layers. The *base* gives every member with a weight its share, in rotation or not; only registration, removal and
//! weights change it. Over it lies, for each slot whose base owner is out of rotation, a *chain* of stand-ins: the last one in
//! it has the slot, all before it are out. A member that goes out hands only its own slots on; one that comes back takes the
//! slots in whose chains it stands, and nothing else moves.
//!
//! **Invariant:** a slot belongs to the last of its chain, without a chain to its base owner. Both are in rotation unless nobody
//! is; the base owner of a slot with a chain and all but the chain's last are out, or held back from the slot by a slow start.

mod adjust;
mod chains;
mod overlay;
mod saved;
pub mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::{
    chains::Chains,
    table::{NOBODY, Permutation},
};
use crate::datapath::{BackendSlot, RingSlot};

pub use overlay::Entrant;
pub use saved::SavedRing;

/// A backend in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its row.
    pub id: BackendSlot,
    /// Decides its permutation; from its name and address, so that nodes with the same configuration agree.
    pub key: u64,
    /// Its share relative to the others'.
    pub weight: u32,
}

/// The ring of one service.
#[derive(Clone, Debug)]
pub struct Ring {
    size: u32,
    /// Indices are stable while a member is registered; `None` where one has left.
    places: Vec<Option<Place>>,
    index_of: HashMap<BackendSlot, u32>,
    /// The base owner of each slot.
    base: Vec<u32>,
    /// Stand-ins of slots whose base owner is out; the last one has the slot.
    chains: Chains,
    /// Draining members that had a slot before its base owner changed, oldest first.
    ghosts: BTreeMap<u32, Vec<u32>>,
    changed: Changed,
    /// Where the base differs from the one built afresh; `None` when that has to be looked at again.
    drift: Option<Vec<(u32, u32)>>,
}

#[derive(Clone, Debug)]
struct Place {
    member: Member,
    walk: Permutation,
    /// In rotation.
    inside: bool,
    /// A drain runs: its former slots remember it.
    draining: bool,
    /// Slots it has now.
    held: u32,
    /// During a slow start: how many of its base slots it may have. `None` means all.
    ramp: Option<u32>,
}

/// What has to be published.
#[derive(Clone, Debug)]
enum Changed {
    Slots(BTreeSet<u32>),
    All,
}

/// What has to be published of a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Nothing.
    None,
    /// These slots.
    Slots(Vec<(u32, RingSlot)>),
    /// The whole table: its size is another.
    All(Vec<RingSlot>),
}

impl Ring {
    /// The table of these members, all of them out of rotation.
    pub fn new(members: &[Member]) -> Self {
        let mut ring = Self {
            size: table::size_for(members.len()),
            places: Vec::new(),
            index_of: HashMap::new(),
            base: Vec::new(),
            chains: Chains::new(0),
            ghosts: BTreeMap::new(),
            changed: Changed::All,
            drift: None,
        };
        for member in members {
            ring.admit(*member);
        }
        ring.build_afresh();
        ring
    }

    /// How many slots there are.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// How many slots the member has now.
    pub fn held(&self, id: BackendSlot) -> u32 {
        self.index_of.get(&id).map_or(0, |index| self.place(*index).held)
    }

    /// Whether the member is in rotation.
    pub fn is_in(&self, id: BackendSlot) -> bool {
        self.index_of.get(&id).is_some_and(|index| self.place(*index).inside)
    }

    /// Whether the member's former slots remember it.
    pub fn is_draining(&self, id: BackendSlot) -> bool {
        self.index_of.get(&id).is_some_and(|index| self.place(*index).draining)
    }

    /// One slot as the packet path needs it.
    pub fn slot(&self, slot: u32) -> RingSlot {
        RingSlot { owner: self.id(self.owner(slot)), previous: self.previous(slot) }
    }

    /// All slots as the packet path needs them.
    pub fn slots(&self) -> Vec<RingSlot> {
        (0..self.size).map(|slot| self.slot(slot)).collect()
    }

    /// What has changed since this was last asked.
    pub fn take_changes(&mut self) -> Changes {
        match std::mem::replace(&mut self.changed, Changed::Slots(BTreeSet::new())) {
            Changed::All => Changes::All(self.slots()),
            Changed::Slots(slots) if slots.is_empty() => Changes::None,
            Changed::Slots(slots) => Changes::Slots(slots.into_iter().map(|slot| (slot, self.slot(slot))).collect()),
        }
    }

    /// Has everything published again.
    pub fn mark_all_changed(&mut self) {
        self.changed = Changed::All;
    }

    fn place(&self, index: u32) -> &Place {
        self.places[index as usize].as_ref().expect("a slot names registered members only")
    }

    fn place_mut(&mut self, index: u32) -> &mut Place {
        self.places[index as usize].as_mut().expect("a slot names registered members only")
    }

    fn indices(&self) -> impl Iterator<Item = u32> {
        (0..self.places.len() as u32).filter(|index| self.places[*index as usize].is_some())
    }

    fn id(&self, index: u32) -> Option<BackendSlot> {
        self.places.get(index as usize)?.as_ref().map(|place| place.member.id)
    }

    /// The index of who has the slot now.
    fn owner(&self, slot: u32) -> u32 {
        let last = self.chains.last(slot).unwrap_or(self.base[slot as usize]);
        if last != NOBODY && self.place(last).inside { last } else { NOBODY }
    }

    /// Who had the slot before the earliest drain still running.
    fn previous(&self, slot: u32) -> Option<BackendSlot> {
        let ghosts = self.ghosts.get(&slot).into_iter().flatten().copied();
        let base = Some(self.base[slot as usize]).filter(|owner| *owner != NOBODY);
        let mut in_line = ghosts.chain(base).chain(self.chains.of(slot));
        in_line.find(|index| self.place(*index).draining).and_then(|index| self.id(index))
    }

    fn mark(&mut self, slot: u32) {
        if let Changed::Slots(slots) = &mut self.changed {
            slots.insert(slot);
            if slots.len() > self.size as usize / 2 {
                self.changed = Changed::All;
            }
        }
    }

    fn admit(&mut self, member: Member) -> u32 {
        let place = Place {
            member,
            walk: Permutation::new(member.key, self.size),
            inside: false,
            draining: false,
            held: 0,
            ramp: None,
        };
        let index = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        if index == self.places.len() {
            self.places.push(Some(place));
        } else {
            self.places[index] = Some(place);
        }
        self.index_of.insert(member.id, index as u32);
        index as u32
    }

    /// Counts anew what everyone has.
    fn recount(&mut self) {
        for place in self.places.iter_mut().flatten() {
            place.held = 0;
        }
        for slot in 0..self.size {
            let owner = self.owner(slot);
            if owner != NOBODY {
                self.place_mut(owner).held += 1;
            }
        }
    }
}

/// A key for [`Member`] from what names a backend: FNV-1a, then mixed.
pub fn member_key(name: &str, address: &str) -> u64 {
    let bytes = name.bytes().chain([0]).chain(address.bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    table::mix(hash)
}
