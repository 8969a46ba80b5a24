//! What the engine keeps beside each leaf table: who has it, and the tables for those who leave.

use crate::sync::Life;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use crate::sync::plain;
use core::ptr::{self, NonNull};

/// The engine's record of one leaf table, in the host's memory: beside the entries, or in what a kernel keeps for the frame of a
/// page table. Each leaf table has one, shared or not: the way from a page back to the entry that maps it goes through it.
///
/// The host makes it with the leaf table, gives it out by [`PageTable::record`](crate::host::PageTable::record), calls
/// [`LeafRecord::end`] before it frees the table or uses it for something else, and reads and writes nothing of it. Zeros are the
/// record of a leaf that nobody shares, so memory of zeros needs no initialization.
///
/// It is a line of 64 bytes, and aligned so, since a [home](crate::frame::Folio) has no room for the low bits of its address:
///
/// | bytes | | state |
/// |--:|---|---|
/// | 8 | spaces that have the leaf, less one | used |
/// | 1 | the lock | used |
/// | 8 | spare tables | used |
/// | 8 | the space whose page work announces in the leaf; shared: none | used |
/// | 8 | the first page | used |
/// | 8 | the family: leaves that came from one leaf by copying | reserved, zero |
/// | 4 | the place in the family | reserved, zero |
#[derive(Debug)]
#[repr(align(64))]
pub struct LeafRecord {
    /// Places but one where the leaf hangs, and spaces that have left and are waited for. Up under the lock; down by [`PendingLeave`].
    others: AtomicU64,
    /// Whether somebody shares or copies the leaf now.
    locked: AtomicBool,
    /// Tables for those who leave: as many as `others` less those who are leaving. Under the lock.
    spares: AtomicPtr<SpareLink>,
    /// A [`SpaceMark`], [`SHARED`], or zero before the first. Zero to a mark by whoever makes the leaf, before an entry of it is
    /// written; then under the lock. Read in sections.
    space: plain::AtomicUsize,
    /// The first page that the leaf covers, the same in each space that has it. Written with the first `space`.
    first: plain::AtomicU64,
    life: Life,
}

/// Several spaces have the leaf, and none announces in it. No address.
const SHARED: usize = 1;

/// Names a space in a record: the address of the counts of its handles ([`Weak::as_raw`](crate::sync::Weak)), as a number. What
/// follows it has found the record in the same section: the space is freed a grace period after its last table (rule H5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpaceMark(usize);

impl SpaceMark {
    /// Of a table that is in no space, for checks of a host.
    #[cfg(all(feature = "conformance", not(loom)))]
    pub const NOBODY: Self = Self(64);

    /// Of the space whose handles are counted at `counts`.
    pub fn new(counts: NonNull<()>) -> Self {
        Self(counts.as_ptr().expose_provenance())
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<LeafRecord>() == 64);

/// A leaf table in reserve, as the engine keeps it: a link of a list. It lies in the host's memory, but not in the table, which
/// is not touched before [`ShareLeaves::open`](crate::host::ShareLeaves::open). The host makes one for each table that it
/// may be asked for, and reads and writes nothing of it.
#[derive(Debug)]
pub struct SpareLink {
    /// The next one in the list of a leaf. Under the lock of its record.
    next: AtomicPtr<Self>,
}

impl SpareLink {
    /// A link in no list.
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
    /// The record of a leaf table that nobody shares.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            others: AtomicU64::new(0),
            locked: AtomicBool::new(false),
            spares: AtomicPtr::new(ptr::null_mut()),
            space: plain::AtomicUsize::new(0),
            first: plain::AtomicU64::new(0),
            life: Life::new(),
        }
    }

    /// The record of a leaf table that nobody shares.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            others: AtomicU64::new(0),
            locked: AtomicBool::new(false),
            spares: AtomicPtr::new(ptr::null_mut()),
            space: plain::AtomicUsize::new(0),
            first: plain::AtomicU64::new(0),
            life: Life::new(),
        }
    }

    /// Ends the record: the leaf table is about to be freed. Call it once. Debug builds panic if other tables have the leaf; models,
    /// if somebody uses the record afterwards.
    pub fn end(&self) {
        debug_assert!(self.others.load(Ordering::Relaxed) == 0, "a leaf table freed that others have");
        self.space.store(0, Ordering::Relaxed);
        self.life.end();
    }

    /// The leaf is `space`'s, from page `first` on, if nobody has said so yet. Whoever makes a leaf calls it before it writes an
    /// entry; of two makers, which say the same, one does. A space that only finds a new leaf may write an entry before the maker
    /// comes here: whoever follows the home then meets a record without a space, and passes over.
    pub(crate) fn begin(&self, space: SpaceMark, first: u64) {
        if self.space.load(Ordering::Relaxed) == 0 {
            self.first.store(first, Ordering::Relaxed);
            let _ = self.space.compare_exchange(0, space.0, Ordering::Release, Ordering::Relaxed);
        }
    }

    /// The space that announces in the leaf; none of a shared one. A hint, unless it is the caller's own and the leaf is too.
    pub(crate) fn space(&self) -> Option<SpaceMark> {
        match self.space.load(Ordering::Acquire) {
            0 | SHARED => None,
            space => Some(SpaceMark(space)),
        }
    }

    /// Whether a space has the leaf, or several have.
    #[cfg(any(test, feature = "audit"))]
    pub(crate) fn is_in_a_space(&self) -> bool {
        self.life.touch();
        self.space.load(Ordering::Acquire) != 0
    }

    /// The first page that the leaf covers.
    pub(crate) fn first(&self) -> u64 {
        self.life.touch();
        self.first.load(Ordering::Relaxed)
    }

    /// How many other tables have the leaf, those counted that have left and are waited for. Acquire, partner: [`PendingLeave`]: what its
    /// processors did is seen.
    pub(crate) fn others(&self) -> u64 {
        self.life.touch();
        self.others.load(Ordering::Acquire)
    }

    /// Acquire, partner: [`Locked`]'s Release.
    pub(super) fn try_lock(&self) -> Option<Locked<'_>> {
        self.life.touch();
        let locked = self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        // Made only then: dropping one unlocks.
        locked.is_ok().then(|| Locked(self))
    }
}

