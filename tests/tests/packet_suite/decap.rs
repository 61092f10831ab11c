//! Fixtures for `ebb decap`: what arrives at a backend in its tunnel, and their judgement.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use ebb_tests::{
    packets::{Frame, Piece, Transport, verify},
    rig::{Action, Cell, Rig},
};
use lb_common::outcome::Outcome;

use crate::{
    fixture::{Fixture, Input, more, open},
    judge::hex,
};

/// A packet in its tunnel. The tunnel's ends are those of the combination.
pub struct Tunnelled {
    /// The client's packet.
    inner: Input,
    /// Traffic class of the outer header.
    class: u8,
    /// Place of the outer packet in a fragmented one.
    piece: Option<Piece>,
    /// Bytes that the inner packet has lost.
    cut: usize,
    /// What must become of it.
    pub expect: Decapped,
}

/// What must become of a packet in its tunnel.
#[derive(Clone, Copy, Debug)]
pub enum Decapped {
    /// It is taken out and goes on to the host, with that traffic class.
    Out { class: u8 },
    /// Passed as it is.
    Passed(Outcome),
    /// Dropped.
    Dropped(Outcome),
}

fn tunnelled(inner: Input, class: u8, expect: Decapped) -> Tunnelled {
    Tunnelled { inner, class, piece: None, cut: 0, expect }
}

fn classed(input: Input, class: u8) -> Input {
    input.with(move |frame| frame.class = class)
}

pub fn all() -> Vec<Fixture> {
    let out = |class| Decapped::Out { class };
    let piece = |offset, more| Piece { id: 9, offset, more };
    let fragment =
        |piece| Tunnelled { piece: Some(piece), ..tunnelled(open(), 0, Decapped::Dropped(Outcome::DroppedFragment)) };
    vec![
        Fixture::new("decap", "Out comes what went in, in a frame with the same addresses and tags.")
            .tunnels()
            .arrives(tunnelled(open(), 0, out(0)))
            .arrives(tunnelled(more(), 0, out(0)))
            .arrives(tunnelled(more().long(1400), 0, out(0)))
            .arrives(tunnelled(more().tags(&[100]), 0, out(0)))
            .arrives(tunnelled(more().tags(&[100, 200]), 0, out(0))),
        Fixture::new("decap, congestion", "What the outer packet met is passed on to the inner one (RFC 6040).")
            .tunnels()
            .arrives(tunnelled(classed(more(), 0xb9), 0xb9, out(0xb9)))
            .arrives(tunnelled(classed(more(), 0x01), 0x03, out(0x03)))
            .arrives(tunnelled(classed(more(), 0xba), 0xbb, out(0xbb)))
            .arrives(tunnelled(classed(more(), 0x03), 0x00, out(0x03)))
            .arrives(tunnelled(classed(more(), 0x00), 0x03, Decapped::Dropped(Outcome::DroppedMalformed))),
        Fixture::new("decap, a fragment of the tunnel's", "Dropped: it cannot be taken out by itself.")
            .tunnels()
            .arrives(fragment(piece(0, true)))
            .arrives(fragment(piece(4, false))),
        Fixture::new("decap, cut short", "A header that is not all there is not believed.")
            .tunnels()
            .arrives(Tunnelled { cut: 1, ..tunnelled(more(), 0, Decapped::Passed(Outcome::PassedMalformed)) })
            .arrives(Tunnelled { cut: 30, ..tunnelled(more(), 0, Decapped::Passed(Outcome::PassedMalformed)) }),
    ]
}

/// Runs `ebb decap`'s program on the packet.
pub fn judge(rig: &Rig, cell: Cell, tunnelled: &Tunnelled) -> Result<Outcome> {
    let (inner, bytes) = tunnelled.inner.realise(cell);
    let outer = outer(cell, &inner, &bytes, tunnelled).bytes();
    let before = rig.counters();
    let (action, out) = rig.run_decap(&outer)?;
    let (outcome, wanted_action, wanted) = match tunnelled.expect {
        Decapped::Out { class } => {
            let frame = Frame { class, ..inner };
            (Outcome::Decapsulated, Action::Pass, frame.bytes())
        }
        Decapped::Passed(outcome) => (outcome, Action::Pass, outer.clone()),
        Decapped::Dropped(outcome) => (outcome, Action::Drop, outer.clone()),
    };
    let (after, should) = (rig.counters(), before.plus(outcome));
    ensure!(after == should, "action {action:?}; counters\n  are       {after:?}\n  should be {should:?}");
    ensure!(action == wanted_action, "action {action:?}, should be {wanted_action:?}");
    ensure!(
        out == wanted || action == Action::Drop,
        "the frame\n  in        {}\n  out       {}\n  should be {}",
        hex(&outer),
        hex(&out),
        hex(&wanted)
    );
    if outcome == Outcome::Decapsulated {
        verify(&out).map_err(|broken| anyhow::anyhow!("the host would drop it: {broken}"))?;
    }
    Ok(outcome)
}

fn outer(cell: Cell, inner: &Frame, bytes: &[u8], tunnelled: &Tunnelled) -> Frame {
    let row = cell.backend_row(0, 0);
    let ends = |addr| SocketAddr::new(IpAddr::from(addr), 0);
    let number = if inner.source.is_ipv4() { 4 } else { 41 };
    let mut outer = Frame::new(ends(row.tunnel_source), ends(row.addr), Transport::Other(number));
    (outer.source_mac, outer.destination_mac) = (inner.source_mac, inner.destination_mac);
    outer.tags.clone_from(&inner.tags);
    outer.class = tunnelled.class;
    outer.piece = tunnelled.piece;
    outer.payload = bytes[inner.ip_offset()..bytes.len() - tunnelled.cut].to_vec();
    outer
}
