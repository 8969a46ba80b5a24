//! The comparison as text, for a width of at most 80 columns.

use super::read::{one_line, shortened};
use super::{Change, Changes, Lone, Reason, Sample, Setting, Side, Verdict};
use crate::interval::{Doubt, LEAST_ROUNDS, LEVEL_WIDTH};
use crate::report::number;
use crate::scenarios::Unit;
use serde_json::Value;
use std::fmt::Write;

/// The maximum width of a line, on any terminal.
const WIDEST: usize = 80;

/// The maximum length of a text from a file, in characters.
const LONGEST: usize = 60;

/// The maximum length of a reason from a file, in characters. It is a sentence.
const LONGEST_REASON: usize = 200;

/// The maximum number of pairs of scenario and design named in one line.
const NAMED: usize = 3;

/// Returns the whole text for a screen of `width` columns. With `all`, figures within noise are listed too.
pub(super) fn text(changes: &Changes, all: bool, width: usize) -> String {
    let width = width.min(WIDEST);
    let mut text = format!("{}{}", side("A", &changes.a, width), side("B", &changes.b, width));
    if !changes.medians {
        text.push_str(&wrapped(
            "At least one file has no medians of its figures. They are compared by their values of all rounds together.",
            "",
            width,
        ));
    }
    text.push_str(&settings(&changes.settings, width));
    text.push_str(&lone(&changes.only, width));

    let count = |verdict| changes.with(verdict).count();
    let (worse, better, changed) = (count(Verdict::Worse), count(Verdict::Better), count(Verdict::Changed));
    let beyond = format!("Beyond noise: {} worse in B, {better} better.", figures(worse));
    text.push_str(&format!("\n{}", wrapped(&beyond, "", width)));
    for (verdict, title) in [
        (Verdict::Worse, "Worse in B".to_string()),
        (Verdict::Better, "Better in B".to_string()),
        (Verdict::Changed, "Changed beyond noise, without a better direction".to_string()),
    ] {
        text.push_str(&section(&changes.with(verdict).collect::<Vec<_>>(), &title, width));
    }
    let unknown =
        |reason| changes.with(Verdict::Unknown).filter(move |change| change.reason == Some(reason)).collect();
    let level =
        format!("Level, the interval of the ratio contains 1 and is narrower than {LEVEL_WIDTH} times");
    let rest: [(Vec<&Change>, String); 6] = [
        (unknown(Reason::Doubt(Doubt::FewRounds)), format!("Unknown, fewer than {LEAST_ROUNDS} rounds")),
        (unknown(Reason::NoRounds), "Unknown, a file has no values of single rounds".to_string()),
        (unknown(Reason::Doubt(Doubt::Wide)), "Unknown, the interval of the ratio is too wide".to_string()),
        (
            unknown(Reason::Doubt(Doubt::Twins)),
            "Unknown, designs of the same code differ as much".to_string(),
        ),
        (changes.with(Verdict::Level).collect(), level),
        (
            changes.with(Verdict::Apart).collect(),
            "Not compared, in one file only or in different units".to_string(),
        ),
    ];
    if all {
        rest.iter().for_each(|(found, title)| text.push_str(&section(found, title, width)));
    } else {
        let mut hidden = false;
        for (found, title) in rest.iter().filter(|(found, _)| !found.is_empty()) {
            text.push_str(if hidden { "" } else { "\n" });
            text.push_str(&wrapped(&format!("{title}: {}.", figures(found.len())), "", width));
            hidden = true;
        }
        text.push_str(if hidden { "--all lists them.\n" } else { "" });
    }
    if worse + better + changed != 0 || all {
        let meaning = "Each figure: median (least–greatest round) in A, then in B.";
        text.push_str(&format!("\n{}", wrapped(meaning, "", width)));
    }
    text.trim_end().to_string()
}

/// Returns a number of figures, with the noun.
pub(super) fn figures(count: usize) -> String {
    number::plural(count, "figure")
}

/// Returns `line` and a line break, wrapped at words. Later lines begin with `indent`.
pub(super) fn wrapped(line: &str, indent: &str, width: usize) -> String {
    let options = textwrap::Options::new(width).subsequent_indent(indent);
    let options = options.word_splitter(textwrap::WordSplitter::NoHyphenation);
    format!("{}\n", textwrap::fill(&one_line(line), options))
}

fn side(letter: &str, side: &Side, width: usize) -> String {
    let version = side.version.as_ref().map_or("by an unknown version".into(), |version| {
        format!("by faultless {}", shortened(version, LONGEST))
    });
    let interrupted = if side.interrupted { "; interrupted: it is not complete" } else { "" };
    wrapped(&format!("{letter} is {}, {version}{interrupted}.", side.name), "     ", width)
}

