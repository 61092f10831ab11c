//! Internet checksums (RFC 1071) and their incremental update (RFC 1624, equation 3).
//!
//! Words are taken as they stand in memory: the sum is the same in either byte order (RFC 1071, section 2B).

/// Folds a sum of 16-bit words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Adds a 32-bit word to a sum.
#[inline(always)]
pub const fn add32(sum: u64, word: u32) -> u64 {
    sum + word as u64
}

/// The part of a sum that replacing `old` by `new` adds: ~old + new, as 32-bit words.
#[inline(always)]
pub const fn replace32(sum: u64, old: u32, new: u32) -> u64 {
    sum + (!old) as u64 + new as u64
}

/// As [`replace32`] for a 16-bit word.
#[inline(always)]
pub const fn replace16(sum: u64, old: u16, new: u16) -> u64 {
    sum + (!old) as u64 + new as u64
}

/// A checksum field after the changes gathered in `delta`.
#[inline(always)]
pub const fn update(check: u16, delta: u64) -> u16 {
    !fold(delta + (!check) as u64)
}

/// As [`update`] for UDP, where a field of 0 means that there is none, and a computed 0 is sent as all ones.
#[inline(always)]
pub const fn update_udp(check: u16, delta: u64) -> u16 {
    if check == 0 {
        return 0;
    }
    let new = update(check, delta);
    if new == 0 { 0xffff } else { new }
}

/// Sum of a buffer, for headers that are built whole; an odd last byte is padded with 0.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    for pair in bytes.chunks(2) {
        let second = if pair.len() == 2 { pair[1] } else { 0 };
        total += u16::from_ne_bytes([pair[0], second]) as u64;
    }
    total
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &[u8]) -> u16 {
        !fold(sum(bytes))
    }

    proptest! {
        #[test]
        fn an_update_equals_a_recomputation(mut bytes in proptest::collection::vec(any::<u8>(), 20..64), at in 0usize..4, new: u32) {
            if bytes.len() % 2 == 1 { bytes.pop(); }
            let before = whole(&bytes);
            let at = at * 4;
            let old = u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            bytes[at..at + 4].copy_from_slice(&new.to_ne_bytes());
            let after = whole(&bytes);
            let updated = update(before, replace32(0, old, new));
            // 0x0000 and 0xffff are the same number in ones' complement.
            prop_assert!(updated == after || (updated ^ after) == 0xffff && (updated == 0 || after == 0));
            // What counts: a receiver that sums everything accepts it.
            let mut with: Vec<u8> = bytes.clone();
            with.extend_from_slice(&updated.to_ne_bytes());
            prop_assert_eq!(fold(sum(&with)), 0xffff);
        }
    }

    #[test]
    fn udp_keeps_no_checksum_and_never_makes_one_vanish() {
        assert_eq!(update_udp(0, 12345), 0);
        assert_eq!(update_udp(0xffff, 0), 0xffff);
    }
}
