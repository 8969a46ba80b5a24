//! Designs with a lock in each VMA beside mmap_lock: the common part of the `vma-lock` presets.
//!
//! | here | Linux 6.18 |
//! |---|---|
//! | [`inside`](LockingDesign::inside) finds the VMA in the read section and counts itself in as a reader | `lock_vma_under_rcu`, `vma_start_read` on `vm_refcnt` |
//! | if there is no VMA, or a write-locked one: mmap_lock for reading | `lock_vma_under_rcu` returns NULL, `lock_mm_and_find_vma` |
//! | if the VMA was replaced since it was found: look again | `vma_start_read` gives -EAGAIN, `lock_vma_under_rcu` tries again |
//! | [`exclude`](LockingDesign::exclude) waits for the readers of a VMA, and marks it with the writer's number | `vma_start_write`: `vm_lock_seq = mm_lock_seq` |
//! | VMAs stay write-locked until mmap_lock is dropped, which changes the writer's number | `vma_end_write_all` in `mmap_write_unlock` and `mmap_write_downgrade` |
//! | new VMAs are born write-locked | `__mmap_new_vma`, `__split_vma` call `vma_start_write` |
//! | a replaced VMA takes no reader any more | `vma_mark_detached` |
//! | the first anonymous page of a VMA tries mmap_lock; if that fails, the fault starts over under it | `__vmf_anon_prepare`: `mmap_read_trylock`, else `VM_FAULT_RETRY` |
//! | fork locks a VMA under mmap_lock, copies it, and goes on to the next; all stay locked | `dup_mmap`: `vma_start_write` and `copy_page_range` for each, until `mmap_write_unlock(oldmm)` |
//! | MADV_DONTNEED and guard pages inside one VMA take its lock for reading, else mmap_lock for reading | `madvise_lock` with `MADVISE_VMA_READ_LOCK`, `try_vma_read_lock` |
//! | a move of pages (UFFDIO_MOVE) takes the VMA's lock if both places are in it, else mmap_lock for reading | `uffd_move_lock`, which can lock two VMAs |
//! | munmap continues as a reader of mmap_lock when its mappings are out of the tree | `vms_complete_munmap_vmas`: `mmap_write_downgrade` |
//! | a fault that waits for I/O ends with its process | `folio_lock_killable`, `filemap_read_folio` |
//!
//! During reclaim for an anonymous page or a copy, the fault holds the VMA lock, or mmap_lock for reading if it has
//! that. A page of a file gets its frame after a first attempt has dropped the lock, as after read-ahead
//! (`do_sync_mmap_readahead`). Without read-ahead, Linux allocates it under the lock. During reclaim for a missing leaf
//! table nothing is held, but `pte_alloc` keeps the lock.
//!
//! Known differences:
//! * Mappings are immutable in this engine. A mapping that Linux changes in place is replaced here. A fault works with
//!   the VMA that it has counted itself in, so it checks no address again after `vma_start_read`.
//! * A reader that keeps the lock through a wait is counted beside the VMA, which costs a second count and, at the first such wait in
//!   a VMA, an allocation. Readers in sections are counted in the VMA, as in Linux.
//! * A fault that finds too many pages of the cache pinned waits with nothing held, under every preset, and starts
//!   over. Linux stays in reclaim with the lock. This favours presets that hold the lock, under a tight limit.
//! * In Linux, the result of `__vmf_anon_prepare` is kept from before the I/O. Here, a private write that starts over
//!   after its read tries mmap_lock again.
//! * Below the lock, the engine still announces in entries. It executes one fence for its section and one after the
//!   bit. Linux has RCU and the page table's lock. This costs two more fences for each fault, the same under every
//!   design.
//! * fork makes the child's VMAs before it locks the first of the parent's, and copies pages that are pinned after the last one. Linux
//!   does both at the turn of each VMA.
//! * There is no fault-around, no read-ahead and no large folio. exit takes the same locks as munmap.
//! * A fault does no more lookups than in Linux: a VMA found with its lock is not looked up again.
//! * For mmap_lock see [`super::rwsem`] and [`super::mmap_locked`]: folios are checked but not locked, and all threads
//!   that wait for a read wake at once.
//! * A writer that waits for a VMA's readers tells mmap_lock that it sleeps. Linux's `rcuwait` stops the spinners in the
//!   same way, because the owner is no longer on its processor.

