//! How long after a command the packet path does as told, and how long after the last connection a drain is over.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use ebb_tests_ebpf::walk;

use super::{
    Figure, Packet,
    case::BASE,
    driver,
    fleet::{Fleet, Size},
    wire::{Taker, Wire},
};

/// Packets of one test-run: some seconds. Between two, no flow comes for 25 ms.
const STREAM: u32 = 4_000_000;
/// Flows that a last flow may be behind: after an answer, what is on the wire has arrived.
const SETTLING: Duration = Duration::from_millis(20);

/// From the sending of a request to drain until the last new flow reaches the backend, over `drains` backends of
/// `backends`, under a stream of new flows from `cpu`; and until the answer.
pub fn drain_latency(backends: u32, drains: u32, cpu: usize) -> Result<Vec<Figure>> {
    let wire = Wire::lay(Taker::Stamp)?;
    let fleet = Fleet::start(&wire, Size { services: 1, backends })?;
    let (mut effects, mut answers) = (Vec::new(), Vec::new());
    under_new_flows(&wire, cpu, || {
        for number in 0..drains {
            let sent_ns = monotonic_ns();
            let took = fleet.about(0, number, "POST", "/drain")?;
            let answered_ns = monotonic_ns();
            thread::sleep(SETTLING);
            let last_ns = wire.last_ns(number as u16);
            ensure!(last_ns != 0, "no flow ever reached backend {number}");
            // What the packet path had decided before the answer is at the far end a moment later.
            ensure!(
                last_ns < answered_ns + 1_000_000,
                "backend {number} got a new flow {} us after the answer",
                (last_ns - answered_ns) / 1000
            );
            effects.push(last_ns.saturating_sub(sent_ns) as f64 / 1e6);
            answers.push(took.as_secs_f64() * 1e3);
        }
        Ok(())
    })?;
    let mut figures = quantiles("drain_to_last_new_flow", &effects);
    figures.extend(quantiles("drain_to_answer", &answers));
    Ok(figures)
}

/// Does something while new flows come in for the driver's service.
pub(super) fn under_new_flows<T>(wire: &Wire, cpu: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            let mut first = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                wire.send(cpu, &driver::job(BASE, Packet::Open, walk::SEQUENTIAL, first, STREAM), STREAM)?;
                first = first.wrapping_add(STREAM);
            }
            Ok(())
        });
        thread::sleep(Duration::from_millis(300));
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap_or_else(|_| anyhow::bail!("the sender panicked"));
        let done = done?;
        sent?;
        Ok(done)
    })
}

/// Middle, 99th percentile and largest of times in milliseconds.
pub(super) fn quantiles(name: &str, times: &[f64]) -> Vec<Figure> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |per_cent: usize| {
        let rank = (sorted.len() * per_cent).div_ceil(100);
        sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    };
    [("median", 50), ("p99", 99), ("max", 100)]
        .into_iter()
        .map(|(quantile, per_cent)| Figure::new(format!("{name}_{quantile}"), at(per_cent), "ms"))
        .collect()
}

/// The clock of the packet path's `bpf_ktime_get_ns`.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable for the call; the clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
