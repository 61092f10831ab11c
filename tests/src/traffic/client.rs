//! Clients: groups of TCP connections with a plan, each conversation checked byte by byte.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    account::{Connection, End, Tally},
    datagrams::{self, DatagramGroup, Stream},
    host::Host,
    wire::{HEADER_LEN, NAME_LEN, Name, frame, please_close, step},
};
use crate::{
    lab::{Lab, Plan},
    wait::wait_until,
};

/// What each connection of a group does.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Where to connect to.
    pub target: SocketAddr,
    /// Payload of each request, in bytes; the answer is as long.
    pub payload_len: usize,
    /// Pause between an answer and the next request.
    pub pause: Duration,
    /// How long connections last.
    pub lasting: Lasting,
    /// Who closes first.
    pub closer: Closer,
    /// How long an answer may take before the connection counts as broken.
    pub patience: Duration,
}

/// How long connections last.
#[derive(Clone, Copy, Debug)]
pub enum Lasting {
    /// Until the group is told to finish.
    UntilTold,
    /// Random lengths whose logarithms are evenly spread between two limits: many short, some long.
    Between(Duration, Duration),
}

/// Who sends the first FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closer {
    /// The client.
    Client,
    /// The server.
    Server,
    /// Each in turn, connection by connection.
    Alternate,
}

impl Conversation {
    /// Connections that talk ten times a second until told to finish.
    pub fn with(target: SocketAddr) -> Self {
        Self {
            target,
            payload_len: 200,
            pause: Duration::from_millis(100),
            lasting: Lasting::UntilTold,
            closer: Closer::Alternate,
            patience: Duration::from_secs(10),
        }
    }

    /// Connections that rarely say anything, as WebSockets do.
    pub fn rarely_talking_with(target: SocketAddr) -> Self {
        Self { payload_len: 20, pause: Duration::from_secs(2), ..Self::with(target) }
    }
}

/// The client host of a lab. Dropping it ends what is still open.
#[derive(Debug)]
pub struct Client {
    host: Host,
    sources: Arc<[IpAddr]>,
    ids: Arc<AtomicU64>,
}

/// Connections with the same plan, and their accounts.
#[derive(Debug)]
pub struct Group {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: Conversation,
    sources: Arc<[IpAddr]>,
    ids: Arc<AtomicU64>,
    book: Mutex<Vec<Connection>>,
    /// Connections, or workers, whose number is below this are to finish.
    finish_below: watch::Sender<usize>,
}

impl Client {
    /// Starts the client of `lab`, which will send from all of its addresses in turn.
    pub fn start(lab: &Lab) -> Result<Self> {
        let families = crate::lab::FAMILIES;
        let sources =
            families.iter().flat_map(|family| (0..lab.plan.client_addresses).map(|index| Plan::client(*family, index)));
        Ok(Self { host: Host::start(&lab.client)?, sources: sources.collect(), ids: Arc::default() })
    }

    /// Opens `count` connections at once.
    pub fn open(&self, plan: Conversation, count: usize) -> Group {
        let shared = self.share(plan);
        for number in 0..count {
            let shared = Arc::clone(&shared);
            self.host.spawn(async move {
                shared.converse(number).await;
            });
        }
        Group { shared }
    }

