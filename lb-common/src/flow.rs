//! The flow table's entry: one cache line a flow.

use bytemuck::{Pod, Zeroable};

use crate::{addr::Addr, hash, time};

/// Bits of an entry's flags, which stand in bits 32–47 of [`FlowEntry::meta`].
///
/// The two lowest bits are the entry's *life*, see [`Life`].
pub mod flow_flag {
    /// The handshake is complete (TCP), or a second datagram was seen.
    pub const ESTABLISHED: u16 = 1 << 2;
    /// Adopted from a segment in mid-stream and not yet proven to be a flow.
    pub const PROVISIONAL: u16 = 1 << 3;
    /// Second on its tuple: opening while an established flow still holds it, or superseded by one that completed its
    /// handshake.
    pub const CANDIDATE: u16 = 1 << 4;
    /// Another entry of the same tuple exists.
    pub const TWIN: u16 = 1 << 5;
    /// The client's FIN was seen in sequence.
    pub const CLIENT_FIN: u16 = 1 << 6;
    /// The server's FIN was seen in sequence (`nat`).
    pub const SERVER_FIN: u16 = 1 << 7;
    /// The server acknowledged the client's FIN (`nat`).
    pub const CLIENT_FIN_ACKED: u16 = 1 << 8;
    /// The client acknowledged the server's FIN (`nat`).
    pub const SERVER_FIN_ACKED: u16 = 1 << 9;
    /// An RST with the expected sequence number was seen.
    pub const RST: u16 = 1 << 10;
    /// Ended by a drain, a failed check or an operator: refused from now on.
    pub const CUT: u16 = 1 << 11;
    /// A flow of datagrams.
    pub const DATAGRAM: u16 = 1 << 12;
    /// A packet of the server was seen (`nat`), so that `server_seq` means something.
    pub const REPLY_SEEN: u16 = 1 << 13;
    /// Both directions pass through here, so that the end is seen exactly.
    pub const BOTH_WAYS: u16 = 1 << 14;
    /// Cut for its silence: with [`CUT`].
    pub const SILENT: u16 = 1 << 15;

    /// Both FINs are acknowledged.
    pub const BOTH_FINS_ACKED: u16 = CLIENT_FIN_ACKED | SERVER_FIN_ACKED;
}

/// What may happen to an entry's memory.
#[repr(u16)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Nobody's; may be claimed.
    Free = 0,
    /// One CPU is filling it in; not yet reachable.
    Claimed = 1,
    /// A flow.
    Linked = 2,
    /// Being taken out by whoever set this; matches nothing.
    Dying = 3,
}

/// A snapshot of [`FlowEntry::meta`]: the tick of the last packet, the flags, and a version that counts the entry's
/// owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta(pub u64);

const LIFE_MASK: u16 = 3;

impl Meta {
    /// Builds the word.
    #[inline(always)]
    pub const fn new(version: u16, flags: u16, life: Life, last_seen: u32) -> Self {
        let flags = (flags & !LIFE_MASK) | life as u16;
        Self((version as u64) << 48 | (flags as u64) << 32 | last_seen as u64)
    }

    /// Tick of the last packet.
    #[inline(always)]
    pub const fn last_seen(self) -> u32 {
        self.0 as u32
    }

    /// Flags without the life.
    #[inline(always)]
    pub const fn flags(self) -> u16 {
        (self.0 >> 32) as u16 & !LIFE_MASK
    }

    /// Whether all or some of `flags` are set.
    #[inline(always)]
    pub const fn any(self, flags: u16) -> bool {
        self.flags() & flags != 0
    }

    /// What may happen to the memory.
    #[inline(always)]
    pub const fn life(self) -> Life {
        match (self.0 >> 32) as u16 & LIFE_MASK {
            0 => Life::Free,
            1 => Life::Claimed,
            2 => Life::Linked,
            _ => Life::Dying,
        }
    }

    /// A one in the 16-bit lane of the entry's life, [`Life::Free`]'s being the lowest: words to be added up.
    ///
    /// A comparison would become a branch on the BPF machine, and the verifier would follow every sequence of them.
    #[inline(always)]
    pub const fn life_lane(self) -> u64 {
        1 << (((self.0 >> 32) & LIFE_MASK as u64) * 16)
    }

    /// Count of owners, modulo 2^16.
    #[inline(always)]
    pub const fn version(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// With flags set and cleared, seen at `now`.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, set: u16, clear: u16, now: u32) -> Self {
        Self::new(self.version(), (self.flags() & !clear) | set, self.life(), now)
    }
}

