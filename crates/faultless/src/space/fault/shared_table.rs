//! Leaf tables that spaces have shared since a fork (docs/fork.md). No entry of a shared table is written for one space. A space that
//! has to write one gets a table of its own first: page work before it announces, range work before its sweep changes something.

use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::host::{Entry, FrameSource, Host, PageTable};
use crate::space::Space;
use crate::space::change::range_work::RangeReservation;
use crate::stats::Counter;
use crate::sync::Section;
use crate::tables::{PendingLeave, Unshared};

/// The distance, in entries, at which folios' words are fetched ahead of the entry being copied.
const AHEAD: u64 = 8;

pub(in crate::space) type LeafOf<'s, H> = <<H as Host>::Table as PageTable>::Leaf<'s>;

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Tries once to replace `leaf`, a shared table found in `section`, by a table of this space's own. `becomes`
    /// returns the entry that the caller makes of an entry. If that holds no page, the entry is not counted.
    #[cold]
    #[inline(never)]
    pub(in crate::space) fn try_unshare<'s>(
        &'s self,
        section: &Section<'_>,
        leaf: LeafOf<'s, H>,
        page: PageNumber,
        mut becomes: impl FnMut(PageNumber, Entry) -> Entry,
    ) -> Unshared {
        let unshared = self.table.unshare(leaf, page, |page, entry| {
            let ahead = PageNumber::new(page.get() + AHEAD);
            if ahead.align_down(H::Table::LEAF_PAGES) == page.align_down(H::Table::LEAF_PAGES)
                && let Some(frame) = self.table.load(leaf, ahead).mapped_frame()
            {
                self.engine.host().frames().prefetch(frame);
            }
            self.copied(entry, becomes(page, entry))
        });
        if let Unshared::Left(_) = unshared {
            section.counters().add(Counter::TablesCopied, 1);
        }
        unshared
    }

    /// Returns the copied table's entry for `entry`. If the page stays mapped, its change is left to the caller's own sweep.
    fn copied(&self, entry: Entry, new: Entry) -> Entry {
        if !entry.has_page_of(new) {
            return new;
        }
        self.engine.count_copied(entry);
        entry
    }

    /// Ends the leaving that [`Space::try_unshare`] has begun. Called in no section. No other space can have the table
    /// alone until no processor of this space uses it.
    #[cold]
    #[inline(never)]
    pub(in crate::space) fn leave(&self, page: PageNumber, left: PendingLeave) {
        // CVE-2021-4002: the mutant leaves a shared table before old translations are gone.
        if !mutant!("unshare_without_invalidate") {
            self.engine.invalidate(&self.table, self.leaf_span(page));
        }
        drop(left);
        self.engine.shared_tables.uncount();
    }

    /// Takes the leaf table over `page` out of its family, before it is retired. It is this space's own, and stays while this is
    /// called. Called in no section.
    pub(in crate::space) fn leave_family(&self, page: PageNumber) {
        let mut look = 0;
        loop {
            let section = self.engine.enter();
            let leaf = self.table.leaf(&section, page);
            // The mutant: a search finds tables that are freed.
            let left = |leaf| mutant!("relative_stays") || self.table.record(leaf).try_leave_family();
            if leaf.is_none_or(left) {
                return;
            }
            drop(section);
            self.engine.pause_on_bit(look);
            look += 1;
        }
    }

    /// Returns whether the table over `page`, in a range taken, is shared.
    pub(in crate::space) fn has_shared_table(
        &self,
        taken: &RangeReservation<'_, H>,
        page: PageNumber,
    ) -> bool {
        self.table.leaf(taken, page).is_some_and(|leaf| self.table.is_shared(leaf))
    }

    /// Gives this space tables of its own all over `range`, where something is locked now. Called in no section.
    ///
    /// A page reclaimed from a shared table is taken from all spaces that share it, without a look at their mappings (rule H6).
    /// A later fork finds the lock, and shares no table there.
    pub(in crate::space) fn own_locked_tables(&self, range: PageRange) {
        if self.table.sharing().is_none() || mutant!("locked_table_shared") {
            return;
        }
        // A call may name pages beyond the last one.
        let Some(range) = range.intersection(self.whole()) else { return };
        self.each_leaf_part(range, |part| {
            self.own_table(part, |_, entry| entry, |_, _| true);
        });
    }

    /// Makes sure that the table over `part`, which one leaf table covers, is this space's own. Called in no section. `becomes`
    /// is that of [`Space::try_unshare`].
    ///
    /// Returns false if the table is shared and stays so, since the caller `changes` no entry in `part`.
    pub(in crate::space) fn own_table(
        &self,
        part: PageRange,
        mut becomes: impl FnMut(PageNumber, Entry) -> Entry,
        changes: impl Fn(PageNumber, Entry) -> bool,
    ) -> bool {
        let mut look = 0;
        loop {
            let section = self.engine.enter();
            let leaf = self.table.leaf(&section, part.start()).filter(|leaf| self.table.is_shared(*leaf));
            let Some(leaf) = leaf else { return true };
            let entry = |page| self.table.load(leaf, page).without(Entry::ANNOUNCED);
            if !part.iter().any(|page| changes(page, entry(page))) {
                return false;
            }
            let unshared = self.try_unshare(&section, leaf, part.start(), &mut becomes);
            drop(section);
            match unshared {
                Unshared::Own => {}
                Unshared::Busy => {
                    self.engine.pause_on_bit(look);
                    look += 1;
                }
                Unshared::Left(left) => self.leave(part.start(), left),
            }
        }
    }
}
