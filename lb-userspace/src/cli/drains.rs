//! The commands about drains: starting, changing, cancelling and above all waiting for them.

use std::{io::Write, time::Duration};

use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior},
};

use super::{
    args::{ActivateArgs, DrainArgs, WaitArgs},
    failure::{Exit, Failure},
    print::Printer,
    progress::Progress,
    show,
    values::Target,
};
use crate::{
    api::{
        client::{Client, ClientError},
        error::Kind,
        wire::Drains,
    },
    control::{
        hold::HoldAnswer,
        model::{DrainRequest, DrainStarted, Outcome, WaitFor, WaitResult},
    },
};

type Done = Result<Exit, Failure>;

/// How often a waiting command looks how far a drain has got.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a waiting command bears with a daemon that is away: long enough for a restart.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

const NO_TARGET: &str = "name a backend as SERVICE/BACKEND, or a host with --address";

/// How several waits ended.
#[derive(Debug, Serialize)]
struct Results {
    results: Vec<WaitResult>,
}

/// `ebb drain`.
pub(super) async fn drain(args: &DrainArgs, client: &Client, print: Printer) -> Done {
    let request = DrainRequest { timeout_s: args.timeout, on_timeout: args.on_timeout, force: args.force };
    match (&args.target, args.address) {
        (Some(target), _) => drain_one(target, &request, args.wait, client, print).await,
        (None, Some(host)) => {
            let drains = client.drain_host(host, &request).await?;
            if args.wait {
                return wait_for_all(&drains, client, print).await;
            }
            print.show(&drains, |out, drains| {
                drains.drains.iter().try_for_each(|drain| writeln!(out, "{}", started(drain)))
            })?;
            Ok(Exit::Done)
        }
        (None, None) => Err(Failure::usage(NO_TARGET)),
    }
}

async fn drain_one(target: &Target, request: &DrainRequest, wait: bool, client: &Client, print: Printer) -> Done {
    let drain = client.drain(&target.service, &target.backend, request).await?;
    if !wait {
        print.say(&drain, &started(&drain))?;
        return Ok(Exit::Done);
    }
    let result = outlast(target, WaitFor::Drained, None, client, print, true).await?;
    print.conclude(&result, &ended(target, &result))?;
    Ok(exit_of(&result))
}

/// All must end, so waiting for one after the other takes no longer than the longest.
async fn wait_for_all(drains: &Drains, client: &Client, print: Printer) -> Done {
    let mut results = Vec::new();
    for drain in &drains.drains {
        let target = Target { service: drain.service.clone(), backend: drain.backend.clone() };
        let result = outlast(&target, WaitFor::Drained, None, client, print, true).await?;
        if !print.is_json() {
            print.conclude(&result, &ended(&target, &result))?;
        }
        results.push(result);
    }
    let exits: Vec<Exit> = results.iter().map(exit_of).collect();
    if print.is_json() {
        print.conclude(&Results { results }, "")?;
    }
    let worst = [Exit::FlowsCut, Exit::Cancelled].into_iter().find(|exit| exits.contains(exit));
    Ok(worst.unwrap_or(Exit::Done))
}

/// `ebb activate`.
pub(super) async fn activate(args: &ActivateArgs, client: &Client, print: Printer) -> Done {
    let target = match (&args.target, args.address) {
        (Some(target), _) => target,
        (None, Some(host)) => {
            let activated = client.activate_host(host).await?;
            print.show(&activated, |out, activated| {
                activated.backends.iter().try_for_each(|view| {
                    writeln!(out, "{}/{}: {}", view.service, view.backend.name, show::state(view.backend.state))
                })
            })?;
            return Ok(Exit::Done);
        }
        (None, None) => return Err(Failure::usage(NO_TARGET)),
    };
    let view = client.activate(&target.service, &target.backend).await?;
    let sentence = format!("{target}: {}", show::state(view.backend.state));
    print.say(&view, &sentence)?;
    Ok(Exit::Done)
}

/// `ebb hook`.
pub(super) async fn answer_hold(target: &Target, answer: HoldAnswer, client: &Client, print: Printer) -> Done {
    let view = client.answer_hold(&target.service, &target.backend, answer).await?;
    let backend = &view.backend;
    let sentence = match &backend.drain {
        Some(drain) => format!("{target}: {}, {}", show::state(backend.state), show::look(drain)),
        None => format!("{target}: {}: {}", show::state(backend.state), backend.reason),
    };
    print.say(&view, &sentence)?;
    Ok(Exit::Done)
}

/// `ebb wait`.
pub(super) async fn wait(args: &WaitArgs, client: &Client, print: Printer) -> Done {
    let timeout = args.timeout.map(|timeout| timeout.0);
    let goal = args.goal;
    let result = outlast(&args.target, goal, timeout, client, print, false).await?;
    if goal == WaitFor::Active {
        print.conclude(&result, &format!("{}: active", args.target))?;
        return Ok(Exit::Done);
    }
    print.conclude(&result, &ended(&args.target, &result))?;
    Ok(exit_of(&result))
}

/// `ebb backend remove`.
pub(super) async fn remove(service: &str, name: &str, now: bool, wait: bool, client: &Client, print: Printer) -> Done {
    let removal = client.remove_backend(service, name, now).await?;
    let target = Target { service: service.to_owned(), backend: name.to_owned() };
    if wait {
        let result = outlast(&target, WaitFor::Drained, None, client, print, true).await?;
        print.conclude(&result, &ended(&target, &result))?;
        return Ok(match exit_of(&result) {
            // Cutting is what was asked for.
            Exit::FlowsCut if now => Exit::Done,
            exit => exit,
        });
    }
    let sentence = if removal.removed {
        format!("{target}: removed")
    } else {
        format!("{target}: draining, will then be removed; see \"ebb status {service}\"")
    };
    print.say(&removal, &sentence)?;
    Ok(Exit::Done)
}

