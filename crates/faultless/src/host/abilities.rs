//! What a page table may be able to do beyond [`PageTable`]: share leaf tables between spaces, follow ranges, and answer accesses that
//! cannot be served. A table names the type that does it, or [`Unsupported`], and gives it out by
//! [`PageTable::sharing`], [`PageTable::following`] and [`PageTable::refusing`].

use super::{OutOfMemory, PageTable};
use crate::address::{PageNumber, PageRange};
use crate::protection::Protection;
pub use crate::tables::{LeafRecord, SpareLink};
use core::ptr::NonNull;

/// An ability that a page table does not have. There is no value of it, so nothing of the ability is ever called.
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

/// Mappings of the processors' own, beside the page table, that have to follow what the engine publishes. A host that sees each access by
/// its entry has none. Given out by [`PageTable::following`].
///
/// # Safety
/// `follow` does what it says.
pub unsafe trait FollowRanges: Send + Sync + 'static {
    /// Gives `range` these rights in the host's own mappings, or unmaps it there (`None`). Called before the same is published. An
    /// access between the two is served, or meets a fault that finds nothing and is tried again. The caller is in no section
    /// and has announced nothing; this may sleep.
    ///
    /// # Errors
    /// [`OutOfMemory`]: as before, or in part; the caller says again what holds.
    ///
    /// # Safety
    /// The caller has taken `range` and publishes the same rights next.
    unsafe fn follow(&self, range: PageRange, rights: Option<Protection>) -> Result<(), OutOfMemory>;
}

// SAFETY: there is no value.
unsafe impl FollowRanges for Unsupported {
    unsafe fn follow(&self, _: PageRange, _: Option<Protection>) -> Result<(), OutOfMemory> {
        match *self {}
    }
}

/// An answer to accesses that cannot be served, for a host whose faults are on another thread than the access. Other hosts hand the
/// error of the fault to the thread that has made the access. Given out by [`PageTable::refusing`].
///
/// # Safety
/// `refuse` does what it says.
pub unsafe trait RefuseAccesses<T: PageTable>: Send + Sync + 'static {
    /// Answers the access that this page work is for with a signal, since the page cannot be read or there is no memory for it.
    /// Sets [`Entry::REFUSED`](super::Entry::REFUSED), for all accesses until the entry is installed anew or swept, and clears
    /// [`Entry::ANNOUNCED`](super::Entry::ANNOUNCED). Does not sleep.
    ///
    /// # Safety
    /// As [`PageTable::let_go`].
    unsafe fn refuse(&self, leaf: T::Leaf<'_>, page: PageNumber);
}

// SAFETY: there is no value.
unsafe impl<T: PageTable> RefuseAccesses<T> for Unsupported {
    unsafe fn refuse(&self, _: T::Leaf<'_>, _: PageNumber) {
        match *self {}
    }
}

/// The word by which a leaf table hangs in its parent: which leaf, and a mark. *Shared*: the leaf hangs in other tables too, and
/// no processor stores through this place, whatever the entries allow.
///
/// A software table may store the word as it is ([`PlaceWord::into_raw`]). A kernel makes an upper entry of it: the leaf's frame, and
/// the write bit clear where it is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceWord(*mut ());

impl PlaceWord {
    const SHARED: usize = 1;

    /// The word without the mark for a leaf table, by a pointer that the host alone follows: it has to be even,
    /// and another one for each leaf. Null: no leaf hangs there.
    #[inline]
    pub fn new(leaf: *mut ()) -> Self {
        debug_assert!(
            leaf.addr() & Self::SHARED == 0,
            "a leaf table whose address leaves no room for the mark"
        );
        Self(leaf)
    }

    /// The word that was [`PlaceWord::into_raw`].
    #[inline]
    pub const fn from_raw(word: *mut ()) -> Self {
        Self(word)
    }

    /// The word as one pointer: that of the leaf, with the mark in its lowest bit.
    #[inline]
    pub const fn into_raw(self) -> *mut () {
        self.0
    }

