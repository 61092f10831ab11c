//! Ebb's XDP program: `parse → service → flow → backend → rewrite → send`, one pass.
//!
//! Inner functions return what was sent, or the [`Outcome`] that ended the packet; the one match in [`conclude`] turns
//! that into an XDP action and a count.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(clippy::needless_pass_by_value, missing_docs, reason = "what the entry points' macro makes of them")]
#![expect(unreachable_pub, reason = "modules of one program; what is public in them is public to the program")]
#![expect(clippy::inline_always, reason = "a call costs a stack frame, and the verifier loses packet bounds across it")]

mod count;
mod decap;
mod entry;
mod family;
mod forward;
mod fragment;
mod icmp;
mod log;
mod maps;
mod nat_port;
mod neighbour;
mod open;
mod packet;
mod parse;
mod peers;
mod quic;
mod rare;
mod reset;
mod rewrite;
mod scratch;
mod services;
mod slow;
mod steer;
mod tally;
mod too_big;
mod track;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
    helpers::{
        bpf_redirect,
        generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
    },
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    control::{Control, control_flag},
    outcome::Outcome,
    service::vip_kind,
    time,
};

use crate::{
    family::{Family, V4, V6},
    forward::Sent,
    maps::{CONTROL, SERVICES},
    packet::Packet,
    parse::{Ip, Part, ether, protocol},
    scratch::Decision,
    track::Arrival,
};

/// Entry point, one call a packet. Inlined into what the macro makes of it, whose empty frame would else count as one of
/// 32 bytes.
#[xdp]
#[inline(always)]
pub fn ebb_xdp(ctx: XdpContext) -> u32 {
    let packet = Packet::new(&ctx);
    conclude(&packet, run(&packet))
}

/// Entry point of `ebb decap`.
#[xdp]
pub fn ebb_decap(ctx: XdpContext) -> u32 {
    let packet = Packet::new(&ctx);
    conclude(&packet, Err(decap::decapsulate(&packet)))
}

#[inline(always)]
fn run(packet: &Packet) -> Result<Sent, Outcome> {
    let control = CONTROL.get(0).ok_or(Outcome::NotForService)?;
    let (ethertype, offset) = parse::ethernet(packet).ok_or(Outcome::NotForService)?;
    let ip = match ethertype {
        ether::IPV4 => V4::parse(packet, offset)?,
        ether::IPV6 => V6::parse(packet, offset)?,
        ether::ARP => return neighbour::arp(packet, control, offset),
        _ => return Err(Outcome::NotForService),
    };
    balance(packet, control, &ip)
}

/// The XDP action for what became of the packet.
#[inline(always)]
fn conclude(packet: &Packet, done: Result<Sent, Outcome>) -> u32 {
    let (outcome, leaves_by) = match done {
        Ok(sent) => (sent.outcome, sent.ifindex),
        Err(outcome) => (outcome, 0),
    };
    count::outcome(outcome);
    match outcome {
        Outcome::NotForService | Outcome::PassedMalformed | Outcome::PassedHost | Outcome::Decapsulated => XDP_PASS,
        Outcome::Forwarded
        | Outcome::NewFlow
        | Outcome::Adopted
        | Outcome::Untracked
        | Outcome::Stateless
        | Outcome::RemembersOwner
        | Outcome::NamedById
        | Outcome::Reply
        | Outcome::IcmpError
        | Outcome::Fragment
        | Outcome::ResetSent
        | Outcome::TooBigSent
        | Outcome::EchoAnswered
        | Outcome::NeighbourAnswered => {
            if leaves_by == packet.ingress() {
                XDP_TX
            } else {
                // SAFETY: a helper on plain numbers; an interface that is gone makes it a drop, counted by the kernel.
                if unsafe { bpf_redirect(leaves_by, 0) } == XDP_REDIRECT as i64 { XDP_REDIRECT } else { XDP_DROP }
            }
        }
        Outcome::DroppedNoBackend
        | Outcome::DroppedCut
        | Outcome::DroppedUnresolved
        | Outcome::DroppedMalformed
        | Outcome::DroppedFragment
        | Outcome::DroppedTooBig
        | Outcome::DroppedHopLimit
        | Outcome::DroppedNatConflict
        | Outcome::DroppedResize => XDP_DROP,
    }
}

