//! Draws the tables of figures.

use super::Screen;
use super::grid::{Align, Grid, Style, Text};
use crate::report::number;
use crate::report::view::{Cell, Class, Column, Figures, Row};
use crate::scenarios::Better;
use std::ops::Range;

/// A table, and the marks that it uses.
pub(super) struct Drawn {
    pub text: String,
    /// The titles of the columns that had no room.
    pub dropped: Vec<String>,
    pub has_spreads: bool,
    pub has_ratios: bool,
    pub has_level: bool,
    pub has_unknown: bool,
    pub has_few: bool,
    pub has_elsewhere: bool,
    /// Whether a figure is compared with another one.
    pub is_compared: bool,
}

/// The lines of a cell. A narrow screen takes more lines.
#[derive(Clone, Copy)]
enum Shape {
    /// Value, spread and mark in one line.
    One,
    /// Value and mark, and the spread below them.
    Two,
    /// Value, spread and mark below each other.
    Three,
}

/// Draws the headlines of a tour. Each column is named by its scenario.
pub(super) fn matrix(figures: &Figures, screen: Screen) -> Drawn {
    let title = |column: &Column| format!("{}\n{}\n{}", column.scenario, column.title, direction(column));
    let grid =
        shaped(1..2, screen, |shape| grid(figures, title, |cell, column| value(cell, column, false), shape));
    Drawn { has_spreads: false, ..fitted(grid, figures, screen, |column| column.scenario) }
}

/// Draws the headline with its spread, and the main figures of the scenario.
pub(super) fn main_figures(figures: &Figures, screen: Screen) -> Drawn {
    let chosen = figures.columns.iter().enumerate().filter(|(_, column)| !column.is_detail);
    let figures = figures.only(&chosen.map(|(at, _)| at).collect::<Vec<_>>());
    let headline = figures.columns[0].name;
    let grid = shaped(1..2, screen, |shape| {
        grid(&figures, title, |cell, column| value(cell, column, column.name == headline), shape)
    });
    fitted(grid, &figures, screen, |column| column.title)
}

/// Draws every figure with its spread, in as many tables as necessary.
pub(super) fn every_figure(figures: &Figures, screen: Screen) -> Drawn {
    let all = 1..figures.columns.len() + 1;
    let grid =
        shaped(all, screen, |shape| grid(figures, title, |cell, column| value(cell, column, true), shape));
    drawn(grid.in_pieces(screen), figures, Vec::new())
}

/// Returns the grid with the fewest lines a cell in which each of `columns` has room beside the names.
fn shaped(columns: Range<usize>, screen: Screen, grid: impl Fn(Shape) -> Grid) -> Grid {
    let grids = [Shape::One, Shape::Two].into_iter().map(&grid);
    let has_room = |grid: &Grid| grid.has_room_for(columns.clone(), screen.width);
    grids.into_iter().find(has_room).unwrap_or_else(|| grid(Shape::Three))
}

fn fitted(grid: Grid, figures: &Figures, screen: Screen, name: fn(&Column) -> &'static str) -> Drawn {
    let fitting = grid.fitting(screen.width);
    let text = grid.draw(&(1..fitting).collect::<Vec<_>>(), screen);
    let dropped = figures.columns.iter().skip(fitting - 1).map(|column| name(column).to_string());
    drawn(text, figures, dropped.collect())
}

fn drawn(text: String, figures: &Figures, dropped: Vec<String>) -> Drawn {
    let has = |wanted: fn(&Cell) -> bool| figures.rows.iter().flat_map(|row| &row.cells).any(wanted);
    Drawn {
        text,
        dropped,
        has_spreads: has(|cell| cell.spread.is_some_and(|spread| spread.min != spread.max)),
        has_ratios: has(|cell| matches!(cell.class, Class::Between | Class::Worse)),
        has_level: has(|cell| cell.class == Class::Level),
        has_unknown: has(|cell| cell.class == Class::Unknown),
        has_few: has(|cell| cell.class == Class::TooFew && cell.times_worse().is_some()),
        has_elsewhere: has(|cell| cell.class == Class::Elsewhere),
        is_compared: has(|cell| {
            matches!(cell.class, Class::Level | Class::Unknown | Class::Between | Class::Worse)
        }),
    }
}

