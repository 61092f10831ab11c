//! Faults in random order while thousands of connections go on, and the promises held against what clients and servers saw.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Parser;
use ebb_tests::chaos::{Options, Steps, run};

/// Kill, stop, starve, unplug and reconfigure a balancer in an order drawn from a seed, while connections in every mode go on
#[derive(Parser)]
#[command(name = "cargo xtask chaos")]
struct Arguments {
    /// How long new faults are made
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Where all randomness comes from; the same seed gives the same faults in the same order [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// TCP connections to keep going
    #[arg(long, default_value_t = 2_000)]
    connections: usize,
    /// Only print so many steps of the seed
    #[arg(long, value_name = "STEPS")]
    plan: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = arguments.seed.unwrap_or(time.as_secs());
    if let Some(steps) = arguments.plan {
        Steps::new(seed).take(steps).for_each(|step| println!("{step:?}"));
        return ExitCode::SUCCESS;
    }
    let options = Options {
        seed,
        lasting: Duration::from_secs(arguments.seconds),
        connections: arguments.connections,
        sabotage: None,
    };
    let replay = format!(
        "cargo xtask chaos --seed {seed} --seconds {} --connections {}",
        arguments.seconds, arguments.connections
    );
    match run(options) {
        Ok(summary) if summary.complaints.is_empty() => {
            println!("\n{summary}\n\nPASS: every promise was kept (seed {seed})");
            ExitCode::SUCCESS
        }
        Ok(summary) => {
            println!("\n{summary}\n\nFAIL: {}\nreplay with: {replay}", summary.complaints.join("; "));
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("\nFAIL: the run could not be carried through: {error:#}\nreplay with: {replay}");
            ExitCode::FAILURE
        }
    }
}
