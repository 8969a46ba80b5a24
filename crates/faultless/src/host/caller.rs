//! The engine as the caller of its host's `unsafe` methods: the same methods, which engine code calls without `unsafe`.
//! Both types are private to the crate, so the duties below are the engine's alone.
//!
//! | duty of the caller | kept by |
//! |---|---|
//! | a frame is freed once, and nobody reaches it then | the folio's word: `Folio::put`, `put_cached`, `try_evict` and the `cancel_*` answer true to one caller, which frees. An entry's reference is dropped after [`PageTable::invalidate`] (`FlushBatch::flush` in `space/change/range_work.rs`), after [`Host::invalidate_all`](super::Host::invalidate_all) (`RemovedBatch` in `engine/stale.rs`), or, when the last handle of a space goes, after [`PageTable::unload`] (`space/calls/exit.rs`) |
//! | a frame is zeroed or copied into by whoever has it alone | only frames just allocated are, before their folio's life begins or before their page is published (`fault/`, `fork.rs`, `page_cache/mod.rs`) |
//! | the source of a copy stays and is not written | the caller has announced the entry that names it, or has it pinned, and it is mapped read-only |
//! | bytes in `memory` are read and written by nobody else | READING: a folio that is not up to date is mapped nowhere. WRITEBACK: every write right is gone before (`page_cache/writeback.rs`) |
//! | `read` and `write` meet no transfer into the frame | the caller has a reference to a folio that is up to date; a writer has the folio's lock or a right, neither of which goes with WRITEBACK; a page pinned for I/O is written back from a copy |
//! | an entry is installed, refused or let go by whoever announced it | `space::page_work::Announced`; fork, which announces each entry it copies |
//! | an entry is exchanged or filled, a leaf unhooked, by whoever took its pages | the callers have a `RangeReservation` over them; a space without handles has no other caller; a copy of a shared leaf is filled before it hangs (`tables/share.rs`) |
//! | an entry counts its frame | each entry that is put takes over a reference; each that is taken out gives one to `FlushBatch` |
//! | a leaf table stays while it may be walked | what is unhooked is retired after a later `invalidate` of its pages (`Drop` of `RangeChange` in `space/change/range_change.rs`); a shared leaf that was left is dropped after `invalidate` (`space/fault/shared_table.rs`) |

use super::{Entry, FollowRanges, Frame, FrameSource, OutOfMemory, PageTable, RefuseAccesses};
use crate::address::{PageNumber, PageRange};
use crate::protection::Protection;
use crate::sync::{Retired, Stable};
use crate::tables::{Home, MOST_ENTRIES, SpaceMark};
use core::ops::Deref;
use core::ptr::NonNull;

/// The machine's frames, for the engine.
pub(crate) struct Frames<'a, F>(&'a F);

impl<F> Clone for Frames<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Frames<'_, F> {}

/// For the methods that demand nothing.
impl<F> Deref for Frames<'_, F> {
    type Target = F;
    #[inline]
    fn deref(&self) -> &F {
        self.0
    }
}

impl<'a, F: FrameSource> Frames<'a, F> {
    #[inline]
    pub(crate) fn new(frames: &'a F) -> Self {
        Self(frames)
    }

    /// As [`FrameSource::free`].
    #[inline]
    pub(crate) fn free(self, frame: Frame) {
        // SAFETY: the table above, line 1.
        unsafe { self.0.free(frame) }
    }

    /// As [`FrameSource::zero`].
    #[inline]
    pub(crate) fn zero(self, frame: Frame) {
        // SAFETY: the table above, line 2.
        unsafe { self.0.zero(frame) }
    }

    /// As [`FrameSource::copy`].
    #[inline]
    pub(crate) fn copy(self, from: Frame, to: Frame) {
        // SAFETY: the table above, lines 2 and 3.
        unsafe { self.0.copy(from, to) }
    }

    /// As [`FrameSource::memory`].
    #[inline]
    pub(crate) fn memory(self, frame: Frame) -> NonNull<u8> {
        // SAFETY: the table above, line 4.
        unsafe { self.0.memory(frame) }
    }

    /// As [`FrameSource::read`].
    #[inline]
    pub(crate) fn read(self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        // SAFETY: the table above, line 5.
        unsafe { self.0.read(frame, offset, bytes) }
    }

