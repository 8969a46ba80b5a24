//! Runs scenarios under designs, round by round.

use crate::designs::Design;
use crate::measure::{Measured, Spread};
use crate::progress::Progress;
use crate::scenarios::{Scenario, Settings, Turn};
use crate::trouble::Trouble;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A round takes about so many seconds.
const ROUND: f64 = 2.0;
/// A long run has longer rounds, not more of them.
const MOST_ROUNDS: f64 = 15.0;
/// Without `--seconds`, all of a run together takes at most about this.
const ALL_TOGETHER: f64 = 24.0;
/// And one design under one scenario at most this.
const EACH: f64 = 8.0;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In this order.
    pub scenarios: Vec<&'static Scenario>,
    /// In this order in reports; each round begins with another one.
    pub designs: Vec<&'static Design>,
    /// For all of them.
    pub settings: Settings,
    /// For each scenario and design; `None`: as long as is pleasant.
    pub seconds: Option<f64>,
}

/// One scenario under one design.
#[derive(Clone, Debug)]
pub struct Run {
    /// The scenario.
    pub scenario: &'static Scenario,
    /// The design.
    pub design: &'static Design,
    /// Each round.
    pub rounds: Vec<Measured>,
    /// All rounds together.
    pub total: Measured,
}

/// What came of a plan.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Those of which something was measured.
    pub runs: Vec<Run>,
    /// Ended by Ctrl-C.
    pub interrupted: bool,
}

impl Run {
    /// A figure of each round that has it.
    pub fn spread(&self, figure: impl Fn(&Measured) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(figure))
    }

    /// The scenario's one figure, over the rounds.
    pub fn headline(&self) -> Option<Spread> {
        let headline = self.scenario.headline;
        self.spread(|round| round.quantile_us(headline.latency, headline.quantile))
    }
}

impl Plan {
    /// How many rounds there are for each design, and how long each is.
    pub fn rounds(&self) -> (usize, Duration) {
        let parts = (self.scenarios.len() * self.designs.len()).max(1);
        let seconds = self.seconds.unwrap_or(EACH.min(ALL_TOGETHER / parts as f64));
        let rounds = (seconds / ROUND).round().clamp(1.0, MOST_ROUNDS);
        (rounds as usize, Duration::from_secs_f64(seconds / rounds))
    }

    /// Runs it. The designs take turns, so that what the machine does besides meets all of them; what a scenario
    /// shares between rounds is made once.
    ///
    /// # Errors
    /// The first [`Trouble`].
    pub fn run(&self, interrupted: &AtomicBool) -> Result<Outcome, Trouble> {
        let (rounds, length) = self.rounds();
        let is_interrupted = || interrupted.load(Ordering::Relaxed);
        let progress = Progress::new(self.scenarios.len() * self.designs.len() * rounds);
        let mut runs = Vec::new();
        for &scenario in &self.scenarios {
            progress.say(&format!("{}: preparing", scenario.name));
            let prepared = scenario.prepare(&self.settings)?;
            let first = runs.len();
            let total = Measured::default();
            runs.extend(self.designs.iter().map(|&design| {
                let (rounds, total) = (Vec::new(), total.clone());
                Run { scenario, design, rounds, total }
            }));
            for round in 0..rounds {
                for turn in 0..self.designs.len() {
                    if is_interrupted() {
                        break;
                    }
                    let run: &mut Run = &mut runs[first + (round + turn) % self.designs.len()];
                    progress.say(&format!(
                        "{} under {}, round {} of {rounds}",
                        scenario.name,
                        run.design.name,
                        round + 1
                    ));
                    let seed = self.settings.seed.wrapping_add(round as u64);
                    let turn = Turn { settings: &self.settings, length, seed, interrupted };
                    let measured = prepared
                        .round(run.design, &turn)
                        .map_err(|trouble| trouble.in_round(scenario.name, run.design.name, round + 1))?;
                    // Cut short before it began to measure: it says nothing.
                    if measured.seconds > 0.0 && measured.latency.values().any(|latency| latency.count() != 0)
                    {
                        run.total.add(&measured);
                        run.rounds.push(measured);
                    }
                    progress.step();
                }
            }
        }
        runs.retain(|run| !run.rounds.is_empty());
        Ok(Outcome { runs, interrupted: is_interrupted() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{designs, scenarios};

    fn plan(designs: usize, seconds: Option<f64>) -> Plan {
        let settings = Settings {
            threads: 5,
            io_latency: Duration::ZERO,
            queue_depth: None,
            rates: Vec::new(),
            file: None,
            memory: 1 << 28,
            seed: 1,
        };
        let designs = designs::ALL.iter().cycle().take(designs).collect();
        Plan { scenarios: vec![&scenarios::ALL[0]], designs, settings, seconds }
    }

    #[test]
    fn a_run_without_seconds_is_short_however_many_designs() {
        assert_eq!(plan(2, None).rounds(), (4, Duration::from_secs(2)));
        for designs in 1..=12 {
            let (rounds, length) = plan(designs, None).rounds();
            assert!(designs as f64 * rounds as f64 * length.as_secs_f64() <= ALL_TOGETHER + 1e-6);
        }
    }

    #[test]
    fn long_runs_have_long_rounds() {
        assert_eq!(plan(1, Some(1.0)).rounds(), (1, Duration::from_secs(1)));
        assert_eq!(plan(1, Some(600.0)).rounds(), (15, Duration::from_secs(40)));
    }
}
