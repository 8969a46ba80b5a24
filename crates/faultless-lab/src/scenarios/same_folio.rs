//! `same-folio` (linux-mm, November 2025, "continue using per-VMA lock when retrying page faults after I/O": Song,
//! "Tail latency has long been a significant issue […] even with folio_lock, which has much finer granularity than the
//! VMA lock"). Each thread has its own mapping of the same file. All threads touch the same cold page at the same
//! moment, page after page.
//!
//! The scenario shows how long threads wait for a read that another fault has started, and whether one read serves
//! them all. Headline: the 99th percentile of the time until the last thread has the page.
//!
//! It cannot show large folios: each folio is one page, so threads meet only if they touch the same page.

use super::actors::{Round, ended};
use super::contents::{Page, TestFile};
use super::faults::MajorFaults;
use super::figure::{
    CPU_EACH, FAULT_P50, FAULT_P99, Figure, MMAP_LOCK_EACH, RETRIES_EACH, Unit, VMA_LOCK_EACH,
};
use super::stage::{Phase, Stage};
use super::{Kind, Needs, Play, Scenario, Settings, Turn};
use crate::machine::{Machine, Memory};
use crate::measure::{Latency, Measured};
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Sharing;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "same-folio",
    about: "threads touch the same cold page at the same moment, each in its own mapping of the file",
    source: "linux-mm, Nov 2025 (Song): tail latency comes from waiting for the folio too",
    cannot_show: "large folios: each folio is one page, so threads meet only at the very same page",
    headline: Figure::time("last_has_it_p99", "last thread has the page, p99", Unit::Micros, |m| {
        m.quantile_us("last", 0.99)
    }),
    figures: &[
        Figure::time("last_has_it_p50", "last thread has the page, p50", Unit::Micros, |m| {
            m.quantile_us("last", 0.5)
        }),
        FAULT_P99,
        Figure::ratio("reads_a_page", "reads per page", |m| m.ratio("io_reads", "pages_met")),
        FAULT_P50,
        CPU_EACH,
        MMAP_LOCK_EACH,
        VMA_LOCK_EACH,
        RETRIES_EACH,
    ],
    checked: &[("pages_checked", "pages of the file, byte by byte")],
    missed: &[],
    rates: &[],
    threads: 8,
    work: "each touches the same pages",
    does_io: true,
    kind: Kind::SameFolio,
};

/// The size of the temporary file, in bytes.
const FILE: u64 = 16 << 20;
/// The number of pages after which each thread maps the file anew.
const WINDOW: u64 = 32;
/// The phases: touch the page of the step, and map the file anew.
const TOUCH: usize = 0;
const REMAP: usize = 1;

/// The state that all rounds share.
pub(super) struct Prepared {
    file: Arc<TestFile>,
    threads: usize,
    frames: u64,
    cached: u64,
}

