//! A run: steps in the order of the seed, and after each of them the promises.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    faults::last,
    judge::{Judge, Sums, seats, unseated},
    ledger::{Ledger, Line},
    orders::{Ended, Fate, Given},
    plan::{Command, Fault, Place, Step, Steps, Target},
    roster::{BACKENDS, Role, backend_name},
    world::World,
};
use crate::{lab::Status, traffic::End, wait_for, wait_until};

/// How soon the daemon must answer once nothing is in its way.
const ANSWERS: Duration = Duration::from_secs(10);
/// How soon its status must be what clients and servers see.
const AGREES: Duration = Duration::from_secs(20);
/// How soon new connections must be made again.
const SERVES: Duration = Duration::from_secs(20);
/// How long a drain's end is left before it is judged: clients write ends down a little late.
const RIPE: Duration = Duration::from_secs(2);
/// How old the daemon's counts may be when it tells them.
const STATUS_AGE: Duration = Duration::from_millis(300);
/// How late after its deadline a drain may still be seen to run.
const OVERDUE: Duration = Duration::from_secs(5);

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

/// What a run came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Commands by what became of them.
    pub commands: BTreeMap<&'static str, usize>,
    /// Drains by how they ended.
    pub drains: BTreeMap<String, usize>,
    /// Connections and datagrams.
    pub sums: Sums,
    /// Looks at the daemon's counts of a backend's flows that agreed with the clients'.
    pub counts: usize,
    /// Clients' addresses that were where they had to be.
    pub seats: usize,
    /// What was promised and not kept.
    pub complaints: Vec<String>,
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

