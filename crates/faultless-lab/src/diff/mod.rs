//! `faultless diff`: compares two results of `faultless compare --json`.
//!
//! ```text
//!  command ──► read ─────────► compare ────────────► text, or JSON
//!  arguments   two files,      two reports           changes beyond noise first
//!  exit code   checked         ─► Changes
//! ```
//! [`compare`] is pure. It pairs the entries of the same scenario and design, and the figures of the same name. A figure
//! has one of the six [`Verdict`]s. The rule of noise is that of `compare`, [`Interval::difference`], without pairs of
//! rounds: the rounds of two files had no turns. [`Source::read`] checks a file before it is compared: names are short and
//! printable, and spreads are in order.

mod command;
mod read;
#[cfg(test)]
mod tests;
mod text;

pub use command::Diff;
pub use read::Source;

use crate::interval::{Difference, Doubt, Interval};
use crate::json::{Entry, Report};
use crate::measure::Spread;
use crate::scenarios::{self, Better};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The number of the schema of [`Changes`] as JSON. In schema 1, a level result could also be an unknown one.
pub const SCHEMA: u32 = 2;

/// The result of a comparison: A is the first file, B the second one.
#[derive(Debug, Serialize)]
pub struct Changes {
    /// The number of the schema: [`SCHEMA`].
    pub schema: u32,
    /// The first file.
    pub a: Side,
    /// The second file.
    pub b: Side,
    /// Whether figures are compared by their medians. Files of early versions have no medians. If one of the files is
    /// of such a version, the values of all rounds together are compared.
    pub medians: bool,
    /// Differences of machine, settings, threads and rounds.
    pub settings: Vec<Setting>,
    /// Scenarios and designs that ran in one file only.
    pub only: Vec<Lone>,
    /// All figures: by verdict, the largest change first.
    pub figures: Vec<Change>,
}

/// One of the two files.
#[derive(Debug, Serialize)]
pub struct Side {
    /// Its name on the command line.
    pub name: String,
    /// The version of the program that wrote it, if the file has it.
    pub version: Option<String>,
    /// Whether Ctrl-C ended the run early.
    pub interrupted: bool,
}

/// A difference in settings or machine between the two runs.
#[derive(Debug, PartialEq, Serialize)]
pub struct Setting {
    /// The field's name in the results.
    pub what: String,
    /// Its value in A.
    pub a: Value,
    /// Its value in B.
    pub b: Value,
    /// The pairs of scenario and design that it concerns, as "scenario/design"; empty: the whole run.
    pub at: Vec<String>,
}

/// A scenario and a design that ran in one file only.
#[derive(Debug, PartialEq, Serialize)]
pub struct Lone {
    /// The scenario's name.
    pub scenario: String,
    /// The design's name.
    pub design: String,
    /// The file in which it ran: "a" or "b".
    pub ran_in: &'static str,
    /// The reason why it did not run in the other file; `None` if it is not there.
    pub skipped: Option<String>,
}

/// A figure in both files.
#[derive(Debug, Serialize)]
pub struct Change {
    /// The scenario's name.
    pub scenario: String,
    /// The design's name.
    pub design: String,
    /// The figure's name.
    pub figure: String,
    /// Whether it is the headline of its scenario.
    pub headline: bool,
    /// The unit, with the same values as in the results.
    pub unit: String,
    /// The better direction, with the same values as in the results.
    pub better: &'static str,
    /// The result of the comparison.
    pub verdict: Verdict,
    /// The reason of an unknown result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The value in B divided by that in A; `None` if A is zero or one of them is missing.
    pub ratio: Option<f64>,
    /// The confidence interval of the ratio, from its lower to its upper end; `None` if there is no ratio, or if a file
    /// has no values of single rounds.
    pub interval: Option<[f64; 2]>,
    /// The greatest ratio between designs that run the same code, in either file; `None` if there are none.
    pub noise: Option<f64>,
    /// The figure in A; `None` if it was not measured.
    pub a: Option<Sample>,
    /// The figure in B; `None` if it was not measured.
    pub b: Option<Sample>,
}

