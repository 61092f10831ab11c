//! Real connections a second: connect, ask, read the answer to its end; many at a time, both CPUs at work.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::{Figure, Spread};
use crate::{
    lab::{Ebb, Family, Lab, Plan},
    traffic::Host,
    wait::wait_until,
};

const BACKENDS: usize = 4;
const PORT: u16 = 80;
/// Connections open at a time.
const PARALLEL: usize = 256;
/// Event loops of the client.
const CLIENTS: usize = 2;
const REQUEST: [u8; 64] = [7; 64];
const ANSWER: [u8; 256] = [8; 256];
/// Longer than any connection takes here; what takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections a second straight to the backends and through Ebb (`dsr`), in turn, `runs` times each; before that, straight to
/// one backend and by way of the least that a balancer can be, which is what the way through the balancer's host costs here.
pub fn connections(each: Duration, runs: u32) -> Result<Vec<Figure>> {
    super::driver::all_cpus()?;
    let lab = Lab::build(Plan { backends: BACKENDS, ..Plan::default() })?;
    let servers: Vec<Host> = lab.backends.iter().map(Host::start).collect::<Result<_>>()?;
    for server in &servers {
        server.call(async {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind((Ipv4Addr::UNSPECIFIED, PORT).into())?;
            let listener = socket.listen(65_535)?;
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream));
                }
            });
            Ok(())
        })?;
    }
    let clients: Vec<Host> = (0..CLIENTS).map(|_| Host::start(&lab.client)).collect::<Result<_>>()?;
    let vip = SocketAddr::new(Plan::vip(Family::V4, 0), PORT);
    let backends: Vec<SocketAddr> =
        (0..BACKENDS).map(|index| SocketAddr::new(Plan::backend(Family::V4, index), PORT)).collect();
    let mut detours = Vec::new();
    {
        let _bounce = lab.bounce(vip.ip(), 0)?;
        for _ in 0..runs {
            let direct = rate(&clients, &backends[..1], each)?;
            detours.push(rate(&clients, &[vip], each)? / direct);
        }
    }

    let mut ebb = Ebb::start(&lab)?;
    ebb.show_log = false;
    ebb.ok(&["service", "add", "web", "--vip", &format!("{vip}/tcp")])?;
    for (index, backend) in backends.iter().enumerate() {
        ebb.ok(&["backend", "add", "web", &format!("b{index}"), &backend.ip().to_string()])?;
    }
    wait_until("all backends to be active", Duration::from_secs(30), || {
        ebb.status().is_ok_and(|status| {
            status.service("web").is_some_and(|web| web.backends.iter().all(|backend| backend.state == "active"))
        })
    })?;

    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        direct.push(rate(&clients, &backends, each)?);
        through.push(rate(&clients, &[vip], each)?);
    }
    let ratios: Vec<f64> = through.iter().zip(&direct).map(|(through, direct)| through / direct).collect();
    Ok(vec![
        Figure::new("connections_direct", Spread::of(&direct).median, "/s"),
        Figure::new("connections_ebb_dsr", Spread::of(&through).median, "/s"),
        Figure::new("connections_ebb_dsr_to_direct", Spread::of(&ratios).median, "x"),
        Figure::new("connections_bare_bounce_to_direct", Spread::of(&detours).median, "x"),
    ])
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; REQUEST.len()];
    stream.read_exact(&mut request).await?;
    // Closing first, the server keeps the waiting state, and the client its ports.
    stream.write_all(&ANSWER).await
}

fn rate(clients: &[Host], targets: &[SocketAddr], each: Duration) -> Result<f64> {
    let (done, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let end = Instant::now() + each;
    let begun = Instant::now();
    let runs: Vec<_> = clients
        .iter()
        .map(|client| {
            let (tell, told) = std::sync::mpsc::channel();
            let (done, failed, targets) = (Arc::clone(&done), Arc::clone(&failed), Arc::<[_]>::from(targets));
            client.spawn(async move {
                let visitors: Vec<_> = (0..PARALLEL / CLIENTS)
                    .map(|first| {
                        tokio::spawn(visit(first, Arc::clone(&targets), end, Arc::clone(&done), Arc::clone(&failed)))
                    })
                    .collect();
                for visitor in visitors {
                    let _ = visitor.await;
                }
                let _ = tell.send(());
            });
            told
        })
        .collect();
    for run in runs {
        run.recv().context("a client's event loop has ended")?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (done, failed) = (done.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    ensure!(failed == 0 && done > 0, "{failed} connections failed, {done} went well");
    Ok(done as f64 / seconds)
}

/// Connects over and over until `end`.
async fn visit(first: usize, targets: Arc<[SocketAddr]>, end: Instant, done: Arc<AtomicU64>, failed: Arc<AtomicU64>) {
    for target in targets.iter().cycle().skip(first) {
        if Instant::now() >= end {
            break;
        }
        let counter = match tokio::time::timeout(PATIENCE, exchange(*target)).await {
            Ok(Ok(true)) => &done,
            _ => &failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One connection; whether the whole answer came.
async fn exchange(target: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(&REQUEST).await?;
    let mut answer = Vec::with_capacity(ANSWER.len());
    stream.read_to_end(&mut answer).await?;
    Ok(answer == ANSWER)
}
