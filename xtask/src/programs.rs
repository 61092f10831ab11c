//! The test programs as Cargo builds them, found and run.

use std::{
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    command,
    test::{self, Said},
};

/// A test program and which of its tests to run.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) filters: Vec<String>,
}

/// A test program as a message of Cargo's tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Built {
    name: String,
    /// Whether it is an integration test, not the unit tests of a library or a program.
    is_integration: bool,
    path: PathBuf,
    /// The directory of its package, where Cargo would start it.
    directory: PathBuf,
}

/// Builds the tests that a `cargo test` names and finds their programs, in Cargo's order.
pub(crate) fn build(cargo: &mut Command) -> Result<Vec<Built>> {
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let messages = command::output(cargo.stderr(Stdio::inherit()))?;
    Ok(messages.lines().filter_map(Built::from_message).collect())
}

/// Builds all tests, as `cargo xtask test` does and so without building anything twice, and finds those that are named.
pub(crate) fn named(wanted: &[(String, Vec<String>)]) -> Result<Vec<Program>> {
    let mut built = build(&mut test::all_tests(true)?)?;
    built.retain(|program| program.is_integration);
    let find = |name: &str| built.iter().find(|program| program.name == name).map(|program| program.path.clone());
    let unknown = |name: &str| {
        let names: Vec<&str> = built.iter().map(|program| program.name.as_str()).collect();
        format!("there is no test program {name}; there are: {}", names.join(", "))
    };
    let program = |(name, filters): &(String, Vec<String>)| {
        let path = find(name).with_context(|| unknown(name))?;
        Ok(Program { name: name.clone(), path, filters: filters.clone() })
    };
    wanted.iter().map(program).collect()
}

/// Programs that take the whole machine on purpose, and so are run when the others have ended.
const ALONE: &[&str] = &["floods"];

/// Runs test programs, as many beside each other as there are processors, each with one test at a time: no more tests at once
/// than `cargo test` has, but as many while programs with few tests run. What one says is passed on when it has ended; all run
/// even if one fails. What they said, and which of them failed.
pub(crate) fn run(programs: &[Built], filter: Option<&str>) -> (Said, Vec<String>) {
    let beside = thread::available_parallelism().map_or(1, usize::from);
    let (alone, together): (Vec<_>, Vec<_>) =
        programs.iter().partition(|program| program.is_integration && ALONE.contains(&program.name.as_str()));
    let heard = Mutex::new(Heard::default());
    for (programs, beside, threads) in [(together, beside, Some("1")), (alone, 1, None)] {
        let left = Mutex::new(programs.into_iter());
        let work = || {
            loop {
                // A statement of its own, which lets the queue go: in the loop's head it would be held for as long as a program runs.
                let Some(program) = held(&left).next() else { break };
                // Said at once: of one that hangs nothing else is heard.
                eprintln!("+ {}", program.path.display());
                let ended = program.run(filter, threads);
                held(&heard).tell(program, ended);
            }
        };
        thread::scope(|scope| (0..beside).for_each(|_| drop(scope.spawn(work))));
    }
    let Heard { said, failed } = heard.into_inner().unwrap_or_else(PoisonError::into_inner);
    (said, failed)
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What programs said, and which of them failed.
#[derive(Default)]
struct Heard {
    said: Said,
    failed: Vec<String>,
}

impl Heard {
    /// Passes on what a program said: its lines, and whether all its tests have passed.
    fn tell(&mut self, program: &Built, ended: Result<(Vec<String>, bool)>) {
        println!("\n== {} ({})", program.name, program.path.display());
        let (lines, clean) = ended.unwrap_or_else(|error| (vec![format!("error: {error:#}")], false));
        for line in &lines {
            println!("{line}");
            self.said.read(line);
        }
        self.failed.extend((!clean).then(|| program.name.clone()));
    }
}

impl Built {
    /// What a message tells of, if that is a program of tests.
    fn from_message(message: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(message).ok()?;
        let target = message.get("target")?;
        let is_test = message.get("profile")?.get("test")?.as_bool()?;
        let kinds = target.get("kind")?.as_array()?;
        let path = message.get("executable")?.as_str()?;
        is_test.then_some(Self {
            name: target.get("name")?.as_str()?.to_owned(),
            is_integration: kinds.iter().any(|kind| kind == "test"),
            path: path.into(),
            directory: Path::new(message.get("manifest_path")?.as_str()?).parent()?.to_owned(),
        })
    }

    /// What it says, its stderr among it, and whether all its tests have passed; `threads` is how many run at once, if not the
    /// runner's own choice.
    fn run(&self, filter: Option<&str>, threads: Option<&str>) -> Result<(Vec<String>, bool)> {
        let (output, input) = io::pipe().context("cannot make a pipe")?;
        let mut command = Command::new(&self.path);
        command.args(filter).current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        command.env(test::BINARY_VARIABLE, test::debug_binary()?);
        command.envs(threads.map(|threads| ("RUST_TEST_THREADS", threads)));
        // Errors that a test returns say where they come from; fifty frames of the test runner each would bury them.
        if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
            command.env("RUST_LIB_BACKTRACE", "0");
        }
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.path.display()))?;
        // It holds the pipe's other end, and what it says would never end.
        drop(command);
        let lines: io::Result<Vec<Vec<u8>>> = BufReader::new(output).split(b'\n').collect();
        let status = child.wait()?;
        let mut lines: Vec<String> = lines?.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        if !status.success() {
            lines.push(format!("{}: {status}", self.name));
        }
        Ok((lines, status.success()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = r#"{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml",
        "target":{"kind":["test"],"name":"drain"},"profile":{"test":true},"executable":"/t/drain-1"}"#;

    #[test]
    fn test_programs_are_told_from_others() {
        let drain = Built {
            name: "drain".to_owned(),
            is_integration: true,
            path: "/t/drain-1".into(),
            directory: "/w/tests".into(),
        };
        assert_eq!(Built::from_message(MESSAGE), Some(drain.clone()));
        let unit = MESSAGE.replace(r#"["test"]"#, r#"["lib"]"#);
        assert_eq!(Built::from_message(&unit), Some(Built { is_integration: false, ..drain }));
        assert_eq!(Built::from_message(&MESSAGE.replace("true", "false")), None);
        assert_eq!(Built::from_message(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(Built::from_message("not JSON"), None);
    }

    #[test]
    fn all_run_and_the_failed_are_named() {
        let program = |name: &str, path: &str| Built {
            name: name.to_owned(),
            is_integration: true,
            path: path.into(),
            directory: "/".into(),
        };
        let programs = [
            program("floods", "echo"),
            program("bad", "false"),
            program("gone", "/nonexistent"),
            program("good", "echo"),
        ];
        let summary = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured";
        let (said, mut failed) = run(&programs, Some(summary));
        failed.sort();
        assert_eq!(failed, ["bad", "gone"]);
        assert_eq!(said.tally.to_string(), "6 passed, 0 failed, 2 ignored");
    }
}
