//! Fixtures: what only `nat` does. Replies of known and of forgotten flows, errors in both directions, cut flows whose
//! backend is told, and services that share a backend's endpoint.

use ebb_tests::packets::{
    Mac, Transport,
    tcp_flag::{ACK, FIN, PSH, RST, SYN},
};
use lb_common::{flow::flow_flag as ff, outcome::Outcome};

use crate::{
    fixture::{
        ACKED, B0, B1, B3, Change, Fixture, HEARD, Heard, ISN, Input, ack, data, datagram, drop, flow, more, open,
        opens_to, reset, rst, segment, syn, to,
    },
    icmp::error_from,
};

/// A deadline that has passed.
const PAST: i64 = -1;
/// A deadline that is ahead.
const AHEAD: i64 = 300;
/// Far from every sequence number in use.
const FAR: u32 = 0x4000_0000;

pub fn all() -> Vec<Fixture> {
    let mut all = replies();
    all.extend(errors());
    all.extend(over());
    all.extend(shared());
    all.extend(twins());
    all.extend(other_ways());
    all
}

/// A flow to `B0` whose handshake is complete.
fn established(name: &'static str, about: &'static str) -> Fixture {
    Fixture::new(name, about).nat().tcp().send(syn(ISN), opens_to(B0)).answered(B0).send(ack(ISN + 1, ACKED), to(B0))
}

fn replies() -> Vec<Fixture> {
    let without = |bytes| datagram(bytes).with(|frame| frame.transport = Transport::Udp { checksum: false });
    vec![
        Fixture::new("datagrams without checksum, both ways", "None is made up for them.")
            .nat()
            .udp()
            .v4()
            .send(without(32), opens_to(B0))
            .says(B0, without(64), HEARD)
            .says(B0, without(0), HEARD)
            .send(without(1), to(B0)),
        Fixture::new("a reply with a tag", "It keeps its tag, and comes from the VIP.")
            .nat()
            .send(open().tags(&[7]), opens_to(B0))
            .says(B0, segment(SYN | ACK, ACKED - 1, ISN + 1, 0).tags(&[7]), HEARD),
        Fixture::new("a reply whose hop limit is used up", "Who forwards as a router counts hops.")
            .nat()
            .send(open(), opens_to(B0))
            .says(
                B0,
                segment(SYN | ACK, ACKED - 1, ISN + 1, 0).with(|frame| frame.hop_limit = 1),
                Heard::Dropped(Outcome::DroppedHopLimit),
            ),
        Fixture::new(
            "an old connection on the backend",
            "What it says of that one is forgotten with the new one's SYN-ACK.",
        )
        .nat()
        .tcp()
        .send(syn(ISN), opens_to(B0))
        .reply(B0, ACK, 0x7000_0000, 77, 0)
        .send(rst(77), to(B0))
        .send(syn(ISN), to(B0))
        .answered(B0)
        .send(ack(ISN + 1, ACKED), to(B0))
        .flows(&[flow(B0, ff::ESTABLISHED).seq(ISN + 1).ack(ACKED)]),
        Fixture::new("a SYN-ACK sent again", "It keeps no half-open flow: its client may be nobody.")
            .nat()
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .set(Change::Pass(6))
            .answered(B0)
            .set(Change::Ring(Some(B1), None))
            .send(syn(ISN), to(B0))
            .set(Change::Pass(6))
            .says(B0, segment(SYN | ACK, ACKED - 1, ISN + 1, 0), HEARD)
            .set(Change::Pass(6))
            .send(syn(ISN), opens_to(B1)),
        established("finished both ways", "Both FINs acknowledged: the flow is over, to the packet.")
            .send(segment(FIN | ACK, ISN + 1, ACKED, 0), to(B0))
            .reply(B0, ACK, ACKED, ISN + 2, 0)
            .reply(B0, FIN | ACK, ACKED, ISN + 2, 0)
            .send(ack(ISN + 2, ACKED + 1), to(B0))
            .flows(&[flow(
                B0,
                ff::ESTABLISHED | ff::CLIENT_FIN | ff::SERVER_FIN | ff::CLIENT_FIN_ACKED | ff::SERVER_FIN_ACKED,
            )]),
        established("the backend's RST", "It reaches the client, and ends the flow.")
            .reply(B0, RST | ACK, ACKED, ISN + 1, 0)
            .flows(&[flow(B0, ff::ESTABLISHED | ff::RST)]),
        established(
            "a reply on a forgotten flow",
            "By the kernel's routes, as the VIP's: the client must see no other.",
        )
        .set(Change::Forget)
        .says(B0, segment(ACK | PSH, ACKED, ISN + 1, 50), Heard::ByRoute)
        .says(B0, segment(FIN | ACK, ACKED + 50, ISN + 1, 0), Heard::ByRoute)
        .says(B0, segment(RST, ACKED + 51, 0, 0), Heard::ByRoute)
        .flows(&[]),
        Fixture::new("a connection of the backend's own", "No reply on anything: passed.").nat().tcp().says(
            B0,
            segment(SYN, 1, 0, 0),
            Heard::Passed(Outcome::NotForService),
        ),
        Fixture::new("a datagram of the backend's own", "No reply on anything for sure: passed.").nat().udp().says(
            B0,
            datagram(10),
            Heard::Passed(Outcome::NotForService),
        ),
        established("a forgotten flow of a shared endpoint", "Whose client it is cannot be told.")
            .set(Change::Share)
            .set(Change::Forget)
            .says(B0, segment(ACK | PSH, ACKED, ISN + 1, 50), Heard::Dropped(Outcome::DroppedUnresolved)),
    ]
}

