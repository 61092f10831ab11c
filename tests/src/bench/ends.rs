//! How long after the last connection's end a drain is over.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Figure, commands::quantiles};
use crate::{
    lab::{Namespace, Plan},
    scene::{Forward, Scene, Setting},
};

const SERVICES: u16 = 12;
const BACKENDS: usize = 4;
/// Connections tried until one is on the backend wanted.
const TRIES: u32 = 200;
/// Longer than a drain may take after its last connection.
const LIMIT: Duration = Duration::from_secs(20);

/// Drains one backend of each of many services at a time, closes its one connection at any moment, and waits for
/// `drained`; `rounds` times.
pub fn drained_after_last_end(forward: Forward, rounds: usize) -> Result<Vec<Figure>> {
    super::driver::all_cpus()?;
    let plan = Plan { backends: BACKENDS, replies: forward.replies(), ..Plan::default() };
    let mut scene = Scene::set(Setting { plan, forward, ..Setting::default() })?;
    scene.ebb.show_log = false;
    for n in 0..SERVICES {
        scene.add_service(&name(n), 0, 80 + n, "tcp", &[])?;
    }
    let mut times = Vec::new();
    for round in 0..rounds {
        let scene = &scene;
        let backend = scene.servers[round % BACKENDS].name();
        let round_times: Result<Vec<f64>> = thread::scope(|scope| {
            let workers: Vec<_> = (0..SERVICES).map(|n| scope.spawn(move || one(scene, n, backend))).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| bail!("a drain's thread panicked")))
                .collect()
        });
        times.extend(round_times?);
    }
    Ok(quantiles(&format!("last_end_to_drained_{}", forward.word()), &times))
}

fn name(service: u16) -> String {
    format!("web{service}")
}

/// Milliseconds from the close of a backend's last connection until its drain is over.
fn one(scene: &Scene, service: u16, backend: &str) -> Result<f64> {
    let which = format!("{}/{backend}", name(service));
    let stream = connect(&scene.lab.client, scene.vip(0, 80 + service), backend)?;
    scene.ebb.ok(&["drain", &which])?;
    let wait = scene.ebb.background(&["wait", &which])?;
    // At any moment between two looks of the daemon.
    thread::sleep(Duration::from_millis(300 + u64::from(service) * 37 % 250));
    let ended = close(stream)?;
    let output = wait.wait(LIMIT)?;
    let took = ended.elapsed();
    ensure!(output.code == 0, "wait for {which}: {output:?}");
    let outcome = scene.ebb.backend(&which)?.last_drain.map(|drain| drain.outcome);
    ensure!(outcome.as_deref() == Some("completed"), "{which}: {outcome:?}");
    scene.ebb.ok(&["activate", &which])?;
    Ok(took.as_secs_f64() * 1e3)
}

/// A connection to a service that is on `backend`, by what its server says first.
fn connect(client: &Namespace, target: SocketAddr, backend: &str) -> Result<TcpStream> {
    client.run(|| {
        for _ in 0..TRIES {
            let mut stream = TcpStream::connect(target)?;
            let mut greeting = [0; 64];
            let length = stream.read(&mut greeting)?;
            let greeting = String::from_utf8_lossy(&greeting[..length]).into_owned();
            if greeting.trim_end_matches('\0').trim_end() == backend {
                return Ok(stream);
            }
            // The others' connections must not be what a later drain waits for.
            close(stream)?;
        }
        bail!("none of {TRIES} connections to {target} was on {backend}")
    })?
}

/// Closes in order, and returns when the server had closed too.
fn close(mut stream: TcpStream) -> Result<Instant> {
    stream.flush()?;
    stream.shutdown(Shutdown::Write).context("close")?;
    let mut rest = [0; 64];
    ensure!(stream.read(&mut rest)? == 0, "the server had more to say");
    Ok(Instant::now())
}
