//! The flow table as the daemon sees it: the packet path's memory, scanned without a system call.
//!
//! The daemon changes two words of an entry only, `hop` and `meta`, and those by the algorithm of
//! [`lb_common::flow_table`] alone. It reads the rest as the packet path writes it.

mod scan;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering, fence};

use lb_common::{
    backend::{BackendState, NO_DEADLINE},
    flow::{FlowEntry, FlowInit, FlowKey, Life, Meta, Timers},
    flow_table::{self, Entries, Entry, Geometry},
    hash::TABLE_KEYS,
    service::Service,
    tally::FlowTally,
};

use super::mmap::Mapped;

pub(crate) use scan::{CutList, Kept, Scan, Tally, Tap};

/// Words of an entry.
const WORDS: usize = size_of::<FlowEntry>() / 8;
const HOP: usize = std::mem::offset_of!(FlowEntry, hop) / 8;
const META: usize = std::mem::offset_of!(FlowEntry, meta) / 8;
/// The client's address takes two words, port, service and backend slot the one after them.
const CLIENT: usize = std::mem::offset_of!(FlowEntry, client) / 8;
/// Port, service and backend slot; the word after it has generation and start.
const BACKEND: usize = CLIENT + 2;

const _: () = {
    assert!(std::mem::offset_of!(FlowEntry, port_service) == BACKEND * 8);
    assert!(std::mem::offset_of!(FlowEntry, backend) == BACKEND * 8 + 4);
    assert!(std::mem::offset_of!(FlowEntry, generation) == BACKEND * 8 + 8);
    assert!(std::mem::offset_of!(FlowEntry, started) == BACKEND * 8 + 12);
};

/// All entries.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    entries: &'a [[AtomicU64; WORDS]],
}

/// One entry.
#[derive(Clone, Copy)]
pub(crate) struct Slot<'a>(&'a [AtomicU64; WORDS]);

impl<'a> View<'a> {
    /// A view of the first `slots` entries in the words of the table's map.
    pub(crate) fn new(words: &'a [AtomicU64], slots: u32) -> Self {
        let entries: &[_] = words.as_chunks().0;
        Self { entries: entries.get(..slots as usize).unwrap_or(entries) }
    }

    fn iter(self) -> impl Iterator<Item = (u32, Slot<'a>)> {
        (0u32..).zip(self.entries.iter().map(Slot))
    }
}

impl<'a> Entries for View<'a> {
    type Entry = Slot<'a>;

    fn at(self, index: u32) -> Option<Slot<'a>> {
        self.entries.get(index as usize).map(Slot)
    }
}

impl Slot<'_> {
    /// The whole entry as long as `meta`'s owner has it; `None` if it passed to another meanwhile.
    fn snapshot(self, meta: Meta) -> Option<FlowEntry> {
        let words: [u64; WORDS] = std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed));
        // The words were read before the version is read again.
        fence(Ordering::Acquire);
        let now = self.meta();
        (now.version() == meta.version() && now.life() != Life::Free).then(|| bytemuck::cast(words))
    }
}

impl Entry for Slot<'_> {
    fn hop(self) -> u64 {
        self.0[HOP].load(Ordering::Acquire)
    }

    fn swap_hop(self, old: u64, new: u64) -> u64 {
        self.0[HOP].compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|was| was)
    }

    fn meta(self) -> Meta {
        Meta(self.0[META].load(Ordering::Acquire))
    }

    fn swap_meta(self, old: Meta, new: Meta) -> Meta {
        Meta(self.0[META].compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|was| was))
    }

    fn put_meta(self, meta: Meta) {
        self.0[META].store(meta.0, Ordering::Release);
    }

    fn tally(self, lives: u64) -> u64 {
        lives + self.meta().life_lane()
    }

    fn has_key(self, key: &FlowKey) -> bool {
        self.key() == *key
    }

    fn key(self) -> FlowKey {
        let [a, b, c] = std::array::from_fn(|i| self.0[CLIENT + i].load(Ordering::Relaxed));
        let mut entry: FlowEntry = bytemuck::Zeroable::zeroed();
        let words: &mut [u64; WORDS] = bytemuck::cast_mut(&mut entry);
        [words[CLIENT], words[CLIENT + 1], words[CLIENT + 2]] = [a, b, c];
        FlowKey { client: entry.client, port_service: entry.port_service }
    }

    fn fill(self, key: &FlowKey, init: &FlowInit) {
        // The daemon opens no flow; tests do.
        let entry = FlowEntry {
            hop: 0,
            meta: 0,
            client: key.client,
            port_service: key.port_service,
            backend: init.backend,
            generation: init.generation,
            started: init.now,
            client_seq: init.client_seq,
            client_ack: init.client_ack,
            server_seq: 0,
            peer: init.peer,
            nat_port: init.nat_port,
        };
        let words: [u64; WORDS] = bytemuck::cast(entry);
        for (to, word) in self.0.iter().zip(words).skip(CLIENT) {
            to.store(word, Ordering::Relaxed);
        }
    }
}

