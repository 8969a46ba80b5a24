//! Upper tables, and the walk through them to the places of leaf tables.

use super::{FAN, LeafTable, Table, make};
use faultless::address::PageNumber;
use faultless::host::{OutOfMemory, PlaceWord};
use faultless::sync::atomic::{AtomicPtr, Ordering};
use faultless::sync::{Life, Sections};
use std::ptr::{self, NonNull};

/// Returns whether other tables may share the leaf that this word points to.
fn is_shared<T>(word: *mut T) -> bool {
    PlaceWord::from_raw(word.cast()).is_shared()
}

/// A table of tables, which live until it is dropped, or of leaf tables, which come and go. For each GiB that was ever
/// touched 4 KiB remain (docs/protocol.md, rule 7).
pub(super) struct Upper<C: Table> {
    /// Null, or a table from a Box. Set by compare-and-swap (Release), followed by Acquire loads, so a walk never sees
    /// a table before it is empty. `unhook` sets the place of a leaf back to null. While the leaf is shared, the
    /// pointer has marks ([`PlaceWord`]).
    places: [AtomicPtr<C>; FAN],
    life: Life,
}

// SAFETY: zeros are null pointers; `Life` has no bytes outside loom.
unsafe impl<C: Table> Table for Upper<C> {
    const SPAN: u64 = FAN as u64 * C::SPAN;
    #[cfg(loom)]
    fn empty() -> Self {
        Self { places: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())), life: Life::new() }
    }
}

impl<C: Table> Upper<C> {
    fn place(&self, page: PageNumber) -> &AtomicPtr<C> {
        self.life.touch();
        &self.places[(page.get() / C::SPAN) as usize % FAN]
    }
}

impl<C: Table> Drop for Upper<C> {
    fn drop(&mut self) {
        for place in &self.places {
            let child = place.load(Ordering::Relaxed);
            // A shared leaf belongs to others too: a table that is dropped has stopped sharing before.
            debug_assert!(!is_shared(child), "a table dropped that has a shared leaf");
            if let Some(child) = NonNull::new(child).filter(|child| !is_shared(child.as_ptr())) {
                // SAFETY: with `&mut self` no other thread is here; the place is the child's only one, and it is freed
                // once.
                unsafe { C::free(child) };
            }
        }
        self.life.end();
    }
}

/// Returns the table at `place`. If it is missing, makes and charges it. If two threads make it, the second uses the
/// first's.
pub(super) fn get_or_make<C: Table>(
    place: &AtomicPtr<C>,
    sections: &Sections,
) -> Result<*mut C, OutOfMemory> {
    let found = place.load(Ordering::Acquire);
    if !found.is_null() {
        return Ok(found);
    }
    let new = Box::into_raw(make::<C>()?);
    // Release, partner: the Acquire loads of walks.
    match place.compare_exchange(ptr::null_mut(), new, Ordering::Release, Ordering::Acquire) {
        Ok(_) => {
            sections.charge(size_of::<C>());
            Ok(new)
        }
        Err(theirs) => {
            // SAFETY: `new` has just come from a Box, and no other thread has seen it.
            drop(unsafe { Box::from_raw(new) });
            Ok(theirs)
        }
    }
}

/// The walk from an upper table down to the places of leaf tables.
pub(super) trait Walk: Table {
    /// Returns the place of the leaf over `page`, if the tables above it exist.
    fn leaf_place(&self, page: PageNumber) -> Option<&AtomicPtr<LeafTable>>;
    /// Returns the place of the leaf over `page`. Makes missing tables above it.
    fn make_leaf_place(
        &self,
        page: PageNumber,
        sections: &Sections,
    ) -> Result<&AtomicPtr<LeafTable>, OutOfMemory>;
    /// Returns the bytes that were charged for this table and all below it.
    fn charged(&self) -> usize;
    /// Returns the first page in `from..end`, within this table, whose leaf exists. `from` must lie in this table.
    fn next_leaf(&self, from: u64, end: u64) -> Option<u64>;
}

/// Calls `at` for the page `from`, and then for the starts of `step`-sized blocks before `end`. Returns the first
/// result that is `Some`.
fn each_block(from: u64, end: u64, step: u64, mut at: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
    let mut page = from;
    while page < end {
        if let Some(found) = at(page) {
            return Some(found);
        }
        page = (page | (step - 1)) + 1;
    }
    None
}

impl Walk for Upper<LeafTable> {
    fn leaf_place(&self, page: PageNumber) -> Option<&AtomicPtr<LeafTable>> {
        Some(self.place(page))
    }

    fn make_leaf_place(&self, page: PageNumber, _: &Sections) -> Result<&AtomicPtr<LeafTable>, OutOfMemory> {
        Ok(self.place(page))
    }

    fn charged(&self) -> usize {
        let leaf = |place: &AtomicPtr<LeafTable>| {
            let leaf = NonNull::new(place.load(Ordering::Acquire))?;
            // A shared leaf is not counted here.
            // SAFETY: the place points to it, and the caller frees it later.
            let is_own = !is_shared(leaf.as_ptr()) && unsafe { leaf.as_ref() }.block().is_null();
            is_own.then_some(size_of::<LeafTable>())
        };
        size_of::<Self>() + self.places.iter().filter_map(leaf).sum::<usize>()
    }

    fn next_leaf(&self, from: u64, end: u64) -> Option<u64> {
        let end = end.min((from | (Self::SPAN - 1)) + 1);
        each_block(from, end, LeafTable::SPAN, |page| {
            let leaf = self.place(PageNumber::new(page)).load(Ordering::Acquire);
            (!leaf.is_null()).then_some(page)
        })
    }
}

impl<C: Walk> Upper<C> {
    fn child(&self, page: PageNumber) -> Option<&C> {
        let child = self.place(page).load(Ordering::Acquire);
        // SAFETY: null, or from a Box; `C` is not a leaf, so it lives until `self` is dropped.
        unsafe { child.as_ref() }
    }
}

impl<C: Walk> Walk for Upper<C> {
    fn leaf_place(&self, page: PageNumber) -> Option<&AtomicPtr<LeafTable>> {
        self.child(page)?.leaf_place(page)
    }

    fn make_leaf_place(
        &self,
        page: PageNumber,
        sections: &Sections,
    ) -> Result<&AtomicPtr<LeafTable>, OutOfMemory> {
        let child = get_or_make(self.place(page), sections)?;
        // SAFETY: as in `child`, and not null.
        unsafe { &*child }.make_leaf_place(page, sections)
    }

    fn charged(&self) -> usize {
        let child = |place: &AtomicPtr<C>| {
            // SAFETY: as in `child`.
            unsafe { place.load(Ordering::Acquire).as_ref() }.map(Walk::charged)
        };
        size_of::<Self>() + self.places.iter().filter_map(child).sum::<usize>()
    }

    fn next_leaf(&self, from: u64, end: u64) -> Option<u64> {
        let end = end.min((from | (Self::SPAN - 1)) + 1);
        each_block(from, end, C::SPAN, |page| self.child(PageNumber::new(page))?.next_leaf(page, end))
    }
}
