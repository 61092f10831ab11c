//! `ebb events`: what happened, and with `--follow` what happens.

use std::{
    io::{self, Write},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    failure::{Exit, Failure},
    print::Printer,
    show,
};
use crate::{
    api::{
        client::{Client, ClientError, EventStream},
        error::Kind,
    },
    control::model::{Event, EventKind},
};

/// How long a follower bears with a daemon that is away: long enough for a restart.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// `ebb events`.
pub(super) async fn events(follow: bool, client: &Client, print: Printer) -> Result<Exit, Failure> {
    if follow {
        return follow_events(client, print).await;
    }
    let happened = client.events().await?;
    print.show(&happened, |out, happened| {
        if happened.events.is_empty() {
            return writeln!(out, "nothing has happened yet");
        }
        happened.events.iter().try_for_each(|event| line(out, event))
    })?;
    Ok(Exit::Done)
}

/// Ids grow over restarts of the daemon, so a follower that outlives one misses nothing and sees nothing twice.
async fn follow_events(client: &Client, print: Printer) -> Result<Exit, Failure> {
    let mut last = None;
    let mut stream = client.follow_events(last).await?;
    loop {
        match stream.next::<Event>().await {
            Ok(Some(event)) => {
                last = Some(event.id);
                print.show(&event, line)?;
            }
            Ok(None) | Err(ClientError::Broken { .. }) => stream = reconnect(client, last).await?,
            Err(error) => return Err(error.into()),
        }
    }
}

async fn reconnect(client: &Client, last: Option<u64>) -> Result<EventStream, Failure> {
    let begun = Instant::now();
    loop {
        match client.follow_events(last).await {
            Ok(stream) => return Ok(stream),
            // One that answers no will not change its mind; one that is stopping might be back.
            Err(ClientError::Refused(body)) if body.kind != Kind::Internal => {
                return Err(ClientError::Refused(body).into());
            }
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

fn line(out: &mut Vec<u8>, event: &Event) -> io::Result<()> {
    let at = event.at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
    let subject = match (&event.service, &event.backend) {
        (Some(service), Some(backend)) => format!("{service}/{backend}"),
        (Some(service), None) => service.clone(),
        (None, _) => event.interface.clone().unwrap_or_else(|| "-".to_owned()),
    };
    let line = format!("{at}  {:16}  {subject}  {}", kind(event.kind), detail(event));
    writeln!(out, "{}", line.trim_end())
}

fn detail(event: &Event) -> String {
    let mut parts = Vec::new();
    match (event.from, event.state) {
        (Some(from), Some(to)) => parts.push(format!("{} -> {}", show::state(from), show::state(to))),
        (None, Some(to)) => parts.push(show::state(to).to_owned()),
        (_, None) => {}
    }
    parts.extend(event.drain.as_ref().map(|drain| show::look(drain).to_string()));
    parts.extend(event.last_drain.as_ref().map(show::ended));
    parts.extend(event.reason.clone());
    parts.join("; ")
}

fn kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::ServiceAdded => "service_added",
        EventKind::ServiceChanged => "service_changed",
        EventKind::ServiceRemoved => "service_removed",
        EventKind::BackendAdded => "backend_added",
        EventKind::BackendChanged => "backend_changed",
        EventKind::BackendRemoved => "backend_removed",
        EventKind::BackendState => "backend_state",
        EventKind::DrainStarted => "drain_started",
        EventKind::DrainChanged => "drain_changed",
        EventKind::DrainHeld => "drain_held",
        EventKind::HoldExtended => "hold_extended",
        EventKind::DrainEnded => "drain_ended",
        EventKind::FlowStateLost => "flow_state_lost",
        EventKind::Started => "started",
        EventKind::InterfaceGone => "interface_gone",
        EventKind::InterfaceBack => "interface_back",
        EventKind::InterfaceState => "interface_state",
        EventKind::EventsMissed => "events_missed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event: Event = serde_json::from_str(
            r#"{"id":7,"at":"2026-01-01T00:00:00.25Z","kind":"backend_state","service":"web","backend":"web-1",
                "from":"initial","state":"active","reason":"next hop resolved"}"#,
        )
        .expect("an event");
        let mut out = Vec::new();
        line(&mut out, &event).expect("writes to memory");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "2026-01-01T00:00:00.250Z  backend_state     web/web-1  initial -> active; next hop resolved\n"
        );
    }
}
