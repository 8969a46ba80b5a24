//! Runs the check: episodes on both sides, step by step, until all are done or a difference is found.

use super::differences::{self, AGAINST_LINUX, Difference};
use super::engine::{Plant, subject};
use super::generate::{EPISODE, Episode, seed_of};
use super::link::{Commands, Oracle, PATIENCE};
use super::memory::{Memory, Pressure};
use super::oracle::Request;
use super::shrink::shrink;
use super::step::{Outcome, Step};
use super::summary::{Found, From, SCHEMA, Summary, list};
use crate::designs::Design;
use crate::progress::Progress;
use crate::trouble::Trouble;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Options of a check against Linux.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The engine's design.
    pub design: &'static Design,
    /// The number of operations.
    pub operations: u64,
    /// The seed that determines all operations.
    pub seed: u64,
    /// Whether borders between equal neighbours are ignored.
    pub merged: bool,
    /// The memory of the engine; `None`: more than it needs.
    pub memory: Option<Memory>,
    /// The longest wait for an answer of the oracle.
    pub patience: Duration,
    /// A planted difference, for tests.
    pub plant: Option<Plant>,
}

/// Result of an episode.
enum Ended {
    Same,
    Different(Difference),
    Interrupted,
}

impl Plan {
    /// Returns a plan of 100,000 operations under `design`, with seed 1.
    pub fn new(design: &'static Design) -> Self {
        let (operations, patience) = (100_000, PATIENCE);
        Self { design, operations, seed: 1, merged: false, memory: None, patience, plant: None }
    }

    /// Runs the check, with oracles that `commands` makes.
    ///
    /// # Errors
    /// [`Trouble::Cannot`] if no oracle can be started.
    pub fn run(&self, commands: Commands<'_>, interrupted: &AtomicBool) -> Result<Summary, Trouble> {
        let mut summary = Summary {
            schema: SCHEMA,
            design: self.design.name.into(),
            kernel: kernel(),
            seed: self.seed,
            threads: 1,
            pressure: self.memory.map(Pressure::new),
            ..Summary::default()
        };
        let episodes = self.operations.div_ceil(EPISODE);
        let progress = Progress::new(
            usize::try_from(episodes).unwrap_or(usize::MAX),
            &format!("checking {} against {}", self.design.name, summary.kernel),
        );
        let start = Instant::now();
        let mut oracle = Oracle::start(commands, self.patience)?;
        let ask = |oracle: &Oracle, number: u64| {
            let episode = self.episode(number);
            let request = Request { episode, at_once: false };
            oracle.ask(&request);
            request.episode
        };
        let mut next = (episodes > 0).then(|| ask(&oracle, 0));
        for number in 0..episodes {
            let Some(episode) = next.take() else { break };
            // While the engine runs this episode, the oracle can do the next one.
            next = (number + 1 < episodes).then(|| ask(&oracle, number + 1));
            match self.play(&episode, &mut oracle, Some(&mut summary), interrupted)? {
                Ended::Same => summary.episodes += 1,
                Ended::Interrupted => {
                    summary.interrupted = true;
                    break;
                }
                Ended::Different(difference) => {
                    drop(oracle);
                    progress.say("shrinking a difference");
                    summary.seconds = start.elapsed().as_secs_f64();
                    summary.difference = Some(self.found(&episode, difference, commands, interrupted)?);
                    return Ok(summary);
                }
            }
            progress.step();
        }
        summary.seconds = start.elapsed().as_secs_f64();
        Ok(summary)
    }

    fn episode(&self, number: u64) -> Episode {
        let length = (self.operations - number * EPISODE).min(EPISODE);
        Episode { merged: self.merged, ..Episode::new(seed_of(self.seed, number), length) }
    }

