//! Servers: each greets with its name and echoes, over TCP and UDP, and keeps an account.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
};

use super::{
    account::{Accepted, End, Fault},
    apart::Apart,
    host::Host,
    wire::{HEADER_LEN, NAME_LEN, Name, PAYLOAD_MAX, PLEASE_CLOSE, header},
};
use crate::lab::Namespace;

/// A server in a namespace. Dropping it ends its connections.
#[derive(Debug)]
pub struct Server {
    name: Name,
    place: Place,
}

/// Where the server runs.
#[derive(Debug)]
enum Place {
    Here(Host, Arc<Mutex<Book>>),
    Apart(Apart),
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

#[derive(Debug, Default)]
struct Book {
    connections: Vec<Accepted>,
    datagram_flows: HashMap<SocketAddr, (Instant, u64)>,
}

/// Why asking a server that runs apart may panic: it is part of the bench, and does not fail on its own.
const GONE: &str = "the server's process answers";

impl Server {
    /// Starts a server that will call itself `name`, and listens nowhere yet.
    pub fn start(namespace: &Namespace, name: &str) -> Result<Self> {
        Ok(Self { name: Name::new(name), place: Place::Here(Host::start(namespace)?, Arc::default()) })
    }

    /// The same in a process of its own, for tests with more sockets than one process may have open;
    /// `program` is the path of `ebb-test-server`.
    pub fn start_apart(program: &str, namespace: &Namespace, name: &str) -> Result<Self> {
        Ok(Self { name: Name::new(name), place: Place::Apart(Apart::start(program, namespace, name)?) })
    }

    /// The name it greets with.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Listens at `address`.
    pub fn listen(&self, address: SocketAddr, transport: Transport) -> Result<()> {
        let (host, book) = match &self.place {
            Place::Here(host, book) => (host, Arc::clone(book)),
            Place::Apart(apart) => return apart.listen(address, transport),
        };
        let name = self.name;
        let listening = host.call(async move {
            match transport {
                Transport::Tcp => drop(tokio::spawn(accept_all(listen(address)?, address, name, book))),
                Transport::Udp => drop(tokio::spawn(answer_datagrams(UdpSocket::bind(address).await?, name, book))),
            }
            Ok(())
        });
        listening.with_context(|| format!("{name}: listen at {address}"))
    }

    /// Listens at `address` for both.
    pub fn serve(&self, address: SocketAddr) -> Result<()> {
        self.listen(address, Transport::Tcp)?;
        self.listen(address, Transport::Udp)
    }

    /// Its account of the connections it accepted, in that order.
    pub fn connections(&self) -> Vec<Accepted> {
        match &self.place {
            Place::Here(_, book) => lock(book).connections.clone(),
            Place::Apart(apart) => apart.connections().expect(GONE),
        }
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.connections().len()
    }

    /// How many of its connections are open.
    pub fn open(&self) -> usize {
        self.connections().iter().filter(|c| c.end.is_none()).count()
    }

    /// The datagram flows it saw: the client's end, when the first datagram came, how many came.
    pub fn datagram_flows(&self) -> Vec<(SocketAddr, Instant, u64)> {
        match &self.place {
            Place::Here(_, book) => {
                let book = lock(book);
                book.datagram_flows.iter().map(|(peer, (first, count))| (*peer, *first, *count)).collect()
            }
            Place::Apart(apart) => apart.datagram_flows().expect(GONE),
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(65_535)?)
}

async fn accept_all(listener: TcpListener, local: SocketAddr, name: Name, book: Arc<Mutex<Book>>) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors: the open connections matter more than the next.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let number = {
            let connections = &mut lock(&book).connections;
            connections.push(Accepted { peer, local, at: Instant::now(), frames: 0, end: None });
            connections.len() - 1
        };
        tokio::spawn(converse(stream, name, Entry { book: Arc::clone(&book), number }));
    }
}

/// One connection's line in the book.
struct Entry {
    book: Arc<Mutex<Book>>,
    number: usize,
}

impl Entry {
    fn change(&self, change: impl FnOnce(&mut Accepted)) {
        if let Some(line) = lock(&self.book).connections.get_mut(self.number) {
            change(line);
        }
    }
}

async fn converse(mut stream: TcpStream, name: Name, entry: Entry) {
    let end = match echo(&mut stream, name, &entry).await {
        Ok(()) => End::Clean,
        Err(error) => End::Broken(Fault::from(error)),
    };
    entry.change(|line| line.end = Some((end, Instant::now())));
}

async fn echo(stream: &mut TcpStream, name: Name, entry: &Entry) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(name.on_wire()).await?;
    let mut frame = vec![0; HEADER_LEN];
    loop {
        frame.resize(HEADER_LEN, 0);
        // The end of the stream is in order between frames, and nowhere else.
        if stream.read(&mut frame[..1]).await? == 0 {
            return Ok(());
        }
        stream.read_exact(&mut frame[1..]).await?;
        let mut first = [0; HEADER_LEN];
        first.copy_from_slice(&frame);
        let (payload_len, _) = header(first);
        if payload_len == PLEASE_CLOSE {
            stream.shutdown().await?;
            return match stream.read(&mut frame).await? {
                0 => Ok(()),
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        }
        let payload_len = usize::try_from(payload_len).unwrap_or(usize::MAX);
        if payload_len > PAYLOAD_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        frame.resize(HEADER_LEN + payload_len, 0);
        stream.read_exact(&mut frame[HEADER_LEN..]).await?;
        stream.write_all(&frame).await?;
        entry.change(|line| line.frames += 1);
    }
}

async fn answer_datagrams(socket: UdpSocket, name: Name, book: Arc<Mutex<Book>>) {
    let mut buffer = vec![0; NAME_LEN + 65_536];
    buffer[..NAME_LEN].copy_from_slice(name.on_wire());
    loop {
        // Errors are left over from ICMP about earlier answers; the socket stays good.
        let Ok((len, peer)) = socket.recv_from(&mut buffer[NAME_LEN..]).await else {
            continue;
        };
        lock(&book).datagram_flows.entry(peer).or_insert_with(|| (Instant::now(), 0)).1 += 1;
        let _ = socket.send_to(&buffer[..NAME_LEN + len], peer).await;
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
