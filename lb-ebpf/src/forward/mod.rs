//! Sending a packet to its backend, one module a mode.

pub mod dsr;
pub mod forgotten;
pub mod nat;
pub mod tunnel;

use lb_common::{
    backend::{Backend, backend_flag},
    outcome::Outcome,
    service::{Service, forward as mode},
};

use crate::{
    packet::Packet,
    rare::{self, Frame},
    steer,
};

/// A packet that leaves, and how it is counted.
#[derive(Clone, Copy)]
pub struct Sent {
    /// Interface to leave by.
    pub ifindex: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// Sends a packet to its backend in the service's way. `hash` varies with the flow.
#[inline(always)]
pub fn send(
    packet: &Packet,
    frame: Frame,
    service: &Service,
    backend: u32,
    entry: u32,
    hash: u32,
) -> Result<Sent, Outcome> {
    match service.forward {
        mode::NAT => rare::result(nat::ebb_nat(packet.context(), frame.0, backend, entry)),
        mode::TUNNEL => rare::result(tunnel::ebb_tunnel(packet.context(), frame.0, backend, hash)),
        _ => {
            let row = steer::row(backend).ok_or(Outcome::DroppedNoBackend)?;
            Ok(Sent { ifindex: dsr::send(packet, row)?, outcome: Outcome::Forwarded })
        }
    }
}

/// Writes the frame's addresses for a backend's next hop.
#[inline(always)]
pub fn address_frame(packet: &Packet, backend: &Backend) -> Result<u32, Outcome> {
    if backend.flags & backend_flag::RESOLVED == 0 && backend.ifindex == 0 {
        return Err(Outcome::DroppedUnresolved);
    }
    write_macs(packet, backend.dst_mac, backend.src_mac).ok_or(Outcome::DroppedMalformed)?;
    Ok(backend.ifindex)
}

/// Writes both MAC addresses of a frame.
#[inline(always)]
pub fn write_macs(packet: &Packet, destination: [u8; 6], source: [u8; 6]) -> Option<()> {
    let [d0, d1, d2, d3, d4, d5] = destination;
    let [s0, s1, s2, s3, s4, s5] = source;
    let frame = packet.window::<12>(0)?;
    frame.put::<u64, 0>(u64::from_ne_bytes([d0, d1, d2, d3, d4, d5, s0, s1]));
    frame.put::<u32, 8>(u32::from_ne_bytes([s2, s3, s4, s5]));
    Some(())
}
