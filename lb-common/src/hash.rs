//! The three hashes, each for its own purpose.
//!
//! - [`steering`] chooses a ring slot. It is the same on every node and after every restart.
//! - [`table`] chooses a place in the flow table. It is keyed by a secret drawn when the table is made: multilinear hashing, whose
//!   high half is strongly universal for random 64-bit keys (Lemire & Kaser, "Strongly universal string hashing is
//!   fast", 2014), so that nobody who does not know the keys can aim many flows at one bucket.
//! - [`vip`] chooses a place in the small table of VIPs, whose seed the daemon picks so that probes stay short.

use crate::addr::Addr;

/// Number of 64-bit secrets that the flow table's hash takes.
pub const TABLE_KEYS: usize = 8;

/// A bijective mix of 64 bits (the finalizer of MurmurHash3).
#[inline(always)]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Hash of a flow for the ring: 32 bits, equal on all nodes.
///
/// `ports` is the client's port in its low half and the service's port in its high half, each in network order as
/// loaded; with source affinity it is 0 and `client` is cut to the prefix.
#[inline(always)]
pub const fn steering(client: &Addr, vip: &Addr, ports: u32, protocol: u8) -> u32 {
    let a = client.halves[0] ^ vip.halves[0].rotate_left(17);
    let b = client.halves[1] ^ vip.halves[1].rotate_left(29);
    let h = mix(a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b)
        ^ (ports as u64 | (protocol as u64) << 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mix(h) >> 32) as u32
}

/// Keyed hash of a flow's key for the flow table; the high 32 bits choose the place.
///
/// `port_service` is the key's port and service slot in one word.
#[inline(always)]
pub const fn table(keys: &[u64; TABLE_KEYS], client: &Addr, port_service: u32) -> u64 {
    let w = client.words();
    let mut h =
        keys[0].wrapping_add(keys[1].wrapping_mul(port_service as u64)).wrapping_add(keys[2].wrapping_mul(w[3] as u64));
    if !client.is_v4() {
        h = h
            .wrapping_add(keys[3].wrapping_mul(w[0] as u64))
            .wrapping_add(keys[4].wrapping_mul(w[1] as u64))
            .wrapping_add(keys[5].wrapping_mul(w[2] as u64));
    }
    // Sequential ports give an arithmetic progression, which clusters for unlucky secrets: one bijective round of
    // mixing undoes that and adds no collision.
    h = (h ^ (h >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ (h >> 32)
}

/// Hash of a VIP (or of a NAT backend's endpoint) for the VIP table.
#[inline(always)]
pub const fn vip(seed: u64, addr: &Addr, port: u16, protocol: u8) -> u32 {
    let x = addr.halves[1]
        ^ addr.halves[0].wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ ((port as u64) << 8 | protocol as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let y = (x ^ seed).wrapping_mul(0xff51_afd7_ed55_8ccd);
    ((y ^ (y >> 29)).wrapping_mul(0xc4ce_b9fe_1a85_ec53) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr};
    use std::{vec, vec::Vec};

    use super::*;

    fn client(n: u32) -> Addr {
        Addr::from(IpAddr::V4(Ipv4Addr::from(n)))
    }

    /// Chi-square statistic of hashes over `cells` equal cells.
    fn chi_square(hashes: impl Iterator<Item = u32>, cells: usize) -> f64 {
        let mut counts = vec![0u32; cells];
        let mut total = 0u32;
        for h in hashes {
            counts[((h as u64 * cells as u64) >> 32) as usize] += 1;
            total += 1;
        }
        let expected = f64::from(total) / f64::from(cells as u32);
        counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn steering_spreads_sequential_clients_and_ports() {
        let vip = client(0x0a00_0064);
        let by_port = chi_square((0..60_000u32).map(|p| steering(&client(7), &vip, p, 6)), 256);
        let by_client = chi_square((0..60_000u32).map(|c| steering(&client(c), &vip, 99, 6)), 256);
        // 255 degrees of freedom: mean 255, deviation 22.6; 400 is more than six deviations.
        assert!(by_port < 400.0 && by_client < 400.0, "{by_port} {by_client}");
    }

    #[test]
    fn table_spreads_for_any_secret() {
        let mut seed = 1u64;
        for _ in 0..16 {
            let keys: [u64; TABLE_KEYS] = core::array::from_fn(|_| {
                seed = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
                seed
            });
            let hashes: Vec<u32> =
                (0..65_536u32).map(|i| (table(&keys, &client(0x0a00_0000 + i / 256), i % 256) >> 32) as u32).collect();
            let mut places: Vec<u32> = hashes.clone();
            places.sort_unstable();
            places.dedup();
            assert!(places.len() > 65_500, "{} distinct of 65,536", places.len());
        }
    }

    #[test]
    fn steering_is_stable() {
        // Nodes of different builds must agree: a change of this number is a change of the wire contract.
        assert_eq!(steering(&client(0x0a00_0001), &client(0x0a00_0064), 0x5000_1234, 6), 719_139_437);
    }
}
