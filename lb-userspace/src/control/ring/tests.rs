use proptest::prelude::*;

use super::*;

fn member(id: u32, weight: u32) -> Member {
    Member { id: BackendSlot(id), key: member_key(&format!("web-{id}"), &format!("10.0.0.{id}")), weight }
}

fn equal(ids: impl IntoIterator<Item = u32>) -> Vec<Member> {
    ids.into_iter().map(|id| member(id, 1)).collect()
}

fn all_in(members: &[Member]) -> Ring {
    let mut ring = Ring::new(members);
    for member in members {
        ring.enter(member.id, true, None);
    }
    ring
}

fn owners(ring: &Ring) -> Vec<Option<BackendSlot>> {
    ring.slots().iter().map(|slot| slot.owner).collect()
}

/// Slots whose owner changed from one of `still` to another of `still`.
fn needless(before: &Ring, after: &Ring, still: &[Member]) -> usize {
    let stays = |id: Option<BackendSlot>| still.iter().any(|member| Some(member.id) == id);
    owners(before).into_iter().zip(owners(after)).filter(|(a, b)| a != b && stays(*a) && stays(*b)).count()
}

fn assert_balanced(ring: &Ring, members: &[Member], slack: f64) {
    let inside: Vec<&Member> = members.iter().filter(|member| ring.is_in(member.id)).collect();
    let total: u32 = inside.iter().map(|member| member.weight).sum();
    for member in inside {
        let share = f64::from(ring.size()) * f64::from(member.weight) / f64::from(total);
        let held = f64::from(ring.held(member.id));
        assert!((held - share).abs() <= slack.max(share * 0.01), "{member:?} has {held}, its share is {share}");
    }
}

/// What must hold at any time: counts are right, owners are in, nothing is unowned while somebody is in.
fn assert_sound(ring: &Ring) {
    let mut held = HashMap::new();
    let serving = ring.indices().any(|index| ring.place(index).inside && ring.place(index).member.weight > 0);
    for (number, slot) in ring.slots().iter().enumerate() {
        match slot.owner {
            Some(owner) => {
                assert!(ring.is_in(owner), "slot {number} is {owner:?}'s, which is out");
                *held.entry(owner).or_insert(0) += 1;
            }
            None => assert!(!serving, "slot {number} is nobody's"),
        }
        assert!(slot.previous.is_none_or(|previous| ring.is_draining(previous)));
    }
    for index in ring.indices() {
        let id = ring.place(index).member.id;
        assert_eq!(ring.held(id), held.get(&id).copied().unwrap_or(0), "{id:?}");
    }
}

#[test]
fn everyone_has_its_share_within_a_slot() {
    for count in [1, 2, 3, 10, 40, 41, 164] {
        let members = equal(0..count);
        assert_balanced(&all_in(&members), &members, 1.0);
    }
    let uneven: Vec<Member> = (0..20).map(|id| member(id, id * id)).collect();
    let ring = all_in(&uneven);
    assert_balanced(&ring, &uneven, 1.0);
    assert_eq!(ring.held(BackendSlot(0)), 0);
}

#[test]
fn sizes_grow_with_the_members() {
    for (members, size) in [(0, 4_099), (40, 4_099), (41, 16_411), (655, 65_537), (656, 262_147), (10_000, 1_048_583)] {
        assert_eq!(table::size_for(members), size);
    }
    assert_eq!(table::size_for(usize::MAX), 4_194_319);
}

#[test]
fn the_table_depends_on_the_configuration_alone() {
    let forwards = equal(0..12);
    let backwards: Vec<Member> = forwards.iter().rev().copied().collect();
    assert_eq!(owners(&all_in(&forwards)), owners(&all_in(&backwards)));
}

#[test]
fn adding_and_removing_moves_what_it_must() {
    for count in [2_u32, 3, 10, 40, 100] {
        let members = equal(0..count);
        let mut ring = all_in(&members);
        let before = ring.clone();
        let more = equal(0..=count);
        ring.set_members(&more);
        ring.enter(BackendSlot(count), true, None);
        assert_sound(&ring);
        assert_balanced(&ring, &more, 1.0);
        let limit = ring.size() as usize * 55 / 10_000;
        if ring.size() == before.size() {
            let moved = needless(&before, &ring, &members);
            assert!(moved <= limit, "adding to {count} moved {moved}");
        }

        let before = ring.clone();
        let rest: Vec<Member> = more.iter().filter(|member| member.id != BackendSlot(1)).copied().collect();
        ring.leave(BackendSlot(1));
        assert_eq!(needless(&before, &ring, &rest), 0, "draining one of {count}");
        let drained = ring.clone();
        ring.set_members(&rest);
        assert_sound(&ring);
        assert_balanced(&ring, &rest, 1.0);
        let moved = needless(&drained, &ring, &rest);
        assert!(moved <= limit, "deleting one of {count} moved {moved}");
    }
}

