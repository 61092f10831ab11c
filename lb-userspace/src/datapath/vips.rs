//! Builds the table in which the packet path finds services, addresses and NAT endpoints.
//!
//! Linear probing, its keys in the order of their homes (which is what Robin Hood hashing arrives at; Celis, 1986): the
//! longest distance from home is then about that of the average, and a fourth of the table full is enough for thousands
//! of keys within [`VIP_PROBES`]. Where it is not, another seed is tried, then a larger table.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    addr::Addr,
    hash,
    service::{TCP, UDP, VIP_PROBES, VipEntry, address_flag, vip_kind},
};

use super::{Echo, Named, Protocol, ServiceConfig, ServiceSlot};

/// The smallest table.
pub(crate) const MIN_SIZE: u32 = 16;
/// Entries for each key, at first.
const SPACING: u32 = 4;
/// Seeds tried for each size.
const SEEDS: u64 = 16;

/// A built table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// Seed of its hash.
    pub(crate) seed: u64,
    /// Its entries; a power of two of them.
    pub(crate) entries: Vec<VipEntry>,
}

/// The keys do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Entries of one half that serves `services` services with `backends` NAT endpoints: twice as many as keys at the most,
/// rounded up to a power of two.
pub(crate) fn half_size(services: u32, backends: u32) -> u32 {
    (2 * services).saturating_add(backends).saturating_mul(2).clamp(MIN_SIZE, 1 << 28).next_power_of_two()
}

/// The keys of these services, endpoints and server ids; `own` are the addresses that the host uses itself.
pub(crate) fn keys(services: &[(ServiceSlot, &ServiceConfig)], own: &BTreeSet<IpAddr>, named: &Named) -> Vec<VipEntry> {
    let mut keys = Vec::with_capacity(services.len() * 2 + named.nat.len() + named.ids.len());
    let mut addresses: BTreeMap<IpAddr, Vec<&ServiceConfig>> = BTreeMap::new();
    for (slot, service) in services {
        addresses.entry(service.vip.ip()).or_default().push(service);
        let target = u32::from(slot.0);
        keys.push(entry(vip_kind::SERVICE, service.vip.ip(), service.vip.port(), number(service.protocol), target));
    }
    keys.extend(addresses.into_iter().map(|(address, services)| {
        entry(vip_kind::ADDRESS, address, 0, 0, address_flags(&services, own.contains(&address)))
    }));
    keys.extend(
        named
            .nat
            .iter()
            .map(|b| entry(vip_kind::NAT_SOURCE, b.address, b.port, number(b.protocol), u32::from(b.service.0))),
    );
    keys.extend(named.ids.iter().map(|b| {
        let [low, high] = [0, 8].map(|at| u64::from_ne_bytes(std::array::from_fn(|i| b.id[at + i])));
        // The bytes as the packet path loads them; the service's row is no port and stands as it is.
        VipEntry {
            addr: Addr { halves: [low, high] },
            port: b.service.0,
            kind: vip_kind::SERVER_ID,
            target: b.backend.0,
            ..bytemuck::Zeroable::zeroed()
        }
    }));
    keys
}

/// What is done for an address with these services. Where they differ, an answer is given if one of them wants it.
fn address_flags(services: &[&ServiceConfig], shared: bool) -> u32 {
    let any = |echo| services.iter().any(|service| service.echo == echo);
    let echo = any(Echo::Answer) || (!shared && !any(Echo::Pass));
    let announce = services.iter().any(|service| service.announce);
    [(shared, address_flag::SHARED_WITH_HOST), (echo, address_flag::ANSWER_ECHO), (announce, address_flag::ANNOUNCE)]
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |flags, (_, flag)| flags | flag)
}

/// The protocol's number in an IP header.
pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

fn entry(kind: u8, address: IpAddr, port: u16, protocol: u8, target: u32) -> VipEntry {
    VipEntry { addr: Addr::from(address), port: port.to_be(), protocol, kind, target, pad: [0; 2] }
}

