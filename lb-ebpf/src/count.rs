//! Counters. Each CPU has its own rows, so plain additions do.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use lb_common::{
    control::Control,
    flow::flow_flag,
    outcome::{Outcome, UNTOLD},
};

use crate::maps::{OUTCOMES, STATS};

/// Counters of one CPU in `OUTCOMES`.
const OUTCOME_STRIDE: u32 = 64;
const _: () = assert!(UNTOLD < OUTCOME_STRIDE);

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: a helper without arguments (an inlined instruction on recent kernels).
    unsafe { bpf_get_smp_processor_id() }
}

/// Counts what became of a packet.
#[inline(always)]
pub fn outcome(outcome: Outcome) {
    one(outcome as u32);
}

/// Counts a flow with these flags that is taken out of the table here, unless it never was one.
#[inline(always)]
pub fn untold(flags: u16) {
    const UNPROVEN: u16 = flow_flag::PROVISIONAL | flow_flag::CANDIDATE;
    if flags & (flow_flag::ESTABLISHED | UNPROVEN) == flow_flag::ESTABLISHED {
        one(UNTOLD);
    }
}

#[inline(always)]
fn one(number: u32) {
    if let Some(counter) = OUTCOMES.get_ptr_mut(cpu() * OUTCOME_STRIDE + number) {
        // SAFETY: a word of a map's value that only this CPU writes, and the program is not re-entered on it.
        unsafe { *counter += 1 };
    }
}

/// Counts a packet sent to a backend.
#[inline(always)]
pub fn sent(control: &Control, backend: u32, bytes: usize, new: bool) {
    if let Some(row) = STATS.get_ptr_mut(cpu() * control.backend_slots + backend) {
        // SAFETY: as in `outcome`.
        unsafe {
            (*row).packets += 1;
            (*row).bytes += bytes as u64;
            if new {
                (*row).new_flows += 1;
            }
        }
    }
}

/// Counts a flow of a backend that an RST has ended.
#[inline(always)]
pub fn reset(control: &Control, backend: u32) {
    if let Some(row) = STATS.get_ptr_mut(cpu() * control.backend_slots + backend) {
        // SAFETY: as in `outcome`.
        unsafe { (*row).resets += 1 };
    }
}
