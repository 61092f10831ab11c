//! `ebb top`: services, backends and drains as they are, with keys to drain and activate.

mod model;
mod view;

use std::{io::IsTerminal, time::Duration};

use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt;
use ratatui::DefaultTerminal;
use tokio::time::MissedTickBehavior;

use self::model::{Model, Request};
use super::failure::{Exit, Failure};
use crate::{
    api::client::{Client, ClientError},
    control::model::DrainRequest,
};

/// Between two looks: rates over a second are steady enough to read, and a drain's countdown does not jump.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// `ebb top`.
pub(super) async fn top(client: &Client) -> Result<Exit, Failure> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::failed("ebb top needs a terminal; for scripts there is \"ebb status -o json\""));
    }
    let mut model = Model::default();
    // Before the screen is taken over: without a daemon there is nothing to show.
    model.look(client.status(None).await?, now());
    let mut terminal =
        ratatui::try_init().map_err(|error| Failure::failed(format!("cannot use the terminal: {error}")))?;
    let ended = run(&mut terminal, &mut model, client).await;
    ratatui::restore();
    ended.map(|()| Exit::Done)
}

async fn run(terminal: &mut DefaultTerminal, model: &mut Model, client: &Client) -> Result<(), Failure> {
    let mut keys = EventStream::new();
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| view::draw(frame, model))?;
        tokio::select! {
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    match model.key(key) {
                        Some(Request::Quit) => return Ok(()),
                        Some(request) => {
                            let answer = carry_out(&request, client).await;
                            model.answered(&request, answer);
                            look(model, client).await;
                        }
                        None => {}
                    }
                }
                // Resizes are drawn at the top of the loop.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(()),
            },
            _ = looks.tick() => look(model, client).await,
        }
    }
}

/// A daemon that is away for a moment is said to be, and looked for again.
async fn look(model: &mut Model, client: &Client) {
    match client.status(None).await {
        Ok(status) => model.look(status, now()),
        Err(error) => model.away(&error),
    }
}

async fn carry_out(request: &Request, client: &Client) -> Result<(), ClientError> {
    match request {
        Request::Drain { service, backend } => client.drain(service, backend, &DrainRequest::default()).await.map(drop),
        Request::Activate { service, backend } => client.activate(service, backend).await.map(drop),
        Request::Quit => Ok(()),
    }
}

fn now() -> std::time::Instant {
    std::time::Instant::now()
}
