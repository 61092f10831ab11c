//! The packet path with real traffic and no daemon: what is wrong here is not the daemon's fault.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    programs::{Xdp, xdp::XdpMode},
};
use ebb_tests::{
    lab::{Arms, FAMILIES, Family, Lab, Plan},
    patient,
    scene::{Forward, SOON, WEB_PORT},
    traffic::{Client, Connection, Conversation, End, Fault, Group, Server, Transport, syn_flood},
    wait_until,
};
use lb_userspace::{
    datapath::{
        self, BackendConfig, BackendFlows, BackendSlot, BackendState, CutPolicy, Datapath as _, EbpfDatapath, Mode,
        Named, NatEndpoint, NextHop, Options, Protocol, RingSlot, ServiceConfig, ServiceSlot, clock, object::OBJECT,
    },
    net::links,
};

const SERVICE: ServiceSlot = ServiceSlot(0);
const RING_LEN: u32 = 4_099;
const BACKENDS: u32 = 3;

struct Stage {
    family: Family,
    datapath: EbpfDatapath,
    /// What takes packets out of tunnels on the backends.
    _decaps: Vec<Ebpf>,
    client: Client,
    servers: Vec<Server>,
    lab: Lab,
}

impl Stage {
    fn set(forward: Forward, arms: Arms, family: Family) -> Result<Self> {
        Self::set_with(forward, arms, family, 20_000)
    }

    fn set_with(forward: Forward, arms: Arms, family: Family, max_flows: u32) -> Result<Self> {
        let lab = Lab::build(Plan { arms, replies: forward.replies(), ..Plan::default() })?;
        let options = Options {
            interfaces: lab.plan.interfaces().iter().map(|&name| name.to_owned()).collect(),
            mode: Mode::Native,
            max_flows,
            pin_path: lab.pin_path(),
            ..Options::default()
        };
        let datapath = lab.balancer.run(|| EbpfDatapath::open(&options))??;
        let servers = lab.backends.iter().enumerate().map(|(index, host)| {
            let server = Server::start(host, &format!("b{index}"))?;
            server.listen(lab.plan.listen(family, index, 0, WEB_PORT), Transport::Tcp)?;
            Ok(server)
        });
        let servers = servers.collect::<Result<_>>()?;
        let tunnels = if forward == Forward::Tunnel { &lab.backends[..] } else { &[] };
        let decaps = tunnels.iter().map(|host| host.run(decapsulate)?).collect::<Result<_>>()?;
        let mut stage = Self { family, datapath, _decaps: decaps, client: Client::start(&lab)?, servers, lab };
        stage.configure(forward)?;
        Ok(stage)
    }

    fn configure(&mut self, forward: Forward) -> Result<()> {
        let service = self.service(forward);
        self.datapath.put_service(SERVICE, &service)?;
        for index in 0..BACKENDS {
            let backend = self.backend(index)?;
            self.datapath.put_backend(BackendSlot(index), &backend)?;
        }
        self.datapath.put_ring(SERVICE, &ring(None))?;
        let endpoints = (0..BACKENDS).map(|index| NatEndpoint {
            backend: BackendSlot(index),
            service: SERVICE,
            address: Plan::backend(self.family, index as usize),
            port: WEB_PORT,
            protocol: Protocol::Tcp,
        });
        let nat = endpoints.filter(|_| forward == Forward::Nat).collect();
        let named = Named { nat, ids: Vec::new() };
        Ok(self.datapath.publish_vips(&[(SERVICE, &service)], &BTreeSet::new(), &named)?)
    }

    fn service(&self, forward: Forward) -> ServiceConfig {
        let forward = match forward {
            Forward::Dsr => datapath::Forward::Dsr,
            Forward::Nat => datapath::Forward::Nat,
            Forward::Tunnel => datapath::Forward::Tunnel,
        };
        ServiceConfig::tcp(self.web(), forward)
    }

    fn backend(&self, index: u32) -> Result<BackendConfig> {
        let inside = self.lab.plan.interfaces().last().context("an interface")?;
        let known = self.lab.balancer.run(links::list)??;
        let link = known.iter().find(|link| link.name == *inside).context("the interface")?;
        let next_hop = NextHop {
            ifindex: link.index,
            dst_mac: Plan::backend_mac(index as usize),
            src_mac: Plan::balancer_mac(),
            mtu: 1500,
            source: Some(Plan::balancer_inside(self.family)),
            vlan: None,
        };
        Ok(BackendConfig {
            service: SERVICE,
            address: Plan::backend(self.family, index as usize),
            port: WEB_PORT,
            generation: 1,
            state: BackendState::Active,
            deadline_ns: None,
            on_timeout: CutPolicy::Reset,
            cut_window: Duration::ZERO,
            next_hop: Some(next_hop),
            server_id: None,
        })
    }

