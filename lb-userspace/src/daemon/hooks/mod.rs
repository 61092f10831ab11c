//! Hooks: a command or a request for each transition of a backend and each step of a drain.
//!
//! Each hook is told in order, one thing at a time; a hook that hangs or fails holds up nobody but itself.

mod queue;
mod template;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{Request, Uri, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc},
    task::JoinSet,
};

use self::queue::Queue;
use super::{command, health::http};
use crate::control::{
    Error,
    duration::{self, Seconds},
    model::{Event, EventKind, Outcome},
    vip::check_name,
};

/// The pause before a failed delivery is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// One hook, as `[[daemon.hook]]` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HookSpec {
    /// Unique; its queue on disk is found by it.
    pub name: String,
    /// A program and its arguments, which gets the notification on its standard input.
    pub command: Option<Vec<String>>,
    /// An `http` URL to which the notification is posted; `{address}`, `{service}` and `{backend}` stand for the backend's.
    pub url: Option<String>,
    /// How long a delivery may take.
    #[serde(default = "default_timeout")]
    pub timeout: Seconds,
    /// How often a failed delivery is repeated before it is given up.
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// Only these services; all of them unless given.
    #[serde(default)]
    pub services: Vec<String>,
    /// Only these kinds; `backend_state`, `drain_started`, `drain_changed`, `drain_held`, `drain_ended` and `backend_removed`
    /// unless given.
    #[serde(default = "default_events")]
    pub events: Vec<EventKind>,
}

fn default_timeout() -> Seconds {
    Seconds::new(10)
}

fn default_retries() -> u32 {
    5
}

fn default_events() -> Vec<EventKind> {
    vec![
        EventKind::BackendState,
        EventKind::DrainStarted,
        EventKind::DrainChanged,
        EventKind::DrainHeld,
        EventKind::DrainEnded,
        EventKind::BackendRemoved,
    ]
}

impl HookSpec {
    /// Whether it makes sense by itself.
    pub fn check(&self) -> Result<(), Error> {
        check_name("hook", &self.name)?;
        let invalid = |why: &str| Err(Error::Invalid(format!("hook {}: {why}", self.name)));
        match (&self.command, &self.url) {
            (None, None) => invalid("give it a command or a url"),
            (Some(_), Some(_)) => invalid("give it a command or a url, not both: two hooks can do both"),
            _ if self.timeout.0.is_zero() => invalid("the timeout is more than 0"),
            _ if self.events.contains(&EventKind::EventsMissed) => {
                invalid("no hook misses events: leave events_missed out")
            }
            (Some(argv), None) if argv.is_empty() => invalid("the command is empty"),
            (None, Some(url)) => {
                let filled = template::sample(url).and_then(|url| destination(&url));
                filled.map(drop).or_else(|why| invalid(&why))
            }
            (Some(_), None) => Ok(()),
        }
    }

    fn wants(&self, event: &Event) -> bool {
        let service = event.service.as_ref();
        let told_to_backends = self.url.as_deref().is_some_and(template::needs_backend);
        self.events.contains(&event.kind)
            && (event.address.is_some() || !told_to_backends)
            && (self.services.is_empty() || service.is_some_and(|service| self.services.contains(service)))
    }
}

/// What a hook is told. The counts are in `drain` and `last_drain`.
#[derive(Debug, Serialize)]
struct Notification<'a> {
    hook: &'a str,
    #[serde(flatten)]
    event: &'a Event,
    outcome: Option<Outcome>,
}

/// Tells hooks of `events` until the engine has ended and all that it told is queued. What has not been delivered by then is in `directory` for
/// the next start.
pub async fn run(
    mut events: mpsc::UnboundedReceiver<Arc<Event>>,
    hooks: Vec<HookSpec>,
    directory: &Path,
) -> io::Result<()> {
    let open = |spec: HookSpec| {
        let queue = Mutex::new(Queue::open(directory, &spec.name)?);
        Ok(Arc::new(Hook { spec, queue, news: Notify::new() }))
    };
    let hooks: Vec<Arc<Hook>> = hooks.into_iter().map(open).collect::<io::Result<_>>()?;
    let mut deliveries = JoinSet::new();
    for hook in &hooks {
        deliveries.spawn(deliver_for_ever(hook.clone()));
    }
    while let Some(event) = events.recv().await {
        enqueue(&hooks, &event).await;
    }
    Ok(())
}

