//! madvise(MADV_COLD) and madvise(MADV_PAGEOUT): advice about the pages that reclaim takes first.
//!
//! As on Linux, both pass over pages that several entries map, and leaf tables that several spaces share: another process may be
//! using them.

use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::host::{Frame, Host, PageTable};
use crate::reclaim::BATCH;
use crate::space::Space;
use crate::space::calls::advise::{Advice, AdviseError};

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Takes [`Advice::Cold`] or [`Advice::PageOut`] on `range`. Holds nothing: pages may come and go meanwhile.
    pub(in crate::space) fn advise_reclaim(
        &self,
        range: PageRange,
        advice: Advice,
    ) -> Result<(), AdviseError> {
        let asked = self.ask(range, advice);
        let (Ok(end) | Err((_, end))) = asked;
        let inside = PageRange::new(range.start(), end).and_then(|part| part.intersection(self.whole()));
        if let Some(inside) = inside {
            self.each_leaf_part(inside, |part| self.reclaim_first(part, advice == Advice::PageOut));
        }
        asked.map(drop).map_err(|(error, _)| error)
    }

    /// Forgets the uses of the pages of `part`, which one leaf table covers. With `now`, reclaims them.
    fn reclaim_first(&self, part: PageRange, now: bool) {
        let mut rest = Some(part);
        while let Some(part) = rest {
            let mut frames = [self.engine.zero_frame(); BATCH];
            let (count, next) = self.make_cold(part, &mut frames);
            if now {
                self.engine.reclaim_pages(self.group(), &mut frames[..count]);
            }
            rest = PageRange::new(next, part.end());
        }
    }

    /// Forgets the uses of pages in `part` that only this space maps, and puts their frames into `frames` until there is no more room:
    /// anonymous pages, and pages of files without a store. Returns the number of frames, and the first page that was not visited.
    fn make_cold(&self, part: PageRange, frames: &mut [Frame]) -> (usize, PageNumber) {
        let section = self.engine.enter();
        let leaf = self.table.leaf(&section, part.start()).filter(|leaf| !self.table.is_shared(*leaf));
        let Some(leaf) = leaf else { return (0, part.end()) };
        let mut count = 0;
        for page in part.iter() {
            if count == frames.len() {
                return (count, page);
            }
            // A frame that is free by now, or another page's, is recognized by reclaim.
            let mapped = self.table.load(leaf, page).mapped_frame();
            let own = mapped
                .filter(|frame| self.is_own(*frame) || self.engine.folio(*frame).is_mapped_once_in_memory());
            if let Some(frame) = own {
                self.table.age(leaf, page);
                self.engine.folio(frame).forget_uses();
                let _ = self.engine.folio(frame).take_referenced();
                frames[count] = frame;
                count += 1;
            }
        }
        (count, part.end())
    }
}
