//! What people read: for each scenario a table, a second one of what was waited for, and a sentence that names our losses
//! first. What is in them is the scenario's [`Figure`]s; nothing here knows a scenario.

mod sentence;
mod waits;

use crate::compare::{Outcome, Plan, Run};
use crate::contender::Contender;
use crate::measure::Spread;
use crate::scenarios::{self, Figure, Scenario, Unit};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use sentence::sentence;
use std::fmt::Write;

/// A value without its unit.
fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Ratio | Unit::Each => format!("{value:.2}"),
        _ if value >= 1e7 => format!("{:.1}M", value / 1e6),
        _ if value >= 1e5 => format!("{:.0}k", value / 1e3),
        _ if value >= 10.0 => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    }
}

fn new_table<T: ToString>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.into_iter().map(|title| title.to_string()));
    table
}

fn align_numbers(table: &mut Table) {
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
}

/// The designs there are.
pub fn designs() -> String {
    let mut table = new_table(["design", "what it does", "what it models"]);
    for contender in Contender::all() {
        table.add_row([contender.name(), contender.about(), contender.source()]);
    }
    table.to_string()
}

/// The scenarios there are.
pub fn scenarios() -> String {
    let mut text = String::new();
    for scenario in scenarios::ALL {
        let Scenario { name, about, source, cannot_show, headline, threads, work, rates, .. } = scenario;
        let rates = rates.iter().map(|(name, hertz)| format!("--rate {name}={hertz}")).collect::<Vec<_>>();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{name}\n  does         {about}\n  source       {source}\n  headline     {}: {}; {} is better\n  threads      {threads}: {work}\n  cannot show  {cannot_show}",
            headline.name,
            headline.column,
            headline.better.name(),
        );
        if !rates.is_empty() {
            let _ = writeln!(text, "  rates        {}", rates.join(" "));
        }
        text.push('\n');
    }
    text.trim_end().to_string()
}

/// Tables and a sentence for each scenario that was run.
pub fn table(outcome: &Outcome, plan: &Plan) -> String {
    let mut text = String::new();
    for scenario in &plan.scenarios {
        let runs: Vec<&Run> = outcome.runs.iter().filter(|run| run.scenario.name == scenario.name).collect();
        if runs.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{}\n\n{}", heading(&runs, plan), rows(&runs));
        for line in refusals(&runs) {
            let _ = writeln!(text, "{line}");
        }
        text.push('\n');
        if let Some(waits) = waits::table(&runs) {
            let _ = writeln!(text, "{waits}\n");
        }
        for note in notes(&runs) {
            let _ = writeln!(text, "{note}");
        }
        let _ = writeln!(text, "{}\n", sentence(&runs));
    }
    if outcome.interrupted {
        text.push_str("Interrupted: this is what was measured so far.\n");
    }
    text.trim_end().to_string()
}

fn heading(runs: &[&Run], plan: &Plan) -> String {
    let (scenario, settings) = (runs[0].scenario, &plan.settings);
    let (_, length) = plan.rounds();
    let threads = settings.threads(scenario);
    let mut text = format!("{}: {threads} thread{}", scenario.name, if threads == 1 { "" } else { "s" });
    let count = |name| -> u64 { runs.iter().filter_map(|run| run.total.counted(name)).sum() };
    if count("major_faults") != 0 {
        let _ = write!(text, ", reads take {:?} at least", settings.io_latency);
    }
    for (name, _) in scenario.rates {
        let _ = write!(text, ", {name} {}/s", settings.rate(scenario, name));
    }
    let rounds = runs.iter().map(|run| run.rounds.len()).max().unwrap_or(0);
    let _ = write!(
        text,
        "; {rounds} round{} of {} s a design",
        if rounds == 1 { "" } else { "s" },
        (length.as_secs_f64() * 100.0).round() / 100.0
    );
    let checked: Vec<_> =
        scenario.checked.iter().map(|(name, what)| format!("{} {what}", count(name))).collect();
    if !checked.is_empty() {
        let _ = write!(text, "\nchecked: {}", checked.join(", "));
    }
    for (name, what) in scenario.missed.iter().filter(|(name, _)| count(name) != 0) {
        let _ = write!(text, "; {} {what}", count(name));
    }
    text
}

/// Why designs have not run at all. Not in the table: a reason is longer than any number.
fn refusals(runs: &[&Run]) -> Vec<String> {
    let refused = runs.iter().filter(|run| run.rounds.is_empty());
    let lines = refused
        .filter_map(|run| Some(format!("{} cannot run: {}", run.contender.name(), run.skipped.as_ref()?)));
    lines.collect()
}

