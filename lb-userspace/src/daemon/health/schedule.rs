//! When checks are due: spread by a hash of the names, so that thousands neither begin together nor drift together.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use crate::daemon::handle::CheckTarget;

/// Where many backends are new at once, their first checks begin so far apart on average, unless an interval is too short.
const APART: Duration = Duration::from_millis(10);

/// How long after it became known a target is checked first, `fresh` of them having become known together.
pub(super) fn first(target: &CheckTarget, fresh: usize) -> Duration {
    let spread = APART.saturating_mul(u32::try_from(fresh).unwrap_or(u32::MAX)).min(target.health.interval_s.0);
    spread.mul_f64(fraction(target, u64::MAX))
}

/// From the beginning of a target's check number `round` to that of the next.
pub(super) fn interval(target: &CheckTarget, round: u64) -> Duration {
    let sway = target.health.jitter.clamp(0.0, 1.0) * (2.0 * fraction(target, round) - 1.0);
    // With a jitter of 1 an interval may vanish; the shortest that may be asked for is kept.
    target.health.interval_s.0.mul_f64(1.0 + sway).max(Duration::from_millis(100))
}

/// From 0 up to 1, evenly spread over targets and rounds.
fn fraction(target: &CheckTarget, round: u64) -> f64 {
    let mut hasher = DefaultHasher::new();
    (&target.service, &target.backend, round).hash(&mut hasher);
    f64::from((hasher.finish() >> 32) as u32) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::health::tests::target;

    const INTERVAL: Duration = Duration::from_secs(5);

    #[test]
    fn first_checks_of_many_are_spread_evenly_over_an_interval() {
        let mut tenths = [0; 10];
        for number in 0..10_000 {
            let at = first(&target(number), 10_000);
            assert!(at < INTERVAL);
            tenths[(at.as_millis() / 500) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (850..1_150).contains(count)), "{tenths:?}");
    }

    #[test]
    fn one_alone_is_checked_at_once() {
        assert!(first(&target(1), 1) <= APART);
    }

    #[test]
    fn intervals_stay_within_their_jitter_and_average_out() {
        let mut target = target(1);
        target.health.jitter = 0.2;
        let intervals: Vec<Duration> = (0..10_000).map(|round| interval(&target, round)).collect();
        let allowed = Duration::from_secs(4)..=Duration::from_secs(6);
        assert!(intervals.iter().all(|interval| allowed.contains(interval)));
        let mean = intervals.iter().sum::<Duration>() / 10_000;
        assert!(mean.abs_diff(INTERVAL) < Duration::from_millis(50), "{mean:?}");
        target.health.jitter = 0.0;
        assert_eq!(interval(&target, 3), INTERVAL);
    }
}
