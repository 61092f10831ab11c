//! What floods are made of.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ebb_tests_ebpf::flood::{FRAME, Flood, MASK_V4, NET_V4, NET_V6, WORDS, Word, sum};
use lb_common::outcome::Outcome;

use crate::{
    lab::Plan,
    packets::{Frame, Piece, Transport, tcp_flag},
};

/// What a flood is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// SYNs, none of which goes on.
    Syn,
    /// Segments of connections that nobody has.
    Ack,
    /// Datagrams, each from elsewhere.
    Udp,
    /// First fragments of datagrams, each of another one.
    FirstFragments,
    /// Later fragments without a first.
    LaterFragments,
    /// Echo requests.
    Echo,
    /// "Destination unreachable", about connections that nobody has.
    Unreachable,
}

/// All of them.
pub const KINDS: [Kind; 7] =
    [Kind::Syn, Kind::Ack, Kind::Udp, Kind::FirstFragments, Kind::LaterFragments, Kind::Echo, Kind::Unreachable];

/// What is flooded: services on one VIP.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// For TCP.
    pub tcp: SocketAddr,
    /// For UDP.
    pub udp: SocketAddr,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Syn => "syn",
            Self::Ack => "ack",
            Self::Udp => "udp",
            Self::FirstFragments => "first_fragments",
            Self::LaterFragments => "later_fragments",
            Self::Echo => "echo",
            Self::Unreachable => "unreachable",
        })
    }
}

impl Kind {
    /// What should become of its packets.
    pub const fn outcomes(self) -> &'static [Outcome] {
        match self {
            Self::Syn | Self::Udp | Self::FirstFragments => &[Outcome::NewFlow],
            // During a drain its former slots ask their old owner first.
            Self::Ack => &[Outcome::Adopted, Outcome::RemembersOwner],
            Self::LaterFragments => &[Outcome::DroppedFragment],
            Self::Echo => &[Outcome::EchoAnswered],
            Self::Unreachable => &[Outcome::IcmpError],
        }
    }
}

/// In front of the IP header.
const ETHERNET: usize = 14;
/// The neighbour that floods come from.
const NEIGHBOUR: [u8; 6] = [0x02, 0xeb, 0xb0, 0, 0xfe, 1];
/// Error, and error about the network: RFC 792 and RFC 4443.
const UNREACHABLE: [u8; 2] = [3, 1];
const ECHO: [u8; 2] = [8, 128];

/// The frames of a flood; where they go out is up to the sender.
pub(super) fn flood(kind: Kind, targets: Targets) -> Flood {
    let layout = Layout::of(targets.tcp.ip());
    let target =
        if matches!(kind, Kind::Udp | Kind::FirstFragments | Kind::LaterFragments) { targets.udp } else { targets.tcp };
    let mut frame = Frame::new(SocketAddr::new(layout.source, 0), target, layout.transport(kind));
    frame.source_mac = NEIGHBOUR;
    frame.destination_mac = Plan::balancer_mac();
    frame.payload = layout.payload(kind, target);
    frame.piece = match kind {
        Kind::FirstFragments => Some(Piece { id: 0, offset: 0, more: true }),
        Kind::LaterFragments => Some(Piece { id: 0, offset: 100, more: false }),
        _ => None,
    };
    let at = frame.payload_offset();
    let mut bytes = frame.bytes();
    if matches!(kind, Kind::Echo | Kind::Unreachable) {
        let total = layout.pseudo_header(&bytes[at..], target.ip()) + ones(&bytes[at..]);
        bytes[at + 2..at + 4].copy_from_slice(&(!fold(total)).to_be_bytes());
    }
    layout.finish(&bytes, at, kind)
}

/// Where things stand in a family.
struct Layout {
    source: IpAddr,
    v6: bool,
}

impl Layout {
    fn of(target: IpAddr) -> Self {
        let v6 = target.is_ipv6();
        let source = if v6 { Ipv6Addr::from(u128::from(NET_V6) << 96).into() } else { Ipv4Addr::from(NET_V4).into() };
        Self { source, v6 }
    }

    fn transport(&self, kind: Kind) -> Transport {
        match kind {
            Kind::Syn => Transport::tcp(tcp_flag::SYN, 0, 0),
            Kind::Ack => Transport::tcp(tcp_flag::ACK, 0, 5000),
            // The checksum of a fragmented datagram covers what is never sent.
            Kind::Udp | Kind::FirstFragments => Transport::Udp { checksum: kind == Kind::Udp },
            Kind::LaterFragments => Transport::Other(17),
            Kind::Echo | Kind::Unreachable => Transport::Other(if self.v6 { 58 } else { 1 }),
        }
    }

    fn payload(&self, kind: Kind, target: SocketAddr) -> Vec<u8> {
        let family = usize::from(self.v6);
        match kind {
            Kind::Syn | Kind::Ack => Vec::new(),
            Kind::Udp | Kind::FirstFragments | Kind::LaterFragments => vec![7; 16],
            Kind::Echo => [&[ECHO[family], 0, 0, 0], &[0_u8; 20][..]].concat(),
            Kind::Unreachable => {
                let quoted = Frame::new(target, SocketAddr::new(self.source, 0), Transport::tcp(tcp_flag::ACK, 0, 0));
                let code = u8::from(!self.v6);
                [&[UNREACHABLE[family], code, 0, 0, 0, 0, 0, 0], &quoted.bytes()[ETHERNET..]].concat()
            }
        }
    }

