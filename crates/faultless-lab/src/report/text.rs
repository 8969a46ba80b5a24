//! Draws a report as text, for a width, with or without colour.

mod figures;
mod grid;
mod lists;
#[cfg(test)]
mod tests;

pub(crate) use grid::paragraph;
pub use lists::{designs, scenarios};

use crate::designs;
use crate::interval::{LEAST_ROUNDS, LEVEL_WIDTH};
use crate::report::command::Command;
use crate::report::number;
use crate::report::view::{Kind, ScenarioView, TourView, Verdict, View, Waits};
use crate::scenarios::Unit;
use figures::Drawn;
use grid::{Align, Grid, Style, Text, items};

/// The width and the colours of the output.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// The maximum width of a line, in columns. A word that is wider by itself stands whole.
    pub width: usize,
    /// Whether there are colours.
    pub has_colour: bool,
}

/// The options of a text report, besides its view.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Whether all figures and all causes are shown.
    pub details: bool,
    /// The command that repeats the run.
    pub command: &'a Command,
    /// The host's kernel, for the native rows.
    pub kernel: &'a str,
}

/// The number of causes of waiting shown without `--details`.
const CAUSES: usize = 3;

/// Returns the whole report.
pub fn report(view: &View, options: &Options<'_>, screen: Screen) -> String {
    let mut parts = Vec::new();
    if let Some(tour) = &view.tour {
        parts.push(at_a_glance(tour, options, screen));
    }
    if view.tour.is_none() || options.details {
        parts.extend(view.scenarios.iter().map(|scenario| one_scenario(scenario, options, screen)));
    }
    if view.is_interrupted {
        parts.push(paragraph("Interrupted: these are the figures so far.", screen.width));
    }
    let mut next = command("Repeat:", options.command, screen);
    if let Some(tour) = &view.tour {
        next.extend(command("Look closer:", &options.command.with(tour.closer.scenario), screen));
        next.push(beside(tour.closer.why, screen));
    }
    if !options.details {
        next.push("All figures: add --details".to_string());
    }
    parts.push(next.join("\n"));
    joined(parts)
}

/// Returns whether a command stands below its purpose, and not to its right.
fn is_below(screen: Screen) -> bool {
    screen.width < 60
}

/// Returns the number of blanks before a command.
fn indent(screen: Screen) -> usize {
    /// The width of the widest purpose, and a blank.
    const PURPOSE: usize = 13;
    if is_below(screen) { 2 } else { PURPOSE }
}

/// Returns a text below a command.
fn beside(text: &str, screen: Screen) -> String {
    let indent = indent(screen);
    let lines = paragraph(text, screen.width.saturating_sub(indent));
    lines.lines().map(|line| format!("{:indent$}{line}", "")).collect::<Vec<_>>().join("\n")
}

/// Returns a command to the right of its purpose, or below it on a narrow screen.
fn command(purpose: &str, command: &Command, screen: Screen) -> Vec<String> {
    let indent = indent(screen);
    let start = if is_below(screen) { None } else { Some(purpose) };
    let lines = command.lines(screen.width.saturating_sub(indent)).into_iter().enumerate();
    let line = |(at, line): (usize, String)| match at {
        0 => format!("{:<indent$}{line}", start.unwrap_or("")),
        _ => format!("{:<indent$}{line}", ""),
    };
    let above = if start.is_none() { Some(purpose.to_string()) } else { None };
    above.into_iter().chain(lines.map(line)).collect()
}

/// Returns the parts with blank lines between them. A part without text has no blank line.
fn joined(parts: Vec<String>) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn at_a_glance(tour: &TourView, options: &Options<'_>, screen: Screen) -> String {
    let (designs, scenarios) = (tour.matrix.rows.len(), tour.matrix.columns.len());
    let s = |n: usize| if n == 1 { "" } else { "s" };
    let rounds = match tour.rounds {
        (least, most) if least == most => number::plural(least, "round"),
        (least, most) => format!("{least} to {most} rounds"),
    };
    let title = format!(
        "{} scenario{} under {} locking design{}. Each column has its own unit. Medians of {rounds}.",
        capital(number::word(scenarios)),
        s(scenarios),
        number::word(designs),
        s(designs),
    );
    let drawn = figures::matrix(&tour.matrix, screen);
    let table = with_legend(&drawn, &tour.noise, screen);
    let mut notes = notes(&drawn, &tour.notes, options, screen);
    notes.push(checked(&tour.checked, screen));
    joined(vec![paragraph(&title, screen.width), table, verdicts(&tour.verdicts, screen), notes.join("\n")])
}

fn one_scenario(view: &ScenarioView, options: &Options<'_>, screen: Screen) -> String {
    let mut head = vec![paragraph(&format!("{}: {}.", view.name, view.about), screen.width)];
    head.push(paragraph(&sentence(&view.setup.join(", ")), screen.width));
    let drawn = if options.details {
        figures::every_figure(&view.figures, screen)
    } else {
        figures::main_figures(&view.figures, screen)
    };
    let mut parts = vec![head.join("\n"), with_legend(&drawn, &view.noise, screen)];
    if !view.waits.is_empty() {
        parts.push(waits(&view.waits, options, screen));
    }
    parts.push(verdicts(&view.verdicts, screen));
    let mut notes = notes(&drawn, &view.notes, options, screen);
    notes.push(checked(&view.checked, screen));
    parts.push(notes.join("\n"));
    joined(parts)
}

/// Returns `text` with a capital at the start.
fn capital(text: String) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

