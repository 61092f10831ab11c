//! Ebb doing its main job, to watch: one of three backends is drained under load, and afterwards the
//! clients' and the servers' own accounts say what became of their connections.

use std::{
    fmt::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ebb_tests::{
    lab::{Backend, Drain, Plan},
    scene::{Scene, Setting},
    traffic::{Conversation, DatagramGroup, Group, Lasting, Server},
    verdict::{Drained, Verdict},
    wait_until,
};

/// Drains one of three backends under load and judges what came of it. Needs root; all traffic stays in network namespaces of its own.
#[derive(Parser)]
struct Options {
    /// TCP connections to keep open.
    #[arg(long, default_value_t = 300)]
    connections: usize,
    /// Life of the longest connections, in seconds; lives are spread evenly on a logarithmic scale from 0.1 s on.
    #[arg(long, default_value_t = 12.0)]
    longest: f64,
    /// Deadline of the drain, in seconds.
    #[arg(long, default_value_t = 30)]
    deadline: u64,
}

/// UDP flows, which nobody drains and nothing may happen to.
const DATAGRAM_FLOWS: usize = 20;
const WARM_UP: Duration = Duration::from_secs(3);
/// The backend that is drained, b1.
const DRAINED: usize = 1;

fn main() -> ExitCode {
    match Demo::run(&Options::parse()) {
        Ok(complaints) if complaints.is_empty() => {
            println!("\nPASS: no connection broke, none was sent to the draining backend, and it ended by itself.");
            ExitCode::SUCCESS
        }
        Ok(complaints) => {
            println!("\nFAIL: {}", complaints.join("; "));
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("\nFAIL: the demo could not be carried through: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Demo {
    begun: Instant,
    scene: Scene,
    tcp: Group,
    udp: DatagramGroup,
}

impl Demo {
    /// Returns what was promised and not kept.
    fn run(options: &Options) -> Result<Vec<String>> {
        println!("Ebb: one of three backends is drained under load\n");
        let demo = Self::set(options)?;
        demo.watch(WARM_UP, || demo.scene.ebb.backend("web/b1").map(Some))?;

        let drained = demo.drain(Duration::from_secs(options.deadline))?;
        let servers = &demo.scene.servers;
        let mut verdict = Verdict::on(drained, demo.server(), &demo.tcp.connections(), servers);
        let back = demo.activate()?;

        let tally = demo.tcp.finish_and_wait(Duration::from_secs(10))?;
        demo.udp.finish();
        demo.say(&format!("all {} connections have ended", tally.opened));
        verdict.settle(&demo.tcp.connections(), servers);
        Ok(demo.judge(&verdict, back))
    }

    fn set(options: &Options) -> Result<Self> {
        let begun = Instant::now();
        let mut scene =
            Scene::set(Setting { plan: Plan { client_addresses: 4, ..Plan::default() }, ..Setting::default() })?;
        scene.ebb.show_log = false;
        scene.add_web(&[])?;
        scene.add_service("dns", 0, 53, "udp", &[])?;
        let interfaces = scene.ebb.status()?.datapath.interfaces;
        let interface = interfaces.first().context("ebb is attached nowhere")?;
        let web = scene.web();
        say_at(begun, "a client, a balancer and three backends are up, in network namespaces of their own");
        say_at(begun, &format!("ebb balances {web}/tcp and {}/udp over b0, b1 and b2", scene.vip(0, 53)));
        say_at(begun, &format!("forwarding: dsr; XDP on {}: {}", interface.name, interface.mode));

        let lasting = Lasting::Between(Duration::from_millis(100), Duration::from_secs_f64(options.longest));
        let tcp = scene.client.keep(Conversation { lasting, ..Conversation::with(web) }, options.connections);
        let udp = scene.client.datagrams(scene.vip(0, 53), DATAGRAM_FLOWS, Duration::from_millis(50));
        tcp.wait_open(options.connections * 9 / 10, Duration::from_secs(10))?;
        udp.wait_answered(Duration::from_secs(5))?;
        say_at(
            begun,
            &format!("{} TCP connections and {DATAGRAM_FLOWS} UDP flows are kept going", options.connections),
        );
        println!("\n           open connections      accepted so far");
        println!("              b0    b1    b2       b0    b1    b2");
        Ok(Self { begun, scene, tcp, udp })
    }

    fn drain(&self, timeout: Duration) -> Result<Drained> {
        let timeout_text = format!("{}s", timeout.as_secs());
        self.say(&format!("$ ebb drain web/b1 --timeout {timeout_text}"));
        let asked = Instant::now();
        self.scene.ebb.ok(&["drain", "web/b1", "--timeout", &timeout_text])?;
        let answered = Instant::now();
        let mut over = answered;
        let mut last = None;
        self.watch(timeout + Duration::from_secs(5), || {
            let backend = self.scene.ebb.backend("web/b1")?;
            over = Instant::now();
            last = Some(backend.clone());
            Ok((backend.state == "draining").then_some(backend))
        })?;
        let last = last.context("the drain was never looked at")?;
        let outcome = last.last_drain.as_ref().context("the drain left no record")?;
        self.say(&format!("b1 is {}: {}, {} flows cut", last.state, outcome.outcome, outcome.cut_flows));
        ensure!(last.state == "drained", "b1 should be drained, and is {}", last.state);
        Ok(Drained { asked, answered, over, timeout })
    }

    /// Takes the backend back; returns whether new connections reached it.
    fn activate(&self) -> Result<bool> {
        self.say("$ ebb activate web/b1");
        self.scene.ebb.ok(&["activate", "web/b1"])?;
        let before = self.server().accepted();
        let back = wait_until("new connections", Duration::from_secs(5), || self.server().accepted() > before + 10);
        self.line(None);
        Ok(back.is_ok())
    }

    /// Prints the judgement and returns the complaints.
    fn judge(&self, verdict: &Verdict, back: bool) -> Vec<String> {
        let flows = self.udp.flows();
        let lost: u32 = flows.iter().map(|flow| flow.lost + flow.wrong).sum();
        let answered: u32 = flows.iter().map(|flow| flow.answered).sum();
        println!("\nWhat clients and servers saw\n{verdict}");
        println!("  UDP datagrams answered: {answered}, lost: {lost}");

        let mut complaints = verdict.complaints();
        if lost > 0 {
            complaints.push(format!("{lost} UDP datagrams were lost"));
        }
        if flows.iter().any(|flow| flow.servers.len() != 1) {
            complaints.push("UDP flows changed their backend".to_owned());
        }
        if !back {
            complaints.push("the backend got no new connections after `ebb activate`".to_owned());
        }
        complaints
    }

    /// Prints a line a second for as long as `goes_on` says and at most `limit`.
    fn watch(&self, limit: Duration, mut goes_on: impl FnMut() -> Result<Option<Backend>>) -> Result<()> {
        let begun = Instant::now();
        let mut next_line = begun;
        while begun.elapsed() < limit {
            let Some(backend) = goes_on()? else { return Ok(()) };
            if Instant::now() >= next_line {
                self.line(backend.drain.as_ref());
                next_line += Duration::from_secs(1);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// One line of the table.
    fn line(&self, drain: Option<&Drain>) {
        let tally = self.tcp.tally();
        let mut line = String::new();
        for server in &self.scene.servers {
            let _ = write!(line, "{:>6}", tally.open_at(server.name()));
        }
        line.push_str("   ");
        for server in &self.scene.servers {
            let _ = write!(line, "{:>6}", server.accepted());
        }
        if let Some(drain) = drain {
            let rest =
                drain.remaining_s.map_or("no deadline".to_owned(), |rest| format!("{rest:.0} s to the deadline"));
            let _ = write!(line, "   b1: {} of {} flows left, {rest}", drain.remaining_flows, drain.initial_flows);
        }
        if tally.broken() + tally.could_not_connect() > 0 {
            let _ = write!(line, "   BROKEN: {:?} {:?}", tally.broken, tally.could_not_connect);
        }
        self.say(&line);
    }

    fn server(&self) -> &Server {
        &self.scene.servers[DRAINED]
    }

    fn say(&self, what: &str) {
        say_at(self.begun, what);
    }
}

fn say_at(begun: Instant, what: &str) {
    println!("{:>5.1} s  {what}", begun.elapsed().as_secs_f64());
}
