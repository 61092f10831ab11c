//! Backends and their counters.

use bytemuck::{Pod, Zeroable};

use crate::addr::Addr;

/// State of a backend slot as the packet path needs it ([`Backend::state`]).
///
/// The words are those of the CLI; *weightless* and *slow start* are matters of the ring alone.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendState {
    /// Nobody's.
    Free = 0,
    /// Registered, not yet usable.
    Initial = 1,
    /// Takes new flows.
    Active = 2,
    /// Keeps its flows until the deadline, takes no new ones.
    Draining = 3,
    /// Out of rotation; only flows that are already closing may say goodbye.
    Drained = 4,
    /// Failed its checks and keeps nothing.
    Unhealthy = 5,
    /// Failed its checks, keeps its flows until the deadline, takes no new ones.
    UnhealthyDraining = 6,
}

impl BackendState {
    /// The state behind its number.
    pub const fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            0 => Self::Free,
            1 => Self::Initial,
            2 => Self::Active,
            3 => Self::Draining,
            4 => Self::Drained,
            5 => Self::Unhealthy,
            6 => Self::UnhealthyDraining,
            _ => return None,
        })
    }
}

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// Flows past the deadline get no reset.
    pub const SILENT: u8 = 1;
    /// The next hop below is known.
    pub const RESOLVED: u8 = 1 << 1;
    /// Takes new flows although it failed its checks, since no backend of its service passes (`fail_open`).
    pub const FAIL_OPEN: u8 = 1 << 2;
}

/// A deadline that never comes.
pub const NO_DEADLINE: u64 = u64::MAX;

/// One backend of one service. The first 64 bytes are all that a `dsr` packet reads.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Backend {
    /// Counts the backends that have had this slot; a flow of another generation is not this backend's.
    pub generation: u32,
    /// A [`BackendState`].
    pub state: u8,
    /// Bits of [`backend_flag`].
    pub flags: u8,
    /// Slot of its service.
    pub service: u16,
    /// Coarse monotonic time in ns after which a draining backend keeps no flow; [`NO_DEADLINE`].
    pub deadline_ns: u64,
    /// Interface that faces it.
    pub ifindex: u32,
    /// Link-layer address of its next hop.
    pub dst_mac: [u8; 6],
    /// Link-layer address of that interface.
    pub src_mac: [u8; 6],
    /// Its address.
    pub addr: Addr,
    /// Its port under NAT, network order.
    pub port: u16,
    /// Largest IP packet that its next hop takes, bytes.
    pub mtu: u16,
    /// Time before the deadline over which cuts are spread, ms.
    pub cut_window_ms: u32,
    /// Explicit padding.
    pub pad0: u64,
    /// Source address of the outer header under `tunnel`.
    pub tunnel_source: Addr,
    /// Explicit padding.
    pub pad1: [u64; 6],
}

const _: () = assert!(size_of::<Backend>() == 128);

/// What one CPU counted for one backend slot; the daemon adds the CPUs up.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct BackendStats {
    /// Packets sent to it.
    pub packets: u64,
    /// Bytes of those, from the IP header on.
    pub bytes: u64,
    /// Flows opened to it.
    pub new_flows: u64,
    /// Flows closed by an RST.
    pub resets: u64,
}

const _: () = assert!(size_of::<BackendStats>() == 32);
