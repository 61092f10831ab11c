//! "Fragmentation needed" (RFC 792, RFC 1191) and "packet too big" (RFC 4443), sent in the VIP's name to a client whose
//! packet does not fit the tunnel or the way to a `nat` backend; and to such a backend in the client's name.

use lb_common::{addr::Addr, checksum, outcome::Outcome};

use crate::{
    family::Family,
    forward::{
        Sent,
        tunnel::{link_header, put_link_header},
        write_mac_words,
    },
    packet::Packet,
    parse::Ip,
};

/// Bytes of an ICMP header.
pub const ICMP_HEADER: usize = 8;
/// Bytes of the offending packet's payload that are quoted: its ports and TCP sequence number. Options and extension
/// headers before it are quoted too, or a receiver could not tell whose packet it was.
const QUOTED: usize = 8;
/// Most that is quoted in all, in words of four bytes: an IPv6 header, all extension headers that are passed over, a
/// fragment header that may come last, and the payload's beginning.
const MOST_WORDS: usize = (40 + 256 + 8 + QUOTED) / 4;

/// Answers in place: a new header and ICMP header in front of the packet's first bytes.
///
/// An IPv4 packet that may be fragmented is refused and counted instead: a tunnel's middle is no place to fragment, and
/// such senders (datagrams without path-MTU discovery) would not take the answer's advice.
#[inline(always)]
pub fn answer<F: Family>(packet: &Packet, offset: usize, mtu: usize) -> Result<Sent, Outcome> {
    let ip = F::parse(packet, offset)?;
    if !F::is_never_fragmented(packet, offset) {
        return Err(Outcome::DroppedTooBig);
    }
    let link = link_header(packet, offset).ok_or(Outcome::DroppedMalformed)?;
    let (source_mac, own_mac) = packet.macs().ok_or(Outcome::DroppedMalformed)?;
    let room = F::HEADER + ICMP_HEADER;
    let grown = packet.grow_front(room).ok_or(Outcome::DroppedResize)?;
    put_link_header(&grown, offset, link, F::ETHERTYPE).ok_or(Outcome::DroppedMalformed)?;
    write_mac_words(&grown, source_mac, own_mac).ok_or(Outcome::DroppedMalformed)?;
    let quoted = ip.payload - offset + QUOTED;
    build::<F>(&grown, &ip, mtu, quoted).ok_or(Outcome::DroppedMalformed)?;
    let cut = grown.resized(offset + room + quoted).ok_or(Outcome::DroppedResize)?;
    Ok(Sent { ifindex: cut.ingress(), outcome: Outcome::TooBigSent })
}

#[inline(always)]
fn build<F: Family>(packet: &Packet, ip: &Ip, mtu: usize, quoted: usize) -> Option<()> {
    let icmp_len = ICMP_HEADER + quoted;
    let answer = Ip { protocol: F::ICMP, ..*ip };
    F::answer_header(packet, &answer, icmp_len)?;
    let at = ip.offset + F::HEADER;
    let [m0, m1] = (mtu as u16).to_be_bytes();
    let kind = u32::from_ne_bytes([F::TOO_BIG.0, F::TOO_BIG.1, 0, 0]);
    let value = u32::from_ne_bytes([0, 0, m0, m1]);
    let mut sum = if F::V6 { pseudo_header(&ip.destination, &ip.source, icmp_len, F::ICMP) } else { 0 };
    sum = checksum::add32(checksum::add32(sum, kind), value);
    sum += sum_quoted(packet, at + ICMP_HEADER, quoted)?;
    let header = packet.window::<ICMP_HEADER>(at)?;
    header.put::<u32, 0>(kind);
    header.put::<u16, 2>(!checksum::fold(sum));
    header.put::<u32, 4>(value);
    Some(())
}

/// Sum of what is quoted: `quoted` bytes, a multiple of four, at `at`.
#[inline(always)]
fn sum_quoted(packet: &Packet, at: usize, quoted: usize) -> Option<u64> {
    let mut sum = 0;
    for i in 0..MOST_WORDS {
        if i * 4 >= quoted {
            return Some(sum);
        }
        sum = checksum::add32(sum, packet.window::<4>(at + i * 4)?.get::<u32, 0>());
    }
    Some(sum)
}

/// Sum of a pseudo header (RFC 8200, section 8.1).
///
/// An array at a time, here and where more is added: chained iterators become a loop that runs into its own head without
/// a jump, and a verifier before Linux 6.8 takes that for a back-edge that it does not allow.
#[inline(always)]
pub fn pseudo_header(source: &Addr, destination: &Addr, len: usize, protocol: u8) -> u64 {
    let mut sum = (len as u32).to_be() as u64 + u32::from_ne_bytes([0, 0, 0, protocol]) as u64;
    for word in source.words() {
        sum = checksum::add32(sum, word);
    }
    for word in destination.words() {
        sum = checksum::add32(sum, word);
    }
    sum
}
