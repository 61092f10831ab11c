//! What the package installs is right by the program it installs.

use std::path::{Path, PathBuf};

use lb_userspace::config;

fn packaged(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file)
}

#[test]
fn the_example_configuration_balances_nothing_by_itself() {
    let file = config::load(&packaged("ebb.toml")).expect("valid");
    assert!(file.wanted().expect("valid").is_empty());
}

#[test]
fn the_example_service_is_valid_once_uncommented() {
    let text = std::fs::read_to_string(packaged("ebb.toml")).expect("packaging/ebb.toml");
    let (head, example) = text.split_once("# [[service]]").expect("an example service");
    let example = example.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect::<Vec<_>>().join("\n");

    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{head}[[service]]{example}\n")).expect("written");
    let services = config::load(file.path()).expect("valid").wanted().expect("valid");
    assert_eq!(services.len(), 1);
    let backends = &services.first().expect("one").backends;
    assert_eq!(backends.len(), 1);
}
