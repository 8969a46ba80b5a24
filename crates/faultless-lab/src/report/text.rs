//! Draws a report as text, for a width, with or without colour.

mod figures;
mod grid;
mod lists;
#[cfg(test)]
mod tests;

pub use lists::{designs, scenarios};

use crate::measure::{LEAST_ROUNDS, NOISE};
use crate::report::command::Command;
use crate::report::number;
use crate::report::view::{Kind, ScenarioView, TourView, Verdict, View, Waits};
use crate::scenarios::Unit;
use figures::Drawn;
use grid::{Align, Grid, Style, Text, items, paragraph};

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
        next.extend(command("Look closer:", &options.command.with(tour.closer), screen));
    }
    if !options.details {
        next.push("All figures: add --details".to_string());
    }
    parts.push(next.join("\n"));
    joined(parts)
}

/// Returns a command to the right of its purpose, or below it on a narrow screen.
fn command(purpose: &str, command: &Command, screen: Screen) -> Vec<String> {
    /// The width of the widest purpose, and a blank.
    const PURPOSE: usize = 13;
    /// The minimum width of a screen on which the command stands to the right.
    const LEAST: usize = 60;
    let (start, indent) = if screen.width < LEAST { (None, 2) } else { (Some(purpose), PURPOSE) };
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
    let [designs, scenarios, rounds] = [(designs, "design"), (scenarios, "scenario"), (tour.rounds, "round")]
        .map(|(n, noun)| number::plural(n, noun));
    let title = format!(
        "How long do page faults, fork and mmap wait under each locking design? {designs}, {scenarios}, \
         medians of {rounds}."
    );
    let drawn = figures::matrix(&tour.matrix, screen);
    let table = with_legend(&drawn, screen);
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
    let mut parts = vec![head.join("\n"), with_legend(&drawn, screen)];
    if !view.waits.is_empty() {
        parts.push(waits(&view.waits, options, screen));
    }
    parts.push(verdicts(&view.verdicts, screen));
    let mut notes = notes(&drawn, &view.notes, options, screen);
    notes.push(checked(&view.checked, screen));
    parts.push(notes.join("\n"));
    joined(parts)
}

/// Returns `text` with a full stop at the end.
fn sentence(text: &str) -> String {
    if text.ends_with('.') { text.into() } else { format!("{text}.") }
}

/// Returns the checks that passed. A check that fails ends the run without a report.
fn checked(checked: &[String], screen: Screen) -> String {
    paragraph(&format!("Checked without an error: {}.", checked.join("; ")), screen.width)
}

/// Returns a table, with the meaning of its marks and the titles of the dropped columns below it.
fn with_legend(drawn: &Drawn, screen: Screen) -> String {
    let mut lines = Vec::new();
    let mut text = String::new();
    if drawn.has_spreads {
        text.push_str("1.20 (0.98–1.40): median, smallest and largest round. ");
    }
    if drawn.has_ratios {
        text.push_str("1.50×: 1.5 times worse than the best of the column. ");
        text.push_str(&format!("≈: level with the best, within {NOISE} times or the spread of the rounds. "));
    }
    if drawn.has_few {
        text.push_str(&format!("?: fewer than {LEAST_ROUNDS} rounds, so this may be noise. "));
    }
    if !text.is_empty() {
        lines.push(paragraph(text.trim_end(), screen.width));
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
            "native is {} on this machine: other hardware than the software machine of the other rows. Its ratio is in \
             brackets; it is never the best.",
            options.kernel
        )
    });
    let notes = elsewhere.into_iter().chain(notes.iter().map(|note| sentence(note)));
    notes.map(|note| paragraph(&note, screen.width)).collect()
}

fn verdicts(verdicts: &[Verdict], screen: Screen) -> String {
    let line = |verdict: &Verdict| {
        let (mark, style) = match verdict.kind {
            Kind::Loss => ("-", Style::Bad),
            Kind::Level => ("≈", Style::Strong),
            Kind::Win => ("+", Style::Good),
            Kind::TooFew => ("?", Style::Strong),
            Kind::Note => ("*", Style::Plain),
        };
        (Text::new(mark).styled(style), verdict.text.clone())
    };
    items(verdicts.iter().map(line), screen)
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
