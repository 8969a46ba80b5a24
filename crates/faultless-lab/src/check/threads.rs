//! `faultless check --threads`: threads do an episode each, in windows of one space, while others fault everywhere.
//!
//! ```text
//!  one space:  …[ window 0 ]…………[ window 1 ]…………[ window 2 ]…   each astride a multiple of 2 MiB
//!                 thread 0        thread 1        thread 2      an episode each, with files of its own
//!                 └───── others load, in all windows and in the children of fork ─────┘
//! ```
//! What a thread's operations give must not depend on the others: each step is compared with the same step of the same
//! episode, done alone in a space of its own before. Which is what the check without threads holds against Linux.

use super::differences::{AGAINST_ALONE, Difference};
use super::draw::Draw;
use super::engine::{Machine, Plant, Subject, balance, end, limits, subject};
use super::generate::{EPISODE, Episode, seed_of};
use super::operation::{FILES, Object, Operation, PAGES};
use super::shrink::shrink;
use super::step::{Outcome, Step};
use super::summary::{Found, From, SCHEMA, Summary, list};
use super::touch::touch;
use crate::designs::{Design, Visitor};
use crate::progress::Progress;
use crate::trouble::Trouble;
use faultless::design::LockingDesign;
use faultless::{AddressSpace, Engine};
use faultless_soft::Soft;
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

/// From one window to the next: the upper half of one and the lower half of the next have a leaf table in common.
pub const STRIDE: u64 = 2 << 20;
/// Threads there can be: the machine has memory for all of their children.
pub const MOST: usize = 32;
/// So long all of them together may do nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the one that waits for them looks.
const LOOK: Duration = Duration::from_millis(50);
/// So long reads may go on when the last space has gone.
const READS: Duration = Duration::from_secs(10);
/// Operations that a report shows, at most.
const LAST: usize = 24;
/// An episode's forks are so deep at most.
const CHILDREN: u64 = 2;

/// Options of the check.
#[derive(Clone, Copy, Debug)]
pub struct Together {
    /// The engine's design.
    pub design: &'static Design,
    /// How many threads do operations: 1 to 32.
    pub threads: usize,
    /// How many operations they do, all of them together.
    pub operations: u64,
    /// What all follows from, but who comes first.
    pub seed: u64,
    /// Whether to leave alone where alike neighbours are cut.
    pub merged: bool,
    /// How long all of them together may do nothing.
    pub patience: Duration,
    /// A planted difference, for tests: in what the first thread does among the others.
    pub plant: Option<Plant>,
}

/// What a thread is to do, and what it is to give.
#[derive(Clone)]
struct Part {
    episode: Arc<Episode>,
    alone: Arc<[Step]>,
}

/// What the threads of a round share.
pub struct Round<D: LockingDesign> {
    /// Where all windows are.
    pub space: AddressSpace<Soft, D>,
    /// Each thread's children by fork that live now.
    pub children: Vec<Mutex<Vec<AddressSpace<Soft, D>>>>,
    /// Whether a thread's episode has anonymous memory alone. Then a store that changes nothing changes nothing else.
    pub is_anonymous: Vec<bool>,
    /// How many operations each thread has done.
    done: Vec<AtomicUsize>,
    /// Set when all are to stop.
    over: AtomicBool,
}

/// What is wrong.
enum Wrong {
    Step(usize, Difference),
    Rule(String),
}

/// How a round went.
struct Played {
    counts: Summary,
    wrong: Option<Wrong>,
}

