//! Fixtures: backends that drain, that are past their deadline, that are gone, and flow tables that were lost.

use ebb_tests::packets::tcp_flag::{ACK, FIN, PSH, RST};
use lb_common::{backend::BackendState, flow::flow_flag as ff, outcome::Outcome};

use crate::fixture::{
    ACKED, B0, B1, Change, Fixture, ISN, ack, data, datagram, drop, fin, flow, more, open, opens_to, reset,
    reset_acking, rst, segment, syn, to,
};

/// Far from every sequence number in use.
const FAR: u32 = 0x4000_0000;
/// A deadline that is ahead.
const AHEAD: i64 = 300;
/// A deadline that has passed.
const PAST: i64 = -1;

pub fn all() -> Vec<Fixture> {
    let mut all = draining();
    all.extend(past_the_deadline());
    all.extend(other_states());
    all.extend(gone());
    all.extend(lost_table());
    all
}

/// A TCP flow to `B0` whose handshake is complete.
fn established(name: &'static str, about: &'static str) -> Fixture {
    Fixture::new(name, about).tcp().send(syn(ISN), opens_to(B0)).answered(B0).send(ack(ISN + 1, ACKED), to(B0))
}

fn draining() -> Vec<Fixture> {
    vec![
        Fixture::new("draining", "Flows stay; new ones go elsewhere.")
            .send(open(), opens_to(B0))
            .answered(B0)
            .set(Change::Drain(B0, B1, AHEAD))
            .send(more(), to(B0))
            .send(open().client_port(40_001), opens_to(B1))
            .flows(&[flow(B0, ff::ESTABLISHED), flow(B1, 0).of_port(40_001)]),
        Fixture::new("draining without a deadline", "Flows stay for as long as they like.")
            .send(open(), opens_to(B0))
            .set(Change::DrainForever(B0, B1))
            .send(more(), to(B0)),
        Fixture::new("draining, and the ring not yet", "The state is looked at again: a stale slot opens no flow.")
            .set(Change::State(B0, BackendState::Draining))
            .send(open(), drop(Outcome::DroppedNoBackend))
            .flows(&[]),
        established("draining, a SYN on an established flow", "The candidate goes to an active backend.")
            .set(Change::Drain(B0, B1, AHEAD))
            .send(syn(FAR), opens_to(B1))
            .send(data(ISN + 1, ACKED, 5), to(B0)),
        Fixture::new("draining, a SYN sent again", "A handshake under way goes on.")
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .set(Change::Drain(B0, B1, AHEAD))
            .send(syn(ISN), to(B0))
            .send(ack(ISN + 1, ACKED), to(B0)),
        Fixture::new("draining, a reused tuple", "A SYN with another number on an opening entry goes elsewhere.")
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .set(Change::Drain(B0, B1, AHEAD))
            .send(syn(FAR), opens_to(B1))
            .flows(&[flow(B1, 0)]),
        Fixture::new("cancelled", "Active again with its slots back: new flows come again.")
            .send(open(), opens_to(B0))
            .set(Change::Drain(B0, B1, AHEAD))
            .set(Change::State(B0, BackendState::Active))
            .set(Change::Ring(Some(B0), None))
            .send(more(), to(B0))
            .send(open().client_port(40_001), opens_to(B0)),
    ]
}

fn past_the_deadline() -> Vec<Fixture> {
    vec![
        established("past the deadline", "Answered by an RST whose number is the acknowledgement just received.")
            .set(Change::Drain(B0, B1, PAST))
            .send(data(ISN + 1, ACKED, 10), reset(ACKED))
            .send(data(ISN + 1, ACKED + 7, 10), reset(ACKED + 7))
            .send(ack(ISN + 1, ACKED), reset(ACKED)),
        established("past the deadline, FIN", "Answered as well.")
            .set(Change::Drain(B0, B1, PAST))
            .send(segment(FIN | ACK, ISN + 1, ACKED, 3), reset(ACKED)),
        established("past the deadline, no acknowledgement", "RFC 9293's other form: number 0, acknowledging all.")
            .set(Change::Drain(B0, B1, PAST))
            .send(segment(PSH, ISN + 1, 0, 10), reset_acking(ISN + 11))
            .send(segment(FIN, ISN + 1, 0, 0), reset_acking(ISN + 2)),
        established("past the deadline, the client's RST", "Passed on, so that the old backend lets go too.")
            .set(Change::Drain(B0, B1, PAST))
            .send(rst(ISN + 1), to(B0)),
        established("past the deadline, SYN", "A new connection, elsewhere.")
            .set(Change::Drain(B0, B1, PAST))
            .send(syn(FAR), opens_to(B1))
            .flows(&[flow(B1, 0).seq(FAR + 1)]),
        established("past the deadline, silent", "Dropped without an answer; a client's RST still gets through.")
            .set(Change::Silent(B0))
            .set(Change::Drain(B0, B1, PAST))
            .send(data(ISN + 1, ACKED, 10), drop(Outcome::DroppedCut))
            .send(rst(ISN + 1), to(B0)),
        Fixture::new("past the deadline, datagram", "Steered anew, which is not a cut.")
            .udp()
            .send(datagram(10), opens_to(B0))
            .set(Change::Drain(B0, B1, PAST))
            .send(datagram(10), opens_to(B1))
            .send(datagram(10), to(B1))
            .flows(&[flow(B1, ff::ESTABLISHED)]),
        established("cut", "Cut flows are refused whatever their backend's state, as long as they are remembered.")
            .set(Change::Cut)
            .send(data(ISN + 1, ACKED, 10), reset(ACKED))
            .send(rst(ISN + 1), to(B0))
            .send(syn(FAR), opens_to(B0))
            .flows(&[flow(B0, 0).seq(FAR + 1)]),
        Fixture::new("cut, datagram", "Steered anew.")
            .udp()
            .send(datagram(10), opens_to(B0))
            .set(Change::Cut)
            .set(Change::Ring(Some(B1), None))
            .send(datagram(10), opens_to(B1))
            .flows(&[flow(B1, 0)]),
    ]
}

