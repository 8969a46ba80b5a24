//! `giant-vma` (linux-mm, November 2025, "continue using per-VMA lock when retrying page faults after I/O":
//! Baghdasaryan, "there is a large VMA covering most of the address space"; LWN, May 2022: Wilcox "worried about
//! applications that make terabyte-sized VMAs"). Three phases take turns:
//!
//! * All threads write new pages of one mapping of a terabyte, far from each other.
//! * Each thread does so in a process of its own.
//! * One thread does so alone.
//!
//! The scenario shows how much faults slow each other down if their threads share only the mapping. Headline: the
//! time of a fault in the giant mapping, divided by that in a process of its own. Both include the zeroing of the
//! page, which makes the ratio smaller.
//!
//! It cannot show more than its threads: a shared cache line costs little with two processors and much with
//! fifty-six.

use super::actors::{Round, ended};
use super::figure::{Figure, Unit};
use super::stage::{Phase, Stage};
use super::{Kind, Needs, Play, Scenario, Settings, Turn};
use crate::machine::{Machine, Memory};
use crate::measure::{Latency, Measured};
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "giant-vma",
    about: "threads write new pages far apart in one mapping of a terabyte; in turns, each in its own process, and one alone",
    source: "linux-mm, Nov 2025 (Baghdasaryan) and LWN, May 2022 (Wilcox): one VMA over most of the space",
    cannot_show: "many processors: a cache line that two processors share costs little. Zeroing is part of each fault",
    headline: Figure::ratio("giant_over_apart", "fault, one VMA / own process", |m| {
        Some(m.quantile_ns("giant", 0.5)? / m.quantile_ns("apart", 0.5)?)
    }),
    figures: &[
        Figure::time("fault_giant", "fault in one VMA", Unit::Nanos, |m| m.quantile_ns("giant", 0.5)),
        Figure::time("fault_apart", "fault in own process", Unit::Nanos, |m| m.quantile_ns("apart", 0.5)),
        Figure::time("fault_alone", "fault alone", Unit::Nanos, |m| m.quantile_ns("alone", 0.5)),
        Figure::ratio("giant_over_alone", "fault, one VMA / alone", |m| {
            Some(m.quantile_ns("giant", 0.5)? / m.quantile_ns("alone", 0.5)?)
        })
        .detail(),
        Figure::time("fault_giant_p99", "fault in one VMA, p99 of batches", Unit::Nanos, |m| {
            m.quantile_ns("giant", 0.99)
        })
        .shown(),
    ],
    checked: &[("pages_checked", "pages, one word of each")],
    missed: &[],
    rates: &[],
    threads: 2,
    work: "each writes new pages",
    does_io: false,
    kind: Kind::GiantVma,
};

/// The size of the mapping, in bytes.
const GIANT: u64 = 1 << 40;
/// The alignment of a thread's part, in bytes. Each part thus begins in a leaf table of its own.
const ALIGNED: u64 = 2 << 20;
/// The maximum number of pages that a thread touches in a pass: 1 MiB. Zeroing then finds the pages in a cache, and
/// is not nearly all of a fault.
const MOST: u64 = 256;
/// The number of passes of a turn. All threads begin each pass together. They discard their pages only after all have
/// ended it.
const PASSES: usize = 64;
/// The number of passes that are not measured. The scheduler may take a while to give each thread a processor.
const UNMEASURED: usize = 24;
/// The number of faults that are timed together.
const BATCH: u64 = 64;
/// The names of the phases, as they stand in the figures.
const NAMES: [&str; 3] = ["giant", "apart", "alone"];
const GIANT_VMA: usize = 0;
const APART: usize = 1;
const ALONE: usize = 2;

/// The state that all rounds share.
pub(super) struct Prepared {
    threads: usize,
    frames: u64,
    pages: u64,
}