impl Default for LeafRecord {
    fn default() -> Self {
        Self::new()
    }
}

/// The record of a leaf table that nobody else shares, leaves or takes over now.
pub(super) struct Locked<'a>(&'a LeafRecord);

impl<'a> Locked<'a> {
    pub fn others(&self) -> u64 {
        self.0.others()
    }

    /// One table more has the leaf. It brings what the first one to leave will need.
    ///
    /// # Safety
    /// From [`ShareLeaves::reserve`](crate::host::ShareLeaves::reserve), and not added before.
    pub unsafe fn add(&self, spare: NonNull<SpareLink>) {
        // SAFETY: by the contract above; it is the lock's from now on.
        unsafe { spare.as_ref() }.next.store(self.0.spares.load(Ordering::Relaxed), Ordering::Relaxed);
        self.0.spares.store(spare.as_ptr(), Ordering::Relaxed);
        self.0.others.fetch_add(1, Ordering::Relaxed);
    }

    /// A table for the space that leaves. None: as many are leaving as have the leaf.
    pub fn take_spare(&self) -> Option<NonNull<SpareLink>> {
        let spare = NonNull::new(self.0.spares.load(Ordering::Relaxed))?;
        // SAFETY: in the list, which is the lock's; the host keeps it until it is opened.
        let next = unsafe { spare.as_ref() }.next.load(Ordering::Relaxed);
        self.0.spares.store(next, Ordering::Relaxed);
        Some(spare)
    }

    /// Several spaces have the leaf from now on, so that nobody announces in it; or `space` alone.
    pub fn set_space(&self, space: Option<SpaceMark>) {
        self.0.space.store(space.map_or(SHARED, |space| space.0), Ordering::Release);
    }

    /// Ends the lock. The space that had the leaf is counted until the value returned is dropped.
    pub fn leave(self) -> PendingLeave {
        PendingLeave(NonNull::from(self.0))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.locked.store(false, Ordering::Release);
    }
}

/// A shared leaf table that a space has left, whose processors may still be in it. Dropped when they are not: after
/// [`PageTable::invalidate`](crate::host::PageTable::invalidate) of its pages.
#[derive(Debug)]
pub(crate) struct PendingLeave(NonNull<LeafRecord>);

// SAFETY: records are shared between threads anyway; this is a count of one.
unsafe impl Send for PendingLeave {}

impl Drop for PendingLeave {
    fn drop(&mut self) {
        // SAFETY: counted in `others`: until the next line somebody else has the leaf and does not free it, nor its record.
        let record = unsafe { self.0.as_ref() };
        record.life.touch();
        // Release, partner: `LeafRecord::others`.
        record.others.fetch_sub(1, Ordering::Release);
    }
}
