//! Telling apart the flows of services that share a backend endpoint, where one client port meets several of them.
//!
//! The backend would see the same tuple twice, so the later flow's source port is rewritten: to the original with some
//! of its upper bits turned over, so that the original follows from it and no second entry is needed.

use lb_common::{
    service::{SHARED_BY, vip_kind},
    tcp::Segment,
};

use crate::{
    forward::nat::flow_at,
    maps::{CONTROL, SERVICES},
    scratch::{self, NONE, NatQuery},
    services, steer,
};

/// What may be turned over in a port (network order as loaded); 0 leaves it as it is.
pub const MASKS: [u16; 4] = [0, 0x4000u16.to_be(), 0x2000u16.to_be(), 0x6000u16.to_be()];

/// No port is left.
pub const TAKEN: u32 = u32::MAX;

/// The port by which the backend is to know the client, whose own is `port`: 0 for its own, [`TAKEN`] if all that it
/// could have are in use.
#[inline(always)]
pub fn choose(backend: u32, port: u16) -> u32 {
    if ebb_nat_shared(backend) == 0 {
        return 0;
    }
    for mask in MASKS {
        if ebb_nat_port_taken(backend, (port ^ mask) as u32) == 0 {
            return if mask == 0 { 0 } else { (port ^ mask) as u32 };
        }
    }
    TAKEN
}

/// Whether several services share the backend's endpoint: 1 or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_nat_shared(backend: u32) -> u32 {
    let (Some(scratch), Some(control), Some(row)) = (scratch::row(), CONTROL.get(0), steer::row(backend)) else {
        return 1;
    };
    let Some(service) = SERVICES.get(scratch.request.service) else { return 1 };
    let endpoint = |probe| services::find(control, vip_kind::NAT_SOURCE, &row.addr, row.port, service.protocol, probe);
    let Some((_, next)) = endpoint(0) else { return 0 };
    u32::from(endpoint(next).is_some())
}

/// Whether the backend's endpoint knows the client of this CPU's request by this port already, from another flow: 1 or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_nat_port_taken(backend: u32, port: u32) -> u32 {
    let Some(scratch) = scratch::row() else { return 1 };
    let (Some(control), Some(row)) = (CONTROL.get(0), steer::row(backend)) else { return 1 };
    let port = port as u16;
    scratch.nat_query = NatQuery {
        backend: row.addr,
        client: scratch.request.client,
        backend_port: row.port,
        client_port: port,
        protocol: 0,
        segment: Segment::NONE,
    };
    let request = &scratch.request;
    let Some(service) = SERVICES.get(request.service) else { return 1 };
    let mut probe = 0;
    for _ in 0..SHARED_BY {
        let found = services::find(control, vip_kind::NAT_SOURCE, &row.addr, row.port, service.protocol, probe);
        let Some((other, next)) = found else { return 0 };
        probe = next;
        for mask in MASKS {
            let original = port ^ mask;
            let own = other == request.service && original == request.ports as u16;
            if !own && flow_at(&scratch.nat_query, other, original) != NONE {
                return 1;
            }
        }
    }
    0
}
