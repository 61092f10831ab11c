//! The clock that the packet path reads.

/// `CLOCK_MONOTONIC_COARSE` in nanoseconds, what `bpf_ktime_get_coarse_ns` returns.
pub fn coarse_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which is ours. The clock exists since Linux 2.6.32, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_does_not_go_back() {
        let first = super::coarse_ns();
        assert!(first > 0 && super::coarse_ns() >= first);
    }
}
