//! Where a run takes place: a lab with every kind of service, its servers, and clients that keep thousands of connections going.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

use super::{
    judge::Accounts,
    roster::{BACKENDS, Role, Service, backend_name, roster},
};
use crate::{
    lab::{Ebb, FAMILIES, Family, Lab, Plan, Program, ip, run_program},
    traffic::{Client, Connection, Conversation, DatagramGroup, Group, Lasting, Server, Transport},
    wait_until,
};

/// Longer than any outage of a run, with the pauses that TCP makes after it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The longest life of connections that come and go.
const LONGEST: Duration = Duration::from_secs(10);
/// For steps that thousands of connections take part in, on a small machine.
const LONG: Duration = Duration::from_mins(1);
/// The size of the disk that the state is kept on, in bytes.
const DISK: u64 = 8 << 20;
/// Datagram flows of each service.
const DATAGRAM_FLOWS: usize = 20;
/// Addresses that clients send from, in each family.
const SOURCES: usize = 8;

/// The place. Fields are dropped in this order.
#[derive(Debug)]
pub(super) struct World {
    /// What is balanced.
    pub services: Vec<Service>,
    _decaps: Vec<Program>,
    client: Client,
    servers: Vec<Server>,
    groups: Vec<(usize, Group)>,
    datagrams: Vec<(usize, DatagramGroup)>,
    /// The daemon.
    pub ebb: Ebb,
    /// The namespaces.
    pub lab: Lab,
}

impl World {
    /// Builds it all and waits until so many connections are open.
    pub(super) fn build(connections: usize) -> Result<Self> {
        let plan = Plan { backends: BACKENDS, client_addresses: SOURCES, vips: 3, ..Plan::default() };
        let lab = Lab::build(plan)?;
        lab.give_state_a_disk(DISK)?;
        // Static addresses outlive an interface that goes down, as where a network manager looks after them.
        lab.balancer.sysctl(&[("net/ipv6/conf/*/keep_addr_on_down", "1")])?;
        let services = roster();
        let mut servers = Vec::new();
        let mut decaps = Vec::new();
        for (index, host) in lab.backends.iter().enumerate() {
            answer_both_ways(host)?;
            decaps.push(Program::start_decap(&lab, index)?);
            let server = Server::start(host, &backend_name(index))?;
            for service in &services {
                let datagrams = service.role == Role::Datagrams;
                server.listen(service.listen(index), if datagrams { Transport::Udp } else { Transport::Tcp })?;
            }
            servers.push(server);
        }
        let client = Client::start(&lab)?;
        let mut ebb = Ebb::start(&lab)?;
        ebb.show_log = false;
        let (groups, datagrams) = (Vec::new(), Vec::new());
        let mut world = Self { services, _decaps: decaps, client, servers, groups, datagrams, ebb, lab };
        world.configure()?;
        world.start_traffic(connections)?;
        Ok(world)
    }

    fn configure(&self) -> Result<()> {
        let wanted = || self.services.iter().filter(|service| service.role != Role::Extra);
        let file = self.lab.directory().join("chaos.toml");
        fs::write(&file, wanted().map(Service::block).collect::<String>())?;
        self.ebb.ok(&["apply", &file.to_string_lossy()])?;
        wait_until("all backends to be active", LONG, || {
            self.ebb.status().is_ok_and(|status| {
                let backends = || status.services.iter().flat_map(|service| &service.backends);
                backends().count() == wanted().count() * BACKENDS && backends().all(|backend| backend.state == "active")
            })
        })
    }

