//! The client side: one connection per request, typed by what the caller expects back.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    error::{ErrorBody, ErrorDocument},
    extract::BodyLimit,
    transport::{Place, Server},
};

/// The longest answer a client reads: a million flows.
const ANSWER_LIMIT: usize = 1 << 30;
/// How long a connection that brought no answer has to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers at {place}: {source}; {advice}")]
    NoDaemon {
        /// Where it was looked for.
        place: String,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Whether somebody listens is not for this user to know.
    #[error("no permission to use {}: run this as root or as a member of the socket's group", .0.display())]
    NoPermission(PathBuf),
    /// One end does not trust the other.
    #[error("{0}")]
    Distrust(String),
    /// The daemon answered, with an error.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// More than a daemon takes at once, which would close the connection in the middle of it.
    #[error("that makes {} KiB of JSON, and a daemon takes at most {} at once: configure less at a time", .size >> 10, .limit >> 10)]
    TooLong {
        /// How long it is, in bytes.
        size: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// The conversation failed half-way, or what came back makes no sense.
    #[error("{action}: {cause}")]
    Broken {
        /// What was being done.
        action: String,
        /// How it failed.
        cause: String,
    },
}

impl ClientError {
    fn broken(action: impl Into<String>, cause: &dyn fmt::Display) -> Self {
        Self::Broken { action: action.into(), cause: cause.to_string() }
    }
}

/// A daemon at a socket or on another host.
#[derive(Debug, Clone)]
pub struct Client {
    place: Place,
    if_match: Option<String>,
}

impl Client {
    /// A client for the daemon at this socket; connects with each request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { place: Place::Socket(socket.into()), if_match: None }
    }

    /// A client for the daemon on another host.
    pub fn remote(server: Server) -> Self {
        Self { place: Place::Server(Arc::new(server)), if_match: None }
    }

    /// The same, whose changes are refused unless this is still the revision of what they are about.
    #[must_use]
    pub fn only_if(&self, revision: Option<&str>) -> Self {
        Self { if_match: revision.map(|revision| format!("\"{revision}\"")), ..self.clone() }
    }

    /// Where it connects, in words.
    pub fn place(&self) -> String {
        match &self.place {
            Place::Socket(path) => path.display().to_string(),
            Place::Server(server) => server.to_string(),
        }
    }

    /// Reads a resource.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// Sends a request and reads the answer.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, ClientError> {
        let answer = self.send(method, path, body).await?;
        let action = || format!("the daemon's answer on {path}");
        let bytes = Limited::new(answer.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| ClientError::broken(action(), &error))?
            .to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| ClientError::broken(action(), &error))
    }

    /// Opens a stream of server-sent events.
    pub async fn follow(&self, path: &str) -> Result<EventStream, ClientError> {
        let answer = self.send(Method::GET, path, None::<&()>).await?;
        Ok(EventStream { body: answer.into_body(), pending: Vec::new() })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Response<Incoming>, ClientError> {
        let action = format!("{method} {path}");
        let bytes = body.map(serde_json::to_vec).transpose();
        let bytes = bytes.map_err(|error| ClientError::broken(action.clone(), &error))?;
        let limit = BodyLimit::of(path.split('?').next().unwrap_or_default()).size;
        if let Some(size) = bytes.as_ref().map(Vec::len).filter(|size| *size > limit) {
            return Err(ClientError::TooLong { size, limit });
        }
        let request = self.build(method, path, bytes).map_err(|error| ClientError::broken(action.clone(), &error))?;
        let stream = self.place.connect().await.map_err(|source| self.unreachable(source))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ClientError::broken(action.clone(), &error))?;
        let connection = tokio::spawn(connection);
        let answer = match sender.send_request(request).await {
            Ok(answer) => answer,
            Err(error) => {
                let ended = tokio::time::timeout(LAST_WORDS, connection).await;
                return Err(self.broken_off(action, &error, ended.ok().and_then(Result::ok).and_then(Result::err)));
            }
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(refusal(&action, answer).await)
    }

    fn build(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, self.place.host());
        if let Some(revision) = &self.if_match {
            request = request.header(header::IF_MATCH, revision);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(Bytes::from(body.unwrap_or_default())))
    }

    /// A request was not answered. What the connection died of may be known to the request, or only to the connection.
    fn broken_off(&self, action: String, error: &hyper::Error, connection: Option<hyper::Error>) -> ClientError {
        if let Place::Server(server) = &self.place {
            let known = server.distrust(error).or_else(|| connection.and_then(|error| server.distrust(&error)));
            if let Some(why) = known {
                return ClientError::Distrust(why);
            }
        }
        ClientError::broken(action, &format!("the daemon went away before it answered ({error}); see its log"))
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        match (&self.place, source.kind()) {
            (Place::Socket(socket), io::ErrorKind::PermissionDenied) => ClientError::NoPermission(socket.clone()),
            (Place::Socket(socket), _) => ClientError::NoDaemon {
                place: socket.display().to_string(),
                source,
                advice: "start one with \"ebb run\" or name its socket with --socket",
            },
            (Place::Server(server), _) => match server.distrust(&source) {
                Some(why) => ClientError::Distrust(why),
                None => ClientError::NoDaemon {
                    place: server.to_string(),
                    source,
                    advice: "see whether one runs there that has [daemon.remote] in its configuration",
                },
            },
        }
    }
}

