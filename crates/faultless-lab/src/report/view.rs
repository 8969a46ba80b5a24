//! The contents of a report, as plain data: no width, no colour, no layout. The text report and the HTML report draw
//! it.
//!
//! It consists of the scenarios' [`Figure`](crate::scenarios::Figure)s, and does not depend on any scenario.

mod figures;
mod scenario;
#[cfg(test)]
pub(crate) mod tests;
mod tour;
mod verdict;
mod waits;

pub use figures::{Cell, Class, Column, Figures, Row};
pub use scenario::ScenarioView;
pub use tour::{Closer, TourView};
pub use verdict::{Kind, Verdict};
pub use waits::{Wait, Waits};

use crate::compare::{Outcome, Plan, Run};

/// The whole contents of a report.
#[derive(Clone, Debug)]
pub struct View {
    /// The summary of all scenarios, if they were run as a tour.
    pub tour: Option<TourView>,
    /// The scenarios that have results.
    pub scenarios: Vec<ScenarioView>,
    /// Whether Ctrl-C ended the run.
    pub is_interrupted: bool,
}

impl View {
    /// Creates the view of the results of `plan`.
    pub fn new(outcome: &Outcome, plan: &Plan) -> Self {
        let runs = by_scenario(outcome, plan);
        Self {
            tour: (plan.is_tour && !runs.is_empty()).then(|| TourView::new(&runs)),
            scenarios: runs.iter().map(|runs| ScenarioView::new(runs, plan)).collect(),
            is_interrupted: outcome.interrupted,
        }
    }
}

/// Returns the runs of each scenario that has some, in the order of the plan.
fn by_scenario<'a>(outcome: &'a Outcome, plan: &Plan) -> Vec<Vec<&'a Run>> {
    let of_scenario = |name| outcome.runs.iter().filter(move |run| run.scenario.name == name);
    (plan.scenarios.iter())
        .map(|scenario| of_scenario(scenario.name).collect())
        .filter(|runs: &Vec<_>| !runs.is_empty())
        .collect()
}
