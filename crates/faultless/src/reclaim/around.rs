//! A look at the entries around one whose page is in use, as MGLRU has it. The way from a folio to its entry is long, and the entries
//! beside that one are near: a look at them finds more pages in use for little.
//!
//! A page that is found so has one use more in its folio. The policy keeps it when its turn comes, and reclaim does not walk to it.

use crate::engine::Engine;
use crate::host::{Entry, EntryKind, Frame, Host, PageTable};
use crate::stats::Counter;
use core::ops::Range;

/// The number of entries that are looked at, those of one aligned block.
const AROUND: u64 = 64;

impl<H: Host> Engine<H> {
    /// Looks at the entries around the one of `page`, which belongs to a leaf table, if the order of reclaim has it so. `load` returns
    /// an entry of the table, and `age` clears its accessed bit and returns whether it was set. The caller is in a section.
    pub(crate) fn look_around(&self, page: u64, load: impl Fn(u64) -> Entry, age: impl Fn(u64) -> bool) {
        if !self.reclaim.looks_around {
            return;
        }
        let mut found = 0;
        for near in block::<H>(page).filter(|near| *near != page) {
            let entry = load(near);
            if let EntryKind::Page(frame) = entry.kind()
                && frame != self.zero_frame()
                && entry.has(Entry::ACCESSED)
                && age(near)
            {
                // The entry may map another page by now, and the frame may have one. Only the order of reclaim depends on this.
                self.folio(frame).add_use();
                found += 1;
            }
        }
        self.counters().add(Counter::FoundAround, found);
    }

    /// Returns whether a look around has found the page of `frame` in use since its queue offered it: its accessed bit is cleared.
    pub(crate) fn was_found_around(&self, frame: Frame) -> bool {
        self.reclaim.looks_around && self.folio(frame).uses().is_some_and(|uses| uses > 0)
    }
}

/// Returns the pages whose entries are looked at: all have the leaf table of `page`.
fn block<H: Host>(page: u64) -> Range<u64> {
    let pages = AROUND.min(<H::Table as PageTable>::LEAF_PAGES);
    let first = page - page % pages;
    first..first + pages
}