    /// Length of the IP header.
    fn ip(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    /// The words that differ. Under IPv4 the address counts in the header's checksum; in the transport's wherever there is a
    /// pseudo-header.
    fn words(&self, at: usize, kind: Kind) -> [Word; WORDS] {
        let pseudo = matches!(kind, Kind::Syn | Kind::Ack | Kind::Udp) || (self.v6 && kind != Kind::LaterFragments);
        let random = |at: usize, mask: u32, sums: u32| Word { at: at as u32, sums, base: 0, mask };
        let address = |at: usize, sums: u32| {
            if self.v6 { random(at + 12, u32::MAX, sums) } else { random(at, !MASK_V4, sums) }
        };
        let source = if self.v6 { ETHERNET + 8 } else { ETHERNET + 12 };
        let source = address(source, sum::IP | if pseudo { sum::TRANSPORT } else { 0 });
        let all = |at: usize| random(at, u32::MAX, sum::TRANSPORT);
        // The destination's port follows the source's, IPv4's flags and offset the identification.
        let first_half = |at: usize, sums: u32| random(at, 0xffff_0000, sums);
        let port = first_half(at, sum::TRANSPORT);
        let identification =
            if self.v6 { random(ETHERNET + self.ip() + 4, u32::MAX, 0) } else { first_half(ETHERNET + 4, sum::IP) };
        let none = Word::default();
        let quoted = at + 8;
        let client = if self.v6 { quoted + 24 } else { quoted + 16 };
        match kind {
            Kind::Syn | Kind::Ack => [source, port, all(at + 4), none],
            Kind::Udp => [source, port, none, none],
            Kind::FirstFragments => [source, port, identification, none],
            Kind::LaterFragments => [source, identification, none, none],
            Kind::Echo => [source, all(at + 4), none, none],
            Kind::Unreachable => {
                [source, address(client, sum::TRANSPORT), random(quoted + self.ip(), 0xffff, sum::TRANSPORT), none]
            }
        }
    }

    /// Zeroes what is random, and takes it out of the sums.
    fn finish(&self, bytes: &[u8], at: usize, kind: Kind) -> Flood {
        let mut frame = [0; FRAME];
        frame[..bytes.len()].copy_from_slice(bytes);
        let checksum = match kind {
            Kind::Syn | Kind::Ack => at + 16,
            Kind::Udp => at + 6,
            Kind::FirstFragments | Kind::LaterFragments => 0,
            Kind::Echo | Kind::Unreachable => at + 2,
        };
        let sums_at = [if self.v6 { 0 } else { ETHERNET + 10 }, checksum];
        let mut sums = sums_at.map(|at| if at == 0 { 0 } else { u32::from(!half(&frame, at)) });
        let mut words = self.words(at, kind);
        for word in words.iter_mut().filter(|word| word.at != 0) {
            let at = word.at as usize;
            // What is fixed in the word stays.
            word.base |= (u32::from(half(&frame, at)) << 16 | u32::from(half(&frame, at + 2))) & !word.mask;
            for (sum, bit) in sums.iter_mut().zip([sum::IP, sum::TRANSPORT]) {
                if word.sums & bit != 0 {
                    *sum += u32::from(!half(&frame, at)) + u32::from(!half(&frame, at + 2));
                }
            }
        }
        Flood {
            frame: bytemuck::cast(frame),
            words,
            sums,
            sums_at: sums_at.map(|at| at as u32),
            state: 1,
            interface: 0,
            pad: [0; 9],
        }
    }

    /// The sum of the pseudo-header that ICMPv6 has (RFC 8200, section 8.1), and ICMP has not.
    fn pseudo_header(&self, payload: &[u8], target: IpAddr) -> u32 {
        let (IpAddr::V6(source), IpAddr::V6(target)) = (self.source, target) else { return 0 };
        ones(&source.octets()) + ones(&target.octets()) + payload.len() as u32 + 58
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The sum of 16-bit words.
fn ones(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::verify;

    /// What the program in the kernel does with a row, for one choice of the random bits.
    fn one(flood: &Flood, random: u32) -> Vec<u8> {
        let mut frame: [u8; FRAME] = bytemuck::cast(flood.frame);
        let mut sums = flood.sums;
        for (word, random) in flood.words.iter().zip([random, !random, random.rotate_left(7), 0]) {
            if word.at != 0 {
                let value = word.base | random & word.mask;
                frame[word.at as usize..][..4].copy_from_slice(&value.to_be_bytes());
                for (sum, bit) in sums.iter_mut().zip([sum::IP, sum::TRANSPORT]) {
                    *sum += if word.sums & bit != 0 { (value >> 16) + (value & 0xffff) } else { 0 };
                }
            }
        }
        for (sum, at) in sums.into_iter().zip(flood.sums_at) {
            if at != 0 {
                frame[at as usize..][..2].copy_from_slice(&(!fold(sum)).to_be_bytes());
            }
        }
        frame.to_vec()
    }

    #[test]
    fn every_frame_is_right_and_differs() {
        for (tcp, udp) in [("10.9.0.1:80", "10.9.0.1:53"), ("[fd00:9::1]:80", "[fd00:9::1]:53")] {
            let [tcp, udp] = [tcp, udp].map(|address| address.parse().expect("an address"));
            for kind in KINDS {
                let flood = flood(kind, Targets { tcp, udp });
                let frames = [0, 0x1234_5678, u32::MAX].map(|random| one(&flood, random));
                for frame in &frames {
                    verify(frame).unwrap_or_else(|broken| panic!("{kind} to {tcp}: {broken:?}: {frame:02x?}"));
                }
                assert!(frames[0] != frames[1] && frames[1] != frames[2], "{kind} to {tcp}");
            }
        }
    }
}
