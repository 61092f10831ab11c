//! Fixtures: flows that open, go on and end, with every backend in service.

use ebb_tests::packets::tcp_flag::{ACK, FIN, RST, SYN};
use lb_common::{flow::flow_flag as ff, outcome::Outcome};

use crate::fixture::{
    ACKED, B0, B1, Change, Fixture, ISN, ack, data, datagram, drop, fin, flow, more, open, opens_to, rst, segment, syn,
    to,
};

/// Far from every sequence number in use.
const FAR: u32 = 0x4000_0000;

pub fn all() -> Vec<Fixture> {
    let mut all = opening();
    all.extend(nowhere_to_go());
    all.extend(twins());
    all.extend(middle());
    all.extend(ending());
    all
}

fn opening() -> Vec<Fixture> {
    vec![
        Fixture::new("new flow", "The first packet goes to the ring's owner and makes an entry.")
            .send(open(), opens_to(B0))
            .flows(&[flow(B0, 0).seq(ISN + 1).ack(0)]),
        Fixture::new("new flow, backend on the clients' link", "It leaves by the interface it came in on: XDP_TX.")
            .set(Change::Ring(Some(B1), None))
            .send(open(), opens_to(B1))
            .flows(&[flow(B1, 0)]),
        Fixture::new("hit", "Later packets follow the entry, whatever the ring says by now.")
            .send(open(), opens_to(B0))
            .answered(B0)
            .set(Change::Ring(Some(B1), None))
            .send(more(), to(B0))
            .send(more(), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED).seq(ISN + 11).ack(ACKED)]),
        Fixture::new("retransmitted SYN", "The same initial sequence number: the same flow, the same backend.")
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .set(Change::Ring(Some(B1), None))
            .send(syn(ISN), to(B0))
            .flows(&[flow(B0, 0).seq(ISN + 1)]),
        Fixture::new("SYN with data", "Whether the server takes the data is not known yet (TCP Fast Open, RFC 7413).")
            .tcp()
            .send(segment(SYN, ISN, 0, 100), opens_to(B0))
            .flows(&[flow(B0, 0).seq(ISN + 1)]),
        Fixture::new("SYN with data that was taken", "The client goes on after it.")
            .tcp()
            .send(segment(SYN, ISN, 0, 100), opens_to(B0))
            .answered(B0)
            .send(ack(ISN + 101, ACKED), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED).seq(ISN + 101)]),
        Fixture::new("SYN with data that was not taken", "The client says it again, and the handshake is complete.")
            .tcp()
            .send(segment(SYN, ISN, 0, 100), opens_to(B0))
            .send(syn(ISN), to(B0))
            .answered(B0)
            .send(data(ISN + 1, ACKED, 100), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED).seq(ISN + 101)]),
        Fixture::new("SYN with another number on an opening entry", "It replaces the entry at once.")
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .set(Change::Ring(Some(B1), None))
            .send(syn(FAR), opens_to(B1))
            .flows(&[flow(B1, 0).seq(FAR + 1)]),
        Fixture::new("SYN on a flow that an RST ended", "It replaces the entry at once.")
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .answered(B0)
            .send(ack(ISN + 1, ACKED), to(B0))
            .send(rst(ISN + 1), to(B0).ends_flow())
            .set(Change::Ring(Some(B1), None))
            .send(syn(FAR), opens_to(B1))
            .flows(&[flow(B1, 0).seq(FAR + 1)]),
        Fixture::new("SYN on a flow that has said goodbye", "A FIN and a quiet second make the tuple free again.")
            .tcp()
            .one_way()
            .send(syn(ISN), opens_to(B0))
            .answered(B0)
            .send(ack(ISN + 1, ACKED), to(B0))
            .send(fin(ISN + 1, ACKED), to(B0))
            .set(Change::Pass(2))
            .set(Change::Ring(Some(B1), None))
            .send(syn(FAR), opens_to(B1))
            .flows(&[flow(B1, 0).seq(FAR + 1)]),
        Fixture::new("datagram on a flow that has idled out", "The entry is dead; the datagram is still let through.")
            .udp()
            .send(datagram(10), opens_to(B0))
            .set(Change::Pass(200))
            .send(datagram(10), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED)]),
        Fixture::new("steered one by one", "A service that keeps no flows leaves no trace in the table.")
            .udp()
            .set(Change::PerDatagram)
            .send(datagram(10), to(B0).as_(Outcome::Stateless))
            .send(datagram(0), to(B0).as_(Outcome::Stateless))
            .flows(&[]),
        Fixture::new("datagram without checksum", "A zero checksum stays zero.")
            .udp()
            .v4()
            .send(
                datagram(32).with(|frame| frame.transport = ebb_tests::packets::Transport::Udp { checksum: false }),
                opens_to(B0),
            )
            .flows(&[flow(B0, 0)]),
        Fixture::new("two clients' ports", "Each has its own flow.")
            .one_way()
            .send(open(), opens_to(B0))
            .set(Change::Ring(Some(B1), None))
            .send(open().client_port(40_001), opens_to(B1))
            .send(more(), to(B0))
            .send(more().client_port(40_001), to(B1))
            .flows(&[flow(B0, ff::ESTABLISHED), flow(B1, ff::ESTABLISHED).of_port(40_001)]),
    ]
}

