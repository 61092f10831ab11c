//! The test programs as Cargo builds them.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{command, test};

/// A test program and which of its tests to run.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) filters: Vec<String>,
}

/// Builds all tests, as `cargo xtask test` does and so without building anything twice, and finds those that are named.
pub(crate) fn programs(wanted: &[(String, Vec<String>)]) -> Result<Vec<Program>> {
    let mut cargo = test::all_tests(true)?;
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let messages = command::output(cargo.stderr(std::process::Stdio::inherit()))?;
    let built: Vec<(String, PathBuf)> = messages.lines().filter_map(test_program).collect();
    let find = |name: &str| built.iter().find(|(found, _)| found == name).map(|(_, path)| path.clone());
    let unknown = |name: &str| {
        let names: Vec<&str> = built.iter().map(|(name, _)| name.as_str()).collect();
        format!("there is no test program {name}; there are: {}", names.join(", "))
    };
    let program = |(name, filters): &(String, Vec<String>)| {
        let path = find(name).with_context(|| unknown(name))?;
        Ok(Program { name: name.clone(), path, filters: filters.clone() })
    };
    wanted.iter().map(program).collect()
}

/// Name and file of an integration test, if that is what a message of Cargo's tells of.
fn test_program(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = message.get("target")?;
    let is_test = target.get("kind")?.as_array()?.iter().any(|kind| kind == "test");
    let executable = message.get("executable")?.as_str()?;
    is_test.then_some((target.get("name")?.as_str()?.to_owned(), executable.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_others() {
        let message =
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"drain"},"executable":"/t/drain-1"}"#;
        assert_eq!(test_program(message), Some(("drain".to_owned(), "/t/drain-1".into())));
        assert_eq!(test_program(&message.replace(r#""test""#, r#""bin""#)), None);
        assert_eq!(test_program(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(test_program("not JSON"), None);
    }
}
