//! `speculative`: a fault takes no lock. It looks its VMA up under RCU, and checks a sequence count of the space before
//! it installs its page. If the count has changed, or if the fault needs something that a speculation may not do, it
//! starts over under mmap_lock.
//!
//! Proposals exist since 2009 (Zijlstra). Dufour used a count in each VMA (2017 to 2019, shipped by Android vendors).
//! Lespinasse used a count in each space. This is a model of his "[RFC PATCH 00/37] Speculative page faults" (linux-mm,
//! 6 April 2021), which covers files and anonymous memory. His last version ("[PATCH v2 00/35]", 28 January 2022)
//! covers anonymous memory alone.
//!
//! | here | there |
//! |---|---|
//! | [`outside`](LockingDesign::outside) reads the count, before the lookup | `do_user_addr_fault`: `mmap_seq_read_start`, before `rcu_read_lock` |
//! | if the count is odd or the lookup finds nothing, the fault takes mmap_lock for reading | `spf_abort` |
//! | [`confirm`](LockingDesign::confirm) compares the count when the entry's bit is set | `pte_map_lock`, `pte_spinlock`: `mmap_seq_read_check` with the table's lock held |
//! | a speculation installs no new leaf table, and no first anonymous page of a VMA ([`allows`](LockingDesign::allows)) | `__handle_mm_fault`: none is allocated; `do_anonymous_page`, `do_cow_fault`: without `anon_vma` `VM_FAULT_RETRY` |
//! | a speculation waits neither for I/O nor for a folio's lock: it ends before the read is started | `filemap_fault`: pages that are there, up to date and not locked; in all other cases the fault is aborted |
//! | under mmap_lock as `mmap-lock`: dropped for the first I/O, then held | unchanged: `maybe_unlock_mmap_for_io`, `FAULT_FLAG_TRIED` |
//! | a retry goes under mmap_lock at once | `retry:` stands behind `spf_abort` |
//! | range work holds mmap_lock for writing, and the count is odd meanwhile | `__mmap_seq_write_lock` and `__mmap_seq_write_unlock`, in `mmap_write_lock`, `mmap_write_unlock` and `mmap_write_downgrade` |
//! | munmap continues as a reader; MADV_DONTNEED reads; fork holds mmap_lock for its whole copy | as Linux of that time |
//! | [`Purpose::Rmap`] takes nothing | the same: `i_mmap_rwsem` or the anon_vma's lock, and the table's |
//!
//! During reclaim for a frame, a speculation holds nothing, because `do_anonymous_page` and `wp_page_copy` allocate
//! before `pte_map_lock`. A fault that has mmap_lock for reading keeps it.
//!
//! Known differences:
//! * Every fault speculates first. The patches do so only if more than one thread uses the space (`mm_users`).
//! * A store to a file's page in a shared mapping speculates too. In the patches, `vma_can_speculate` refuses it.
//! * A speculation that meets another thread's bit in its entry waits and speculates again. The patches abort it if the
//!   page table's lock is not free at once. That lock covers a whole table.
//! * The frame is taken and filled with the bit set, after the check, as under every design here. The patches do so
//!   before the check.
//! * A fault that finds no memory for a frame speculates again when there is some.
//! * For the other differences see [`super::mmap_locked`].

use super::locks::{MmapKept, MmapRead, MmapSemaphore, MmapWrite};
use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, Capability, LockingDesign, Purpose};
use faultless::host::Host;
use faultless::stats::Counter;
use faultless::sync::atomic::{AtomicU64, Ordering};
use faultless::sync::{Shared, full_fence};
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};

/// The `speculative` design; see the module.
#[derive(Debug)]
pub struct Speculative;

/// Locks of a space.
#[derive(Debug, Default)]
pub struct CountedMmapLock {
    mmap_lock: MmapSemaphore,
    changes: Changes,
}

/// Twice the number of times that mmap_lock has been taken for writing (`mmap_seq`). It is odd while a writer holds
/// mmap_lock.
#[derive(Debug, Default)]
struct Changes(AtomicU64);

impl Changes {
    /// Returns the present count. Acquire, partner of [`Changes::end`]: a reader of an even count sees all that was
    /// published before.
    fn seen(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Makes the count odd: a writer holds mmap_lock now. Partner of the fence that follows the bit in page work. If
    /// ours comes first, the speculation sees a changed count. If theirs comes first, the sweep, or fork's copy, meets
    /// the bit and waits.
    fn begin(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        full_fence();
    }

    /// Makes the count even: the writer is about to drop mmap_lock.
    fn end(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Release);
    }
}

/// State that page work takes before its section.
#[derive(Debug)]
pub enum Outside<'s> {
    /// mmap_lock for reading.
    Mmap(MmapRead<'s>),
    /// The count as it was before the lookup.
    Count(u64),
    /// Nothing: page work of the reverse map takes no lock here.
    Nothing,
}

/// mmap_lock held for writing, with an odd count.
#[derive(Debug)]
pub struct Change<'s> {
    changes: &'s Changes,
    write: Option<MmapWrite<'s>>,
}

