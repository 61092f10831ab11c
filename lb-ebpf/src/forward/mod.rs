//! Sending a packet to its backend, one module a mode.

pub mod dsr;
pub mod forgotten;
pub mod nat;
pub mod tunnel;

use lb_common::{
    backend::{Backend, backend_flag},
    outcome::Outcome,
    service::{Service, forward as mode},
    vlan::Tag,
};
use network_types::eth::EthHdr;

use crate::{
    packet::Packet,
    parse::ether,
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
            if Tag(row.tag).changes(frame.offset() - EthHdr::LEN) {
                return rare::result(dsr::ebb_dsr_retagged(packet.context(), frame.0, backend));
            }
            Ok(Sent { ifindex: dsr::send(packet, row)?, outcome: Outcome::Forwarded })
        }
    }
}

/// Gives a frame whose IP header is at `offset` the tags and addresses for a backend's next hop.
#[inline(always)]
pub fn address_frame(packet: &Packet, offset: usize, backend: &Backend) -> Result<u32, Outcome> {
    check_next_hop(backend)?;
    let packet = retagged(packet, offset, Tag(backend.tag)).ok_or(Outcome::DroppedResize)?;
    write_macs(&packet, backend.dst_mac, backend.src_mac).ok_or(Outcome::DroppedMalformed)?;
    Ok(backend.ifindex)
}

/// Whether a backend's next hop was ever known: its flows keep the last one, whatever becomes of it.
#[inline(always)]
fn check_next_hop(backend: &Backend) -> Result<(), Outcome> {
    if backend.flags & backend_flag::RESOLVED == 0 && backend.ifindex == 0 {
        return Err(Outcome::DroppedUnresolved);
    }
    Ok(())
}

/// The frame with the tags of its way, in place of those in front of the IP header at `offset`. Its MAC addresses are to be
/// written after that.
#[inline(always)]
pub fn retagged(packet: &Packet, offset: usize, tag: Tag) -> Option<Packet> {
    const TAG: usize = 4;
    if !tag.changes(offset - EthHdr::LEN) {
        return Some(*packet);
    }
    let Some(vlan) = tag.vlan() else {
        return packet.cut_front(offset - EthHdr::LEN);
    };
    // What stands behind the tags moves to behind the one, its EtherType too.
    let resized = match offset - EthHdr::LEN {
        0 => packet.grow_front(TAG)?,
        TAG => *packet,
        tags => packet.cut_front(tags - TAG)?,
    };
    let window = resized.window::<TAG>(12)?;
    window.put::<u16, 0>(ether::VLAN);
    window.put::<u16, 2>(vlan.to_be());
    Some(resized)
}

/// Writes both MAC addresses of a frame from words with their bytes in memory order in the low 48 bits, as
/// [`Packet::macs`] reads them.
#[inline(always)]
pub fn write_mac_words(packet: &Packet, destination: u64, source: u64) -> Option<()> {
    let [d0, d1, d2, d3, d4, d5, ..] = destination.to_le_bytes();
    let [s0, s1, s2, s3, s4, s5, ..] = source.to_le_bytes();
    write_macs(packet, [d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5])
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
