//! The report as JSON, schema 1. Fields may be added; none changes its meaning under the same number.

use crate::compare::{Outcome, Run};
use crate::measure::{Latency, Measured, us};
use crate::scenarios::{self, Settings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The schema's number.
pub const SCHEMA: u32 = 1;

/// All of a report.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The version of the program that wrote it; null in files from before it was written.
    #[serde(default)]
    pub version: Option<String>,
    /// Where it ran.
    pub machine: Machine,
    /// How it ran.
    pub settings: Setup,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
    /// One for each scenario and design.
    pub results: Vec<Entry>,
}

/// Where it ran.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cpus: usize,
    /// The kernel's name and release.
    pub kernel: String,
    /// The architecture, as Rust names it.
    pub arch: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// How it ran.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// What each read takes at least.
    pub io_latency_us: f64,
    /// Reads at the device at a time; null: any number.
    pub queue_depth: Option<usize>,
    /// Rates other than the scenarios' own.
    pub rates: BTreeMap<String, f64>,
    /// The file; null: a temporary one.
    pub file: Option<String>,
    /// Physical memory of the software machine.
    pub memory_bytes: u64,
    /// What every random choice follows from.
    pub seed: u64,
}

/// One scenario under one design.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub scenario: String,
    /// Its name.
    pub design: String,
    /// How a folio finds who maps it. "none" as long as the engine has only that.
    pub rmap: String,
    /// Threads that do the scenario's work.
    pub threads: usize,
    /// How often a second each of its actors at a fixed rate acted, by the scenario or by `--rate`.
    #[serde(default)]
    pub rates: BTreeMap<String, f64>,
    /// How many rounds measured something.
    #[serde(default)]
    pub rounds: usize,
    /// How long each was to be measured.
    #[serde(default)]
    pub round_seconds: f64,
    /// How long it was measured, all rounds together.
    pub seconds: f64,
    /// The scenario's one figure.
    pub headline: Headline,
    /// By what was waited for; of all rounds together.
    pub latency_us: BTreeMap<String, Quantiles>,
    /// What else the scenario reports; of all rounds together, but for `min` and `max`. Empty if it did not run.
    #[serde(default)]
    pub figures: BTreeMap<String, Figure>,
    /// Why it did not run, or stopped running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// What has to be known of its machine to read the figures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Processor time of the faulting threads; null without major faults.
    pub cpu_us_per_major_fault: Option<f64>,
    /// Whole numbers, but for those whose name ends in `_us`. What a machine does not count is absent, not zero: the
    /// kernel tells native rows little of what the engine counts.
    pub counters: BTreeMap<String, serde_json::Number>,
}

/// A scenario's one figure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Headline {
    /// Its name.
    pub name: String,
    /// The median over the rounds; null if nothing was measured.
    pub value: Option<f64>,
    /// The least of a round.
    pub min: Option<f64>,
    /// The greatest of a round.
    pub max: Option<f64>,
    /// How many rounds.
    pub rounds: usize,
    /// "us", "ns", "1/s", "ratio" or "each".
    pub unit: String,
    /// "lower" or "higher".
    pub better: String,
}

/// A figure besides.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Of all rounds together; null if it was not measured.
    pub value: Option<f64>,
    /// The median over the rounds; null if it was not measured.
    #[serde(default)]
    pub median: Option<f64>,
    /// The least of a round.
    pub min: Option<f64>,
    /// The greatest of a round.
    pub max: Option<f64>,
    /// How many rounds measured it; null in files from before it was written.
    #[serde(default)]
    pub rounds: Option<usize>,
    /// As in the headline.
    pub unit: String,
    /// "lower", "higher" or "neither": designs are not compared by it.
    pub better: String,
}