    /// Runs an episode that was already sent to the oracle, and compares the steps.
    fn play(
        &self,
        episode: &Episode,
        oracle: &mut Oracle,
        mut summary: Option<&mut Summary>,
        interrupted: &AtomicBool,
    ) -> Result<Ended, Trouble> {
        let mut engine = subject(self.design, episode, self.plant, self.memory).map_err(Trouble::Cannot)?;
        let mut line = Vec::new();
        for (place, operation) in episode.operations.iter().enumerate() {
            let step = engine.step(operation);
            line.clear();
            serde_json::to_writer(&mut line, &step)
                .map_err(|error| Trouble::Cannot(format!("cannot encode a step: {error}")))?;
            let linux = match oracle.answer() {
                Ok(answer) if answer == line => None,
                Ok(answer) => Some(serde_json::from_slice(answer).unwrap_or_else(|error| {
                    Step(Outcome::Broken(format!("an invalid answer ({error})")), None)
                })),
                Err(lost) => Some(Step(Outcome::Broken(lost), None)),
            };
            if let Some(linux) = linux {
                let known = engine.allowed(operation, &step, &linux);
                let known = known.or_else(|| differences::known(operation, &step, &linux, self.memory));
                match (known, &mut summary) {
                    (Some(known), summary) => {
                        if let Some(summary) = summary {
                            *summary.known.entry(known.name.into()).or_default() += 1;
                            if known.parts_them {
                                let left = episode.operations[place..].iter();
                                summary.left_out +=
                                    left.filter(|operation| operation.counts()).count() as u64;
                            }
                        }
                        if known.parts_them {
                            // If the oracle is lost here, shrinking will find the cause.
                            for after in place + 1..episode.operations.len() {
                                if let Err(lost) = oracle.answer() {
                                    let linux = Step(Outcome::Broken(lost), None);
                                    let difference = Difference { place: after, engine: step, linux };
                                    return Ok(Ended::Different(difference));
                                }
                            }
                            return Ok(Ended::Same);
                        }
                    }
                    (None, _) if interrupted.load(Ordering::Relaxed) => return Ok(Ended::Interrupted),
                    (None, _) => {
                        return Ok(Ended::Different(Difference { place, engine: step, linux }));
                    }
                }
            }
            if let Some(summary) = &mut summary {
                summary.count(operation, step.0.class());
                if interrupted.load(Ordering::Relaxed) {
                    return Ok(Ended::Interrupted);
                }
            }
        }
        if let Some(pressure) = summary.and_then(|summary| summary.pressure.as_mut()) {
            engine.tell_swapped(pressure);
        }
        match engine.finish() {
            Ok(()) => Ok(Ended::Same),
            Err(what) => {
                let place = episode.operations.len() - 1;
                let (engine, linux) = (Step(Outcome::Broken(what), None), Step(Outcome::Done(0), None));
                Ok(Ended::Different(Difference { place, engine, linux }))
            }
        }
    }

    /// Shrinks the difference of an episode and describes it.
    fn found(
        &self,
        episode: &Episode,
        difference: Difference,
        commands: Commands<'_>,
        interrupted: &AtomicBool,
    ) -> Result<Found, Trouble> {
        // If the process died, some answers were lost, so the place of the death is not known.
        let died = matches!(difference.linux.0, Outcome::Broken(_));
        let last = if died { episode.operations.len() } else { difference.place + 1 };
        let upto = episode.operations.iter().take(last);
        let operations = upto.filter(|operation| operation.counts()).count() as u64;
        let mut again = Again { plan: self, commands, oracle: None };
        let (episode, difference) =
            shrink(episode.clone(), difference, interrupted, &mut |episode| again.differs(episode))?;
        Ok(Found {
            from: From::Linux,
            seed: episode.seed,
            operations,
            list: list(&episode, difference.place),
            said: difference.lines(AGAINST_LINUX),
            command: format!(
                "faultless check --design {} --seed {} --ops {operations}{}{}",
                self.design.name,
                episode.seed,
                if self.merged { " --merged" } else { "" },
                self.memory.map_or(String::new(), |memory| format!(" --memory {memory}"))
            ),
        })
    }
}

/// Runs parts of an episode again.
struct Again<'a> {
    plan: &'a Plan,
    commands: Commands<'a>,
    oracle: Option<Oracle>,
}

impl Again<'_> {
    fn differs(&mut self, episode: &Episode) -> Result<Option<Difference>, Trouble> {
        let mut oracle = match self.oracle.take() {
            Some(oracle) => oracle,
            None => Oracle::start(self.commands, self.plan.patience)?,
        };
        let request = Request { episode: episode.clone(), at_once: true };
        oracle.ask(&request);
        match self.plan.play(episode, &mut oracle, None, &AtomicBool::new(false))? {
            // All answers were read, so the oracle can be used again.
            Ended::Same | Ended::Interrupted => {
                self.oracle = Some(oracle);
                Ok(None)
            }
            Ended::Different(difference) => {
                let left = episode.operations.len() - 1 - difference.place;
                if (0..left).all(|_| oracle.answer().is_ok()) {
                    self.oracle = Some(oracle);
                }
                Ok(Some(difference))
            }
        }
    }
}

/// Returns the name and the release of the kernel.
pub fn kernel() -> String {
    let name = rustix::system::uname();
    format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy())
}
