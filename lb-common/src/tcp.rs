//! What one TCP segment says about a flow.
//!
//! Sequence arithmetic is modulo 2^32 (RFC 9293, section 3.4).

use crate::flow::flow_flag as ff;

/// Bits of the flags byte of a TCP header.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 1 << 1;
    /// Ends a connection at once.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 1 << 4;
}

/// How far a segment may reach past what was seen and still count as in sequence: 2^24 bytes, a very large window.
pub const WINDOW: u32 = 1 << 24;

/// The most data that a SYN may carry: less than the largest frames hold.
const SYN_DATA: u32 = 1 << 14;

/// What is read off a segment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; meaningless without the ACK flag.
    pub ack: u32,
    /// Bytes of data.
    pub len: u32,
    /// Bits of [`flag`].
    pub flags: u8,
}

impl Segment {
    /// In place of one, where there is none: no flag is set.
    pub const NONE: Self = Self { seq: 0, ack: 0, len: 0, flags: 0 };

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Whether it can open a connection: SYN without ACK, RST and FIN.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (flag::SYN | flag::ACK | flag::RST | flag::FIN) == flag::SYN
    }

    /// Sequence number after it: SYN and FIN count one each.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        let controls = (self.flags & flag::FIN) + ((self.flags & flag::SYN) >> 1);
        self.seq.wrapping_add(self.len).wrapping_add(controls as u32)
    }

    /// Sequence number that its sender is sure to go on at: after a SYN with data (RFC 7413) the data may not have been taken.
    #[inline(always)]
    pub const fn resumes_at(&self) -> u32 {
        if self.has(flag::SYN) { self.seq.wrapping_add(1) } else { self.end() }
    }
}

/// `a` is later than `b` by at most `window`.
#[inline(always)]
pub const fn ahead(a: u32, b: u32, window: u32) -> bool {
    let d = a.wrapping_sub(b);
    d != 0 && d <= window
}

/// `a` is within `window` of `b`, on either side.
#[inline(always)]
pub const fn near(a: u32, b: u32, window: u32) -> bool {
    a.wrapping_sub(b).wrapping_add(window) <= window.wrapping_mul(2)
}

/// How far two sequence numbers are apart, on the shorter way round.
#[inline(always)]
pub const fn distance(a: u32, b: u32) -> u32 {
    let d = a.wrapping_sub(b);
    if d > 1 << 31 { d.wrapping_neg() } else { d }
}

/// The tracked facts of a flow, and after [`from_client`] or [`from_server`] the new ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Track {
    /// Bits of [`crate::flow::flow_flag`].
    pub flags: u16,
    /// As in [`crate::flow::FlowEntry`].
    pub client_seq: u32,
    /// As in [`crate::flow::FlowEntry`].
    pub client_ack: u32,
    /// As in [`crate::flow::FlowEntry`].
    pub server_seq: u32,
}

/// Takes in a segment from the client. A segment out of window changes nothing.
#[inline(always)]
pub const fn from_client(mut t: Track, s: Segment) -> Track {
    if !near(s.seq, t.client_seq, WINDOW) {
        if t.flags & ff::PROVISIONAL != 0 && s.has(flag::ACK) && !s.has(flag::RST | flag::SYN) {
            // What it was adopted by was perhaps a stray: the latest is as good a beginning.
            (t.client_seq, t.client_ack) = (s.end(), s.ack);
        }
        return t;
    }
    if s.has(flag::RST) {
        // RFC 5961, section 3.2: only an RST at exactly the next sequence number ends a connection.
        if s.seq == t.client_seq {
            t.flags |= ff::RST;
        }
        return t;
    }
    if t.flags & ff::ESTABLISHED == 0 && s.has(flag::ACK) && !s.has(flag::SYN) {
        t = verify(t, s);
    }
    let end = s.end();
    if s.has(flag::FIN) && near(end, t.client_seq, WINDOW) {
        t.flags |= ff::CLIENT_FIN;
    }
    if ahead(end, t.client_seq, WINDOW) {
        t.client_seq = end;
    }
    if s.has(flag::ACK) {
        let known = t.flags & ff::REPLY_SEEN != 0;
        if t.client_ack == 0 || ahead(s.ack, t.client_ack, WINDOW) {
            // With the server's side in view, an acknowledgement of what was never sent is a forgery.
            if !known || !ahead(s.ack, t.server_seq, WINDOW) {
                t.client_ack = s.ack;
            }
        }
        if t.flags & ff::SERVER_FIN != 0 && s.ack == t.server_seq {
            t.flags |= ff::SERVER_FIN_ACKED;
        }
    }
    t
}

