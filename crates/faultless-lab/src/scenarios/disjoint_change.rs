//! `disjoint-change` (LWN, May 2022, "The ongoing search for mmap_lock scalability": Lespinasse, threads that map or
//! change protections "block each other more directly, even if they are operating on different parts of the address
//! space and should be able to work concurrently"). Each thread changes its own part of the address space. There are
//! three phases within a round. In the first, one thread changes alone. In the second, all threads change at the same
//! time. In the third, half of the threads change, and the other half write new pages in their own parts.
//!
//! A change is mprotect of 16 pages inside the thread's own mapping, to read-only or back, or mmap or munmap of 16
//! pages. The scenario shows whether threads wait for changes of other parts. Headline: changes a second of all
//! threads in the second phase. Only the time inside changes counts, as the mean of the threads. A detail has the rate
//! without the slowest hundredth of the changes: if a thread loses its processor, a single change takes milliseconds, as
//! long as thousands of others.
//!
//! It cannot show changes of large ranges: most of their cost is the sweep of their pages.

use super::actors::{Round, ended};
use super::figure::{Figure, Unit};
use super::stage::{Phase, Stage, Step, Until};
use super::{Kind, Needs, Play, Scenario, Settings, Turn};
use crate::machine::{Machine, Memory};
use crate::measure::{Latency, Measured};
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Protection;
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "disjoint-change",
    about: "each thread maps, protects and unmaps its own part of the space, beside other changes and beside faults",
    source: "LWN, May 2022 (Lespinasse): changes of different parts of the address space block each other",
    cannot_show: "changes of large ranges: most of their cost is the sweep of their pages",
    headline: Figure::rate("changes_a_second", "changes, all threads", |m| {
        m.a_second("beside_changes_done", "beside_changes_wall_ns")
    }),
    figures: &[
        Figure::rate("fastest_changes_a_second", "changes, fastest 99 %", |m| {
            m.a_second_of_fastest("beside_changes_done", "beside_changes_wall_ns", "beside_changes", 0.99)
        })
        .detail(),
        Figure::time("change_beside_changes", "change beside changes", Unit::Nanos, |m| {
            m.quantile_ns("beside_changes", 0.5)
        }),
        Figure::time("change_beside_faults", "change beside faults", Unit::Nanos, |m| {
            m.quantile_ns("beside_faults", 0.5)
        }),
        Figure::time("fault_beside_changes", "fault beside changes", Unit::Nanos, |m| {
            m.quantile_ns("fault_beside_changes", 0.5)
        }),
        Figure::time("change_alone", "change alone", Unit::Nanos, |m| m.quantile_ns("alone", 0.5)).detail(),
        Figure::time("protect_beside_changes", "mprotect beside changes", Unit::Nanos, |m| {
            m.quantile_ns("protect_beside_changes", 0.5)
        })
        .detail(),
        Figure::time("protect_beside_faults", "mprotect beside faults", Unit::Nanos, |m| {
            m.quantile_ns("protect_beside_faults", 0.5)
        })
        .detail(),
        Figure::time("change_beside_changes_p99", "change beside changes, p99", Unit::Nanos, |m| {
            m.quantile_ns("beside_changes", 0.99)
        })
        .detail(),
        Figure::time("change_beside_faults_p99", "change beside faults, p99", Unit::Nanos, |m| {
            m.quantile_ns("beside_faults", 0.99)
        })
        .detail(),
    ],
    checked: &[("words_checked", "words read back")],
    missed: &[],
    rates: &[],
    threads: 2,
    work: "all change; or half change and half write new pages",
    does_io: false,
    kind: Kind::DisjointChange,
};

/// The duration of each turn.
const SLICE: Duration = Duration::from_millis(20);
/// The number of pages of a change.
const PAGES: u64 = 16;
/// The number of pages of a thread's own mapping.
const PART: u64 = 512;
/// The names of the phases, as they stand in the figures.
const NAMES: [&str; 3] = ["alone", "beside_changes", "beside_faults"];
const BESIDE_FAULTS: usize = 2;
const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// The state that all rounds share.
pub(super) struct Prepared {
    threads: usize,
    frames: u64,
}