impl<'s> Change<'s> {
    fn begin(space: &'s CountedMmapLock, write: MmapWrite<'s>) -> Self {
        space.changes.begin();
        Self { changes: &space.changes, write: Some(write) }
    }

    fn end(&mut self) -> Option<MmapWrite<'s>> {
        let write = self.write.take()?;
        self.changes.end();
        Some(write)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// Lock that range work holds.
#[derive(Debug)]
pub enum Range<'s> {
    /// mmap_lock for writing.
    Write(Change<'s>),
    /// mmap_lock for reading.
    Read {
        /// Held until this is dropped.
        _guard: Option<MmapRead<'s>>,
    },
}

impl LockingDesign for Speculative {
    const NAME: &'static str = "speculative";
    const KEEPS_WHILE_RECLAIMING: bool = true;
    const LOCKS_FOLIOS: bool = true;
    type Space = CountedMmapLock;
    type Vma = ();
    type Outside<'s, H: Host> = Outside<'s>;
    /// The VMA that the lookup found.
    type Inside<'s, H: Host> = Option<&'s Vma<H, Self>>;
    type Kept = MmapKept;
    type Range<'s, H: Host> = Range<'s>;
    /// Range work on the whole space already holds mmap_lock, and the count is odd.
    type Fork<'s, H: Host> = ();

    #[inline]
    fn outside<'s, H: Host>(
        space: &'s Shared<CountedMmapLock>,
        engine: &'s Engine<H>,
        _: PageNumber,
        attempt: Attempt,
    ) -> Outside<'s> {
        match attempt.purpose {
            Purpose::Rmap => Outside::Nothing,
            Purpose::Fault if attempt.slow => Outside::Mmap(space.mmap_lock.read(engine)),
            Purpose::Fault => Outside::Count(space.changes.seen()),
        }
    }

    #[inline]
    fn inside<'s, H: Host>(
        space: &'s Shared<CountedMmapLock>,
        _: &'s Engine<H>,
        view: View<'s, Vma<H, Self>>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Result<Option<&'s Vma<H, Self>>, Blocked> {
        if attempt.slow || attempt.purpose == Purpose::Rmap {
            return Ok(None);
        }
        // If the count is odd now, its value before the lookup does not matter.
        if !space.changes.seen().is_multiple_of(2) {
            return Err(Blocked::Wait);
        }
        view.find(page).map(Some).ok_or(Blocked::Wait)
    }

    #[inline]
    fn found<'s, H: Host>(inside: &Self::Inside<'s, H>) -> Option<&'s Vma<H, Self>> {
        *inside
    }

    #[inline]
    fn confirm<H: Host>(space: &Shared<CountedMmapLock>, outside: &Outside<'_>) -> Result<(), Blocked> {
        match outside {
            Outside::Count(count) if *count != space.changes.seen() => Err(Blocked::Wait),
            _ => Ok(()),
        }
    }

    fn allows<H: Host>(
        _: &Shared<CountedMmapLock>,
        _: &Engine<H>,
        attempt: Attempt,
        _: Capability,
    ) -> Result<(), Blocked> {
        // A speculation has none of the capabilities.
        if attempt.slow { Ok(()) } else { Err(Blocked::Wait) }
    }

    fn blocked<H: Host>(_: &Shared<CountedMmapLock>, engine: &Engine<H>, attempt: &mut Attempt) {
        engine.counters().add(Counter::SpeculationAborts, 1);
        attempt.slow = true;
    }

    fn after_io(attempt: Attempt, _: Awaits) -> AfterIo {
        if attempt.tried { AfterIo::Hold } else { AfterIo::Retry }
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, tried: true, slow: true, ..attempt }
    }

    fn keep<'o, 's, H: Host>(
        _: &Shared<CountedMmapLock>,
        outside: Outside<'o>,
        _: Self::Inside<'s, H>,
    ) -> Option<MmapKept> {
        match outside {
            Outside::Mmap(guard) => Some(guard.keep()),
            Outside::Count(_) | Outside::Nothing => None,
        }
    }

    fn through_io(kept: &mut MmapKept) {
        kept.through_io();
    }

    fn range_work<'s, H: Host>(
        space: &'s Shared<CountedMmapLock>,
        engine: &'s Engine<H>,
        _: &'s Tree<Vma<H, Self>>,
        call: Call,
        _: PageRange,
    ) -> Range<'s> {
        match call {
            Call::Discard => Range::Read { _guard: Some(space.mmap_lock.read(engine)) },
            _ => Range::Write(Change::begin(space, space.mmap_lock.write(engine, call))),
        }
    }

    fn published<H: Host>(work: &mut Range<'_>) {
        if let Range::Write(change) = work {
            let guard = change.end().map(MmapWrite::downgrade);
            *work = Range::Read { _guard: guard };
        }
    }

    fn fork<'s, H: Host>(_: &'s Shared<CountedMmapLock>, _: &'s Engine<H>) {}
}
