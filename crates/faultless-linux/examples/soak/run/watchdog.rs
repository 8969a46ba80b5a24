//! The watchdog: finds threads that make no progress.

use std::fmt::{self, Display, Formatter};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The time without progress that counts as a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// The operation that a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Doing {
    Nothing,
    Read,
    LookOn,
    Write,
    ReadSnapshot,
    Discard,
    Protect,
    Unprotect,
    Snapshot,
    CheckSnapshot,
    WriteSnapshot,
    SnapshotAgain,
    DropSnapshot,
    BriefRegion,
    SecondRegion,
    CheckAll,
}

impl Doing {
    const ALL: [(Self, &str); 16] = [
        (Self::Nothing, "doing nothing"),
        (Self::Read, "reading"),
        (Self::LookOn, "reading a page that another thread owns,"),
        (Self::Write, "writing"),
        (Self::ReadSnapshot, "reading a snapshot,"),
        (Self::Discard, "discarding"),
        (Self::Protect, "taking rights from"),
        (Self::Unprotect, "giving rights back to"),
        (Self::Snapshot, "taking a snapshot,"),
        (Self::CheckSnapshot, "checking a snapshot,"),
        (Self::WriteSnapshot, "writing a snapshot,"),
        (Self::SnapshotAgain, "taking a snapshot of a snapshot,"),
        (Self::DropSnapshot, "dropping a snapshot,"),
        (Self::BriefRegion, "using a short-lived region,"),
        (Self::SecondRegion, "using a second region of the file,"),
        (Self::CheckAll, "checking all at the end,"),
    ];
}

/// The last operation of a thread.
pub struct Progress {
    name: String,
    /// The number of operations begun. Atomic; written by the thread.
    begun: AtomicU64,
    /// The last operation: its kind, region and page. Atomic; written by the thread.
    last: AtomicU64,
}

impl Progress {
    pub fn new(name: String) -> Self {
        Self { name, begun: AtomicU64::new(0), last: AtomicU64::new(0) }
    }

    pub fn begin(&self, doing: Doing, arena: usize, page: usize) {
        self.last.store((doing as u64) << 56 | (arena as u64) << 48 | page as u64, Relaxed);
        self.begun.fetch_add(1, Relaxed);
    }

    /// Notes that the thread is done, so that it is not taken to hang.
    pub fn end(&self) {
        self.begin(Doing::Nothing, 0, 0);
    }

    fn is_idle(&self) -> bool {
        self.last.load(Relaxed) >> 56 == Doing::Nothing as u64
    }
}

impl Display for Progress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let last = self.last.load(Relaxed);
        let (_, doing) = Doing::ALL[(last >> 56) as usize];
        let (region, page) = (["anonymous", "file"][(last >> 48 & 1) as usize], last & 0xffff_ffff);
        write!(f, "{} is {doing} page {page} of the {region} region", self.name)
    }
}

/// Checks the progress of all threads from time to time.
pub struct Watchdog<'p> {
    /// For each thread: the number of operations begun at the last look, and the time since which it is unchanged.
    seen: Vec<(&'p Progress, u64, Instant)>,
}

impl<'p> Watchdog<'p> {
    pub fn new(all: &[&'p Progress]) -> Self {
        debug_assert!(Doing::ALL.iter().enumerate().all(|(n, (doing, _))| *doing as usize == n));
        Self { seen: all.iter().map(|progress| (*progress, 0, Instant::now())).collect() }
    }

    /// Calls `hang` if a thread hangs.
    pub fn look(&mut self, hang: fn(&str) -> !) {
        for (progress, begun, since) in &mut self.seen {
            let now = progress.begun.load(Relaxed);
            if now != *begun || progress.is_idle() {
                (*begun, *since) = (now, Instant::now());
            }
        }
        let hanging: Vec<String> = self
            .seen
            .iter()
            .filter(|(_, _, since)| since.elapsed() > PATIENCE)
            .map(|(progress, ..)| progress.to_string())
            .collect();
        if !hanging.is_empty() {
            hang(&format!("hang: no progress for {} s: {}", PATIENCE.as_secs(), hanging.join("; ")));
        }
    }
}
