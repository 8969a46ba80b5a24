//! `many-threads` (linux-mm, November 2025, "continue using per-VMA lock when retrying page faults after I/O": Wilcox,
//! "thousands (maybe tens of thousands) of threads"). Two threads map, write and unmap, and write new pages.
//! Meanwhile 1, 100 or 10,000 other threads sleep. Each of those has used the memory once.
//!
//! The scenario shows how much a mechanism with a slot for each thread costs the threads that work. Headline: the
//! time of a fault with 10,000 sleeping threads, divided by that with 1. If the system does not start as many
//! threads, a note gives their number.
//!
//! It cannot show 10,000 threads that work: that would measure the scheduler. It cannot show a kernel's cost of a
//! map-unmap cycle, so designs are not compared by that. The software machine's shootdown looks at the slot of each
//! thread that has ever used it, and holds the design's locks meanwhile. A kernel asks its processors instead
//! (`native` stays flat).

use super::actors::{Round, ended};
use super::figure::{Figure, Unit};
use super::map_unmap::Cycles;
use super::stage::{Phase, Stage, Step};
use super::{Kind, Needs, Play, Scenario, Settings, Turn};
use crate::machine::{Machine, Memory};
use crate::measure::{Latency, Measured};
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "many-threads",
    about: "two threads map, write and unmap, or write new pages, while 1, 100 or 10,000 others sleep",
    source: "linux-mm, Nov 2025 (Wilcox): an application with tens of thousands of threads",
    cannot_show: "map-unmap of a kernel: a kernel's shootdown asks processors, and this one asks each thread's slot, with the design's locks held. Also not 10,000 threads that work",
    headline: Figure::ratio("fault_10000_over_1", "fault with 10,000 threads / with 1", |m| {
        Some(m.quantile_ns("fault_10000", 0.5)? / m.quantile_ns("fault_1", 0.5)?)
    }),
    figures: &[
        Figure::time("fault_1", "fault with 1 thread", Unit::Nanos, |m| m.quantile_ns("fault_1", 0.5)),
        Figure::time("fault_100", "fault with 100 threads", Unit::Nanos, |m| m.quantile_ns("fault_100", 0.5)),
        Figure::time("fault_10000", "fault with 10,000 threads", Unit::Nanos, |m| {
            m.quantile_ns("fault_10000", 0.5)
        }),
        Figure::ratio("map_unmap_10000_over_1", "map-unmap with 10,000 threads / with 1", |m| {
            Some(m.quantile_ns("map_unmap_10000", 0.5)? / m.quantile_ns("map_unmap_1", 0.5)?)
        })
        .shown(),
        Figure::time("map_unmap_1", "map-unmap with 1 thread", Unit::Nanos, |m| {
            m.quantile_ns("map_unmap_1", 0.5)
        })
        .shown(),
        Figure::time("map_unmap_100", "map-unmap with 100 threads", Unit::Nanos, |m| {
            m.quantile_ns("map_unmap_100", 0.5)
        })
        .shown(),
        Figure::time("map_unmap_10000", "map-unmap with 10,000 threads", Unit::Nanos, |m| {
            m.quantile_ns("map_unmap_10000", 0.5)
        })
        .shown(),
    ],
    checked: &[("words_checked", "words read back")],
    missed: &[],
    rates: &[],
    threads: 2,
    work: "each maps, writes, unmaps; the others sleep",
    does_io: false,
    kind: Kind::ManyThreads,
};

/// The number of sleeping threads of each stage. Threads are started once a round and stay for the later stages.
const CROWDS: [usize; 3] = [1, 100, 10_000];
/// The names of each stage's latencies.
const NAMES: [[&str; 2]; 3] =
    [["map_unmap_1", "fault_1"], ["map_unmap_100", "fault_100"], ["map_unmap_10000", "fault_10000"]];
/// The duration of each turn of cycles.
const SLICE: Duration = Duration::from_millis(20);
/// The maximum time to start the threads. After it, the stage runs with those that have started.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The stack of a sleeping thread, in bytes. It calls little, but debug builds have large frames.
const STACK: usize = 256 << 10;
/// The number of sleeping threads that end if the system starts no more, so that other threads can start.
const SPARE: usize = 16;
/// The number of pages that a thread writes in a pass. Their faults are timed together.
const PAGES: u64 = 64;
/// The number of passes of a turn.
const PASSES: usize = 256;

/// The state that all rounds share.
pub(super) struct Prepared {
    threads: usize,
    frames: u64,
}

