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
//! takes [`MOST_SPANS`] spans. When one lane is full, the recording of all threads ends, so that no thread looks idle
//! and no wait lacks its holder because a lane had no room.

pub mod blame;
pub mod trace;

use faultless::stats::Counter;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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
pub enum Activity {
    /// An operation. The waits within it are separate spans.
    Operation(Operation),
    /// A wait, with the counter that counted its time.
    Wait(Counter),
}

impl Activity {
    /// Returns the name in traces and legends.
    pub fn name(self) -> String {
        match self {
            Self::Operation(operation) => operation.name().into(),
            Self::Wait(counter) => format!("waits for {}", cause(counter)),
        }
    }
}

/// An operation or a wait, with its beginning and end in nanoseconds of the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The operation or the wait.
    pub activity: Activity,
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
}

/// The recorded operations and waits of all threads of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// A lane for each thread.
    pub lanes: Vec<Lane>,
    /// The number of threads without a lane, because there were more than [`MOST_LANES`].
    pub left_out: usize,
    /// Whether the recording ended before the round, because a lane was full.
    pub ended_early: bool,
}

impl Recording {
    /// Returns the first and the last moment; `None` if there are no spans.
    pub fn extent(&self) -> Option<(u64, u64)> {
        let spans = || self.lanes.iter().flat_map(|lane| &lane.spans);
        Some((spans().map(|span| span.from).min()?, spans().map(|span| span.to).max()?))
    }

    /// Returns the time in nanoseconds from the first moment to the last one; 0 if there are no spans.
    pub fn length(&self) -> u64 {
        self.extent().map_or(0, |(first, last)| last - first)
    }
}

