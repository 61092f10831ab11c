//! Packets: a sequence of frames, and of changes to what they meet, through the program compiled for the host, where a
//! fuzzer sees its branches; through the real program in the kernel, which must do the same to the byte; and, as long as
//! nothing but frames was said, past the model, which was written without either.
//!
//! `EBB_FUZZ_KERNEL=0` leaves the kernel out: no root is needed then.

use std::{cell::RefCell, collections::BTreeSet};

use ebb_tests::{
    model::{self, Maps, Model, Run, backends, cells, services},
    rig::{Action, CLIENT_MAC, Counters, Mapped, OWN_MAC, Rig, Sizes, can_crowd, leave_the_world, now_ns},
};
use lb_common::{
    backend::{Backend, BackendStats, NO_DEADLINE},
    control::control_flag,
    flow::{FlowEntry, Life, Meta},
    outcome::Outcome,
    service::{Service, VipEntry, service_flag, vip_kind},
};

use crate::twin::{Program, Twin};

/// The model's sizes, but for a table that is emptied before every input.
const SIZES: Sizes = Sizes { flow_slots: 1024, ..model::SIZES };
/// Steps of an input that are done. With so few the flow table never fills.
const STEPS: usize = 96;
/// The longest frame that is tried: what the kernel's test-run takes, in front of which headers still fit.
const LONGEST: usize = 3_000;

/// One step of an input.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    /// A frame comes in, with or without room in front of it.
    Frame { program: Program, crowded: bool, bytes: Vec<u8> },
    /// A backend's row changes.
    Backend { slot: u32, row: Backend },
    /// A service's flags change.
    Service { slot: u32, flags: u8, prefix: u8 },
    /// A VIP's address gets an entry with flags.
    Address { service: usize, flags: u32 },
    /// The flow table is lost.
    Lose,
    /// Time passes.
    Wait { ns: u64 },
}

impl Step {
    /// A frame with room in front of it, from the one neighbour that the model knows.
    fn is_known_to_the_model(&self) -> bool {
        let Self::Frame { program: Program::Balance, crowded: false, bytes } = self else { return false };
        bytes.get(..12).is_none_or(|macs| macs == [OWN_MAC, CLIENT_MAC].concat())
    }
}

/// Reads an input from its front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn frame(&mut self, program: Program, crowded: bool, padded: bool) -> Option<Step> {
        let len = self.byte()?;
        let padding = if padded { usize::from(self.byte()?) * 16 } else { 0 };
        let mut bytes = self.bytes(len.into()).to_vec();
        bytes.resize((bytes.len() + padding).min(LONGEST), 0x5a);
        Some(Step::Frame { program, crowded, bytes })
    }

    fn backend(&mut self) -> Option<Step> {
        let rows = backends();
        let slot = usize::from(self.byte()?) % rows.len();
        let (state, flags, generation, mtu) = (self.byte()? % 8, self.byte()?, self.byte()?, self.byte()?);
        let deadline_ns = match self.byte()? % 3 {
            0 => NO_DEADLINE,
            1 => 1,
            _ => NO_DEADLINE / 2,
        };
        let generation = rows[slot].generation + u32::from(generation % 2);
        // From tiny to what the row had.
        let mtu = if mtu == 0 { rows[slot].mtu } else { mtu.into() };
        let row = Backend { state, flags, generation, deadline_ns, mtu, ..rows[slot] };
        Some(Step::Backend { slot: slot as u32, row })
    }

    fn step(&mut self) -> Option<Step> {
        Some(match self.byte()? % 12 {
            // Most of them as they come.
            0..=3 => self.frame(Program::Balance, false, false)?,
            4 => self.frame(Program::Balance, false, true)?,
            5 => self.frame(Program::Balance, true, false)?,
            6 => self.frame(Program::Decap, false, false)?,
            7 => self.backend()?,
            8 => {
                let slot = usize::from(self.byte()?) % cells().len();
                // No prefix is longer than an address (`rows::service`).
                Step::Service { slot: slot as u32, flags: self.byte()? & 7, prefix: self.byte()? % 129 }
            }
            9 => {
                let service = usize::from(self.byte()?) % cells().len();
                Step::Address { service, flags: u32::from(self.byte()? & 7) }
            }
            10 => Step::Lose,
            _ => Step::Wait { ns: 1 << (self.byte()? % 42) },
        })
    }

    fn steps(mut self) -> Vec<Step> {
        std::iter::from_fn(|| self.step()).take(STEPS).collect()
    }
}

