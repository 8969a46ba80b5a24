//! Runs scenarios under designs, round by round.

use crate::contender::Contender;
use crate::measure::{LEAST_ROUNDS, Measured, Spread};
use crate::progress::Progress;
use crate::record::{self, Recorder, Recording};
use crate::scenarios::{Prepared, Scenario, Settings, Turn};
use crate::trouble::Trouble;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A round takes about so many seconds.
const ROUND: f64 = 1.0;
/// A long run has longer rounds, not more of them.
const MOST_ROUNDS: f64 = 15.0;
/// Without `--seconds`, all of a run together takes at most about this, warm-ups not counted.
const ALL_TOGETHER: f64 = 20.0;
/// The seconds of a tour that are measured. A round takes about 0.2 s more, so that 24 times 3 rounds take about 40 s.
const TOUR: f64 = 26.0;
/// A round of a tour has at least so many seconds, however many designs there are.
const SHORTEST: f64 = 0.25;
/// And one design under one scenario at most this,
const EACH: f64 = 8.0;
/// and at least this, however many there are.
const LEAST: f64 = 1.5;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In this order.
    pub scenarios: Vec<&'static Scenario>,
    /// In this order in reports; each round has an order of its own.
    pub contenders: Vec<Contender>,
    /// For all of them.
    pub settings: Settings,
    /// For each scenario and design; `None`: as long as is pleasant.
    pub seconds: Option<f64>,
    /// Whether one more round of each is recorded.
    pub records: bool,
    /// Whether the report is of all scenarios at a glance: short rounds, and the fewest that have a spread.
    pub is_tour: bool,
}

/// One scenario under one design.
#[derive(Clone, Debug)]
pub struct Run {
    /// The scenario.
    pub scenario: &'static Scenario,
    /// The design.
    pub contender: Contender,
    /// Each round.
    pub rounds: Vec<Measured>,
    /// All rounds together.
    pub total: Measured,
    /// Why it does not run, or not any more.
    pub skipped: Option<String>,
    /// What the threads did in a round of its own, if it was recorded. A native row has none.
    pub recording: Option<Recording>,
}

/// What came of a plan.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Those of which something was measured, and those that cannot run.
    pub runs: Vec<Run>,
    /// Ended by Ctrl-C.
    pub interrupted: bool,
    /// How long each round was to be measured.
    pub round: Duration,
}

impl Run {
    /// A figure of each round that has it.
    pub fn spread(&self, figure: impl Fn(&Measured) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(figure))
    }

    /// The scenario's one figure, over the rounds.
    pub fn headline(&self) -> Option<Spread> {
        self.spread(self.scenario.headline.of)
    }
}

impl Plan {
    /// How many rounds there are for each design, and how long each is.
    pub fn rounds(&self) -> (usize, Duration) {
        let parts = (self.scenarios.len() * self.contenders.len()).max(1);
        let (seconds, least) = match self.seconds {
            Some(seconds) => (seconds, 1.0),
            None if self.is_tour => {
                let round = (TOUR / parts as f64 / LEAST_ROUNDS as f64).clamp(SHORTEST, ROUND);
                return (LEAST_ROUNDS, Duration::from_secs_f64(round));
            }
            None => ((ALL_TOGETHER / parts as f64).clamp(LEAST, EACH), LEAST_ROUNDS as f64),
        };
        let rounds = (seconds / ROUND).round().clamp(least, MOST_ROUNDS);
        (rounds as usize, Duration::from_secs_f64(seconds / rounds))
    }