struct Hook {
    spec: HookSpec,
    queue: Mutex<Queue>,
    news: Notify,
}

impl Hook {
    /// Does something with the queue where waiting for the disk holds up nobody.
    async fn queue<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&mut Queue) -> T + Send + 'static) -> T {
        let hook = self.clone();
        let working = tokio::task::spawn_blocking(move || {
            // Each step leaves the queue whole.
            work(&mut hook.queue.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match working.await {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

/// Puts an event into the queues.
async fn enqueue(hooks: &[Arc<Hook>], event: &Event) {
    for hook in hooks.iter().filter(|hook| hook.spec.wants(event)) {
        let outcome = event.last_drain.as_ref().map(|last| last.outcome);
        let notification = Notification { hook: &hook.spec.name, event, outcome };
        let Ok(line) = serde_json::to_string(&notification) else { continue };
        if let Err(error) = hook.queue(|queue| queue.push(line)).await {
            tracing::error!("hook {} will not be told of event {}: {error}", hook.spec.name, event.id);
        }
        hook.news.notify_one();
    }
}

async fn deliver_for_ever(hook: Arc<Hook>) {
    loop {
        let Some(line) = hook.queue(|queue| queue.front()).await else {
            hook.news.notified().await;
            continue;
        };
        deliver(&hook.spec, &line).await;
        if let Err(error) = hook.queue(Queue::pop).await {
            tracing::error!("hook {} may be told again of what it knows: {error}", hook.spec.name);
        }
    }
}

/// Delivers one notification, or gives it up.
async fn deliver(spec: &HookSpec, line: &str) {
    let mut pause = FIRST_PAUSE;
    for attempt in 0..=spec.retries {
        let limited = tokio::time::timeout(spec.timeout.0, attempt_once(spec, line)).await;
        let tried =
            limited.unwrap_or_else(|_| Err(format!("it was not done within {}", duration::format(spec.timeout.0))));
        let Err(why) = tried else { return };
        if attempt == spec.retries {
            tracing::error!("hook {}: {why}; given up: {line}", spec.name);
            return;
        }
        tracing::warn!("hook {}: {why}; trying again in {}", spec.name, duration::format(pause));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn attempt_once(spec: &HookSpec, line: &str) -> Result<(), String> {
    if let Some(argv) = &spec.command {
        return command::run(argv, &[("EBB_HOOK", spec.name.clone())], format!("{line}\n").into_bytes())
            .await
            .map_err(|fault| fault.to_string());
    }
    post(&template::fill(spec.url.as_deref().unwrap_or_default(), line)?, line).await
}

async fn post(url: &str, line: &str) -> Result<(), String> {
    let to = destination(url)?;
    let failed = |error: &dyn std::fmt::Display| format!("{url}: {error}");
    let stream = TcpStream::connect((&*to.host, to.port)).await.map_err(|error| failed(&error))?;
    let request = Request::post(to.path)
        .header(header::HOST, to.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("ebb/", env!("CARGO_PKG_VERSION"), " hook"))
        .header(header::CONNECTION, "close")
        .body(Full::from(line.to_owned()))
        .map_err(|error| failed(&error))?;
    match http::exchange(stream, request).await.map_err(|error| failed(&error))? {
        200..=299 => Ok(()),
        status => Err(failed(&format!("answered with status {status}, not 200 to 299"))),
    }
}

struct Destination {
    host: String,
    port: u16,
    authority: String,
    path: String,
}

fn destination(url: &str) -> Result<Destination, String> {
    let uri: Uri = url.parse().map_err(|error| format!("'{url}' is not a URL: {error}"))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) => Ok(Destination {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        }),
        _ => Err(format!(
            "'{url}' is not a URL that can be used: write http://HOST[:PORT]/PATH; for https use a command"
        )),
    }
}
