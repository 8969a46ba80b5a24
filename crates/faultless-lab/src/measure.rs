//! Measurements of a round, and of several rounds together.

use faultless::stats::Counter;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Counters of major faults alone, with their names in reports. The engine's totals also include every other fault, and
/// a fork causes thousands of those.
pub const IN_MAJOR_FAULTS: [(&str, Counter); 3] = [
    ("major_fault_mmap_lock_read", Counter::MmapLockRead),
    ("major_fault_vma_lock_read", Counter::VmaLockRead),
    ("major_fault_retries", Counter::Retries),
];

/// Histogram of latencies from 1 ns to 1 h, with three significant digits.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("bounds that hdrhistogram takes"))
    }
}

impl Latency {
    /// Records one latency.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Records `count` latencies of `nanoseconds` each.
    pub fn record_n(&mut self, nanoseconds: u64, count: u64) {
        self.0.saturating_record_n(nanoseconds, count);
    }

    /// Records `count` operations that took `all` together, each with their mean. For operations that are too short to
    /// be timed one by one.
    pub fn record_batch(&mut self, all: Duration, count: u64) {
        if let Some(each) = u64::try_from(all.as_nanos()).unwrap_or(u64::MAX).checked_div(count) {
            self.record_n(each, count);
        }
    }

    /// Returns each recorded value in nanoseconds, with its number of occurrences, in ascending order. Values have the
    /// precision of the histogram.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()))
    }

    /// Returns the number of recorded latencies.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns the mean of the fastest operations, in nanoseconds; `None` if nothing was recorded. `share` of all
    /// operations are the fastest ones.
    pub fn mean_of_fastest(&self, share: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let (mut left, mut sum) = (wanted, 0.0);
        for (nanoseconds, count) in self.iter() {
            let taken = count.min(left);
            left -= taken;
            sum += nanoseconds as f64 * taken as f64;
        }
        (wanted != 0).then(|| sum / wanted as f64)
    }

    /// Returns a quantile in microseconds; zero if nothing was recorded.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        us(self.0.value_at_quantile(quantile))
    }

    /// Returns the longest latency, in microseconds.
    pub fn max_us(&self) -> f64 {
        us(self.0.max())
    }

    /// Adds the latencies of another thread or round.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }
}

/// Converts nanoseconds to microseconds, without rounding to whole ones.
pub fn us(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// Measurements of one round, or of several.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Duration of the measurement, in seconds.
    pub seconds: f64,
    /// The latencies, by name: "fault", "fork", "bystander".
    pub latency: BTreeMap<String, Latency>,
    /// The counters of the machine and of the scenario during the measurement. A name that ends in `_ns` is a time in
    /// nanoseconds.
    pub counters: BTreeMap<String, u64>,
    /// Processor time of the faulting threads in major faults.
    pub fault_cpu: Duration,
    /// The number of major faults in that time.
    pub faults_timed: u64,
    /// Notes that a reader of the figures needs. Each occurs once.
    pub notes: Vec<String>,
}

impl Measured {
    /// Adds latencies under a name.
    pub fn add_latency(&mut self, name: &str, latency: &Latency) {
        self.latency.entry(name.into()).or_default().add(latency);
    }

    /// Adds `n` to a counter.
    pub fn count(&mut self, name: &str, n: u64) {
        *self.counters.entry(name.into()).or_default() += n;
    }

    /// Adds the differences of a machine's counters between two moments.
    pub fn count_since(&mut self, before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) {
        for (name, n) in after {
            self.count(name, n.wrapping_sub(before.get(name).copied().unwrap_or(0)));
        }
    }

