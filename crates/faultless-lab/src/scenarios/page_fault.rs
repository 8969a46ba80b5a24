//! `page-fault` (will-it-scale's `page_fault1`; LWN, May 2022, "The ongoing search for mmap_lock scalability": faults
//! bounce the lock's cache line). Each thread maps private memory, writes a word of every page, and unmaps it, again
//! and again. One thread alone and all threads take turns within a round.
//!
//! The scenario shows the cost of a minor fault, and how much threads slow each other down if each faults in its own
//! mapping. Headline: faults a second of all threads.
//!
//! It cannot show the cost on real hardware: the zeroing of the page and the walk of the software MMU are most of
//! each fault. More than two processors also suffer more from a shared cache line.

use super::actors::{Round, ended};
use super::figure::{Figure, Unit};
use super::stage::{Phase, Stage, Step, Until};
use super::{Kind, Needs, Play, Scenario, Settings, Turn};
use crate::machine::{Machine, Memory};
use crate::measure::{Latency, Measured};
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "page-fault",
    about: "each thread maps private memory, writes every page and unmaps it; one thread alone and all, in turns",
    source: "will-it-scale, page_fault1; LWN, May 2022: faults bounce mmap_lock's cache line",
    cannot_show: "the cost on hardware: zeroing and the software MMU are most of a fault, and two processors share cache lines cheaply",
    headline: Figure::rate("faults_a_second", "faults, all threads", |m| {
        m.a_second("all_faults", "all_wall_ns")
    }),
    figures: &[
        Figure::rate("faults_a_second_alone", "faults, one thread", |m| {
            m.a_second("alone_faults", "alone_wall_ns")
        }),
        Figure::time("fault_among_all", "fault beside others", Unit::Nanos, |m| m.quantile_ns("all", 0.5)),
        Figure::time("fault_alone", "fault alone", Unit::Nanos, |m| m.quantile_ns("alone", 0.5)),
        Figure::ratio("slowdown", "fault beside others / alone", |m| {
            Some(m.quantile_ns("all", 0.5)? / m.quantile_ns("alone", 0.5)?)
        }),
    ],
    checked: &[("pages_checked", "pages, one word of each")],
    missed: &[],
    rates: &[],
    threads: 2,
    work: "each maps, writes, unmaps",
    does_io: false,
    kind: Kind::PageFault,
};

/// The maximum number of pages that a thread maps at a time: 32 MiB. It is less if the machine's memory is small.
const MOST: u64 = 8192;
/// The duration of each turn.
const SLICE: Duration = Duration::from_millis(40);
/// The number of faults that are timed together.
const BATCH: u64 = 64;
/// The names of the phases, as they stand in the figures.
const NAMES: [&str; 2] = ["alone", "all"];

/// The state that all rounds share.
pub(super) struct Prepared {
    threads: usize,
    frames: u64,
    pages: u64,
}

impl Play for Prepared {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        let threads = settings.threads(&SCENARIO);
        Ok(Self { threads, frames: settings.frames(), pages: settings.share(threads, 4, MOST)? })
    }

    fn needs(&self) -> Needs {
        Needs { threads: self.threads, ..Needs::new(self.frames) }
    }

    fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        let process = machine.process()?;
        let round = Round::new(turn, Duration::ZERO);
        let stage = Stage::new(&round);
        let mut measured = Measured::default();
        let played = std::thread::scope(|scope| {
            let workers = (0..self.threads)
                .map(|me| {
                    let (stage, round, process) = (&stage, &round, &process);
                    round.spawn(scope, "faulting", move || {
                        let mut work = Work::default();
                        stage.work(me, |step| work.cycle(process, round, step, self.pages))?;
                        Ok(work)
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let phases = [1, self.threads].map(|active| Phase { active, length: SLICE });
            stage.count(&phases, machine, &mut measured);
            for work in workers.into_iter().filter_map(ended) {
                measured.count("pages_checked", work.checked);
                for ((name, sum), active) in NAMES.iter().zip(work.sums).zip([1, self.threads as u64]) {
                    measured.add_latency(name, &sum.fault);
                    measured.count(&format!("{name}_faults"), sum.faults);
                    measured.count(&format!("{name}_wall_ns"), sum.time.as_nanos() as u64 / active);
                }
            }
            Ok(())
        });
        round.result(played.map(|()| measured))
    }
}

#[derive(Default)]
struct Sum {
    /// The latency of a fault, as the mean of its batch, without map and unmap.
    fault: Latency,
    faults: u64,
    /// The time of the cycles, with map and unmap.
    time: Duration,
}

#[derive(Default)]
struct Work {
    sums: [Sum; 2],
    checked: u64,
}

impl Work {
    /// Maps, writes and unmaps until the step is over. Some of the words are read back.
    fn cycle(
        &mut self,
        process: &impl Memory,
        round: &Round<'_>,
        step: Step,
        pages: u64,
    ) -> Result<(), Trouble> {
        let until = Until::end_of(step);
        loop {
            let begun = Instant::now();
            let start = process.map_anonymous(pages * PAGE_SIZE)?;
            let at = |page: u64| VirtAddr::new(start.get() + page * PAGE_SIZE);
            let (mut touched, mut last) = (0, Instant::now());
            let mut is_over = false;
            while touched < pages && !is_over {
                let end = pages.min(touched + BATCH);
                for page in touched..end {
                    process.store(at(page), page + 1)?;
                }
                let now = Instant::now();
                if step.measured {
                    self.sums[step.phase].fault.record_batch(now - last, end - touched);
                }
                (touched, last) = (end, now);
                is_over = until.is_past(now, round);
            }
            // Reads back one page of each batch before the unmap. They are too few to affect the time.
            for page in (0..touched).step_by(BATCH as usize) {
                let seen = process.load(at(page))?;
                if seen != page + 1 {
                    return Err(Trouble::Wrong(format!("wrong word: wrote {} and read {seen}", page + 1)));
                }
                self.checked += 1;
            }
            process.unmap(start, pages * PAGE_SIZE)?;
            if step.measured {
                let sum = &mut self.sums[step.phase];
                sum.faults += touched;
                sum.time += begun.elapsed();
            }
            if is_over || until.is_past(Instant::now(), round) {
                return Ok(());
            }
        }
    }
}
