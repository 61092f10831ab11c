//! Floods from many addresses at the highest rate that the machine makes, and what comes of them.
//!
//! A live-frame test-run at the switch's end of the balancer's cable puts frames on it, as a network card would, each from an
//! address and port of its own. What the balancer sends of them is counted at the same place and mostly taken away there, so that
//! the rate is not that of the backends behind; one frame in so many goes on to its backend, so that its answers come too.

mod frames;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapData,
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use ebb_tests_ebpf::{
    CPUS,
    flood::{FRAME, Flood, Seen},
};
use lb_common::{map_name, outcome::Outcome};

pub use self::frames::{KINDS, Kind, Targets};
use crate::{
    bench::{OBJECT, pin, program},
    lab::{Arms, Attached, Lab, Namespace, Plan, Replies, ip},
    rig::{Mapped, OUTCOME_STRIDE, view},
};

/// Frames of one test-run, between which a flood can be stopped: some 50 ms.
const RUN: u32 = 50_000;
/// Frames that a live-frame test-run sends at a time: the kernel's own default.
const BATCH: u32 = 64;
/// One frame in so many goes on to its backend.
const LET_THROUGH: u64 = 256;

/// Makes floods in a lab with one arm.
#[derive(Debug)]
pub struct Flooder {
    inner: Arc<Inner>,
    switch: Namespace,
    seen: Mapped<Seen>,
    outcomes: Mapped<u64>,
    _sieve: Attached,
}

#[derive(Debug)]
struct Inner {
    ebpf: Ebpf,
    floods: Mapped<Flood>,
    interface: u32,
}

/// A flood that is on, until it is stopped or dropped.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<Result<u64>>>,
    begun: Instant,
}

/// What a flood has sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// How long that took.
    pub took: Duration,
}

/// What has come of floods so far.
#[derive(Clone)]
pub struct Came {
    /// Packets that the balancer's program has had, floods' or not, by what became of them.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Flood frames that it has sent on to backends, and their bytes.
    pub forwarded: [u64; 2],
    /// Frames that floods' senders would have had back, and their bytes.
    pub answered: [u64; 2],
}

impl Flooder {
    /// Takes the place of the program at the far end of the balancer's cable. The daemon must be running.
    pub fn start(lab: &mut Lab) -> Result<Self> {
        ensure!(lab.plan.arms == Arms::One, "the flood's sieve stands on one cable");
        if lab.plan.replies == Replies::ThroughBalancer {
            for backend in &lab.backends {
                let (v4, v6) =
                    (Plan::balancer_inside(crate::lab::Family::V4), Plan::balancer_inside(crate::lab::Family::V6));
                ip(Some(backend), &format!("route add 198.18.0.0/15 via {v4}\nroute add 2001:2::/48 via {v6}\n"))?;
            }
        }
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("load the flood's programs")?;
        for name in ["flood", "sieve"] {
            let program: &mut Xdp = ebpf.program_mut(name).with_context(|| format!("no {name}"))?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        let seen: Mapped<Seen> = view(&ebpf, "SEEN")?;
        for cpu in 0..CPUS {
            seen.change(cpu, |row| row.let_through_mask = LET_THROUGH - 1);
        }
        let far_end = lab.plan.far_ends()[0];
        let sieve = program(&ebpf, "sieve")?.fd()?.try_clone()?;
        lab.bare_far_ends();
        let outcomes =
            MapData::from_pin(lab.pin_path().join(map_name::OUTCOMES)).context("open the pinned counters")?;
        Ok(Self {
            _sieve: Lab::attach(&lab.switch, std::os::fd::AsFd::as_fd(&sieve), far_end)?,
            inner: Arc::new(Inner {
                floods: view(&ebpf, "FLOODS")?,
                interface: Lab::interface_index(&lab.switch, far_end)?,
                ebpf,
            }),
            switch: lab.switch.clone(),
            seen,
            outcomes: Mapped::new(&outcomes)?,
        })
    }

    /// Starts a flood from so many CPUs at once.
    pub fn flood(&self, kind: Kind, targets: Targets, cpus: usize) -> Result<Running> {
        let flood = Flood { interface: self.inner.interface, ..frames::flood(kind, targets) };
        for cpu in 0..CPUS {
            let state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(cpu) + 1);
            self.inner.floods.set(cpu, Flood { state, ..flood });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let senders = (0..cpus)
            .map(|cpu| {
                let (inner, stop) = (Arc::clone(&self.inner), Arc::clone(&stop));
                self.switch.spawn(move || {
                    // One by itself runs wherever there is room.
                    if cpus > 1 {
                        pin(cpu)?;
                    }
                    let mut sent = 0;
                    while !stop.load(Ordering::Relaxed) {
                        inner.send()?;
                        sent += u64::from(RUN);
                    }
                    Ok(sent)
                })
            })
            .collect::<Result<_>>()?;
        Ok(Running { stop, senders, begun })
    }

    /// What has come of floods so far.
    pub fn came(&self) -> Came {
        let mut outcomes = BTreeMap::new();
        for (row, count) in self.outcomes.iter().enumerate() {
            if let Some(outcome) = Outcome::ALL.get(row % OUTCOME_STRIDE as usize) {
                *outcomes.entry(outcome.name()).or_default() += count;
            }
        }
        let mut came = Came { outcomes, forwarded: [0; 2], answered: [0; 2] };
        for row in self.seen.iter() {
            came.forwarded[0] += row.forwarded;
            came.forwarded[1] += row.forwarded_bytes;
            came.answered[0] += row.answered;
            came.answered[1] += row.answered_bytes;
        }
        came
    }
}

impl Inner {
    fn send(&self) -> Result<()> {
        let data = [0; FRAME];
        let options = TestRunOptions {
            data_in: Some(&data),
            repeat: RUN,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        program(&self.ebpf, "flood")?.test_run(options).context("live-frame test-run")?;
        Ok(())
    }
}

impl Running {
    /// Stops it.
    pub fn stop(mut self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let mut frames = 0;
        for sender in self.senders.drain(..) {
            frames += sender.join().unwrap_or_else(|_| anyhow::bail!("a flood's thread panicked"))?;
        }
        Ok(Sent { frames, took: self.begun.elapsed() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders.drain(..) {
            let _ = sender.join();
        }
    }
}

impl Came {
    /// What came since.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut outcomes = self.outcomes.clone();
        for (name, count) in &mut outcomes {
            *count -= before.outcomes.get(name).copied().unwrap_or(0);
        }
        let less = |now: [u64; 2], then: [u64; 2]| [now[0] - then[0], now[1] - then[1]];
        Self {
            outcomes,
            forwarded: less(self.forwarded, before.forwarded),
            answered: less(self.answered, before.answered),
        }
    }

    /// How many packets had that outcome.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome.name()).copied().unwrap_or(0)
    }

    /// How many packets of a flood became what they should.
    pub fn expected(&self, kind: Kind) -> u64 {
        kind.outcomes().iter().map(|outcome| self.outcome(*outcome)).sum()
    }

    /// How many packets the program has had.
    pub fn packets(&self) -> u64 {
        self.outcomes.values().sum()
    }
}

/// Only what is not zero.
impl fmt::Debug for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = self.outcomes.iter().filter(|(_, count)| **count != 0);
        f.debug_map().entries(counted).finish()?;
        write!(f, ", packets and bytes sent on {:?}, sent back {:?}", self.forwarded, self.answered)
    }
}
