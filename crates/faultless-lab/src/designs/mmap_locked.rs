//! Designs with one reader-writer lock for the whole space: what `mmap-lock` and `mmap-lock-hold` have in common.
//!
//! | here | Linux 6.3 |
//! |---|---|
//! | [`outside`](LockingDesign::outside) takes it for reading | `do_user_addr_fault`: `mmap_read_trylock`, then `mmap_read_lock` |
//! | [`range_work`](LockingDesign::range_work) takes it for writing | `vm_mmap_pgoff`, `__vm_munmap`, `do_mprotect_pkey`: `mmap_write_lock_killable` |
//! | munmap goes on as a reader when its mappings are out of the tree | `do_vmi_align_munmap` with `downgrade`: `mmap_write_downgrade` |
//! | MADV_DONTNEED takes it for reading | `madvise_need_mmap_write` says no |
//! | fork is range work on everything | `dup_mmap`: `mmap_write_lock_killable(oldmm)` for the whole copy |
//! | [`Purpose::Rmap`] takes nothing | truncation and reclaim take `i_mmap_rwsem` or the anon_vma's lock, and the table's |
//! | a fault that waits for I/O ends with its process | `folio_lock_killable` |
//!
//! Kept while room is made for an anonymous page or a copy: the lock for reading, as `alloc_pages` reclaims under
//! mmap_lock. A page of a file gets its frame after a first attempt has let go, as after read-ahead; without read-ahead
//! Linux allocates it under the lock. A missing leaf table is made room for with nothing held.
//!
//! Differences that are known:
//! * The child's own lock is not taken (`mmap_write_lock_nested`): nobody else knows the child yet.
//! * A writer spins for a while if the lock's owner runs (`rwsem_optimistic_spin`); parking_lot spins a few turns.
//! * A writer that has waited long is handed the lock after 4 ms in Linux, after 0.5 ms on average here.
//! * Who waits for the lock itself does not watch for its process's end; but who holds it through I/O does, and lets go.
//! * A folio is looked at, not locked, while it is mapped: two faults never wait for each other for those few
//!   instructions. All who wait for one read wake at once; Linux wakes them one by one.
//! * A fault that finds too many pages of the cache pinned waits with nothing held and starts over; Linux stays in reclaim
//!   with the lock. This shields the attempts that hold it, under a tight limit.
//! * A fault that meets another's bit in its entry takes the lock anew; Linux waits for the page table's lock under it.
//! * Below mmap_lock the engine still takes ranges, announces in entries, and passes a fence for its section and one after
//!   the bit, where Linux has the page table's locks: the same under every design.
//! * No fault-around, no read-ahead, no large folios; exit takes what munmap takes.

use super::locks::{MmapKept, MmapSemaphore, MmapWrite, Policy};
use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Blocked, Call, LockingDesign, Purpose};
use faultless::host::{Host, OutOfMemory};
use faultless::sync::Shared;
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};
use parking_lot::RwLockReadGuard;
use std::marker::PhantomData;

/// mmap_lock alone, by policy.
#[derive(Debug)]
pub struct MmapLocked<P>(PhantomData<P>);

/// What range work holds.
#[derive(Debug)]
pub enum Range<'s> {
    /// The lock for writing.
    Write(MmapWrite<'s>),
    /// The lock for reading.
    Read {
        /// Dropped with it.
        _guard: Option<RwLockReadGuard<'s, ()>>,
    },
}

impl<P: Policy> LockingDesign for MmapLocked<P> {
    const NAME: &'static str = P::NAME;
    const KEEPS_WHILE_RECLAIMING: bool = true;
    const LOCKS_FOLIOS: bool = true;
    type Space = MmapSemaphore;
    type Vma = ();
    type Outside<'s, H: Host> = Option<RwLockReadGuard<'s, ()>>;
    type Inside<'s, H: Host> = ();
    type Kept = MmapKept;
    type Range<'s, H: Host> = Range<'s>;
    /// Range work on the whole space has the lock already.
    type Fork<'s, H: Host> = ();

    fn new_vma() -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn outside<'s, H: Host>(
        space: &'s Shared<MmapSemaphore>,
        engine: &'s Engine<H>,
        _: PageNumber,
        attempt: Attempt,
    ) -> Option<RwLockReadGuard<'s, ()>> {
        match attempt.purpose {
            Purpose::Rmap => None,
            Purpose::Fault => Some(space.read(engine)),
        }
    }

    fn inside<'s, H: Host>(
        _: &'s Shared<MmapSemaphore>,
        _: &'s Engine<H>,
        _: View<'s, Vma<H, Self>>,
        _: PageNumber,
        _: Attempt,
    ) -> Result<(), Blocked> {
        Ok(())
    }

    fn blocked<H: Host>(_: &Shared<MmapSemaphore>, _: &Engine<H>, _: &mut Attempt) {}

    fn after_io(attempt: Attempt) -> AfterIo {
        P::after_io(attempt)
    }

    fn after_lock(attempt: Attempt) -> AfterIo {
        P::after_lock(attempt)
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        P::again(attempt, major)
    }

    fn keep<'o, 's, H: Host>(
        space: &Shared<MmapSemaphore>,
        outside: Option<RwLockReadGuard<'o, ()>>,
        (): (),
    ) -> Option<MmapKept> {
        outside.map(|guard| space.keep(guard))
    }

    fn through_io(kept: &mut MmapKept) {
        kept.through_io();
    }

    fn range_work<'s, H: Host>(
        space: &'s Shared<MmapSemaphore>,
        engine: &'s Engine<H>,
        _: &'s Tree<Vma<H, Self>>,
        call: Call,
        _: PageRange,
    ) -> Range<'s> {
        match call {
            Call::Discard => Range::Read { _guard: Some(space.read(engine)) },
            _ => Range::Write(space.write(engine, call)),
        }
    }

    fn published<H: Host>(work: &mut Range<'_>) {
        let held = std::mem::replace(work, Range::Read { _guard: None });
        *work = match held {
            Range::Write(write) => Range::Read { _guard: write.downgrade() },
            read @ Range::Read { .. } => read,
        };
    }

    fn fork<'s, H: Host>(_: &'s Shared<MmapSemaphore>, _: &'s Engine<H>) {}
}
