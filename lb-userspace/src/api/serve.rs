//! Serves a router to whoever connects, with a limit on everything a caller could hold open.

use std::{future::Future, io, mem, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::Semaphore,
    task::JoinSet,
};

use super::socket::Socket;

/// Callers served at once; more wait in the kernel's queue. Each is a descriptor, of which [`crate::descriptors`] has the budget,
/// and each command that waits for a drain is one.
pub(crate) const CALLERS: usize = 768;
/// How long a caller may take over the head of a request, and stay silent between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers under way may take once the daemon is stopping.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `shutdown` resolves; then lets answers under way finish for a moment and removes the socket.
pub async fn serve(socket: Socket, router: Router, shutdown: impl Future<Output = ()>) {
    attend(socket, CALLERS, move |stream| converse(stream, router.clone()), shutdown).await;
}

/// Where callers come from.
pub(super) trait Listener {
    /// What a caller is reached by.
    type Stream;

    /// The next caller.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for Socket {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Socket::accept(self).await
    }
}

/// Answers callers, so many at once, until `shutdown` resolves; then lets answers under way finish for a moment.
pub(super) async fn attend<L: Listener, F: Future<Output = ()> + Send + 'static>(
    listener: L,
    places: usize,
    answer: impl Fn(L::Stream) -> F,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(places));
    let mut callers = JoinSet::new();
    let mut failing = false;
    tokio::pin!(shutdown);
    loop {
        let place = tokio::select! {
            () = &mut shutdown => break,
            place = Arc::clone(&places).acquire_owned() => place,
            Some(_) = callers.join_next(), if !callers.is_empty() => continue,
        };
        let Ok(place) = place else { break };
        let stream = tokio::select! {
            () = &mut shutdown => break,
            stream = listener.accept() => stream,
        };
        match stream {
            Ok(stream) => {
                failing = false;
                let answering = answer(stream);
                callers.spawn(async move {
                    answering.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Once for as long as it lasts.
                if !mem::replace(&mut failing, true) {
                    tracing::warn!("cannot accept a caller: {error}");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let finish = async { while callers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, finish).await;
}

/// Answers the requests on one connection.
pub(super) async fn converse(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!("a caller's connection ended early: {error}");
    }
}
