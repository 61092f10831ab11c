//! The matrix of mode, family, protocol and outcome: every cell is filled by a fixture that ran, or cannot be, for the
//! reason that stands here.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use ebb_tests::{
    lab::{FAMILIES, Family},
    rig::{Cell, MODES, Mode, PROTOCOLS, Protocol},
};
use lb_common::outcome::Outcome;

/// What fixtures have seen, by the number of the outcome.
#[derive(Default)]
pub struct Matrix {
    seen: BTreeSet<(Cell, u8)>,
}

/// Every combination.
pub fn cells() -> impl Iterator<Item = Cell> {
    MODES.into_iter().flat_map(|mode| {
        FAMILIES
            .into_iter()
            .flat_map(move |family| PROTOCOLS.into_iter().map(move |protocol| Cell { mode, family, protocol }))
    })
}

impl Matrix {
    /// Notes what became of a fixture's packets.
    pub fn note(&mut self, cell: Cell, outcomes: &[Outcome]) {
        self.seen.extend(outcomes.iter().map(|outcome| (cell, *outcome as u8)));
    }

    /// How many cells are filled.
    pub fn filled(&self) -> usize {
        self.seen.len()
    }

    /// Fails with the cells that are empty, and with those that should have been. Without `crowding`, frames always have
    /// room to grow.
    pub fn judge(&self, crowding: bool) -> Result<()> {
        let mut wrong = Vec::new();
        for cell in cells() {
            for &outcome in Outcome::ALL.iter().filter(|&&outcome| crowding || outcome != Outcome::DroppedResize) {
                let name = outcome.name();
                match (self.seen.contains(&(cell, outcome as u8)), impossible(outcome, cell)) {
                    (false, None) => wrong.push(format!("{cell}: no fixture ends in {name}")),
                    (true, Some(reason)) => wrong.push(format!("{cell}: {name} was seen, although {reason}")),
                    _ => {}
                }
            }
        }
        ensure!(wrong.is_empty(), "{} cells are not as they should be:\n  {}", wrong.len(), wrong.join("\n  "));
        Ok(())
    }
}

/// Why a cell cannot be filled, if so.
fn impossible(outcome: Outcome, cell: Cell) -> Option<&'static str> {
    let unless = |possible: bool, reason| (!possible).then_some(reason);
    let tcp = cell.protocol == Protocol::Tcp;
    let (dsr, nat, tunnel) = (cell.mode == Mode::Dsr, cell.mode == Mode::Nat, cell.mode.is_tunnel());
    match outcome {
        Outcome::NotForService
        | Outcome::PassedMalformed
        | Outcome::PassedHost
        | Outcome::Forwarded
        | Outcome::NewFlow
        | Outcome::Untracked
        | Outcome::Stateless
        | Outcome::IcmpError
        | Outcome::Fragment
        | Outcome::EchoAnswered
        | Outcome::DroppedNoBackend
        | Outcome::DroppedUnresolved
        | Outcome::DroppedMalformed
        | Outcome::DroppedFragment => None,
        Outcome::Adopted => unless(tcp, "any datagram opens a flow: there is no middle of one to adopt"),
        Outcome::RemembersOwner => unless(tcp, "a datagram of a forgotten flow is a new flow, and goes elsewhere"),
        Outcome::NamedById => unless(!tcp, "TCP has no connection ids"),
        Outcome::Reply => unless(nat, "replies do not come this way"),
        Outcome::Decapsulated => unless(tunnel, "there is no tunnel"),
        Outcome::ResetSent => unless(tcp, "only TCP has resets"),
        Outcome::TooBigSent => unless(!dsr, "dsr neither adds to packets nor routes them"),
        Outcome::DroppedTooBig => {
            unless(!dsr && cell.family == Family::V4, "nobody but the sender fragments: it is told")
        }
        Outcome::DroppedResize => unless(!dsr, "frames do not grow"),
        Outcome::DroppedHopLimit => unless(!dsr, "the balancer is no hop"),
        Outcome::DroppedCut => unless(tcp || nat, "datagrams of a cut flow are steered anew"),
        Outcome::DroppedNatConflict => unless(nat, "no port is translated"),
        Outcome::NeighbourAnswered => Some("neighbours ask for no service: tests/neighbours.rs has their questions"),
    }
}
