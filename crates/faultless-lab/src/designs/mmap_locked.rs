//! Designs with one reader-writer lock for the whole space: the common part of `mmap-lock` and `mmap-lock-hold`.
//!
//! | here | Linux 6.3 |
//! |---|---|
//! | [`outside`](LockingDesign::outside) takes it for reading | `do_user_addr_fault`: `mmap_read_trylock`, then `mmap_read_lock` |
//! | [`range_work`](LockingDesign::range_work) takes it for writing | `vm_mmap_pgoff`, `__vm_munmap`, `do_mprotect_pkey`: `mmap_write_lock_killable` |
//! | munmap continues as a reader when its mappings are out of the tree | `do_vmi_align_munmap` with `downgrade`: `mmap_write_downgrade` |
//! | MADV_DONTNEED takes it for reading | `madvise_need_mmap_write` returns false |
//! | fork is range work on everything | `dup_mmap`: `mmap_write_lock_killable(oldmm)` for the whole copy |
//! | [`Purpose::Rmap`] takes nothing | truncation and reclaim take `i_mmap_rwsem` or the anon_vma's lock, and the table's |
//! | a fault that waits for I/O ends with its process | `folio_lock_killable` |
//!
//! During reclaim for an anonymous page or a copy, the fault holds the lock for reading, because `alloc_pages` reclaims
//! under mmap_lock. A page of a file gets its frame after a first attempt has dropped the lock, as after read-ahead.
//! Without read-ahead, Linux allocates it under the lock. During reclaim for a missing leaf table, nothing is held.
//!
//! Known differences:
//! * The child's own lock is not taken (`mmap_write_lock_nested`), because no other thread knows the child yet.
//! * mmap_lock is a model of Linux's `rw_semaphore`. [`super::rwsem`] states its behaviour and its differences.
//! * A thread that waits for the lock does not notice the end of its process. A thread that holds the lock through I/O
//!   notices it, and drops the lock.
//! * A fault checks a folio's lock but does not take it while it maps the folio. So two faults never wait for each
//!   other for those few instructions. All threads that wait for one read wake at once. Linux wakes them one by one.
//! * A fault that finds too many pages of the cache pinned waits with nothing held and starts over. Linux stays in
//!   reclaim with the lock held. This favours attempts that hold the lock, under a tight limit.
//! * A fault that meets another thread's bit in its entry takes the lock anew. Linux waits for the page table's lock
//!   under mmap_lock.
//! * Below mmap_lock, the engine still reserves ranges and announces in entries. It executes one fence for its section
//!   and one after the bit. Linux takes the page table's locks instead. This is the same under every design.
//! * There is no fault-around, no read-ahead and no large folio. exit takes the same locks as munmap.

use super::locks::{MmapKept, MmapRead, MmapSemaphore, MmapWrite, Policy};
use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, LockingDesign, Purpose};
use faultless::host::Host;
use faultless::sync::Shared;
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};
use std::marker::PhantomData;
use std::ops::Deref;

/// Family of the designs with mmap_lock alone, by policy.
#[derive(Debug)]
pub struct MmapLocked<P>(PhantomData<P>);

/// mmap_lock with the policy's rules.
#[derive(Debug)]
pub struct MmapLock<P> {
    semaphore: MmapSemaphore,
    policy: PhantomData<fn() -> P>,
}

impl<P: Policy> Default for MmapLock<P> {
    fn default() -> Self {
        Self { semaphore: MmapSemaphore::with_rules(P::RULES), policy: PhantomData }
    }
}

impl<P> Deref for MmapLock<P> {
    type Target = MmapSemaphore;

    fn deref(&self) -> &MmapSemaphore {
        &self.semaphore
    }
}

/// Lock that range work holds.
#[derive(Debug)]
pub enum Range<'s> {
    /// The lock for writing.
    Write(MmapWrite<'s>),
    /// The lock for reading.
    Read {
        /// Held until this is dropped.
        _guard: Option<MmapRead<'s>>,
    },
}

impl<P: Policy> LockingDesign for MmapLocked<P> {
    const NAME: &'static str = P::NAME;
    const KEEPS_WHILE_RECLAIMING: bool = true;
    const LOCKS_FOLIOS: bool = true;
    type Space = MmapLock<P>;
    type Vma = ();
    type Outside<'s, H: Host> = Option<MmapRead<'s>>;
    type Inside<'s, H: Host> = ();
    type Kept = MmapKept;
    type Range<'s, H: Host> = Range<'s>;
    /// Range work on the whole space already holds the lock.
    type Fork<'s, H: Host> = ();

    fn outside<'s, H: Host>(
        space: &'s Shared<MmapLock<P>>,
        engine: &'s Engine<H>,
        _: PageNumber,
        attempt: Attempt,
    ) -> Option<MmapRead<'s>> {
        match attempt.purpose {
            Purpose::Rmap => None,
            Purpose::Fault => Some(space.read(engine)),
        }
    }

    fn inside<'s, H: Host>(
        _: &'s Shared<MmapLock<P>>,
        _: &'s Engine<H>,
        _: View<'s, Vma<H, Self>>,
        _: PageNumber,
        _: Attempt,
    ) -> Result<(), Blocked> {
        Ok(())
    }

    fn blocked<H: Host>(_: &Shared<MmapLock<P>>, _: &Engine<H>, _: &mut Attempt) {}

    fn after_io(attempt: Attempt, awaits: Awaits) -> AfterIo {
        P::after_io(attempt, awaits)
    }

    fn after_lock(attempt: Attempt) -> AfterIo {
        P::after_lock(attempt)
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        P::again(attempt, major)
    }

    fn keep<'o, 's, H: Host>(
        _: &Shared<MmapLock<P>>,
        outside: Option<MmapRead<'o>>,
        (): (),
    ) -> Option<MmapKept> {
        outside.map(MmapRead::keep)
    }

    fn through_io(kept: &mut MmapKept) {
        kept.through_io();
    }

    fn range_work<'s, H: Host>(
        space: &'s Shared<MmapLock<P>>,
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
            Range::Write(write) => Range::Read { _guard: Some(write.downgrade()) },
            read @ Range::Read { .. } => read,
        };
    }

    fn fork<'s, H: Host>(_: &'s Shared<MmapLock<P>>, _: &'s Engine<H>) {}
}
