//! How a command ends: the contract's exit codes, and one line on stderr that says what is wrong and what to do.

use std::{fmt, io};

use crate::api::client::ClientError;

/// The exit codes scripts can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It failed: an unknown name, a refusal, a wait that timed out.
    Failed = 1,
    /// The command line, a value in it or a file it names is malformed.
    Usage = 2,
    /// The drain ended, and flows were cut.
    FlowsCut = 3,
    /// The drain was cancelled.
    Cancelled = 4,
    /// No daemon answers at the socket.
    NoDaemon = 5,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub exit: Exit,
    /// One line: what is wrong and what to do. Empty when there is nobody left to tell.
    pub message: String,
}

impl Failure {
    /// A failure with an exit code of its own.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: one_line(&message.into()) }
    }

    /// The common case, exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// Something was malformed, exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::NoDaemon { .. } => Exit::NoDaemon,
            // What is malformed never gets as far as the daemon: what it refuses makes no sense as things stand.
            ClientError::Refused(_)
            | ClientError::NoPermission(_)
            | ClientError::Distrust(_)
            | ClientError::TooLong { .. }
            | ClientError::Broken { .. } => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<io::Error> for Failure {
    /// Printing is the only bare I/O a command does.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // The reader (`head`, a pager) has seen enough: nothing is wrong and nobody listens.
            return Self { exit: Exit::Done, message: String::new() };
        }
        Self::failed(format!("cannot write the output: {error}"))
    }
}

/// Folds a message into one line, as scripts and logs expect of an error.
pub fn one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// What clap found wrong, in one line without the usage block.
pub fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut said = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        let separator = match () {
            () if said.is_empty() => "",
            () if line.starts_with("tip:") => "; ",
            () => " ",
        };
        said.push_str(separator);
        said.push_str(line.strip_prefix("error: ").unwrap_or(line));
    }
    format!("{said}; see --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(one_line("a\n\n  b\nc\n"), "a; b; c");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Done, ""));
    }
}
