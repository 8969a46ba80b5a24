//! `map-unmap` (will-it-scale's `mmap1`, and a touch; LWN, May 2022: threads that map "block each other more directly,
//! even if they are operating on different parts of the address space"). Each thread maps one page, writes it, reads
//! it back and unmaps it. One thread alone and all threads take turns within a round.
//!
//! The scenario shows the cost of the smallest change of an address space, and whether changes of different threads
//! slow each other down. Headline: cycles a second of all threads.
//!
//! It cannot show the cost of a TLB shootdown, which is most of an unmap on hardware. Here a shootdown waits for
//! accesses of other threads to end.

use super::actors::{Round, ended};
use super::figure::{Figure, Unit};
use super::stage::{Phase, Stage, Step, Until};
use super::{Kind, Needs, Play, Scenario, Settings, Turn};
use crate::machine::{Machine, Memory};
use crate::measure::{Latency, Measured};
use crate::trouble::Trouble;
use faultless::address::PAGE_SIZE;
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "map-unmap",
    about: "each thread maps a page, writes it and unmaps it; one thread alone and all, in turns",
    source: "will-it-scale, mmap1; LWN, May 2022: changes of different parts of a space block each other",
    cannot_show: "the cost of a TLB shootdown: here it is a wait for other threads' accesses to end",
    headline: Figure::rate("cycles_a_second", "cycles, all threads", |m| {
        m.a_second("all_cycles", "all_wall_ns")
    }),
    figures: &[
        Figure::rate("cycles_a_second_alone", "cycles, one thread", |m| {
            m.a_second("alone_cycles", "alone_wall_ns")
        }),
        Figure::time("map_unmap", "cycle beside others", Unit::Nanos, |m| m.quantile_ns("all", 0.5)),
        Figure::time("map_unmap_alone", "cycle alone", Unit::Nanos, |m| m.quantile_ns("alone", 0.5)),
        Figure::ratio("slowdown", "cycle beside others / alone", |m| {
            Some(m.quantile_ns("all", 0.5)? / m.quantile_ns("alone", 0.5)?)
        }),
        Figure::time("map_unmap_p99", "cycle beside others, p99 of batches", Unit::Nanos, |m| {
            m.quantile_ns("all", 0.99)
        })
        .shown(),
    ],
    checked: &[("words_checked", "words read back")],
    missed: &[],
    rates: &[],
    threads: 2,
    work: "each maps, writes, unmaps",
    does_io: false,
    kind: Kind::MapUnmap,
};

/// The duration of each turn.
const SLICE: Duration = Duration::from_millis(20);
/// The number of cycles that are timed together.
const BATCH: u64 = 32;
/// The names of the phases, as they stand in the figures.
const NAMES: [&str; 2] = ["alone", "all"];

/// The state that all rounds share.
pub(super) struct Prepared {
    threads: usize,
    frames: u64,
}

impl Play for Prepared {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        let threads = settings.threads(&SCENARIO);
        settings.share(threads, 2, 2)?;
        Ok(Self { threads, frames: settings.frames() })
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
                    round.spawn(scope, "mapping", move || {
                        let mut sums: [Cycles; 2] = Default::default();
                        stage.work(me, |step| sums[step.phase].until_over(process, round, step))?;
                        Ok(sums)
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let phases = [1, self.threads].map(|active| Phase { active, length: SLICE });
            stage.count(&phases, machine, &mut measured);
            for sums in workers.into_iter().filter_map(ended) {
                for ((name, cycles), active) in NAMES.iter().zip(sums).zip([1, self.threads]) {
                    cycles.add_to(&mut measured, name, active);
                }
            }
            Ok(())
        });
        round.result(played.map(|()| measured))
    }
}

/// The cycles of one thread in one phase.
#[derive(Default)]
pub(super) struct Cycles {
    /// The latency of a cycle, as the mean of its batch.
    cycle: Latency,
    cycles: u64,
    time: Duration,
    checked: u64,
}

impl Cycles {
    /// Maps, writes, reads back and unmaps a page until the step is over.
    pub(super) fn until_over(
        &mut self,
        process: &impl Memory,
        round: &Round<'_>,
        step: Step,
    ) -> Result<(), Trouble> {
        let until = Until::end_of(step);
        let mut last = Instant::now();
        loop {
            for i in 0..BATCH {
                let word = step.number ^ i << 32;
                let page = process.map_anonymous(PAGE_SIZE)?;
                process.store(page, word)?;
                let seen = process.load(page)?;
                process.unmap(page, PAGE_SIZE)?;
                if seen != word {
                    return Err(Trouble::Wrong(format!(
                        "wrong word at {page}: wrote {word} and read {seen}"
                    )));
                }
            }
            let now = Instant::now();
            self.checked += BATCH;
            if step.measured {
                self.cycle.record_batch(now - last, BATCH);
                self.cycles += BATCH;
                self.time += now - last;
            }
            last = now;
            if until.is_past(now, round) {
                return Ok(());
            }
        }
    }

    /// Adds these measurements to `measured` under `name`. `active` is the number of threads that worked at the same
    /// time.
    pub(super) fn add_to(&self, measured: &mut Measured, name: &str, active: usize) {
        measured.add_latency(name, &self.cycle);
        measured.count(&format!("{name}_cycles"), self.cycles);
        measured.count(&format!("{name}_wall_ns"), self.time.as_nanos() as u64 / active as u64);
        measured.count("words_checked", self.checked);
    }
}
