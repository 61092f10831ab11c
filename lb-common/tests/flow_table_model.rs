//! The flow table's core under a model checker: every interleaving of two threads that meet at one home, up to a bound on
//! preemptions.
//!
//! Loads acquire and stores release, and a compare-and-swap is a full barrier: what x86 gives every one, and all that
//! ARCHITECTURE.md's argument rests on.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::{
    addr::Addr,
    flow::{FlowInit, FlowKey, Life, Meta},
    flow_table::{
        Entries, Entry, Geometry, Insert, Lookup, claim_near, condemn, insert, lookup, reclaim, release, unlink,
    },
    hash,
};
use loom::{
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Release, SeqCst},
            fence,
        },
    },
    thread,
};

/// One set: all of a home's places coincide, so that any two flows compete for them.
const GEOMETRY: Geometry = Geometry { slots: 16, secret: 1 };
/// The home that all flows share.
const HOME: u32 = 3;
/// Preemptions in one execution; faults of such code show with two.
const PREEMPTIONS: usize = 3;
/// Bits of `hop` that stand for places.
const PLACES: u64 = (1 << 48) - 1;

struct Cell {
    hop: AtomicU64,
    meta: AtomicU64,
    port_service: AtomicU32,
    backend: AtomicU32,
}

struct Memory(Vec<Cell>);

#[derive(Clone, Copy)]
struct Table<'a>(&'a Memory);

impl<'a> Entries for Table<'a> {
    type Entry = &'a Cell;
    fn at(self, index: u32) -> Option<&'a Cell> {
        self.0.0.get(index as usize)
    }
}

impl Entry for &Cell {
    fn hop(self) -> u64 {
        self.hop.load(Acquire)
    }
    fn swap_hop(self, old: u64, new: u64) -> u64 {
        full_barrier(|| self.hop.compare_exchange(old, new, AcqRel, Acquire).unwrap_or_else(|was| was))
    }
    fn meta(self) -> Meta {
        Meta(self.meta.load(Acquire))
    }
    fn swap_meta(self, old: Meta, new: Meta) -> Meta {
        Meta(full_barrier(|| self.meta.compare_exchange(old.0, new.0, AcqRel, Acquire).unwrap_or_else(|was| was)))
    }
    fn put_meta(self, meta: Meta) {
        self.meta.store(meta.0, Release);
    }
    fn tally(self, lives: u64) -> u64 {
        lives + self.meta().life_lane()
    }
    fn has_key(self, key: &FlowKey) -> bool {
        self.port_service.load(Acquire) == key.port_service
    }
    fn key(self) -> FlowKey {
        FlowKey { client: client(), port_service: self.port_service.load(Acquire) }
    }
    fn fill(self, key: &FlowKey, init: &FlowInit) {
        self.port_service.store(key.port_service, Release);
        self.backend.store(init.backend, Release);
    }
}

/// What a compare-and-swap is on x86 and on the BPF machine, and loom's are not by themselves.
fn full_barrier<T>(swap: impl FnOnce() -> T) -> T {
    fence(SeqCst);
    let was = swap();
    fence(SeqCst);
    was
}

fn client() -> Addr {
    Addr::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)))
}

/// Flows by number; all have the home [`HOME`].
fn key(n: usize) -> FlowKey {
    let keys: [u64; hash::TABLE_KEYS] = std::array::from_fn(|i| hash::mix(i as u64 + 1));
    let all = (0..=u16::MAX).map(|port| FlowKey::new(client(), port, 3));
    all.filter(|key| GEOMETRY.home(key.hash(&keys)) == HOME).nth(n).expect("one in sixteen has that home")
}

fn init(backend: u32) -> FlowInit {
    FlowInit { backend, generation: 1, now: 5, flags: 0, client_seq: 0, client_ack: 0, peer: 0, nat_port: 0 }
}

fn empty() -> Arc<Memory> {
    let cell = |_| Cell {
        hop: AtomicU64::new(0),
        meta: AtomicU64::new(0),
        port_service: AtomicU32::new(0),
        backend: AtomicU32::new(0),
    };
    Arc::new(Memory((0..GEOMETRY.slots).map(cell).collect()))
}

/// Adds a flow as the packet path does; its entry, or `None` if it was given up.
fn add(memory: &Memory, key: &FlowKey, backend: u32) -> Option<u32> {
    let table = Table(memory);
    for _ in 0..4 {
        let hop = match lookup(table, GEOMETRY, HOME, key, 0, 0) {
            Lookup::Found { index, .. } => return Some(index),
            Lookup::Missing { hop } => hop,
        };
        let index = claim_near(table, HOME, 5)?;
        match insert(table, GEOMETRY, HOME, hop, index, (key, &init(backend)), None) {
            Insert::Done => return Some(index),
            Insert::Raced => {}
            Insert::Crowded => return None,
        }
    }
    None
}