/// An input that has these frames come in and no more.
pub fn input_of<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut input = Vec::new();
    for frame in frames {
        let len = frame.len().min(255);
        input.extend([0, len as u8]);
        input.extend(&frame[..len]);
    }
    input
}

/// What a program did.
type Did = (Action, Outcome, Vec<u8>);

/// The programs and what they stand on.
struct Bench {
    twin: Twin,
    /// The real program, and the coarse time at jiffy 0 as it was at first.
    kernel: Option<(Rig, u64)>,
    /// What the real program had counted before the input.
    counted: Option<Counters>,
    /// Frames can be put into the kernel without room in front of them.
    can_crowd: bool,
    /// Frames came from others than the neighbour that the model knows.
    strangers: bool,
    /// The rows are not those of the model's world.
    changed: bool,
}

impl Bench {
    fn new() -> Self {
        let mut twin = Twin::new(SIZES);
        model::set_up(&mut twin).expect("set up the world");
        twin.put_own_mac(OWN_MAC);
        let kernel = (std::env::var_os("EBB_FUZZ_KERNEL").as_deref() != Some("0".as_ref())).then(|| {
            leave_the_world().expect("a namespace of its own (EBB_FUZZ_KERNEL=0 does without the kernel)");
            let mut rig = Rig::load(SIZES).expect("load the program");
            model::set_up(&mut rig).expect("set up the world");
            rig.put_own_mac(OWN_MAC).expect("our address");
            let offset_ns = rig.control.get(0).jiffies_offset_ns;
            (rig, offset_ns)
        });
        let can_crowd = kernel.is_none() || can_crowd().expect("the kernel's version");
        Self { twin, kernel, counted: None, can_crowd, strangers: false, changed: false }
    }

    /// Back to the world as the model knows it.
    fn restore(&mut self) {
        self.twin.forget();
        // Which takes time: the one neighbour that the model knows may stay.
        let strangers = std::mem::take(&mut self.strangers);
        if strangers {
            self.twin.clear_peers();
        }
        if self.changed {
            self.twin.clear_vips();
            model::set_rows(&mut self.twin).expect("what fitted before");
        }
        if let Some((rig, offset_ns)) = &mut self.kernel {
            rig.flows.clear();
            rig.forget_fragments().expect("empty the map");
            if strangers {
                rig.clear_peers();
            }
            if self.changed {
                rig.clear_vips();
                rig.control.change(0, |control| control.jiffies_offset_ns = *offset_ns);
                model::set_rows(rig).expect("what fitted before");
            }
        }
        self.counted = self.kernel.as_ref().map(|(rig, _)| rig.counters());
        self.changed = false;
    }

    /// Does all steps; says what differs, if anything does.
    fn go(&mut self, steps: &[Step]) -> Result<(), String> {
        self.restore();
        let mut model = Some(Model::new());
        let mut later_ns = 0;
        for step in steps {
            let plain = step.is_known_to_the_model();
            self.strangers |= !plain;
            if let Step::Frame { program, crowded, bytes } = step {
                let now_ns = now_ns() + later_ns;
                let crowded = *crowded && self.can_crowd;
                let Some(did) = self.twin.run(*program, bytes, crowded, now_ns) else { continue };
                self.compare(*program, bytes, crowded, &did)?;
                if let Some(model) = model.as_mut().filter(|_| plain) {
                    let (action, outcome, out) = did;
                    let run = Run { frame: bytes.clone(), action, outcome, out };
                    model.difference(&run).map_or(Ok(()), Err)?;
                }
            } else {
                later_ns += self.change(step);
                self.changed = true;
            }
            if !plain {
                model = None;
            }
        }
        self.compare_tables()
    }