/// Waits, shows how far it has got (without a terminal in `lines`, if at all), and bears with a daemon that is restarted meanwhile.
async fn outlast(
    target: &Target,
    goal: WaitFor,
    timeout: Option<Duration>,
    client: &Client,
    print: Printer,
    lines: bool,
) -> Result<WaitResult, Failure> {
    // A daemon that is not there to begin with, or not for us, is an error at once.
    if let Err(error @ (ClientError::NoDaemon { .. } | ClientError::NoPermission(_) | ClientError::Distrust(_))) =
        client.backend(&target.service, &target.backend).await
    {
        return Err(error.into());
    }
    let mut progress = if print.is_json() { Progress::Silent } else { Progress::new(&target.to_string(), lines) };
    let waiting = persevere(target, goal, timeout, client);
    tokio::pin!(waiting);
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|error| Failure::failed(format!("cannot watch for Ctrl-C: {error}")))?;
    loop {
        tokio::select! {
            biased;
            result = &mut waiting => return result,
            _ = interrupt.recv() => {
                progress.clear();
                return Err(interrupted(target, goal));
            }
            _ = looks.tick() => {
                let look = client.backend(&target.service, &target.backend).await;
                if let Some(drain) = look.ok().and_then(|view| view.backend.drain) {
                    progress.show(&show::look(&drain))?;
                }
            }
        }
    }
}

fn interrupted(target: &Target, goal: WaitFor) -> Failure {
    Failure::failed(match goal {
        WaitFor::Drained => format!(
            "stopped waiting; the drain of {target} goes on: \"ebb wait {target}\" waits for it, \"ebb activate {target}\" cancels it"
        ),
        WaitFor::Active => format!("stopped waiting for {target}; nothing was changed"),
    })
}

async fn persevere(
    target: &Target,
    goal: WaitFor,
    timeout: Option<Duration>,
    client: &Client,
) -> Result<WaitResult, Failure> {
    let begun = Instant::now();
    let mut away_since = None;
    loop {
        let asked = Instant::now();
        // The first time in full, so that what the daemon says is what was typed.
        let spent = if away_since.is_none() { Duration::ZERO } else { begun.elapsed() };
        let left = timeout.map(|timeout| timeout.saturating_sub(spent));
        let answer = client.wait(&target.service, &target.backend, goal, left).await;
        let error = match answer {
            Ok(result) => return Ok(result),
            Err(ClientError::Refused(body)) if body.kind != Kind::Internal => {
                return Err(ClientError::Refused(body).into());
            }
            Err(error) => error,
        };
        // A wait that was heard for a while and then broke off is a daemon that went away just now.
        if asked.elapsed() > RETRY_INTERVAL {
            away_since = None;
        }
        let since: Instant = *away_since.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE || left.is_some_and(|left| left.is_zero()) {
            return Err(error.into());
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// What the contract says a drain that ended this way exits with.
fn exit_of(result: &WaitResult) -> Exit {
    match &result.last_drain {
        Some(drain) if drain.outcome == Outcome::Cancelled => Exit::Cancelled,
        Some(drain) if drain.cut_flows > 0 => Exit::FlowsCut,
        // A deadline that only re-steered datagrams has cut nothing.
        _ => Exit::Done,
    }
}

fn ended(target: &Target, result: &WaitResult) -> String {
    let drain = match &result.last_drain {
        Some(drain) => show::ended(drain),
        None => "no flow was open".to_owned(),
    };
    match result.state {
        Some(state) => format!("{target}: {}: {drain}", show::state(state)),
        None => format!("{target}: removed: {drain}"),
    }
}

fn started(drain: &DrainStarted) -> String {
    let target = format!("{}/{}", drain.service, drain.backend);
    match (&drain.drain, &drain.last_drain) {
        (Some(running), _) => format!("{target}: draining, {}", show::look(running)),
        (None, Some(over)) => format!("{target}: {}: {}", show::state(drain.state), show::ended(over)),
        (None, None) => format!("{target}: {}", show::state(drain.state)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::model::{LastDrain, State};

    fn result(outcome: Outcome, cut_flows: u64) -> WaitResult {
        WaitResult {
            service: "web".to_owned(),
            backend: "web-1".to_owned(),
            state: Some(State::Drained),
            last_drain: Some(LastDrain {
                started_at: "2026-01-01T00:00:00Z".parse().expect("a time"),
                ended_at: "2026-01-01T00:00:09Z".parse().expect("a time"),
                outcome,
                initial_flows: 5,
                cut_flows,
                idle_flows: 0,
                held: None,
            }),
        }
    }

    #[test]
    fn outcomes_have_the_contract_s_exit_codes() {
        for (outcome, cut, code) in [
            (Outcome::Completed, 0, 0),
            (Outcome::Deadline, 2, 3),
            (Outcome::Deadline, 0, 0),
            (Outcome::Forced, 0, 0),
            (Outcome::Forced, 1, 3),
            (Outcome::Cancelled, 0, 4),
        ] {
            let exit = exit_of(&result(outcome, cut));
            assert_eq!(exit as u8, code, "{outcome:?} with {cut} cut");
        }
    }

    #[test]
    fn the_last_line_names_the_outcome() {
        let target = "web/web-1".parse().expect("a target");
        assert_eq!(
            ended(&target, &result(Outcome::Completed, 0)),
            "web/web-1: drained: completed after 9s, no flow cut"
        );
    }
}
