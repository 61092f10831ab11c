//! Packets that are answered or rebuilt are handled by global BPF functions, each of which parses the packet again by
//! itself, so that the verifier checks it once and the fast path's frame stays small. Here is what they share.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::outcome::Outcome;
use network_types::eth::EthHdr;

use crate::{
    forward::{self, Sent},
    maps::SERVICES,
    packet::Packet,
    reset,
    scratch::{self, Decision},
};

/// Where a frame's IP header is and of which family, in one number: global functions take numbers only.
#[derive(Clone, Copy)]
pub struct Frame(pub u32);

impl Frame {
    const V6: u32 = 1 << 8;

    /// Packs it.
    #[inline(always)]
    pub fn new(offset: usize, v6: bool) -> Self {
        Self((offset - EthHdr::LEN) as u32 | if v6 { Self::V6 } else { 0 })
    }

    /// Offset of the IP header: 14, 18 or 22. The mask is for the verifier.
    #[inline(always)]
    pub fn offset(self) -> usize {
        (self.0 & 0xc) as usize + EthHdr::LEN
    }

    /// Whether it is IPv6.
    #[inline(always)]
    pub fn is_v6(self) -> bool {
        self.0 & Self::V6 != 0
    }
}

/// Calls a function generic over the family with the packet of a context and the offset of its IP header.
#[macro_export]
macro_rules! by_family {
    ($context:expr, $frame:expr, $function:ident($($argument:expr),*)) => {{
        let packet = $crate::packet::Packet::new(&aya_ebpf::programs::XdpContext::new($context));
        let frame = $crate::rare::Frame($frame);
        if frame.is_v6() {
            $function::<$crate::family::V6>(&packet, frame.offset(), $($argument),*)
        } else {
            $function::<$crate::family::V4>(&packet, frame.offset(), $($argument),*)
        }
    }};
}

/// What a global function returns: an outcome in the lowest byte, flags, and an interface in the high half.
const FAILED: u64 = 1 << 8;
const ONWARD: u64 = 1 << 9;

/// Ends the packet as a global function says: one that wants it sent on to a backend has left which in the scratch row,
/// so that its own stack frame is gone by then.
#[inline(always)]
pub fn finish(packet: &Packet, frame: Frame, word: u64) -> Result<Sent, Outcome> {
    let outcome = Outcome::from_u8(word as u8).ok_or(Outcome::DroppedMalformed)?;
    if word & FAILED != 0 {
        return Err(outcome);
    }
    if word & ONWARD == 0 {
        return Ok(Sent { ifindex: (word >> 32) as u32, outcome });
    }
    let scratch = scratch::row().ok_or(Outcome::DroppedMalformed)?;
    let Decision { backend, entry, .. } = scratch.decision;
    let service = SERVICES.get(scratch.request.service).ok_or(Outcome::DroppedMalformed)?;
    // The function that has looked at it may change its length elsewhere, so for the verifier it is another packet now.
    let packet = Packet::new(&XdpContext::new(packet.context()));
    let sent = forward::send(&packet, frame, service, backend, entry, scratch.request.ports)?;
    Ok(Sent { outcome, ..sent })
}

/// A result as a global function can return it.
#[inline(always)]
pub fn word(done: Result<Sent, Outcome>) -> u64 {
    match done {
        Ok(sent) if sent.ifindex == SEND_ON => ONWARD | sent.outcome as u64,
        Ok(sent) => (sent.ifindex as u64) << 32 | sent.outcome as u64,
        Err(outcome) => FAILED | outcome as u64,
    }
}

/// Stands for an interface in a [`Sent`] that is not sent yet.
const SEND_ON: u32 = u32::MAX;

/// Leaves it to [`finish`] to send the packet on.
#[inline(always)]
pub fn send_on(service: u32, backend: u32, entry: u32, hash: u32, outcome: Outcome) -> Result<Sent, Outcome> {
    let scratch = scratch::row().ok_or(Outcome::DroppedMalformed)?;
    scratch.request.service = service;
    scratch.request.ports = hash;
    scratch.decision.backend = backend;
    scratch.decision.entry = entry;
    Ok(Sent { ifindex: SEND_ON, outcome })
}

/// Turns what a global function that sends returns back into a result.
#[inline(always)]
pub fn result(word: u64) -> Result<Sent, Outcome> {
    let outcome = Outcome::from_u8(word as u8).ok_or(Outcome::DroppedMalformed)?;
    if word & FAILED == 0 { Ok(Sent { ifindex: (word >> 32) as u32, outcome }) } else { Err(outcome) }
}

/// Answers the segment with an RST.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_reset(ctx: *mut xdp_md, frame: u32) -> u64 {
    use reset::answer;
    word(by_family!(ctx, frame, answer()))
}
