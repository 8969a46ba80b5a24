//! `faultless check --threads`: each thread does an episode in its own window of one space. More threads fault
//! everywhere.
//!
//! ```text
//!  one space:  …[ window 0 ]…………[ window 1 ]…………[ window 2 ]…   each astride a multiple of 2 MiB
//!                 thread 0        thread 1        thread 2      an episode each, with files of its own
//!                 └───── others load, in all windows and in the children of fork ─────┘
//! ```
//! The result of a thread's operations must not depend on the other threads. Each step is compared with the same step
//! of the same episode, done before, alone, in a space of its own. The check without threads compares that one with
//! Linux.

use super::differences::{AGAINST_ALONE, Difference};
use super::draw::Draw;
use super::engine::{Machine, Plant, Subject, balance, end, subject};
use super::generate::{EPISODE, Episode, seed_of};
use super::group::Group;
use super::memory::{Home, Memory, Pressure};
use super::operation::{FILES, Object, Operation, PAGES};
use super::shrink::shrink;
use super::step::{Outcome, Step};
use super::summary::{Found, From, SCHEMA, Summary, list};
use super::touch::touch;
use crate::designs::{Design, Visitor};
use crate::progress::Progress;
use crate::trouble::Trouble;
use faultless::AddressSpace;
use faultless::design::LockingDesign;
use faultless_soft::Soft;
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

/// Distance from one window to the next, in bytes. The upper half of a window and the lower half of the next one share
/// a leaf table.
pub const STRIDE: u64 = 2 << 20;
/// Greatest number of threads. The machine has memory for all of their children.
pub const MOST: usize = 32;
/// Longest time without progress of any thread.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval between two looks at the progress.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for reads after the last space is gone.
const READS: Duration = Duration::from_secs(10);
/// Greatest number of operations that a report shows.
const LAST: usize = 24;
/// Greatest depth of forks in an episode.
const CHILDREN: u64 = 2;

/// Options of a check with threads.
#[derive(Clone, Copy, Debug)]
pub struct Together {
    /// The engine's design.
    pub design: &'static Design,
    /// The number of threads that do operations: 1 to 32.
    pub threads: usize,
    /// The number of operations of all threads together.
    pub operations: u64,
    /// The seed that determines everything except the order of the threads.
    pub seed: u64,
    /// Whether borders between equal neighbours are ignored.
    pub merged: bool,
    /// The memory of the engine in which the threads work together; `None`: more than it needs.
    pub memory: Option<Memory>,
    /// The longest time without progress of any thread.
    pub patience: Duration,
    /// A planted difference, for tests. It applies to the first thread, when it works among others.
    pub plant: Option<Plant>,
}

/// Episode of a thread, with the expected steps.
#[derive(Clone)]
struct Part {
    episode: Arc<Episode>,
    alone: Arc<[Step]>,
}

/// State that the threads of a round share.
pub struct Round<D: LockingDesign> {
    /// The space with all windows.
    pub space: AddressSpace<Soft, D>,
    /// The living children of fork of each thread.
    pub children: Vec<Mutex<Vec<AddressSpace<Soft, D>>>>,
    /// For each thread, whether its episode has only private anonymous memory. Then others may store unchanged values
    /// there.
    pub is_anonymous: Vec<bool>,
    /// The number of operations that each thread has done.
    done: Vec<AtomicUsize>,
    /// Set when all threads are to stop.
    over: AtomicBool,
}

/// Error that a round has found.
enum Wrong {
    Step(usize, Difference),
    Rule(String),
}

/// Result of a round.
struct Played {
    counts: Summary,
    wrong: Option<Wrong>,
}

impl Together {
    /// Returns a plan of 100,000 operations under `design`, with seed 1.
    pub fn new(design: &'static Design, threads: usize) -> Self {
        let (operations, patience) = (100_000, PATIENCE);
        Self { design, threads, operations, seed: 1, merged: false, memory: None, patience, plant: None }
    }

