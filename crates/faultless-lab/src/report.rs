//! What people read: a table, and a sentence under it that names our losses first.

use crate::compare::{Outcome, Plan, Run};
use crate::measure::{Measured, Spread};
use crate::{designs, scenarios};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use faultless::stats::Counter;
use std::fmt::Write;

/// A difference below this is noise on the machines we measure on (BASELINES.md).
const NOISE: f64 = 1.3;

/// A figure by which designs are compared.
struct Figure {
    name: &'static str,
    unit: &'static str,
    higher_is_better: bool,
    of: fn(&Measured) -> Option<f64>,
}

const FIGURES: &[Figure] = &[
    Figure {
        name: "bystander p99",
        unit: " µs",
        higher_is_better: false,
        of: |m| m.quantile_us("bystander", 0.99),
    },
    Figure { name: "fork p99", unit: " µs", higher_is_better: false, of: |m| m.quantile_us("fork", 0.99) },
    Figure { name: "fault p99", unit: " µs", higher_is_better: false, of: |m| m.quantile_us("fault", 0.99) },
    Figure { name: "major faults", unit: "/s", higher_is_better: true, of: major_faults_a_second },
    Figure {
        name: "CPU a major fault",
        unit: " µs",
        higher_is_better: false,
        of: Measured::cpu_us_per_major_fault,
    },
];

fn major_faults_a_second(measured: &Measured) -> Option<f64> {
    (measured.seconds > 0.0).then(|| measured.total(Counter::MajorFaults) as f64 / measured.seconds)
}

fn mmap_lock_reads(measured: &Measured) -> Option<f64> {
    measured.per_major_fault(Counter::MmapLockRead)
}

fn number(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn maybe(value: Option<f64>) -> String {
    value.map_or("–".into(), number)
}

fn quantiles(measured: &Measured, name: &str, quantiles: &[f64]) -> String {
    let Some(latency) = measured.latency.get(name).filter(|latency| latency.count() != 0) else {
        return "–".into();
    };
    let values = quantiles.iter().map(|quantile| match quantile {
        1.0 => number(latency.max_us()),
        _ => number(latency.quantile_us(*quantile)),
    });
    values.collect::<Vec<_>>().join(" / ")
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table
}

/// The designs there are.
pub fn designs() -> String {
    let mut table = new_table(&["design", "what it does", "what it models"]);
    designs::ALL.iter().for_each(|design| {
        table.add_row([design.name, design.about, design.source]);
    });
    table.to_string()
}

/// The scenarios there are.
pub fn scenarios() -> String {
    let mut table = new_table(&["scenario", "what it does", "where it comes from", "headline", "--rate"]);
    for scenario in scenarios::ALL {
        let rates = scenario.rates.iter().map(|(name, hertz)| format!("{name}={hertz}")).collect::<Vec<_>>();
        let row = [scenario.name, scenario.about, scenario.source, scenario.headline.name, &rates.join(", ")];
        table.add_row(row);
    }
    table.to_string()
}

/// A table and a sentence for each scenario that was run.
pub fn table(outcome: &Outcome, plan: &Plan) -> String {
    let mut text = String::new();
    for scenario in &plan.scenarios {
        let runs: Vec<&Run> = outcome.runs.iter().filter(|run| run.scenario.name == scenario.name).collect();
        if runs.is_empty() {
            continue;
        }
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}\n\n{}\n\n{}\n", heading(&runs, plan), rows(&runs), sentence(&runs));
    }
    if outcome.interrupted {
        text.push_str("Interrupted: this is what was measured so far.\n");
    }
    text.trim_end().to_string()
}

