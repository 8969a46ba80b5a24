//! The interface to the embedder: page tables, frames, sleeping, a clock, a barrier, the slot of each thread.
//!
//! ARCHITECTURE.md has a table of the meaning of each call on three hosts: a software MMU, a kernel with x86-64 tables, a Linux
//! process with userfaultfd. The traits hold no policy. Each method states its preconditions.

mod abilities;
mod caller;
#[cfg(all(feature = "conformance", not(loom)))]
pub mod conformance;
mod entry;
#[cfg(feature = "std")]
mod membarrier;
#[cfg(feature = "std")]
mod standard;
#[cfg(feature = "std")]
mod std_host;

pub use crate::frame::Folio;
pub use crate::sync::{
    AccessSection, Barrier, FenceBarrier, OutOfMemory, Park, Pinned, QuiescentStates, Retired, RetiredKind,
    Section, Sections, ShortLock, Sleeper, SlotIndex, Stable,
};
pub use abilities::{
    FollowRanges, LeafRecord, PlaceWord, RefuseAccesses, ShareLeaves, SpareLink, Unsupported,
};
pub(crate) use caller::{Frames, Table};
pub use entry::{Entry, EntryKind, Frame, GENERATIONS, Slot};
#[cfg(feature = "std")]
pub use membarrier::StdBarrier;
#[cfg(feature = "std")]
pub use standard::{StdClock, StdPark, StdSlots};
#[cfg(feature = "std")]
pub use std_host::{StdHost, StdServices};

use crate::address::{PageNumber, PageRange};
use crate::stats::Counter;
use alloc::sync::Arc;

/// The services that an engine needs from its surroundings. A host in a process with `std` implements `StdHost` instead.
///
/// # Safety
/// Each value that a method returns obeys the contract of its trait. A method returns the same value at each call.
pub unsafe trait Host: Sized + Send + Sync + 'static {
    /// The page table of one space.
    type Table: PageTable;
    /// The physical memory.
    type Frames: FrameSource;
    /// The service by which threads sleep and are woken.
    type Park: Park;
    /// The clock.
    type Clock: Clock;
    /// The barrier that orders read sections against grace periods.
    type Barrier: Barrier;
    /// The service that gives each thread or processor its slot.
    type Slots: Slots;

    /// The physical memory.
    fn frames(&self) -> &Self::Frames;
    /// The service by which threads sleep and are woken.
    fn park(&self) -> &Self::Park;
    /// The clock.
    fn clock(&self) -> &Self::Clock;
    /// The barrier that orders read sections against grace periods.
    fn barrier(&self) -> &Self::Barrier;
    /// The service that gives each thread or processor its slot.
    fn slots(&self) -> &Self::Slots;

    /// Makes an empty table for a new space of the engine that has `sections`. The table keeps them if it charges them for its
    /// memory, or if its `invalidate` waits for them: on a software MMU a processor's accesses are sections too.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn new_table(&self, sections: &Arc<Sections>) -> Result<Self::Table, OutOfMemory>;

    /// Makes an empty table for the child of a space that has `parent`, with as many pages. `sections` are those of the parent.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn child_table(
        &self,
        sections: &Arc<Sections>,
        parent: &Self::Table,
    ) -> Result<Self::Table, OutOfMemory> {
        let _ = parent;
        self.new_table(sections)
    }

    /// Invalidates pages of several tables in one round: returns when [`PageTable::invalidate`] of each of them would have
    /// returned. The engine calls it where truncation, writeback or reclaim has changed entries in several spaces, and holds no
    /// handle of these spaces meanwhile. `sections` are those of the engine. `batch` names the pages, each by [`PageTable::stale`] or
    /// [`ShareLeaves::stale_in_all`], in no order; the host may change the order.
    ///
    /// A table may be gone by now. If [`PageTable::unload`] has returned, its pages are skipped; otherwise they are
    /// invalidated.
    ///
    /// A kernel interrupts each processor once for the whole batch. A host without such a means invalidates one table after the
    /// other.
    ///
    /// The caller is in no section and has announced nothing; this may sleep, and needs no memory. `wait` is as for
    /// [`PageTable::invalidate`].
    fn invalidate_all(
        &self,
        sections: &Sections,
        batch: &mut [<Self::Table as PageTable>::Stale],
        wait: impl FnMut(u32),
    );

    /// Returns whether the calling processor serves an interrupt. There, no call of the engine may be made and no transfer may
    /// be completed. Debug builds ask where the engine takes a lock, sleeps or wakes a thread. docs/contexts.md lists each
    /// call.
    fn is_in_interrupt(&self) -> bool {
        false
    }

    /// Tells the host that the calling thread has waited from `from_ns` to `to_ns`, by [`Host::clock`]. `counter` is the one that
    /// got the time, so it says what the thread waited for. Called at the end of each wait that the engine or a design counts;
    /// a thread that waits for an entry's bit tells of each step. Use it for a trace. The default does nothing.
    ///
    /// The thread is in no section, and may hold locks of the engine. So the host does not sleep, does not call the engine and
    /// takes no memory from it.
    #[inline]
    fn waited(&self, counter: Counter, from_ns: u64, to_ns: u64) {
        let _ = (counter, from_ns, to_ns);
    }
}