    fn start_traffic(&mut self, connections: usize) -> Result<()> {
        let with_role = |role| self.services.iter().filter(|service| service.role == role).count();
        // Those that come and go cost more.
        let (short, long) = (connections / 8 / with_role(Role::Short), connections * 7 / 8 / with_role(Role::Long));
        for (number, service) in self.services.iter().enumerate() {
            let talk = Conversation { patience: PATIENCE, ..Conversation::with(service.vip()) };
            let pause = Duration::from_millis(300);
            let lasting = Lasting::Between(Duration::from_millis(50), LONGEST);
            let group = match service.role {
                Role::Short => self.client.keep(Conversation { pause, lasting, ..talk }, short),
                Role::Long => self.client.keep(Conversation { pause: Duration::from_secs(2), ..talk }, long),
                Role::Datagrams => {
                    let group = self.client.datagrams(service.vip(), DATAGRAM_FLOWS, Duration::from_millis(200));
                    self.datagrams.push((number, group));
                    continue;
                }
                Role::Still | Role::Extra => continue,
            };
            self.groups.push((number, group));
        }
        for (number, group) in &self.groups {
            let role = self.services[*number].role;
            group.wait_open(if role == Role::Long { long } else { short / 2 }, LONG)?;
        }
        self.datagrams.iter().try_for_each(|(_, group)| group.wait_answered(LONG))
    }

    /// The names of the services.
    pub(super) fn names(&self) -> Vec<String> {
        self.services.iter().map(|service| service.name.clone()).collect()
    }

    /// The accounts of all clients and servers so far.
    pub(super) fn accounts(&self) -> Accounts {
        Accounts {
            clients: self.groups.iter().map(|(service, group)| (*service, group.connections())).collect(),
            servers: self.servers.iter().map(Server::connections).collect(),
            datagrams: self.datagrams.iter().map(|(service, group)| (*service, group.flows())).collect(),
        }
    }

    /// How many connections each service has been given so far.
    pub(super) fn opened(&self) -> Vec<(usize, usize)> {
        let short = self.groups.iter().filter(|(service, _)| self.services[*service].role == Role::Short);
        short.map(|(service, group)| (*service, group.tally().opened)).collect()
    }

    /// Makes short connections to a service from all addresses of the client's, and waits for their ends.
    pub(super) fn visit(&self, service: usize) -> Result<Vec<Connection>> {
        let count = SOURCES * 2;
        let talk = Conversation { patience: PATIENCE, ..Conversation::with(self.services[service].vip()) };
        let group = self.client.open(talk, count);
        group.finish();
        wait_until("visitors to leave", PATIENCE * 2, || {
            let tally = group.tally();
            tally.clean + tally.broken() + tally.could_not_connect() == count
        })?;
        Ok(group.connections())
    }

    /// Has the server of the first backend die on its clients of a service: it starts anew, without their connections.
    pub(super) fn hang_up(&mut self, service: usize) -> Result<()> {
        let host = &self.lab.backends[0];
        self.servers[0] = Server::start(host, &backend_name(0))?;
        self.servers[0].listen(self.services[service].listen(0), Transport::Tcp)
    }

    /// Opens connections that are in no account.
    pub(super) fn open_unseen(&self, service: usize) -> Result<()> {
        let count = 10 * BACKENDS;
        self.client.open(Conversation::with(self.services[service].vip()), count).wait_open(count, LONG)
    }

    /// Ends all traffic and waits until it is over.
    pub(super) fn finish(&self) -> Result<()> {
        self.groups.iter().for_each(|(_, group)| group.finish());
        self.datagrams.iter().for_each(|(_, group)| group.finish());
        for (service, group) in &self.groups {
            let name = &self.services[*service].name;
            group.finish_and_wait(PATIENCE * 2).with_context(|| format!("connections of {name}"))?;
        }
        Ok(())
    }
}

/// Lets a backend answer from its own address through the balancer, as `nat` needs it, and from the VIPs directly; and has it tell
/// its neighbours of a new MAC address.
fn answer_both_ways(host: &crate::lab::Namespace) -> Result<()> {
    for family in FAMILIES {
        let (flag, net, clients) = match family {
            Family::V4 => ("-4", "10.2.0.0/24", "10.1.0.0/24"),
            Family::V6 => ("-6", "fd00:2::/64", "fd00:1::/64"),
        };
        run_program(host, "ip", &[flag, "rule", "add", "from", net, "to", clients, "table", "100"])?;
        ip(Some(host), &format!("route add {clients} via {} table 100", Plan::balancer_inside(family)))?;
    }
    host.sysctl(&[("net/ipv4/conf/*/arp_notify", "1"), ("net/ipv6/conf/*/ndisc_notify", "1")])
}
