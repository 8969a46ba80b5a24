//! Measures which rules of Linux's `rw_semaphore` matter to the designs with mmap_lock. Switches off one rule at a time,
//! under `mmap-lock-hold`. The variants take turns in each round.
//!
//! A sleep is a voluntary context switch (`/proc/thread-self/status`). Their number depends less on other programs than
//! times do. All threads share the processors with the rest of the machine, so a longest time is often that of a thread
//! that lost its processor with the lock held.
//!
//! `cargo run --release -p faultless-lab --example rwsem_rules [ROUNDS]`

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::{AfterIo, Attempt, Awaits, LockingDesign};
use faultless::protection::{Protection, Sharing};
use faultless::store::{DelayedStore, FileStore};
use faultless::{AddressSpace, Engine, File, Limits, MapRequest, Source};
use faultless_lab::designs::locks::Policy;
use faultless_lab::designs::mmap_locked::MmapLocked;
use faultless_lab::designs::rwsem::{Rules, Rwsem, Wakes};
use faultless_soft::{Cpu, Soft};
use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{ScopedJoinHandle, scope, sleep};
use std::time::{Duration, Instant};

/// The time of one variant in one round of one workload.
const LENGTH: Duration = Duration::from_millis(200);
/// The time of a read in the workload with I/O.
const READ: Duration = Duration::from_micros(500);
/// The time between two scheduled changes in the workload with I/O.
const PERIOD: Duration = Duration::from_millis(2);
const FILE_PAGES: u64 = 4096;
const CACHED_PAGES: u64 = 64;

type Space<D> = AddressSpace<Soft, D>;

/// The figures of one round. `None` if there was nothing to measure.
type Figures = Vec<Option<f64>>;

/// A variant: its name, and one round of it.
type Variant = (&'static str, fn() -> Figures);

/// A workload: its name, the names of its figures, and one round of each variant.
struct Workload {
    name: &'static str,
    figures: &'static [&'static str],
    variants: Vec<Variant>,
}

macro_rules! variants {
    ($($variant:ident: $name:literal, $rules:expr;)*) => {
        $(
            struct $variant;

            impl Policy for $variant {
                const NAME: &'static str = $name;
                const RULES: Rules = $rules;

                fn after_io(_: Attempt, _: Awaits) -> AfterIo {
                    AfterIo::Hold
                }

                fn again(attempt: Attempt, _major: bool) -> Attempt {
                    Attempt { retries: attempt.retries + 1, slow: false, ..attempt }
                }
            }
        )*

        fn workloads() -> Vec<Workload> {
            vec![
                Workload {
                    name: "lock: two writers and two readers, 0.2 µs inside, 0.4 µs outside",
                    figures: &["reads/s", "writes/s", "write p99 µs", "longest ms", "sleeps per 1,000"],
                    variants: vec![
                        $(($name, || lock(&Rwsem::with_rules($rules))),)*
                        ("parking_lot (before)", || lock(&parking_lot::RwLock::new(()))),
                    ],
                },
                Workload {
                    name: "two threads map, touch and unmap a page each",
                    figures: &["cycles/s", "p99 µs", "longest ms", "sleeps per 1,000"],
                    variants: vec![$(($name, cycles::<MmapLocked<$variant>>)),*],
                },
                Workload {
                    name: "three threads fault, one changes rights",
                    figures: &["faults/s", "changes/s", "change p99 µs", "longest ms", "sleeps per 1,000"],
                    variants: vec![$(($name, faults_beside_changes::<MmapLocked<$variant>>)),*],
                },
                Workload {
                    name: "eight threads read cold pages, one changes rights every 2 ms",
                    figures: &["reads/s", "change p50 ms", "change p99 ms"],
                    variants: vec![$(($name, cold_reads::<MmapLocked<$variant>>)),*],
                },
            ]
        }
    };
}

variants! {
    Linux: "as Linux 6.18", Rules::LINUX;
    NoSpinning: "no spinning", Rules { owner_runs: Duration::ZERO, ..Rules::LINUX };
    LongSpinning: "owner runs for 1 ms", Rules { owner_runs: Duration::from_millis(1), ..Rules::LINUX };
    NoStealing: "no stealing by readers", Rules { steals: false, ..Rules::LINUX };
    NoHandOff: "no hand-off", Rules { hands_off_after: Duration::MAX, ..Rules::LINUX };
    NotPastWriters: "batch ends at a writer", Rules { wakes: Wakes::ReadersBeforeWriter, ..Rules::LINUX };
    OneReader: "one reader at a time", Rules { wakes: Wakes::One, ..Rules::LINUX };
}

fn main() -> Result<(), Box<dyn Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(11), |rounds| rounds.parse())?;
    let processors = std::thread::available_parallelism()?;
    println!("{rounds} rounds of {LENGTH:?} for each variant, in turns; {processors} processors");
    println!("median (lowest to highest round)");
    for workload in workloads() {
        run(&workload, rounds);
    }
    Ok(())
}

