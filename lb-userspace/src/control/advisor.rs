//! What delay a service's drains want, worked out from how long its flows last.
//!
//! Flows still open are *censored* observations: all that is known is that they last longer than so far. Leaving them out would make
//! flows look shorter than they are, so the distribution is estimated by Kaplan and Meier's product limit (E. L. Kaplan and
//! P. Meier, "Nonparametric estimation from incomplete observations", J. Am. Stat. Assoc. 53, 1958): of the flows that had lasted
//! up to some length, the share that ended there. Flows that a drain cut are censored at the cut.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::{Limit, Seconds};

/// Buckets for each doubling of the length: a bucket's upper end is at most an eighth above its lower one.
const PARTS: u32 = 8;
const PARTS_LOG: u32 = PARTS.ilog2();
/// Buckets for lengths up to `u32::MAX` milliseconds, 49 days.
const BUCKETS: usize = ((u32::BITS - PARTS_LOG + 1) * PARTS) as usize;
/// What is shown, in thousandths.
const SHARES: [u32; 4] = [500, 900, 990, 999];
/// Fewer ended flows than this say little about the 99th percentile.
const ENOUGH: u64 = 1_000;
/// Points of the plotted curve.
const POINTS: usize = 24;

/// Lengths in milliseconds, on a logarithmic scale.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u16, u64)>", into = "Vec<(u16, u64)>")]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS] }
    }
}

impl Histogram {
    /// Counts a length.
    pub fn record(&mut self, length_ms: u32) {
        self.counts[bucket(length_ms)] += 1;
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
    }
}

impl From<Histogram> for Vec<(u16, u64)> {
    fn from(histogram: Histogram) -> Self {
        let counted = histogram.counts.into_iter().zip(0..).filter(|(count, _)| *count > 0);
        counted.map(|(count, at)| (at, count)).collect()
    }
}

impl TryFrom<Vec<(u16, u64)>> for Histogram {
    type Error = String;

    fn try_from(counted: Vec<(u16, u64)>) -> Result<Self, String> {
        let mut histogram = Self::default();
        for (at, count) in counted {
            let bucket = histogram.counts.get_mut(usize::from(at));
            *bucket.ok_or_else(|| format!("a histogram has no bucket {at}"))? = count;
        }
        Ok(histogram)
    }
}

/// The bucket of a length: one each up to twice `PARTS`, then `PARTS` a doubling.
fn bucket(length_ms: u32) -> usize {
    let doublings = (u32::BITS - length_ms.leading_zeros()).saturating_sub(PARTS_LOG + 1);
    (doublings * PARTS + (length_ms >> doublings)) as usize
}

/// The longest length in a bucket.
fn upper_ms(bucket: usize) -> u32 {
    let bucket = bucket as u32;
    let doublings = (bucket / PARTS).saturating_sub(1);
    let first = u64::from(bucket - doublings * PARTS);
    u32::try_from(((first + 1) << doublings) - 1).unwrap_or(u32::MAX)
}

/// What is known of a service's flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    /// Flows that ended by themselves.
    pub ended: Histogram,
    /// Flows that were cut, so that nobody knows how long they would have lasted.
    pub cut: Histogram,
}

/// `ebb advise`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Advice {
    /// The service.
    pub service: String,
    /// Flows seen to end.
    pub ended_flows: u64,
    /// Flows still open or cut, which count as lasting longer than they were seen to.
    pub censored_flows: u64,
    /// What delay lets which share of flows end by themselves.
    pub percentiles: Vec<Percentile>,
    /// The service's present delay.
    pub drain_timeout_s: Limit,
    /// The share of flows (0 to 1) that last longer than the present delay; `null` when nothing seen tells.
    pub longer_than_present: Option<f64>,
    /// The delay recommended: the 99th percentile and a quarter, in whole seconds; `null` when it is beyond what was seen.
    pub recommended_s: Option<Seconds>,
    /// The share of flows that last longer than so many seconds, as far as it is known.
    pub curve: Vec<Point>,
    /// What stands between this and the truth.
    pub limits: Vec<String>,
}

/// One percentile of an [`Advice`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Percentile {
    /// So many flows in a hundred …
    pub percent: f64,
    /// … last at most so long; `null` when more than the rest are still open.
    pub at_most_s: Option<f64>,
}

/// A point of an [`Advice`]'s curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// After so many seconds …
    pub after_s: f64,
    /// … this share of flows goes on.
    pub share: f64,
}