fn nowhere_to_go() -> Vec<Fixture> {
    vec![
        Fixture::new("no backend", "Nothing owns the slot.")
            .set(Change::Ring(None, None))
            .send(open(), drop(Outcome::DroppedNoBackend))
            .flows(&[]),
        Fixture::new("no ring", "The service has no backends at all.")
            .set(Change::NoRing)
            .send(open(), drop(Outcome::DroppedNoBackend))
            .flows(&[]),
        Fixture::new("next hop never known", "An unresolved backend takes no new flow.")
            .set(Change::Unresolved(B0))
            .send(open(), drop(Outcome::DroppedNoBackend))
            .flows(&[]),
        Fixture::new("next hop gone before it was known", "A flow of a backend without any next hop is dropped.")
            .send(open(), opens_to(B0))
            .set(Change::Unresolved(B0))
            .send(more(), drop(Outcome::DroppedUnresolved)),
        Fixture::new("next hop lost", "Flows keep the last known next hop; new ones do not come.")
            .send(open(), opens_to(B0))
            .set(Change::LostNextHop(B0))
            .send(more(), to(B0))
            .send(open().client_port(40_001), drop(Outcome::DroppedNoBackend)),
    ]
}

fn twins() -> Vec<Fixture> {
    let established = |name, about| {
        Fixture::new(name, about)
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .answered(B0)
            .send(ack(ISN + 1, ACKED), to(B0))
            .set(Change::Ring(Some(B1), None))
    };
    vec![
        established(
            "SYN on an established flow",
            "It goes to an active backend as a candidate and takes the tuple over when its handshake completes.",
        )
        .send(syn(FAR), opens_to(B1))
        .flows(&[flow(B0, ff::ESTABLISHED | ff::TWIN).seq(ISN + 1), flow(B1, ff::CANDIDATE).seq(FAR + 1)])
        .send(data(ISN + 1, ACKED, 5), to(B0))
        .send(syn(FAR), to(B1))
        .reply(B1, SYN | ACK, 76, FAR + 1, 0)
        .send(ack(FAR + 1, 77), to(B1))
        .flows(&[
            flow(B0, ff::ESTABLISHED | ff::CANDIDATE).seq(ISN + 6),
            flow(B1, ff::ESTABLISHED | ff::TWIN).seq(FAR + 1).ack(77),
        ])
        .send(data(FAR + 1, 77, 20), to(B1))
        .send(data(ISN + 6, ACKED, 5), to(B0)),
        established("a forged SYN, and another", "The second replaces the first candidate; the flow itself stays.")
            .send(syn(FAR), opens_to(B1))
            .send(syn(FAR + 5), opens_to(B1))
            .flows(&[flow(B0, ff::ESTABLISHED | ff::TWIN), flow(B1, ff::CANDIDATE).seq(FAR + 6)])
            .send(data(ISN + 1, ACKED, 5), to(B0)),
        established("RST for a candidate", "It does not take the tuple over.")
            .send(syn(FAR), opens_to(B1))
            .send(rst(FAR + 1), to(B1).ends_flow())
            .send(data(ISN + 1, ACKED, 5), to(B0)),
        established("neither's sequence number", "The segment stays with the flow that was there first.")
            .send(syn(FAR), opens_to(B1))
            .send(ack(0xc000_0000, ACKED), to(B0)),
    ]
}