fn heading(runs: &[&Run], plan: &Plan) -> String {
    let (first, settings) = (runs[0], &plan.settings);
    let (_, length) = plan.rounds();
    let rates = first.scenario.rates.iter().map(|(name, _)| (name, settings.rate(first.scenario, name)));
    let rates: Vec<_> = rates.map(|(name, hertz)| format!("{name} {hertz}/s")).collect();
    let count = |name| -> u64 { runs.iter().filter_map(|run| run.total.counters.get(name)).sum() };
    let mut text = format!(
        "{}: {} threads, reads take {:?} at least, {}; {} rounds of {:?} a design; times in µs\nchecked: {} pages of the file, byte by byte, and {} children of fork",
        first.scenario.name,
        settings.threads,
        settings.io_latency,
        rates.join(", "),
        runs.iter().map(|run| run.rounds.len()).max().unwrap_or(0),
        length,
        count("pages_checked"),
        count("children_checked"),
    );
    for (name, what) in [
        ("children_unchecked", "children not checked, for want of time"),
        ("forks_missed", "forks due that did not begin"),
        ("bystander_missed", "bystander's acts due that did not begin"),
    ] {
        if count(name) != 0 {
            let _ = write!(text, "; {} {what}", count(name));
        }
    }
    text
}

fn rows(runs: &[&Run]) -> Table {
    let mut table = new_table(&[
        "design",
        "bystander p50 / p99 / max",
        "its p99 by round",
        "fork p50 / p99",
        "fault p50 / p99",
        "major faults/s",
        "CPU each",
        "mmap_lock reads each",
        "retries each",
    ]);
    for run in runs {
        let total = &run.total;
        let by_round = |spread: Spread| {
            format!("{} ({}–{})", number(spread.median), number(spread.min), number(spread.max))
        };
        table.add_row([
            run.design.name.to_string(),
            quantiles(total, "bystander", &[0.5, 0.99, 1.0]),
            run.headline().map_or("–".into(), by_round),
            quantiles(total, "fork", &[0.5, 0.99]),
            quantiles(total, "fault", &[0.5, 0.99]),
            maybe(major_faults_a_second(total)),
            maybe(total.cpu_us_per_major_fault()),
            mmap_lock_reads(total).map_or("–".into(), |reads| format!("{reads:.2}")),
            total.per_major_fault(Counter::Retries).map_or("–".into(), |retries| format!("{retries:.2}")),
        ]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

/// How ours compares with the best of the others in one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Loss,
    Level,
    Win,
}

fn verdict(ours: Spread, theirs: Spread, higher_is_better: bool) -> Verdict {
    let (low, high, is_low_ours) =
        if ours.median <= theirs.median { (ours, theirs, true) } else { (theirs, ours, false) };
    // More than noise, and no round of the one among the rounds of the other.
    if high.median < low.median * NOISE || high.min <= low.max {
        Verdict::Level
    } else if is_low_ours == higher_is_better {
        Verdict::Loss
    } else {
        Verdict::Win
    }
}

/// One sentence, losses first.
fn sentence(runs: &[&Run]) -> String {
    let ours = runs.iter().find(|run| run.design.name == designs::OURS);
    let rivals: Vec<&&Run> = runs.iter().filter(|run| run.design.name != designs::OURS).collect();
    let Some(ours) = ours.filter(|_| !rivals.is_empty()) else { return without_comparison(runs) };
    let (mut losses, mut wins, mut level) = (Vec::new(), Vec::new(), Vec::new());
    for figure in FIGURES {
        let Some(mine) = ours.spread(figure.of) else { continue };
        let best = rivals.iter().filter_map(|run| Some((run.design.name, run.spread(figure.of)?)));
        let best =
            best.reduce(|a, b| if (b.1.median < a.1.median) != figure.higher_is_better { b } else { a });
        let Some((name, theirs)) = best else { continue };
        let (unit, mine_text, theirs_text) = (figure.unit, number(mine.median), number(theirs.median));
        let compared = format!("{} ({mine_text}{unit} against {theirs_text}{unit} of {name})", figure.name);
        match verdict(mine, theirs, figure.higher_is_better) {
            Verdict::Loss => losses.push(compared),
            Verdict::Win => wins.push(compared),
            Verdict::Level => level.push(figure.name.to_string()),
        }
    }
    let name = ours.design.name;
    let mut parts = Vec::new();
    if losses.is_empty() {
        parts.push(format!("{name} loses in nothing that was measured here"));
    } else {
        parts.push(format!("{name} loses in {}", losses.join(", ")));
    }
    if !wins.is_empty() {
        parts.push(format!("wins in {}", wins.join(", ")));
    }
    if !level.is_empty() {
        parts.push(format!(
            "is level, within {NOISE} times or the spread of the rounds, in {}",
            level.join(", ")
        ));
    }
    let mut text = parts.join(", ");
    let reads = rivals.iter().filter_map(|run| Some((run.design.name, mmap_lock_reads(&run.total)?)));
    let most = reads.max_by(|a, b| a.1.total_cmp(&b.1));
    if let (Some(mine), Some((rival, theirs))) = (mmap_lock_reads(&ours.total), most) {
        let _ =
            write!(text, "; a major fault took mmap_lock {mine:.2} times, under {rival} {theirs:.2} times");
    }
    text.push('.');
    text
}

fn without_comparison(runs: &[&Run]) -> String {
    let best = runs.iter().filter_map(|run| Some((run.design.name, run.headline()?)));
    let best = best.reduce(|a, b| if b.1.median < a.1.median { b } else { a });
    let figure = runs[0].scenario.headline.name;
    match (best, runs) {
        (Some((name, spread)), [_]) => format!("{name} ran alone: {figure} {} µs.", number(spread.median)),
        (Some((name, spread)), _) => {
            format!(
                "{} did not run; the best {figure} is that of {name}, {} µs.",
                designs::OURS,
                number(spread.median)
            )
        }
        (None, _) => "Too short to say anything.".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Latency;
    use std::time::Duration;

    fn run(design: &str, bystander: &[u64], reads: u64) -> Run {
        let round = |us: &u64| {
            let mut measured = Measured { seconds: 1.0, ..Measured::default() };
            let mut latency = Latency::default();
            latency.record(Duration::from_micros(*us));
            measured.add_latency("bystander", &latency);
            measured.count(Counter::MajorFaults.name(), 10);
            measured.count("major_fault_mmap_lock_read", reads);
            // Of all faults: says nothing about the major ones.
            measured.count(Counter::MmapLockRead.name(), 1000 + reads);
            measured.faults_timed = 10;
            measured
        };
        let rounds: Vec<Measured> = bystander.iter().map(round).collect();
        let mut total = Measured::default();
        rounds.iter().for_each(|round| total.add(round));
        Run { scenario: &scenarios::ALL[0], design: designs::find(design).unwrap(), rounds, total }
    }

    #[test]
    fn losses_come_first() {
        let (ours, theirs) = (run("faultless", &[200, 220], 0), run("mmap-lock", &[100, 110], 20));
        let text = sentence(&[&theirs, &ours]);
        assert!(
            text.starts_with(
                "faultless loses in bystander p99 (210 µs against 105 µs of mmap-lock), is level"
            ),
            "{text}"
        );
        assert!(
            text.ends_with("a major fault took mmap_lock 0.00 times, under mmap-lock 2.00 times."),
            "{text}"
        );
        let text = sentence(&[&run("mmap-lock", &[300, 310], 0), &ours]);
        assert!(
            text.starts_with("faultless loses in nothing that was measured here, wins in bystander p99"),
            "{text}"
        );
    }

    #[test]
    fn noise_is_neither_loss_nor_win() {
        let spread = |median, min, max| Spread { median, min, max };
        let level = |a, b| verdict(a, b, false) == Verdict::Level;
        assert!(level(spread(100.0, 99.0, 101.0), spread(125.0, 124.0, 126.0)));
        assert!(level(spread(100.0, 50.0, 300.0), spread(200.0, 190.0, 210.0)));
        assert_eq!(verdict(spread(100.0, 90.0, 110.0), spread(200.0, 190.0, 210.0), false), Verdict::Win);
        assert_eq!(verdict(spread(100.0, 90.0, 110.0), spread(200.0, 190.0, 210.0), true), Verdict::Loss);
    }

    #[test]
    fn one_design_alone_is_not_compared() {
        let text = sentence(&[&run("mmap-lock", &[100], 1)]);
        assert_eq!(text, "mmap-lock ran alone: bystander_p99 100 µs.");
    }

    #[test]
    fn every_design_has_a_row() {
        let text = rows(&[&run("mmap-lock", &[100], 1), &run("faultless", &[100], 1)]).to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.lines().all(|line| line.starts_with('|')), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
