//! Parts of the models of Linux: mmap_lock, and the policies by which the presets differ. Each preset has its own file.
//! The file states the kernel or patch that it models, and the differences from it.

use super::attribution::{CAUSES, Cause, Ledger, count_wait};
use super::rwsem::{Rules, Rwsem};
use faultless::Engine;
use faultless::design::{AfterIo, Attempt, Awaits, Call};
use faultless::host::{Clock, Host};
use faultless::stats::Counter;
use faultless::vma::Mapping;
use std::mem::forget;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A policy distinguishes the presets of one family.
pub trait Policy: Send + Sync + 'static {
    /// The design's name.
    const NAME: &'static str;
    /// The rules of mmap_lock, under the designs with mmap_lock alone. Presets keep those of Linux.
    const RULES: Rules = Rules::LINUX;

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

/// The `mmap_lock` of a space: a [model](super::rwsem) of Linux's `rw_semaphore`.
#[derive(Debug, Default)]
pub struct MmapSemaphore(Arc<Shared>);

/// The lock, and the parts that a hold which outlives the borrow needs.
#[derive(Debug, Default)]
struct Shared {
    lock: Rwsem,
    holders: Holders,
}

/// The state of the present holders of mmap_lock. Only the statistics use it.
#[derive(Debug, Default)]
struct Holders {
    /// The present writer: [`CHANGE`], [`FORK`] or [`NOBODY`]. Written by the writer.
    writer: AtomicU32,
    /// Whether the present writer waits for a VMA lock that a fault holds through its I/O. Atomic.
    waits_for_io: AtomicBool,
    /// The number of faults that hold mmap_lock through their I/O. Atomic.
    in_io: AtomicU32,
    ledger: Ledger,
}

const NOBODY: u32 = 0;
const CHANGE: u32 = 1;
const FORK: u32 = 2;

/// The counters of waits for mmap_lock, by [`Cause`].
const MMAP_WAITS: [Counter; CAUSES] = [
    Counter::MmapLockWaitIo,
    Counter::MmapLockWaitFork,
    Counter::MmapLockWaitChange,
    Counter::MmapLockWaitFault,
];

impl Holders {
    /// Returns what the present holder does.
    fn cause(&self) -> Cause {
        let in_io = self.in_io.load(Ordering::SeqCst) != 0 || self.waits_for_io.load(Ordering::SeqCst);
        match self.writer.load(Ordering::Relaxed) {
            _ if in_io => Cause::Io,
            FORK => Cause::Fork,
            NOBODY => Cause::Fault,
            _ => Cause::Change,
        }
    }

    fn set_writer(&self, writer: u32) {
        self.writer.store(writer, Ordering::Relaxed);
        self.note();
    }

    #[inline]
    fn note(&self) {
        self.ledger.note(|| Some(self.cause()));
    }
}

impl MmapSemaphore {
    /// Returns a free lock with the given rules.
    pub fn with_rules(rules: Rules) -> Self {
        Self(Arc::new(Shared { lock: Rwsem::with_rules(rules), holders: Holders::default() }))
    }

    /// Takes mmap_lock for reading, for a fault.
    pub fn read<H: Host>(&self, engine: &Engine<H>) -> MmapRead<'_> {
        let lock = &self.0.lock;
        self.waiting(engine, Counter::MmapLockRead, || lock.try_read(), || lock.read());
        MmapRead(&self.0)
    }

    /// Takes mmap_lock for reading, if this needs no wait.
    pub fn try_read<H: Host>(&self, engine: &Engine<H>) -> Option<MmapRead<'_>> {
        self.0.lock.try_read().then(|| {
            engine.counters().add(Counter::MmapLockRead, 1);
            MmapRead(&self.0)
        })
    }

    /// Takes mmap_lock for writing, for `call`.
    pub fn write<H: Host>(&self, engine: &Engine<H>, call: Call) -> MmapWrite<'_> {
        let lock = &self.0.lock;
        self.waiting(engine, Counter::MmapLockWrite, || lock.try_write(), || lock.write());
        self.0.holders.set_writer(if call == Call::Fork { FORK } else { CHANGE });
        MmapWrite(&self.0)
    }

    /// Notes whether the writer, which calls this, is about to sleep for another lock, so that others do not spin.
    pub fn writer_sleeps(&self, sleeps: bool) {
        self.0.lock.owner_sleeps(sleeps);
    }

    /// Notes whether the writer waits for a lock that a fault holds through its I/O.
    pub fn writer_waits_for_io(&self, waits: bool) {
        if self.0.holders.waits_for_io.swap(waits, Ordering::SeqCst) != waits {
            self.0.holders.note();
        }
    }

    /// Takes the lock by `try_take`, or waits for it in `take`. Only a wait is timed, and its time is divided by causes.
    #[inline]
    fn waiting<H: Host>(
        &self,
        engine: &Engine<H>,
        counter: Counter,
        try_take: impl FnOnce() -> bool,
        take: impl FnOnce(),
    ) {
        engine.assert_may_sleep("mmap_lock");
        engine.counters().add(counter, 1);
        if !try_take() {
            self.wait(engine, take);
        }
    }

    #[cold]
    fn wait<H: Host>(&self, engine: &Engine<H>, take: impl FnOnce()) {
        let holders = &self.0.holders;
        let start = engine.host().clock().now_ns();
        let begun = holders.ledger.begin(|| holders.cause());
        take();
        let parts = holders.ledger.end(begun);
        count_wait(engine, start, parts, Counter::MmapLockWait, MMAP_WAITS);
    }
}

/// Guard of mmap_lock held for reading.
#[derive(Debug)]
pub struct MmapRead<'s>(&'s Arc<Shared>);

impl MmapRead<'_> {
    /// Returns the same hold, independent of the borrow.
    pub fn keep(self) -> MmapKept {
        let shared = self.0.clone();
        forget(self);
        MmapKept { shared, is_in_io: false }
    }
}

impl Drop for MmapRead<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.lock.end_read();
    }
}

/// Guard of mmap_lock held for writing.
#[derive(Debug)]
pub struct MmapWrite<'s>(&'s Arc<Shared>);

impl<'s> MmapWrite<'s> {
    /// Turns the write lock into a read lock (`mmap_write_downgrade`).
    pub fn downgrade(self) -> MmapRead<'s> {
        let shared = self.0;
        forget(self);
        shared.holders.set_writer(NOBODY);
        shared.lock.downgrade();
        MmapRead(shared)
    }
}

impl Drop for MmapWrite<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.holders.set_writer(NOBODY);
        self.0.lock.end_write();
    }
}

/// Guard of mmap_lock held for reading by a fault that waits.
#[derive(Debug)]
pub struct MmapKept {
    shared: Arc<Shared>,
    is_in_io: bool,
}

impl MmapKept {
    /// Marks that the fault waits for I/O from now on. A second call changes nothing.
    pub fn through_io(&mut self) {
        if !std::mem::replace(&mut self.is_in_io, true) {
            self.shared.holders.in_io.fetch_add(1, Ordering::SeqCst);
            self.shared.holders.note();
        }
    }
}

impl Drop for MmapKept {
    fn drop(&mut self) {
        if self.is_in_io {
            self.shared.holders.in_io.fetch_sub(1, Ordering::SeqCst);
            self.shared.holders.note();
        }
        self.shared.lock.end_read();
    }
}
