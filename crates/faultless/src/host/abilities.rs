//! The abilities that a page table may have beyond [`PageTable`]: to share leaf tables between spaces, to follow ranges, and to
//! answer accesses that cannot be served. A table names the type that implements an ability, or [`Unsupported`]. It returns the
//! ability by [`PageTable::sharing`], [`PageTable::following`] and [`PageTable::refusing`].

use super::{Entry, OutOfMemory, PageTable};
use crate::address::{PageNumber, PageRange};
use crate::protection::Protection;
pub use crate::tables::{LeafRecord, SpareLink};
use core::ptr::NonNull;

/// An ability that a page table does not have. The type has no value, so no method of the ability is ever called.
///
/// ```
/// # use faultless::host::Unsupported;
/// struct Mine;
/// impl Mine {
///     fn following(&self) -> Option<&Unsupported> {
///         None
///     }
/// }
/// assert!(Mine.following().is_none());
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Unsupported {}

/// Mappings that the host keeps beside the page table, and that have to follow the mappings that the engine publishes. A host
/// that sees each access by its entry has none. Returned by [`PageTable::following`].
///
/// # Safety
/// `follow` does what its documentation states.
pub unsafe trait FollowRanges: Send + Sync + 'static {
    /// Changes the rights of `range` in mappings that the host itself keeps, or unmaps `range` there (`None`). Called before
    /// the engine publishes the same change. An access between the two is served, or meets a fault that finds nothing and is
    /// tried again. The caller is in no section and has announced nothing; this may sleep.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing or a part of the change is made. The caller then calls `follow` again with the rights that
    /// hold.
    ///
    /// # Safety
    /// The caller has reserved `range` and publishes the same rights next.
    unsafe fn follow(&self, range: PageRange, rights: Option<Protection>) -> Result<(), OutOfMemory>;
}

// SAFETY: there is no value.
unsafe impl FollowRanges for Unsupported {
    unsafe fn follow(&self, _: PageRange, _: Option<Protection>) -> Result<(), OutOfMemory> {
        match *self {}
    }
}

/// The answer to accesses that cannot be served, for a host whose faults are on another thread than the access. Other hosts
/// give the error of the fault to the thread that made the access. Returned by [`PageTable::refusing`].
///
/// # Safety
/// `refuse` does what its documentation states.
pub unsafe trait RefuseAccesses<T: PageTable>: Send + Sync + 'static {
    /// Answers the access of this page work with a signal, since the page cannot be read or there is no memory for it. Sets
    /// [`Entry::REFUSED`](super::Entry::REFUSED), for all accesses until the entry is installed anew or swept, and clears
    /// [`Entry::ANNOUNCED`](super::Entry::ANNOUNCED). Does not sleep.
    ///
    /// # Safety
    /// The caller guarantees the same as for [`PageTable::let_go`].
    unsafe fn refuse(&self, leaf: T::Leaf<'_>, page: PageNumber);
}

// SAFETY: there is no value.
unsafe impl<T: PageTable> RefuseAccesses<T> for Unsupported {
    unsafe fn refuse(&self, _: T::Leaf<'_>, _: PageNumber) {
        match *self {}
    }
}

/// The word by which a leaf table hangs in its parent. It names the leaf and has a mark. The mark *shared* means that the leaf
/// hangs in other tables too, and that no processor stores through this place, even where an entry allows it.
///
/// A software table may store the word unchanged ([`PlaceWord::into_raw`]). A kernel makes an upper entry of it, from the
/// leaf's frame, with the write bit clear where the leaf is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceWord(*mut ());

impl PlaceWord {
    const SHARED: usize = 1;

    /// Returns the word for a leaf table, without the mark. Only the host follows the pointer `leaf`. It has to be even, and
    /// different for each leaf. Null means that no leaf hangs there.
    #[inline]
    pub fn new(leaf: *mut ()) -> Self {
        debug_assert!(
            leaf.addr() & Self::SHARED == 0,
            "a leaf table whose address leaves no room for the mark"
        );
        Self(leaf)
    }

