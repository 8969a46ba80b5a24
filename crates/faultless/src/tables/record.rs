//! The engine's record of each leaf table: the space that has the table, the count of sharers, and spare tables for those
//! that leave.

use super::family::Family;
use crate::sync::Life;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use crate::sync::plain;
use core::ptr::{self, NonNull};

/// The engine's record of one leaf table, in the host's memory: beside the entries, or in a kernel's structure for the frame
/// of a page table. Each leaf table has one, shared or not: the way from a page back to the entry that maps it goes through
/// the record.
///
/// The host makes the record with the leaf table, and returns it from [`PageTable::record`](crate::host::PageTable::record).
/// It calls [`LeafRecord::end`] before it frees the table or uses it for another purpose. It reads and writes nothing of the
/// record. Zeros are the record of a leaf that is not shared, so memory of zeros needs no initialization.
///
/// The record is one line of 64 bytes, and aligned so, since a [home](crate::frame::Folio) has no room for the low bits of
/// its address:
///
/// | bytes | |
/// |--:|---|
/// | 8 | spaces that have the leaf, less one |
/// | 1 | the lock |
/// | 8 | spare tables |
/// | 8 | the space whose page work announces in the leaf; shared: none |
/// | 8 | the first page |
/// | 8 | the family: leaves that came from one leaf by copying |
/// | 16 | the neighbours in the family's list |
#[derive(Debug)]
#[repr(align(64))]
pub struct LeafRecord {
    /// The number of places where the leaf hangs, less one, plus the spaces that have left and are waited for. Atomic.
    /// Counted up under the lock; counted down by [`PendingLeave`].
    others: AtomicU64,
    /// The lock: set while a thread shares or copies the leaf. Atomic.
    locked: AtomicBool,
    /// Tables for spaces that leave: as many as `others` less the spaces that are leaving. Protected by the lock.
    spares: AtomicPtr<SpareLink>,
    /// A [`SpaceMark`], [`SHARED`], or zero before the first mark. Atomic. The maker of the leaf changes zero to a mark
    /// before an entry of it is written; after that it is written under the lock. Read in sections.
    space: plain::AtomicUsize,
    /// The first page that the leaf covers, the same in each space that has the leaf. Atomic; written with the first `space`.
    first: plain::AtomicU64,
    /// The family. Atomic. Set before an entry that a relative has too is written, and kept to the end, or until the record leaves
    /// the family.
    pub(super) family: AtomicPtr<Family>,
    /// The next older record in the family's list. Atomic; written under the family's lock, read in sections. A record that
    /// has left the list keeps it.
    pub(super) older: AtomicPtr<Self>,
    /// The next younger record in the family's list; itself, once the record has left the list. Protected by the family's lock.
    pub(super) newer: plain::AtomicPtr<Self>,
    life: Life,
}

/// The mark of a leaf that several spaces have, and in which no thread announces. It is no address.
const SHARED: usize = 1;

/// The name of a space in a record: the address of the space, whose first field is a
/// [`SpaceHead`](crate::reclaim::SpaceHead), as a number. A thread that follows it has found the record in the same section:
/// the space is freed a grace period after its last table (rule H5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpaceMark(usize);

impl SpaceMark {
    /// The mark of a table that is in no space, for checks of a host.
    #[cfg(all(feature = "conformance", not(loom)))]
    pub const NOBODY: Self = Self(64);

    /// Makes the mark of the space at `place`.
    pub fn new(place: NonNull<()>) -> Self {
        Self(place.as_ptr().expose_provenance())
    }

