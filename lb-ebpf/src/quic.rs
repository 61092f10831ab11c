//! Which backend the QUIC connection id of a datagram names: see [`lb_common::quic`].

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    quic::{self, ID_WINDOW, LONG_ID_AT, SHORT_ID_AT},
    service::vip_kind,
};

use crate::{
    maps::{CONTROL, SERVICES},
    packet::Packet,
    scratch::NONE,
    services,
    track::Arrival,
};

/// Bytes of a UDP header.
const UDP: usize = 8;

/// The backend slot that a datagram of no known flow names, or [`NONE`].
#[inline(always)]
pub fn named(arrival: &Arrival<'_>) -> u32 {
    if arrival.service.server_id_len == 0 {
        return NONE;
    }
    ebb_named(arrival.packet.context(), arrival.ip.payload as u32, arrival.service_slot)
}

/// The backend slot that the datagram whose header is at `at` names, or [`NONE`]. Global, and with the fast path's frame
/// alone above it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_named(ctx: *mut xdp_md, at: u32, service: u32) -> u32 {
    let packet = Packet::new(&XdpContext::new(ctx));
    // The mask is for the verifier: headers end before.
    backend(&packet, (at & 0xfff) as usize, service).unwrap_or(NONE)
}

#[inline(always)]
fn backend(packet: &Packet, at: usize, service_slot: u32) -> Option<u32> {
    let service = SERVICES.get(service_slot)?;
    let udp = packet.window::<{ UDP + 1 }>(at)?;
    let (len, first) = (u16::from_be(udp.get::<u16, 4>()) as usize, udp.get::<u8, UDP>());
    let mut id = UDP + SHORT_ID_AT;
    if quic::is_long(first) {
        let header = packet.window::<LONG_ID_AT>(at + UDP)?;
        let version = u32::from_be(header.get::<u32, 1>());
        // Its length, without which a long header's id would end nowhere.
        if !quic::is_handshake(first, version) || header.get::<u8, 5>() <= service.server_id_len {
            return None;
        }
        id = UDP + LONG_ID_AT;
    }
    // What comes behind the datagram is not its own.
    if len < id + ID_WINDOW {
        return None;
    }
    let window = packet.window::<ID_WINDOW>(at + id)?;
    if quic::rotation(window.get::<u8, 0>()) != service.cid_rotation {
        return None;
    }
    let server = quic::key([window.get::<u64, 1>(), window.get::<u64, 9>()], service.server_id_len);
    let found = services::find(CONTROL.get(0)?, vip_kind::SERVER_ID, &server, service_slot as u16, 0, 0);
    found.map(|(backend, _)| backend)
}
