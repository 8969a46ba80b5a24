//! What the embedder supplies: page tables, frames, sleeping, a clock, a barrier, the slot of this thread.
//!
//! ARCHITECTURE.md has a table that says what each call means on three hosts: a software MMU, a kernel with x86-64
//! tables, a Linux process with userfaultfd. The traits hold no policy; each method states what it may assume.

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
use alloc::sync::Arc;

/// Everything an engine needs from where it runs. A host in a process with `std` implements `StdHost` in its place.
///
/// # Safety
/// What the methods return does what its trait says, and is the same at each call.
pub unsafe trait Host: Sized + Send + Sync + 'static {
    /// The page table of one space.
    type Table: PageTable;
    /// The physical memory.
    type Frames: FrameSource;
    /// How threads sleep.
    type Park: Park;
    /// The time.
    type Clock: Clock;
    /// The order of read sections against grace periods.
    type Barrier: Barrier;
    /// Whose slot is whose.
    type Slots: Slots;

    /// The physical memory.
    fn frames(&self) -> &Self::Frames;
    /// How threads sleep.
    fn park(&self) -> &Self::Park;
    /// The time.
    fn clock(&self) -> &Self::Clock;
    /// The order of read sections against grace periods.
    fn barrier(&self) -> &Self::Barrier;
    /// Whose slot is whose.
    fn slots(&self) -> &Self::Slots;

    /// Makes an empty table for a new space of the engine that has `sections`. A table keeps them if it charges them for its
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
    /// returned. The engine calls it where truncation or writeback has changed entries in several spaces, and holds no handle of
    /// these spaces meanwhile. `sections` are those of the engine. `batch` names the pages, each by [`PageTable::stale`], in no
    /// order; the host may change the order.
    ///
    /// A table may be gone by now. Its pages are passed over if [`PageTable::unload`] has returned, and invalidated if not.
    ///
    /// A kernel interrupts each processor once for the whole batch. A host that has no better way invalidates one after the other.
    ///
    /// The caller is in no section and has announced nothing; this may sleep, and needs no memory. `wait` is as for
    /// [`PageTable::invalidate`].
    fn invalidate_all(
        &self,
        sections: &Sections,
        batch: &mut [<Self::Table as PageTable>::Stale],
        wait: impl FnMut(u32),
    );

    /// Whether the calling processor serves an interrupt, where no call of the engine may be made and no transfer may be completed.
    /// Debug builds ask, where the engine takes a lock, sleeps or wakes somebody. docs/contexts.md has each call.
    fn is_in_interrupt(&self) -> bool {
        false
    }
}

