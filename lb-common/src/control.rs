//! The one row of settings that every packet reads, and the table of link-layer peers.

use bytemuck::{Pod, Zeroable};

use crate::{flow_table::Geometry, hash::TABLE_KEYS};

/// Bits of [`Control::flags`].
pub mod control_flag {
    /// Some service is `nat`: packets that are for no VIP may be replies.
    pub const NAT: u32 = 1;
    /// Some VIP has an `ADDRESS` entry with something to answer (ARP, echo).
    pub const ANSWERS: u32 = 1 << 1;
}

/// Settings of the packet path. Written by the daemon, field by field; read by every packet.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Control {
    /// Published half of the VIP table: index of its first entry in the high half, mask of its size in the low half.
    /// One word, so that a flip is atomic.
    pub vips: u64,
    /// Seed of the published half's hash. Kept constant per half: see `vip_seeds`.
    pub vip_seeds: [u64; 2],
    /// Bits of [`control_flag`].
    pub flags: u32,
    /// Slots of the flow table, a multiple of 16.
    pub flow_slots: u32,
    /// Backend slots, the stride of the counters from CPU to CPU.
    pub backend_slots: u32,
    /// Length of a jiffy in ns, or 0: then the packet path asks the coarse clock itself. See [`crate::time::from_jiffies`].
    pub jiffy_ns: u32,
    /// Coarse monotonic time at jiffy 0, ns, modulo 2^64.
    pub jiffies_offset_ns: u64,
    /// Explicit padding.
    pub pad: [u64; 2],
    /// Secrets of the flow table's hash, drawn once when the table is made.
    pub table_keys: [u64; TABLE_KEYS],
}

const _: () = assert!(size_of::<Control>() == 128);

impl core::fmt::Debug for Control {
    /// All but the secrets, which belong in no log.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Control")
            .field("vips", &self.vips)
            .field("flags", &self.flags)
            .field("flow_slots", &self.flow_slots)
            .field("backend_slots", &self.backend_slots)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Size of the flow table, and the secret of its alternate sets: the last of the keys, which the hash does not use.
    #[inline(always)]
    pub const fn geometry(&self) -> Geometry {
        Geometry { slots: self.flow_slots, secret: self.table_keys[TABLE_KEYS - 1] }
    }
}

/// A neighbour on the link that client packets came from, so that replies and resets can go back the same way.
///
/// Its row is two words: the first says who it is and is claimed by compare-and-swap, the second is our own MAC address
/// on that link, as the peer's packets name it. A row changes only when its interface comes back under
/// another index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its MAC address: six bytes in memory order in the low 48 bits.
    pub mac: u64,
    /// Interface its packets come in on, at most [`Peer::MAX_IFINDEX`].
    pub ifindex: u32,
}

/// One row of the peer table: a packed [`Peer`], and our MAC address on its link in memory order (0: not known yet).
#[repr(C, align(16))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct PeerRow {
    /// A packed [`Peer`], 0 while the row is free.
    pub peer: u64,
    /// Our MAC address there: six bytes in memory order in the low 48 bits. In the high 16 a [`crate::vlan::Tag`]: what tags
    /// its packets have.
    pub own_mac: u64,
}

impl Peer {
    /// Interfaces beyond this number are not remembered.
    pub const MAX_IFINDEX: u32 = (1 << 15) - 1;

    /// The word in the map; never 0, which is a free row.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        1 << 63 | (self.ifindex as u64) << 48 | self.mac
    }

    /// The peer in a map's word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        Some(Self { mac: word & 0xffff_ffff_ffff, ifindex: (word >> 48) as u32 & Self::MAX_IFINDEX })
    }
}

/// The bytes of a MAC address kept in the low 48 bits of a word.
pub const fn mac_bytes(word: u64) -> [u8; 6] {
    let b = word.to_le_bytes();
    [b[0], b[1], b[2], b[3], b[4], b[5]]
}

/// A MAC address in the low 48 bits of a word.
pub const fn mac_word(mac: [u8; 6]) -> u64 {
    let mut word = [0; 8];
    let mut at = 0;
    while at < mac.len() {
        word[at] = mac[at];
        at += 1;
    }
    u64::from_le_bytes(word)
}

/// Rows of the peer table; row 0 stands for an unknown peer.
pub const PEERS: u32 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = 0x0123_4567_89ab_cdef;
        let control = Control { table_keys: [secret; TABLE_KEYS], flow_slots: 16, ..Zeroable::zeroed() };
        let shown = std::format!("{control:?} {:?}", control.geometry());
        assert!(shown.contains("16") && !shown.contains(&std::format!("{secret}")), "{shown}");
    }

    #[test]
    fn peers_round_trip() {
        let peer = Peer { mac: u64::from_le_bytes([2, 0, 0xff, 3, 4, 0xfe, 0, 0]), ifindex: Peer::MAX_IFINDEX };
        assert_eq!(Peer::unpack(peer.pack()), Some(peer));
        assert_eq!(mac_bytes(peer.mac), [2, 0, 0xff, 3, 4, 0xfe]);
        assert_eq!(mac_word(mac_bytes(peer.mac)), peer.mac);
        assert_eq!(Peer::unpack(0), None);
        assert_ne!(Peer { mac: 0, ifindex: 0 }.pack(), 0);
    }
}
