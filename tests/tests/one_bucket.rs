//! Two CPUs at the same bucket of the real program's flow table: it must be whole when they are done.

use std::{collections::HashMap, sync::Barrier, thread};

use anyhow::{Context as _, Result, bail, ensure};
use ebb_tests::{
    bench::{Bench, Packet, Target, pin},
    lab::Family,
    rig::{Cell, Mode, Protocol},
};
use ebb_tests_ebpf::walk;
use lb_common::{
    flow::{FlowKey, Life, Meta, flow_flag},
    flow_table::MAX_PER_HOME,
    outcome::Outcome,
};

/// Room for so few flows makes a table of one set of 16 entries: every place of every home is in it.
const ROOM: u32 = 10;
/// Packets of one kind that each CPU sends.
const PACKETS: u32 = 100_000;
const CELL: Cell = Cell { mode: Mode::Dsr, family: Family::V4, protocol: Protocol::Tcp };

#[test]
fn two_cpus_opening_closing_and_displacing_in_one_bucket_leave_it_whole() -> Result<()> {
    let mut bench = Bench::load(ROOM)?;
    ensure!(bench.rig.sizes.flow_slots == 16, "{:?} is more than one bucket", bench.rig.sizes);
    bench.set_up(CELL)?;
    // As many flows as there is room for, then so many that each new one displaces another.
    for flows in [8, 40] {
        for packets in [
            [Packet::Open, Packet::Open],
            [Packet::Open, Packet::Reset],
            [Packet::Open, Packet::More],
            [Packet::More, Packet::Reset],
            [Packet::Open, Packet::Open],
        ] {
            at_once(&bench, packets, flows)?;
            check(&bench).with_context(|| format!("{packets:?} of {flows} flows"))?;
        }
    }
    Ok(())
}

/// In a full table the entry that a new flow is given may be the very one that its own tuple had before.
#[test]
fn a_port_used_again_in_a_full_table_is_known() -> Result<()> {
    let mut bench = Bench::load(ROOM)?;
    bench.set_up(CELL)?;
    let places = bench.rig.sizes.flow_slots;
    for round in 0..20_u8 {
        let mut job = bench.job(Packet::Open, walk::SEQUENTIAL, 0, places);
        // Another initial sequence number each time.
        bytemuck::cast_slice_mut::<u64, u8>(&mut job.template)[SEQUENCE] = round;
        bench.run(Target::Ebb, &job, places)?;
        check(&bench)?;
    }
    ensure!(bench.counted(Outcome::NewFlow) == u64::from(places) * 20, "{:?}", bench.rig.counters());
    Ok(())
}

/// First byte of the sequence number of a TCP segment in an IPv4 frame.
const SEQUENCE: usize = 14 + 20 + 4;

/// A home that has as many flows as it can gives up one that is not established for another, and none that is.
#[test]
fn a_crowded_home_makes_room() -> Result<()> {
    let mut bench = Bench::load(ROOM)?;
    bench.set_up(CELL)?;
    let one = |bench: &Bench, packet, flow| bench.run(Target::Ebb, &bench.job(packet, walk::CONSTANT, flow, 1), 1);
    let mut neighbours = Vec::new();
    for flow in 0.. {
        bench.rig.flows.clear();
        one(&bench, Packet::Open, flow)?;
        let control = bench.rig.control.get(0);
        let entry = bench.rig.flows.iter().find(|entry| Meta(entry.meta).life() == Life::Linked);
        let entry = entry.with_context(|| format!("flow {flow} is not known"))?;
        let key = FlowKey { client: entry.client, port_service: entry.port_service };
        if control.geometry().home(key.hash(&control.table_keys)) == 3 {
            neighbours.push(flow);
        }
        if neighbours.len() == MAX_PER_HOME as usize + 1 {
            break;
        }
    }
    let (last, others) = neighbours.split_last().context("some")?;
    for (established, outcome) in [(false, Outcome::NewFlow), (true, Outcome::Untracked)] {
        bench.rig.flows.clear();
        for flow in others {
            one(&bench, Packet::Open, *flow)?;
            if established {
                one(&bench, Packet::More, *flow)?;
                one(&bench, Packet::More, *flow)?;
            }
        }
        let before = bench.counted(outcome);
        one(&bench, Packet::Open, *last)?;
        ensure!(bench.counted(outcome) == before + 1, "established {established}: {:?}", bench.rig.counters());
        check(&bench)?;
        let flows = bench.rig.flows.iter().filter(|entry| Meta(entry.meta).life() == Life::Linked).count();
        ensure!(flows == others.len(), "{flows} flows in the place of {}", others.len());
    }
    Ok(())
}

/// Sends packets of the same flows, at random, from two CPUs.
fn at_once(bench: &Bench, packets: [Packet; 2], flows: u32) -> Result<()> {
    let jobs: Vec<_> = (0_u32..)
        .zip(packets)
        // Walks that begin elsewhere, or both CPUs would go through the flows in step.
        .map(|(cpu, packet)| ebb_tests_ebpf::Job { state: cpu * 77, ..bench.job(packet, walk::RANDOM, 0, flows) })
        .collect();
    bench.assign(Target::Ebb, &jobs);
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let cpus: Vec<_> = (0..2)
            .map(|cpu| {
                let start = &start;
                scope.spawn(move || {
                    pin(cpu)?;
                    start.wait();
                    bench.run_assigned(PACKETS)
                })
            })
            .collect();
        cpus.into_iter().try_for_each(|cpu| cpu.join().unwrap_or_else(|_| bail!("a CPU's thread panicked")).map(drop))
    })
}

/// Nothing is half-done, each flow has exactly one bit in its home's word, and no flow stands twice.
fn check(bench: &Bench) -> Result<()> {
    let control = bench.rig.control.get(0);
    let entries: Vec<_> = bench.rig.flows.iter().collect();
    let mut by_home: HashMap<u32, u32> = HashMap::new();
    let mut seen = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let meta = Meta(entry.meta);
        match meta.life() {
            Life::Free => continue,
            Life::Linked => {}
            life => bail!("entry {index} is {life:?} for good"),
        }
        let key = FlowKey { client: entry.client, port_service: entry.port_service };
        let home = control.geometry().home(key.hash(&control.table_keys));
        let bits = places(entries[home as usize].hop, index);
        ensure!(bits == 1, "entry {index} has {bits} bits in its home's word {:x}", entries[home as usize].hop);
        *by_home.entry(home).or_default() += 1;
        // A SYN on an established flow's tuple has an entry of its own until its handshake completes.
        let twin = (entry.client.halves, entry.port_service, meta.any(flow_flag::CANDIDATE));
        if let Some(other) = seen.insert(twin, index) {
            bail!("the flow of entry {index} stands in {other}, too");
        }
    }
    for (home, entry) in (0_u32..).zip(&entries) {
        let bits = (entry.hop << 16).count_ones();
        let flows = by_home.get(&home).copied().unwrap_or(0);
        ensure!(bits == flows, "home {home} has {bits} bits for {flows} flows");
    }
    ensure!(!seen.is_empty(), "nothing was left to look at");
    Ok(())
}

/// Bits of a `hop` word that stand for an entry of the one set: three sets coincide.
fn places(hop: u64, index: usize) -> u32 {
    (0..3).map(|set| (hop >> (set * 16 + index) & 1) as u32).sum()
}
