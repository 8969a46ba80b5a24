//! Figures: what a scenario reports of what was measured, with unit and direction, so that reports need know no scenario.

use crate::measure::Measured;
use faultless::stats::Counter;

/// What a figure is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds.
    Micros,
    /// Nanoseconds.
    Nanos,
    /// One time over another.
    Ratio,
    /// Times a second.
    PerSecond,
    /// How many, for each of something.
    Each,
}

impl Unit {
    /// In JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Micros => "us",
            Self::Nanos => "ns",
            Self::Ratio => "ratio",
            Self::PerSecond => "1/s",
            Self::Each => "each",
        }
    }

    /// Behind a number.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Micros => " µs",
            Self::Nanos => " ns",
            Self::PerSecond => "/s",
            Self::Ratio | Self::Each => "",
        }
    }
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// A time.
    Lower,
    /// A rate.
    Higher,
    /// Neither: it is shown, and designs are not compared by it.
    Neither,
}

impl Better {
    /// In JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lower => "lower",
            Self::Higher => "higher",
            Self::Neither => "neither",
        }
    }
}

/// A figure of a scenario.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// In JSON; with spaces for `_`, in the sentence.
    pub name: &'static str,
    /// Its column in the table. Figures that follow each other and have the same one share it.
    pub column: &'static str,
    /// What it is counted in.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    /// From what was measured, in its unit; `None` if that was not.
    pub of: fn(&Measured) -> Option<f64>,
}

impl Figure {
    /// A time of which less is better.
    pub const fn time(
        name: &'static str,
        column: &'static str,
        unit: Unit,
        of: fn(&Measured) -> Option<f64>,
    ) -> Self {
        Self { name, column, unit, better: Better::Lower, of }
    }

    /// A rate of which more is better.
    pub const fn rate(name: &'static str, column: &'static str, of: fn(&Measured) -> Option<f64>) -> Self {
        Self { name, column, unit: Unit::PerSecond, better: Better::Higher, of }
    }

    /// One thing over another, of which less is better.
    pub const fn ratio(name: &'static str, column: &'static str, of: fn(&Measured) -> Option<f64>) -> Self {
        Self { name, column, unit: Unit::Ratio, better: Better::Lower, of }
    }

    /// So many for each; shown, not compared.
    pub const fn each(name: &'static str, column: &'static str, of: fn(&Measured) -> Option<f64>) -> Self {
        Self { name, column, unit: Unit::Each, better: Better::Neither, of }
    }

    /// The same, not compared.
    pub const fn shown(self) -> Self {
        Self { better: Better::Neither, ..self }
    }

    /// Its name as words.
    pub fn words(&self) -> String {
        self.name.replace('_', " ").replace("cpu", "CPU")
    }
}

/// The p99 of the bystander.
pub(super) const BYSTANDER_P99: Figure =
    Figure::time("bystander_p99", "bystander p99", Unit::Micros, |m| m.quantile_us("bystander", 0.99));
/// A major fault, from the access until the page is there.
pub(super) const FAULT_P50: Figure =
    Figure::time("fault_p50", "fault p50 / p99", Unit::Micros, |m| m.quantile_us("fault", 0.5)).shown();
/// As [`FAULT_P50`].
pub(super) const FAULT_P99: Figure =
    Figure::time("fault_p99", "fault p50 / p99", Unit::Micros, |m| m.quantile_us("fault", 0.99));
/// Processor time of a major fault.
pub(super) const CPU_EACH: Figure =
    Figure::time("cpu_a_major_fault", "CPU each", Unit::Micros, Measured::cpu_us_per_major_fault);
/// How often a major fault took mmap_lock.
pub(super) const MMAP_LOCK_EACH: Figure =
    Figure::each("mmap_lock_reads_a_major_fault", "mmap_lock / VMA lock reads each", |m| {
        m.per_major_fault(Counter::MmapLockRead)
    });
/// How often a major fault took a VMA lock.
pub(super) const VMA_LOCK_EACH: Figure =
    Figure::each("vma_lock_reads_a_major_fault", "mmap_lock / VMA lock reads each", |m| {
        m.per_major_fault(Counter::VmaLockRead)
    });
/// How often a major fault started over.
pub(super) const RETRIES_EACH: Figure =
    Figure::each("retries_a_major_fault", "retries each", |m| m.per_major_fault(Counter::Retries));
