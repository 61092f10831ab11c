//! The link-layer neighbours that clients' packets come from.

use lb_common::control::{PEERS as ROWS, Peer};

use crate::{entry::compare_and_swap, maps::PEERS};

/// Rows tried for a peer; where all are others', it stays unknown (row 0), and what would go back to it goes nowhere.
const TRIES: u64 = 4;

/// The row of the peer with this MAC address on this interface, made if need be; 0 if there is no room, or if one of
/// the addresses is a group's. `own` is our address that its frame was sent to, and in its high 16 bits the way's tag: one
/// neighbour may be met in several VLANs.
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
        // SAFETY: a field of a map's value; rows change from 0 to a peer once and never again.
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
