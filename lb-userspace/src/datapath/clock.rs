//! The clock that the packet path reads.

use std::{thread, time::Duration};

use aya::{
    Ebpf,
    programs::{TestRun as _, TestRunOptions, Xdp},
};

/// `CLOCK_MONOTONIC_COARSE` in nanoseconds, what `bpf_ktime_get_coarse_ns` returns.
pub fn coarse_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which is ours. The clock exists since Linux 2.6.32, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// By how much this process's monotonic clock differs from the kernel's, seconds and nanoseconds: from the lines of
/// `/proc/self/timens_offsets` (`time_namespaces(7)`).
pub(crate) fn namespace_offset(offsets: &str) -> Option<(i64, i64)> {
    let monotonic = offsets.lines().find_map(|line| line.strip_prefix("monotonic"))?;
    let mut numbers = monotonic.split_whitespace().map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// How the kernel's jiffies relate to its coarse clock.
///
/// Once known this holds: with high-resolution timers jiffies are counted off `CLOCK_MONOTONIC` itself, one for each
/// `TICK_NSEC` that it has advanced, corrections by NTP included (`tick_do_update_jiffies64`, kernel/time/tick-sched.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jiffies {
    /// Length of a jiffy, ns.
    pub jiffy_ns: u32,
    /// Coarse time at jiffy 0, ns, modulo 2^64.
    pub offset_ns: u64,
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    coarse_ns: u64,
    jiffies: u64,
}

/// Tick rates that kernels are built with (kernel/Kconfig.hz, and what some architectures add), per second.
const RATES: [u32; 7] = [100, 128, 250, 256, 300, 1000, 1024];
/// How long is measured: enough to tell the rates apart at the slowest.
const SPAN: Duration = Duration::from_millis(120);

/// Measures by two runs of the program `ebb_clock`. `None` if it cannot be told: then the packet path asks the coarse clock.
pub fn jiffies(ebpf: &mut Ebpf) -> Option<Jiffies> {
    let program: &mut Xdp = ebpf.program_mut("ebb_clock")?.try_into().ok()?;
    program.load().ok()?;
    let first = sample(program)?;
    thread::sleep(SPAN);
    relate(first, sample(program)?)
}

fn sample(program: &Xdp) -> Option<Sample> {
    let frame = [0u8; 64];
    let mut out = [0u8; 64];
    let options =
        TestRunOptions { data_in: Some(&frame), data_out: Some(&mut out), repeat: 1, ..TestRunOptions::default() };
    program.test_run(options).ok()?;
    let word = |at: usize| out.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
    Some(Sample { coarse_ns: word(0)?, jiffies: word(8)? })
}

/// The rate nearest to the measured one, if it is near, and the offset that the later sample gives.
fn relate(first: Sample, last: Sample) -> Option<Jiffies> {
    let ns = last.coarse_ns.checked_sub(first.coarse_ns)?;
    let ticks = last.jiffies.checked_sub(first.jiffies)?;
    if ticks < 5 {
        return None;
    }
    let measured = ns / ticks;
    let jiffy_ns = RATES
        .map(|rate| (1_000_000_000 + rate / 2) / rate)
        .into_iter()
        .min_by_key(|&j| measured.abs_diff(u64::from(j)))?;
    // The next rate is never nearer than 2 %.
    if measured.abs_diff(u64::from(jiffy_ns)) > u64::from(jiffy_ns) / 100 {
        return None;
    }
    let offset_ns = last.coarse_ns.wrapping_sub(last.jiffies.wrapping_mul(u64::from(jiffy_ns)));
    Some(Jiffies { jiffy_ns, offset_ns })
}

#[cfg(test)]
mod tests {
    use lb_common::time;

    use super::*;

    #[test]
    fn samples_give_back_the_clock() {
        let at = |ms: u64| Sample { coarse_ns: 5_000_000_000 + ms * 1_000_000, jiffies: (1 << 32) + ms / 4 };
        let found = relate(at(0), at(120)).unwrap();
        assert_eq!(found.jiffy_ns, 4_000_000);
        let later = at(8_000_000);
        assert_eq!(time::from_jiffies(later.jiffies, found.jiffy_ns, found.offset_ns), later.coarse_ns);
    }

    #[test]
    fn the_offset_of_a_time_namespace_is_read() {
        let offsets = "monotonic       86400         7\nboottime            0         0\n";
        assert_eq!(namespace_offset(offsets), Some((86_400, 7)));
        assert_eq!(namespace_offset("monotonic -5 0\n"), Some((-5, 0)));
        assert_eq!(namespace_offset(""), None);
    }

    #[test]
    fn what_fits_no_rate_is_not_guessed() {
        let first = Sample { coarse_ns: 0, jiffies: 0 };
        assert_eq!(relate(first, Sample { coarse_ns: 120_000_000, jiffies: 17 }), None);
        assert_eq!(relate(first, Sample { coarse_ns: 4_000_000, jiffies: 1 }), None, "too short to tell");
        assert_eq!(relate(Sample { coarse_ns: 9, jiffies: 9 }, first), None);
    }

    #[test]
    fn it_does_not_go_back() {
        let first = super::coarse_ns();
        assert!(first > 0 && super::coarse_ns() >= first);
    }
}
