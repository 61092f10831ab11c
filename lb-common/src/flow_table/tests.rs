//! The table on ordinary memory: against a model, under threads, and how full it gets.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::{collections::HashMap, net::Ipv4Addr, sync::Arc, thread, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{addr::Addr, hash};

#[derive(Default)]
struct Cell {
    hop: AtomicU64,
    meta: AtomicU64,
    client: [AtomicU64; 2],
    port_service: AtomicU32,
    backend: AtomicU32,
}

#[derive(Clone, Copy)]
struct Table<'a>(&'a [Cell]);

impl<'a> Entries for Table<'a> {
    type Entry = &'a Cell;
    fn at(self, index: u32) -> Option<&'a Cell> {
        self.0.get(index as usize)
    }
}

impl Entry for &Cell {
    fn hop(self) -> u64 {
        self.hop.load(SeqCst)
    }
    fn swap_hop(self, old: u64, new: u64) -> u64 {
        self.hop.compare_exchange(old, new, SeqCst, SeqCst).unwrap_or_else(|was| was)
    }
    fn meta(self) -> Meta {
        Meta(self.meta.load(SeqCst))
    }
    fn swap_meta(self, old: Meta, new: Meta) -> Meta {
        Meta(self.meta.compare_exchange(old.0, new.0, SeqCst, SeqCst).unwrap_or_else(|was| was))
    }
    fn put_meta(self, meta: Meta) {
        self.meta.store(meta.0, SeqCst);
    }
    fn tally(self, lives: u64) -> u64 {
        lives + self.meta().life_lane()
    }
    fn has_key(self, key: &FlowKey) -> bool {
        self.key() == *key
    }
    fn key(self) -> FlowKey {
        FlowKey {
            client: Addr { halves: [self.client[0].load(SeqCst), self.client[1].load(SeqCst)] },
            port_service: self.port_service.load(SeqCst),
        }
    }
    fn fill(self, key: &FlowKey, init: &FlowInit) {
        self.client[0].store(key.client.halves[0], SeqCst);
        self.client[1].store(key.client.halves[1], SeqCst);
        self.port_service.store(key.port_service, SeqCst);
        self.backend.store(init.backend, SeqCst);
    }
}

fn cells(slots: u32) -> Vec<Cell> {
    (0..slots).map(|_| Cell::default()).collect()
}

fn keys() -> [u64; hash::TABLE_KEYS] {
    core::array::from_fn(|i| hash::mix(i as u64 + 1))
}

fn key(n: u32) -> FlowKey {
    let client = Addr::from(core::net::IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n / 60_000)));
    FlowKey::new(client, (n % 60_000) as u16, 3)
}

fn init(backend: u32) -> FlowInit {
    FlowInit { backend, generation: 1, now: 5, flags: 0, client_seq: 0, client_ack: 0, peer: 0, nat_port: 0 }
}

fn claim(table: Table<'_>, geometry: Geometry, home: u32) -> Option<u32> {
    claim_near(table, home, 5).or_else(|| claim_emptiest(table, geometry, home, 5))
}

/// Adds a flow as the packet path does; `Ok` with its entry, `Err` when there is no place.
fn add(table: Table<'_>, geometry: Geometry, key: &FlowKey, backend: u32) -> Result<u32, ()> {
    let home = geometry.home(key.hash(&keys()));
    for _ in 0..64 {
        match lookup(table, geometry, home, key, 0, 0) {
            Lookup::Found { index, .. } => return Ok(index),
            Lookup::Missing { hop } => {
                let index = claim(table, geometry, home).ok_or(())?;
                match insert(table, geometry, home, hop, index, (key, &init(backend)), None) {
                    Insert::Done => return Ok(index),
                    Insert::Raced => {}
                    Insert::Crowded => return Err(()),
                }
            }
        }
    }
    panic!("an insertion was raced 64 times");
}

fn remove(table: Table<'_>, geometry: Geometry, key: &FlowKey) -> bool {
    let home = geometry.home(key.hash(&keys()));
    let Lookup::Found { index, meta } = lookup(table, geometry, home, key, 0, 0) else { return false };
    let entry = table.at(index).unwrap();
    if !condemn(entry, meta, 6) {
        return false;
    }
    assert!(unlink(table, geometry, home, index));
    release(entry);
    true
}

/// Every set bit stands for a linked flow of that home, and every linked flow has one bit.
fn assert_consistent(table: Table<'_>, geometry: Geometry) -> usize {
    let mut linked = 0;
    for (index, cell) in table.0.iter().enumerate() {
        if cell.meta().life() == Life::Linked {
            linked += 1;
            let home = geometry.home(cell.key().hash(&keys()));
            assert_ne!(table.0[home as usize].hop() & geometry.bits(home, index as u32), 0, "flow without a bit");
        } else {
            assert_eq!(cell.meta().life(), Life::Free);
        }
    }
    let bits: u32 = table.0.iter().map(|c| (c.hop() & PLACES).count_ones()).sum();
    assert_eq!(bits as usize, linked, "as many bits as flows");
    linked
}