/// Coarse monotonic time, ns.
#[inline(always)]
fn clock(control: &Control) -> u64 {
    if control.jiffy_ns == 0 {
        // SAFETY: a helper without arguments.
        return unsafe { bpf_ktime_get_coarse_ns() };
    }
    // SAFETY: a helper without arguments, which 64-bit kernels inline to a load.
    let jiffies = unsafe { bpf_jiffies64() };
    time::from_jiffies(jiffies, control.jiffy_ns, control.jiffies_offset_ns)
}

/// Tells the daemon how the kernel's two clocks relate: writes the coarse time and the jiffies, 8 bytes each, over a
/// frame's first bytes. Never attached, only test-run.
#[xdp]
pub fn ebb_clock(ctx: XdpContext) -> u32 {
    if let Some(frame) = Packet::new(&ctx).window::<16>(0) {
        // SAFETY: helpers without arguments.
        let (coarse_ns, jiffies) = unsafe { (bpf_ktime_get_coarse_ns(), bpf_jiffies64()) };
        frame.put::<u64, 0>(coarse_ns);
        frame.put::<u64, 8>(jiffies);
    }
    XDP_DROP
}

/// One IP packet.
#[inline(always)]
fn balance(packet: &Packet, control: &Control, ip: &Ip) -> Result<Sent, Outcome> {
    if ip.fragment.is(Part::Later) {
        return rare::finish(packet, ip.frame(), fragment::ebb_fragment(packet.context(), ip.frame().0));
    }
    match ip.protocol {
        protocol::TCP | protocol::UDP => {}
        protocol::ICMP | protocol::ICMPV6 => return icmp::handle(packet, ip.frame()),
        _ => return Err(Outcome::NotForService),
    }
    let ports = parse::ports(packet, ip).ok_or(Outcome::PassedMalformed)?;
    let port = (ports >> 16) as u16;
    let Some((slot, _)) = services::find(control, vip_kind::SERVICE, &ip.destination, port, ip.protocol, 0) else {
        return not_for_a_vip(packet, control, ip, ports);
    };
    let service = SERVICES.get(slot).ok_or(Outcome::NotForService)?;
    let arrival = Arrival { packet, ip, ports, control, service_slot: slot, service, now_ns: clock(control) };
    let decision = if ip.protocol == protocol::UDP {
        if !parse::is_datagram(packet, ip) {
            return Err(Outcome::DroppedMalformed);
        }
        track::datagram(&arrival)?
    } else {
        let segment = parse::segment(packet, ip)?;
        track::segment(&arrival, segment)?
    };
    if !decision.cut {
        return send(&arrival, decision);
    }
    if decision.silent {
        return Err(decision.outcome);
    }
    rare::result(rare::ebb_reset(packet.context(), ip.frame().0))
}

/// A packet to no service's address: a backend's reply under `nat`, or none of our business.
#[inline(always)]
fn not_for_a_vip(packet: &Packet, control: &Control, ip: &Ip, ports: u32) -> Result<Sent, Outcome> {
    if control.flags & control_flag::NAT == 0 {
        return Err(Outcome::NotForService);
    }
    let source = services::find(control, vip_kind::NAT_SOURCE, &ip.source, ports as u16, ip.protocol, 0);
    if source.is_none() {
        return Err(Outcome::NotForService);
    }
    forward::nat::reply(packet, ip.frame().0)
}

/// Sends a packet to its backend and counts it.
#[inline(always)]
fn send(arrival: &Arrival<'_>, decision: Decision) -> Result<Sent, Outcome> {
    let Decision { backend, entry, outcome, .. } = decision;
    if arrival.ip.fragment.is(Part::First) {
        // Before the packet is rewritten.
        fragment::ebb_remember(arrival.packet.context(), arrival.ip.frame().0, backend, arrival.service_slot);
    }
    let sent = forward::send(arrival.packet, arrival.ip.frame(), arrival.service, backend, entry, arrival.ports)?;
    if sent.outcome != Outcome::Forwarded {
        // Answered instead, for its size.
        return Ok(sent);
    }
    count::sent(arrival.control, backend, arrival.ip.len, matches!(outcome, Outcome::NewFlow));
    tally::count(entry, arrival.ip.len, tally::CLIENT);
    Ok(Sent { ifindex: sent.ifindex, outcome })
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
