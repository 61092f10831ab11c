//! The steering rings: two maps a service, one in force (see [`lb_common::ring::Published`]).

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::Ordering,
};

use lb_common::ring::{Published, RingSlot as Word};

use super::{RingSlot, mmap::Mapped, sys};

/// Entries of the array of rings for each service.
pub(crate) const MAPS_PER_SERVICE: u32 = 2;

/// A ring in force.
#[derive(Debug)]
struct Ring {
    published: Published,
    slots: Mapped<u64>,
}

/// The rings in force.
#[derive(Debug, Default)]
pub(crate) struct Rings {
    by_service: HashMap<u16, Ring>,
}

/// A ring that stands in its map and waits to be put in force.
#[derive(Debug)]
pub(crate) struct Built {
    service: u16,
    ring: Ring,
}

impl Built {
    /// What is to be stored in the service's row.
    pub(crate) fn published(&self) -> Published {
        self.ring.published
    }
}

/// A slot as the packet path reads it.
pub(crate) fn word(slot: &RingSlot) -> u64 {
    let number = |backend: Option<super::BackendSlot>| backend.map_or(0, |slot| slot.0 + 1);
    Word { owner: number(slot.owner), previous: number(slot.previous) }.pack()
}

impl Rings {
    /// Finds the ring in force again after a restart.
    pub(crate) fn adopt(&mut self, outer: BorrowedFd<'_>, service: u16, published: Published) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("service row {service} names no ring"));
        let map = sys::inner_map(outer, published.map_index(service))?.ok_or_else(missing)?;
        let info = sys::map_info(map.as_fd())?;
        if info.max_entries < published.size || info.value_size as usize != size_of::<u64>() {
            return Err(missing());
        }
        let slots = Mapped::new(map.as_fd(), published.size)?;
        self.by_service.insert(service, Ring { published, slots });
        Ok(())
    }

    /// Slots of the ring in force; 0 where there is none.
    pub(crate) fn size(&self, service: u16) -> u32 {
        self.by_service.get(&service).map_or(0, |ring| ring.published.size)
    }

    /// Stores slots of the ring in force, each whole, those that differ. False if one is out of range.
    pub(crate) fn store(&self, service: u16, changes: impl Iterator<Item = (u32, u64)>) -> bool {
        let Some(ring) = self.by_service.get(&service) else { return false };
        let words = ring.slots.words();
        for (index, word) in changes {
            let Some(slot) = words.get(index as usize) else { return false };
            if slot.load(Ordering::Relaxed) != word {
                slot.store(word, Ordering::Release);
            }
        }
        true
    }

    /// Builds a ring of another size in the map that is not in force.
    pub(crate) fn build(&self, outer: BorrowedFd<'_>, service: u16, words: &[u64]) -> io::Result<Built> {
        let size = u32::try_from(words.len()).map_err(io::Error::other)?;
        let half = self.by_service.get(&service).map_or(0, |ring| 1 - ring.published.half);
        let published = Published { half, size };
        let map = sys::create_map(sys::MapSpec {
            name: "ebb_ring",
            map_type: sys::ARRAY,
            value_size: size_of::<u64>() as u32,
            max_entries: size,
            flags: sys::INNER_MAP | sys::MMAPABLE,
            inner: None,
        })?;
        let slots = Mapped::<u64>::new(map.as_fd(), size)?;
        for (slot, &word) in slots.words().iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
        // The system call orders the stores before what any packet reads through it.
        sys::set_inner_map(outer, published.map_index(service), map.as_fd())?;
        Ok(Built { service, ring: Ring { published, slots } })
    }

    /// Takes note that a built ring is in force, and frees the one before it once no packet reads it (a grace period).
    pub(crate) fn put_in_force(&mut self, outer: BorrowedFd<'_>, built: Built) -> io::Result<()> {
        let service = built.service;
        match self.by_service.insert(service, built.ring) {
            Some(before) => sys::clear_inner_map(outer, before.published.map_index(service)),
            None => Ok(()),
        }
    }

    /// Frees a service's rings, after its row has ceased to name one.
    pub(crate) fn remove(&mut self, outer: BorrowedFd<'_>, service: u16) -> io::Result<()> {
        self.by_service.remove(&service);
        for half in 0..MAPS_PER_SERVICE {
            sys::clear_inner_map(outer, Published { half, size: 1 }.map_index(service))?;
        }
        Ok(())
    }
}
