//! A link with the driver at its far end: packets come in as from a network card, and what is sent back is counted.
//!
//! The far end is in the lab's switch. A live-frame test-run of the driver there puts packets on the cable; the program
//! under test runs on the balancer's end; what it sends back is taken by a counting program at the far end. Generator,
//! balancer and receiver all run on the CPU that the generator is kept to.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::ProgramArray,
    programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use ebb_tests_ebpf::{CPUS, Job, Received};

use super::driver::{LENGTH, OBJECT, pin, program};
use crate::{
    lab::{Attached, Lab, Plan},
    rig::{Mapped, view},
};

/// Place of the program `send` in `TARGETS`.
const SEND: u32 = 0;
/// Packets that a live-frame test-run sends at a time: the kernel's own default.
const BATCH: u32 = 64;

/// Which of the programs at the far end takes what comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taker {
    /// Counts.
    Count,
    /// Counts, and notes times.
    Stamp,
}

/// The link. The lab's balancer is bare: what runs there is up to the user.
pub(super) struct Wire {
    /// Index of the balancer's interface.
    pub(super) near: u32,
    far: u32,
    jobs: Mapped<Job>,
    received: Mapped<Received>,
    stamped: Mapped<u64>,
    ebpf: Ebpf,
    _taker: Attached,
    /// The namespaces; they go last.
    pub(super) lab: Lab,
}

/// What came of sending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Packets that came back.
    pub(super) received: u64,
    /// Packets that came back in a second.
    pub(super) rate: f64,
}

impl Wire {
    /// Lays it.
    pub(super) fn lay(taker: Taker) -> Result<Self> {
        let mut lab = Lab::build(Plan { backends: 0, ..Plan::default() })?;
        lab.bare_far_ends();
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("load the benchmark's programs")?;
        for name in ["driver", "send", "receive", "stamp"] {
            let program: &mut Xdp =
                ebpf.program_mut(name).context("the benchmark's object lacks a program")?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        let send = program(&ebpf, "send")?.fd()?.try_clone()?;
        enter(&mut ebpf, SEND, &send)?;
        let taker = program(&ebpf, if taker == Taker::Count { "receive" } else { "stamp" })?.fd()?.try_clone()?;
        let far_end = lab.plan.far_ends()[0];
        Ok(Self {
            near: Lab::interface_index(&lab.balancer, "eth0")?,
            far: Lab::interface_index(&lab.switch, far_end)?,
            jobs: view(&ebpf, "JOBS")?,
            received: view(&ebpf, "RECEIVED")?,
            stamped: view(&ebpf, "STAMPED")?,
            _taker: Lab::attach(&lab.switch, taker.as_fd(), far_end)?,
            ebpf,
            lab,
        })
    }

    /// Puts a program on the balancer's interface until the returned value is dropped.
    pub(super) fn attach(&self, program: &Xdp) -> Result<Attached> {
        Lab::attach(&self.lab.balancer, program.fd()?.as_fd(), "eth0")
    }

    /// Sends `packets` packets of a job from a CPU.
    pub(super) fn send(&self, cpu: usize, job: &Job, packets: u32) -> Result<Sent> {
        for row in 0..CPUS {
            self.jobs.set(row, Job { target: SEND, interface: self.far, ..*job });
            // The time between two test-runs is nobody's gap.
            self.received.change(row, |row| row.last_ns = 0);
        }
        let before = self.received();
        let ns = self.lab.switch.run(|| -> Result<f64> {
            pin(cpu)?;
            let data = [0; LENGTH];
            let options = TestRunOptions {
                data_in: Some(&data),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            };
            let result = program(&self.ebpf, "driver")?.test_run(options).context("live-frame test-run")?;
            Ok(result.duration.as_secs_f64() * 1e9)
        })??;
        ensure!(ns > 0.0, "the kernel did not say how long sending took");
        let received = self.received() - before;
        Ok(Sent { received, rate: received as f64 / (f64::from(packets) * ns / 1e9) })
    }

    /// Packets that have come back so far.
    pub(super) fn received(&self) -> u64 {
        self.received.iter().map(|row| row.packets).sum()
    }

    /// When the last packet came back whose destination's MAC address ends with these bytes; nanoseconds of the
    /// monotonic clock, 0 for never. ([`Taker::Stamp`] only.)
    pub(super) fn last_ns(&self, mac_end: u16) -> u64 {
        self.stamped.get(mac_end.into())
    }

    /// The longest time without a packet since this was last asked, in nanoseconds. ([`Taker::Stamp`] only.)
    pub(super) fn longest_gap_ns(&self) -> u64 {
        let longest = self.received.iter().map(|row| row.longest_gap_ns).max().unwrap_or(0);
        self.forget_gaps();
        longest
    }

    /// Gaps count from the next packet on.
    pub(super) fn forget_gaps(&self) {
        for row in 0..CPUS {
            self.received.change(row, |row| (row.last_ns, row.longest_gap_ns) = (0, 0));
        }
    }
}

/// Puts a program where the driver can enter it.
pub(super) fn enter(ebpf: &mut Ebpf, place: u32, program: &ProgramFd) -> Result<()> {
    let mut table: ProgramArray<_> = ebpf.map_mut("TARGETS").context("no TARGETS")?.try_into()?;
    table.set(place, program, 0).with_context(|| format!("enter a program in TARGETS at {place}"))
}
