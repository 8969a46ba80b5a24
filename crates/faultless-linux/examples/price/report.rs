//! The report: a table for people, and rows for programs.

use crate::measure::{Measured, Sample, Spread};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

/// The greatest acceptable ratio of the crate's cost of a page to the bare handler's.
pub const GOAL: f64 = 1.5;

/// The indices of the contenders.
pub const NATIVE: usize = 0;
pub const BARE: usize = 1;
pub const OURS: usize = 2;
pub const NAMES: [&str; 3] = ["native", "bare", "faultless"];

/// The figures of a contender in a case.
#[derive(Serialize)]
pub struct Row {
    case: &'static str,
    threads: usize,
    contender: &'static str,
    ns_per_page: f64,
    least: f64,
    greatest: f64,
    cpu_ns: f64,
    p99_ns: Option<f64>,
    ratio_to_bare: f64,
    ratio_least: f64,
    ratio_greatest: f64,
    cpu_ratio_to_bare: f64,
}

pub fn rows(measured: &[Measured]) -> Vec<Row> {
    let mut rows = Vec::new();
    for one in measured {
        for (who, contender) in NAMES.into_iter().enumerate() {
            let (Some(wall), Some(cpu), Some(ratio), Some(cpu_ratio)) = (
                one.spread(who, wall),
                one.spread(who, cpu),
                one.ratio(who, BARE, |sample| sample.wall),
                one.ratio(who, BARE, |sample| sample.cpu),
            ) else {
                continue;
            };
            rows.push(Row {
                case: one.case.name(),
                threads: one.threads,
                contender,
                ns_per_page: rounded(wall.median),
                least: rounded(wall.least),
                greatest: rounded(wall.greatest),
                cpu_ns: rounded(cpu.median),
                p99_ns: one.spread(who, |sample| sample.p99).map(|p99| rounded(p99.median)),
                ratio_to_bare: thousandths(ratio.median),
                ratio_least: thousandths(ratio.least),
                ratio_greatest: thousandths(ratio.greatest),
                cpu_ratio_to_bare: thousandths(cpu_ratio.median),
            });
        }
    }
    rows
}

fn rounded(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

fn thousandths(ratio: f64) -> f64 {
    (ratio * 1000.0).round() / 1000.0
}

fn wall(sample: &Sample) -> Option<f64> {
    Some(sample.wall)
}

fn cpu(sample: &Sample) -> Option<f64> {
    Some(sample.cpu)
}

/// Returns the table, and a sentence that names the rows above the goal.
pub fn table(measured: &[Measured]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "case",
        "threads",
        "faultless / bare",
        "by CPU time",
        "faultless ns",
        "bare ns",
        "native ns",
        "CPU ns of the three",
        "p99 µs of the three",
    ]);
    for one in measured {
        let ns = |who| one.spread(who, wall).map_or("–".into(), |ns| spread(ns, 0));
        let ratio = |figure: fn(&Sample) -> f64| {
            one.ratio(OURS, BARE, figure).map_or("–".into(), |ratio| spread(ratio, 2))
        };
        let each = |figure: &dyn Fn(&Sample) -> Option<f64>, digits: usize| {
            let texts = [OURS, BARE, NATIVE].map(|who| {
                one.spread(who, figure).map_or("–".into(), |figure| format!("{:.digits$}", figure.median))
            });
            texts.join(" / ")
        };
        table.add_row([
            one.case.name().to_string(),
            one.threads.to_string(),
            ratio(|sample| sample.wall),
            ratio(|sample| sample.cpu),
            ns(OURS),
            ns(BARE),
            ns(NATIVE),
            each(&cpu, 0),
            each(&|sample| sample.p99.map(|ns| ns / 1000.0), 1),
        ]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    format!("{table}\n\n{}", sentence(measured))
}

fn spread(of: Spread, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}–{:.digits$})", of.median, of.least, of.greatest)
}

fn sentence(measured: &[Measured]) -> String {
    let over = measured.iter().filter_map(|one| {
        let ratio = one.ratio(OURS, BARE, |sample| sample.wall)?.median;
        let threads = if one.threads == 1 { "1 thread".into() } else { format!("{} threads", one.threads) };
        (ratio > GOAL).then(|| format!("{} with {threads} ({ratio:.2})", one.case.name()))
    });
    let over: Vec<String> = over.collect();
    let whole = measured.len();
    match over.as_slice() {
        [] => {
            format!(
                "A page costs at most {GOAL} times as much as in the bare handler, in each of {whole} rows."
            )
        }
        over => format!(
            "A page costs more than {GOAL} times as much as in the bare handler in {} of {whole} rows: {}.",
            over.len(),
            over.join(", ")
        ),
    }
}
