//! Datagram flows: request and answer, over and over from one port.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    account::DatagramFlow,
    client::source,
    host::Host,
    wire::{HEADER_LEN, NAME_LEN, Name, frame},
};
use crate::wait::wait_until;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The usual payload, in bytes.
pub(super) const SHORT: usize = 64;

/// What each flow of a group does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub(super) target: SocketAddr,
    pub(super) payload_len: usize,
    pub(super) pause: Duration,
}

/// Datagram flows of one kind and their accounts. They end when it is dropped.
#[derive(Debug)]
pub struct DatagramGroup {
    book: Arc<Mutex<Vec<DatagramFlow>>>,
    finish: watch::Sender<bool>,
}

impl DatagramGroup {
    /// The accounts of its flows.
    pub fn flows(&self) -> Vec<DatagramFlow> {
        lock(&self.book).clone()
    }

    /// Waits until every flow has had an answer.
    pub fn wait_answered(&self, within: Duration) -> Result<()> {
        wait_until("an answer on every datagram flow", within, || lock(&self.book).iter().all(|flow| flow.answered > 0))
    }

    /// Stops all of its flows after the answer they wait for.
    pub fn finish(&self) {
        self.finish.send_replace(true);
    }
}

pub(super) fn start(host: &Host, sources: &Arc<[IpAddr]>, stream: Stream, count: usize) -> DatagramGroup {
    let begun = Instant::now();
    let line = DatagramFlow { local: None, sent: 0, answered: 0, lost: 0, wrong: 0, servers: Vec::new(), begun };
    let group = DatagramGroup { book: Arc::new(Mutex::new(vec![line; count])), finish: watch::Sender::new(false) };
    for number in 0..count {
        let flow = Flow { number, book: Arc::clone(&group.book), sources: Arc::clone(sources), stream };
        let told = group.finish.subscribe();
        host.spawn(async move {
            // A socket that cannot be opened shows as a flow without answers.
            let _ = flow.run(told).await;
        });
    }
    group
}

struct Flow {
    number: usize,
    book: Arc<Mutex<Vec<DatagramFlow>>>,
    sources: Arc<[IpAddr]>,
    stream: Stream,
}

impl Flow {
    async fn run(&self, mut told: watch::Receiver<bool>) -> io::Result<()> {
        let source = source(&self.sources, self.stream.target, self.number as u64)?;
        let socket = UdpSocket::bind(SocketAddr::new(source, 0)).await?;
        socket.connect(self.stream.target).await?;
        self.change(|flow| flow.local = socket.local_addr().ok());
        for sequence in 0.. {
            self.exchange(&socket, sequence).await;
            tokio::select! {
                _ = told.wait_for(|finish| *finish) => break,
                () = sleep(self.stream.pause) => {}
            }
        }
        Ok(())
    }

    async fn exchange(&self, socket: &UdpSocket, sequence: u32) {
        let request = frame(self.number as u64, sequence, self.stream.payload_len);
        self.change(|flow| flow.sent += 1);
        // Errors are left over from ICMP about earlier datagrams; a lost answer is what counts.
        let _ = socket.send(&request).await;
        let answer = timeout(PATIENCE, answer_to(socket, &request)).await;
        self.change(|flow| match answer {
            Ok(Ok(server)) => {
                flow.answered += 1;
                if flow.served_by() != Some(server) {
                    flow.servers.push((server, Instant::now()));
                }
            }
            Ok(Err(_)) => flow.wrong += 1,
            Err(_) => flow.lost += 1,
        });
    }

    fn change(&self, change: impl FnOnce(&mut DatagramFlow)) {
        if let Some(flow) = lock(&self.book).get_mut(self.number) {
            change(flow);
        }
    }
}

/// Waits for the answer to `request`, past belated answers to earlier ones.
async fn answer_to(socket: &UdpSocket, request: &[u8]) -> io::Result<Name> {
    let mut buffer = vec![0; NAME_LEN + request.len() + 1];
    loop {
        let Ok(len) = socket.recv(&mut buffer).await else {
            sleep(Duration::from_millis(1)).await;
            continue;
        };
        let Some((name, answer)) = buffer[..len].split_first_chunk::<NAME_LEN>() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if answer == request {
            return Ok(Name::from_wire(*name));
        }
        if answer.len() != request.len() || answer[..HEADER_LEN] == request[..HEADER_LEN] {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn lock(book: &Mutex<Vec<DatagramFlow>>) -> MutexGuard<'_, Vec<DatagramFlow>> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
