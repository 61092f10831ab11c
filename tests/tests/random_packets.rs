//! Random frames through the real program, in every mode, each compared with the model: action, counter, backend, every
//! byte. And frames that are bad in every way that there is a place for.
//!
//! `EBB_RANDOM_PACKETS` says how many (a million for the long run), `EBB_RANDOM_SEED` where to start; both are printed.

use std::{collections::BTreeMap, env, sync::LazyLock, time::SystemTime};

use ebb_tests::{
    model::{self, MISTAKES, Model, Random, Run, backends, cells, damaged, frame, sound},
    packets::{Extension, Frame, Transport},
    rig::{Cell, Mode, OWN_MAC, Protocol, Rig, leave_the_world},
};
use lb_common::outcome::Outcome;

/// After so many packets, a few seconds' worth, all is forgotten on both sides: the program would forget fragments by and
/// by, and no flow is to be displaced for want of room. Fewer on a machine that has the time for few.
static MEMORY: LazyLock<u64> = LazyLock::new(|| number("EBB_RANDOM_PACKETS", PACKETS).min(20_000));

/// How many random packets are tried.
const PACKETS: u64 = 40_000;

/// The program in the model's world, and the model.
struct Pair {
    rig: Rig,
    model: Model,
    packets: u64,
    kinds: BTreeMap<&'static str, u64>,
}

impl Pair {
    fn new() -> Self {
        leave_the_world().expect("a namespace of its own");
        let mut rig = Rig::load(model::SIZES).expect("load the program");
        model::set_up(&mut rig).expect("set up the world");
        Self { rig, model: Model::new(), packets: 0, kinds: BTreeMap::new() }
    }

    fn run(&mut self, frame: Vec<u8>) -> Run {
        if self.packets.is_multiple_of(*MEMORY) {
            self.rig.forget_fragments().expect("empty the map");
            self.rig.flows.clear();
            self.model.forget();
        }
        self.packets += 1;
        let before = self.rig.counters();
        let (action, out) = self.rig.run(&frame).expect("test-run");
        let after = self.rig.counters();
        let mut counted = Outcome::ALL.iter().filter(|&&outcome| after.outcome(outcome) != before.outcome(outcome));
        let outcome = *counted.next().expect("every packet is counted");
        assert_eq!(counted.next(), None, "and once");
        *self.kinds.entry(outcome.name()).or_default() += 1;
        Run { frame, action, outcome, out }
    }

    /// Runs the frame and holds it against the model.
    fn try_frame(&mut self, frame: Vec<u8>, what: impl FnOnce() -> String) {
        let run = self.run(frame);
        if let Some(difference) = self.model.difference(&run) {
            panic!("{}: {difference}", what());
        }
    }

