//! Moving pages to another place of the space: the work of mremap once it is decided which pages go where.
//!
//! ```text
//!   take both ranges
//!   target: BUSY over the old mappings, swept             fails: as before
//!   source: MOVING                                        faults on it wait from here on
//!   source: wait at each bit; leaf tables for the target  fails: MOVING is taken back, which needs no memory
//!   target: the new mapping, MOVING                       fails: the same
//!   source: a hole, or the mapping that stays, MOVING     fails: the same; the target becomes a hole, or stays MOVING
//!   each entry: out of the source, into the target        nothing fails from here on
//!   unhook the source's leaf tables, if it is a hole
//!   invalidate the source                                 before any thread can free a page that has moved (CVE-2018-18281)
//!   settle: end MOVING; then join neighbours, if there is memory for that
//!   release both ranges, and wake the threads that wait
//! ```
//! A processor may use a target's entry before the target is settled: it finds the page that it asked for. Page work may not:
//! it waits. So no thread frees or copies the page while a processor uses its old translation.

use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::frame::Reference;
use crate::host::{Entry, EntryKind, Host, OutOfMemory, PageTable};
use crate::space::Space;
use crate::space::calls::remap::RemapError;
use crate::space::change::publish::{Joins, Origin, Unpublished};
use crate::space::change::range_change::RangeChange;
use crate::space::change::range_work::{RangeReservation, TreeLock};
use crate::tables::Home;
use crate::vma::tree::Ranged;
use crate::vma::{AnonRecord, Backing, Mapping, MappingFlags, Vma, edit};

/// Pages of one mapping, and the place that they move to. The target is as long or longer.
#[derive(Clone, Copy, Debug)]
pub(in crate::space) struct Part {
    pub source: PageRange,
    pub target: PageRange,
    /// Keeps the source mapped, and empty (MREMAP_DONTUNMAP).
    pub keeps: bool,
}

impl Part {
    /// Returns the new place of `page`.
    fn to(&self, page: PageNumber) -> PageNumber {
        PageNumber::new(self.target.start().get() + (page.get() - self.source.start().get()))
    }

    /// Returns how many pages the target has besides those that move.
    fn more(&self) -> u64 {
        self.target.pages() - if self.keeps { 0 } else { self.source.pages() }
    }
}

/// Returns whether an entry moves along with its page.
fn moves_along(entry: Entry) -> bool {
    match entry.kind() {
        EntryKind::Page(_)
        | EntryKind::Foreign(_)
        | EntryKind::Guard
        | EntryKind::Gone(_)
        | EntryKind::Kept(_) => true,
        EntryKind::Swapped(..) => !mutant!("slot_stays_behind"),
        EntryKind::Empty => false,
    }
}

