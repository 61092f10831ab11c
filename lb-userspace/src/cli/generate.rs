//! What is generated from the command line's definition: completions for shells, and manual pages.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use clap::CommandFactory;
use clap_complete::Shell;

use super::{
    args::Cli,
    failure::{Exit, Failure},
};

/// `ebb completions`.
pub(super) fn completions(shell: Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ebb", &mut script);
    let mut out = io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(Exit::Done)
}

/// `ebb man`: a page for the program and one for each command, as packages install them.
pub(super) fn manual(directory: &Path) -> Result<Exit, Failure> {
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .map_err(|error| Failure::failed(format!("cannot write pages to {}: {error}", directory.display())))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::default_pin_path;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn completions_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ebb", &mut script);
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("drain") && script.contains("on-timeout"), "{shell}");
        }
    }

    #[test]
    fn the_help_has_the_directory_that_is_used() {
        let command = Cli::command();
        let run = command.find_subcommand("run").expect("a command");
        let pin_path = run.get_arguments().find(|argument| argument.get_id() == "pin_path").expect("an argument");
        let help = pin_path.get_help().expect("a help").to_string();
        assert!(help.contains(&format!("[default: {}]", default_pin_path().display())), "{help}");
    }

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().expect("a directory");
        manual(dir.path()).expect("writes");
        for page in ["ebb.1", "ebb-drain.1", "ebb-service-add.1"] {
            let text = fs::read_to_string(dir.path().join(page)).expect(page);
            assert!(text.contains(".SH SYNOPSIS"), "{page}");
        }
        assert!(!dir.path().join("ebb-man.1").exists(), "what is not in the help is not in the manual");
    }
}