/// The page table of one space: entries of one word each, in leaf tables that hang in upper tables.
///
/// An entry with [`Entry::ANNOUNCED`] belongs to the page work that set the bit; all others leave it alone, except
/// that a processor may set the accessed and dirty bits of any present entry at any time. An entry without
/// [`Entry::MAPPED`] may be a guard, or hold a page that is not present ([`Entry::kind`]). A host keeps its bits as it keeps a
/// frame, and lets no processor use it. A host whose hardware
/// tables take no compare-and-swap keeps these words in tables of its own and makes the hardware follow: in
/// [`PageTable::install`] and [`PageTable::exchange`], before the store that clears the bit.
///
/// Upper tables live as long as the space; only leaf tables come and go.
///
/// A table that can do more than each table must says so by three *abilities*: [`PageTable::sharing`], [`PageTable::following`] and
/// [`PageTable::refusing`]. For one that it has not it names [`Unsupported`] and returns `None`.
///
/// A host that takes memory for tables from the allocator says so to its [`Sections`], by [`Sections::charge`] and
/// [`Sections::uncharge`], so that [`Engine::metadata_bytes`](crate::Engine::metadata_bytes) counts it. A leaf table that is
/// retired says by its [`RetiredKind`] whether the engine uncharges it.
///
/// # Safety
/// The engine frees frames and tables by what these methods say: an entry changes only as the methods have it, a leaf
/// found with a proof stays in memory as long as the proof lives, and `invalidate` waits for every older translation. The record
/// of a leaf is one place in memory from when the leaf is made until it is freed, and is at first zeros or [`LeafRecord::new`].
///
/// A method that is not `unsafe` breaks no memory safety, whatever page and leaf of a table of this type it gets. It may
/// panic. The `unsafe` methods change what processors reach, or free tables: each states what its caller guarantees.
///
/// ```compile_fail,E0133
/// # use faultless::address::PageNumber;
/// # use faultless::host::PageTable;
/// fn free_under_a_reader<T: PageTable>(table: &T, page: PageNumber) {
///     let _ = table.unhook(page);
/// }
/// ```
pub unsafe trait PageTable: Sized + Send + Sync + 'static {
    /// A leaf table and where it hangs. Valid for `'s`, the life of the proof it was found with.
    type Leaf<'s>: Copy
    where
        Self: 's;

    /// What safe code may know of a table: [`PageTable::root`].
    type Root<'s>
    where
        Self: 's;
    /// Pages of this table, named such that [`Host::invalidate_all`] finds them when the engine has no handle of the space: a
    /// number that no other table gets as long as this one may be in use, or a weak handle. At most 32 bytes.
    type Stale: Send + 'static;
    /// How leaf tables are shared; [`Unsupported`]: fork copies each entry.
    type Sharing: ShareLeaves<Self>;
    /// How mappings beside the table follow; [`Unsupported`]: there are none.
    type Following: FollowRanges;
    /// How an access that cannot be served is answered; [`Unsupported`]: the thread that made it gets the error of its fault.
    type Refusing: RefuseAccesses<Self>;

    /// Pages of one leaf table; a power of two, 2048 at most.
    const LEAF_PAGES: u64;
    /// Whether the page of zeros can be mapped for reading such that a store faults. Where not, a read of untouched
    /// memory gets a frame of its own.
    const MAPS_ZEROS: bool = true;
    /// Whether a page that several entries map is one page, so that stores through one are seen through all. Where not, no
    /// shared mapping can be writable: [`MapError::SharedWriteUnsupported`](crate::MapError::SharedWriteUnsupported); and
    /// what is written by a [`FileHandle`](crate::FileHandle) is seen where the page is mapped afterwards.
    const SHARES_WRITES: bool = true;
    /// Whether entries with [`Entry::FOREIGN`] can be made: the host's processors reach a frame by its number alone, whether the host's
    /// [`FrameSource`] has such a frame or not, and an entry keeps that bit. The type of memory (uncached, write-combining) is the
    /// host's to know by the frame's number. Where not, no mapping of foreign frames is made:
    /// [`MapError::ForeignUnsupported`](crate::MapError::ForeignUnsupported).
    const MAPS_FOREIGN: bool = false;
    /// The pages that can be mapped; both ends are multiples of [`PageTable::LEAF_PAGES`]. Always the same. Page 0 is mapped only
    /// where a call names it.
    fn pages(&self) -> PageRange;

    /// Returns what the host's own code may know of this table without `unsafe`, through
    /// [`AddressSpace::root`](crate::AddressSpace::root): of a kernel, what it loads into the processor's register. Always the same. It
    /// gives nobody a way to an entry. A kernel that loads it, or keeps it loaded, sees to it that the space has a handle, or
    /// that [`PageTable::unload`] finds the processor.
    fn root(&self) -> Self::Root<'_>;

    /// The ability to share leaf tables. Always the same answer.
    fn sharing(&self) -> Option<&Self::Sharing>;

    /// The ability to follow ranges. Always the same answer.
    fn following(&self) -> Option<&Self::Following>;

    /// The ability to answer accesses that cannot be served. Always the same answer.
    fn refusing(&self) -> Option<&Self::Refusing>;

    /// The leaf table over `page`, if there is one. Acquire: what was written into a new leaf is seen.
    fn leaf<'s>(&'s self, proof: &'s impl Stable, page: PageNumber) -> Option<Self::Leaf<'s>>;

    /// As [`PageTable::leaf`], made where it is missing. Does not sleep.
    ///
    /// # Errors
    /// [`OutOfMemory`]: as before.
    fn make_leaf<'s>(
        &'s self,
        proof: &'s impl Stable,
        page: PageNumber,
    ) -> Result<Self::Leaf<'s>, OutOfMemory>;

    /// Whether the leaf still hangs where it was found. Called while an entry in it is announced.
    fn hangs(&self, leaf: Self::Leaf<'_>) -> bool;

    /// The entry of `page`, which the leaf covers. Relaxed.
    fn load(&self, leaf: Self::Leaf<'_>, page: PageNumber) -> Entry;

    /// Sets [`Entry::ANNOUNCED`] if the entry is still `seen` (which has no such bit). Acquire. One atomic read-modify-write:
    /// the engine's fence after it is [`fence_after_rmw`](crate::sync::fence_after_rmw).
    fn try_announce(&self, leaf: Self::Leaf<'_>, page: PageNumber, seen: Entry) -> bool;

    /// Clears the bit and leaves the entry as it is otherwise; accessed and dirty bits that came meanwhile stay.
    /// Release.
    ///
    /// # Safety
    /// The caller has announced the entry and relies on the bit no more.
    unsafe fn let_go(&self, leaf: Self::Leaf<'_>, page: PageNumber);

    /// Puts `new` in the place of the entry and clears the bit by the same store.
    /// Returns what was there, with the accessed and dirty bits of the last moment. Where `new` keeps the frame, those
    /// bits are kept in it too. Release. May copy one page; does not sleep.
    ///
    /// A host whose processors walk another table makes that follow, also where `new` is what was there: the processor
    /// has faulted, so what it has is not what the entry says, after [`PageTable::fill`] or because others were quicker.
    ///
    /// # Errors
    /// [`OutOfMemory`] of a host that needs memory to map a page: the entry is as before, announced.
    ///
    /// # Safety
    /// The caller has announced the entry. If `new` names a frame, that frame is in use, is filled, and is counted once for
    /// this entry, or is the page of zeros, or is foreign and answered for ([`ForeignFrames`](crate::ForeignFrames)); `new` gives the write right only if every space that sees the frame may see the
    /// store.
    unsafe fn install(
        &self,
        leaf: Self::Leaf<'_>,
        page: PageNumber,
        new: Entry,
    ) -> Result<Entry, OutOfMemory>;

    /// Range work's step: puts `new` in the place of `seen` (neither has the bit) if the entry is still that. AcqRel.
    ///
    /// # Errors
    /// What is there instead.
    ///
    /// # Safety
    /// The caller has taken the page. `new` is as for [`PageTable::install`]. The frame of `seen` is freed only after a
    /// later [`PageTable::invalidate`] of the page.
    unsafe fn exchange(
        &self,
        leaf: Self::Leaf<'_>,
        page: PageNumber,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry>;

    /// Puts `new` where nothing is: fork fills the child's entries, and whoever leaves a shared leaf the copy, before it hangs
    /// ([`ShareLeaves::open`]). Release. A host whose processors walk another table
    /// leaves that for the first access.
    ///
    /// # Safety
    /// Nobody else changes the entry now. `new` is as for [`PageTable::install`].
    unsafe fn fill(&self, leaf: Self::Leaf<'_>, page: PageNumber, new: Entry);

    /// The engine's record of the leaf. Not asked of a leaf that is [shared](ShareLeaves) and was found by a range taken.
    fn record<'s>(&'s self, leaf: Self::Leaf<'s>) -> &'s LeafRecord;

    /// The first page from `range`'s start on, and inside it, whose leaf table exists.
    fn next_leaf(&self, proof: &impl Stable, range: PageRange) -> Option<PageNumber>;

    /// Takes the leaf table over `page` out of its parent. Readers may still be in the table, and processors may walk it until
    /// the next [`PageTable::invalidate`] of its pages: it is freed after that and a grace period. A host whose `invalidate`
    /// goes by the entries of the table does now what it would have done for these. May sleep.
    ///
    /// # Safety
    /// The caller has taken the leaf's whole span, which is a hole or BUSY, and has swept it.
    unsafe fn unhook(&self, page: PageNumber) -> Option<Retired>;

    /// Returns when no processor uses a translation of `range` that is older than the call, nor walks a leaf table over some of
    /// it that was unhooked before (what processors keep of upper tables goes too): a TLB shootdown, or the end of older
    /// access sections. The caller is in no section and has announced nothing; this may sleep. `wait`
    /// is for a host that looks again and again: one step of waiting, and how many looks there were before.
    fn invalidate(&self, range: PageRange, wait: impl FnMut(u32));

    /// Names `range` for a later [`Host::invalidate_all`]. Needs no memory.
    fn stale(&self, range: PageRange) -> Self::Stale;

    /// Returns when no processor has this table loaded, nor keeps a translation or an upper entry of it. The engine calls it
    /// once, when the last handle of a space goes, before it frees the frames that the entries name and drops the table. A
    /// kernel switches those processors to another table that still have this one loaded without using it (lazy TLB), and
    /// flushes what is tagged with this table (its ASID or PCID). A host whose processors keep nothing does nothing.
    ///
    /// The host guarantees that no access through the table begins any more. The caller is in no section and has announced
    /// nothing; this may sleep. `wait` is as for [`PageTable::invalidate`].
    fn unload(&self, wait: impl FnMut(u32));

    /// Tells that the space has exited: all its faults fail from now on, so no access through this table need succeed. The engine calls
    /// it once, when exit has emptied the map for good and before it sweeps the entries; never for a space that goes without exit.
    ///
    /// A kernel loads another root here on every processor that has this one, and loads this one no more. Invalidations of the
    /// table, of which exit makes one for each batch of frames, then find no processor to interrupt. A host with nothing
    /// to gain keeps the default, which does nothing: `invalidate` and `unload` are called all the same.
    ///
    /// The caller has taken all pages, is in no section and has announced nothing; this may sleep, but needs no memory. Page
    /// work that has announced before may still install an entry, which the sweep then takes. `wait` is as for
    /// [`PageTable::invalidate`].
    fn abandon(&self, wait: impl FnMut(u32)) {
        let _ = wait;
    }
}

/// Physical memory: frames of one page each, and a [`Folio`] for each frame.
///
/// # Safety
/// A frame that is given out is given out once until it comes back, and `memory` names `PAGE_SIZE` bytes of its own.
///
/// A method that is not `unsafe` breaks no memory safety, whatever frame it gets. It may panic. The `unsafe` methods reach
/// bytes that others may use: each states what its caller guarantees. The engine calls all of them, and safe code none:
///
/// ```compile_fail,E0133
/// # use faultless::host::{Frame, FrameSource, Host};
/// fn give_to_two_pages<H: Host>(engine: &faultless::Engine<H>, frame: Frame) {
///     engine.host().frames().free(frame);
/// }
/// ```
pub unsafe trait FrameSource: Send + Sync + 'static {
    /// Takes a free frame, with whatever is in it, for `group`, which pays for it, and for `purpose`. Returns `None` if there is none
    /// for them. Does not sleep: page work calls this while announced.
    ///
    /// A host may keep frames apart by these two: for a page of a file one that a device reaches, or a few for copies on write alone, so
    /// that a store into a page that is there does not fail where new memory does. A frame keeps neither for life: where
    /// a copy is not needed, the page is taken over.
    fn allocate(&self, group: GroupId, purpose: FrameUse) -> Option<Frame>;

    /// Takes a frame back, from whatever it was used for. Does not sleep. Who has paid for it is the folio's to say, when there are
    /// more groups than one.
    ///
    /// # Safety
    /// The frame is given out and the caller has it alone: no reference is left in its folio, no page table names it, and
    /// nobody uses its bytes.
    unsafe fn free(&self, frame: Frame);

    /// The counts and state of a frame. May panic if the machine has no such frame.
    fn folio(&self, frame: Frame) -> &Folio;

    /// A hint that the frame's folio is about to be written.
    fn prefetch(&self, frame: Frame) {
        let _ = frame;
    }

    /// Fills with zeros.
    ///
    /// # Safety
    /// The frame is given out and the caller has it alone.
    unsafe fn zero(&self, frame: Frame);

    /// Copies a page, or remembers to.
    ///
    /// # Safety
    /// Both frames are given out. Until `to` is installed or freed, the caller has `to` alone, `from` stays in use, and
    /// nobody writes `from`.
    unsafe fn copy(&self, from: Frame, to: Frame);

    /// The frame's bytes, where the engine and stores can reach them (a kernel's direct map): `PAGE_SIZE` initialised
    /// bytes, aligned to eight. The pointer is good until the frame is freed or a processor may write it.
    ///
    /// # Safety
    /// The frame is given out. The caller has it alone, or it is a page of a file that nobody may write.
    unsafe fn memory(&self, frame: Frame) -> core::ptr::NonNull<u8>;

    /// Copies bytes out of a frame that processors may be using, each byte atomically, up to the page's end. Returns how
    /// many: fewer if the host has lost them. `bytes` is the engine's own memory, whose access never faults in a space of
    /// this engine, so the host may hold its locks.
    ///
    /// # Safety
    /// The frame stays in use meanwhile. No store reads into it ([`Direction::Read`](crate::store::Direction::Read)).
    unsafe fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize;

    /// Copies bytes into a frame that processors may be using, each byte atomically, up to the page's end. Returns how
    /// many: fewer if the host has lost the page. `bytes` is the engine's own memory, as for [`FrameSource::read`].
    ///
    /// # Safety
    /// The frame stays in use meanwhile, and no transfer of it is under way. Everybody who sees the page may see the
    /// bytes.
    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize;

    /// How many frames there are at most, and how many are given out now.
    fn usage(&self) -> FrameUsage;
}

/// A group of processes that pays for memory together, and makes room in its own when it has too much (a memory cgroup). There is one
/// for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupId(());

impl GroupId {
    /// The group of all processes that are in no other.
    pub const ROOT: Self = Self(());
}

/// What a frame is taken for: see [`FrameSource::allocate`]. More may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameUse {
    /// The engine's page of zeros: once, and for as long as it lives.
    ZeroPage,
    /// A page of anonymous memory.
    Anonymous,
    /// A copy of a page that is mapped, for the store that has faulted.
    CopyOnWrite,
    /// A page of a file, to be read from its store, written as a whole, or zeros.
    File,
    /// A copy for the child of a page that I/O is written into, in fork.
    Fork,
}

/// See [`FrameSource::usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameUsage {
    /// Frames given out.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

/// The time.
pub trait Clock: Send + Sync {
    /// Nanoseconds since some fixed moment; does not go back.
    fn now_ns(&self) -> u64;
}

/// Whose slot is whose.
///
/// # Safety
/// While a thread has a guard, it stays that thread's, no other thread that is in a section gets its number, and none that gets
/// it runs before the guard is dropped. If [`Slots::ARE_THREADS`], no other thread gets it before the
/// thread has ended.
pub unsafe trait Slots: Send + Sync {
    /// Whether a slot is one thread's, so that nobody else uses it while that thread sleeps in [`Park::park`]. Then grace periods
    /// do not look at sleeping threads. Not true of a kernel, whose slots are processors'.
    const ARE_THREADS: bool = false;

    /// Keeps a thread at its slot: in a kernel preemption is off, or migration, while there is one. `()` where slots are threads'.
    type Guard;

    /// Keeps the calling thread at its slot (in a kernel, that of its processor) until the guard is dropped. Returns the number of
    /// the slot, too. The engine has the guard as long as it uses the number, and drops it before it sleeps, waits, or calls
    /// [`Park`], [`Barrier::heavy`] or a store. A read section has one from beginning to end. Guards of a thread overlap, and need
    /// not go in the order in which they came.
    ///
    /// Where slots are processors', [`Sections::prepare`] is called when one comes online, so that no call of the engine needs
    /// memory for it.
    fn pin(&self) -> (SlotIndex, Self::Guard);

    /// Tells of the sections of a new engine. Called once for each engine, before its first section. A host keeps a
    /// [`Weak`](alloc::sync::Weak) of them until [`Slots::detach`], if threads end while the engine lives: it calls
    /// [`Sections::unlist`] with the number of a thread that ends, before another thread gets the number. A host that keeps
    /// nothing has every grace period look at all slots that have ever been used.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing is kept.
    fn attach(&self, sections: &Arc<Sections>) -> Result<(), OutOfMemory> {
        let _ = sections;
        Ok(())
    }

    /// The engine of these sections goes; they may never have been attached. Lets go of what [`Slots::attach`] has kept.
    fn detach(&self, sections: &Sections) {
        let _ = sections;
    }
}