/// The product-limit estimate: after each bucket in which flows ended, its upper end and the share that lasts longer.
fn survival(ended: &Histogram, censored: &Histogram) -> Vec<(u32, f64)> {
    let mut at_risk = ended.total() + censored.total();
    let mut share = 1.0;
    let mut steps = Vec::new();
    for (at, (ends, censored)) in ended.counts.iter().zip(&censored.counts).enumerate() {
        if *ends > 0 {
            // Within a bucket, ends come before censorings, as is usual for ties.
            share *= ratio(at_risk - ends, at_risk);
            steps.push((upper_ms(at), share));
        }
        at_risk -= ends + censored;
    }
    steps
}

fn ratio(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let ratio = part as f64 / whole as f64;
    ratio
}

fn seconds(length_ms: u32) -> f64 {
    f64::from(length_ms) / 1_000.0
}

/// The length that at most the rest of `share` (in thousandths) outlast.
fn percentile(steps: &[(u32, f64)], share: u32) -> Option<u32> {
    let rest = f64::from(1_000 - share) / 1_000.0;
    // Products of ratios are a little off.
    steps.iter().find(|(_, left)| *left <= rest + 1e-9).map(|(upper_ms, _)| *upper_ms)
}

/// The share that outlasts `length_ms`, if what was seen reaches that far.
fn outlast(steps: &[(u32, f64)], seen_up_to_ms: u32, length_ms: u32) -> Option<f64> {
    let (_, last) = steps.last()?;
    if length_ms > seen_up_to_ms && *last > 1e-9 {
        return None;
    }
    Some(steps.iter().take_while(|(upper_ms, _)| *upper_ms <= length_ms).last().map_or(1.0, |(_, left)| *left))
}

/// Advice from the lengths of flows that are over and the ages of those that are open.
pub fn advise(service: &str, lengths: &Lengths, open: &Histogram, present: Limit) -> Advice {
    let mut censored = lengths.cut.clone();
    censored.add(open);
    let steps = survival(&lengths.ended, &censored);
    let counts = lengths.ended.counts.iter().zip(&censored.counts);
    let seen_up_to_ms = counts.zip(0..).filter(|((a, b), _)| *a + *b > 0).last().map_or(0, |(_, at)| upper_ms(at));
    let percentiles = SHARES.iter().map(|share| Percentile {
        percent: f64::from(*share) / 10.0,
        at_most_s: percentile(&steps, *share).map(seconds),
    });
    let longer = match present.0 {
        Some(delay) => outlast(&steps, seen_up_to_ms, u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)),
        // No deadline cuts nothing.
        None => (!steps.is_empty()).then_some(0.0),
    };
    let recommended =
        percentile(&steps, 990).map(|upper_ms| Seconds::new((u64::from(upper_ms) * 5).div_ceil(4 * 1_000)));
    Advice {
        service: service.to_owned(),
        ended_flows: lengths.ended.total(),
        censored_flows: censored.total(),
        percentiles: percentiles.collect(),
        drain_timeout_s: present,
        longer_than_present: longer,
        recommended_s: recommended,
        curve: curve(&steps),
        limits: limits(lengths.ended.total(), open.total(), lengths.cut.total(), recommended.is_some()),
    }
}

/// Points at even distances on the logarithmic scale between the first and the last step.
fn curve(steps: &[(u32, f64)]) -> Vec<Point> {
    let (Some((first, _)), Some((last, _))) = (steps.first(), steps.last()) else {
        return Vec::new();
    };
    let (low, high) = (f64::from(*first).max(1.0).ln(), f64::from(*last).max(1.0).ln());
    let point = |number: usize| {
        let along = ratio(number as u64, POINTS as u64 - 1);
        let at_ms = (low + (high - low) * along).exp();
        // Rounding must not lose the last step.
        let passed = steps.iter().take_while(|(upper_ms, _)| f64::from(*upper_ms) <= at_ms * (1.0 + 1e-9));
        Point { after_s: at_ms / 1_000.0, share: passed.last().map_or(1.0, |(_, left)| *left) }
    };
    (0..POINTS).map(point).collect()
}

