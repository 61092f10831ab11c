//! Fixtures: what services may be set to, and rings and tables in uncommon states.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{backend::BackendState, flow::flow_flag as ff, outcome::Outcome};

use crate::fixture::{B0, B1, Change, Fixture, datagram, drop, flow, more, open, opens_to, pass, syn, to};

pub fn all() -> Vec<Fixture> {
    let mut all = affinity();
    all.extend(rings());
    all.extend(tables());
    all.extend(per_datagram());
    all
}

fn affinity() -> Vec<Fixture> {
    // In a mapped address the last byte is the same for both families.
    const WHOLE: u8 = 128;
    const ALL_BUT_A_BYTE: u8 = 120;
    let neighbour = || open().with(|frame| frame.source.set_ip(turned(frame.source.ip(), 1)));
    let elsewhere = || open().with(|frame| frame.source.set_ip(turned(frame.source.ip(), 1 << 8)));
    vec![
        Fixture::new("affinity", "All of a client's flows go to one backend, whatever their ports.")
            .set(Change::Affinity(WHOLE, B1))
            .send(open(), opens_to(B1))
            .send(open().client_port(1), opens_to(B1))
            .send(open().client_port(65_535), opens_to(B1))
            .send(neighbour(), opens_to(B0)),
        Fixture::new("affinity of a network", "All of its clients' flows go to one backend, and no others.")
            .set(Change::Affinity(ALL_BUT_A_BYTE, B1))
            .send(open(), opens_to(B1))
            .send(neighbour(), opens_to(B1))
            .send(neighbour().client_port(7), opens_to(B1))
            .send(elsewhere(), opens_to(B0)),
        Fixture::new("affinity, its backend draining", "A new flow never goes to a draining backend, affinity or not.")
            .set(Change::Affinity(WHOLE, B1))
            .send(open(), opens_to(B1))
            .set(Change::State(B1, BackendState::Draining))
            .send(more(), to(B1))
            .send(open().client_port(1), opens_to(B0)),
    ]
}

/// An address with bits turned over.
fn turned(address: IpAddr, bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) ^ bits).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) ^ u128::from(bits)).into(),
    }
}

fn rings() -> Vec<Fixture> {
    vec![
        Fixture::new("the other half of the ring", "What is published counts; what was, does no more.")
            .send(open(), opens_to(B0))
            .set(Change::OtherHalf(B1))
            .send(open().client_port(40_001), opens_to(B1))
            .send(more(), to(B0)),
        Fixture::new("the slot's owner and its previous owner", "New flows go to the one; a SYN never to the other.")
            .set(Change::Drain(B0, B1, 300))
            .send(open(), opens_to(B1))
            .set(Change::Forget)
            .send(open(), opens_to(B1)),
        Fixture::new("a ring whose owner is another service's by now", "A stale slot opens no flow.")
            .set(Change::Strange(B0))
            .send(open(), drop(Outcome::DroppedNoBackend))
            .flows(&[]),
    ]
}

fn tables() -> Vec<Fixture> {
    vec![
        Fixture::new(
            "entries like the one looked for",
            "What differs in one thing, be it the protocol alone, is not it.",
        )
        .set(Change::Neighbours)
        .send(open().port(81), pass(Outcome::NotForService))
        .send(open(), opens_to(B0))
        .flows(&[flow(B0, 0)]),
        Fixture::new("the flow table is full", "New flows go on by the hash alone; no established flow makes room.")
            .send(open(), opens_to(B0))
            .answered(B0)
            .set(Change::Fill)
            .send(more(), to(B0))
            .send(open().client_port(40_001), to(B0).as_(Outcome::Untracked))
            .send(more().client_port(40_001), to(B0).as_(Outcome::Untracked))
            .set(Change::Ring(Some(B1), None))
            .send(more(), to(B0))
            .send(more().client_port(40_001), to(B1).as_(Outcome::Untracked))
            .flows(&[flow(B0, ff::ESTABLISHED)]),
        Fixture::new(
            "the flow table is full, in a drain",
            "The remembered owner is asked all the same, and that it is not known is counted.",
        )
        .tcp()
        .set(Change::Fill)
        .set(Change::Drain(B0, B1, 300))
        .send(syn(1), to(B1).as_(Outcome::Untracked))
        .send(more(), to(B0).as_(Outcome::Untracked)),
    ]
}

fn per_datagram() -> Vec<Fixture> {
    vec![
        Fixture::new("steered one by one, the backend draining", "Datagrams go where new flows go.")
            .udp()
            .set(Change::PerDatagram)
            .send(datagram(10), to(B0).as_(Outcome::Stateless))
            .set(Change::Drain(B0, B1, 300))
            .send(datagram(10), to(B1).as_(Outcome::Stateless))
            .flows(&[]),
        Fixture::new("steered one by one, no backend", "Dropped.")
            .udp()
            .set(Change::PerDatagram)
            .set(Change::Ring(None, None))
            .send(datagram(10), drop(Outcome::DroppedNoBackend)),
        Fixture::new("a VIP that the host uses too", "What is for no service there passes.")
            .set(Change::Address(lb_common::service::address_flag::SHARED_WITH_HOST))
            .send(open().port(9), pass(Outcome::NotForService)),
    ]
}
