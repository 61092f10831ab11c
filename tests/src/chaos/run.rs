//! A run: steps in the order of the seed, and after each of them the promises.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    check::RIPE,
    faults::last,
    judge::seats,
    ledger::Ledger,
    plan::{Command, Fault, Place, Step},
    report::{Summary, describe},
    roster::{BACKENDS, Role},
    sabotage::Sabotage,
    steps::Steps,
    world::World,
};

/// How soon its status must be what clients and servers see.
const AGREES: Duration = Duration::from_secs(20);

/// A run to make.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where all randomness comes from.
    pub seed: u64,
    /// No step begins after so long.
    pub lasting: Duration,
    /// Connections to keep going.
    pub connections: usize,
    /// What is done behind the run's back, to see that it notices.
    pub sabotage: Option<Sabotage>,
}

/// Makes a run; an error means that it could not be carried through.
pub fn run(options: Options) -> Result<Summary> {
    let begun = Instant::now();
    say(begun, &format!("seed {}: {} connections in every mode and both families", options.seed, options.connections));
    let mut run = Run::set(options, begun)?;
    if let Some(sabotage) = options.sabotage {
        run.sabotage(sabotage)?;
        run.check()?;
    }
    let until = Instant::now() + options.lasting;
    for (number, step) in (1..).zip(Steps::new(options.seed)) {
        if !run.summary.complaints.is_empty() || Instant::now() >= until {
            break;
        }
        run.step(number, &step)
            .with_context(|| format!("step {number}: {step:?}; the daemon's log:\n{}", run.tail()))?;
    }
    run.finish()
}

/// A run under way.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) begun: Instant,
    pub(super) world: World,
    pub(super) ledger: Ledger,
    pub(super) names: Vec<String>,
    /// By service that is steered by address: where each address went before anything happened.
    pub(super) baseline: Vec<(usize, HashMap<IpAddr, String>)>,
    /// Commands that are not in force and have to be given again.
    pub(super) again: Vec<Command>,
    /// How soon the daemon's status must be what clients and servers see.
    pub(super) agrees_within: Duration,
    /// Numbers what must be new each time.
    pub(super) counter: usize,
    pub(super) summary: Summary,
}

impl Run {
    fn set(options: Options, begun: Instant) -> Result<Self> {
        let world = World::build(options.connections)?;
        let first = |role| if role == Role::Extra { Place::Never } else { Place::In };
        let ledger = Ledger::new(world.services.iter().map(|service| [first(service.role); BACKENDS]).collect());
        let mut run = Self {
            begun,
            names: world.names(),
            world,
            ledger,
            baseline: Vec::new(),
            again: Vec::new(),
            // What is meant to differ is not waited for.
            agrees_within: if options.sabotage.is_some() { Duration::from_secs(2) } else { AGREES },
            counter: 0,
            summary: Summary::default(),
        };
        for service in run.still() {
            let visitors = run.world.visit(service)?;
            run.baseline.push((service, seats(&visitors)));
        }
        run.say("all is up; the faults begin");
        Ok(run)
    }

    fn still(&self) -> Vec<usize> {
        (0..self.world.services.len()).filter(|&at| self.world.services[at].role == Role::Still).collect()
    }

    fn step(&mut self, number: usize, step: &Step) -> Result<()> {
        let (kind, words) = describe(step.fault);
        *self.summary.faults.entry(kind).or_default() += 1;
        let commands: Vec<String> = step.commands.iter().map(|command| self.world.words(*command).join(" ")).collect();
        self.say(&format!(
            "#{number} {words}{}{}",
            if commands.is_empty() { "" } else { "; ebb " },
            commands.join("; ebb ")
        ));
        let begun = Instant::now();
        self.carry_out(step)?;
        if step.fault != Fault::None {
            let healed = Instant::now();
            // Segments that were lost are sent again after pauses as long as the outage.
            let after = (healed - begun) * 2 + Duration::from_secs(5);
            self.ledger.disturbances.push((begun, healed + after));
        }
        self.answers()?;
        let again = std::mem::take(&mut self.again);
        if !again.is_empty() {
            // A guard may refuse what leaves a service without a backend, for as long as the others cannot be reached.
            self.agrees()?;
            self.orders(&again)?;
        }
        for command in std::mem::take(&mut self.again) {
            self.complain(format!(
                "ebb {}: nothing is in its way, and it is not in force",
                self.world.words(command).join(" ")
            ));
        }
        self.check()?;
        last(step.rest_ms);
        Ok(())
    }

    fn finish(mut self) -> Result<Summary> {
        if self.summary.complaints.is_empty() {
            self.say("the faults are over; all connections are told to finish");
            self.world.finish()?;
            // Drains of what has come to its end come to theirs.
            std::thread::sleep(RIPE * 2);
            let status = self.answers()?;
            self.ledger.observe(&status, &self.names);
            self.judge();
        }
        if !self.summary.complaints.is_empty() {
            println!("--- the end of the daemon's log ---\n{}\n---", self.tail());
        }
        Ok(self.summary)
    }

    pub(super) fn complain(&mut self, complaint: String) {
        self.say(&format!("BROKEN PROMISE: {complaint}"));
        self.summary.complaints.push(complaint);
    }

    pub(super) fn complain_all(&mut self, complaints: impl IntoIterator<Item = String>) {
        for complaint in complaints {
            self.complain(complaint);
        }
    }

    /// The end of the daemon's log.
    pub(super) fn tail(&self) -> String {
        let log = self.world.ebb.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub(super) fn say(&self, what: &str) {
        say(self.begun, what);
    }
}

fn say(begun: Instant, what: &str) {
    println!("{:>7.1} s  {what}", begun.elapsed().as_secs_f64());
}