fn run(workload: &Workload, rounds: usize) {
    let variants = &workload.variants;
    let mut measured = vec![vec![Vec::new(); workload.figures.len()]; variants.len()];
    for round in 0..rounds {
        // Another variant goes first in each round.
        for turn in 0..variants.len() {
            let variant = (turn + round) % variants.len();
            let figures = (variants[variant].1)();
            for (all, figure) in measured[variant].iter_mut().zip(figures) {
                all.extend(figure);
            }
        }
    }
    println!("\n{}", workload.name);
    println!("| | {} |", workload.figures.join(" | "));
    println!("|---|{}", "--:|".repeat(workload.figures.len()));
    for ((name, _), figures) in variants.iter().zip(&mut measured) {
        let columns: Vec<_> = figures.iter_mut().map(|rounds| spread(rounds)).collect();
        println!("| {name} | {} |", columns.join(" | "));
    }
}

/// Returns the median, the lowest and the highest value.
fn spread(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    match &*values {
        [] => "–".into(),
        [low, .., high] => {
            format!("{} ({} to {})", digits(values[values.len() / 2]), digits(*low), digits(*high))
        }
        [only] => digits(*only),
    }
}

fn digits(value: f64) -> String {
    match value {
        1e4.. => format!("{:.0}k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// The operations of a thread, or of several.
#[derive(Default)]
struct Operations {
    nanos: Vec<u64>,
    sleeps: u64,
}

impl Operations {
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        self.since(Instant::now(), call)
    }

    fn since<T>(&mut self, start: Instant, call: impl FnOnce() -> T) -> T {
        let result = call();
        self.nanos.push(start.elapsed().as_nanos() as u64);
        result
    }

    fn of(threads: Vec<ScopedJoinHandle<'_, Self>>) -> Self {
        let mut all = Self::default();
        for thread in threads {
            let one = thread.join().expect("no panic");
            all.nanos.extend(one.nanos);
            all.sleeps += one.sleeps;
        }
        all.nanos.sort_unstable();
        all
    }

    fn a_second(&self) -> Option<f64> {
        Some(self.nanos.len() as f64 / LENGTH.as_secs_f64())
    }

    fn micros(&self, quantile: f64) -> Option<f64> {
        let last = self.nanos.len().checked_sub(1)?;
        self.nanos.get((last as f64 * quantile) as usize).map(|nanos| *nanos as f64 / 1e3)
    }

    fn millis(&self, quantile: f64) -> Option<f64> {
        self.micros(quantile).map(|micros| micros / 1e3)
    }

    /// Returns the sleeps of these operations and of `others`, for 1,000 of both.
    fn sleeps_beside(&self, others: &Self) -> Option<f64> {
        let operations = self.nanos.len() + others.nanos.len();
        Some((self.sleeps + others.sleeps) as f64 * 1e3 / operations as f64)
    }
}

/// Returns the number of times that this thread has slept; zero if the system does not tell.
fn sleeps() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or_default()
}

/// Calls `step` again and again for the length of a round.
fn repeat(stop: &AtomicBool, mut step: impl FnMut(&mut Operations)) -> Operations {
    let (mut operations, before) = (Operations::default(), sleeps());
    while !stop.load(Ordering::Relaxed) {
        step(&mut operations);
    }
    operations.sleeps = sleeps() - before;
    operations
}

fn stop_after(stop: &AtomicBool) {
    sleep(LENGTH);
    stop.store(true, Ordering::Relaxed);
}

/// A reader-writer lock.
trait Lock: Sync {
    fn reading(&self, work: impl FnOnce());
    fn writing(&self, work: impl FnOnce());
}

impl Lock for Rwsem {
    fn reading(&self, work: impl FnOnce()) {
        if !self.try_read() {
            self.read();
        }
        work();
        self.end_read();
    }

    fn writing(&self, work: impl FnOnce()) {
        self.write();
        work();
        self.end_write();
    }
}

impl Lock for parking_lot::RwLock<()> {
    fn reading(&self, work: impl FnOnce()) {
        let _held = self.read();
        work();
    }

    fn writing(&self, work: impl FnOnce()) {
        let _held = self.write();
        work();
    }
}

/// Works for about `nanos` nanoseconds on a processor of 3 GHz.
fn work(nanos: u64) {
    let mut value = 1u64;
    for _ in 0..nanos {
        value = black_box(value.wrapping_mul(3));
    }
}

fn lock(lock: &impl Lock) -> Figures {
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let thread = |writes: bool| {
            let stop = &stop;
            scope.spawn(move || {
                repeat(stop, |operations| {
                    match writes {
                        true => operations.time(|| lock.writing(|| work(200))),
                        false => operations.time(|| lock.reading(|| work(200))),
                    }
                    work(400);
                })
            })
        };
        let (readers, writers) = ([false, false].map(thread).into(), [true, true].map(thread).into());
        stop_after(&stop);
        let (reads, writes) = (Operations::of(readers), Operations::of(writers));
        vec![
            reads.a_second(),
            writes.a_second(),
            writes.micros(0.99),
            writes.millis(1.0),
            writes.sleeps_beside(&reads),
        ]
    })
}

