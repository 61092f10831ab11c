//! The driver: test-run repeats one frame and does not restore it, so this program stands before the one under test,
//! makes the frame what it was, and gives it the addresses of the next flow.

use aya_ebpf::{
    bindings::xdp_action::XDP_ABORTED,
    btf_maps::{Array, ProgramArray},
    helpers::{
        bpf_get_smp_processor_id,
        generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    },
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use ebb_tests_ebpf::{CPUS, Job, TEMPLATE, address_of, port_of, walk};

/// `BPF_F_MMAPABLE`.
pub const MMAPABLE: usize = 1 << 10;

#[btf_map]
pub static JOBS: Array<Job, { CPUS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static TARGETS: ProgramArray<8> = ProgramArray::new();

#[xdp]
pub fn driver(ctx: XdpContext) -> u32 {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(job) = JOBS.get_ptr_mut(cpu) else { return XDP_ABORTED };
    // SAFETY: a row that only this CPU's driver writes while it runs.
    let job = unsafe { &mut *job };
    if drive(&ctx, job).is_some() {
        // SAFETY: the context is the kernel's.
        unsafe { TARGETS.tail_call(&ctx, job.target) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn drive(ctx: &XdpContext, job: &mut Job) -> Option<()> {
    let grown = (opaque(ctx.data_end() - ctx.data()) as u32).wrapping_sub(job.length).cast_signed();
    if grown != 0 && !resize(ctx, grown) {
        return None;
    }
    let flow = next(job);
    let start = ctx.data();
    if start + TEMPLATE > ctx.data_end() {
        return None;
    }
    for i in 0..TEMPLATE / 8 {
        put(start + i * 8, job.template[i]);
    }
    let (address_at, port_at) = if job.v6 == 0 { (start + 26, start + 34) } else { (start + 34, start + 54) };
    put(address_at, address_of(flow).to_be());
    put(port_at, port_of(flow).to_be());
    Some(())
}

/// Keeps the compiler from taking a difference of pointers apart again: the verifier allows no other sums of them.
#[inline(always)]
fn opaque(mut length: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    // SAFETY: a move of a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) length, options(nomem, nostack, preserves_flags));
    }
    length
}

/// Takes what was put in front away, or gives back what was cut from the end.
#[inline(always)]
fn resize(ctx: &XdpContext, grown: i32) -> bool {
    // SAFETY: helpers on the kernel's own context; the caller takes its pointers afterwards.
    unsafe {
        if grown > 0 { bpf_xdp_adjust_head(ctx.ctx, grown) == 0 } else { bpf_xdp_adjust_tail(ctx.ctx, -grown) == 0 }
    }
}

/// Writes within the bytes that were checked.
#[inline(always)]
fn put<T>(at: usize, value: T) {
    // SAFETY: every caller writes below `TEMPLATE`, which `drive` has checked.
    unsafe { core::ptr::write_unaligned(at as *mut T, value) }
}

/// Number of the next flow.
#[inline(always)]
fn next(job: &mut Job) -> u32 {
    let state = job.state;
    match job.walk {
        walk::SEQUENTIAL => {
            job.state = if state + 1 >= job.flows { 0 } else { state + 1 };
            job.first + state
        }
        walk::RANDOM => {
            job.state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            job.first + ((state as u64 * job.flows as u64) >> 32) as u32
        }
        _ => job.first,
    }
}
