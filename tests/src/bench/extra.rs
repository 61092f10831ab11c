//! Figures that are no time of one kind of packet: capacity, and what a second CPU gains.

use std::{sync::Barrier, thread};

use anyhow::{Context as _, Result};
use ebb_tests_ebpf::walk;
use lb_common::{flow::FlowEntry, outcome::Outcome};

use super::{Bench, Packet, Target, driver::pin};

/// Flows that the table takes before the first one finds no place (to within half a per cent), and bytes a flow then.
///
/// Each flow is established before the next ones come. One that found no place of its own has displaced an opening one
/// of the same batch, which then is not known any more: that counts as the first failure.
pub fn capacity(bench: &mut Bench) -> Result<(u32, f64)> {
    bench.set_up(super::case::BASE)?;
    let slots = bench.rig.sizes.flow_slots;
    let step = slots / 200;
    let mut placed = 0;
    loop {
        for packet in [Packet::Open, Packet::More] {
            bench.run(Target::Ebb, &bench.job(packet, walk::SEQUENTIAL, placed, step), step)?;
        }
        let failed = bench.counted(Outcome::Untracked) + bench.counted(Outcome::Adopted);
        if failed > 0 || placed + step > slots {
            break;
        }
        placed += step;
    }
    let bytes = f64::from(slots * size_of::<FlowEntry>() as u32);
    Ok((placed, bytes / f64::from(placed.max(1))))
}

/// How much faster two CPUs are than one, on packets of `flows` established flows, each CPU having its own.
pub fn two_cpus(bench: &mut Bench, target: Target, flows: u32, packets: u32) -> Result<f64> {
    bench.set_up(super::case::BASE)?;
    bench.establish(target, flows * 2)?;
    let job = |cpu: u32| bench.job(Packet::More, walk::RANDOM, cpu * flows, flows);
    let one = bench.run(target, &job(0), packets)?;
    bench.assign(target, &[job(0), job(1)]);
    let start = Barrier::new(2);
    let (bench, start) = (&*bench, &start);
    let times: Vec<f64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|cpu| {
                scope.spawn(move || {
                    pin(cpu)?;
                    start.wait();
                    bench.run_assigned(packets)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a CPU's thread panicked")))
            .collect::<Result<_>>()
    })
    .context("run on two CPUs")?;
    Ok(times.iter().map(|ns| one / ns).sum())
}