fn settings(settings: &[Setting], width: usize) -> String {
    let mut text = String::new();
    for Setting { what, a, b, at } in settings {
        let mut places = at.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if at.len() > NAMED {
            let _ = write!(places, " and {} more", at.len() - NAMED);
        }
        let of = if places.is_empty() { "" } else { "; of " };
        text.push_str(&wrapped(
            &format!("Different {what}: {} in A, {} in B{of}{places}", value(a), value(b)),
            "  ",
            width,
        ));
    }
    text
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => "not set".into(),
        Value::String(text) => shortened(text, LONGEST),
        other => shortened(&other.to_string(), LONGEST_REASON),
    }
}

fn lone(only: &[Lone], width: usize) -> String {
    let mut text = String::new();
    for Lone { scenario, design, ran_in, skipped } in only {
        let (here, there) = if *ran_in == "a" { ("A", "B") } else { ("B", "A") };
        let why = skipped.as_ref().map_or(String::new(), |why| {
            format!("; it did not run in {there}: {}", shortened(why, LONGEST_REASON))
        });
        text.push_str(&wrapped(&format!("Only in {here}: {scenario}/{design}{why}"), "  ", width));
    }
    text
}

/// Returns the figures of one verdict, by scenario and design. The pair with the largest change comes first.
fn section(found: &[&Change], title: &str, width: usize) -> String {
    if found.is_empty() {
        return String::new();
    }
    let rows: Vec<[String; 4]> = found
        .iter()
        .map(|change| {
            let in_file =
                |sample: &Option<Sample>| sample.as_ref().map_or("–".into(), |s| amount(s, &change.unit));
            [how_much(change), change.title().to_string(), in_file(&change.a), in_file(&change.b)]
        })
        .collect();
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [widest(0), widest(1), widest(2)];
    let mut text = format!("\n{}", wrapped(&format!("{title}: {}", figures(found.len())), "", width));
    let is_wide = rows.iter().all(|cells| fits(&beside(cells, widths, width), width));
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for change in found {
        let pair = (change.scenario.as_str(), change.design.as_str());
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    for (scenario, design) in pairs {
        text.push_str(&wrapped(&format!("{scenario} under {design}"), "  ", width));
        let of_pair = found
            .iter()
            .zip(&rows)
            .filter(|(c, _)| (c.scenario.as_str(), c.design.as_str()) == (scenario, design));
        for (_, cells) in of_pair {
            text.push_str(&if is_wide { beside(cells, widths, width) } else { below(cells, width) });
        }
    }
    text
}

fn fits(text: &str, width: usize) -> bool {
    text.lines().all(|line| line.chars().count() <= width)
}

/// Returns the line of a figure, or two lines if it is too wide.
fn beside([how_much, figure, a, b]: &[String; 4], widths: [usize; 3], width: usize) -> String {
    let [first, second, third] = widths;
    let start = format!("  {how_much:>first$}  {figure:second$}  ");
    let place = start.chars().count().saturating_sub(2);
    let line = format!("{start}{a:third$} → {b}\n");
    if fits(&line, width) { line } else { format!("{start}{a}\n{:place$}→ {b}\n", "") }
}

/// Returns the lines of a figure, with both values below its name.
fn below([how_much, figure, a, b]: &[String; 4], width: usize) -> String {
    let head = wrapped(&format!("  {how_much}  {figure}"), "    ", width);
    let line = format!("      {a} → {b}\n");
    if fits(&line, width) { head + &line } else { format!("{head}      {a}\n    → {b}\n") }
}

/// Returns the size and the direction of a change.
fn how_much(change: &Change) -> String {
    let direction = match change.verdict {
        Verdict::Worse => "worse",
        Verdict::Better => "better",
        Verdict::Apart => return String::new(),
        // Two digits would show 1.00.
        _ if change.times() < 1.005 => return "equal".into(),
        _ if change.is_rise() => "higher",
        _ => "lower",
    };
    match change.times() {
        times if times.is_infinite() && change.is_rise() => format!("{direction}, was 0"),
        times if times.is_infinite() => format!("{direction}, now 0"),
        times if times >= 1e5 => format!("{times:.0e}× {direction}"),
        times if times >= 100.0 => format!("{times:.0}× {direction}"),
        times => format!("{times:.2}× {direction}"),
    }
}

/// Returns a figure with its unit and its spread.
fn amount(sample: &Sample, unit: &str) -> String {
    let ours = [Unit::Micros, Unit::Nanos, Unit::Ratio, Unit::PerSecond, Unit::Each];
    match ours.into_iter().find(|other| other.name() == unit) {
        Some(unit) => number::spread(sample.spread, unit),
        // A later version may have other units.
        None => format!("{} {unit}", number::spread(sample.spread, Unit::Each)),
    }
}
