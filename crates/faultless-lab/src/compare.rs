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

/// The usual duration of a round, in seconds.
const ROUND: f64 = 1.0;
/// The maximum number of rounds. A longer run has longer rounds instead.
const MOST_ROUNDS: f64 = 15.0;
/// The target time of a whole run without `--seconds`, in seconds. Warm-ups are not counted.
const ALL_TOGETHER: f64 = 20.0;
/// The measured time of a tour, in seconds. A round takes about 0.15 s more. 24 runs of 5 rounds therefore take about
/// 43 s.
const TOUR: f64 = 25.0;
/// The number of rounds of a tour. Other load of the machine may disturb one or two of them: the median stays.
const TOUR_ROUNDS: usize = 5;
/// The minimum duration of a round of a tour, in seconds. It is enough for a hundred operations of a bystander.
const SHORTEST: f64 = 0.205;
/// The maximum time of one design under one scenario without `--seconds`, in seconds.
const EACH: f64 = 8.0;
/// The minimum time of one design under one scenario without `--seconds`, in seconds.
const LEAST: f64 = 1.5;

/// The scenarios and contenders to run, with their settings.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The scenarios, in the order of the run.
    pub scenarios: Vec<&'static Scenario>,
    /// The contenders, in the order of reports. Each round has an order of its own.
    pub contenders: Vec<Contender>,
    /// The settings of all runs.
    pub settings: Settings,
    /// The time for each scenario and design, in seconds; `None`: a default that depends on their number.
    pub seconds: Option<f64>,
    /// Whether each run has one more round, which is recorded.
    pub records: bool,
    /// Whether the run is a tour: a summary of several scenarios, with short rounds.
    pub is_tour: bool,
}

/// The results of one scenario under one design.
#[derive(Clone, Debug)]
pub struct Run {
    /// The scenario.
    pub scenario: &'static Scenario,
    /// The design.
    pub contender: Contender,
    /// The measurements of each round.
    pub rounds: Vec<Measured>,
    /// The measurements of all rounds together.
    pub total: Measured,
    /// The reason that it did not run, or stopped running.
    pub skipped: Option<String>,
    /// The recording of an additional round, if one was recorded. A native row has none.
    pub recording: Option<Recording>,
}

/// The results of a plan.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The runs that measured something, and those that cannot run.
    pub runs: Vec<Run>,
    /// Whether Ctrl-C ended the run.
    pub interrupted: bool,
    /// The planned duration of each round.
    pub round: Duration,
}

impl Run {
    /// Returns the spread of a figure over the rounds that have it.
    pub fn spread(&self, figure: impl Fn(&Measured) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(figure))
    }

    /// Returns the spread of the scenario's main figure over the rounds.
    pub fn headline(&self) -> Option<Spread> {
        self.spread(self.scenario.headline.of)
    }
}

impl Plan {
    /// Returns the number of rounds for each design, and the duration of a round.
    pub fn rounds(&self) -> (usize, Duration) {
        let parts = (self.scenarios.len() * self.contenders.len()).max(1);
        let (seconds, least) = match self.seconds {
            Some(seconds) => (seconds, 1.0),
            None if self.is_tour => {
                let round = (TOUR / parts as f64 / TOUR_ROUNDS as f64).clamp(SHORTEST, ROUND);
                return (TOUR_ROUNDS, Duration::from_secs_f64(round));
            }
            None => ((ALL_TOGETHER / parts as f64).clamp(LEAST, EACH), LEAST_ROUNDS as f64),
        };
        let rounds = (seconds / ROUND).round().clamp(least, MOST_ROUNDS);
        (rounds as usize, Duration::from_secs_f64(seconds / rounds))
    }

