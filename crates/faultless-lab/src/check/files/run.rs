//! Runs a check of files: episodes, operation by operation, until all are done or the model finds a difference.

use super::super::generate::{EPISODE, seed_of};
use super::super::step::contents;
use super::super::summary::{Found, From, SCHEMA, Summary};
use super::FilePlant;
use super::machine::{Machine, Subject};
use super::model::{Answer, Hits, Model};
use super::operation::{FileEpisode, FileOperation, MAPPED_PAGES, Place};
use crate::designs::{Design, Visitor};
use crate::progress::Progress;
use crate::trouble::Trouble;
use faultless::design::LockingDesign;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest duration of a search for a shorter list.
const PATIENCE: Duration = Duration::from_secs(30);
/// Number of runs of an episode that depends on other threads, before it counts as one without a difference.
const TRIES: usize = 12;

/// Options of a check of files.
#[derive(Clone, Copy, Debug)]
pub struct Files {
    /// The engine's design.
    pub design: &'static Design,
    /// The number of operations.
    pub operations: u64,
    /// The seed that determines all operations.
    pub seed: u64,
    /// The place of the bytes. If `None`, it is drawn for each episode.
    pub place: Option<Place>,
    /// The largest number of operations in an episode.
    pub episode: u64,
    /// A planted difference, for tests.
    pub plant: Option<FilePlant>,
}

/// A difference, with the operation that showed it.
#[derive(Clone, Debug)]
struct Wrong {
    place: usize,
    what: String,
}

impl Files {
    /// Returns a plan of 100,000 operations under `design`, with seed 1.
    pub fn new(design: &'static Design) -> Self {
        Self { design, operations: 100_000, seed: 1, place: None, episode: EPISODE, plant: None }
    }

    /// Runs the check.
    ///
    /// # Errors
    /// [`Trouble::Cannot`] if there is no memory, or no temporary file can be made.
    pub fn run(&self, interrupted: &AtomicBool) -> Result<Summary, Trouble> {
        let mut summary = Summary {
            schema: SCHEMA,
            design: self.design.name.into(),
            seed: self.seed,
            ..Summary::default()
        };
        let episodes = self.operations.div_ceil(self.episode);
        let progress = Progress::new(
            usize::try_from(episodes).unwrap_or(usize::MAX),
            "checking files against their model",
        );
        let start = Instant::now();
        for number in 0..episodes {
            let length = (self.operations - number * self.episode).min(self.episode);
            let episode = FileEpisode::new(seed_of(self.seed, number), length, self.place);
            let wrong = self.play(&episode, Some(&mut summary), interrupted)?;
            if let Some(wrong) = wrong {
                progress.say("shrinking a difference");
                summary.seconds = start.elapsed().as_secs_f64();
                summary.difference = Some(self.found(episode, wrong, interrupted)?);
                return Ok(summary);
            }
            if interrupted.load(Ordering::Relaxed) {
                summary.interrupted = true;
                break;
            }
            summary.episodes += 1;
            progress.step();
        }
        summary.seconds = start.elapsed().as_secs_f64();
        Ok(summary)
    }

    fn play(
        &self,
        episode: &FileEpisode,
        mut summary: Option<&mut Summary>,
        interrupted: &AtomicBool,
    ) -> Result<Option<Wrong>, Trouble> {
        struct New<'a>(&'a FileEpisode, &'a [u8]);
        impl Visitor for New<'_> {
            type Output = Result<Box<dyn Subject>, String>;
            fn visit<D: LockingDesign>(self) -> Self::Output {
                Ok(Box::new(Machine::<D>::new(self.0.seed, &self.0.setting, self.1)?))
            }
        }
        let bytes = contents(episode.seed, 0, episode.setting.length);
        let mut machine = self.design.visit(New(episode, &bytes)).map_err(Trouble::Cannot)?;
        let start =
            if episode.setting.is_scarce { machine.contents().map_err(Trouble::Cannot)? } else { bytes };
        let mut model = Model::new(&start, episode.setting);
        for (place, operation) in episode.operations.iter().enumerate() {
            let (answer, hits) = machine.perform(operation, self.plant);
            if let Err(what) = step(&mut model, &*machine, operation, &answer, hits) {
                return Ok(Some(Wrong { place, what }));
            }
            if let Some(summary) = &mut summary {
                summary.count_as(operation.kind(), operation.counts(), answer.class());
            }
            if interrupted.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        let place = episode.operations.len() - 1;
        let ended = end(&mut model, &mut *machine);
        Ok(ended.err().map(|what| Wrong { place, what: format!("at the end: {what}") }))
    }

