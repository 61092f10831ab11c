//! Measures Ebb's XDP program and its daemon; see PERFORMANCE.md.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use ebb_tests::{
    bench::{
        Bench, Case, Effort, Figure, Report, Size, Spread, Target, capacity, cases, connections, drain_latency,
        drained_after_last_end, floods, pin, rates, rings, scale, svg, tables, two_cpus,
    },
    scene::Forward,
};

/// Measure Ebb's XDP program beside a conventional balancer, and its daemon, in one run (as root)
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Options {
    /// Only check that everything runs: few packets, few flows; the figures mean nothing
    #[arg(long)]
    quick: bool,

    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw nanoseconds against flows as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Only cases and parts whose name contains this; the parts are program, veth, connections, tables, commands, ends,
    /// floods, maglev, scale_services and scale_backends
    #[arg(long, value_name = "SUBSTRING")]
    filter: Option<String>,

    /// Runs of each case
    #[arg(long, default_value_t = 11)]
    runs: u32,

    /// CPU to measure on; where a second one is needed it is the next
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// Flows that the tables have room for: the default, and enough for the largest case.
const CAPACITIES: [u32; 2] = [1_000_000, 5_000_000];
const QUICK_CAPACITY: u32 = 20_000;

fn main() -> Result<()> {
    let options = Options::parse();
    pin(options.cpu)?;
    let mut report = Report::default();
    let capacities: &[u32] = if options.quick { &[QUICK_CAPACITY] } else { &CAPACITIES };
    let mut measured = 0;
    for &capacity in capacities {
        let wanted: Vec<Case> = cases(capacity)
            .into_iter()
            .filter(|case| case.flows == 0 || case.flows > measured)
            .filter(|case| measured == 0 || case.flows > measured)
            .filter(|case| options.wants(&case.to_string()))
            .collect();
        let first = measured == 0;
        measured = capacity;
        if wanted.is_empty() && !(first && (options.wants("program") || options.wants("veth"))) {
            continue;
        }
        let mut bench = Bench::load(capacity)?;
        if first {
            figures(&mut bench, &mut report, &options)?;
        }
        for case in wanted {
            eprintln!("{case} {}", case.flows);
            report.rows.push(case.measure(&mut bench, effort(&options, capacity))?);
        }
    }
    for (name, part) in PARTS {
        if options.wants(name) {
            eprintln!("{name}");
            pin(options.cpu)?;
            report.figures.extend(part(&options).with_context(|| format!("measure {name}"))?);
        }
    }
    println!("{report}");
    if let Some(path) = options.svg {
        std::fs::write(&path, svg(&report.rows, "tcp4_hit")).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = options.json {
        std::fs::write(&path, serde_json::to_string_pretty(&report.json())?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|part| name.contains(part.as_str()))
    }

    /// The second CPU, or the only one.
    fn other_cpu(&self) -> usize {
        (self.cpu + 1) % aya::util::nr_cpus().unwrap_or(1)
    }

    /// `quick` in the quick mode, else `full`.
    fn or_quick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

fn effort(options: &Options, capacity: u32) -> Effort {
    if options.quick {
        Effort { packets: capacity / 2, runs: 1 }
    } else {
        // New flows fill half the table.
        Effort { packets: 500_000, runs: options.runs }
    }
}

type Part = fn(&Options) -> Result<Vec<Figure>>;

/// What needs no table of the benchmark's own.
const PARTS: [(&str, Part); 8] = [
    ("maglev", |options| {
        let counts = options.or_quick(vec![3, 10, 100, 1_000, 4_000], vec![10]);
        let figures = counts.into_iter().map(|count| rings(count, options.or_quick(11, 1)));
        Ok(figures.collect::<Result<Vec<_>>>()?.concat())
    }),
    ("tables", |options| {
        tables(options.or_quick(1_000_000, 20_000), options.or_quick(11, 1), [options.cpu, options.other_cpu()])
    }),
    ("connections", |options| {
        connections(options.or_quick(Duration::from_secs(3), Duration::from_millis(200)), options.or_quick(7, 1))
    }),
    ("commands", |options| drain_latency(options.or_quick(1_000, 20), options.or_quick(300, 2), options.other_cpu())),
    ("ends", |options| {
        let mut figures = drained_after_last_end(Forward::Nat, options.or_quick(9, 1))?;
        figures.extend(drained_after_last_end(Forward::Dsr, options.or_quick(9, 1))?);
        Ok(figures)
    }),
    ("floods", |options| {
        let each = options.or_quick(Duration::from_secs(5), Duration::from_millis(100));
        let modes = options.or_quick(vec![Forward::Dsr, Forward::Nat], vec![Forward::Dsr]);
        Ok(modes.into_iter().map(|forward| floods(forward, each)).collect::<Result<Vec<_>>>()?.concat())
    }),
    ("scale_services", |options| {
        let (services, backends) = options.or_quick((1_000, 100), (3, 4));
        scale(Size { services, backends }, options.or_quick(20, 1), options.other_cpu())
    }),
    ("scale_backends", |options| {
        scale(
            Size { services: 1, backends: options.or_quick(10_000, 30) },
            options.or_quick(20, 1),
            options.other_cpu(),
        )
    }),
];

fn figures(bench: &mut Bench, report: &mut Report, options: &Options) -> Result<()> {
    if options.wants("program") {
        let bare = bench.bare(options.or_quick(1_000_000, 1_000))?;
        report.figures.push(Figure::new("bare_xdp_tx_test_run", bare, "ns"));
        for (name, target) in [("ebb", Target::Ebb), ("yardstick", Target::Yardstick)] {
            let (verified, jited) = bench.sizes(target)?;
            report.figures.push(Figure::new(format!("{name}_verified_instructions"), verified, ""));
            report.figures.push(Figure::new(format!("{name}_jited_bytes"), jited, "B"));
        }
        let (flows, bytes) = capacity(bench)?;
        report.figures.push(Figure::new("flows_placed_before_the_first_fails", flows, "flows"));
        report.figures.push(Figure::new("table_bytes_a_flow", bytes, "B"));
        two_cpu_gains(bench, report, options)?;
    }
    if options.wants("veth") {
        eprintln!("veth");
        let (packets, runs) = options.or_quick((500_000, options.runs.min(7)), (5_000, 1));
        report.figures.extend(rates(bench, options.cpu, packets, runs)?);
    }
    Ok(())
}

/// What a second CPU gains Ebb, and the trivial program, as medians.
fn two_cpu_gains(bench: &mut Bench, report: &mut Report, options: &Options) -> Result<()> {
    if aya::util::nr_cpus().is_ok_and(|cpus| cpus < 2) {
        return Ok(());
    }
    let (flows, packets, runs) = options.or_quick((32_768, 500_000, options.runs), (1_000, 10_000, 1));
    for (name, target) in [("ebb", Target::Ebb), ("trivial_program", Target::Floor)] {
        let gains = (0..runs).map(|_| two_cpus(bench, target, flows, packets)).collect::<Result<Vec<f64>>>()?;
        report.figures.push(Figure::new(format!("{name}_two_cpus_against_one"), Spread::of(&gains).median, "x"));
    }
    pin(options.cpu)
}
