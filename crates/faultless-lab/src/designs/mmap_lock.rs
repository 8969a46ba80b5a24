//! `mmap-lock`: one reader-writer lock for the whole space, as in Linux up to 6.3 (x86-64; 6.4 brought VMA locks).
//!
//! | here | there (6.3) |
//! |---|---|
//! | [`outside`](LockingDesign::outside) takes it for reading | `do_user_addr_fault`: `mmap_read_trylock`, then `mmap_read_lock` |
//! | the first attempt drops it before the wait, [`AfterIo::Retry`] | `filemap_fault`: `__folio_lock_or_retry` and `maybe_unlock_mmap_for_io` drop it, `VM_FAULT_RETRY` |
//! | an attempt that has waited once holds it, [`AfterIo::Hold`] | `FAULT_FLAG_TRIED` is set, the lock is kept while the folio is waited for |
//! | [`range_work`](LockingDesign::range_work) takes it for writing | `vm_mmap_pgoff`, `__vm_munmap`, `do_mprotect_pkey`: `mmap_write_lock_killable` |
//! | fork is range work on everything | `dup_mmap`: `mmap_write_lock_killable(oldmm)` for the whole copy |
//! | [`Purpose::Rmap`] takes nothing | truncation and reclaim take `i_mmap_rwsem` or the anon_vma's lock, and the table's |
//!
//! A waiting writer holds new readers back, as in `rw_semaphore` (parking_lot's lock sets its writer bit before it waits
//! for the readers to leave). Kept while reclaiming: what the fault holds, the lock for reading, as in Linux, where
//! `alloc_pages` reclaims under mmap_lock.
//!
//! Differences that are known:
//! * `madvise(MADV_DONTNEED)` takes the lock for reading in Linux; here all range work writes. No scenario of today calls it.
//! * `munmap` in Linux goes on as a reader once the mappings are out of the tree; here it stays the writer to the end.
//! * The child's own lock is not taken (`mmap_write_lock_nested`): nobody else knows the child yet.
//! * A writer spins for a while if the lock's owner runs (`rwsem_optimistic_spin`); parking_lot spins a few turns.
//! * A writer that has waited long is handed the lock after 4 ms in Linux, after 0.5 ms on average here.
//! * Below mmap_lock the engine still takes ranges and announces in entries, where Linux has the page table's locks.

use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Blocked, LockingDesign, Purpose};
use faultless::host::{Clock, Host};
use faultless::stats::Counter;
use faultless::vma::Vma;
use faultless::vma::tree::View;
use parking_lot::{ArcRwLockReadGuard, RawRwLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::Arc;

/// The design; see the module.
#[derive(Clone, Copy, Debug)]
pub struct MmapLock;

/// What page work holds.
#[derive(Debug)]
pub enum Reader<'s> {
    /// It came from the file or the folio.
    Nothing,
    /// The lock, until the work is done.
    Borrowed(RwLockReadGuard<'s, ()>),
    /// The lock, perhaps for longer than the call: this attempt holds it through I/O.
    Owned(ArcRwLockReadGuard<RawRwLock, ()>),
}

/// Takes the lock by `try_take`, or waits for it in `take` and counts how long. Only a wait is timed.
fn waiting<H: Host, G>(
    engine: &Engine<H>,
    counter: Counter,
    try_take: impl FnOnce() -> Option<G>,
    take: impl FnOnce() -> G,
) -> G {
    engine.assert_may_sleep("mmap_lock");
    engine.counters().add(counter, 1);
    try_take().unwrap_or_else(|| {
        let start = engine.host().clock().now_ns();
        let guard = take();
        let waited = engine.host().clock().now_ns().saturating_sub(start);
        engine.counters().add(Counter::MmapLockWait, waited);
        guard
    })
}

impl LockingDesign for MmapLock {
    const NAME: &'static str = "mmap-lock";
    type Space = RwLock<()>;
    type Vma = ();
    type Outside<'s, H: Host> = Reader<'s>;
    type Inside<'s, H: Host> = ();
    type Kept = ArcRwLockReadGuard<RawRwLock, ()>;
    type Range<'s, H: Host> = RwLockWriteGuard<'s, ()>;
    /// Range work on the whole space has the lock already.
    type Fork<'s, H: Host> = ();

    fn outside<'s, H: Host>(
        space: &'s Arc<RwLock<()>>,
        engine: &'s Engine<H>,
        attempt: Attempt,
    ) -> Reader<'s> {
        const READ: Counter = Counter::MmapLockRead;
        match (attempt.purpose, Self::after_io(attempt)) {
            (Purpose::Rmap, _) => Reader::Nothing,
            (Purpose::Fault, AfterIo::Hold) => {
                Reader::Owned(waiting(engine, READ, || space.try_read_arc(), || space.read_arc()))
            }
            (Purpose::Fault, _) => {
                Reader::Borrowed(waiting(engine, READ, || space.try_read(), || space.read()))
            }
        }
    }

    fn inside<'o, 's, H: Host>(
        _: &'s Arc<RwLock<()>>,
        _: &Reader<'o>,
        _: View<'s, Vma<H, Self>>,
        _: PageNumber,
        _: Attempt,
    ) -> Result<(), Blocked> {
        Ok(())
    }

    fn blocked<H: Host>(_: &Arc<RwLock<()>>, _: &Engine<H>, _: &mut Attempt) {}

    fn after_io(attempt: Attempt) -> AfterIo {
        if attempt.retries == 0 { AfterIo::Retry } else { AfterIo::Hold }
    }

    fn keep<'o, 's, H: Host>(_: &Arc<RwLock<()>>, outside: Reader<'o>, (): ()) -> Option<Self::Kept> {
        match outside {
            Reader::Owned(guard) => Some(guard),
            Reader::Nothing | Reader::Borrowed(_) => None,
        }
    }

    fn range_work<'s, H: Host>(
        space: &'s Arc<RwLock<()>>,
        engine: &'s Engine<H>,
        _: PageRange,
    ) -> RwLockWriteGuard<'s, ()> {
        waiting(engine, Counter::MmapLockWrite, || space.try_write(), || space.write())
    }

    fn exclude<'s, H: Host>(_: &mut RwLockWriteGuard<'s, ()>, _: &'s Engine<H>, _: &Vma<H, Self>) {}

    fn fork<'s, H: Host>(_: &'s Arc<RwLock<()>>, _: &'s Engine<H>) {}

    fn exclude_for_fork<'s, H: Host>(_: &mut RwLockWriteGuard<'s, ()>, _: &'s Engine<H>, _: &Vma<H, Self>) {}
}
