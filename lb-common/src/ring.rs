//! A service's steering ring: which backend a new flow goes to.

/// One slot of a ring, one aligned 64-bit word in its map, so that a packet never sees half of a change.
///
/// Both members are backend slots plus one; 0 means none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingSlot {
    /// Backend that new flows go to.
    pub owner: u32,
    /// Backend that owned the slot before the earliest drain still running, asked first for segments of flows that
    /// the flow table does not know.
    pub previous: u32,
}

impl RingSlot {
    /// The word as it stands in the map.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.previous as u64) << 32 | self.owner as u64
    }

    /// The slot in a map's word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { owner: word as u32, previous: (word >> 32) as u32 }
    }

    /// `owner` as a backend slot.
    #[inline(always)]
    pub const fn owner_slot(self) -> Option<u32> {
        self.owner.checked_sub(1)
    }

    /// `previous` as a backend slot.
    #[inline(always)]
    pub const fn previous_slot(self) -> Option<u32> {
        self.previous.checked_sub(1)
    }
}

/// Ring sizes: primes near the powers of four from 2^12, the smallest with [`SLOTS_PER_BACKEND`] slots a backend.
pub const RING_SIZES: [u32; 6] = [4_099, 16_411, 65_537, 262_147, 1_048_583, 4_194_319];

/// Slots that a ring has at least for each backend, so that one slot more or less is within 1 % of a share.
pub const SLOTS_PER_BACKEND: u32 = 100;

/// The ring size for that many backends (the largest one where none is large enough).
pub const fn ring_size(backends: u32) -> u32 {
    let mut i = 0;
    while i < RING_SIZES.len() - 1 {
        if RING_SIZES[i] as u64 >= backends as u64 * SLOTS_PER_BACKEND as u64 {
            return RING_SIZES[i];
        }
        i += 1;
    }
    RING_SIZES[RING_SIZES.len() - 1]
}

/// Which slot of a ring of `size` slots a steering hash falls in.
#[inline(always)]
pub const fn slot_of(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_sizes_grow() {
        let slot = RingSlot { owner: 7, previous: u32::MAX };
        assert_eq!(RingSlot::unpack(slot.pack()), slot);
        assert_eq!(slot.owner_slot(), Some(6));
        assert_eq!(RingSlot::default().owner_slot(), None);
        assert_eq!(ring_size(0), 4_099);
        assert_eq!(ring_size(100), 16_411);
        assert_eq!(ring_size(655), 65_537);
        assert_eq!(ring_size(10_000), 1_048_583);
        assert_eq!(ring_size(u32::MAX), 4_194_319);
        assert_eq!(slot_of(u32::MAX, 4_099), 4_098);
    }
}