impl Together {
    /// A hundred thousand operations under `design`, from seed 1.
    pub fn new(design: &'static Design, threads: usize) -> Self {
        let (operations, patience) = (100_000, PATIENCE);
        Self { design, threads, operations, seed: 1, merged: false, patience, plant: None }
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`Trouble::Cannot`] if there is no memory; [`Trouble::Input`] if the system starts no more threads; [`Trouble::Wrong`] if an
    /// episode breaks the engine without threads.
    pub fn run(&self, interrupted: &AtomicBool) -> Result<Summary, Trouble> {
        let mut summary = Summary {
            schema: SCHEMA,
            design: self.design.name.into(),
            seed: self.seed,
            threads: self.threads,
            ..Summary::default()
        };
        let threads = self.threads as u64;
        let rounds = self.operations.div_ceil(threads * EPISODE);
        let progress = Progress::new(usize::try_from(rounds).unwrap_or(usize::MAX));
        progress.say(&format!("checking {} with {threads} threads", self.design.name));
        let start = Instant::now();
        for number in 0..rounds {
            let seed = seed_of(self.seed, number);
            let left = self.operations - number * threads * EPISODE;
            let parts = self.parts(seed, left.div_ceil(threads).min(EPISODE))?;
            let played = self.design.visit(Play { plan: self, parts: &parts, interrupted })?;
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

    /// The parts of the round of `seed`, each with so many operations, done alone.
    fn parts(&self, seed: u64, length: u64) -> Result<Vec<Part>, Trouble> {
        let part = |thread: usize| {
            // Not the seeds of other rounds.
            let mut episode = Episode::new(seed_of(!seed, thread as u64 + 1), length + length / 4 + 8);
            episode.operations.retain(Operation::is_local);
            let mut left = length;
            episode.operations.retain(|operation| {
                let stays = left > 0;
                left -= u64::from(stays && operation.counts());
                stays
            });
            // A store that changes nothing may make what Linux merges by.
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

    /// What an episode gives in a space of its own.
    fn alone(&self, episode: &Episode) -> Result<Vec<Step>, Trouble> {
        let mut engine = subject(self.design, episode, None).map_err(Trouble::Cannot)?;
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
        let command = format!(
            "faultless check --threads {} --design {} --seed {seed} --ops {operations}{merged}",
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
            let (alone, place) = (self.alone(episode)?, AtPlace { plan: self, thread, episode });
            let there = self.design.visit(place).map_err(Trouble::Cannot)?;
            let differs = alone.into_iter().zip(there).enumerate().find(|(_, (alone, there))| alone != there);
            Ok(differs.map(|(place, (linux, engine))| Difference { place, engine, linux }))
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

/// A space of a machine with memory for so many threads.
fn new_space<D: LockingDesign>(threads: usize) -> Result<AddressSpace<Soft, D>, String> {
    let threads = threads as u64;
    // Every page in every child, the files, and as much again for what is about to be freed.
    let frames = threads * (PAGES * (1 + threads * CHILDREN) + FILES as u64 * PAGES) * 2;
    let host = Soft::new(frames).map_err(|error| error.to_string())?;
    let engine = Engine::new(host, limits()).map_err(|error| error.to_string())?;
    AddressSpace::new(&engine).map_err(|error| error.to_string())
}

/// An episode at a thread's place, and nobody beside it.
struct AtPlace<'a> {
    plan: &'a Together,
    thread: usize,
    episode: &'a Episode,
}

impl Visitor for AtPlace<'_> {
    type Output = Result<Vec<Step>, String>;
    fn visit<D: LockingDesign>(self) -> Self::Output {
        let Self { plan, thread, episode } = self;
        let (offset, plant) = (thread as u64 * STRIDE, plan.plant_of(thread));
        let mut machine = Machine::<D>::beside_others(new_space(1)?, offset, episode, plant)?;
        Ok(episode.operations.iter().map(|operation| machine.step(operation)).collect())
    }
}

/// A round, to be played under a design.
struct Play<'a> {
    plan: &'a Together,
    parts: &'a [Part],
    interrupted: &'a AtomicBool,
}

/// What a thread has to say at its end.
struct Said {
    /// Of one that works.
    counts: Option<Summary>,
    wrong: Option<Wrong>,
}

/// What a thread does.
type Work<D> = Box<dyn FnOnce(&Round<D>) -> Said + Send>;

impl Visitor for Play<'_> {
    type Output = Result<Played, Trouble>;
    fn visit<D: LockingDesign>(self) -> Self::Output {
        let Self { plan, parts, .. } = self;
        let space = new_space::<D>(plan.threads).map_err(Trouble::Cannot)?;
        let mut machines = Vec::new();
        for (thread, part) in parts.iter().enumerate() {
            let (offset, plant) = (thread as u64 * STRIDE, plan.plant_of(thread));
            let machine = Machine::beside_others(space.clone(), offset, &part.episode, plant);
            machines.push(machine.map_err(Trouble::Cannot)?);
        }
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
                // Nobody hears when all has been given up.
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
        // Those who hang keep what they have.
        if are_back {
            for thread in threads {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            played.wrong = played.wrong.or_else(|| close(round).err().map(Wrong::Rule));
        }
        Ok(played)
    }
}

impl Play<'_> {
    /// Waits for all threads, and says whether they have come. The first that is wrong is told.
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
        let mut said = format!("nothing has been done for {:?}", self.plan.patience);
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
            wrong = Some(Wrong::Step(thread, Difference { place, engine: step, linux: alone.clone() }));
            break;
        }
        counts.count(operation, step.0.class());
    }
    machine.children().iter().for_each(AddressSpace::exit);
    publish(Vec::new());
    Said { counts: Some(counts), wrong }
}

/// Ends a round whose threads are gone: the engine's own account has to be even.
fn close<D: LockingDesign>(round: Arc<Round<D>>) -> Result<(), String> {
    let Some(round) = Arc::into_inner(round) else {
        return Err("a thread has not let go of its space".into());
    };
    let engine = round.space.engine().clone();
    end(round.space)?;
    // What is read ahead nobody waits for.
    let start = Instant::now();
    loop {
        match balance(&engine) {
            Err(_) if start.elapsed() < READS => thread::sleep(Duration::from_millis(1)),
            balance => return balance,
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a thread panicked: {}", text.unwrap_or("it does not say why"))
}