/// Decides whether an acknowledging segment completes a handshake, or proves an adopted flow.
#[inline(always)]
const fn verify(mut t: Track, s: Segment) -> Track {
    if t.flags & ff::PROVISIONAL != 0 {
        // Adopted in mid-stream: a second segment that goes on where the first one ended, in both directions' numbers.
        let goes_on = s.seq == t.client_seq || ahead(s.end(), t.client_seq, WINDOW) || s.end() == t.client_seq;
        let acks = s.ack == t.client_ack || ahead(s.ack, t.client_ack, WINDOW);
        if goes_on && acks {
            t.flags = (t.flags & !ff::PROVISIONAL) | ff::ESTABLISHED;
        }
        return t;
    }
    // Opening: the client's first sequence number after its SYN, or data that follows it (the bare ACK may be lost).
    let after_syn = s.seq == t.client_seq || ahead(s.seq, t.client_seq, WINDOW);
    let acks_server = if t.flags & ff::BOTH_WAYS != 0 {
        t.flags & ff::REPLY_SEEN != 0 && !ahead(s.ack, t.server_seq, WINDOW) && near(s.ack, t.server_seq, WINDOW)
    } else {
        true
    };
    if after_syn && acks_server {
        t.flags |= ff::ESTABLISHED;
    }
    t
}