    /// Changes the world; returns how much time passes.
    fn change(&mut self, step: &Step) -> u64 {
        /// The same on either side.
        fn change(maps: &mut impl Maps, step: &Step) {
            match step {
                Step::Backend { slot, row } => maps.put_backend(*slot, *row),
                Step::Service { slot, flags, prefix } => {
                    let row = services()[*slot as usize];
                    maps.put_service(*slot, Service { flags: *flags, affinity_prefix: *prefix, ..row });
                }
                Step::Address { service, flags } => {
                    let entry = cells()[*service].vip_entry(0);
                    let (kind, target) = (vip_kind::ADDRESS, *flags);
                    // Without room it is left out on both sides.
                    let _ = maps.put_vip(VipEntry { port: 0, protocol: 0, kind, target, ..entry });
                    maps.change_control(|control| control.flags |= control_flag::ANSWERS);
                }
                Step::Frame { .. } | Step::Lose | Step::Wait { .. } => {}
            }
        }
        let mut step = step.clone();
        if let (Step::Service { flags, .. }, Some(_)) = (&mut step, &self.kernel) {
            // Chance chooses then, and the kernel's is not the twin's.
            *flags &= !service_flag::PER_DATAGRAM;
        }
        let step = &step;
        change(&mut self.twin, step);
        if *step == Step::Lose {
            self.twin.flows.fill(bytemuck::Zeroable::zeroed());
        }
        let Some((rig, _)) = &mut self.kernel else {
            return if let Step::Wait { ns } = step { *ns } else { 0 };
        };
        change(rig, step);
        match step {
            Step::Lose => rig.flows.clear(),
            // The kernel's own clock cannot be set; where the program asks that one, time stands still.
            Step::Wait { ns } if rig.control.get(0).jiffy_ns != 0 => {
                rig.control.change(0, |control| {
                    control.jiffies_offset_ns = control.jiffies_offset_ns.wrapping_add(*ns);
                });
                return *ns;
            }
            _ => {}
        }
        0
    }

    /// Has the real program do the same.
    fn compare(&mut self, program: Program, frame: &[u8], crowded: bool, twin: &Did) -> Result<(), String> {
        let Some((rig, _)) = &self.kernel else { return Ok(()) };
        let before = rig.counters();
        let ran = match program {
            Program::Balance => rig.run_in(frame, crowded),
            Program::Decap => rig.run_decap(frame),
        };
        let (action, out) = ran.map_err(|error| format!("{error:#}"))?;
        let after = rig.counters();
        let counted = Outcome::ALL.iter().find(|&&outcome| after.outcome(outcome) != before.outcome(outcome));
        let real = (action, *counted.ok_or("the program counted nothing")?, out);
        if real == *twin {
            return Ok(());
        }
        Err(format!("{program:?}, crowded: {crowded}\n  in   {frame:02x?}\n  host {twin:02x?}\n  real {real:02x?}"))
    }

    /// Both have recorded the same flows, and counted the same for the backends.
    fn compare_tables(&self) -> Result<(), String> {
        let twins = recorded(self.twin.flows.iter().copied());
        let Some((rig, _)) = &self.kernel else { return Ok(()) };
        let reals = recorded(Mapped::iter(&rig.flows));
        let only = |a: &BTreeSet<_>, b: &BTreeSet<_>| a.difference(b).copied().collect::<Vec<_>>();
        if twins != reals {
            return Err(format!(
                "flows\n  host only {:x?}\n  real only {:x?}",
                only(&twins, &reals),
                only(&reals, &twins)
            ));
        }
        let (now, Some(before)) = (rig.counters(), &self.counted) else { return Ok(()) };
        for (slot, twin) in (0..).zip(self.twin.stats()) {
            let (now, before) = (now.backend(slot), before.backend(slot));
            let real = BackendStats {
                packets: now.packets - before.packets,
                bytes: now.bytes - before.bytes,
                new_flows: now.new_flows - before.new_flows,
                resets: now.resets - before.resets,
            };
            if real != *twin {
                return Err(format!("backend {slot}: host {twin:?}, real {real:?}"));
            }
        }
        Ok(())
    }
}

/// The flows of a table, without their times.
fn recorded(entries: impl Iterator<Item = FlowEntry>) -> BTreeSet<[u64; 7]> {
    let linked = entries.filter(|entry| Meta(entry.meta).life() == Life::Linked);
    linked
        .map(|flow| {
            [
                flow.client.halves[0],
                flow.client.halves[1],
                u64::from(flow.port_service) << 32 | u64::from(flow.backend),
                u64::from(flow.generation) << 32 | u64::from(Meta(flow.meta).flags()),
                u64::from(flow.client_seq) << 32 | u64::from(flow.client_ack),
                u64::from(flow.server_seq) << 32 | u64::from(flow.nat_port),
                flow.peer.into(),
            ]
        })
        .collect()
}

/// The target.
pub fn run(data: &[u8]) {
    thread_local! {
        static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
    }
    let steps = Input(data).steps();
    BENCH.with_borrow_mut(|bench| {
        let bench = bench.get_or_insert_with(Bench::new);
        // Between the two programs a moment may pass, and with it a time limit: what comes of that does not come again.
        let mut difference = bench.go(&steps);
        for _ in 0..2 {
            if difference.is_err() {
                difference = bench.go(&steps);
            }
        }
        if let Err(difference) = difference {
            panic!("{difference}\n  ({} steps)", steps.len());
        }
    });
}
