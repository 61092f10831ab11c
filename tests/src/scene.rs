//! A stage set for a scenario: a lab, the daemon, a server on every backend, and a client.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    lab::{Arms, Ebb, Family, Lab, Plan, Program, Replies},
    traffic::{Client, Conversation, Group, Server, Tally, Transport},
    wait::wait_until,
};

/// How services forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// `dsr`.
    Dsr,
    /// `nat`.
    Nat,
    /// `tunnel`.
    Tunnel,
}

impl Forward {
    /// The word for it on Ebb's command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dsr => "dsr",
            Self::Nat => "nat",
            Self::Tunnel => "tunnel",
        }
    }

    /// The way that replies take under it.
    pub const fn replies(self) -> Replies {
        match self {
            Self::Dsr | Self::Tunnel => Replies::Direct,
            Self::Nat => Replies::ThroughBalancer,
        }
    }
}

/// What varies between scenes.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The lab.
    pub plan: Plan,
    /// The family of VIPs and of the addresses that backends are registered with.
    pub family: Family,
    /// How services forward.
    pub forward: Forward,
    /// The path of `ebb-test-server`, if each server is to run in a process of its own.
    pub server_program: Option<&'static str>,
}

impl Default for Setting {
    fn default() -> Self {
        Self { plan: Plan::default(), family: Family::V4, forward: Forward::Dsr, server_program: None }
    }
}

impl Setting {
    /// `forward` over `arms`, in `family`.
    pub fn of(forward: Forward, arms: Arms, family: Family) -> Self {
        let plan = Plan { arms, replies: forward.replies(), ..Plan::default() };
        Self { plan, family, forward, ..Self::default() }
    }

    /// The default with `backends` backends.
    pub fn with_backends(backends: usize) -> Self {
        Self { plan: Plan { backends, ..Plan::default() }, ..Self::default() }
    }
}

/// The stage. Services are up to the scenario; [`Scene::add_web`] adds the usual one.
#[derive(Debug)]
pub struct Scene {
    /// What was set.
    pub setting: Setting,
    /// The backends' ends of the tunnels.
    _decaps: Vec<Program>,
    /// The client.
    pub client: Client,
    /// One server on each backend, called `b0`, `b1`, … as the backend; none listens anywhere at first.
    pub servers: Vec<Server>,
    /// The daemon.
    pub ebb: Ebb,
    /// The namespaces. The last field, so that they go last.
    pub lab: Lab,
}

/// The port that web servers listen at, on the VIP and on backends.
pub const WEB_PORT: u16 = 80;

/// How long things may take that take no time: to answer, to become active.
pub const SOON: Duration = Duration::from_secs(10);

impl Scene {
    /// Builds the lab, starts the daemon, the servers and the client.
    pub fn set(setting: Setting) -> Result<Self> {
        Self::set_with(setting, &[])
    }

    /// [`Scene::set`] with more arguments for `ebb run`.
    pub fn set_with(setting: Setting, run_arguments: &[&str]) -> Result<Self> {
        let lab = Lab::build(setting.plan.clone())?;
        let servers = lab.backends.iter().enumerate().map(|(index, host)| match setting.server_program {
            None => Server::start(host, &format!("b{index}")),
            Some(program) => Server::start_apart(program, host, &format!("b{index}")),
        });
        let servers = servers.collect::<Result<_>>()?;
        let tunnels = if setting.forward == Forward::Tunnel { lab.backends.len() } else { 0 };
        let decaps = (0..tunnels).map(|index| Program::start_decap(&lab, index)).collect::<Result<_>>()?;
        let client = Client::start(&lab)?;
        let ebb = Ebb::start_with(&lab, run_arguments)?;
        Ok(Self { setting, _decaps: decaps, client, servers, ebb, lab })
    }

    /// [`Scene::set`], then [`Scene::add_web`] with all backends.
    pub fn with_web(setting: Setting, service_arguments: &[&str]) -> Result<Self> {
        let scene = Self::set(setting)?;
        scene.add_web(service_arguments)?;
        Ok(scene)
    }

    /// Adds the service `web` for TCP with all backends, starts the servers, and waits until all are active.
    pub fn add_web(&self, service_arguments: &[&str]) -> Result<()> {
        self.add_service("web", 0, WEB_PORT, "tcp", service_arguments)
    }

    /// Adds a service on VIP number `vip` with all backends, starts the servers, and waits until all are active.
    pub fn add_service(&self, name: &str, vip: usize, port: u16, protocol: &str, more: &[&str]) -> Result<()> {
        let vip_text = format!("{}/{protocol}", self.vip(vip, port));
        let forward = self.setting.forward.word();
        let add = ["service", "add", name, "--vip", &vip_text, "--forward", forward];
        self.ebb.ok(&[&add, more].concat())?;
        for (index, server) in self.servers.iter().enumerate() {
            let address = self.lab.plan.listen(self.setting.family, index, vip, port);
            server.listen(address, if protocol == "tcp" { Transport::Tcp } else { Transport::Udp })?;
            self.add_backend(name, server.name(), index)?;
        }
        self.wait_all_active(name)
    }

    /// Registers backend number `index` with a service, under a name.
    pub fn add_backend(&self, service: &str, name: &str, index: usize) -> Result<()> {
        let address = Plan::backend(self.setting.family, index).to_string();
        self.ebb.ok(&["backend", "add", service, name, &address]).map(drop)
    }

    /// Waits until all backends of a service are active.
    pub fn wait_all_active(&self, service: &str) -> Result<()> {
        let mut last = None;
        wait_until("all backends to be active", SOON, || {
            last = Some(self.ebb.status());
            let found = last.as_ref().and_then(|status| status.as_ref().ok()).and_then(|s| s.service(service));
            found.is_some_and(|service| service.backends.iter().all(|backend| backend.state == "active"))
        })
        .with_context(|| format!("last seen: {last:?}"))
    }

    /// Takes the balancer's interface away and makes it again, each until the daemon has seen to it; `web` is whole after that.
    pub fn replug(&mut self) -> Result<()> {
        let is = |ebb: &Ebb, mode: &str| {
            ebb.status().is_ok_and(|status| status.datapath.interfaces.first().is_some_and(|first| first.mode == mode))
        };
        self.lab.unplug()?;
        wait_until("the interface to be missed", SOON, || is(&self.ebb, "missing"))?;
        self.lab.plug_in()?;
        wait_until("the interface to be attached", SOON, || is(&self.ebb, "native"))?;
        self.wait_all_active("web")
    }

    /// VIP number `index` in the scene's family, with a port.
    pub fn vip(&self, index: usize, port: u16) -> SocketAddr {
        SocketAddr::new(Plan::vip(self.setting.family, index), port)
    }

    /// Where the service `web` is.
    pub fn web(&self) -> SocketAddr {
        self.vip(0, WEB_PORT)
    }

    /// Opens `count` connections to the service `web`, which talk until told to finish.
    pub fn hold(&self, count: usize) -> Result<Group> {
        let group = self.client.open(Conversation::with(self.web()), count);
        group.wait_open(count, SOON)?;
        Ok(group)
    }

    /// Makes `count` short connections to the service `web`, all of which must go well, and returns the sums.
    pub fn visit(&self, count: usize) -> Result<Tally> {
        let group = self.client.open(Conversation::with(self.web()), count);
        group.finish();
        let mut tally = Tally::default();
        wait_until("short connections to end", SOON, || {
            tally = group.tally();
            tally.clean + tally.broken() + tally.could_not_connect() == count
        })?;
        ensure!(tally.clean == count, "short connections went wrong: {tally:?}");
        Ok(tally)
    }
}
