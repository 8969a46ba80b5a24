//! Threads that touch two regions at random while another thread discards, protects and snapshots parts of them. Every
//! byte that is read is checked.
//!
//! ```text
//!   toucher 0 ┐             ┌─ anonymous ─┐   discard, protect ┌───────────┐
//!   toucher 1 ├─ read/write │ page page … │ ◄───────────────── │ disturber │
//!   …         │ ──────────► │             │     snapshot ────► │           │ ── checks, writes, snapshots again, drops
//!   toucher n ┘             └─── file ────┘   (at most a few)  └───────────┘ ── short-lived regions
//!        └────── reads snapshots too ──────────────┘
//! ```
//!
//! # How a byte is checked
//! **Stamps** (`stamp.rs`). A write fills a page with stamps, from word 0 to word 511. A stamp holds the page's
//! generation, which each write increases by one, and a hash of region, page, generation and word. A page that was
//! never written is its *base*: zeros, or the file's bytes, a hash with the highest bit set. So each word identifies
//! itself. A word that is neither the base nor a stamp of its place is wrong.
//!
//! **Owners** (`page.rs`). A page has one owner at a time, by a lock of its own. Only the owner writes. It knows the
//! last generation. Two counters of each page count the discards that have begun and those that have ended. They tell
//! the owner which discards can have taken the page before, during and after the write, and during the read:
//!
//! | discards | the page holds |
//! |---|---|
//! | none since before the write | that generation, all of it |
//! | one began after the write and ended before the read | the base, all of it |
//! | other cases | base, stamps, base: the first part was lost during the write, the last part during the read |
//!
//! The result of the first read after the last discard stays valid. A thread that finds a page owned reads it too, and
//! knows bounds: no generation from before the last write that had ended, none that a discard has taken, none that has
//! not begun, and the base only if a discard allows it.
//!
//! **Rights.** The disturber announces a change before the call, and its result after it. A counter of changes shows
//! whether a page had the same rights throughout an access. If so, the access must obey them: no signal if it is
//! allowed, SIGSEGV if it is not.
//!
//! **Instants** (`snapshot.rs`). One thread takes snapshots and discards, so no discard runs during a snapshot. Each
//! page of a snapshot is within the bounds of the call. Since it is of one instant, it has at most a later generation's
//! stamps before an earlier one's. Some words of a stamp name two earlier writes: the last write of the same thread,
//! and the last write of any thread that had ended when this one began. If a snapshot shows a write, it must show those
//! two, or later states of their pages. These links are followed from the newest writes back over many pages. The words
//! that were read from a snapshot are kept, and compared again while its original changes. The disturber's writes to a
//! snapshot must not appear elsewhere; the other checks would find them.
//!
//! **Ends.** At the end all pages are read once more and all regions are dropped. Then no frame, open file or window
//! may be left, and no memory except the C library's own.

mod brief;
mod disturber;
mod page;
mod process;
mod snapshot;
mod stamp;
mod toucher;
mod watchdog;

use faultless::Engine;
use faultless::address::PAGE_SIZE;
use faultless::stats::{Counter, Statistics};
use faultless::store::{FileStore, Store};
use faultless_linux::{Linux, OpenError, Options, Pager, Region};
use page::Page;
use process::Process;
use snapshot::Snapshot;
use stamp::{Formula, mix};
use std::fmt::{self, Display, Formatter};
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};
use watchdog::Progress;

pub const PAGE: usize = PAGE_SIZE as usize;

/// The number of snapshots that live at a time.
pub const SNAPSHOTS: usize = 3;

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Config {
    pub time: Duration,
    pub seed: u64,
    /// The number of touchers.
    pub threads: usize,
    /// The number of threads that serve faults.
    pub handlers: NonZeroUsize,
    /// The size of the anonymous region in bytes; rounded up to whole pages.
    pub anonymous: u64,
    /// The size of the file in bytes; rounded up to whole pages.
    pub file: u64,
}