fn title(column: &Column) -> String {
    format!("{}\n{}", column.title, direction(column))
}

fn direction(column: &Column) -> &'static str {
    match column.better {
        Better::Lower => "less is better",
        Better::Higher => "more is better",
        Better::Neither => "not compared",
    }
}

fn grid(
    figures: &Figures,
    title: impl Fn(&Column) -> String,
    value: impl Fn(&Cell, &Column) -> (String, Option<String>),
    shape: Shape,
) -> Grid {
    let marks: Vec<usize> = (0..figures.columns.len())
        .map(|at| figures.rows.iter().map(|row| mark(&row.cells[at]).chars().count()).max().unwrap_or(0))
        .collect();
    let row = |row: &Row| {
        let name =
            if row.is_ours { Text::new(row.design).styled(Style::Strong) } else { Text::new(row.design) };
        let cells = row.cells.iter().zip(&figures.columns).zip(&marks).map(|((cell, column), width)| {
            let (value, spread) = value(cell, column);
            // The padding aligns the marks of a column.
            let mark = match (*width, cell.spread) {
                (0, _) | (_, None) => None,
                _ => Some(format!("{:>width$}", mark(cell))),
            };
            let (value, spread, mark) = (Some(value), spread, mark);
            let text = match shape {
                Shape::One => joined([value, spread, mark], " "),
                Shape::Two => joined([Some(joined([value, mark], " ")), spread], "\n"),
                Shape::Three => joined([value, spread, mark.filter(|mark| !mark.trim().is_empty())], "\n"),
            };
            Text::new(text).styled(style(&cell.class))
        });
        std::iter::once(name).chain(cells).collect()
    };
    Grid {
        header: std::iter::once("design".to_string()).chain(figures.columns.iter().map(title)).collect(),
        rows: figures.rows.iter().map(row).collect(),
        align: Align::Right,
    }
}

/// Returns the parts that there are, with `separator` between them.
fn joined<const N: usize>(parts: [Option<String>; N], separator: &str) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(separator)
}

/// Returns the value of a cell, and its spread if it is shown.
fn value(cell: &Cell, column: &Column, with_spread: bool) -> (String, Option<String>) {
    match (cell.spread, &cell.class) {
        (Some(spread), _) if with_spread => number::spread_parts(spread, column.unit),
        (Some(spread), _) => (number::value(spread.median, column.unit), None),
        (None, Class::NotRun(_)) => ("cannot run".into(), None),
        (None, _) => ("–".into(), None),
    }
}

/// Returns the comparison with the best, readable without colour.
fn mark(cell: &Cell) -> String {
    let times = |around: fn(String) -> String| {
        cell.times_worse().map_or(String::new(), |times| around(number::times(times)))
    };
    match cell.class {
        Class::Best => "best".into(),
        Class::Level => times(|times| format!("≈{times}")),
        Class::Unknown | Class::TooFew => times(|times| format!("?{times}")),
        Class::Between | Class::Worse => times(|times| times),
        Class::Elsewhere => times(|times| format!("({times})")),
        Class::NotCompared | Class::NotMeasured | Class::NotRun(_) => String::new(),
    }
}

fn style(class: &Class) -> Style {
    match class {
        Class::Best => Style::Best,
        Class::Level => Style::Good,
        Class::Worse => Style::Bad,
        Class::Elsewhere | Class::NotRun(_) | Class::NotMeasured => Style::Dim,
        Class::Between | Class::Unknown | Class::TooFew | Class::NotCompared => Style::Plain,
    }
}
