//! The packet path's clock, and durations in it.

use lb_common::time;
pub use lb_userspace::datapath::clock::coarse_ns as now_ns;

/// The present tick.
pub fn now_ticks() -> u32 {
    time::ticks(now_ns())
}

/// Seconds in ticks.
pub const fn seconds(s: u32) -> u32 {
    time::duration_ticks(s as u64 * 1_000_000_000)
}