/// Takes in a segment from the server (`nat`).
#[inline(always)]
pub const fn from_server(mut t: Track, s: Segment) -> Track {
    // Before the handshake is over its SYN begins the numbers anew: what came before was of a connection that the server still
    // had on the tuple (RFC 9293, section 3.5.1), or its answer to a SYN that it has forgotten since.
    let begins = s.has(flag::SYN) && t.flags & (ff::ESTABLISHED | ff::PROVISIONAL) == 0;
    if t.flags & ff::REPLY_SEEN == 0 || begins {
        if s.has(flag::RST) {
            // The refusal of a SYN acknowledges it, and its data (RFC 9293, section 3.10.7.1).
            if s.has(flag::ACK) && s.ack.wrapping_sub(t.client_seq) <= SYN_DATA {
                t.flags |= ff::RST;
            }
            return t;
        }
        t.flags |= ff::REPLY_SEEN;
        t.server_seq = s.end();
        if s.has(flag::FIN) {
            t.flags |= ff::SERVER_FIN;
        }
    } else {
        if !near(s.seq, t.server_seq, WINDOW) {
            return t;
        }
        if s.has(flag::RST) {
            if s.seq == t.server_seq || s.seq == t.client_ack {
                t.flags |= ff::RST;
            }
            return t;
        }
        let end = s.end();
        if s.has(flag::FIN) && near(end, t.server_seq, WINDOW) {
            t.flags |= ff::SERVER_FIN;
        }
        if ahead(end, t.server_seq, WINDOW) {
            t.server_seq = end;
        }
    }
    if s.has(flag::ACK) && t.flags & ff::CLIENT_FIN != 0 && s.ack == t.client_seq {
        t.flags |= ff::CLIENT_FIN_ACKED;
    }
    t
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{flag::*, *};

    fn seg(seq: u32, ack: u32, len: u32, flags: u8) -> Segment {
        Segment { seq, ack, len, flags }
    }

    fn opening(isn: u32, both: bool) -> Track {
        Track {
            flags: if both { ff::BOTH_WAYS } else { 0 },
            client_seq: isn.wrapping_add(1),
            client_ack: 0,
            server_seq: 0,
        }
    }

    #[test]
    fn a_handshake_establishes_and_both_fins_finish() {
        let mut t = opening(u32::MAX, true);
        t = from_server(t, seg(900, 0, 0, SYN | ACK));
        assert_eq!(t.server_seq, 901);
        t = from_client(t, seg(0, 901, 0, ACK));
        assert_ne!(t.flags & ff::ESTABLISHED, 0);
        t = from_client(t, seg(0, 901, 10, ACK | FIN));
        assert_eq!((t.client_seq, t.flags & ff::CLIENT_FIN != 0), (11, true));
        t = from_server(t, seg(901, 10, 5, ACK));
        assert_eq!(t.flags & ff::CLIENT_FIN_ACKED, 0, "10 does not cover the FIN");
        t = from_server(t, seg(906, 11, 0, ACK | FIN));
        assert_ne!(t.flags & ff::CLIENT_FIN_ACKED, 0);
        t = from_client(t, seg(11, 907, 0, ACK));
        assert_eq!(t.flags & ff::BOTH_FINS_ACKED, ff::BOTH_FINS_ACKED);
    }

    #[test]
    fn data_in_a_syn_may_be_taken_or_not() {
        let syn = seg(100, 0, 50, SYN);
        assert_eq!((syn.resumes_at(), syn.end()), (101, 151));
        assert_eq!(seg(100, 0, 50, ACK).resumes_at(), 150);
        let t = Track { client_seq: syn.resumes_at(), ..opening(100, true) };
        for (acked, next) in [(151, 151), (101, 101)] {
            let t = from_server(t, seg(900, acked, 0, SYN | ACK));
            let t = from_client(t, seg(next, 901, 0, ACK));
            assert_ne!(t.flags & ff::ESTABLISHED, 0, "acknowledged up to {acked}");
            let t = from_client(t, seg(next, 901, 10, ACK));
            assert_eq!(t.client_seq, next + 10);
        }
        assert_ne!(from_server(t, seg(0, 151, 0, RST | ACK)).flags & ff::RST, 0, "refused with its data");
        assert_eq!(from_server(t, seg(0, 100, 0, RST | ACK)).flags & ff::RST, 0);
    }

    #[test]
    fn an_ack_of_what_the_server_never_sent_does_not_establish() {
        let mut t = opening(100, true);
        t = from_client(t, seg(101, 5, 0, ACK));
        assert_eq!(t.flags & ff::ESTABLISHED, 0, "no reply seen");
        t = from_server(t, seg(900, 101, 0, SYN | ACK));
        t = from_client(t, seg(101, 902, 0, ACK));
        assert_eq!(t.flags & ff::ESTABLISHED, 0);
        t = from_client(t, seg(101, 901, 0, ACK));
        assert_ne!(t.flags & ff::ESTABLISHED, 0);
    }

    #[test]
    fn only_the_expected_sequence_number_resets() {
        let mut t = opening(100, false);
        t = from_client(t, seg(101, 7, 0, ACK));
        assert_eq!(from_client(t, seg(102, 0, 0, RST)).flags & ff::RST, 0);
        assert_eq!(from_client(t, seg(100, 0, 0, RST)).flags & ff::RST, 0);
        assert_ne!(from_client(t, seg(101, 0, 0, RST)).flags & ff::RST, 0);
    }

    #[test]
    fn a_refused_syn_is_over() {
        let t = opening(100, true);
        assert_eq!(from_server(t, seg(0, 77, 0, RST | ACK)).flags & ff::RST, 0);
        assert_ne!(from_server(t, seg(0, 101, 0, RST | ACK)).flags & ff::RST, 0);
    }

    #[test]
    fn the_servers_syn_counts_whatever_it_said_before() {
        let t = opening(100, true);
        // It still has an old connection on the tuple, and says where that one is.
        let t = from_server(t, seg(0x7000_0000, 5, 0, ACK));
        let t = from_client(t, seg(5, 0, 0, RST));
        assert_eq!(t.flags & (ff::RST | ff::ESTABLISHED), 0);
        let t = from_server(t, seg(900, 101, 0, SYN | ACK));
        let t = from_client(t, seg(101, 901, 0, ACK));
        assert_ne!(t.flags & ff::ESTABLISHED, 0);
        let forged = from_server(t, seg(0x5000_0000, 101, 0, SYN | ACK));
        assert_eq!(forged.server_seq, 901, "later it counts no more");
    }

    #[test]
    fn an_adopted_flow_that_began_with_a_stray_begins_anew() {
        let t = Track { flags: ff::PROVISIONAL, client_seq: 5000, client_ack: 70, server_seq: 0 };
        let far = 0x7000_0000;
        assert_eq!(from_client(t, seg(far, 9, 0, RST | ACK)), t);
        let t = from_client(t, seg(far, 900, 0, ACK));
        assert_eq!(t, Track { flags: ff::PROVISIONAL, client_seq: far, client_ack: 900, server_seq: 0 });
        assert_ne!(from_client(t, seg(far, 900, 0, ACK)).flags & ff::ESTABLISHED, 0);
    }

    #[test]
    fn an_adopted_flow_is_proven_by_going_on() {
        let t = Track { flags: ff::PROVISIONAL, client_seq: 5000, client_ack: 70, server_seq: 0 };
        assert_eq!(from_client(t, seg(1 << 30, 70, 0, ACK)).flags & ff::ESTABLISHED, 0);
        assert_eq!(from_client(t, seg(5000, 60, 10, ACK)).flags & ff::ESTABLISHED, 0, "acknowledgement went back");
        let t = from_client(t, seg(5000, 80, 10, ACK));
        assert_eq!(t.flags & (ff::ESTABLISHED | ff::PROVISIONAL), ff::ESTABLISHED);
        assert_eq!(t.client_seq, 5010);
    }

    proptest! {
        /// Whatever comes in, nothing that is known is forgotten and no number jumps further than a window.
        #[test]
        fn hostile_segments_move_nothing_far(start: u32, list in proptest::collection::vec((any::<u32>(), any::<u32>(), 0u32..65_536, any::<u8>()), 0..30)) {
            let mut t = opening(start, false);
            for (seq, ack, len, flags) in list {
                let before = t;
                t = from_client(t, seg(seq, ack, len, flags));
                prop_assert!(t.client_seq == before.client_seq || ahead(t.client_seq, before.client_seq, WINDOW));
                prop_assert_eq!(t.flags & before.flags & !ff::PROVISIONAL, before.flags & !ff::PROVISIONAL);
                t = from_server(t, seg(ack, seq, len, flags));
            }
        }
    }
}
