//! Runs a fixture for one combination and compares what happened with what it says, byte for byte and counter for
//! counter.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    lab::Family,
    packets::{Frame, Transport, verify},
    rig::{Action, Cell, Counters, INGRESS, Mode, Rig},
};
use lb_common::{
    backend::BackendStats,
    control::control_flag,
    outcome::Outcome,
    service::{VipEntry, vip_kind},
};

use crate::{
    decap,
    fixture::{B, Change, Expect, Fixture, Outcomes, Step},
    output,
};

/// Slot of the service under test: not the first, so that a forgotten index shows.
pub const SERVICE: u16 = 3;
/// Slot of its first backend.
const FIRST: u32 = 5;
/// Backends of the service.
const BACKENDS: u8 = 3;

impl B {
    pub fn slot(self) -> u32 {
        FIRST + u32::from(self.0)
    }

    /// Its id in QUIC connection ids: all differ in the last byte only.
    pub fn server_id(self, len: u8) -> Vec<u8> {
        let mut id = vec![0x5e; len.into()];
        if let Some(last) = id.last_mut() {
            *last = 0x70 + self.0;
        }
        id
    }
}

/// Runs the fixture on emptied maps; what became of its packets, by the program's own counters.
pub fn run(rig: &mut Rig, fixture: &Fixture, cell: Cell) -> Result<Vec<Outcome>> {
    let mut judge = Judge { rig, cell, replied: Vec::new() };
    judge.set_up()?;
    let mut outcomes = Vec::new();
    for (number, step) in fixture.steps.iter().enumerate() {
        let seen = judge.step(step).with_context(|| format!("step {} ({})", number + 1, describe(step)))?;
        outcomes.extend(seen);
    }
    if fixture.steps.iter().any(|step| matches!(step, Step::Set(Change::Fill))) {
        // For as long as that a CPU that found the table full takes it for full, and gives up unverified flows near by
        // (`FULL_TICKS`, 64 ms): the next fixture's flows are to stay.
        thread::sleep(Duration::from_millis(100));
    }
    Ok(outcomes)
}

fn describe(step: &Step) -> String {
    match step {
        Step::Send(_, expect) => format!("send, expecting {} {:?}", expect.outcome.name(), expect.result),
        Step::Reply(reply) => format!("{:?} replies, expecting {:?}", reply.from, reply.heard),
        Step::Decap(tunnelled) => format!("in its tunnel, expecting {:?}", tunnelled.expect),
        Step::Set(change) => format!("{change:?}"),
        Step::Flows(flows) => format!("{} flows in the table", flows.len()),
    }
}

/// A fixture under way.
pub struct Judge<'a> {
    pub rig: &'a mut Rig,
    pub cell: Cell,
    /// Backends that have answered their flow (`nat`).
    pub replied: Vec<B>,
}