use super::attribution::{CAUSES, Cause, Ledger, count_wait};
use super::locks::{MmapKept, MmapRead, MmapSemaphore, MmapWrite, Policy};
use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, Capability, LockingDesign, Purpose};
use faultless::host::{Clock, Host};
use faultless::stats::Counter;
use faultless::sync::Shared;
use faultless::vma::tree::{Tree, View};
use faultless::vma::{Mapping, Vma};
use parking_lot::Mutex;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{Thread, current, park};

/// Family of the designs with a lock in each VMA, by policy.
#[derive(Debug)]
pub struct VmaLocked<P>(PhantomData<P>);

/// Locks of a space.
#[derive(Debug)]
pub struct VmaLocks {
    mmap_lock: MmapSemaphore,
    /// The writer's number (`mm_lock_seq`). A VMA that carries it is write-locked. Each writer of mmap_lock increments
    /// it before it drops mmap_lock.
    writer: AtomicU32,
    /// The writer that waits for a VMA's readers. There is at most one, because it holds mmap_lock. Protected by its
    /// lock.
    waiting: Mutex<Option<Thread>>,
    /// The states of the VMA whose readers the writer waits for.
    ledger: Ledger,
}

impl Default for VmaLocks {
    fn default() -> Self {
        Self {
            mmap_lock: MmapSemaphore::default(),
            writer: AtomicU32::new(1),
            waiting: Mutex::new(None),
            ledger: Ledger::default(),
        }
    }
}

/// Lock of a VMA, which is a part of the VMA.
#[derive(Debug, Default)]
pub struct VmaLock {
    /// Keeps the rest of the VMA off the count's cache line, as that of `vm_refcnt` is in Linux. An alignment would make the VMA's
    /// allocation dearer.
    _before: [u64; 7],
    /// The readers in sections, and the bits below (`vm_refcnt`).
    readers: Readers,
    /// The number of the last writer that locked this VMA (`vm_lock_seq`), or zero. Written by the writer.
    locked_by: AtomicU32,
    /// The readers that keep the lock while they wait. They may outlive the section in which they found the VMA, and the engine says
    /// when a VMA is freed; so they are counted beside it. Made by the first of them.
    kept: OnceLock<Shared<KeptReaders>>,
    _behind: [u64; 7],
}

/// The number of readers, and the bits below. Atomic. The readers' count and the bits are changed by read-modify-write.
#[derive(Debug, Default)]
pub struct Readers(AtomicU32);

/// The readers of a VMA's lock that keep it while they wait.
#[derive(Debug, Default)]
pub struct KeptReaders {
    readers: Readers,
    /// The number of them that wait for I/O. Atomic. Only the statistics use it. A reader changes it, then looks for [`WRITER`]; a writer
    /// sets that bit, then looks at it. So one of the two sees the other.
    in_io: AtomicU32,
}

impl KeptReaders {
    /// Returns what the readers do.
    fn cause(&self) -> Cause {
        if self.in_io.load(Ordering::SeqCst) != 0 { Cause::Io } else { Cause::Fault }
    }
}

/// Bit: a writer waits for the readers to leave, and no new reader may enter.
const WRITER: u32 = 1 << 30;
/// Bit: the VMA is no longer in the tree, and no reader may ever enter.
const DETACHED: u32 = 1 << 31;
const READERS: u32 = WRITER - 1;

impl VmaLock {
    /// Keeps new readers out, and returns whether there are readers.
    fn exclude(&self) -> bool {
        let has_readers = self.readers.exclude();
        // A reader that keeps the lock is counted there before it is no longer counted here.
        let has_kept = self.kept.get().is_some_and(|kept| kept.readers.exclude());
        has_readers || has_kept
    }
}

