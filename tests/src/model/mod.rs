//! What the program must do with any frame at all, said a second time and by other means: a plain walk over bytes, with
//! none of the program's code but the steering hash, which is a contract between nodes.
//!
//! The world it speaks of is one of four `dsr` services, each family and protocol, whose backends are all in service and
//! whose rings stay as they are: then a packet's fate does not hang on what came before, but for fragments.

mod random;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_common::{hash, outcome::Outcome, ring};

pub use self::random::{Random, frame};
use crate::{
    lab::FAMILIES,
    rig::{Cell, Mode, PROTOCOLS, Protocol},
};

/// Backends of each service.
pub const BACKENDS: u32 = 3;
/// Slots of each ring.
pub const RING: u32 = 4099;

/// The services, by slot.
pub fn cells() -> Vec<Cell> {
    FAMILIES
        .into_iter()
        .flat_map(|family| PROTOCOLS.map(|protocol| Cell { mode: Mode::Dsr, family, protocol }))
        .collect()
}

/// Backend slot of a service's backend.
pub fn backend_slot(service: usize, backend: u32) -> u32 {
    service as u32 * BACKENDS + backend
}

/// Which backend owns a slot of a ring: mixed up, so that neighbours differ.
pub fn owner(service: usize, slot: u32) -> u32 {
    (hash::mix(u64::from(slot) << 8 | service as u64) % u64::from(BACKENDS)) as u32
}

/// What must become of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Passed or dropped, and counted so.
    Ends(Outcome),
    /// Sent to that backend slot as a packet of a flow, known or new.
    To(u32),
    /// Sent to that backend slot as a later fragment.
    Fragment(u32),
}

/// A mistake to make on purpose: a comparison that does not notice it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// Looks behind one tag only.
    OneTag,
    /// Takes every IPv4 header for twenty bytes.
    NoOptions,
    /// Believes any total length.
    AnyLength,
    /// Takes an extension header for eight bytes shorter than it is.
    ShortExtensions,
    /// Does not look at IPv6 extensions at all.
    NoExtensions,
    /// Takes every fragment for a whole packet.
    NoFragments,
    /// Does not check the TCP header's length.
    AnyTcpHeader,
    /// Does not check the datagram's own length.
    AnyUdpLength,
    /// Steers by the ports the other way round.
    SwappedPorts,
    /// Steers to the next slot of the ring.
    NextSlot,
    /// Lets a port do for both protocols.
    AnyProtocol,
    /// Lets a later fragment overwrite a TCP header.
    TinyFragments,
}

/// All of them.
pub const MISTAKES: [Mistake; 12] = [
    Mistake::OneTag,
    Mistake::NoOptions,
    Mistake::AnyLength,
    Mistake::ShortExtensions,
    Mistake::NoExtensions,
    Mistake::NoFragments,
    Mistake::AnyTcpHeader,
    Mistake::AnyUdpLength,
    Mistake::SwappedPorts,
    Mistake::NextSlot,
    Mistake::AnyProtocol,
    Mistake::TinyFragments,
];

/// What the fragments of a packet have in common.
type Whose = (IpAddr, IpAddr, u32, u8);

/// The model, with what it remembers.
#[derive(Debug, Default)]
pub struct Model {
    mistake: Option<Mistake>,
    fragments: HashMap<Whose, u32>,
}

/// The IP header, as far as it matters.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Where what follows begins in the frame.
    payload: usize,
    /// Bytes of what follows that belong to the packet.
    length: Option<usize>,
    /// Identification, offset in units of eight bytes, more to come.
    piece: Option<(u32, u16, bool)>,
}

impl Model {
    /// A model that makes a mistake.
    pub fn mistaken(mistake: Mistake) -> Self {
        Self { mistake: Some(mistake), ..Self::default() }
    }

    /// Forgets the fragments seen: the program gives up waiting for them after a time.
    pub fn forget(&mut self) {
        self.fragments.clear();
    }

