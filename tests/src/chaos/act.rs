//! What a step does: its fault, and the commands given meanwhile.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

use super::{
    faults::last,
    orders::{Ended, Fate, Given},
    plan::{Command, Fault, Step},
    run::Run,
};
use crate::{lab::Status, wait_for, wait_until};

/// How soon the daemon must answer once nothing is in its way.
const ANSWERS: Duration = Duration::from_secs(10);

impl Run {
    pub(super) fn carry_out(&mut self, step: &Step) -> Result<()> {
        match step.fault {
            Fault::None => self.orders(&step.commands),
            Fault::Kill { lead_us, away_ms } => {
                let mut given = self.begin(&step.commands)?;
                std::thread::sleep(Duration::from_micros(lead_us.into()));
                given.iter_mut().for_each(Given::look);
                self.world.ebb.kill()?;
                last(away_ms);
                self.world.ebb.run()?;
                self.end(given)
            }
            Fault::Restart { away_ms, swap } => {
                let given = self.begin(&step.commands)?;
                self.world.ebb.terminate()?;
                if swap {
                    self.counter += 1;
                    self.world.next_program(self.counter)?;
                }
                last(away_ms);
                self.world.ebb.run()?;
                self.end(given)
            }
            Fault::Stop { lasts_ms, storm } => {
                let prepared = self.prepare(&step.commands)?;
                self.world.ebb.signal(libc::SIGSTOP)?;
                let given = self.give(prepared)?;
                let stormy = if storm { self.world.storm() } else { Ok(()) };
                last(lasts_ms);
                self.world.ebb.signal(libc::SIGCONT)?;
                stormy?;
                self.end(given)
            }
            Fault::NoFiles { spare, lasts_ms } => {
                let prepared = self.prepare(&step.commands)?;
                let limited = self.world.limit_files(spare)?;
                let given = self.give(prepared)?;
                last(lasts_ms);
                self.world.lift(limited)?;
                self.end(given)
            }
            Fault::DiskFull { lasts_ms, kill } => self.fill_disk(step, lasts_ms, kill),
            Fault::SocketGone => {
                let prepared = self.prepare(&step.commands)?;
                fs::remove_file(self.world.ebb.socket())?;
                let given = self.give(prepared)?;
                let back = wait_until("the socket to be back", ANSWERS, || self.world.ebb.status().is_ok());
                if back.is_err() {
                    self.complain(
                        "its socket's file was deleted, and the daemon cannot be reached any more".to_owned(),
                    );
                    self.world.ebb.terminate()?;
                    self.world.ebb.run()?;
                }
                self.end(given)
            }
            Fault::LinkDown { near, lasts_ms, kill } => self.take_down(step, near, lasts_ms, kill),
            Fault::Unplugged { lasts_ms } => {
                let prepared = self.prepare(&step.commands)?;
                self.world.lab.unplug()?;
                let given = self.give(prepared)?;
                last(lasts_ms);
                self.world.lab.plug_in()?;
                self.end(given)
            }
            Fault::KilledTwice { up_ms } => {
                let given = self.begin(&step.commands)?;
                self.world.ebb.kill()?;
                self.world.ebb.run_and_kill(Duration::from_millis(up_ms.into()))?;
                self.world.ebb.run()?;
                self.end(given)
            }
            Fault::Forget => {
                self.world.forget_neighbours()?;
                self.orders(&step.commands)
            }
            Fault::NewMac(backend) => {
                self.counter += 1;
                self.world.new_mac(backend, self.counter)?;
                self.orders(&step.commands)
            }
            Fault::Storm => {
                self.world.storm()?;
                self.orders(&step.commands)
            }
        }
    }

    fn fill_disk(&mut self, step: &Step, lasts_ms: u32, kill: bool) -> Result<()> {
        let full = self.world.fill_disk()?;
        self.orders(&step.commands)?;
        last(lasts_ms);
        if kill {
            self.world.ebb.kill()?;
            if let Err(error) = self.world.ebb.run() {
                self.complain(format!("the daemon does not start on a full disk: {error:#}"));
                drop(full);
                return self.world.ebb.run();
            }
            // What was answered must be so before anything can be written again.
            self.agrees()?;
        }
        Ok(())
    }

    fn take_down(&mut self, step: &Step, near: bool, lasts_ms: u32, kill: bool) -> Result<()> {
        let prepared = self.prepare(&step.commands)?;
        self.world.link(near, false)?;
        let given = self.give(prepared)?;
        if kill {
            self.world.ebb.kill()?;
        }
        last(lasts_ms);
        let early = lasts_ms.is_multiple_of(2);
        if kill && early {
            self.world.ebb.run()?;
        }
        self.world.link(near, true)?;
        if kill && !early {
            self.world.ebb.run()?;
        }
        self.end(given)
    }

    /// Gives commands and waits for each; what may rest on one that is not in force is left for later.
    pub(super) fn orders(&mut self, commands: &[Command]) -> Result<()> {
        for &command in commands {
            if self.again.iter().any(|other| command.may_rest_on(*other)) {
                self.again.push(command);
            } else {
                self.order(command)?;
            }
        }
        Ok(())
    }

    pub(super) fn order(&mut self, command: Command) -> Result<()> {
        let given = self.world.give(command, &self.ledger)?;
        self.end(Some(given))
    }

    /// Gives a step's only command, if it has one.
    fn begin(&mut self, commands: &[Command]) -> Result<Option<Given>> {
        let prepared = self.prepare(commands)?;
        self.give(prepared)
    }

    /// What can be found out before the daemon cannot be asked any more.
    fn prepare(&self, commands: &[Command]) -> Result<Option<(Command, Status)>> {
        let Some(command) = commands.first() else { return Ok(None) };
        self.world.make_room(*command, &self.ledger)?;
        Ok(Some((*command, self.world.ebb.status()?)))
    }

    fn give(&self, prepared: Option<(Command, Status)>) -> Result<Option<Given>> {
        prepared.map(|(command, before)| self.world.give_knowing(command, before)).transpose()
    }

    /// Waits for a command's answer and sees whether it is true.
    fn end(&mut self, given: Option<Given>) -> Result<()> {
        let Some(given) = given else { return Ok(()) };
        let ended = given.wait()?;
        let after = self.answers()?;
        let ended = ended.known_now();
        self.ledger.observe(&after, &self.names);
        let Ended { command, fate, .. } = ended;
        let fate_word = match fate {
            Fate::Done => "done",
            Fate::Refused => "refused",
            Fate::Unanswered => "unanswered",
        };
        *self.summary.commands.entry(fate_word).or_default() += 1;
        let mut complaints = Vec::new();
        let in_force = self.world.settle(&ended, &after, &mut self.ledger, &mut complaints);
        if fate != Fate::Done {
            self.say(&format!("   {fate_word}, {}in force: {}", if in_force { "" } else { "not " }, ended.said));
        }
        if !in_force {
            self.again.push(command);
        }
        self.complain_all(complaints);
        Ok(())
    }

    /// The daemon answers.
    pub(super) fn answers(&self) -> Result<Status> {
        let mut last = None;
        let found = wait_for("the daemon to answer", ANSWERS, || match self.world.ebb.status() {
            Ok(status) => Some(status),
            Err(error) => {
                last = Some(error);
                None
            }
        });
        found.with_context(|| format!("last: {last:?}"))
    }
}
