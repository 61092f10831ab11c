//! Whether the promises held, by the accounts of clients and servers.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    ledger::{CLOCKS, Ledger, Line},
    plan::{Place, Target},
    roster::{Role, Service, backend_name},
    world::PATIENCE,
};
use crate::traffic::{Accepted, Connection, DatagramFlow, End, Fault};

/// How late a busy client may write a connection's end down.
const BOOKING: Duration = Duration::from_secs(1);
/// How long after its last connection's end a drain may take to be over, on a busy machine.
const END_SLACK: Duration = Duration::from_secs(3);
/// How late after its deadline a drain may end, on a busy machine.
const DEADLINE_SLACK: Duration = Duration::from_secs(2);
/// How late a client that speaks now and then may learn that it was cut.
const LEARNING: Duration = Duration::from_secs(20);

/// What clients and servers say.
#[derive(Debug)]
pub(super) struct Accounts {
    /// By service.
    pub clients: Vec<(usize, Vec<Connection>)>,
    /// By backend.
    pub servers: Vec<Vec<Accepted>>,
    /// By service.
    pub datagrams: Vec<(usize, Vec<DatagramFlow>)>,
}

/// Sums for the summary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Connections that were opened.
    pub opened: usize,
    /// Open at once, at most.
    pub at_once: usize,
    /// Broken, and cut by no deadline.
    pub broken: usize,
    /// Broken, as a deadline had it.
    pub cut: usize,
    /// Answered datagrams.
    pub answered: u64,
    /// Datagrams without an answer.
    pub unanswered: u64,
}

impl Accounts {
    /// Every connection with its service.
    fn connections(&self) -> impl Iterator<Item = (usize, &Connection)> {
        self.clients.iter().flat_map(|(service, all)| all.iter().map(move |connection| (*service, connection)))
    }

    /// A service's connections.
    pub(super) fn of(&self, service: usize) -> impl Iterator<Item = &Connection> {
        self.connections().filter(move |(of, _)| *of == service).map(|(_, connection)| connection)
    }

    /// The sums.
    pub(super) fn sums(&self, ledger: &Ledger) -> Sums {
        let mut sums = Sums::default();
        for (service, connection) in self.connections() {
            sums.opened += usize::from(connection.served_by.is_some());
            sums.at_once += usize::from(connection.is_open());
            if let Some((End::Broken(_), at)) = connection.end {
                let excused = ledger.may_be_cut(service, connection, at);
                *(if excused { &mut sums.cut } else { &mut sums.broken }) += 1;
            }
        }
        for flow in self.datagrams.iter().flat_map(|(_, flows)| flows) {
            sums.answered += u64::from(flow.answered);
            sums.unanswered += u64::from(flow.lost);
        }
        sums
    }
}

/// The court.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    /// What is balanced.
    pub services: &'a [Service],
    /// What was asked.
    pub ledger: &'a Ledger,
    /// What was seen.
    pub accounts: &'a Accounts,
}

