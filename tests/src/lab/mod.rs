//! Network-namespace labs: a client, a balancer and backends, wired up, with a real `ebb` to drive.
//!
//! See tests/README.md for the topology.

mod ebb;
mod flow_table;
mod netns;
mod ping;
mod plan;
mod program;
mod run;
mod status;
mod sys;
mod xdp;

use std::{
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

pub(crate) use self::sys::enter_new_netns;
pub use self::{
    ebb::{Background, Ebb, Output},
    netns::Namespace,
    ping::ping,
    plan::{Arms, FAMILIES, Family, Plan, Replies},
    program::{Program, run as run_program},
    status::{Backend, Datapath, Drain, Flows, Held, Hold, Interface, LastDrain, Service, Status},
    xdp::Attached,
};
use self::{
    run::{Names, Run},
    sys::Feature,
};

/// A lab. Dropping it, also by a panic, removes all it made; so does a signal that ends the process.
#[derive(Debug)]
pub struct Lab {
    /// What was built.
    pub plan: Plan,
    /// Where clients run.
    pub client: Namespace,
    /// Where `ebb` runs.
    pub balancer: Namespace,
    /// The switch, which is also the router between the two segments of a two-armed lab.
    pub switch: Namespace,
    /// Where servers run.
    pub backends: Vec<Namespace>,
    programs: Vec<Attached>,
    names: Cleaned,
}

impl Lab {
    /// Builds a lab.
    pub fn build(plan: Plan) -> Result<Self> {
        let names = Cleaned(Run::current()?.name_lab()?);
        let namespace = |host: &str| names.0.namespace(host);
        ip(None, &plan.cabling(namespace)).context("make the namespaces")?;

        let open = |host: &str| Namespace::open(&namespace(host));
        let (client, balancer, switch) = (open("client")?, open("lb")?, open("switch")?);
        let backends: Vec<_> = (0..plan.backends).map(|i| open(&plan::backend_host(i))).collect::<Result<_>>()?;

        configure(&switch, ROUTER, &plan.switch_script())?;
        configure(&client, CLIENT, &plan.client_script())?;
        configure(&balancer, if plan.forwarding { ROUTER } else { &[] }, &plan.balancer_script())?;
        for (index, backend) in backends.iter().enumerate() {
            configure(backend, BACKEND, &plan.backend_script(index))?;
        }
        for host in backends.iter().chain([&client]) {
            host.run(|| sys::switch_off("eth0", Feature::TxChecksum))?.context("switch tx offloads off")?;
        }
        let programs: Result<Vec<_>> = switch.run(|| plan.far_ends().iter().map(|device| far_end(device)).collect())?;
        Ok(Self {
            programs: programs.context("attach to the switch")?,
            plan,
            client,
            balancer,
            switch,
            backends,
            names,
        })
    }

    /// Takes the balancer's only interface away.
    pub fn unplug(&mut self) -> Result<()> {
        ensure!(self.plan.arms == Arms::One, "only one arm can be unplugged");
        self.programs.clear();
        ip(Some(&self.balancer), "link del eth0")
    }

    /// Takes the programs off the switch's ends of the balancer's cables: generic mode does without, and they limit the MTU;
    /// in native mode something else must stand there, or what the balancer sends vanishes.
    pub fn bare_far_ends(&mut self) {
        self.programs.clear();
    }

    /// Makes the interface that was taken away anew, under its old name and with its old addresses.
    pub fn plug_in(&mut self) -> Result<()> {
        let namespace = |host: &str| self.names.0.namespace(host);
        ip(None, &self.plan.replug(namespace)).context("make the interface again")?;
        ip(Some(&self.switch), Plan::plugged())?;
        self.programs.push(self.switch.run(|| far_end("lb0"))??);
        configure(&self.balancer, if self.plan.forwarding { ROUTER } else { &[] }, &self.plan.balancer_script())
    }

    /// The lab's directory for sockets, state and logs; it goes with the lab.
    pub fn directory(&self) -> &Path {
        &self.names.0.directory
    }

    /// Puts a program on the balancer that sends all packets for `vip` to backend number `backend` by the
    /// way they came, until the returned value is dropped. It stands in for Ebb to test the lab itself.
    pub fn bounce(&self, vip: IpAddr, backend: usize) -> Result<Attached> {
        let (from, to) = (Plan::balancer_mac(), Plan::backend_mac(backend));
        Ok(self.balancer.run(|| xdp::attach_bounce("eth0", vip, from, to))??)
    }

    /// Attaches a program to a device of one of the lab's hosts until the returned value is dropped.
    pub(crate) fn attach(host: &Namespace, program: std::os::fd::BorrowedFd<'_>, device: &str) -> Result<Attached> {
        host.run(|| xdp::attach(program, device))?.with_context(|| format!("attach to {device} in {}", host.name()))
    }

    /// The index of a device of one of the lab's hosts.
    pub(crate) fn interface_index(host: &Namespace, device: &str) -> Result<u32> {
        host.run(|| sys::interface_index(device))?.with_context(|| format!("find {device} in {}", host.name()))
    }

    /// Wipes the packet path's flow table through its pinned map, behind the back of daemon and program.
    pub fn wipe_flow_table(&self) -> Result<()> {
        flow_table::wipe(&self.pin_path())
    }

    /// Gives the daemon's state a disk of its own of so many bytes; before it is first started.
    pub fn give_state_a_disk(&self, bytes: u64) -> Result<()> {
        let place = self.directory().join(run::STATE);
        std::fs::create_dir_all(&place)?;
        sys::mount_tmpfs(&place, bytes).with_context(|| format!("mount a tmpfs at {}", place.display()))
    }

    /// The value of [`run::LABEL_VARIABLE`] for this lab's processes.
    fn label(&self) -> &str {
        &self.names.0.label
    }

    /// Where this lab's daemon pins its maps.
    pub fn pin_path(&self) -> PathBuf {
        self.names.0.pin_path()
    }
}

/// Raises the limit on open files as far as this process may.
pub(crate) fn raise_file_limit() -> Result<()> {
    sys::raise_file_limit().map(drop).context("raise the limit on open files")
}

/// Closes a connection by an RST.
pub(crate) fn abort(socket: std::net::TcpStream) -> Result<()> {
    sys::reset_on_close(&socket)?;
    drop(socket);
    Ok(())
}

/// Takes a connection's end away without a word.
pub(crate) fn vanish(socket: std::net::TcpStream) -> Result<()> {
    sys::say_nothing_on_close(&socket).context("TCP_REPAIR, which needs CAP_NET_ADMIN")?;
    drop(socket);
    Ok(())
}

/// Runs `ip -batch` with `script` in a namespace, or in the process's own.
pub fn ip(namespace: Option<&Namespace>, script: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace.name()]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start `ip` (the lab needs Debian's iproute2)")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip -batch: {}\n{script}", complaint.trim());
    Ok(())
}

/// Removes the lab's things when dropped. A part of [`Lab`] of its own so that a lab that fails
/// half-built is cleaned up as well.
#[derive(Debug)]
struct Cleaned(Names);

impl Drop for Cleaned {
    fn drop(&mut self) {
        if let Ok(run) = Run::current() {
            run.remove_lab(&self.0);
        }
    }
}

/// For all hosts: no waiting for duplicate addresses, no source filter in the way of direct returns,
/// listen queues as long as the programs ask for.
const EVERYONE: &[(&str, &str)] = &[
    ("net/ipv6/conf/*/accept_dad", "0"),
    ("net/ipv4/conf/*/rp_filter", "0"),
    ("net/ipv4/conf/*/send_redirects", "0"),
    ("net/core/somaxconn", "65535"),
    ("net/ipv4/tcp_max_syn_backlog", "65535"),
];

const ROUTER: &[(&str, &str)] = &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];

const CLIENT: &[(&str, &str)] = &[("net/ipv4/ip_local_port_range", "10000 65535")];

/// A backend holds the VIPs, but must never say so on the segment.
const BACKEND: &[(&str, &str)] = &[("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")];

fn configure(host: &Namespace, settings: &[(&str, &str)], script: &str) -> Result<()> {
    let here: Vec<_> = EVERYONE.iter().chain(settings).copied().collect();
    host.sysctl(&here)?;
    ip(Some(host), script).with_context(|| format!("configure {}", host.name()))
}

/// Prepares the switch's end of a cable to the balancer: an XDP program, so that what the balancer
/// transmits from XDP is taken, and no GRO, so that it goes on as it came.
fn far_end(device: &str) -> Result<Attached> {
    let attached = xdp::attach_pass(device).with_context(|| format!("attach the pass program to {device}"))?;
    sys::switch_off(device, Feature::Gro)?;
    Ok(attached)
}