    /// Runs the check.
    ///
    /// # Errors
    /// [`Trouble::Cannot`] if there is no memory; [`Trouble::Input`] if the system starts no more threads;
    /// [`Trouble::Wrong`] if an episode breaks the engine without threads.
    pub fn run(&self, interrupted: &AtomicBool) -> Result<Summary, Trouble> {
        let mut summary = Summary {
            schema: SCHEMA,
            design: self.design.name.into(),
            seed: self.seed,
            threads: self.threads,
            pressure: self.memory.map(Pressure::new),
            ..Summary::default()
        };
        let threads = self.threads as u64;
        let rounds = self.operations.div_ceil(threads * EPISODE);
        let progress = Progress::new(
            usize::try_from(rounds).unwrap_or(usize::MAX),
            &format!("checking {} with {threads} threads", self.design.name),
        );
        let start = Instant::now();
        for number in 0..rounds {
            let seed = seed_of(self.seed, number);
            let left = self.operations - number * threads * EPISODE;
            let parts = self.parts(seed, left.div_ceil(threads).min(EPISODE))?;
            let pressure = summary.pressure.as_mut();
            let played =
                self.design.visit(Play { plan: self, seed, parts: &parts, pressure, interrupted })?;
            summary.add(played.counts);
            if let Some(wrong) = played.wrong {
                progress.say("shrinking a difference");
                summary.seconds = start.elapsed().as_secs_f64();
                summary.difference = Some(self.found(seed, &parts, wrong, interrupted)?);
                return Ok(summary);
            }
            if interrupted.load(Ordering::Relaxed) {
                summary.interrupted = true;
                break;
            }
            summary.episodes += threads;
            progress.step();
        }
        summary.seconds = start.elapsed().as_secs_f64();
        Ok(summary)
    }

    /// Returns the parts of the round of `seed`, each with `length` operations, with their expected steps.
    fn parts(&self, seed: u64, length: u64) -> Result<Vec<Part>, Trouble> {
        let part = |thread: usize| {
            // These seeds differ from the seeds of other rounds.
            let mut episode = Episode::new(seed_of(!seed, thread as u64 + 1), length + length / 4 + 8);
            episode.operations.retain(Operation::is_local);
            let mut left = length;
            episode.operations.retain(|operation| {
                let stays = left > 0;
                left -= u64::from(stays && operation.counts());
                stays
            });
            // A store of an unchanged value by another thread may create state that decides whether Linux merges
            // mappings.
            episode.merged = self.merged || is_anonymous(&episode);
            Ok(Part { alone: self.alone(&episode)?.into(), episode: episode.into() })
        };
        thread::scope(|scope| {
            let start = |thread| Builder::new().spawn_scoped(scope, move || part(thread));
            let threads: Vec<_> =
                (0..self.threads).map(start).collect::<Result<_, _>>().map_err(Trouble::no_thread)?;
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        })
    }

    /// Returns the steps of an episode in a space of its own.
    fn alone(&self, episode: &Episode) -> Result<Vec<Step>, Trouble> {
        let mut engine = subject(self.design, episode, None, None).map_err(Trouble::Cannot)?;
        let steps: Vec<Step> = episode.operations.iter().map(|operation| engine.step(operation)).collect();
        let broken = steps.iter().find_map(|step| match &step.0 {
            Outcome::Broken(what) => Some(what.clone()),
            _ => None,
        });
        match broken.map_or_else(|| engine.finish(), Err) {
            Ok(()) => Ok(steps),
            Err(what) => Err(Trouble::Wrong(format!(
                "the engine alone, under {}, by the operations of seed {}: {what}",
                self.design.name, episode.seed
            ))),
        }
    }

    fn found(
        &self,
        seed: u64,
        parts: &[Part],
        wrong: Wrong,
        interrupted: &AtomicBool,
    ) -> Result<Found, Trouble> {
        let counted = |part: &Part| part.episode.operations.iter().filter(|o| o.counts()).count() as u64;
        let operations = parts.iter().map(counted).sum();
        let merged = if self.merged { " --merged" } else { "" };
        let memory = self.memory.map_or(String::new(), |memory| format!(" --memory {memory}"));
        let command = format!(
            "faultless check --threads {} --design {} --seed {seed} --ops {operations}{merged}{memory}",
            self.threads, self.design.name
        );
        let (thread, difference) = match wrong {
            Wrong::Step(thread, difference) => (thread, difference),
            Wrong::Rule(what) => {
                let (from, list, said) = (From::Rules, Vec::new(), vec![what]);
                return Ok(Found { from, seed, operations, list, said, command });
            }
        };
        let episode = &*parts[thread].episode;
        let mut again = |episode: &Episode| {
            let alone = self.alone(episode)?;
            self.design
                .visit(AtPlace { plan: self, seed, thread, episode, alone: &alone })
                .map_err(Trouble::Cannot)
        };
        let (from, list, difference) = match again(episode)? {
            Some(difference) => {
                let (episode, difference) = shrink(episode.clone(), difference, interrupted, &mut again)?;
                (From::Place { thread }, list(&episode, difference.place), difference)
            }
            None => {
                let mut list = list(episode, difference.place);
                list.drain(..list.len().saturating_sub(LAST));
                let done = difference.place + 1;
                (From::Alone { thread, seed: episode.seed, done }, list, difference)
            }
        };
        let said = difference.lines(AGAINST_ALONE);
        Ok(Found { from, seed, operations, list, said, command })
    }

