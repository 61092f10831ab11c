//! The driver program with its targets, set up and run.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, ProgramArray},
    programs::{ProgramInfo, TestRun as _, TestRunOptions, Xdp},
};
use ebb_tests_ebpf::{CPUS, Job, TEMPLATE, walk, yardstick};
use lb_common::{
    flow_table,
    outcome::Outcome,
    ring::{self, RingSlot},
};

use super::Kind;
use crate::{
    lab::Family,
    packets::{Frame, Transport, tcp_flag},
    rig::{Action, Cell, INGRESS, Mapped, Protocol, Rig, Sizes, backend_mac, view},
};

pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ebb-bench-xdp"));

/// A row of a map, for aya.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T: Copy>(T);
// SAFETY: only used with the layouts of `ebb_tests_ebpf::yardstick`, which are `bytemuck::Pod`.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}

/// What the driver enters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// A program that does nothing.
    Floor = 0,
    /// Ebb.
    Ebb = 1,
    /// The conventional balancer.
    Yardstick = 2,
}

/// Service slot of the one service.
const SERVICE: u16 = 1;
/// Its backends.
pub(super) const BACKENDS: u32 = 100;
/// Length of every frame: more than the template, and a usual size for a small packet.
pub(super) const LENGTH: usize = 128;

/// Ebb and the conventional balancer, each with tables for the same number of flows.
pub struct Bench {
    /// Ebb's maps.
    pub rig: Rig,
    jobs: Mapped<Job>,
    ebpf: Ebpf,
    cell: Cell,
}

impl Bench {
    /// Loads both with room for `flows` flows.
    pub fn load(flows: u32) -> Result<Self> {
        let flow_slots = flow_table::slots_for(flows);
        let rig = Rig::load(Sizes { flow_slots, backends: 256, services: 4, vips: 64 })?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("Y_FLOWS", flows)
            .load(OBJECT)
            .context("load the benchmark's programs")?;
        for name in ["driver", "floor", "redirect", "yardstick"] {
            let program: &mut Xdp =
                ebpf.program_mut(name).context("the benchmark's object lacks a program")?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        let targets = [
            (Target::Floor, program(&ebpf, "floor")?.fd()?.try_clone()?),
            (Target::Ebb, rig.program()?.fd()?.try_clone()?),
            (Target::Yardstick, program(&ebpf, "yardstick")?.fd()?.try_clone()?),
        ];
        let mut table: ProgramArray<_> = ebpf.map_mut("TARGETS").context("no TARGETS")?.try_into()?;
        for (target, fd) in &targets {
            table.set(*target as u32, fd, 0).with_context(|| format!("enter {target:?} in TARGETS"))?;
        }
        let jobs = view(&ebpf, "JOBS")?;
        let cell = super::case::BASE;
        Ok(Self { rig, jobs, ebpf, cell })
    }

    /// Configures both for a service of that kind, with an empty flow table (Ebb's; the other's evicts).
    pub fn set_up(&mut self, cell: Cell) -> Result<()> {
        self.cell = cell;
        self.rig.reset()?;
        self.rig.put_vip(cell.vip_entry(SERVICE))?;
        self.rig.services.set(SERVICE.into(), cell.service_row());
        for n in 0..BACKENDS {
            let row = lb_common::backend::Backend { ifindex: INGRESS, ..cell.backend_row(n as u8, SERVICE) };
            self.rig.backends.set(n, row);
        }
        let slots: Vec<RingSlot> =
            (0..ring::ring_size(BACKENDS)).map(|i| RingSlot { owner: 1 + i % BACKENDS, previous: 0 }).collect();
        self.rig.put_ring(SERVICE, 0, &slots)?;
        self.set_up_yardstick(cell)
    }

    fn set_up_yardstick(&mut self, cell: Cell) -> Result<()> {
        let vip = cell.vip();
        let key =
            yardstick::VipKey { addr: words(vip), port: vip.port().to_be(), protocol: cell.protocol.number(), pad: 0 };
        let mut vips: HashMap<_, Plain<yardstick::VipKey>, Plain<yardstick::Vip>> = self.map("Y_VIPS")?.try_into()?;
        vips.insert(Plain(key), Plain(yardstick::Vip { flags: 0, number: 0 }), 0)?;
        let mut slots: Array<_, u32> = self.map("Y_RING")?.try_into()?;
        for slot in 0..yardstick::RING {
            slots.set(slot, slot % BACKENDS, 0)?;
        }
        let mut backends: Array<_, Plain<yardstick::Backend>> = self.map("Y_BACKENDS")?.try_into()?;
        for n in 0..BACKENDS {
            let row =
                yardstick::Backend { destination_mac: backend_mac(n as u8), source_mac: crate::rig::OWN_MAC, flags: 0 };
            backends.set(n, Plain(row), 0)?;
        }
        Ok(())
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the benchmark's object has no {name}"))
    }

    /// The job of sending one kind of packet of `flows` flows from number `first` on.
    pub fn job(&self, kind: Packet, walk: u32, first: u32, flows: u32) -> Job {
        job(self.cell, kind, walk, first, flows)
    }

    /// Runs `repeat` packets through a target; nanoseconds a packet, the driver's included.
    pub fn run(&self, target: Target, job: &Job, repeat: u32) -> Result<f64> {
        self.assign(target, &[*job]);
        self.run_assigned(repeat)
    }

    /// Gives each CPU its job, over and over where there are more CPUs.
    pub fn assign(&self, target: Target, jobs: &[Job]) {
        for (cpu, job) in (0..CPUS).zip(jobs.iter().cycle()) {
            self.jobs.set(cpu, Job { target: target as u32, ..*job });
        }
    }

    /// Runs `repeat` packets of this CPU's job.
    pub fn run_assigned(&self, repeat: u32) -> Result<f64> {
        let data = [0; LENGTH];
        let options = TestRunOptions { data_in: Some(&data), repeat, ..TestRunOptions::default() };
        let result = program(&self.ebpf, "driver")?.test_run(options).context("test-run of the driver")?;
        ensure!(
            Action::from_u32(result.return_value)? != Action::Aborted,
            "the driver could not restore the frame or enter its target"
        );
        Ok((result.duration.as_secs_f64() * 1e9).round())
    }

    /// Nanoseconds of the trivial target by itself, without a driver.
    pub fn bare(&self, repeat: u32) -> Result<f64> {
        let data = [0; LENGTH];
        let options = TestRunOptions { data_in: Some(&data), repeat, ..TestRunOptions::default() };
        Ok((program(&self.ebpf, "floor")?.test_run(options)?.duration.as_secs_f64() * 1e9).round())
    }

    /// Opens and establishes `flows` flows in a table.
    pub fn establish(&self, target: Target, flows: u32) -> Result<()> {
        for packet in [Packet::Open, Packet::More, Packet::More] {
            self.run(target, &self.job(packet, walk::SEQUENTIAL, 0, flows), flows)?;
        }
        Ok(())
    }

    /// The program that a target is.
    pub(super) fn program(&self, target: Target) -> Result<&Xdp> {
        match target {
            Target::Floor => program(&self.ebpf, "floor"),
            Target::Ebb => self.rig.program(),
            Target::Yardstick => program(&self.ebpf, "yardstick"),
        }
    }

    /// The least that a balancer can do with `XDP_REDIRECT`.
    pub(super) fn redirect(&self) -> Result<&Xdp> {
        program(&self.ebpf, "redirect")
    }

    /// How often Ebb has counted an outcome.
    pub fn counted(&self, outcome: Outcome) -> u64 {
        self.rig.counters().outcome(outcome)
    }

    /// What the kernel says of a program: instructions that the verifier walked, and bytes of machine code.
    pub fn sizes(&self, target: Target) -> Result<(u32, u32)> {
        let info: ProgramInfo = self.program(target)?.info()?;
        Ok((info.verified_instruction_count().unwrap_or(0), info.size_jitted()))
    }
}

/// The job of sending one kind of packet of `flows` flows of `cell`'s service from number `first` on.
pub(super) fn job(cell: Cell, kind: Packet, walk: u32, first: u32, flows: u32) -> Job {
    let frame = frame(cell, kind);
    let template = *frame.first_chunk::<TEMPLATE>().expect("longer than the template");
    Job {
        template: bytemuck::cast(template),
        length: frame.len() as u32,
        walk,
        flows,
        first,
        state: 0,
        v6: (cell.family == Family::V6).into(),
        target: 0,
        interface: 0,
    }
}

pub(crate) fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    Ok(ebpf.program(name).with_context(|| format!("the benchmark's object has no {name}"))?.try_into()?)
}

