//! The answer to a segment of a cut flow: an RST that the sender accepts, built in place.

use lb_common::{
    checksum,
    outcome::Outcome,
    tcp::{Segment, flag},
};

use crate::{
    family::Family,
    forward::{Sent, write_macs},
    packet::Packet,
    parse::{self, Ip, protocol},
    too_big::pseudo_header,
};

/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;

/// Turns the segment into an RST to whoever sent it and sends it back by the way it came.
///
/// RFC 9293, section 3.10.7.1: the RST's sequence number is the acknowledgement just received, so it is exactly what
/// the sender expects next; without one, the RST acknowledges the segment instead. An RST is never answered.
#[inline(always)]
pub fn answer<F: Family>(packet: &Packet, offset: usize) -> Result<Sent, Outcome> {
    let ip = F::parse(packet, offset)?;
    let segment = parse::segment(packet, &ip)?;
    // With extension headers an answer would have to carry them back; such a sender has its time-outs.
    if segment.has(flag::RST) || ip.payload != ip.offset + F::HEADER {
        return Err(Outcome::DroppedCut);
    }
    build::<F>(packet, &ip, segment).ok_or(Outcome::DroppedMalformed)?;
    let excess = packet.len() - (offset + F::HEADER + TCP_HEADER);
    let packet = packet.cut_back(excess).ok_or(Outcome::DroppedResize)?;
    Ok(Sent { ifindex: packet.ingress(), outcome: Outcome::ResetSent })
}

#[inline(always)]
fn build<F: Family>(packet: &Packet, ip: &Ip, segment: Segment) -> Option<()> {
    let frame = packet.window::<12>(0)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1] = frame.get::<u64, 0>().to_ne_bytes();
    let [s2, s3, s4, s5] = frame.get::<u32, 8>().to_ne_bytes();
    write_macs(packet, [s0, s1, s2, s3, s4, s5], [d0, d1, d2, d3, d4, d5])?;
    F::answer_header(packet, ip, TCP_HEADER)?;

    let (seq, ack, flags) =
        if segment.has(flag::ACK) { (segment.ack, 0, flag::RST) } else { (0, segment.end(), flag::RST | flag::ACK) };
    let tcp = packet.window::<TCP_HEADER>(ip.offset + F::HEADER)?;
    let ports = tcp.get::<u32, 0>();
    let words = [ports.rotate_left(16), seq.to_be(), ack.to_be(), u32::from_ne_bytes([5 << 4, flags, 0, 0]), 0];
    // Pseudo header: addresses (the same sum in either order), protocol and length.
    // The mapped form of IPv4 adds ffff twice, which is nothing in ones' complement arithmetic.
    let mut sum = pseudo_header(&ip.source, &ip.destination, TCP_HEADER, protocol::TCP);
    for word in words {
        sum = checksum::add32(sum, word);
    }
    let check = !checksum::fold(sum);
    tcp.put::<u32, 0>(words[0]);
    tcp.put::<u32, 4>(words[1]);
    tcp.put::<u32, 8>(words[2]);
    tcp.put::<u32, 12>(words[3]);
    // Checksum, and no urgent data.
    tcp.put::<u32, 16>(u32::from(check));
    Some(())
}