/// What a latency's histogram says, in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many.
    pub count: u64,
    /// Half took no longer.
    pub p50: f64,
    /// 99 in a hundred took no longer.
    pub p99: f64,
    /// 999 in a thousand took no longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl From<&Latency> for Quantiles {
    fn from(latency: &Latency) -> Self {
        Self {
            count: latency.count(),
            p50: latency.quantile_us(0.5),
            p99: latency.quantile_us(0.99),
            p999: latency.quantile_us(0.999),
            max: latency.max_us(),
        }
    }
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let uname = rustix::system::uname();
        let (name, release) = (uname.sysname().to_string_lossy(), uname.release().to_string_lossy());
        #[cfg(target_os = "linux")]
        let memory_bytes = {
            let info = rustix::system::sysinfo();
            info.totalram.saturating_mul(u64::from(info.mem_unit))
        };
        #[cfg(not(target_os = "linux"))]
        let memory_bytes = 0;
        Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: format!("{name} {release}"),
            arch: std::env::consts::ARCH.into(),
            memory_bytes,
        }
    }
}

impl From<&Settings> for Setup {
    fn from(settings: &Settings) -> Self {
        Self {
            io_latency_us: us(settings.io_latency.as_nanos() as u64),
            queue_depth: settings.queue_depth.map(Into::into),
            rates: settings.rates.iter().cloned().collect(),
            file: settings.file.as_ref().map(|path| path.display().to_string()),
            memory_bytes: settings.memory,
            seed: settings.seed,
        }
    }
}

/// Counters by their names in reports: nanoseconds become microseconds.
fn counters(measured: &Measured) -> BTreeMap<String, serde_json::Number> {
    let named = measured.counters.iter().map(|(name, n)| match name.strip_suffix("_ns") {
        Some(stem) => {
            (format!("{stem}_us"), serde_json::Number::from_f64(us(*n)).unwrap_or((*n / 1000).into()))
        }
        None => (name.to_string(), (*n).into()),
    });
    named.collect()
}

impl Figure {
    fn new(run: &Run, figure: &scenarios::Figure) -> Self {
        let spread = run.spread(figure.of);
        Self {
            value: (figure.of)(&run.total),
            median: spread.map(|spread| spread.median),
            min: spread.map(|spread| spread.min),
            max: spread.map(|spread| spread.max),
            rounds: Some(run.rounds.iter().filter_map(figure.of).count()),
            unit: figure.unit.name().into(),
            better: figure.better.name().into(),
        }
    }
}

impl Entry {
    fn new(run: &Run, outcome: &Outcome, settings: &Settings) -> Self {
        let (total, spread, headline) = (&run.total, run.headline(), run.scenario.headline);
        let figures = run.scenario.figures.iter().filter(|_| !run.rounds.is_empty());
        Self {
            scenario: run.scenario.name.into(),
            design: run.contender.name().into(),
            rmap: "none".into(),
            threads: settings.threads(run.scenario),
            rates: (run.scenario.rates.iter())
                .map(|(name, _)| (name.to_string(), settings.rate(run.scenario, name)))
                .collect(),
            rounds: run.rounds.len(),
            round_seconds: outcome.round.as_secs_f64(),
            seconds: total.seconds,
            headline: Headline {
                name: headline.name.into(),
                value: spread.map(|spread| spread.median),
                min: spread.map(|spread| spread.min),
                max: spread.map(|spread| spread.max),
                rounds: run.rounds.len(),
                unit: headline.unit.name().into(),
                better: headline.better.name().into(),
            },
            latency_us: total
                .latency
                .iter()
                .map(|(name, latency)| (name.to_string(), latency.into()))
                .collect(),
            figures: figures.map(|figure| (figure.name.into(), Figure::new(run, figure))).collect(),
            skipped: run.skipped.clone(),
            notes: total.notes.clone(),
            cpu_us_per_major_fault: total.cpu_us_per_major_fault(),
            counters: counters(total),
        }
    }
}

impl Report {
    /// The report of a run.
    pub fn new(outcome: &Outcome, settings: &Settings) -> Self {
        Self {
            schema: SCHEMA,
            version: Some(env!("CARGO_PKG_VERSION").into()),
            machine: Machine::this(),
            settings: settings.into(),
            interrupted: outcome.interrupted,
            results: outcome.runs.iter().map(|run| Entry::new(run, outcome, settings)).collect(),
        }
    }
}
