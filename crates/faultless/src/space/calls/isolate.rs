//! Leaving a family: reclaim searches a leaf table for pages of its relatives. A table that shares no page with them leaves, and is not
//! searched any more.
//!
//! ```text
//!   ask the design, take the range: no fork of this space, and no move into it, gives the table a page that a relative has
//!   each entry, under its bit: does another space have the page?      then the table stays
//!   the record leaves the family's list, and forgets the family
//!   grace                          a section that has read the family in the record may write it into a home until then
//!   each page whose home is not its entry gets that home
//!   grace                          a section that has read such a home uses the family until then
//!   the membership ends
//! ```

use crate::address::{PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::frame::{Folio, Reference};
use crate::host::{Entry, EntryKind, Host, PageTable, Slot};
use crate::space::change::range_work::RangeReservation;
use crate::space::fault::shared_table::LeafOf;
use crate::space::{AddressSpace, Space};
use crate::swap::Cached;
use crate::tables::FormerMember;

/// The number of leaf tables that leave their families with the same two grace periods.
const FEW: usize = 16;

/// The work that a call of [`AddressSpace::isolate_cowed`] has done, in leaf tables and pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IsolateCost {
    /// The number of leaf tables that have left their families.
    pub left: u64,
    /// The number of leaf tables that stay in their families, since another space has one of their pages too, or the whole table.
    pub stayed: u64,
    /// The number of pages, in the tables that have left, whose home was set to their own entry.
    pub remarked: u64,
}

/// The entries that have a page, as the thread sees it that has announced one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Owners {
    /// This entry alone has the page. No other entry gets it while this one is announced.
    One,
    /// Others have it too.
    Others,
    /// A transfer of the page's slot is under way, and its use of the slot cannot be told from that of an entry.
    InTransfer,
    /// Another thread is at work on the page, for a few steps: look again.
    Busy,
}

