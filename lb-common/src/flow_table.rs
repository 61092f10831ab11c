//! The flow table: set-associative, lock-free, one cache line an entry.
//!
//! Entries stand in sets of [`SET`]. A flow's hash gives its *home* entry; it is kept in its home's set or in one of two
//! alternate sets that follow from the home. The home's `hop` word has a bit for each of those 48 places and a version:
//! a bit is set exactly while the place holds a flow of that home. So a look-up that finds its flow at home reads one
//! line, one that finds nothing usually reads one too, and adding or removing a flow takes effect by one
//! compare-and-swap of `hop`, which fails if any flow of that home came or went since it was read: two CPUs can never
//! both add the same flow.
//!
//! The idea of a bitmap at the home is that of hopscotch hashing (Herlihy, Shavit & Tzafrir, 2008), without its moves;
//! the alternate sets give the balance of several choices (Azar et al., 1994).
//!
//! The code is generic over where the entries are, so that the packet path, the daemon and the model checker run the
//! same lines.
//!
//! **Invariant:** the key, backend and generation of a linked entry never change; to replace a flow a new entry is
//! linked and the old one unlinked by the same compare-and-swap.

use crate::flow::{FlowInit, FlowKey, Life, Meta};

/// Entries in a set.
pub const SET: u32 = 16;
/// Most flows that one home can have. At the highest fill a home has 0.82 flows on average; more than eight of them befall
/// one in four tables of a million flows, more than twelve seven in a million such tables.
pub const MAX_PER_HOME: u32 = 12;
/// Entries tried from the home on before the sets are weighed against each other.
const NEAR_TRIES: u32 = 2;
/// Attempts at a compare-and-swap that others keep winning.
const ATTEMPTS: u32 = 8;
/// Bits of `hop` that stand for places.
const PLACES: u64 = (1 << 48) - 1;

/// One entry in memory shared between CPUs.
///
/// Implementations: a raw pointer in the packet path, a mapped view in the daemon, model-checked cells in tests.
pub trait Entry: Copy {
    /// Reads `hop`.
    fn hop(self) -> u64;
    /// Compare-and-swap of `hop`, sequentially consistent; returns what was there.
    fn swap_hop(self, old: u64, new: u64) -> u64;
    /// Reads `meta`.
    fn meta(self) -> Meta;
    /// Compare-and-swap of `meta`, sequentially consistent; returns what was there.
    fn swap_meta(self, old: Meta, new: Meta) -> Meta;
    /// Stores `meta`, with release ordering, by the one that holds the entry claimed or dying.
    fn put_meta(self, meta: Meta);
    /// Adds the entry's [`Meta::life_lane`] to a tally, at once: an implementation for the BPF machine must keep the
    /// compiler from holding sixteen of them on a small stack to add them up later.
    fn tally(self, lives: u64) -> u64;
    /// Whether the key stored is this one.
    fn has_key(self, key: &FlowKey) -> bool;
    /// The key stored.
    fn key(self) -> FlowKey;
    /// Writes key and facts of a claimed entry.
    fn fill(self, key: &FlowKey, init: &FlowInit);
}

/// All entries.
pub trait Entries: Copy {
    /// See [`Entry`].
    type Entry: Entry;
    /// The entry at an index, if there is one.
    fn at(self, index: u32) -> Option<Self::Entry>;
}

/// Entries that a table for `flows` flows needs: 22 % more, since the first flow finds no place at a fill of some 85 %
/// (see the test of that name). 78 bytes a flow.
pub const fn slots_for(flows: u32) -> u32 {
    let slots = flows as u64 + flows as u64 * 22 / 100 + SET as u64;
    (slots as u32) & !(SET - 1)
}

/// Size of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Entries, a multiple of [`SET`].
    pub slots: u32,
    /// A secret that places the alternate sets.
    pub secret: u64,
}