/// What the daemon said no with; whatever it sent, the caller gets a sentence.
async fn refusal(action: &str, answer: Response<Incoming>) -> ClientError {
    let status = answer.status();
    let said = Limited::new(answer.into_body(), 1 << 20).collect().await;
    let document = said.ok().and_then(|body| serde_json::from_slice::<ErrorDocument>(&body.to_bytes()).ok());
    match document {
        Some(document) => ClientError::Refused(document.error),
        None => ClientError::broken(action, &format!("HTTP status {status} without a reason; is that ebb?")),
    }
}

/// Server-sent events as they come.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    pending: Vec<u8>,
}

/// The longest single event that is believed.
const EVENT_LIMIT: usize = 4 << 20;

impl EventStream {
    /// The next event's data, or `None` when the daemon has closed the stream.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let broken = |cause: String| ClientError::broken("the daemon's event stream", &cause);
        loop {
            if let Some(data) = take_event(&mut self.pending) {
                return serde_json::from_str(&data).map(Some).map_err(|error| broken(error.to_string()));
            }
            if self.pending.len() > EVENT_LIMIT {
                return Err(broken("an event has no end".to_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// Takes the first whole event that has data out of what has been received; comments (keep-alives) are dropped.
fn take_event(pending: &mut Vec<u8>) -> Option<String> {
    loop {
        let end = pending.windows(2).position(|pair| pair == b"\n\n")?;
        let event: Vec<u8> = pending.drain(..end + 2).collect();
        let text = String::from_utf8_lossy(&event);
        let data: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .map(|data| data.strip_prefix(' ').unwrap_or(data))
            .collect();
        if !data.is_empty() {
            return Some(data.join("\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_where_they_end() {
        let mut pending = b": hello\n\nevent: x\ndata: {\"a\":1}\n\ndata: tail".to_vec();
        assert_eq!(take_event(&mut pending).as_deref(), Some("{\"a\":1}"));
        assert_eq!(take_event(&mut pending), None);
        assert_eq!(pending, b"data: tail");
    }

    #[tokio::test]
    async fn a_body_that_no_daemon_takes_is_not_sent() {
        let client = Client::new("/nowhere/ebb.sock");
        for (path, size, limit) in
            [("/v1/apply?dry_run=true", BodyLimit::ALL.size, 65_536), ("/v1/services", 64 << 10, 64)]
        {
            let error = client.call::<serde_json::Value>(Method::POST, path, Some(&"x".repeat(size))).await;
            let said = error.expect_err("too long").to_string();
            assert!(
                said.contains(&format!("{limit} KiB of JSON")) && said.contains(&format!("at most {limit}")),
                "{said}"
            );
        }
    }

    #[tokio::test]
    async fn nobody_at_the_socket_is_its_own_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let client = Client::new(dir.path().join("none.sock"));
        let error = client.get::<serde_json::Value>("/v1/status").await.expect_err("nobody listens");
        assert!(matches!(error, ClientError::NoDaemon { .. }), "{error}");
        assert!(error.to_string().contains("ebb run"), "{error}");
    }
}
