//! The comparison of designs in one figure of a scenario: with each other, and with the noise between twins.
//!
//! Twins are designs that run the same code in the scenario ([`Contender::is_twin_of`]). A difference between them can
//! only be noise: other load of the machine, or the places of code and data in memory. The second kind is the same in
//! every round of a run. No interval over the rounds shows it, and twins do.

use crate::compare::Run;
use crate::contender::Contender;
use crate::interval::{Difference, Interval};
use crate::measure::Spread;
use crate::scenarios::{Better, Figure};

/// The runs of one scenario in one figure.
#[derive(Debug)]
pub struct Comparison<'a> {
    figure: Figure,
    /// The best run of those on the software machine; `None` if none has the figure, or if no direction is better.
    pub best: Option<&'a Run>,
    /// The greatest ratio between the figures of two twins; `None` if there are no twins that have the figure.
    pub noise: Option<f64>,
}

/// The result of the comparison of two runs.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// The factor by which the first run is worse, by pairs of rounds: above 1 if it is worse. For a figure without a
    /// better direction, the factor by which it is higher.
    pub worse: Interval,
    /// The result.
    pub difference: Difference,
}

impl<'a> Comparison<'a> {
    /// Creates the comparison of `runs` of one scenario.
    pub fn new(runs: &[&'a Run], figure: &Figure) -> Self {
        let here = runs.iter().copied().filter(|run| !run.contender.is_native());
        let spreads = here.filter_map(|run| Some((run, run.spread(figure)?)));
        let best = best_of(spreads, figure.better).filter(|_| figure.better != Better::Neither);
        Self { figure: *figure, best: best.map(|(run, _)| run), noise: noise(runs, figure) }
    }

    /// Compares two runs. Returns `None` if no round has the figure under both.
    pub fn of(&self, one: &Run, other: &Run) -> Option<Compared> {
        let interval = one.against(other, &self.figure)?;
        let worse = if self.figure.better == Better::Higher { interval.inverse() } else { interval };
        Some(Compared { worse, difference: worse.difference(self.noise) })
    }

    /// Compares a run with the best one. Returns `None` if there is no best one, or if the run does not have the figure.
    pub fn with_best(&self, run: &Run) -> Option<Compared> {
        self.of(run, self.best?)
    }
}

/// Returns the groups of runs that are twins of each other. A run without rounds, or without a twin, is in no group.
pub fn twins<'a>(runs: &[&'a Run]) -> Vec<Vec<&'a Run>> {
    let mut groups: Vec<Vec<&Run>> = Vec::new();
    for run in runs.iter().copied().filter(|run| !run.rounds.is_empty()) {
        let is_twin = |other: &Contender| run.contender.is_twin_of(other, run.scenario.does_io);
        match groups.iter_mut().find(|group| is_twin(&group[0].contender)) {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

/// Returns the greatest ratio between the figures of two twins, by pairs of rounds; `None` if no two twins have it.
fn noise(runs: &[&Run], figure: &Figure) -> Option<f64> {
    let mut noise = None;
    for group in twins(runs) {
        for (at, one) in group.iter().enumerate() {
            for other in &group[at + 1..] {
                let Some(ratio) = one.ratio_to(other, figure) else { continue };
                let times = ratio.max(1.0 / ratio);
                noise = Some(noise.map_or(times, |noise: f64| noise.max(times)));
            }
        }
    }
    noise
}

/// Returns whether more rounds of `runs` would tell little more: each design is compared precisely enough with the best
/// one, in each figure by which designs are compared. Never if there is nothing to compare.
pub fn is_settled(runs: &[&Run]) -> bool {
    let Some(scenario) = runs.first().map(|run| run.scenario) else { return false };
    let mut compared = 0;
    for figure in scenario.all_figures().filter(|figure| figure.better != Better::Neither) {
        let comparison = Comparison::new(runs, figure);
        let Some(best) = comparison.best else { continue };
        for run in runs
            .iter()
            .filter(|run| !run.contender.is_native() && run.contender.name() != best.contender.name())
        {
            match comparison.with_best(run) {
                Some(Compared { worse, .. }) if worse.is_settled() => compared += 1,
                Some(_) => return false,
                None => {}
            }
        }
    }
    compared != 0
}

/// Returns the spread with the best median.
pub fn best_of<T>(spreads: impl Iterator<Item = (T, Spread)>, better: Better) -> Option<(T, Spread)> {
    spreads.reduce(|a, b| if (b.1.median < a.1.median) != (better == Better::Higher) { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::view::tests::run;

    #[test]
    fn twins_are_grouped_and_a_design_that_did_not_run_is_none() {
        let designs = ["vma-lock", "vma-lock-retry", "vma-lock-retry-uptodate", "native", "faultless"];
        let mut runs: Vec<Run> = designs.iter().map(|design| run(design, &[100; 5], 0)).collect();
        let groups = |runs: &[Run]| {
            let runs: Vec<&Run> = runs.iter().collect();
            let groups = twins(&runs);
            let names = |group: &Vec<&Run>| group.iter().map(|run| run.contender.name()).collect::<Vec<_>>();
            groups.iter().map(names).collect::<Vec<_>>()
        };
        assert_eq!(groups(&runs), [["vma-lock-retry", "vma-lock-retry-uptodate"]]);
        runs[1].rounds.clear();
        assert!(groups(&runs).is_empty());
    }

    #[test]
    fn a_scenario_is_settled_if_each_design_is_compared_precisely_with_the_best() {
        let settled = |runs: &[Run]| is_settled(&runs.iter().collect::<Vec<_>>());
        let (best, other) = (run("mmap-lock", &[100; 5], 0), run("vma-lock", &[105; 5], 0));
        assert!(settled(&[best.clone(), other.clone()]));
        // A wide interval.
        let wide = run("vma-lock-hold", &[90, 120, 150, 110, 130], 0);
        assert!(!settled(&[best.clone(), other.clone(), wide]));
        // A wide interval that is far from 1.
        let far = run("vma-lock-hold", &[900, 1200, 1500, 1100, 1300], 0);
        assert!(settled(&[best.clone(), other.clone(), far]));
        // The kernel is not compared. One design alone is not, either.
        assert!(settled(&[best.clone(), other, run("native", &[1, 9, 100, 1000, 10], 0)]));
        assert!(!settled(std::slice::from_ref(&best)) && !settled(&[]));
        // Too few rounds.
        assert!(!settled(&[best, run("vma-lock", &[105; 4], 0)]));
    }

    #[test]
    fn a_rate_that_is_lower_is_worse() {
        let (many, few) = (run("mmap-lock", &[100; 5], 0), run("vma-lock", &[100; 5], 0));
        let rate = Figure::rate("rate", "rate", |m| Some(m.seconds));
        let few = Run {
            rounds: few
                .rounds
                .into_iter()
                .map(|mut round| {
                    round.measured.seconds = 0.5;
                    round
                })
                .collect(),
            ..few
        };
        let comparison = Comparison::new(&[&few, &many], &rate);
        assert_eq!(comparison.best.map(|run| run.contender.name()), Some("mmap-lock"));
        let worse = comparison.with_best(&few).unwrap().worse;
        assert!((worse.ratio - 2.0).abs() < 1e-9 && (worse.low - 2.0).abs() < 1e-9, "{worse:?}");
    }
}
