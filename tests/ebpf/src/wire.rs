//! Programs for the two ends of a link: one that puts the driver's packets on it, bare programs that send them back, and
//! two that take what comes back.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP},
    btf_maps::Array,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_redirect},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use ebb_tests_ebpf::{CPUS, Received, STAMPS};

use crate::driver::{JOBS, MMAPABLE};

#[btf_map]
static RECEIVED: Array<Received, { CPUS as usize }, MMAPABLE> = Array::new();
/// When a packet with these last two bytes of its destination's MAC address was last taken.
#[btf_map]
static STAMPED: Array<u64, STAMPS, MMAPABLE> = Array::new();

/// Target of the driver in a live-frame test-run: out of the job's interface.
#[xdp]
pub fn send(_ctx: XdpContext) -> u32 {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    match JOBS.get(cpu) {
        // SAFETY: plain numbers.
        Some(job) => unsafe { bpf_redirect(job.interface, 0).cast_unsigned() as u32 },
        None => XDP_ABORTED,
    }
}

/// The least that a balancer with `XDP_REDIRECT` can do: back out of where it came in.
#[xdp]
pub fn redirect(ctx: XdpContext) -> u32 {
    // SAFETY: plain numbers.
    unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0).cast_unsigned() as u32 }
}

#[inline(always)]
fn received() -> Option<&'static mut Received> {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // SAFETY: a row that only this CPU writes, and readers in user space take word by word.
    RECEIVED.get_ptr_mut(cpu).map(|row| unsafe { &mut *row })
}

/// Counts what arrives.
#[xdp]
pub fn receive(_ctx: XdpContext) -> u32 {
    if let Some(row) = received() {
        row.packets += 1;
    }
    XDP_DROP
}

/// Counts what arrives, notes when each destination's last packet came, and the longest time without any.
#[xdp]
pub fn stamp(ctx: XdpContext) -> u32 {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if let Some(row) = received() {
        row.packets += 1;
        let gap_ns = now_ns - row.last_ns;
        if row.last_ns != 0 && gap_ns > row.longest_gap_ns {
            row.longest_gap_ns = gap_ns;
        }
        row.last_ns = now_ns;
    }
    let start = ctx.data();
    if start + 6 <= ctx.data_end() {
        // SAFETY: within the packet by the check above.
        let end = unsafe { core::ptr::read_unaligned((start + 4) as *const u16) };
        if let Some(stamp) = STAMPED.get_ptr_mut(u32::from(end.to_be())) {
            // SAFETY: a row of the array; of two CPUs' stores either is good.
            unsafe { *stamp = now_ns };
        }
    }
    XDP_DROP
}
