//! The judgement on a drain under load, from what clients and servers saw.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::traffic::{Connection, End, Server, Tally, given_after, last_end, tenths};

/// A drain whose traffic is to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    /// When the command was given.
    pub asked: Instant,
    /// When `ebb drain` had answered: from then on no new connection may reach the backend.
    pub answered: Instant,
    /// When the backend was seen to be `drained`.
    pub over: Instant,
    /// The deadline that was set.
    pub timeout: Duration,
}

/// The judgement. [`Verdict::complaints`] is empty when the drain kept its promises.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What the clients saw, all connections of all backends.
    pub clients: Tally,
    /// Connections that servers saw break.
    pub broken_at_servers: usize,
    /// Connections asked for after `ebb drain` had answered and served by the draining backend, by the clients' accounts.
    pub new_by_clients: usize,
    /// The same by the draining server's account: accepted since, from a client that asked since.
    pub new_by_server: usize,
    /// Connections that the draining backend had when the drain was asked for.
    pub at_start: usize,
    /// From the command to `drained`.
    pub took: Duration,
    /// From the end of the backend's last connection to `drained`; `None` if some were still open.
    pub after_last_end: Option<Duration>,
    /// The deadline.
    pub timeout: Duration,
}

/// How long after its last connection's end a drain may take to be over, the 1 s of `fin_quiet` included.
pub const END_SLACK: Duration = Duration::from_secs(2);

/// How late a busy client may write a connection's end down.
const BOOKING: Duration = Duration::from_millis(100);

impl Verdict {
    /// Judges the drain of `server` as soon as it is over and before anything else is done to the backend; `connections` are the accounts of all clients, `servers` all servers.
    pub fn on(drain: Drained, server: &Server, connections: &[Connection], servers: &[Server]) -> Self {
        let new = given_after(connections, server.name(), drain.answered);
        let locals: std::collections::HashSet<_> = new.iter().filter_map(|c| c.local).collect();
        let accepted_since = server.connections().into_iter().filter(|c| c.at > drain.answered);
        // Connections made before the drain ended are the ones it could have kept open.
        let earlier: Vec<_> = connections.iter().filter(|c| c.asked < drain.over).copied().collect();
        Self {
            clients: Tally::of(connections),
            broken_at_servers: broken_at(servers),
            new_by_clients: new.len(),
            new_by_server: accepted_since
                .filter(|c| locals.contains(&c.peer) || is_unasked(connections, c.peer))
                .count(),
            at_start: open_at(connections, server.name(), drain.asked),
            took: drain.over - drain.asked,
            after_last_end: last_end(&earlier, server.name())
                .filter(|end| *end <= drain.over + BOOKING)
                .map(|end| drain.over.saturating_duration_since(end)),
            timeout: drain.timeout,
        }
    }

    /// Brings the sums up to date, when more has happened to the connections since the drain ended.
    pub fn settle(&mut self, connections: &[Connection], servers: &[Server]) {
        self.clients = Tally::of(connections);
        self.broken_at_servers = broken_at(servers);
    }

    /// What was promised and not kept, in words.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut none = |count: usize, what: &str| {
            if count > 0 {
                complaints.push(format!("{count} {what}"));
            }
        };
        none(self.clients.broken(), "connections broke (clients' account)");
        none(self.clients.could_not_connect(), "connections could not be made (clients' account)");
        none(self.broken_at_servers, "connections broke (servers' account)");
        none(self.new_by_clients, "new connections reached the draining backend (clients' account)");
        none(self.new_by_server, "new connections reached the draining backend (its own account)");
        if self.at_start == 0 {
            complaints.push("nothing was judged: the backend had no connection when its drain began".to_owned());
        }
        if self.took > self.timeout {
            complaints.push(format!("it took {} of {}", tenths(self.took), tenths(self.timeout)));
        }
        match self.after_last_end {
            None => complaints.push("it was over while connections were still open".to_owned()),
            Some(after) if after > END_SLACK => {
                complaints.push(format!("it was over only {} after its last connection's end", tenths(after)));
            }
            Some(_) => {}
        }
        complaints
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clients, at_start, took, timeout, .. } = self;
        let mut line = |what: &str, value: usize, more: &str| writeln!(f, "  {what:<52}{value:>6}{more}");
        line("connections opened", clients.opened, "")?;
        line("open at the drained backend when its drain began", *at_start, "")?;
        line("connections broken, by the clients' account", clients.broken() + clients.could_not_connect(), "")?;
        line("connections broken, by the servers' account", self.broken_at_servers, "")?;
        line("new to the draining backend, by the clients' account", self.new_by_clients, "")?;
        line("new to the draining backend, by its own account", self.new_by_server, "")?;
        let after = self.after_last_end.map_or("before its last connection's end".to_owned(), |after| {
            format!("{} after its last connection's end", tenths(after))
        });
        write!(f, "  drained after {}, {after}; the deadline was {}", tenths(*took), tenths(*timeout))
    }
}

fn broken_at(servers: &[Server]) -> usize {
    let connections = servers.iter().flat_map(Server::connections);
    connections.filter(|c| matches!(c.end, Some((End::Broken(_), _)))).count()
}

/// Connections of `server` that were open at `instant`.
fn open_at(connections: &[Connection], server: &str, instant: Instant) -> usize {
    let open = |c: &&Connection| {
        c.served_by.is_some_and(|(name, at)| name.as_str() == server && at <= instant)
            && c.end.is_none_or(|(_, at)| at > instant)
    };
    connections.iter().filter(open).count()
}

/// True when no client has an account of a connection from `peer`: then it is not excused by having begun earlier.
fn is_unasked(connections: &[Connection], peer: std::net::SocketAddr) -> bool {
    !connections.iter().any(|c| c.local == Some(peer))
}
