//! Many backends that are not there: a real daemon with a configuration of thousands, whose hosts are permanent
//! neighbours on the benchmark's wire, each with a MAC address of its own.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{case::BASE, wire::Wire};
use crate::{
    lab::{Ebb, Status, ip},
    wait::wait_until,
};

/// The first host's address; the balancer's own is the one before.
const FIRST: u32 = 0x0a40_0100;

/// Hosts beyond those of the configuration.
pub(super) const NEWCOMERS: u32 = 64;

/// Services and backends to configure.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services.
    pub services: u32,
    /// Backends of each.
    pub backends: u32,
}

/// A daemon on a wire with its configuration.
#[derive(Debug)]
pub(super) struct Fleet {
    /// The daemon.
    pub(super) ebb: Ebb,
    /// How long `ebb apply` took, in seconds.
    pub(super) applied_s: f64,
    /// How long until all backends were active after that, in seconds.
    pub(super) active_s: f64,
}

/// The name of service number `n`. The first one is what the driver's packets are for.
pub(super) fn service(n: u32) -> String {
    format!("s{n}")
}

/// The name of backend number `n` of a service.
pub(super) fn backend(n: u32) -> String {
    format!("b{n}")
}

/// The address of host number `n`, whose MAC address ends with the same number.
pub(super) fn host(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + n)
}

impl Fleet {
    /// Starts the daemon on the wire, configures it and waits until all backends are active.
    pub(super) fn start(wire: &Wire, size: Size) -> Result<Self> {
        let hosts = size.hosts() + NEWCOMERS;
        let mut script = format!("addr add {}/10 dev eth0\n", Ipv4Addr::from(FIRST - 1));
        for n in 0..hosts {
            let (host, [high, low]) = (host(n), (n as u16).to_be_bytes());
            // Writing to a String cannot fail.
            let _ =
                writeln!(script, "neigh replace {host} lladdr 02:eb:b0:02:{high:02x}:{low:02x} nud permanent dev eth0");
        }
        ip(Some(&wire.lab.balancer), &script)?;
        let mut ebb = Ebb::start(&wire.lab)?;
        ebb.show_log = false;
        let file = wire.lab.directory().join("fleet.toml");
        fs::write(&file, size.configuration()).with_context(|| format!("write {}", file.display()))?;
        let begun = Instant::now();
        ebb.ok(&["apply", &file.to_string_lossy()])?;
        let applied_s = begun.elapsed().as_secs_f64();
        wait_until("all backends to be active", Duration::from_mins(2), || {
            ebb.status().is_ok_and(|status| size.is_active(&status))
        })?;
        Ok(Self { ebb, applied_s, active_s: begun.elapsed().as_secs_f64() - applied_s })
    }

    /// Sends a request to the daemon; returns how long the answer took and what it was.
    pub(super) fn call(
        &self,
        method: &str,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<(Duration, serde_json::Value)> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: ebb\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(self.ebb.socket()).context("connect to the daemon")?;
        let begun = Instant::now();
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let took = begun.elapsed();
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("{path}: the daemon answered {answer:?}") };
        ensure!(head.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
        Ok((took, serde_json::from_str(body).with_context(|| format!("{path}: {body}"))?))
    }

    /// [`Fleet::call`] about a backend: `what` is added to its path.
    pub(super) fn about(&self, of: u32, backend_number: u32, method: &str, what: &str) -> Result<Duration> {
        let path = format!("/v1/services/{}/backends/{}{what}", service(of), backend(backend_number));
        Ok(self.call(method, &path, &serde_json::json!({}))?.0)
    }

    /// Memory of the daemon in MiB: resident in all, and maps of the packet path.
    pub(super) fn memory_mib(&self) -> Result<(f64, f64)> {
        let pid = self.ebb.pid().context("the daemon runs")?;
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let (mut resident, mut maps, mut in_map) = (0.0, 0.0, false);
        for line in smaps.lines() {
            let kib = |rest: &str| rest.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0);
            if let Some(rest) = line.strip_prefix("Rss:") {
                resident += kib(rest);
            } else if let Some(rest) = line.strip_prefix("Size:") {
                maps += if in_map { kib(rest) } else { 0.0 };
            } else if line.split(' ').next().is_some_and(|range| range.contains('-') && !range.ends_with(':')) {
                in_map = line.contains("bpf-map");
            }
        }
        Ok((resident / 1024.0, maps / 1024.0))
    }
}

impl Size {
    /// Hosts that it needs: services share them. After them come the newcomers.
    pub(super) fn hosts(self) -> u32 {
        (self.services * self.backends).min(10_000)
    }

    fn configuration(self) -> String {
        let mut file = String::new();
        for n in 0..self.services {
            let vip = if n == 0 { BASE.vip().to_string() } else { format!("{}:80", Ipv4Addr::from(0x0a20_0000 + n)) };
            let _ = writeln!(file, "[[service]]\nname = \"{}\"\nvip = \"{vip}/tcp\"", service(n));
            for b in 0..self.backends {
                let host = host((n * self.backends + b) % self.hosts());
                let _ = writeln!(file, "[[service.backend]]\nname = \"{}\"\naddress = \"{host}\"", backend(b));
            }
        }
        file
    }

    fn is_active(self, status: &Status) -> bool {
        status.services.len() == self.services as usize
            && status.services.iter().all(|service| {
                service.backends.len() == self.backends as usize
                    && service.backends.iter().all(|backend| backend.state == "active")
            })
    }
}