impl Judge<'_> {
    fn set_up(&mut self) -> Result<()> {
        self.rig.reset()?;
        self.rig.put_vip(self.cell.vip_entry(SERVICE))?;
        self.rig.services.set(SERVICE.into(), self.cell.service_row());
        for n in 0..BACKENDS {
            let row = self.cell.backend_row(n, SERVICE);
            self.rig.backends.set(B(n).slot(), row);
            if self.cell.mode == Mode::Nat {
                self.rig.put_vip(VipEntry {
                    addr: row.addr,
                    port: row.port,
                    protocol: self.cell.protocol.number(),
                    kind: vip_kind::NAT_SOURCE,
                    target: SERVICE.into(),
                    pad: [0; 2],
                })?;
            }
        }
        if self.cell.mode == Mode::Nat {
            self.rig.control.change(0, |control| control.flags |= control_flag::NAT);
        }
        self.ring(Some(B(0)), None)
    }

    /// Takes a step; what became of the packet, by the program's counters, if it was one.
    fn step(&mut self, step: &Step) -> Result<Option<Outcome>> {
        match step {
            Step::Send(input, expect) => {
                let (frame, bytes) = input.realise(self.cell);
                self.send(&frame, &bytes, expect, input.crowded)?;
                if let (Outcome::NewFlow | Outcome::Adopted | Outcome::NamedById, Outcomes::To(backend)) =
                    (expect.outcome, expect.result)
                {
                    self.replied.retain(|other| *other != backend);
                }
                Ok(Some(expect.outcome))
            }
            Step::Reply(reply) if self.cell.mode == Mode::Nat => self.reply(reply).map(Some),
            Step::Reply(_) => Ok(None),
            Step::Decap(tunnelled) => decap::judge(self.rig, self.cell, tunnelled).map(Some),
            Step::Set(change) => self.change(*change).map(|()| None),
            Step::Flows(flows) => self.flows(flows).map(|()| None),
        }
    }

    fn send(&self, frame: &Frame, bytes: &[u8], expect: &Expect, crowded: bool) -> Result<()> {
        let before = self.rig.counters();
        let (action, out) = self.rig.run_in(bytes, crowded)?;
        let after = self.rig.counters();
        let wanted = counters_after(before, frame, bytes, expect);
        ensure!(after == wanted, "action {action:?}; counters\n  are       {after:?}\n  should be {wanted:?}");
        let (wanted_action, wanted_bytes) = self.wanted(frame, bytes, expect, &out);
        ensure!(action == wanted_action, "action {action:?}, should be {wanted_action:?}");
        // What is dropped may have been rewritten already.
        ensure!(
            out == wanted_bytes || action == Action::Drop,
            "the frame\n  in        {}\n  out       {}\n  should be {}",
            hex(bytes),
            hex(&out),
            hex(&wanted_bytes)
        );
        if !matches!(expect.result, Outcomes::Pass | Outcomes::Drop) && verify(bytes).is_ok() {
            verify(&out).map_err(|broken| anyhow::anyhow!("a receiver would drop what was sent: {broken}"))?;
        }
        self.table_is_sound()
    }

    fn wanted(&self, frame: &Frame, bytes: &[u8], expect: &Expect, sent: &[u8]) -> (Action, Vec<u8>) {
        match expect.result {
            Outcomes::Pass => (Action::Pass, bytes.to_vec()),
            Outcomes::Drop => (Action::Drop, bytes.to_vec()),
            Outcomes::To(backend) => {
                let row = self.rig.backends.get(backend.slot());
                let action = if row.ifindex == INGRESS { Action::Tx } else { Action::Redirect };
                (action, output::forwarded(self.cell.mode, frame, bytes, (&row, expect.nat_port), sent))
            }
            Outcomes::Reset { seq, ack, flags } => {
                let transport = Transport::Tcp { flags, seq, ack, window: 0, options: Vec::new() };
                (Action::Tx, output::answer(frame, transport))
            }
            Outcomes::TooBigForTunnel => {
                let outer = if self.cell.outer() == Family::V4 { 20 } else { 40 };
                (Action::Tx, output::too_big(frame, bytes, 1500 - outer))
            }
            Outcomes::TooBig { mtu } => (Action::Tx, output::too_big(frame, bytes, mtu)),
            Outcomes::EchoReply => (Action::Tx, output::echo_reply(frame)),
        }
    }
}

/// What the program should have counted after the frame.
fn counters_after(before: Counters, frame: &Frame, bytes: &[u8], expect: &Expect) -> Counters {
    let counters = before.plus(expect.outcome);
    let Outcomes::To(backend) = expect.result else { return counters };
    if !expect.counts {
        return counters;
    }
    let stats = BackendStats {
        packets: 1,
        bytes: output::ip_length(frame, bytes) as u64,
        new_flows: u64::from(expect.outcome == Outcome::NewFlow),
        resets: u64::from(expect.counts_reset),
    };
    counters.plus_backend(backend.slot(), stats)
}

/// Bytes for people.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