    fn web(&self) -> SocketAddr {
        SocketAddr::new(Plan::vip(self.family, 0), WEB_PORT)
    }

    fn hold(&self, count: usize, pause: Duration) -> Result<Group> {
        let group = self.client.open(Conversation { pause, ..Conversation::with(self.web()) }, count);
        group.wait_open(count, SOON)?;
        Ok(group)
    }

    fn drain(&mut self, index: u32, timeout: Duration) -> Result<Instant> {
        let deadline = clock::coarse_ns() + timeout.as_nanos() as u64;
        let (slot, state) = (BackendSlot(index), BackendState::Draining);
        self.datapath.set_backend_state(slot, state, Some(deadline), CutPolicy::Reset)?;
        self.datapath.put_ring(SERVICE, &ring(Some(index)))?;
        self.datapath.grace()?;
        Ok(Instant::now())
    }

    fn flows(&mut self, index: u32) -> Result<BackendFlows> {
        let sweep = self.datapath.sweep(clock::coarse_ns())?;
        let found = sweep.backends.into_iter().find(|flows| flows.slot == BackendSlot(index));
        let none = BackendFlows {
            slot: BackendSlot(index),
            generation: 1,
            opening: 0,
            established: 0,
            half_closed: 0,
            closing: 0,
            oldest_ns: None,
        };
        Ok(found.unwrap_or(none))
    }
}

/// Attaches the program of `ebb decap` in the calling thread's namespace.
fn decapsulate() -> Result<Ebpf> {
    let mut object = Ebpf::load(OBJECT)?;
    let program: &mut Xdp = object.program_mut("ebb_decap").context("ebb_decap")?.try_into()?;
    program.load()?;
    program.attach("eth0", XdpMode::Driver)?;
    Ok(object)
}

/// Slots in turn to all backends; those of `drained` go to its neighbours, and remember it.
fn ring(drained: Option<u32>) -> Vec<RingSlot> {
    let slot = |index: u32| {
        let owner = index % BACKENDS;
        let moved = drained == Some(owner);
        let step = if moved { 1 + index / BACKENDS % 2 } else { 0 };
        RingSlot { owner: Some(BackendSlot((owner + step) % BACKENDS)), previous: moved.then_some(BackendSlot(owner)) }
    };
    (0..RING_LEN).map(slot).collect()
}

fn is_reset(c: &Connection) -> bool {
    matches!(c.end, Some((End::Broken(Fault::Reset), _)))
}

fn carries_and_counts(forward: Forward, arms: Arms, family: Family) -> Result<()> {
    let mut stage = Stage::set(forward, arms, family)?;
    let held = stage.hold(90, Duration::from_millis(20))?;
    let tally = held.tally();
    for index in 0..BACKENDS {
        let flows = stage.flows(index)?;
        let there = tally.served_by(&format!("b{index}")) as u64;
        assert!(there > 10, "{tally:?}");
        assert_eq!((flows.established, flows.live()), (there, there), "b{index}: {flows:?}");
    }
    // Full segments, which a tunnel makes too long.
    let bulk = stage.client.open(Conversation { payload_len: 50_000, ..Conversation::with(stage.web()) }, 9);
    bulk.wait_open(9, SOON)?;
    let tally = bulk.finish_and_wait(SOON).context("bulk")?;
    assert_eq!(tally.clean, 9, "{tally:?}");

    stage.drain(1, Duration::from_mins(1))?;
    let late = stage.hold(60, Duration::from_millis(20))?;
    assert_eq!(late.tally().served_by("b1"), 0, "{:?}", late.tally());

    let tally = held.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.clean), (0, 90), "{tally:?}");
    let ended = Instant::now();
    wait_until("b1 to be empty", SOON, || stage.flows(1).is_ok_and(|flows| flows.live() == 0))?;
    assert!(ended.elapsed() < patient(Duration::from_secs(2)), "{:?} after the end", ended.elapsed());
    let tally = late.finish_and_wait(SOON)?;
    assert_eq!(tally.clean, 60, "{tally:?}");
    Ok(())
}

