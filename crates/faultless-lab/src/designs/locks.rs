//! Parts of the models of Linux: mmap_lock, and the policies by which the presets differ. Each preset has its own file.
//! The file states the kernel or patch that it models, and the differences from it.

use faultless::Engine;
use faultless::design::{AfterIo, Attempt, Awaits, Call};
use faultless::host::{Clock, Host};
use faultless::stats::Counter;
use faultless::vma::Mapping;
use parking_lot::{ArcRwLockReadGuard, RawRwLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A policy distinguishes the presets of one family.
pub trait Policy: Send + Sync + 'static {
    /// The design's name.
    const NAME: &'static str;

    /// Returns how a fault handles its locks for the I/O of `attempt`: hold, retry or resume.
    fn after_io(attempt: Attempt, awaits: Awaits) -> AfterIo;

    /// Returns the same for a wait for a folio that is up to date but locked.
    fn after_lock(attempt: Attempt) -> AfterIo {
        Self::after_io(attempt, Awaits::File)
    }

    /// Returns the attempt that follows `attempt`, which has waited. `major` is true if `attempt` started the read
    /// itself.
    fn again(attempt: Attempt, major: bool) -> Attempt;

    /// Returns whether fork locks a VMA with this mapping.
    fn fork_locks<H: Host>(_mapping: &Mapping<H>) -> bool {
        true
    }
}

/// The `mmap_lock` of a space. A waiting writer holds new readers back, as in `rw_semaphore`: parking_lot sets its
/// writer bit before it waits for the readers to leave.
#[derive(Debug, Default)]
pub struct MmapSemaphore {
    lock: Arc<RwLock<()>>,
    holders: Arc<Holders>,
}

/// The present holders of mmap_lock and VMA locks. Only the statistics use it.
#[derive(Debug, Default)]
struct Holders {
    /// The present writer: [`CHANGE`], [`FORK`] or [`NOBODY`]. Written by the writer.
    writer: AtomicU32,
    /// The number of faults that hold mmap_lock or a VMA lock through their I/O. Atomic.
    in_io: AtomicU32,
}

const NOBODY: u32 = 0;
const CHANGE: u32 = 1;
const FORK: u32 = 2;

impl MmapSemaphore {
    /// Takes mmap_lock for reading, for a fault.
    pub fn read<H: Host>(&self, engine: &Engine<H>) -> RwLockReadGuard<'_, ()> {
        self.waiting(engine, Counter::MmapLockRead, || self.lock.try_read(), || self.lock.read())
    }

    /// Takes mmap_lock for reading, if this needs no wait.
    pub fn try_read<H: Host>(&self, engine: &Engine<H>) -> Option<RwLockReadGuard<'_, ()>> {
        let guard = self.lock.try_read()?;
        engine.counters().add(Counter::MmapLockRead, 1);
        Some(guard)
    }

    /// Takes mmap_lock for writing, for `call`.
    pub fn write<H: Host>(&self, engine: &Engine<H>, call: Call) -> MmapWrite<'_> {
        let guard =
            self.waiting(engine, Counter::MmapLockWrite, || self.lock.try_write(), || self.lock.write());
        let writer = if call == Call::Fork { FORK } else { CHANGE };
        self.holders.writer.store(writer, Ordering::Relaxed);
        MmapWrite { holders: &self.holders, guard: Some(guard) }
    }

    /// Returns the same hold as `guard`, independent of the borrow. Never waits, because a reader may read again.
    pub fn keep(&self, guard: RwLockReadGuard<'_, ()>) -> MmapKept {
        let owned = self.lock.read_arc_recursive();
        drop(guard);
        MmapKept { _guard: owned, in_io: InIo::new(self) }
    }

    /// Returns the counter for a wait that begins now, according to the present holder.
    fn cause(&self) -> Counter {
        let writer = self.holders.writer.load(Ordering::Relaxed);
        match writer {
            _ if self.has_io() => Counter::MmapLockWaitIo,
            FORK => Counter::MmapLockWaitFork,
            NOBODY => Counter::MmapLockWaitFault,
            _ => Counter::MmapLockWaitChange,
        }
    }

    /// Returns whether a fault holds a lock of this space through its I/O.
    pub fn has_io(&self) -> bool {
        self.holders.in_io.load(Ordering::Relaxed) != 0
    }

    /// Takes the lock by `try_take`, or waits for it in `take`. Only a wait is timed. Its duration is counted by cause.
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

/// Guard of mmap_lock held for writing.
#[derive(Debug)]
pub struct MmapWrite<'s> {
    holders: &'s Holders,
    guard: Option<RwLockWriteGuard<'s, ()>>,
}

impl<'s> MmapWrite<'s> {
    /// Turns the write lock into a read lock (`mmap_write_downgrade`).
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

/// Guard of mmap_lock held for reading by a fault that waits.
#[derive(Debug)]
pub struct MmapKept {
    _guard: ArcRwLockReadGuard<RawRwLock, ()>,
    in_io: InIo,
}

impl MmapKept {
    /// Marks that the fault waits for I/O from now on.
    pub fn through_io(&mut self) {
        self.in_io.begin();
    }
}

/// Counter of a fault that holds a lock through its I/O. It counts the fault from [`InIo::begin`] until it is dropped.
#[derive(Debug)]
pub struct InIo {
    holders: Arc<Holders>,
    begun: bool,
}

impl InIo {
    /// Returns a counter for a fault whose I/O has not begun.
    pub fn new(semaphore: &MmapSemaphore) -> Self {
        Self { holders: semaphore.holders.clone(), begun: false }
    }

    /// Counts the fault from now on. A second call changes nothing.
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
