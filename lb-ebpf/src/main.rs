//! Ebb's XDP program: `parse → service → flow → backend → rewrite → send`, one pass.
//!
//! Inner functions return what was sent, or the [`Outcome`] that ended the packet; the one match in [`conclude`] turns
//! that into an XDP action and a count.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unreachable_pub, reason = "modules of one program; what is public in them is public to the program")]
#![expect(clippy::inline_always, reason = "a call costs a stack frame, and the verifier loses packet bounds across it")]

mod count;
mod entry;
mod family;
mod forward;
mod fragment;
mod maps;
mod open;
mod packet;
mod parse;
mod peers;
mod rare;
mod reset;
mod scratch;
mod services;
mod slow;
mod steer;
mod track;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
    helpers::{bpf_redirect, generated::bpf_ktime_get_coarse_ns},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{control::Control, outcome::Outcome, service::vip_kind};

use crate::{
    family::{Family, V4, V6},
    forward::Sent,
    maps::{CONTROL, SERVICES},
    packet::Packet,
    parse::{Fragment, Ip, ether, protocol},
    scratch::Decision,
    track::Arrival,
};

/// Entry point, one call a packet.
#[xdp]
pub fn ebb_xdp(ctx: XdpContext) -> u32 {
    let packet = Packet::new(&ctx);
    conclude(&packet, run(&ctx, &packet))
}

#[inline(always)]
fn run(ctx: &XdpContext, packet: &Packet) -> Result<Sent, Outcome> {
    let control = CONTROL.get(0).ok_or(Outcome::NotForService)?;
    let (ethertype, offset) = parse::ethernet(packet).ok_or(Outcome::NotForService)?;
    let ip = match ethertype {
        ether::IPV4 => V4::parse(packet, offset)?,
        ether::IPV6 => V6::parse(packet, offset)?,
        _ => return Err(Outcome::NotForService),
    };
    balance(ctx, packet, control, &ip)
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
        | Outcome::RemembersOwner
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
                unsafe { bpf_redirect(leaves_by, 0) as u32 & XDP_REDIRECT }
            }
        }
        Outcome::DroppedNoBackend
        | Outcome::DroppedCut
        | Outcome::DroppedUnresolved
        | Outcome::DroppedMalformed
        | Outcome::DroppedFragment
        | Outcome::DroppedTooBig
        | Outcome::DroppedHopLimit
        | Outcome::DroppedNoService
        | Outcome::DroppedNatConflict
        | Outcome::DroppedResize => XDP_DROP,
    }
}

/// One IP packet.
#[inline(always)]
fn balance(ctx: &XdpContext, packet: &Packet, control: &Control, ip: &Ip) -> Result<Sent, Outcome> {
    if ip.fragment != Fragment::Whole || (ip.protocol != protocol::TCP && ip.protocol != protocol::UDP) {
        return Err(Outcome::NotForService);
    }
    let ports = parse::ports(packet, ip).ok_or(Outcome::PassedMalformed)?;
    let port = (ports >> 16) as u16;
    let Some((slot, _)) = services::find(control, vip_kind::SERVICE, &ip.destination, port, ip.protocol, 0) else {
        return Err(Outcome::NotForService);
    };
    let service = SERVICES.get(slot).ok_or(Outcome::NotForService)?;
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let arrival = Arrival { packet, ip, ports, control, service_slot: slot, service, now_ns };
    let decision = if ip.protocol == protocol::UDP {
        track::datagram(&arrival)?
    } else {
        let segment = parse::segment(packet, ip)?;
        track::segment(&arrival, segment)?
    };
    if !decision.cut {
        return send(&arrival, decision);
    }
    if decision.silent {
        return Err(Outcome::DroppedCut);
    }
    rare::result(rare::ebb_reset(ctx.ctx))
}

/// Sends a packet to its backend in the service's way.
#[inline(always)]
fn send(arrival: &Arrival<'_>, decision: Decision) -> Result<Sent, Outcome> {
    let backend = steer::row(decision.backend).ok_or(Outcome::DroppedNoBackend)?;
    let ifindex = forward::dsr::send(arrival.packet, backend)?;
    count::sent(arrival.control, decision.backend, arrival.ip.len, is_new(decision.outcome));
    Ok(Sent { ifindex, outcome: decision.outcome })
}

#[inline(always)]
fn is_new(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::NewFlow)
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