    /// Returns the address of the space.
    pub fn address(self) -> usize {
        self.0
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<LeafRecord>() == 64);

/// A leaf table in reserve, as the engine keeps it: a link of a list. The link lies in the host's memory, but not in the
/// table, which is not touched before [`ShareLeaves::open`](crate::host::ShareLeaves::open). The host makes one link for each
/// table that the engine may ask for, and reads and writes nothing of it.
#[derive(Debug)]
pub struct SpareLink {
    /// The next link in the list of a leaf. Protected by the lock of the leaf's record.
    next: AtomicPtr<Self>,
}

impl SpareLink {
    /// Makes a link that is in no list.
    pub fn new() -> Self {
        Self { next: AtomicPtr::new(ptr::null_mut()) }
    }
}

impl Default for SpareLink {
    fn default() -> Self {
        Self::new()
    }
}

impl LeafRecord {
    /// Makes the record of a leaf table that is not shared.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            others: AtomicU64::new(0),
            locked: AtomicBool::new(false),
            spares: AtomicPtr::new(ptr::null_mut()),
            space: plain::AtomicUsize::new(0),
            first: plain::AtomicU64::new(0),
            family: AtomicPtr::new(ptr::null_mut()),
            older: AtomicPtr::new(ptr::null_mut()),
            newer: plain::AtomicPtr::new(ptr::null_mut()),
            life: Life::new(),
        }
    }

    /// Makes the record of a leaf table that is not shared.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            others: AtomicU64::new(0),
            locked: AtomicBool::new(false),
            spares: AtomicPtr::new(ptr::null_mut()),
            space: plain::AtomicUsize::new(0),
            first: plain::AtomicU64::new(0),
            family: AtomicPtr::new(ptr::null_mut()),
            older: AtomicPtr::new(ptr::null_mut()),
            newer: plain::AtomicPtr::new(ptr::null_mut()),
            life: Life::new(),
        }
    }

    /// Ends the record: the leaf table is about to be freed. The host calls it once. Debug builds panic if other tables have
    /// the leaf. Models panic if the record is used afterwards.
    pub fn end(&self) {
        debug_assert!(self.others.load(Ordering::Relaxed) == 0, "a leaf table freed that others have");
        self.space.store(0, Ordering::Relaxed);
        self.end_kinship();
        self.life.end();
    }

    /// Notes that the leaf belongs to `space` and covers pages from `first` on, unless that is noted already. The maker of a
    /// leaf calls it before it writes an entry. If two makers call it, they note the same, and one of them does it. A space
    /// that only finds a new leaf may write an entry before the maker has called this. A thread that follows the home then
    /// meets a record without a space, and ignores it.
    pub(crate) fn begin(&self, space: SpaceMark, first: u64) {
        if self.space.load(Ordering::Relaxed) == 0 {
            self.first.store(first, Ordering::Relaxed);
            let _ = self.space.compare_exchange(0, space.0, Ordering::Release, Ordering::Relaxed);
        }
    }

    /// Notes a use of the record, which has not ended (rule H1). Models panic if it has.
    #[inline]
    pub(super) fn touch(&self) {
        self.life.touch();
    }

    /// Returns the space that announces in the leaf; `None` if the leaf is shared. A hint, unless both the space and the leaf
    /// are the caller's own.
    pub(crate) fn space(&self) -> Option<SpaceMark> {
        match self.space.load(Ordering::Acquire) {
            0 | SHARED => None,
            space => Some(SpaceMark(space)),
        }
    }

    /// Returns whether at least one space has the leaf.
    #[cfg(any(test, feature = "audit"))]
    pub(crate) fn is_in_a_space(&self) -> bool {
        self.life.touch();
        self.space.load(Ordering::Acquire) != 0
    }

    /// Returns the first page that the leaf covers.
    pub(crate) fn first(&self) -> u64 {
        self.life.touch();
        self.first.load(Ordering::Relaxed)
    }

    /// Returns the number of other tables that have the leaf, including the spaces that have left and are waited for.
    /// Acquire, partner: [`PendingLeave`]. The caller sees the effects of those spaces' processors.
    pub(crate) fn others(&self) -> u64 {
        self.life.touch();
        self.others.load(Ordering::Acquire)
    }

    /// Tries to lock the record of a leaf that several spaces have. `None` if one space has it, or another thread has the lock.
    /// While the value lives, no space shares, leaves or takes over the leaf, and only processors write its entries.
    pub(crate) fn try_lock_shared(&self) -> Option<Locked<'_>> {
        let locked = self.try_lock()?;
        // Under the lock this is certain.
        (self.space.load(Ordering::Relaxed) == SHARED).then_some(locked)
    }

    /// Tries to take the record's lock. Acquire, partner: [`Locked`]'s Release.
    pub(super) fn try_lock(&self) -> Option<Locked<'_>> {
        self.life.touch();
        let locked = self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        // The value is made only if the lock was taken: dropping one unlocks.
        locked.is_ok().then(|| Locked(self))
    }
}

impl Default for LeafRecord {
    fn default() -> Self {
        Self::new()
    }
}

/// A locked record: no other thread shares, leaves or takes over the leaf table now. Dropping it unlocks.
pub(crate) struct Locked<'a>(&'a LeafRecord);

impl<'a> Locked<'a> {
    /// Returns the number of other tables that have the leaf, as [`LeafRecord::others`] does.
    pub fn others(&self) -> u64 {
        self.0.others()
    }

    /// Counts one more table that has the leaf. The table brings a spare, which the first space that leaves will need.
    ///
    /// # Safety
    /// `spare` is from [`ShareLeaves::reserve`](crate::host::ShareLeaves::reserve), and was not added before.
    pub unsafe fn add(&self, spare: NonNull<SpareLink>) {
        // SAFETY: by the contract above; from now on the lock protects it.
        unsafe { spare.as_ref() }.next.store(self.0.spares.load(Ordering::Relaxed), Ordering::Relaxed);
        self.0.spares.store(spare.as_ptr(), Ordering::Relaxed);
        self.0.others.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a table for the space that leaves. `None` if all spares are taken, since other spaces are leaving.
    pub fn take_spare(&self) -> Option<NonNull<SpareLink>> {
        let spare = NonNull::new(self.0.spares.load(Ordering::Relaxed))?;
        // SAFETY: it is in the list, which the lock protects; the host keeps it until it is opened.
        let next = unsafe { spare.as_ref() }.next.load(Ordering::Relaxed);
        self.0.spares.store(next, Ordering::Relaxed);
        Some(spare)
    }

    /// Notes that `space` alone has the leaf; with `None`, that several spaces have it, so that no thread announces in it.
    pub fn set_space(&self, space: Option<SpaceMark>) {
        self.0.space.store(space.map_or(SHARED, |space| space.0), Ordering::Release);
    }

    /// Releases the lock. The space that had the leaf is counted until the returned value is dropped.
    pub fn leave(self) -> PendingLeave {
        PendingLeave(NonNull::from(self.0))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.locked.store(false, Ordering::Release);
    }
}

/// A shared leaf table that a space has left, and that the space's processors may still use. It is dropped when they no
/// longer do: after [`PageTable::invalidate`](crate::host::PageTable::invalidate) of its pages.
#[derive(Debug)]
pub(crate) struct PendingLeave(NonNull<LeafRecord>);

// SAFETY: records are shared between threads anyway; this is a count of one.
unsafe impl Send for PendingLeave {}

impl Drop for PendingLeave {
    fn drop(&mut self) {
        // SAFETY: counted in `others`. Until the next line another space has the leaf, and does not free it or its record.
        let record = unsafe { self.0.as_ref() };
        record.life.touch();
        // Release, partner: `LeafRecord::others`.
        record.others.fetch_sub(1, Ordering::Release);
    }
}
