//! Rings: how long they take to build, how even they are, and what moves needlessly.

use std::{collections::HashMap, time::Instant};

use anyhow::{Result, ensure};
use lb_userspace::{
    control::ring::{Entrant, Member, Ring, member_key, table},
    datapath::BackendSlot,
};

use super::{Figure, Spread};

/// The size that others' figures are for.
const SIZE: u32 = 65_537;

/// Figures of tables of so many backends.
pub fn rings(backends: u32, runs: u32) -> Result<Vec<Figure>> {
    let all: Vec<Member> = (0..=backends).map(member).collect();
    let members = &all[..backends as usize];
    let mut keys: Vec<(u64, u32)> = members.iter().map(|member| (member.key, member.weight)).collect();
    keys.sort_unstable();
    let builds: Vec<f64> = (0..runs)
        .map(|_| {
            let begun = Instant::now();
            std::hint::black_box(table::fill(std::hint::black_box(&keys), SIZE));
            begun.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    let mut held: HashMap<u32, u32> = HashMap::new();
    for owner in table::fill(&keys, SIZE) {
        *held.entry(owner).or_default() += 1;
    }
    ensure!(held.len() == backends as usize, "{} of {backends} backends have slots", held.len());
    let fullest = held.values().max().copied().unwrap_or(0);
    let emptiest = held.values().min().copied().unwrap_or(0);

    // What really happens is not two tables built afresh, and the size follows the number of backends.
    let mut ring = Ring::new(members);
    enter_all(&mut ring, members);
    let size = f64::from(ring.size());
    let per_cent = |moved: usize| moved as f64 / size * 100.0;
    let before = owners(&ring);
    let one = members[backends as usize / 2].id;

    ring.set_draining(one, true);
    ring.leave(one);
    let drained = owners(&ring);
    let drain = needless(&before, &drained, &[one]);
    let mut back = ring.clone();
    back.enter(one, false, None);
    back.set_draining(one, false);
    let activation = needless(&drained, &owners(&back), &[one]);
    ensure!(owners(&back) == before, "an activation gives everybody's slots back");
    ring.set_draining(one, false);
    let rest: Vec<Member> = members.iter().filter(|member| member.id != one).copied().collect();
    ring.set_members(&rest);
    let deletion = needless(&drained, &owners(&ring), &[one]);

    let mut grown = back;
    let other_size = table::size_for(all.len()) != grown.size();
    grown.set_members(&all);
    grown.enter(all[backends as usize].id, true, None);
    let addition = needless(&before, &owners(&grown), &[all[backends as usize].id]);

    let worst = after_churn(&mut Ring::new(members), members);
    let name = |what: &str| format!("maglev_{backends}_{what}");
    let mut figures = vec![
        Figure::new(name("build_65537"), Spread::of(&builds).median, "ms"),
        Figure::new(name("fullest"), f64::from(fullest), "slots"),
        Figure::new(name("emptiest"), f64::from(emptiest), "slots"),
        Figure::new(name("ring_size"), size, "slots"),
        Figure::new(name("needless_drain"), per_cent(drain), "%"),
        Figure::new(name("needless_activate"), per_cent(activation), "%"),
        Figure::new(name("needless_delete"), per_cent(deletion), "%"),
        Figure::new(name("furthest_from_share_after_drains"), worst, "slots"),
        Figure::new(name("share_after_drains"), size / (f64::from(backends) * 0.8), "slots"),
    ];
    if !other_size {
        figures.push(Figure::new(name("needless_add"), per_cent(addition), "%"));
    }
    Ok(figures)
}

fn member(id: u32) -> Member {
    let address = format!("10.{}.{}.{}", id >> 16, id >> 8 & 255, id & 255);
    Member { id: BackendSlot(id), key: member_key(&format!("web-{id}"), &address), weight: 1 }
}

fn enter_all(ring: &mut Ring, members: &[Member]) {
    let entrants: Vec<Entrant> =
        members.iter().map(|member| Entrant { id: member.id, rebalance: true, share: None }).collect();
    ring.enter_all(&entrants);
}

fn owners(ring: &Ring) -> Vec<Option<BackendSlot>> {
    ring.slots().into_iter().map(|slot| slot.owner).collect()
}

/// Slots whose owner changed though neither the one before nor the one after is among `concerned`.
fn needless(before: &[Option<BackendSlot>], after: &[Option<BackendSlot>], concerned: &[BackendSlot]) -> usize {
    let of = |owner: &Option<BackendSlot>| owner.is_some_and(|owner| concerned.contains(&owner));
    before.iter().zip(after).filter(|(before, after)| before != after && !of(before) && !of(after)).count()
}

/// Every fifth backend drained one after the other: how far anybody then is from its share.
fn after_churn(ring: &mut Ring, members: &[Member]) -> f64 {
    enter_all(ring, members);
    let (out, inside): (Vec<&Member>, Vec<&Member>) = members.iter().partition(|member| member.id.0 % 5 == 4);
    for member in out {
        ring.set_draining(member.id, true);
        ring.leave(member.id);
    }
    let share = f64::from(ring.size()) / inside.len() as f64;
    inside.iter().map(|member| (f64::from(ring.held(member.id)) - share).abs()).fold(0.0, f64::max)
}
