//! The engine's entries, as [`Table`](crate::Table) changes them: wrappers of the unsafe methods of [`RadixTable`].
//!
//! No processor walks this table. The kernel has its own table, and `Table` makes it follow this one. So an entry
//! matters to the engine alone. `Table` either stores an entry that the engine has asked for, under the engine's
//! contract, or changes its own marks in an entry that it has announced itself.

use faultless::address::PageNumber;
use faultless::host::{Entry, OutOfMemory, PageTable};
use faultless::sync::Retired;
use faultless_soft::{Leaf, RadixTable};
use std::ops::Deref;

pub(crate) struct Entries(RadixTable);

/// Gives the safe methods of [`RadixTable`].
impl Deref for Entries {
    type Target = RadixTable;

    fn deref(&self) -> &RadixTable {
        &self.0
    }
}

impl Entries {
    pub(crate) fn new(table: RadixTable) -> Self {
        Self(table)
    }

    pub(crate) fn let_go(&self, leaf: Leaf<'_>, page: PageNumber) {
        // SAFETY: the engine or `Table` has announced the entry.
        unsafe { self.0.let_go(leaf, page) }
    }

    pub(crate) fn install(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) -> Result<Entry, OutOfMemory> {
        // SAFETY: as in `let_go`. `new` is the engine's entry, or the old entry with other marks, or the engine's
        // replacement for it.
        unsafe { self.0.install(leaf, page, new) }
    }

    pub(crate) fn exchange(
        &self,
        leaf: Leaf<'_>,
        page: PageNumber,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        // SAFETY: by the engine's contract.
        unsafe { self.0.exchange(leaf, page, seen, new) }
    }

    pub(crate) fn fill(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) {
        // SAFETY: by the engine's contract.
        unsafe { self.0.fill(leaf, page, new) }
    }

    pub(crate) fn unhook(&self, page: PageNumber) -> Option<Retired> {
        // SAFETY: by the engine's contract.
        unsafe { self.0.unhook(page) }
    }

    pub(crate) fn clear(&self, leaf: Leaf<'_>, page: PageNumber, bits: u64) {
        // SAFETY: the engine has announced the entry; the bits are `Table`'s marks, and no processor walks this table.
        unsafe { self.0.clear(leaf, page, bits) }
    }
}
