//! Measures Ebb's XDP program beside a conventional balancer; see PERFORMANCE.md.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use ebb_tests::bench::{Bench, Case, Effort, Report, Target, capacity, cases, pin, svg, two_cpus};

/// Measure Ebb's XDP program beside a conventional balancer, in one run (as root)
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

    /// Only cases whose name contains this
    #[arg(long, value_name = "SUBSTRING")]
    filter: Option<String>,

    /// Runs of each case
    #[arg(long, default_value_t = 11)]
    runs: u32,

    /// CPU to measure on
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
            .filter(|case| options.filter.as_ref().is_none_or(|part| case.to_string().contains(part)))
            .collect();
        measured = capacity;
        if wanted.is_empty() {
            continue;
        }
        let mut bench = Bench::load(capacity)?;
        if report.figures.is_empty() {
            figures(&mut bench, &mut report, &options)?;
        }
        for case in wanted {
            eprintln!("{case} {}", case.flows);
            report.rows.push(case.measure(&mut bench, effort(&options, capacity))?);
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

fn effort(options: &Options, capacity: u32) -> Effort {
    if options.quick {
        Effort { packets: capacity / 2, runs: 1 }
    } else {
        // New flows fill half the table.
        Effort { packets: 500_000, runs: options.runs }
    }
}

fn figures(bench: &mut Bench, report: &mut Report, options: &Options) -> Result<()> {
    let bare = bench.bare(if options.quick { 1000 } else { 1_000_000 })?;
    report.figures.push(("bare_xdp_tx_test_run".into(), bare, "ns"));
    for (name, target) in [("ebb", Target::Ebb), ("yardstick", Target::Yardstick)] {
        let (verified, jited) = bench.sizes(target)?;
        report.figures.push((format!("{name}_verified_instructions"), verified.into(), ""));
        report.figures.push((format!("{name}_jited_bytes"), jited.into(), "B"));
    }
    let (flows, bytes) = capacity(bench)?;
    report.figures.push(("flows_placed_before_the_first_fails".into(), flows.into(), "flows"));
    report.figures.push(("table_bytes_a_flow".into(), bytes, "B"));
    two_cpu_gains(bench, report, options)
}

/// What a second CPU gains Ebb, and the trivial program, as medians.
fn two_cpu_gains(bench: &mut Bench, report: &mut Report, options: &Options) -> Result<()> {
    if aya::util::nr_cpus().is_ok_and(|cpus| cpus < 2) {
        return Ok(());
    }
    let (flows, packets, runs) = if options.quick { (1_000, 10_000, 1) } else { (32_768, 500_000, options.runs) };
    for (name, target) in [("ebb", Target::Ebb), ("trivial_program", Target::Floor)] {
        let mut gains = (0..runs).map(|_| two_cpus(bench, target, flows, packets)).collect::<Result<Vec<f64>>>()?;
        gains.sort_by(f64::total_cmp);
        report.figures.push((format!("{name}_two_cpus_against_one"), gains[gains.len() / 2], "x"));
    }
    pin(options.cpu)?;
    Ok(())
}
