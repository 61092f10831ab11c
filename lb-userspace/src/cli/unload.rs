//! `ebb unload`: takes the datapath out of the kernel, whether a daemon runs or not.

use std::{
    io::Write,
    path::{self, Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    args::UnloadArgs,
    failure::{Exit, Failure},
    prepare,
    print::Printer,
};
use crate::{
    api::{
        DaemonInfo,
        client::{Client, ClientError},
    },
    datapath::{self, OpenError, Unloaded},
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
    let failed = |error: OpenError| Failure::failed(error.to_string());
    let (pin_path, daemon) = places(args.pin_path.as_deref(), client.daemon().await)?;
    // Before a daemon is stopped for nothing.
    let directories = datapath::pinned_at(&pin_path).map_err(failed)?;
    let all = args.interfaces.is_empty();
    // A daemon without a datapath would have nothing to tell; with part of it it goes on.
    if let Some(daemon) = daemon.as_ref().filter(|_| all) {
        stop(client, &daemon.state_dir).await?;
    }
    let Unloaded { interfaces, maps } = datapath::unload_directories(&directories, &args.interfaces).map_err(failed)?;
    if let Some(daemon) = daemon.as_ref().filter(|_| !all && maps) {
        stop(client, &daemon.state_dir).await?;
    }
    let report = Report { interfaces, flows_forgotten: maps, daemon_stopped: daemon.is_some() && (maps || all) };
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

/// The pins to remove, and the daemon that works with them: those that were named, else a running daemon's own, which may have
/// them from its file, else those of a daemon that was told nothing.
fn places(
    named: Option<&Path>,
    daemon: Result<DaemonInfo, ClientError>,
) -> Result<(PathBuf, Option<DaemonInfo>), ClientError> {
    match (named, daemon) {
        (Some(named), daemon) => {
            let named = path::absolute(named).unwrap_or_else(|_| named.to_owned());
            // One that cannot be asked is none of ours.
            let ours = daemon.ok().filter(|daemon| daemon.pin_path == named);
            Ok((named, ours))
        }
        (None, Ok(daemon)) => Ok((daemon.pin_path.clone(), Some(daemon))),
        // There may be one that has its pins elsewhere.
        (None, Err(error @ ClientError::NoPermission(_))) => Err(error),
        (None, Err(_)) => Ok((datapath::default_pin_path(), None)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_tells_where_its_pins_and_its_state_are() {
        let daemon = DaemonInfo::of_this(Path::new("/sys/fs/bpf/own"), Path::new("/srv/ebb"));
        let own = (PathBuf::from("/sys/fs/bpf/own"), Some(daemon.clone()));
        assert_eq!(places(None, Ok(daemon.clone())).expect("it was asked"), own);
        assert_eq!(places(Some(Path::new("/sys/fs/bpf/own")), Ok(daemon.clone())).expect("it was asked"), own);
        let other = Path::new("/sys/fs/bpf/other");
        let named = places(Some(other), Ok(daemon)).expect("it was asked");
        assert_eq!(named, (other.to_owned(), None), "what was named is not this daemon's");
    }

    #[test]
    fn without_a_daemon_the_default_is_meant_unless_there_may_be_one() {
        let source = std::io::ErrorKind::NotFound.into();
        let none = Err(ClientError::NoDaemon { place: "/run/ebb/ebb.sock".to_owned(), source, advice: "" });
        assert_eq!(places(None, none).expect("nobody to ask"), (datapath::default_pin_path(), None));
        let hidden = || Err(ClientError::NoPermission("/run/ebb/ebb.sock".into()));
        assert!(places(None, hidden()).is_err());
        let named = Path::new("/sys/fs/bpf/own");
        assert_eq!(places(Some(named), hidden()).expect("it was named"), (named.to_owned(), None));
    }

    #[test]
    fn the_package_unloads_while_the_daemon_can_tell() {
        let script = include_str!("../../../packaging/debian/prerm");
        let (unload, stop) = (script.find("ebb unload"), script.find("#DEBHELPER#"));
        assert!(unload.is_some() && unload < stop, "{script}");
    }

    #[test]
    fn directories_are_told_in_full() {
        let here = std::env::current_dir().expect("there is one");
        let daemon = DaemonInfo::of_this(Path::new("pins"), Path::new("state"));
        assert_eq!((daemon.pin_path, daemon.state_dir), (here.join("pins"), here.join("state")));
    }
}