/// The result of the comparison of one figure. Ordered as in reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// B is worse, beyond noise.
    Worse,
    /// B is better, beyond noise.
    Better,
    /// B differs beyond noise, in a figure that has no better direction.
    Changed,
    /// Neither a difference nor a level result is shown.
    Unknown,
    /// There is no difference, or only a small one.
    Level,
    /// Measured in one file only, or in different units: not compared.
    Apart,
}

/// The reason of an unknown result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Reason {
    /// The rounds do not show more.
    Doubt(Doubt),
    /// A file has no values of single rounds. An older version wrote it.
    #[serde(serialize_with = "no_rounds")]
    NoRounds,
}

fn no_rounds<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("no-rounds")
}

/// A figure over the rounds of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The median, the lowest and the highest value.
    #[serde(flatten)]
    pub spread: Spread,
    /// The number of rounds that measured it.
    pub rounds: usize,
}

impl Change {
    /// Returns the larger median divided by the smaller one, which is at least 1. Infinite if one is zero; 1 if they
    /// are not compared.
    pub fn times(&self) -> f64 {
        match (self.a, self.b) {
            (Some(a), Some(b)) if self.verdict != Verdict::Apart && a.spread.median != b.spread.median => {
                let (a, b) = (a.spread.median, b.spread.median);
                a.max(b) / a.min(b)
            }
            _ => 1.0,
        }
    }

    /// Returns the title of the figure, as `compare` prints it. A figure of another version has its name in the results.
    fn title(&self) -> &str {
        let scenario = scenarios::find(&self.scenario);
        let figures =
            scenario.iter().flat_map(|scenario| scenario.figures.iter().chain([&scenario.headline]));
        let mut named = figures.filter(|figure| figure.name == self.figure);
        named.next().map_or(&self.figure, |figure| figure.title)
    }

    fn names(&self) -> [&str; 3] {
        [&self.scenario, &self.design, &self.figure]
    }

    /// Returns whether the figure is greater in B.
    fn is_rise(&self) -> bool {
        self.a.zip(self.b).is_some_and(|(a, b)| b.spread.median > a.spread.median)
    }
}

impl Changes {
    /// Returns the figures that have `verdict`.
    pub fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Change> {
        self.figures.iter().filter(move |change| change.verdict == verdict)
    }

    /// Returns the number of figures that are worse, beyond noise, by more than `ratio`.
    pub fn worse_by_more_than(&self, ratio: f64) -> usize {
        self.with(Verdict::Worse).filter(|change| change.times() > ratio).count()
    }
}

/// Compares two results.
pub fn compare(a: &Source, b: &Source) -> Changes {
    let medians = has_medians(&a.report) && has_medians(&b.report);
    let (in_a, in_b) = (ran(&a.report), ran(&b.report));
    let mut settings = settings_of_runs(&a.report, &b.report);
    let mut figures = Vec::new();
    for (pair, of_a) in &in_a {
        if let Some(of_b) = in_b.get(pair) {
            add_settings(&mut settings, "", &setup(of_a), &setup(of_b), Some(pair));
            figures.extend(changes(of_a, of_b, medians));
        }
    }
    figures.sort_by(|one: &Change, other: &Change| {
        (one.verdict.cmp(&other.verdict))
            .then(other.times().total_cmp(&one.times()))
            .then_with(|| one.names().cmp(&other.names()))
    });
    let mut only = lone(&in_a, &in_b, "a", &b.report);
    only.extend(lone(&in_b, &in_a, "b", &a.report));
    Changes { schema: SCHEMA, a: a.side(), b: b.side(), medians, settings, only, figures }
}

impl Source {
    fn side(&self) -> Side {
        Side {
            name: self.name.clone(),
            version: self.report.version.clone(),
            interrupted: self.report.interrupted,
        }
    }
}

/// The names of a scenario and a design.
type Pair<'a> = (&'a str, &'a str);

