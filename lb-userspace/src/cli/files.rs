//! The commands about a configuration file.

use std::{io::Write, path::Path};

use serde::Serialize;

use super::{
    failure::{Exit, Failure},
    print::Printer,
};
use crate::{
    api::{client::Client, wire::Wanted},
    config::{self, LoadError, file::File},
    control::model::{ApplyReport, ChangeAction},
};

/// What `ebb check` found.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    file: &'a Path,
    services: usize,
    backends: usize,
}

/// `ebb check`.
pub(super) fn check(path: &Path, print: Printer) -> Result<Exit, Failure> {
    let file = load_here(path)?;
    let backends = file.services.iter().map(|service| service.backends.len()).sum();
    let checked = Checked { file: path, services: file.services.len(), backends };
    let sentence =
        format!("{}: nothing wrong; services: {}, backends: {}", path.display(), checked.services, checked.backends);
    print.say(&checked, &sentence)?;
    Ok(Exit::Done)
}

/// `ebb apply`.
pub(super) async fn apply(path: &Path, dry_run: bool, client: &Client, print: Printer) -> Result<Exit, Failure> {
    let services = load(path)?.wanted().map_err(|error| Failure::usage(error.to_string()))?;
    let report = client.apply(&Wanted { services }, dry_run).await?;
    print.show(&report, diff)?;
    Ok(Exit::Done)
}

/// Reads a file as far as it can be without a daemon. What it says wrong is a usage error.
pub(super) fn load(path: &Path) -> Result<File, Failure> {
    config::load(path).map_err(|error| wrong(&error))
}

/// The same, with the files that it names: those are on the host it is about.
pub(super) fn load_here(path: &Path) -> Result<File, Failure> {
    config::load_here(path).map_err(|error| wrong(&error))
}

fn wrong(error: &LoadError) -> Failure {
    match error {
        LoadError::Unreadable { .. } => Failure::failed(error.to_string()),
        LoadError::Wrong { .. } => Failure::usage(error.to_string()),
    }
}

fn diff(out: &mut Vec<u8>, report: &ApplyReport) -> std::io::Result<()> {
    for change in &report.changes {
        let sign = match change.action {
            ChangeAction::Add => '+',
            ChangeAction::Set => '~',
            ChangeAction::Remove => '-',
        };
        let backend = change.backend.as_ref().map_or_else(String::new, |backend| format!("/{backend}"));
        writeln!(out, "{sign} {}{backend}: {}", change.service, change.detail)?;
    }
    match (report.changes.len(), report.dry_run) {
        (0, _) => writeln!(out, "nothing to change"),
        (_, true) => writeln!(out, "dry run: nothing was changed (revision {})", report.revision),
        (1, false) => writeln!(out, "1 change made"),
        (count, false) => writeln!(out, "{count} changes made"),
    }
}