#[test]
fn small_tables_depend_on_the_configuration_alone_whatever_came_before() {
    let mut ring = Ring::new(&[]);
    for count in 1..=4 {
        ring.set_members(&equal(0..count));
        ring.enter(BackendSlot(count - 1), true, None);
        assert!(owners(&ring) == owners(&all_in(&equal(0..count))), "{count}");
    }
    ring.leave(BackendSlot(2));
    let rest = equal([0, 1, 3]);
    ring.set_members(&rest);
    assert!(owners(&ring) == owners(&all_in(&rest)));
}

#[test]
fn larger_tables_are_mended_by_later_changes() {
    let members = equal(0..40);
    let mut ring = all_in(&members);
    ring.set_members(&equal(4..40));
    let far = ring.drift().len();
    assert!(far > 0);
    for _ in 0..100 {
        ring.set_members(&equal(4..40));
        assert_sound(&ring);
        assert_balanced(&ring, &equal(4..40), 1.0);
    }
    let left = ring.drift().len();
    assert!(left < far, "{far} slots differed, {left} still do");
}

#[test]
fn a_drain_moves_only_its_own_slots_and_is_remembered() {
    let members = equal(0..5);
    let mut ring = all_in(&members);
    let before = ring.clone();
    ring.take_changes();
    ring.set_draining(BackendSlot(2), true);
    ring.leave(BackendSlot(2));
    let Changes::Slots(changes) = ring.take_changes() else { panic!("the size is the same") };
    assert_eq!(changes.len() as u32, before.held(BackendSlot(2)));
    for (slot, now) in changes {
        assert_eq!(before.slot(slot).owner, Some(BackendSlot(2)));
        assert_eq!(now.previous, Some(BackendSlot(2)));
        assert_ne!(now.owner, Some(BackendSlot(2)));
    }
    assert_balanced(&ring, &members, 1.0);

    ring.enter(BackendSlot(2), false, None);
    ring.set_draining(BackendSlot(2), false);
    assert_eq!(ring.slots(), before.slots());
}

#[test]
fn the_earliest_drain_still_running_is_remembered() {
    let members = equal(0..4);
    let mut ring = all_in(&members);
    let first = BackendSlot(0);
    ring.set_draining(first, true);
    ring.leave(first);
    let at_first = ring.clone();
    let second = BackendSlot(1);
    ring.set_draining(second, true);
    ring.leave(second);
    let stood_in: Vec<u32> = (0..ring.size())
        .filter(|slot| at_first.slot(*slot) == RingSlot { owner: Some(second), previous: Some(first) })
        .collect();
    assert!(!stood_in.is_empty());
    assert!(stood_in.iter().all(|slot| ring.slot(*slot).previous == Some(first)));
    ring.set_draining(first, false);
    assert!(stood_in.iter().all(|slot| ring.slot(*slot).previous == Some(second)));
    ring.set_draining(second, false);
    assert!(ring.slots().iter().all(|slot| slot.previous.is_none()));
}

#[test]
fn a_drain_is_remembered_when_members_come_and_go() {
    let mut ring = all_in(&equal(0..4));
    let before = ring.clone();
    let draining = BackendSlot(3);
    ring.set_draining(draining, true);
    ring.leave(draining);
    ring.set_members(&equal(0..7));
    for id in 4..7 {
        ring.enter(BackendSlot(id), true, None);
    }
    ring.set_members(&equal(1..7));
    assert_sound(&ring);
    for slot in 0..ring.size() {
        if before.slot(slot).owner == Some(draining) {
            assert_eq!(ring.slot(slot).previous, Some(draining), "slot {slot}");
        }
    }
}

