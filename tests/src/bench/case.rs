//! The cases: what kind of packet, of how many flows.

use std::fmt;

use anyhow::{Result, ensure};
use ebb_tests_ebpf::walk;
use lb_common::outcome::Outcome;

use super::{Bench, Row, Spread, Target, driver::Packet};
use crate::{
    lab::Family,
    rig::{Cell, Mode, Protocol},
};

/// The combination that most cases are of.
pub(super) const BASE: Cell = Cell { mode: Mode::Dsr, family: Family::V4, protocol: Protocol::Tcp };

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Packets of established flows, in random order.
    Hit,
    /// Every packet opens a flow, into a table that is empty at first and half full at last.
    New,
    /// The same, over and over, into a table full of such flows: each takes another's place.
    NewFlood,
    /// Every packet is a segment of a flow not known, into a table that is empty at first.
    Unknown,
    /// SYNs sent again: the slow path without a new entry.
    SynAgain,
    /// Resets of flows not known: steered by the ring, without an entry.
    RstMiss,
    /// Packets for no service.
    NotForUs,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Mode, family, protocol.
    pub cell: Cell,
    /// What is measured.
    pub kind: Kind,
    /// Flows among which packets are spread; 0 where that means nothing.
    pub flows: u32,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.cell.family == Family::V4 { 4 } else { 6 };
        let kind = match self.kind {
            Kind::Hit => "hit",
            Kind::New => "new",
            Kind::NewFlood => "new_flood",
            Kind::Unknown => "unknown",
            Kind::SynAgain => "syn_again",
            Kind::RstMiss => "rst_miss",
            Kind::NotForUs => return f.pad("not_for_us"),
        };
        let mode = if self.cell.mode == Mode::Dsr { String::new() } else { format!("{}_", self.cell.mode) };
        f.pad(&format!("{mode}{}{family}_{kind}", self.cell.protocol))
    }
}

/// All cases whose flows fit a table for `capacity` flows.
pub fn cases(capacity: u32) -> Vec<Case> {
    let cell = |mode, family, protocol| Cell { mode, family, protocol };
    let case = |cell, kind, flows| Case { cell, kind, flows };
    let tcp4 = BASE;
    let tcp6 = cell(Mode::Dsr, Family::V6, Protocol::Tcp);
    let udp4 = cell(Mode::Dsr, Family::V4, Protocol::Udp);
    let udp6 = cell(Mode::Dsr, Family::V6, Protocol::Udp);
    let mut cases: Vec<Case> = [1, 1_000, 65_536, 524_288, 4_000_000].map(|flows| case(tcp4, Kind::Hit, flows)).into();
    cases.extend([
        case(tcp4, Kind::New, 0),
        case(tcp4, Kind::NewFlood, 0),
        case(tcp4, Kind::Unknown, 0),
        case(tcp4, Kind::SynAgain, 1_000),
        case(tcp4, Kind::RstMiss, 0),
        case(udp4, Kind::Hit, 1),
        case(udp4, Kind::Hit, 65_536),
        case(tcp6, Kind::Hit, 1),
        case(tcp6, Kind::Hit, 65_536),
        case(tcp6, Kind::New, 0),
        case(udp6, Kind::Hit, 1),
        case(udp6, Kind::Hit, 65_536),
        case(tcp4, Kind::NotForUs, 0),
    ]);
    for mode in [Mode::Nat, Mode::Tunnel] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            cases.extend([1, 65_536].map(|flows| case(cell(mode, Family::V4, protocol), Kind::Hit, flows)));
        }
        cases.push(case(cell(mode, Family::V6, Protocol::Tcp), Kind::Hit, 65_536));
    }
    // Three quarters full is what a table of the default size is made for.
    cases.retain(|case| case.flows <= capacity);
    cases
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Packets a run.
    pub packets: u32,
    /// Runs, of which the median counts.
    pub runs: u32,
}

impl Case {
    /// Measures Ebb, the yardstick and the floor in turn.
    pub fn measure(self, bench: &mut Bench, effort: Effort) -> Result<Row> {
        bench.set_up(self.cell)?;
        let with_yardstick = self.cell.mode == Mode::Dsr;
        if self.kind == Kind::Hit {
            bench.establish(Target::Ebb, self.flows)?;
            if with_yardstick {
                bench.establish(Target::Yardstick, self.flows)?;
            }
        }
        if self.kind == Kind::SynAgain {
            bench.run(Target::Ebb, &bench.job(Packet::Open, walk::SEQUENTIAL, 0, self.flows), self.flows)?;
        }
        if self.kind == Kind::NewFlood {
            let capacity = bench.rig.sizes.flow_slots;
            bench.run(Target::Ebb, &bench.job(Packet::Open, walk::SEQUENTIAL, u32::MAX / 2, capacity), capacity)?;
        }
        let (mut floors, mut ebb, mut yardstick) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..effort.runs {
            let job = self.job(bench, run, effort);
            let floor = bench.run(Target::Floor, &job, effort.packets)?;
            if matches!(self.kind, Kind::New | Kind::Unknown) {
                bench.rig.flows.clear();
            }
            let before = self.expected(bench);
            ebb.push(bench.run(Target::Ebb, &job, effort.packets)? - floor);
            let counted = self.expected(bench) - before;
            // In a full table a home may be so crowded that a flow goes untracked.
            let least = if self.kind == Kind::NewFlood { effort.packets / 100 * 99 } else { effort.packets };
            ensure!(
                counted >= least.into(),
                "{self}: only {counted} of {} packets met what they should: {:?}",
                effort.packets,
                bench.rig.counters()
            );
            if with_yardstick {
                yardstick.push(bench.run(Target::Yardstick, &job, effort.packets)? - floor);
            }
            floors.push(floor);
        }
        Ok(Row {
            case: self.to_string(),
            flows: self.flows,
            ebb: Spread::of(&ebb),
            floor: Spread::of(&floors),
            yardstick: with_yardstick.then(|| Spread::of(&yardstick)),
        })
    }

    fn job(self, bench: &Bench, run: u32, effort: Effort) -> ebb_tests_ebpf::Job {
        let packet = Packet::of(self.kind);
        match self.kind {
            Kind::Hit | Kind::SynAgain => bench.job(packet, walk::RANDOM, 0, self.flows),
            // The yardstick's table is never emptied, so each run must have flows of its own.
            Kind::New | Kind::NewFlood | Kind::Unknown => {
                bench.job(packet, walk::SEQUENTIAL, run * effort.packets, effort.packets)
            }
            Kind::RstMiss | Kind::NotForUs => bench.job(packet, walk::RANDOM, 0, 65_536),
        }
    }

    /// Packets that Ebb has counted as what this case should be.
    fn expected(self, bench: &Bench) -> u64 {
        bench.counted(match self.kind {
            Kind::Hit | Kind::SynAgain => Outcome::Forwarded,
            Kind::RstMiss => Outcome::Stateless,
            Kind::New | Kind::NewFlood => Outcome::NewFlow,
            Kind::Unknown => Outcome::Adopted,
            Kind::NotForUs => Outcome::NotForService,
        })
    }
}
