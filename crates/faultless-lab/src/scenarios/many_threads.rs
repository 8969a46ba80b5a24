//! `many-threads` (linux-mm, November 2025, "continue using per-VMA lock when retrying page faults after I/O": Wilcox,
//! "thousands (maybe tens of thousands) of threads"): two threads map, write and unmap, and write new pages, while 1,
//! 100 and 10,000 others that have used the memory once sleep.
//!
//! Shows what a mechanism with a place for each thread costs those that work. Headline: a fault among 10,000
//! over one among 1. Cannot show 10,000 threads that work: that would be the scheduler's time; nor what a kernel pays for a
//! map-unmap cycle: the software machine's shootdown looks at the slot of each thread that has ever used it, with the design's
//! locks held, where a kernel asks its processors (`native` stays flat). So designs are not compared by that. Where the
//! system does not start as many threads, it is said how many there were.

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
    kind: Kind::ManyThreads,
};

/// How many others there are, one stage after the other: they are started once a round.
const CROWDS: [usize; 3] = [1, 100, 10_000];
/// What the latencies of each stage are called.
const NAMES: [[&str; 2]; 3] =
    [["map_unmap_1", "fault_1"], ["map_unmap_100", "fault_100"], ["map_unmap_10000", "fault_10000"]];
/// How long each turn of cycles is.
const SLICE: Duration = Duration::from_millis(20);
/// Starting them takes no longer; those there are by then have to do.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A sleeper calls little; debug builds have large frames.
const STACK: usize = 256 << 10;
/// Threads that go again where no more can be started, so that others can.
const SPARE: usize = 16;
/// Pages that a thread writes in one go, faults timed together,
const PAGES: u64 = 64;
/// and how often in a turn.
const PASSES: usize = 256;

/// What all rounds share.
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
                        measured
                            .note(&format!("{there} threads slept, not {wanted}: the system starts no more"));
                    }
                    if number + 1 == CROWDS.len() {
                        // A lane has room for one stage: that with the most sleepers.
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
    /// Cycles and faults in turns, the first turn of each to warm up. How long it took.
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

/// A thread that works.
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
            // What a thread touched goes only when nobody touches any more.
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

/// Threads that sleep.
#[derive(Default)]
struct Crowd {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Those who have done their one access.
    ready: usize,
    /// Those from this number on go; all of them in the end.
    keep: Option<usize>,
}

impl Crowd {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts threads until there are `wanted`; each makes one access. How many came: fewer where the system refuses.
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
                // The machine, and other processes, may need some.
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

    /// Lets those from number `keep` on go.
    fn dismiss(&self, keep: usize) {
        let mut state = self.lock();
        state.keep = Some(keep);
        self.changed.notify_all();
    }
}