    /// As [`FrameSource::write`].
    #[inline]
    pub(crate) fn write(self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        // SAFETY: the table above, line 5.
        unsafe { self.0.write(frame, offset, bytes) }
    }
}

/// The page table of a space, for the engine.
pub(crate) struct Table<T> {
    table: T,
    /// The space that the table is of, as its leaf tables' records name it. Immutable.
    space: SpaceMark,
}

/// For the methods that demand nothing.
impl<T> Deref for Table<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.table
    }
}

impl<T: PageTable> Table<T> {
    /// `table` is empty, of this engine's host, and nobody else's but the space's.
    pub(crate) fn new(table: T, space: SpaceMark) -> Self {
        const { assert!(T::LEAF_PAGES <= MOST_ENTRIES, "a home has no room for the index of an entry") }
        Self { table, space }
    }

    /// The space that the table is of.
    pub(crate) fn space(&self) -> SpaceMark {
        self.space
    }

    /// As [`PageTable::make_leaf`]; the leaf's record names the space, unless others have the leaf too.
    ///
    /// # Errors
    /// [`OutOfMemory`]: as before.
    pub(crate) fn make_leaf<'s>(
        &'s self,
        proof: &'s impl Stable,
        page: PageNumber,
    ) -> Result<T::Leaf<'s>, OutOfMemory> {
        let leaf = self.table.make_leaf(proof, page)?;
        if !self.is_shared(leaf) {
            self.table.record(leaf).begin(self.space, page.align_down(T::LEAF_PAGES).get());
        }
        Ok(leaf)
    }

    /// The home of what the entry of `page` maps, in `leaf`, which was found in a section, or is this space's own.
    #[inline]
    pub(crate) fn home<'s>(&'s self, leaf: T::Leaf<'s>, page: PageNumber) -> Home {
        Home::of_entry(self.table.record(leaf), page.get() % T::LEAF_PAGES)
    }

    /// As [`PageTable::let_go`].
    #[inline]
    pub(crate) fn let_go(&self, leaf: T::Leaf<'_>, page: PageNumber) {
        // SAFETY: the table above, line 6.
        unsafe { self.table.let_go(leaf, page) }
    }

    /// As [`PageTable::install`].
    #[inline]
    pub(crate) fn install(
        &self,
        leaf: T::Leaf<'_>,
        page: PageNumber,
        new: Entry,
    ) -> Result<Entry, OutOfMemory> {
        // SAFETY: the table above, lines 6 and 8.
        unsafe { self.table.install(leaf, page, new) }
    }

    /// As [`RefuseAccesses::refuse`], for a host that does; any other lets go.
    pub(crate) fn refuse(&self, leaf: T::Leaf<'_>, page: PageNumber) {
        match self.table.refusing() {
            // SAFETY: the table above, line 6.
            Some(refusing) => unsafe { refusing.refuse(leaf, page) },
            None => self.let_go(leaf, page),
        }
    }

    /// As [`PageTable::exchange`].
    #[inline]
    pub(crate) fn exchange(
        &self,
        leaf: T::Leaf<'_>,
        page: PageNumber,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        // SAFETY: the table above, lines 7 and 8.
        unsafe { self.table.exchange(leaf, page, seen, new) }
    }

    /// As [`PageTable::fill`].
    #[inline]
    pub(crate) fn fill(&self, leaf: T::Leaf<'_>, page: PageNumber, new: Entry) {
        // SAFETY: the table above, lines 7 and 8.
        unsafe { self.table.fill(leaf, page, new) }
    }

    /// As [`PageTable::unhook`].
    pub(crate) fn unhook(&self, page: PageNumber) -> Option<Retired> {
        // SAFETY: the table above, lines 7 and 9.
        unsafe { self.table.unhook(page) }
    }

    /// As [`FollowRanges::follow`], for a host that does.
    pub(crate) fn follow(&self, range: PageRange, rights: Option<Protection>) -> Result<(), OutOfMemory> {
        // SAFETY: the table above, line 7.
        self.table.following().map_or(Ok(()), |following| unsafe { following.follow(range, rights) })
    }
}