impl Play for Prepared {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        let (threads, frames) = (settings.threads(&SCENARIO), settings.frames());
        let least = 4 * WINDOW;
        if frames / 4 < least {
            return Err(settings.too_small(threads, 4 * least));
        }
        let file = TestFile::of(settings, FILE)?;
        // The pages are visited in order, so a page is evicted long before its next visit.
        let cached = (file.pages() / 8).clamp(least, frames / 4);
        Ok(Self { file, threads, frames, cached })
    }

    fn needs(&self) -> Needs {
        Needs {
            cached_pages: Some(self.cached),
            file_bytes: Some(self.file.length()),
            threads: self.threads,
            ..Needs::new(self.frames)
        }
    }

    fn file(&self) -> Option<&Arc<TestFile>> {
        Some(&self.file)
    }

    fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        let process = machine.process()?;
        let round = Round::new(turn, Duration::ZERO);
        let (stage, page) = (Stage::new(&round), AtomicU64::new(0));
        // In nanoseconds since `base`: the time of the first touch of the step's page, and the time at which the last
        // thread had it.
        let (base, first, last_has) = (Instant::now(), AtomicU64::new(u64::MAX), AtomicU64::new(0));
        let mut measured = Measured::default();
        let played = std::thread::scope(|scope| {
            let workers = (0..self.threads)
                .map(|me| {
                    let (stage, round, page, process) = (&stage, &round, &page, &process);
                    let (first, last_has) = (&first, &last_has);
                    round.spawn(scope, "touching", move || {
                        let mut worker = Worker { process, file: &self.file, start: None, pages: 0 };
                        let mut faults = MajorFaults::default();
                        worker.address(0)?;
                        stage.work(me, |step| match step.phase {
                            TOUCH => {
                                let at = worker.address(page.load(Ordering::Relaxed))?;
                                let now = || base.elapsed().as_nanos() as u64;
                                first.fetch_min(now(), Ordering::Relaxed);
                                match step.measured {
                                    true => faults.load(process, round, at)?,
                                    false => MajorFaults::default().load(process, round, at)?,
                                };
                                last_has.fetch_max(now(), Ordering::Relaxed);
                                worker.check(page.load(Ordering::Relaxed))
                            }
                            // The file is mapped here, so that the mapping is not timed.
                            _ => worker.unmap().and_then(|()| worker.address(0).map(drop)),
                        })?;
                        worker.unmap()?;
                        Ok((faults, worker.pages))
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let all = Phase { active: self.threads, length: Duration::ZERO };
            let mut last = Latency::default();
            let mut next = turn.seed % self.file.pages();
            let mut step = |met: u64, measured: bool| {
                page.store(next, Ordering::Relaxed);
                next = (next + 1) % self.file.pages();
                first.store(u64::MAX, Ordering::Relaxed);
                last_has.store(0, Ordering::Relaxed);
                let gone_on = stage.step(TOUCH, all, measured);
                let time = last_has.load(Ordering::Relaxed).saturating_sub(first.load(Ordering::Relaxed));
                (gone_on && (!(met + 1).is_multiple_of(WINDOW) || stage.step(REMAP, all, measured)))
                    .then(|| Duration::from_nanos(time))
            };
            // The first steps are a warm-up.
            let warm = (0..2).all(|met| step(met, false).is_some());
            round.start_recording();
            let (before, start) = (machine.statistics(), Instant::now());
            let mut met = 0;
            while warm && start.elapsed() < round.length() {
                let Some(slowest) = step(met, true) else { break };
                last.record(slowest);
                met += 1;
            }
            measured.seconds = start.elapsed().as_secs_f64();
            measured.count_since(&before, &machine.statistics());
            measured.count("pages_met", met);
            measured.add_latency("last", &last);
            round.end();
            for (faults, pages) in workers.into_iter().filter_map(ended) {
                faults.add_to(&mut measured);
                measured.count("pages_checked", pages);
            }
            Ok(())
        });
        drop(process);
        round.result(played.map(|()| measured))
    }
}

/// One thread and its mapping of the file.
struct Worker<'a, P> {
    process: &'a P,
    file: &'a TestFile,
    start: Option<VirtAddr>,
    pages: u64,
}

impl<P: Memory> Worker<'_, P> {
    /// Returns the address of a page of the file. Maps the file if it is not mapped.
    fn address(&mut self, page: u64) -> Result<VirtAddr, Trouble> {
        let start = match self.start {
            Some(start) => start,
            None => *self.start.insert(self.process.map_file(Sharing::Private)?),
        };
        Ok(VirtAddr::new(start.get() + page * PAGE_SIZE))
    }

    fn check(&mut self, page: u64) -> Result<(), Trouble> {
        let mut bytes: Page = [0; PAGE_SIZE as usize];
        self.process.read_page(self.address(page)?, &mut bytes)?;
        self.pages += 1;
        self.file.check(page, &bytes)
    }

    /// Unmaps the file, so that its pages can become cold.
    fn unmap(&mut self) -> Result<(), Trouble> {
        self.start.take().map_or(Ok(()), |start| self.process.unmap_file(start))
    }
}