impl<H: Host, D: LockingDesign> RangeChange<'_, H, D> {
    /// Moves one part. The mappings at the target go first, and stay away if the rest fails. Otherwise, on failure, all is as
    /// before.
    pub fn move_part(&mut self, part: Part) -> Result<(), RemapError> {
        self.check_move(part)?;
        self.vacate(part.target)?;
        self.move_vacated(part)
    }

    /// Moves one part whose target has been vacated. The target becomes a hole if the part cannot come.
    pub fn move_vacated(&mut self, part: Part) -> Result<(), RemapError> {
        let (cuts, whole) = self.cuts(part);
        if let Err(error) = self.prepare_move(part) {
            self.give_up_move(Some((part.source, cuts)), part.target);
            return Err(error);
        }
        self.carry(part);
        self.end_move(part, cuts);
        self.share_record(part, whole);
        Ok(())
    }

    /// Checks that the limits leave room for the part at its target, before the mappings there go. (Linux checks when they are
    /// gone.) The check is repeated when the part is published there. It then fails only if other calls have mapped more
    /// meanwhile.
    #[inline(never)]
    fn check_move(&self, part: Part) -> Result<(), RemapError> {
        let lock = self.lock();
        let hole = RemapError::Hole { address: part.source.start().address() };
        let vma = self.space.tree.view_locked(&lock.writer).find(part.source.start()).ok_or(hole)?;
        match part.more() {
            0 => Ok(()),
            more => {
                let moved = Mapping { range: part.target, ..vma.glance() };
                Ok(self.space.check_moved(&lock, &moved, more)?)
            }
        }
    }

    /// Returns the ends at which the mapping is cut to move the part, and the range of the whole mapping. If the mapping stays,
    /// it joins again at these ends, and nowhere else (Linux cuts nothing then).
    #[inline(never)]
    fn cuts(&self, Part { source, .. }: Part) -> (Joins, PageRange) {
        let lock = self.lock();
        let vma = self.space.tree.view_locked(&lock.writer).find(source.start());
        let whole = vma.map_or(source, Ranged::range);
        let (below, above) = (whole.start() < source.start(), whole.end() > source.end());
        (Joins { below, above, inside: true, ..Joins::BOTH }, whole)
    }

    /// Gives the rest of the source's mapping the record of the target, if the two meet. On Linux the target joins its
    /// neighbours before anything leaves the source. So if the target has a record from its other side, the rest of the mapping
    /// gets it too.
    #[inline(never)]
    fn share_record(&self, part: Part, whole: PageRange) {
        let lock = self.lock();
        let view = self.space.tree.view_locked(&lock.writer);
        let Some(target) = view.find(part.target.start()) else { return };
        let id = target.record().and_then(AnonRecord::id).filter(|id| !id.is_inherited());
        let Some(id) = id.filter(|_| matches!(target.mapping().backing, Backing::Anonymous)) else { return };
        let (first, last) = (whole.start(), PageNumber::new(whole.end().get() - 1));
        if part.target.end() == first || part.target.start() == whole.end() {
            for left in [first, last].into_iter().filter(|page| !part.source.contains(*page)) {
                view.find(left).and_then(Vma::record).map(|record| record.begin(id));
            }
        }
    }

    /// Removes the mappings at the target. A fault there waits for the new mapping.
    pub fn vacate(&mut self, target: PageRange) -> Result<(), RemapError> {
        let lock = self.lock();
        match self.space.tree.view_locked(&lock.writer).from(target.start()).next() {
            Some(vma) if vma.range().overlaps(target) && !(vma.is_busy() && vma.range() == target) => {}
            _ => return Ok(()),
        }
        self.space.refuse_sealed(&lock, target)?;
        drop(self.publish_busy(lock, target)?);
        // This comes before a moved page is there: a processor may use such a page before the target is settled.
        self.sweep_away(target, None);
        Ok(())
    }

    /// Does all steps that can fail.
    fn prepare_move(&mut self, part: Part) -> Result<(), RemapError> {
        let (space, Part { source, target, keeps }) = (self.space, part);
        let lock = self.lock();
        let hole = RemapError::Hole { address: source.start().address() };
        let vma = space.tree.view_locked(&lock.writer).find(source.start()).ok_or(hole)?;
        let is_whole = vma.range() == source;
        let moving = |mapping: Mapping<H>| {
            let flags = mapping.flags | MappingFlags::MOVING;
            Some(Mapping { flags, ..mapping })
        };
        let lock = self.publish(lock, source, moving)?;
        let vma = space.tree.view_locked(&lock.writer).find(source.start()).ok_or(hole)?;
        let mut arrives = arriving(vma.glance(), part);
        drop(lock);
        self.make_leaves(part)?;
        // After a refusal the caller undoes all of it, also on a host that follows.
        let lock = space.follow(self.taken.over(target), self.lock(), target, Some(arrives.protection))?;
        let origin = Origin::Moved { more: part.more() };
        drop(self.publish_new(lock, (&mut arrives, origin), Joins::BOTH)?);
        let stays = |mapping: Mapping<H>| {
            let anon = mapping.anon.filter(|_| !is_whole);
            let flags = mapping.flags - MappingFlags::LOCKS;
            keeps.then_some(Mapping { flags, anon, ..mapping })
        };
        let mut lock = self.lock();
        if !keeps {
            lock = space.follow(self.taken.over(source), lock, source, None)?;
        }
        drop(self.publish(lock, source, stays)?);
        Ok(())
    }

    /// Waits until no thread is at work on the source, and makes the leaf tables that its pages will need. No new page comes
    /// there: the mapping is MOVING.
    fn make_leaves(&self, part: Part) -> Result<(), OutOfMemory> {
        let (space, target) = (self.space, self.taken.over(part.target));
        let mut result = Ok(());
        space.each_leaf(self.taken.over(part.source), part.source, |leaf, pages| {
            let mut made = None;
            for page in pages.iter() {
                let mut look = 0;
                let entry = loop {
                    let entry = space.table.load(leaf, page);
                    if !entry.is_announced() || mutant!("moves_past_the_bit") {
                        break entry;
                    }
                    space.engine.pause_on_bit(look);
                    look += 1;
                };
                let first = part.to(page).align_down(H::Table::LEAF_PAGES);
                if result.is_ok() && moves_along(entry) && made != Some(first) {
                    result = space.table.make_leaf(target, part.to(page)).map(|_| ());
                    space.own_table(PageRange::single(part.to(page)), |_, entry| entry, |_, _| true);
                    made = Some(first);
                }
            }
        });
        result
    }

    /// Moves the entries, with their frames and all that they say. Nothing is copied, and no count changes.
    #[inline(never)]
    fn carry(&mut self, part: Part) {
        let Self { space, taken, weakened, .. } = self;
        let target = taken.over(part.target);
        space.each_leaf(taken.over(part.source), part.source, |leaf, pages| {
            for page in pages.iter() {
                let mut look = 0;
                loop {
                    let seen = space.table.load(leaf, page);
                    // As in CVE-2024-50066: the mutant takes an entry read once, at the wrong time, for the present one.
                    if seen == Entry::EMPTY || mutant!("moves_past_the_bit") && seen.is_announced() {
                        break;
                    }
                    if seen.is_announced() {
                        space.engine.pause_on_bit(look);
                        look += 1;
                    } else if space.pick_up(leaf, page, seen) {
                        weakened.touch(page);
                        if moves_along(seen) {
                            space.put_down(target, part.to(page), space.as_moved(seen));
                        }
                        break;
                    }
                }
            }
        });
        weakened.swept(space, part.source);
    }

    /// Ends the move when all entries are in their new places. Page work goes on when no processor uses an old translation.
    #[inline(never)]
    fn end_move(&mut self, part: Part, cuts: Joins) {
        self.lock().moves += 1;
        if !part.keeps {
            self.unhook_around(part.source);
        }
        if mutant!("moved_without_invalidate") {
            self.weakened.forget();
        }
        if part.keeps {
            self.settle(part.source, cuts);
        }
        self.settle(part.target, Joins { inside: true, ..Joins::BOTH });
    }

    /// Undoes a move: makes the source, if it was touched, as it was, and the target a hole.
    #[inline(never)]
    pub fn give_up_move(&mut self, source: Option<(PageRange, Joins)>, target: PageRange) {
        if let Some((source, cuts)) = source {
            self.settle(source, cuts);
            self.space.follow_back(self.taken.over(source), source);
        }
        // Without memory for a hole the mapping there stays, and is a hole to every access once it is released.
        let lock = self.lock();
        drop(self.publish(lock, target, |_| None));
        self.space.follow_back(self.taken.over(target), target);
        self.unhook_around(target);
    }
}

