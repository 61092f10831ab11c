//! ICMP for a VIP: errors about a flow go to the backend that owns it (or back to its client, under `nat`), found by
//! the packet that they quote; echo requests are answered where that is wanted.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    checksum,
    control::control_flag,
    flow_table::{Entries, Entry},
    outcome::Outcome,
    service::{Service, address_flag, vip_kind},
    tcp::Segment,
};

use crate::{
    by_family, clock,
    entry::{FlowMap, FlowRef},
    family::Family,
    forward::{self, Sent, nat, write_mac_words},
    maps::{CONTROL, SERVICES},
    neighbour,
    packet::Packet,
    parse::{self, Ip, Part, protocol},
    rare::{self, Frame},
    rewrite::{self, Side, Translation},
    scratch::{self, NONE},
    services, steer,
    too_big::ICMP_HEADER,
};

/// Handles an ICMP packet, whole or a first fragment.
#[inline(always)]
pub fn handle(packet: &Packet, frame: Frame) -> Result<Sent, Outcome> {
    let word = ebb_icmp(packet.context(), frame.0);
    let icmp = (word & ICMP_AT as u64) as u32;
    match word >> KIND {
        ERROR_IN => rare::finish(packet, frame, ebb_icmp_in(packet.context(), frame.0, icmp)),
        ERROR_OUT => rare::result(ebb_icmp_out(packet.context(), frame.0, icmp)),
        QUESTION => rare::result(neighbour::ebb_solicitation(packet.context(), frame.0)),
        _ => rare::result(word),
    }
}

/// Where [`ebb_icmp`] tells errors from what it has settled itself; the rest of the word is then the ICMP offset.
const KIND: u32 = 60;
const ERROR_IN: u64 = 1;
const ERROR_OUT: u64 = 2;
const QUESTION: u64 = 3;

/// Answers an echo request, or tells what it is that has to be looked at further.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_icmp(ctx: *mut xdp_md, frame: u32) -> u64 {
    match by_family!(ctx, frame, sort()) {
        Ok(error) => error,
        Err(word) => word,
    }
}

/// `Ok` with the kind and place of an error or a neighbour's question, else `Err` with what became of the packet.
#[inline(always)]
fn sort<F: Family>(packet: &Packet, offset: usize) -> Result<u64, u64> {
    let not_ours = || rare::word(Err(Outcome::NotForService));
    let ip = F::parse(packet, offset).map_err(|outcome| rare::word(Err(outcome)))?;
    let control = CONTROL.get(0).ok_or_else(not_ours)?;
    let vip = services::find(control, vip_kind::ADDRESS, &ip.destination, 0, 0, 0);
    // Neighbours ask a group for the address, not the VIP.
    let may_be_asked = F::V6 && control.flags & control_flag::ANSWERS != 0;
    if vip.is_none() && !may_be_asked && control.flags & control_flag::NAT == 0 {
        return Err(not_ours());
    }
    let header = packet.window::<ICMP_HEADER>(ip.payload).ok_or_else(not_ours)?;
    let kind = header.get::<u8, 0>();
    if may_be_asked && kind == neighbour::SOLICITATION {
        return Ok(QUESTION << KIND);
    }
    if let Some((flags, _)) = vip
        && kind == F::ECHO.0
        && flags & address_flag::ANSWER_ECHO != 0
        && ip.fragment.is(Part::Whole)
    {
        return Err(rare::word(echo::<F>(packet, &ip)));
    }
    if !F::is_error(kind) {
        return Err(not_ours());
    }
    let direction = if vip.is_some() { ERROR_IN } else { ERROR_OUT };
    Ok(direction << KIND | ip.payload as u64)
}

/// Largest offset of an ICMP header that is looked at, as a mask: tags, and IPv6 with its extension headers.
const ICMP_AT: u32 = 0x1ff;

