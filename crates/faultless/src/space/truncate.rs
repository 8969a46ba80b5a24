//! The work that truncation, writeback and reclaim ask of a space that maps the file.

use super::Space;
use super::fault::page_work::{Announced, Leaves, Refused};
use crate::address::{PageNumber, PageRange};
use crate::design::{Attempt, LockingDesign, Purpose};
use crate::engine::{RemovedBatch, StaleBatch};
use crate::host::{Entry, EntryKind, Host, PageTable};
use crate::page_cache::{MappedBy, Written};
use crate::reclaim::Taking;
use crate::stats::Counter;
use crate::tables::Home;
use crate::vma::Vma;
use crate::vma::tree::Ranged;
use core::ops::Range;

/// The number of claims that writeback looks at while it has the tree lock once.
const CLAIMS: usize = 4;

impl<H: Host, D: LockingDesign> MappedBy<H> for Space<H, D> {
    fn drop_pages_of(
        &self,
        file: Home,
        gone: [Range<u64>; 2],
        shown: &dyn Fn() -> Option<PageRange>,
        removed: &mut RemovedBatch<'_, H>,
    ) {
        let first = mutant!("hull_before_moves").then(shown);
        // This is read before the addresses: a page that has moved already is within them, and a later move is counted.
        let moves = self.map.lock_by(&*self.engine).moves;
        let Some(early) = first.unwrap_or_else(shown) else { return };
        self.drop_mapped_pages_of(file, &gone, early, removed, |_| true);
        // Range work that published a hole over such a page before this look still has to sweep it. Its claim is older than
        // this wait, so the wait covers it. Later claims come after our change. Neither side waits for the other.
        let map = match mutant!("truncation_ignores_claims") {
            false => self.map.wait_for_earlier(&*self.engine),
            true => self.map.lock_by(&*self.engine),
        };
        let has_moved = map.moves != moves;
        drop(map);
        if has_moved {
            // A page may have moved from a part not yet visited to one already visited. This visits again with all of the space
            // taken, so that nothing moves. No thread is at work on a mapping that is still busy: it has no pages.
            let mut call = self.change_nothing();
            drop(call.take(self.whole()));
            if let Some(shown) = shown() {
                self.drop_mapped_pages_of(file, &gone, shown, removed, |vma| !vma.is_busy());
            }
        }
    }

    fn protect_pages_of(
        &self,
        file: Home,
        written: &Written<'_>,
        shown: &dyn Fn() -> Option<PageRange>,
        stale: &mut StaleBatch<'_, H>,
    ) {
        let Some(shown) = shown() else { return };
        self.each_showing(
            file,
            (&written.pages, shown),
            |_| true,
            |range| {
                self.protect_entries(range, written, stale);
                stale.end_part(&self.table);
            },
        );
        // A page that moves meanwhile loses the right by the move. Claims are not waited for, since a thread that waits
        // for us may hold locks that they need. Range work that has published a hole over such a page still has its
        // entry, and a processor may use a removed translation until that call invalidates. The call claims its range
        // until then. A later claim finds the entries without the right.
        if !mutant!("writeback_ignores_claims") {
            self.protect_claimed(shown, written, stale);
        }
    }

