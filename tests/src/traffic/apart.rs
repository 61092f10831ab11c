//! A server in a process of its own, for tests whose two ends have more descriptors than one process may open.
//!
//! The parent writes one request a line, the child answers each with one line of JSON, and ends when
//! its input does: with the parent, however that ends. Both read the same monotonic clock, but cannot
//! pass an [`Instant`] on, so times travel as ages.

use std::{
    io::{BufRead, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    account::{Accepted, End},
    server::{Server, Transport},
};
use crate::lab::Namespace;

/// The parent's end.
#[derive(Debug)]
pub(super) struct Apart {
    child: Child,
    pipes: Mutex<(Option<ChildStdin>, BufReader<ChildStdout>)>,
}

/// A connection's account, with ages in place of times.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    peer: SocketAddr,
    local: SocketAddr,
    at: Duration,
    frames: u32,
    end: Option<(End, Duration)>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Listen(SocketAddr, Transport),
    Connections,
    DatagramFlows,
}

impl Apart {
    /// Starts the child; `program` is the path of `ebb-test-server`.
    pub(super) fn start(program: &str, namespace: &Namespace, name: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command.args([namespace.name(), name]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {program}"))?;
        let output = child.stdout.take().context("the child's output")?;
        let pipes = Mutex::new((child.stdin.take(), BufReader::new(output)));
        Ok(Self { child, pipes })
    }

    pub(super) fn listen(&self, address: SocketAddr, transport: Transport) -> Result<()> {
        self.ask(&Request::Listen(address, transport))
    }

    pub(super) fn connections(&self) -> Result<Vec<Accepted>> {
        let lines: Vec<Line> = self.ask(&Request::Connections)?;
        let now = Instant::now();
        let since = |age: Duration| now.checked_sub(age).unwrap_or(now);
        let accepted = |line: Line| Accepted {
            peer: line.peer,
            local: line.local,
            at: since(line.at),
            frames: line.frames,
            end: line.end.map(|(end, age)| (end, since(age))),
        };
        Ok(lines.into_iter().map(accepted).collect())
    }

    pub(super) fn datagram_flows(&self) -> Result<Vec<(SocketAddr, Instant, u64)>> {
        let lines: Vec<(SocketAddr, Duration, u64)> = self.ask(&Request::DatagramFlows)?;
        let now = Instant::now();
        Ok(lines.into_iter().map(|(peer, age, count)| (peer, now.checked_sub(age).unwrap_or(now), count)).collect())
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, request: &Request) -> Result<T> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        let (input, output) = &mut *pipes;
        let input = input.as_mut().context("the child's input is closed")?;
        writeln!(input, "{}", serde_json::to_string(request)?)?;
        let mut answer = String::new();
        ensure!(output.read_line(&mut answer)? > 0, "the server's process has ended");
        let answer: Result<T, String> = serde_json::from_str(&answer)?;
        answer.map_err(|error| anyhow!("{error}"))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner).0 = None;
        let _ = self.child.wait();
    }
}

/// The child: serves in the namespace and under the name that its arguments say, until its input ends; or, at an address given as the
/// third argument, until it is killed.
pub fn serve_requests(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let (Some(namespace), Some(name), address) = (arguments.next(), arguments.next(), arguments.next()) else {
        bail!("usage: ebb-test-server NAMESPACE NAME [ADDR:PORT] (started by the tests)");
    };
    crate::lab::raise_file_limit()?;
    let server = Server::start(&Namespace::open(&namespace)?, &name)?;
    if let Some(address) = address {
        server.listen(address.parse()?, Transport::Tcp)?;
        loop {
            std::thread::park();
        }
    }
    for line in std::io::stdin().lines() {
        let answer = answer(&server, &serde_json::from_str(&line?)?).map_err(|error| format!("{error:#}"));
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

fn answer(server: &Server, request: &Request) -> Result<serde_json::Value> {
    Ok(match request {
        Request::Listen(address, transport) => serde_json::to_value(server.listen(*address, *transport)?)?,
        Request::Connections => {
            let line = |c: Accepted| Line {
                peer: c.peer,
                local: c.local,
                at: c.at.elapsed(),
                frames: c.frames,
                end: c.end.map(|(end, at)| (end, at.elapsed())),
            };
            serde_json::to_value(server.connections().into_iter().map(line).collect::<Vec<_>>())?
        }
        Request::DatagramFlows => {
            let flows = server.datagram_flows().into_iter();
            serde_json::to_value(flows.map(|(peer, first, count)| (peer, first.elapsed(), count)).collect::<Vec<_>>())?
        }
    })
}
