//! Bars: the greatest values that figures of a case may have, and the verdict over the rounds.

use crate::figures::{Figures, Round, quantile, sorted};
use serde::Serialize;

/// A figure of a case, with the greatest value that it may have.
pub struct Bar {
    /// The figure, for people.
    pub about: &'static str,
    /// The greatest value that meets the bar.
    pub most: f64,
    pub of: Of,
}

/// The figure that a bar is about.
pub enum Of {
    /// The time of an operation of a contender, divided by that of another one in the same round with as many threads.
    Ratio { contender: &'static str, to: &'static str },
    /// A measure of a contender, by its name ([`Work::measures`](crate::case::Work::measures)).
    Measure { contender: &'static str, name: &'static str },
}

/// The median of the rounds, with an interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub median: f64,
    /// The interval in which the median of many rounds lies with a probability of 95 %. With fewer than six rounds it is the range
    /// of all rounds, and the probability is lower.
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// Computes the median and its interval, or `None` if there are no values.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let values = sorted(values);
        let outside = outside(values.len());
        let (low, high) = (*values.get(outside)?, values[values.len() - 1 - outside]);
        Some(Self { median: quantile(&values, 0.5)?, low, high })
    }
}

/// Returns the number of values at either end of `count` sorted ones that the interval leaves out. The true median lies below the
/// k-th value if fewer than k values lie below the median: with the probability that fewer than k of `count` coins show heads.
fn outside(count: usize) -> usize {
    let mut probability = 0.5_f64.powi(count as i32);
    let mut sum = 0.0;
    for left_out in 0..count / 2 {
        sum += probability;
        if sum > 0.025 {
            return left_out.saturating_sub(1);
        }
        probability *= (count - left_out) as f64 / (left_out + 1) as f64;
    }
    0
}

/// The verdict on a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Met,
    Missed,
    /// The bar lies within the interval: the noise decides.
    Unknown,
}

/// A bar with its verdict.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    pub about: &'static str,
    pub most: f64,
    #[serde(flatten)]
    pub value: Estimate,
    pub verdict: Verdict,
}

/// The rounds of a contender with a number of threads.
#[derive(Clone, Copy)]
pub struct Rounds<'a> {
    pub contender: &'a str,
    pub threads: usize,
    pub rounds: &'a [Round],
}

impl Bar {
    /// Returns the verdict on the figures of `own`, a row of the case whose rows are `all`. Returns `None` if the bar is about another
    /// contender, or there are no figures.
    pub fn judge(&self, own: Rounds<'_>, all: &[Rounds<'_>]) -> Option<Judged> {
        let value = match self.of {
            Of::Ratio { contender, to } if contender == own.contender => {
                let other = all.iter().find(|row| row.contender == to && row.threads == own.threads)?;
                Estimate::of(ratios(own.rounds, other.rounds).into_iter())?
            }
            Of::Measure { contender, name } if contender == own.contender => {
                Figures::measure(own.rounds, name)?
            }
            Of::Ratio { .. } | Of::Measure { .. } => return None,
        };
        let verdict = match self.most {
            most if value.high <= most => Verdict::Met,
            most if value.low > most => Verdict::Missed,
            _ => Verdict::Unknown,
        };
        Some(Judged { about: self.about, most: self.most, value, verdict })
    }
}

/// Returns the ratios of the rounds that count in both, or of all if none does.
fn ratios(own: &[Round], other: &[Round]) -> Vec<f64> {
    let of = |counts: &dyn Fn(&Round) -> bool| -> Vec<f64> {
        let pairs = own.iter().zip(other).filter(|(own, other)| counts(own) && counts(other));
        pairs.filter_map(|(own, other)| Some(own.ns_per_op()? / other.ns_per_op()?)).collect()
    };
    let kept = of(&|round| !round.is_taken_away());
    if kept.is_empty() { of(&|_| true) } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lap::Reading;
    use faultless_lab::measure::Latency;
    use std::time::Duration;

    fn round(ns: u64, measure: f64) -> Round {
        let (wall, whole) = (Duration::from_nanos(ns), Duration::from_millis(1));
        Round {
            threads: vec![Reading { ops: 1, wall, cpu: wall, whole, away: Duration::ZERO }],
            latency: Latency::default(),
            measures: vec![("reads", measure)],
        }
    }

    #[test]
    fn the_interval_is_that_of_the_sign_test() {
        // From tables of the binomial distribution.
        for (count, left_out) in [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5), (31, 9)]
        {
            assert_eq!(outside(count), left_out, "{count} rounds");
        }
        let values = [3.0, 1.0, 2.0];
        assert_eq!(Estimate::of(values.into_iter()), Some(Estimate { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(Estimate::of([].into_iter()), None);
    }

    #[test]
    fn a_bar_inside_the_interval_is_unknown() {
        let ours = [round(120, 1.0), round(130, 1.1), round(110, 1.2)];
        let theirs = [round(100, 0.0), round(100, 0.0), round(100, 0.0)];
        let rows = [
            Rounds { contender: "ours", threads: 2, rounds: &ours },
            Rounds { contender: "theirs", threads: 2, rounds: &theirs },
        ];
        let ratio = |most| Bar { about: "", most, of: Of::Ratio { contender: "ours", to: "theirs" } };
        let measure = |most| Bar { about: "", most, of: Of::Measure { contender: "ours", name: "reads" } };
        for (most, verdict) in [(1.0, Verdict::Missed), (1.15, Verdict::Unknown), (1.3, Verdict::Met)] {
            for bar in [ratio(most), measure(most)] {
                assert_eq!(
                    bar.judge(rows[0], &rows).map(|judged| judged.verdict),
                    Some(match most {
                        1.0 if matches!(bar.of, Of::Measure { .. }) => Verdict::Unknown,
                        _ => verdict,
                    })
                );
                assert!(bar.judge(rows[1], &rows).is_none());
            }
        }
    }
}
