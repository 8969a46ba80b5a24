//! Tables of figures. The colour of a cell shows how much worse than the best it is.

use super::distribution::swatch;
use crate::report::number;
use crate::report::view::{Cell, Class, Column, Figures, Row};
use crate::scenarios::Better;
use maud::{Markup, html};

/// Draws the headlines of several scenarios. Each column is named by its scenario and links to its section.
pub(super) fn matrix(figures: &Figures) -> Markup {
    let head = |column: &Column| {
        html! { th scope="col" { a href={ "#" (column.scenario) } { (column.scenario) } br; span.dim { (column.title) } (direction(column)) } }
    };
    table(figures, head, false)
}

/// Draws the figures of one scenario.
pub(super) fn of_scenario(figures: &Figures, has_details: bool) -> Markup {
    let shown = (0..figures.columns.len()).filter(|at| has_details || !figures.columns[*at].is_detail);
    let figures = figures.only(&shown.collect::<Vec<_>>());
    let head = |column: &Column| html! { th scope="col" { span { (column.title) } (direction(column)) } };
    table(&figures, head, true)
}

fn direction(column: &Column) -> Markup {
    let words = match column.better {
        Better::Lower => "less is better",
        Better::Higher => "more is better",
        Better::Neither => "not compared",
    };
    html! { br; span.dim { (words) } }
}

fn table(figures: &Figures, head: impl Fn(&Column) -> Markup, has_spread: bool) -> Markup {
    html! {
        div.scroll { table.heat {
            thead { tr { th scope="col" { "design" } @for column in &figures.columns { (head(column)) } } }
            tbody { @for row in &figures.rows { (self::row(row, &figures.columns, has_spread)) } }
        } }
    }
}

fn row(row: &Row, columns: &[Column], has_spread: bool) -> Markup {
    html! {
        tr class=[row.is_ours.then_some("ours")] {
            th scope="row" { (swatch(row.design)) (row.design) @if row.is_elsewhere { span.dim { " other hardware" } } }
            @for (cell, column) in row.cells.iter().zip(columns) { (self::cell(cell, column, has_spread)) }
        }
    }
}

fn cell(cell: &Cell, column: &Column, has_spread: bool) -> Markup {
    let whole = cell.spread.map(|spread| number::spread(spread, column.unit));
    let Some(spread) = cell.spread else {
        return match &cell.class {
            Class::NotRun(reason) => html! { td.none title=(reason) { "did not run" } },
            _ => html! { td.none { "–" } },
        };
    };
    let value = number::value(spread.median, column.unit);
    let range =
        whole.as_deref().and_then(|whole| whole.split_once(" (")).map(|(_, range)| format!("({range}"));
    html! {
        td class=(class(cell)) title=[title(cell, whole.as_deref())] {
            (value)
            @if let Some(mark) = mark(cell) { span.mark { " " (mark) } }
            @if let Some(range) = range.filter(|_| has_spread) { br; span.dim { (range) } }
        }
    }
}

/// Returns the spread of a cell, and the interval of its ratio to the best.
fn title(cell: &Cell, whole: Option<&str>) -> Option<String> {
    let worse = cell.worse.filter(|worse| cell.class != Class::Best && worse.low < worse.high);
    let whole = whole?;
    Some(match worse.filter(|worse| worse.low > 0.0 && worse.high.is_finite()) {
        Some(worse) => {
            let [low, high] = [worse.low, worse.high].map(number::times);
            format!("{whole}; worse than the best by {low} to {high}")
        }
        None => whole.into(),
    })
}

/// Returns the comparison with the best in words, for readers who cannot see the colours.
fn mark(cell: &Cell) -> Option<String> {
    match cell.class {
        Class::Best => Some("best".into()),
        Class::Level => Some("level".into()),
        Class::Unknown | Class::TooFew => {
            cell.times_worse().map(|times| format!("?{}", number::times(times)))
        }
        Class::Between | Class::Worse => Some(cell.times_worse().map_or("worse".into(), number::times)),
        Class::Elsewhere => cell.times_worse().map(number::times),
        Class::NotCompared | Class::NotMeasured | Class::NotRun(_) => None,
    }
}

fn class(cell: &Cell) -> &'static str {
    match (&cell.class, cell.times_worse()) {
        (Class::Best, _) => "h-best",
        (Class::Level, _) => "h-level",
        (Class::Between | Class::Worse, Some(times)) if times < 2.0 => "h-1",
        (Class::Between | Class::Worse, Some(times)) if times < 5.0 => "h-2",
        (Class::Between | Class::Worse, Some(times)) if times < 20.0 => "h-3",
        (Class::Between | Class::Worse, _) => "h-4",
        (Class::Unknown | Class::TooFew, _) => "h-few",
        (Class::Elsewhere, _) => "h-elsewhere",
        (Class::NotCompared | Class::NotMeasured | Class::NotRun(_), _) => "h-none",
    }
}

/// Draws the meaning of the colours.
pub(super) fn key() -> Markup {
    const KEY: [(&str, &str); 7] = [
        ("h-best", "best"),
        ("h-level", "level: the interval of the ratio to the best contains 1 and is narrow"),
        ("h-few", "?: unknown, the interval is too wide, twins differ as much, or the rounds are too few"),
        ("h-1", "worse, below 2×"),
        ("h-2", "2× to 5×"),
        ("h-3", "5× to 20×"),
        ("h-4", "20× or worse"),
    ];
    html! { p.key { @for (class, words) in KEY { span { span class={ "block " (class) } {} (words) } } } }
}