/// Builds the smallest table, a quarter full or less if `capacity` allows, in which every key is found.
///
/// The same keys give the same table.
pub(crate) fn build(keys: &[VipEntry], capacity: u32) -> Result<Table, Full> {
    let count = u32::try_from(keys.len()).map_err(|_| Full)?;
    let mut size = count.saturating_mul(SPACING).clamp(MIN_SIZE, 1 << 30).next_power_of_two().min(capacity);
    while size <= capacity && size > count {
        for attempt in 1..=SEEDS {
            let seed = hash::mix(attempt);
            if let Some(entries) = lay_out(keys, seed, size) {
                return Ok(Table { seed, entries });
            }
        }
        size = size.saturating_mul(2);
    }
    Err(Full)
}

/// Lays the keys out with this seed, if all can be within reach.
fn lay_out(keys: &[VipEntry], seed: u64, size: u32) -> Option<Vec<VipEntry>> {
    let mask = size - 1;
    let mut homes: Vec<(u32, &VipEntry)> =
        keys.iter().map(|key| (hash::vip(seed, &key.addr, key.port, key.protocol) & mask, key)).collect();
    homes.sort_by_key(|&(home, _)| home);
    // Keys pushed past the end stand at the beginning, where they push others: repeated until that number holds.
    let mut carried = 0;
    loop {
        let places = places(&homes, carried)?;
        let over = places.last().map_or(0, |&last| (last + 1).saturating_sub(size));
        if over == carried {
            let mut entries = vec![bytemuck::Zeroable::zeroed(); size as usize];
            for (place, (_, key)) in places.into_iter().zip(homes) {
                entries[(place & mask) as usize] = *key;
            }
            return Some(entries);
        }
        carried = over;
    }
}

