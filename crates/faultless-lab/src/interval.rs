//! The ratio of two series of rounds, its confidence interval, and the difference that it supports. Numbers come in, a
//! verdict comes out; this module knows neither designs nor scenarios.
//!
//! ```text
//!  round                  0     1     2     3     4
//!  A                     10    12    31    10    11      other load disturbs round 2 of both
//!  B                      8    10    25     9     9
//!  A over B            1.25  1.20  1.24  1.11  1.22  ──► median 1.22, interval 1.11 to 1.25: A is higher
//! ```
//! The designs take turns, so that a round of A and the same round of B are neighbours in time. [`Interval::paired`]
//! divides these two. Other load then changes both, and their ratio stays. [`Interval::separate`] compares two runs
//! that had no turns.
//!
//! **The median** is used, and not a mean: other load of the machine disturbs single rounds, and one such round must
//! not decide. It is computed from logarithms, so that A over B is the reciprocal of B over A.
//!
//! **The interval** is a percentile bootstrap of that median, with a fixed seed: the same rounds always give the same
//! interval. Its ends are the 0.5th and the 99.5th percentile, so that it contains the true ratio in 95 % of all cases.
//! The usual 2.5th and 97.5th percentile are too narrow for a median of few rounds. With [`LEAST_ROUNDS`] it is the range of all ratios, and misses 6 %.
//!
//! **A zero** has no ratio. If both values of a pair are zero, the pair counts as 1. If one is, it counts as zero or as
//! infinite, which a median can bear. A value that is missing takes its pair with it.

use serde::{Deserialize, Serialize};

/// The minimum number of rounds for a verdict. With fewer, chance alone puts all rounds on one side too often: with 4
/// rounds, in 12 % of all comparisons of equal designs.
pub const LEAST_ROUNDS: usize = 5;

/// The maximum width of the interval of a level result: the upper end divided by the lower one. A level result excludes
/// all larger differences.
pub const LEVEL_WIDTH: f64 = 1.2;

/// The least difference that counts. A ratio nearer to 1 counts as 1. Latencies are kept to three digits, and nobody
/// chooses a design for a hundredth.
pub const RESOLUTION: f64 = 1.01;

/// A ratio of which more rounds need not be measured, even if its interval is wide: the whole interval lies beyond it.
const FAR: f64 = 2.0;

/// The number of resamples of the bootstrap.
const RESAMPLES: usize = 2000;
/// The number of resamples beyond each end of the interval: 0.5 %.
const BEYOND_END: usize = RESAMPLES / 200;
/// The seed of the bootstrap.
const SEED: u64 = 0x00fa_0171_e550;

/// The ratio of two series of values, and the interval in which the true ratio lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The median of the ratios. Zero or infinite if one of the series is zero.
    pub ratio: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
    /// The number of rounds that were compared.
    pub rounds: usize,
}

/// The result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The whole interval lies on one side of 1, and beyond the difference of twins.
    Beyond,
    /// The interval contains 1, and is narrower than [`LEVEL_WIDTH`].
    Level,
    /// Neither is shown.
    Unknown(Doubt),
}

/// The reason why a comparison has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// There are fewer than [`LEAST_ROUNDS`] rounds.
    FewRounds,
    /// The interval contains 1, and is too wide for a level result.
    Wide,
    /// Designs that run the same code differ as much.
    Twins,
}

impl Interval {
    /// Compares the rounds of A with the same rounds of B, pair by pair. Returns `None` if there is no pair.
    pub fn paired(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let logs = logs(pairs);
        let mut random = fastrand::Rng::with_seed(SEED);
        let mut sample = Vec::new();
        Self::of(median(&mut logs.clone())?, logs.len(), || resampled(&logs, &mut random, &mut sample))
    }

