//! Answers to whoever asks for the link-layer address of a VIP that is announced: ARP requests (RFC 826) and neighbour
//! solicitations (RFC 4861). They are answered here and not by the daemon, so that the VIP stays reachable without it.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    addr::Addr,
    checksum,
    control::{Control, control_flag},
    outcome::Outcome,
    service::{address_flag, vip_kind},
};
use network_types::ip::Ipv6Hdr;

use crate::{
    family::{Family, V6},
    forward::{Sent, write_mac_words},
    maps::{CONTROL, LINKS},
    packet::Packet,
    rare::{self, Frame},
    services,
    too_big::pseudo_header,
};

/// Bytes of ARP for IPv4 on Ethernet.
const ARP: usize = 28;
/// An ARP request for that, as loaded: Ethernet, IPv4, the lengths of their addresses, the operation.
const ARP_REQUEST: u64 = u64::from_ne_bytes([0, 1, 8, 0, 6, 4, 0, 1]);
/// The operation of an answer.
const ARP_REPLY: u16 = 2u16.to_be();

/// ICMPv6 type of a neighbour solicitation.
pub const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Bytes of a solicitation without options.
const SOLICITED: usize = 24;
/// Bytes of an advertisement with the one option, the target's link-layer address.
const ADVERTISED: usize = 32;
/// Hop limit of neighbour discovery, which shows that no router has passed it on.
const ON_LINK: u8 = 255;
/// All nodes of the link, and the group's MAC address in memory order.
const ALL_NODES: Addr = Addr::from_v6_halves([
    u64::from_ne_bytes([0xff, 2, 0, 0, 0, 0, 0, 0]),
    u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1]),
]);
const ALL_NODES_MAC: u64 = u64::from_le_bytes([0x33, 0x33, 0, 0, 0, 1, 0, 0]);

/// Handles an ARP frame.
#[inline(always)]
pub fn arp(packet: &Packet, control: &Control, offset: usize) -> Result<Sent, Outcome> {
    if control.flags & control_flag::ANSWERS == 0 {
        return Err(Outcome::NotForService);
    }
    rare::result(ebb_arp(packet.context(), Frame::new(offset, false).0))
}

/// Answers an ARP request for a VIP that is announced.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_arp(ctx: *mut xdp_md, frame: u32) -> u64 {
    let packet = Packet::new(&aya_ebpf::programs::XdpContext::new(ctx));
    rare::word(answer_arp(&packet, Frame(frame).offset()).ok_or(Outcome::NotForService))
}

/// Answers a neighbour solicitation for a VIP that is announced.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_solicitation(ctx: *mut xdp_md, frame: u32) -> u64 {
    let packet = Packet::new(&aya_ebpf::programs::XdpContext::new(ctx));
    rare::word(advertise(&packet, Frame(frame).offset()))
}

/// Our MAC address on the interface that the packet came in on, if the address is a VIP that is announced.
#[inline(always)]
fn own_mac(packet: &Packet, address: &Addr) -> Option<u64> {
    let (flags, _) = services::find(CONTROL.get(0)?, vip_kind::ADDRESS, address, 0, 0, 0)?;
    if flags & address_flag::ANNOUNCE == 0 {
        return None;
    }
    // SAFETY: one word, which the daemon replaces whole.
    unsafe { LINKS.get(packet.ingress()) }.copied()
}

#[inline(always)]
fn answer_arp(packet: &Packet, offset: usize) -> Option<Sent> {
    let arp = packet.window::<ARP>(offset)?;
    let (sender, target) = (arp.get::<u32, 14>(), arp.get::<u32, 24>());
    // One who asks for its own address announces it: that is for the host to hear.
    if arp.get::<u64, 0>() != ARP_REQUEST || sender == target {
        return None;
    }
    let asking = arp.get::<u32, 8>() as u64 | (arp.get::<u16, 12>() as u64) << 32;
    let own = own_mac(packet, &Addr::from_v4_word(target))?;
    arp.put::<u16, 6>(ARP_REPLY);
    arp.put::<u32, 8>(own as u32);
    arp.put::<u16, 12>((own >> 32) as u16);
    arp.put::<u32, 14>(target);
    arp.put::<u32, 18>(asking as u32);
    arp.put::<u16, 22>((asking >> 32) as u16);
    arp.put::<u32, 24>(sender);
    let (from, _) = packet.macs()?;
    write_mac_words(packet, from, own)?;
    Some(Sent { ifindex: packet.ingress(), outcome: Outcome::NeighbourAnswered })
}

