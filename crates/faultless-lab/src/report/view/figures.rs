//! Compares the figures of designs with the best one.

use crate::compare::Run;
use crate::comparison::{Compared, Comparison};
use crate::contender::Contender;
use crate::interval::{Difference, Doubt, Interval};
use crate::measure::Spread;
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
    /// The greatest ratio between designs that run the same code; `None` if there are none.
    pub noise: Option<f64>,
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
    /// The ratio to the best one of the column, as a factor by which it is worse, by pairs of rounds: 1 for the best
    /// itself. `None` if designs are not compared by the figure.
    pub worse: Option<Interval>,
    /// The result of the comparison with the best.
    pub class: Class,
}

/// The result of comparing a figure with the best one of its column.
#[derive(Clone, Debug, PartialEq)]
pub enum Class {
    /// It is the best.
    Best,
    /// The interval of the ratio contains 1, and is narrow.
    Level,
    /// The interval is wide, or designs that run the same code differ as much. The difference may be chance.
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
        Self::new(&designs, scenario.all_figures().map(|figure| column(scenario, &runs, figure)))
    }

    /// Creates the table of the headlines of several scenarios.
    pub(super) fn of_headlines(scenarios: &[Vec<&Run>]) -> Self {
        let longest = scenarios.iter().map(Vec::as_slice).max_by_key(|runs| runs.len()).unwrap_or(&[]);
        let designs: Vec<Contender> = longest.iter().map(|run| run.contender).collect();
        let columns = scenarios.iter().map(|runs| {
            let of =
                |design: &Contender| runs.iter().copied().find(|run| run.contender.name() == design.name());
            let (scenario, runs) = (runs[0].scenario, designs.iter().map(of).collect::<Vec<_>>());
            column(scenario, &runs, &scenario.headline)
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

impl Cell {
    /// Returns the factor by which the figure is worse than the best; `None` if there is none, or the divisor is zero.
    pub fn times_worse(&self) -> Option<f64> {
        self.worse.map(|worse| worse.ratio).filter(|ratio| ratio.is_finite())
    }
}

/// Returns the column of a figure, with the cell of each run. A run is `None` if its design was not reached.
fn column(scenario: &Scenario, runs: &[Option<&Run>], figure: &Figure) -> (Column, Vec<Cell>) {
    let there: Vec<&Run> = runs.iter().copied().flatten().collect();
    let comparison = Comparison::new(&there, figure);
    let Figure { name, title, unit, better, is_detail, .. } = *figure;
    let noise = comparison.noise;
    let column = Column { scenario: scenario.name, name, title, unit, better, is_detail, noise };
    (column, runs.iter().map(|run| cell(*run, figure, &comparison)).collect())
}

fn cell(run: Option<&Run>, figure: &Figure, comparison: &Comparison<'_>) -> Cell {
    let spread = run.and_then(|run| run.spread(figure));
    let total = run.and_then(|run| (figure.of)(&run.total));
    let compared = run.and_then(|run| comparison.with_best(run));
    let class = match (run, spread, comparison.best) {
        (Some(Run { skipped: Some(reason), rounds, .. }), ..) if rounds.is_empty() => {
            Class::NotRun(reason.clone())
        }
        (None, ..) | (_, None, _) => Class::NotMeasured,
        (Some(run), ..) if run.contender.is_native() => Class::Elsewhere,
        (_, _, None) => Class::NotCompared,
        (Some(run), _, Some(best)) => {
            let is_best = run.contender.name() == best.contender.name();
            compared.map_or(Class::Unknown, |compared| class(compared, is_best))
        }
    };
    Cell { spread, total, worse: compared.map(|compared| compared.worse), class }
}

/// Returns the class of a figure that was compared with the best.
fn class(Compared { worse, difference }: Compared, is_best: bool) -> Class {
    match difference {
        Difference::Unknown(Doubt::FewRounds) => Class::TooFew,
        _ if is_best => Class::Best,
        Difference::Level => Class::Level,
        Difference::Unknown(_) => Class::Unknown,
        // The best by its median is worse by pairs of rounds.
        Difference::Beyond if worse.ratio < 1.0 => Class::Unknown,
        Difference::Beyond if worse.ratio < MUCH => Class::Between,
        Difference::Beyond => Class::Worse,
    }
}
