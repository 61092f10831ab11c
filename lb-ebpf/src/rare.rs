//! Packets that are answered or rebuilt: global BPF functions, each of which parses the packet again by itself, so that
//! the verifier checks it once and the fast path's frame stays small.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::outcome::Outcome;

use crate::{
    family::{V4, V6},
    forward::Sent,
    packet::Packet,
    parse::{self, ether},
    reset,
};

/// Turns what a global function returns back into a result.
#[inline(always)]
pub fn result(word: u64) -> Result<Sent, Outcome> {
    let outcome = Outcome::from_u8(word as u8).ok_or(Outcome::DroppedMalformed)?;
    if word & FAILED == 0 { Ok(Sent { ifindex: (word >> 32) as u32, outcome }) } else { Err(outcome) }
}

const FAILED: u64 = 1 << 8;

#[inline(always)]
fn word(done: Result<Sent, Outcome>) -> u64 {
    match done {
        Ok(sent) => (sent.ifindex as u64) << 32 | sent.outcome as u64,
        Err(outcome) => FAILED | outcome as u64,
    }
}

/// Answers the segment with an RST.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_reset(ctx: *mut xdp_md) -> u64 {
    let packet = Packet::new(&XdpContext::new(ctx));
    word(match parse::ethernet(&packet) {
        Some((ether::IPV4, offset)) => reset::answer::<V4>(&packet, offset),
        Some((ether::IPV6, offset)) => reset::answer::<V6>(&packet, offset),
        _ => Err(Outcome::DroppedMalformed),
    })
}