    /// Adds a note, unless it is there already.
    pub fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|old| old == note) {
            self.notes.push(note.into());
        }
    }

    /// Adds the measurements of another round.
    pub fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        other.latency.iter().for_each(|(name, latency)| self.add_latency(name, latency));
        other.counters.iter().for_each(|(name, n)| self.count(name, *n));
        self.fault_cpu += other.fault_cpu;
        self.faults_timed += other.faults_timed;
        other.notes.iter().for_each(|note| self.note(note));
    }

    /// Returns a counter by its name; `None` if it was not counted.
    pub fn counted(&self, name: &str) -> Option<u64> {
        self.counters.get(name).copied()
    }

    /// Returns the ratio of two counters; `None` if one is missing or the divisor is zero.
    pub fn ratio(&self, name: &str, by: &str) -> Option<f64> {
        let (n, by) = (self.counted(name)?, self.counted(by)?);
        (by != 0).then(|| n as f64 / by as f64)
    }

    /// Returns the number of events per second of a time that is counted in nanoseconds.
    pub fn a_second(&self, name: &str, time: &str) -> Option<f64> {
        self.ratio(name, time).map(|each| each * 1e9)
    }

    /// Returns [`Measured::a_second`] of the fastest operations: `share` of those whose latency is called `latency`.
    pub fn a_second_of_fastest(&self, name: &str, time: &str, latency: &str, share: f64) -> Option<f64> {
        let latency = self.latency.get(latency)?;
        Some(self.a_second(name, time)? * latency.mean_of_fastest(1.0)? / latency.mean_of_fastest(share)?)
    }

    /// Returns the number of events per second of the round.
    pub fn a_second_of_all(&self, name: &str) -> Option<f64> {
        (self.seconds > 0.0).then_some(self.counted(name)? as f64 / self.seconds)
    }

    /// Returns a quantile of a latency, in microseconds; `None` if nothing was measured.
    pub fn quantile_us(&self, name: &str, quantile: f64) -> Option<f64> {
        self.latency.get(name).filter(|latency| latency.count() != 0).map(|l| l.quantile_us(quantile))
    }

    /// Returns a quantile of a latency, in nanoseconds; `None` if nothing was measured.
    pub fn quantile_ns(&self, name: &str, quantile: f64) -> Option<f64> {
        self.quantile_us(name, quantile).map(|us| us * 1e3)
    }

    /// Returns the longest latency, in microseconds; `None` if nothing was measured.
    pub fn max_us(&self, name: &str) -> Option<f64> {
        self.latency.get(name).filter(|latency| latency.count() != 0).map(Latency::max_us)
    }

    /// Returns the processor time of a major fault, in microseconds; `None` if none was timed.
    pub fn cpu_us_per_major_fault(&self) -> Option<f64> {
        (self.faults_timed != 0).then(|| self.fault_cpu.as_secs_f64() * 1e6 / self.faults_timed as f64)
    }

    /// Returns the mean of a counter in [`IN_MAJOR_FAULTS`] for each major fault that was timed.
    pub fn per_major_fault(&self, counter: Counter) -> Option<f64> {
        let (name, _) = IN_MAJOR_FAULTS.into_iter().find(|(_, counted)| *counted == counter)?;
        let n = self.counted(name)?;
        (self.faults_timed != 0).then(|| n as f64 / self.faults_timed as f64)
    }
}

/// Median and range of the values of several rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least value.
    pub min: f64,
    /// The greatest value.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of `values`; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 };
        Some(Self { median, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_median() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn rounds_add_up() {
        let mut one = Measured { seconds: 1.0, ..Measured::default() };
        let mut fork = Latency::default();
        fork.record(Duration::from_micros(10));
        one.add_latency("fork", &fork);
        one.count("children", 3);
        let mut sum = one.clone();
        one.note("noted");
        sum.add(&one);
        sum.note("noted");
        assert_eq!(sum.notes, ["noted"]);
        assert_eq!((sum.seconds, sum.counters["children"], sum.latency["fork"].count()), (2.0, 6, 2));
        assert!((sum.latency["fork"].quantile_us(0.5) - 10.0).abs() < 0.1);
        assert_eq!(sum.quantile_us("fault", 0.5), None);
    }

    #[test]
    fn one_stall_does_not_change_the_rate_of_the_fastest_operations() {
        let measured = |slowest: u64| {
            let (mut measured, mut latency) = (Measured::default(), Latency::default());
            latency.record_n(500, 990);
            latency.record_n(slowest, 10);
            measured.count("done", 1000);
            measured.count("time", 990 * 500 + 10 * slowest);
            measured.add_latency("change", &latency);
            measured
        };
        let fastest =
            |measured: &Measured| measured.a_second_of_fastest("done", "time", "change", 0.99).unwrap();
        let (even, stalled) = (measured(500), measured(4_000_000));
        assert!((fastest(&even) / 2e6 - 1.0).abs() < 0.01, "{}", fastest(&even));
        assert!((fastest(&stalled) / fastest(&even) - 1.0).abs() < 0.01, "{}", fastest(&stalled));
        assert!(stalled.a_second("done", "time") < even.a_second("done", "time").map(|all| all / 50.0));
        assert_eq!(even.a_second_of_fastest("done", "time", "fault", 0.99), None);
    }

    #[test]
    fn latencies_can_be_taken_apart_and_rebuilt() {
        let mut latency = Latency::default();
        for i in 1..1000_u64 {
            latency.record(Duration::from_nanos(i * i * 37));
        }
        latency.record_n(250, 7);
        latency.record_batch(Duration::from_micros(64), 64);
        latency.record_batch(Duration::from_micros(1), 0);
        let mut again = Latency::default();
        latency.iter().for_each(|(nanoseconds, count)| again.record_n(nanoseconds, count));
        assert_eq!(latency.count(), 999 + 7 + 64);
        assert_eq!(latency.count(), again.count());
        for quantile in [0.1, 0.5, 0.99, 1.0] {
            assert_eq!(latency.quantile_us(quantile), again.quantile_us(quantile));
        }
    }

    #[test]
    fn counts_are_differences_and_ratios() {
        let moment = |faults, reads| BTreeMap::from([("faults".into(), faults), ("reads".into(), reads)]);
        let mut measured = Measured::default();
        measured.count_since(&moment(10, 1), &moment(30, 6));
        assert_eq!((measured.counted("faults"), measured.counted("forks")), (Some(20), None));
        assert_eq!(measured.ratio("faults", "reads"), Some(4.0));
        assert_eq!(measured.a_second("faults", "reads"), Some(4e9));
        assert_eq!(measured.ratio("faults", "forks"), None);
    }
}
