//! Finding the service that a packet is for.

use lb_common::{
    addr::Addr,
    control::Control,
    hash,
    service::{VIP_PROBES, VipEntry, vip_kind},
};

use crate::maps::VIPS;

/// Where the published half of the VIP table is.
#[derive(Clone, Copy)]
struct Half {
    base: u32,
    mask: u32,
    seed: u64,
}

#[inline(always)]
fn published(control: &Control) -> Half {
    // SAFETY: one aligned word of a map's value, which the daemon changes by one store.
    let word = unsafe { core::ptr::read_volatile(&raw const control.vips) };
    let base = (word >> 32) as u32;
    let seed = if base == 0 { control.vip_seeds[0] } else { control.vip_seeds[1] };
    Half { base, mask: word as u32, seed }
}

/// The first entry of that kind for an address, port (network order) and protocol, from the `skip`th probe on; with it
/// the probe after it, to go on from.
#[inline(always)]
pub fn find(control: &Control, kind: u8, addr: &Addr, port: u16, protocol: u8, skip: u32) -> Option<(u32, u32)> {
    let half = published(control);
    let hash = hash::vip(half.seed, addr, port, protocol);
    for probe in 0..VIP_PROBES {
        let entry = VIPS.get(half.base.wrapping_add(hash.wrapping_add(probe) & half.mask))?;
        if entry.kind == vip_kind::EMPTY {
            return None;
        }
        if probe >= skip && is(entry, kind, addr, port, protocol) {
            return Some((entry.target, probe + 1));
        }
    }
    None
}

#[inline(always)]
fn is(entry: &VipEntry, kind: u8, addr: &Addr, port: u16, protocol: u8) -> bool {
    entry.addr.halves[1] == addr.halves[1]
        && entry.port == port
        && entry.protocol == protocol
        && entry.kind == kind
        && entry.addr.halves[0] == addr.halves[0]
}
