//! The model's walk over a frame's headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{BACKENDS, Mistake, Model, cid, server_id};
use crate::rig::Protocol;

/// The IP header, as far as it matters.
#[derive(Clone, Debug)]
pub(super) struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Where it begins in the frame.
    pub at: usize,
    /// Its whole length by its own header.
    pub total: usize,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Where what follows begins in the frame.
    pub payload: usize,
    /// Bytes of what follows that belong to the packet.
    pub length: Option<usize>,
    /// Identification, offset in units of eight bytes, more to come.
    pub piece: Option<(u32, u16, bool)>,
}

impl Ip {
    /// Whether it is a fragment that has no header of its own.
    pub(super) fn is_later(&self) -> bool {
        self.piece.is_some_and(|(_, offset, _)| offset != 0)
    }
}

impl Model {
    /// The EtherType behind at most two tags, and where the packet begins.
    pub(super) fn link(&self, frame: &[u8]) -> Option<(u16, usize)> {
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

    pub(super) fn ipv4(&self, frame: &[u8], at: usize, whole: bool) -> Option<Ip> {
        let header = frame.get(at..at + 20)?;
        let (version, mut words) = (header[0] >> 4, usize::from(header[0] & 15));
        let total = usize::from(number(&header[2..4]));
        if version != 4 || words < 5 || total < words * 4 {
            return None;
        }
        if whole && at + total > frame.len() && !self.errs(Mistake::AnyLength) {
            return None;
        }
        if self.errs(Mistake::NoOptions) {
            words = 5;
        }
        let place = number(&header[6..8]);
        let (offset, more) = (place & 0x1fff, place & 0x2000 != 0);
        let unbroken = offset == 0 && !more;
        let address = |bytes: &[u8]| Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into();
        Some(self.without_piece(Ip {
            source: address(&header[12..16]),
            destination: address(&header[16..20]),
            protocol: header[9],
            at,
            total,
            hops: header[8],
            payload: at + words * 4,
            length: total.checked_sub(words * 4),
            piece: (!unbroken).then_some((number(&header[4..6]).into(), offset, more)),
        }))
    }

    pub(super) fn ipv6(&self, frame: &[u8], at: usize, whole: bool) -> Option<Ip> {
        let header = frame.get(at..at + 40)?;
        let total = 40 + usize::from(number(&header[4..6]));
        if header[0] >> 4 != 6 || whole && at + total > frame.len() && !self.errs(Mistake::AnyLength) {
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
            at,
            total,
            hops: header[7],
            payload: at + 40 + skipped,
            length: total.checked_sub(40 + skipped),
            piece,
        };
        Some(self.without_piece(ip))
    }

    fn without_piece(&self, ip: Ip) -> Ip {
        if self.errs(Mistake::NoFragments) { Ip { piece: None, ..ip } } else { ip }
    }

    /// The backend that a datagram's QUIC connection id names.
    pub(super) fn named(&self, frame: &[u8], ip: &Ip, service: usize) -> Option<u32> {
        let (length, rotation) = cid(service).filter(|_| !self.errs(Mistake::NoIds))?;
        let own = usize::from(number(frame.get(ip.payload + 4..ip.payload + 6)?));
        let packet = frame.get(ip.payload + 8..frame.len().min(ip.payload + own))?;
        let id = destination_id(packet, length, self.errs(Mistake::EveryLongHeader))?;
        // Nothing that a server would take is shorter.
        if id.len() < 17 || id[0] >> 5 != rotation && !self.errs(Mistake::AnyRotation) {
            return None;
        }
        (0..BACKENDS).find(|&backend| id[1..=length] == server_id(service, backend))
    }

    /// Whether the transport header agrees with the packet's length.
    pub(super) fn is_sound(&self, frame: &[u8], ip: &Ip) -> bool {
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
}

/// The id that a QUIC packet is to, if its server is known to have chosen it, and that it is long enough for a server's.
fn destination_id(packet: &[u8], length: usize, every: bool) -> Option<&[u8]> {
    let first = *packet.first()?;
    if first < 0x80 {
        return packet.get(1..);
    }
    let version = u32::from_be_bytes(packet.get(1..5)?.try_into().ok()?);
    let handshake = [(1, 2), (0x6b33_43cf, 3)].contains(&(version, first >> 4 & 3));
    let long = usize::from(*packet.get(5)?) > length;
    if long && (handshake || every) { packet.get(6..) } else { None }
}

/// Two bytes in network order.
pub(super) fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}
