//! Compares the figures of designs with the best one.

use crate::compare::Run;
use crate::contender::Contender;
use crate::measure::{Difference, LEAST_ROUNDS, Spread};
use crate::scenarios::{Better, Figure, Scenario, Unit};

/// The ratio from which a figure counts as much worse.
const MUCH: f64 = 2.0;

/// A table with a row for each design and a column for each figure.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The columns. The most important one comes first.
    pub columns: Vec<Column>,
    /// The rows, in the order of the plan.
    pub rows: Vec<Row>,
}

/// The description of a column.
#[derive(Clone, Debug)]
pub struct Column {
    /// The scenario that it belongs to.
    pub scenario: &'static str,
    /// The figure's name in JSON.
    pub name: &'static str,
    /// The figure in a few words.
    pub title: &'static str,
    /// The unit.
    pub unit: Unit,
    /// The better direction.
    pub better: Better,
    /// Whether it is shown only with `--details`.
    pub is_detail: bool,
}

/// The figures of a design.
#[derive(Clone, Debug)]
pub struct Row {
    /// The design's name.
    pub design: &'static str,
    /// Whether it is Faultless's own design.
    pub is_ours: bool,
    /// Whether it ran on other hardware than the others.
    pub is_elsewhere: bool,
    /// The cells, one for each column.
    pub cells: Vec<Cell>,
}

/// One figure of one design.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The spread over the rounds; `None` if it was not measured.
    pub spread: Option<Spread>,
    /// The value for all rounds together.
    pub total: Option<f64>,
    /// The ratio of the median to the best one of the column, as a factor by which it is worse: 1 for the best
    /// itself. `None` if designs are not compared by the figure, or the divisor is zero.
    pub times_worse: Option<f64>,
    /// The result of the comparison with the best.
    pub class: Class,
}

/// The result of comparing a figure with the best one of its column.
#[derive(Clone, Debug, PartialEq)]
pub enum Class {
    /// It is the best.
    Best,
    /// Less than [`NOISE`](crate::measure::NOISE) times worse.
    Level,
    /// Worse by more, but its rounds overlap with those of the best. The difference may be chance.
    Unknown,
    /// Worse beyond noise, but less than twice as bad.
    Between,
    /// Twice as bad, or worse.
    Worse,
    /// Too few rounds for a comparison.
    TooFew,
    /// Measured on other hardware. It has a ratio, but is neither best nor worse.
    Elsewhere,
    /// Designs are not compared by this figure.
    NotCompared,
    /// The design ran, but this figure was not measured.
    NotMeasured,
    /// The design did not run. The text is the reason.
    NotRun(String),
}

impl Figures {
    /// Creates the table of one scenario's runs. The headline is the first column.
    pub(super) fn of_scenario(runs: &[&Run]) -> Self {
        let scenario = runs[0].scenario;
        let designs: Vec<Contender> = runs.iter().map(|run| run.contender).collect();
        let runs: Vec<Option<&Run>> = runs.iter().copied().map(Some).collect();
        let figures = std::iter::once(&scenario.headline).chain(scenario.figures);
        Self::new(&designs, figures.map(|figure| (Column::new(scenario, figure), cells(&runs, figure))))
    }

    /// Creates the table of the headlines of several scenarios.
    pub(super) fn of_headlines(scenarios: &[Vec<&Run>]) -> Self {
        let longest = scenarios.iter().map(Vec::as_slice).max_by_key(|runs| runs.len()).unwrap_or(&[]);
        let designs: Vec<Contender> = longest.iter().map(|run| run.contender).collect();
        let columns = scenarios.iter().map(|runs| {
            let of =
                |design: &Contender| runs.iter().copied().find(|run| run.contender.name() == design.name());
            let (scenario, runs) = (runs[0].scenario, designs.iter().map(of).collect::<Vec<_>>());
            (Column::new(scenario, &scenario.headline), cells(&runs, &scenario.headline))
        });
        Self::new(&designs, columns)
    }

