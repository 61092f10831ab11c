//! The steering rings: two maps a service, one in force (see [`lb_common::ring::Published`]).

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::atomic::Ordering,
};

use lb_common::ring::{Published, RingSlot as Word};

use super::{RingSlot, mmap::Mapped, sys};

/// Entries of the array of rings for each service.
pub(crate) const MAPS_PER_SERVICE: u32 = 2;

/// Longest ring of which one is kept ready (128 kB).
const SPARE_SIZE: u32 = lb_common::ring::RING_SIZES[1];
/// Most rings kept ready.
const SPARES: usize = 64;

/// A ring in force.
#[derive(Debug)]
struct Ring {
    published: Published,
    slots: Mapped<u64>,
}

/// The rings in force, and some made ready.
#[derive(Debug)]
pub(crate) struct Rings {
    /// Where they are pinned.
    pins: RingPins,
    by_service: HashMap<u16, Ring>,
    /// Maps that stand at half 0 of services without a ring. Putting a map in place costs a grace period of some
    /// milliseconds, and one is enough for many maps: a thousand services would else take ten seconds to restore.
    spares: HashMap<u16, Mapped<u64>>,
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
    /// None yet; they will be pinned in this directory.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { pins: RingPins(directory), by_service: HashMap::new(), spares: HashMap::new() }
    }

    /// Finds the ring in force again after a restart.
    pub(crate) fn adopt(&mut self, outer: BorrowedFd<'_>, service: u16, published: Published) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "it is not where its service's row says");
        let index = published.map_index(service);
        let id = sys::inner_map_id(outer, index)?.ok_or_else(missing)?;
        let map = match self.pins.open(index, id) {
            Some(map) => map,
            // Pinned by no earlier version, which needed the right to open any map.
            None => sys::map_by_id(id)?,
        };
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

    /// Builds a ring of another size in the map that is not in force. What stood there before is freed by the kernel
    /// when no packet reads it.
    pub(crate) fn build(
        &mut self,
        outer: BorrowedFd<'_>,
        services: u32,
        service: u16,
        words: &[u64],
    ) -> io::Result<Built> {
        let size = u32::try_from(words.len()).map_err(io::Error::other)?;
        let half = self.by_service.get(&service).map_or(0, |ring| 1 - ring.published.half);
        let published = Published { half, size };
        let slots = match self.spares.remove(&service).filter(|spare| half == 0 && spare.rows() == size) {
            Some(spare) => spare,
            None if half == 0 => self.place_with_spares(outer, services, service, size)?,
            None => self.pins.place(outer, published.map_index(service), size)?,
        };
        for (slot, &word) in slots.words().iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
        // All of it is there before the row names it: the row's words are stored with release ordering.
        Ok(Built { service, ring: Ring { published, slots } })
    }

    /// Puts a map in place for a service without a ring, and likewise for services after it, the more the more rings
    /// there are already.
    fn place_with_spares(
        &mut self,
        outer: BorrowedFd<'_>,
        services: u32,
        service: u16,
        size: u32,
    ) -> io::Result<Mapped<u64>> {
        let index = |service| Published { half: 0, size }.map_index(service);
        let wanted =
            if size <= SPARE_SIZE { self.by_service.len().min(SPARES.saturating_sub(self.spares.len())) } else { 0 };
        let limit = u16::try_from(services).unwrap_or(u16::MAX);
        let free = |next: &u16| !self.by_service.contains_key(next) && !self.spares.contains_key(next);
        let next: Vec<u16> = (service.saturating_add(1)..limit).take(SPARES).filter(free).take(wanted).collect();
        if next.is_empty() {
            return self.pins.place(outer, index(service), size);
        }
        let all: Vec<u16> = std::iter::once(service).chain(next).collect();
        let maps: Vec<OwnedFd> = all.iter().map(|_| create(size)).collect::<io::Result<_>>()?;
        let indices: Vec<u32> = all.iter().map(|&service| index(service)).collect();
        for (&index, map) in indices.iter().zip(&maps) {
            self.pins.prepare(index, map.as_fd())?;
        }
        if let Err(error) = sys::set_inner_maps(outer, &indices, &maps) {
            // Older kernels do it one by one only.
            tracing::debug!("rings cannot be put in place together: {error}");
            return self.pins.place(outer, index(service), size);
        }
        for &index in &indices {
            self.pins.settle(index)?;
        }
        let mapped = maps.iter().map(|map| Mapped::new(map.as_fd(), size)).collect::<io::Result<Vec<_>>>()?;
        self.spares.extend(all.into_iter().zip(mapped));
        self.spares.remove(&service).ok_or_else(|| io::Error::other("no ring was made"))
    }

    /// Takes note that a built ring is in force. The one before it stays in its map until another is built there: a
    /// grace period less, for a fourth of the memory.
    pub(crate) fn put_in_force(&mut self, built: Built) {
        self.by_service.insert(built.service, built.ring);
    }

    /// Frees a service's rings, after its row has ceased to name one and no packet is for it any more.
    pub(crate) fn remove(&mut self, outer: BorrowedFd<'_>, service: u16) -> io::Result<()> {
        if let Some(ring) = self.by_service.remove(&service)
            && ring.published.half == 0
            && ring.published.size <= SPARE_SIZE
            && self.spares.len() < SPARES
        {
            self.spares.insert(service, ring.slots);
        }
        for half in 0..MAPS_PER_SERVICE {
            if half == 1 || !self.spares.contains_key(&service) {
                let index = Published { half, size: 1 }.map_index(service);
                sys::clear_inner_map(outer, index)?;
                self.pins.forget(index);
            }
        }
        Ok(())
    }
}

