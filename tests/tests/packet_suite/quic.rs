//! Fixtures: datagrams that name their backend by a QUIC connection id.

use ebb_tests::packets::quic::{HANDSHAKE, HANDSHAKE_2, Header, INITIAL, V1, ZERO_RTT, id, packet};
use lb_common::{backend::BackendState, flow::flow_flag as ff, outcome::Outcome};

use crate::fixture::{B, B0, B1, B2, Change, Expect, Fixture, Input, datagram, flow, more, open, opens_to, to};

/// Length of server ids, and the configuration, in most fixtures.
const LEN: u8 = 4;
const ROTATION: u8 = 2;
/// Where a client has moved to.
const MOVED: u16 = 40_001;
const ON: Change = Change::QuicCid(LEN, ROTATION);

pub fn all() -> Vec<Fixture> {
    let mut all = migrations();
    all.extend(headers());
    all.extend(backends());
    all
}

/// A packet to the connection id that this backend has given.
fn to_id_of(backend: B, header: Header) -> Input {
    with(packet(header, &id(ROTATION, &backend.server_id(LEN))))
}

fn with(payload: Vec<u8>) -> Input {
    datagram(0).with(move |frame| frame.payload.clone_from(&payload))
}

fn named(backend: B) -> Expect {
    to(backend).as_(Outcome::NamedById)
}

fn fixture(name: &'static str, about: &'static str) -> Fixture {
    Fixture::new(name, about).udp()
}

fn migrations() -> Vec<Fixture> {
    vec![
        fixture("a QUIC connection moves", "It stays with the backend that its id names, and is a flow like another.")
            .set(ON)
            .send(to_id_of(B1, Header::Short), named(B1))
            .answered(B1)
            .send(to_id_of(B1, Header::Short), to(B1))
            .flows(&[flow(B1, ff::ESTABLISHED)]),
        fixture("a QUIC connection moves, ids not looked at", "It breaks: its new flow goes where the ring says.")
            .send(to_id_of(B1, Header::Short), opens_to(B0)),
        fixture("a known flow names another backend", "A flow never changes its backend.")
            .set(ON)
            .send(open(), opens_to(B0))
            .send(to_id_of(B1, Header::Short), to(B0)),
        fixture(
            "a QUIC connection moves, the table full",
            "It goes on without a place in the table, and is counted so.",
        )
        .set(ON)
        .set(Change::Fill)
        .send(to_id_of(B1, Header::Short), to(B1).as_(Outcome::Untracked))
        .send(to_id_of(B1, Header::Short), to(B1).as_(Outcome::Untracked)),
        fixture("a tuple of a gone backend's is used again", "By a connection that has moved.")
            .set(ON)
            .send(open(), opens_to(B0))
            .set(Change::Replace(B0))
            .send(to_id_of(B1, Header::Short), named(B1))
            .flows(&[flow(B1, 0)]),
    ]
}

fn headers() -> Vec<Fixture> {
    let named_by = |header| {
        fixture("an id that the server has chosen", "Handshake packets, and all with short headers, greased or not.")
            .set(ON)
            .send(to_id_of(B1, header), named(B1))
    };
    let hashed = |name, input| fixture(name, "It opens a flow where the ring says.").set(ON).send(input, opens_to(B0));
    let short = |rotation, server: &[u8]| with(packet(Header::Short, &id(rotation, server)));
    // Its id's length says that the server's part of it is not whole.
    let cut_id = with(packet(HANDSHAKE, &id(ROTATION, &B1.server_id(LEN))[..LEN.into()]));
    let mut brief = packet(Header::Short, &id(ROTATION, &B1.server_id(LEN)));
    brief.truncate(17);
    let behind = {
        let rest = packet(Header::Short, &id(ROTATION, &B1.server_id(LEN)));
        datagram(0).with(move |frame| frame.padding.clone_from(&rest))
    };
    vec![
        named_by(Header::Short),
        named_by(Header::Greased),
        named_by(HANDSHAKE),
        named_by(HANDSHAKE_2),
        hashed("an id that the client may have made up: Initial", to_id_of(B1, INITIAL)),
        hashed("an id that the client may have made up: 0-RTT", to_id_of(B1, ZERO_RTT)),
        hashed("an id that the client may have made up: Retry", to_id_of(B1, Header::Long(V1, 3))),
        hashed("an id in a version that is not known", to_id_of(B1, Header::Long(0xff00_001d, 2))),
        hashed("an id of another configuration", short(ROTATION + 1, &B1.server_id(LEN))),
        hashed("an id that is not routable", short(7, &B1.server_id(LEN))),
        hashed("an id of no server", short(ROTATION, &[0x5e; LEN as usize])),
        hashed("an id that is too short", cut_id),
        hashed("a datagram too short for QUIC", with(brief)),
        hashed("an id in what comes behind the datagram", behind),
        hashed("an empty datagram", datagram(0)),
        fixture("server ids of one byte", "The rest of the id does not matter.")
            .set(Change::QuicCid(1, 0))
            .send(with(packet(Header::Short, &id(0, &B1.server_id(1)))), named(B1))
            .send(with(packet(Header::Short, &id(0, &B2.server_id(1)))).client_port(MOVED), named(B2)),
        fixture("server ids of fifteen bytes", "All of them count.")
            .set(Change::QuicCid(15, 6))
            .send(with(packet(Header::Short, &id(6, &B1.server_id(15)))), named(B1))
            .send(with(packet(HANDSHAKE, &id(6, &B2.server_id(15)))).client_port(MOVED), named(B2))
            .send(with(packet(Header::Short, &id(6, &[0x5e; 15]))).client_port(7), opens_to(B0)),
    ]
}

fn backends() -> Vec<Fixture> {
    let refused = |name, change| {
        fixture(name, "It keeps no connection any more: whoever gets the packet resets it.")
            .set(ON)
            .set(change)
            .send(to_id_of(B1, Header::Short), opens_to(B0))
    };
    let kept = |name, change| {
        fixture(name, "It keeps its connections, wherever they come from.")
            .set(ON)
            .set(change)
            .send(to_id_of(B1, Header::Short), named(B1))
            .send(to_id_of(B1, Header::Short), to(B1))
    };
    vec![
        kept("a QUIC connection moves, its backend draining", Change::Drain(B1, B0, 300)),
        kept("the same without a deadline", Change::DrainForever(B1, B0)),
        kept("the same, unhealthy", Change::State(B1, BackendState::UnhealthyDraining)),
        kept("the same, not in the ring yet", Change::State(B1, BackendState::Initial)),
        refused("a QUIC connection moves, past its backend's deadline", Change::Drain(B1, B0, -1)),
        refused("the same, its backend drained", Change::State(B1, BackendState::Drained)),
        refused("the same, its backend unhealthy", Change::State(B1, BackendState::Unhealthy)),
        refused("the same, its backend gone", Change::Remove(B1)),
        refused("the same, the slot another service's", Change::Strange(B1)),
        fixture("a new connection while a backend drains", "An id that the client made up does not lead to it.")
            .set(ON)
            .set(Change::Drain(B1, B0, 300))
            .send(to_id_of(B1, INITIAL), opens_to(B0))
            .send(more().client_port(MOVED), opens_to(B0)),
        fixture("a QUIC connection moves when its backend is replaced", "The id is the new one's, as the table says.")
            .set(ON)
            .set(Change::Replace(B1))
            .send(to_id_of(B1, Header::Short), named(B1))
            .flows(&[flow(B1, 0).next_generation()]),
    ]
}