    /// Runs it. The designs take turns, so that what the machine does besides meets all of them; what a scenario
    /// shares between rounds is made once.
    ///
    /// # Errors
    /// The first [`Trouble`]. [`Trouble::Cannot`] of a design is noted, and ends the run only if no design can.
    pub fn run(&self, interrupted: &AtomicBool) -> Result<Outcome, Trouble> {
        let (rounds, round) = self.rounds();
        let each = rounds + usize::from(self.records);
        let progress = Progress::new(self.scenarios.len() * self.contenders.len() * each);
        let (mut ready, mut runs) = (Vec::new(), Vec::new());
        // One that refuses does so before another one has run for minutes.
        for &scenario in &self.scenarios {
            progress.say(&format!("{}: preparing", scenario.name));
            ready.push(scenario.prepare(&self.settings)?);
        }
        for prepared in ready {
            runs.extend(self.run_prepared(&prepared, &progress, interrupted)?);
        }
        runs.retain(|run: &Run| !run.rounds.is_empty() || run.skipped.is_some());
        let interrupted = interrupted.load(Ordering::Relaxed);
        let nobody_ran = runs.iter().all(|run| run.rounds.is_empty());
        match runs.iter().find_map(|run| Some((run, run.skipped.as_ref()?))) {
            Some((run, reason)) if nobody_ran && !interrupted => Err(Trouble::Cannot(format!(
                "nothing has run: {} under {}: {reason}",
                run.scenario.name,
                run.contender.name()
            ))),
            _ => Ok(Outcome { runs, interrupted, round }),
        }
    }

    /// All rounds of one scenario.
    fn run_prepared(
        &self,
        prepared: &Prepared,
        progress: &Progress,
        interrupted: &AtomicBool,
    ) -> Result<Vec<Run>, Trouble> {
        let ((rounds, length), scenario) = (self.rounds(), prepared.scenario());
        let new = |&contender: &Contender| {
            let (rounds, total) = (Vec::new(), Measured::default());
            Run { scenario, contender, rounds, total, skipped: None, recording: None }
        };
        let mut runs: Vec<Run> = self.contenders.iter().map(new).collect();
        for round in 0..rounds {
            let seed = self.settings.seed.wrapping_add(round as u64);
            for place in order(runs.len(), seed) {
                if interrupted.load(Ordering::Relaxed) {
                    return Ok(runs);
                }
                let run = &mut runs[place];
                let name = run.contender.name();
                progress.say(&format!("{} under {name}, round {} of {rounds}", scenario.name, round + 1));
                let turn = Turn { settings: &self.settings, length, seed, interrupted, recorder: None };
                let measured = match run.skipped {
                    Some(_) => Ok(Measured::default()),
                    None => prepared.round(run.contender, &turn),
                };
                match measured {
                    // Cut short before it began to measure: it says nothing.
                    Ok(measured) if !scenario.is_measured(&measured) => {}
                    // What it has seen is not what a whole round sees.
                    Ok(measured)
                        if interrupted.load(Ordering::Relaxed)
                            && measured.seconds < length.as_secs_f64() / 2.0 => {}
                    Ok(measured) => {
                        run.total.add(&measured);
                        run.rounds.push(measured);
                    }
                    Err(Trouble::Cannot(reason)) => run.skipped = Some(reason),
                    Err(trouble) => return Err(trouble.in_round(scenario.name, name, round + 1)),
                }
                progress.step();
            }
        }
        if self.records {
            self.record(prepared, &mut runs, progress, interrupted)?;
        }
        Ok(runs)
    }

    /// One more round of each that ran in software, recorded. It counts for no figure.
    fn record(
        &self,
        prepared: &Prepared,
        runs: &mut [Run],
        progress: &Progress,
        interrupted: &AtomicBool,
    ) -> Result<(), Trouble> {
        for run in runs {
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
            let (scenario, name) = (prepared.scenario().name, run.contender.name());
            progress.say(&format!("{scenario} under {name}, recorded"));
            if run.contender.is_recorded() && run.skipped.is_none() && !run.rounds.is_empty() {
                let recorder = Arc::new(Recorder::default());
                let (length, seed, recorder_of) = (record::LENGTH, self.settings.seed, Some(&recorder));
                let turn =
                    Turn { settings: &self.settings, length, seed, interrupted, recorder: recorder_of };
                let round = run.rounds.len() + 1;
                prepared
                    .round(run.contender, &turn)
                    .map_err(|trouble| trouble.in_round(scenario, name, round))?;
                run.recording = Some(recorder.finish());
            }
            progress.step();
        }
        Ok(())
    }
}

