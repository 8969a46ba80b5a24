//! One machine: the host's services, the page of zeros, and the page cache's account. Each place where a thread may sleep
//! calls this module. So debug builds check in one place that the thread is in no section and has announced nothing
//! (invariant 1).

mod limits;
mod shared_tables;
mod spaces;
mod stale;
mod waits;

pub use limits::{DirtyLimits, Limits, LimitsError, Reserve};
pub(crate) use shared_tables::{MAX_SHARED_TABLES, SharedTables};
pub(crate) use spaces::{ListedSpace, Spaces, Tally};
pub(crate) use stale::{OpenBatches, RemovedBatch, RemovedEntries, StaleBatch};
pub(crate) use waits::{Dying, Notice, WaitTable};

use crate::background::Background;
use crate::frame::{Folio, Reference, Remaining};
use crate::host::{
    Clock, Frame, FrameSource, FrameUsage, FrameUse, Frames, GroupId, Host, OutOfMemory, PageTable, Park,
    Slots,
};
use crate::limit::Victims;
use crate::page_cache::{Account, DirtyPages};
use crate::reclaim::Reclaim;
use crate::stats::{Counter, Counters, Statistics};
use crate::swap::Swap;
use crate::sync::{
    AccessSection, Held, Kept, Mutex, MutexGuard, OnceBox, Pinned, RetiredList, Section, Sections, plain,
    try_box_uninit,
};
use alloc::sync::Arc;
use crossbeam_utils::CachePadded;

/// A value of a slot of `H`, with the guard that keeps its thread at that slot.
pub(crate) type PinnedTo<H, T> = Pinned<T, <<H as Host>::Slots as Slots>::Guard>;

/// The memory of one machine, and the state that its spaces share.
pub struct Engine<H: Host> {
    host: H,
    /// The read sections of the engine's threads. Immutable.
    sections: Arc<Sections>,
    limits: Limits,
    /// Whether faults put the frames of anonymous pages into reclaim's queues. It is false until the engine can swap. Atomic;
    /// it becomes true once.
    reclaims: plain::AtomicBool,
    /// The page of zeros, which reads of untouched anonymous memory see. Immutable; never freed.
    zero: Frame,
    /// The next number for a mapping, a record or a file. Atomic. It has a cache line of its own, since faults read its
    /// neighbours.
    serial: CachePadded<plain::AtomicU64>,
    /// The count of shared leaf tables.
    pub(crate) shared_tables: SharedTables,
    /// The account of the page cache, on a cache line of its own.
    pub(crate) cache: CachePadded<Account>,
    /// Queues of sleeping threads, by the key for which they wait.
    waits: WaitTable,
    /// The batches that are not invalidated yet. It has a cache line of its own, since range work reads it.
    open_batches: CachePadded<OpenBatches>,
    /// The slots and devices of swap space.
    pub(crate) swap: Swap,
    /// The queues of pages that reclaim may take. They have a cache line of their own.
    pub(crate) reclaim: CachePadded<Reclaim>,
    /// Whether a thread takes stocks of others back. Atomic.
    pub(crate) takes_stocks: plain::AtomicBool,
    /// The background worker. It has a cache line of its own.
    pub(crate) background: CachePadded<Background>,
    /// The dirty pages of files. They have a cache line of their own.
    pub(crate) dirty: CachePadded<DirtyPages<H>>,
    /// All spaces.
    spaces: Spaces,
    /// The policy that chooses a space to be ended for lack of memory. Empty until [`Engine::end_victims`].
    pub(crate) victims: OnceBox<Victims>,
}

