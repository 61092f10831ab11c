//! QUIC connection ids that tell which backend gave them, as QUIC-LB describes them (draft-ietf-quic-load-balancers-21), by
//! its plaintext algorithm: a first octet whose upper three bits tell the configuration, then the server's id, then a nonce.
//!
//! The ciphers of the draft are not for the packet path: four rounds of AES for each packet of an unknown flow, by a program
//! that may use neither the processor's instructions for it nor, before Linux 6.10, the kernel's.

use crate::addr::Addr;

/// The longest server id, bytes: an id has 20 bytes at most, of which one is the first octet and four the shortest nonce.
pub const MAX_SERVER_ID: u8 = 15;
/// The configuration that stands for "not routable".
pub const UNROUTABLE: u8 = 7;

/// Where the destination connection id begins in a packet with a short header (RFC 8999, section 5.2).
pub const SHORT_ID_AT: usize = 1;
/// The same with a long header (RFC 8999, section 5.1).
pub const LONG_ID_AT: usize = 6;
/// So many bytes are there from the beginning of a connection id on, in any packet that a server takes: an id that names a
/// server is followed by the rest of a nonce, a packet number and a protected payload of 20 bytes (RFC 9001, section 5.4.2).
pub const ID_WINDOW: usize = 17;

/// Whether a QUIC packet's header is a long one, by its first byte. Nothing else of a short header's first byte is looked at:
/// the "fixed bit" may be greased (RFC 9287).
#[inline(always)]
pub const fn is_long(first: u8) -> bool {
    first & 0x80 != 0
}

/// Whether a packet with a long header names an id that its server has chosen. Of a handshake's packets that is known for
/// one type: before it, in Initial and 0-RTT packets, the client may have made the id up, and whoever may make up an id
/// must not choose a backend by it.
#[inline(always)]
pub const fn is_handshake(first: u8, version: u32) -> bool {
    let kind = first >> 4 & 3;
    // RFC 9000, section 17.2; RFC 9369, section 3.2.
    (version == 1 && kind == 2) || (version == 0x6b33_43cf && kind == 3)
}

/// The configuration that an id's first octet tells.
#[inline(always)]
pub const fn rotation(first_octet: u8) -> u8 {
    first_octet >> 5
}

/// What the VIP table finds a server id by: its bytes as loaded, and zeros behind the first `len`.
#[inline(always)]
pub const fn key(bytes: [u64; 2], len: u8) -> Addr {
    let (low, high) = if len < 8 { (len, 0) } else { (8, len - 8) };
    Addr { halves: [leading(bytes[0], low), leading(bytes[1], high)] }
}

/// The leading bytes of eight.
#[inline(always)]
const fn leading(word: u64, bytes: u8) -> u64 {
    let mask = if bytes == 8 { u64::MAX } else { (1 << ((bytes as u32 * 8) & 63)) - 1 };
    word & mask.to_le()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_id_and_zeros() {
        let bytes: [u8; 16] = core::array::from_fn(|i| i as u8 + 1);
        let words = [0, 8].map(|at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()));
        for len in 1..=MAX_SERVER_ID {
            let mut wanted = [0; 16];
            wanted[..len as usize].copy_from_slice(&bytes[..len as usize]);
            assert_eq!(key(words, len).halves.map(u64::to_ne_bytes).concat(), wanted, "{len}");
        }
    }

    #[test]
    fn only_handshake_packets_name_a_server_s_id_for_certain() {
        // Types of version 1, then of version 2: Initial, 0-RTT, Handshake, Retry, in the order of their numbers.
        let kinds = |version| [0xc0, 0xd0, 0xe0, 0xf0].map(|first| is_handshake(first, version));
        assert_eq!(kinds(1), [false, false, true, false]);
        assert_eq!(kinds(0x6b33_43cf), [false, false, false, true]);
        assert_eq!(kinds(0), [false; 4], "version negotiation");
        assert_eq!(kinds(0xff00_001d), [false; 4], "of another version nothing is known");
        assert!(is_long(0x80) && !is_long(0x7f));
        assert_eq!(rotation(0b110_10101), 6);
    }
}
