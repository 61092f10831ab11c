//! The driver before a program that is attached to an interface already: a daemon's.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp, loaded_programs},
};
use ebb_tests_ebpf::{CPUS, Job};
use lb_userspace::net::links;

use super::{
    driver::{LENGTH, OBJECT, program},
    wire::enter,
};
use crate::{
    lab::Namespace,
    rig::{Action, Mapped, view},
};

/// Place of the program in `TARGETS`.
const PLACE: u32 = 0;

/// The driver and what it enters.
pub(super) struct Driven {
    ebpf: Ebpf,
    jobs: Mapped<Job>,
}

impl Driven {
    /// Before the XDP program of an interface.
    pub(super) fn of_interface(host: &Namespace, device: &str) -> Result<Self> {
        let links = host.run(links::list)?.context("list the interfaces")?;
        let attached = links.iter().find(|link| link.name == device).and_then(|link| link.xdp);
        let (_, id) = attached.with_context(|| format!("{device} runs no XDP program"))?;
        let mut programs = loaded_programs().filter_map(Result::ok);
        let target: ProgramFd = programs.find(|program| program.id() == id).context("the program has gone")?.fd()?;
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("load the benchmark's programs")?;
        let driver: &mut Xdp = ebpf.program_mut("driver").context("the object lacks the driver")?.try_into()?;
        driver.load().context("load the driver")?;
        enter(&mut ebpf, PLACE, &target)?;
        Ok(Self { jobs: view(&ebpf, "JOBS")?, ebpf })
    }

    /// Runs `repeat` packets of a job; nanoseconds a packet, the driver's included.
    pub(super) fn run(&self, job: &Job, repeat: u32) -> Result<f64> {
        for cpu in 0..CPUS {
            self.jobs.set(cpu, Job { target: PLACE, ..*job });
        }
        let data = [0; LENGTH];
        let options = TestRunOptions { data_in: Some(&data), repeat, ..TestRunOptions::default() };
        let result = program(&self.ebpf, "driver")?.test_run(options).context("test-run of the driver")?;
        ensure!(
            Action::from_u32(result.return_value)? != Action::Aborted,
            "the driver could not restore the frame or enter its target"
        );
        Ok(result.duration.as_secs_f64() * 1e9)
    }
}