    /// Runs the plan. The designs take turns, so that other load on the machine affects all of them. The state that a
    /// scenario's rounds share is made once.
    ///
    /// # Errors
    /// The first [`Trouble`]. [`Trouble::Cannot`] of a design is noted. It ends the run only if no design can run.
    pub fn run(&self, interrupted: &AtomicBool) -> Result<Outcome, Trouble> {
        let (rounds, round) = self.rounds();
        let each = rounds + usize::from(self.records);
        let steps = self.scenarios.len() * self.contenders.len() * each;
        let first = self.scenarios.first().map_or("", |scenario| scenario.name);
        let progress = Progress::new(steps, &format!("{first}: preparing"));
        let (mut ready, mut runs) = (Vec::new(), Vec::new());
        // All scenarios are prepared first, so that a scenario that refuses does so before another one has run for
        // minutes.
        for &scenario in &self.scenarios {
            progress.say(&format!("{}: preparing", scenario.name));
            ready.push(scenario.prepare(&self.settings)?);
        }
        if let Some(file) =
            self.settings.file.as_ref().filter(|_| ready.iter().all(|one| one.file().is_none()))
        {
            let file = file.display();
            return Err(Trouble::Input(format!(
                "--file {file}: no scenario of this run maps a file; leave the option out"
            )));
        }
        for prepared in ready {
            runs.extend(self.run_prepared(&prepared, &progress, interrupted)?);
        }
        runs.retain(|run: &Run| !run.rounds.is_empty() || run.skipped.is_some());
        let interrupted = interrupted.load(Ordering::Relaxed);
        let nobody_ran = runs.iter().all(|run| run.rounds.is_empty());
        match runs.iter().find_map(|run| Some((run, run.skipped.as_ref()?))) {
            Some((run, reason)) if nobody_ran && !interrupted => Err(Trouble::Cannot(format!(
                "no round ran: {} under {}: {reason}",
                run.scenario.name,
                run.contender.name()
            ))),
            _ => Ok(Outcome { runs, interrupted, round }),
        }
    }

    /// Runs all rounds of one scenario.
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
                    // The round was cut short before it measured anything.
                    Ok(measured) if !scenario.is_measured(&measured) => {}
                    // The round was cut short. Less than half a round is not comparable with a whole one.
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

    /// Records one more round of each software run that measured something. It does not count for any figure.
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

/// Returns the order of the designs in one round, which `seed` determines. A design may have to clear away pages and
/// threads of its predecessor. The orders differ, so that no design always has the same predecessor.
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
    fn a_tour_has_five_rounds_and_takes_less_than_45_seconds() {
        let tour = |contenders, scenarios, seconds| {
            let plan = plan(contenders, seconds);
            Plan { scenarios: vec![&scenarios::ALL[0]; scenarios], is_tour: true, ..plan }
        };
        let (rounds, length) = tour(6, 4, None).rounds();
        assert_eq!(rounds, 5);
        // A bystander has a p99 that is not its maximum.
        assert!(length.as_secs_f64() * 499.0 > 101.0);
        let each = length.as_secs_f64() + 0.15;
        assert!((35.0..45.0).contains(&(each * 5.0 * 24.0)), "{each}");
        assert_eq!(tour(1, 1, None).rounds(), (5, Duration::from_secs(1)));
        assert_eq!(tour(13, 4, None).rounds(), (5, Duration::from_secs_f64(SHORTEST)));
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
    fn a_scenario_refuses_its_settings_before_any_round() {
        let settings = Settings { threads: Some(1), ..Settings::default() };
        let scenarios = ["short-process", "disjoint-change"].map(|name| scenarios::find(name).unwrap());
        let plan = Plan { scenarios: scenarios.into(), settings, ..plan(1, Some(60.0)) };
        let start = std::time::Instant::now();
        assert!(matches!(plan.run(&AtomicBool::new(false)), Err(Trouble::Input(_))));
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn an_error_names_the_contender_if_none_can_run() {
        let native = Contender::Native { syscall: true };
        let plan = Plan { contenders: vec![native], ..plan(0, Some(0.1)) };
        match plan.run(&AtomicBool::new(false)) {
            Err(trouble) => assert!(trouble.to_string().contains("native-syscall"), "{trouble}"),
            // If the host's kernel can be measured, the run succeeds.
            Ok(outcome) => assert!(!outcome.runs[0].rounds.is_empty()),
        }
    }
}