/// What is to be known of a machine, once, and of designs that stopped.
fn notes(runs: &[&Run]) -> Vec<String> {
    let mut notes: Vec<(String, Vec<&str>)> = Vec::new();
    let mut ran: Vec<&str> = Vec::new();
    for run in runs.iter().filter(|run| !run.rounds.is_empty()) {
        let name = run.contender.name();
        ran.push(name);
        let stopped = run.skipped.iter().map(|reason| format!("stopped: {reason}"));
        for note in run.total.notes.iter().cloned().chain(stopped) {
            match notes.iter_mut().find(|(other, _)| *other == note) {
                Some((_, names)) if names.contains(&name) => {}
                Some((_, names)) => names.push(name),
                None => notes.push((note, vec![name])),
            }
        }
    }
    let said = notes.into_iter().map(|(note, names)| {
        // What is true of all of them is true of the machine.
        if names.len() > 1 && names == ran { note } else { format!("{}: {note}", names.join(", ")) }
    });
    said.collect()
}

/// The figures that share a column, one after the other.
fn columns(scenario: &Scenario) -> Vec<&'static [Figure]> {
    scenario.figures.chunk_by(|a, b| a.column == b.column).collect()
}

fn title(figure: &Figure) -> String {
    format!("{}{}", figure.column, figure.unit.suffix())
}

fn spread_text(spread: Option<Spread>, unit: Unit) -> String {
    spread.map_or("–".into(), |Spread { median, min, max }| {
        format!("{} ({}–{})", number(median, unit), number(min, unit), number(max, unit))
    })
}

fn rows(runs: &[&Run]) -> Table {
    let scenario = runs[0].scenario;
    let (headline, columns) = (&scenario.headline, columns(scenario));
    let titles = columns.iter().map(|figures| title(&figures[0]));
    let mut table =
        new_table(["design".to_string(), format!("{} by round", title(headline))].into_iter().chain(titles));
    for run in runs {
        let name = run.contender.name().to_string();
        if run.skipped.is_some() && run.rounds.is_empty() {
            table.add_row([name, "cannot run".into()]);
            continue;
        }
        let cell = |figures: &&[Figure]| {
            let values = figures.iter().map(|figure| match (figure.of)(&run.total) {
                Some(value) => number(value, figure.unit),
                None => "–".into(),
            });
            values.collect::<Vec<_>>().join(" / ")
        };
        let own = [name, spread_text(run.headline(), headline.unit)];
        table.add_row(own.into_iter().chain(columns.iter().map(cell)));
    }
    align_numbers(&mut table);
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::measure::{Latency, Measured};
    use faultless::stats::Counter;
    use std::time::Duration;

    pub(crate) fn run(design: &str, bystander: &[u64], reads: u64) -> Run {
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
        let contender = Contender::find(design).unwrap();
        Run { scenario: &scenarios::ALL[0], contender, rounds, total, skipped: None, recording: None }
    }

    #[test]
    fn every_design_has_a_row() {
        let skipped = Run { skipped: Some("no such device".into()), ..run("native", &[], 0) };
        let (theirs, ours) = (run("mmap-lock", &[100], 1), run("faultless", &[100], 1));
        let text = rows(&[&theirs, &ours, &skipped]).to_string();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.lines().all(|line| line.starts_with('|')), "{text}");
        assert!(
            text.contains("| native") && text.contains("cannot run") && !text.contains("no such device"),
            "{text}"
        );
        assert_eq!(refusals(&[&theirs, &ours, &skipped]), ["native cannot run: no such device"]);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_figure_that_was_not_counted_is_a_dash() {
        let mut native = run("native", &[100], 1);
        native.total.counters.remove("major_fault_mmap_lock_read");
        native.total.note("mmap_lock is not counted: no tracefs");
        let text = rows(&[&native]).to_string();
        assert!(text.contains("–") && text.contains("100"), "{text}");
        let note = "mmap_lock is not counted: no tracefs";
        assert_eq!(notes(&[&native, &native]), [format!("native: {note}")]);
        let mut ours = run("faultless", &[100], 1);
        ours.total.note(note);
        assert_eq!(notes(&[&native, &ours]), [note]);
        assert_eq!(
            notes(&[&run("mmap-lock", &[100], 1), &native, &ours]),
            [format!("native, faultless: {note}")]
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(2.71, Unit::Micros), "2.7");
        assert_eq!(number(31.4159, Unit::Nanos), "31");
        assert_eq!(number(2.712, Unit::Ratio), "2.71");
        assert_eq!(number(271_828.0, Unit::PerSecond), "272k");
        assert_eq!(number(27_182_818.0, Unit::PerSecond), "27.2M");
    }

    #[test]
    fn scenarios_say_what_they_cannot_show() {
        let text = scenarios();
        for scenario in scenarios::ALL {
            for wanted in [scenario.name, scenario.source, scenario.cannot_show] {
                assert!(!wanted.is_empty() && text.contains(wanted), "{wanted}");
            }
        }
    }
}
