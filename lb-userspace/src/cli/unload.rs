//! `ebb unload`: takes the datapath out of the kernel, whether a daemon runs or not.

use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    args::UnloadArgs,
    failure::{Exit, Failure},
    prepare,
    print::Printer,
    settings,
};
use crate::{
    api::client::{Client, ClientError},
    datapath::{self, Unloaded},
};

/// How long a daemon may take to write its state and end.
const ENDING: Duration = Duration::from_secs(10);

/// What was removed.
#[derive(Debug, Serialize)]
struct Report {
    interfaces: Vec<String>,
    flows_forgotten: bool,
    daemon_stopped: bool,
}

/// `ebb unload`. Services and backends stay in the state directory: `ebb run` brings them back, their flows are gone.
pub(super) async fn unload(args: &UnloadArgs, client: &Client, print: Printer) -> Result<Exit, Failure> {
    let (pin_path, state_dir) = settings::places(&args.places);
    let daemon = is_ours(client, &pin_path).await;
    // A daemon without a datapath would have nothing to tell; with part of it it goes on.
    if daemon && args.interfaces.is_empty() {
        stop(client, &state_dir).await?;
    }
    let unloaded =
        datapath::unload_any_layout(&pin_path, &args.interfaces).map_err(|error| Failure::failed(error.to_string()))?;
    if daemon && !args.interfaces.is_empty() && unloaded.maps {
        stop(client, &state_dir).await?;
    }
    let Unloaded { interfaces, maps } = unloaded;
    let report =
        Report { interfaces, flows_forgotten: maps, daemon_stopped: daemon && (maps || args.interfaces.is_empty()) };
    print.show(&report, |out, report| {
        match report.interfaces.as_slice() {
            [] => writeln!(out, "nothing was attached"),
            names => writeln!(out, "detached from {}", names.join(", ")),
        }?;
        if report.daemon_stopped {
            writeln!(out, "the daemon has stopped")?;
        }
        Ok(())
    })?;
    Ok(Exit::Done)
}

/// Whether the daemon at the socket works with these pins. One that cannot be asked is none of ours.
async fn is_ours(client: &Client, pin_path: &Path) -> bool {
    client.daemon().await.is_ok_and(|info| info.pin_path == pin_path)
}

async fn stop(client: &Client, state_dir: &Path) -> Result<(), Failure> {
    match client.stop_daemon().await {
        // It may be gone before its answer is through.
        Ok(_) | Err(ClientError::Broken { .. } | ClientError::NoDaemon { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let begun = Instant::now();
    // It lets go of its state last.
    while begun.elapsed() < ENDING {
        match prepare::lock(state_dir) {
            Ok(_) => return Ok(()),
            Err(_) if !state_dir.exists() => return Ok(()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    Err(Failure::failed(format!("the daemon has not ended within {ENDING:?}; stop it, then run ebb unload again")))
}
