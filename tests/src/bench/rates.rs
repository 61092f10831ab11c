//! Packets a second over a veth, one CPU doing all: generator, balancer, receiver.

use anyhow::{Result, ensure};
use aya::programs::Xdp;
use ebb_tests_ebpf::walk;

use super::{
    Bench, Figure, Packet, Spread, Target,
    driver::BACKENDS,
    wire::{Taker, Wire},
};

/// Share of the packets sent that must come back at least. Some are lost where a ring is full; only those that come back count.
const LEAST_RECEIVED: f64 = 0.5;

/// What sends packets back.
const CONTENDERS: [&str; 4] = ["bare_tx", "bare_redirect", "yardstick", "ebb"];

/// Which packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Load {
    /// Of so many established flows, at random.
    Known(u32),
    /// Each opens a flow.
    New,
}

/// Rates of the contenders in turn, `runs` times, and their ratios to the bare `XDP_TX` of the same run.
pub fn rates(bench: &mut Bench, cpu: usize, packets: u32, runs: u32) -> Result<Vec<Figure>> {
    let wire = Wire::lay(Taker::Count)?;
    let most = bench.rig.sizes.flow_slots / 2;
    let mut figures = Vec::new();
    for load in [Load::Known(1), Load::Known(65_536), Load::Known(524_288), Load::New] {
        let name = match load {
            Load::Known(flows) if flows > most => continue,
            Load::Known(flows) => format!("{flows}_flows"),
            Load::New => "new_flows".to_owned(),
        };
        let mut rates = [const { Vec::new() }; CONTENDERS.len()];
        prepare(bench, &wire, load)?;
        for run in 0..runs {
            for (contender, rates) in CONTENDERS.iter().zip(&mut rates) {
                rates.push(rate(bench, &wire, contender, load, cpu, packets.min(most), run)?);
            }
        }
        let bare: Vec<f64> = rates[0].clone();
        for (contender, rates) in CONTENDERS.iter().zip(&rates) {
            figures.push(Figure::new(format!("veth_{name}_{contender}"), Spread::of(rates).median / 1e6, "M/s"));
            let ratios: Vec<f64> = rates.iter().zip(&bare).map(|(rate, bare)| rate / bare).collect();
            if *contender != "bare_tx" {
                let ratio = Spread::of(&ratios).median;
                figures.push(Figure::new(format!("veth_{name}_{contender}_to_bare_tx"), ratio, "x"));
            }
        }
    }
    Ok(figures)
}

/// Sets both balancers up to send back where packets came in, and has them know the flows.
fn prepare(bench: &mut Bench, wire: &Wire, load: Load) -> Result<()> {
    bench.set_up(super::case::BASE)?;
    for backend in 0..BACKENDS {
        bench.rig.backends.change(backend, |row| row.ifindex = wire.near);
    }
    if let Load::Known(flows) = load {
        bench.establish(Target::Ebb, flows)?;
        bench.establish(Target::Yardstick, flows)?;
    }
    Ok(())
}

fn rate(
    bench: &mut Bench,
    wire: &Wire,
    contender: &str,
    load: Load,
    cpu: usize,
    packets: u32,
    run: u32,
) -> Result<f64> {
    let job = match load {
        Load::Known(flows) => bench.job(Packet::More, walk::RANDOM, 0, flows),
        // The yardstick's table is never emptied: each run has flows of its own.
        Load::New => {
            bench.rig.flows.clear();
            bench.job(Packet::Open, walk::SEQUENTIAL, run * packets, packets)
        }
    };
    let program: &Xdp = match contender {
        "bare_tx" => bench.program(Target::Floor)?,
        "bare_redirect" => bench.redirect()?,
        "yardstick" => bench.program(Target::Yardstick)?,
        _ => bench.program(Target::Ebb)?,
    };
    let _attached = wire.attach(program)?;
    // The first packets warm up the link, whose buffers are made when a program is attached. None of them opens a flow.
    let known = bench.job(Packet::Elsewhere, walk::RANDOM, 0, 1);
    wire.send(cpu, if load == Load::New { &known } else { &job }, (packets / 20).max(64))?;
    let sent = wire.send(cpu, &job, packets)?;
    let share = sent.received as f64 / f64::from(packets);
    ensure!(share >= LEAST_RECEIVED, "{contender}: only {} of {packets} packets came back", sent.received);
    Ok(sent.rate)
}
