//! The steps by which the engine shares a leaf table between several trees. A place word is the pointer in the place,
//! with its marks.

use super::block::Spare;
use super::{Leaf, LeafTable, RadixTable, Walk};
use faultless::address::PageNumber;
use faultless::host::{Entry, OutOfMemory, PlaceWord, ShareLeaves, SpareLink};
use faultless::sync::atomic::Ordering;
use std::ptr::NonNull;

const _: () = assert!(align_of::<LeafTable>() >= 4, "room for the marks of a place word");

// SAFETY: each method is one step on the place, the record or an entry, as its contract states.
unsafe impl ShareLeaves<Self> for RadixTable {
    #[inline]
    fn found(&self, leaf: Leaf<'_>) -> PlaceWord {
        leaf.word()
    }

    fn now(&self, leaf: Leaf<'_>) -> PlaceWord {
        PlaceWord::from_raw(leaf.place.load(Ordering::Acquire).cast())
    }

    unsafe fn put(&self, leaf: Leaf<'_>, word: PlaceWord) {
        // Release, partner: the Acquire loads of walks.
        leaf.place.store(word.into_raw().cast(), Ordering::Release);
    }

    unsafe fn reserve(&self, page: PageNumber) -> Result<NonNull<SpareLink>, OutOfMemory> {
        self.root.make_leaf_place(page, &self.sections)?;
        // The link is the first field.
        self.reserve.take(&self.sections).map(NonNull::cast)
    }

    unsafe fn hang(&self, page: PageNumber, word: PlaceWord) {
        let place = self.root.leaf_place(page).expect("reserve has made the tables above");
        debug_assert!(place.load(Ordering::Relaxed).is_null(), "hang over a place that is not empty");
        // Release, partner: the Acquire loads of walks.
        place.store(word.into_raw().cast(), Ordering::Release);
    }

    unsafe fn open<'s>(&'s self, leaf: Leaf<'s>, spare: NonNull<SpareLink>) -> Leaf<'s> {
        // SAFETY: by the contract; the link is the first field of a Spare, and the pointer was made from that Spare.
        let table = unsafe { Spare::into_table(spare.cast()) };
        Leaf { found: table.as_ptr(), place: leaf.place }
    }

    unsafe fn weaken(&self, leaf: Leaf<'_>, page: PageNumber) {
        leaf.entry(page).fetch_and(!Entry::WRITE, Ordering::Relaxed);
    }
}
