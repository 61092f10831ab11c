//! Two CPUs at the same bucket of the real program's flow table: it must be whole when they are done.

use std::{collections::HashMap, sync::Barrier, thread};

use anyhow::{Context as _, Result, bail, ensure};
use ebb_tests::{
    bench::{Bench, Packet, Target, pin},
    lab::Family,
    rig::{Cell, Mode, Protocol},
};
use ebb_tests_ebpf::walk;
use lb_common::flow::{FlowKey, Life, Meta, flow_flag};

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
