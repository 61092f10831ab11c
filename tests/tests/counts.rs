//! When a connection counts as live, and when it does not any more: one connection at a time, ended in every way.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ebb_tests::{
    lab::{Arms, Family, Plan},
    scene::{Forward, SOON, Scene, Setting, WEB_PORT},
    traffic::{abort, forge_resets, vanish},
    wait_until,
};

/// A bound that holds in every mode: `fin_quiet` and a look a second.
const SHORTLY: Duration = Duration::from_millis(2500);

/// One backend, and a listener on it.
struct Stage {
    scene: Scene,
    listener: TcpListener,
}

impl Stage {
    fn set(forward: Forward) -> Result<Self> {
        Self::with_room(forward, 1)
    }

    /// The same in a lab with more backends, of which nobody knows yet.
    fn with_room(forward: Forward, backends: usize) -> Result<Self> {
        let mut setting = Setting::of(forward, Arms::One, Family::V4);
        setting.plan.backends = backends;
        let scene = Scene::set(setting)?;
        let vip = format!("{}/tcp", scene.web());
        scene.ebb.ok(&["service", "add", "web", "--vip", &vip, "--forward", forward.word()])?;
        scene.add_backend("web", "b0", 0)?;
        scene.wait_all_active("web")?;
        let listener = listen(&scene, 0)?;
        Ok(Self { scene, listener })
    }

    /// A connection, from both ends. Sockets stay in the namespace they were made in.
    fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let web = self.scene.web();
        let client = self.scene.lab.client.run(|| TcpStream::connect_timeout(&web, SOON))??;
        let (server, _) = self.listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(SOON))?;
        }
        Ok((client, server))
    }

    fn live(&self) -> Result<u64> {
        Ok(self.scene.ebb.backend("web/b0")?.active_flows)
    }

    fn wait_live(&self, count: u64, within: Duration) -> Result<()> {
        let mut last = None;
        wait_until(&format!("{count} live flows"), within, || {
            last = Some(self.live());
            matches!(last, Some(Ok(live)) if live == count)
        })
        .with_context(|| format!("last seen: {last:?}"))
    }

    /// A connection on which something was said, counted as live.
    fn connect_and_talk(&self) -> Result<(TcpStream, TcpStream)> {
        let before = self.live()?;
        let (mut client, mut server) = self.connect()?;
        say(&mut client, &mut server)?;
        say(&mut server, &mut client)?;
        self.wait_live(before + 1, SHORTLY)?;
        Ok((client, server))
    }
}

/// A listener on a backend.
fn listen(scene: &Scene, index: usize) -> Result<TcpListener> {
    let listen = scene.lab.plan.listen(Family::V4, index, 0, WEB_PORT);
    Ok(scene.lab.backends[index].run(|| TcpListener::bind(listen))??)
}

fn say(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(b"hello")?;
    let mut heard = [0; 5];
    to.read_exact(&mut heard).context("hear")?;
    assert_eq!(&heard, b"hello");
    Ok(())
}

fn hear_the_end(of: &mut TcpStream) -> Result<()> {
    assert_eq!(of.read(&mut [0; 1]).context("the other's FIN")?, 0);
    Ok(())
}

fn the_client_closes_first(forward: Forward) -> Result<()> {
    let stage = Stage::set(forward)?;
    let (client, mut server) = stage.connect_and_talk()?;
    client.shutdown(Shutdown::Write)?;
    hear_the_end(&mut server)?;
    drop(server);
    stage.wait_live(0, SHORTLY)
}

fn the_server_closes_first(forward: Forward) -> Result<()> {
    let stage = Stage::set(forward)?;
    let (mut client, server) = stage.connect_and_talk()?;
    server.shutdown(Shutdown::Write)?;
    hear_the_end(&mut client)?;
    drop(client);
    stage.wait_live(0, SHORTLY)
}

fn both_close_at_once(forward: Forward) -> Result<()> {
    let stage = Stage::set(forward)?;
    for _ in 0..20 {
        let (mut client, mut server) = stage.connect()?;
        say(&mut client, &mut server)?;
        let other = thread::spawn(move || drop(server));
        drop(client);
        other.join().map_err(|_| anyhow::anyhow!("the closing thread panicked"))?;
    }
    stage.wait_live(0, SHORTLY)
}

/// The server of a request that was ended by a FIN takes its time to answer: the connection is alive all along.
fn half_closed_and_still_answering(forward: Forward) -> Result<()> {
    let stage = Stage::set(forward)?;
    let (mut client, mut server) = stage.connect_and_talk()?;
    stage.scene.ebb.ok(&["drain", "web/b0", "--timeout", "60s", "--force"])?;
    client.shutdown(Shutdown::Write)?;
    hear_the_end(&mut server)?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        say(&mut server, &mut client)?;
        assert_eq!(stage.scene.ebb.backend("web/b0")?.state, "draining", "after {:?}", begun.elapsed());
        thread::sleep(Duration::from_millis(300));
    }
    drop(server);
    hear_the_end(&mut client)?;
    drop(client);
    let ended = Instant::now();
    stage.scene.ebb.wait_state("web/b0", "drained", SOON)?;
    assert!(ended.elapsed() < SHORTLY, "drained {:?} after the end", ended.elapsed());
    Ok(())
}