/// Returns the entries that measured something.
fn ran(report: &Report) -> BTreeMap<Pair<'_>, &Entry> {
    let ran = report.results.iter().filter(|entry| entry.headline.rounds != 0);
    ran.map(|entry| ((entry.scenario.as_str(), entry.design.as_str()), entry)).collect()
}

/// Returns whether figures have medians. In old results, a measured figure has a minimum and no median.
fn has_medians(report: &Report) -> bool {
    let mut figures = report.results.iter().flat_map(|entry| entry.figures.values());
    figures.all(|figure| figure.median.is_some() || figure.min.is_none())
}

/// Returns the pairs that ran in one file and not in the other.
fn lone(
    here: &BTreeMap<Pair<'_>, &Entry>,
    there: &BTreeMap<Pair<'_>, &Entry>,
    ran_in: &'static str,
    other: &Report,
) -> Vec<Lone> {
    let missing = here.keys().filter(|pair| !there.contains_key(*pair));
    let lone = missing.map(|&(scenario, design)| Lone {
        scenario: scenario.into(),
        design: design.into(),
        ran_in,
        skipped: (other.results.iter())
            .find(|entry| (entry.scenario.as_str(), entry.design.as_str()) == (scenario, design))
            .and_then(|entry| entry.skipped.clone()),
    });
    lone.collect()
}

/// Returns the differences in settings and machine of the whole runs.
fn settings_of_runs(a: &Report, b: &Report) -> Vec<Setting> {
    let mut settings = Vec::new();
    add_settings(&mut settings, "machine.", &json!(a.machine), &json!(b.machine), None);
    add_settings(&mut settings, "settings.", &json!(a.settings), &json!(b.settings), None);
    settings
}

/// Returns the settings of an entry.
fn setup(entry: &Entry) -> Value {
    json!({
        "threads": entry.threads,
        "rates": entry.rates,
        "rounds": entry.headline.rounds,
        "round_seconds": entry.round_seconds,
        "rmap": entry.rmap,
    })
}

/// Adds the fields in which two objects with the same fields differ. If several pairs have the same difference, it is
/// added once.
fn add_settings(settings: &mut Vec<Setting>, prefix: &str, a: &Value, b: &Value, pair: Option<&Pair<'_>>) {
    let fields = a.as_object().into_iter().flatten();
    for (field, a) in fields.filter(|(field, a)| b[field.as_str()] != **a) {
        let (what, b) = (format!("{prefix}{field}"), &b[field.as_str()]);
        let at = pair.map(|(scenario, design)| format!("{scenario}/{design}"));
        match settings.iter_mut().find(|other| other.what == what && other.a == *a && other.b == *b) {
            Some(same) => same.at.extend(at),
            None => settings.push(Setting { what, a: a.clone(), b: b.clone(), at: at.into_iter().collect() }),
        }
    }
}

/// A figure of an entry, or its headline.
struct Figure<'a> {
    unit: &'a str,
    better: Better,
    headline: bool,
    sample: Option<Sample>,
    /// The values of the rounds that measured it.
    values: Vec<f64>,
    noise: Option<f64>,
}

/// Returns the values of the rounds that have one.
fn values(by_round: &[Option<f64>]) -> Vec<f64> {
    by_round.iter().copied().flatten().collect()
}

fn figures(entry: &Entry, medians: bool) -> BTreeMap<&str, Figure<'_>> {
    let mut figures = BTreeMap::new();
    for (name, figure) in &entry.figures {
        let middle = if medians { figure.median } else { figure.value };
        let sample = sample(middle, figure.min, figure.max, figure.rounds.unwrap_or(entry.headline.rounds));
        let better = better(&figure.better).unwrap_or(Better::Neither);
        let (values, noise) = (values(&figure.by_round), figure.noise);
        let figure = Figure { unit: &figure.unit, better, headline: false, sample, values, noise };
        figures.insert(name.as_str(), figure);
    }
    let headline = &entry.headline;
    let sample = sample(headline.value, headline.min, headline.max, headline.rounds);
    let better = better(&headline.better).unwrap_or(Better::Neither);
    let (values, noise) = (values(&headline.by_round), headline.noise);
    let figure = Figure { unit: &headline.unit, better, headline: true, sample, values, noise };
    figures.insert(&headline.name, figure);
    figures
}

