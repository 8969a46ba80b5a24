//! Figures of the rounds: medians, spreads, and the rounds that are left out.

use crate::bars::Estimate;
use crate::lap::Reading;
use faultless_lab::measure::Latency;
use std::time::Duration;

/// The greatest part of its slice for which a thread may be off its processor. Beyond it the round is left out.
pub const MOST_AWAY: f64 = 0.1;

/// One round of an entrant: the slices of its threads.
pub struct Round {
    pub threads: Vec<Reading>,
    pub latency: Latency,
    /// The measures of the contender, with their names.
    pub measures: Vec<(&'static str, f64)>,
}

impl Round {
    /// Returns whether a thread was off its processor for too long.
    pub fn is_taken_away(&self) -> bool {
        self.threads.iter().any(|thread| thread.away.as_secs_f64() > thread.whole.as_secs_f64() * MOST_AWAY)
    }

    /// Returns the wall time of an operation in nanoseconds. If each operation is timed, it is the median.
    pub fn ns_per_op(&self) -> Option<f64> {
        match self.latency.count() {
            0 => self.each(|thread| thread.wall),
            _ => Some(self.latency.quantile_us(0.5) * 1e3),
        }
    }

    /// Returns the nanoseconds that an operation took its thread: the time of all threads over the operations of all
    /// threads.
    fn each(&self, time: impl Fn(&Reading) -> Duration) -> Option<f64> {
        let ops: u64 = self.threads.iter().map(|thread| thread.ops).sum();
        let time: Duration = self.threads.iter().map(time).sum();
        (ops != 0).then(|| time.as_nanos() as f64 / ops as f64)
    }
}

/// The figures of an entrant over its rounds.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Nanoseconds for an operation: the median of the rounds. If each operation is timed, the median of the rounds'
    /// medians.
    pub ns_per_op: Option<f64>,
    /// The same for processor time; `None` if each operation is timed.
    pub cpu_ns_per_op: Option<f64>,
    /// The 99th percentile of all rounds together, in nanoseconds, if each operation is timed.
    pub p99_ns: Option<f64>,
    /// The distance between the quartiles of `ns_per_op`, as a fraction of the median.
    pub spread: Option<f64>,
    /// The measures of all rounds, with their names.
    pub measures: Vec<(&'static str, Estimate)>,
    /// The number of rounds that count.
    pub rounds: usize,
    /// The number of rounds that are left out.
    pub dropped: usize,
}

impl Figures {
    /// Computes the figures of `rounds`. If all rounds would be left out, all count, and `rounds` is 0: the figures of
    /// a busy machine are better than none, and `dropped` shows it.
    pub fn of(rounds: &[Round]) -> Self {
        let mut kept: Vec<&Round> = rounds.iter().filter(|round| !round.is_taken_away()).collect();
        let dropped = rounds.len() - kept.len();
        if kept.is_empty() {
            kept = rounds.iter().collect();
        }
        let mut latency = Latency::default();
        kept.iter().for_each(|round| latency.add(&round.latency));
        let is_timed = latency.count() != 0;
        let walls = sorted(kept.iter().filter_map(|round| round.ns_per_op()));
        let cpus = sorted(kept.iter().filter_map(|round| round.each(|thread| thread.cpu)));
        let median = quantile(&walls, 0.5);
        let spread = median.and_then(|m| Some((quantile(&walls, 0.75)? - quantile(&walls, 0.25)?) / m));
        Self {
            ns_per_op: median,
            cpu_ns_per_op: quantile(&cpus, 0.5).filter(|_| !is_timed),
            p99_ns: is_timed.then(|| latency.quantile_us(0.99) * 1e3),
            spread: spread.filter(|spread| spread.is_finite()),
            measures: Self::measures(rounds),
            rounds: rounds.len() - dropped,
            dropped,
        }
    }

    /// Returns the estimate of one measure. All rounds count: a measure is a count, or says itself what it leaves out.
    pub fn measure(rounds: &[Round], name: &str) -> Option<Estimate> {
        let of = |round: &Round| Some(round.measures.iter().find(|(named, _)| *named == name)?.1);
        Estimate::of(rounds.iter().filter_map(of))
    }

    fn measures(rounds: &[Round]) -> Vec<(&'static str, Estimate)> {
        let names = rounds.first().into_iter().flat_map(|round| &round.measures);
        names.filter_map(|(name, _)| Some((*name, Self::measure(rounds, name)?))).collect()
    }
}

pub fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Returns a quantile of sorted values, interpolated between neighbours, or `None` if there are no values.
pub fn quantile(sorted: &[f64], quantile: f64) -> Option<f64> {
    let place = quantile * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(ns: u64, away_percent: u64) -> Round {
        let (wall, whole) = (Duration::from_nanos(ns * 10), Duration::from_millis(100));
        let away = Duration::from_millis(away_percent);
        Round {
            threads: vec![Reading { ops: 10, wall, cpu: wall, whole, away }],
            latency: Latency::default(),
            measures: Vec::new(),
        }
    }

    #[test]
    fn median_and_quartiles_of_what_counts() {
        let rounds = [round(40, 0), round(10, 9), round(20, 0), round(30, 0), round(50, 0), round(900, 11)];
        let figures = Figures::of(&rounds);
        assert_eq!(figures.ns_per_op, Some(30.0));
        assert_eq!(figures.cpu_ns_per_op, Some(30.0));
        assert_eq!(figures.spread, Some(20.0 / 30.0));
        assert_eq!((figures.rounds, figures.dropped, figures.p99_ns), (5, 1, None));
    }

    #[test]
    fn where_no_round_counts_all_do() {
        let figures = Figures::of(&[round(10, 20), round(20, 90)]);
        assert_eq!((figures.ns_per_op, figures.rounds, figures.dropped), (Some(15.0), 0, 2));
        assert_eq!(Figures::of(&[]).ns_per_op, None);
    }

    #[test]
    fn operations_that_are_timed_have_a_p99() {
        let timed = |ns| {
            let mut round = round(1, 0);
            round.latency.record_n(ns, 98);
            round.latency.record_n(ns * 100, 2);
            round
        };
        let figures = Figures::of(&[timed(100), timed(102)]);
        assert_eq!((figures.ns_per_op, figures.p99_ns), (Some(101.0), Some(10_007.0)));
    }
}