/// Who asks, for what, and what we are called there.
#[derive(Clone, Copy)]
struct Question {
    target: Addr,
    asking: Addr,
    own: u64,
}

#[inline(always)]
fn advertise(packet: &Packet, offset: usize) -> Result<Sent, Outcome> {
    let question = question(packet, offset).ok_or(Outcome::NotForService)?;
    let (from, _) = packet.macs().ok_or(Outcome::NotForService)?;
    let packet = packet.resized(offset + Ipv6Hdr::LEN + ADVERTISED).ok_or(Outcome::DroppedResize)?;
    // One who looks whether the address is taken has none yet, and all are told (RFC 4861, section 7.2.4).
    let nobody = question.asking.halves[0] | question.asking.halves[1] == 0;
    let to = if nobody { ALL_NODES } else { question.asking };
    put_advertisement(&packet, offset, &Question { asking: to, ..question }, !nobody)
        .ok_or(Outcome::DroppedMalformed)?;
    write_mac_words(&packet, if nobody { ALL_NODES_MAC } else { from }, question.own)
        .ok_or(Outcome::DroppedMalformed)?;
    Ok(Sent { ifindex: packet.ingress(), outcome: Outcome::NeighbourAnswered })
}

/// The question in a valid solicitation (RFC 4861, section 7.1.1) for a VIP that is announced.
#[inline(always)]
fn question(packet: &Packet, offset: usize) -> Option<Question> {
    let ip = V6::parse(packet, offset).ok()?;
    let limit = packet.window::<{ Ipv6Hdr::LEN }>(offset)?.get::<u8, 7>();
    let at = offset + Ipv6Hdr::LEN;
    let message = packet.window::<SOLICITED>(at)?;
    let whole = ip.payload == at && ip.len >= Ipv6Hdr::LEN + SOLICITED;
    if !whole || limit != ON_LINK || message.get::<u8, 0>() != SOLICITATION || message.get::<u8, 1>() != 0 {
        return None;
    }
    let target = Addr::from_v6_halves([message.get::<u64, 8>(), message.get::<u64, 16>()]);
    let own = own_mac(packet, &target)?;
    Some(Question { target, asking: ip.source, own })
}

#[inline(always)]
fn put_advertisement(packet: &Packet, offset: usize, question: &Question, solicited: bool) -> Option<()> {
    const SOLICITED_FLAG: u8 = 0x40;
    const OVERRIDE: u8 = 0x20;
    let Question { target, asking, own } = question;
    let header = packet.window::<{ Ipv6Hdr::LEN }>(offset)?;
    header.put::<u64, 0>(u64::from_ne_bytes([0x60, 0, 0, 0, 0, ADVERTISED as u8, V6::ICMP, ON_LINK]));
    header.put::<u64, 8>(target.halves[0]);
    header.put::<u64, 16>(target.halves[1]);
    header.put::<u64, 24>(asking.halves[0]);
    header.put::<u64, 32>(asking.halves[1]);
    let [m0, m1, m2, m3, m4, m5, ..] = own.to_le_bytes();
    let kind = u32::from_ne_bytes([ADVERTISEMENT, 0, 0, 0]);
    let flags = u32::from_ne_bytes([OVERRIDE | if solicited { SOLICITED_FLAG } else { 0 }, 0, 0, 0]);
    // Option 2, the target's link-layer address, one unit of eight bytes long.
    let option = [u32::from_ne_bytes([2, 1, m0, m1]), u32::from_ne_bytes([m2, m3, m4, m5])];
    let mut sum = pseudo_header(target, asking, ADVERTISED, V6::ICMP);
    for word in [kind, flags, option[0], option[1]] {
        sum = checksum::add32(sum, word);
    }
    for word in target.words() {
        sum = checksum::add32(sum, word);
    }
    let message = packet.window::<ADVERTISED>(offset + Ipv6Hdr::LEN)?;
    message.put::<u32, 0>(kind);
    message.put::<u16, 2>(!checksum::fold(sum));
    message.put::<u32, 4>(flags);
    message.put::<u64, 8>(target.halves[0]);
    message.put::<u64, 16>(target.halves[1]);
    message.put::<u32, 24>(option[0]);
    message.put::<u32, 28>(option[1]);
    Some(())
}
