//! The record of one round: the operations and the waits of each thread, with their times.
//!
//! ```text
//!  Round::spawn ──► Recorder::join       a lane for the thread, in thread-local memory
//!  SoftProcess  ──► operation(…)         fault, mmap, fork, ... by the machine's clock
//!  engine, designs ──► Host::waited ──► on_wait(…)
//!  end of a thread ──► its lane goes to the Recorder ──► Recording ──► blame: the holder of each wait
//!                                                             └──► trace: a file for a trace viewer
//! ```
//! A recorded round is an additional round and counts for no figure. A thread writes only to its own lane. A lane
//! takes [`MOST_SPANS`] spans. Later spans are dropped and counted.

pub mod blame;
pub mod trace;

use faultless::stats::Counter;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The length of a recorded round.
pub const LENGTH: Duration = Duration::from_millis(250);
/// The maximum number of spans of a lane: 240 KiB.
pub const MOST_SPANS: usize = 10_000;
/// The maximum number of recorded threads.
pub const MOST_LANES: usize = 64;
/// Two waits for the same cause become one if less than this number of nanoseconds lies between them. A thread that
/// waits for a bit reports many short waits.
const GAP: u64 = 2_000;

/// An operation of a scenario's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A page fault, from the access until the page is mapped.
    Fault,
    /// mmap.
    Map,
    /// munmap.
    Unmap,
    /// mprotect.
    Protect,
    /// madvise(MADV_DONTNEED).
    Discard,
    /// fork.
    Fork,
    /// The exit of a child.
    Exit,
}

impl Operation {
    /// All operations, in the order of legends.
    pub const ALL: [Self; 7] =
        [Self::Fault, Self::Map, Self::Unmap, Self::Protect, Self::Discard, Self::Fork, Self::Exit];

    /// Returns the name in traces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fault => "page fault",
            Self::Map => "mmap",
            Self::Unmap => "munmap",
            Self::Protect => "mprotect",
            Self::Discard => "madvise",
            Self::Fork => "fork",
            Self::Exit => "exit",
        }
    }
}

/// An operation or a wait of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An operation. The waits within it are separate spans.
    Does(Operation),
    /// A wait, with the counter that counted its time.
    Waits(Counter),
}

impl What {
    /// Returns the name in traces and legends.
    pub fn name(self) -> String {
        match self {
            Self::Does(operation) => operation.name().into(),
            Self::Waits(counter) => format!("waits for {}", cause(counter)),
        }
    }
}

/// An operation or a wait, with its beginning and end in nanoseconds of the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The operation or the wait.
    pub what: What,
    /// Its beginning.
    pub from: u64,
    /// Its end.
    pub to: u64,
}

/// The spans of one thread, in the order of their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    /// The name of the thread, with a number if others have the same name.
    pub name: String,
    /// The operations and waits, in the order of their ends.
    pub spans: Vec<Span>,
    /// The number of spans that had no room.
    pub dropped: u64,
}

/// The recorded operations and waits of all threads of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// A lane for each thread.
    pub lanes: Vec<Lane>,
    /// The number of threads without a lane, because there were more than [`MOST_LANES`].
    pub left_out: usize,
}

impl Recording {
    /// Returns the first and the last moment; `None` if there are no spans.
    pub fn extent(&self) -> Option<(u64, u64)> {
        let spans = || self.lanes.iter().flat_map(|lane| &lane.spans);
        Some((spans().map(|span| span.from).min()?, spans().map(|span| span.to).max()?))
    }

    /// Returns the number of spans that were dropped.
    pub fn dropped(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.dropped).sum()
    }
}

/// The collector of the lanes of a round.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Lanes of threads that have ended, with their places. Protected by its lock.
    lanes: Mutex<Vec<(usize, Lane)>>,
    /// The number of threads that have joined. Atomic.
    joined: AtomicUsize,
    /// Whether spans are recorded now. Atomic.
    is_on: AtomicBool,
}

/// The lane of the calling thread. Dropping it hands the lane to the recorder.
#[derive(Debug)]
pub struct Joined(());

struct Open {
    recorder: Arc<Recorder>,
    place: usize,
    lane: Lane,
}

