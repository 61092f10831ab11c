//! What is made for people's eyes, in a real terminal of 80 columns by 24 lines (tmux).

use std::{
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    scene::{SOON, Scene, Setting},
    wait_until,
};

/// A terminal in which one command runs. It stays open after the command has ended.
struct Terminal {
    server: String,
}

impl Terminal {
    fn run(scene: &Scene, arguments: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let terminal = Self { server: format!("ebb-test-{}-{number}", std::process::id()) };
        let command = format!(
            "EBB_SOCKET={} {} {arguments}; echo \"code $?\"; sleep 60",
            scene.ebb.socket().display(),
            scene.ebb.program().display()
        );
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", &command])?;
        Ok(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<Output> {
        let output = Command::new("tmux").args(["-L", &self.server]).args(arguments).output();
        let output = output.context("run tmux (`cargo xtask setup` installs it)")?;
        ensure!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    fn screen(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"])?.stdout).into_owned())
    }

    fn type_keys(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Waits for a line that has all of these; returns it.
    fn wait_line(&self, parts: &[&str], within: Duration) -> Result<String> {
        let mut line = String::new();
        let found = wait_until(&format!("a line with {parts:?}"), within, || {
            let screen = self.screen().unwrap_or_default();
            let fitting = screen.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            fitting.unwrap_or_default().clone_into(&mut line);
            !line.is_empty()
        });
        found.with_context(|| format!("the screen:\n{}", self.screen().unwrap_or_default()))?;
        Ok(line)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed because there is no tmux has nothing to end.
        let _ = self.tmux(&["kill-server"]);
    }
}

#[test]
fn a_bar_counts_the_connections_down() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(60)?;
    let at_b1 = held.tally().open_at("b1");
    let terminal = Terminal::run(&scene, "drain web/b1 --timeout 60s --wait")?;
    let left = format!("{at_b1} of {at_b1} flows left");
    let line = terminal.wait_line(&["web/b1 [=", &left, "s to the deadline"], SOON)?;
    assert!(line.chars().count() <= 80, "it fits: {line:?}");
    held.finish_and_wait(SOON)?;
    terminal.wait_line(&["web/b1: drained: completed", "no flow cut"], SOON)?;
    terminal.wait_line(&["code 0"], SOON)?;
    assert!(!terminal.screen()?.contains("flows left"), "the bar is gone:\n{}", terminal.screen()?);
    Ok(())
}

#[test]
fn top_shows_and_drains() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let held = scene.hold(30)?;
    let at_b1 = held.tally().open_at("b1").to_string();
    let terminal = Terminal::run(&scene, "top")?;
    terminal.wait_line(&["web", "3 of 3 active", "30"], SOON)?;
    terminal.wait_line(&["  b1", "active", &at_b1], SOON)?;

    terminal.type_keys(&["j", "d"])?;
    terminal.wait_line(&["drain web/b1: ", " live flows, at most 5m? y/n"], SOON)?;
    assert_eq!(scene.ebb.backend("web/b1")?.state, "active", "a question changes nothing");
    terminal.type_keys(&["n", "d", "y"])?;
    scene.ebb.wait_state("web/b1", "draining", SOON)?;
    terminal.wait_line(&["  b1", "draining", &at_b1, "[##########]"], SOON)?;

    terminal.type_keys(&["a", "y"])?;
    scene.ebb.wait_state("web/b1", "active", SOON)?;
    terminal.wait_line(&["web", "3 of 3 active"], SOON)?;
    assert!(terminal.screen()?.lines().all(|line| line.chars().count() <= 80), "{}", terminal.screen()?);
    terminal.type_keys(&["q"])?;
    terminal.wait_line(&["code 0"], SOON)?;
    held.finish_and_wait(SOON).map(drop)
}