#[test]
fn a_slow_start_takes_up_its_share_bit_by_bit() {
    let members = equal(0..4);
    let mut ring = all_in(&members);
    let full = owners(&ring);
    let slow = BackendSlot(2);
    ring.leave(slow);
    ring.enter(slow, false, Some(100));
    let mut had = ring.held(slow);
    assert_eq!(had, (full.iter().filter(|owner| **owner == Some(slow)).count() as u32).div_ceil(10));
    for share in [250, 500, 750, 1_000] {
        let before = ring.clone();
        ring.ramp(slow, share);
        assert_sound(&ring);
        assert!(ring.held(slow) > had);
        had = ring.held(slow);
        for slot in 0..ring.size() {
            assert!(before.slot(slot) == ring.slot(slot) || ring.slot(slot).owner == Some(slow));
        }
    }
    assert_eq!(owners(&ring), full);
    assert!(!ring.is_ramping(slow));
}

#[test]
fn with_nobody_else_a_slow_start_is_pointless() {
    let mut ring = Ring::new(&equal(0..3));
    ring.enter(BackendSlot(1), true, Some(100));
    assert_eq!(ring.held(BackendSlot(1)), ring.size());
}

#[test]
fn a_new_member_takes_its_part_of_what_others_stand_in_for() {
    let mut ring = Ring::new(&equal(0..4));
    for id in 0..3 {
        ring.enter(BackendSlot(id), true, None);
        assert_sound(&ring);
        assert_balanced(&ring, &equal(0..4), 1.0);
    }
}

#[test]
fn changed_weights_move_little() {
    let members = equal(0..10);
    let mut ring = all_in(&members);
    let before = ring.clone();
    let mut changed = members.clone();
    changed[4].weight = 3;
    ring.set_members(&changed);
    assert_sound(&ring);
    assert_balanced(&ring, &changed, 1.0);
    let others: Vec<Member> = members.iter().filter(|member| member.id != BackendSlot(4)).copied().collect();
    assert!(needless(&before, &ring, &others) <= ring.size() as usize * 55 / 10_000);

    changed[4].weight = 0;
    ring.set_members(&changed);
    assert_eq!(ring.held(BackendSlot(4)), 0);
    assert_sound(&ring);
    assert_balanced(&ring, &changed, 1.0);
}

#[test]
fn entering_together_is_entering_one_by_one() {
    let members = equal(0..12);
    let mut together = Ring::new(&members);
    let entrant = |member: &Member| Entrant { id: member.id, rebalance: true, share: None };
    together.enter_all(&members.iter().map(entrant).collect::<Vec<_>>());
    assert_sound(&together);
    assert!(owners(&together) == owners(&all_in(&members)));
}

/// Something that happens to a ring.
#[derive(Clone, Copy, Debug)]
enum Step {
    Drain(u32),
    Finish(u32),
    Enter(u32, bool),
    EnterAll(u32),
    Slow(u32),
    Ramp(u32, u32),
    Add(u32),
    Remove(u32),
    Weigh(u32, u32),
    SaveAndRestore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = 0..8_u32;
    let step = prop_oneof![
        4 => id.clone().prop_map(Step::Drain),
        2 => id.clone().prop_map(Step::Finish),
        4 => (id.clone(), any::<bool>()).prop_map(|(id, rebalance)| Step::Enter(id, rebalance)),
        2 => (0..256_u32).prop_map(Step::EnterAll),
        1 => id.clone().prop_map(Step::Slow),
        1 => (id.clone(), 0..1_200_u32).prop_map(|(id, share)| Step::Ramp(id, share)),
        1 => id.clone().prop_map(Step::Add),
        1 => id.clone().prop_map(Step::Remove),
        1 => (id, 0..5_u32).prop_map(|(id, weight)| Step::Weigh(id, weight)),
        1 => Just(Step::SaveAndRestore),
    ];
    proptest::collection::vec(step, 1..40)
}