    fn errs(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// The fate of a frame.
    pub fn fate(&mut self, frame: &[u8]) -> Fate {
        self.follow(frame).unwrap_or_else(Fate::Ends)
    }

    fn follow(&mut self, frame: &[u8]) -> Result<Fate, Outcome> {
        let (kind, at) = self.link(frame).ok_or(Outcome::NotForService)?;
        let ip = match kind {
            0x0800 => self.ipv4(frame, at),
            0x86dd => self.ipv6(frame, at),
            _ => return Err(Outcome::NotForService),
        };
        let ip = ip.ok_or(Outcome::PassedMalformed)?;
        if let Some((id, offset, _)) = ip.piece
            && offset != 0
        {
            return self.later(&ip, id, offset);
        }
        if ip.protocol != 6 && ip.protocol != 17 {
            return Err(Outcome::NotForService);
        }
        let ports = frame.get(ip.payload..ip.payload + 4).ok_or(Outcome::PassedMalformed)?;
        let (client, port) = (number(&ports[..2]), number(&ports[2..]));
        let service = self.service(&ip, port).ok_or(Outcome::NotForService)?;
        if !self.is_sound(frame, &ip) {
            return Err(Outcome::DroppedMalformed);
        }
        let backend = self.steer(service, &ip, client, port);
        if let Some((id, ..)) = ip.piece {
            self.fragments.insert(whose(&ip, id), backend);
        }
        Ok(Fate::To(backend))
    }

    /// The EtherType behind at most two tags, and where the packet begins.
    fn link(&self, frame: &[u8]) -> Option<(u16, usize)> {
        let most = if self.errs(Mistake::OneTag) { 1 } else { 2 };
        let mut at = 12;
        for _ in 0..most {
            if !matches!(number(frame.get(at..at + 2)?), 0x8100 | 0x88a8) {
                break;
            }
            at += 4;
        }
        Some((number(frame.get(at..at + 2)?), at + 2))
    }

    fn ipv4(&self, frame: &[u8], at: usize) -> Option<Ip> {
        let header = frame.get(at..at + 20)?;
        let (version, mut words) = (header[0] >> 4, usize::from(header[0] & 15));
        let total = usize::from(number(&header[2..4]));
        if version != 4 || words < 5 || total < words * 4 {
            return None;
        }
        if at + total > frame.len() && !self.errs(Mistake::AnyLength) {
            return None;
        }
        if self.errs(Mistake::NoOptions) {
            words = 5;
        }
        let place = number(&header[6..8]);
        let (offset, more) = (place & 0x1fff, place & 0x2000 != 0);
        let whole = offset == 0 && !more;
        let address = |bytes: &[u8]| Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into();
        Some(self.without_piece(Ip {
            source: address(&header[12..16]),
            destination: address(&header[16..20]),
            protocol: header[9],
            payload: at + words * 4,
            length: total.checked_sub(words * 4),
            piece: (!whole).then_some((number(&header[4..6]).into(), offset, more)),
        }))
    }

    fn ipv6(&self, frame: &[u8], at: usize) -> Option<Ip> {
        let header = frame.get(at..at + 40)?;
        let total = 40 + usize::from(number(&header[4..6]));
        if header[0] >> 4 != 6 || at + total > frame.len() && !self.errs(Mistake::AnyLength) {
            return None;
        }
        let (mut next, mut skipped, mut piece) = (header[6], 0, None);
        for _ in 0..if self.errs(Mistake::NoExtensions) { 0 } else { 4 } {
            let extension = matches!(next, 0 | 44 | 60);
            if !extension {
                break;
            }
            let bytes = frame.get(at + 40 + skipped..at + 40 + skipped + 8)?;
            if next == 44 {
                let (place, id) = (number(&bytes[2..4]), u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]));
                let (offset, more) = (place >> 3, place & 1 != 0);
                piece = (offset != 0 || more).then_some((id, offset, more));
                skipped += 8;
                next = bytes[0];
                if offset != 0 {
                    break;
                }
            } else {
                skipped += 8 * (usize::from(bytes[1]) + usize::from(!self.errs(Mistake::ShortExtensions)));
                next = bytes[0];
            }
            if skipped >= 256 {
                return None;
            }
        }
        let is_later = piece.is_some_and(|(_, offset, _)| offset != 0);
        if matches!(next, 0 | 44 | 60) && !is_later {
            return None;
        }
        let address = |bytes: &[u8]| {
            let octets: [u8; 16] = bytes.try_into().unwrap_or_default();
            Ipv6Addr::from(octets).into()
        };
        let ip = Ip {
            source: address(&header[8..24]),
            destination: address(&header[24..40]),
            protocol: next,
            payload: at + 40 + skipped,
            length: total.checked_sub(40 + skipped),
            piece,
        };
        Some(self.without_piece(ip))
    }

    fn without_piece(&self, ip: Ip) -> Ip {
        if self.errs(Mistake::NoFragments) { Ip { piece: None, ..ip } } else { ip }
    }

    /// A later fragment follows its first, unless it would overwrite the first one's TCP header.
    fn later(&self, ip: &Ip, id: u32, offset: u16) -> Result<Fate, Outcome> {
        let backend = *self.fragments.get(&whose(ip, id)).ok_or(Outcome::NotForService)?;
        if ip.protocol == 6 && offset < 3 && !self.errs(Mistake::TinyFragments) {
            return Err(Outcome::DroppedFragment);
        }
        Ok(Fate::Fragment(backend))
    }

    fn service(&self, ip: &Ip, port: u16) -> Option<usize> {
        cells().iter().position(|cell| {
            let protocol = cell.protocol.number() == ip.protocol || self.errs(Mistake::AnyProtocol);
            cell.vip() == SocketAddr::new(ip.destination, port) && protocol
        })
    }

    /// Whether the transport header agrees with the packet's length.
    fn is_sound(&self, frame: &[u8], ip: &Ip) -> bool {
        let Some(length) = ip.length else { return false };
        if ip.protocol == Protocol::Udp.number() {
            let Some(header) = frame.get(ip.payload..ip.payload + 8) else { return false };
            let own = usize::from(number(&header[4..6]));
            let is_first = ip.piece.is_some();
            return length >= 8 && (self.errs(Mistake::AnyUdpLength) || own >= 8 && (own <= length || is_first));
        }
        let Some(header) = frame.get(ip.payload..ip.payload + 20) else { return false };
        let own = usize::from(header[12] >> 4) * 4;
        self.errs(Mistake::AnyTcpHeader) || own >= 20 && own <= length
    }

    fn steer(&self, service: usize, ip: &Ip, client: u16, port: u16) -> u32 {
        let [a, b] = if self.errs(Mistake::SwappedPorts) { [port, client] } else { [client, port] };
        let ports = u32::from(a.to_be()) | u32::from(b.to_be()) << 16;
        let hash = hash::steering(&ip.source.into(), &ip.destination.into(), ports, ip.protocol);
        let slot = ring::slot_of(hash, RING) + u32::from(self.errs(Mistake::NextSlot));
        backend_slot(service, owner(service, slot % RING))
    }
}

fn whose(ip: &Ip, id: u32) -> Whose {
    // Of IPv6 fragments only the first need name the protocol (RFC 8200, section 4.5).
    let protocol = if ip.source.is_ipv4() { ip.protocol } else { 0 };
    (ip.source, ip.destination, id, protocol)
}

fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}
