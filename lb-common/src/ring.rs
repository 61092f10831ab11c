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

/// Which of a service's two ring maps is in force, and how many slots it has.
///
/// Packed into the one word [`crate::service::Service::ring`], so that a packet never meets the size of one ring with
/// the slots of another: a ring of another size is built in the map that is not in force, and the store of this word
/// swaps them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// 0 or 1.
    pub half: u32,
    /// Slots; never 0.
    pub size: u32,
}

impl Published {
    const HALF: u32 = 1 << 31;

    /// The word in the service's row.
    #[inline(always)]
    pub const fn pack(self) -> u32 {
        self.half << 31 | self.size
    }

    /// The ring in the service's row, if it has one.
    #[inline(always)]
    pub const fn unpack(word: u32) -> Option<Self> {
        if word == 0 { None } else { Some(Self { half: word >> 31, size: word & !Self::HALF }) }
    }

    /// Index of the ring's map in the array of maps.
    #[inline(always)]
    pub const fn map_index(self, service: u16) -> u32 {
        service as u32 * 2 + self.half
    }
}

/// Ring sizes: primes near the powers of four from 2^12. A prime makes every step from 1 to size − 1 visit every slot. A ring has the
/// smallest with [`SLOTS_PER_BACKEND`] slots a backend.
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

    #[test]
    fn a_published_ring_round_trips() {
        let ring = Published { half: 1, size: RING_SIZES[5] };
        assert_eq!(Published::unpack(ring.pack()), Some(ring));
        assert_eq!(ring.map_index(7), 15);
        assert_eq!(Published::unpack(0), None);
    }
}