/// The page table of one space: entries of one word each, in leaf tables that hang in upper tables.
///
/// An entry with [`Entry::ANNOUNCED`] belongs to the page work that set the bit. No other thread changes it, except that a
/// processor may set the accessed and dirty bits of any present entry at any time. An entry without [`Entry::MAPPED`] may be a
/// guard, or hold a page that is not present ([`Entry::kind`]). A host keeps its bits as it keeps a frame, and lets no
/// processor use it. If the hardware's tables take no compare-and-swap, the host keeps these words in tables of its own and
/// makes the hardware follow. It does so in [`PageTable::install`] and [`PageTable::exchange`], before the store that clears
/// the bit.
///
/// Upper tables live as long as the space; only leaf tables come and go.
///
/// A table offers more than the required methods by three *abilities*: [`PageTable::sharing`], [`PageTable::following`] and
/// [`PageTable::refusing`]. For an ability that it lacks, it names [`Unsupported`] and returns `None`.
///
/// A host that takes memory for tables from the allocator reports it to its [`Sections`], by [`Sections::charge`] and
/// [`Sections::uncharge`]. [`Engine::metadata_bytes`](crate::Engine::metadata_bytes) then counts it. The [`RetiredKind`] of a
/// retired leaf table tells whether the engine uncharges it.
///
/// # Safety
/// The engine relies on these methods when it frees frames and tables. An entry changes only as the methods state. A leaf found
/// with a proof stays in memory as long as the proof lives. `invalidate` waits for every older translation. The record of a
/// leaf is one place in memory from when the leaf is made until it is freed. It is at first zeros or [`LeafRecord::new`].
///
/// A method that is not `unsafe` breaks no memory safety, for any page and any leaf of a table of this type. It may panic. The
/// `unsafe` methods change what processors reach, or free tables. Each states what its caller guarantees.
///
/// ```compile_fail,E0133
/// # use faultless::address::PageNumber;
/// # use faultless::host::PageTable;
/// fn free_under_a_reader<T: PageTable>(table: &T, page: PageNumber) {
///     let _ = table.unhook(page);
/// }
/// ```
pub unsafe trait PageTable: Sized + Send + Sync + 'static {
    /// A leaf table and the place where it hangs. Valid for `'s`, the life of the proof with which it was found.
    type Leaf<'s>: Copy
    where
        Self: 's;

    /// The part of a table that safe code may know: [`PageTable::root`].
    type Root<'s>
    where
        Self: 's;
    /// A range of pages of this table, in a form that [`Host::invalidate_all`] can use when the engine has no handle of the
    /// space. It names the table by a number that no other table gets as long as this one may be in use, or by a weak handle.
    /// At most 32 bytes.
    type Stale: Send + 'static;
    /// The way in which leaf tables are shared. With [`Unsupported`], fork copies each entry.
    type Sharing: ShareLeaves<Self>;
    /// The way in which mappings beside the table follow it. With [`Unsupported`], there are no such mappings.
    type Following: FollowRanges;
    /// The way in which an access that cannot be served is answered. With [`Unsupported`], the thread that made the access gets
    /// the error of its fault.
    type Refusing: RefuseAccesses<Self>;

    /// The number of pages of one leaf table: a power of two, 2048 at most.
    const LEAF_PAGES: u64;
    /// Tells whether the page of zeros can be mapped for reading, such that a store faults. If false, a read of untouched
    /// memory gets a frame of its own.
    const MAPS_ZEROS: bool = true;
    /// Tells whether all entries that name a frame map the same memory, so that a store through one is seen through all. If
    /// false, no shared mapping can be writable
    /// ([`MapError::SharedWriteUnsupported`](crate::MapError::SharedWriteUnsupported)), and bytes that a
    /// [`FileHandle`](crate::FileHandle) writes are seen where the page is mapped afterwards.
    const SHARES_WRITES: bool = true;
    /// Tells whether entries with [`Entry::FOREIGN`] can be made. If true, the host's processors reach a frame by its number
    /// alone, whether or not the host's [`FrameSource`] has such a frame, and an entry keeps that bit. The host derives the
    /// type of memory (uncached, write-combining) from the frame's number. If false, no mapping of foreign frames is made:
    /// [`MapError::ForeignUnsupported`](crate::MapError::ForeignUnsupported).
    const MAPS_FOREIGN: bool = false;
    /// Returns the pages that can be mapped. Both ends are multiples of [`PageTable::LEAF_PAGES`]. The answer never changes.
    /// Page 0 is mapped only where a call names it.
    fn pages(&self) -> PageRange;

    /// Returns the part of this table that the host's own code may know without `unsafe`, through
    /// [`AddressSpace::root`](crate::AddressSpace::root). For a kernel, this is the value that it loads into the processor's
    /// register. The answer never changes and gives no access to an entry. A kernel that loads it, or keeps it loaded, ensures
    /// that the space has a handle, or that [`PageTable::unload`] finds the processor.
    fn root(&self) -> Self::Root<'_>;

    /// Returns the ability to share leaf tables, if the table has it. The answer never changes.
    fn sharing(&self) -> Option<&Self::Sharing>;

    /// Returns the ability to follow ranges, if the table has it. The answer never changes.
    fn following(&self) -> Option<&Self::Following>;

    /// Returns the ability to answer accesses that cannot be served, if the table has it. The answer never changes.
    fn refusing(&self) -> Option<&Self::Refusing>;

    /// Returns the leaf table over `page`, if there is one. Acquire: everything written into a new leaf is seen.
    fn leaf<'s>(&'s self, proof: &'s impl Stable, page: PageNumber) -> Option<Self::Leaf<'s>>;

    /// Returns the leaf table over `page`, as [`PageTable::leaf`] does, and makes it if it is missing. Does not sleep.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing has changed.
    fn make_leaf<'s>(
        &'s self,
        proof: &'s impl Stable,
        page: PageNumber,
    ) -> Result<Self::Leaf<'s>, OutOfMemory>;

    /// Returns whether the leaf still hangs where it was found. Called while an entry in it is announced.
    fn hangs(&self, leaf: Self::Leaf<'_>) -> bool;

    /// Returns the entry of `page`, which the leaf covers. Relaxed.
    fn load(&self, leaf: Self::Leaf<'_>, page: PageNumber) -> Entry;

    /// Sets [`Entry::ANNOUNCED`] if the entry is still `seen`, which does not have that bit. Returns whether it did. Acquire.
    /// One atomic read-modify-write: the engine's fence after it is [`fence_after_rmw`](crate::sync::fence_after_rmw).
    fn try_announce(&self, leaf: Self::Leaf<'_>, page: PageNumber, seen: Entry) -> bool;

    /// Clears [`Entry::ANNOUNCED`] and leaves the rest of the entry. Accessed and dirty bits that were set meanwhile stay.
    /// Release.
    ///
    /// # Safety
    /// The caller has announced the entry and no longer relies on the bit.
    unsafe fn let_go(&self, leaf: Self::Leaf<'_>, page: PageNumber);

    /// Replaces the entry with `new` and clears [`Entry::ANNOUNCED`] by the same store. Returns the old entry, with the
    /// accessed and dirty bits of the last moment. If `new` keeps the frame, it keeps those bits too. Release. May copy one
    /// page. Does not sleep.
    ///
    /// A host whose processors walk another table updates that table, even if `new` equals the old entry. The processor has
    /// faulted, so its table differs from the entry. The cause is [`PageTable::fill`], or another thread that came first.
    ///
    /// # Errors
    /// [`OutOfMemory`], from a host that needs memory to map a page: the entry is unchanged and still announced.
    ///
    /// # Safety
    /// The caller has announced the entry. If `new` names a frame, one of these holds: the frame is in use, is filled, and is
    /// counted once for this entry; it is the page of zeros; or it is foreign and answered for
    /// ([`ForeignFrames`](crate::ForeignFrames)). `new` gives the write right only if every space that sees the frame may see
    /// the store.
    unsafe fn install(
        &self,
        leaf: Self::Leaf<'_>,
        page: PageNumber,
        new: Entry,
    ) -> Result<Entry, OutOfMemory>;

    /// Replaces the entry with `new` for range work, if the entry is still `seen`. Neither has [`Entry::ANNOUNCED`]. AcqRel.
    ///
    /// # Errors
    /// The entry that is there instead of `seen`. It is unchanged.
    ///
    /// # Safety
    /// The caller has reserved the page. `new` is as for [`PageTable::install`]. The frame of `seen` is freed only after a
    /// later [`PageTable::invalidate`] of the page.
    unsafe fn exchange(
        &self,
        leaf: Self::Leaf<'_>,
        page: PageNumber,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry>;

    /// Stores `new` in an empty entry. Fork fills the child's entries this way. A space that leaves a shared leaf fills its
    /// copy this way before the copy hangs ([`ShareLeaves::open`]). Release. A host whose processors walk another table updates
    /// that table at the first access.
    ///
    /// # Safety
    /// No other thread changes the entry meanwhile. `new` is as for [`PageTable::install`].
    unsafe fn fill(&self, leaf: Self::Leaf<'_>, page: PageNumber, new: Entry);

    /// Clears [`Entry::ACCESSED`] in the entry of `page`, by one atomic step, if the entry maps a page and has the bit. Returns
    /// whether it did: whether a processor has used the page since the bit was last cleared. Leaves the rest of the entry, and an
    /// announcement. Relaxed. Reclaim calls it in a section, without the bit and without an invalidation: a processor that keeps
    /// the translation may use the page without setting the bit again.
    ///
    /// The default returns false, for a host whose processors set no such bit. Reclaim then goes by the order of first use.
    fn age(&self, leaf: Self::Leaf<'_>, page: PageNumber) -> bool {
        let _ = (leaf, page);
        false
    }

    /// Returns the engine's record of the leaf. Not called for a leaf that is [shared](ShareLeaves) and was found under a
    /// reservation.
    fn record<'s>(&'s self, leaf: Self::Leaf<'s>) -> &'s LeafRecord;

    /// Returns the first page of `range` whose leaf table exists.
    fn next_leaf(&self, proof: &impl Stable, range: PageRange) -> Option<PageNumber>;

    /// Takes the leaf table over `page` out of its parent. Readers may still be in the table, and processors may walk it until
    /// the next [`PageTable::invalidate`] of its pages. The table is freed after that and a grace period. If a host's
    /// `invalidate` looks at the entries of the table, `unhook` does now the work of `invalidate` for these. May
    /// sleep.
    ///
    /// # Safety
    /// The caller has reserved the leaf's whole span, which is a hole or BUSY, and has swept it.
    unsafe fn unhook(&self, page: PageNumber) -> Option<Retired>;

    /// Returns when no processor uses a translation of `range` that is older than the call, nor walks a leaf table over part of
    /// `range` that was unhooked before. This covers upper entries that processors cache. It is a TLB shootdown, or the end of
    /// older access sections. The caller is in no section and has announced nothing; this may sleep. A host that polls calls
    /// `wait` for each step of waiting, with the number of polls before it.
    fn invalidate(&self, range: PageRange, wait: impl FnMut(u32));

    /// Returns a name of `range` for a later [`Host::invalidate_all`]. Needs no memory.
    fn stale(&self, range: PageRange) -> Self::Stale;

    /// Returns when no processor has this table loaded, nor keeps a translation or an upper entry of it. The engine calls it
    /// once, when the last handle of a space goes, before it frees the frames that the entries name and drops the table. Some
    /// processors may have this table loaded without using it (lazy TLB). A kernel switches those to another table and flushes
    /// the translations tagged with this table (its ASID or PCID). A host whose processors keep nothing does nothing.
    ///
    /// The host guarantees that no new access through the table begins. The caller is in no section and has announced nothing;
    /// this may sleep. `wait` is as for [`PageTable::invalidate`].
    fn unload(&self, wait: impl FnMut(u32));

    /// Tells the host that the space has exited. All faults of the space fail from now on, so no access through this table need
    /// succeed. The engine calls it once, when exit has emptied the map for good and before it sweeps the entries. It is never
    /// called for a space that goes without exit.
    ///
    /// A kernel loads another root here on every processor that has this one, and does not load this one again. Invalidations
    /// of the table, of which exit makes one for each batch of frames, then find no processor to interrupt. A host with nothing
    /// to gain keeps the default, which does nothing: `invalidate` and `unload` are called all the same.
    ///
    /// The caller has reserved all pages, is in no section and has announced nothing; this may sleep, but needs no memory. Page
    /// work that has announced before may still install an entry, which the sweep then takes. `wait` is as for
    /// [`PageTable::invalidate`].
    fn abandon(&self, wait: impl FnMut(u32)) {
        let _ = wait;
    }
}

/// Physical memory: frames of one page each, and a [`Folio`] for each frame.
///
/// # Safety
/// A frame is given out to one caller until it is freed. `memory` names `PAGE_SIZE` bytes that belong to the frame alone.
///
/// A method that is not `unsafe` breaks no memory safety, for any frame. It may panic. The `unsafe` methods reach bytes that
/// other code may use. Each states what its caller guarantees. The engine calls all of them, and safe code none:
///
/// ```compile_fail,E0133
/// # use faultless::host::{Frame, FrameSource, Host};
/// fn give_to_two_pages<H: Host>(engine: &faultless::Engine<H>, frame: Frame) {
///     engine.host().frames().free(frame);
/// }
/// ```
pub unsafe trait FrameSource: Send + Sync + 'static {
    /// Takes a free frame for `purpose`. Its contents are arbitrary. `group` pays for it. Returns `None` if there is no frame
    /// for them. Does not sleep: page work calls this while announced.
    ///
    /// A host may divide its frames by `group` and `purpose`. For a page of a file, it may give out a frame that a device
    /// reaches. It may keep a few frames for copies on write alone, so that a store into a page that is there does not fail
    /// where new memory does. A frame keeps neither for life: where a copy is not needed, the page is taken over.
    fn allocate(&self, group: GroupId, purpose: FrameUse) -> Option<Frame>;

    /// Takes a frame back, for any purpose it had. Does not sleep. The folio no longer tells which group has paid for the frame: a
    /// host that divides its frames by group notes that itself.
    ///
    /// # Safety
    /// The frame is given out and the caller has it alone: no reference is left in its folio, no page table names it, and
    /// no code uses its bytes.
    unsafe fn free(&self, frame: Frame);

    /// Takes several frames back, as [`FrameSource::free`] takes one. Does not sleep. The engine calls it when a mapping or a space
    /// ends. A host may take them with fewer steps than one by one. The default calls [`FrameSource::free`] for each.
    ///
    /// # Safety
    /// The contract of [`FrameSource::free`] holds for each of the frames, and no frame is there twice.
    unsafe fn free_all(&self, frames: &[Frame]) {
        for frame in frames {
            // SAFETY: by the contract above.
            unsafe { self.free(*frame) }
        }
    }

    /// Returns the counts and state of a frame. May panic if the machine has no such frame.
    fn folio(&self, frame: Frame) -> &Folio;

    /// Gives a hint that the frame's folio is about to be written.
    fn prefetch(&self, frame: Frame) {
        let _ = frame;
    }

    /// Fills the frame with zeros.
    ///
    /// # Safety
    /// The frame is given out and the caller has it alone.
    unsafe fn zero(&self, frame: Frame);

    /// Copies the page in `from` to `to`, or records that it is to be copied.
    ///
    /// # Safety
    /// Both frames are given out. Until `to` is installed or freed, the caller has `to` alone, `from` stays in use, and
    /// no code writes `from`.
    unsafe fn copy(&self, from: Frame, to: Frame);

    /// Returns a pointer to the frame's bytes, where the engine and stores can reach them (a kernel's direct map): `PAGE_SIZE`
    /// initialised bytes, aligned to eight. The pointer is valid until the frame is freed or a processor may write it.
    ///
    /// # Safety
    /// The frame is given out. The caller has it alone, or it is a page that no code may write: of a file, or an anonymous page that
    /// is unmapped and invalidated.
    unsafe fn memory(&self, frame: Frame) -> core::ptr::NonNull<u8>;

    /// Copies bytes out of a frame that processors may be using, each byte atomically, up to the page's end. Returns the number
    /// of bytes copied, which is smaller if the host has lost them. `bytes` is the engine's own memory, whose access never
    /// faults in a space of this engine, so the host may hold its locks.
    ///
    /// # Safety
    /// The frame stays in use meanwhile. No store reads into it ([`Direction::Read`](crate::store::Direction::Read)).
    unsafe fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize;

    /// Copies bytes into a frame that processors may be using, each byte atomically, up to the page's end. Returns the number
    /// of bytes copied, which is smaller if the host has lost the page. `bytes` is the engine's own memory, as for
    /// [`FrameSource::read`].
    ///
    /// # Safety
    /// The frame stays in use meanwhile, and no transfer of it is under way. Every space and handle that sees the page may see
    /// the bytes.
    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize;

    /// Returns the limit of frames and the number given out now.
    fn usage(&self) -> FrameUsage;

    /// Asks the source to tell when few frames are left. From now on, a call of [`FrameSource::allocate`] that leaves fewer than `low`
    /// free frames calls [`Sections::note_few_frames`]. A `low` of 0 ends that. Called when a background worker begins and ends.
    ///
    /// A source that gives frames to threads in batches checks when it takes a batch. So it writes no cache line for this that other
    /// threads write. Frames of such batches that are not given out yet need not count as free. `sections` are those of the engine.
    ///
    /// The default does nothing. Then the background worker wakes when a thread has found no frame.
    fn watch(&self, sections: &Arc<Sections>, low: u64) {
        let _ = (sections, low);
    }
}

/// The number of a group of spaces that share one charge for memory, and that makes room in its own memory when it has too much (a
/// memory cgroup): [`MemoryLimit`](crate::MemoryLimit). When a group has ended and pays for nothing, another gets its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupId(u32);

impl GroupId {
    /// The group of all spaces that are in no other, and of the pages that handles of files bring in.
    pub const ROOT: Self = Self(0);

    #[inline]
    pub(crate) const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The purpose of a frame that [`FrameSource::allocate`] gives out. More may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameUse {
    /// The engine's page of zeros. It is allocated once, and kept for as long as the engine lives.
    ZeroPage,
    /// A page of anonymous memory.
    Anonymous,
    /// A copy of a mapped page, for the store that has faulted.
    CopyOnWrite,
    /// A page of a file, to be read from its store, written as a whole, or zeros.
    File,
    /// A copy that fork makes for the child, of a page into which I/O is written.
    Fork,
}

/// The number of frames in use and its limit, as [`FrameSource::usage`] returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameUsage {
    /// The number of frames given out.
    pub used: u64,
    /// The most frames that can be given out.
    pub limit: u64,
}

/// The clock.
pub trait Clock: Send + Sync {
    /// Returns the nanoseconds since some fixed moment. The value does not go back, and does not stand still for long: pauses end by it.
    fn now_ns(&self) -> u64;
}

/// The service that gives each thread or processor its slot.
///
/// # Safety
/// While a thread has a guard of a slot, the slot stays that thread's. No other thread that is in a section gets its number,
/// and no thread that gets the number runs before the guard is dropped. If [`Slots::ARE_THREADS`], no other thread gets the
/// number before the thread has ended.
pub unsafe trait Slots: Send + Sync {
    /// Tells whether a slot belongs to one thread, so that no other thread uses it while that thread sleeps in [`Park::park`]. If
    /// true, grace periods do not look at sleeping threads. It is false for a kernel, whose slots belong to processors.
    const ARE_THREADS: bool = false;

    /// A guard that keeps a thread at its slot. In a kernel, preemption or migration is off while one lives. `()` where slots
    /// belong to threads.
    type Guard;

    /// Keeps the calling thread at its slot (in a kernel, that of its processor) until the guard is dropped. Returns the number
    /// of the slot and the guard. The engine keeps the guard as long as it uses the number. It drops the guard before it
    /// sleeps, waits, or calls [`Park`], [`Barrier::heavy`] or a store. A read section has one from beginning to end. Guards of
    /// a thread overlap, and may be dropped in any order.
    ///
    /// Where slots belong to processors, [`Sections::prepare`] is called when a processor comes online, so that no call of the
    /// engine needs memory for it.
    fn pin(&self) -> (SlotIndex, Self::Guard);

    /// Tells the host of the sections of a new engine. Called once for each engine, before its first section. If threads end
    /// while the engine lives, the host keeps a [`Weak`](alloc::sync::Weak) of the sections until [`Slots::detach`]. It calls
    /// [`Sections::unlist`] with the number of a thread that ends, before another thread gets the number. If a host keeps
    /// nothing, every grace period looks at all slots that have ever been used.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing is kept.
    fn attach(&self, sections: &Arc<Sections>) -> Result<(), OutOfMemory> {
        let _ = sections;
        Ok(())
    }

    /// Tells the host that the engine of `sections` goes, and drops the state that [`Slots::attach`] has kept. The
    /// sections may never have been attached.
    fn detach(&self, sections: &Sections) {
        let _ = sections;
    }
}
