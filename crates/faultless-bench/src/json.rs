//! The report for programs: one row for each case, size, number of threads and contender.

use crate::bars::{Estimate, Judged};
use crate::run::Row;
use serde::Serialize;
use std::collections::BTreeMap;

/// All rows of a run.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Report<'a>(Vec<Line<'a>>);

#[derive(Serialize)]
struct Line<'a> {
    case: &'static str,
    /// `null` for a case without sizes.
    size: Option<u64>,
    threads: usize,
    contender: &'a str,
    /// This and the next fields are `null` if there is no figure: the contender was skipped, or the case has no such
    /// figure.
    ns_per_op: Option<f64>,
    p99_ns: Option<f64>,
    spread: Option<f64>,
    cpu_ns_per_op: Option<f64>,
    rounds: usize,
    dropped: usize,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    measures: BTreeMap<&'static str, Estimate>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    bars: &'a [Judged],
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

impl<'a> Report<'a> {
    /// Makes a report of `rows`.
    pub fn new(rows: &'a [Row]) -> Self {
        Self(rows.iter().map(Line::new).collect())
    }
}

impl<'a> Line<'a> {
    fn new(row: &'a Row) -> Self {
        let figures = row.figures.as_ref().ok();
        Self {
            case: row.case.name,
            size: row.size,
            threads: row.threads,
            contender: &row.contender,
            ns_per_op: figures.and_then(|figures| figures.ns_per_op),
            p99_ns: figures.and_then(|figures| figures.p99_ns),
            spread: figures.and_then(|figures| figures.spread),
            cpu_ns_per_op: figures.and_then(|figures| figures.cpu_ns_per_op),
            rounds: figures.map_or(0, |figures| figures.rounds),
            dropped: figures.map_or(0, |figures| figures.dropped),
            measures: figures.into_iter().flat_map(|figures| figures.measures.iter().copied()).collect(),
            bars: &row.bars,
            skipped: row.figures.as_ref().err().map(String::as_str),
            note: row.note.as_deref(),
        }
    }
}
