//! Moving pages to another place of the space: what mremap does when it is decided what goes where.
//!
//! ```text
//!   take both ranges
//!   target: BUSY over what was there, swept               fails: as before
//!   source: MOVING                                        faults on it wait from here on
//!   source: wait at each bit; leaf tables for the target  fails: MOVING is taken back, which needs no memory
//!   target: what comes, MOVING                            fails: the same
//!   source: a hole, or what stays, MOVING                 fails: the same; the target becomes a hole, or stays MOVING
//!   each entry: out of the source, into the target        nothing fails from here on
//!   unhook the source's leaf tables, if it is a hole
//!   invalidate the source                                 before anybody can free what has moved (CVE-2018-18281)
//!   settle: what was MOVING is not; then join neighbours, if there is memory for that
//!   let both ranges go, and wake who waits
//! ```
//! A processor may use a target's entry before the target is settled: it finds the page that it asked for. Page work may not:
//! it waits, and so nobody frees or copies the page while a processor uses its old translation.

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

/// Pages of one mapping, and where they go. The target is as long or longer.
#[derive(Clone, Copy, Debug)]
pub(in crate::space) struct Part {
    pub source: PageRange,
    pub target: PageRange,
    /// The source stays mapped, empty (MREMAP_DONTUNMAP).
    pub keeps: bool,
}

impl Part {
    /// Where `page` goes.
    fn to(&self, page: PageNumber) -> PageNumber {
        PageNumber::new(self.target.start().get() + (page.get() - self.source.start().get()))
    }

    /// How many pages come besides those that go.
    fn more(&self) -> u64 {
        self.target.pages() - if self.keeps { 0 } else { self.source.pages() }
    }
}

/// Whether an entry goes where its page goes.
fn moves_along(entry: Entry) -> bool {
    match entry.kind() {
        EntryKind::Page(_)
        | EntryKind::Foreign(_)
        | EntryKind::Guard
        | EntryKind::Swapped(..)
        | EntryKind::Gone(_)
        | EntryKind::Kept(_) => true,
        EntryKind::Empty => false,
    }
}

