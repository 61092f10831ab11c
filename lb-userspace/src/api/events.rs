//! Events as a stream that leaves nothing out without a word: what was missed while a reader lagged is fetched again, and what the
//! engine has forgotten by then is stood for by one event that says so.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    http::HeaderMap,
    response::sse::{self, KeepAlive, Sse},
};
use futures_util::{Stream, stream};
use tokio::sync::broadcast::error::RecvError;

use super::error::ApiError;
use crate::{
    control::model::{Event, EventKind},
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
    let follower = Follower::new(engine, source, after);
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
    /// What comes after word of those that are missing before it.
    held: Option<Arc<Event>>,
    last: u64,
}

impl Follower {
    fn new(engine: Handle, source: EventStream, after: u64) -> Self {
        // Who begins with what is to come has seen what there is: what it then misses is missed since.
        let last = after.min(source.newest);
        Self { engine, pending: source.backlog.clone().into_iter(), source, held: None, last }
    }

    async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            if let Some(event) = self.held.take().or_else(|| self.pending.next()) {
                return Some(self.in_turn(event));
            }
            match self.source.live.recv().await {
                Ok(event) => return Some(self.in_turn(event)),
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(_)) => {
                    self.source = self.engine.events(self.last).await.ok()?;
                    self.pending = self.source.backlog.clone().into_iter();
                }
            }
        }
    }
    /// The event, unless others are missing before it: then that, and the event is next.
    fn in_turn(&mut self, event: Arc<Event>) -> Arc<Event> {
        let event = match missed(self.last, &event) {
            Some(missed) => {
                self.held = Some(event);
                Arc::new(missed)
            }
            None => event,
        };
        self.last = event.id;
        event
    }
}

/// Stands for the events between `last`, if that is one, and `next`, which nobody remembers any more; ids have no gaps.
pub(super) fn missed(last: u64, next: &Event) -> Option<Event> {
    let before = next.id.saturating_sub(1);
    let count = before.checked_sub(last).filter(|count| *count > 0 && last > 0)?;
    let reason = Some(format!("{count} events before the next one are no longer remembered"));
    Some(Event { reason, ..Event::new(before, next.at, EventKind::EventsMissed) })
}

fn encode(event: &Event) -> sse::Event {
    let plain = sse::Event::default().id(event.id.to_string());
    // Events are plain data; one that could not be written would be a comment rather than the end of the stream.
    plain.json_data(event).unwrap_or_else(|error| sse::Event::default().comment(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::fake::Rig;

    fn event(id: u64) -> Arc<Event> {
        let event = serde_json::json!({ "id": id, "at": "2026-01-01T00:00:00Z", "kind": "started" });
        Arc::new(serde_json::from_value(event).expect("an event"))
    }

    #[tokio::test]
    async fn a_follower_is_told_how_many_events_it_missed() {
        let rig = Rig::new();
        let engine = rig.handle.clone();
        let mut source = engine.events(u64::MAX).await.expect("events");
        let (live, receiver) = tokio::sync::broadcast::channel(4);
        source.live = receiver;
        live.send(event(12)).expect("somebody listens");
        let pending = vec![event(3), event(10), event(11)].into_iter();
        let mut follower = Follower { engine, source, pending, held: None, last: 2 };
        let mut seen = Vec::new();
        for _ in 0..5 {
            let event = follower.next().await.expect("an event");
            seen.push((event.id, event.reason.clone()));
        }
        let word = "6 events before the next one are no longer remembered".to_owned();
        assert_eq!(seen, [(3, None), (9, Some(word)), (10, None), (11, None), (12, None)]);
    }

    #[tokio::test]
    async fn a_follower_that_begins_now_is_told_what_it_missed_before_its_first_event() {
        let rig = Rig::new();
        let engine = rig.handle.clone();
        let mut source = engine.events(u64::MAX).await.expect("events");
        let newest = source.newest;
        assert!(newest > 0 && source.backlog.is_empty());
        let (live, receiver) = tokio::sync::broadcast::channel(4);
        source.live = receiver;
        live.send(event(newest + 3)).expect("somebody listens");
        let mut follower = Follower::new(engine, source, u64::MAX);
        let word = follower.next().await.expect("an event");
        assert_eq!((word.id, word.kind), (newest + 2, EventKind::EventsMissed));
        assert_eq!(follower.next().await.expect("an event").id, newest + 3);
    }

    #[test]
    fn who_asks_for_all_that_is_remembered_misses_nothing() {
        assert!(missed(0, &event(500)).is_none());
        assert!(missed(499, &event(500)).is_none() && missed(u64::MAX, &event(500)).is_none());
        assert_eq!(missed(498, &event(500)).map(|missed| missed.id), Some(499));
    }
}
