//! The work of a space in the search for pages without a home (`reclaim/homes.rs`).

use super::Space;
use crate::address::{PageNumber, PageRange};
use crate::design::{Attempt, LockingDesign, Purpose};
use crate::engine::Tally;
use crate::host::{EntryKind, Frame, Host, PageTable};
use crate::space::calls::resident::FEW;
use crate::space::fault::shared_table::LeafOf;
use crate::sync::{Section, fence_after_rmw};

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Gives the pages that have none a home, in a part of a leaf table at `start` or behind it. Returns the page to go on from, or `None`
    /// after the last table. It only tries: pages at which other work is under way are left.
    pub(in crate::space) fn give_homes_from(
        &self,
        start: PageNumber,
        tally: &mut Tally,
    ) -> Option<PageNumber> {
        let rest = PageRange::new(start, self.whole().end())?;
        let section = self.engine.enter();
        let start = self.table.next_leaf(&section, rest)?;
        let few = FEW.min(H::Table::LEAF_PAGES);
        let end = PageNumber::new(start.align_down(few).get() + few).min(rest.end());
        if let Some(leaf) = self.table.leaf(&section, start) {
            for page in (start.get()..end.get()).map(PageNumber::new) {
                tally.looks += 1;
                if let EntryKind::Page(frame) = self.table.load(leaf, page).kind()
                    && self.engine.folio(frame).lacks_home()
                    && self.give_home(&section, leaf, page, frame)
                {
                    tally.homes += 1;
                }
            }
        }
        Some(end)
    }

    /// Gives the page of `frame` a home at the entry of `page`, if the entry maps it and is its only one. Returns whether it did.
    fn give_home<'s>(
        &'s self,
        section: &'s Section<'_>,
        leaf: LeafOf<'s, H>,
        page: PageNumber,
        frame: Frame,
    ) -> bool {
        if self.table.is_shared(leaf) {
            let record = self.table.record(leaf);
            return self.engine.give_home_in_shared(record, page.get() - record.first(), frame);
        }
        // As reclaim comes to an entry (`space/reclaim.rs`).
        let attempt = Attempt::first(Purpose::Rmap);
        let Ok(_inside) = D::inside(&self.lock, &self.engine, self.tree.view(section), page, attempt) else {
            return false;
        };
        let seen = self.table.load(leaf, page);
        let is_there = seen.kind() == EntryKind::Page(frame) && !seen.is_announced();
        if mutant!("home_given_unannounced") {
            return is_there && self.engine.folio(frame).give_home(self.table.home(leaf, page));
        }
        if !is_there || !self.table.try_announce(leaf, page, seen) {
            return false;
        }
        // Partner: the fence after publishing in range work, as in page work.
        fence_after_rmw();
        let vma = self.tree.view(section).find(page);
        // The bit keeps the mapping of this entry.
        let is_given = vma.is_some_and(|vma| self.table.hangs(leaf) && !vma.is_busy())
            && self.engine.folio(frame).give_home(self.table.home(leaf, page));
        self.table.let_go(leaf, page);
        is_given
    }
}
