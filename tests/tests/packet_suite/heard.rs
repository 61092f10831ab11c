//! Backends' packets to clients, under `nat`.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use ebb_tests::{
    packets::{Frame, Transport, tcp_flag, verify},
    rig::{Action, Protocol},
};
use lb_common::{backend::BackendStats, outcome::Outcome};

use crate::{
    fixture::{Heard, Reply},
    judge::{Judge, hex},
    output,
};

impl Judge<'_> {
    /// Runs a backend's packet to the client, and compares what becomes of it.
    pub fn reply(&mut self, reply: &Reply) -> Result<Outcome> {
        let row = self.rig.backends.get(reply.from.slot());
        let source: SocketAddr = (IpAddr::from(row.addr), u16::from_be(row.port)).into();
        let (frame, bytes) = reply.input.realise_from(self.cell, source, row.dst_mac);
        let before = self.rig.counters();
        let (action, out) = self.rig.run_in(&bytes, reply.input.crowded)?;
        let outcome = outcome(reply.heard);
        let mut wanted = before.plus(outcome);
        if outcome == Outcome::Reply && self.ends_flow(&frame, reply.heard) {
            wanted = wanted.plus_backend(reply.from.slot(), BackendStats { resets: 1, ..BackendStats::default() });
        }
        let after = self.rig.counters();
        ensure!(after == wanted, "action {action:?}; counters\n  are       {after:?}\n  should be {wanted:?}");
        let (wanted_action, wanted) = self.wanted_heard(&frame, &bytes, reply.heard);
        ensure!(action == wanted_action, "action {action:?}, should be {wanted_action:?}");
        ensure!(
            out == wanted || action == Action::Drop,
            "the reply\n  in        {}\n  out       {}\n  should be {}",
            hex(&bytes),
            hex(&out),
            hex(&wanted)
        );
        if !matches!(action, Action::Drop | Action::Pass) {
            verify(&out).map_err(|broken| anyhow::anyhow!("a receiver would drop the reply: {broken}"))?;
        }
        if matches!(reply.heard, Heard::Client { .. } | Heard::By(_)) {
            self.replied.push(reply.from);
        }
        self.table_is_sound()?;
        Ok(outcome)
    }

    fn ends_flow(&self, frame: &Frame, heard: Heard) -> bool {
        let reset = matches!(frame.transport, Transport::Tcp { flags, .. } if flags & tcp_flag::RST != 0);
        reset && self.cell.protocol == Protocol::Tcp && matches!(heard, Heard::Client { .. })
    }

    fn wanted_heard(&self, frame: &Frame, bytes: &[u8], heard: Heard) -> (Action, Vec<u8>) {
        let vip = self.cell.vip();
        match heard {
            Heard::Client { vip_port, port } => {
                (Action::Tx, output::returned(frame, SocketAddr::new(vip.ip(), vip_port), port))
            }
            Heard::By(mac) => {
                let mut to = output::returned(frame, vip, frame.destination.port());
                to[..6].copy_from_slice(&mac);
                (Action::Tx, to)
            }
            Heard::Fragment => (Action::Tx, output::returned(frame, vip, frame.destination.port())),
            Heard::ByRoute => (Action::Redirect, output::returned_by_route(frame, vip)),
            Heard::Error { from_backend } => {
                (Action::Tx, output::error_returned(frame, vip, self.cell.client(), from_backend))
            }
            Heard::Reset { seq, ack, flags } => {
                let transport = Transport::Tcp { flags, seq, ack, window: 0, options: Vec::new() };
                (Action::Tx, output::answer(frame, transport))
            }
            Heard::TooBig { mtu } => (Action::Tx, output::too_big(frame, bytes, mtu)),
            Heard::Dropped(_) => (Action::Drop, bytes.to_vec()),
            Heard::Passed(_) => (Action::Pass, bytes.to_vec()),
        }
    }
}

fn outcome(heard: Heard) -> Outcome {
    match heard {
        Heard::Client { .. } | Heard::By(_) | Heard::ByRoute => Outcome::Reply,
        Heard::Error { .. } => Outcome::IcmpError,
        Heard::Fragment => Outcome::Fragment,
        Heard::Reset { .. } => Outcome::ResetSent,
        Heard::TooBig { .. } => Outcome::TooBigSent,
        Heard::Dropped(outcome) | Heard::Passed(outcome) => outcome,
    }
}
