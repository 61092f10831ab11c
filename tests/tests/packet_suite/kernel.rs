//! The scenarios of the kernel's own benchmark of an XDP balancer (tools/testing/selftests/bpf/benchs/bench_xdp_lb.c),
//! under names that say so; each runs in every mode, family and protocol that it holds for, where the kernel's has a
//! scenario for some. What it drops for want of support (options, fragments) Ebb treats by its own rules.

use ebb_tests::packets::{Extension, Piece, Transport};
use lb_common::outcome::Outcome;

use crate::fixture::{
    ACKED, B0, Change, Expect, Fixture, ISN, Input, ack, data, datagram, more, open, opens_to, pass, rst, syn, to,
};

/// IP protocol numbers of ICMP and ICMPv6.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

pub fn all() -> Vec<Fixture> {
    let untouched = || pass(Outcome::NotForService);
    let echo = |number, kind: u8| {
        open().with(move |frame| {
            frame.transport = Transport::Other(number);
            frame.payload = vec![kind, 0, 0, 0, 0, 1, 0, 1];
        })
    };
    let first = Piece { id: 0x1234, offset: 0, more: true };
    vec![
        Fixture::new("kernel bench: LRU hit", "A known flow, its entry hot.")
            .send(open(), opens_to(B0))
            .send(more(), to(B0))
            .send(more(), to(B0)),
        Fixture::new("kernel bench: consistent hash, TCP", "A segment with no entry is placed by the ring.")
            .tcp()
            .send(ack(ISN, ACKED), to(B0).as_(Outcome::Adopted)),
        Fixture::new("kernel bench: consistent hash, UDP", "A datagram with no entry is placed by the ring.")
            .udp()
            .send(datagram(100), opens_to(B0)),
        Fixture::new("kernel bench: SYN", "It bypasses the look-up of a flow that is not there.")
            .tcp()
            .send(syn(ISN), opens_to(B0)),
        Fixture::new("kernel bench: RST miss", "No entry is made.")
            .tcp()
            .send(rst(ISN), to(B0).as_(Outcome::Stateless))
            .flows(&[]),
        Fixture::new("kernel bench: no VIP", "Passed.").send(open().port(9999), untouched()),
        Fixture::new("kernel bench: ICMP", "An echo request to an address that is no VIP passes.")
            .v4()
            .send(echo(ICMP, 8).with(|frame| frame.destination.set_ip([10, 77, 0, 1].into())), untouched()),
        Fixture::new("kernel bench: ICMPv6", "An echo request to an address that is no VIP passes.")
            .v6()
            .send(echo(ICMPV6, 128).with(|frame| frame.destination.set_ip(frame.source.ip())), untouched()),
        Fixture::new("kernel bench: no IP", "ARP passes.")
            .send(open().patched(|_, bytes| bytes[12..14].copy_from_slice(&[0x08, 0x06])), untouched()),
        Fixture::new("kernel bench: fragment for no VIP", "Passed.").send(
            open().port(9999).piece(first).with(|frame| frame.destination.set_ip(frame.source.ip())),
            untouched(),
        ),
        Fixture::new("kernel bench: options", "The kernel's drops them; here the packet is forwarded as it is.")
            .v4()
            .send(open().with(|frame| frame.ip_options = vec![1, 1, 1, 0]), opens_to(B0)),
        Fixture::new("kernel bench: options, IPv6", "Extension headers are passed over.")
            .v6()
            .send(open().extensions(&[Extension::HopByHop]), opens_to(B0)),
        Fixture::new("kernel bench: fragment", "The kernel's drops it; here a first fragment opens its flow.")
            .send(open().long(16).piece(first), opens_to(B0)),
        Fixture::new("kernel bench: misses, TCP", "Many flows without entries: each is placed by the ring, and once.")
            .tcp()
            .each(0..100, |port| (ack(ISN, ACKED).client_port(port), to(B0).as_(Outcome::Adopted)))
            .each(0..100, |port| (data(ISN, ACKED, 16).client_port(port), to(B0))),
        Fixture::new("kernel bench: misses, UDP", "Many flows without entries: each is placed by the ring, and once.")
            .udp()
            .each(0..100, |port| (datagram(16).client_port(port), opens_to(B0)))
            .each(0..100, |port| (datagram(16).client_port(port), to(B0))),
        Fixture::new("kernel bench: warm-up", "Every other flow is known.")
            .tcp()
            .each((0..100).step_by(2), |port| (syn(ISN).client_port(port), opens_to(B0)))
            .each((0..100).step_by(2), |port| (ack(ISN + 1, ACKED).client_port(port), to(B0)))
            .each((1..100).step_by(2), |port| (ack(ISN + 1, ACKED).client_port(port), to(B0).as_(Outcome::Adopted))),
        Fixture::new("kernel bench: truncated", "A header that is not all there passes.")
            .send(more().patched(|_, bytes| bytes.truncate(30)), pass(Outcome::PassedMalformed)),
        Fixture::new("kernel bench: many flows", "Each port its own entry; every tenth is looked at again.")
            .set(Change::Ring(Some(B0), None))
            .many(),
        Fixture::new("kernel bench: hit with data", "As long as a frame can be.")
            .send(open(), opens_to(B0))
            .send(more().with(|frame| frame.payload = vec![0x5a; 1400]), to(B0))
            .send(more().with(|frame| frame.payload = vec![0xa5; 1000]), to(B0)),
        Fixture::new("kernel bench: established TCP", "Handshake, data, acknowledgement.")
            .tcp()
            .send(syn(ISN), opens_to(B0))
            .send(ack(ISN + 1, ACKED), to(B0))
            .send(data(ISN + 1, ACKED, 512), to(B0)),
    ]
}

impl Fixture {
    /// A hundred flows, and a packet more on every tenth.
    fn many(self) -> Self {
        self.each(0..100, |port| (open().client_port(port), opens_to(B0)))
            .each((0..100).step_by(10), |port| (more().client_port(port), to(B0)))
    }

    /// A packet from each of the client's ports, counted from 20,000 on.
    fn each(mut self, ports: impl Iterator<Item = u16>, packet: impl Fn(u16) -> (Input, Expect)) -> Self {
        for port in ports {
            let (input, expect) = packet(20_000 + port);
            self = self.send(input, expect);
        }
        self
    }
}