/// One flow. Exactly a cache line; see ARCHITECTURE.md for who writes which field.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct FlowEntry {
    /// As the *home* of flows: 48 bits that tell where flows whose home is here are kept, and a 16-bit version.
    /// It says nothing of the flow in this entry. Atomic.
    pub hop: u64,
    /// See [`Meta`]. Atomic, except that its low half (`last_seen`) may be stored by itself.
    pub meta: u64,
    /// Client address.
    pub client: Addr,
    /// Client port, network order as loaded, in the low half; service slot in the high half.
    pub port_service: u32,
    /// Backend slot.
    pub backend: u32,
    /// Generation of that slot when the flow was opened.
    pub generation: u32,
    /// Tick of the first packet.
    pub started: u32,
    /// The client's next sequence number: the end of the highest segment seen in window.
    pub client_seq: u32,
    /// Highest acknowledgement from the client: the server's oldest unacknowledged sequence number.
    pub client_ack: u32,
    /// The server's next sequence number (`nat`; 0 until [`flow_flag::REPLY_SEEN`]).
    pub server_seq: u32,
    /// Row of the peer table that the client's packets come from; 0 is unknown.
    pub peer: u16,
    /// Client's port as the backend sees it, network order, where `nat` had to rewrite it; else 0.
    pub nat_port: u16,
}

const _: () = assert!(size_of::<FlowEntry>() == 64);

/// What identifies a flow: VIP, port and protocol are those of the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowKey {
    /// Client address.
    pub client: Addr,
    /// As [`FlowEntry::port_service`].
    pub port_service: u32,
}

impl FlowKey {
    /// Key of a client's port (network order as loaded) at a service.
    #[inline(always)]
    pub const fn new(client: Addr, port: u16, service: u16) -> Self {
        Self { client, port_service: port as u32 | (service as u32) << 16 }
    }

    /// Service slot.
    #[inline(always)]
    pub const fn service(&self) -> u16 {
        (self.port_service >> 16) as u16
    }

    /// Client port, network order as loaded.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port_service as u16
    }

    /// Its place in the table.
    #[inline(always)]
    pub const fn hash(&self, keys: &[u64; hash::TABLE_KEYS]) -> u64 {
        hash::table(keys, &self.client, self.port_service)
    }
}

/// The mutable and immutable facts of a new entry, besides its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowInit {
    /// Backend slot.
    pub backend: u32,
    /// Its generation.
    pub generation: u32,
    /// Tick of this packet.
    pub now: u32,
    /// Flags of [`flow_flag`].
    pub flags: u16,
    /// Client's next sequence number (TCP).
    pub client_seq: u32,
    /// Client's acknowledgement (TCP).
    pub client_ack: u32,
    /// Row of the peer table.
    pub peer: u16,
    /// Rewritten client port, or 0.
    pub nat_port: u16,
}

/// Silence after which an opening TCP entry, or one superseded on its tuple, is over: 10 s.
pub const OPENING_TICKS: u32 = time::duration_ticks(10_000_000_000);
/// How long a finished flow is kept for late segments: 15 s.
pub const LINGER_TICKS: u32 = time::duration_ticks(15_000_000_000);
/// How long a cut flow is remembered, so that what is still said on it gets an answer: 60 s.
pub const CUT_TICKS: u32 = time::duration_ticks(60_000_000_000);

/// Where a flow stands; `active_flows` counts the first three.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// A SYN or a first datagram was seen.
    Opening,
    /// Data may flow.
    Established,
    /// One side has said that it will send no more.
    HalfClosed,
    /// Adopted in mid-stream and not proven; not counted.
    Provisional,
    /// Finished, kept for late segments.
    Closing,
    /// Ended by Ebb, kept so that what is still said gets an answer.
    Cut,
    /// May be reclaimed.
    Dead,
}

impl Phase {
    /// Whether this counts as a live flow.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Opening | Self::Established | Self::HalfClosed)
    }
}

/// A service's timers as the phase needs them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// As [`crate::service::Service::idle_ticks`].
    pub idle_ticks: u32,
    /// As [`crate::service::Service::fin_quiet_ticks`].
    pub fin_quiet_ticks: u32,
}

/// Whether a flow's end was seen: an RST, or both FINs acknowledged.
#[inline(always)]
pub const fn is_finished(flags: u16) -> bool {
    flags & flow_flag::RST != 0 || flags & flow_flag::BOTH_FINS_ACKED == flow_flag::BOTH_FINS_ACKED
}

