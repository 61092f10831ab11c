//! The `ebb` command line: what can be typed, what is asked of the daemon, and how its answers are shown.

mod advise;
pub mod args;
pub mod check;
mod commands;
mod decap;
mod doctor;
mod drains;
mod events;
pub mod failure;
mod files;
mod generate;
mod place;
mod prepare;
mod print;
mod progress;
mod remote;
mod run;
mod settings;
mod show;
mod table;
mod top;
mod unload;
pub mod values;

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::{CommandFactory, FromArgMatches};

use self::{
    args::{BackendCommand, Cli, Command, ServiceCommand},
    failure::{Exit, Failure, usage_line},
    place::Typed,
    print::Printer,
};
use crate::{
    api::client::Client,
    control::model::{BackendPatch, BackendSpec},
};

/// Runs one command line and says how it ended.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = Cli::command()
        .try_get_matches_from(words)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, Typed::of(&matches))));
    let (cli, typed) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return not_understood(&error).into(),
    };
    let exit = match execute(cli, typed) {
        Ok(exit) => exit,
        Err(failure) => {
            if !failure.message.is_empty() {
                let _ = writeln!(std::io::stderr(), "error: {failure}");
            }
            failure.exit
        }
    };
    exit.into()
}

fn not_understood(error: &clap::Error) -> Exit {
    if error.use_stderr() && error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = writeln!(std::io::stderr(), "error: {}", usage_line(error));
        return Exit::Usage;
    }
    let _ = error.print();
    if error.use_stderr() { Exit::Usage } else { Exit::Done }
}

fn execute(cli: Cli, typed: Typed) -> Result<Exit, Failure> {
    let client = place::client(&cli.global, typed, &cli.command)?;
    let print = Printer::new(cli.global.output);
    if let Command::Run(args) = &cli.command {
        return run::run(args, &cli.global.socket);
    }
    // Talking to the daemon is one conversation: a second thread would have nothing to do.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(ask(cli.command, &client, print))
}

async fn ask(command: Command, client: &Client, print: Printer) -> Result<Exit, Failure> {
    match command {
        // It makes a runtime of its own, later.
        Command::Run(_) => Ok(Exit::Done),
        Command::Unload(args) => unload::unload(&args, client, print).await,
        Command::Check { file } => files::check(&file, print),
        Command::Apply { file, dry_run, if_revision } => {
            files::apply(&file, dry_run, &client.only_if(if_revision.as_deref()), print).await
        }
        Command::Events { follow } => events::events(follow, client, print).await,
        Command::Decap(args) => decap::decap(&args, print).await,
        Command::Top => top::top(client).await,
        Command::Doctor { interfaces } => doctor::doctor(&interfaces, client, print).await,
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { directory } => generate::manual(&directory),
        Command::Service(command) => service(command, client, print).await,
        Command::Backend(command) => backend(command, client, print).await,
        Command::Drain(args) => drains::drain(&args, client, print).await,
        Command::Activate(args) => drains::activate(&args, client, print).await,
        Command::Hook { answer, target } => drains::answer_hold(&target, answer, client, print).await,
        Command::Wait(args) => drains::wait(&args, client, print).await,
        Command::Status { service } => commands::status(service.as_deref(), client, print).await,
        Command::Advise { service } => advise::advise(&service, client, print).await,
        Command::Flows(args) => commands::flows(&args, client, print).await,
    }
}

async fn service(command: ServiceCommand, client: &Client, print: Printer) -> Result<Exit, Failure> {
    match command {
        ServiceCommand::Add { name, vip, forward, settings } => {
            commands::add_service(&name, vip, forward, &settings, client, print).await
        }
        ServiceCommand::List => commands::list_services(client, print).await,
        ServiceCommand::Show { name } => commands::show_service(&name, client, print).await,
        ServiceCommand::Set { name, settings, if_revision } => {
            commands::set_service(&name, &settings, &client.only_if(if_revision.as_deref()), print).await
        }
        ServiceCommand::Remove { name, now, if_revision } => {
            commands::remove_service(&name, now, &client.only_if(if_revision.as_deref()), print).await
        }
    }
}

async fn backend(command: BackendCommand, client: &Client, print: Printer) -> Result<Exit, Failure> {
    match command {
        BackendCommand::Add { service, name, address, weight, server_id, if_revision } => {
            let client = &client.only_if(if_revision.as_deref());
            let spec = BackendSpec { name, address, weight: weight.unwrap_or(1), server_id };
            commands::add_backend(&service, &spec, client, print).await
        }
        BackendCommand::List { service } => commands::list_backends(&service, client, print).await,
        BackendCommand::Set { service, name, weight, server_id, if_revision } => {
            let client = &client.only_if(if_revision.as_deref());
            let patch = BackendPatch { weight, server_id: server_id.map(|id| id.0) };
            commands::set_backend(&service, &name, &patch, client, print).await
        }
        BackendCommand::Remove { service, name, now, wait, if_revision } => {
            let client = &client.only_if(if_revision.as_deref());
            drains::remove(&service, &name, now, wait, client, print).await
        }
    }
}
