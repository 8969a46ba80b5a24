//! Runs scenarios under designs, round by round.

use crate::comparison;
use crate::contender::Contender;
use crate::interval::{self, Interval, LEAST_ROUNDS};
use crate::measure::{Measured, Spread};
use crate::progress::Progress;
use crate::record::{self, Recorder, Recording};
use crate::scenarios::{Figure, Prepared, Scenario, Settings, Turn};
use crate::trouble::Trouble;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The target time of a whole run without `--seconds`, in seconds. Warm-ups are not counted.
const ALL_TOGETHER: f64 = 20.0;
/// The maximum time of one design under one scenario without `--seconds`, in seconds.
const EACH: f64 = 8.0;
/// The minimum time of one design under one scenario without `--seconds`, in seconds.
const LEAST: f64 = 1.5;
/// The maximum duration of a round, in seconds, unless there would be more than [`MOST_ROUNDS`].
const ROUND: f64 = 1.0;
/// The number of rounds into which a short time is divided, if that leaves them [`SHORTEST`].
const ROUNDS: f64 = 8.0;
/// The minimum duration of a round, in seconds, unless less time is given. It is enough for a hundred operations of a
/// bystander.
const SHORTEST: f64 = 0.2;
/// The maximum number of rounds. A longer run has longer rounds instead: the measurements of each round are kept.
const MOST_ROUNDS: f64 = 30.0;
/// The measured time of a tour with [`LEAST_ROUNDS`], in seconds. A round takes about 0.15 s more. 24 runs of 5 rounds
/// therefore take about 43 s.
const TOUR: f64 = 25.0;
/// The time of a tour after which no more rounds are added, with all that it does between rounds.
const TOUR_ENDS: Duration = Duration::from_secs(43);

/// The scenarios and contenders to run, with their settings.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The scenarios, in the order of the run.
    pub scenarios: Vec<&'static Scenario>,
    /// The contenders, in the order of reports. Each round has an order of its own.
    pub contenders: Vec<Contender>,
    /// The settings of all runs.
    pub settings: Settings,
    /// The maximum time for each scenario and design, in seconds; `None`: a default that depends on their number. A
    /// scenario ends earlier if more rounds would tell little more.
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
    /// The rounds that measured something.
    pub rounds: Vec<Round>,
    /// The measurements of all rounds together.
    pub total: Measured,
    /// The reason that it did not run, or stopped running.
    pub skipped: Option<String>,
    /// The recording of an additional round, if one was recorded. A native row has none.
    pub recording: Option<Recording>,
}

/// The measurements of one round.
#[derive(Clone, Debug)]
pub struct Round {
    /// The number of the round, from zero. Rounds of the same number ran one after the other, under each design.
    pub number: usize,
    /// The measurements.
    pub measured: Measured,
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

/// The length and the number of the rounds of each scenario and design.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// The duration of a round.
    pub length: Duration,
    /// The rounds that are run in any case.
    pub least: usize,
    /// The maximum number of rounds. Between the two, rounds are added until more would tell little.
    pub most: usize,
    /// The time for all scenarios together after which no round is added; `None`: no limit but `most`.
    pub ends: Option<Duration>,
}

impl Run {
    /// Returns the values of a figure, each with the number of its round.
    pub fn values(&self, figure: &Figure) -> impl Iterator<Item = (usize, f64)> {
        let of = figure.of;
        self.rounds.iter().filter_map(move |round| Some((round.number, of(&round.measured)?)))
    }

    /// Returns the spread of a figure over the rounds that have it.
    pub fn spread(&self, figure: &Figure) -> Option<Spread> {
        Spread::of(self.values(figure).map(|(_, value)| value))
    }

    /// Returns the spread of the scenario's main figure over the rounds.
    pub fn headline(&self) -> Option<Spread> {
        self.spread(&self.scenario.headline)
    }

    /// Returns the ratio of a figure to that of another run, by pairs of rounds of the same number; `None` if no round
    /// has it under both.
    pub fn against(&self, other: &Self, figure: &Figure) -> Option<Interval> {
        Interval::paired(self.pairs(other, figure))
    }