/// The collector of the lanes of a round.
#[derive(Debug)]
pub struct Recorder {
    /// Lanes of threads that have ended, with their places. Protected by its lock.
    lanes: Mutex<Vec<(usize, Lane)>>,
    /// The number of threads that have joined. Atomic.
    joined: AtomicUsize,
    /// Whether spans are recorded now. Atomic.
    is_on: AtomicBool,
    /// The end of the span that filled a lane, by the machine's clock; `u64::MAX` if no lane is full. Atomic.
    full_at: AtomicU64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            lanes: Mutex::default(),
            joined: AtomicUsize::new(0),
            is_on: AtomicBool::new(false),
            full_at: AtomicU64::new(u64::MAX),
        }
    }
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
    /// Begins to record. Called when the warm-up is over. Has no effect if it was called before.
    pub fn start(&self) {
        if self.full_at.load(Ordering::Relaxed) == u64::MAX {
            self.is_on.store(true, Ordering::Relaxed);
        }
    }

    /// Ends the recording of all threads at `moment`, because a lane is full.
    fn stop(&self, moment: u64) {
        self.full_at.fetch_min(moment, Ordering::Relaxed);
        self.is_on.store(false, Ordering::Relaxed);
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

    /// Returns the recording of all threads that have ended. If a lane was full, the recording has only the spans that
    /// had ended by that moment.
    pub fn finish(&self) -> Recording {
        let mut lanes = mem::take(&mut *self.lanes.lock().unwrap_or_else(PoisonError::into_inner));
        lanes.sort_by_key(|(place, _)| *place);
        let mut lanes: Vec<Lane> = lanes.into_iter().map(|(_, lane)| lane).collect();
        number(&mut lanes);
        // Another thread may have added a span before it noticed the end.
        let end = self.full_at.load(Ordering::Relaxed);
        lanes.iter_mut().for_each(|lane| lane.spans.retain(|span| span.to <= end));
        let left_out = self.joined.load(Ordering::Relaxed).saturating_sub(MOST_LANES);
        Recording { lanes, left_out, ended_early: end != u64::MAX }
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

/// Calls `use_it` with the lane of this thread, if the thread is being recorded. Otherwise returns `None`.
fn with_open<R>(use_it: impl FnOnce(&mut Open) -> R) -> Option<R> {
    // A thread that is ending may wait after its thread-local memory is gone.
    let used = OPEN.try_with(|open| {
        let mut open = open.borrow_mut();
        open.as_mut().filter(|open| open.recorder.is_on.load(Ordering::Relaxed)).map(use_it)
    });
    used.ok().flatten()
}

impl Open {
    /// Adds a span. If the lane is then full, ends the recording.
    fn push(&mut self, span: Span) {
        self.lane.push(span);
        if self.lane.spans.len() == MOST_SPANS {
            self.recorder.stop(span.to);
        }
    }
}

impl Lane {
    fn push(&mut self, span: Span) {
        let is_wait = matches!(span.activity, Activity::Wait(_));
        let goes_on =
            |last: &&mut Span| is_wait && last.activity == span.activity && span.from < last.to + GAP;
        match self.spans.last_mut().filter(goes_on) {
            Some(last) => last.to = span.to,
            None => self.spans.push(span),
        }
    }
}

/// Runs `work`, which is `operation`. If this thread is being recorded, records the beginning and the end by `clock`. Reads no clock
/// once the recording has ended, so that a scenario of short operations then runs as it does without a recorder.
pub fn operation<R>(operation: Operation, clock: impl Fn() -> u64, work: impl FnOnce() -> R) -> R {
    let Some(from) = with_open(|_| clock()) else { return work() };
    let result = work();
    with_open(|open| open.push(Span { activity: Activity::Operation(operation), from, to: clock() }));
    result
}

/// Records a wait of this thread, if the thread is being recorded.
pub fn on_wait(counter: Counter, from: u64, to: u64) {
    with_open(|open| open.push(Span { activity: Activity::Wait(counter), from, to }));
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
        Counter::DirtyWait => "the limit of dirty pages",
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
        let Recording { lanes, left_out, ended_early } = recorder.finish();
        assert_eq!((lanes.len(), left_out, ended_early), (2, 0, false));
        assert_eq!((lanes[0].name.as_str(), lanes[1].name.as_str()), ("reader 1", "reader 2"));
        let wait = Span { activity: Activity::Wait(Counter::IoWait), from: 3, to: 5 };
        let fault = Span { activity: Activity::Operation(Operation::Fault), from: 0, to: 10 };
        assert_eq!(lanes[0].spans, [wait, fault]);
        assert_eq!(lanes[1].spans.len(), 1);
    }

    #[test]
    fn steps_of_one_wait_are_one_span() {
        let mut lane = Lane::default();
        for from in [0, 100, 200, 200 + 2 * GAP] {
            lane.push(Span { activity: Activity::Wait(Counter::PageBitWait), from, to: from + 90 });
        }
        let spans: Vec<_> = lane.spans.iter().map(|span| (span.from, span.to)).collect();
        assert_eq!(spans, [(0, 290), (200 + 2 * GAP, 290 + 2 * GAP)]);
        // Two operations are never merged.
        let mut lane = Lane::default();
        for from in [0, 100] {
            lane.push(Span { activity: Activity::Operation(Operation::Map), from, to: from + 90 });
        }
        assert_eq!(lane.spans.len(), 2);
    }

    #[test]
    fn a_recording_has_a_lane_for_so_many_threads() {
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
        assert!(!recording.ended_early);
    }

    /// ```text
    ///  busy    [][][][][][]...[]|               full: 10,000 spans
    ///  other    [ wait ]   [    fault    ]  []   the fault is under way at the end
    /// ```
    #[test]
    fn a_full_lane_ends_the_recording_of_all_threads() {
        let recorder = Arc::new(Recorder::default());
        recorder.start();
        let busy = || {
            let _joined = recorder.join("busy");
            let clock = ticks();
            (0..MOST_SPANS + 7).for_each(|_| operation(Operation::Fault, &clock, || ()));
            // Two readings for each recorded span, and none afterwards.
            assert_eq!(clock(), 20 * MOST_SPANS as u64);
        };
        let end = 20 * MOST_SPANS as u64 - 10;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _joined = recorder.join("other");
                on_wait(Counter::IoWait, 10, 20);
                let late = || std::thread::scope(|scope| scope.spawn(busy).join().unwrap());
                operation(Operation::Fault, || end - 5, late);
                operation(Operation::Map, || end + 5, || ());
            });
        });
        let recording = recorder.finish();
        assert!(recording.ended_early);
        let spans: Vec<_> =
            recording.lanes.iter().map(|lane| (lane.name.as_str(), lane.spans.len())).collect();
        assert_eq!(spans, [("other", 1), ("busy", MOST_SPANS)]);
        assert_eq!((recording.extent(), recording.length()), (Some((0, end)), end));
    }

    #[test]
    fn a_span_that_ends_after_the_end_is_left_out() {
        let recorder = Arc::new(Recorder::default());
        recorder.start();
        let joined = recorder.join("late");
        on_wait(Counter::IoWait, 0, 90);
        on_wait(Counter::FreezeWait, 50, 110);
        recorder.stop(100);
        recorder.stop(105);
        // A recording that has ended does not begin again.
        recorder.start();
        on_wait(Counter::IoWait, 95, 99);
        drop(joined);
        let recording = recorder.finish();
        assert_eq!((recording.lanes[0].spans.len(), recording.ended_early), (1, true));
    }

    #[test]
    fn each_counter_of_a_wait_has_a_name() {
        for counter in Counter::ALL.iter().filter(|counter| counter.name().ends_with("_ns")) {
            assert!(!cause(*counter).ends_with("_ns"), "{}", counter.name());
        }
    }
}