fn the_client_aborts(forward: Forward) -> Result<()> {
    let stage = Stage::set(forward)?;
    let (client, mut server) = stage.connect_and_talk()?;
    abort(client)?;
    assert!(server.read(&mut [0; 1]).is_err(), "the server hears of it");
    stage.wait_live(0, SHORTLY)
}

/// Whoever knows a connection's addresses and ports but not its sequence number ends nothing (RFC 5961).
fn forged_resets_end_nothing(forward: Forward) -> Result<()> {
    let stage = Stage::set(forward)?;
    let (mut client, mut server) = stage.connect_and_talk()?;
    stage.scene.ebb.ok(&["drain", "web/b0", "--timeout", "60s", "--force"])?;
    let before = stage.scene.ebb.backend("web/b0")?.packets_total;
    forge_resets(&stage.scene.lab, client.local_addr()?, stage.scene.web())?;
    wait_until("the resets to have come by", SOON, || {
        stage.scene.ebb.backend("web/b0").is_ok_and(|backend| backend.packets_total >= before + 500)
    })?;
    thread::sleep(SHORTLY);
    let backend = stage.scene.ebb.backend("web/b0")?;
    assert_eq!((backend.state.as_str(), backend.active_flows), ("draining", 1), "it goes on");
    say(&mut client, &mut server)?;
    say(&mut server, &mut client)?;
    abort(client)?;
    stage.scene.ebb.wait_state("web/b0", "drained", SOON)?;
    Ok(())
}

macro_rules! in_each_mode {
    ($($name:ident)*) => {
        mod dsr {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name(super::Forward::Dsr)
            })*
        }

        mod nat {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name(super::Forward::Nat)
            })*
        }
    };
}

in_each_mode! {
    the_client_closes_first
    the_server_closes_first
    both_close_at_once
    half_closed_and_still_answering
    the_client_aborts
    forged_resets_end_nothing
}

/// Only where replies run through the balancer can it know. (Under `dsr` the client's kernel says nothing.)
#[test]
fn under_nat_the_server_aborts() -> Result<()> {
    let stage = Stage::set(Forward::Nat)?;
    let (mut client, server) = stage.connect_and_talk()?;
    abort(server)?;
    assert!(client.read(&mut [0; 1]).is_err(), "the client hears of it");
    stage.wait_live(0, SHORTLY)
}

/// The same ports again, at once: a new flow, which the old one's end does not end.
#[test]
fn a_port_is_used_again() -> Result<()> {
    let stage = Stage::set(Forward::Dsr)?;
    let source = SocketAddr::new(Plan::client(Family::V4, 0), 5_555);
    for round in 0..5 {
        let web = stage.scene.web();
        let mut client = stage.scene.lab.client.run(|| bound_to(source, web))??;
        let (mut server, peer) = stage.listener.accept()?;
        assert_eq!(peer, source, "round {round}");
        say(&mut client, &mut server)?;
        say(&mut server, &mut client)?;
        stage.wait_live(1, SHORTLY)?;
        abort(client)?;
        assert!(server.read(&mut [0; 1]).is_err());
    }
    stage.wait_live(0, SHORTLY)?;
    assert_eq!(stage.scene.ebb.backend("web/b0")?.new_flows_total, 5);
    Ok(())
}

/// A client that was gone without a word comes back from the port that it had, while the backend that still knows it drains.
/// The balancer's kernel forwards nothing, so that the new backend's answers have only one way.
#[test]
fn under_nat_a_port_is_used_again_in_a_drain() -> Result<()> {
    let stage = Stage::with_room(Forward::Nat, 2)?;
    let source = SocketAddr::new(Plan::client(Family::V4, 0), 5_555);
    let web = stage.scene.web();
    let mut client = stage.scene.lab.client.run(|| bound_to(source, web))??;
    let (mut old, _) = stage.listener.accept()?;
    say(&mut client, &mut old)?;
    say(&mut old, &mut client)?;
    vanish(client)?;

    let listener = listen(&stage.scene, 1)?;
    stage.scene.add_backend("web", "b1", 1)?;
    stage.scene.wait_all_active("web")?;
    stage.scene.ebb.ok(&["drain", "web/b0", "--timeout", "60s"])?;
    let mut client = stage.scene.lab.client.run(|| bound_to(source, web))?.context("from the same port")?;
    let (mut server, peer) = listener.accept()?;
    assert_eq!(peer, source);
    say(&mut client, &mut server)?;
    say(&mut server, &mut client)?;
    old.write_all(b"where are you?")?;
    say(&mut client, &mut server)?;
    say(&mut server, &mut client)
}

/// Connects from a chosen port, as only tokio's sockets let one.
fn bound_to(source: SocketAddr, target: SocketAddr) -> Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(source)?;
        let stream = tokio::time::timeout(SOON, socket.connect(target)).await.context("no answer")??.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    })
}

#[test]
fn what_never_says_goodbye_is_ended_by_idling() -> Result<()> {
    let stage = Stage::set(Forward::Dsr)?;
    stage.scene.ebb.ok(&["service", "set", "web", "--idle-timeout", "3s"])?;
    let (mut client, mut server) = stage.connect_and_talk()?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        say(&mut client, &mut server)?;
        assert_eq!(stage.live()?, 1, "it is not idle");
        thread::sleep(Duration::from_millis(500));
    }
    let quiet = Instant::now();
    stage.wait_live(0, SOON)?;
    let idled = quiet.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&idled), "{idled:?} for a timeout of 3 s");
    Ok(())
}