#[test]
fn it_takes_more_than_four_fifths_before_the_first_flow_finds_no_place() {
    let geometry = Geometry { slots: 1 << 16, secret: 99 };
    let memory = cells(geometry.slots);
    let placed = (0..geometry.slots).find(|&n| add(Table(&memory), geometry, &key(n), 1).is_err()).unwrap();
    let fill = f64::from(placed) / f64::from(geometry.slots);
    assert!(fill > 0.84, "first failure at a fill of {fill:.3}");
    assert_consistent(Table(&memory), geometry);
}

#[test]
fn replacing_is_one_step_and_frees_the_old_entry() {
    let geometry = Geometry { slots: 64, secret: 1 };
    let memory = cells(64);
    let table = Table(&memory);
    let old = add(table, geometry, &key(7), 1).unwrap();
    let home = geometry.home(key(7).hash(&keys()));
    let hop = memory[home as usize].hop();
    let new = claim(table, geometry, home).unwrap();
    assert_eq!(insert(table, geometry, home, hop, new, (&key(7), &init(2)), Some(old)), Insert::Done);
    let Lookup::Found { index, .. } = lookup(table, geometry, home, &key(7), 0, 0) else { panic!("lost") };
    assert_eq!(index, new);
    assert_eq!(assert_consistent(table, geometry), 1);
    // The snapshot is stale now.
    let third = claim(table, geometry, home).unwrap();
    assert_eq!(insert(table, geometry, home, hop, third, (&key(7), &init(3)), Some(new)), Insert::Raced);
    assert_eq!(assert_consistent(table, geometry), 1);
}

#[test]
fn threads_adding_and_removing_the_same_flows_never_double_one() {
    const KEYS: u32 = 48;
    // A table so small that all homes share sets, and threads that meet on every word.
    let geometry = Geometry { slots: 64, secret: 5 };
    let memory = Arc::new(cells(64));
    let workers: Vec<_> = (0..4u64)
        .map(|worker| {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                let table = Table(&memory);
                let mut random = worker + 1;
                for _ in 0..200_000 {
                    random = hash::mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
                    let key = key(random as u32 % KEYS);
                    if random >> 63 == 0 {
                        let _ = add(table, geometry, &key, worker as u32);
                    } else {
                        remove(table, geometry, &key);
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let table = Table(&memory);
    assert_consistent(table, geometry);
    let mut seen = HashMap::new();
    for (index, cell) in memory.iter().enumerate() {
        if cell.meta().life() == Life::Linked {
            let key = cell.key();
            assert!(seen.insert(key.port_service, index).is_none(), "a flow stands twice");
        }
    }
}

proptest! {
    #[test]
    fn it_behaves_as_a_set(steps in proptest::collection::vec((any::<bool>(), 0u32..80), 1..400), secret: u64) {
        let geometry = Geometry { slots: 128, secret };
        let memory = cells(128);
        let table = Table(&memory);
        let mut model = HashMap::new();
        for (adding, n) in steps {
            let key = key(n);
            if adding {
                if let Ok(index) = add(table, geometry, &key, n) {
                    prop_assert_eq!(memory[index as usize].backend.load(SeqCst), *model.entry(n).or_insert(n));
                }
            } else {
                prop_assert_eq!(remove(table, geometry, &key), model.remove(&n).is_some());
            }
        }
        prop_assert_eq!(assert_consistent(table, geometry), model.len());
    }
}

#[test]
fn an_entry_given_up_at_its_own_home_leaves_the_snapshot_usable_unless_a_flow_came_meanwhile() {
    let geometry = Geometry { slots: 64, secret: 1 };
    let memory = cells(64);
    let table = Table(&memory);
    let old = add(table, geometry, &key(7), 1).unwrap();
    let home = geometry.home(key(7).hash(&keys()));
    let (second, third) = {
        let mut same_home = (8..).map(key).filter(|key| geometry.home(key.hash(&keys())) == home);
        (same_home.next().unwrap(), same_home.next().unwrap())
    };
    let give_up = || {
        let Lookup::Missing { hop } = lookup(table, geometry, home, &second, 0, 0) else { panic!("not there yet") };
        assert!(condemn(&memory[old as usize], memory[old as usize].meta(), 6));
        assert!(unlink(table, geometry, home, old));
        reclaim(&memory[old as usize], 6);
        hop
    };
    let hop = give_up();
    let hop = after_claim(table, geometry, home, hop, old);
    assert_eq!(insert(table, geometry, home, hop, old, (&second, &init(2)), None), Insert::Done);

    // Now another flow of this home comes between the look-up and the insertion.
    assert!(remove(table, geometry, &second));
    assert_eq!(add(table, geometry, &key(7), 1), Ok(old));
    let hop = give_up();
    let other = add(table, geometry, &third, 3).unwrap();
    assert_ne!(other, old);
    assert_eq!(after_claim(table, geometry, home, hop, old), hop);
    assert_eq!(insert(table, geometry, home, hop, old, (&second, &init(2)), None), Insert::Raced);
    assert_eq!(assert_consistent(table, geometry), 1);
}
