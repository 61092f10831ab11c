//! Accounts of what happened to connections, and sums over them.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::wire::Name;

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum End {
    /// Both sides said goodbye and nothing was missing.
    Clean,
    /// It was never made.
    CouldNotConnect(Fault),
    /// It was made, and lost before its time.
    Broken(Fault),
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fault {
    /// The socket reported a reset (ECONNRESET, or EPIPE on a write after one).
    Reset,
    /// The peer answered a SYN with a reset.
    Refused,
    /// Nothing came for too long.
    Silence,
    /// The peer closed in the middle of the conversation.
    ClosedEarly,
    /// Something else came than was due.
    WrongData,
    /// Another error of the socket, by its errno.
    Other(i32),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Silence,
            io::ErrorKind::UnexpectedEof => Self::ClosedEarly,
            io::ErrorKind::InvalidData => Self::WrongData,
            _ => Self::Other(error.raw_os_error().unwrap_or(0)),
        }
    }
}

/// A client's account of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// When the client asked for it (before the first SYN left).
    pub asked: Instant,
    /// The client's end, once it was made.
    pub local: Option<SocketAddr>,
    /// Who greeted, and when.
    pub served_by: Option<(Name, Instant)>,
    /// How it ended and when, unless it is open.
    pub end: Option<(End, Instant)>,
}

impl Connection {
    /// Greeted and not ended.
    pub fn is_open(&self) -> bool {
        self.served_by.is_some() && self.end.is_none()
    }

    /// Served by `name`.
    pub fn is_served_by(&self, name: &str) -> bool {
        self.served_by.is_some_and(|(server, _)| server.as_str() == name)
    }
}

/// Sums over connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Greeted by a server.
    pub opened: usize,
    /// Still open.
    pub open: usize,
    /// Ended as they should.
    pub clean: usize,
    /// Lost, by what went wrong.
    pub broken: BTreeMap<Fault, usize>,
    /// Never made, by what went wrong.
    pub could_not_connect: BTreeMap<Fault, usize>,
    /// Opened, by who served.
    pub by_server: BTreeMap<String, usize>,
    /// Still open, by who serves.
    pub open_by_server: BTreeMap<String, usize>,
}

impl Tally {
    /// Sums over `connections`.
    pub fn of<'a>(connections: impl IntoIterator<Item = &'a Connection>) -> Self {
        let mut tally = Self::default();
        for connection in connections {
            tally.add(connection);
        }
        tally
    }

    /// How many were lost, for whatever reason.
    pub fn broken(&self) -> usize {
        self.broken.values().sum()
    }

    /// How many could not be made, for whatever reason.
    pub fn could_not_connect(&self) -> usize {
        self.could_not_connect.values().sum()
    }

    /// How many `server` was given.
    pub fn served_by(&self, server: &str) -> usize {
        self.by_server.get(server).copied().unwrap_or(0)
    }

    /// How many `server` has open.
    pub fn open_at(&self, server: &str) -> usize {
        self.open_by_server.get(server).copied().unwrap_or(0)
    }

    fn add(&mut self, connection: &Connection) {
        if let Some((server, _)) = connection.served_by {
            self.opened += 1;
            *self.by_server.entry(server.to_string()).or_default() += 1;
            if connection.is_open() {
                self.open += 1;
                *self.open_by_server.entry(server.to_string()).or_default() += 1;
            }
        }
        match connection.end {
            Some((End::Clean, _)) => self.clean += 1,
            Some((End::Broken(fault), _)) => *self.broken.entry(fault).or_default() += 1,
            Some((End::CouldNotConnect(fault), _)) => {
                *self.could_not_connect.entry(fault).or_default() += 1;
            }
            None => {}
        }
    }
}

/// When the last of `server`'s connections ended; `None` while one is open, or if there was none.
pub fn last_end(connections: &[Connection], server: &str) -> Option<Instant> {
    let ends = connections.iter().filter(|c| c.is_served_by(server)).map(|c| c.end.map(|(_, when)| when));
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// The connections that clients asked for after `since` and `server` was given all the same.
pub fn given_after<'a>(connections: &'a [Connection], server: &str, since: Instant) -> Vec<&'a Connection> {
    connections.iter().filter(|c| c.asked > since && c.is_served_by(server)).collect()
}

/// A server's account of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// The client's end.
    pub peer: SocketAddr,
    /// Where the server listened.
    pub local: SocketAddr,
    /// When it was accepted.
    pub at: Instant,
    /// Frames answered.
    pub frames: u32,
    /// How it ended and when, unless it is open.
    pub end: Option<(End, Instant)>,
}

/// An account of one datagram flow, by its client.
#[derive(Clone, Debug)]
pub struct DatagramFlow {
    /// The client's end.
    pub local: Option<SocketAddr>,
    /// Datagrams sent.
    pub sent: u32,
    /// Datagrams answered in time.
    pub answered: u32,
    /// Datagrams not answered in time.
    pub lost: u32,
    /// Answers that were not to the datagram they claimed to answer.
    pub wrong: u32,
    /// Who answered, from when on: one entry more each time that it changed.
    pub servers: Vec<(Name, Instant)>,
    /// When the first datagram left.
    pub begun: Instant,
}

impl DatagramFlow {
    /// Who answers now.
    pub fn served_by(&self) -> Option<Name> {
        self.servers.last().map(|(name, _)| *name)
    }
}

/// Rounds for people: tenths of seconds.
pub fn tenths(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
