//! What must be kept of a ring, so that it comes back slot for slot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Member, Ring};
use crate::datapath::BackendSlot;

/// A ring on disk: what cannot be built again from the members alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRing {
    /// How many slots there are.
    pub size: u32,
    /// The members; the other fields name them by their place in this list.
    pub members: Vec<SavedMember>,
    /// Where the base differs from the one built afresh: slot, member, slot, member, …
    pub drift: Vec<u32>,
    /// By slot, its stand-ins: slot, member, …
    pub chains: Vec<Vec<u32>>,
    /// By slot, draining members that had it before its base owner changed: slot, member, …
    pub ghosts: Vec<Vec<u32>>,
}

/// A member of a [`SavedRing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMember {
    /// Its row.
    pub id: BackendSlot,
    /// In rotation.
    pub inside: bool,
    /// A drain runs.
    pub draining: bool,
    /// How many of its own slots its slow start allows.
    pub ramp: Option<u32>,
}

impl Ring {
    /// What must be kept of it.
    pub fn save(&mut self) -> SavedRing {
        let drift = self.drift().to_vec();
        let mut place_in_list = vec![0; self.places.len()];
        let mut members = Vec::new();
        for index in self.indices().collect::<Vec<_>>() {
            place_in_list[index as usize] = members.len() as u32;
            let place = self.place(index);
            members.push(SavedMember {
                id: place.member.id,
                inside: place.inside,
                draining: place.draining,
                ramp: place.ramp,
            });
        }
        let name = |index: &u32| place_in_list.get(*index as usize).copied().unwrap_or(u32::MAX);
        let lists = |lists: &BTreeMap<u32, Vec<u32>>| {
            lists.iter().map(|(slot, list)| [*slot].into_iter().chain(list.iter().map(name)).collect()).collect()
        };
        let chains = |ring: &Self| {
            let list = |slot| [slot].into_iter().chain(ring.chains.of(slot).map(|index| name(&index))).collect();
            ring.chains.slots_from(0).map(list).collect()
        };
        SavedRing {
            size: self.size,
            drift: drift.iter().flat_map(|(slot, index)| [*slot, name(index)]).collect(),
            chains: chains(self),
            ghosts: lists(&self.ghosts),
            members,
        }
    }

    /// The ring that was saved, if it is one of these members; `None` when it cannot be.
    pub fn restore(saved: &SavedRing, members: &[Member]) -> Option<Self> {
        let same_members = saved.members.len() == members.len()
            && members.iter().all(|member| saved.members.iter().any(|other| other.id == member.id));
        if !same_members || !lb_common::ring::RING_SIZES.contains(&saved.size) {
            return None;
        }
        let mut ring = Self::new(&[]);
        ring.size = saved.size;
        for kept in &saved.members {
            let member = members.iter().find(|member| member.id == kept.id)?;
            ring.admit(*member);
        }
        ring.build_afresh();
        for pair in saved.drift.chunks_exact(2) {
            *ring.base.get_mut(pair[0] as usize)? = pair[1];
        }
        for (slot, chain) in ring.read_lists(&saved.chains)? {
            for index in chain {
                ring.chains.push(slot, index);
            }
        }
        ring.ghosts = ring.read_lists(&saved.ghosts)?;
        for (place, kept) in ring.places.iter_mut().flatten().zip(&saved.members) {
            place.inside = kept.inside;
            place.draining = kept.draining;
            place.ramp = kept.ramp;
        }
        let known = |index: &u32| *index == super::NOBODY || (*index as usize) < saved.members.len();
        if !ring.base.iter().all(known) {
            return None;
        }
        ring.recount();
        Some(ring)
    }

    fn read_lists(&self, lists: &[Vec<u32>]) -> Option<BTreeMap<u32, Vec<u32>>> {
        let read = |list: &Vec<u32>| {
            let (slot, members) = list.split_first()?;
            let known = members.iter().all(|index| (*index as usize) < self.places.len());
            (*slot < self.size && known && !members.is_empty()).then(|| (*slot, members.to_vec()))
        };
        lists.iter().map(read).collect()
    }
}