/// The router that comes in for the one whose MAC address the client's packets had.
const STANDBY: Mac = [2, 0, 0, 0, 0x0c, 2];

/// The packet from that router.
fn by_standby(input: Input) -> Input {
    input.with(|frame| frame.source_mac = STANDBY)
}

fn other_ways() -> Vec<Fixture> {
    let data_of = |seq| segment(ACK | PSH, seq, ISN + 1, 10);
    vec![
        established("the client's router fails over", "Replies follow its next segment, as the VIP's.")
            .says(B0, data_of(ACKED), HEARD)
            .send(by_standby(ack(ISN + 1, ACKED + 10)), to(B0))
            .says(B0, data_of(ACKED + 10), Heard::By(STANDBY))
            .send(ack(ISN + 1, ACKED + 20), to(B0))
            .says(B0, data_of(ACKED + 20), HEARD),
        established(
            "the client's router fails over, data sent again",
            "What was lost on the way back was not in vain.",
        )
        .send(data(ISN + 1, ACKED, 10), to(B0))
        .send(by_standby(data(ISN + 1, ACKED, 10)), to(B0))
        .says(B0, segment(ACK, ACKED, ISN + 11, 0), Heard::By(STANDBY)),
        established("forged segments from another neighbour", "They turn no reply aside.")
            .says(B0, data_of(ACKED), HEARD)
            .send(by_standby(ack(ISN + 1, ACKED + 11)), to(B0))
            .send(by_standby(ack(ISN + 1, ACKED - 1)), to(B0))
            .send(by_standby(ack(FAR, ACKED + 10)), to(B0))
            .send(by_standby(rst(ISN + 2)), to(B0))
            .send(by_standby(segment(PSH, ISN + 1, ACKED, 1)), to(B0))
            .says(B0, data_of(ACKED + 10), HEARD),
        Fixture::new("the client's router fails over, a SYN sent again", "The answer goes where it comes from.")
            .nat()
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .send(by_standby(syn(ISN)), to(B0))
            .says(B0, segment(SYN | ACK, ACKED - 1, ISN + 1, 0), Heard::By(STANDBY)),
        Fixture::new("the client's router fails over, datagrams", "Replies follow the next one.")
            .nat()
            .udp()
            .send(datagram(10), opens_to(B0))
            .send(by_standby(datagram(10)), to(B0))
            .says(B0, datagram(20), Heard::By(STANDBY)),
        established("the client's way gets a tag", "Replies follow its next segment.")
            .send(ack(ISN + 1, ACKED).tags(&[7]), to(B0))
            .says(B0, data_of(ACKED).tags(&[7]), HEARD),
    ]
}