/// The packet that an error quotes, and its ports as one word.
#[inline(always)]
fn quoted<F: Family>(packet: &Packet, icmp: u32) -> Result<(Ip, u32), Outcome> {
    let quoted = F::parse_quoted(packet, (icmp & ICMP_AT) as usize + ICMP_HEADER)?;
    let flows = quoted.protocol == protocol::TCP || quoted.protocol == protocol::UDP;
    if quoted.fragment.is(Part::Later) || !flows {
        return Err(Outcome::NotForService);
    }
    let ports = parse::ports(packet, &quoted).ok_or(Outcome::PassedMalformed)?;
    Ok((quoted, ports))
}

/// An error that came to a VIP, about a packet that a backend sent to a client.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_icmp_in(ctx: *mut xdp_md, frame: u32, icmp: u32) -> u64 {
    rare::word(by_family!(ctx, frame, about_a_reply(icmp)))
}

/// An error that came to a client under `nat`, about a packet that Ebb sent on to a backend.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_icmp_out(ctx: *mut xdp_md, frame: u32, icmp: u32) -> u64 {
    rare::word(by_family!(ctx, frame, about_a_forwarded(icmp)))
}

/// Answers an echo request in place.
#[inline(always)]
fn echo<F: Family>(packet: &Packet, ip: &Ip) -> Result<Sent, Outcome> {
    const MALFORMED: Outcome = Outcome::DroppedMalformed;
    let header = packet.window::<ICMP_HEADER>(ip.payload).ok_or(MALFORMED)?;
    let old = header.get::<u16, 0>();
    let new = u16::from_ne_bytes([F::ECHO.1, (old.to_ne_bytes())[1]]);
    header.put::<u16, 0>(new);
    header.put::<u16, 2>(checksum::update(header.get::<u16, 2>(), checksum::replace16(0, old, new)));
    F::swap_addresses(packet, ip.offset).ok_or(MALFORMED)?;
    F::renew_hop_limit(packet, ip.offset)?;
    let (source, own) = packet.macs().ok_or(MALFORMED)?;
    write_mac_words(packet, source, own).ok_or(MALFORMED)?;
    Ok(Sent { ifindex: packet.ingress(), outcome: Outcome::EchoAnswered })
}

#[inline(always)]
fn about_a_reply<F: Family>(packet: &Packet, offset: usize, icmp: u32) -> Result<Sent, Outcome> {
    let (quoted, ports) = quoted::<F>(packet, icmp)?;
    let control = CONTROL.get(0).ok_or(Outcome::NotForService)?;
    let found = services::find(control, vip_kind::SERVICE, &quoted.source, ports as u16, quoted.protocol, 0);
    let (slot, _) = found.ok_or(Outcome::NotForService)?;
    let service = SERVICES.get(slot).ok_or(Outcome::NotForService)?;
    let (backend, entry) = owner(service, slot, &quoted, ports).ok_or(Outcome::DroppedNoBackend)?;
    if !nat::is_nat(service) {
        return rare::send_on(slot, backend, entry, ports, Outcome::IcmpError);
    }
    let row = steer::row(backend).ok_or(Outcome::DroppedNoBackend)?;
    let other_port = if entry == NONE { 0 } else { FlowMap.at(entry).map_or(0, FlowRef::nat_port) };
    let to = Translation { side: Side::Source, addr: row.addr, port: row.port, other_port };
    let outer = Translation { side: Side::Destination, ..to };
    translate_error::<F>(packet, offset, icmp, &quoted, to, Some(outer))?;
    let ifindex = forward::address_frame(packet, offset, row)?;
    Ok(Sent { ifindex, outcome: Outcome::IcmpError })
}

/// The backend that owns the flow of a packet from the VIP to a client, and the flow's entry.
#[inline(always)]
fn owner(service: &Service, slot: u32, quoted: &Ip, ports: u32) -> Option<(u32, u32)> {
    scratch::row()?.nat_query.client = quoted.destination;
    let index = nat::ebb_flow_of(slot, ports >> 16);
    if let Some(entry) = FlowMap.at(index) {
        // A slot's heir gets nothing about flows that were not its own.
        let backend = entry.backend();
        return (steer::row(backend)?.generation == entry.generation()).then_some((backend, index));
    }
    let hash = steer::hash(service, &quoted.destination, ports.rotate_left(16));
    let choice = steer::forgotten(slot, service, hash, clock(CONTROL.get(0)?))?;
    Some((choice.backend, NONE))
}