    /// Returns the ratio of [`Run::against`] without its interval.
    pub fn ratio_to(&self, other: &Self, figure: &Figure) -> Option<f64> {
        interval::paired_ratio(self.pairs(other, figure))
    }

    /// Returns the values of a figure under this run and another one, for each round that has it under both.
    fn pairs(&self, other: &Self, figure: &Figure) -> impl Iterator<Item = (f64, f64)> {
        let theirs: BTreeMap<usize, f64> = other.values(figure).collect();
        self.values(figure).filter_map(move |(number, mine)| Some((mine, *theirs.get(&number)?)))
    }
}

impl Plan {
    /// Returns the length and the number of the rounds of each scenario and design.
    pub fn pace(&self) -> Pace {
        let parts = (self.scenarios.len() * self.contenders.len()).max(1);
        let seconds = match self.seconds {
            Some(seconds) => seconds,
            None if self.is_tour => {
                let length = (TOUR / parts as f64 / LEAST_ROUNDS as f64).clamp(SHORTEST, ROUND);
                return Pace {
                    length: Duration::from_secs_f64(length),
                    least: LEAST_ROUNDS,
                    most: MOST_ROUNDS as usize,
                    ends: Some(TOUR_ENDS),
                };
            }
            None => (ALL_TOGETHER / parts as f64).clamp(LEAST, EACH),
        };
        let most = (seconds / ROUND).max((seconds / SHORTEST).min(ROUNDS)).floor().clamp(1.0, MOST_ROUNDS);
        let (length, most) = (Duration::from_secs_f64(seconds / most), most as usize);
        Pace { length, least: most.min(LEAST_ROUNDS), most, ends: None }
    }

    /// Runs the plan. The designs take turns, so that other load on the machine affects all of them. The state that a
    /// scenario's rounds share is made once.
    ///
    /// # Errors
    /// The first [`Trouble`]. [`Trouble::Cannot`] of a design is noted. It ends the run only if no design can run.
    pub fn run(&self, interrupted: &AtomicBool) -> Result<Outcome, Trouble> {
        let (pace, start) = (self.pace(), Instant::now());
        let each = pace.expected() + usize::from(self.records);
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
        for (at, prepared) in ready.iter().enumerate() {
            // The scenarios share the time that is left.
            let left = (ready.len() - at) as u32;
            let ends = pace.ends.map(|ends| Instant::now() + ends.saturating_sub(start.elapsed()) / left);
            runs.extend(self.run_prepared(prepared, ends, &progress, interrupted)?);
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
            _ => Ok(Outcome { runs, interrupted, round: pace.length }),
        }
    }