impl Readers {
    /// Sets WRITER, and returns whether there are readers. Acquire: the writer sees the work of those that have left. Release: those
    /// that leave later see what the writer did before, and so the thread to wake.
    fn exclude(&self) -> bool {
        self.0.fetch_or(WRITER, Ordering::SeqCst) & READERS != 0
    }

    /// Returns whether a writer waits, or is about to.
    fn has_writer(&self) -> bool {
        self.0.load(Ordering::SeqCst) & WRITER != 0
    }

    /// Clears WRITER.
    fn admit(&self) {
        self.0.fetch_and(!WRITER, Ordering::Release);
    }
}

impl VmaLocks {
    /// Counts the caller in as a reader (`vma_start_read`). Fails if the VMA is write-locked (wait) or gone (look
    /// again).
    fn try_read<'s, H: Host>(
        this: &'s Shared<Self>,
        engine: &Engine<H>,
        lock: &'s VmaLock,
    ) -> Result<VmaRead<'s>, Blocked> {
        let is_locked = |order| lock.locked_by.load(Ordering::Relaxed) == this.writer.load(order);
        // This look avoids a shared write in most failing cases.
        if is_locked(Ordering::Relaxed) {
            return Err(Blocked::Wait);
        }
        let mut readers = lock.readers.0.load(Ordering::Relaxed);
        loop {
            if readers & DETACHED != 0 {
                return Err(Blocked::Again);
            }
            if readers & WRITER != 0 {
                return Err(Blocked::Wait);
            }
            // Acquire: the code below sees all that a writer did before it admitted new readers, including its number.
            match lock.readers.0.compare_exchange_weak(
                readers,
                readers + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => readers = now,
            }
        }
        let read = VmaRead { space: this, lock };
        if is_locked(Ordering::Acquire) {
            return Err(Blocked::Wait);
        }
        // A writer may have come and gone between the look and the count, and may have detached the VMA. The number
        // that no longer matches the VMA's was read with Acquire, so a mark made before the change of the number is
        // visible.
        if lock.readers.0.load(Ordering::Relaxed) & DETACHED != 0 {
            return Err(Blocked::Again);
        }
        engine.counters().add(Counter::VmaLockRead, 1);
        Ok(read)
    }

    /// Counts a reader out (`vma_end_read`). For the orderings see [`Readers::exclude`].
    fn end_read(&self, readers: &Readers) {
        if readers.0.fetch_sub(1, Ordering::AcqRel) == WRITER | 1
            && let Some(writer) = &*self.waiting.lock()
        {
            writer.unpark();
        }
    }

    /// Locks the VMA for writing (`vma_start_write`). The caller holds mmap_lock for writing, and calls this again after
    /// [`VmaLocks::wait_for_readers`] if there are readers.
    fn write(&self, lock: &VmaLock) -> Result<(), Blocked> {
        if lock.locked_by.load(Ordering::Relaxed) == self.writer.load(Ordering::Relaxed) {
            return Ok(());
        }
        if lock.exclude() {
            *self.waiting.lock() = Some(current());
            // One that leaves from now on finds the thread to wake.
            if lock.exclude() {
                return Err(Blocked::Wait);
            }
        }
        lock.locked_by.store(self.writer.load(Ordering::Relaxed), Ordering::Relaxed);
        lock.kept.get().into_iter().for_each(|kept| kept.readers.admit());
        lock.readers.admit();
        Ok(())
    }

    /// Sleeps until a reader has left that [`VmaLocks::write`] has found, or for a shorter time. `awaited`: those of the readers that
    /// keep the lock.
    fn wait_for_readers<H: Host>(&self, engine: &Engine<H>, awaited: Option<&KeptReaders>) {
        engine.assert_may_sleep("a VMA lock");
        let start = engine.host().clock().now_ns();
        let begun = self.ledger.begin(|| self.told(awaited));
        self.mmap_lock.writer_sleeps(true);
        park();
        self.mmap_lock.writer_sleeps(false);
        self.mmap_lock.writer_waits_for_io(false);
        let parts = self.ledger.end(begun);
        count_wait(engine, start, parts, Counter::VmaLockWait, VMA_WAITS);
    }

    /// Tells those that wait for mmap_lock what its writer waits for. `awaited`: the readers that keep the lock, if there are any.
    fn told(&self, awaited: Option<&KeptReaders>) -> Cause {
        let cause = awaited.map_or(Cause::Fault, KeptReaders::cause);
        self.mmap_lock.writer_waits_for_io(cause == Cause::Io);
        cause
    }

    /// Notes that a reader of the lock has begun or ended its I/O.
    fn note(&self, kept: &KeptReaders) {
        if kept.readers.has_writer() {
            // Looked at again with the ledger locked: the writer may wait for another VMA by now.
            self.ledger.note(|| kept.readers.has_writer().then(|| self.told(Some(kept))));
        }
    }
}

