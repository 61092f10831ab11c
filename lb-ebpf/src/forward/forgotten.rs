//! Replies of `nat` flows that this node has forgotten: its flow table was lost, and the backend speaks first.
//!
//! Passed on as it is, such a packet would reach the client from an address that it knows nothing of, and its RST would
//! break the connection. The service follows from the backend's endpoint, and the way to the client from the kernel's
//! routes; the flow itself is adopted by the client's next segment.

use aya_ebpf::{
    bindings::xdp_md, btf_maps::PerCpuArray, helpers::generated::bpf_fib_lookup as fib_lookup, macros::btf_map,
};
use bytemuck::{Pod, Zeroable};
use lb_common::{outcome::Outcome, service::vip_kind};

use super::{Sent, write_macs};
use crate::{
    by_family,
    family::Family,
    maps::{CONTROL, SERVICES},
    packet::Packet,
    parse::{self, Part, protocol},
    rare,
    rewrite::{self, Side, Translation},
    services,
};

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Route {
    family: u8,
    protocol: u8,
    ports: [u16; 2],
    len: u16,
    ifindex: u32,
    class: u32,
    source: [u32; 4],
    destination: [u32; 4],
    vlan: [u16; 2],
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
}

const ROUTE_LEN: i32 = 64;
const _: () = assert!(size_of::<Route>() == ROUTE_LEN as usize);

/// This CPU's question to the kernel's routes: on the stack it would not fit beside the caller's frame.
#[btf_map]
static ROUTE: PerCpuArray<Route, 1> = PerCpuArray::new();

/// Results of the look-up (`BPF_FIB_LKUP_RET_*`).
const FOUND: i64 = 0;
const NO_NEIGHBOUR: i64 = 7;

/// Sends a reply on a forgotten flow to its client, as far as the kernel knows the way; else what passes to the host.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_reply_forgotten(ctx: *mut xdp_md, frame: u32) -> u64 {
    rare::word(by_family!(ctx, frame, outbound()))
}

#[inline(always)]
fn outbound<F: Family>(packet: &Packet, offset: usize) -> Result<Sent, Outcome> {
    let ip = F::parse(packet, offset)?;
    let ports = parse::ports(packet, &ip).ok_or(Outcome::PassedMalformed)?;
    let control = CONTROL.get(0).ok_or(Outcome::NotForService)?;
    let endpoint = |probe| services::find(control, vip_kind::NAT_SOURCE, &ip.source, ports as u16, ip.protocol, probe);
    let (slot, next) = endpoint(0).ok_or(Outcome::NotForService)?;
    // Neither whole datagrams nor connections that the backend opens itself are replies for sure.
    if ip.protocol != protocol::TCP || !ip.fragment.is(Part::Whole) || parse::segment(packet, &ip)?.opens() {
        return Err(Outcome::NotForService);
    }
    let service = SERVICES.get(slot).ok_or(Outcome::NotForService)?;
    // SAFETY: the row is this CPU's alone, and the program is not re-entered on a CPU.
    let route = ROUTE.get_ptr_mut(0).map(|row| unsafe { &mut *row }).ok_or(Outcome::DroppedUnresolved)?;
    *route =
        Route { family: if F::V6 { 10 } else { 2 }, len: ip.len as u16, ifindex: packet.ingress(), ..Route::zeroed() };
    let (source, destination) = (ip.source.words(), ip.destination.words());
    if F::V6 {
        route.source = source;
        route.destination = destination;
    } else {
        route.source[0] = source[3];
        route.destination[0] = destination[3];
    }
    // SAFETY: the context is the kernel's, the structure is ours and of the size told.
    let result = unsafe { fib_lookup(packet.context().cast(), (&raw mut *route).cast(), ROUTE_LEN, 0) };
    match result {
        // Several services share the endpoint: whose client it is cannot be told.
        FOUND | NO_NEIGHBOUR if endpoint(next).is_some() => Err(Outcome::DroppedUnresolved),
        FOUND => {
            let to = Translation { side: Side::Source, addr: service.vip, port: service.port, other_port: 0 };
            rewrite::translate::<F>(packet, &ip, to)?;
            write_macs(packet, route.destination_mac, route.source_mac).ok_or(Outcome::DroppedMalformed)?;
            Ok(Sent { ifindex: route.ifindex, outcome: Outcome::Reply })
        }
        NO_NEIGHBOUR => Err(Outcome::DroppedUnresolved),
        // For the host itself (its own checks of the backend), or it does not forward.
        _ => Err(Outcome::NotForService),
    }
}