    fn plant_of(&self, thread: usize) -> Option<Plant> {
        self.plant.filter(|_| thread == 0)
    }
}

fn is_anonymous(episode: &Episode) -> bool {
    episode.operations.iter().all(|operation| match operation {
        Operation::Map { object, .. } => *object == Object::ZEROS,
        _ => true,
    })
}

/// Returns a space of a machine with memory for so many threads. `seed` determines the reason why memory is short.
fn new_space<D: LockingDesign>(threads: usize, memory: Option<Memory>, seed: u64) -> Result<Home<D>, String> {
    let threads = threads as u64;
    // This is enough for every page in every child and for the files, twice: pages that are about to be freed still
    // count.
    let frames = threads * (PAGES * (1 + threads * CHILDREN) + FILES as u64 * PAGES) * 2;
    // Half as many threads more touch pages.
    let memory = memory.map(|memory| memory.for_threads(threads + threads / 2));
    Home::new(frames, memory, seed)
}

/// Episode at a thread's place, without other threads.
struct AtPlace<'a> {
    plan: &'a Together,
    /// The seed of the round.
    seed: u64,
    thread: usize,
    episode: &'a Episode,
    /// The steps at the first window.
    alone: &'a [Step],
}

impl Visitor for AtPlace<'_> {
    type Output = Result<Option<Difference>, String>;
    fn visit<D: LockingDesign>(self) -> Self::Output {
        let Self { plan, seed, thread, episode, alone } = self;
        let (offset, plant) = (thread as u64 * STRIDE, plan.plant_of(thread));
        let home = new_space(1, plan.memory, seed)?;
        let mut machine = Machine::<D>::beside_others(home, offset, episode, plant)?;
        for (place, (operation, alone)) in episode.operations.iter().zip(alone).enumerate() {
            let engine = machine.step(operation);
            if engine == *alone {
                continue;
            }
            let is_known = machine.allowed(operation, &engine, alone).is_some();
            return Ok((!is_known).then(|| Difference { place, engine, linux: alone.clone() }));
        }
        Ok(None)
    }
}

/// Round that can be run under any design.
struct Play<'a> {
    plan: &'a Together,
    /// The seed of the round.
    seed: u64,
    parts: &'a [Part],
    pressure: Option<&'a mut Pressure>,
    interrupted: &'a AtomicBool,
}

/// Report of a thread at its end.
struct Said {
    /// The counts of a thread that does an episode; `None` for others.
    counts: Option<Summary>,
    wrong: Option<Wrong>,
}

/// Body of a thread.
type Work<D> = Box<dyn FnOnce(&Round<D>) -> Said + Send>;

