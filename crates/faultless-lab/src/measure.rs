//! What a round measured, and several rounds together.

use faultless::stats::{Counter, Statistics};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

/// What is counted of major faults alone, and its name in reports: the engine's own totals have every other fault in
/// them too, of which a fork causes thousands.
pub const IN_MAJOR_FAULTS: [(&str, Counter); 3] = [
    ("major_fault_mmap_lock_read", Counter::MmapLockRead),
    ("major_fault_vma_lock_read", Counter::VmaLockRead),
    ("major_fault_retries", Counter::Retries),
];

/// Latencies, kept to three digits from a nanosecond up to an hour.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("bounds that hdrhistogram takes"))
    }
}

impl Latency {
    /// One more.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The quantile, in microseconds; zero where there is nothing.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        us(self.0.value_at_quantile(quantile))
    }

    /// The longest, in microseconds.
    pub fn max_us(&self) -> f64 {
        us(self.0.max())
    }

    /// Takes in what another thread or round has.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }
}

/// Nanoseconds as microseconds, to the nanosecond.
pub fn us(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// What one round, or several, measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// How long it was measured.
    pub seconds: f64,
    /// By what was waited for: "fault", "fork", "bystander".
    pub latency: BTreeMap<&'static str, Latency>,
    /// What the engine counted meanwhile, and the scenario besides.
    pub counters: BTreeMap<&'static str, u64>,
    /// Processor time that faulting threads spent in major faults.
    pub fault_cpu: Duration,
    /// How many major faults that was.
    pub faults_timed: u64,
}

impl Measured {
    /// Adds latencies under a name.
    pub fn add_latency(&mut self, name: &'static str, latency: &Latency) {
        self.latency.entry(name).or_default().add(latency);
    }

    /// Adds to a count.
    pub fn count(&mut self, name: &'static str, n: u64) {
        *self.counters.entry(name).or_default() += n;
    }

    /// Adds what an engine counted.
    pub fn count_all(&mut self, statistics: &Statistics) {
        statistics.iter().for_each(|(counter, n)| self.count(counter.name(), n));
    }

    /// Takes in another round.
    pub fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        other.latency.iter().for_each(|(name, latency)| self.add_latency(name, latency));
        other.counters.iter().for_each(|(name, n)| self.count(name, *n));
        self.fault_cpu += other.fault_cpu;
        self.faults_timed += other.faults_timed;
    }

    /// What the engine counted of this.
    pub fn total(&self, counter: Counter) -> u64 {
        self.counters.get(counter.name()).copied().unwrap_or(0)
    }

    /// A quantile of a latency, in microseconds; `None` if nothing was measured.
    pub fn quantile_us(&self, name: &str, quantile: f64) -> Option<f64> {
        self.latency.get(name).filter(|latency| latency.count() != 0).map(|l| l.quantile_us(quantile))
    }

    /// Processor microseconds for each major fault.
    pub fn cpu_us_per_major_fault(&self) -> Option<f64> {
        (self.faults_timed != 0).then(|| self.fault_cpu.as_secs_f64() * 1e6 / self.faults_timed as f64)
    }

    /// How often a major fault did what is in [`IN_MAJOR_FAULTS`]; of those faults alone that were timed.
    pub fn per_major_fault(&self, counter: Counter) -> Option<f64> {
        let (name, _) = IN_MAJOR_FAULTS.into_iter().find(|(_, counted)| *counted == counter)?;
        let n = self.counters.get(name).copied()?;
        (self.faults_timed != 0).then(|| n as f64 / self.faults_timed as f64)
    }
}

/// The middle value and the ends of what rounds gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these; `None` of nothing.
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
        sum.add(&one);
        assert_eq!((sum.seconds, sum.counters["children"], sum.latency["fork"].count()), (2.0, 6, 2));
        assert!((sum.latency["fork"].quantile_us(0.5) - 10.0).abs() < 0.1);
        assert_eq!(sum.quantile_us("fault", 0.5), None);
    }
}
