//! The packet suite: named fixtures, each run through the real XDP program by the kernel's test-run, in every
//! combination of mode, family and protocol that it holds for. `fixture.rs` has the language they are written in.

#![expect(unreachable_pub, reason = "modules of one test; what is public in them is public to it")]

mod drains;
mod fixture;
mod flows;
mod headers;
mod icmp;
mod judge;
mod kernel;
mod output;

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use ebb_tests::rig::{Cell, Mode, Rig, Sizes};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::fixture::Fixture;

/// Modes whose output the suite can foretell.
const MODES: &[Mode] = &[Mode::Dsr, Mode::Nat, Mode::Tunnel];

/// How many fixtures passed and failed for a combination.
type Listing = Arc<Mutex<BTreeMap<Cell, (u32, u32)>>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One program, one set of maps.
    arguments.test_threads = Some(1);
    let listing = Listing::default();
    let rig = Arc::new(Mutex::new(Rig::load(Sizes::SMALL)));
    let fixtures: Vec<Fixture> =
        [flows::all(), drains::all(), headers::all(), icmp::all(), kernel::all()].into_iter().flatten().collect();
    let trials = fixtures.into_iter().map(Arc::new).flat_map(|fixture| {
        let cells: Vec<Cell> = fixture.cells().filter(|cell| MODES.contains(&cell.mode)).collect();
        let (rig, listing) = (rig.clone(), listing.clone());
        cells.into_iter().map(move |cell| trial(&rig, &listing, &fixture, cell))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    print(&listing);
    conclusion.exit_code()
}

fn trial(rig: &Arc<Mutex<Result<Rig>>>, listing: &Listing, fixture: &Arc<Fixture>, cell: Cell) -> Trial {
    let (rig, listing, fixture) = (rig.clone(), listing.clone(), fixture.clone());
    Trial::test(format!("{cell}: {}", fixture.name), move || {
        let mut rig = rig.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match rig.as_mut() {
            Ok(rig) => judge::run(rig, &fixture, cell),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        let (passed, failed) = listing.entry(cell).or_default();
        *if result.is_ok() { passed } else { failed } += 1;
        result.map_err(|error| Failed::from(format!("{}\n{error:#}", fixture.about)))
    })
}

fn print(listing: &Listing) {
    let listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
    println!("packet suite, fixtures passed by mode");
    for (cell, (passed, failed)) in listing.iter() {
        println!(
            "  {cell:<18} {passed:>4} passed{}",
            if *failed == 0 { String::new() } else { format!(", {failed} FAILED") }
        );
    }
}
