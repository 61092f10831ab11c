//! Events as a stream that leaves nothing out: what was missed while a reader lagged is fetched again.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    http::HeaderMap,
    response::sse::{self, KeepAlive, Sse},
};
use futures_util::{Stream, stream};
use tokio::sync::broadcast::error::RecvError;

use super::error::ApiError;
use crate::{
    control::model::Event,
    daemon::{EventStream, Handle},
};

/// A silent stream says something this often, so that a reader that went away is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The id a reconnecting reader saw last, from the header the standard has for it.
pub(super) fn last_seen(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

/// Events above `after`, then all that follow, until the reader goes or the daemon stops.
pub(super) async fn follow(
    engine: Handle,
    after: u64,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let source = engine.events(after).await?;
    let follower = Follower { engine, pending: source.backlog.clone().into_iter(), source, last: after };
    let events = stream::unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        Some((Ok(encode(&event)), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Follower {
    engine: Handle,
    source: EventStream,
    pending: std::vec::IntoIter<Arc<Event>>,
    last: u64,
}

impl Follower {
    async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            if let Some(event) = self.pending.next() {
                self.last = event.id;
                return Some(event);
            }
            match self.source.live.recv().await {
                Ok(event) => {
                    self.last = event.id;
                    return Some(event);
                }
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(_)) => {
                    self.source = self.engine.events(self.last).await.ok()?;
                    self.pending = self.source.backlog.clone().into_iter();
                }
            }
        }
    }
}

fn encode(event: &Event) -> sse::Event {
    let plain = sse::Event::default().id(event.id.to_string());
    // Events are plain data; one that could not be written would be a comment rather than the end of the stream.
    plain.json_data(event).unwrap_or_else(|error| sse::Event::default().comment(error.to_string()))
}
