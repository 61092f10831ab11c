//! What the bench leaves behind when it is ended from outside: nothing, or nothing for long.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use ebb_tests::{wait_for, wait_until};

const SOON: Duration = Duration::from_secs(10);

/// A demo that gets as far as waiting for a daemon that never answers.
struct StuckDemo {
    child: Child,
    daemon: PathBuf,
}

impl StuckDemo {
    fn start(name: &str) -> Result<Self> {
        let daemon = std::env::temp_dir().join(format!("ebb-never-answers-{name}-{}", std::process::id()));
        fs::write(&daemon, "#!/bin/sh\nif [ \"$1\" != run ]; then exit 5; fi\nwhile sleep 1; do :; done\n")?;
        fs::set_permissions(&daemon, fs::Permissions::from_mode(0o755))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_ebb-demo"));
        command.env("EBB_BIN", &daemon).stdout(Stdio::null()).stderr(Stdio::null());
        let demo = Self { child: command.spawn()?, daemon };
        wait_until("the demo's daemon", SOON, || demo.daemon_pid().is_some())?;
        Ok(demo)
    }

    /// The lab's directory, which is also where its daemon's number is written down.
    fn run_directory(&self) -> PathBuf {
        Path::new("/run/ebb-lab").join(self.child.id().to_string())
    }

    fn daemon_pid(&self) -> Option<u32> {
        fs::read_to_string(self.run_directory().join("0/daemon.pid")).ok()?.parse().ok()
    }

    fn namespaces(&self) -> usize {
        let prefix = format!("ebb-{}-", self.child.id());
        let all = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
    }

    /// The demo's process number and its daemon's.
    fn pids(&self) -> Result<(u32, u32)> {
        Ok((self.child.id(), self.daemon_pid().context("a daemon")?))
    }

    fn end(&mut self, signal: &str) -> Result<std::process::ExitStatus> {
        Command::new("kill").args([signal, &self.child.id().to_string()]).status()?;
        wait_for("the demo to end", SOON, || self.child.try_wait().ok().flatten())
    }
}

impl Drop for StuckDemo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.end("-TERM").is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = fs::remove_file(&self.daemon);
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn an_interrupted_demo_removes_everything() -> Result<()> {
    let mut demo = StuckDemo::start("interrupted")?;
    let (_, daemon) = demo.pids()?;
    assert_eq!(demo.namespaces(), 6, "switch, balancer, client, three backends");
    let status = demo.end("-INT")?;
    assert_eq!(status.code(), Some(130), "ended by the interrupt");
    assert_eq!(demo.namespaces(), 0);
    assert!(!demo.run_directory().exists());
    wait_until("its daemon to be gone", SOON, || !is_alive(daemon))
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() -> Result<()> {
    let mut killed = StuckDemo::start("killed")?;
    let (_, daemon) = killed.pids()?;
    killed.end("-KILL")?;
    assert_eq!(killed.namespaces(), 6, "a killed process cannot clean up");
    assert!(is_alive(daemon));

    let next = StuckDemo::start("next")?;
    assert_eq!(killed.namespaces(), 0);
    assert!(!killed.run_directory().exists());
    wait_until("the orphan to be gone", SOON, || !is_alive(daemon))?;
    assert_eq!(next.namespaces(), 6, "a live run is left alone");
    Ok(())
}