impl<H: Host> Engine<H> {
    /// Makes an engine on `host`.
    ///
    /// # Errors
    /// [`OutOfMemory`] if there is no frame for the page of zeros, no memory for the slots of 64 threads, or if
    /// [`Slots::attach`] returns it. If the allocator has no room for the count of handles together with the engine, the
    /// program is aborted, as [`Arc::new`] does: make an engine early.
    pub fn new(host: H, limits: Limits) -> Result<Arc<Self>, OutOfMemory> {
        let (sections, waits) = (Sections::try_shared()?, WaitTable::new()?);
        let mut engine = try_box_uninit::<Self>()?;
        // The frame is taken last, so that no failure before has to give it back. From here on the engine's drop does so.
        let frames = Frames::new(host.frames());
        let zero = frames.allocate(GroupId::ROOT, FrameUse::ZeroPage).ok_or(OutOfMemory)?;
        frames.zero(zero);
        frames.folio(zero).begin_zeros();
        let dirty = limits.dirty.marks(host.frames().usage().limit.min(limits.cached_pages));
        let place = engine.as_mut_ptr();
        // The engine is made where it stays: a host may be large, and a kernel's stack has no room for it.
        // SAFETY: places of the box's own; each field is written once, and none is read before all are.
        let engine = unsafe {
            (&raw mut (*place).sections).write(sections);
            (&raw mut (*place).limits).write(limits);
            (&raw mut (*place).reclaims).write(plain::AtomicBool::new(false));
            (&raw mut (*place).zero).write(zero);
            (&raw mut (*place).serial).write(CachePadded::new(plain::AtomicU64::new(1)));
            (&raw mut (*place).shared_tables).write(SharedTables::default());
            (&raw mut (*place).cache).write(CachePadded::default());
            (&raw mut (*place).waits).write(waits);
            (&raw mut (*place).open_batches).write(CachePadded::default());
            (&raw mut (*place).swap).write(Swap::default());
            (&raw mut (*place).reclaim).write(CachePadded::new(Reclaim::new(limits.reclaim)));
            (&raw mut (*place).takes_stocks).write(plain::AtomicBool::new(false));
            (&raw mut (*place).background).write(CachePadded::default());
            (&raw mut (*place).dirty).write(CachePadded::new(DirtyPages::new(dirty)));
            (&raw mut (*place).spaces).write(Spaces::default());
            (&raw mut (*place).victims).write(OnceBox::default());
            (&raw mut (*place).host).write(host);
            engine.assume_init()
        };
        engine.charge(engine.waits.room());
        engine.host.slots().attach(&engine.sections)?;
        engine.sections.keep_spare()?;
        Ok(Arc::from(engine))
    }

    /// Returns the host.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Returns the read sections of this engine's threads. A host needs them for [`Host::new_table`], and at the
    /// beginning and the end of a processor's use ([`Sections::prepare`], [`Sections::unlist`]).
    #[inline]
    pub fn sections(&self) -> &Arc<Sections> {
        &self.sections
    }

    /// Returns the limits that the engine was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns whether faults put the frames of anonymous pages into reclaim's queues.
    #[inline]
    pub(crate) fn reclaims(&self) -> bool {
        self.reclaims.load(plain::Ordering::Relaxed)
    }

    /// Returns whether reclaim takes pages of files: always. Models turn it on, since it makes each read of a page longer.
    #[inline]
    pub(crate) fn reclaims_files(&self) -> bool {
        cfg!(not(loom)) || self.reclaims()
    }

    /// Makes faults put the frames of anonymous pages into reclaim's queues from now on. Pages that are there already are not
    /// found by reclaim, so it is called before the first page is mapped.
    pub(crate) fn start_reclaim(&self) {
        self.reclaims.store(true, plain::Ordering::Relaxed);
    }

    /// Returns the number of frames in use, and their limit. One frame is the page of zeros.
    pub fn frame_usage(&self) -> FrameUsage {
        self.host.frames().usage()
    }

    /// Returns the number of pages of files in the page cache. Pages of files without a store
    /// ([`File::in_memory`](crate::File::in_memory)) are not counted.
    pub fn cached_pages(&self) -> u64 {
        self.cache.cached()
    }

    /// Returns the number of bytes that the engine has from the allocator for its own use, with those of its host's page
    /// tables. docs/memory.md says how much each mapping, file, page, thread and space takes at most. The bytes of pages
    /// are not included ([`Engine::frame_usage`]). The number is a snapshot if other threads are in calls.
    ///
    /// Included are mappings and the nodes that hold them, page tables, files and the indices of their pages, spaces, the
    /// slots of threads, and all that has been replaced and is not freed yet. Not included are the memory of a call or a
    /// transfer under way, the queue of calls that wait for ranges behind its first two places, other memory of a store
    /// or a host, and the memory of a locking design other than [`Faultless`](crate::design::Faultless).
    pub fn metadata_bytes(&self) -> usize {
        self.sections.charged()
    }

