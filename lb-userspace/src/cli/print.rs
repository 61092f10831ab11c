//! Standard output: a table for people or one JSON object for scripts.

use std::io::{self, Write};

use serde::Serialize;

use super::{args::Output, failure::Failure};

/// Prints what a command found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    output: Output,
}

impl Printer {
    /// A printer for this format.
    pub(super) fn new(output: Output) -> Self {
        Self { output }
    }

    /// Whether a script reads it.
    pub(super) fn is_json(self) -> bool {
        self.output == Output::Json
    }

    /// Prints `value` as JSON on one line, or what `people` writes.
    pub(super) fn show<T: Serialize>(
        self,
        value: &T,
        people: impl FnOnce(&mut Vec<u8>, &T) -> io::Result<()>,
    ) -> Result<(), Failure> {
        Ok(self.write(value, people)?)
    }

    /// Prints `value` as JSON, or a sentence.
    pub(super) fn say<T: Serialize>(self, value: &T, sentence: &str) -> Result<(), Failure> {
        self.show(value, |out, _| writeln!(out, "{sentence}"))
    }

    /// As [`Printer::say`] for what a wait has come to. The exit code tells it too, also to those who have closed the output.
    pub(super) fn conclude<T: Serialize>(self, value: &T, sentence: &str) -> Result<(), Failure> {
        match self.write(value, |out, _| writeln!(out, "{sentence}")) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => Ok(written?),
        }
    }

    fn write<T: Serialize>(self, value: &T, people: impl FnOnce(&mut Vec<u8>, &T) -> io::Result<()>) -> io::Result<()> {
        let mut text = Vec::new();
        if self.is_json() {
            serde_json::to_writer(&mut text, value).map_err(io::Error::from)?;
            text.push(b'\n');
        } else {
            people(&mut text, value)?;
        }
        let mut out = io::stdout().lock();
        out.write_all(&text)?;
        out.flush()
    }
}