impl Visitor for Play<'_> {
    type Output = Result<Played, Trouble>;
    fn visit<D: LockingDesign>(self) -> Self::Output {
        let (plan, parts) = (self.plan, self.parts);
        let home = new_space::<D>(plan.threads, plan.memory, self.seed).map_err(Trouble::Cannot)?;
        let mut machines = Vec::new();
        for (thread, part) in parts.iter().enumerate() {
            let (offset, plant) = (thread as u64 * STRIDE, plan.plant_of(thread));
            let machine = Machine::beside_others(home.clone(), offset, &part.episode, plant);
            machines.push(machine.map_err(Trouble::Cannot)?);
        }
        let Home { space, group } = home;
        let round = Arc::new(Round {
            space,
            children: parts.iter().map(|_| Mutex::default()).collect(),
            is_anonymous: parts.iter().map(|part| is_anonymous(&part.episode)).collect(),
            done: parts.iter().map(|_| AtomicUsize::new(0)).collect(),
            over: AtomicBool::new(false),
        });
        let (say, hear) = channel();
        let mut threads = Vec::new();
        let start = |work: Work<D>| -> io::Result<()> {
            let (round, say) = (round.clone(), say.clone());
            let run = move || {
                let said = catch_unwind(AssertUnwindSafe(|| work(&round)));
                // If the round was given up, nothing receives this.
                let _ = say.send(said.unwrap_or_else(|panic| {
                    let wrong = Some(Wrong::Rule(text_of(&*panic)));
                    Said { counts: None, wrong }
                }));
            };
            threads.push(Builder::new().spawn(run)?);
            Ok(())
        };
        let workers = machines.into_iter().zip(parts).enumerate().map(|(thread, (machine, part))| {
            let part = part.clone();
            Box::new(move |round: &Round<D>| work(round, thread, machine, &part)) as Work<D>
        });
        let touchers = parts.iter().step_by(2).map(|part| {
            let mut draw = Draw::new(part.episode.seed);
            Box::new(move |round: &Round<D>| {
                while !round.over.load(Ordering::Relaxed) {
                    touch(round, &mut draw);
                }
                Said { counts: None, wrong: None }
            }) as Work<D>
        });
        if let Err(error) = workers.chain(touchers).try_for_each(start) {
            round.over.store(true, Ordering::Relaxed);
            for thread in threads {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            return Err(Trouble::no_thread(error));
        }
        let (mut played, are_back) = self.wait(&round, &hear, threads.len());
        if let Some(pressure) = self.pressure {
            pressure.add(round.space.engine(), group.as_ref());
        }
        // Threads that hang keep their resources.
        if are_back {
            for thread in threads {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            played.wrong = played.wrong.or_else(|| close(round, group.as_ref()).err().map(Wrong::Rule));
        }
        Ok(played)
    }
}

impl Play<'_> {
    /// Waits for all threads. Returns the result, with the first error, and whether all threads have ended.
    fn wait<D: LockingDesign>(
        &self,
        round: &Round<D>,
        hear: &Receiver<Said>,
        mut left: usize,
    ) -> (Played, bool) {
        let mut played = Played { counts: Summary::default(), wrong: None };
        let mut working = self.parts.len();
        let (mut done, mut since) = (0, Instant::now());
        while left > 0 {
            let now = round.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
            if done != now {
                (done, since) = (now, Instant::now());
            }
            match hear.recv_timeout(LOOK) {
                Ok(said) => {
                    (left, since) = (left - 1, Instant::now());
                    played.wrong = played.wrong.or(said.wrong);
                    if let Some(counted) = said.counts {
                        working -= 1;
                        played.counts.add(counted);
                    }
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() < self.plan.patience => {}
                Err(_) => {
                    played.wrong = played.wrong.or_else(|| Some(Wrong::Rule(self.who_hangs(round))));
                    return (played, false);
                }
            }
            if working == 0 || played.wrong.is_some() || self.interrupted.load(Ordering::Relaxed) {
                round.over.store(true, Ordering::Relaxed);
            }
        }
        (played, true)
    }

    fn who_hangs<D: LockingDesign>(&self, round: &Round<D>) -> String {
        let mut said = format!("no thread has made progress for {:?}", self.plan.patience);
        for (thread, (part, done)) in self.parts.iter().zip(&round.done).enumerate() {
            if let Some(operation) = part.episode.operations.get(done.load(Ordering::Relaxed)) {
                said += &format!("; thread {thread} is at {operation}");
            }
        }
        said
    }
}

/// Does a thread's part.
fn work<D: LockingDesign>(round: &Round<D>, thread: usize, mut machine: Machine<D>, part: &Part) -> Said {
    let (mut counts, mut wrong) = (Summary::default(), None);
    let publish = |children| {
        *round.children[thread].lock().unwrap_or_else(PoisonError::into_inner) = children;
    };
    for (place, (operation, alone)) in part.episode.operations.iter().zip(&*part.alone).enumerate() {
        if round.over.load(Ordering::Relaxed) {
            break;
        }
        let step = machine.step(operation);
        round.done[thread].store(place + 1, Ordering::Relaxed);
        if matches!(operation, Operation::Fork | Operation::Exit) {
            publish(machine.children());
        }
        if step != *alone {
            if let Some(known) = machine.allowed(operation, &step, alone) {
                *counts.known.entry(known.name.into()).or_default() += 1;
                break;
            }
            wrong = Some(Wrong::Step(thread, Difference { place, engine: step, linux: alone.clone() }));
            break;
        }
        counts.count(operation, step.0.class());
    }
    machine.children().iter().for_each(AddressSpace::exit);
    publish(Vec::new());
    Said { counts: Some(counts), wrong }
}

/// Ends a round after its threads, and checks the engine's own accounts.
fn close<D: LockingDesign>(round: Arc<Round<D>>, group: Option<&Group>) -> Result<(), String> {
    let Some(round) = Arc::into_inner(round) else {
        return Err("a thread has not released its space".into());
    };
    let engine = round.space.engine().clone();
    end(round.space)?;
    // Reads ahead may still be running, because no thread waits for them.
    let start = Instant::now();
    loop {
        match balance(&engine, group) {
            Err(_) if start.elapsed() < READS => thread::sleep(Duration::from_millis(1)),
            balance => return balance,
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a thread panicked: {}", text.unwrap_or("no message"))
}