impl Judge<'_> {
    /// What was promised and not kept, in words.
    pub(super) fn complaints(&self) -> Vec<String> {
        let mut complaints = self.broken_at_clients();
        complaints.extend(self.broken_at_servers());
        for target in self.ledger.targets() {
            for line in self.ledger.lines(target) {
                complaints.extend(self.new_while_closed(target, line));
                complaints.extend(self.outlived(target, line));
                if !line.judged {
                    complaints.extend(self.end_of(target, line));
                }
            }
        }
        complaints.extend(self.datagrams());
        complaints
    }

    fn name(&self, target: Target) -> String {
        format!("{}/{}", self.services[target.service].name, backend_name(target.backend))
    }

    /// Promise 2, by the clients' account.
    fn broken_at_clients(&self) -> Vec<String> {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for (service, connection) in self.accounts.connections() {
            let name = &self.services[service].name;
            let what = match connection.end {
                Some((End::Broken(fault), at)) if !self.ledger.may_be_cut(service, connection, at) => {
                    let server = connection.served_by.map_or(String::new(), |(server, _)| server.to_string());
                    format!("broken at {name}/{server} ({fault:?}, clients' account)")
                }
                Some((End::CouldNotConnect(fault), at)) if !self.is_excused(service, fault, at) => {
                    format!("could not be made to {name} ({fault:?})")
                }
                _ => continue,
            };
            *counts.entry(what).or_default() += 1;
        }
        counts.into_iter().map(|(what, count)| format!("{count} connections {what}")).collect()
    }

    /// A connection may be cut before its greeting is there; a client's own kernel may give up on a gateway that is unplugged.
    fn is_excused(&self, service: usize, fault: Fault, at: Instant) -> bool {
        match fault {
            Fault::Reset | Fault::ClosedEarly => self.ledger.cuts_about(service, at),
            Fault::Other(libc::EHOSTUNREACH | libc::ENETUNREACH) => {
                self.ledger.is_disturbed(at.checked_sub(Duration::from_secs(5)).unwrap_or(at), at)
            }
            _ => false,
        }
    }

    /// The same by the servers' account.
    fn broken_at_servers(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let at_fault = |target: Target, accepted: &Accepted, at: Instant| {
            let lines = self.ledger.lines(target);
            !lines.iter().any(|line| accepted.at <= line.answered + BOOKING && line.may_have_cut(at))
        };
        for (backend, accepted) in self.accounts.servers.iter().enumerate() {
            let mut broken: BTreeMap<(usize, Fault), usize> = BTreeMap::new();
            for line in accepted {
                let Some((End::Broken(fault), at)) = line.end else { continue };
                let Some(service) = self.services.iter().position(|service| service.listen(backend) == line.local)
                else {
                    continue;
                };
                if at_fault(Target { service, backend }, line, at) {
                    *broken.entry((service, fault)).or_default() += 1;
                }
            }
            complaints.extend(broken.into_iter().map(|((service, fault), count)| {
                let name = self.name(Target { service, backend });
                format!("{count} connections broken at {name} ({fault:?}, the server's account)")
            }));
        }
        complaints
    }

    /// Promise 1, by both accounts.
    fn new_while_closed(&self, target: Target, line: &Line) -> Option<String> {
        let name = backend_name(target.backend);
        let closed = |connection: &&Connection| line.is_closed_at(connection.asked);
        let new = self.accounts.of(target.service).filter(closed).filter(|c| c.is_served_by(&name)).count();
        let listen = self.services[target.service].listen(target.backend);
        // Whoever asked before the answer has given up by then.
        let late = |at: Instant| at > line.answered + PATIENCE + BOOKING && line.is_closed_at(at);
        let mut asked_by: HashMap<SocketAddr, Instant> = HashMap::new();
        for connection in self.accounts.of(target.service).filter(closed) {
            asked_by.extend(connection.local.map(|local| (local, connection.asked)));
        }
        let accepted = self.accounts.servers[target.backend].iter().filter(|accepted| {
            accepted.local == listen
                && line.is_closed_at(accepted.at)
                && (late(accepted.at) || asked_by.get(&accepted.peer).is_some_and(|asked| *asked < accepted.at))
        });
        let there = accepted.count();
        (new + there > 0).then(|| {
            format!(
                "{new} new connections by the clients' account and {there} by its own reached {} while it was out",
                self.name(target)
            )
        })
    }

    /// Promise 4: what was open at the deadline is open no more.
    fn outlived(&self, target: Target, line: &Line) -> Option<String> {
        let deadline = line.deadline().filter(|_| line.over.as_ref().is_some_and(|over| over.outcome == "deadline"))?;
        let limit = deadline.to + LEARNING + PATIENCE;
        if Instant::now() < limit {
            return None;
        }
        let name = backend_name(target.backend);
        let belongs = |c: &&Connection| c.is_served_by(&name) && c.asked < line.asked && c.end.is_none();
        let count = self.accounts.of(target.service).filter(belongs).count();
        (count > 0).then(|| format!("{count} connections of {} outlived its deadline", self.name(target)))
    }

    /// Promise 3, for a drain that is over.
    fn end_of(&self, target: Target, line: &Line) -> Vec<String> {
        let mut complaints = Vec::new();
        let (Some(over), Some(deadline)) = (&line.over, line.deadline()) else { return complaints };
        let mut complain = |what: String| complaints.push(format!("the drain of {} {what}", self.name(target)));
        let name = backend_name(target.backend);
        let members = || self.accounts.of(target.service).filter(|c| c.is_served_by(&name) && c.asked < line.answered);
        let ends = |c: &Connection| c.end.map_or(Instant::now(), |(_, at)| at);
        let late = over.at.saturating_duration_since(deadline.to);
        if late > DEADLINE_SLACK && !self.ledger.is_disturbed(deadline.to, over.at) {
            complain(format!("ended {late:?} after its deadline"));
        }
        match over.outcome.as_str() {
            // Nobody has an account of when a datagram flow is over, and one that is steered anew at the deadline is not cut.
            "completed" if self.services[target.service].role == Role::Datagrams => {}
            "completed" => {
                let early = members().filter(|c| ends(c) > over.at + BOOKING).count();
                if over.cut_flows > 0 {
                    complain(format!("was called completed, with {} flows cut", over.cut_flows));
                }
                if early > 0 {
                    complain(format!("was called completed with {early} connections open"));
                }
                let last = members().map(ends).filter(|end| *end <= over.at + BOOKING).max();
                let since = last.map_or(line.answered, |last| last.max(line.answered));
                let waited = over.at.saturating_duration_since(since);
                if waited > END_SLACK
                    && !self.ledger.is_disturbed(since.checked_sub(END_SLACK).unwrap_or(since), over.at)
                {
                    complain(format!("ended only {waited:?} after its last connection"));
                }
            }
            "deadline" => {
                let earliest = line.deadlines.iter().map(|deadline| deadline.from).min().unwrap_or(deadline.from);
                if over.at + CLOCKS < earliest {
                    complain(format!("ended {:?} before its deadline", earliest - over.at));
                }
            }
            "forced" | "cancelled" | "gone" => {}
            other => complain(format!("ended as {other}, which nobody asked for")),
        }
        complaints
    }

    /// Datagram flows stay where they are until their backend's deadline, and go to none that is out.
    fn datagrams(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for (service, flows) in &self.accounts.datagrams {
            let name = &self.services[*service].name;
            let wrong: u32 = flows.iter().map(|flow| flow.wrong).sum();
            if wrong > 0 {
                complaints.push(format!("{wrong} wrong answers from {name}"));
            }
            for (from, to, at) in flows.iter().flat_map(moves) {
                let lines = |backend| self.ledger.lines(Target { service: *service, backend });
                // Being steered anew is no cut: such a drain may be called completed.
                if !lines(from).iter().any(|line| line.asked <= at && line.was_due(at)) {
                    complaints.push(format!("a datagram flow of {name} was moved from b{from} to b{to}"));
                }
                // The datagram may have left a second before its answer came.
                let before = at.checked_sub(Duration::from_millis(1_100)).unwrap_or(at);
                if lines(to).iter().any(|line| line.is_closed_at(before) && line.is_closed_at(at)) {
                    complaints.push(format!("a datagram flow of {name} was moved to b{to} while it was out"));
                }
            }
        }
        complaints
    }

    /// Where the daemon's count of a backend's live flows has to lie, if it looked between the two.
    pub(super) fn bounds(&self, target: Target, from: Instant, to: Instant) -> (usize, usize) {
        let name = backend_name(target.backend);
        let (mut least, mut most) = (0, 0);
        for connection in self.accounts.of(target.service) {
            // Before it is greeted nobody knows whose it is.
            let Some((server, greeted)) = connection.served_by else {
                most += usize::from(connection.end.is_none_or(|(_, at)| at > from));
                continue;
            };
            if server.as_str() != name {
                continue;
            }
            let open_all_along = greeted < from && connection.end.is_none_or(|(_, at)| at > to);
            least += usize::from(open_all_along && !self.ledger.may_be_cut(target.service, connection, to));
            most += usize::from(connection.end.is_none_or(|(_, at)| at + END_SLACK > from));
        }
        (least, most)
    }
}