fn other_states() -> Vec<Fixture> {
    vec![
        established("drained", "Refused; but a flow that has said goodbye may still acknowledge.")
            .set(Change::State(B0, BackendState::Drained))
            .set(Change::Ring(Some(B1), None))
            .send(data(ISN + 1, ACKED, 10), reset(ACKED)),
        established("drained, last words", "The acknowledgement of the server's FIN gets through.")
            .send(fin(ISN + 1, ACKED), to(B0))
            .set(Change::State(B0, BackendState::Drained))
            .set(Change::Ring(Some(B1), None))
            .send(ack(ISN + 2, ACKED + 1), to(B0)),
        established("unhealthy", "A failed backend keeps nothing.")
            .set(Change::State(B0, BackendState::Unhealthy))
            .set(Change::Ring(Some(B1), None))
            .send(data(ISN + 1, ACKED, 10), reset(ACKED)),
        Fixture::new("unhealthy, datagram", "Steered anew.")
            .udp()
            .send(datagram(10), opens_to(B0))
            .set(Change::State(B0, BackendState::Unhealthy))
            .set(Change::Ring(Some(B1), None))
            .send(datagram(10), opens_to(B1)),
        Fixture::new("unhealthy, but draining", "Flows stay; new ones go elsewhere.")
            .send(open(), opens_to(B0))
            .set(Change::State(B0, BackendState::UnhealthyDraining))
            .send(more(), to(B0))
            .send(open().client_port(40_001), drop(Outcome::DroppedNoBackend)),
        Fixture::new("initial", "What is not checked yet takes no flow.")
            .set(Change::State(B0, BackendState::Initial))
            .send(open(), drop(Outcome::DroppedNoBackend)),
    ]
}

fn gone() -> Vec<Fixture> {
    vec![
        established("another generation", "The flow's backend is gone: its segments are answered by an RST.")
            .set(Change::Replace(B0))
            .send(data(ISN + 1, ACKED, 10), reset(ACKED)),
        established("another generation, silent", "The service's own policy counts, its backend being gone.")
            .set(Change::ServiceSilent)
            .set(Change::Replace(B0))
            .send(data(ISN + 1, ACKED, 10), drop(Outcome::DroppedCut)),
        established("another generation, SYN", "A new flow, of the slot's new owner.")
            .set(Change::Replace(B0))
            .send(syn(FAR), opens_to(B0))
            .flows(&[flow(B0, 0).seq(FAR + 1).next_generation()]),
        established("another generation, RST", "Nobody is left to tell.")
            .set(Change::Replace(B0))
            .send(rst(ISN + 1), drop(Outcome::DroppedCut)),
        Fixture::new("another generation, datagram", "A new flow, of the slot's new owner.")
            .udp()
            .send(datagram(10), opens_to(B0))
            .set(Change::Replace(B0))
            .send(datagram(10), opens_to(B0))
            .flows(&[flow(B0, 0).next_generation()]),
        established("slot free", "As with another generation.")
            .set(Change::Remove(B0))
            .set(Change::Ring(Some(B1), None))
            .send(data(ISN + 1, ACKED, 10), reset(ACKED))
            .send(syn(FAR), opens_to(B1)),
    ]
}

fn lost_table() -> Vec<Fixture> {
    vec![
        established("flow table lost in a drain", "The slot remembers its owner from before, and is asked first.")
            .set(Change::Drain(B0, B1, AHEAD))
            .set(Change::Forget)
            .send(data(ISN + 1, ACKED, 10), to(B0).as_(Outcome::RemembersOwner))
            .flows(&[flow(B0, ff::PROVISIONAL)])
            .send(data(ISN + 11, ACKED, 10), to(B0))
            .flows(&[flow(B0, ff::ESTABLISHED)]),
        Fixture::new("new flows in such a drain", "They go elsewhere all the same.")
            .set(Change::Drain(B0, B1, AHEAD))
            .send(open(), opens_to(B1)),
        Fixture::new("RST miss in such a drain", "It goes to the remembered owner.")
            .tcp()
            .set(Change::Drain(B0, B1, AHEAD))
            .send(rst(ISN), to(B0).as_(Outcome::Stateless))
            .send(segment(RST | ACK, ISN, ACKED, 0), to(B0).as_(Outcome::Stateless))
            .flows(&[]),
        Fixture::new("remembered owner past its deadline", "It is asked no more.")
            .tcp()
            .set(Change::Drain(B0, B1, PAST))
            .send(data(ISN, ACKED, 10), to(B1).as_(Outcome::Adopted)),
        Fixture::new("remembered owner gone", "It is asked no more.")
            .tcp()
            .set(Change::Drain(B0, B1, AHEAD))
            .set(Change::Remove(B0))
            .send(data(ISN, ACKED, 10), to(B1).as_(Outcome::Adopted)),
    ]
}