/// Cut by the daemon's part (`cut`), or by the packet path alone (`None`), with some connections busy and some silent.
fn cuts(forward: Forward, arms: Arms, family: Family, by_daemon: bool) -> Result<()> {
    let mut stage = Stage::set(forward, arms, family)?;
    let busy = stage.hold(30, Duration::from_millis(5))?;
    let idle = stage.hold(if by_daemon { 30 } else { 0 }, Duration::from_mins(1))?;
    let at_b1 = busy.tally().open_at("b1") + idle.tally().open_at("b1");
    stage.drain(1, Duration::from_secs(1))?;
    if by_daemon {
        let after_deadline = clock::coarse_ns() + 1_000_000_000;
        wait_until("the deadline", SOON, || clock::coarse_ns() > after_deadline)?;
        let Stage { datapath, lab, .. } = &mut stage;
        let report = lab.balancer.run(|| datapath.cut(BackendSlot(1), 1, CutPolicy::Reset, clock::coarse_ns()))??;
        // A packet may have been quicker than the daemon, so the report may name fewer.
        assert!(report.cut as usize <= at_b1, "{report:?} of {at_b1}");
    }
    let accounts = || [busy.connections(), idle.connections()].concat();
    let clients_reset = || accounts().iter().filter(|c| c.is_served_by("b1") && is_reset(c)).count();
    wait_until("the clients to be reset", SOON, || clients_reset() == at_b1)
        .with_context(|| format!("{} of {at_b1}; busy {:?}; idle {:?}", clients_reset(), busy.tally(), idle.tally()))?;
    if by_daemon {
        // Without it, whoever speaks is answered, and a server that does not speak is not told.
        let server = &stage.servers[1];
        wait_until("the server to be reset", SOON, || server.open() == 0)
            .with_context(|| format!("{} of {at_b1} are open", server.open()))?;
        let there = server.connections();
        assert!(there.iter().all(|c| matches!(c.end, Some((End::Broken(Fault::Reset), _)))), "{there:?}");
    }
    let clean = busy.finish_and_wait(SOON)?.clean + idle.finish_and_wait(SOON)?.clean;
    assert_eq!(clean, accounts().len() - at_b1, "the others were left alone");
    Ok(())
}

/// The flow table is wiped while b1 drains: what was open stays where it is.
fn outlives_its_table(forward: Forward, arms: Arms, family: Family) -> Result<()> {
    let mut stage = Stage::set(forward, arms, family)?;
    let held = stage.hold(300, Duration::from_millis(200))?;
    let at_b1 = held.tally().open_at("b1") as u64;
    stage.drain(1, Duration::from_mins(1))?;
    stage.lab.wipe_flow_table()?;
    wait_until("b1's flows to be counted again", SOON, || stage.flows(1).is_ok_and(|flows| flows.established == at_b1))
        .with_context(|| format!("of {at_b1}: {:?}; {:?}", stage.flows(1), held.tally()))?;
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.clean), (0, 300), "{tally:?}");
    Ok(())
}

/// A flood of SYNs fills a small table while b1 drains: nothing established is broken or forgotten.
#[test]
fn a_flood_evicts_no_established_flow() -> Result<()> {
    let mut stage = Stage::set_with(Forward::Dsr, Arms::One, Family::V4, 1_000)?;
    let held = stage.hold(600, Duration::from_millis(200))?;
    let at_b1 = held.tally().open_at("b1") as u64;
    stage.drain(1, Duration::from_mins(1))?;
    syn_flood(&stage.lab, stage.web(), 100_000)?;
    let totals = stage.datapath.sweep(clock::coarse_ns())?.totals;
    assert!(totals.live >= totals.capacity && totals.opening > 0, "the flood filled the table: {totals:?}");
    // Another while the connections talk.
    syn_flood(&stage.lab, stage.web(), 200_000)?;
    assert_eq!(stage.flows(1)?.established, at_b1, "all of b1's connections are known");
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.clean), (0, 600), "{tally:?}");
    let late = stage.hold(60, Duration::from_millis(100))?;
    assert_eq!(late.tally().served_by("b1"), 0, "{:?}", late.tally());
    late.finish_and_wait(SOON).map(drop)
}

macro_rules! each_arm {
    ($($name:ident: $forward:ident $arms:ident;)*) => {
        $(mod $name {
            use super::{Arms, FAMILIES, Forward};

            #[test]
            fn carries_and_counts() -> anyhow::Result<()> {
                FAMILIES.into_iter().try_for_each(|family| super::carries_and_counts(Forward::$forward, Arms::$arms, family))
            }

            #[test]
            fn outlives_its_table() -> anyhow::Result<()> {
                FAMILIES.into_iter().try_for_each(|family| super::outlives_its_table(Forward::$forward, Arms::$arms, family))
            }

            #[test]
            fn is_cut_by_the_daemon() -> anyhow::Result<()> {
                FAMILIES.into_iter().try_for_each(|family| super::cuts(Forward::$forward, Arms::$arms, family, true))
            }

            #[test]
            fn is_cut_without_the_daemon() -> anyhow::Result<()> {
                FAMILIES.into_iter().try_for_each(|family| super::cuts(Forward::$forward, Arms::$arms, family, false))
            }
        })*
    };
}

each_arm! {
    dsr_one_arm: Dsr One;
    dsr_two_arms: Dsr Two;
    nat_one_arm: Nat One;
    nat_two_arms: Nat Two;
    tunnel_one_arm: Tunnel One;
    tunnel_two_arms: Tunnel Two;
}