impl Config {
    /// Returns the pager's memory in bytes. It suffices for both regions with every page written, the file's pages in
    /// the cache, all snapshots and one that a thread still reads (each sharing no page with its original), and 64 MiB
    /// for short-lived regions.
    fn memory(&self) -> u64 {
        let snapshots = (SNAPSHOTS as u64 + 1) * self.anonymous.max(self.file);
        self.anonymous + 2 * self.file + snapshots + (64 << 20)
    }
}

/// The reason that a run ended early.
#[derive(Debug)]
pub enum Trouble {
    /// The pager cannot be opened here.
    Refused(OpenError),
    /// The setting up of the run failed.
    Setup(String),
    /// A byte, a signal or a result that is impossible.
    Wrong(String),
    /// A resource is left.
    Leak(String),
}

impl Display for Trouble {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::Setup(text) => text.fmt(f),
            Self::Wrong(text) => write!(f, "wrong: {text}"),
            Self::Leak(text) => write!(f, "leak: {text}"),
        }
    }
}

/// The reason that a thread ends.
pub enum End {
    /// The thread has found this error.
    Wrong(String),
    /// Another thread has found an error.
    Halted,
}

/// The counters of all threads.
#[derive(Default)]
pub struct Counts {
    pub touched: AtomicU64,
    pub signals: AtomicU64,
    pub discards: AtomicU64,
    pub protects: AtomicU64,
    pub snapshots: AtomicU64,
    /// The time that snapshots took, in nanoseconds: in total, and the longest.
    pub snapshot_time: AtomicU64,
    pub longest_snapshot: AtomicU64,
    /// Pages of snapshots that were compared.
    pub compared: AtomicU64,
    /// Links of snapshots that were followed.
    pub links: AtomicU64,
    /// Short-lived regions.
    pub brief: AtomicU64,
}

pub fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

impl Counts {
    pub fn count_snapshot(&self, time: Duration) {
        let time = time.as_nanos() as u64;
        count(&self.snapshots, 1);
        count(&self.snapshot_time, time);
        self.longest_snapshot.fetch_max(time, Relaxed);
    }
}

/// One of the two regions, and the state by which it is checked.
pub struct Arena {
    pub name: &'static str,
    pub region: Region,
    pub formula: Formula,
    pub pages: Box<[Page]>,
    /// The write that has ended last: page in the upper half, generation in the lower. Atomic.
    pub last: AtomicU64,
    /// The same for each toucher.
    pub last_of: Box<[AtomicU64]>,
}

/// The state that all threads share.
pub struct Shared {
    pub config: Config,
    pub pager: Pager,
    pub arenas: [Arena; 2],
    pub store: Arc<dyn Store>,
    /// The live snapshots. The disturber changes the list; a toucher takes one out to read it.
    pub snapshots: parking_lot::RwLock<Vec<Arc<Snapshot>>>,
    pub counts: Counts,
    /// Set when the time is up.
    pub stop: AtomicBool,
    /// The first error that was found; it ends all threads.
    pub found: OnceLock<String>,
}

impl Shared {
    pub fn halted(&self) -> bool {
        self.found.get().is_some()
    }

    pub fn over(&self) -> bool {
        self.stop.load(Relaxed) || self.halted()
    }

    fn end(&self, result: Result<(), End>) {
        if let Err(End::Wrong(text)) = result {
            let _ = self.found.set(text);
        }
    }
}

