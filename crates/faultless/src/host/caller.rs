//! The engine as the caller of its host's `unsafe` methods. Wrappers of these methods let engine code call them without
//! `unsafe`. Both types are private to the crate, so the duties below are the engine's alone.
//!
//! | duty of the caller | kept by |
//! |---|---|
//! | a frame is freed once, and no code reaches it then | the folio's word: `Folio::put`, `put_cached`, `try_evict_isolated`, `freeze` and the `cancel_*` answer true to one caller, which frees. An entry's reference is dropped after [`PageTable::invalidate`] (`FlushBatch::flush` in `space/change/range_work.rs`), after [`Host::invalidate_all`](super::Host::invalidate_all) (`RemovedBatch` in `engine/stale.rs`), or, when the last handle of a space goes, after [`PageTable::unload`] (`space/calls/exit.rs`) |
//! | a frame is zeroed or copied into by its only owner | only frames just allocated are, before their folio's life begins or before their page is published (`fault/`, `fork.rs`, `page_cache/mod.rs`) |
//! | the source of a copy stays and is not written | the caller has announced the entry that names it, or has it pinned, and it is mapped read-only |
//! | bytes in `memory` are read and written by no other code | READING: a folio that is not up to date is mapped nowhere. WRITEBACK: every write right is gone before (`page_cache/writeback.rs`, `swap/write_out.rs`), and a fault gives none before the write has ended |
//! | `read` and `write` meet no transfer into the frame | the caller has a reference to a folio that is up to date; a writer has the folio's lock or a right, neither of which goes with WRITEBACK; a page pinned for I/O is written back from a copy |
//! | an entry is installed, refused or let go by the thread that announced it | `space::page_work::Announced`; fork, which announces each entry it copies |
//! | an entry is exchanged or filled, a leaf unhooked, by the thread that took its pages | the callers have a `RangeReservation` over them; a space without handles has no other caller; a copy of a shared leaf is filled before it hangs (`tables/share.rs`) |
//! | an entry counts its frame | each entry that is put takes over a reference; each that is taken out gives one to `FlushBatch` |
//! | a leaf table stays while it may be walked | an unhooked leaf is retired after a later `invalidate` of its pages (`Drop` of `RangeChange` in `space/change/range_change.rs`); a shared leaf that was left is dropped after `invalidate` (`space/fault/shared_table.rs`) |

use super::{Entry, FollowRanges, Frame, FrameSource, OutOfMemory, PageTable, RefuseAccesses};
use crate::address::{PageNumber, PageRange};
use crate::protection::Protection;
use crate::sync::{Retired, Stable};
use crate::tables::{Home, MOST_ENTRIES, SpaceMark};
use core::ops::Deref;
use core::ptr::NonNull;

/// The machine's frames, as the engine uses them.
pub(crate) struct Frames<'a, F>(&'a F);

impl<F> Clone for Frames<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Frames<'_, F> {}

/// Gives access to the methods that demand nothing of the caller.
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

    /// Calls [`FrameSource::free`].
    #[inline]
    pub(crate) fn free(self, frame: Frame) {
        // SAFETY: the table above, line 1.
        unsafe { self.0.free(frame) }
    }

    /// Calls [`FrameSource::free_all`].
    #[inline]
    pub(crate) fn free_all(self, frames: &[Frame]) {
        // SAFETY: the table above, line 1.
        unsafe { self.0.free_all(frames) }
    }

    /// Calls [`FrameSource::zero`].
    #[inline]
    pub(crate) fn zero(self, frame: Frame) {
        // SAFETY: the table above, line 2.
        unsafe { self.0.zero(frame) }
    }

    /// Calls [`FrameSource::copy`].
    #[inline]
    pub(crate) fn copy(self, from: Frame, to: Frame) {
        // SAFETY: the table above, lines 2 and 3.
        unsafe { self.0.copy(from, to) }
    }

    /// Calls [`FrameSource::memory`].
    #[inline]
    pub(crate) fn memory(self, frame: Frame) -> NonNull<u8> {
        // SAFETY: the table above, line 4.
        unsafe { self.0.memory(frame) }
    }

    /// Calls [`FrameSource::read`].
    #[inline]
    pub(crate) fn read(self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        // SAFETY: the table above, line 5.
        unsafe { self.0.read(frame, offset, bytes) }
    }

    /// Calls [`FrameSource::write`].
    #[inline]
    pub(crate) fn write(self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        // SAFETY: the table above, line 5.
        unsafe { self.0.write(frame, offset, bytes) }
    }
}

