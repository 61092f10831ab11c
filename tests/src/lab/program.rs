//! Other people's programs, and `ebb decap`, on a lab's hosts.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Lab, Namespace, ebb, run::LABEL_VARIABLE, sys};
use crate::wait::wait_for;

/// A program that runs in the background on one of the lab's hosts. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    child: Child,
    log_path: PathBuf,
}

impl Program {
    /// Starts `program` on `host`; what it prints goes to a log in the lab's directory.
    pub fn start(lab: &Lab, host: &Namespace, program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<Self> {
        let name = Path::new(program.as_ref()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::start_as(&name, lab, host, program, arguments, &[])
    }

    /// [`Program::start`] under another name, with more in its environment: one of several of its kind on a host.
    pub fn start_as(
        name: &str,
        lab: &Lab,
        host: &Namespace,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let label = format!("{name}-{}", host.name());
        let log_path = lab.directory().join(format!("{label}.log"));
        let log = File::create(&log_path)?;
        let mut command = host.command(&program)?;
        command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
        command.env(LABEL_VARIABLE, lab.label());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {name} (`cargo xtask setup` installs it)"))?;
        // For the clean-up of a run that died before it could.
        fs::write(lab.directory().join(format!("{label}.pid")), child.id().to_string())?;
        Ok(Self { child, log_path })
    }

    /// Starts `ebb decap` on backend number `index` and waits until it is attached.
    pub fn start_decap(lab: &Lab, index: usize) -> Result<Self> {
        let host = lab.backends.get(index).context("no such backend")?;
        let mut decap = Self::start(lab, host, ebb::program()?, &["decap", "-i", "eth0"])?;
        let attached = wait_for("`ebb decap` to attach", Duration::from_secs(10), || {
            if let Ok(Some(status)) = decap.child.try_wait() {
                return Some(Err(anyhow!("it ended: {status}: {}", decap.log())));
            }
            has_xdp(host).ok().filter(|&has| has).map(|_| Ok(()))
        });
        attached.and_then(|result| result).with_context(|| format!("`ebb decap` on {}", host.name()))?;
        Ok(decap)
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let ended = wait_for("a program to end", within, || self.child.try_wait().ok().flatten());
        ended.with_context(|| format!("it had said {:?}", self.log()))
    }

    /// Asks it to end, as whoever manages services does: SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        Ok(sys::signal(self.pid(), libc::SIGTERM)?)
    }

    /// The same to its only child.
    pub fn terminate_child(&self) -> Result<()> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(sys::signal(children.trim().parse().context("one child")?, libc::SIGTERM)?)
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program on `host` to its end and returns what it printed; it must succeed.
pub fn run(host: &Namespace, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = host.command(program)?;
    let output = command.args(arguments).stdin(Stdio::null()).output().with_context(|| format!("start {program}"))?;
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{program} {}: {}: {printed}{errors}", arguments.join(" "), output.status);
    Ok(printed.into_owned())
}

/// Whether `eth0` of `host` has an XDP program. Asked of `ip`, since /sys shows another namespace.
fn has_xdp(host: &Namespace) -> Result<bool> {
    let output = Command::new("ip").args(["-n", host.name(), "-json", "link", "show", "dev", "eth0"]).output()?;
    let links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    match links.get(0) {
        Some(link) => Ok(link.get("xdp").is_some()),
        None => bail!("no eth0 in {}", host.name()),
    }
}
