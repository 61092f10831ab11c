//! Runs of faults notice what they are there to notice: each of these has mischief done behind its back.

use std::time::Duration;

use anyhow::{Result, ensure};
use ebb_tests::chaos::{Options, Sabotage, run};

/// A run without faults but this mischief, whose complaints have all of these words.
fn is_noticed(sabotage: Sabotage, words: &[&str]) -> Result<()> {
    let options = Options { seed: 1, lasting: Duration::ZERO, connections: 96, sabotage: Some(sabotage) };
    let complaints = run(options)?.complaints;
    for word in words {
        ensure!(complaints.iter().any(|complaint| complaint.contains(word)), "no '{word}' in {complaints:?}");
    }
    Ok(())
}

#[test]
fn new_connections_on_a_draining_backend_are_noticed() -> Result<()> {
    is_noticed(
        Sabotage::Undrain,
        &["dsr4-short/b0 is active, and should be Out", "reached dsr4-short/b0 while it was out"],
    )
}

#[test]
fn connections_cut_before_their_deadline_are_noticed() -> Result<()> {
    is_noticed(Sabotage::Cut, &["broken at dsr4-long/b1 (Reset, clients' account)", "the server's account"])
}

#[test]
fn a_command_that_was_answered_and_forgotten_is_noticed() -> Result<()> {
    is_noticed(Sabotage::Forget, &["dsr4-long/b0 is active, and should be Out"])
}

#[test]
fn clients_that_move_between_backends_in_rotation_are_noticed() -> Result<()> {
    is_noticed(Sabotage::Shuffle, &["was moved from"])
}

#[test]
fn a_server_that_loses_its_connections_is_noticed() -> Result<()> {
    is_noticed(Sabotage::HangUp, &["/b0 (ClosedEarly, clients' account)"])
}

#[test]
fn a_flow_count_that_is_wrong_is_noticed() -> Result<()> {
    is_noticed(Sabotage::Miscount, &["live flows by the daemon's account"])
}