impl Play for Prepared {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        let threads = settings.threads(&SCENARIO);
        if threads < 2 {
            return Err(Trouble::Input(
                "disjoint-change needs at least 2 threads: one changes, one faults; raise --threads".into(),
            ));
        }
        settings.share(threads, PART + PAGES, PART + PAGES)?;
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
        let changing = self.threads.div_ceil(2);
        let played = std::thread::scope(|scope| {
            let workers = (0..self.threads)
                .map(|me| {
                    let (stage, round, process) = (&stage, &round, &process);
                    round.spawn(scope, "changing", move || {
                        let mut work = Work::new(process, round)?;
                        stage.work(me, |step| match step.phase {
                            BESIDE_FAULTS if me >= changing => work.fault(step),
                            _ => work.change(step),
                        })?;
                        Ok(work)
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let phases = [1, self.threads, self.threads].map(|active| Phase { active, length: SLICE });
            stage.count(&phases, machine, &mut measured);
            for work in workers.into_iter().filter_map(ended) {
                measured.count("words_checked", work.checked);
                measured.add_latency("fault_beside_changes", &work.faults);
                let active = [1, self.threads, changing];
                for ((name, [any, protect]), (time, active)) in
                    NAMES.iter().zip(&work.changes).zip(work.time.iter().zip(active))
                {
                    measured.count(&format!("{name}_done"), any.count());
                    measured.count(&format!("{name}_wall_ns"), time.as_nanos() as u64 / active as u64);
                    measured.add_latency(name, any);
                    measured.add_latency(&format!("protect_{name}"), protect);
                }
            }
            Ok(())
        });
        drop(process);
        round.result(played.map(|()| measured))
    }
}

/// A thread's work on its own part.
struct Work<'a, P> {
    process: &'a P,
    round: &'a Round<'a>,
    /// The start of the thread's own mapping.
    part: VirtAddr,
    /// The latencies of each phase: of all changes, and of mprotect alone.
    changes: [[Latency; 2]; 3],
    /// The latency of each fault beside changes.
    faults: Latency,
    /// The time spent in changes, by phase.
    time: [Duration; 3],
    checked: u64,
    /// The number of repetitions so far. It selects the next place in the part.
    turn: u64,
}

impl<'a, P: Memory> Work<'a, P> {
    fn new(process: &'a P, round: &'a Round<'a>) -> Result<Self, Trouble> {
        // The last page becomes a hole. Without it, neighbouring parts would merge into one mapping, and changes of
        // different parts would be changes of one mapping.
        let part = process.map_anonymous((PART + 1) * PAGE_SIZE)?;
        process.unmap(VirtAddr::new(part.get() + PART * PAGE_SIZE), PAGE_SIZE)?;
        let (changes, faults, time) = Default::default();
        Ok(Self { process, round, part, changes, faults, time, checked: 0, turn: 0 })
    }

    fn at(&self, page: u64) -> VirtAddr {
        VirtAddr::new(self.part.get() + page * PAGE_SIZE)
    }

    /// Runs one change and records its latency.
    fn timed<T>(
        &mut self,
        step: Step,
        is_protect: bool,
        change: impl FnOnce(&P) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let start = Instant::now();
        let result = change(self.process)?;
        let time = start.elapsed();
        if step.measured {
            let [any, protect] = &mut self.changes[step.phase];
            any.record(time);
            self.time[step.phase] += time;
            if is_protect {
                protect.record(time);
            }
        }
        Ok(result)
    }

    fn is_as_written(&mut self, at: VirtAddr, word: u64) -> Result<(), Trouble> {
        self.checked += 1;
        match self.process.load(at)? {
            seen if seen == word => Ok(()),
            seen => Err(Trouble::Wrong(format!("wrong word at {at}: wrote {word} and read {seen}"))),
        }
    }

    /// Repeats four changes until the step is over: protect, unprotect, map, unmap.
    fn change(&mut self, step: Step) -> Result<(), Trouble> {
        let until = Until::end_of(step);
        while !until.is_past(Instant::now(), self.round) {
            self.turn += 1;
            // Not at the ends of the part: the pieces of a split mapping merge again, and no other part is affected.
            let at = self.at(PAGES + self.turn % (PART / PAGES - 2) * PAGES);
            let (bytes, word) = (PAGES * PAGE_SIZE, self.turn);
            self.process.store(at, word)?;
            self.timed(step, true, |process| process.protect(at, bytes, Protection::READ))?;
            self.is_as_written(at, word)?;
            self.timed(step, true, |process| process.protect(at, bytes, READ_WRITE))?;
            let new = self.timed(step, false, |process| process.map_anonymous(bytes))?;
            self.is_as_written(new, 0)?;
            self.process.store(new, word)?;
            self.is_as_written(new, word)?;
            self.timed(step, false, |process| process.unmap(new, bytes))?;
        }
        Ok(())
    }

    /// Writes all pages of the part anew until the step is over. Only the faults are timed. Discarding the pages is
    /// also a change, but of the thread's own part.
    fn fault(&mut self, step: Step) -> Result<(), Trouble> {
        let until = Until::end_of(step);
        while !until.is_past(Instant::now(), self.round) {
            self.process.discard(self.part, PART * PAGE_SIZE)?;
            self.turn += 1;
            for batch in (0..PART).step_by(PAGES as usize) {
                let start = Instant::now();
                for page in batch..batch + PAGES {
                    self.process.store(self.at(page), self.turn)?;
                }
                if step.measured {
                    self.faults.record_batch(start.elapsed(), PAGES);
                }
            }
            self.is_as_written(self.at(self.turn % PART), self.turn)?;
        }
        Ok(())
    }
}