impl core::fmt::Debug for Geometry {
    /// Without the secret, which belongs in no log.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Geometry").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl Geometry {
    /// Home of a key's hash (its high half counts).
    #[inline(always)]
    pub const fn home(self, hash: u64) -> u32 {
        (((hash >> 32) * self.slots as u64) >> 32) as u32
    }

    /// First entries of the home's own set and of its two alternates.
    #[inline(always)]
    pub const fn sets(self, home: u32) -> [u32; 3] {
        let mut x = (home as u64 ^ self.secret).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^= x >> 32;
        x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let sets = (self.slots / SET) as u64;
        let a = ((x >> 32) * sets) >> 32;
        let b = ((x & 0xffff_ffff) * sets) >> 32;
        [home & !(SET - 1), a as u32 * SET, b as u32 * SET]
    }

    /// Entry that a bit of the home's `hop` stands for.
    #[inline(always)]
    pub const fn place(self, home: u32, bit: u32) -> u32 {
        let within = bit % SET;
        if bit < SET {
            return (home & !(SET - 1)) + within;
        }
        let sets = self.sets(home);
        if bit < 2 * SET { sets[1] + within } else { sets[2] + within }
    }

    /// All bits of the home's `hop` that stand for an entry: more than one where its sets coincide.
    #[inline(always)]
    const fn bits(self, home: u32, index: u32) -> u64 {
        let sets = self.sets(home);
        let within = index % SET;
        let set = index & !(SET - 1);
        let mut bits = 0;
        if set == sets[0] {
            bits |= 1 << within;
        }
        if set == sets[1] {
            bits |= 1 << (SET + within);
        }
        if set == sets[2] {
            bits |= 1 << (2 * SET + within);
        }
        bits
    }
}

impl Geometry {
    /// The bit by which an entry is linked: the first that stands for it.
    #[inline(always)]
    const fn bit(self, home: u32, index: u32) -> u64 {
        if index & !(SET - 1) == home & !(SET - 1) {
            return 1 << (index % SET);
        }
        let bits = self.bits(home, index);
        bits & bits.wrapping_neg()
    }
}

/// A `hop` word with other bits and the next version.
#[inline(always)]
const fn next_hop(hop: u64, set: u64, clear: u64) -> u64 {
    let version = (hop >> 48).wrapping_add(1) << 48;
    version | (((hop & PLACES) | set) & !clear)
}

/// The places at which flows of a home are kept, a bit each, for [`Geometry::place`].
#[inline(always)]
pub fn places<E: Entry>(home: E) -> u64 {
    home.hop() & PLACES
}

/// What a look-up found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The flow's entry and the meta it had when its key was compared.
    Found {
        /// Index of the entry.
        index: u32,
        /// Snapshot.
        meta: Meta,
    },
    /// No such flow while the home's `hop` was this.
    Missing {
        /// Snapshot for [`insert`].
        hop: u64,
    },
}

/// Compares an entry with a key; the snapshot holds for the key compared.
#[inline(always)]
fn matches<E: Entry>(entry: E, key: &FlowKey, want: u16, mask: u16) -> Option<Meta> {
    let meta = entry.meta();
    if meta.life() as u16 != Life::Linked as u16 || meta.flags() & mask != want || !entry.has_key(key) {
        return None;
    }
    // The entry may have passed to another flow between the two reads: then its version, at least, differs.
    if entry.meta().version() != meta.version() {
        return None;
    }
    Some(meta)
}

/// Finds a flow. `want` and `mask` pick between twins: only an entry whose flags under `mask` equal `want` counts.
#[inline(always)]
pub fn lookup<T: Entries>(table: T, geometry: Geometry, home: u32, key: &FlowKey, want: u16, mask: u16) -> Lookup {
    let Some(entry) = table.at(home) else { return Lookup::Missing { hop: 0 } };
    if let Some(meta) = matches(entry, key, want, mask) {
        return Lookup::Found { index: home, meta };
    }
    let hop = entry.hop();
    if hop & PLACES == 0 {
        return Lookup::Missing { hop };
    }
    lookup_places(table, geometry, home, hop, key, want, mask)
}

