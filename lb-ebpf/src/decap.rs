//! `ebb decap`: takes packets out of their tunnel on a backend without an ipip device of its own.

use lb_common::outcome::Outcome;
use network_types::ip::IpProto;

use crate::{
    family::{Family, V4, V6},
    forward::{
        tunnel::{LinkHeader, link_header, put_link_header},
        write_mac_words,
    },
    packet::Packet,
    parse::{self, Ip, Part, ether},
};

/// The ECN bits of a traffic class (RFC 3168).
const ECN: u8 = 3;
/// "Congestion experienced".
const CE: u8 = 3;

/// Strips the outer header of a tunnelled packet, which then goes on to the host's stack; all else passes untouched.
#[inline(always)]
pub fn decapsulate(packet: &Packet) -> Outcome {
    let Some((ethertype, offset)) = parse::ethernet(packet) else { return Outcome::NotForService };
    let stripped = match ethertype {
        ether::IPV4 => strip::<V4>(packet, offset),
        ether::IPV6 => strip::<V6>(packet, offset),
        _ => Err(Outcome::NotForService),
    };
    match stripped {
        Ok(()) => Outcome::Decapsulated,
        Err(outcome) => outcome,
    }
}

#[inline(always)]
fn strip<F: Family>(packet: &Packet, offset: usize) -> Result<(), Outcome> {
    let outer = F::parse(packet, offset)?;
    let ethertype = inner_ethertype(&outer).ok_or(Outcome::NotForService)?;
    if !outer.fragment.is(Part::Whole) {
        // The stack would have to put it together first, and then would not come back here.
        return Err(Outcome::DroppedFragment);
    }
    let class = F::traffic_class(packet, offset).ok_or(Outcome::PassedMalformed)?;
    if ethertype == ether::IPV4 {
        carry_congestion::<V4>(packet, outer.payload, class)?;
    } else {
        carry_congestion::<V6>(packet, outer.payload, class)?;
    }
    let link: LinkHeader = link_header(packet, offset).ok_or(Outcome::PassedMalformed)?;
    let (source, own) = packet.macs().ok_or(Outcome::PassedMalformed)?;
    let excess = outer.payload - offset;
    let inner = packet.cut_front(excess).ok_or(Outcome::DroppedResize)?;
    put_link_header(&inner, offset, link, ethertype).ok_or(Outcome::DroppedMalformed)?;
    write_mac_words(&inner, own, source).ok_or(Outcome::DroppedMalformed)
}

#[inline(always)]
fn inner_ethertype(outer: &Ip) -> Option<u16> {
    const V4_IN: u8 = IpProto::Ipv4 as u8;
    const V6_IN: u8 = IpProto::Ipv6 as u8;
    match outer.protocol {
        V4_IN => Some(ether::IPV4),
        V6_IN => Some(ether::IPV6),
        _ => None,
    }
}

/// Checks the inner header, and tells it of congestion that the outer one has met (RFC 6040, section 4.2): a packet
/// that could not be told is dropped, as the congested router would have done.
#[inline(always)]
fn carry_congestion<F: Family>(packet: &Packet, offset: usize, outer: u8) -> Result<(), Outcome> {
    F::parse(packet, offset)?;
    let inner = F::traffic_class(packet, offset).ok_or(Outcome::PassedMalformed)?;
    if outer & ECN != CE || inner & ECN == CE {
        return Ok(());
    }
    if inner & ECN == 0 {
        return Err(Outcome::DroppedMalformed);
    }
    F::set_traffic_class(packet, offset, inner | CE).ok_or(Outcome::PassedMalformed)
}