/// The phase of a linked entry from its flags and its age.
///
/// A flow whose two directions are seen ends when both FINs are acknowledged; one seen from the client's side alone
/// ends `fin_quiet` after the last segment that follows the client's FIN. Idling ends every flow.
#[inline(always)]
pub const fn phase(flags: u16, age: u32, timers: Timers) -> Phase {
    if flags & flow_flag::CUT != 0 {
        return if age > CUT_TICKS { Phase::Dead } else { Phase::Cut };
    }
    if is_finished(flags) {
        return if age > LINGER_TICKS { Phase::Dead } else { Phase::Closing };
    }
    // Superseded on its tuple: still alive if the newcomer was a forgery, and then it is heard from soon.
    if flags & flow_flag::CANDIDATE != 0 && age > OPENING_TICKS {
        return Phase::Dead;
    }
    // Kept for as long as a silent connection is, since only its next segment can prove it; anybody's to displace until then.
    if flags & flow_flag::PROVISIONAL != 0 {
        return if age > timers.idle_ticks { Phase::Dead } else { Phase::Provisional };
    }
    let one_way_fin = flags & flow_flag::CLIENT_FIN != 0 && flags & flow_flag::BOTH_WAYS == 0;
    if one_way_fin && age > timers.fin_quiet_ticks {
        return if age > timers.fin_quiet_ticks.saturating_add(LINGER_TICKS) { Phase::Dead } else { Phase::Closing };
    }
    if age > timers.idle_ticks {
        return Phase::Dead;
    }
    if flags & (flow_flag::CLIENT_FIN | flow_flag::SERVER_FIN) != 0 {
        return Phase::HalfClosed;
    }
    if flags & flow_flag::ESTABLISHED != 0 {
        return Phase::Established;
    }
    if flags & flow_flag::DATAGRAM == 0 && age > OPENING_TICKS {
        return Phase::Dead;
    }
    Phase::Opening
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMERS: Timers = Timers { idle_ticks: 1000, fin_quiet_ticks: 10 };

    #[test]
    fn a_one_way_flow_ends_by_silence_and_lives_again_by_a_segment() {
        let flags = flow_flag::ESTABLISHED | flow_flag::CLIENT_FIN;
        assert_eq!(phase(flags, 10, TIMERS), Phase::HalfClosed);
        assert_eq!(phase(flags, 11, TIMERS), Phase::Closing);
        assert_eq!(phase(flags, 0, TIMERS), Phase::HalfClosed, "a later segment makes it live");
        assert_eq!(phase(flags, 12 + LINGER_TICKS, TIMERS), Phase::Dead);
    }

    #[test]
    fn a_two_way_flow_ends_when_both_fins_are_acknowledged() {
        let half = flow_flag::ESTABLISHED | flow_flag::BOTH_WAYS | flow_flag::CLIENT_FIN | flow_flag::CLIENT_FIN_ACKED;
        assert_eq!(phase(half, 900, TIMERS), Phase::HalfClosed);
        assert_eq!(phase(half, 1001, TIMERS), Phase::Dead, "but it may idle out");
        let done = half | flow_flag::SERVER_FIN | flow_flag::SERVER_FIN_ACKED;
        assert_eq!(phase(done, 0, TIMERS), Phase::Closing);
    }

    #[test]
    fn unverified_entries_expire_and_are_told_apart() {
        assert_eq!(phase(0, OPENING_TICKS.min(1000), TIMERS), Phase::Opening);
        let long = Timers { idle_ticks: u32::MAX, fin_quiet_ticks: 10 };
        assert_eq!(phase(0, OPENING_TICKS + 1, long), Phase::Dead);
        assert_eq!(phase(flow_flag::PROVISIONAL, 1, long), Phase::Provisional);
        assert_eq!(phase(flow_flag::PROVISIONAL, OPENING_TICKS + 1, TIMERS), Phase::Dead, "it idles out");
        assert_eq!(phase(flow_flag::PROVISIONAL, OPENING_TICKS + 1, long), Phase::Provisional, "but not sooner");
        assert!(!Phase::Provisional.is_live());
        assert_eq!(phase(flow_flag::DATAGRAM, OPENING_TICKS + 1, long), Phase::Opening);
    }

    #[test]
    fn meta_round_trips() {
        let meta = Meta::new(0xfffe, flow_flag::TWIN | flow_flag::BOTH_WAYS, Life::Linked, 77);
        assert_eq!(meta.version(), 0xfffe);
        assert_eq!(meta.flags(), flow_flag::TWIN | flow_flag::BOTH_WAYS);
        assert_eq!(meta.life(), Life::Linked);
        assert_eq!(meta.last_seen(), 77);
        assert_eq!(meta.with(flow_flag::RST, flow_flag::TWIN, 80).flags(), flow_flag::RST | flow_flag::BOTH_WAYS);
    }
}