    /// A test that never gets past the first check would compare nothing.
    fn saw(&self, outcomes: &[Outcome]) {
        println!("{} packets: {:?}", self.packets, self.kinds);
        for outcome in outcomes {
            assert!(self.kinds.contains_key(outcome.name()), "no packet was counted as {}", outcome.name());
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

#[test]
fn the_program_does_what_the_model_says() {
    let packets = number("EBB_RANDOM_PACKETS", PACKETS);
    let clock = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    let seed = number("EBB_RANDOM_SEED", clock);
    println!("EBB_RANDOM_SEED={seed} EBB_RANDOM_PACKETS={packets}");
    let (mut pair, mut random) = (Pair::new(), Random::new(seed));
    for index in 0..packets {
        let frame = frame(&mut random);
        pair.try_frame(frame, || format!("packet {index} of EBB_RANDOM_SEED={seed}"));
    }
    pair.saw(&[
        Outcome::NotForService,
        Outcome::PassedMalformed,
        Outcome::DroppedMalformed,
        Outcome::DroppedHopLimit,
        Outcome::NewFlow,
        Outcome::Forwarded,
        Outcome::Adopted,
        Outcome::RemembersOwner,
        Outcome::Stateless,
        Outcome::Reply,
        Outcome::Fragment,
    ]);
}

#[test]
fn every_seeded_mistake_is_noticed() {
    let (mut pair, mut random) = (Pair::new(), Random::new(1));
    let runs: Vec<Run> = (0..20_000).map(|_| pair.run(frame(&mut random))).collect();
    let differs = |mut model: Model| {
        runs.chunks(*MEMORY as usize).find_map(|life| {
            model.forget();
            life.iter().find_map(|run| model.difference(run))
        })
    };
    assert_eq!(differs(Model::new()), None, "without a mistake there is nothing to notice");
    for mistake in MISTAKES {
        let difference = differs(Model::mistaken(mistake));
        println!("{mistake:?}: {difference:?}");
        assert!(difference.is_some(), "{mistake:?} makes no difference in {} packets", runs.len());
    }
}

/// A plain packet of every kind, and ones with all that may stand around: tags, options, extension headers.
fn specimens(cell: Cell) -> Vec<Frame> {
    let transport = || match cell.protocol {
        Protocol::Tcp => Transport::tcp(ebb_tests::packets::tcp_flag::ACK, 7, 9),
        Protocol::Udp => Transport::Udp { checksum: true },
    };
    let mut plain = Frame::new(cell.client(), cell.vip(), transport());
    (plain.source_mac, plain.destination_mac) = (ebb_tests::rig::CLIENT_MAC, OWN_MAC);
    plain.payload = vec![0x5a; 10];
    let mut rich = plain.clone();
    rich.tags = vec![5, 6];
    rich.ip_options = vec![1; 8];
    rich.extensions = vec![Extension::HopByHop, Extension::Destination];
    rich.padding = vec![0xee; 12];
    let mut specimens = vec![plain.clone(), rich];
    if cell.mode == Mode::Nat {
        let service = cells().iter().position(|other| *other == cell).expect("one of them");
        for row in backends().iter().filter(|row| usize::from(row.service) == service) {
            let mut reply = plain.clone();
            reply.destination = cell.client();
            reply.source = (std::net::IpAddr::from(row.addr), u16::from_be(row.port)).into();
            specimens.push(reply);
        }
    }
    specimens
}

#[test]
fn frames_cut_short_at_every_byte_go_nowhere_else() {
    let mut pair = Pair::new();
    for cell in cells() {
        for frame in specimens(cell) {
            let bytes = frame.bytes();
            for length in 14..=bytes.len() {
                pair.try_frame(bytes[..length].to_vec(), || format!("{cell}, cut to {length}: {frame:?}"));
            }
        }
    }
    pair.saw(&[Outcome::NotForService, Outcome::PassedMalformed, Outcome::NewFlow]);
}

#[test]
fn garbage_in_every_byte_of_the_headers_goes_nowhere_else() {
    let mut pair = Pair::new();
    for cell in cells() {
        for frame in specimens(cell) {
            let bytes = frame.bytes();
            let headers = frame.payload_offset() + if cell.protocol == Protocol::Tcp { 20 } else { 8 };
            // The addresses of the link layer are no business of the program's.
            for at in 12..headers {
                let is = bytes[at];
                let bits = (0..8).map(|bit| is ^ 1 << bit);
                let near =
                    [is.wrapping_add(1), is.wrapping_sub(1), !is, 0, 1, 4, 6, 17, 44, 60, 0x45, 0x4f, 0x60, 0xff];
                for garbage in bits.chain(near) {
                    let mut bytes = bytes.clone();
                    bytes[at] = garbage;
                    pair.try_frame(bytes, || format!("{cell}, byte {at} is {garbage:#x}: {frame:?}"));
                }
            }
        }
    }
    pair.saw(&[
        Outcome::NotForService,
        Outcome::PassedMalformed,
        Outcome::DroppedMalformed,
        Outcome::DroppedHopLimit,
        Outcome::Forwarded,
        Outcome::Reply,
    ]);
}

#[test]
fn lengths_lie_and_flags_contradict_and_nothing_goes_elsewhere() {
    let mut pair = Pair::new();
    let mut random = Random::new(7);
    for cell in cells() {
        for frame in specimens(cell) {
            let (bytes, ip, transport) = (frame.bytes(), frame.ip_offset(), frame.payload_offset());
            let v4 = frame.source.is_ipv4();
            // Every header length, every value: the IP header's, the packet's, the datagram's or the segment's.
            let own = if cell.protocol == Protocol::Tcp { [transport + 12; 2] } else { [transport + 4, transport + 5] };
            let lengths = if v4 { [ip, ip + 2, ip + 3] } else { [ip + 4, ip + 5, ip + 41] };
            for at in lengths.into_iter().chain(own) {
                for value in 0..=255 {
                    let mut bytes = bytes.clone();
                    bytes[at] = value;
                    pair.try_frame(bytes, || format!("{cell}, length at {at} is {value:#x}: {frame:?}"));
                }
            }
            if cell.protocol == Protocol::Udp {
                continue;
            }
            // Every combination of flags, on flows unknown, opening, under way and gone by.
            for flags in 0..=255 {
                for state in 0..4 {
                    let mut frame = frame.clone();
                    let client = if frame.source == cell.client() { &mut frame.source } else { &mut frame.destination };
                    client.set_port(1000 + u16::from(flags) * 4 + state);
                    let mut before = frame.clone();
                    (before.source, before.destination) =
                        (std::net::SocketAddr::new(cell.client().ip(), before_port(cell, &frame)), cell.vip());
                    for flags in [2, 16, 1].into_iter().take(state.into()) {
                        before.transport = Transport::tcp(flags, 6 + u32::from(flags == 16), 9);
                        pair.try_frame(before.bytes(), || format!("{cell}, before flags: {before:?}"));
                    }
                    let mut bytes = frame.bytes();
                    bytes[frame.payload_offset() + 13] = flags;
                    pair.try_frame(bytes, || format!("{cell}, flags {flags:#x} in state {state}: {frame:?}"));
                }
            }
            // And several lies at once.
            for _ in 0..200 {
                let mut several = damaged(&mut random, &frame);
                if let Some(byte) = several.get_mut(ip) {
                    *byte ^= 1;
                }
                pair.try_frame(several, || format!("{cell}, several lies: {frame:?}"));
            }
            let frame = sound(&mut random, cell).bytes();
            pair.try_frame(frame, || format!("{cell}, sound"));
        }
    }
    pair.saw(&[Outcome::PassedMalformed, Outcome::DroppedMalformed, Outcome::Stateless, Outcome::Reply]);
}

/// The client's port of a frame in either direction.
fn before_port(cell: Cell, frame: &Frame) -> u16 {
    if frame.source.ip() == cell.client().ip() { frame.source.port() } else { frame.destination.port() }
}