    /// Compares the median of A's rounds with that of B's, for two runs whose rounds did not alternate. Returns `None` if
    /// one has no rounds. Two equal series have the ratio 1, without an interval.
    pub fn separate(a: &[f64], b: &[f64]) -> Option<Self> {
        let [logs_a, logs_b] = [a, b].map(|values| values.iter().map(|value| value.ln()).collect::<Vec<_>>());
        // The seed of a series depends on its values, so that B over A is the reciprocal of A over B.
        let random = |values: &[f64]| {
            let mix = |seed: u64, value: &f64| (seed ^ value.to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            fastrand::Rng::with_seed(values.iter().fold(SEED, mix))
        };
        let (mut random_a, mut random_b) = (random(a), random(b));
        let (mut sample_a, mut sample_b) = (Vec::new(), Vec::new());
        let middle = difference(median(&mut logs_a.clone())?, median(&mut logs_b.clone())?);
        Self::of(middle, a.len().min(b.len()), || {
            let of_a = resampled(&logs_a, &mut random_a, &mut sample_a);
            difference(of_a, resampled(&logs_b, &mut random_b, &mut sample_b))
        })
    }

    /// Makes the interval from the logarithm of the ratio, and from those of resamples.
    fn of(middle: f64, rounds: usize, resample: impl FnMut() -> f64) -> Option<Self> {
        let mut middles: Vec<f64> = std::iter::repeat_with(resample).take(RESAMPLES).collect();
        middles.sort_unstable_by(f64::total_cmp);
        let (low, high) = (middles[BEYOND_END], middles[RESAMPLES - 1 - BEYOND_END]);
        Some(Self { ratio: middle.exp(), low: low.exp(), high: high.exp(), rounds })
    }

    /// Returns the comparison of B with A.
    #[must_use]
    pub fn inverse(self) -> Self {
        Self { ratio: 1.0 / self.ratio, low: 1.0 / self.high, high: 1.0 / self.low, ..self }
    }

    /// Returns the result of the comparison. `noise` is the ratio by which designs that run the same code differ; `None`
    /// if there are no such designs.
    pub fn difference(self, noise: Option<f64>) -> Difference {
        let noise = noise.unwrap_or(1.0).max(RESOLUTION);
        let has_one = self.low <= RESOLUTION && self.high >= 1.0 / RESOLUTION;
        match self {
            Self { rounds, .. } if rounds < LEAST_ROUNDS => Difference::Unknown(Doubt::FewRounds),
            Self { low, high, .. } if !has_one && (low > noise || high < 1.0 / noise) => Difference::Beyond,
            _ if !has_one || noise > LEVEL_WIDTH => Difference::Unknown(Doubt::Twins),
            _ if self.is_narrow() => Difference::Level,
            _ => Difference::Unknown(Doubt::Wide),
        }
    }

    /// Returns whether more rounds would tell little more. It depends on the width of the interval, and not on whether
    /// it contains 1: a run that ended as soon as there is a difference would find too many.
    pub fn is_settled(self) -> bool {
        let is_far = self.low >= FAR || self.high <= 1.0 / FAR;
        self.rounds >= LEAST_ROUNDS && (self.is_narrow() || is_far)
    }

    fn is_narrow(self) -> bool {
        self.high <= self.low * LEVEL_WIDTH
    }
}

/// Returns the ratio of [`Interval::paired`], without its interval; `None` if there is no pair.
pub fn paired_ratio(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<f64> {
    median(&mut logs(pairs)).map(f64::exp)
}

/// Returns the logarithms of the ratios of pairs.
fn logs(pairs: impl IntoIterator<Item = (f64, f64)>) -> Vec<f64> {
    pairs.into_iter().map(|(a, b)| difference(a.ln(), b.ln())).collect()
}

/// Returns `a - b`; zero if they are equal, also if both are infinite.
fn difference(a: f64, b: f64) -> f64 {
    if a == b { 0.0 } else { a - b }
}

/// Returns the median, and sorts `values`; `None` if there are none. A median halfway between minus and plus infinity is
/// zero.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    let (&high, &low) = (values.get(half)?, values.get(half.saturating_sub(1))?);
    let middle = if values.len() % 2 == 1 { high } else { (low + high) / 2.0 };
    Some(if middle.is_nan() { 0.0 } else { middle })
}

/// Returns the median of as many values, each drawn anew from all of them. `sample` is scratch space.
fn resampled(values: &[f64], random: &mut fastrand::Rng, sample: &mut Vec<f64>) -> f64 {
    sample.clear();
    sample.extend(std::iter::repeat_with(|| values[random.usize(..values.len())]).take(values.len()));
    median(sample).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns pairs of rounds whose true ratio is `ratio`. Each value is multiplied by `noise` to the power of a normal
    /// variable, and both values of a pair by the same load of up to ten times.
    fn rounds(count: usize, ratio: f64, noise: f64, random: &mut fastrand::Rng) -> Vec<(f64, f64)> {
        let mut normal = || (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
        let mut pair = || {
            let load = 10_f64.powf(normal().abs() / 6.0);
            (100.0 * load * ratio * noise.powf(normal()), 100.0 * load * noise.powf(normal()))
        };
        (0..count).map(|_| pair()).collect()
    }

    /// Returns the share of 300 trials for which `is_counted` holds, in per cent.
    fn share(count: usize, ratio: f64, noise: f64, is_counted: impl Fn(&[(f64, f64)]) -> bool) -> f64 {
        const TRIALS: usize = 300;
        let mut random = fastrand::Rng::with_seed(7);
        let trials = (0..TRIALS).filter(|_| is_counted(&rounds(count, ratio, noise, &mut random)));
        trials.count() as f64 * 100.0 / TRIALS as f64
    }

    fn result(pairs: &[(f64, f64)], noise: Option<f64>) -> Difference {
        Interval::paired(pairs.iter().copied()).expect("pairs").difference(noise)
    }

    /// Returns whether A differs in the first half of the rounds from B in the second half, which has other loads.
    fn differ_without_turns(pairs: &[(f64, f64)]) -> bool {
        let (a, b) = pairs.split_at(pairs.len() / 2);
        let (a, b): (Vec<f64>, Vec<f64>) = a.iter().zip(b).map(|((a, _), (_, b))| (*a, *b)).unzip();
        Interval::separate(&a, &b).expect("rounds").difference(None) == Difference::Beyond
    }

    #[test]
    fn equal_designs_are_called_different_in_at_most_one_of_twenty_trials() {
        let wrong = |count| share(count, 1.0, 1.2, |pairs| result(pairs, None) == Difference::Beyond);
        for count in [6, 7, 12] {
            assert!(wrong(count) <= 5.0, "{count} rounds: {} %", wrong(count));
        }
        // With five rounds, chance puts all of them on one side in 2 of 32 trials.
        assert!((2.0..=8.0).contains(&wrong(LEAST_ROUNDS)), "{} %", wrong(LEAST_ROUNDS));
    }

    #[test]
    fn equal_runs_without_turns_are_called_different_in_at_most_one_of_twenty_trials() {
        for count in [5, 8] {
            let wrong = share(2 * count, 1.0, 1.2, differ_without_turns);
            assert!(wrong <= 5.0, "{count} rounds: {wrong} %");
        }
    }

    #[test]
    fn a_difference_well_above_the_noise_is_found_whatever_load_both_rounds_share() {
        let found = |ratio| share(8, ratio, 1.05, |pairs| result(pairs, None) == Difference::Beyond);
        assert!(found(1.3) > 99.0 && found(1.0 / 1.3) > 99.0, "{} {}", found(1.3), found(1.0 / 1.3));
        // Without turns, the load of the rounds hides the same difference.
        let without_turns = share(16, 1.3, 1.05, differ_without_turns);
        assert!(without_turns < 50.0, "{without_turns} %");
    }

    #[test]
    fn equal_designs_with_little_noise_are_level_and_with_much_unknown() {
        let level = |noise| share(12, 1.0, noise, |pairs| result(pairs, None) == Difference::Level);
        assert!(level(1.02) > 95.0, "{} %", level(1.02));
        let wide = share(12, 1.0, 1.5, |pairs| result(pairs, None) == Difference::Unknown(Doubt::Wide));
        assert!(wide > 90.0, "{wide} %");
    }

    #[test]
    fn a_difference_that_twins_have_too_is_unknown() {
        let pairs = [(1.10, 1.0), (1.11, 1.0), (1.12, 1.0), (1.13, 1.0), (1.14, 1.0)];
        let of = |noise| result(&pairs, noise);
        assert_eq!(of(None), Difference::Beyond);
        assert_eq!(of(Some(1.09)), Difference::Beyond);
        // The twins' spread reaches into the interval.
        assert_eq!(of(Some(1.105)), Difference::Unknown(Doubt::Twins));
        assert_eq!(of(Some(1.5)), Difference::Unknown(Doubt::Twins));
        // If twins differ by more than a level result allows, nothing is level.
        let equal = [(1.0, 1.0); 5];
        assert_eq!(result(&equal, Some(1.19)), Difference::Level);
        assert_eq!(result(&equal, Some(1.21)), Difference::Unknown(Doubt::Twins));
    }

    #[test]
    fn fewer_than_five_rounds_have_no_result() {
        let pairs = [(2.0, 1.0); 6];
        for count in 1..LEAST_ROUNDS {
            assert_eq!(result(&pairs[..count], None), Difference::Unknown(Doubt::FewRounds));
        }
        assert_eq!(result(&pairs[..LEAST_ROUNDS], None), Difference::Beyond);
        assert_eq!(Interval::paired([]), None);
        assert_eq!(Interval::separate(&[1.0], &[]), None);
    }

    #[test]
    fn less_than_a_hundredth_is_no_difference() {
        assert_eq!(result(&[(1.009, 1.0); 9], None), Difference::Level);
        assert_eq!(result(&[(1.011, 1.0); 9], None), Difference::Beyond);
        assert_eq!(result(&[(1.0, 1.011); 9], None), Difference::Beyond);
    }

    #[test]
    fn the_order_of_the_arguments_gives_reciprocal_intervals() {
        let mut random = fastrand::Rng::with_seed(3);
        for count in [1, 2, 5, 8, 13] {
            let pairs = rounds(count, 1.7, 1.3, &mut random);
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
            let swapped = pairs.iter().map(|(a, b)| (*b, *a));
            let both = [
                (Interval::paired(pairs.clone()).unwrap(), Interval::paired(swapped).unwrap()),
                (Interval::separate(&a, &b).unwrap(), Interval::separate(&b, &a).unwrap()),
            ];
            for (forth, back) in both {
                let back = back.inverse();
                let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
                assert!(near(forth.ratio, back.ratio) && near(forth.low, back.low), "{forth:?} {back:?}");
                assert!(near(forth.high, back.high) && forth.rounds == back.rounds, "{forth:?} {back:?}");
                assert_eq!(forth.difference(None), back.difference(None));
            }
        }
    }

    #[test]
    fn the_same_rounds_always_give_the_same_interval() {
        let pairs = rounds(9, 1.2, 1.4, &mut fastrand::Rng::with_seed(5));
        assert_eq!(
            Interval::paired(pairs.clone()).map(|interval| interval.ratio),
            paired_ratio(pairs.clone())
        );
        assert_eq!(Interval::paired(pairs.clone()), Interval::paired(pairs));
    }

    #[test]
    fn one_disturbed_round_of_nine_does_not_hide_a_difference() {
        let mut pairs = [(1.5, 1.0); 9];
        pairs[4] = (1.5, 9.0);
        assert_eq!(result(&pairs, None), Difference::Beyond);
        assert!((Interval::paired(pairs).unwrap().ratio - 1.5).abs() < 1e-9);
    }

    #[test]
    fn zeros_are_equal_or_infinitely_far_apart() {
        let of = |a: f64, b: f64| Interval::paired([(a, b); 5]).unwrap();
        assert_eq!((of(0.0, 0.0).ratio, of(0.0, 0.0).difference(None)), (1.0, Difference::Level));
        for (pair, ratio) in [((3.0, 0.0), f64::INFINITY), ((0.0, 3.0), 0.0)] {
            let interval = of(pair.0, pair.1);
            assert_eq!((interval.ratio, interval.difference(Some(1.5))), (ratio, Difference::Beyond));
            assert!(interval.is_settled());
        }
        // Zeros on both sides show nothing.
        let both = [(3.0, 0.0), (0.0, 3.0), (3.0, 0.0), (0.0, 3.0), (0.0, 3.0), (3.0, 0.0)];
        let interval = Interval::paired(both).unwrap();
        assert_eq!((interval.ratio, interval.difference(None)), (1.0, Difference::Unknown(Doubt::Wide)));
    }

    #[test]
    fn rounds_end_when_the_interval_is_narrow_or_far_from_1_and_not_because_of_a_difference() {
        let of = |low: f64, high: f64, rounds| Interval { ratio: low, low, high, rounds }.is_settled();
        assert!(of(0.95, 1.1, 5) && of(1.4, 1.6, 5) && of(2.0, 9.0, 5) && of(0.1, 0.5, 5));
        assert!(!of(0.95, 1.1, 4) && !of(1.1, 1.5, 5) && !of(0.8, 1.2, 5));
    }
}
