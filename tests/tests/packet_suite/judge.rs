//! Runs a fixture for one combination and compares what happened with what it says, byte for byte and counter for
//! counter.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use ebb_tests::{
    lab::Family,
    packets::{Frame, Transport, tcp_flag, verify},
    rig::{Action, CLIENT_MAC, Cell, Counters, INGRESS, Mode, OWN_MAC, Protocol, Rig, now_ns, seconds},
};
use lb_common::{
    addr::Addr,
    backend::{BackendState, BackendStats, backend_flag},
    control::control_flag,
    flow::{FlowEntry, FlowKey, Life, Meta, flow_flag},
    outcome::Outcome,
    ring::RingSlot,
    service::{VipEntry, service_flag, vip_kind},
};

use crate::{
    fixture::{B, Change, Expect, Fixture, Flow, Outcomes, Reply, Step},
    output,
};

/// Slot of the service under test: not the first, so that a forgotten index shows.
const SERVICE: u16 = 3;
/// Slot of its first backend.
const FIRST: u32 = 5;
/// Backends of the service.
const BACKENDS: u8 = 3;
/// Slots of its ring.
const RING: usize = 4099;

impl B {
    fn slot(self) -> u32 {
        FIRST + u32::from(self.0)
    }
}

/// Runs the fixture on emptied maps.
pub fn run(rig: &mut Rig, fixture: &Fixture, cell: Cell) -> Result<()> {
    let mut judge = Judge { rig, cell, replied: Vec::new() };
    judge.set_up()?;
    for (number, step) in fixture.steps.iter().enumerate() {
        judge.step(step).with_context(|| format!("step {} ({})", number + 1, describe(step)))?;
    }
    Ok(())
}

fn describe(step: &Step) -> String {
    match step {
        Step::Send(_, expect) => format!("send, expecting {} {:?}", expect.outcome.name(), expect.result),
        Step::Reply(reply) => format!("{reply:?}"),
        Step::Set(change) => format!("{change:?}"),
        Step::Flows(flows) => format!("{} flows in the table", flows.len()),
    }
}