/// Places of keys in the order of their homes, from `first_free` on, as if the table had no end.
fn places(homes: &[(u32, &VipEntry)], first_free: u32) -> Option<Vec<u32>> {
    let mut next = first_free;
    homes
        .iter()
        .map(|&(home, _)| {
            let place = next.max(home);
            next = place + 1;
            (place - home < VIP_PROBES).then_some(place)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::datapath::{BackendSlot, Forward, NamedBackend, NatEndpoint};

    /// The packet path's look-up.
    fn find(table: &Table, kind: u8, key: &VipEntry) -> Vec<u32> {
        let mask = table.entries.len() as u32 - 1;
        let start = hash::vip(table.seed, &key.addr, key.port, key.protocol);
        let mut targets = Vec::new();
        for probe in 0..VIP_PROBES {
            let entry = &table.entries[(start.wrapping_add(probe) & mask) as usize];
            if entry.kind == vip_kind::EMPTY {
                break;
            }
            if entry.kind == kind && (entry.addr, entry.port, entry.protocol) == (key.addr, key.port, key.protocol) {
                targets.push(entry.target);
            }
        }
        targets
    }

    fn service_key(n: u32) -> VipEntry {
        entry(vip_kind::SERVICE, Ipv4Addr::from(0x0a00_0000 + n / 7).into(), (n % 7) as u16 + 1, TCP, n)
    }

    proptest! {
        #[test]
        fn every_key_is_found_and_no_other(numbers in proptest::collection::hash_set(0u32..100_000, 0..600)) {
            let keys: Vec<VipEntry> = numbers.iter().map(|&n| service_key(n)).collect();
            let table = build(&keys, 1 << 16).expect("fits");
            for n in &numbers {
                prop_assert_eq!(find(&table, vip_kind::SERVICE, &service_key(*n)), vec![*n]);
            }
            let absent = (0..=600).find(|n| !numbers.contains(n)).expect("at most 600 are there");
            prop_assert!(find(&table, vip_kind::SERVICE, &service_key(absent)).is_empty());
            prop_assert_eq!(table.entries.iter().filter(|e| e.kind != vip_kind::EMPTY).count(), numbers.len());
        }
    }

    #[test]
    fn the_most_that_a_default_daemon_can_have_fits() {
        let (services, backends) = (4_096, 131_072);
        let keys: Vec<VipEntry> = (0..2 * services + backends).map(service_key).collect();
        let table = build(&keys, half_size(services, backends)).expect("fits");
        for n in (0..2 * services + backends).step_by(97) {
            assert_eq!(find(&table, vip_kind::SERVICE, &service_key(n)), vec![n]);
        }
    }

    #[test]
    fn a_small_table_is_at_most_a_quarter_full() {
        for count in 1..200 {
            let keys: Vec<VipEntry> = (0..count).map(service_key).collect();
            let table = build(&keys, 1 << 20).expect("fits");
            assert!(table.entries.len() as u32 >= count * 4);
            assert!(table.entries.len() as u32 <= (count * 8).max(MIN_SIZE), "{count}: {}", table.entries.len());
        }
    }

    #[test]
    fn an_endpoint_of_several_services_has_an_entry_for_each() {
        let shared = |service| NatEndpoint {
            backend: BackendSlot(1),
            service: ServiceSlot(service),
            address: "10.0.0.9".parse().unwrap(),
            port: 8080,
            protocol: Protocol::Tcp,
        };
        let with = |nat: Vec<NatEndpoint>| keys(&[], &BTreeSet::new(), &Named { nat, ids: Vec::new() });
        let nat: Vec<VipEntry> = with((1..=5).map(shared).collect());
        let table = build(&nat, 1 << 10).expect("fits");
        let found = find(&table, vip_kind::NAT_SOURCE, &nat[0]);
        assert_eq!(found.into_iter().collect::<HashSet<_>>(), (1..=5).collect());
        let too_many = with((0..=VIP_PROBES as u16).map(shared).collect());
        assert_eq!(build(&too_many, 1 << 10), Err(Full));
    }

    #[test]
    fn a_server_id_is_found_by_its_bytes_and_its_service() {
        let named = |backend, service, first| {
            let mut id = [0; 16];
            (id[0], id[9]) = (first, 7);
            NamedBackend { backend: BackendSlot(backend), service: ServiceSlot(service), id }
        };
        let ids = vec![named(1, 1, 5), named(2, 2, 5), named(3, 1, 6)];
        let entries = keys(&[], &BTreeSet::new(), &Named { nat: Vec::new(), ids });
        let table = build(&entries, 1 << 10).expect("fits");
        assert_eq!(
            entries.iter().map(|key| find(&table, vip_kind::SERVER_ID, key)).collect::<Vec<_>>(),
            [[1], [2], [3]]
        );
        // As the packet path makes it from what it loads.
        let bytes = [u64::from_le(5), u64::from_le(7 << 8 | 0xee << 16)];
        assert_eq!(lb_common::quic::key(bytes, 10), entries[0].addr);
    }

    fn service(port: u16) -> ServiceConfig {
        ServiceConfig::tcp(format!("[2001:db8::1]:{port}").parse().unwrap(), Forward::Dsr)
    }

    #[test]
    fn what_is_done_for_an_address_follows_from_its_services_and_the_host() {
        use address_flag::{ANNOUNCE, ANSWER_ECHO, SHARED_WITH_HOST};
        let with = |echo, announce| ServiceConfig { echo, announce, ..service(80) };
        let (auto, answer) = (with(Echo::Auto, false), with(Echo::Answer, false));
        let (pass, announced) = (with(Echo::Pass, false), with(Echo::Auto, true));
        assert_eq!(address_flags(&[&auto], false), ANSWER_ECHO, "nobody else would answer");
        assert_eq!(address_flags(&[&auto], true), SHARED_WITH_HOST, "the host answers");
        assert_eq!(address_flags(&[&answer], true), SHARED_WITH_HOST | ANSWER_ECHO);
        assert_eq!(address_flags(&[&pass], false), 0);
        assert_eq!(address_flags(&[&pass, &auto], false), 0);
        assert_eq!(address_flags(&[&pass, &answer, &announced], false), ANSWER_ECHO | ANNOUNCE);
    }

    #[test]
    fn an_address_shared_by_services_stands_once() {
        let (a, b) = (service(80), service(443));
        let keys = keys(&[(ServiceSlot(0), &a), (ServiceSlot(1), &b)], &BTreeSet::new(), &Named::default());
        assert_eq!(keys.iter().filter(|k| k.kind == vip_kind::ADDRESS).count(), 1);
        assert_eq!(keys.len(), 3);
        assert_eq!(keys[0].port.to_ne_bytes(), [0, 80]);
    }
}
