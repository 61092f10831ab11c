//! Random frames: sound ones of every kind, most of them damaged somewhere.

use lb_common::hash;

use super::{BACKENDS, backend_slot, cells, cid, server_id};
use crate::{
    packets::{Extension, Frame, Piece, Transport, quic},
    rig::{CLIENT_MAC, Cell, Mode, OWN_MAC, Protocol},
};

/// A generator of numbers (SplitMix64), the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash::mix(self.0) % bound
    }

    /// True once in `n` times.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A frame.
pub fn frame(random: &mut Random) -> Vec<u8> {
    let cells = cells();
    let cell = cells[random.below(cells.len() as u64) as usize];
    let frame = sound(random, cell);
    damaged(random, &frame)
}

/// The frame's bytes, more often than not with damage somewhere.
pub fn damaged(random: &mut Random, frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.bytes();
    match random.below(8) {
        0 | 1 => {}
        2 => {
            let length = 14 + random.below(bytes.len() as u64 - 13) as usize;
            bytes.truncate(length);
        }
        // A byte that matters: lengths, places, protocols.
        3 | 4 => {
            let interesting: &[usize] = match frame.source {
                std::net::SocketAddr::V4(_) => &[0, 2, 3, 6, 7, 9, 16, 19],
                std::net::SocketAddr::V6(_) => &[0, 4, 5, 6, 24, 39, 40, 41, 42, 43],
            };
            let at = frame.ip_offset() + interesting[random.below(interesting.len() as u64) as usize];
            damage(random, &mut bytes, at);
        }
        5 => {
            let at = frame.payload_offset() + random.below(16) as usize;
            damage(random, &mut bytes, at);
        }
        6 => {
            let at = 12 + random.below(10) as usize;
            damage(random, &mut bytes, at);
        }
        _ => {
            for _ in 0..=random.below(4) {
                let at = 12 + random.below(bytes.len() as u64 - 12) as usize;
                damage(random, &mut bytes, at);
            }
        }
    }
    bytes
}

fn damage(random: &mut Random, bytes: &mut [u8], at: usize) {
    let new = match random.below(3) {
        // One bit, one off, anything.
        0 => bytes.get(at).map(|byte| byte ^ 1 << random.below(8)),
        1 => bytes.get(at).map(|byte| byte.wrapping_add(if random.once_in(2) { 1 } else { 255 })),
        _ => Some(random.below(256) as u8),
    };
    if let (Some(byte), Some(new)) = (bytes.get_mut(at), new) {
        *byte = new;
    }
}

/// A frame as a library builds it, for a service or, under `nat`, from one of its backends.
pub fn sound(random: &mut Random, cell: Cell) -> Frame {
    let transport = match cell.protocol {
        Protocol::Tcp => {
            let flags = random.below(64) as u8;
            let mut transport = Transport::tcp(flags, random.below(1 << 32) as u32, random.below(1 << 32) as u32);
            if let Transport::Tcp { options, .. } = &mut transport {
                *options = vec![1; random.below(4) as usize * 4];
            }
            transport
        }
        Protocol::Udp => Transport::Udp { checksum: random.once_in(2) || cell.vip().is_ipv6() },
    };
    let mut frame = Frame::new(cell.client(), cell.vip(), transport);
    (frame.source_mac, frame.destination_mac) = (CLIENT_MAC, OWN_MAC);
    // Few enough that flows meet again.
    frame.source.set_port(random.below(48) as u16);
    if random.once_in(16) {
        frame.hop_limit = random.below(3) as u8;
    }
    frame.class = random.below(256) as u8;
    if cell.mode == Mode::Nat && random.once_in(2) {
        let service = cells().iter().position(|other| *other == cell).unwrap_or(0);
        let backend = backend_slot(service, random.below(BACKENDS.into()) as u32);
        let row = cell.backend_row(backend as u8, service as u16);
        frame.destination = frame.source;
        frame.source = (std::net::IpAddr::from(row.addr), u16::from_be(row.port)).into();
    } else if random.once_in(6) {
        frame.destination.set_port([81, 443, 0, 8080][random.below(4) as usize]);
    }
    frame.tags = (0..random.below(3)).map(|tag| 100 + tag as u16).collect();
    frame.payload = vec![0x5a; random.below(64) as usize];
    if cell.protocol == Protocol::Udp && random.once_in(2) {
        frame.payload = quic_packet(random, cell);
    }
    if random.once_in(4) {
        frame.ip_options = vec![1; random.below(11) as usize * 4];
        frame.extensions = match random.below(3) {
            0 => vec![],
            1 => vec![Extension::HopByHop],
            _ => vec![Extension::Destination],
        };
    }
    if random.once_in(4) {
        // Few identifications, so that later fragments meet their first.
        let piece = Piece { id: random.below(8) as u32, offset: 0, more: true };
        frame.piece = Some(Piece { offset: [0, 0, 1, 2, 3, 40][random.below(6) as usize], ..piece });
    }
    if random.once_in(8) {
        frame.padding = vec![random.below(256) as u8; random.below(40) as usize];
    }
    frame
}

/// A packet of QUIC, to an id of one of the service's servers more often than not.
fn quic_packet(random: &mut Random, cell: Cell) -> Vec<u8> {
    let service = cells().iter().position(|other| *other == cell).unwrap_or(0);
    let (_, rotation) = cid(service).unwrap_or((4, 0));
    let rotation = if random.once_in(8) { random.below(8) as u8 } else { rotation };
    let server = server_id(service, random.below(BACKENDS.into()) as u32);
    let id = if random.once_in(8) {
        (0..random.below(21)).map(|_| random.below(256) as u8).collect()
    } else {
        quic::id(rotation, &server)
    };
    let version = [quic::V1, quic::V2, 0][random.below(3) as usize];
    let header = match random.below(4) {
        0 => quic::Header::Short,
        1 => quic::Header::Greased,
        _ => quic::Header::Long(version, random.below(4) as u8),
    };
    quic::packet(header, &id)
}