/// Condemns and unlinks a flow; its entry, which is then the caller's.
fn take_out(memory: &Memory, key: &FlowKey) -> Option<u32> {
    let table = Table(memory);
    let Lookup::Found { index, meta } = lookup(table, GEOMETRY, HOME, key, 0, 0) else { return None };
    let entry = table.at(index)?;
    (condemn(entry, meta, 6) && unlink(table, GEOMETRY, HOME, index)).then_some(index)
}

fn remove(memory: &Memory, key: &FlowKey) -> bool {
    take_out(memory, key).and_then(|index| Table(memory).at(index)).map(release).is_some()
}

/// Evicts `old` and puts `new` in its place.
fn evict(memory: &Memory, old: &FlowKey, new: &FlowKey, backend: u32) -> bool {
    let table = Table(memory);
    let Some(index) = take_out(memory, old) else { return false };
    let entry = table.at(index).expect("it was there");
    reclaim(entry, 7);
    let Lookup::Missing { hop } = lookup(table, GEOMETRY, HOME, new, 0, 0) else {
        release(entry);
        return false;
    };
    insert(table, GEOMETRY, HOME, hop, index, (new, &init(backend)), None) == Insert::Done
}

/// Gives up whatever flow is in the entry that the first flow gets, as a full table does, which looks at entries and not for flows;
/// and puts `new` there, if given.
fn give_up(memory: &Memory, new: Option<(&FlowKey, u32)>) -> bool {
    let table = Table(memory);
    let entry = table.at(HOME).expect("it is there");
    // As soon as there is one: loom does not find by itself that the other thread may come so far before the first look.
    let mut meta = entry.meta();
    while meta.life() != Life::Linked {
        thread::yield_now();
        meta = entry.meta();
    }
    if !condemn(entry, meta, 6) || !unlink(table, GEOMETRY, HOME, HOME) {
        return false;
    }
    reclaim(entry, 7);
    if let Some((key, backend)) = new
        && let Lookup::Missing { hop } = lookup(table, GEOMETRY, HOME, key, 0, 0)
    {
        return insert(table, GEOMETRY, HOME, hop, HOME, (key, &init(backend)), None) == Insert::Done;
    }
    release(entry);
    true
}

/// Links a new entry for `key` in place of the present one.
fn replace(memory: &Memory, key: &FlowKey, backend: u32) -> bool {
    let table = Table(memory);
    let hop = table.at(HOME).expect("a home").hop();
    let Lookup::Found { index: old, .. } = lookup(table, GEOMETRY, HOME, key, 0, 0) else { return false };
    let Some(new) = claim_near(table, HOME, 5) else { return false };
    insert(table, GEOMETRY, HOME, hop, new, (key, &init(backend)), Some(old)) == Insert::Done
}

/// When nobody is at work: nothing is claimed or dying, each linked flow has its one bit, none stands twice. Returns the
/// flows with their backends.
fn settled(memory: &Memory) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    let hop = Table(memory).at(HOME).expect("a home").hop() & PLACES;
    for (index, cell) in memory.0.iter().enumerate() {
        let life = cell.meta().life();
        assert!(life == Life::Linked || life == Life::Free, "entry {index} is {life:?} for good");
        assert_eq!(hop >> index & 1 == 1, life == Life::Linked, "entry {index} is {life:?}, the home says {hop:b}");
        if life == Life::Linked {
            found.push((cell.key().port_service, cell.backend.load(Acquire)));
        }
    }
    assert_eq!(hop.count_ones() as usize, found.len(), "as many bits as flows");
    found.sort_unstable();
    let flows = found.len();
    found.dedup_by_key(|(flow, _)| *flow);
    assert_eq!(found.len(), flows, "a flow stands twice");
    found
}

/// Runs two threads on one table in all interleavings, then `check` on what they left.
fn two_threads<A: Send + 'static, B: Send + 'static>(
    prepare: impl Fn(&Memory) + Send + Sync + 'static,
    one: impl Fn(&Memory) -> A + Send + Sync + Copy + 'static,
    other: impl Fn(&Memory) -> B + Send + Sync + Copy + 'static,
    check: impl Fn(A, B, Vec<(u32, u32)>) + Send + Sync + 'static,
) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(move || {
        let memory = empty();
        prepare(&memory);
        let there = Arc::clone(&memory);
        let thread = thread::spawn(move || one(&there));
        let other = other(&memory);
        let one = thread.join().expect("the thread ends well");
        check(one, other, settled(&memory));
    });
}

