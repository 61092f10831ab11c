//! Direct server return: the packet goes to the backend's next hop as it is; the backend holds the VIP and answers the
//! client itself.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{backend::Backend, outcome::Outcome};

use super::{Sent, address_frame, check_next_hop, write_macs};
use crate::{
    packet::Packet,
    rare::{self, Frame},
    steer,
};

/// Readies a frame whose tags are right; gives the interface to leave by.
#[inline(always)]
pub fn send(packet: &Packet, backend: &Backend) -> Result<u32, Outcome> {
    check_next_hop(backend)?;
    write_macs(packet, backend.dst_mac, backend.src_mac).ok_or(Outcome::DroppedMalformed)?;
    Ok(backend.ifindex)
}

/// Sends a frame whose tags are to be changed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_dsr_retagged(ctx: *mut xdp_md, frame: u32, backend: u32) -> u64 {
    let packet = Packet::new(&XdpContext::new(ctx));
    let ifindex = match steer::row(backend) {
        Some(row) => address_frame(&packet, Frame(frame).offset(), row),
        None => Err(Outcome::DroppedNoBackend),
    };
    rare::word(ifindex.map(|ifindex| Sent { ifindex, outcome: Outcome::Forwarded }))
}
