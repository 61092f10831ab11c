//! The one row of settings that every packet reads, and the table of link-layer peers.

use bytemuck::{Pod, Zeroable};

use crate::hash::TABLE_KEYS;

/// Bits of [`Control::flags`].
pub mod control_flag {
    /// Some service is `nat`: packets that are for no VIP may be replies.
    pub const NAT: u32 = 1;
    /// Some VIP has an `ADDRESS` entry with something to answer (ARP, echo).
    pub const ANSWERS: u32 = 1 << 1;
}

/// Settings of the packet path. Written by the daemon, field by field; read by every packet.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
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
    /// Explicit padding.
    pub pad: [u32; 7],
    /// Secrets of the flow table's hash, drawn once when the table is made.
    pub table_keys: [u64; TABLE_KEYS],
}

const _: () = assert!(size_of::<Control>() == 128);

/// A neighbour on the link that client packets came from, so that replies and resets can go back the same way.
///
/// The packet path claims rows by compare-and-swap on `word`; a row never changes while the table lives.
#[repr(C, align(16))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Peer {
    /// The MAC address in the low 48 bits, memory order; bit 63 set marks a row in use.
    pub word: u64,
    /// Interface its packets come in on.
    pub ifindex: u32,
    /// Explicit padding.
    pub pad: u32,
}

const _: () = assert!(size_of::<Peer>() == 16);

/// Rows of the peer table; row 0 stands for an unknown peer.
pub const PEERS: u32 = 65_536;