    /// Runs an episode again and returns its difference, if any. Tries several times if it depends on other threads.
    fn differs(&self, episode: &FileEpisode) -> Result<Option<Wrong>, Trouble> {
        let tries = match episode.setting.place {
            Place::Memory | Place::Kept => 1,
            Place::Late | Place::Disk => TRIES,
        };
        for _ in 0..tries {
            let wrong = self.play(episode, None, &AtomicBool::new(false))?;
            if wrong.is_some() {
                return Ok(wrong);
            }
        }
        Ok(None)
    }

    /// Shrinks the difference of an episode and describes it.
    fn found(&self, episode: FileEpisode, wrong: Wrong, interrupted: &AtomicBool) -> Result<Found, Trouble> {
        let upto = episode.operations.iter().take(wrong.place + 1);
        let operations = upto.filter(|operation| operation.counts()).count() as u64;
        let start = Instant::now();
        let give_up = || interrupted.load(Ordering::Relaxed) || start.elapsed() > PATIENCE;
        let (episode, wrong) = self.shrink(episode, wrong, &give_up)?;
        let mut list = vec![format!("{:?}", episode.setting)];
        list.extend(episode.operations.iter().take(wrong.place + 1).map(ToString::to_string));
        Ok(Found {
            from: From::Model,
            seed: episode.seed,
            operations,
            list,
            said: vec![wrong.what],
            command: format!(
                "faultless check --files --design {} --seed {} --ops {operations}",
                self.design.name, episode.seed
            ),
        })
    }

    fn shrink(
        &self,
        mut best: FileEpisode,
        mut wrong: Wrong,
        give_up: &dyn Fn() -> bool,
    ) -> Result<(FileEpisode, Wrong), Trouble> {
        best.operations.truncate(wrong.place + 1);
        let mut size = best.operations.len() / 2;
        while size > 0 {
            let (mut from, mut left_out) = (0, false);
            while from < best.operations.len() && best.operations.len() > 1 && !give_up() {
                let mut less = best.clone();
                less.operations.drain(from..(from + size).min(best.operations.len()));
                match if less.operations.is_empty() { None } else { self.differs(&less)? } {
                    Some(other) => {
                        less.operations.truncate(other.place + 1);
                        (best, wrong, left_out) = (less, other, true);
                    }
                    None => from += size,
                }
            }
            if give_up() {
                break;
            }
            // The smallest size is repeated as long as it helps.
            size = if left_out && size == 1 { 1 } else { size / 2 };
        }
        Ok((best, wrong))
    }
}

/// Checks an answer against the model. If the answer means that bytes are in the store, checks the store too.
fn step(
    model: &mut Model,
    machine: &dyn Subject,
    operation: &FileOperation,
    answer: &Answer,
    hits: Hits,
) -> Result<(), String> {
    model.follow(operation, answer, hits)?;
    let pages = match (*operation, answer) {
        (FileOperation::Punch { .. } | FileOperation::Remove { .. }, Answer::Error(_)) => {
            return model.is_unpunched(&machine.contents()?);
        }
        (FileOperation::Sync { .. } | FileOperation::Reopen { .. }, Answer::Done(_)) => 0..MAPPED_PAGES,
        (FileOperation::SyncMapping { page, pages }, Answer::Done(_)) => page..page + pages,
        _ => return Ok(()),
    };
    match machine.stored()? {
        Some(stored) => model.is_stored(&stored, pages),
        None => Ok(()),
    }
}

/// Reads everything once more, drops everything, and checks the bytes of the store.
fn end(model: &mut Model, machine: &mut dyn Subject) -> Result<(), String> {
    model.is_all(&machine.contents()?)?;
    machine.finish()?;
    match machine.stored()? {
        Some(stored) => model.is_stored(&stored, 0..MAPPED_PAGES),
        None => Ok(()),
    }
}