    /// The leaf table, as it was given to [`PlaceWord::new`].
    #[inline]
    pub fn leaf(self) -> *mut () {
        self.0.map_addr(|word| word & !Self::SHARED)
    }

    /// Whether the leaf hangs in other tables too.
    #[inline]
    pub fn is_shared(self) -> bool {
        self.0.addr() & Self::SHARED != 0
    }

    /// The same leaf in the same place, unshared.
    pub(crate) fn own(self) -> Self {
        Self(self.leaf())
    }

    /// The same leaf in the same place, shared by fork.
    pub(crate) fn shared(self) -> Self {
        Self(self.0.map_addr(|word| word | Self::SHARED))
    }
}

/// Leaf tables that can hang in several tables at once, so that fork need not copy their entries. Given out by
/// [`PageTable::sharing`].
///
/// Each method is a small step, which does not sleep. The engine decides who may share, copy or take over a leaf, and in which
/// order (docs/fork.md). `leaf` was found in a section, but for [`ShareLeaves::found`], which is also asked of leaves that were found
/// by a range taken.
///
/// # Safety
/// The engine frees leaf tables and counts pages by what these methods say: each does what it says, and nothing else. A processor does not
/// store through a place whose word is shared once
/// [`PageTable::invalidate`] of its pages has returned. [`PageTable::hangs`] is false of a leaf that was found shared, and of one whose
/// place is marked by now.
pub unsafe trait ShareLeaves<T: PageTable>: Send + Sync + 'static {
    /// The place word by which the leaf was found. Reads the value alone: another thread may have freed the table.
    fn found(&self, leaf: T::Leaf<'_>) -> PlaceWord;

    /// The word of the same place as it is now. Acquire: what was written before the word was stored is seen.
    fn now(&self, leaf: T::Leaf<'_>) -> PlaceWord;

    /// Stores `word` in the place where `leaf` was found. Release.
    ///
    /// # Safety
    /// The place has the word still with which `leaf` was found, and nobody else stores there now. `word` names that leaf with other
    /// marks, or a leaf that was [opened](ShareLeaves::open) for this place. If it is a shared word, other tables count the leaf.
    unsafe fn put(&self, leaf: T::Leaf<'_>, word: PlaceWord);

    /// Takes what this table, a child's, will need to have the leaf over `page` by fork: the tables above it, and a spare leaf
    /// for the first space that leaves. No memory of the spare is touched before it is opened, so a fork pays for no page of it.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing is taken; tables above may be there.
    ///
    /// # Safety
    /// One call at a time for one table. The spare is opened before or after this table is dropped, once, or never and then leaks.
    unsafe fn reserve(&self, page: PageNumber) -> Result<NonNull<SpareLink>, OutOfMemory>;

    /// Stores `word`, which is shared, in the place over `page` of this table. Release.
    ///
    /// # Safety
    /// [`ShareLeaves::reserve`] was called for `page`. Nothing hangs there, and nobody else stores there now. Both tables that have the
    /// leaf are walked in sections of one engine only. Before either is dropped, it leaves what it shares.
    unsafe fn hang(&self, page: PageNumber, word: PlaceWord);

    /// Makes `spare` an empty leaf table that is to hang where `leaf` does. Returned as a leaf that was found there: its word has no
    /// marks. The engine fills it by [`PageTable::fill`], and then hangs it by [`ShareLeaves::put`].
    ///
    /// # Safety
    /// From [`ShareLeaves::reserve`] of a table of the same host, and not opened before. The caller hangs it.
    unsafe fn open<'s>(&'s self, leaf: T::Leaf<'s>, spare: NonNull<SpareLink>) -> T::Leaf<'s>;

    /// Takes [`Entry::WRITE`](super::Entry::WRITE) from the entry of `page` in a shared leaf. One atomic step: a processor may set the accessed bit
    /// meanwhile. Relaxed.
    ///
    /// # Safety
    /// The leaf is shared, and the caller has its lock.
    unsafe fn weaken(&self, leaf: T::Leaf<'_>, page: PageNumber);
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
}
