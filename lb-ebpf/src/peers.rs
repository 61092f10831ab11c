//! The link-layer neighbours that clients' packets come from.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    control::{PEERS as ROWS, Peer},
    flow::flow_flag,
    flow_table::{Entries, Entry},
    outcome::Outcome,
    tcp::{self, Segment, WINDOW, flag},
};

use crate::{
    by_family,
    entry::{FlowMap, FlowRef, compare_and_swap},
    family::Family,
    maps::PEERS,
    packet::Packet,
    parse::{self, protocol},
};

/// Rows tried for a peer; where all are others', it stays unknown (row 0), and what would go back to it goes nowhere.
const TRIES: u64 = 4;

/// The row of the peer with this MAC address on this interface, made if need be; 0 if there is no room, or if one of
/// the addresses is a group's. Both are as [`way`] gives them: one neighbour may be met in several VLANs.
#[inline(always)]
pub fn row_of(mac: u64, own: u64, ifindex: u32) -> u16 {
    find_or_claim(mac, own, ifindex).unwrap_or(0)
}

#[inline(always)]
fn find_or_claim(mac: u64, own: u64, ifindex: u32) -> Option<u16> {
    // The lowest bit of the first byte marks a group address (IEEE 802).
    if ifindex > Peer::MAX_IFINDEX || (mac | own) & 1 != 0 {
        return None;
    }
    let word = Peer { mac, ifindex }.pack();
    let start = (word ^ own >> 48).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    for i in 0..TRIES {
        let row = (start + i) & (ROWS as u64 - 1);
        if row == 0 {
            continue;
        }
        let at = PEERS.get_ptr_mut(row as u32)?;
        // SAFETY: a field of a map's value, read as a whole word.
        let mut seen = unsafe { core::ptr::read_volatile(&raw const (*at).peer) };
        if seen == 0 {
            // SAFETY: an aligned word of a map's value.
            seen = unsafe { compare_and_swap(&raw mut (*at).peer, 0, word) };
            if seen == 0 {
                // SAFETY: ours to write, since we claimed the row; readers take 0 for "not known yet".
                unsafe { core::ptr::write_volatile(&raw mut (*at).own_mac, own) };
                return Some(row as u16);
            }
        }
        // SAFETY: a field of a map's value, written once by whoever claimed the row; a row of which it is not there yet is
        // passed over.
        if seen == word && (unsafe { core::ptr::read_volatile(&raw const (*at).own_mac) } ^ own) >> 48 == 0 {
            return Some(row as u16);
        }
    }
    None
}

/// The MAC address that a frame with its IP header at `offset` comes from; and ours that it was sent to, with the tag of the way
/// it came by in the high 16 bits.
#[inline(always)]
pub fn way(packet: &Packet, offset: usize) -> Option<(u64, u64)> {
    let (source, own) = packet.macs()?;
    Some((source, own | (parse::tag(packet, offset).0 as u64) << 48))
}

/// Whether a frame whose IP header is at `offset` comes from the peer of that row.
#[inline(always)]
pub fn is_from(packet: &Packet, offset: usize, row: u16) -> bool {
    let (Some((mac, own)), Some(row)) = (way(packet, offset), PEERS.get(row as u32)) else { return false };
    let peer = Peer { mac, ifindex: packet.ingress() };
    row.peer == peer.pack() && row.own_mac >> 48 == own >> 48
}

/// Makes the neighbour that a client's packet comes from the one that its flow's replies go to: the router on the way has
/// failed over to another, or the way is another one now. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_peer_moved(ctx: *mut xdp_md, frame: u32, entry: u32) -> u32 {
    let _ = by_family!(ctx, frame, follow(entry));
    0
}

#[inline(always)]
fn follow<F: Family>(packet: &Packet, offset: usize, index: u32) -> Result<(), Outcome> {
    let ip = F::parse(packet, offset)?;
    let entry = FlowMap.at(index).ok_or(Outcome::NotForService)?;
    // Of a datagram nothing tells a forgery: whoever can send in the client's name can turn replies aside.
    if ip.protocol == protocol::TCP && !is_proven(entry, parse::segment(packet, &ip)?) {
        return Ok(());
    }
    let (mac, own) = way(packet, offset).ok_or(Outcome::DroppedMalformed)?;
    match row_of(mac, own, packet.ingress()) {
        // The old one may still do.
        0 => {}
        row => entry.put_peer(row),
    }
    Ok(())
}

/// Whether a segment, which tracking has looked at, is the client's and no blind forgery: it acknowledges exactly what the
/// client was last seen to, which tracking believes only of what the backend has said; or it is the SYN sent again.
#[inline(always)]
fn is_proven(entry: FlowRef, segment: Segment) -> bool {
    let flags = entry.meta().flags();
    let track = entry.track(entry.meta());
    if segment.opens() {
        return flags & flow_flag::ESTABLISHED == 0 && segment.resumes_at() == track.client_seq;
    }
    segment.flags & (flag::ACK | flag::RST | flag::SYN) == flag::ACK
        && flags & flow_flag::REPLY_SEEN != 0
        && segment.ack == track.client_ack
        && tcp::near(segment.seq, track.client_seq, WINDOW)
}
