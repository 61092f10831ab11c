//! The packet path's clock, and durations in it.

use lb_common::time;

/// What `bpf_ktime_get_coarse_ns` would return now.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every kernel that Ebb runs on, and `now` is ours to write.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) } != 0;
    assert!(!failed, "CLOCK_MONOTONIC_COARSE is not there");
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The present tick.
pub fn now_ticks() -> u32 {
    time::ticks(now_ns())
}

/// Seconds in ticks.
pub const fn seconds(s: u32) -> u32 {
    time::duration_ticks(s as u64 * 1_000_000_000)
}