/// Returns `text` with a full stop at the end.
fn sentence(text: &str) -> String {
    if text.ends_with('.') { text.into() } else { format!("{text}.") }
}

/// Returns the checks that passed. A check that fails ends the run without a report.
fn checked(checked: &[String], screen: Screen) -> String {
    paragraph(&format!("Checked without an error: {}.", checked.join("; ")), screen.width)
}

/// Returns a table. Below it stand the meaning of its marks, the noise between twins, and the titles of the dropped
/// columns.
fn with_legend(drawn: &Drawn, noise: &str, screen: Screen) -> String {
    let mut lines = Vec::new();
    let mut text = String::new();
    if drawn.has_spreads {
        text.push_str("1.20 (0.98–1.40): median, smallest and largest round. ");
    }
    if drawn.has_ratios {
        text.push_str("1.50×: 1.5 times worse than the best of the column. ");
    }
    if drawn.has_level {
        text.push_str(&format!(
            "≈: level, the interval of the ratio contains 1 and is narrower than {LEVEL_WIDTH} times. "
        ));
    }
    if drawn.has_unknown {
        text.push_str("?: unknown, the interval is too wide, or twins differ as much. ");
    }
    if drawn.has_few {
        text.push_str(&format!("?: unknown, because there are fewer than {LEAST_ROUNDS} rounds. "));
    }
    if !text.is_empty() {
        lines.push(paragraph(text.trim_end(), screen.width));
    }
    if drawn.is_compared {
        lines.push(paragraph(noise, screen.width));
    }
    if !drawn.dropped.is_empty() {
        let text = format!("Not shown in {} columns: {}.", screen.width, drawn.dropped.join("; "));
        lines.push(paragraph(&text, screen.width));
    }
    joined(vec![drawn.text.clone(), lines.join("\n")])
}

/// Returns notes about machines and designs.
fn notes(drawn: &Drawn, notes: &[String], options: &Options<'_>, screen: Screen) -> Vec<String> {
    let elsewhere = drawn.has_elsewhere.then(|| {
        format!(
            "native is {} on this machine. It runs on the real MMU; the other rows run on a simulated one. Do not compare \
             them. Its ratio is in brackets, and it is never the best.",
            options.kernel
        )
    });
    let notes = elsewhere.into_iter().chain(notes.iter().map(|note| sentence(note)));
    notes.map(|note| paragraph(&note, screen.width)).collect()
}

/// Returns the mark of a verdict, its style, and its meaning.
fn mark(kind: Kind) -> (&'static str, Style, &'static str) {
    match kind {
        Kind::Loss => ("-", Style::Bad, "loss"),
        Kind::Unknown | Kind::TooFew => ("?", Style::Strong, "unknown"),
        Kind::Level => ("≈", Style::Strong, "level"),
        Kind::Win => ("+", Style::Good, "win"),
        Kind::Note => ("*", Style::Plain, "note"),
    }
}

/// Returns the verdicts, each with its mark. The meaning of the marks stands above them.
fn verdicts(verdicts: &[Verdict], screen: Screen) -> String {
    let line = |verdict: &Verdict| {
        let (mark, style, _) = mark(verdict.kind);
        (Text::new(mark).styled(style), verdict.text.clone())
    };
    let mut meanings: Vec<String> = Vec::new();
    for verdict in verdicts {
        let (mark, _, meaning) = mark(verdict.kind);
        let meaning = format!("{mark} {meaning}");
        if !meanings.contains(&meaning) {
            meanings.push(meaning);
        }
    }
    let legend = format!(
        "{} against its best rival: {}. In brackets the ratio and its 95 % interval.",
        designs::OURS,
        meanings.join(", ")
    );
    let has_verdict = verdicts.iter().any(|verdict| verdict.kind != Kind::Note);
    let legend = if has_verdict { paragraph(&legend, screen.width) + "\n" } else { String::new() };
    legend + &items(verdicts.iter().map(line), screen)
}

/// Returns the largest causes of waiting of each design, or all of them.
fn waits(waits: &[Waits], options: &Options<'_>, screen: Screen) -> String {
    let title = "Waits of all threads together, per second. Largest first; the holder of a lock in brackets.";
    let most = waits.iter().map(|waits| waits.causes.len()).max().unwrap_or(0);
    let shown = if options.details { most } else { most.min(CAUSES) };
    let names = (1..=shown).map(|place| match place {
        1 => "largest".to_string(),
        2 => "second".to_string(),
        3 => "third".to_string(),
        place => format!("{place}th"),
    });
    let row = |waits: &Waits| {
        let causes = waits.causes.iter().take(shown).map(|wait| {
            Text::new(format!("{} {}", number::value(wait.milliseconds * 1e3, Unit::Micros), wait.cause))
        });
        let mut row: Vec<Text> = std::iter::once(Text::new(waits.design)).chain(causes).collect();
        row.resize(shown + 1, Text::new("–"));
        row
    };
    let grid = Grid {
        header: std::iter::once("design".to_string()).chain(names).collect(),
        rows: waits.iter().map(row).collect(),
        align: Align::Left,
    };
    let grid = grid.wrapped(screen.width);
    let mut text = vec![paragraph(title, screen.width)];
    if options.details {
        text.push(grid.in_pieces(screen));
    } else {
        let columns = grid.fitting(screen.width);
        text.push(grid.draw(&(1..columns).collect::<Vec<_>>(), screen));
        if columns <= shown {
            let dropped = grid.header[columns..].join(" and ");
            text.push(paragraph(
                &format!("Not shown in {} columns: the {dropped} cause.", screen.width),
                screen.width,
            ));
        }
    }
    text.join("\n")
}