fn errors() -> Vec<Fixture> {
    let flow = |name, about| Fixture::new(name, about).nat().send(open(), opens_to(B0)).send(more(), to(B0));
    vec![
        flow("ICMP error by a router on the way to a backend", "The client gets it about the packet that it sent.")
            .says(B0, error_from(true), Heard::Error { from_backend: false }),
        flow("ICMP error by a backend", "The client gets it from the VIP, about the packet that it sent.").says(
            B0,
            error_from(false),
            Heard::Error { from_backend: true },
        ),
        Fixture::new("ICMP error about no flow", "Passed.")
            .nat()
            .says(B0, error_from(true), Heard::Passed(Outcome::NotForService))
            .says(B0, error_from(false), Heard::Passed(Outcome::NotForService)),
    ]
}

fn over() -> Vec<Fixture> {
    vec![
        established("past the deadline, the backend's data", "The backend is told: its number is the one it expects.")
            .set(Change::Drain(B0, B1, PAST))
            .says(B0, segment(ACK | PSH, ACKED, ISN + 1, 10), Heard::Reset { seq: ISN + 1, ack: 0, flags: RST })
            .send(data(ISN + 1, ACKED, 10), reset(ACKED)),
        established("past the deadline, the backend's RST", "An RST is never answered.")
            .set(Change::Drain(B0, B1, PAST))
            .says(B0, segment(RST, ACKED, 0, 0), Heard::Dropped(Outcome::DroppedCut)),
        established("cut, the client's RST, then the backend's data", "Both ends are told.")
            .set(Change::Cut)
            .send(rst(ISN + 1), to(B0))
            .says(B0, segment(ACK, ACKED, ISN + 1, 4), Heard::Reset { seq: ISN + 1, ack: 0, flags: RST }),
        established("past the deadline, silent, the backend's data", "Neither end is told.")
            .set(Change::Silent(B0))
            .set(Change::Drain(B0, B1, PAST))
            .says(B0, segment(ACK | PSH, ACKED, ISN + 1, 10), Heard::Dropped(Outcome::DroppedCut)),
        established("cut, silent, the backend's data", "The service's own policy counts once its backend is gone.")
            .set(Change::Silent(B0))
            .set(Change::Cut)
            .says(B0, segment(ACK, ACKED, ISN + 1, 4), Heard::Dropped(Outcome::DroppedCut))
            .set(Change::Replace(B0))
            .says(B0, segment(ACK, ACKED, ISN + 1, 4), Heard::Reset { seq: ISN + 1, ack: 0, flags: RST })
            .set(Change::ServiceSilent)
            .says(B0, segment(ACK, ACKED, ISN + 1, 4), Heard::Dropped(Outcome::DroppedCut)),
        established("a backend that is gone, silent, and its data", "The service's own policy counts.")
            .set(Change::ServiceSilent)
            .set(Change::Remove(B0))
            .says(B0, segment(ACK, ACKED, ISN + 1, 4), Heard::Dropped(Outcome::DroppedCut)),
        Fixture::new("a datagram back on a flow that was cut", "Dropped: the client has been steered elsewhere.")
            .nat()
            .udp()
            .send(datagram(10), opens_to(B0))
            .set(Change::Cut)
            .says(B0, datagram(20), Heard::Dropped(Outcome::DroppedCut)),
        Fixture::new("a backend of the other family", "It cannot be reached by rewriting an address.")
            .nat()
            .set(Change::OtherFamily(B0))
            .send(open(), drop(Outcome::DroppedUnresolved)),
    ]
}