impl Play for Prepared {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        let threads = settings.threads(&SCENARIO);
        Ok(Self { threads, frames: settings.frames(), pages: settings.share(threads, 8, MOST)? })
    }

    fn needs(&self) -> Needs {
        Needs { processes: self.threads, threads: self.threads, ..Needs::new(self.frames) }
    }

    fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        // Each process has such a mapping. That of the first process is shared in one of the phases.
        let mut measured = Measured::default();
        let mut processes = vec![machine.process()?];
        while processes.len() < self.threads {
            match machine.process() {
                Ok(process) => processes.push(process),
                // If the machine can run only some of the phases, they are still worth a row.
                Err(Trouble::Cannot(reason)) => {
                    measured.note(&format!("fault in own process is not measured: {reason}"));
                    break;
                }
                Err(trouble) => return Err(trouble),
            }
        }
        let kinds: &[usize] =
            if processes.len() == self.threads { &[GIANT_VMA, APART, ALONE] } else { &[GIANT_VMA, ALONE] };
        let maps = processes.iter().map(|process| process.map_anonymous(GIANT));
        let maps = maps.collect::<Result<Vec<_>, _>>()?;
        let round = Round::new(turn, Duration::ZERO);
        let stage = Stage::new(&round);
        let played = std::thread::scope(|scope| {
            let workers = (0..self.threads)
                .map(|me| {
                    let (stage, processes, maps) = (&stage, &processes, &maps);
                    round.spawn(scope, "faulting", move || {
                        let offset = (GIANT / self.threads as u64 * me as u64).next_multiple_of(ALIGNED);
                        let mut work = Work::default();
                        stage.work(me, |step| {
                            let kind = kinds[step.phase];
                            let whose = if kind == APART { me } else { 0 };
                            let start = VirtAddr::new(maps[whose].get() + offset);
                            for pass in 0..PASSES {
                                let measured = step.measured && pass >= UNMEASURED;
                                stage.meet(step, 2 * pass + 2);
                                work.touch(&processes[whose], start, self.pages, kind, measured)?;
                                stage.meet(step, 2 * pass + 3);
                                processes[whose].discard(start, self.pages * PAGE_SIZE)?;
                            }
                            Ok(())
                        })?;
                        Ok(work)
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let active = |kind: &usize| if *kind == ALONE { 1 } else { self.threads };
            let phase = |kind| Phase { active: active(kind), length: Duration::ZERO };
            let phases: Vec<_> = kinds.iter().map(phase).collect();
            stage.count(&phases, machine, &mut measured);
            for work in workers.into_iter().filter_map(ended) {
                measured.count("pages_checked", work.checked);
                NAMES.iter().zip(&work.faults).for_each(|(name, faults)| measured.add_latency(name, faults));
            }
            Ok(())
        });
        drop(processes);
        round.result(played.map(|()| measured))
    }
}

/// The measurements of a thread.
#[derive(Default)]
struct Work {
    /// The latency of a fault in each phase, as the mean of its batch.
    faults: [Latency; 3],
    checked: u64,
}

impl Work {
    /// Writes new pages, timed, and reads some of them back, not timed.
    fn touch(
        &mut self,
        process: &impl Memory,
        start: VirtAddr,
        pages: u64,
        kind: usize,
        measured: bool,
    ) -> Result<(), Trouble> {
        let at = |page: u64| VirtAddr::new(start.get() + page * PAGE_SIZE);
        let word = |page: u64| start.get() ^ page;
        let mut last = Instant::now();
        for batch in (0..pages).step_by(BATCH as usize) {
            let end = pages.min(batch + BATCH);
            for page in batch..end {
                process.store(at(page), word(page))?;
            }
            let now = Instant::now();
            if measured {
                self.faults[kind].record_batch(now - last, end - batch);
            }
            last = now;
        }
        for page in (0..pages).step_by(BATCH as usize) {
            let seen = process.load(at(page))?;
            if seen != word(page) {
                return Err(Trouble::Wrong(format!("wrong word at {}: read {seen}", at(page))));
            }
            self.checked += 1;
        }
        Ok(())
    }
}
