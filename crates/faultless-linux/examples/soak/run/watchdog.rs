//! Who makes no progress.

use std::fmt::{self, Display, Formatter};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// So long without progress is a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a thread does.
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
        (Self::LookOn, "reading what another thread owns,"),
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
        (Self::BriefRegion, "at a region that lives for a moment,"),
        (Self::SecondRegion, "at a second region of the file,"),
        (Self::CheckAll, "checking all at the end,"),
    ];
}

/// A thread's last operation.
pub struct Progress {
    name: String,
    /// Operations begun. Atomic; written by the thread.
    begun: AtomicU64,
    /// The last of them: what, region, page. Atomic; written by the thread.
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

    /// The thread is done: it cannot hang.
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

/// Looks at all threads now and then.
pub struct Watchdog<'p> {
    /// What each had begun at the last look, and since when.
    seen: Vec<(&'p Progress, u64, Instant)>,
}

impl<'p> Watchdog<'p> {
    pub fn new(all: &[&'p Progress]) -> Self {
        debug_assert!(Doing::ALL.iter().enumerate().all(|(n, (doing, _))| *doing as usize == n));
        Self { seen: all.iter().map(|progress| (*progress, 0, Instant::now())).collect() }
    }

    /// Calls `hang` if there is one.
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
