//! Figures: what a scenario reports of what was measured, with unit and direction, so that reports know no scenario.

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
    /// In JSON.
    pub name: &'static str,
    /// In reports: a few words that make sense alone.
    pub title: &'static str,
    /// What it is counted in.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    /// Whether a report shows it only with all details.
    pub is_detail: bool,
    /// From what was measured, in its unit; `None` if that was not.
    pub of: fn(&Measured) -> Option<f64>,
}

impl Figure {
    /// A time of which less is better.
    pub const fn time(
        name: &'static str,
        title: &'static str,
        unit: Unit,
        of: fn(&Measured) -> Option<f64>,
    ) -> Self {
        Self { name, title, unit, better: Better::Lower, is_detail: false, of }
    }

    /// A rate of which more is better.
    pub const fn rate(name: &'static str, title: &'static str, of: fn(&Measured) -> Option<f64>) -> Self {
        Self { name, title, unit: Unit::PerSecond, better: Better::Higher, is_detail: false, of }
    }

    /// One thing over another, of which less is better.
    pub const fn ratio(name: &'static str, title: &'static str, of: fn(&Measured) -> Option<f64>) -> Self {
        Self { name, title, unit: Unit::Ratio, better: Better::Lower, is_detail: false, of }
    }

    /// So many for each: a detail, not compared.
    pub const fn each(name: &'static str, title: &'static str, of: fn(&Measured) -> Option<f64>) -> Self {
        Self { name, title, unit: Unit::Each, better: Better::Neither, is_detail: true, of }
    }

    /// The same, as a detail.
    pub const fn detail(self) -> Self {
        Self { is_detail: true, ..self }
    }

    /// The same, as a detail that designs are not compared by.
    pub const fn shown(self) -> Self {
        Self { better: Better::Neither, ..self.detail() }
    }
}

/// The p99 of the bystander.
pub(super) const BYSTANDER_P99: Figure =
    Figure::time("bystander_p99", "bystander p99", Unit::Micros, |m| m.quantile_us("bystander", 0.99));
/// A major fault, from the access until the page is there.
pub(super) const FAULT_P50: Figure =
    Figure::time("fault_p50", "fault p50", Unit::Micros, |m| m.quantile_us("fault", 0.5)).shown();
/// As [`FAULT_P50`].
pub(super) const FAULT_P99: Figure =
    Figure::time("fault_p99", "fault p99", Unit::Micros, |m| m.quantile_us("fault", 0.99));
/// Processor time of a major fault.
pub(super) const CPU_EACH: Figure =
    Figure::time("cpu_a_major_fault", "CPU time of a fault", Unit::Micros, Measured::cpu_us_per_major_fault)
        .detail();
/// How often a major fault took mmap_lock.
pub(super) const MMAP_LOCK_EACH: Figure =
    Figure::each("mmap_lock_reads_a_major_fault", "mmap_lock reads per fault", |m| {
        m.per_major_fault(Counter::MmapLockRead)
    });
/// How often a major fault took a VMA lock.
pub(super) const VMA_LOCK_EACH: Figure =
    Figure::each("vma_lock_reads_a_major_fault", "VMA lock reads per fault", |m| {
        m.per_major_fault(Counter::VmaLockRead)
    });
/// How often a major fault started over.
pub(super) const RETRIES_EACH: Figure =
    Figure::each("retries_a_major_fault", "retries per fault", |m| m.per_major_fault(Counter::Retries));
