//! The part of `ebb run` that answers other hosts.

use std::sync::Arc;

use axum::Router;
use tokio::sync::watch;

use super::{failure::Failure, prepare::Listener};
use crate::api::remote::{self, Settings, Terms};

/// A port at which nobody is answered yet.
pub(super) struct Door {
    listener: Listener,
    terms: Terms,
}

/// Remote control that is on, and can be put under other terms.
#[derive(Debug)]
pub(super) struct Remote(watch::Sender<Arc<Terms>>);

/// Terms that have been looked through and are not in force yet.
pub(super) struct Renewal(Option<Terms>);

impl Door {
    /// Reads the files and takes the port, before anything that would have to be undone.
    pub(super) fn take(settings: &Settings) -> Result<Self, Failure> {
        let terms = load(settings)?;
        let listener = Listener::take(settings.listen, "cannot listen", "[daemon.remote]")?;
        if settings.clients.is_empty() {
            tracing::warn!("[daemon.remote] has no client: whoever connects may do nothing");
        }
        Ok(Self { listener, terms })
    }

    /// Answers until `shutdown` resolves.
    pub(super) fn serve(
        self,
        router: Router,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Remote, Failure> {
        let (sender, terms) = watch::channel(Arc::new(self.terms));
        tokio::spawn(remote::serve(self.listener.open()?, terms, router, shutdown));
        Ok(Remote(sender))
    }
}

impl Remote {
    /// Reads the files again.
    pub(super) fn look(settings: Option<&Settings>) -> Result<Renewal, Failure> {
        settings.map(load).transpose().map(Renewal)
    }

    /// Puts terms in force. Those the same as before leave connections alone.
    pub(super) fn renew(&self, Renewal(terms): Renewal) {
        let Some(terms) = terms else { return };
        let renewed = self.0.send_if_modified(|present| {
            let differ = **present != terms;
            if differ {
                *present = Arc::new(terms);
            }
            differ
        });
        if renewed {
            tracing::info!("remote control has other certificates or clients: callers have to connect again");
        }
    }
}

fn load(settings: &Settings) -> Result<Terms, Failure> {
    Terms::load(settings).map_err(|error| Failure::failed(format!("[daemon.remote] {}: {error}", error.key)))
}
