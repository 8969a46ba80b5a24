//! What the models of Linux are made of: mmap_lock, and the policies by which the presets differ. Each preset is a
//! file of its own, which says what it models and where it differs.

use faultless::Engine;
use faultless::design::{AfterIo, Attempt, Call};
use faultless::host::{Clock, Host};
use faultless::stats::Counter;
use faultless::vma::Mapping;
use parking_lot::{ArcRwLockReadGuard, RawRwLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What tells the presets of one family apart.
pub trait Policy: Send + Sync + 'static {
    /// The design's name.
    const NAME: &'static str;

    /// What happens after the I/O of such an attempt.
    fn after_io(attempt: Attempt) -> AfterIo;

    /// What happens after waiting for a folio that is up to date and locked.
    fn after_lock(attempt: Attempt) -> AfterIo {
        Self::after_io(attempt)
    }

    /// The attempt after one that has waited; `major`: it started the read itself.
    fn again(attempt: Attempt, major: bool) -> Attempt;

    /// Whether fork locks such a VMA.
    fn fork_locks<H: Host>(_mapping: &Mapping<H>) -> bool {
        true
    }
}

/// `mmap_lock`. A waiting writer holds new readers back, as in `rw_semaphore`: parking_lot sets its writer bit before it
/// waits for the readers to leave.
#[derive(Debug, Default)]
pub struct MmapSemaphore {
    lock: Arc<RwLock<()>>,
    holders: Arc<Holders>,
}

/// Who holds what, for the statistics alone.
#[derive(Debug, Default)]
struct Holders {
    /// What the writer does: one more than a [`Call`], or zero. Written by the writer.
    writer: AtomicU32,
    /// Faults that hold mmap_lock or a VMA lock through their I/O. Atomic.
    in_io: AtomicU32,
}

const NOBODY: u32 = 0;
const CHANGE: u32 = 1;
const FORK: u32 = 2;

impl MmapSemaphore {
    /// Takes the lock for reading, for a fault.
    pub fn read<H: Host>(&self, engine: &Engine<H>) -> RwLockReadGuard<'_, ()> {
        self.waiting(engine, Counter::MmapLockRead, || self.lock.try_read(), || self.lock.read())
    }

    /// Takes it for reading if that needs no wait.
    pub fn try_read<H: Host>(&self, engine: &Engine<H>) -> Option<RwLockReadGuard<'_, ()>> {
        let guard = self.lock.try_read()?;
        engine.counters().add(Counter::MmapLockRead, 1);
        Some(guard)
    }

    /// Takes it for writing.
    pub fn write<H: Host>(&self, engine: &Engine<H>, call: Call) -> MmapWrite<'_> {
        let guard =
            self.waiting(engine, Counter::MmapLockWrite, || self.lock.try_write(), || self.lock.write());
        let writer = if call == Call::Fork { FORK } else { CHANGE };
        self.holders.writer.store(writer, Ordering::Relaxed);
        MmapWrite { holders: &self.holders, guard: Some(guard) }
    }

    /// The same hold as `guard`, independent of the borrow. Never waits: a reader may read again.
    pub fn keep(&self, guard: RwLockReadGuard<'_, ()>) -> MmapKept {
        let owned = self.lock.read_arc_recursive();
        drop(guard);
        MmapKept { _guard: owned, in_io: InIo::new(self) }
    }

    /// What whoever begins to wait now waits for in the end.
    fn cause(&self) -> Counter {
        let writer = self.holders.writer.load(Ordering::Relaxed);
        match writer {
            _ if self.has_io() => Counter::MmapLockWaitIo,
            FORK => Counter::MmapLockWaitFork,
            NOBODY => Counter::MmapLockWaitFault,
            _ => Counter::MmapLockWaitChange,
        }
    }

    /// Whether some fault holds a lock of this space through its I/O.
    pub fn has_io(&self) -> bool {
        self.holders.in_io.load(Ordering::Relaxed) != 0
    }

    /// Takes the lock by `try_take`, or waits for it in `take` and counts how long and for whom. Only a wait is timed.
    fn waiting<H: Host, G>(
        &self,
        engine: &Engine<H>,
        counter: Counter,
        try_take: impl FnOnce() -> Option<G>,
        take: impl FnOnce() -> G,
    ) -> G {
        engine.assert_may_sleep("mmap_lock");
        engine.counters().add(counter, 1);
        try_take().unwrap_or_else(|| {
            let cause = self.cause();
            let start = engine.host().clock().now_ns();
            let guard = take();
            let waited = engine.end_wait(cause, start);
            engine.counters().add(Counter::MmapLockWait, waited);
            guard
        })
    }
}

/// mmap_lock held for writing.
#[derive(Debug)]
pub struct MmapWrite<'s> {
    holders: &'s Holders,
    guard: Option<RwLockWriteGuard<'s, ()>>,
}

impl<'s> MmapWrite<'s> {
    /// Goes on as a reader (`mmap_write_downgrade`).
    pub fn downgrade(mut self) -> Option<RwLockReadGuard<'s, ()>> {
        self.holders.writer.store(NOBODY, Ordering::Relaxed);
        self.guard.take().map(RwLockWriteGuard::downgrade)
    }
}

impl Drop for MmapWrite<'_> {
    fn drop(&mut self) {
        if self.guard.is_some() {
            self.holders.writer.store(NOBODY, Ordering::Relaxed);
        }
    }
}

/// mmap_lock held for reading by a fault that waits.
#[derive(Debug)]
pub struct MmapKept {
    _guard: ArcRwLockReadGuard<RawRwLock, ()>,
    in_io: InIo,
}

impl MmapKept {
    /// The fault waits for I/O from now on.
    pub fn through_io(&mut self) {
        self.in_io.begin();
    }
}

/// Counts a fault that holds a lock, for as long as it lives, once its I/O has begun.
#[derive(Debug)]
pub struct InIo {
    holders: Arc<Holders>,
    begun: bool,
}

impl InIo {
    /// Not yet in I/O.
    pub fn new(semaphore: &MmapSemaphore) -> Self {
        Self { holders: semaphore.holders.clone(), begun: false }
    }

    /// In I/O from now on.
    pub fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.holders.in_io.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InIo {
    fn drop(&mut self) {
        if self.begun {
            self.holders.in_io.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