fn words(address: SocketAddr) -> [u32; 4] {
    match address {
        SocketAddr::V4(v4) => [u32::from_ne_bytes(v4.ip().octets()), 0, 0, 0],
        SocketAddr::V6(v6) => bytemuck::cast(v6.ip().octets()),
    }
}

/// A packet of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet {
    /// A SYN, or a datagram.
    Open,
    /// Data.
    More,
    /// A reset.
    Reset,
    /// Data for another port.
    Elsewhere,
}

impl Packet {
    /// The packet that is measured.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Hit | Kind::Unknown => Self::More,
            Kind::New | Kind::NewFlood | Kind::SynAgain => Self::Open,
            Kind::RstMiss => Self::Reset,
            Kind::NotForUs => Self::Elsewhere,
        }
    }
}

fn frame(cell: Cell, packet: Packet) -> Vec<u8> {
    let transport = match (cell.protocol, packet) {
        (Protocol::Udp, _) => Transport::Udp { checksum: true },
        (Protocol::Tcp, Packet::Open) => Transport::tcp(tcp_flag::SYN, 1000, 0),
        (Protocol::Tcp, Packet::Reset) => Transport::tcp(tcp_flag::RST, 1001, 0),
        (Protocol::Tcp, _) => Transport::tcp(tcp_flag::ACK, 1001, 5000),
    };
    let mut destination = cell.vip();
    if packet == Packet::Elsewhere {
        destination.set_port(81);
    }
    let mut frame = Frame::new(cell.client(), destination, transport);
    frame.source_mac = crate::rig::CLIENT_MAC;
    frame.destination_mac = crate::rig::OWN_MAC;
    let rest = vec![0; LENGTH - frame.bytes().len()];
    // Data in a SYN would count into what the client says next, which the segments after it do not know of.
    if cell.protocol == Protocol::Tcp && packet == Packet::Open {
        frame.padding = rest;
    } else {
        frame.payload = rest;
    }
    frame.bytes()
}

/// Keeps the calling thread, and what it starts from now on, on one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    keep_to(cpu..cpu + 1).with_context(|| format!("keep to CPU {cpu}"))
}

/// Lets the calling thread, and what it starts from now on, run on any CPU.
pub fn all_cpus() -> Result<()> {
    keep_to(0..aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?)
}

fn keep_to(cpus: std::ops::Range<usize>) -> Result<()> {
    // SAFETY: a set of CPUs is plain bits, for which all zeroes is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        // SAFETY: writes one bit of the set, if there is such a bit.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the set lives across the call.
    let failed = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0;
    if failed { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}
