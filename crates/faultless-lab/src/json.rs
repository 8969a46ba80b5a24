//! The report as JSON, schema 1. A later version may add fields. A field keeps its meaning as long as the schema's
//! number stays the same.

use crate::compare::{Outcome, Run};
use crate::comparison::{Compared, Comparison, twins};
use crate::designs::LeafTables;
use crate::interval::{Difference, Doubt};
use crate::measure::{Latency, Measured, us};
use crate::scenarios::{self, Better, Settings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The number of the schema.
pub const SCHEMA: u32 = 1;

/// The whole report.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The number of the schema: [`SCHEMA`].
    pub schema: u32,
    /// The version of the program that wrote the report; null in files of versions that did not write it.
    #[serde(default)]
    pub version: Option<String>,
    /// The machine of the run.
    pub machine: Machine,
    /// The settings of the run.
    pub settings: Setup,
    /// Whether Ctrl-C ended the run early.
    pub interrupted: bool,
    /// One entry for each scenario and design.
    pub results: Vec<Entry>,
}

/// The machine of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cpus: usize,
    /// The kernel's name and release.
    pub kernel: String,
    /// The architecture, as Rust names it.
    pub arch: String,
    /// The machine's memory, in bytes; 0 if unknown.
    pub memory_bytes: u64,
}

/// The settings of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// The minimum duration of each read, in microseconds.
    pub io_latency_us: f64,
    /// The maximum number of concurrent reads at the device; null: unlimited.
    pub queue_depth: Option<usize>,
    /// The treatment of leaf tables by fork, under all designs: "copy" or "share"; null: each design's own.
    #[serde(default)]
    pub fork: Option<LeafTables>,
    /// Rates that override the scenarios' defaults, by actor, in operations per second.
    pub rates: BTreeMap<String, f64>,
    /// The path of the mapped file; null: a temporary file.
    pub file: Option<String>,
    /// Physical memory of the software machine, in bytes.
    pub memory_bytes: u64,
    /// The seed of every random choice.
    pub seed: u64,
}

/// The results of one scenario under one design.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The name of the scenario.
    pub scenario: String,
    /// The name of the design.
    pub design: String,
    /// The method by which a folio finds its mappings. Always "none", because the engine has no other yet.
    pub rmap: String,
    /// Threads that do the scenario's work.
    pub threads: usize,
    /// The rate of each actor at a fixed rate, in operations per second, after `--rate`.
    #[serde(default)]
    pub rates: BTreeMap<String, f64>,
    /// The number of rounds that measured something.
    #[serde(default)]
    pub rounds: usize,
    /// The planned duration of each round.
    #[serde(default)]
    pub round_seconds: f64,
    /// The measured time of all rounds together.
    pub seconds: f64,
    /// The scenario's main figure.
    pub headline: Headline,
    /// Latencies of all rounds together, by operation.
    pub latency_us: BTreeMap<String, Quantiles>,
    /// The scenario's further figures. Empty if the scenario did not run.
    #[serde(default)]
    pub figures: BTreeMap<String, Figure>,
    /// The reason that it did not run, or stopped running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// The other designs of this run that run the same code in this scenario. Differences between them are noise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub twins: Vec<String>,
    /// Facts about the scenario's machine that affect the figures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Processor time of the faulting threads, in microseconds per major fault; null without major faults.
    pub cpu_us_per_major_fault: Option<f64>,
    /// Counters of all rounds together. Those whose name ends in `_us` may have fractions. A counter that the machine
    /// does not keep is absent, not zero: native rows lack most of the engine's counters.
    pub counters: BTreeMap<String, serde_json::Number>,
}

/// A scenario's main figure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Headline {
    /// The name of the figure.
    pub name: String,
    /// The median of the rounds; null if nothing was measured.
    pub value: Option<f64>,
    /// The lowest value of a round.
    pub min: Option<f64>,
    /// The highest value of a round.
    pub max: Option<f64>,
    /// The number of rounds.
    pub rounds: usize,
    /// The value of each round; null for a round that did not measure it. Rounds of the same place ran one after the
    /// other, under each design. Empty in files of versions that did not write it.
    #[serde(default)]
    pub by_round: Vec<Option<f64>>,
    /// The greatest ratio between twins in this figure; null without twins.
    #[serde(default)]
    pub noise: Option<f64>,
    /// The comparison with the best design of the scenario in this figure; null if it is not compared.
    #[serde(default)]
    pub against_best: Option<Against>,
    /// The unit: "us", "ns", "1/s", "ratio" or "each".
    pub unit: String,
    /// The better direction: "lower" or "higher".
    pub better: String,
}

/// A further figure of a scenario.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    /// The value for all rounds together; null if it was not measured.
    pub value: Option<f64>,
    /// The median of the rounds; null if it was not measured.
    #[serde(default)]
    pub median: Option<f64>,
    /// The lowest value of a round.
    pub min: Option<f64>,
    /// The highest value of a round.
    pub max: Option<f64>,
    /// The number of rounds that measured it; null in files of versions that did not write it.
    #[serde(default)]
    pub rounds: Option<usize>,
    /// The value of each round; null for a round that did not measure it. Rounds of the same place ran one after the
    /// other, under each design. Empty in files of versions that did not write it.
    #[serde(default)]
    pub by_round: Vec<Option<f64>>,
    /// The greatest ratio between twins in this figure; null without twins.
    #[serde(default)]
    pub noise: Option<f64>,
    /// The comparison with the best design of the scenario in this figure; null if it is not compared.
    #[serde(default)]
    pub against_best: Option<Against>,
    /// The unit, with the same values as [`Headline::unit`].
    pub unit: String,
    /// The better direction: "lower", "higher" or "neither". Designs are not compared by a figure with "neither".
    pub better: String,
}