/// The page table of a space, as the engine uses it.
pub(crate) struct Table<T> {
    table: T,
    /// The space of the table, as the records of its leaf tables name it. Immutable.
    space: SpaceMark,
}

/// Gives access to the methods that demand nothing of the caller.
impl<T> Deref for Table<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.table
    }
}

impl<T: PageTable> Table<T> {
    /// Takes `table` for `space`. The table is empty, belongs to this engine's host, and is used by no other space.
    pub(crate) fn new(table: T, space: SpaceMark) -> Self {
        const { assert!(T::LEAF_PAGES <= MOST_ENTRIES, "a home has no room for the index of an entry") }
        Self { table, space }
    }

    /// Returns the space of the table.
    pub(crate) fn space(&self) -> SpaceMark {
        self.space
    }

    /// Calls [`PageTable::make_leaf`], and writes the space into the leaf's record unless the leaf is shared.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing has changed.
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

    /// Returns the home of the folio that the entry of `page` in `leaf` maps. `leaf` was found in a section, or belongs to this
    /// space alone.
    #[inline]
    pub(crate) fn home<'s>(&'s self, leaf: T::Leaf<'s>, page: PageNumber) -> Home {
        Home::of_entry(self.table.record(leaf), page.get() % T::LEAF_PAGES)
    }

    /// Returns the result of [`Table::home`], and the home that names the leaf table's family.
    pub(crate) fn home_and_family<'s>(&'s self, leaf: T::Leaf<'s>, page: PageNumber) -> (Home, Home) {
        let (record, index) = (self.table.record(leaf), page.get() % T::LEAF_PAGES);
        (Home::of_entry(record, index), Home::of_relatives(record, index))
    }

    /// Calls [`PageTable::let_go`].
    #[inline]
    pub(crate) fn let_go(&self, leaf: T::Leaf<'_>, page: PageNumber) {
        // SAFETY: the table above, line 6.
        unsafe { self.table.let_go(leaf, page) }
    }

    /// Calls [`PageTable::install`].
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

    /// Calls [`RefuseAccesses::refuse`] if the host has that ability, and otherwise [`PageTable::let_go`].
    pub(crate) fn refuse(&self, leaf: T::Leaf<'_>, page: PageNumber) {
        match self.table.refusing() {
            // SAFETY: the table above, line 6.
            Some(refusing) => unsafe { refusing.refuse(leaf, page) },
            None => self.let_go(leaf, page),
        }
    }

    /// Calls [`PageTable::exchange`].
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

    /// Calls [`PageTable::fill`].
    #[inline]
    pub(crate) fn fill(&self, leaf: T::Leaf<'_>, page: PageNumber, new: Entry) {
        // SAFETY: the table above, lines 7 and 8.
        unsafe { self.table.fill(leaf, page, new) }
    }

    /// Calls [`PageTable::unhook`].
    pub(crate) fn unhook(&self, page: PageNumber) -> Option<Retired> {
        // SAFETY: the table above, lines 7 and 9.
        unsafe { self.table.unhook(page) }
    }

    /// Calls [`FollowRanges::follow`] if the host has that ability; otherwise does nothing.
    pub(crate) fn follow(&self, range: PageRange, rights: Option<Protection>) -> Result<(), OutOfMemory> {
        // SAFETY: the table above, line 7.
        self.table.following().map_or(Ok(()), |following| unsafe { following.follow(range, rights) })
    }
}
