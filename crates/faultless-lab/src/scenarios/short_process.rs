//! `short-process` (LWN, May 2022, "The ongoing search for mmap_lock scalability": of speculative faults "hackbench
//! shows a 4% regression"). An improvement for large processes must not slow down small ones. A small process with
//! thirty mappings and one MiB forks. The child reads and writes inherited pages, maps, writes, unmaps, and exits.
//! The children run one after the other.
//!
//! The scenario shows the cost of a short life: fork, a few faults and changes, exit. Headline: the time of one life.
//!
//! It cannot show exec, scheduling or signals, which are most of hackbench. On the engine, the child's task runs in
//! the thread that waits for it.

use super::actors::{Round, ended};
use super::figure::{Figure, Unit};
use super::{Kind, Needs, Play, Scenario, Settings, Turn};
use crate::machine::{Child, Machine, Memory, Process, Task};
use crate::measure::{Latency, Measured};
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "short-process",
    about: "a small process forks; the child touches and maps a little memory and exits; one child at a time",
    source: "LWN, May 2022: hackbench shows a 4 % regression with speculative page faults",
    cannot_show: "exec, scheduling and signals, which are most of hackbench. On the engine a child runs in its parent's thread",
    headline: Figure::time("life_p50", "life of a child", Unit::Micros, |m| m.quantile_us("life", 0.5)),
    figures: &[
        Figure::time("life_p99", "life of a child, p99", Unit::Micros, |m| m.quantile_us("life", 0.99)),
        Figure::time("fork_p50", "fork", Unit::Micros, |m| m.quantile_us("fork", 0.5)),
        Figure::time("task_p50", "task and exit", Unit::Micros, |m| m.quantile_us("task", 0.5)),
        Figure::rate("lives", "children", |m| m.a_second_of_all("children_checked")),
        Figure::each("faults_a_life", "faults per child", |m| m.ratio("faults", "children_checked")),
        Figure::each("copies_a_life", "pages copied per child", |m| {
            m.ratio("cow_copies", "children_checked")
        }),
    ],
    checked: &[("children_checked", "children, with the parent's pages")],
    missed: &[],
    rates: &[],
    threads: 1,
    work: "each forks",
    does_io: false,
    kind: Kind::ShortProcess,
};

/// The number of mappings of the parent.
const MAPPINGS: u64 = 30;
/// The number of pages of each mapping. Not all are resident.
const PAGES: u64 = 32;
/// The number of resident pages of each mapping. All mappings together have about a MiB.
const RESIDENT: u64 = 9;
/// The number of pages that the child writes. Each is in a different mapping.
const WRITTEN: usize = 16;
/// The number of pages that the child maps.
const MAPPED: u64 = 16;
/// The warm-up before each measurement.
const WARM_UP: Duration = Duration::from_millis(50);

/// The state that all rounds share.
pub(super) struct Prepared {
    threads: usize,
    frames: u64,
}

impl Play for Prepared {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        let threads = settings.threads(&SCENARIO);
        let least = MAPPINGS * RESIDENT + 4 * (WRITTEN as u64 + MAPPED) * threads as u64;
        if settings.frames() < least {
            return Err(settings.too_small(threads, least));
        }
        Ok(Self { threads, frames: settings.frames() })
    }

    fn needs(&self) -> Needs {
        Needs { threads: self.threads, ..Needs::new(self.frames) }
    }

    fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        let process = machine.process()?;
        let life: Arc<dyn Task> = Arc::new(Life::new(&process)?);
        let round = Round::new(turn, WARM_UP);
        let mut measured = Measured::default();
        let played = std::thread::scope(|scope| {
            let parents = (0..self.threads)
                .map(|_| {
                    let (round, process, life) = (&round, &process, &life);
                    round.spawn(scope, "parent", move || Lives::live(process, round, life))
                })
                .collect::<Result<Vec<_>, _>>()?;
            round.count(machine, &mut measured);
            for Lives { whole, fork, task } in parents.into_iter().filter_map(ended) {
                measured.count("children_checked", whole.count());
                for (name, latency) in [("life", whole), ("fork", fork), ("task", task)] {
                    measured.add_latency(name, &latency);
                }
            }
            Ok(())
        });
        // The parent must not see the children's stores.
        let checked = played.and_then(|()| life.run(&process));
        drop(process);
        round.result(checked.map(|()| measured))
    }
}

#[derive(Default)]
struct Lives {
    whole: Latency,
    fork: Latency,
    task: Latency,
}

impl Lives {
    fn live(process: &impl Process, round: &Round<'_>, life: &Arc<dyn Task>) -> Result<Self, Trouble> {
        let mut lives = Self::default();
        while !round.is_over() {
            let begun = Instant::now();
            let child = process.fork(life)?;
            let forked = Instant::now();
            child.join()?;
            let ended = Instant::now();
            if round.measures(begun) {
                lives.whole.record(ended - begun);
                lives.fork.record(forked - begun);
                lives.task.record(ended - forked);
            }
        }
        Ok(lives)
    }
}

/// The task of a child, and the pages that it expects.
struct Life {
    mappings: Vec<VirtAddr>,
}

impl Life {
    /// Maps the parent's memory and writes its pages.
    fn new(process: &impl Memory) -> Result<Self, Trouble> {
        let map = |_| process.map_anonymous(PAGES * PAGE_SIZE);
        let life = Self { mappings: (0..MAPPINGS).map(map).collect::<Result<_, _>>()? };
        for (at, word) in life.words() {
            process.store(at, word)?;
        }
        Ok(life)
    }

    /// Returns the address and the value of the first word of each resident page.
    fn words(&self) -> impl Iterator<Item = (VirtAddr, u64)> {
        self.mappings.iter().flat_map(|start| {
            (0..RESIDENT).map(move |page| {
                let at = VirtAddr::new(start.get() + page * PAGE_SIZE);
                (at, at.get() ^ 0x5a5a)
            })
        })
    }
}

impl Task for Life {
    fn run(&self, child: &dyn Memory) -> Result<(), Trouble> {
        let expect = |at: VirtAddr, word: u64| match child.load(at)? {
            seen if seen == word => Ok(()),
            seen => Err(Trouble::Wrong(format!("a child reads {seen:#x} at {at} instead of {word:#x}"))),
        };
        for (at, word) in self.words().step_by(RESIDENT as usize) {
            expect(at, word)?;
        }
        for (at, word) in self.words().step_by(RESIDENT as usize).take(WRITTEN) {
            child.store(at, !word)?;
            expect(at, !word)?;
        }
        let new = child.map_anonymous(MAPPED * PAGE_SIZE)?;
        for page in 0..MAPPED {
            let at = VirtAddr::new(new.get() + page * PAGE_SIZE);
            expect(at, 0)?;
            child.store(at, page + 1)?;
        }
        child.unmap(new, MAPPED * PAGE_SIZE)
    }
}
