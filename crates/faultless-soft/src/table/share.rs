//! The steps by which the engine shares a leaf table between several trees. A place word is the pointer in the place,
//! with its marks.

use super::block::Spare;
use super::{FAN, Leaf, LeafTable, RadixTable, Stale, Walk, swap_if};
use faultless::address::{PageNumber, PageRange};
use faultless::host::{Entry, LeafRecord, OutOfMemory, PlaceWord, ShareLeaves, SpareLink};
use faultless::sync::atomic::Ordering;
use std::mem::offset_of;
use std::ptr::{self, NonNull};

const _: () = assert!(align_of::<LeafTable>() >= 4, "room for the marks of a place word");

/// Returns the leaf table that has `record`.
///
/// # Safety
/// The record is one of a leaf table of this type that hangs in several tables, or did in the present section.
unsafe fn table_of(record: &LeafRecord) -> &LeafTable {
    let address = ptr::from_ref(record).addr() - offset_of!(LeafTable, record);
    // SAFETY: the record is the field of a leaf table, which lives as long. `hang` has exposed the provenance of the whole table.
    let table = unsafe { &*ptr::with_exposed_provenance::<LeafTable>(address) };
    table.life.touch();
    table
}

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
        // For `table_of`.
        let _ = word.leaf().expose_provenance();
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

    unsafe fn load_by_record(record: &LeafRecord, index: u64) -> Entry {
        // SAFETY: by the same contract.
        let table = unsafe { table_of(record) };
        Entry::from_bits(table.entries[index as usize % FAN].load(Ordering::Relaxed))
    }

    unsafe fn exchange_by_record(
        record: &LeafRecord,
        index: u64,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        debug_assert!(!seen.is_announced() && !new.is_announced());
        // SAFETY: by the same contract.
        let table = unsafe { table_of(record) };
        swap_if(&table.entries[index as usize % FAN], seen, new)
    }

    fn stale_in_all(range: PageRange) -> Stale {
        Stale { first: range.start().get(), pages: range.pages(), tag: None }
    }
}
