//! Maglev's table (Eisenbud et al., NSDI 2016, §3.4), with weights.
//!
//! Each member has a permutation of the slots; members take turns, each taking the next free slot of its permutation, the
//! heavier ones more often, until each has its quota. The table depends on nothing but the members' keys and weights and the
//! size: nodes with the same configuration build the same one, whatever their history.

use lb_common::ring::ring_size;

/// A slot that nobody owns.
pub const NOBODY: u32 = u32::MAX;

/// The size for so many members.
pub fn size_for(members: usize) -> u32 {
    ring_size(u32::try_from(members).unwrap_or(u32::MAX))
}

/// A member's walk over the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permutation {
    offset: u32,
    skip: u32,
    /// The inverse of `skip` modulo the size, which turns a slot into its place in the walk.
    inverse: u32,
}

impl Permutation {
    /// The walk of the member with this key over this many slots (a prime).
    pub(super) fn new(key: u64, size: u32) -> Self {
        let size = u64::from(size);
        let skip = mix(key ^ 0x9e37_79b9_7f4a_7c15) % (size - 1) + 1;
        Self { offset: (mix(key) % size) as u32, skip: skip as u32, inverse: power(skip, size - 2, size) as u32 }
    }

    /// Where the walk begins.
    pub(super) fn first(&self) -> u32 {
        self.offset
    }

    /// Where it goes from `slot`.
    pub(super) fn after(&self, slot: u32, size: u32) -> u32 {
        let next = slot + self.skip;
        if next >= size { next - size } else { next }
    }

    /// After how many steps the walk comes to `slot`.
    pub(super) fn place_of(&self, slot: u32, size: u32) -> u32 {
        let distance = if slot >= self.offset { slot - self.offset } else { slot + (size - self.offset) };
        (u64::from(distance) * u64::from(self.inverse) % u64::from(size)) as u32
    }
}

/// How many slots each weight gets: its share rounded down or up, the largest remainders up.
pub(super) fn quotas(weights: &[u32], size: u32) -> Vec<u32> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    if total == 0 {
        return vec![0; weights.len()];
    }
    let share = |weight: u32| u64::from(weight) * u64::from(size);
    let mut quotas: Vec<u32> = weights.iter().map(|weight| (share(*weight) / total) as u32).collect();
    let left = size - quotas.iter().sum::<u32>();
    let mut by_remainder: Vec<usize> = (0..weights.len()).filter(|index| weights[*index] > 0).collect();
    by_remainder.sort_by_key(|index| (std::cmp::Reverse(share(weights[*index]) % total), *index));
    for index in by_remainder.into_iter().take(left as usize) {
        quotas[index] += 1;
    }
    quotas
}

/// Fills a table of `size` slots with indices into `members`, which are (key, weight) in an order that depends on the keys only.
pub fn fill(members: &[(u64, u32)], size: u32) -> Vec<u32> {
    let weights: Vec<u32> = members.iter().map(|(_, weight)| *weight).collect();
    let quotas = quotas(&weights, size);
    let mut owners = vec![NOBODY; size as usize];
    let mut taken = vec![0_u64; (size as usize).div_ceil(64)];
    let mut walks: Vec<(u32, u32)> = members
        .iter()
        .map(|(key, _)| {
            let walk = Permutation::new(*key, size);
            (walk.offset, walk.skip)
        })
        .collect();
    let mut turns = Turns::new(&quotas);
    while let Some(index) = turns.next() {
        let (at, skip) = &mut walks[index as usize];
        let mut slot = *at;
        while taken[(slot >> 6) as usize] >> (slot & 63) & 1 != 0 {
            slot += *skip;
            slot = if slot >= size { slot - size } else { slot };
        }
        taken[(slot >> 6) as usize] |= 1 << (slot & 63);
        owners[slot as usize] = index;
        *at = slot;
    }
    owners
}

/// Whose turn it is: a calendar in which a member with quota q of the largest quota m comes up every m / q rounds.
struct Turns {
    /// First and last member due in each round.
    rounds: Vec<(u32, u32)>,
    /// Who comes after a member in its round.
    next: Vec<u32>,
    /// (quota, taken so far) by member.
    quotas: Vec<(u32, u32)>,
    round: usize,
}

impl Turns {
    fn new(quotas: &[u32]) -> Self {
        let longest = quotas.iter().copied().max().unwrap_or(0);
        let mut turns = Self {
            rounds: vec![(NOBODY, NOBODY); longest as usize],
            next: vec![NOBODY; quotas.len()],
            quotas: quotas.iter().map(|quota| (*quota, 0)).collect(),
            round: 0,
        };
        for index in 0..quotas.len() as u32 {
            turns.schedule(index);
        }
        turns
    }

    /// Puts a member into the round of its next turn, behind those already there; a member that has its quota is out.
    fn schedule(&mut self, index: u32) {
        let (quota, taken) = self.quotas[index as usize];
        if taken == quota {
            return;
        }
        let round = (u64::from(taken) * self.rounds.len() as u64 / u64::from(quota)) as usize;
        let (first, last) = &mut self.rounds[round];
        if *first == NOBODY {
            *first = index;
        } else {
            self.next[*last as usize] = index;
        }
        *last = index;
        self.next[index as usize] = NOBODY;
    }

    fn next(&mut self) -> Option<u32> {
        loop {
            let (first, _) = self.rounds.get_mut(self.round)?;
            let index = *first;
            if index == NOBODY {
                self.round += 1;
                continue;
            }
            *first = self.next[index as usize];
            self.quotas[index as usize].1 += 1;
            self.schedule(index);
            return Some(index);
        }
    }
}

/// SplitMix64's finaliser: every bit of the input moves about half of the output's.
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// `base` to the power of `exponent`, modulo `modulus` (below 2^32).
fn power(mut base: u64, mut exponent: u64, modulus: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * base % modulus;
        }
        base = base * base % modulus;
        exponent >>= 1;
    }
    result
}