    /// Returns the table with only `columns`.
    pub fn only(&self, columns: &[usize]) -> Self {
        let row = |row: &Row| Row {
            cells: columns.iter().map(|at| row.cells[*at].clone()).collect(),
            ..row.clone()
        };
        Self {
            columns: columns.iter().map(|at| self.columns[*at].clone()).collect(),
            rows: self.rows.iter().map(row).collect(),
        }
    }

    fn new(designs: &[Contender], columns: impl Iterator<Item = (Column, Vec<Cell>)>) -> Self {
        let row = |contender: &Contender| Row {
            design: contender.name(),
            is_ours: contender.is_ours(),
            is_elsewhere: contender.is_native(),
            cells: Vec::new(),
        };
        let mut figures = Self { columns: Vec::new(), rows: designs.iter().map(row).collect() };
        for (column, cells) in columns {
            figures.columns.push(column);
            figures.rows.iter_mut().zip(cells).for_each(|(row, cell)| row.cells.push(cell));
        }
        figures
    }
}

impl Column {
    fn new(scenario: &Scenario, figure: &Figure) -> Self {
        let Figure { name, title, unit, better, is_detail, .. } = *figure;
        Self { scenario: scenario.name, name, title, unit, better, is_detail }
    }
}

/// Returns the cell of each run for one figure. A run is `None` if its design was not reached.
fn cells(runs: &[Option<&Run>], figure: &Figure) -> Vec<Cell> {
    let here = runs.iter().flatten().filter(|run| !run.contender.is_native());
    let spreads = here.filter_map(|run| Some((run.contender.name(), run.spread(figure.of)?)));
    let best = best_of(spreads, figure.better).filter(|_| figure.better != Better::Neither);
    let best_rounds = best.map_or(0, |(name, _)| {
        let best = runs.iter().flatten().find(|run| run.contender.name() == name);
        best.map_or(0, |run| rounds(run, figure))
    });
    let cell = |run: &Option<&Run>| {
        let spread = run.and_then(|run| run.spread(figure.of));
        let total = run.and_then(|run| (figure.of)(&run.total));
        let times_worse = spread
            .zip(best)
            .and_then(|(mine, (_, best))| times_worse(mine.median, best.median, figure.better));
        let class = match (run, spread, best) {
            (Some(Run { skipped: Some(reason), rounds, .. }), ..) if rounds.is_empty() => {
                Class::NotRun(reason.clone())
            }
            (None, ..) | (_, None, _) => Class::NotMeasured,
            (Some(run), ..) if run.contender.is_native() => Class::Elsewhere,
            (_, _, None) => Class::NotCompared,
            (Some(run), ..) if rounds(run, figure).min(best_rounds) < LEAST_ROUNDS => Class::TooFew,
            (Some(run), _, Some((name, _))) if run.contender.name() == name => Class::Best,
            (_, Some(mine), Some((_, best))) => match mine.compared(best) {
                Difference::Level => Class::Level,
                Difference::Unknown => Class::Unknown,
                Difference::Beyond if times_worse.is_some_and(|times| times < MUCH) => Class::Between,
                Difference::Beyond => Class::Worse,
            },
        };
        Cell { spread, total, times_worse, class }
    };
    runs.iter().map(cell).collect()
}

/// Returns the factor by which `mine` is worse than `best`; `None` if it is not a number.
pub(super) fn times_worse(mine: f64, best: f64, better: Better) -> Option<f64> {
    let (high, low) = if better == Better::Higher { (best, mine) } else { (mine, best) };
    match (high, low) {
        (0.0, 0.0) => Some(1.0),
        (_, 0.0) => None,
        _ => Some(high / low),
    }
}

/// Returns the spread with the best median.
pub(super) fn best_of<T>(spreads: impl Iterator<Item = (T, Spread)>, better: Better) -> Option<(T, Spread)> {
    spreads.reduce(|a, b| if (b.1.median < a.1.median) != (better == Better::Higher) { b } else { a })
}

/// Returns the number of rounds that measured a figure.
pub(super) fn rounds(run: &Run, figure: &Figure) -> usize {
    run.rounds.iter().filter_map(figure.of).count()
}
