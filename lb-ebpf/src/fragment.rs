//! Fragments: later ones follow their first.

use bytemuck::{Pod, Zeroable};
use lb_common::addr::Addr;

/// What the fragments of one datagram have in common.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source.
    pub source: Addr,
    /// Destination.
    pub destination: Addr,
    /// Identification, as loaded.
    pub id: u32,
    /// Protocol (IPv4; 0 for IPv6, whose later fragments need not name it, RFC 8200 section 4.5).
    pub protocol: u32,
}

/// Where they go.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct FragmentOwner {
    /// Backend slot.
    pub backend: u32,
    /// Its generation.
    pub generation: u32,
    /// Coarse time of the first fragment, ns.
    pub seen_ns: u64,
}
