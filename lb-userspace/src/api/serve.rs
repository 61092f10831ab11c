//! Serves a router on the socket, with a limit on everything a caller could hold open.

use std::{future::Future, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::UnixStream, sync::Semaphore, task::JoinSet};

use super::socket::Socket;

/// Callers served at once; more wait in the kernel's queue. Each is a descriptor, of which a process has 1,024 by default, and
/// each command that waits for a drain is one.
const CALLERS: usize = 768;
/// How long a caller may take over the head of a request, and stay silent between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers under way may take once the daemon is stopping.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `shutdown` resolves; then lets answers under way finish for a moment and removes the socket.
pub async fn serve(socket: Socket, router: Router, shutdown: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(CALLERS));
    let mut callers = JoinSet::new();
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
            stream = socket.accept() => stream,
        };
        match stream {
            Ok(stream) => {
                let router = router.clone();
                callers.spawn(async move {
                    converse(stream, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a caller: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(socket);
    let finish = async { while callers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, finish).await;
}

async fn converse(stream: UnixStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!("a caller's connection ended early: {error}");
    }
}