fn middle() -> Vec<Fixture> {
    vec![
        Fixture::new(
            "unknown segment",
            "Adopted provisionally by the ring; the second segment in sequence proves it to be a flow.",
        )
        .tcp()
        .send(data(ISN, ACKED, 10), to(B0).as_(Outcome::Adopted))
        .flows(&[flow(B0, ff::PROVISIONAL).seq(ISN + 10).ack(ACKED)])
        .set(Change::Ring(Some(B1), None))
        .send(data(ISN + 10, ACKED, 10), to(B0))
        .flows(&[flow(B0, ff::ESTABLISHED).seq(ISN + 20)]),
        Fixture::new(
            "unknown segment, then nonsense",
            "What is out of sequence proves nothing, but the first may be the stray.",
        )
        .tcp()
        .send(data(ISN, ACKED, 10), to(B0).as_(Outcome::Adopted))
        .send(data(FAR, ACKED, 10), to(B0))
        .flows(&[flow(B0, ff::PROVISIONAL).seq(FAR + 10)])
        .send(data(FAR + 10, ACKED, 10), to(B0))
        .flows(&[flow(B0, ff::ESTABLISHED).seq(FAR + 20)]),
        Fixture::new(
            "unknown FIN",
            "Adopted as any other segment, and known for what it is: its acknowledgement will come.",
        )
        .tcp()
        .send(fin(ISN, ACKED), to(B0).as_(Outcome::Adopted))
        .flows(&[flow(B0, ff::PROVISIONAL | ff::CLIENT_FIN).seq(ISN + 1)])
        .send(ack(ISN + 1, ACKED + 1), to(B0))
        .flows(&[flow(B0, ff::ESTABLISHED | ff::CLIENT_FIN).seq(ISN + 1)]),
        Fixture::new("RST miss", "The reset of an unknown flow is passed on by the hash and leaves no trace.")
            .tcp()
            .send(rst(ISN), to(B0).as_(Outcome::Stateless))
            .send(segment(RST | ACK, ISN, ACKED, 0), to(B0).as_(Outcome::Stateless))
            .flows(&[]),
        Fixture::new("SYN that can open nothing", "With ACK, FIN or RST it is steered by the hash, without an entry.")
            .tcp()
            .send(segment(SYN | ACK, ISN, ACKED, 0), to(B0).as_(Outcome::Stateless))
            .send(segment(SYN | FIN, ISN, 0, 0), to(B0).as_(Outcome::Stateless))
            .send(segment(SYN | RST, ISN, 0, 0), to(B0).as_(Outcome::Stateless))
            .flows(&[]),
        Fixture::new("segment without flags", "Adopted; without an acknowledgement it never proves itself.")
            .tcp()
            .send(segment(0, ISN, 0, 10), to(B0).as_(Outcome::Adopted))
            .send(segment(0, ISN + 10, 0, 10), to(B0))
            .flows(&[flow(B0, ff::PROVISIONAL).seq(ISN + 20)]),
        Fixture::new("far out of window", "The segment is passed on, and changes nothing that is known.")
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .answered(B0)
            .send(data(ISN + 1, ACKED, 10), to(B0))
            .send(data(FAR, FAR, 10), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED).seq(ISN + 11).ack(ACKED)]),
        Fixture::new("sequence numbers wrap", "Arithmetic is modulo 2^32.")
            .tcp()
            .send(syn(u32::MAX - 3), opens_to(B0))
            .reply(B0, SYN | ACK, ACKED - 1, u32::MAX - 2, 0)
            .send(data(u32::MAX - 2, ACKED, 10), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED).seq(7)]),
    ]
}

fn ending() -> Vec<Fixture> {
    let established = |name, about| {
        Fixture::new(name, about).tcp().send(syn(ISN), opens_to(B0)).answered(B0).send(ack(ISN + 1, ACKED), to(B0))
    };
    vec![
        established("the client's FIN", "Half closed; data after it in sequence keeps the flow where it is.")
            .send(fin(ISN + 1, ACKED), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED | ff::CLIENT_FIN).seq(ISN + 2)])
            .set(Change::Ring(Some(B1), None))
            .reply(B0, ACK, ACKED, ISN + 1, 100)
            .send(ack(ISN + 2, ACKED + 100), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED | ff::CLIENT_FIN).seq(ISN + 2).ack(ACKED + 100)]),
        established("RST with the expected number", "It ends the flow and is counted.")
            .send(rst(ISN + 1), to(B0).ends_flow())
            .flows(&[flow(B0, ff::ESTABLISHED | ff::RST)]),
        established("RST with another number", "It is passed on, and ends nothing (RFC 5961, section 3.2).")
            .send(rst(ISN + 2), to(B0))
            .send(rst(ISN), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED)]),
        established("FIN with RST", "The reset decides.")
            .send(segment(FIN | RST | ACK, ISN + 1, ACKED, 0), to(B0).ends_flow())
            .flows(&[flow(B0, ff::ESTABLISHED | ff::RST)]),
    ]
}