struct Run {
    begun: Instant,
    world: World,
    ledger: Ledger,
    names: Vec<String>,
    /// By service that is steered by address: where each address went before anything happened.
    baseline: Vec<(usize, HashMap<IpAddr, String>)>,
    /// Commands that are not in force and have to be given again.
    again: Vec<Command>,
    /// How soon the daemon's status must be what clients and servers see.
    agrees_within: Duration,
    /// Numbers what must be new each time.
    counter: usize,
    summary: Summary,
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
        for command in std::mem::take(&mut self.again) {
            self.order(command)?;
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

    fn carry_out(&mut self, step: &Step) -> Result<()> {
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

    /// Gives commands and waits for each.
    fn orders(&mut self, commands: &[Command]) -> Result<()> {
        commands.iter().try_for_each(|command| self.order(*command))
    }

    fn order(&mut self, command: Command) -> Result<()> {
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
    fn answers(&self) -> Result<Status> {
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

    /// Holds everything against the promises.
    fn check(&mut self) -> Result<()> {
        self.agrees()?;
        self.serves()?;
        self.judge();
        self.stays()
    }

    /// The daemon's status is what was answered and what clients see; it has a while to get there.
    fn agrees(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (differences, compared) = self.differences()?;
            if differences.is_empty() {
                self.summary.counts += compared;
                return Ok(());
            }
            if begun.elapsed() > self.agrees_within {
                self.complain_all(differences);
                return Ok(());
            }
            last(200);
        }
    }

    /// Where the daemon's status differs from what it should be, and how many counts were compared.
    fn differences(&mut self) -> Result<(Vec<String>, usize)> {
        let from = Instant::now().checked_sub(STATUS_AGE).unwrap_or(self.begun);
        let status = self.answers()?;
        let to = Instant::now();
        self.ledger.observe(&status, &self.names);
        let accounts = self.world.accounts();
        self.summary.sums.at_once = self.summary.sums.at_once.max(accounts.sums(&self.ledger).at_once);
        let judge = Judge { services: &self.world.services, ledger: &self.ledger, accounts: &accounts };
        let mut differences = Vec::new();
        let mut compared = 0;
        for target in self.ledger.targets() {
            let name = format!("{}/{}", self.names[target.service], backend_name(target.backend));
            let backend = status.backend(&self.names[target.service], &backend_name(target.backend));
            differences.extend(
                self.misplaced(target, backend.map(|backend| backend.state.as_str()))
                    .map(|what| format!("{name} {what}")),
            );
            let Some(backend) =
                backend.filter(|_| matches!(self.world.services[target.service].role, Role::Short | Role::Long))
            else {
                continue;
            };
            let (least, most) = judge.bounds(target, from, to);
            compared += 1;
            if !(least as u64..=most as u64).contains(&backend.active_flows) {
                differences.push(format!(
                    "{name} has {} live flows by the daemon's account, and {least} to {most} by the clients'",
                    backend.active_flows
                ));
            }
        }
        Ok((differences, compared))
    }

    /// What is wrong with a backend's state.
    fn misplaced(&self, target: Target, state: Option<&str>) -> Option<String> {
        let place = self.ledger.place(target);
        let line = self.ledger.lines(target).last();
        let overdue = line.filter(|line| line.over.is_none()).and_then(Line::deadline).is_some_and(|deadline| {
            let now = Instant::now();
            now > deadline.to + OVERDUE && !self.ledger.is_disturbed(deadline.to, now)
        });
        if overdue && state == Some("draining") {
            return Some("drains past its deadline".to_owned());
        }
        let fits = match (place, state) {
            (Place::In, state) => state == Some("active"),
            (Place::Out, state) => matches!(state, Some("draining" | "drained")),
            // It may be on its way out.
            (Place::Gone | Place::Never, state) => matches!(state, None | Some("draining")),
        };
        (!fits).then(|| format!("is {}, and should be {place:?}", state.unwrap_or("not there")))
    }

    /// New connections are made.
    fn serves(&mut self) -> Result<()> {
        let before = self.world.opened();
        let more = wait_until("new connections in every service", SERVES, || {
            self.world.opened().iter().zip(&before).all(|((_, now), (_, before))| now > before)
        });
        if more.is_err() {
            let now = self.world.opened();
            let stuck = now.iter().zip(&before).filter(|((_, now), (_, before))| now == before);
            let stuck: Vec<&str> = stuck.map(|((service, _), _)| self.names[*service].as_str()).collect();
            self.complain(format!("no new connection for {SERVES:?} at {}", stuck.join(", ")));
        }
        for service in 0..self.world.services.len() {
            let extra = self.world.services[service].role == Role::Extra && self.ledger.has_service(service);
            let visitors = if extra { self.world.visit(service)? } else { Vec::new() };
            let failed = visitors.iter().filter(|c| !matches!(c.end, Some((End::Clean, _)))).count();
            if failed > 0 {
                self.complain(format!("{failed} of {} visits to {} failed", visitors.len(), self.names[service]));
            }
        }
        Ok(())
    }

    /// The accounts say that every promise was kept.
    fn judge(&mut self) {
        let accounts = self.world.accounts();
        // Ends that are not ripe are left for the next time.
        let targets: Vec<Target> = self.ledger.targets().collect();
        let mut unripe = Vec::new();
        for &target in &targets {
            for (at, line) in self.ledger.lines_mut(target).iter_mut().enumerate() {
                if !line.judged && line.over.as_ref().is_none_or(|over| over.at.elapsed() < RIPE) {
                    line.judged = true;
                    unripe.push((target, at));
                }
            }
        }
        let judge = Judge { services: &self.world.services, ledger: &self.ledger, accounts: &accounts };
        let complaints = judge.complaints();
        self.summary.sums = Sums { at_once: self.summary.sums.at_once, ..accounts.sums(&self.ledger) };
        for target in targets {
            for (at, line) in self.ledger.lines_mut(target).iter_mut().enumerate() {
                if unripe.contains(&(target, at)) {
                    line.judged = false;
                } else if !std::mem::replace(&mut line.judged, true) {
                    let outcome = line.over.as_ref().map(|over| over.outcome.clone());
                    *self.summary.drains.entry(outcome.unwrap_or_default()).or_default() += 1;
                }
            }
        }
        self.complain_all(complaints);
    }

    /// Promises 6 and 7: no client is moved whose backend is in rotation.
    fn stays(&mut self) -> Result<()> {
        for (service, baseline) in self.baseline.clone() {
            let now = seats(&self.world.visit(service)?);
            self.summary.seats += now.len();
            let place = |server: &str| {
                let backend = server.trim_start_matches('b').parse().unwrap_or(0);
                self.ledger.place(Target { service, backend })
            };
            let moved = unseated(&baseline, &now, place);
            let name = self.names[service].clone();
            self.complain_all(moved.into_iter().map(|what| format!("{name}: {what}")));
        }
        Ok(())
    }

    fn sabotage(&mut self, sabotage: Sabotage) -> Result<()> {
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
            Sabotage::Miscount => self.world.open_unseen(long)?,
        }
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

    fn complain(&mut self, complaint: String) {
        self.say(&format!("BROKEN PROMISE: {complaint}"));
        self.summary.complaints.push(complaint);
    }

    fn complain_all(&mut self, complaints: impl IntoIterator<Item = String>) {
        for complaint in complaints {
            self.complain(complaint);
        }
    }

    /// The end of the daemon's log.
    fn tail(&self) -> String {
        let log = self.world.ebb.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn say(&self, what: &str) {
        say(self.begun, what);
    }
}

fn say(begun: Instant, what: &str) {
    println!("{:>7.1} s  {what}", begun.elapsed().as_secs_f64());
}

/// A fault's kind, and the fault in words.
fn describe(fault: Fault) -> (&'static str, String) {
    let seconds = |ms: u32| f64::from(ms) / 1000.0;
    match fault {
        Fault::None => ("none", "calm".to_owned()),
        Fault::Kill { lead_us, away_ms } => {
            ("killed", format!("kill -9 after {} ms, away for {} s", lead_us / 1000, seconds(away_ms)))
        }
        Fault::Restart { away_ms, swap: false } => ("restarted", format!("restart, away for {} s", seconds(away_ms))),
        Fault::Restart { swap: true, .. } => ("program swapped", "another program is started in its place".to_owned()),
        Fault::Stop { lasts_ms, storm: false } => ("stopped", format!("SIGSTOP for {} s", seconds(lasts_ms))),
        Fault::Stop { lasts_ms, storm: true } => {
            ("stopped in a netlink storm", format!("SIGSTOP for {} s in a netlink storm", seconds(lasts_ms)))
        }
        Fault::NoFiles { spare, lasts_ms } => {
            ("out of descriptors", format!("only {spare} descriptors more for {} s", seconds(lasts_ms)))
        }
        Fault::DiskFull { lasts_ms, kill: false } => ("disk full", format!("disk full for {} s", seconds(lasts_ms))),
        Fault::DiskFull { lasts_ms, kill: true } => {
            ("disk full and killed", format!("disk full for {} s, then kill -9", seconds(lasts_ms)))
        }
        Fault::SocketGone => ("socket deleted", "the socket's file is deleted".to_owned()),
        Fault::LinkDown { near, lasts_ms, kill } => {
            let end = if near { "its interface" } else { "the switch's port" };
            let killed = if kill { ", and kill -9" } else { "" };
            let kind = if kill { "interface down and killed" } else { "interface down" };
            (kind, format!("{end} is down for {} s{killed}", seconds(lasts_ms)))
        }
        Fault::Forget => ("neighbours forgotten", "neighbours are forgotten".to_owned()),
        Fault::NewMac(backend) => ("MAC address changed", format!("b{backend} gets another MAC address")),
        Fault::Storm => ("netlink storm", "a netlink storm".to_owned()),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: &mut dyn Iterator<Item = (String, usize)>| {
            counts.map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
        };
        let faults = self.faults.iter().filter(|(kind, _)| **kind != "none");
        let injected: usize = faults.clone().map(|(_, count)| count).sum();
        let all = list(&mut faults.map(|(kind, count)| ((*kind).to_owned(), *count)));
        writeln!(f, "  faults injected: {injected} ({all})")?;
        writeln!(f, "  commands: {}", list(&mut self.commands.iter().map(|(k, c)| ((*k).to_owned(), *c))))?;
        writeln!(f, "  drains that ended: {}", list(&mut self.drains.iter().map(|(k, c)| (k.clone(), *c))))?;
        let Sums { opened, at_once, broken, cut, answered, unanswered } = self.sums;
        writeln!(f, "  connections watched: {opened}, {at_once} at once; cut at deadlines: {cut}; broken: {broken}")?;
        writeln!(f, "  datagrams answered: {answered}; without an answer, as outages have it: {unanswered}")?;
        write!(f, "  counts of live flows compared: {}; clients' seats compared: {}", self.counts, self.seats)
    }
}