fn limits(ended: u64, open: u64, cut: u64, reached: bool) -> Vec<String> {
    let mut limits = Vec::new();
    if ended < ENOUGH {
        limits.push(format!("only {ended} flows have been seen to end: ask again after {ENOUGH}"));
    }
    if ended > 0 && !reached {
        limits.push("too many flows are still open to tell the 99th percentile: ask again later".to_owned());
    }
    limits.push(format!(
        "{open} open flows and {cut} cut ones count as lasting longer than they were seen to (Kaplan-Meier)"
    ));
    limits.push("lengths are exact to an eighth; a flow that fell silent lasts until its idle timeout".to_owned());
    limits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(lengths: &[u32]) -> Histogram {
        let mut histogram = Histogram::default();
        for length in lengths {
            histogram.record(*length);
        }
        histogram
    }

    fn ask(ended: &[u32], open: &[u32], present: Limit) -> Advice {
        let lengths = Lengths { ended: of(ended), cut: Histogram::default() };
        advise("web", &lengths, &of(open), present)
    }

    #[test]
    fn the_last_bucket_is_the_last() {
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
        assert_eq!(upper_ms(BUCKETS - 1), u32::MAX);
        assert_eq!((bucket(0), bucket(15), bucket(16), bucket(17), bucket(18)), (0, 15, 16, 16, 17));
    }

    #[test]
    fn the_textbook_s_example() {
        // Ends at 3, 5, 6 and 10, censored at 4, 6 and 12: 6/7, ·4/5, ·3/4, ·1/2.
        let steps = survival(&of(&[3, 5, 6, 10]), &of(&[4, 6, 12]));
        let expected = [(3, 6.0 / 7.0), (5, 6.0 / 7.0 * 0.8), (6, 6.0 / 7.0 * 0.6), (10, 6.0 / 7.0 * 0.3)];
        assert_eq!(steps.len(), expected.len());
        for (step, expected) in steps.iter().zip(expected) {
            assert!(step.0 == expected.0 && (step.1 - expected.1).abs() < 1e-12, "{steps:?}");
        }
    }

    #[test]
    fn leaving_open_flows_out_would_make_flows_look_short() {
        let short = vec![100; 900];
        let open = vec![600_000; 100];
        let advice = ask(&short, &open, Limit::seconds(300));
        assert_eq!(advice.percentiles[1].at_most_s, Some(0.103), "{advice:?}");
        assert_eq!(advice.percentiles[2].at_most_s, None, "a tenth go on, nobody knows for how long");
        assert_eq!(advice.recommended_s, None);
        assert!(advice.longer_than_present.is_some_and(|share| (share - 0.1).abs() < 1e-9), "{advice:?}");
        assert_eq!((advice.ended_flows, advice.censored_flows), (900, 100));
    }

    #[test]
    fn the_recommendation_is_the_99th_and_a_quarter() {
        let lengths: Vec<u32> = (1..=1_000).map(|number| number * 100).collect();
        let advice = ask(&lengths, &[], Limit::seconds(50));
        let p99 = advice.percentiles[2].at_most_s.expect("all have ended");
        assert!((99.0..=99.0 * 1.125).contains(&p99), "{p99}");
        let recommended = advice.recommended_s.expect("all have ended").0.as_secs_f64();
        assert!((p99 * 1.25..p99 * 1.25 + 1.0).contains(&recommended), "{recommended}");
        let longer = advice.longer_than_present.expect("it is within what was seen");
        assert!((0.49..=0.57).contains(&longer), "{longer}");
        assert_eq!(advice.curve.last().map(|point| point.share), Some(0.0));
    }

    #[test]
    fn nothing_seen_is_nothing_said() {
        let advice = ask(&[], &[5, 6], Limit::NONE);
        assert_eq!((advice.longer_than_present, advice.recommended_s), (None, None));
        assert!(advice.curve.is_empty() && advice.limits[0].starts_with("only 0 flows"), "{advice:?}");
    }

    proptest! {
        #[test]
        fn a_length_is_in_its_bucket(length: u32) {
            let at = bucket(length);
            prop_assert!(length <= upper_ms(at));
            prop_assert!(at == 0 || length > upper_ms(at - 1));
            prop_assert!(u64::from(upper_ms(at)) <= u64::from(length) + u64::from(length) / 8);
        }

        #[test]
        fn without_open_flows_it_is_the_plain_share(ended in proptest::collection::vec(0..10_000_000_u32, 1..300)) {
            for (upper_ms, left) in survival(&of(&ended), &Histogram::default()) {
                let longer = ended.iter().filter(|length| **length > upper_ms).count();
                prop_assert!((left - ratio(longer as u64, ended.len() as u64)).abs() < 1e-9);
            }
        }

        #[test]
        fn it_only_falls_and_open_flows_only_raise_it(
            ended in proptest::collection::vec(0..10_000_000_u32, 1..300),
            open in proptest::collection::vec(0..10_000_000_u32, 0..300),
        ) {
            let with = survival(&of(&ended), &of(&open));
            let without = survival(&of(&ended), &Histogram::default());
            prop_assert!(with.windows(2).all(|pair| pair[1].0 > pair[0].0 && pair[1].1 <= pair[0].1));
            for (a, b) in with.iter().zip(&without) {
                prop_assert!(a.0 == b.0 && a.1 >= b.1 - 1e-9 && (0.0..=1.0).contains(&a.1));
            }
        }

        #[test]
        fn it_survives_being_written_down(lengths in proptest::collection::vec(any::<u32>(), 0..100)) {
            let histogram = of(&lengths);
            let text = serde_json::to_string(&histogram).expect("plain data");
            prop_assert_eq!(serde_json::from_str::<Histogram>(&text).expect("its own words"), histogram);
        }
    }
}