thread_local! {
    static OPEN: RefCell<Option<Open>> = const { RefCell::new(None) };
}

impl Recorder {
    /// Begins to record. Called when the warm-up is over.
    pub fn start(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// Gives the calling thread a lane until the returned value is dropped. Returns `None` if there are too many threads.
    pub fn join(self: &Arc<Self>, name: &str) -> Option<Joined> {
        let place = self.joined.fetch_add(1, Ordering::Relaxed);
        if place >= MOST_LANES {
            return None;
        }
        let lane = Lane { name: name.into(), ..Lane::default() };
        OPEN.set(Some(Open { recorder: Arc::clone(self), place, lane }));
        Some(Joined(()))
    }

    /// Returns the recording of all threads that have ended.
    pub fn finish(&self) -> Recording {
        let mut lanes = mem::take(&mut *self.lanes.lock().unwrap_or_else(PoisonError::into_inner));
        lanes.sort_by_key(|(place, _)| *place);
        let mut lanes: Vec<Lane> = lanes.into_iter().map(|(_, lane)| lane).collect();
        number(&mut lanes);
        let left_out = self.joined.load(Ordering::Relaxed).saturating_sub(MOST_LANES);
        Recording { lanes, left_out }
    }
}

/// Appends a number to each name that several lanes have.
fn number(lanes: &mut [Lane]) {
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    lanes.iter().for_each(|lane| *all.entry(lane.name.clone()).or_default() += 1);
    let mut next: BTreeMap<String, usize> = BTreeMap::new();
    for lane in lanes.iter_mut().filter(|lane| all[&lane.name] > 1) {
        let number = next.entry(lane.name.clone()).or_default();
        *number += 1;
        lane.name = format!("{} {number}", lane.name);
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(Open { recorder, place, lane }) = OPEN.take() {
            recorder.lanes.lock().unwrap_or_else(PoisonError::into_inner).push((place, lane));
        }
    }
}

/// Calls `add` with the lane of this thread, if the thread is being recorded. Otherwise returns `None`.
fn with_lane<R>(add: impl FnOnce(&mut Lane) -> R) -> Option<R> {
    OPEN.with_borrow_mut(|open| {
        open.as_mut()
            .filter(|open| open.recorder.is_on.load(Ordering::Relaxed))
            .map(|open| add(&mut open.lane))
    })
}

impl Lane {
    fn push(&mut self, span: Span) {
        let is_wait = matches!(span.what, What::Waits(_));
        let goes_on = |last: &&mut Span| is_wait && last.what == span.what && span.from < last.to + GAP;
        if let Some(last) = self.spans.last_mut().filter(goes_on) {
            last.to = span.to;
        } else if self.is_full() {
            self.dropped += 1;
        } else {
            self.spans.push(span);
        }
    }