/// A reused port: an established flow and a candidate on one tuple.
fn twins() -> Vec<Fixture> {
    let [other, ..] = OTHER_PORTS;
    vec![
        established(
            "a reused port in a drain",
            "Each twin's backend is heard, before the newcomer takes over and after it.",
        )
        .set(Change::Drain(B0, B1, AHEAD))
        .send(syn(FAR), opens_to(B1))
        .reply(B0, ACK | PSH, ACKED, ISN + 1, 10)
        .reply(B1, SYN | ACK, 76, FAR + 1, 0)
        .send(ack(FAR + 1, 78), to(B1))
        .flows(&[flow(B0, ff::ESTABLISHED | ff::TWIN), flow(B1, ff::CANDIDATE)])
        .send(ack(FAR + 1, 77), to(B1))
        .flows(&[flow(B0, ff::ESTABLISHED | ff::CANDIDATE), flow(B1, ff::ESTABLISHED | ff::TWIN)])
        .reply(B0, ACK | PSH, ACKED + 10, ISN + 1, 10)
        .reply(B1, ACK | PSH, 77, FAR + 1, 10)
        .says(B0, error_from(false), Heard::Error { from_backend: true })
        .send(ack(ISN + 1, ACKED + 20), to(B0))
        .send(ack(FAR + 1, 87), to(B1)),
        established("a forged SYN, and what follows it", "Without the backend's answer nothing takes the tuple over.")
            .set(Change::Ring(Some(B1), None))
            .send(syn(FAR), opens_to(B1))
            .send(ack(FAR + 1, 77), to(B1))
            .send(data(FAR + 1, 77, 10), to(B1))
            .flows(&[flow(B0, ff::ESTABLISHED | ff::TWIN), flow(B1, ff::CANDIDATE)]),
        established("twins at one backend", "What it acknowledges tells which of the two it answers.")
            .send(syn(FAR), opens_to(B0))
            .reply(B0, ACK, ACKED, ISN + 1, 0)
            .flows(&[flow(B0, ff::ESTABLISHED | ff::TWIN), flow(B0, ff::CANDIDATE).without_reply()])
            .reply(B0, SYN | ACK, 76, FAR + 1, 0)
            .send(ack(FAR + 1, 77), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED | ff::CANDIDATE), flow(B0, ff::ESTABLISHED | ff::TWIN).seq(FAR + 1)]),
        established("twins at one backend, and its RST", "One that acknowledges nothing is the established flow's.")
            .send(syn(FAR), opens_to(B0))
            .reply(B0, RST, ACKED, 0, 0)
            .flows(&[flow(B0, ff::ESTABLISHED | ff::TWIN | ff::RST), flow(B0, ff::CANDIDATE).without_reply()]),
        Fixture::new("a shared endpoint that knows a candidate", "Its port is taken as any other flow's is.")
            .nat()
            .tcp()
            .set(Change::Share)
            .set(Change::Ring(Some(B1), None))
            .send(syn(ISN), opens_to(B1))
            .answered(B1)
            .send(ack(ISN + 1, ACKED), to(B1))
            .set(Change::Ring(Some(B0), None))
            .send(syn(FAR), opens_to(B0))
            .send(open().port(81), opens_to(B3).known_by(other)),
    ]
}

/// 40,000 (0x9c40) with one of its upper bits, or both, turned over, in the order in which they are tried.
const OTHER_PORTS: [u16; 3] = [0xdc40, 0xbc40, 0xfc40];

fn shared() -> Vec<Fixture> {
    let mut conflict =
        Fixture::new("a shared endpoint, every port taken", "A flow that could not be told apart is refused.")
            .nat()
            .set(Change::Share)
            .send(open(), opens_to(B0));
    for port in OTHER_PORTS {
        conflict = conflict.send(open().client_port(port), opens_to(B0));
    }
    let [other, ..] = OTHER_PORTS;
    vec![
        Fixture::new(
            "one client port at two services of one endpoint",
            "The backend knows the later flow by another port, and each reply finds its own.",
        )
        .nat()
        .set(Change::Share)
        .send(open(), opens_to(B0))
        .send(open().port(81), opens_to(B3).known_by(other))
        .answered(B0)
        .says(
            B3,
            segment(SYN | ACK, ACKED - 1, ISN + 1, 0).with(move |frame| frame.destination.set_port(other)),
            Heard::Client { vip_port: 81, port: 40_000 },
        )
        .send(more().port(81), to(B3).known_by(other))
        .send(more(), to(B0)),
        Fixture::new("two services of one endpoint, two ports", "Nothing is rewritten that need not be.")
            .nat()
            .set(Change::Share)
            .send(open(), opens_to(B0))
            .send(open().port(81).client_port(40_001), opens_to(B3)),
        conflict.send(open().port(81), drop(Outcome::DroppedNatConflict)).send(more(), to(B0)),
    ]
}
