//! The figures of scenarios, with unit and direction. Reports use them, and so do not depend on any scenario.

use crate::measure::Measured;
use faultless::stats::Counter;

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds.
    Micros,
    /// Nanoseconds.
    Nanos,
    /// A quotient of two quantities of the same kind.
    Ratio,
    /// Operations per second.
    PerSecond,
    /// The number of events for each operation.
    Each,
}

impl Unit {
    /// Returns the name in JSON.
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

/// The better direction of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// A lower value is better, as for a time.
    Lower,
    /// A higher value is better, as for a rate.
    Higher,
    /// Neither direction is better. Reports show the figure, but do not compare designs by it.
    Neither,
}

impl Better {
    /// Returns the name in JSON.
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
    /// The name in JSON.
    pub name: &'static str,
    /// The title in reports: a few words that make sense without context.
    pub title: &'static str,
    /// The unit.
    pub unit: Unit,
    /// The better direction.
    pub better: Better,
    /// Whether reports show it only with `--details`.
    pub is_detail: bool,
    /// Computes the value, in the unit, from the measurements; `None` if it was not measured.
    pub of: fn(&Measured) -> Option<f64>,
}

impl Figure {
    /// Creates a time. Lower is better.
    pub const fn time(
        name: &'static str,
        title: &'static str,
        unit: Unit,
        of: fn(&Measured) -> Option<f64>,
    ) -> Self {
        Self { name, title, unit, better: Better::Lower, is_detail: false, of }
    }

    /// Creates a rate. Higher is better.
    pub const fn rate(name: &'static str, title: &'static str, of: fn(&Measured) -> Option<f64>) -> Self {
        Self { name, title, unit: Unit::PerSecond, better: Better::Higher, is_detail: false, of }
    }

    /// Creates a ratio. Lower is better.
    pub const fn ratio(name: &'static str, title: &'static str, of: fn(&Measured) -> Option<f64>) -> Self {
        Self { name, title, unit: Unit::Ratio, better: Better::Lower, is_detail: false, of }
    }

    /// Creates a number of events for each operation. It is a detail, and designs are not compared by it.
    pub const fn each(name: &'static str, title: &'static str, of: fn(&Measured) -> Option<f64>) -> Self {
        Self { name, title, unit: Unit::Each, better: Better::Neither, is_detail: true, of }
    }

    /// Makes the figure a detail.
    pub const fn detail(self) -> Self {
        Self { is_detail: true, ..self }
    }

    /// Makes the figure a detail by which designs are not compared.
    pub const fn shown(self) -> Self {
        Self { better: Better::Neither, ..self.detail() }
    }
}

/// The 99th percentile of the bystander's latency.
pub(super) const BYSTANDER_P99: Figure =
    Figure::time("bystander_p99", "bystander p99", Unit::Micros, |m| m.quantile_us("bystander", 0.99));
/// The median latency of a major fault, from the access until the page is mapped.
pub(super) const FAULT_P50: Figure =
    Figure::time("fault_p50", "fault p50", Unit::Micros, |m| m.quantile_us("fault", 0.5)).shown();
/// The 99th percentile of the latency of a major fault.
pub(super) const FAULT_P99: Figure =
    Figure::time("fault_p99", "fault p99", Unit::Micros, |m| m.quantile_us("fault", 0.99));
/// The processor time of a major fault.
pub(super) const CPU_EACH: Figure =
    Figure::time("cpu_a_major_fault", "CPU time of a fault", Unit::Micros, Measured::cpu_us_per_major_fault)
        .detail();
/// The number of times that a major fault took mmap_lock for reading.
pub(super) const MMAP_LOCK_EACH: Figure =
    Figure::each("mmap_lock_reads_a_major_fault", "mmap_lock reads per fault", |m| {
        m.per_major_fault(Counter::MmapLockRead)
    });
/// The number of times that a major fault took a VMA lock for reading.
pub(super) const VMA_LOCK_EACH: Figure =
    Figure::each("vma_lock_reads_a_major_fault", "VMA lock reads per fault", |m| {
        m.per_major_fault(Counter::VmaLockRead)
    });
/// The number of retries of a major fault.
pub(super) const RETRIES_EACH: Figure =
    Figure::each("retries_a_major_fault", "retries per fault", |m| m.per_major_fault(Counter::Retries));
