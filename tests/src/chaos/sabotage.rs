//! Mischief done behind a run's back, to see that it notices.

use std::fs;

use anyhow::{Context, Result};

use super::{
    faults::last,
    plan::{Command, Target},
    run::Run,
};

/// Mischief that a run must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A drain is cancelled and nobody is told.
    Undrain,
    /// A backend's connections are cut and nobody is told.
    Cut,
    /// After a kill the daemon finds the state that it had before the last command.
    Forget,
    /// A backend gets more weight, so that slots move that no drain moves.
    Shuffle,
    /// A server hangs up on its clients.
    HangUp,
    /// Connections are made that no client's account has.
    Miscount,
}

impl Run {
    pub(super) fn sabotage(&mut self, sabotage: Sabotage) -> Result<()> {
        let at = |name: &str| self.names.iter().position(|other| other == name).context("a service of that name");
        let (short, long) = (at("dsr4-short")?, at("dsr4-long")?);
        let drain =
            |service| Command::Drain { target: Target { service, backend: 0 }, timeout_ms: 60_000, silent: false };
        match sabotage {
            Sabotage::Undrain => {
                self.order(drain(short))?;
                self.world.ebb.ok(&["activate", "dsr4-short/b0"])?;
                last(2_000);
            }
            Sabotage::Cut => {
                self.world.ebb.ok(&["drain", "dsr4-long/b1", "--timeout", "0"])?;
                self.world.ebb.ok(&["activate", "dsr4-long/b1"])?;
                last(3_000);
            }
            Sabotage::Forget => {
                let file = self.world.ebb.state_directory().join("state.json");
                let before = fs::read(&file)?;
                self.order(drain(long))?;
                self.world.ebb.kill()?;
                fs::write(file, before)?;
                self.world.ebb.run()?;
            }
            Sabotage::Shuffle => {
                self.world.ebb.ok(&["backend", "set", "dsr4-still", "b0", "--weight", "50"]).map(drop)?;
            }
            Sabotage::HangUp => self.world.hang_up(long)?,
            Sabotage::Miscount => {
                self.world.open_unseen(long)?;
                // The daemon may tell counts that are a quarter of a second old.
                last(1_000);
            }
        }
        Ok(())
    }
}