/// A round's order of so many designs: any of them, so that none always follows the same other one, whose pages and
/// threads it would have to clear away.
fn order(designs: usize, seed: u64) -> Vec<usize> {
    let place_of = |design: &usize| {
        let mut hasher = DefaultHasher::new();
        (seed, *design).hash(&mut hasher);
        hasher.finish()
    };
    let mut order: Vec<usize> = (0..designs).collect();
    order.sort_by_cached_key(place_of);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios;

    fn plan(contenders: usize, seconds: Option<f64>) -> Plan {
        let contenders = Contender::all().into_iter().cycle().take(contenders).collect();
        let (scenarios, settings) = (vec![&scenarios::ALL[0]], Settings::default());
        Plan { scenarios, contenders, settings, seconds, records: false, is_tour: false }
    }

    #[test]
    fn a_run_without_seconds_is_short_and_has_a_spread() {
        assert_eq!(plan(2, None).rounds(), (8, Duration::from_secs(1)));
        for contenders in 1..=13 {
            let (rounds, length) = plan(contenders, None).rounds();
            assert!(rounds >= 3);
            assert!(contenders as f64 * rounds as f64 * length.as_secs_f64() <= ALL_TOGETHER + 1e-6);
        }
        assert_eq!(plan(100, None).rounds(), (3, Duration::from_secs_f64(0.5)));
    }

    #[test]
    fn a_tour_has_as_many_rounds_as_a_spread_takes() {
        let tour = |contenders, scenarios, seconds| {
            let plan = plan(contenders, seconds);
            Plan { scenarios: vec![&scenarios::ALL[0]; scenarios], is_tour: true, ..plan }
        };
        let (rounds, length) = tour(6, 4, None).rounds();
        assert_eq!(rounds, 3);
        let each = length.as_secs_f64() + 0.2;
        assert!((35.0..45.0).contains(&(each * 3.0 * 24.0)), "{each}");
        assert_eq!(tour(1, 1, None).rounds(), (3, Duration::from_secs(1)));
        assert_eq!(tour(13, 4, None).rounds(), (3, Duration::from_secs_f64(SHORTEST)));
        assert_eq!(tour(6, 4, Some(60.0)).rounds(), (15, Duration::from_secs(4)));
    }

    #[test]
    fn long_runs_have_long_rounds() {
        assert_eq!(plan(1, Some(1.0)).rounds(), (1, Duration::from_secs(1)));
        assert_eq!(plan(1, Some(600.0)).rounds(), (15, Duration::from_secs(40)));
    }

    #[test]
    fn no_design_always_follows_the_same_one() {
        assert_eq!(order(5, 7), order(5, 7));
        let mut before = std::collections::BTreeSet::new();
        for seed in 1..=15 {
            let order = order(5, seed);
            before.insert(order.iter().position(|design| *design == 3).map(|at| order[(at + 4) % 5]));
            let mut sorted = order;
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert!(before.len() > 2, "{before:?}");
    }

    #[test]
    fn who_refuses_does_so_before_anybody_runs() {
        let settings = Settings { threads: Some(1), ..Settings::default() };
        let scenarios = ["short-process", "disjoint-change"].map(|name| scenarios::find(name).unwrap());
        let plan = Plan { scenarios: scenarios.into(), settings, ..plan(1, Some(60.0)) };
        let start = std::time::Instant::now();
        assert!(matches!(plan.run(&AtomicBool::new(false)), Err(Trouble::Input(_))));
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn if_nobody_can_run_it_is_said() {
        let native = Contender::Native { syscall: true };
        let plan = Plan { contenders: vec![native], ..plan(0, Some(0.1)) };
        match plan.run(&AtomicBool::new(false)) {
            Err(trouble) => assert!(trouble.to_string().contains("native-syscall"), "{trouble}"),
            // Where the kernel's machine is there, it has run.
            Ok(outcome) => assert!(!outcome.runs[0].rounds.is_empty()),
        }
    }
}