/// The counters of waits for a VMA's readers, by [`Cause`]. The readers are faults.
const VMA_WAITS: [Counter; CAUSES] =
    [Counter::VmaLockWaitIo, Counter::VmaLockWaitFault, Counter::VmaLockWaitFault, Counter::VmaLockWaitFault];

/// Guard of a VMA's lock held for reading.
#[derive(Debug)]
pub struct VmaRead<'s> {
    space: &'s Shared<VmaLocks>,
    lock: &'s VmaLock,
}

impl VmaRead<'_> {
    /// Returns the same hold, independent of the section. Returns `None`, and holds nothing, if there is no memory for its count.
    fn keep(self) -> Option<VmaKept> {
        let kept = match self.lock.kept.get() {
            Some(kept) => kept,
            None => {
                let new = Shared::try_new(KeptReaders::default()).ok()?;
                self.lock.kept.get_or_init(|| new)
            }
        };
        kept.readers.0.fetch_add(1, Ordering::Relaxed);
        Some(VmaKept { space: self.space.clone(), kept: kept.clone(), is_in_io: false })
    }
}

impl Drop for VmaRead<'_> {
    fn drop(&mut self) {
        self.space.end_read(&self.lock.readers);
    }
}

/// Guard of a VMA's lock held for reading by a fault that waits, or by MADV_DONTNEED.
#[derive(Debug)]
pub struct VmaKept {
    space: Shared<VmaLocks>,
    kept: Shared<KeptReaders>,
    is_in_io: bool,
}

impl VmaKept {
    /// Marks that the fault waits for I/O from now on. A second call changes nothing.
    fn through_io(&mut self) {
        if !std::mem::replace(&mut self.is_in_io, true) {
            self.kept.in_io.fetch_add(1, Ordering::SeqCst);
            self.space.note(&self.kept);
        }
    }
}

impl Drop for VmaKept {
    fn drop(&mut self) {
        if self.is_in_io {
            self.kept.in_io.fetch_sub(1, Ordering::SeqCst);
            self.space.note(&self.kept);
        }
        self.space.end_read(&self.kept.readers);
    }
}

/// Lock that page work holds in its section.
pub enum Inside<'s, H: Host, P: Policy> {
    /// The VMA's lock.
    Vma(VmaRead<'s>, &'s Vma<H, VmaLocked<P>>),
    /// Nothing: the work holds mmap_lock, or comes from the reverse map.
    Slow,
}

/// Lock that a fault keeps while it waits.
#[derive(Debug)]
pub enum Kept {
    /// The VMA's lock.
    Vma(VmaKept),
    /// mmap_lock for reading.
    Mmap(MmapKept),
}

/// Lock that range work holds.
#[derive(Debug)]
pub enum Range<'s> {
    /// mmap_lock for writing, and the VMAs locked since then.
    Write(Writer<'s>),
    /// mmap_lock for reading.
    Read {
        /// Held until this is dropped.
        _guard: Option<MmapRead<'s>>,
    },
    /// One VMA's lock, for reading.
    Vma {
        /// Held until this is dropped.
        _kept: VmaKept,
    },
}

