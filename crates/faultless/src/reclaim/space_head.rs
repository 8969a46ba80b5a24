//! A space, as reclaim sees it. Reclaim comes from a folio by its home, and knows neither the space's locking design nor a
//! handle of it.

use crate::engine::StaleBatch;
use crate::host::{Frame, Host, Slot};
use crate::sync::Section;
use crate::tables::{LeafRecord, MOST_ENTRIES};
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

/// A page that reclaim wants to take out of one entry. The caller has a pin on the folio and has isolated it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Victim {
    pub frame: Frame,
    pub kind: VictimKind,
    pub reach: Reach,
    /// The place of the entry, counted in pages from the page that [`Found::take`] starts from.
    pub index: u16,
    /// `None` until the entry has been tried.
    pub outcome: Option<Result<(), Refusal>>,
}

impl Victim {
    /// Makes a victim that has not been tried.
    pub const fn new(frame: Frame, kind: VictimKind, reach: Reach, index: u64) -> Self {
        const { assert!(MOST_ENTRIES <= 1 << u16::BITS) }
        Self { frame, kind, reach, index: index as u16, outcome: None }
    }

    /// Returns the outcome of a try. A victim that was not tried at all is busy.
    pub fn outcome(&self) -> Result<(), Refusal> {
        self.outcome.unwrap_or(Err(Refusal::Busy))
    }
}

/// The pages that reclaim may take out of an entry, by their use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The page is known to be in use, and stays. The accessed bit is cleared.
    Nothing,
    /// The page stays if its accessed bit is set. The bit is cleared.
    Old,
    /// No use keeps the page.
    Any,
}

impl Reach {
    /// Returns the reach of reclaim that has to take young pages, or not.
    pub const fn of(takes_young: bool) -> Self {
        if takes_young { Self::Any } else { Self::Old }
    }
}

/// The kind of a page that reclaim takes. It decides which entry is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VictimKind {
    /// An anonymous page. The entry is to name the slot to which the folio is attached, with its generation.
    Swapped(Slot, u16),
    /// An anonymous page that is to be dropped (MADV_FREE). The entry becomes GONE.
    Dropped,
    /// A clean page of a file. The entry becomes GONE.
    File,
    /// A page of a file without a store, which is to go to a slot. The entry becomes GONE.
    FileInMemory,
}

/// The reason why reclaim has left an entry as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The entry does not map the frame any more, or the frame has left its slot.
    Gone,
    /// Other work is under way on the page, or in the whole space. Reclaim waits for none.
    Busy,
    /// A processor has used the page since reclaim last looked.
    Young,
    /// The mapping is locked (mlock).
    Locked,
    /// The page is pinned for I/O.
    Pinned,
    /// The page was to be dropped, and several spaces have it by a leaf table that they share. It needs a slot.
    NotAlone,
    /// The count of the slot is full.
    Full,
    /// There is no slot, or no place on a device.
    NoSlot,
    /// The page of a file has to be written first.
    Dirty,
}

/// Takes pages out of entries of one leaf table, counted from the page that is given: see [`Found::take`].
type Take<H> = unsafe fn(NonNull<SpaceHead<H>>, &Section<'_>, u64, &mut [Victim], &mut StaleBatch<'_, H>);

/// Clears the accessed bit of an entry: see [`Found::forget_use`].
type ForgetUse<H> = unsafe fn(NonNull<SpaceHead<H>>, &Section<'_>, u64, Frame);

/// The first field of each space, whatever its design. The mark in the record of a leaf table is its address.
#[repr(C)]
pub(crate) struct SpaceHead<H: Host> {
    take: Take<H>,
    forget_use: ForgetUse<H>,
}

impl<H: Host> SpaceHead<H> {
    /// Makes the head of a space.
    ///
    /// # Safety
    /// Both functions may be called with the address of this head, in a section in which the space was found by a record of one of its
    /// leaf tables.
    pub const unsafe fn new(take: Take<H>, forget_use: ForgetUse<H>) -> Self {
        Self { take, forget_use }
    }
}

/// A space that was found by a record, and is memory until the section ends.
pub(super) struct Found<'s, H: Host> {
    head: NonNull<SpaceHead<H>>,
    section: &'s Section<'s>,
    /// The first page that the leaf table covers.
    first: u64,
    engine: PhantomData<&'s H>,
}

impl<'s, H: Host> Found<'s, H> {
    /// Returns the space that announces in the leaf table with `record`, which was found by a folio's home in `section`. `None`
    /// if several spaces have the table.
    pub fn by_record(record: &'s LeafRecord, section: &'s Section<'s>) -> Option<Self> {
        let head = NonNull::new(ptr::with_exposed_provenance_mut(record.space()?.address()))?;
        Some(Self { head, section, first: record.first(), engine: PhantomData })
    }

    /// Tries to take the pages of `victims` that have no outcome yet, at their indices in the table, and gives the outcome to the first
    /// of them at least. Waits for nothing. If a page is taken, the entry names the slot, the slot counts one more entry, the mapping is
    /// dropped, and the page is noted in `stale`, which has room for one part. If it is refused, the entry is as before, but for its
    /// accessed bit.
    pub fn take(&self, victims: &mut [Victim], stale: &mut StaleBatch<'_, H>) {
        // SAFETY: the record was found in the section, so the space is memory until the section ends (rule H5): it is freed a
        // grace period after its last table has gone. All spaces of an engine have the host's type in their head.
        unsafe {
            let take = (*self.head.as_ptr()).take;
            take(self.head, self.section, self.first, victims, stale);
        }
    }

    /// Clears the accessed bit of the entry at `index` of the table, if it maps the page of `frame`.
    pub fn forget_use(&self, index: u64, frame: Frame) {
        // SAFETY: as in `take`.
        unsafe {
            let forget_use = (*self.head.as_ptr()).forget_use;
            forget_use(self.head, self.section, self.first + index, frame);
        }
    }
}
