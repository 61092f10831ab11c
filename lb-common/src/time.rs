//! The coarse clock of the packet path.
//!
//! Both sides read `CLOCK_MONOTONIC_COARSE` (`bpf_ktime_get_coarse_ns` in the kernel), in nanoseconds. Flow entries
//! keep it as 32-bit *ticks* of 2^20 ns (1.05 ms), which wrap after 52 days: ages are differences, right up to 26 days.

/// How far to shift nanoseconds right to get ticks.
pub const TICK_SHIFT: u32 = 20;

/// The longest age a tick difference can express, and so the longest idle timeout that may be configured.
pub const MAX_AGE_TICKS: u32 = i32::MAX as u32;

/// The tick that a coarse monotonic time falls in.
#[inline(always)]
pub const fn ticks(now_ns: u64) -> u32 {
    (now_ns >> TICK_SHIFT) as u32
}

/// Coarse monotonic time from the kernel's jiffies, which cost the packet path one load instead of a call (17 ns where
/// it was measured). Both advance at the same tick, so that the two clocks are never more than one apart.
#[inline(always)]
pub const fn from_jiffies(jiffies: u64, jiffy_ns: u32, offset_ns: u64) -> u64 {
    jiffies.wrapping_mul(jiffy_ns as u64).wrapping_add(offset_ns)
}

/// A duration in ticks, rounded up, at most [`MAX_AGE_TICKS`].
pub const fn duration_ticks(ns: u64) -> u32 {
    let ticks = ns.div_ceil(1 << TICK_SHIFT);
    if ticks > MAX_AGE_TICKS as u64 { MAX_AGE_TICKS } else { ticks as u32 }
}

/// Ticks from `then` to `now`; a `then` that another CPU wrote a moment in the future counts as no age.
#[inline(always)]
pub const fn age(now: u32, then: u32) -> u32 {
    let age = now.wrapping_sub(then);
    if age > MAX_AGE_TICKS { 0 } else { age }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_survive_the_wrap() {
        assert_eq!(age(5, u32::MAX - 4), 10);
        assert_eq!(age(100, 101), 0, "a time just ahead of ours is not an age of weeks");
        assert_eq!(ticks(1 << 52), 0);
        assert_eq!(duration_ticks(1), 1);
        assert_eq!(duration_ticks(u64::MAX), MAX_AGE_TICKS);
    }
}