#[test]
fn two_that_add_the_same_flow_agree_on_one_entry() {
    let flow = key(0);
    two_threads(
        |_| {},
        move |memory| add(memory, &flow, 1),
        move |memory| add(memory, &flow, 2),
        |one, other, flows| {
            assert!(one.is_some() && one == other, "{one:?} and {other:?}");
            assert_eq!(flows.len(), 1);
        },
    );
}

#[test]
fn what_is_added_while_another_is_removed_is_there() {
    let (old, new) = (key(0), key(1));
    two_threads(
        move |memory| {
            add(memory, &old, 1).expect("there is room");
        },
        move |memory| add(memory, &new, 2),
        move |memory| remove(memory, &old),
        move |added, removed, flows| {
            assert!(added.is_some() && removed);
            assert_eq!(flows, [(new.port_service, 2)]);
        },
    );
}

#[test]
fn a_flow_is_removed_once() {
    let flow = key(0);
    two_threads(
        move |memory| {
            add(memory, &flow, 1).expect("there is room");
        },
        move |memory| remove(memory, &flow),
        move |memory| remove(memory, &flow),
        |one, other, flows| assert!(one != other && flows.is_empty(), "{one} and {other}"),
    );
}

#[test]
fn an_entry_that_changes_hands_is_never_taken_for_its_former_flow() {
    let (old, new) = (key(0), key(1));
    two_threads(
        move |memory| {
            add(memory, &old, 1).expect("there is room");
        },
        move |memory| evict(memory, &old, &new, 2),
        move |memory| {
            // A reader: what it finds by a key has that key's backend as long as the version is the same.
            for (key, backend) in [(old, 1), (new, 2)] {
                if let Lookup::Found { index, meta } = lookup(Table(memory), GEOMETRY, HOME, &key, 0, 0) {
                    let cell = Table(memory).at(index).expect("found there");
                    let seen = cell.backend.load(Acquire);
                    assert!(
                        seen == backend || cell.meta().version() != meta.version(),
                        "{backend}'s flow was {seen}'s"
                    );
                }
            }
        },
        move |evicted, (), flows| {
            assert!(evicted);
            assert_eq!(flows, [(new.port_service, 2)]);
        },
    );
}

#[test]
fn an_eviction_and_an_addition_of_the_same_flow_leave_it_once() {
    let (old, new) = (key(0), key(1));
    two_threads(
        move |memory| {
            add(memory, &old, 1).expect("there is room");
        },
        move |memory| evict(memory, &old, &new, 2),
        move |memory| add(memory, &new, 3),
        move |evicted, added, flows| {
            assert!(added.is_some());
            assert_eq!(flows, [(new.port_service, if evicted { 2 } else { 3 })]);
        },
    );
}

#[test]
fn of_two_replacements_the_later_one_stays() {
    let flow = key(0);
    two_threads(
        move |memory| {
            add(memory, &flow, 1).expect("there is room");
        },
        move |memory| replace(memory, &flow, 2),
        move |memory| replace(memory, &flow, 3),
        |one, other, flows| {
            assert!(one || other, "one of them was first");
            let [(_, backend)] = flows[..] else { panic!("{flows:?}") };
            assert!((backend == 2 && one) || (backend == 3 && other), "{backend} after {one} and {other}");
        },
    );
}

#[test]
fn a_replacement_and_a_removal_leave_the_new_flow_or_none() {
    let flow = key(0);
    two_threads(
        move |memory| {
            add(memory, &flow, 1).expect("there is room");
        },
        move |memory| replace(memory, &flow, 2),
        move |memory| remove(memory, &flow),
        |replaced, removed, flows| match flows[..] {
            [] => assert!(removed),
            [(_, backend)] => assert_eq!(backend, if replaced { 2 } else { 1 }),
            _ => panic!("{flows:?}"),
        },
    );
}

#[test]
fn a_flow_given_up_before_its_bit_is_set_leaves_none_behind() {
    let flow = key(0);
    two_threads(
        |_| {},
        move |memory| add(memory, &flow, 1),
        move |memory| give_up(memory, None),
        |added, given_up, flows| {
            assert!(added.is_some());
            assert!(given_up || flows.len() == 1, "{flows:?}");
        },
    );
}

#[test]
fn an_entry_given_up_to_another_flow_is_that_ones() {
    let (first, second) = (key(0), key(1));
    two_threads(
        |_| {},
        move |memory| add(memory, &first, 1),
        move |memory| give_up(memory, Some((&second, 2))),
        move |added, given_up, flows| {
            assert!(added.is_some());
            assert_eq!(flows.contains(&(second.port_service, 2)), given_up, "{flows:?}");
        },
    );
}