    fn give_up_page_of(
        &self,
        file: Home,
        page: u64,
        shown: &dyn Fn() -> Option<PageRange>,
        taking: &mut Taking<'_, '_, H>,
    ) {
        let Some(shown) = shown() else { return };
        self.each_showing(
            file,
            (&(page..page + 1), shown),
            |_| true,
            |range| {
                if taking.goes_on() {
                    taking.take(|victim, stale| {
                        let section = self.engine.enter();
                        let mut victim = [victim];
                        self.give_up(&section, range.start(), &mut victim, stale);
                        victim[0].outcome()
                    });
                }
            },
        );
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    fn drop_mapped_pages_of(
        &self,
        file: Home,
        [pages, copies]: &[Range<u64>; 2],
        shown: PageRange,
        removed: &mut RemovedBatch<'_, H>,
        wanted: impl Fn(&Vma<H, D>) -> bool,
    ) {
        self.each_showing(file, (pages, shown), wanted, |range| {
            self.each_leaf_part(range, |part| {
                for page in part.iter() {
                    if self.is_used(page) {
                        let old = self.drop_page(page, file, pages, copies);
                        removed.add(&self.table, page, old);
                    }
                }
            });
            removed.end_part(&self.table);
        });
    }

    /// Takes the write right from entries in the ranges that are claimed now. Looks at each claim once, and has all of it
    /// invalidated. Outside of `shown` no entry of the file has the right, and no processor uses one that was there.
    #[inline(never)]
    fn protect_claimed(&self, shown: PageRange, written: &Written<'_>, stale: &mut StaleBatch<'_, H>) {
        let (mut next, mut end) = (Some(0), None);
        while let Some(from) = next {
            let mut few = [None; CLAIMS];
            let lock = self.map.lock_by(&*self.engine);
            let end = *end.get_or_insert(lock.claims().next_ticket());
            next = lock.claims().with_tickets(from..end, &mut few);
            drop(lock);
            // Many calls may wait for one range. It is visited once for all of them.
            for i in 0..CLAIMS {
                let range = few[i].take().and_then(|range: PageRange| range.intersection(shown));
                match few[..i]
                    .iter_mut()
                    .flatten()
                    .find(|hull| range.is_some_and(|range| hull.overlaps(range)))
                {
                    Some(hull) => *hull = range.map_or(*hull, |range| hull.hull(range)),
                    None => few[i] = range,
                }
            }
            for &range in few.iter().flatten() {
                // A processor may use translations removed from the range, until the call that removed them invalidates.
                stale.touch_all(range);
                self.protect_entries(range, written, stale);
            }
        }
        stale.end_part(&self.table);
    }

    /// Calls `f` for the range of every mapping within `within` that shows one of `pages` of the file. The range is a value:
    /// the mapping may be gone when `f` comes to its pages.
    fn each_showing(
        &self,
        file: Home,
        (pages, within): (&Range<u64>, PageRange),
        wanted: impl Fn(&Vma<H, D>) -> bool,
        mut f: impl FnMut(PageRange),
    ) {
        let mut from = within.start();
        let mut looks = 0;
        loop {
            let section = self.engine.enter();
            let is_within = |vma: &&Vma<H, D>| vma.range().start() < within.end();
            let next = self.tree.view(&section).from(from).take_while(is_within).find_map(|vma| {
                looks += 1;
                let range = vma.range();
                let (mapped, page) = vma.mapping().file_page(range.start())?;
                let start = range.start().checked_add(pages.start.saturating_sub(page))?;
                let end = range.start().get().saturating_add(pages.end.saturating_sub(page));
                let end = range.end().min(PageNumber::new(end));
                let shown =
                    (mapped.home() == file && wanted(vma)).then(|| PageRange::new(start, end)).flatten();
                shown.map(|shown| (shown, range.end()))
            });
            drop(section);
            let Some((shown, end)) = next else { break };
            from = end;
            f(shown);
        }
        self.engine.counters().add(Counter::RmapLooks, looks);
    }

    /// Calls `f` for the parts of `range` that have a leaf table.
    pub(super) fn each_leaf_part(&self, range: PageRange, mut f: impl FnMut(PageRange)) {
        let mut rest = Some(range);
        while let Some(part) = rest {
            let section = self.engine.enter();
            let page = self.table.next_leaf(&section, part);
            drop(section);
            let Some(page) = page else { break };
            let end = page.align_down(H::Table::LEAF_PAGES).checked_add(H::Table::LEAF_PAGES);
            let end = end.unwrap_or(part.end()).min(part.end());
            rest = PageRange::new(end, part.end());
            PageRange::new(page, end).into_iter().for_each(&mut f);
        }
    }

    /// Takes the write right, and the dirty bit with it, from the entries of `range` that map a page that is `written`.
    /// The present mappings do not matter: fewer rights are always correct, and a store that was allowed faults.
    fn protect_entries(&self, range: PageRange, written: &Written<'_>, stale: &mut StaleBatch<'_, H>) {
        self.each_leaf_part(range, |part| {
            let (mut rest, mut look) = (Some(part), 0);
            while let Some(part) = rest {
                let at = self.protect_up_to_a_bit(part, written, stale);
                rest = at.and_then(|at| PageRange::new(at, part.end()));
                if rest.is_some() {
                    self.engine.pause_on_bit(look);
                    look += 1;
                }
            }
        });
    }

    /// Does the work of [`Space::protect_entries`] up to the first entry with an announcement, and returns its page. That
    /// thread may be about to give the right.
    fn protect_up_to_a_bit(
        &self,
        part: PageRange,
        written: &Written<'_>,
        stale: &mut StaleBatch<'_, H>,
    ) -> Option<PageNumber> {
        let section = self.engine.enter();
        // If the table was unhooked, it was swept, so nothing is there.
        let leaf = self.table.leaf(&section, part.start())?;
        for page in part.iter() {
            let mut entry = self.table.load(leaf, page);
            loop {
                if entry.is_announced() {
                    return Some(page);
                }
                let clean = entry.without(Entry::WRITE | Entry::DIRTY);
                match entry.kind() {
                    EntryKind::Page(frame) if clean != entry && (written.has)(frame) => {}
                    EntryKind::Kept(frame) | EntryKind::Gone(frame) if (written.has)(frame) => {
                        // An old translation may still give the right.
                        stale.touch(page);
                        if clean == entry {
                            break;
                        }
                    }
                    EntryKind::Page(_) | EntryKind::Kept(_) | EntryKind::Gone(_) => break,
                    // Neither a page in a slot nor a foreign frame belongs to the file.
                    EntryKind::Swapped(..) | EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Guard => {
                        break;
                    }
                }
                match self.table.exchange(leaf, page, entry, clean) {
                    Ok(()) => {
                        stale.touch(page);
                        break;
                    }
                    Err(now) => entry = now,
                }
            }
        }
        None
    }

    /// Returns whether the entry of `page` maps something or is at work. The caller has detached the pages and passed a fence:
    /// a fault that sets its bit later finds nothing to map. An empty entry is left alone, so that fork may fill it.
    fn is_used(&self, page: PageNumber) -> bool {
        let section = self.engine.enter();
        let leaf = self.table.leaf(&section, page);
        leaf.map(|leaf| self.table.load(leaf, page)).is_some_and(|entry| entry != Entry::EMPTY)
    }

    /// Clears the entry of `page` if it shows one of `pages` of the file, or a copy of one of `copies`. Returns the cleared
    /// entry, or else an empty one.
    fn drop_page(&self, page: PageNumber, file: Home, pages: &Range<u64>, copies: &Range<u64>) -> Entry {
        let mut attempt = Attempt::first(Purpose::Rmap);
        let worked = self.page_work(
            page,
            &mut attempt,
            Leaves::Existing,
            false,
            |work: Announced<'_, H, D>| {
                let shows = work.vma.mapping().file_page(page).filter(|(mapped, _)| mapped.home() == file);
                let Some((_, shown)) = shows else { return Entry::EMPTY };
                let goes = match work.entry.kind() {
                    EntryKind::Page(frame) | EntryKind::Kept(frame) => {
                        let is_copy = !self.engine.folio(frame).is_page_of(file);
                        if is_copy { copies } else { pages }.contains(&shown)
                    }
                    EntryKind::Swapped(..) => copies.contains(&shown),
                    // The frame may belong to another page by now. Nothing is lost: the file is asked again.
                    EntryKind::Gone(_) => {
                        (pages.contains(&shown) || copies.contains(&shown))
                            && !mutant!("truncation_passes_gone")
                    }
                    EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Guard => false,
                };
                if !goes {
                    return Entry::EMPTY;
                }
                work.leave_home();
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