/// Guard of mmap_lock held for writing. Its drop unlocks all VMAs at once.
#[derive(Debug)]
pub struct Writer<'s> {
    space: &'s VmaLocks,
    /// The readers that keep the lock of the VMA that was in use last.
    awaited: Option<Shared<KeptReaders>>,
    write: Option<MmapWrite<'s>>,
}

impl<'s> Writer<'s> {
    fn end(&mut self) -> Option<MmapWrite<'s>> {
        let write = self.write.take()?;
        // Release: a thread that sees the new number sees all that was done under the old one.
        self.space.writer.fetch_add(1, Ordering::Release);
        Some(write)
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        drop(self.end());
    }
}

impl<P: Policy> LockingDesign for VmaLocked<P> {
    const NAME: &'static str = P::NAME;
    const KEEPS_WHILE_RECLAIMING: bool = true;
    const LOCKS_FOLIOS: bool = true;
    const LOCKS_VMAS: bool = true;
    type Space = VmaLocks;
    type Vma = VmaLock;
    /// mmap_lock for reading, if the VMA lock could not be taken.
    type Outside<'s, H: Host> = Option<MmapRead<'s>>;
    type Inside<'s, H: Host> = Inside<'s, H, P>;
    type Kept = Kept;
    type Range<'s, H: Host> = Range<'s>;
    /// The VMAs are locked one by one. With shared leaf tables (`--fork share`) all are locked before the first is copied.
    type Fork<'s, H: Host> = ();

