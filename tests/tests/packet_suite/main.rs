//! The packet suite: named fixtures, each run through the real XDP program by the kernel's test-run, in every
//! combination of mode, family and protocol that it holds for. `fixture.rs` has the language they are written in,
//! `matrix.rs` what they must cover between them.

#![expect(unreachable_pub, reason = "modules of one test; what is public in them is public to it")]

mod change;
mod decap;
mod drains;
mod expect;
mod fixture;
mod flows;
mod headers;
mod heard;
mod icmp;
mod input;
mod judge;
mod kernel;
mod matrix;
mod nat;
mod options;
mod output;
mod quic;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, anyhow};
use ebb_tests::rig::{Cell, Rig, Sizes, can_crowd, isolate};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{fixture::Fixture, matrix::Matrix};

/// The program, and what has been run on it.
struct Suite {
    rig: Result<Rig>,
    fixtures: Vec<Fixture>,
    /// Which fixtures ran, by number, and whether they passed.
    ran: BTreeMap<(usize, Cell), bool>,
    matrix: Matrix,
    /// Whether frames with no room in front are to be had from this kernel.
    crowding: bool,
}

type Shared = Arc<Mutex<Suite>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One program, one set of maps, one network namespace.
    arguments.test_threads = Some(1);
    let crowding = can_crowd().unwrap_or(true);
    let fixtures: Vec<Fixture> = [
        flows::all(),
        drains::all(),
        headers::all(),
        icmp::all(),
        nat::all(),
        options::all(),
        quic::all(),
        decap::all(),
        kernel::all(),
    ]
    .into_iter()
    .flatten()
    .filter(|fixture| crowding || !fixture.is_crowded())
    .collect();
    let names: Vec<(usize, Cell, &'static str)> = fixtures
        .iter()
        .enumerate()
        .flat_map(|(number, fixture)| fixture.cells().map(move |cell| (number, cell, fixture.name)))
        .collect();
    let rig =
        if arguments.list { Err(anyhow!("nothing is run")) } else { isolate().and_then(|()| Rig::load(Sizes::SMALL)) };
    let suite =
        Arc::new(Mutex::new(Suite { rig, fixtures, ran: BTreeMap::new(), matrix: Matrix::default(), crowding }));
    let mut trials: Vec<Trial> =
        names.into_iter().map(|(number, cell, name)| trial(&suite, number, cell, name)).collect();
    trials.push(whole_matrix(&suite));
    let conclusion = libtest_mimic::run(&arguments, trials);
    print(&suite);
    conclusion.exit_code()
}

fn trial(suite: &Shared, number: usize, cell: Cell, name: &str) -> Trial {
    let suite = suite.clone();
    Trial::test(format!("{cell}: {name}"), move || {
        let mut suite = suite.lock().unwrap_or_else(PoisonError::into_inner);
        suite.run(number, cell).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// Looks at the matrix when all else is done; what a filter has left out is run for it.
fn whole_matrix(suite: &Shared) -> Trial {
    let suite = suite.clone();
    Trial::test("matrix: no cell is empty", move || {
        let mut suite = suite.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..suite.fixtures.len() {
            let cells: BTreeSet<Cell> = suite.fixtures[number].cells().collect();
            for cell in cells.into_iter().filter(|&cell| !suite.ran.contains_key(&(number, cell))).collect::<Vec<_>>() {
                // Those that fail fill nothing.
                let _ = suite.run(number, cell);
            }
        }
        suite.matrix.judge(suite.crowding).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

impl Suite {
    fn run(&mut self, number: usize, cell: Cell) -> Result<()> {
        let Self { rig, fixtures, ran, matrix, .. } = self;
        let rig = rig.as_mut().map_err(|error| anyhow!("{error:#}"))?;
        let result = judge::run(rig, &fixtures[number], cell);
        ran.insert((number, cell), result.is_ok());
        matrix.note(cell, &result.map_err(|error| anyhow!("{}\n{error:#}", fixtures[number].about))?);
        Ok(())
    }
}

/// The listing, from what ran; `cargo xtask test` repeats the line that begins like its first.
fn print(suite: &Shared) {
    let suite = suite.lock().unwrap_or_else(PoisonError::into_inner);
    let mut modes = BTreeMap::<String, u32>::new();
    let mut cells = BTreeMap::<Cell, (u32, u32)>::new();
    for (&(_, cell), &passed) in &suite.ran {
        *modes.entry(cell.mode.to_string()).or_default() += u32::from(passed);
        let (right, wrong) = cells.entry(cell).or_default();
        *if passed { right } else { wrong } += 1;
    }
    let modes: Vec<String> = modes.iter().map(|(mode, passed)| format!("{mode} {passed}")).collect();
    let filled = suite.matrix.filled();
    if !suite.crowding {
        println!("(left out: fixtures with no room in front of a frame, which this kernel's test-run cannot make)");
    }
    println!("packet suite: fixtures passed by mode: {}; {filled} cells of the matrix filled", modes.join(", "));
    for (cell, (passed, failed)) in cells {
        let failed = if failed == 0 { String::new() } else { format!(", {failed} FAILED") };
        println!("  {:<26} {passed:>4} passed{failed}", cell.to_string());
    }
}
