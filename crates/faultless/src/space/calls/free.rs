//! madvise(MADV_FREE): pages that may be dropped when memory is short, until they are stored to.
//!
//! ```text
//!  FREE     under the bit: LAZY in the folio's word; the entry loses the write right      then one invalidation
//!  a store  faults; under the bit: LAZY goes, the entry gets the write right              the page is kept from now on
//!  reclaim  under the bit: is LAZY still there?  the entry becomes GONE                   then one invalidation; the frame is free
//! ```
//! So either reclaim comes first, and the store finds a page of zeros, or the store comes first, and reclaim finds no mark.

use crate::address::{PageNumber, PageRange};
use crate::design::{Attempt, LockingDesign, Purpose};
use crate::engine::RemovedBatch;
use crate::host::{Entry, EntryKind, Host, PageTable};
use crate::space::Space;
use crate::space::calls::advise::{Advice, AdviseError, refuses};
use crate::space::fault::page_work::{Announced, Leaves};

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Takes [`Advice::Free`] on `range`. The pages are marked one at a time: pages may come and go meanwhile.
    pub(in crate::space) fn free_lazily(&self, range: PageRange) -> Result<(), AdviseError> {
        let asked = self.ask(range, Advice::Free);
        let (Ok(end) | Err((_, end))) = asked;
        let inside = PageRange::new(range.start(), end).and_then(|part| part.intersection(self.whole()));
        if let Some(inside) = inside {
            self.engine.start_reclaim();
            let mut removed = RemovedBatch::open(&self.engine);
            self.each_leaf_part(inside, |part| {
                for page in part.iter().filter(|page| self.holds_own_page(*page)) {
                    self.free_page(page, &mut removed);
                }
                // Another call may have emptied an entry here, and not invalidated it yet. Its page is gone for the caller.
                if self.engine.has_other_stale() && !mutant!("freeing_ignores_batches") {
                    removed.touch_all(part);
                }
                removed.end_part(&self.table);
            });
            removed.finish();
        }
        asked.map(drop).map_err(|(error, _)| error)
    }

    /// Returns whether `page` seems to hold a page that MADV_FREE has an effect on. A leaf table that other spaces share is left
    /// alone, as are pages that they have.
    fn holds_own_page(&self, page: PageNumber) -> bool {
        let section = self.engine.enter();
        let leaf = self.table.leaf(&section, page).filter(|leaf| !self.table.is_shared(*leaf));
        leaf.is_some_and(|leaf| match self.table.load(leaf, page).kind() {
            EntryKind::Page(frame) => self.is_own(frame),
            EntryKind::Swapped(..) => true,
            EntryKind::Empty
            | EntryKind::Guard
            | EntryKind::Foreign(_)
            | EntryKind::Gone(_)
            | EntryKind::Kept(_) => false,
        })
    }

    fn free_page(&self, page: PageNumber, removed: &mut RemovedBatch<'_, H>) {
        let mut attempt = Attempt::first(Purpose::Rmap);
        let mark = |work: Announced<'_, H, D>| {
            if refuses(work.vma.mapping(), Advice::Free).is_some() {
                return (Entry::EMPTY, None);
            }
            match work.entry.kind() {
                // A device may be writing into a page that is pinned.
                EntryKind::Page(frame)
                    if self.is_own(frame) && !self.engine.folio(frame).is_pinned_for_io() =>
                {
                    let folio = self.engine.folio(frame);
                    // Its bytes are not needed any more.
                    self.engine.take_out(frame);
                    folio.set_lazy();
                    let weaker = work.entry.without(Entry::WRITE | Entry::DIRTY);
                    // Nothing new is mapped, so a host needs no memory. If it fails all the same, the write right stays, and so
                    // the mark must not.
                    match work.install(weaker) {
                        Ok(_) => (Entry::EMPTY, Some(frame)),
                        Err(_) => {
                            folio.clear_lazy();
                            (Entry::EMPTY, None)
                        }
                    }
                }
                EntryKind::Swapped(..) => (work.install(Entry::EMPTY).unwrap_or(Entry::EMPTY), None),
                EntryKind::Page(_)
                | EntryKind::Empty
                | EntryKind::Guard
                | EntryKind::Foreign(_)
                | EntryKind::Gone(_)
                | EntryKind::Kept(_) => (Entry::EMPTY, None),
            }
        };
        let worked = self.page_work(page, &mut attempt, Leaves::Existing, false, mark, |_, _| false);
        let Ok(worked) = worked else { return };
        let (old, marked) = worked.result;
        removed.add(&self.table, page, old);
        if let Some(frame) = marked {
            if !mutant!("freed_without_invalidate") {
                removed.touch(page);
            }
            // A page that came before the engine reclaimed is in no queue.
            self.engine.arrived_outside(frame);
        }
    }
}