    /// Runs all rounds of one scenario. After `ends`, no round is added to those that are run in any case.
    fn run_prepared(
        &self,
        prepared: &Prepared,
        ends: Option<Instant>,
        progress: &Progress,
        interrupted: &AtomicBool,
    ) -> Result<Vec<Run>, Trouble> {
        let (pace, scenario) = (self.pace(), prepared.scenario());
        let length = pace.length;
        let new = |&contender: &Contender| {
            let (rounds, total) = (Vec::new(), Measured::default());
            Run { scenario, contender, rounds, total, skipped: None, recording: None }
        };
        let mut runs: Vec<Run> = self.contenders.iter().map(new).collect();
        for number in 0..pace.most {
            let turn_began = Instant::now();
            if number >= pace.least && comparison::is_settled(&runs.iter().collect::<Vec<_>>()) {
                progress.skip((pace.expected().saturating_sub(number)) * runs.len());
                break;
            }
            let seed = self.settings.seed.wrapping_add(number as u64);
            for place in order(runs.len(), seed) {
                if interrupted.load(Ordering::Relaxed) {
                    return Ok(runs);
                }
                let run = &mut runs[place];
                let name = run.contender.name();
                progress.say(&format!("{} under {name}, round {}", scenario.name, number + 1));
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
                        run.rounds.push(Round { number, measured });
                    }
                    Err(Trouble::Cannot(reason)) => run.skipped = Some(reason),
                    Err(trouble) => return Err(trouble.in_round(scenario.name, name, number + 1)),
                }
                progress.step();
            }
            // A turn that would end too late does not begin. The next one takes as long as this one.
            let is_late = |ends| Instant::now() + turn_began.elapsed() > ends;
            if number + 1 >= pace.least && ends.is_some_and(is_late) {
                break;
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

impl Pace {
    /// Returns the number of rounds that the progress expects.
    fn expected(&self) -> usize {
        if self.ends.is_some() { self.least } else { self.most }
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
    fn a_run_without_seconds_is_short_and_has_rounds_for_a_verdict() {
        let pace = plan(2, None).pace();
        assert_eq!((pace.length, pace.least, pace.most), (Duration::from_secs(1), LEAST_ROUNDS, 8));
        for contenders in 1..=13 {
            let pace = plan(contenders, None).pace();
            assert!(pace.most >= pace.least && pace.least == LEAST_ROUNDS, "{pace:?}");
            let together = contenders as f64 * pace.most as f64 * pace.length.as_secs_f64();
            assert!(together <= ALL_TOGETHER + 1e-6, "{together}");
        }
        let pace = plan(100, None).pace();
        assert!(pace.most == 7 && pace.length.as_secs_f64() >= SHORTEST, "{pace:?}");
    }

    #[test]
    fn a_tour_has_rounds_for_a_verdict_and_takes_less_than_45_seconds() {
        let tour = |contenders, scenarios, seconds| {
            let plan = plan(contenders, seconds);
            Plan { scenarios: vec![&scenarios::ALL[0]; scenarios], is_tour: true, ..plan }.pace()
        };
        let pace = tour(6, 4, None);
        assert_eq!((pace.least, pace.ends), (LEAST_ROUNDS, Some(TOUR_ENDS)));
        // A bystander has a p99 that is not its maximum.
        assert!(pace.length.as_secs_f64() * 499.0 > 101.0);
        let each = pace.length.as_secs_f64() + 0.15;
        assert!((35.0..45.0).contains(&(each * 5.0 * 24.0)), "{each}");
        assert_eq!(tour(1, 1, None).length, Duration::from_secs(1));
        assert_eq!(tour(13, 4, None).length, Duration::from_secs_f64(SHORTEST));
        let asked = tour(6, 4, Some(60.0));
        assert_eq!((asked.most, asked.length, asked.ends), (30, Duration::from_secs(2), None));
    }

    #[test]
    fn a_time_that_is_asked_for_is_divided_into_rounds() {
        let of = |seconds| plan(1, Some(seconds)).pace();
        let (least, most) = (|seconds| of(seconds).least, |seconds| of(seconds).most);
        assert_eq!([0.1, 0.4, 1.0, 1.5, 8.0, 20.0, 600.0].map(most), [1, 2, 5, 7, 8, 20, 30]);
        assert_eq!([0.1, 0.4, 1.0, 1.5, 8.0, 20.0, 600.0].map(least), [1, 2, 5, 5, 5, 5, 5]);
        assert_eq!([0.1, 8.0, 600.0].map(|seconds| of(seconds).length.as_secs_f64()), [0.1, 1.0, 20.0]);
    }

    #[test]
    fn a_run_is_compared_by_rounds_of_the_same_number() {
        let with = |numbers: &[usize], values: &[u64]| {
            let mut run = crate::report::view::tests::run("faultless", values, 0);
            run.rounds.iter_mut().zip(numbers).for_each(|(round, number)| round.number = *number);
            run
        };
        let figure = &scenarios::ALL[0].headline;
        let (a, b) = (with(&[0, 1, 3], &[100, 200, 400]), with(&[1, 2, 3], &[100, 999, 200]));
        let interval = a.against(&b, figure).unwrap();
        assert_eq!(interval.rounds, 2);
        assert!((interval.ratio - 2.0).abs() < 0.01, "{interval:?}");
        assert_eq!(with(&[0], &[100]).against(&with(&[1], &[100]), figure), None);
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