fn apply(ring: &mut Ring, members: &mut Vec<Member>, step: Step) {
    match step {
        Step::Drain(id) => {
            let was_in = ring.is_in(BackendSlot(id));
            ring.set_draining(BackendSlot(id), was_in || ring.is_draining(BackendSlot(id)));
            ring.leave(BackendSlot(id));
        }
        Step::Finish(id) => ring.set_draining(BackendSlot(id), false),
        Step::Enter(id, rebalance) => {
            ring.enter(BackendSlot(id), rebalance, None);
            ring.set_draining(BackendSlot(id), false);
        }
        Step::EnterAll(which) => {
            let ids: Vec<u32> = (0..8).filter(|id| which >> id & 1 == 1).collect();
            let entrant = |id: &u32| Entrant {
                id: BackendSlot(*id),
                rebalance: id.is_multiple_of(2),
                share: id.is_multiple_of(3).then_some(300),
            };
            ring.enter_all(&ids.iter().map(entrant).collect::<Vec<_>>());
            for id in ids {
                ring.set_draining(BackendSlot(id), false);
            }
        }
        Step::Slow(id) => {
            ring.enter(BackendSlot(id), false, Some(200));
            ring.set_draining(BackendSlot(id), false);
        }
        Step::Ramp(id, share) => ring.ramp(BackendSlot(id), share),
        Step::Add(id) if members.iter().all(|member| member.id != BackendSlot(id)) => {
            members.push(member(id, 1));
            ring.set_members(members);
        }
        Step::Remove(id) => {
            members.retain(|member| member.id != BackendSlot(id));
            ring.set_members(members);
        }
        Step::Weigh(id, weight) => {
            for member in members.iter_mut().filter(|member| member.id == BackendSlot(id)) {
                member.weight = weight;
            }
            ring.set_members(members);
        }
        Step::SaveAndRestore => {
            let saved = ring.save();
            let before = ring.slots();
            let json = serde_json::to_string(&saved).expect("plain data");
            let read: SavedRing = serde_json::from_str(&json).expect("what was written");
            let restored = Ring::restore(&read, members).expect("the same members");
            assert_eq!(restored.slots(), before);
            *ring = restored;
        }
        Step::Add(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_happens_the_table_is_sound(steps in steps()) {
        let mut members = equal(0..5);
        let mut ring = all_in(&members);
        let mut published = ring.slots();
        ring.take_changes();
        for step in steps {
            apply(&mut ring, &mut members, step);
            assert_sound(&ring);
            match ring.take_changes() {
                Changes::None => {}
                Changes::Slots(changes) => for (slot, now) in changes {
                    published[slot as usize] = now;
                },
                Changes::All(all) => published = all,
            }
            prop_assert!(published == ring.slots(), "what is published is what there is");
        }
    }

    /// Any drains and cancellations in any order: each moves its own slots only, and when all are back all is as it was.
    #[test]
    fn drains_undo_in_any_order(order in proptest::collection::vec(0..6_u32, 1..30), weights in proptest::collection::vec(1..4_u32, 6)) {
        let members: Vec<Member> = weights.iter().enumerate().map(|(id, weight)| member(id as u32, *weight)).collect();
        let mut ring = all_in(&members);
        let original = ring.slots();
        let mut had: HashMap<u32, Vec<u32>> = HashMap::new();
        for id in order {
            let before = ring.clone();
            let backend = BackendSlot(id);
            if ring.is_in(backend) {
                had.insert(id, (0..ring.size()).filter(|slot| before.slot(*slot).owner == Some(backend)).collect());
                ring.set_draining(backend, true);
                ring.leave(backend);
                for slot in 0..ring.size() {
                    prop_assert!(before.slot(slot).owner == ring.slot(slot).owner || before.slot(slot).owner == Some(backend));
                }
            } else {
                ring.enter(backend, false, None);
                ring.set_draining(backend, false);
                for slot in 0..ring.size() {
                    let (was, is) = (before.slot(slot).owner, ring.slot(slot).owner);
                    prop_assert!(was == is || is == Some(backend) || was.is_none());
                }
                // Back are all its slots, except what meanwhile went back to somebody before it in line.
                for slot in &had[&id] {
                    let owner = ring.slot(*slot).owner;
                    let rightful = original[*slot as usize].owner;
                    prop_assert!(owner == Some(backend) || rightful != Some(backend));
                }
            }
            assert_sound(&ring);
        }
        let mut out: Vec<u32> = (0..6).filter(|id| !ring.is_in(BackendSlot(*id))).collect();
        out.reverse();
        for id in out {
            ring.enter(BackendSlot(id), false, None);
            ring.set_draining(BackendSlot(id), false);
        }
        prop_assert!(ring.slots() == original);
    }

    #[test]
    fn overlapping_drains_stay_balanced(out in proptest::sample::subsequence((0..12_u32).collect::<Vec<_>>(), 1..10)) {
        let members = equal(0..12);
        let mut ring = all_in(&members);
        for id in out {
            ring.set_draining(BackendSlot(id), true);
            ring.leave(BackendSlot(id));
            assert_balanced(&ring, &members, 1.0);
        }
    }
}
