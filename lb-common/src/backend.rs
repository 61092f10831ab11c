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
    /// A [`crate::vlan::Tag`]: what tags its next hop takes.
    pub tag: u16,
    /// Explicit padding.
    pub pad0: [u16; 3],
    /// Source address of the outer header under `tunnel`.
    pub tunnel_source: Addr,
    /// Explicit padding.
    pub pad1: [u64; 6],
}

const _: () = assert!(size_of::<Backend>() == 128);

/// What a backend still does for a flow of its.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Takes its packets.
    Forward,
    /// Takes them no more: the drain's deadline has passed, or the drain is over.
    Refuse,
    /// The slot is another backend's, or nobody's: the flow's own backend is gone.
    Gone,
}

impl Backend {
    /// Whether new flows may go to it.
    #[inline(always)]
    pub const fn takes_new(&self) -> bool {
        self.flags & backend_flag::RESOLVED != 0 && self.state == BackendState::Active as u8
    }

    /// When a flow is cut: `share` (16 bits of the flow's hash) spreads the cuts over the window before the deadline.
    #[inline(always)]
    pub const fn flow_deadline_ns(&self, share: u16) -> u64 {
        if self.cut_window_ms == 0 || self.deadline_ns == NO_DEADLINE {
            return self.deadline_ns;
        }
        let window_ns = self.cut_window_ms as u64 * 1_000_000;
        self.deadline_ns.saturating_sub((window_ns >> 16) * share as u64)
    }

    /// What it does for a flow that recorded `generation`.
    ///
    /// `closing` says that the flow has finished and only says goodbye, which is let through as long as the backend has
    /// not been replaced.
    #[inline(always)]
    pub const fn keeps(&self, generation: u32, closing: bool, share: u16, now_ns: u64) -> Keep {
        const ACTIVE: u8 = BackendState::Active as u8;
        const INITIAL: u8 = BackendState::Initial as u8;
        const DRAINING: u8 = BackendState::Draining as u8;
        const UNHEALTHY_DRAINING: u8 = BackendState::UnhealthyDraining as u8;
        const FREE: u8 = BackendState::Free as u8;
        if self.generation != generation {
            return Keep::Gone;
        }
        match self.state {
            ACTIVE | INITIAL => Keep::Forward,
            DRAINING | UNHEALTHY_DRAINING if closing || now_ns < self.flow_deadline_ns(share) => Keep::Forward,
            FREE => Keep::Gone,
            _ if closing => Keep::Forward,
            _ => Keep::Refuse,
        }
    }

    /// Whether segments of flows that this node has forgotten may still go to it: it drains, and its deadline is ahead.
    #[inline(always)]
    pub const fn remembers(&self, now_ns: u64) -> bool {
        (self.state == BackendState::Draining as u8 || self.state == BackendState::UnhealthyDraining as u8)
            && now_ns < self.deadline_ns
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(state: BackendState) -> Backend {
        Backend {
            generation: 7,
            state: state as u8,
            flags: backend_flag::RESOLVED,
            deadline_ns: 1_000,
            ..Zeroable::zeroed()
        }
    }

    #[test]
    fn only_active_ones_take_new_flows() {
        for n in 0..=6 {
            let state = BackendState::from_u8(n).unwrap();
            assert_eq!(backend(state).takes_new(), state == BackendState::Active, "{state:?}");
        }
        let unresolved = Backend { flags: 0, ..backend(BackendState::Active) };
        assert!(!unresolved.takes_new());
    }

    #[test]
    fn a_drain_keeps_flows_until_its_deadline_and_goodbyes_after_it() {
        let b = backend(BackendState::Draining);
        assert_eq!(b.keeps(7, false, 0, 999), Keep::Forward);
        assert_eq!(b.keeps(7, false, 0, 1_000), Keep::Refuse);
        assert_eq!(b.keeps(7, true, 0, 1_000), Keep::Forward);
        assert_eq!(b.keeps(6, true, 0, 0), Keep::Gone);
        assert_eq!(backend(BackendState::Drained).keeps(7, false, 0, 0), Keep::Refuse);
        assert_eq!(backend(BackendState::Free).keeps(7, true, 0, 0), Keep::Gone);
        let endless = Backend { deadline_ns: NO_DEADLINE, ..b };
        assert_eq!(endless.keeps(7, false, 0, u64::MAX - 1), Keep::Forward);
    }

    #[test]
    fn cuts_spread_over_the_window_and_none_is_late() {
        let b = Backend { deadline_ns: 10_000_000_000, cut_window_ms: 4_000, ..backend(BackendState::Draining) };
        assert_eq!(b.flow_deadline_ns(0), 10_000_000_000);
        let first = b.flow_deadline_ns(u16::MAX);
        assert!((6_000_000_000..6_001_000_000).contains(&first), "{first}");
    }
}
