//! `retry-storm` (linux-mm, November 2025, "continue using per-VMA lock when retrying page faults after I/O"): Wilcox
//! reports "thousands (maybe tens of thousands) of threads" with "much more mapped" file than memory. When a fault
//! returns from its read, the page has been reclaimed again, and the threads do nothing but read. In this scenario
//! many threads read random pages of a file and leave them mapped. The page cache holds two pages for each thread, and one
//! more: reclaim takes pages out of the threads' mappings, or pages that a fault has read and not mapped yet.
//!
//! The scenario shows whether a page is still there when the fault that read it retries. Headline: reads for each
//! page that a thread used. It is 1 if no page is lost, and a little less if a random page was already cached.
//!
//! It cannot show thousands of threads: there are 64, on few processors.

use super::actors::{Round, ended, stand_by};
use super::contents::{Page, TestFile, mix, pick};
use super::faults::MajorFaults;
use super::figure::{BYSTANDER_P99, CPU_EACH, FAULT_P50, FAULT_P99, Figure, MMAP_LOCK_EACH, VMA_LOCK_EACH};
use super::{Kind, Needs, Play, Scenario, Settings, Turn};
use crate::machine::{Machine, Memory};
use crate::measure::Measured;
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Sharing;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "retry-storm",
    about: "many threads read random pages of a file; the page cache holds two pages for each thread, and one more",
    source: "linux-mm, Nov 2025 (Wilcox): the page is reclaimed before the fault retries, and the threads only read again",
    cannot_show: "thousands of threads: there are 64, on few processors",
    headline: Figure::ratio("reads_per_page", "reads for each page used", |m| {
        m.ratio("io_reads", "pages_used")
    }),
    figures: &[
        Figure::rate("pages_used", "pages used", |m| m.a_second_of_all("pages_used")),
        FAULT_P99,
        BYSTANDER_P99,
        FAULT_P50,
        CPU_EACH,
        MMAP_LOCK_EACH,
        VMA_LOCK_EACH,
        // As a patch series of April 2026 counts them in /proc/vmstat.
        Figure::each("retry_mmap_drop", "RETRY_MMAP_DROP per fault", |m| m.ratio("retries", "major_faults")),
        Figure::each("retry_io_miss", "RETRY_IO_MISS per fault", |m| {
            m.ratio("retries_page_gone", "major_faults")
        }),
    ],
    checked: &[("pages_checked", "pages of the file, byte by byte")],
    missed: &[("bystander_missed", "bystander operations did not start on time")],
    rates: &[("bystander", 500.0)],
    threads: 64,
    work: "each reads random pages",
    does_io: true,
    kind: Kind::RetryStorm,
};

/// The size of the temporary file, in bytes.
const FILE: u64 = 64 << 20;
/// The warm-up before each measurement.
const WARM_UP: Duration = Duration::from_millis(150);
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
        // Each thread needs a page that is being read, or waits for its retry. As many again are mapped, and one further page
        // makes eviction possible.
        let cached = 2 * threads as u64 + 1;
        if frames < 4 * cached {
            return Err(settings.too_small(threads, 4 * cached));
        }
        let file = TestFile::of(settings, FILE)?;
        Ok(Self { file, threads, frames, cached })
    }

    fn needs(&self) -> Needs {
        Needs {
            cached_pages: Some(self.cached),
            file_bytes: Some(self.file.length()),
            is_thrashing: true,
            threads: self.threads,
            ..Needs::new(self.frames)
        }
    }

    fn file(&self) -> Option<&Arc<TestFile>> {
        Some(&self.file)
    }

    fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        let process = machine.process()?;
        let round = Round::new(turn, WARM_UP);
        let used = AtomicU64::new(0);
        let mut measured = Measured::default();
        let played = std::thread::scope(|scope| {
            let readers = (0..self.threads)
                .map(|me| {
                    let (round, process, used) = (&round, &process, &used);
                    let random = mix(turn.seed ^ mix(me as u64));
                    round.spawn(scope, "reader", move || self.read(process, round, random, used))
                })
                .collect::<Result<Vec<_>, _>>()?;
            let rate = turn.settings.rate(&SCENARIO, "bystander");
            let (standing, stander) = (&round, &process);
            let bystander = round.spawn(scope, "bystander", move || stand_by(stander, standing, rate))?;
            let (mut before, mut after) = Default::default();
            let now = || (used.load(Ordering::Relaxed), machine.statistics());
            let length = round.run(|| before = now(), || after = now());
            measured.seconds = length.as_secs_f64();
            measured.count_since(&before.1, &after.1);
            measured.count("pages_used", after.0 - before.0);
            for (faults, pages) in readers.into_iter().filter_map(ended) {
                faults.add_to(&mut measured);
                measured.count("pages_checked", pages);
            }
            if let Some(acts) = ended(bystander) {
                acts.add_to(&mut measured, "bystander", ["bystander_acts", "bystander_missed"]);
            }
            Ok(())
        });
        drop(process);
        round.result(played.map(|()| measured))
    }
}

impl Prepared {
    /// Uses one page after the other, and leaves them mapped.
    fn read(
        &self,
        process: &impl Memory,
        round: &Round<'_>,
        mut random: u64,
        used: &AtomicU64,
    ) -> Result<(MajorFaults, u64), Trouble> {
        let (mut faults, mut pages) = (MajorFaults::default(), 0);
        let mut bytes: Page = [0; PAGE_SIZE as usize];
        let start = process.map_file(Sharing::Private)?;
        while !round.is_over() {
            let page = pick(&mut random, self.file.pages());
            let at = VirtAddr::new(start.get() + page * PAGE_SIZE);
            faults.load(process, round, at)?;
            process.read_page(at, &mut bytes)?;
            used.fetch_add(1, Ordering::Relaxed);
            self.file.check(page, &bytes)?;
            pages += 1;
        }
        process.unmap_file(start)?;
        Ok((faults, pages))
    }
}