    fn is_full(&self) -> bool {
        self.spans.len() == MOST_SPANS
    }
}

/// Runs `work`, which is `operation`. If this thread is being recorded, records the beginning and the end by `clock`. Reads no clock
/// once the lane is full, so that a scenario of short operations then runs as it does without a recorder.
pub fn operation<R>(operation: Operation, clock: impl Fn() -> u64, work: impl FnOnce() -> R) -> R {
    let begin = |lane: &mut Lane| {
        let is_full = lane.is_full();
        lane.dropped += u64::from(is_full);
        (!is_full).then(&clock)
    };
    let Some(from) = with_lane(begin).flatten() else { return work() };
    let result = work();
    with_lane(|lane| lane.push(Span { what: What::Does(operation), from, to: clock() }));
    result
}

/// Records a wait of this thread, if the thread is being recorded.
pub fn on_wait(counter: Counter, from: u64, to: u64) {
    with_lane(|lane| lane.push(Span { what: What::Waits(counter), from, to }));
}

/// Returns the name of the lock or event for which `counter` counts waits.
pub const fn cause(counter: Counter) -> &'static str {
    match counter {
        Counter::IoWait => "I/O",
        Counter::WritebackWait => "writeback",
        Counter::PageBitWait | Counter::PreemptedWait => "a page's bit",
        Counter::RangeWait => "a range",
        Counter::TreeLockWait => "the tree lock",
        Counter::FreezeWait => "fork's copy",
        Counter::GraceWait => "a grace period",
        Counter::InvalidateWait => "a shootdown",
        Counter::MemoryWait => "memory",
        Counter::ResizeWait => "a change of the file's length",
        Counter::MmapLockWait => "mmap_lock",
        Counter::MmapLockWaitIo => "mmap_lock, held through I/O",
        Counter::MmapLockWaitFork => "mmap_lock, held by fork",
        Counter::MmapLockWaitChange => "mmap_lock, held by a change",
        Counter::MmapLockWaitFault => "mmap_lock, held by a fault",
        Counter::VmaLockWait => "a VMA lock",
        Counter::VmaLockWaitIo => "a VMA lock, held through I/O",
        Counter::VmaLockWaitFault => "a VMA lock, held by a fault",
        Counter::RangeLockWait => "a range lock",
        Counter::TableLockWait => "a table lock",
        Counter::FolioLockWait => "a folio lock",
        // These counters do not count waits.
        other => other.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks() -> impl Fn() -> u64 {
        let tick = std::cell::Cell::new(0);
        move || tick.replace(tick.get() + 10)
    }

    #[test]
    fn a_thread_is_recorded_between_start_and_its_end() {
        let recorder = Arc::new(Recorder::default());
        let clock = ticks();
        operation(Operation::Map, &clock, || ());
        let joined = recorder.join("reader").unwrap();
        operation(Operation::Map, &clock, || ());
        recorder.start();
        operation(Operation::Fault, &clock, || on_wait(Counter::IoWait, 3, 5));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _joined = recorder.join("reader");
                on_wait(Counter::FreezeWait, 1, 2);
            });
        });
        drop(joined);
        operation(Operation::Map, &clock, || ());
        let Recording { lanes, left_out } = recorder.finish();
        assert_eq!((lanes.len(), left_out), (2, 0));
        assert_eq!((lanes[0].name.as_str(), lanes[1].name.as_str()), ("reader 1", "reader 2"));
        let wait = Span { what: What::Waits(Counter::IoWait), from: 3, to: 5 };
        let fault = Span { what: What::Does(Operation::Fault), from: 0, to: 10 };
        assert_eq!(lanes[0].spans, [wait, fault]);
        assert_eq!(lanes[1].spans.len(), 1);
    }

    #[test]
    fn steps_of_one_wait_are_one_span() {
        let mut lane = Lane::default();
        for from in [0, 100, 200, 200 + 2 * GAP] {
            lane.push(Span { what: What::Waits(Counter::PageBitWait), from, to: from + 90 });
        }
        let spans: Vec<_> = lane.spans.iter().map(|span| (span.from, span.to)).collect();
        assert_eq!(spans, [(0, 290), (200 + 2 * GAP, 290 + 2 * GAP)]);
        // Two operations are never merged.
        let mut lane = Lane::default();
        for from in [0, 100] {
            lane.push(Span { what: What::Does(Operation::Map), from, to: from + 90 });
        }
        assert_eq!(lane.spans.len(), 2);
    }

    #[test]
    fn a_recording_is_bounded_and_says_what_it_dropped() {
        let recorder = Arc::new(Recorder::default());
        recorder.start();
        std::thread::scope(|scope| {
            for _ in 0..MOST_LANES + 3 {
                scope.spawn(|| {
                    let _joined = recorder.join("worker");
                    operation(Operation::Fault, || 0, || ());
                });
            }
        });
        let recording = recorder.finish();
        assert_eq!((recording.lanes.len(), recording.left_out), (MOST_LANES, 3));
        let recorder = Arc::new(Recorder::default());
        let joined = recorder.join("worker");
        recorder.start();
        (0..MOST_SPANS + 7).for_each(|_| operation(Operation::Fault, || 0, || ()));
        drop(joined);
        let recording = recorder.finish();
        assert_eq!((recording.lanes[0].spans.len(), recording.dropped()), (MOST_SPANS, 7));
    }

    #[test]
    fn each_counter_of_a_wait_has_a_name() {
        for counter in Counter::ALL.iter().filter(|counter| counter.name().ends_with("_ns")) {
            assert!(!cause(*counter).ends_with("_ns"), "{}", counter.name());
        }
    }
}