    #[inline]
    fn outside<'s, H: Host>(
        space: &'s Shared<VmaLocks>,
        engine: &'s Engine<H>,
        _: PageNumber,
        attempt: Attempt,
    ) -> Option<MmapRead<'s>> {
        (attempt.slow && attempt.purpose == Purpose::Fault).then(|| space.mmap_lock.read(engine))
    }

    #[inline]
    fn inside<'s, H: Host>(
        space: &'s Shared<VmaLocks>,
        engine: &'s Engine<H>,
        view: View<'s, Vma<H, Self>>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Result<Inside<'s, H, P>, Blocked> {
        if attempt.slow || attempt.purpose == Purpose::Rmap {
            return Ok(Inside::Slow);
        }
        let vma = view.find(page).ok_or(Blocked::Wait)?;
        let read = VmaLocks::try_read(space, engine, vma.lock())?;
        Ok(Inside::Vma(read, vma))
    }

    #[inline]
    fn found<'s, H: Host>(inside: &Self::Inside<'s, H>) -> Option<&'s Vma<H, Self>> {
        match inside {
            Inside::Vma(_, vma) => Some(vma),
            Inside::Slow => None,
        }
    }

    fn allows<H: Host>(
        space: &Shared<VmaLocks>,
        engine: &Engine<H>,
        attempt: Attempt,
        need: Capability,
    ) -> Result<(), Blocked> {
        match need {
            Capability::FirstAnonymous if !attempt.slow => {
                space.mmap_lock.try_read(engine).map(drop).ok_or(Blocked::Wait)
            }
            _ => Ok(()),
        }
    }

    fn blocked<H: Host>(_: &Shared<VmaLocks>, engine: &Engine<H>, attempt: &mut Attempt) {
        engine.counters().add(Counter::VmaLockAborts, 1);
        attempt.slow = true;
    }

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
        _: &Shared<VmaLocks>,
        outside: Option<MmapRead<'o>>,
        inside: Inside<'s, H, P>,
    ) -> Option<Kept> {
        match (inside, outside) {
            (Inside::Vma(read, _), _) => read.keep().map(Kept::Vma),
            (Inside::Slow, Some(guard)) => Some(Kept::Mmap(guard.keep())),
            (Inside::Slow, None) => None,
        }
    }

    fn through_io(kept: &mut Kept) {
        match kept {
            Kept::Vma(kept) => kept.through_io(),
            Kept::Mmap(kept) => kept.through_io(),
        }
    }

    #[allow(unsafe_code)]
    fn range_work<'s, H: Host>(
        space: &'s Shared<VmaLocks>,
        engine: &'s Engine<H>,
        tree: &'s Tree<Vma<H, Self>>,
        call: Call,
        range: PageRange,
    ) -> Range<'s> {
        if call != Call::Discard {
            let write = Some(space.mmap_lock.write(engine, call));
            return Range::Write(Writer { space, awaited: None, write });
        }
        // SAFETY: the section is dropped below. Until then the code only tries the lock of the VMA, which never waits.
        let section = unsafe { engine.enter_section() };
        let vma = tree.view(&section).find(range.start()).filter(|vma| vma.pages().covers(range));
        let kept =
            vma.and_then(|vma| VmaLocks::try_read(space, engine, vma.lock()).ok()).and_then(VmaRead::keep);
        drop(section);
        match kept {
            Some(kept) => Range::Vma { _kept: kept },
            None => Range::Read { _guard: Some(space.mmap_lock.read(engine)) },
        }
    }

    #[inline]
    fn exclude<'s, H: Host>(work: &mut Range<'s>, _: &'s Engine<H>, vma: &VmaLock) -> Result<(), Blocked> {
        match work {
            Range::Write(writer) => {
                let written = writer.space.write(vma);
                if written.is_err() {
                    writer.awaited = vma.kept.get().cloned();
                }
                written
            }
            Range::Read { .. } | Range::Vma { .. } => Ok(()),
        }
    }

    fn await_page_work<'s, H: Host>(work: &mut Range<'s>, engine: &'s Engine<H>) {
        if let Range::Write(writer) = work {
            writer.space.wait_for_readers(engine, writer.awaited.as_deref());
        }
    }

    fn detach(vma: &VmaLock, gone: bool) {
        // The VMA is write-locked. A reader that counts itself in now sees this, or the mark, and counts itself out
        // again.
        match gone {
            true => vma.readers.0.fetch_or(DETACHED, Ordering::Relaxed),
            false => vma.readers.0.fetch_and(!DETACHED, Ordering::Relaxed),
        };
    }

    fn published<H: Host>(work: &mut Range<'_>) {
        if let Range::Write(writer) = work {
            let guard = writer.end().map(MmapWrite::downgrade);
            *work = Range::Read { _guard: guard };
        }
    }

    fn fork_excludes<H: Host>(mapping: &Mapping<H>) -> bool {
        P::fork_locks(mapping)
    }

    fn fork<'s, H: Host>(_: &'s Shared<VmaLocks>, _: &'s Engine<H>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultless::Limits;
    use faultless_soft::Soft;
    use std::thread::{scope, yield_now};

    /// The I/O of a fault under one VMA's lock is no cause of a wait for another one.
    #[test]
    fn io_under_another_lock_is_no_cause() {
        let engine = Engine::new(Soft::new(16).unwrap(), Limits::default()).unwrap();
        let space = Shared::try_new(VmaLocks::default()).unwrap();
        let [awaited, other] = [VmaLock::default(), VmaLock::default()];
        let read = |lock| VmaLocks::try_read(&space, &engine, lock).unwrap().keep().unwrap();
        let (reader, mut in_io) = (read(&awaited), read(&other));
        in_io.through_io();
        scope(|scope| {
            scope.spawn(|| {
                let write = space.mmap_lock.write(&engine, Call::Protect);
                while space.write(&awaited).is_err() {
                    space.wait_for_readers(&engine, awaited.kept.get().map(|kept| &**kept));
                }
                drop(write);
            });
            while space.waiting.lock().is_none() {
                yield_now();
            }
            drop(reader);
        });
        drop(in_io);
        let counted = |counter| engine.statistics().get(counter);
        assert_eq!(counted(Counter::VmaLockWaitIo), 0);
        assert!(counted(Counter::VmaLockWaitFault) > 0);
    }
}
