//! Which daemon a command is for: the one on this host, or another's.

use clap::{ArgMatches, parser::ValueSource};

use super::{
    args::{Command, Global},
    failure::Failure,
};
use crate::{
    api::{
        client::Client,
        transport::{Server, ServerError},
    },
    tls::TlsFileError,
};

/// Which places were named in the command itself. What is typed wins over the environment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Typed {
    server: bool,
    socket: bool,
}

impl Typed {
    /// What a command line has, wherever in it it stands.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let typed = |name| {
            let mut level = Some(matches);
            while let Some(matches) = level {
                if matches.value_source(name) == Some(ValueSource::CommandLine) {
                    return true;
                }
                level = matches.subcommand().map(|(_, matches)| matches);
            }
            false
        };
        Self { server: typed("server"), socket: typed("socket") }
    }
}

/// Asks the daemon that was meant.
pub(super) fn client(global: &Global, typed: Typed, command: &Command) -> Result<Client, Failure> {
    let local = Client::new(&global.socket);
    if typed.server && typed.socket {
        return Err(Failure::usage(
            "--server is for a daemon on another host, --socket for one on this: name one of them",
        ));
    }
    if is_local(command) {
        if typed.server {
            return Err(Failure::usage("this command works on the host it is run on: leave --server out"));
        }
        return Ok(local);
    }
    let Some(url) = global.server.as_ref().filter(|_| !typed.socket) else { return Ok(local) };
    let (Some(cert), Some(key), Some(ca)) = (&global.cert, &global.key, &global.ca) else {
        return Err(Failure::usage(
            "a server wants to know who asks, and you who answers: --cert FILE, --key FILE and --ca FILE go with --server \
             (or EBB_CERT, EBB_KEY and EBB_CA)",
        ));
    };
    let server = Server::new(url, cert, key, ca).map_err(|error| match error {
        ServerError::File(TlsFileError::Unreadable { .. }) => Failure::failed(error.to_string()),
        error => Failure::usage(error.to_string()),
    })?;
    Ok(Client::remote(server))
}

fn is_local(command: &Command) -> bool {
    matches!(
        command,
        Command::Run(_)
            | Command::Unload(_)
            | Command::Check { .. }
            | Command::Decap(_)
            | Command::Doctor { .. }
            | Command::Completions { .. }
            | Command::Man { .. }
    )
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::cli::args::Cli;

    fn asked(words: &[&str]) -> Result<String, String> {
        let matches = Cli::command().try_get_matches_from(["ebb"].iter().chain(words)).expect("well formed");
        let cli = Cli::from_arg_matches(&matches).expect("well formed");
        client(&cli.global, Typed::of(&matches), &cli.command)
            .map(|client| client.place())
            .map_err(|failure| failure.message)
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (words, said) in [
            (&["status", "--server", "https://a:1", "--socket", "/s"][..], "name one of them"),
            (&["--server", "https://a:1", "unload"], "leave --server out"),
            (&["--server", "https://a:1", "status"], "--cert FILE, --key FILE and --ca FILE"),
        ] {
            let refused = asked(words).expect_err("it makes no sense");
            assert!(refused.contains(said), "{words:?}: {refused}");
        }
        assert_eq!(asked(&["status", "--socket", "/s"]), Ok("/s".to_owned()));
    }
}
