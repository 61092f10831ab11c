//! An HTTP server that takes POSTs, as one who is told by Ebb's hooks has it.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::lab::Namespace;

/// One POST that was taken in whole.
#[derive(Clone, Debug)]
pub struct Post {
    /// What was asked for.
    pub path: String,
    /// The body.
    pub body: serde_json::Value,
    /// What was answered.
    pub reaction: Reaction,
}

/// What a receiver does with a POST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Answers with this status.
    Answer(u16),
    /// Says nothing until the other end gives up.
    Hang,
}

/// The server. Dropping it stops it.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    posts: Mutex<Vec<Post>>,
    reactions: Mutex<VecDeque<Reaction>>,
    stopped: AtomicBool,
}

impl Receiver {
    /// Listens at `address` in `namespace`.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = namespace.run(|| TcpListener::bind(address))?.with_context(|| format!("bind {address}"))?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let serving = shared.clone();
        thread::Builder::new().name("receiver".to_owned()).spawn(move || serve(&listener, &serving))?;
        Ok(Self { shared })
    }

    /// What it does with the next POSTs; it answers 200 to those after.
    pub fn react(&self, reactions: &[Reaction]) {
        lock(&self.shared.reactions).extend(reactions);
    }

    /// What came so far.
    pub fn posts(&self) -> Vec<Post> {
        lock(&self.shared.posts).clone()
    }

    /// The bodies that were answered with 200, in order, one that was told twice only once.
    pub fn told(&self) -> Vec<serde_json::Value> {
        let mut told: Vec<serde_json::Value> = Vec::new();
        for post in self.posts().into_iter().filter(|post| post.reaction == Reaction::Answer(200)) {
            if !told.iter().any(|before| before["id"] == post.body["id"]) {
                told.push(post.body);
            }
        }
        told
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stopped.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let shared = shared.clone();
                // A caller who goes away half-way has told nothing.
                thread::spawn(move || drop(take(stream, &shared)));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn take(stream: TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).context("a path")?.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let reaction = lock(&shared.reactions).pop_front().unwrap_or(Reaction::Answer(200));
    lock(&shared.posts).push(Post { path, body: serde_json::from_slice(&body)?, reaction });
    match reaction {
        Reaction::Answer(status) => {
            write!(reader.get_mut(), "HTTP/1.1 {status} Whatever\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
        }
        // Returns when the other end closes.
        Reaction::Hang => drop(reader.read(&mut [0; 1])?),
    }
    Ok(())
}
