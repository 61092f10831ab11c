//! What Ebb's eBPF program and its daemon share: the layout of every map, and the arithmetic that both sides must
//! agree on to the bit (hashes, the flow table's algorithm, TCP tracking, checksum updates).
//!
//! Nothing here touches a packet pointer or a system call, so all of it is tested on the host.
//!
//! **Invariant:** every struct that lives in a map is `repr(C)`, has no implicit padding and asserts its size; a
//! change to any of them bumps [`LAYOUT_VERSION`], which is part of the pin path.
#![no_std]
#![expect(
    clippy::inline_always,
    reason = "where the packet path is to be one function: a call costs a stack frame, and the verifier loses bounds across it"
)]

pub mod addr;
pub mod backend;
pub mod checksum;
pub mod control;
pub mod flow;
pub mod flow_table;
pub mod hash;
pub mod outcome;
pub mod quic;
pub mod ring;
pub mod service;
pub mod tally;
pub mod tcp;
pub mod time;
pub mod vlan;

#[cfg(test)]
extern crate std;

/// Version of all map layouts together; the last component of the default pin path (`…/ebb/v3`).
pub const LAYOUT_VERSION: u32 = 3;

/// Names of the maps as they stand in the eBPF object, and of their pins.
pub mod map_name {
    /// One [`crate::control::Control`].
    pub const CONTROL: &str = "CONTROL";
    /// Two halves of [`crate::service::VipEntry`], an open-addressed table each.
    pub const VIPS: &str = "VIPS";
    /// [`crate::service::Service`] rows by service slot.
    pub const SERVICES: &str = "SERVICES";
    /// [`crate::backend::Backend`] rows by backend slot.
    pub const BACKENDS: &str = "BACKENDS";
    /// Array of arrays: two rings of [`crate::ring::RingSlot`] words for each service slot, see
    /// [`crate::ring::Published`].
    pub const RINGS: &str = "RINGS";
    /// [`crate::flow::FlowEntry`] rows.
    pub const FLOWS: &str = "FLOWS";
    /// [`crate::control::PeerRow`] rows: the link-layer neighbours that client packets came from.
    pub const PEERS: &str = "PEERS";
    /// [`crate::backend::BackendStats`] rows, one per backend slot and CPU.
    pub const STATS: &str = "STATS";
    /// `u64` counters, one per [`crate::outcome::Outcome`] and CPU.
    pub const OUTCOMES: &str = "OUTCOMES";
    /// Where the fragments of a datagram go (LRU hash).
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`crate::tally::FlowTally`] rows, one per entry of the flow table if they are counted, else one. Pinned too, but replaced by a
    /// load that wants another size.
    pub const TALLIES: &str = "TALLIES";
    /// MAC addresses of the interfaces by their index (hash).
    pub const LINKS: &str = "LINKS";

    /// All of the above but [`TALLIES`] and [`LINKS`]: what is pinned and outlives a load of the program. Other maps of the object belong to one load.
    pub const ALL: [&str; 10] = [CONTROL, VIPS, SERVICES, BACKENDS, RINGS, FLOWS, PEERS, STATS, OUTCOMES, FRAGMENTS];
}