/// The part of an entry that counting needs: two words beside `meta`.
#[derive(Clone, Copy)]
struct Brief {
    service: u16,
    backend: u32,
    generation: u32,
    started: u32,
}

impl Slot<'_> {
    /// As [`Slot::snapshot`], for less: a sweep is to be as fast as memory.
    #[inline]
    fn brief(self, meta: Meta) -> Option<Brief> {
        let words = [self.0[BACKEND].load(Ordering::Relaxed), self.0[BACKEND + 1].load(Ordering::Relaxed)];
        fence(Ordering::Acquire);
        let [port_service, backend, generation, started]: [u32; 4] = bytemuck::cast(words);
        let brief = Brief { service: (port_service >> 16) as u16, backend, generation, started };
        (self.meta().version() == meta.version()).then_some(brief)
    }
}

/// What a scan needs to know of the other maps, gathered before it begins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// By service slot; `None` for a row not in use.
    timers: Vec<Option<Timers>>,
    /// By backend slot; `None` for a row not in use.
    rows: Vec<Option<Row>>,
}

/// What a scan needs to know of a backend's row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) generation: u32,
    /// None if it is no state that this build knows.
    pub(crate) state: Option<BackendState>,
    /// As [`lb_common::backend::Backend::deadline_ns`].
    pub(crate) deadline_ns: u64,
}

impl Facts {
    /// Gathers them from the rows.
    pub(crate) fn new(services: impl Iterator<Item = Service>, rows: impl Iterator<Item = Row>) -> Self {
        let timers = services.map(|service| {
            let timers = Timers { idle_ticks: service.idle_ticks, fin_quiet_ticks: service.fin_quiet_ticks };
            (service.protocol != 0).then_some(timers)
        });
        let rows = rows.map(|row| match row.state? {
            BackendState::Free => None,
            BackendState::Draining | BackendState::UnhealthyDraining => Some(row),
            // What it says of a deadline is of no drain.
            _ => Some(Row { deadline_ns: NO_DEADLINE, ..row }),
        });
        Self { timers: timers.collect(), rows: rows.collect() }
    }

    fn row(&self, backend: u32, generation: u32) -> Option<&Row> {
        self.rows.get(backend as usize)?.as_ref().filter(|row| row.generation == generation)
    }

    fn is_current(&self, backend: u32, generation: u32) -> bool {
        self.row(backend, generation).is_some()
    }

    /// When a backend's connections were, or will be, refused by the packet path for being past the deadline.
    fn refused_from_ns(&self, backend: u32, generation: u32) -> u64 {
        self.row(backend, generation).map_or(NO_DEADLINE, |row| row.deadline_ns)
    }

    fn timers(&self, service: u16) -> Option<Timers> {
        self.timers.get(usize::from(service)).copied().flatten()
    }
}

/// The table and what is needed to find one's way in it.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    /// Its entries.
    pub(crate) view: View<'a>,
    /// Its size and the secret of its places.
    pub(crate) geometry: Geometry,
    /// The secrets of its hash.
    pub(crate) keys: &'a [u64; TABLE_KEYS],
    /// What its entries' flows have carried, if that is counted.
    pub(crate) tallies: Option<&'a Mapped<FlowTally>>,
}

impl Table<'_> {
    /// Sixteen bits of the flow's hash, which choose its moment in a cut window.
    fn share(&self, key: &FlowKey) -> u16 {
        key.hash(self.keys) as u16
    }

    /// Takes out a linked entry that still is as `seen`.
    fn take_out(&self, index: u32, entry: Slot<'_>, seen: Meta, now: u32) -> bool {
        flow_table::condemn(entry, seen, now) && self.finish(index, entry)
    }

    /// Unlinks and frees a dying entry that is ours.
    fn finish(&self, index: u32, entry: Slot<'_>) -> bool {
        let home = self.geometry.home(entry.key().hash(self.keys));
        let unlinked = flow_table::unlink(self.view, self.geometry, home, index);
        if unlinked {
            flow_table::release(entry);
        }
        unlinked
    }
}
