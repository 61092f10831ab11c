//! The clocks: monotonic for deadlines, wall for people and for what must survive a reboot.

use jiff::Timestamp;

/// Where the engine gets the time from.
pub trait Clock: Send + Sync {
    /// `CLOCK_MONOTONIC_COARSE` in nanoseconds, the clock of the packet path.
    fn mono_ns(&self) -> u64;
    /// The wall clock.
    fn wall(&self) -> Timestamp;
    /// Changes when the monotonic clock starts anew.
    fn boot_id(&self) -> String;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn mono_ns(&self) -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a live timespec, which is all that the call asks for.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
        debug_assert_eq!(failed, 0, "every Linux has this clock");
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn boot_id(&self) -> String {
        // Without it each start counts as a new boot, and the wall clock decides: late rather than wrong.
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
    }
}
