//! Remote control: the same operations over TCP, for callers with a certificate that is listed, and for nobody else.

mod settings;
mod shares;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

pub use settings::{ClientRule, Settings, SettingsError, Terms};

use self::shares::Shares;
use super::serve::{Listener, attend, converse};

/// Callers served at once, those included who are still showing who they are. The socket has places of its own.
pub(crate) const CALLERS: usize = 192;
/// Of those, how many may come from one address.
const SHARE: usize = CALLERS / 2;
/// How long a caller may take to show who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller that was turned away has to read why.
const PARTING: Duration = Duration::from_secs(1);

/// Serves until `shutdown` resolves. Connections that were made under other terms end when the terms change: whoever made them
/// has to show again who they are.
pub async fn serve(
    listener: TcpListener,
    terms: watch::Receiver<Arc<Terms>>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let shares = Shares::new(SHARE);
    let answer = move |(stream, peer): (TcpStream, SocketAddr)| {
        let (terms, router, shares) = (terms.clone(), router.clone(), Arc::clone(&shares));
        async move {
            let Some(_place) = shares.take(peer.ip()) else {
                return tracing::info!("{peer} was turned away: {SHARE} connections of that address are open");
            };
            answer(stream, peer, terms, router).await;
        }
    };
    attend(listener, CALLERS, answer, shutdown).await;
}

impl Listener for TcpListener {
    type Stream = (TcpStream, SocketAddr);

    async fn accept(&self) -> io::Result<Self::Stream> {
        TcpListener::accept(self).await
    }
}

async fn answer(stream: TcpStream, peer: SocketAddr, mut terms: watch::Receiver<Arc<Terms>>, router: Router) {
    let now = Arc::clone(&terms.borrow_and_update());
    super::transport::keep_alive(&stream);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, introduce(stream, &now)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!("{peer} was turned away: {error}");
            return;
        }
        Err(_) => {
            tracing::info!("{peer} was turned away: it did not show who it is in {HANDSHAKE_TIMEOUT:?}");
            return;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let Some(caller) = certificate.map(|certificate| now.caller(peer.ip(), certificate)) else { return };
    let router = router.layer(Extension(caller));
    let changed = async {
        if terms.changed().await.is_err() {
            // Nobody is left to change them: the daemon is stopping, and answers under way may finish.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = converse(stream, router) => {}
        () = changed => tracing::debug!("{peer}: the terms have changed"),
    }
}

/// The handshake. Who is turned away is told why, and given a moment to read it: closing at once would take the answer back.
async fn introduce(stream: TcpStream, terms: &Terms) -> io::Result<TlsStream<TcpStream>> {
    let acceptor = TlsAcceptor::from(Arc::clone(terms.tls()));
    let (error, mut stream) = match acceptor.accept(stream).into_fallible().await {
        Ok(stream) => return Ok(stream),
        Err(refused) => refused,
    };
    // Within its place, or there would be no limit on those who are turned away.
    let parting = async {
        let _ = stream.shutdown().await;
        let mut rest = [0; 1_024];
        while matches!(stream.read(&mut rest).await, Ok(1..)) {}
    };
    let _ = tokio::time::timeout(PARTING, parting).await;
    Err(error)
}