/// The rest of a look-up: every place that the `hop` word names, the home included (it may have been filled since).
#[inline(always)]
fn lookup_places<T: Entries>(
    table: T,
    geometry: Geometry,
    home: u32,
    hop: u64,
    key: &FlowKey,
    want: u16,
    mask: u16,
) -> Lookup {
    let mut places = hop & PLACES;
    for _ in 0..MAX_PER_HOME {
        if places == 0 {
            break;
        }
        let index = geometry.place(home, places.trailing_zeros() & 63);
        places &= places - 1;
        if let Some(entry) = table.at(index)
            && let Some(meta) = matches(entry, key, want, mask)
        {
            return Lookup::Found { index, meta };
        }
    }
    Lookup::Missing { hop }
}

/// What became of an insertion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insert {
    /// The flow is in the table.
    Done,
    /// A flow of this home came or went since the snapshot: look again.
    Raced,
    /// The home has as many flows as it can.
    Crowded,
}

/// Claims the home or one of the entries after it in its set: at a low fill this is all that is ever needed.
#[inline(always)]
pub fn claim_near<T: Entries>(table: T, home: u32, now: u32) -> Option<u32> {
    let set = home & !(SET - 1);
    for i in 0..NEAR_TRIES {
        if let Some(index) = claim_at(table, set + ((home + i) % SET), now) {
            return Some(index);
        }
    }
    None
}

/// Claims an entry in the emptiest of the three sets that can hold a flow of `home`.
///
/// Reads all 48; the least loaded of several sets is what lets the table fill up to 78 to 88 % before any flow finds no
/// place.
#[inline(always)]
pub fn claim_emptiest<T: Entries>(table: T, geometry: Geometry, home: u32, now: u32) -> Option<u32> {
    let sets = geometry.sets(home);
    let mut best = sets[0];
    let mut most = 0;
    for set in sets {
        let mut lives = 0;
        for i in 0..SET {
            lives = table.at(set + i)?.tally(lives);
        }
        let free = lives & 0xffff;
        if free > most {
            most = free;
            best = set;
        }
    }
    if most == 0 {
        return None;
    }
    for i in 0..SET {
        if let Some(index) = claim_at(table, best + i, now) {
            return Some(index);
        }
    }
    None
}

/// Claims an entry if it is free.
#[inline(always)]
pub fn claim_at<T: Entries>(table: T, index: u32, now: u32) -> Option<u32> {
    let entry = table.at(index)?;
    let meta = entry.meta();
    if meta.life() as u16 != Life::Free as u16 {
        return None;
    }
    let claimed = Meta::new(meta.version().wrapping_add(1), 0, Life::Claimed, now);
    if entry.swap_meta(meta, claimed) == meta { Some(index) } else { None }
}

/// Gives a claimed or dying entry back; only for the one that holds it.
#[inline(always)]
pub fn release<E: Entry>(entry: E) {
    let meta = entry.meta();
    entry.put_meta(Meta::new(meta.version(), 0, Life::Free, 0));
}

/// Frees a linked entry that nothing points at any more, unless somebody else is already taking it out, or has and it is
/// another flow's by now.
#[inline(always)]
fn retire<E: Entry>(entry: E, version: u16) {
    for _ in 0..ATTEMPTS {
        let meta = entry.meta();
        if meta.life() as u16 != Life::Linked as u16 || meta.version() != version {
            return;
        }
        if entry.swap_meta(meta, Meta::new(meta.version(), 0, Life::Free, 0)) == meta {
            return;
        }
    }
}