#[inline(always)]
fn about_a_forwarded<F: Family>(packet: &Packet, offset: usize, icmp: u32) -> Result<Sent, Outcome> {
    let (quoted, ports) = quoted::<F>(packet, icmp)?;
    let backend = (&quoted.destination, (ports >> 16) as u16);
    let index = nat::flow_between(&quoted, backend, (&quoted.source, ports as u16), Segment::NONE);
    if index == NONE {
        return Err(Outcome::NotForService);
    }
    let entry = FlowMap.at(index).ok_or(Outcome::NotForService)?;
    let service: &Service = SERVICES.get(entry.key().service() as u32).ok_or(Outcome::NotForService)?;
    let other_port = entry.key().port();
    let to = Translation { side: Side::Destination, addr: service.vip, port: service.port, other_port };
    // The backend's own errors come from the VIP; a router's keep its address.
    let from_backend = F::source(packet, offset) == Some(quoted.destination);
    let outer = if from_backend { Some(Translation { side: Side::Source, ..to }) } else { None };
    translate_error::<F>(packet, offset, icmp, &quoted, to, outer)?;
    nat::to_peer(packet, offset, entry.peer(), Outcome::IcmpError)
}

/// Translates an error's own address and the packet that it quotes, and mends the checksums of both.
#[inline(always)]
fn translate_error<F: Family>(
    packet: &Packet,
    offset: usize,
    icmp: u32,
    quoted: &Ip,
    to: Translation,
    outer: Option<Translation>,
) -> Result<(), Outcome> {
    const MALFORMED: Outcome = Outcome::DroppedMalformed;
    let mut delta = 0;
    if let Some(outer) = outer {
        let pseudo = F::rewrite_address(packet, offset, outer.side, outer.addr, true)?;
        // ICMPv6 sums the addresses too.
        delta += if F::V6 { pseudo } else { 0 };
    } else {
        F::decrement_hop_limit(packet, offset)?;
    }
    // IPv4: the quoted header's checksum makes up for the quoted address, so that their sum stays.
    let address = F::rewrite_address(packet, quoted.offset, to.side, to.addr, false)?;
    delta += if F::V6 { address } else { 0 };
    delta += quoted_ports(packet, quoted, to, address).ok_or(MALFORMED)?;
    let header = packet.window::<ICMP_HEADER>((icmp & ICMP_AT) as usize).ok_or(MALFORMED)?;
    header.put::<u16, 2>(checksum::update(header.get::<u16, 2>(), delta));
    Ok(())
}

/// Translates the quoted ports and, where it is quoted, the checksum behind them; gives what that adds to the error's.
#[inline(always)]
fn quoted_ports(packet: &Packet, quoted: &Ip, to: Translation, address: u64) -> Option<u64> {
    let ports = packet.window::<4>(quoted.payload)?;
    let (new, change) = rewrite::new_ports(ports.get::<u32, 0>(), to);
    ports.put::<u32, 0>(new);
    let (old_check, new_check) = if quoted.protocol == protocol::UDP {
        let check = packet.window::<2>(quoted.payload + 6)?;
        let old = check.get::<u16, 0>();
        let new = checksum::update_udp(old, address + change);
        check.put::<u16, 0>(new);
        (old, new)
    } else if let Some(check) = packet.window::<2>(quoted.payload + 16) {
        let old = check.get::<u16, 0>();
        let new = checksum::update(old, address + change);
        check.put::<u16, 0>(new);
        (old, new)
    } else {
        (0, 0)
    };
    Some(change + checksum::replace16(0, old_check, new_check))
}