    /// Adds `bytes` to [`Engine::metadata_bytes`].
    #[inline]
    pub(crate) fn charge(&self, bytes: usize) {
        self.sections.charge(bytes);
    }

    /// Subtracts `bytes` from [`Engine::metadata_bytes`].
    #[inline]
    pub(crate) fn uncharge(&self, bytes: usize) {
        self.sections.uncharge(bytes);
    }

    /// Returns the counters so far, summed over all threads.
    pub fn statistics(&self) -> Statistics {
        let mut sum = Statistics::default();
        self.sections.each_counters(|counters| sum.accumulate(counters));
        sum
    }

    /// Returns the calling thread's counters, with the guard of its slot. The caller drops the guard before it
    /// sleeps.
    #[inline]
    pub fn counters(&self) -> PinnedTo<H, &Counters> {
        let (slot, guard) = self.host.slots().pin();
        Pinned::new(self.sections.counters(slot), guard)
    }

    /// Returns the counters as [`Engine::counters`] does, and makes the thread's slot ready. Called at the beginning of a
    /// call that may be the first of its thread.
    ///
    /// # Errors
    /// [`OutOfMemory`] if there is no memory for the slot. The call has done nothing yet, and returns the error.
    #[inline]
    pub(crate) fn prepare(&self) -> Result<PinnedTo<H, &Counters>, OutOfMemory> {
        let (slot, guard) = self.host.slots().pin();
        Ok(Pinned::new(self.sections.prepare(slot)?, guard))
    }

    /// Counts a fault of this thread. Returns whether the thread has put work off until now ([`Engine::pay_debts`]).
    ///
    /// # Errors
    /// As for [`Engine::prepare`].
    #[inline]
    pub(crate) fn begin_fault(&self) -> Result<bool, OutOfMemory> {
        let (slot, _guard) = self.host.slots().pin();
        self.sections.begin_fault(slot)
    }