fn create(size: u32) -> io::Result<OwnedFd> {
    sys::create_map(sys::MapSpec {
        name: "ebb_ring",
        map_type: sys::ARRAY,
        value_size: size_of::<u64>() as u32,
        max_entries: size,
        flags: sys::INNER_MAP | sys::MMAPABLE,
        inner: None,
    })
}

/// Pins of the maps in the array of rings, by their index there. Without them a new daemon would find the maps by their numbers
/// only, and the kernel opens a map by its number for nobody but those with `CAP_SYS_ADMIN`.
#[derive(Debug)]
struct RingPins(PathBuf);

impl RingPins {
    fn of(&self, index: u32) -> PathBuf {
        self.0.join(format!("ring-{index}"))
    }

    /// The pin of a map that is about to be put at an index: who is killed between the two steps leaves either name.
    fn aside(&self, index: u32) -> PathBuf {
        self.0.join(format!("ring-{index}-new"))
    }

    /// The map of this number, if it is the one pinned for an index.
    fn open(&self, index: u32, id: u32) -> Option<OwnedFd> {
        [self.of(index), self.aside(index)].iter().find_map(|path| {
            let map = sys::open_pin(path).ok()?;
            (sys::map_info(map.as_fd()).ok()?.id == id).then_some(map)
        })
    }

    fn prepare(&self, index: u32, map: BorrowedFd<'_>) -> io::Result<()> {
        let path = self.aside(index);
        // Left over by one who was killed between the two steps.
        let _ = fs::remove_file(&path);
        sys::pin(map, &path)
    }

    fn settle(&self, index: u32) -> io::Result<()> {
        fs::rename(self.aside(index), self.of(index))
    }

    /// A pin that cannot be removed keeps a map that nobody reads; `ebb unload` tries again.
    fn forget(&self, index: u32) {
        let _ = fs::remove_file(self.of(index));
    }

    /// Makes a map and puts it at an index of the array of rings.
    fn place(&self, outer: BorrowedFd<'_>, index: u32, size: u32) -> io::Result<Mapped<u64>> {
        let map = create(size)?;
        self.prepare(index, map.as_fd())?;
        sys::set_inner_map(outer, index, map.as_fd())?;
        self.settle(index)?;
        Mapped::new(map.as_fd(), size)
    }
}