    /// Keeps `count` connections open: each that ends is followed by a new one, until told to finish.
    pub fn keep(&self, plan: Conversation, count: usize) -> Group {
        let shared = self.share(plan);
        for number in 0..count {
            let shared = Arc::clone(&shared);
            self.host.spawn(async move {
                while *shared.finish_below.borrow() <= number {
                    if !shared.converse(number).await {
                        // Not to spin while nobody answers.
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            });
        }
        Group { shared }
    }

    /// Starts `count` datagram flows to `target`, each sending every `pause` until told to finish.
    pub fn datagrams(&self, target: SocketAddr, count: usize, pause: Duration) -> DatagramGroup {
        self.datagrams_of(datagrams::SHORT, target, count, pause)
    }

    /// [`Client::datagrams`] with a payload of `len` bytes; more than the MTU makes fragments.
    pub fn datagrams_of(&self, len: usize, target: SocketAddr, count: usize, pause: Duration) -> DatagramGroup {
        datagrams::start(&self.host, &self.sources, Stream { target, payload_len: len, pause }, count)
    }

    fn share(&self, plan: Conversation) -> Arc<Shared> {
        Arc::new(Shared {
            plan,
            sources: Arc::clone(&self.sources),
            ids: Arc::clone(&self.ids),
            book: Mutex::default(),
            finish_below: watch::Sender::new(0),
        })
    }
}

impl Group {
    /// The accounts of all its connections so far.
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.book().clone()
    }

    /// Sums over all its connections so far.
    pub fn tally(&self) -> Tally {
        Tally::of(self.shared.book().iter())
    }

    /// Waits until `count` connections are open.
    pub fn wait_open(&self, count: usize, within: Duration) -> Result<()> {
        let mut last = Tally::default();
        wait_until("connections to open", within, || {
            last = self.tally();
            last.open >= count
        })
        .map_err(|error| error.context(format!("{count} wanted: {last:?}")))
    }

    /// Tells the first `count` connections to say goodbye (and, of kept ones, not to come back).
    pub fn finish_some(&self, count: usize) {
        self.shared.finish_below.send_replace(count);
    }

    /// Tells all of them.
    pub fn finish(&self) {
        self.finish_some(usize::MAX);
    }

    /// Tells all, waits until none is open, and returns the sums.
    pub fn finish_and_wait(&self, within: Duration) -> Result<Tally> {
        self.finish();
        let mut last = Tally::default();
        wait_until("connections to finish", within, || {
            last = self.tally();
            last.open == 0
        })
        .map_err(|error| error.context(format!("{last:?}")))?;
        Ok(last)
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection, from its SYN to its end. Returns whether the end was a good one.
    async fn converse(&self, number: usize) -> bool {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let line = {
            let mut book = self.book();
            book.push(Connection { asked: Instant::now(), local: None, served_by: None, end: None });
            book.len() - 1
        };
        let end = match self.connect(id, line).await {
            Err(error) => End::CouldNotConnect(error.into()),
            Ok(stream) => match self.talk(stream, id, number).await {
                Ok(()) => End::Clean,
                Err(error) => End::Broken(error.into()),
            },
        };
        self.change(line, |line| line.end = Some((end, Instant::now())));
        end == End::Clean
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut Connection)) {
        if let Some(line) = self.book().get_mut(number) {
            change(line);
        }
    }

    async fn connect(&self, id: u64, line: usize) -> io::Result<TcpStream> {
        let socket = source_bound(&self.sources, self.plan.target, id)?;
        let connecting = socket.connect(self.plan.target);
        let mut stream = timeout(self.plan.patience, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        self.change(line, |line| line.local = stream.local_addr().ok());
        let mut greeting = [0; NAME_LEN];
        patiently(self.plan.patience, stream.read_exact(&mut greeting)).await?;
        let served_by = Some((Name::from_wire(greeting), Instant::now()));
        self.change(line, |line| line.served_by = served_by);
        Ok(stream)
    }

    async fn talk(&self, mut stream: TcpStream, id: u64, number: usize) -> io::Result<()> {
        let ends_at = match self.plan.lasting {
            Lasting::UntilTold => None,
            Lasting::Between(shortest, longest) => Some(Instant::now() + spread(shortest, longest, id)),
        };
        let mut told = self.finish_below.subscribe();
        let mut sequence = 0;
        loop {
            self.exchange(&mut stream, id, sequence).await?;
            sequence += 1;
            let rest = ends_at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            let mut unexpected = [0; 1];
            tokio::select! {
                read = stream.read(&mut unexpected) => {
                    return Err(match read {
                        Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                        Ok(_) => io::ErrorKind::InvalidData.into(),
                        Err(error) => error,
                    });
                }
                _ = told.wait_for(|below| *below > number) => break,
                () = sleep(rest.min(self.plan.pause)) => if rest <= self.plan.pause { break },
            }
        }
        self.say_goodbye(stream, id).await
    }

    async fn exchange(&self, stream: &mut TcpStream, id: u64, sequence: u32) -> io::Result<()> {
        let request = frame(id, sequence, self.plan.payload_len);
        stream.write_all(&request).await?;
        let mut answer = vec![0; request.len()];
        patiently(self.plan.patience, stream.read_exact(&mut answer)).await?;
        if answer == request { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    async fn say_goodbye(&self, mut stream: TcpStream, id: u64) -> io::Result<()> {
        let server_first = match self.plan.closer {
            Closer::Client => false,
            Closer::Server => true,
            Closer::Alternate => id % 2 == 1,
        };
        if server_first {
            let request: [u8; HEADER_LEN] = please_close();
            stream.write_all(&request).await?;
        } else {
            stream.shutdown().await?;
        }
        let mut rest = [0; 1];
        match patiently(self.plan.patience, stream.read(&mut rest)).await? {
            0 => stream.shutdown().await.or_else(|error| match error.kind() {
                // Closed on both sides already.
                io::ErrorKind::NotConnected => Ok(()),
                _ => Err(error),
            }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A socket bound to one of the sources of the target's family, chosen by `id`.
fn source_bound(sources: &[IpAddr], target: SocketAddr, id: u64) -> io::Result<TcpSocket> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(SocketAddr::new(source(sources, target, id)?, 0))?;
    Ok(socket)
}

/// One of the sources of the target's family, chosen by `id`.
pub(super) fn source(sources: &[IpAddr], target: SocketAddr, id: u64) -> io::Result<IpAddr> {
    let count = sources.iter().filter(|s| s.is_ipv4() == target.is_ipv4()).count() as u64;
    let chosen = id.checked_rem(count).ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut fitting = sources.iter().filter(|s| s.is_ipv4() == target.is_ipv4());
    fitting.nth(chosen as usize).copied().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

async fn patiently<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(patience, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// A length between the two, even on a logarithmic scale, the same for the same `id`.
#[expect(clippy::cast_precision_loss, reason = "a random fraction needs no more than 53 bits")]
fn spread(shortest: Duration, longest: Duration, id: u64) -> Duration {
    let random = step(step(id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
    let fraction = (random >> 11) as f64 / (1_u64 << 53) as f64;
    let shortest = shortest.as_secs_f64().max(0.001);
    Duration::from_secs_f64(shortest * (longest.as_secs_f64() / shortest).max(1.0).powf(fraction))
}