fn space<D: LockingDesign>(limits: Limits) -> Space<D> {
    let engine = Engine::new(Soft::new(8192).expect("memory"), limits).expect("an engine");
    AddressSpace::new(&engine).expect("a space")
}

fn cycles<D: LockingDesign>() -> Figures {
    let space = space::<D>(Limits::default());
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let thread = |_| {
            let (space, stop) = (&space, &stop);
            scope.spawn(move || {
                repeat(stop, |operations| {
                    operations.time(|| {
                        let at = space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
                        space.store_u64(at, 1).expect("a store");
                        space.unmap(at, PAGE_SIZE).expect("unmapped");
                    });
                })
            })
        };
        let threads = [0, 1].map(thread).into();
        stop_after(&stop);
        let cycles = Operations::of(threads);
        vec![
            cycles.a_second(),
            cycles.micros(0.99),
            cycles.millis(1.0),
            cycles.sleeps_beside(&Operations::default()),
        ]
    })
}

/// Changes the rights of a mapping, and back in the next turn.
fn change<D: LockingDesign>(space: &Space<D>, at: VirtAddr, turn: u64) {
    let rights = if turn.is_multiple_of(2) { Protection::READ } else { Protection::READ | Protection::WRITE };
    space.protect(at, PAGE_SIZE, rights).expect("protected");
}

fn faults_beside_changes<D: LockingDesign>() -> Figures {
    const PAGES: u64 = 32;
    let space = space::<D>(Limits::default());
    let map = |pages| space.map(MapRequest::anonymous(pages * PAGE_SIZE)).expect("a mapping");
    let own = [map(PAGES), map(PAGES), map(PAGES)];
    let changed = map(1);
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let fault = |start: VirtAddr| {
            let (space, stop) = (&space, &stop);
            scope.spawn(move || {
                repeat(stop, |operations| {
                    for page in 0..PAGES {
                        let at = VirtAddr::new(start.get() + page * PAGE_SIZE);
                        operations.time(|| space.store_u64(at, 1).expect("a store"));
                    }
                    space.discard(start, PAGES * PAGE_SIZE).expect("discarded");
                })
            })
        };
        let faults = own.map(fault).into();
        let changes = scope.spawn(|| {
            let mut turn = 0;
            repeat(&stop, |operations| {
                operations.time(|| change(&space, changed, turn));
                turn += 1;
            })
        });
        stop_after(&stop);
        let (faults, changes) = (Operations::of(faults), Operations::of(vec![changes]));
        vec![
            faults.a_second(),
            changes.a_second(),
            changes.micros(0.99),
            changes.millis(1.0),
            changes.sleeps_beside(&faults),
        ]
    })
}

fn cold_reads<D: LockingDesign>() -> Figures {
    let space = space::<D>(Limits { cached_pages: CACHED_PAGES, ..Limits::default() });
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(FILE_PAGES * PAGE_SIZE).expect("its length");
    let store = DelayedStore::new(FileStore::from_file(file).expect("a store"), READ);
    let file = File::open(space.engine(), Arc::new(store)).expect("a file");
    let source = Source::File { file, first: 0, sharing: Sharing::Private };
    let request = MapRequest { source, ..MapRequest::anonymous(FILE_PAGES * PAGE_SIZE) };
    let start = space.map(request.protection(Protection::READ)).expect("a mapping");
    let changed = space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let read = |thread: u64| {
            let (space, stop) = (&space, &stop);
            scope.spawn(move || {
                let mut turn = thread * 512;
                repeat(stop, |operations| {
                    let at = VirtAddr::new(start.get() + turn % FILE_PAGES * PAGE_SIZE);
                    operations.time(|| space.load_u64(at).expect("a load"));
                    turn += 1;
                })
            })
        };
        let reads = std::array::from_fn::<_, 8, _>(|thread| read(thread as u64)).into();
        let changes = scope.spawn(|| {
            let (mut turn, begin) = (0, Instant::now());
            repeat(&stop, |operations| {
                // From the scheduled start, so that a late change counts its delay.
                let due = begin + PERIOD * turn;
                sleep(due.saturating_duration_since(Instant::now()));
                operations.since(due, || change(&space, changed, turn.into()));
                turn += 1;
            })
        });
        stop_after(&stop);
        let (reads, changes) = (Operations::of(reads), Operations::of(vec![changes]));
        vec![reads.a_second(), changes.millis(0.5), changes.millis(0.99)]
    })
}
