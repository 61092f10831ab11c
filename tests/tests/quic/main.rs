//! QUIC connections of a real implementation (quinn) whose client moves to other addresses and ports: with `--quic-cid` they stay
//! with their backend, in every mode, and a drain knows of them.

mod ends;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    lab::{Arms, Family, Plan},
    scene::{Forward, SOON, Scene, Setting},
    wait_until,
};
use serde::Deserialize;

use self::ends::{Certificate, Client, Server, Talk};

const PORT: u16 = 443;
/// Own addresses that the client may move between.
const ADDRESSES: usize = 2;
/// So many connections: were each move a throw of dice among three backends, some would not stay.
const TALKS: usize = 9;
/// Silence after which the service's flows are over.
const IDLE: Duration = Duration::from_secs(3);

/// A scene with a QUIC server on each backend.
struct Stage {
    servers: BTreeMap<String, Server>,
    client: Client,
    scene: Scene,
    next_port: u16,
}

/// `ebb backend list -o json`, as far as it matters.
#[derive(Deserialize)]
struct Listed {
    backends: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    server_id: Option<String>,
}

impl Stage {
    /// With these settings for the service; where they have connection ids named, servers use the ids that `ebb` shows.
    fn set(forward: Forward, arms: Arms, family: Family, settings: &[&str]) -> Result<Self> {
        let mut setting = Setting::of(forward, arms, family);
        setting.plan.client_addresses = ADDRESSES;
        let scene = Scene::set(setting)?;
        let vip = format!("{}/udp", scene.vip(0, PORT));
        let idle = format!("{}s", IDLE.as_secs());
        let add = ["service", "add", "quic", "--vip", &vip, "--forward", forward.word(), "--idle-timeout", &idle];
        scene.ebb.ok(&[&add, settings].concat())?;
        for (index, name) in ["b0", "b1", "b2"].into_iter().enumerate() {
            scene.add_backend("quic", name, index)?;
        }
        let certificate = Certificate::new()?;
        let listed: Listed = scene.ebb.json(&["backend", "list", "quic"])?;
        let servers = listed.backends.iter().enumerate().map(|(index, backend)| {
            let address = scene.lab.plan.listen(family, index, 0, PORT);
            let id = backend.server_id.as_deref().map_or(Ok(vec![0; 4]), bytes)?;
            let server = Server::start(&scene.lab.backends[index], &backend.name, address, (2, id), &certificate)?;
            Ok((backend.name.clone(), server))
        });
        let servers = servers.collect::<Result<_>>()?;
        scene.wait_all_active("quic")?;
        let client = Client::start(&scene.lab.client, &certificate)?;
        Ok(Self { servers, client, scene, next_port: 20_000 })
    }

    /// An own address that was not used before.
    fn place(&mut self) -> SocketAddr {
        self.next_port += 1;
        let address: IpAddr = Plan::client(self.scene.setting.family, usize::from(self.next_port) % ADDRESSES);
        SocketAddr::new(address, self.next_port)
    }

    /// A new connection, and who serves it.
    fn talk(&mut self) -> Result<(Talk, String)> {
        let from = self.place();
        let talk = self.client.connect(from, self.scene.vip(0, PORT)).context("connect")?;
        let name = self.client.ask(&talk, 10)?;
        Ok((talk, name))
    }

    fn talks(&mut self, count: usize) -> Result<Vec<(Talk, String)>> {
        (0..count).map(|_| self.talk()).collect()
    }

    /// Moves the connection; who serves it there.
    fn moved(&mut self, talk: &Talk, bytes: usize) -> Result<String> {
        let to = self.place();
        self.client.migrate(talk, to)?;
        self.client.ask(talk, bytes)
    }
}

/// What hexadecimal digits say.
fn bytes(hex: &str) -> Result<Vec<u8>> {
    ensure!(hex.len().is_multiple_of(2), "half a byte in {hex}");
    (0..hex.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?)).collect()
}

/// Connections move, again and again, and stay; one backend drains meanwhile.
fn stays(forward: Forward, arms: Arms, family: Family) -> Result<()> {
    let mut stage = Stage::set(forward, arms, family, &["--quic-cid", "sid=5,cr=2"])?;
    let talks = stage.talks(TALKS)?;
    for (round, bytes) in [10, 5_000, 50_000].into_iter().enumerate() {
        for (talk, name) in &talks {
            let served = stage.moved(talk, bytes).with_context(|| format!("{name}'s, move {round}"))?;
            assert_eq!(served, *name, "move {round}");
        }
    }
    drains(&mut stage, talks)
}

fn drains(stage: &mut Stage, talks: Vec<(Talk, String)>) -> Result<()> {
    let drained = talks[0].1.clone();
    let target = format!("quic/{drained}");
    let (its, others): (Vec<_>, Vec<_>) = talks.into_iter().partition(|(_, name)| *name == drained);
    assert_eq!(stage.servers[&drained].open(), its.len());
    let before = stage.scene.ebb.backend(&target)?.new_flows_total;
    stage.scene.ebb.ok(&["drain", &target, "--timeout", "5m"])?;
    for (_, name) in stage.talks(TALKS)? {
        assert_ne!(name, drained, "a new connection");
    }
    // For longer than the flows of the places that they have left live.
    for _ in 0..4 {
        for (talk, name) in its.iter().chain(&others) {
            assert_eq!(stage.moved(talk, 10).with_context(|| format!("{name}'s, in the drain"))?, *name);
        }
        std::thread::sleep(IDLE / 3);
    }
    let backend = stage.scene.ebb.backend(&target)?;
    assert_eq!(backend.state, "draining", "{backend:?}");
    assert!(backend.active_flows as usize >= its.len(), "{} of {backend:?}", its.len());
    assert_eq!(backend.new_flows_total, before, "what has moved is not new");
    for (talk, _) in its {
        stage.client.close(talk)?;
    }
    wait_until("the server to see them closed", SOON, || stage.servers[&drained].open() == 0)?;
    let last = stage.scene.ebb.wait_state(&target, "drained", IDLE + SOON)?.last_drain.context("a record")?;
    assert_eq!((last.outcome.as_str(), last.cut_flows), ("completed", 0), "{last:?}");
    for (talk, name) in &others {
        assert_eq!(stage.moved(talk, 10)?, *name, "after the drain");
    }
    Ok(())
}

#[test]
fn connections_stay_when_they_move_dsr_v4() -> Result<()> {
    stays(Forward::Dsr, Arms::One, Family::V4)
}

#[test]
fn connections_stay_when_they_move_dsr_v6() -> Result<()> {
    stays(Forward::Dsr, Arms::Two, Family::V6)
}

#[test]
fn connections_stay_when_they_move_nat_v4() -> Result<()> {
    stays(Forward::Nat, Arms::Two, Family::V4)
}

#[test]
fn connections_stay_when_they_move_nat_v6() -> Result<()> {
    stays(Forward::Nat, Arms::One, Family::V6)
}

#[test]
fn connections_stay_when_they_move_tunnel_v4() -> Result<()> {
    stays(Forward::Tunnel, Arms::One, Family::V4)
}

#[test]
fn connections_stay_when_they_move_tunnel_v6() -> Result<()> {
    stays(Forward::Tunnel, Arms::Two, Family::V6)
}

#[test]
fn without_it_they_break() -> Result<()> {
    let mut stage = Stage::set(Forward::Dsr, Arms::One, Family::V4, &[])?;
    let talks = stage.talks(TALKS)?;
    // One is enough, and each takes its time.
    assert!(talks.iter().any(|(talk, _)| stage.moved(talk, 10).is_err()), "all of them stayed");
    Ok(())
}