/// Returns the sample, or `None` if a part is missing.
fn sample(median: Option<f64>, min: Option<f64>, max: Option<f64>, rounds: usize) -> Option<Sample> {
    Some(Sample { spread: Spread { median: median?, min: min?, max: max? }, rounds })
}

/// Returns the direction called `name` in results.
fn better(name: &str) -> Option<Better> {
    [Better::Lower, Better::Higher, Better::Neither].into_iter().find(|better| better.name() == name)
}

/// Compares all figures of two entries of the same scenario and design. Figures that neither has measured are
/// omitted.
fn changes(of_a: &Entry, of_b: &Entry, medians: bool) -> Vec<Change> {
    let (in_a, mut in_b) = (figures(of_a, medians), figures(of_b, medians));
    let mut both: Vec<_> = in_a.into_iter().map(|(name, a)| (name, in_b.remove(name), Some(a))).collect();
    both.extend(in_b.into_iter().map(|(name, b)| (name, Some(b), None)));
    let mut changes = Vec::new();
    for (name, of_figure_b, of_figure_a) in both {
        let (a, b) = (
            of_figure_a.as_ref().and_then(|figure| figure.sample),
            of_figure_b.as_ref().and_then(|figure| figure.sample),
        );
        let alike = match (&of_figure_a, &of_figure_b) {
            (Some(a), Some(b)) => a.unit == b.unit && a.better == b.better,
            _ => true,
        };
        let both = of_figure_a.as_ref().zip(of_figure_b.as_ref());
        let interval = both.and_then(|(a, b)| Interval::separate(&b.values, &a.values));
        let noise = both.and_then(|(a, b)| a.noise.into_iter().chain(b.noise).reduce(f64::max));
        // B's definition of the figure comes first, because B is usually the newer file.
        let Some(figure) = of_figure_b.or(of_figure_a).filter(|_| a.is_some() || b.is_some()) else {
            continue;
        };
        let (verdict, reason) = match (a, b) {
            (Some(_), Some(_)) if alike => verdict(interval, noise, figure.better),
            _ => (Verdict::Apart, None),
        };
        let interval = interval.filter(|_| alike).map(|interval| [interval.low, interval.high]);
        let ratio = a.zip(b).map(|(a, b)| b.spread.median / a.spread.median);
        changes.push(Change {
            scenario: of_a.scenario.clone(),
            design: of_a.design.clone(),
            figure: name.into(),
            headline: figure.headline,
            unit: figure.unit.into(),
            better: figure.better.name(),
            verdict,
            reason,
            interval: interval.filter(|ends| ends.iter().all(|end| end.is_finite())),
            noise,
            ratio: ratio.filter(|ratio| alike && ratio.is_finite()),
            a,
            b,
        });
    }
    changes
}

fn verdict(interval: Option<Interval>, noise: Option<f64>, better: Better) -> (Verdict, Option<Reason>) {
    let Some(interval) = interval else { return (Verdict::Unknown, Some(Reason::NoRounds)) };
    let is_rise = interval.ratio > 1.0;
    let verdict = match (interval.difference(noise), better) {
        (Difference::Unknown(doubt), _) => return (Verdict::Unknown, Some(Reason::Doubt(doubt))),
        (Difference::Level, _) => Verdict::Level,
        (Difference::Beyond, Better::Neither) => Verdict::Changed,
        (Difference::Beyond, Better::Lower) if is_rise => Verdict::Worse,
        (Difference::Beyond, Better::Higher) if !is_rise => Verdict::Worse,
        (Difference::Beyond, Better::Lower | Better::Higher) => Verdict::Better,
    };
    (verdict, None)
}
