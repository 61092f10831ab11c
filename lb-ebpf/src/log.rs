//! What an operator may want to read about, one line a second and CPU at most: counters are the truth, logs are for
//! people. The level is chosen at load (`AYA_LOG_LEVEL`).

use aya_log_ebpf::{debug, warn};
use lb_common::outcome::Outcome;

use crate::{clock, maps::CONTROL, scratch};

/// Least time between two lines of a CPU, ns.
const INTERVAL_NS: u64 = 1_000_000_000;

/// Logs an outcome that is worth a line; always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_log(outcome: u32) -> u32 {
    let (Some(scratch), Some(control)) = (scratch::row(), CONTROL.get(0)) else { return 0 };
    let now = clock(control);
    if now.wrapping_sub(scratch.logged_ns) < INTERVAL_NS {
        return 0;
    }
    scratch.logged_ns = now;
    let service = scratch.request.service;
    // The macros want a context but use none: lines go through a ring buffer.
    let ctx = ();
    if outcome == Outcome::DroppedNoBackend as u32 {
        warn!(&ctx, "service slot {}: no backend takes new flows; packets are dropped", service);
    } else if outcome == Outcome::Untracked as u32 {
        warn!(&ctx, "service slot {}: a flow found no place in the table and is steered by its hash alone", service);
    } else if outcome == Outcome::DroppedNatConflict as u32 {
        warn!(
            &ctx,
            "service slot {}: a client has used up the ports by which a shared backend tells its flows apart", service
        );
    } else {
        debug!(&ctx, "service slot {}: outcome {}", service, outcome);
    }
    0
}