struct Judge<'a> {
    rig: &'a mut Rig,
    cell: Cell,
    /// Backends that have answered their flow (`nat`).
    replied: Vec<B>,
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

    fn ring(&mut self, owner: Option<B>, previous: Option<B>) -> Result<()> {
        let word = |backend: Option<B>| backend.map_or(0, |b| b.slot() + 1);
        self.rig.put_ring(SERVICE, 0, &vec![RingSlot { owner: word(owner), previous: word(previous) }; RING])
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Send(input, expect) => {
                let (frame, bytes) = input.realise(self.cell);
                self.send(&frame, &bytes, expect)?;
                if let (Outcome::NewFlow | Outcome::Adopted, Outcomes::To(backend)) = (expect.outcome, expect.result) {
                    self.replied.retain(|other| *other != backend);
                }
                Ok(())
            }
            Step::Reply(reply) if self.cell.mode == Mode::Nat => self.reply(reply),
            Step::Reply(_) => Ok(()),
            Step::Set(change) => self.change(*change),
            Step::Flows(flows) => self.flows(flows),
        }
    }

    fn send(&self, frame: &Frame, bytes: &[u8], expect: &Expect) -> Result<()> {
        let before = self.rig.counters();
        let (action, out) = self.rig.run(bytes)?;
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
                (action, output::forwarded(self.cell.mode, frame, bytes, &row, sent))
            }
            Outcomes::Reset { seq, ack, flags } => {
                let transport = Transport::Tcp { flags, seq, ack, window: 0, options: Vec::new() };
                (Action::Tx, output::answer(frame, transport))
            }
            Outcomes::TooBig { mtu } => (Action::Tx, output::too_big(frame, bytes, mtu)),
            Outcomes::EchoReply => (Action::Tx, output::echo_reply(frame)),
        }
    }

    /// Runs a backend's packet to the client; it must reach the client as the VIP's.
    fn reply(&mut self, reply: &Reply) -> Result<()> {
        let row = self.rig.backends.get(reply.from.slot());
        let source = (IpAddr::from(row.addr), u16::from_be(row.port)).into();
        let transport = match self.cell.protocol {
            Protocol::Tcp => Transport::tcp(reply.flags, reply.seq, reply.ack),
            Protocol::Udp => Transport::Udp { checksum: true },
        };
        let mut frame = Frame::new(source, self.cell.client(), transport);
        (frame.source_mac, frame.destination_mac) = (row.dst_mac, OWN_MAC);
        frame.payload = vec![0x55; reply.bytes];
        let before = self.rig.counters();
        let (action, out) = self.rig.run(&frame.bytes())?;
        let mut wanted = before.plus(Outcome::Reply);
        if reply.flags & tcp_flag::RST != 0 && self.cell.protocol == Protocol::Tcp {
            wanted = wanted.plus_backend(reply.from.slot(), BackendStats { resets: 1, ..BackendStats::default() });
        }
        let after = self.rig.counters();
        ensure!(after == wanted, "action {action:?}; counters\n  are       {after:?}\n  should be {wanted:?}");
        ensure!(action == Action::Tx, "action {action:?}, should be Tx");
        let wanted = output::returned(&frame, self.cell.vip());
        ensure!(out == wanted, "the reply\n  out       {}\n  should be {}", hex(&out), hex(&wanted));
        verify(&out).map_err(|broken| anyhow::anyhow!("a client would drop the reply: {broken}"))?;
        self.replied.push(reply.from);
        self.table_is_sound()
    }

    fn change(&mut self, change: Change) -> Result<()> {
        let set = |b: B, change: &dyn Fn(&mut lb_common::backend::Backend)| self.rig.backends.change(b.slot(), change);
        match change {
            Change::Drain(b, to, seconds) => {
                let deadline = now_ns().saturating_add_signed(seconds * 1_000_000_000);
                set(b, &|row| (row.state, row.deadline_ns) = (BackendState::Draining as u8, deadline));
                self.ring(Some(to), Some(b))?;
            }
            Change::DrainForever(b, to) => {
                set(b, &|row| row.state = BackendState::Draining as u8);
                self.ring(Some(to), Some(b))?;
            }
            Change::State(b, state) => set(b, &|row| row.state = state as u8),
            Change::Ring(owner, previous) => self.ring(owner, previous)?,
            Change::NoRing => self.rig.services.change(SERVICE.into(), |row| row.ring = 0),
            Change::Replace(b) => set(b, &|row| {
                row.generation += 1;
                row.state = BackendState::Active as u8;
            }),
            Change::Remove(b) => set(b, &|row| row.state = BackendState::Free as u8),
            Change::Unresolved(b) => set(b, &|row| {
                row.flags &= !backend_flag::RESOLVED;
                row.ifindex = 0;
            }),
            Change::LostNextHop(b) => set(b, &|row| row.flags &= !backend_flag::RESOLVED),
            Change::Silent(b) => set(b, &|row| row.flags |= backend_flag::SILENT),
            Change::ServiceSilent => self.service_flag(service_flag::SILENT),
            Change::PerDatagram => self.service_flag(service_flag::PER_DATAGRAM),
            Change::Pass(s) => self.each_flow(|meta| {
                Meta::new(meta.version(), meta.flags(), Life::Linked, meta.last_seen().wrapping_sub(seconds(s)))
            }),
            Change::Cut => self.each_flow(|meta| meta.with(flow_flag::CUT, 0, meta.last_seen())),
            Change::Forget => {
                self.rig.flows.clear();
                self.replied.clear();
            }
            Change::Address(flags) => self.rig.put_vip(VipEntry {
                addr: self.cell.vip().ip().into(),
                port: 0,
                protocol: 0,
                kind: vip_kind::ADDRESS,
                target: flags,
                pad: [0; 2],
            })?,
            Change::OtherFamily(b) => set(b, &|row| {
                let (to, from) = match self.cell.family {
                    Family::V4 => ("fd00:2::aa", "fd00:2::1"),
                    Family::V6 => ("10.2.0.170", "10.2.0.1"),
                };
                let parse = |text: &str| Addr::from(text.parse::<IpAddr>().expect("an address"));
                (row.addr, row.tunnel_source) = (parse(to), parse(from));
            }),
        }
        Ok(())
    }

    fn service_flag(&self, flag: u8) {
        self.rig.services.change(SERVICE.into(), |row| row.flags |= flag);
    }

    fn each_flow(&self, change: impl Fn(Meta) -> Meta) {
        for row in 0..self.rig.flows.rows() {
            let meta = Meta(self.rig.flows.get(row).meta);
            if meta.life() == Life::Linked {
                self.rig.flows.change(row, |entry| entry.meta = change(meta).0);
            }
        }
    }

    fn linked(&self) -> Vec<FlowEntry> {
        self.rig.flows.iter().filter(|entry| Meta(entry.meta).life() == Life::Linked).collect()
    }

    /// The table holds exactly these flows.
    fn flows(&self, wanted: &[Flow]) -> Result<()> {
        let held = self.linked();
        ensure!(held.len() == wanted.len(), "{} flows in the table: {held:#?}", held.len());
        let client = self.cell.client();
        for flow in wanted {
            let port = flow.port.unwrap_or(client.port());
            let key = FlowKey::new(Addr::from(client.ip()), port.to_be(), SERVICE);
            let flags = flow.flags | self.implied_flags(flow.backend);
            let found = held.iter().find(|entry| {
                entry.backend == flow.backend.slot()
                    && entry.generation == flow.generation
                    && Meta(entry.meta).flags() == flags
                    && (entry.client, entry.port_service) == (key.client, key.port_service)
            });
            let Some(entry) = found else {
                bail!("no flow like {flow:?} with flags {flags:#x} among {held:#?}");
            };
            if self.cell.protocol == Protocol::Tcp {
                for (what, is, should) in
                    [("client_seq", entry.client_seq, flow.seq), ("client_ack", entry.client_ack, flow.ack)]
                {
                    ensure!(should.is_none_or(|should| is == should), "{what} is {is}, should be {should:?}");
                }
            }
        }
        Ok(())
    }

    fn implied_flags(&self, backend: B) -> u16 {
        let datagram = if self.cell.protocol == Protocol::Udp { flow_flag::DATAGRAM } else { 0 };
        let both_ways = if self.cell.mode == Mode::Nat { flow_flag::BOTH_WAYS } else { 0 };
        let replied = if self.replied.contains(&backend) { flow_flag::REPLY_SEEN } else { 0 };
        datagram | both_ways | replied
    }

    /// No packet may leave the table with an entry that is half way between lives, or a home that does not count its
    /// flows.
    fn table_is_sound(&self) -> Result<()> {
        let (mut linked, mut homes) = (0, 0);
        for (row, entry) in self.rig.flows.iter().enumerate() {
            match Meta(entry.meta).life() {
                Life::Free => {}
                Life::Linked => linked += 1,
                life => bail!("entry {row} was left {life:?}"),
            }
            homes += (entry.hop & ((1 << 48) - 1)).count_ones();
        }
        ensure!(linked == homes, "{linked} flows are linked, and homes count {homes}");
        Ok(())
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

/// What an answer to the client looks like on the wire.
pub fn turned_round(frame: &Frame) -> (ebb_tests::packets::Mac, ebb_tests::packets::Mac) {
    debug_assert_eq!((frame.source_mac, frame.destination_mac), (CLIENT_MAC, OWN_MAC));
    (frame.destination_mac, frame.source_mac)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
