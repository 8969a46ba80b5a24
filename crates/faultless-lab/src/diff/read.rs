//! Reads and checks files. Each error is one line that names the file.

use super::better;
use crate::json::{Entry, Report, SCHEMA};
use crate::report::command::is_shown;
use crate::report::number;
use crate::trouble::Trouble;
use serde_json::Value;
use serde_json::error::Category;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The maximum size of a file, in bytes. No result is nearly as large. The limit ends the reading of an endless
/// device.
const MOST_BYTES: u64 = 256 << 20;

/// The maximum length of a name. No name of this program is longer.
const LONGEST_NAME: usize = 32;

/// The maximum number of rounds of a result. No run of this program has nearly as many.
const MOST_ROUNDS: usize = 1_000_000;

/// A result and the name of its file.
#[derive(Debug)]
pub struct Source {
    /// The file's name, without control characters.
    pub name: String,
    /// The result.
    pub report: Report,
}

impl Source {
    /// Reads a file; "-" is standard input.
    ///
    /// # Errors
    /// [`Trouble::Input`] if it cannot be read, or is not a result.
    pub fn read(path: &Path) -> Result<Self, Trouble> {
        let stdin = path == Path::new("-");
        let name = if stdin { "standard input".into() } else { one_line(&path.display().to_string()) };
        let mut bytes = Vec::new();
        let reading = if stdin {
            io::stdin().take(MOST_BYTES + 1).read_to_end(&mut bytes)
        } else {
            File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        };
        reading.map_err(|error| Trouble::Input(format!("cannot read {name}: {error}")))?;
        match parse(&bytes) {
            Ok(report) => Ok(Self { name, report }),
            Err(wrong) => Err(Trouble::Input(format!("{name}: {}", one_line(&wrong)))),
        }
    }
}

/// Returns `text` with line breaks and other control characters replaced by blanks, and without the characters that
/// change the direction of text.
pub(super) fn one_line(text: &str) -> String {
    let line = text.chars().map(|character| if character.is_control() { ' ' } else { character });
    line.filter(|character| is_shown(*character)).collect()
}

/// Returns `text` in one line of at most `most` characters. A longer text ends with "…".
pub(super) fn shortened(text: &str, most: usize) -> String {
    let line = one_line(text);
    if line.chars().count() <= most { line } else { line.chars().take(most - 1).chain(['…']).collect() }
}

/// Parses the contents of a file. An error describes the file, which it calls "it".
pub(super) fn parse(bytes: &[u8]) -> Result<Report, String> {
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("it is larger than {} MiB; results are smaller", MOST_BYTES >> 20));
    }
    if bytes.trim_ascii().is_empty() {
        return Err("it is empty; `faultless compare --json=PATH` writes a result".into());
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        Category::Eof => format!("it is cut off: it ends at line {}, within the JSON", error.line()),
        _ => format!("it is not JSON: {error}"),
    })?;
    if value.get("figures").is_some() && value.get("results").is_none() {
        return Err("it is not a result of `faultless compare --json`, but of `faultless diff --json`".into());
    }
    match value.get("schema").map(Value::as_u64) {
        Some(Some(schema)) if schema == u64::from(SCHEMA) => {}
        Some(Some(schema)) => {
            return Err(format!("it has schema {schema}; this program reads schema {SCHEMA}"));
        }
        Some(None) => {
            return Err("it is not a result of `faultless compare --json`: its schema is not a number".into());
        }
        None => return Err("it is not a result of `faultless compare --json`: it has no schema".into()),
    }
    // The text is parsed again, because only then does an error have a line number.
    let report: Report = serde_json::from_slice(bytes)
        .map_err(|error| format!("it is not a result of `faultless compare --json`: {error}"))?;
    check(&report)?;
    Ok(report)
}

/// Checks the properties that types do not express.
fn check(report: &Report) -> Result<(), String> {
    let mut pairs = HashSet::new();
    for entry in &report.results {
        name(&entry.scenario)?;
        name(&entry.design)?;
        if !pairs.insert((&entry.scenario, &entry.design)) {
            return Err(format!("it has {} under {} twice", entry.scenario, entry.design));
        }
        check_rounds(entry)
            .and_then(|()| check_figures(entry))
            .map_err(|wrong| format!("{} under {}: {wrong}", entry.scenario, entry.design))?;
    }
    Ok(())
}

fn check_rounds(entry: &Entry) -> Result<(), String> {
    let of_figures = entry.figures.values().filter_map(|figure| figure.rounds);
    let values = entry.figures.values().map(|figure| figure.by_round.len());
    let of_headline = [entry.rounds, entry.headline.rounds, entry.headline.by_round.len()];
    let rounds = of_figures.chain(values).chain(of_headline).max().unwrap_or(0);
    if rounds > MOST_ROUNDS {
        let [rounds, most] = [rounds, MOST_ROUNDS].map(|n| number::count(n as u64));
        return Err(format!(
            "it has {rounds} rounds; a result of `faultless compare --json` has at most {most}"
        ));
    }
    Ok(())
}

fn check_figures(entry: &Entry) -> Result<(), String> {
    let headline = &entry.headline;
    let figures = entry.figures.iter().map(|(name, figure)| {
        let spread = [figure.min, figure.median, figure.max, figure.value];
        (name, &figure.unit, &figure.better, spread, (&figure.by_round, figure.noise))
    });
    let headline = (
        &headline.name,
        &headline.unit,
        &headline.better,
        [headline.min, headline.value, headline.max, None],
        (&headline.by_round, headline.noise),
    );
    for (figure, unit, direction, [min, median, max, value], (by_round, noise)) in figures.chain([headline]) {
        name(figure)?;
        if unit.chars().count() > 8 || unit.chars().any(char::is_control) {
            return Err(format!("{figure} has an unknown unit: {unit:?}"));
        }
        if better(direction).is_none() {
            return Err(format!(
                "{figure} has an unknown direction: {direction:?}; use lower, higher or neither"
            ));
        }
        let in_order: Vec<f64> = [Some(0.0), min, median, max].into_iter().flatten().collect();
        if !in_order.is_sorted() || value.is_some_and(|value| value < 0.0) {
            return Err(format!("{figure} is negative, or its min, median and max are not in order"));
        }
        if by_round.iter().flatten().any(|value| *value < 0.0) || noise.is_some_and(|noise| noise < 1.0) {
            return Err(format!("{figure} has a round below zero, or a noise below 1"));
        }
    }
    Ok(())
}

/// Checks a name. Names are printed in columns, and those of this program are short and have no blanks.
pub(super) fn name(name: &str) -> Result<(), String> {
    let ours = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(ours) {
        let start: String = name.chars().take(LONGEST_NAME).collect();
        return Err(format!(
            "it has an invalid name: {start:?}; use 1 to {LONGEST_NAME} letters, digits, - and _"
        ));
    }
    Ok(())
}