    /// Returns the word that [`PlaceWord::into_raw`] turned into `word`.
    #[inline]
    pub const fn from_raw(word: *mut ()) -> Self {
        Self(word)
    }

    /// Returns the word as one pointer: that of the leaf, with the mark in its lowest bit.
    #[inline]
    pub const fn into_raw(self) -> *mut () {
        self.0
    }

    /// Returns the pointer to the leaf table that was given to [`PlaceWord::new`].
    #[inline]
    pub fn leaf(self) -> *mut () {
        self.0.map_addr(|word| word & !Self::SHARED)
    }

    /// Returns whether the leaf hangs in other tables too.
    #[inline]
    pub fn is_shared(self) -> bool {
        self.0.addr() & Self::SHARED != 0
    }

    /// Returns the word without the mark, for the same leaf.
    pub(crate) fn own(self) -> Self {
        Self(self.leaf())
    }

    /// Returns the word with the mark, for the same leaf that fork has shared.
    pub(crate) fn shared(self) -> Self {
        Self(self.0.map_addr(|word| word | Self::SHARED))
    }
}

/// Leaf tables that can hang in several tables at once, so that fork need not copy their entries. Returned by
/// [`PageTable::sharing`].
///
/// Each method is a small step that does not sleep. The engine decides which thread may share, copy or take over a leaf, and in
/// which order (docs/fork.md). `leaf` was found in a section. [`ShareLeaves::found`] is also called for leaves that were found
/// under a reservation.
///
/// # Safety
/// The engine relies on these methods when it frees leaf tables and counts pages. Each does exactly what its
/// documentation states, and nothing else. A processor does not store through a place whose word is shared once
/// [`PageTable::invalidate`] of its pages has returned. [`PageTable::hangs`] is false for a leaf that was found shared,
/// and for a leaf whose place is marked by now.
pub unsafe trait ShareLeaves<T: PageTable>: Send + Sync + 'static {
    /// Returns the place word by which the leaf was found. Reads the value alone: another thread may have freed the table.
    fn found(&self, leaf: T::Leaf<'_>) -> PlaceWord;

    /// Returns the current word of the same place. Acquire: everything written before the word was stored is seen.
    fn now(&self, leaf: T::Leaf<'_>) -> PlaceWord;

    /// Stores `word` in the place where `leaf` was found. Release.
    ///
    /// # Safety
    /// The place still has the word with which `leaf` was found, and no other code stores there meanwhile. `word` names that leaf
    /// with other marks, or a leaf that was [opened](ShareLeaves::open) for this place. If it is a shared word, other tables
    /// count the leaf.
    unsafe fn put(&self, leaf: T::Leaf<'_>, word: PlaceWord);

    /// Reserves the memory that this table, which is a child's, needs to share the leaf over `page` by fork: the tables above
    /// the leaf, and a spare leaf for the first space that leaves it. No memory of the spare is touched before it is opened, so
    /// a fork pays for no page of it.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing is reserved. Upper tables may have been made.
    ///
    /// # Safety
    /// Only one call at a time is made for one table. The spare is opened once, before or after this table is dropped;
    /// otherwise it leaks.
    unsafe fn reserve(&self, page: PageNumber) -> Result<NonNull<SpareLink>, OutOfMemory>;

    /// Stores `word`, which is shared, in the place over `page` of this table. Release.
    ///
    /// # Safety
    /// [`ShareLeaves::reserve`] was called for `page`. Nothing hangs there, and no other code stores there meanwhile. Both tables
    /// that have the leaf are walked in sections of one engine only. A table leaves the leaves that it shares before it is
    /// dropped.
    unsafe fn hang(&self, page: PageNumber, word: PlaceWord);

    /// Makes `spare` an empty leaf table that is to replace `leaf` in its place. Returns it as if it had been found there, with
    /// a word without marks. The engine fills it by [`PageTable::fill`], and then hangs it by [`ShareLeaves::put`].
    ///
    /// # Safety
    /// `spare` comes from [`ShareLeaves::reserve`] of a table of the same host, and was not opened before. The caller hangs the
    /// returned leaf.
    unsafe fn open<'s>(&'s self, leaf: T::Leaf<'s>, spare: NonNull<SpareLink>) -> T::Leaf<'s>;

    /// Clears [`Entry::WRITE`](super::Entry::WRITE) in the entry of `page` in a shared leaf, by one atomic step: a processor
    /// may set the accessed bit meanwhile. Relaxed.
    ///
    /// # Safety
    /// The leaf is shared, and the caller holds its lock.
    unsafe fn weaken(&self, leaf: T::Leaf<'_>, page: PageNumber);

    /// Returns entry `index` of the shared leaf that has `record`. Reclaim comes by a page and the record, and knows no table that
    /// has the leaf. Relaxed.
    ///
    /// # Safety
    /// The record is that of a leaf of a host with this type of table, and the caller keeps the leaf: it has found the record in a
    /// section that has not ended. `index` is below [`PageTable::LEAF_PAGES`].
    unsafe fn load_by_record(record: &LeafRecord, index: u64) -> Entry;

    /// Replaces entry `index` of the shared leaf that has `record` with `new`, for all tables that have the leaf, if the entry is
    /// still `seen`. Neither has [`Entry::ANNOUNCED`]. Reclaim takes a page out in this way, and a fault for reading brings it back.
    /// A processor that faulted on the entry may walk it again at once. AcqRel.
    ///
    /// # Errors
    /// The entry that is there instead of `seen`. It is unchanged: a processor has set its accessed bit.
    ///
    /// # Safety
    /// As for [`ShareLeaves::load_by_record`]; the leaf is shared, and the caller holds its lock. `new` is as for
    /// [`PageTable::install`]. The frame of `seen` is freed only after a later invalidation of [`ShareLeaves::stale_in_all`].
    unsafe fn exchange_by_record(
        record: &LeafRecord,
        index: u64,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry>;

    /// Returns a name of `range` in every table of the host, for [`Host::invalidate_all`](super::Host::invalidate_all). The pages of
    /// a leaf have the same numbers in each table that shares it. Needs no memory.
    fn stale_in_all(range: PageRange) -> T::Stale;
}

// SAFETY: there is no value.
unsafe impl<T: PageTable> ShareLeaves<T> for Unsupported {
    fn found(&self, _: T::Leaf<'_>) -> PlaceWord {
        match *self {}
    }

    fn now(&self, _: T::Leaf<'_>) -> PlaceWord {
        match *self {}
    }

    unsafe fn put(&self, _: T::Leaf<'_>, _: PlaceWord) {
        match *self {}
    }

    unsafe fn reserve(&self, _: PageNumber) -> Result<NonNull<SpareLink>, OutOfMemory> {
        match *self {}
    }

    unsafe fn hang(&self, _: PageNumber, _: PlaceWord) {
        match *self {}
    }

    unsafe fn open<'s>(&'s self, _: T::Leaf<'s>, _: NonNull<SpareLink>) -> T::Leaf<'s> {
        match *self {}
    }

    unsafe fn weaken(&self, _: T::Leaf<'_>, _: PageNumber) {
        match *self {}
    }

    unsafe fn load_by_record(_: &LeafRecord, _: u64) -> Entry {
        Entry::EMPTY
    }

    unsafe fn exchange_by_record(_: &LeafRecord, _: u64, _: Entry, _: Entry) -> Result<(), Entry> {
        Err(Entry::EMPTY)
    }

    fn stale_in_all(_: PageRange) -> T::Stale {
        unreachable!("no leaf is shared, so none is reclaimed from")
    }
}