    /// Enters a read section of this thread, for a host that looks at entries or at mappings by itself.
    ///
    /// # Safety
    /// The section is dropped before its thread calls this engine again, and is never forgotten. A call that waits for
    /// sections would wait for itself, after it has begun a change; debug builds panic there, in the middle of it. Within
    /// the section a host may use the table and the tree, [`Engine::counters`] and [`Engine::host`].
    ///
    /// ```compile_fail,E0133
    /// # use faultless::host::Host;
    /// fn stop_all_grace_periods<H: Host>(engine: &faultless::Engine<H>) {
    ///     std::mem::forget(engine.enter_section());
    /// }
    /// ```
    #[inline]
    pub unsafe fn enter_section(&self) -> PinnedTo<H, Section<'_>> {
        self.enter()
    }

    /// Enters a section as [`Engine::enter_section`] does, for the engine. No function of this crate gives a section to
    /// its caller.
    #[inline]
    pub(crate) fn enter(&self) -> PinnedTo<H, Section<'_>> {
        let (slot, guard) = self.host.slots().pin();
        // SAFETY: while the guard lives, no other thread uses the slot.
        let section = unsafe { self.sections.enter(slot, self.host.barrier()) };
        Pinned::new(section, guard)
    }

    /// Enters a section in which this thread accesses a page as a processor does. `subject` is the host's number for the
    /// access; the host's [`PageTable::invalidate`] selects sections by it.
    ///
    /// # Safety
    /// The contract is that of [`Engine::enter_section`].
    #[inline]
    pub unsafe fn enter_access(&self, subject: u64) -> PinnedTo<H, AccessSection<'_>> {
        let (slot, guard) = self.host.slots().pin();
        // SAFETY: while the guard lives, no other thread uses the slot.
        let access = unsafe { self.sections.enter_access(slot, subject) };
        Pinned::new(access, guard)
    }

    /// Notes that the calling thread is in no section now. For a host whose [`Host::Barrier`] is
    /// [`QuiescentStates`](crate::sync::QuiescentStates).
    ///
    /// # Safety
    /// The thread has no [`Section`] of this engine, and is in no call of it, except one that has called the host's
    /// [`Park`].
    #[inline]
    pub unsafe fn quiescent(&self) {
        let (slot, _guard) = self.host.slots().pin();
        // SAFETY: by the contract above.
        unsafe { self.sections.quiescent(slot) }
    }

    /// Notes that the calling thread is in no section, as [`Engine::quiescent`] does. No grace period waits for this
    /// thread until its next section.
    ///
    /// # Safety
    /// The contract is that of [`Engine::quiescent`].
    pub unsafe fn offline(&self) {
        let (slot, _guard) = self.host.slots().pin();
        // SAFETY: by the contract above.
        unsafe { self.sections.offline(slot) }
    }

    /// Returns a unique number, greater than those that the same thread took before.
    pub(crate) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, plain::Ordering::Relaxed)
    }

    /// Returns a unique number whose value says nothing about the time when it was taken. It comes from a stock of the
    /// calling thread, so that first pages of mappings write no line that all threads share.
    pub(crate) fn unordered_serial(&self) -> u64 {
        const STOCK: u64 = 64;
        let more = || {
            let first = self.serial.fetch_add(STOCK, plain::Ordering::Relaxed);
            first..first + STOCK
        };
        let (slot, _guard) = self.host.slots().pin();
        self.sections.number(slot, more)
    }

    /// Returns the frame of the page of zeros.
    pub fn zero_frame(&self) -> Frame {
        self.zero
    }

    /// Returns the folio of `frame`.
    pub(crate) fn folio(&self, frame: Frame) -> &Folio {
        self.host.frames().folio(frame)
    }

    /// Follows the home of `frame` in a section, as reclaim does, and returns the pages to which it leads, in the order of the
    /// search: the entry that it names, then those of the table's relatives. Tables that several spaces have are left out. For
    /// tests.
    #[cfg(any(test, feature = "audit"))]
    pub fn pages_by_home(&self, frame: Frame) -> alloc::vec::Vec<crate::address::PageNumber> {
        let section = self.enter();
        let Some(places) = crate::tables::places(self.folio(frame), &section) else {
            return alloc::vec::Vec::new();
        };
        let own = places.records(&section).filter(|record| record.space().is_some());
        own.map(|record| crate::address::PageNumber::new(record.first() + places.index)).collect()
    }

    // ---- sleeping

    /// Checks in debug builds that the calling thread may sleep: it is in no section, so it has announced nothing, and it
    /// serves no interrupt. Invariant 1.
    ///
    /// # Panics
    /// In debug builds, if the thread is in a section, or serves an interrupt ([`Host::is_in_interrupt`]).
    #[inline]
    pub fn assert_may_sleep(&self, doing: &str) {
        #[cfg(debug_assertions)]
        {
            assert!(!self.host.is_in_interrupt(), "invariant 1: an interrupt would wait: {doing}");
            assert!(
                !self.sections.inside(self.host.slots().pin().0, self.host.barrier()),
                "invariant 1: a thread that is announced or in a read section would sleep: {doing}"
            );
        }
        let _ = doing;
    }

    /// Checks in debug builds that the calling thread may wait for other processors: it is in no section (invariant 1)
    /// and holds no short lock (invariant 17).
    #[inline]
    #[track_caller]
    fn assert_may_wait_for_processors(&self, doing: &str) {
        self.assert_may_sleep(doing);
        Held::assert_no_short_lock(doing);
    }

    /// Checks in debug builds that the calling thread is in no section and holds no lock, claim or locked folio that is
    /// counted as [`Held`]. Called right before the thread touches memory that a caller gave; `doing` names the access.
    /// On a host with real memory the access can fault, and the fault path needs what the thread holds. Pins are not
    /// counted: they are values that a caller may keep. A function that takes a pin drops it before it calls this.
    /// Invariant 13.
    ///
    /// # Panics
    /// In debug builds, if the thread is in a section or holds one of these.
    #[inline]
    #[track_caller]
    pub fn assert_holds_nothing(&self, doing: &str) {
        self.assert_may_sleep(doing);
        Held::assert_none(doing);
    }

    /// Takes a lock that is held for a few instructions. The caller is in no section of this engine (debug builds panic).
    pub fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        self.assert_may_sleep("a lock");
        mutex.lock()
    }

    /// Makes one step of waiting for the end of another thread's announcement. `look` counts the steps from zero.
    #[cold]
    pub(crate) fn pause_on_bit(&self, look: u32) {
        self.assert_may_sleep("an entry's bit");
        let start = self.host.clock().now_ns();
        // CVE-2026-43404: the mutant looks again at once, and never lets the thread go on that it waits for.
        if !mutant!("waits_spin") {
            self.host.park().spin(look);
        }
        let waited = self.end_wait(Counter::PageBitWait, start);
        let counters = self.counters();
        if look >= SPINS {
            counters.add(Counter::PreemptedWait, waited);
        }
        match look {
            0 => counters.add(Counter::PageBitWaits, 1),
            SPINS => counters.add(Counter::PreemptedWaits, 1),
            _ => {}
        }
    }

    /// Waits until all sections that were entered before have ended. The caller is in no section of this engine (debug
    /// builds panic).
    pub fn grace(&self) {
        self.assert_may_wait_for_processors("a grace period");
        self.timed(Counter::GraceWait, |wait| self.sections.grace(self.host.barrier(), wait));
    }

    /// Runs `work` with a wait function. Adds the time from the first wait on to `counter`; reads no clock if there is no
    /// wait.
    pub(crate) fn timed(&self, counter: Counter, work: impl FnOnce(&mut dyn FnMut(u32))) {
        let mut start = None;
        work(&mut |look| {
            start.get_or_insert_with(|| self.host.clock().now_ns());
            self.host.park().spin(look);
        });
        if let Some(start) = start {
            self.end_wait(counter, start);
        }
    }

    /// Notes that the calling thread has waited since `start`, by the host's clock: adds the time to `counter`, tells the host
    /// ([`Host::waited`]), and returns the time in nanoseconds. The engine calls it for its own waits, and a
    /// [design](crate::design) for those of its locks. If a design counts a wait by two counters, it passes the one that tells
    /// the cause, and adds the returned time to the other. The caller is in no section of this engine.
    pub fn end_wait(&self, counter: Counter, start: u64) -> u64 {
        let now = self.host.clock().now_ns();
        let waited = now.saturating_sub(start);
        self.counters().add(counter, waited);
        self.host.waited(counter, start, now);
        waited
    }

    // ---- retiring

    /// Takes the unhooked `things`, and frees those things that this thread has retired before and that are due. Called
    /// after all locks and claims are released. It does not wait for sections, with two exceptions: it waits for a grace
    /// period if there is no memory to remember the things, or if all threads together have 4 MiB waiting to be freed
    /// already.
    pub(crate) fn retire(&self, things: &mut RetiredList) {
        let (sections, barrier) = (&self.sections, self.host.barrier());
        if things.is_empty() {
            // SAFETY: as below.
            return unsafe { sections.go_on_if_hurried(barrier) };
        }
        self.assert_may_sleep("dropping the last reference");
        // SAFETY: only spaces of this engine retire things, and they have unhooked them from their tables and trees. All
        // readers of these enter by this engine, with this barrier.
        match unsafe { sections.retire(self.host.slots().pin(), barrier, things) } {
            Ok(Kept::Little) => {}
            Ok(Kept::TooMuch) => self.flush(),
            Err(OutOfMemory) => self.free_after_grace(things),
        }
    }

    /// Retires leaf tables as [`Engine::retire`] does, and frees nothing else. For a caller that may hold a lock which
    /// the drop of another thing may need.
    pub(crate) fn retire_tables(&self, tables: &mut RetiredList) {
        let (slot, guard) = self.host.slots().pin();
        let kept = self.sections.retire_later(slot, tables);
        drop(guard);
        if kept.is_err() {
            self.free_after_grace(tables);
        }
    }

    fn free_after_grace(&self, things: &mut RetiredList) {
        self.grace();
        for thing in things.drain() {
            self.sections.uncharge(thing.charged());
            // SAFETY: unhooked before it came here, and a grace period has passed since.
            unsafe { thing.free() };
        }
    }

    /// Frees everything that all threads have retired so far. Waits for a grace period if there is any. The caller is in
    /// no section of this engine (debug builds panic), and holds nothing that the drop of a retired file or mapping may
    /// need.
    pub fn flush(&self) {
        self.flush_if(false);
    }

    /// Frees as [`Engine::flush`] does, and waits for a grace period in any case.
    pub(crate) fn grace_and_flush(&self) {
        self.flush_if(true);
    }

    fn flush_if(&self, always: bool) {
        self.assert_may_wait_for_processors("a grace period");
        let (sections, barrier) = (&self.sections, self.host.barrier());
        // SAFETY: this engine's sections are entered with this barrier.
        self.timed(Counter::GraceWait, |wait| unsafe { sections.flush(barrier, always, wait) });
    }

    // ---- frames

    /// Returns the machine's frames. Only the engine calls the methods of [`FrameSource`] that demand something of their
    /// caller.
    #[inline]
    pub(crate) fn frames(&self) -> Frames<'_, H::Frames> {
        Frames::new(self.host.frames())
    }

    /// Drops a reference. Frees the frame if it was the last one; frees folio and slot if only the swap cache's is left and no
    /// entry names the slot. Does not wait.
    #[inline]
    pub(crate) fn put(&self, frame: Frame, reference: Reference) {
        self.see_to(frame, self.folio(frame).release(reference));
    }

    /// Does what the drop of a reference demands, after which `left` remains.
    #[inline]
    pub(crate) fn see_to(&self, frame: Frame, left: Remaining) {
        match left {
            Remaining::Nothing => self.free_frame(frame),
            Remaining::InSlot => self.see_to_cached(frame),
            Remaining::Others => {}
        }
    }

    /// Drops a pin, as [`Engine::put`] does, and wakes the threads that wait in [`Engine::wait_for_place`]. The caller
    /// has announced nothing.
    pub(crate) fn unpin(&self, frame: Frame, reference: Reference) {
        let folio = self.folio(frame);
        let key = core::ptr::from_ref(folio).addr();
        if mutant!("wakes_before_the_place") {
            self.wake_all(key);
        }
        let (left, is_crowded) = folio.put_pin(reference);
        self.see_to(frame, left);
        if is_crowded && !mutant!("wakes_before_the_place") {
            self.wake_all(key);
        }
        if reference == Reference::IoPin {
            self.tell_freed();
        }
    }

    /// Waits until no processor uses older translations of `range`. Called after range work or a copy-on-write break
    /// removed them.
    pub(crate) fn invalidate(&self, table: &H::Table, range: crate::address::PageRange) {
        self.assert_may_wait_for_processors("invalidate");
        self.timed(Counter::InvalidateWait, |wait| table.invalidate(range, wait));
    }

    /// Tells the host that a space has exited and is about to be swept.
    pub(crate) fn abandon(&self, table: &H::Table) {
        self.assert_may_wait_for_processors("abandon");
        self.timed(Counter::InvalidateWait, |wait| table.abandon(wait));
    }

    /// Waits until no processor has the table of a space loaded. Called before the space's frames and tables are freed.
    pub(crate) fn unload(&self, table: &H::Table) {
        self.assert_may_wait_for_processors("unload");
        // The mutant: processors keep translations of a space that is gone.
        if !mutant!("frames_before_unload") {
            self.timed(Counter::InvalidateWait, |wait| table.unload(wait));
        }
    }
}

/// The number of looks after which a wait is taken to be for a preempted holder; see [`Park::spin`].
const SPINS: u32 = 64;

impl<H: Host> Drop for Engine<H> {
    fn drop(&mut self) {
        // A worker that sleeps without a handle of the engine finds that the engine is gone.
        self.background.call(self.host.park());
        self.host.slots().detach(&self.sections);
        self.uncharge(self.waits.room());
        let of_victims = self.victims.get().map_or(0, |_| size_of::<Victims>());
        self.uncharge(of_victims);
        self.uncharge_spaces();
        // SAFETY: `&mut self`: no space is left, so no thread is in a section of this engine.
        unsafe { self.sections.free_all() };
        let _ = self.folio(self.zero).put(Reference::Mapping);
        self.frames().free(self.zero);
    }
}
