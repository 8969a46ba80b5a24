//! The run: episodes, operation by operation, until all is done or the model says that something is wrong.

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

/// How long a difference is shrunk, at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often an episode that depends on other threads is tried before it counts as one that does not differ.
const TRIES: usize = 12;

/// Options of the check.
#[derive(Clone, Copy, Debug)]
pub struct Files {
    /// The engine's design.
    pub design: &'static Design,
    /// How many operations.
    pub operations: u64,
    /// All follows from this.
    pub seed: u64,
    /// Where the bytes are; drawn for each episode if this is `None`.
    pub place: Option<Place>,
    /// How many operations an episode has, at most.
    pub episode: u64,
    /// A planted difference, for tests.
    pub plant: Option<FilePlant>,
}

/// A difference, and the operation that showed it.
#[derive(Clone, Debug)]
struct Wrong {
    place: usize,
    what: String,
}

impl Files {
    /// A hundred thousand operations under `design`, from seed 1.
    pub fn new(design: &'static Design) -> Self {
        Self { design, operations: 100_000, seed: 1, place: None, episode: EPISODE, plant: None }
    }

    /// Runs it.
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
        let progress = Progress::new(usize::try_from(episodes).unwrap_or(usize::MAX));
        progress.say("checking files against their model");
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

    /// Whether it differs, in one of a few tries if it depends on other threads.
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

    /// The difference of an episode, shrunk and told.
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
            // Once more with the same size, as long as it helps.
            size = if left_out && size == 1 { 1 } else { size / 2 };
        }
        Ok((best, wrong))
    }
}

/// Whether an answer may be; and if it says that bytes are in the store, whether they are.
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

/// All is read once more, then everything goes, and the store has the bytes.
fn end(model: &mut Model, machine: &mut dyn Subject) -> Result<(), String> {
    model.is_all(&machine.contents()?)?;
    machine.finish()?;
    match machine.stored()? {
        Some(stored) => model.is_stored(&stored, 0..MAPPED_PAGES),
        None => Ok(()),
    }
}