/// The outcome for one leaf table.
enum Look {
    /// It has no relatives.
    Alone,
    /// Another space has one of its pages, or had it at some moment of the look.
    Shared,
    /// No other space has one of its pages.
    Own,
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Takes the leaf tables under `length` bytes at `address` out of their families (docs/home.md), if no other space has one of
    /// their pages. Returns the numbers of tables and pages.
    ///
    /// Reclaim of a relative's page then does not search these tables any more. Call it for a child that has stored to all pages that
    /// it got from fork, or after [`AddressSpace::unshare`]. Linux has no such call. A proposal names it ISOLATE_COWED.
    ///
    /// `address` is a multiple of the page size. `length` is rounded up to whole pages; 0 is no error. The call looks at whole leaf
    /// tables, also beyond the range.
    ///
    /// Waits as [`AddressSpace::unmap`], and for two grace periods for up to 16 tables. Takes no lock for which another process waits.
    ///
    /// # Errors
    /// [`RangeError`]: nothing is done.
    pub fn isolate_cowed(&self, address: VirtAddr, length: u64) -> Result<IsolateCost, RangeError> {
        let mut cost = IsolateCost::default();
        let range = match PageRange::from_bytes(address, length) {
            Err(RangeError::ZeroLength { .. }) => return Ok(cost),
            range => range?,
        };
        let space = &*self.0;
        let Some(inside) = range.intersection(space.whole()) else { return Ok(cost) };
        let mut rest = Some(inside);
        while let Some(few) = rest.and_then(|part| space.next_few_leaves(part)) {
            space.isolate_tables(few, &mut cost);
            rest = PageRange::new(few.end(), inside.end());
        }
        Ok(cost)
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Returns the pages of the next few leaf tables of `range`.
    fn next_few_leaves(&self, range: PageRange) -> Option<PageRange> {
        let (mut few, mut rest) = (None, Some(range));
        for _ in 0..FEW {
            let section = self.engine.enter();
            let Some(page) = rest.and_then(|rest| self.table.next_leaf(&section, rest)) else { break };
            let span = self.leaf_span(page);
            few = Some(few.map_or(span, |few: PageRange| few.hull(span)));
            rest = PageRange::new(span.end(), range.end());
        }
        few
    }

    /// Takes the tables under `range` out of their families. [`Space::next_few_leaves`] has returned the range.
    fn isolate_tables(&self, range: PageRange, cost: &mut IsolateCost) {
        let mut call = self.change(Call::Discard, range);
        drop(call.take(range));
        let taken = call.taken.over(range);
        let mut left = [const { None::<(PageRange, FormerMember<'_>)> }; FEW];
        let mut places = left.iter_mut();
        self.each_table(taken, range, |part| match self.look_for_shared(taken, part) {
            Look::Alone => {}
            Look::Shared => cost.stayed += 1,
            Look::Own => {
                // A table may have been made since the range was chosen.
                let Some(place) = places.next() else { return };
                *place = self.leave_relatives(taken, part).map(|member| (part, member));
                cost.left += u64::from(place.is_some());
            }
        });
        drop(places);
        if left.iter().all(Option::is_none) {
            return;
        }
        self.engine.grace();
        for (part, _) in left.iter().flatten() {
            cost.remarked += self.come_home(taken, *part);
        }
        self.engine.grace();
        for (_, member) in left.into_iter().flatten() {
            // SAFETY: each page has its entry as home, and there were grace periods before and since.
            unsafe { member.end() };
        }
    }

    /// Looks at each entry of the table over `part`. Since the range is taken, no page that only this space has can become shared.
    fn look_for_shared(&self, taken: &RangeReservation<'_, H>, part: PageRange) -> Look {
        if self.has_shared_table(taken, part.start()) {
            let section = self.engine.enter();
            let leaf = self.table.leaf(&section, part.start());
            if leaf.is_none_or(|leaf| self.table.others(leaf) != 0) {
                return Look::Shared;
            }
            drop(section);
            self.own_table(part, |_, entry| entry, |_, _| true);
        }
        let Some(leaf) = self.table.leaf(taken, part.start()) else { return Look::Alone };
        if self.table.record(leaf).family().is_none() {
            return Look::Alone;
        }
        let is_own = |page: PageNumber| self.is_own_page(leaf, page) || mutant!("isolated_while_shared");
        if part.iter().all(is_own) { Look::Own } else { Look::Shared }
    }

    /// Returns whether no other space has the page at `page`. There may be none.
    fn is_own_page<'s>(&'s self, leaf: LeafOf<'s, H>, page: PageNumber) -> bool {
        let mut look = 0;
        loop {
            let Some(entry) = self.announce_page(leaf, page) else { return true };
            let owners = self.owners(entry);
            self.table.let_go(leaf, page);
            match owners {
                Owners::One => return true,
                // A device may hold a transfer up. The table stays where it is.
                Owners::Others | Owners::InTransfer => return false,
                Owners::Busy => {
                    self.engine.pause_on_bit(look);
                    look += 1;
                }
            }
        }
    }

    /// Returns who has the page of `entry`, which the caller has announced.
    pub(in crate::space) fn owners(&self, entry: Entry) -> Owners {
        match entry.kind() {
            EntryKind::Page(frame) | EntryKind::Kept(frame) => {
                let folio = self.engine.folio(frame);
                match folio.has_one_owner() {
                    Some(true) => Owners::One,
                    Some(false) => Owners::Others,
                    None => self.owners_in_slot(folio, (1, 0)),
                }
            }
            EntryKind::Swapped(slot, _) => self.owners_of_slot(slot),
            EntryKind::Empty | EntryKind::Guard | EntryKind::Foreign(_) | EntryKind::Gone(_) => Owners::One,
        }
    }

    /// Returns what [`Space::owners`] returns, for an entry that names `slot`.
    pub(in crate::space) fn owners_of_slot(&self, slot: Slot) -> Owners {
        match self.engine.pin_cached(slot) {
            Cached::Pinned(frame) => {
                let owners = self.owners_in_slot(self.engine.folio(frame), (0, 1));
                self.engine.put(frame, Reference::Pin);
                owners
            }
            Cached::Absent => match self.engine.is_alone_out_of_memory(slot) {
                Some(true) => Owners::One,
                Some(false) => Owners::Others,
                None => Owners::Busy,
            },
            Cached::Busy => Owners::Busy,
        }
    }

    /// Returns who has the page of `folio`, which has a slot: one entry, if there are no more than these numbers of mappings and of
    /// entries that name the slot. With the folio's lock, no fault moves a count from the slot to the folio.
    fn owners_in_slot(&self, folio: &Folio, (mappings, names): (u64, u64)) -> Owners {
        if !folio.try_lock() {
            return Owners::Busy;
        }
        let in_transfer = || folio.is_writeback() || !folio.is_uptodate();
        let was_in_transfer = in_transfer();
        // In this order: reclaim counts an entry in the slot before it drops the entry's mapping.
        let is_mapped_by_others = folio.mappings_before_slot() > mappings;
        let slot = Slot::new(folio.index()).filter(|_| folio.is_in_slot());
        let is_named = slot.is_some_and(|slot| self.engine.slot_count(slot) > names);
        let owners = match (is_mapped_by_others, is_named) {
            (true, _) => Owners::Others,
            (false, false) => Owners::One,
            (false, true) if was_in_transfer || in_transfer() => Owners::InTransfer,
            (false, true) => Owners::Others,
        };
        folio.unlock();
        owners
    }

    /// Takes the record of the table over `part` out of its family. `None` if it has none.
    fn leave_relatives<'s>(
        &'s self,
        taken: &'s RangeReservation<'_, H>,
        part: PageRange,
    ) -> Option<FormerMember<'s>> {
        let record = self.table.record(self.table.leaf(taken, part.start())?);
        let mut look = 0;
        while record.family().is_some() {
            if let Some(member) = record.try_isolate() {
                return Some(member);
            }
            self.engine.pause_on_bit(look);
            look += 1;
        }
        None
    }

    /// Sets the home of each page of the table over `part` to its entry. No other space has one of the pages. Returns the number of
    /// pages whose home was another.
    fn come_home(&self, taken: &RangeReservation<'_, H>, part: PageRange) -> u64 {
        let Some(leaf) = self.table.leaf(taken, part.start()) else { return 0 };
        let mut count = 0;
        for page in part.iter().filter(|_| !mutant!("isolated_home_stays")) {
            let home = self.table.home(leaf, page);
            let is_away = |entry: Entry| {
                let folio = entry.counted_frame().map(|frame| self.engine.folio(frame));
                folio.filter(|folio| folio.mapped_home().is_some_and(|there| there != home))
            };
            if is_away(self.table.load(leaf, page)).is_none() {
                continue;
            }
            let Some(entry) = self.announce_page(leaf, page) else { continue };
            if let Some(folio) = is_away(entry) {
                folio.set_home(home);
                count += 1;
            }
            self.table.let_go(leaf, page);
        }
        count
    }
}
