//! What truncation asks of a space that maps the file.

use super::Space;
use super::page_work::{Announced, Leaves, Refused};
use super::range_work::Removed;
use crate::address::{PageNumber, PageRange};
use crate::design::{Attempt, LockingDesign, Purpose};
use crate::host::{Entry, Host, PageTable};
use crate::page_cache::Maps;
use crate::vma::Vma;
use crate::vma::tree::Ranged;

impl<H: Host, D: LockingDesign> Maps for Space<H, D> {
    fn drop_pages_of(&self, file: u64, first: u64, first_copy: u64) {
        let moves = self.map.lock_by(&*self.engine).moves;
        self.drop_mapped_pages_of(file, (first, first_copy), |_| true);
        // Range work that had published a hole over such a page before we looked has swept it when it lets go. What has
        // moved one meanwhile, perhaps from where we had not been to where we had, makes us look again, with all of it taken.
        if let Ok((taken, lock)) = self.map.take(self.whole(), &*self.engine) {
            let has_moved = lock.moves != moves;
            drop(lock);
            if has_moved {
                // Nobody is at work on a mapping that is busy all the same: it has no pages.
                self.drop_mapped_pages_of(file, (first, first_copy), |vma| !vma.is_busy());
            }
            drop(taken);
        }
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    fn drop_mapped_pages_of(
        &self,
        file: u64,
        (first, first_copy): (u64, u64),
        wanted: impl Fn(&Vma<H, D>) -> bool,
    ) {
        let mut from = PageNumber::new(0);
        loop {
            // The next mapping of the file that shows something behind `first`, by value: it may be gone when we come
            // to its pages, which look their mapping up themselves.
            let section = self.engine.enter();
            let next = self.tree.view(&section).from(from).find_map(|vma| {
                let range = vma.range();
                let (mapped, page) = vma.mapping().file_page(range.start())?;
                let skip = first.saturating_sub(page);
                let start = range.start().checked_add(skip)?;
                (mapped.id() == file && wanted(vma)).then(|| PageRange::new(start, range.end())).flatten()
            });
            drop(section);
            let Some(range) = next else { break };
            from = range.end();
            let mut removed = Removed::new(self);
            let mut rest = Some(range);
            while let Some(part) = rest {
                let section = self.engine.enter();
                let page = self.table.next_leaf(&section, part);
                drop(section);
                let Some(page) = page else { break };
                let end = page.align_down(H::Table::LEAF_PAGES).checked_add(H::Table::LEAF_PAGES);
                let end = end.unwrap_or(part.end()).min(part.end());
                rest = PageRange::new(end, part.end());
                for page in PageRange::new(page, end).into_iter().flat_map(PageRange::iter) {
                    if !self.is_used(page) {
                        continue;
                    }
                    let old = self.drop_page(page, file, first, first_copy);
                    removed.add(page, old);
                }
            }
        }
    }

    /// Whether the entry of `page` maps something or is at work. The caller has detached the pages and passed a fence:
    /// a fault that sets its bit later finds nothing to map. An empty entry is left alone, so that fork may fill it.
    fn is_used(&self, page: PageNumber) -> bool {
        let section = self.engine.enter();
        let leaf = self.table.leaf(&section, page);
        leaf.map(|leaf| self.table.load(leaf, page)).is_some_and(|entry| entry != Entry::EMPTY)
    }

    /// Clears the entry of `page` if it shows the file from `first` on, or a copy of a page from `first_copy` on.
    fn drop_page(&self, page: PageNumber, file: u64, first: u64, first_copy: u64) -> Entry {
        let mut attempt = Attempt::first(Purpose::Rmap);
        let worked = self.page_work(
            page,
            &mut attempt,
            Leaves::Existing,
            false,
            |work: Announced<'_, H, D>| {
                let shows = work.vma.mapping().file_page(page).filter(|(mapped, _)| mapped.id() == file);
                let (Some((_, shown)), Some(frame)) = (shows, work.entry.frame()) else {
                    return Entry::EMPTY;
                };
                let is_copy = self.engine.folio(frame).owner() != file;
                if shown < if is_copy { first_copy } else { first } {
                    return Entry::EMPTY;
                }
                work.install(Entry::EMPTY).unwrap_or(Entry::EMPTY)
            },
            |_, _| false,
        );
        match worked {
            Ok(worked) => worked.result,
            Err(Refused::Hole | Refused::NoTable | Refused::OutOfMemory) => Entry::EMPTY,
        }
    }
}