/// Fills the claimed entry `index` and links it, unlinking `replaces` in the same step if given.
///
/// `hop` is the snapshot of the look-up that missed, or one taken before the flow to be replaced was found. The entry
/// is given back unless the answer is [`Insert::Done`]; the replaced one is freed if it is.
#[inline(always)]
pub fn insert<T: Entries>(
    table: T,
    geometry: Geometry,
    home: u32,
    hop: u64,
    index: u32,
    new: (&FlowKey, &FlowInit),
    replaces: Option<u32>,
) -> Insert {
    let (Some(entry), Some(home_entry)) = (table.at(index), table.at(home)) else { return Insert::Crowded };
    let clear = match replaces {
        Some(old) => geometry.bits(home, old) & hop,
        None => 0,
    };
    if replaces.is_some() && clear == 0 {
        release(entry);
        return Insert::Raced;
    }
    if hop & PLACES != 0 && (hop & PLACES & !clear).count_ones() >= MAX_PER_HOME {
        release(entry);
        return Insert::Crowded;
    }
    let (key, init) = new;
    entry.fill(key, init);
    let version = entry.meta().version();
    // Linked before the bit is set: whoever sees the bit must see the flow, or it would add it again.
    entry.put_meta(Meta::new(version, init.flags, Life::Linked, init.now));
    let set = geometry.bit(home, index);
    let old = replaces.and_then(|old| table.at(old));
    let old_version = old.map_or(0, |old| old.meta().version());
    let linked = next_hop(hop, set, clear);
    if home_entry.swap_hop(hop, linked) != hop {
        retire(entry, version);
        return Insert::Raced;
    }
    if let Some(old) = old {
        retire(old, old_version);
    }
    // In a full table the entry may have been given up before its bit was set: then nobody has cleared it.
    let meta = entry.meta();
    if meta.version() != version || meta.life() as u16 != Life::Linked as u16 {
        home_entry.swap_hop(linked, next_hop(linked, 0, set));
        return Insert::Raced;
    }
    Insert::Done
}

/// The snapshot of the home's `hop` that an insertion into the claimed entry `index` may go on with: `hop`, or what
/// became of it if the only change since was that the caller itself unlinked this entry from this very home to claim it.
///
/// One step of the version is one change, and the caller knows that it made one: so nothing was added meanwhile.
#[inline(always)]
pub fn after_claim<T: Entries>(table: T, geometry: Geometry, home: u32, hop: u64, index: u32) -> u64 {
    let cleared = next_hop(hop, 0, geometry.bits(home, index));
    match table.at(home) {
        Some(entry) if cleared & PLACES != hop & PLACES && entry.hop() == cleared => cleared,
        _ => hop,
    }
}

/// Takes an entry from `seen` to dying, stamped with `now`, unless it changed since: from then on it matches nothing
/// and belongs to the caller.
#[inline(always)]
pub fn condemn<E: Entry>(entry: E, seen: Meta, now: u32) -> bool {
    entry.swap_meta(seen, Meta::new(seen.version(), seen.flags(), Life::Dying, now)) == seen
}

/// Unlinks a dying entry from its home. The entry itself stays dying, for the caller to release or to claim.
///
/// Fails only if other CPUs win every attempt; then the entry stays dying and linked until the daemon's next sweep.
#[inline(always)]
pub fn unlink<T: Entries>(table: T, geometry: Geometry, home: u32, index: u32) -> bool {
    let Some(home_entry) = table.at(home) else { return false };
    let clear = geometry.bits(home, index);
    for _ in 0..ATTEMPTS {
        let hop = home_entry.hop();
        if hop & clear == 0 {
            return true;
        }
        if home_entry.swap_hop(hop, next_hop(hop, 0, clear)) == hop {
            return true;
        }
    }
    false
}

/// Makes a dying and unlinked entry the caller's to fill.
#[inline(always)]
pub fn reclaim<E: Entry>(entry: E, now: u32) {
    let meta = entry.meta();
    entry.put_meta(Meta::new(meta.version().wrapping_add(1), 0, Life::Claimed, now));
}

#[cfg(test)]
mod tests;
