//! What floods cost those who are served meanwhile: how long requests, commands and the end of a drain take, with and without.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Figure, Spread};
use crate::{
    flood::{Flooder, KINDS, Kind, Running, Targets},
    lab::Arms,
    scene::{Forward, SOON, Scene, Setting},
    traffic::{Conversation, Server},
};

/// Connections that see all floods.
const KEPT: usize = 200;
/// A lost segment is sent again, and again.
const PATIENCE: Duration = Duration::from_mins(1);
/// A drain's deadline, which none should see.
const LIMIT: Duration = Duration::from_mins(2);

/// Without a flood, then under one of each kind; `each` is how long requests are counted.
pub fn floods(forward: Forward, each: Duration) -> Result<Vec<Figure>> {
    super::driver::all_cpus()?;
    let setting = Setting::of(forward, Arms::One, crate::lab::Family::V4);
    let mut scene = Scene::set(setting)?;
    scene.ebb.show_log = false;
    scene.add_web(&[])?;
    scene.add_service("names", 0, 53, "udp", &[])?;
    scene.add_service("api", 1, 8080, "tcp", &[])?;
    let flooder = Flooder::start(&mut scene.lab)?;
    let stage = Stage { flooder, targets: Targets { tcp: scene.web(), udp: scene.vip(0, 53) }, scene, each };
    let mut figures = stage.under(None)?;
    for kind in KINDS {
        figures.extend(stage.under(Some(kind)).with_context(|| format!("a flood of {kind}"))?);
    }
    for figure in &mut figures {
        figure.name = format!("flood_{}_{}", forward.word(), figure.name);
    }
    Ok(figures)
}

struct Stage {
    flooder: Flooder,
    targets: Targets,
    scene: Scene,
    each: Duration,
}

impl Stage {
    fn under(&self, kind: Option<Kind>) -> Result<Vec<Figure>> {
        let scene = &self.scene;
        let busy = Conversation { pause: Duration::ZERO, patience: PATIENCE, ..Conversation::with(scene.vip(1, 8080)) };
        let kept = scene.client.open(busy, KEPT);
        kept.wait_open(KEPT, SOON)?;
        let leaving = scene.client.open(Conversation { patience: PATIENCE, ..Conversation::with(scene.web()) }, 60);
        leaving.wait_open(60, SOON)?;
        let before = self.flooder.came();
        let flood = kind.map(|kind| self.flooder.flood(kind, self.targets, 1)).transpose()?;
        thread::sleep(Duration::from_millis(500));

        let frames =
            || -> u64 { scene.servers.iter().flat_map(Server::connections).map(|c| u64::from(c.frames)).sum() };
        let (asked, begun) = (frames(), Instant::now());
        let mut commands = Vec::new();
        while begun.elapsed() < self.each {
            let sent = Instant::now();
            scene.ebb.status()?;
            commands.push(sent.elapsed().as_secs_f64() * 1e3);
            thread::sleep(Duration::from_millis(50));
        }
        let rate = (frames() - asked) as f64 / begun.elapsed().as_secs_f64();

        let sent = Instant::now();
        scene.ebb.ok(&["drain", "web/b1", "--timeout", "120s"])?;
        let answered_ms = sent.elapsed().as_secs_f64() * 1e3;
        leaving.finish_and_wait(PATIENCE)?;
        let ended = Instant::now();
        let wait = scene.ebb.background(&["wait", "web/b1"])?;
        ensure!(wait.wait(LIMIT)?.code == 0, "the drain of web/b1 ended otherwise");
        let end_ms = ended.elapsed().as_secs_f64() * 1e3;
        let sent = flood.map(Running::stop).transpose()?;
        let came = self.flooder.came().since(&before);
        let tally = kept.finish_and_wait(PATIENCE)?;
        ensure!((tally.broken(), tally.clean) == (0, KEPT), "{tally:?}");
        scene.ebb.ok(&["activate", "web/b1"])?;
        scene.wait_all_active("web")?;

        let mut figures = Vec::new();
        if let (Some(kind), Some(sent)) = (kind, sent) {
            let seconds = sent.took.as_secs_f64();
            figures.push(Figure::new("sent", sent.frames as f64 / seconds / 1e6, "M/s"));
            figures.push(Figure::new("handled", came.expected(kind) as f64 / seconds / 1e6, "M/s"));
            figures.push(Figure::new("answered_to_sent", came.answered[0] as f64 / sent.frames as f64, "x"));
        }
        figures.extend([
            Figure::new("requests", rate, "/s"),
            // As many are under way as there are connections.
            Figure::new("request_mean", KEPT as f64 / rate * 1e3, "ms"),
            Figure::new("status_median", Spread::of(&commands).median, "ms"),
            Figure::new("status_max", Spread::of(&commands).max, "ms"),
            Figure::new("drain_to_answer", answered_ms, "ms"),
            Figure::new("last_end_to_drained", end_ms, "ms"),
            Figure::new("daemon_resident", scene.ebb.resident_kib()? as f64 / 1024.0, "MiB"),
        ]);
        for figure in &mut figures {
            figure.name =
                kind.map_or_else(|| format!("none_{}", figure.name), |kind| format!("{kind}_{}", figure.name));
        }
        Ok(figures)
    }
}