/// Each change of a datagram flow's server: from, to, when.
fn moves(flow: &DatagramFlow) -> impl Iterator<Item = (usize, usize, Instant)> {
    let index = |name: &crate::traffic::Name| name.as_str().trim_start_matches('b').parse().unwrap_or(0);
    flow.servers.windows(2).filter_map(move |pair| match pair {
        [(from, _), (to, at)] => Some((index(from), index(to), *at)),
        _ => None,
    })
}

/// Where each of the client's addresses was sent.
pub(super) fn seats(visitors: &[Connection]) -> HashMap<std::net::IpAddr, String> {
    visitors.iter().filter_map(|c| Some((c.local?.ip(), c.served_by?.0.to_string()))).collect()
}

/// Addresses that were moved though the backend that they had is in rotation, or that were sent to one that is not.
pub(super) fn unseated(
    baseline: &HashMap<std::net::IpAddr, String>,
    now: &HashMap<std::net::IpAddr, String>,
    place: impl Fn(&str) -> Place,
) -> Vec<String> {
    let mut complaints = Vec::new();
    for (address, server) in now {
        if place(server) != Place::In {
            complaints.push(format!("{address} was sent to {server}, which is out"));
        } else if baseline.get(address).is_some_and(|before| before != server && place(before) == Place::In) {
            complaints.push(format!("{address} was moved from {} to {server}", baseline[address]));
        }
    }
    complaints
}