impl<'a, H: Host, D: LockingDesign> RangeChange<'a, H, D> {
    /// Unmaps as munmap does, for a caller that has taken a larger range and passes the tree lock.
    pub fn unmap_taken(&mut self, lock: TreeLock<'a>, range: PageRange) -> Result<(), Unpublished> {
        let space = self.space;
        let lock = space.follow(self.taken.over(range), lock, range, None)?;
        let published = self.publish(lock, range, |_| None);
        drop(published.inspect_err(|_| space.follow_back(self.taken.over(range), range))?);
        let tables = self.around(range);
        self.sweep_away(range, Some(tables));
        Ok(())
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Returns the entry for the new place. A page that others store into too loses the write right. Writeback takes that right
    /// from every entry that it finds, and would not find one that is on its way.
    fn as_moved(&self, entry: Entry) -> Entry {
        let is_shared = entry.counted_frame().is_some_and(|frame| !self.engine.folio(frame).is_exclusive());
        entry.without(Entry::REFUSED | if is_shared { Entry::WRITE } else { 0 })
    }

    /// Takes an entry out of the source, if it is still `seen`.
    fn pick_up(&self, leaf: <H::Table as PageTable>::Leaf<'_>, page: PageNumber, seen: Entry) -> bool {
        // A host that has the bytes in the processor's own page keeps them if the frame has another user. The pin makes this
        // call one.
        let kept = seen.counted_frame().filter(|frame| {
            self.table.following().is_some() && self.engine.folio(*frame).try_get(Reference::Pin).is_ok()
        });
        let picked = self.table.exchange(leaf, page, seen, Entry::EMPTY).is_ok();
        if let Some(frame) = kept {
            self.engine.put(frame, Reference::Pin);
        }
        picked
    }

    /// Changes the home of the page of `entry`, which moves to the entry that `to` names. Not inlined: the stack of mremap has no
    /// room for it.
    #[inline(never)]
    fn move_home(&self, entry: Entry, to: Home) {
        match entry.kind() {
            EntryKind::Page(frame) | EntryKind::Kept(frame) => {
                let folio = self.engine.folio(frame);
                if self.engine.note_moved_page(frame) {
                    folio.move_home(to);
                } else {
                    folio.forget_home();
                }
            }
            EntryKind::Swapped(slot, _) => self.engine.note_moved_entry(slot),
            EntryKind::Gone(_) | EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Guard => {}
        }
    }

    /// Puts an entry in the target. Other threads may announce there for a moment, see that it is MOVING, and release it. The
    /// home of its page changes before the table that it may have named is retired.
    fn put_down(&self, taken: &RangeReservation<'_, H>, page: PageNumber, entry: Entry) {
        let leaf = self.table.leaf(taken, page).expect("a leaf table made before");
        self.move_home(entry, self.table.home(leaf, page));
        let mut look = 0;
        loop {
            let there = self.table.load(leaf, page);
            if there.is_announced() {
                self.engine.pause_on_bit(look);
                look += 1;
                continue;
            }
            debug_assert!(!there.holds_page(), "moved over something");
            if self.table.exchange(leaf, page, there, entry).is_ok() {
                return;
            }
        }
    }
}

/// Returns the mapping at the target: the source's, moved, and perhaps longer. If it has anonymous pages, they keep their
/// record and their origin. If not, nothing tells it from one that was mapped there.
fn arriving<H: Host>(source: Mapping<H>, part: Part) -> Mapping<H> {
    let mapping = edit::cut(&source, part.source).unwrap_or(source);
    let down = part.source.start().get().wrapping_sub(part.target.start().get());
    let shift = match (&mapping.backing, &mapping.anon) {
        (Backing::Anonymous, Some(_)) => mapping.shift.wrapping_add(down),
        _ => 0,
    };
    Mapping { range: part.target, shift, ..mapping }
}
