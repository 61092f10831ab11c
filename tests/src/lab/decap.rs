//! `ebb decap` on a backend.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{Lab, Namespace, ebb::program, run::LABEL_VARIABLE};
use crate::wait::wait_for;

/// A running `ebb decap`. Dropping it kills it.
#[derive(Debug)]
pub struct Decap {
    child: Child,
}

impl Decap {
    /// Starts `ebb decap` on backend number `index` and waits until it is attached.
    pub fn start(lab: &Lab, index: usize) -> Result<Self> {
        let host = lab.backends.get(index).context("no such backend")?;
        let log_path = lab.directory().join(format!("decap-{index}.log"));
        let log = File::create(&log_path)?;
        let mut command = host.command(program()?)?;
        command.args(["decap", "-i", "eth0"]).env(LABEL_VARIABLE, lab.label());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("start `ebb decap`")?;
        fs::write(lab.directory().join(format!("decap-{index}.pid")), child.id().to_string())?;
        let mut decap = Self { child };
        let attached = wait_for("`ebb decap` to attach", Duration::from_secs(10), || {
            if let Ok(Some(status)) = decap.child.try_wait() {
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                return Some(Err(anyhow::anyhow!("it ended: {status}: {log}")));
            }
            has_xdp(host).ok().filter(|&has| has).map(|_| Ok(()))
        });
        attached.and_then(|result| result).with_context(|| format!("`ebb decap` on {}", host.name()))?;
        Ok(decap)
    }
}

impl Drop for Decap {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