/// A generator of random numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, thread: u64) -> Self {
        Self(mix(seed ^ mix(thread + 1)))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a number less than `end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    /// Returns `true` with a probability of `often` in a thousand.
    pub fn permille(&mut self, often: usize) -> bool {
        self.below(1000) < often
    }
}

/// The result of a run without errors.
pub struct Report {
    pub seconds: f64,
    pub counts: Counts,
    pub statistics: Statistics,
    pub frames_left: u64,
    before: Process,
    most: Process,
    after: Process,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { seconds, counts, statistics, frames_left, before, most, after } = self;
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let rate = |n: u64| format!("{n} ({:.0}/s)", n as f64 / seconds);
        let stat = |counter| statistics.get(counter);
        let mib = |bytes: u64| bytes >> 20;
        writeln!(f, "no wrong byte, hang or leak in {seconds:.0} s")?;
        writeln!(f, "  pages touched       {}", rate(get(&counts.touched)))?;
        writeln!(f, "  faults              {}", rate(stat(Counter::Faults)))?;
        writeln!(f, "  major faults        {}", rate(stat(Counter::MajorFaults)))?;
        writeln!(f, "  copies              {}", rate(stat(Counter::CowCopies)))?;
        writeln!(f, "  reuses              {}", rate(stat(Counter::CowReuses)))?;
        let (compared, links) = (get(&counts.compared), get(&counts.links));
        let snapshots = get(&counts.snapshots);
        let milliseconds = |counter: &AtomicU64| get(counter) as f64 / 1e6;
        let (mean, longest) = (
            milliseconds(&counts.snapshot_time) / snapshots.max(1) as f64,
            milliseconds(&counts.longest_snapshot),
        );
        writeln!(f, "  snapshots           {snapshots}; {mean:.2} ms each, {longest:.2} ms the longest")?;
        writeln!(f, "    looked at         {compared} pages, {links} links followed")?;
        writeln!(f, "  discards            {}", rate(get(&counts.discards)))?;
        writeln!(f, "  protects            {}", rate(get(&counts.protects)))?;
        writeln!(f, "  brief regions       {}", get(&counts.brief))?;
        writeln!(f, "  signals seen        {}", rate(get(&counts.signals)))?;
        writeln!(f, "  frames left         {frames_left}")?;
        let (first, high, last) = (mib(before.resident), mib(most.resident), mib(after.resident));
        let growth = after.resident as i64 - before.resident as i64;
        writeln!(
            f,
            "  resident            {first} MiB before, {high} at most, {last} after: growth {} KiB",
            growth >> 10
        )?;
        let (first, last) = (before.allocated >> 10, after.allocated >> 10);
        writeln!(f, "  allocated           {first} KiB before, {last} after")?;
        writeln!(
            f,
            "  open files          {} before, {} at most, {} after",
            before.files, most.files, after.files
        )?;
        let windows = after.windows;
        let (first, high, last) = (before.maps, most.maps, after.maps);
        write!(
            f,
            "  maps                {first} before, {high} at most, {last} after, of which windows: {windows}"
        )
    }
}

/// Makes a real file of the formula's bytes.
fn temporary_file(formula: &Formula, pages: usize) -> std::io::Result<std::fs::File> {
    let mut out = BufWriter::with_capacity(1 << 20, tempfile::tempfile()?);
    for page in 0..pages {
        for word in formula.base(page as u32) {
            out.write_all(&word.to_ne_bytes())?;
        }
    }
    Ok(out.into_inner()?)
}

fn arena(name: &'static str, region: Region, formula: Formula, threads: usize) -> Arena {
    let pages = (0..region.len() / PAGE).map(|_| Page::default()).collect();
    let last_of = (0..threads).map(|_| AtomicU64::new(0)).collect();
    Arena { name, region, formula, pages, last: AtomicU64::new(0), last_of }
}

/// Runs the soak. `tick` is called a few times a second with the time passed and the pages touched so far. `hang` is
/// called once, with the threads that hang, and does not return.
pub fn run(
    mut config: Config,
    mut tick: impl FnMut(Duration, u64),
    hang: fn(&str) -> !,
) -> Result<Report, Trouble> {
    let setup = |error: &dyn Display| Trouble::Setup(error.to_string());
    // Resources that are made once and stay must exist before the process is measured.
    let first = Pager::new(Options { memory: 1 << 20, ..Options::default() }).map_err(Trouble::Refused)?;
    let _ = first.anonymous(PAGE).map(|mut region| region[0] = 1);
    drop(first);
    config.anonymous = config.anonymous.next_multiple_of(PAGE_SIZE);
    config.file = config.file.next_multiple_of(PAGE_SIZE);
    let anonymous = Formula { seed: mix(config.seed), file: false };
    let file = Formula { seed: mix(config.seed + 1), file: true };
    let bytes = temporary_file(&file, config.file as usize / PAGE)
        .map_err(|error| Trouble::Setup(format!("cannot write the temporary file: {error}")))?;
    let before = Process::now();

    let options = Options { memory: config.memory(), handlers: config.handlers, ..Options::default() };
    let pager = Pager::new(options).map_err(Trouble::Refused)?;
    let store: Arc<dyn Store> = {
        let bytes = bytes.try_clone().map_err(|error| setup(&error))?;
        Arc::new(FileStore::from_file(bytes).map_err(|error| setup(&error))?)
    };
    let anonymous_region = pager.anonymous(config.anonymous as usize).map_err(|error| setup(&error))?;
    let file_region = pager.store(Arc::clone(&store)).map_err(|error| setup(&error))?;
    let arenas = [
        arena("anonymous", anonymous_region, anonymous, config.threads),
        arena("file", file_region, file, config.threads),
    ];
    let shared = Shared {
        config,
        pager,
        arenas,
        store,
        snapshots: Default::default(),
        counts: Counts::default(),
        stop: AtomicBool::new(false),
        found: OnceLock::new(),
    };
    let start = Instant::now();
    let Touched { most, seconds, statistics } = scene(&shared, start, &mut tick, hang)?;
    let Shared { pager, arenas, store, snapshots, counts, .. } = shared;
    drop((arenas, store, snapshots));
    let engine = Arc::clone(pager.engine());
    let frames_left = frames_left(&engine);
    drop((engine, pager));
    let after = Process::settled(&before);
    drop(bytes);
    if frames_left != 0 {
        return Err(Trouble::Leak(format!(
            "{frames_left} frames are still used after all regions have ended"
        )));
    }
    before.leak(&after).map_or(Ok(()), |leak| Err(Trouble::Leak(leak)))?;
    Ok(Report { seconds, counts, statistics, frames_left, before, most, after })
}

/// The figures of the run before the last check of all pages.
struct Touched {
    most: Process,
    seconds: f64,
    statistics: Statistics,
}

/// Runs all threads, from the first touch to the last check.
fn scene(
    shared: &Shared,
    start: Instant,
    tick: &mut impl FnMut(Duration, u64),
    hang: fn(&str) -> !,
) -> Result<Touched, Trouble> {
    let touchers: Vec<_> =
        (0..shared.config.threads).map(|n| Progress::new(format!("toucher {n}"))).collect();
    let (disturber, helper) = (Progress::new("disturber".into()), Progress::new("helper".into()));
    let all: Vec<&Progress> = touchers.iter().chain([&disturber, &helper]).collect();
    let mut most = Process::now();
    let mut watchdog = watchdog::Watchdog::new(&all);
    let mut looks = 0_u32;
    let mut watch = |threads: &[ScopedJoinHandle<'_, ()>]| {
        while !threads.iter().all(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(100));
            if start.elapsed() >= shared.config.time {
                shared.stop.store(true, Relaxed);
            }
            watchdog.look(hang);
            tick(start.elapsed(), shared.counts.touched.load(Relaxed));
            looks += 1;
            if looks.is_multiple_of(8) {
                most.raise(&Process::now());
            }
        }
    };
    let (seconds, statistics) = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (n, progress) in touchers.iter().enumerate() {
            threads.push(scope.spawn(move || shared.end(toucher::run(shared, n, progress))));
        }
        let (progress, helper) = (&disturber, &helper);
        threads.push(scope.spawn(move || shared.end(disturber::run(shared, progress, helper))));
        watch(&threads);
        let touched = (start.elapsed().as_secs_f64(), shared.pager.engine().statistics());
        watch(&[scope.spawn(|| shared.end(toucher::check_all(shared, progress)))]);
        touched
    });
    match shared.found.get() {
        Some(text) => Err(Trouble::Wrong(format!("{text} (seed {})", shared.config.seed))),
        None => Ok(Touched { most, seconds, statistics }),
    }
}

/// Returns the number of frames that are still used, without the engine's page of zeros. Waits at most 10 s for
/// deferred work.
fn frames_left(engine: &Engine<Linux>) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        engine.flush();
        let left = engine.frame_usage().used.saturating_sub(1);
        if left == 0 || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
