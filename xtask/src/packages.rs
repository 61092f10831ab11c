//! The programs that the tests and the demo run, and the Debian packages they come in.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, bail};

use crate::{command, machine};

/// A program that must be in `PATH`.
struct Tool {
    program: &'static str,
    package: &'static str,
    /// A unit that the package would have started at boot; nobody asked for that.
    unit: Option<&'static str>,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package, unit: None }
}

/// The one list. A new need is one line here.
const TOOLS: &[Tool] = &[
    tool("ip", "iproute2"),
    tool("ethtool", "ethtool"),
    tool("nsenter", "util-linux"),
    tool("curl", "curl"),
    tool("socat", "socat"),
    tool("tmux", "tmux"),
    tool("websocketd", "websocketd"),
    tool("wsdump", "python3-websocket"),
    tool("dnsmasq", "dnsmasq-base"),
    tool("dig", "bind9-dnsutils"),
    tool("chromium", "chromium"),
    tool("chromedriver", "chromium-driver"),
    Tool { unit: Some("iperf3.service"), ..tool("iperf3", "iperf3") },
    Tool { unit: Some("prometheus.service"), ..tool("promtool", "prometheus") },
    Tool { unit: Some("nginx.service"), ..tool("nginx", "nginx-light") },
];

/// What only tests under another kernel need.
const EMULATOR: &[Tool] = &[
    tool("qemu-system-x86_64", "qemu-system-x86"),
    tool("busybox", "busybox-static"),
    tool("cpio", "cpio"),
    tool("depmod", "kmod"),
];

/// The programs' names, for the report.
pub(crate) fn names() -> Vec<&'static str> {
    TOOLS.iter().map(|tool| tool.program).collect()
}

/// Installs what is missing of the list.
pub(crate) fn ensure() -> Result<()> {
    ensure_all(TOOLS)
}

/// The same for tests under another kernel.
pub(crate) fn ensure_emulator() -> Result<()> {
    ensure_all(EMULATOR)
}

fn ensure_all(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| command::which(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    install(&packages)?;
    for tool in missing {
        if command::which(tool.program).is_none() {
            bail!("package {} was installed but {} is still not in PATH", tool.package, tool.program);
        }
        if let Some(unit) = tool.unit.filter(|_| Path::new("/run/systemd/system").exists()) {
            command::run(Command::new("systemctl").args(["disable", "--quiet", unit]))?;
        }
    }
    Ok(())
}

/// While it is there, package scripts start no service. Removed however the installation ends.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Runs the installation given as arguments under such a policy, unless the machine has one of its own.
const UNDER_POLICY: &str = r#"
policy=$0
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT INT TERM HUP
    printf '#!/bin/sh\n# made for one installation by: cargo xtask setup\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
"$@"
"#;

/// Installs Debian packages, or says how to.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let Some(apt) = command::which("apt-get") else {
        bail!("this machine has no apt-get; install what these Debian packages hold: {list}");
    };
    if !machine::is_root() {
        bail!(
            "packages are missing; run: sudo apt-get update && \
             sudo apt-get install -y --no-install-recommends {list}"
        );
    }
    update(&apt)?;
    let install = ["install", "-y", "--no-install-recommends"];
    command::run_as(
        &format!("apt-get {} {list}", install.join(" ")),
        Command::new("sh")
            .args(["-c", UNDER_POLICY, POLICY])
            .arg(&apt)
            .args(PATIENCE)
            .args(install)
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null()),
    )
}

/// Fetches the package lists.
pub(crate) fn update_lists() -> Result<()> {
    update(&command::which("apt-get").context("this machine has no apt-get: Debian's kernels are fetched with it")?)
}

/// Another installation may be under way, a mirror may hiccup.
const PATIENCE: [&str; 4] = ["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"];

/// Fetches the package lists, once: a fresh machine's are absent or older than its sources.
fn update(apt: &Path) -> Result<()> {
    static UPDATED: AtomicBool = AtomicBool::new(false);
    if !UPDATED.load(Ordering::Relaxed) {
        let mut update = Command::new(apt);
        update.args(PATIENCE).args(["--quiet", "update"]);
        command::run_as("apt-get update", update.stdin(Stdio::null()))?;
        UPDATED.store(true, Ordering::Relaxed);
    }
    Ok(())
}