/// The comparison of a figure with that of the best design.
#[derive(Debug, Serialize, Deserialize)]
pub struct Against {
    /// The best design.
    pub design: String,
    /// The figure divided by that of the best design: the median over pairs of rounds; null if it is infinite.
    pub ratio: Option<f64>,
    /// The lower end of the ratio's confidence interval; null if it is infinite.
    pub low: Option<f64>,
    /// The upper end; null if it is infinite.
    pub high: Option<f64>,
    /// The number of pairs of rounds.
    pub rounds: usize,
    /// The result: "different", "level" or "unknown".
    pub result: String,
    /// The reason of an unknown result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Doubt>,
}

/// The quantiles of a latency, in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Quantiles {
    /// The number of samples.
    pub count: u64,
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
    /// The maximum.
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
    /// Describes the machine that this process runs on.
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
            fork: settings.fork,
            rates: settings.rates.iter().cloned().collect(),
            file: settings.file.as_ref().map(|path| path.display().to_string()),
            memory_bytes: settings.memory,
            seed: settings.seed,
        }
    }
}

/// Returns the counters under their names in reports, with nanoseconds converted to microseconds.
fn counters(measured: &Measured) -> BTreeMap<String, serde_json::Number> {
    let named = measured.counters.iter().map(|(name, n)| match name.strip_suffix("_ns") {
        Some(stem) => {
            (format!("{stem}_us"), serde_json::Number::from_f64(us(*n)).unwrap_or((*n / 1000).into()))
        }
        None => (name.to_string(), (*n).into()),
    });
    named.collect()
}

impl Against {
    fn new(run: &Run, comparison: &Comparison<'_>, figure: &scenarios::Figure) -> Option<Self> {
        let (best, Compared { worse, difference }) = (comparison.best?, comparison.with_best(run)?);
        let interval = if figure.better == Better::Higher { worse.inverse() } else { worse };
        let (result, reason) = match difference {
            Difference::Beyond => ("different", None),
            Difference::Level => ("level", None),
            Difference::Unknown(doubt) => ("unknown", Some(doubt)),
        };
        let [ratio, low, high] = [interval.ratio, interval.low, interval.high].map(finite);
        let (design, rounds) = (best.contender.name().into(), interval.rounds);
        Some(Self { design, ratio, low, high, rounds, result: result.into(), reason })
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Returns the value of each round up to the last one that measured something.
fn by_round(run: &Run, figure: &scenarios::Figure) -> Vec<Option<f64>> {
    let rounds = run.rounds.last().map_or(0, |round| round.number + 1);
    let mut values = vec![None; rounds];
    run.values(figure).for_each(|(number, value)| values[number] = Some(value));
    values
}

impl Figure {
    /// `all` are the runs of the scenario.
    fn new(run: &Run, all: &[&Run], figure: &scenarios::Figure) -> Self {
        let (spread, comparison) = (run.spread(figure), Comparison::new(all, figure));
        Self {
            value: (figure.of)(&run.total),
            median: spread.map(|spread| spread.median),
            min: spread.map(|spread| spread.min),
            max: spread.map(|spread| spread.max),
            rounds: Some(run.values(figure).count()),
            by_round: by_round(run, figure),
            noise: comparison.noise.and_then(finite),
            against_best: Against::new(run, &comparison, figure),
            unit: figure.unit.name().into(),
            better: figure.better.name().into(),
        }
    }
}

impl Entry {
    /// `all` are the runs of the scenario.
    fn new(run: &Run, all: &[&Run], outcome: &Outcome, settings: &Settings) -> Self {
        let total = &run.total;
        let headline = Figure::new(run, all, &run.scenario.headline);
        let figures = run.scenario.figures.iter().filter(|_| !run.rounds.is_empty());
        let name = |run: &Run| run.contender.name();
        let group = twins(all).into_iter().find(|group| group.iter().any(|twin| name(twin) == name(run)));
        let twins = group.into_iter().flatten().filter(|twin| name(twin) != name(run));
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
                name: run.scenario.headline.name.into(),
                value: headline.median,
                min: headline.min,
                max: headline.max,
                rounds: run.rounds.len(),
                by_round: headline.by_round,
                noise: headline.noise,
                against_best: headline.against_best,
                unit: headline.unit,
                better: headline.better,
            },
            latency_us: total
                .latency
                .iter()
                .map(|(name, latency)| (name.to_string(), latency.into()))
                .collect(),
            figures: figures.map(|figure| (figure.name.into(), Figure::new(run, all, figure))).collect(),
            skipped: run.skipped.clone(),
            twins: twins.map(|twin| name(twin).into()).collect(),
            notes: total.notes.clone(),
            cpu_us_per_major_fault: total.cpu_us_per_major_fault(),
            counters: counters(total),
        }
    }
}

impl Report {
    /// Makes the report of a run.
    pub fn new(outcome: &Outcome, settings: &Settings) -> Self {
        let all = |run: &Run| -> Vec<&Run> {
            outcome.runs.iter().filter(|other| other.scenario.name == run.scenario.name).collect()
        };
        let entry = |run: &Run| Entry::new(run, &all(run), outcome, settings);
        Self {
            schema: SCHEMA,
            version: Some(env!("CARGO_PKG_VERSION").into()),
            machine: Machine::this(),
            settings: settings.into(),
            interrupted: outcome.interrupted,
            results: outcome.runs.iter().map(entry).collect(),
        }
    }
}