impl Play for Prepared {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        let threads = settings.threads(&SCENARIO);
        settings.share(threads, 2 * PAGES, 2 * PAGES)?;
        Ok(Self { threads, frames: settings.frames() })
    }

    fn needs(&self) -> Needs {
        Needs { threads: self.threads + CROWDS[2], ..Needs::new(self.frames) }
    }

    fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        let process = machine.process()?;
        let shared = process.map_anonymous(PAGE_SIZE)?;
        process.store(shared, 7)?;
        let round = Round::new(turn, Duration::ZERO);
        let (stage, crowd) = (Stage::new(&round), Crowd::default());
        let mut measured = Measured::default();
        let played = std::thread::scope(|scope| {
            let workers = (0..self.threads)
                .map(|me| {
                    let (stage, round, process) = (&stage, &round, &process);
                    round.spawn(scope, "working", move || {
                        let mut work = Work::new(process, round)?;
                        stage.work(me, |step| work.step(stage, step))?;
                        Ok(work)
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let mut lead = || {
                let mut there = 0;
                for (number, &wanted) in CROWDS.iter().enumerate() {
                    let came = crowd.grow(scope, &round, there, wanted, || process.load(shared))?;
                    there += came;
                    if there < wanted {
                        measured.note(&format!(
                            "{there} threads slept instead of {wanted}: the system refused to start more"
                        ));
                    }
                    if number + 1 == CROWDS.len() {
                        // A lane has room for one stage. The recording is of the one with the most sleeping threads.
                        round.start_recording();
                    }
                    let length = round.length() / CROWDS.len() as u32;
                    let before = machine.statistics();
                    measured.seconds += self.one_stage(&stage, number, length).as_secs_f64();
                    measured.count_since(&before, &machine.statistics());
                }
                measured.count("sleepers", there as u64);
                Ok(())
            };
            let led: Result<(), Trouble> = lead();
            crowd.dismiss(0);
            round.end();
            led?;
            for work in workers.into_iter().filter_map(ended) {
                measured.count("words_checked", work.checked);
                for ((names, cycles), faults) in NAMES.iter().zip(&work.cycles).zip(&work.faults) {
                    cycles.add_to(&mut measured, names[0], self.threads);
                    measured.add_latency(names[1], faults);
                }
            }
            Ok(())
        });
        drop(process);
        round.result(played.map(|()| measured))
    }
}

impl Prepared {
    /// Runs cycles and faults in turns. The first turn of each is a warm-up. Returns the time of all turns.
    fn one_stage(&self, stage: &Stage<'_>, number: usize, length: Duration) -> Duration {
        let all = Phase { active: self.threads, length: SLICE };
        let phases = [2 * number, 2 * number + 1];
        let start = Instant::now();
        let mut passes = 0;
        while passes < 2 || start.elapsed() < length {
            if !phases.iter().all(|phase| stage.step(*phase, all, passes > 0)) {
                break;
            }
            passes += 1;
        }
        start.elapsed()
    }
}

/// The work of a thread.
struct Work<'a, P> {
    process: &'a P,
    round: &'a Round<'a>,
    part: VirtAddr,
    cycles: [Cycles; 3],
    faults: [Latency; 3],
    checked: u64,
}

impl<'a, P: Memory> Work<'a, P> {
    fn new(process: &'a P, round: &'a Round<'a>) -> Result<Self, Trouble> {
        let part = process.map_anonymous(PAGES * PAGE_SIZE)?;
        let (cycles, faults) = Default::default();
        Ok(Self { process, round, part, cycles, faults, checked: 0 })
    }

    fn step(&mut self, stage: &Stage<'_>, step: Step) -> Result<(), Trouble> {
        let number = step.phase / 2;
        if step.phase.is_multiple_of(2) {
            return self.cycles[number].until_over(self.process, self.round, step);
        }
        let at = |page: u64| VirtAddr::new(self.part.get() + page * PAGE_SIZE);
        for pass in 0..PASSES {
            // All threads must have ended the last pass, including the discard of their pages.
            stage.meet(step, 2 * pass + 2);
            let start = Instant::now();
            for page in 0..PAGES {
                self.process.store(at(page), step.number + page)?;
            }
            let time = start.elapsed();
            stage.meet(step, 2 * pass + 3);
            if step.measured {
                self.faults[number].record_batch(time, PAGES);
            }
            let (page, seen) = (PAGES - 1, self.process.load(at(PAGES - 1))?);
            if seen != step.number + page {
                return Err(Trouble::Wrong(format!("wrong word at {}: read {seen}", at(page))));
            }
            self.checked += 1;
            self.process.discard(self.part, PAGES * PAGE_SIZE)?;
        }
        Ok(())
    }
}

/// The threads that sleep.
#[derive(Default)]
struct Crowd {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of threads that have made their access.
    ready: usize,
    /// Threads with this number or a higher one end; `None`: none ends. Zero ends all.
    keep: Option<usize>,
}

impl Crowd {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts threads until there are `wanted`. Each makes one access and sleeps. Returns the number of threads
    /// started, which is lower if the system refuses.
    fn grow<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        round: &'s Round<'s>,
        there: usize,
        wanted: usize,
        access: impl Fn() -> Result<u64, Trouble> + Send + Copy + 's,
    ) -> Result<usize, Trouble> {
        if self.lock().keep.is_some() {
            return Ok(0);
        }
        let start = Instant::now();
        let mut started = there;
        while started < wanted && !round.is_over() && start.elapsed() < PATIENCE {
            let me = started;
            let sleep = move || {
                if let Err(trouble) = access() {
                    round.fail(trouble);
                }
                self.sleep(me);
            };
            if Builder::new().stack_size(STACK).spawn_scoped(scope, sleep).is_err() {
                // The machine and other processes may need some threads.
                started = started.saturating_sub(SPARE).max(there);
                self.dismiss(started);
                break;
            }
            started += 1;
        }
        let mut state = self.lock();
        while state.ready < started && !round.is_over() {
            let wait = self.changed.wait_timeout(state, Duration::from_millis(20));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(started - there)
    }

    fn sleep(&self, me: usize) {
        let mut state = self.lock();
        state.ready += 1;
        while state.keep.is_none_or(|keep| me < keep) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the threads with number `keep` or higher.
    fn dismiss(&self, keep: usize) {
        let mut state = self.lock();
        state.keep = Some(keep);
        self.changed.notify_all();
    }
}
