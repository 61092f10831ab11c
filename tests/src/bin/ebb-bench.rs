//! Measures Ebb's XDP program beside a conventional balancer; see PERFORMANCE.md.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use ebb_tests::bench::{Bench, Case, Effort, Report, Target, cases};

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
            figures(&bench, &mut report, &options)?;
        }
        for case in wanted {
            eprintln!("{case} {}", case.flows);
            report.rows.push(case.measure(&mut bench, effort(&options, capacity))?);
        }
    }
    println!("{report}");
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

fn figures(bench: &Bench, report: &mut Report, options: &Options) -> Result<()> {
    let bare = bench.bare(if options.quick { 1000 } else { 1_000_000 })?;
    report.figures.push(("bare_xdp_tx_test_run".into(), bare, "ns"));
    for (name, target) in [("ebb", Target::Ebb), ("yardstick", Target::Yardstick)] {
        let (verified, jited) = bench.sizes(target)?;
        report.figures.push((format!("{name}_verified_instructions"), verified.into(), ""));
        report.figures.push((format!("{name}_jited_bytes"), jited.into(), "B"));
    }
    Ok(())
}

/// Keeps this process on one CPU.
fn pin(cpu: usize) -> Result<()> {
    // SAFETY: a set of CPUs is plain bits, for which all zeroes is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes one bit of the set, if there is such a bit.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives across the call.
    let failed = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0;
    if failed { Err(std::io::Error::last_os_error()).with_context(|| format!("keep to CPU {cpu}")) } else { Ok(()) }
}