impl<H: Host, D: LockingDesign> RangeChange<'_, H, D> {
    /// Moves one part. What was at the target goes first, and stays away if the rest fails; otherwise, on failure, all is as
    /// before.
    pub fn move_part(&mut self, part: Part) -> Result<(), RemapError> {
        self.check_move(part)?;
        self.vacate(part.target)?;
        self.move_vacated(part)
    }

    /// The same, where what was at the target has gone; it becomes a hole if the part cannot come.
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

    /// Whether the limits leave room for the part at its target, before what is mapped there goes. (Linux asks when it has
    /// gone.) It is asked again when the part is published there, and then fails only if others have mapped more meanwhile.
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

    /// At which ends the mapping is cut to move the part, and all of the mapping. There it joins again if it stays, and nowhere
    /// else (Linux cuts nothing then).
    fn cuts(&self, Part { source, .. }: Part) -> (Joins, PageRange) {
        let lock = self.lock();
        let vma = self.space.tree.view_locked(&lock.writer).find(source.start());
        let whole = vma.map_or(source, Ranged::range);
        let (below, above) = (whole.start() < source.start(), whole.end() > source.end());
        (Joins { below, above, inside: true, ..Joins::BOTH }, whole)
    }

    /// On Linux the target joins what it meets before anything leaves the source. So where it meets the mapping that it was
    /// a part of, and has a record from the other side, what is left of that mapping has this record.
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

    /// What is mapped at the target goes; a fault there waits for what comes.
    pub fn vacate(&mut self, target: PageRange) -> Result<(), RemapError> {
        let lock = self.lock();
        match self.space.tree.view_locked(&lock.writer).from(target.start()).next() {
            Some(vma) if vma.range().overlaps(target) && !(vma.is_busy() && vma.range() == target) => {}
            _ => return Ok(()),
        }
        self.space.refuse_sealed(&lock, target)?;
        drop(self.publish_busy(lock, target)?);
        // Before a moved page is there: a processor may use it before the target is settled.
        self.sweep_away(target, None);
        Ok(())
    }

    /// Everything that can fail.
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

    /// Waits until nobody is at work on the source any more, and makes the leaf tables that its pages will need. Nobody
    /// makes a new page there: the mapping is MOVING.
    fn make_leaves(&self, part: Part) -> Result<(), OutOfMemory> {
        let (space, target) = (self.space, self.taken.over(part.target));
        let mut result = Ok(());
        space.each_leaf(self.taken.over(part.source), part.source, |leaf, pages| {
            let mut made = None;
            for page in pages.iter() {
                let mut look = 0;
                let entry = loop {
                    let entry = space.table.load(leaf, page);
                    if !entry.is_announced() || cfg!(mutant = "moves_past_the_bit") {
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

    /// Moves the entries, with their frames and all that is known of them: nothing is copied, and no count changes.
    #[inline(never)]
    fn carry(&mut self, part: Part) {
        let Self { space, taken, weakened, .. } = self;
        let target = taken.over(part.target);
        space.each_leaf(taken.over(part.source), part.source, |leaf, pages| {
            for page in pages.iter() {
                let mut look = 0;
                loop {
                    let seen = space.table.load(leaf, page);
                    // As CVE-2024-50066: what is read once, at the wrong time, is taken for what is there.
                    if seen == Entry::EMPTY || cfg!(mutant = "moves_past_the_bit") && seen.is_announced() {
                        break;
                    }
                    if seen.is_announced() {
                        space.engine.pause_on_bit(look);
                        look += 1;
                    } else if space.pick_up(leaf, page, seen) {
                        weakened.touch(page);
                        if moves_along(seen) {
                            let from = space.table.home(leaf, page);
                            space.put_down(target, part.to(page), space.as_moved(seen), from);
                        }
                        break;
                    }
                }
            }
        });
        weakened.swept(space, part.source);
    }

    /// Everything is where it belongs. When no processor uses an old translation, page work goes on.
    fn end_move(&mut self, part: Part, cuts: Joins) {
        self.lock().moves += 1;
        if !part.keeps {
            self.unhook_around(part.source);
        }
        #[cfg(mutant = "moved_without_invalidate")]
        self.weakened.forget();
        if part.keeps {
            self.settle(part.source, cuts);
        }
        self.settle(part.target, Joins { inside: true, ..Joins::BOTH });
    }

    /// The source, if it was touched, is as it was; the target becomes a hole.
    pub fn give_up_move(&mut self, source: Option<(PageRange, Joins)>, target: PageRange) {
        if let Some((source, cuts)) = source {
            self.settle(source, cuts);
            self.space.follow_back(self.taken.over(source), source);
        }
        // Without memory for a hole what stands there stays, and is one for every access when it is let go.
        let lock = self.lock();
        drop(self.publish(lock, target, |_| None));
        self.space.follow_back(self.taken.over(target), target);
        self.unhook_around(target);
    }
}

impl<'a, H: Host, D: LockingDesign> RangeChange<'a, H, D> {
    /// As munmap, by somebody who has taken more and given the tree lock.
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
    /// An entry where it goes. A page that others store into too loses the write right: writeback, which takes it from every
    /// entry that it finds, does not find one that is on its way.
    fn as_moved(&self, entry: Entry) -> Entry {
        let is_shared = entry.counted_frame().is_some_and(|frame| !self.engine.folio(frame).is_exclusive());
        entry.without(Entry::REFUSED | if is_shared { Entry::WRITE } else { 0 })
    }

    /// Takes an entry out of the source, if it is still `seen`.
    fn pick_up(&self, leaf: <H::Table as PageTable>::Leaf<'_>, page: PageNumber, seen: Entry) -> bool {
        // A host that has the bytes in the processor's own page keeps them where somebody else wants the frame: we do.
        let kept = seen.counted_frame().filter(|frame| {
            self.table.following().is_some() && self.engine.folio(*frame).try_get(Reference::Pin).is_ok()
        });
        let picked = self.table.exchange(leaf, page, seen, Entry::EMPTY).is_ok();
        if let Some(frame) = kept {
            self.engine.put(frame, Reference::Pin);
        }
        picked
    }

    /// Puts an entry in the target, where others announce for a moment, see that it is MOVING, and let go. Its page's home goes
    /// along, if it was `from`: before the table that it named is retired.
    fn put_down(&self, taken: &RangeReservation<'_, H>, page: PageNumber, entry: Entry, from: Home) {
        let leaf = self.table.leaf(taken, page).expect("a leaf table made before");
        if let Some(frame) = entry.counted_frame() {
            self.engine.folio(frame).move_home(from, self.table.home(leaf, page));
        }
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

/// The mapping at the target: the source's, moved, and longer perhaps. If there are anonymous pages they keep their record and
/// say where they came from; if not, nothing tells it from one that was mapped there.
fn arriving<H: Host>(source: Mapping<H>, part: Part) -> Mapping<H> {
    let mapping = edit::cut(&source, part.source).unwrap_or(source);
    let down = part.source.start().get().wrapping_sub(part.target.start().get());
    let shift = match (&mapping.backing, &mapping.anon) {
        (Backing::Anonymous, Some(_)) => mapping.shift.wrapping_add(down),
        _ => 0,
    };
    Mapping { range: part.target, shift, ..mapping }
}
