//! Range work: take the range, publish what comes next, sweep the entries, and only then give frames away.

use super::limits::SpaceUsage;
use super::shared_table::LeafOf;
use super::{Map, Space};
use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::engine::Engine;
use crate::host::{Entry, Frame, Host, OutOfMemory, PageTable};
use crate::protection::Protection;
use crate::sync::{Claims, Edited, RangesGuard, Reservation, RetiredList, full_fence, try_box};
use crate::vma::tree::{Ranged, View};
use crate::vma::{Mapping, Vma, edit};
use alloc::boxed::Box;
use alloc::vec::Vec;
use smallvec::SmallVec;

pub(super) type Taken<'a, H> = Reservation<'a, Map, Engine<H>>;
pub(super) type TreeLock<'a> = RangesGuard<'a, Map>;

/// A list that needs no memory from the allocator while it is short, as in most calls.
type Few<T> = SmallVec<[T; 4]>;

/// Why a new map could not be published; the old one stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unpublished {
    OutOfMemory,
    /// More mappings than a space may have.
    TooMany,
}

impl From<OutOfMemory> for Unpublished {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// A mapping that comes, of what was there or new.
struct Piece<H: Host> {
    mapping: Mapping<H>,
    /// Whether it is another than before.
    is_new: bool,
    /// Whether the piece before it was part of the same VMA.
    goes_on: bool,
}

/// With which neighbours that are like it something new may join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joins {
    pub below: bool,
    pub above: bool,
    /// Whether what stays as it was joins too: it has been cut for the call.
    pub inside: bool,
    /// Whether it is a mapping that becomes longer: what fork has passed on joins one without pages then (Linux).
    pub grown: bool,
}

impl Joins {
    pub const BOTH: Self = Self { below: true, above: true, inside: false, grown: false };
    /// A mapping that grows down meets another one and stays beside it, as on Linux.
    pub const ABOVE: Self = Self { below: false, above: true, inside: false, grown: false };
}

/// What is made of each mapping, what is new, and with what they join.
pub(super) type Wanted<'a, H> = (&'a dyn Fn(Mapping<H>) -> Option<Mapping<H>>, &'a Option<Mapping<H>>, Joins);

/// What is about to be published.
pub(super) struct Draft<H: Host, D: LockingDesign> {
    /// What it takes the place of, and those: so many VMAs.
    pub hull: PageRange,
    pub goes: usize,
    pub new: Vec<Box<Vma<H, D>>>,
    /// What it comes to.
    pub note: [u64; 4],
}

/// After a publication. Partner: the fence after the bit in page work.
pub(super) fn fence_of_range_work() {
    #[cfg(not(mutant = "no_range_fence"))]
    full_fence();
}

/// VMAs that are excluded for one look at the tree.
const FEW: usize = 16;

/// Frames between two invalidations.
const BATCH: usize = 64;

/// Frames whose entries are gone, and that somebody may still reach until `invalidate`.
pub(super) struct Removed<'a, H: Host, D: LockingDesign> {
    space: &'a Space<H, D>,
    frames: [Option<Frame>; BATCH],
    count: usize,
    /// What the frames' pages lie in.
    range: Option<PageRange>,
}

impl<'a, H: Host, D: LockingDesign> Removed<'a, H, D> {
    pub fn new(space: &'a Space<H, D>) -> Self {
        Self { space, frames: [None; BATCH], count: 0, range: None }
    }

    /// Takes over the mapping reference of `entry`, which was at `page`.
    pub fn add(&mut self, page: PageNumber, entry: Entry) {
        let Some(frame) = entry.frame() else { return };
        if self.count == BATCH {
            self.flush();
        }
        self.frames[self.count] = Some(frame);
        self.count += 1;
        self.touch(page);
    }

    /// The translation at `page` was weakened; no frame goes.
    pub fn touch(&mut self, page: PageNumber) {
        self.touch_all(PageRange::single(page));
    }

    /// The translations of `range` were.
    pub fn touch_all(&mut self, range: PageRange) {
        self.range = Some(self.range.map_or(range, |all| all.hull(range)));
    }

    /// For a mutant: what was taken out can still be reached when it is freed.
    #[cfg(mutant = "discard_without_invalidate")]
    pub fn forget_range(&mut self) {
        self.range = None;
    }

    /// Invalidates, then drops the references (rule 6).
    pub fn flush(&mut self) {
        if let Some(range) = self.range {
            self.space.engine.invalidate(&self.space.table, range);
            // Only now: should that panic, dropping this does not free frames that a processor may use.
            self.range = None;
        }
        for frame in self.frames[..core::mem::take(&mut self.count)].iter_mut().filter_map(Option::take) {
            self.space.engine.put_mapping(frame);
        }
    }
}

impl<H: Host, D: LockingDesign> Drop for Removed<'_, H, D> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Excludes page work by every VMA of `range` that is `wanted`, for a design that does so by VMA. Before the range is
    /// taken: who has a VMA's lock may wait for ranges. The design keeps others from changing the tree meanwhile.
    pub(super) fn exclude<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        range: PageRange,
        wanted: impl Fn(&Mapping<H>) -> bool,
    ) {
        let mut rest = D::LOCKS_VMAS.then_some(range);
        while let Some(part) = rest.take() {
            // Some at a time: exit needs no memory for this.
            let mut locks: [Option<D::Vma>; FEW] = [const { None }; FEW];
            let mut places = locks.iter_mut();
            let lock = self.map.lock_by(&*self.engine);
            let vmas = self.tree.view_locked(&lock.writer).from(part.start());
            let vmas = vmas.take_while(|vma| vma.range().start() < part.end());
            for vma in vmas.filter(|vma| wanted(vma.mapping())) {
                let Some(place) = places.next() else {
                    rest = PageRange::new(vma.range().start().max(part.start()), part.end());
                    break;
                };
                *place = Some(vma.lock().clone());
            }
            drop(lock);
            locks.iter().flatten().for_each(|vma| D::exclude(work, &self.engine, vma));
        }
    }

    /// Has a host with mappings of its own follow what is about to be published. The range is taken, so nobody else
    /// changes its map while the tree lock is let go.
    pub(super) fn follow<'s>(
        &'s self,
        taken: &Taken<'_, H>,
        lock: TreeLock<'s>,
        range: PageRange,
        rights: Option<Protection>,
    ) -> Result<TreeLock<'s>, OutOfMemory> {
        debug_assert!(taken.range().covers(range));
        if !H::Table::FOLLOWS {
            return Ok(lock);
        }
        drop(lock);
        match self.table.follow(range, rights) {
            Ok(()) => Ok(self.map.lock_by(&*self.engine)),
            Err(error) => {
                self.follow_back(taken, range);
                Err(error)
            }
        }
    }

    /// Has it follow the map as it is, since what was about to be published was not. What it refuses now it has refused
    /// before, and that part is as it was.
    pub(super) fn follow_back(&self, taken: &Taken<'_, H>, range: PageRange) {
        let _ = self.follow_map(taken, range);
    }

    /// Has it follow the map as it is.
    pub(super) fn follow_map(&self, taken: &Taken<'_, H>, range: PageRange) -> Result<(), OutOfMemory> {
        if !H::Table::FOLLOWS {
            return Ok(());
        }
        let mut parts = Vec::new();
        {
            let lock = taken.lock();
            let vmas = self.tree.view_locked(&lock.writer).from(range.start());
            for vma in vmas.take_while(|vma| vma.range().start() < range.end()) {
                parts.try_reserve(1).map_err(|_| OutOfMemory)?;
                let rights = (!vma.is_busy()).then_some(vma.mapping().protection);
                parts.extend(vma.range().intersection(range).map(|part| (part, rights)));
            }
        }
        self.table.follow(range, None)?;
        parts.into_iter().try_for_each(|(part, rights)| self.table.follow(part, rights))
    }

    /// Publishes, in one step, what `each` makes of every mapping inside `range`, and `insert` if there is something
    /// new. Splits at the ends, merges with neighbours. The caller has taken `range` and gives the tree lock, which comes
    /// back. What it replaced comes to `retired`, for when all is let go; the caller sweeps in between.
    ///
    /// # Errors
    /// [`Unpublished`]: the map is as before.
    pub(super) fn publish<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        lock: TreeLock<'s>,
        range: PageRange,
        each: impl Fn(Mapping<H>) -> Option<Mapping<H>>,
        insert: Option<Mapping<H>>,
        retired: &mut RetiredList,
    ) -> Result<TreeLock<'s>, Unpublished> {
        self.publish_joining(work, lock, range, each, insert, (Joins::BOTH, retired))
    }

    /// The same; `joins`: with which neighbours.
    pub(super) fn publish_joining<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        lock: TreeLock<'s>,
        range: PageRange,
        each: impl Fn(Mapping<H>) -> Option<Mapping<H>>,
        insert: Option<Mapping<H>>,
        (joins, retired): (Joins, &mut RetiredList),
    ) -> Result<TreeLock<'s>, Unpublished> {
        let mut lock = self.exclude_neighbours(work, lock, range, &each, &insert, joins)?;
        let view = self.tree.view_locked(&lock.writer);
        // One more than the limit where something new comes: Linux asks before it does.
        let most = self.mapping_limit(&lock).saturating_add(usize::from(insert.is_some()));
        let may_be_more = |more| lock.usage.mappings + more <= most;
        let Draft { hull, goes, mut new, note } =
            self.draft(work, view, range, (&each, &insert, joins), may_be_more)?;
        self.tree.replace(&mut lock.writer, hull, &mut new, retired).map_err(|_| {
            self.take_back(self.tree.view_locked(&lock.writer), hull, goes);
            Unpublished::OutOfMemory
        })?;
        lock.edited(note);
        fence_of_range_work();
        Ok(lock)
    }

    /// What a publication puts in the place of what; that is closed, and detached. `may_be_more`: whether there may be so many
    /// more mappings.
    pub(super) fn draft<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        view: View<'_, Vma<H, D>>,
        range: PageRange,
        (each, insert, joins): Wanted<'_, H>,
        may_be_more: impl Fn(usize) -> bool,
    ) -> Result<Draft<H, D>, Unpublished> {
        let mut closed: Few<&Vma<H, D>> = Few::new();
        let mut next: Few<Mapping<H>> = Few::new();
        let built = build(view, range, (each, insert, joins), (&mut closed, &mut next));
        let built = built.and_then(|hull| {
            if next.len() > closed.len() && !may_be_more(next.len() - closed.len()) {
                return Err(Unpublished::TooMany);
            }
            let gone = SpaceUsage::default().with(closed.iter().map(|vma| vma.mapping()));
            let note = SpaceUsage::default().with(&next).change_from(gone);
            let mut new: Vec<Box<Vma<H, D>>> = Vec::new();
            new.try_reserve_exact(next.len()).map_err(|_| OutOfMemory)?;
            for mapping in next {
                let vma = try_box(Vma::new(mapping)?)?;
                // Nobody has it yet: no wait.
                D::exclude(work, &self.engine, vma.lock());
                new.push(vma);
            }
            Ok(Draft { hull, goes: closed.len(), new, note })
        });
        match built {
            Ok(_) => closed.iter().for_each(|vma| D::detach(vma.lock(), true)),
            Err(_) => closed.iter().for_each(|vma| vma.reopen()),
        }
        built
    }

    /// The first `goes` VMAs of `hull`, which a draft has closed, stay.
    pub(super) fn take_back(&self, view: View<'_, Vma<H, D>>, hull: PageRange, goes: usize) {
        view.from(hull.start()).take(goes).for_each(|vma| {
            D::detach(vma.lock(), false);
            vma.reopen();
        });
    }

    /// What will be merged with what comes is excluded too, without the tree lock: the design keeps others from changing
    /// the tree meanwhile.
    fn exclude_neighbours<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        mut lock: TreeLock<'s>,
        range: PageRange,
        each: &impl Fn(Mapping<H>) -> Option<Mapping<H>>,
        insert: &Option<Mapping<H>>,
        joins: Joins,
    ) -> Result<TreeLock<'s>, Unpublished> {
        if !D::LOCKS_VMAS {
            return Ok(lock);
        }
        loop {
            let (mut closed, mut next) = (Few::new(), Few::new());
            let view = self.tree.view_locked(&lock.writer);
            let built = build(view, range, (each, insert, joins), (&mut closed, &mut next));
            closed.iter().for_each(|vma: &&Vma<H, D>| vma.reopen());
            built?;
            // One a look: the neighbours are two at most, the rest has been excluded before.
            let missing = closed.into_iter().find(|vma| !D::is_excluded(work, vma.lock()));
            let Some(missing) = missing.map(|vma| vma.lock().clone()) else { return Ok(lock) };
            drop(lock);
            D::exclude(work, &self.engine, &missing);
            lock = self.map.lock_by(&*self.engine);
        }
    }

    /// Passes over every existing entry of the range taken: waits where it meets the bit, and puts what `step` makes of
    /// an entry in its place. When it returns, whoever looked the old mapping up has finished.
    pub(super) fn sweep(
        &self,
        taken: &Taken<'_, H>,
        range: PageRange,
        step: impl Fn(PageNumber, Entry) -> Entry,
        mut changed: impl FnMut(PageNumber, Entry, Entry),
    ) {
        debug_assert!(taken.range().covers(range));
        self.each_table(taken, range, |part| {
            // Nobody is at work on a shared table: who comes later has seen the mark after the sweep, and so the new map.
            let changes = |page, entry| step(page, entry) != entry;
            let becomes = |page, entry| if part.contains(page) { step(page, entry) } else { entry };
            if self.has_shared_table(taken, part.start()) && !self.own_table(part, becomes, changes) {
                return;
            }
            let Some(leaf) = self.table.leaf(taken, part.start()) else { return };
            for page in part.iter() {
                let mut look = 0;
                loop {
                    let seen = self.table.load(leaf, page);
                    if seen.is_announced() {
                        self.engine.pause_on_bit(look);
                        look += 1;
                        continue;
                    }
                    let new = step(page, seen);
                    if new == seen {
                        break;
                    }
                    if self.table.exchange(leaf, page, seen, new).is_ok() {
                        changed(page, seen, new);
                        break;
                    }
                }
            }
        });
    }

    /// Calls `f` for every leaf table under the range, with the part of the range that it covers. Each is this space's own.
    pub(super) fn each_leaf<'t>(
        &'t self,
        taken: &'t Taken<'_, H>,
        range: PageRange,
        mut f: impl FnMut(LeafOf<'t, H>, PageRange),
    ) {
        self.each_table(taken, range, |part| {
            if self.has_shared_table(taken, part.start()) {
                self.own_table(part, |_, entry| entry, |_, _| true);
            }
            if let Some(leaf) = self.table.leaf(taken, part.start()) {
                f(leaf, part);
            }
        });
    }

    /// Calls `f` for the part of the range under every leaf table that there is.
    pub(super) fn each_table(&self, taken: &Taken<'_, H>, range: PageRange, mut f: impl FnMut(PageRange)) {
        let mut rest = Some(range);
        while let Some(range) = rest {
            let Some(page) = self.table.next_leaf(taken, range) else { break };
            let part = self.leaf_span(page).intersection(range);
            rest = part.and_then(|part| PageRange::new(part.end(), range.end()));
            part.into_iter().for_each(&mut f);
        }
    }

    /// The pages of the leaf table over `page`.
    pub(super) fn leaf_span(&self, page: PageNumber) -> PageRange {
        let pages = H::Table::LEAF_PAGES;
        let start = page.align_down(pages);
        PageRange::with_pages(start, pages).expect("the table's pages have addresses")
    }

    /// Sweeps all pages of `range` away, which is a hole or BUSY by now.
    pub(super) fn sweep_away(&self, taken: &Taken<'_, H>, range: PageRange) {
        let mut removed = Removed::new(self);
        self.sweep(taken, range, |_, _| Entry::EMPTY, |page, old, _| removed.add(page, old));
    }

    /// Widens a range about to become a hole to whole leaf tables where the rest of a table is a hole too and nobody
    /// else has claimed it, so that the table can go with its last mapping.
    pub(super) fn widen_to_leaves(
        &self,
        taken: &mut Taken<'_, H>,
        claims: &mut Claims,
        view: View<'_, Vma<H, D>>,
    ) {
        let range = taken.range();
        let is_hole = |part: Option<PageRange>| {
            part.is_none_or(|part| {
                view.from(part.start()).next().is_none_or(|vma| vma.range().start() >= part.end())
            })
        };
        let first = self.leaf_span(range.start());
        let last = self.leaf_span(PageNumber::new(range.end().get() - 1));
        let head = PageRange::new(first.start(), range.start());
        let tail = PageRange::new(range.end(), last.end());
        let start = if is_hole(head) { first.start() } else { range.start() };
        let end = if is_hole(tail) { last.end() } else { range.end() };
        if let Some(wider) = PageRange::new(start, end).filter(|wider| *wider != range) {
            taken.widen(wider, claims);
        }
    }

    /// What has become a hole of what is taken, and was swept, loses its leaf tables: those that lie wholly inside, or in more
    /// that is a hole and that nobody else has claimed.
    pub(super) fn retire_leaves(&self, taken: &mut Taken<'_, H>, hole: PageRange, retired: &mut RetiredList) {
        let mut lock = taken.lock();
        let view = self.tree.view_locked(&lock.writer);
        let is_hole = |part: &PageRange| {
            view.from(part.start()).next().is_none_or(|vma| vma.range().start() >= part.end())
        };
        let first = hole.hull(self.leaf_span(hole.start()));
        let last = hole.hull(self.leaf_span(PageNumber::new(hole.end().get() - 1)));
        let head = PageRange::new(first.start(), hole.end()).filter(is_hole).unwrap_or(hole);
        let tail = PageRange::new(hole.start(), last.end()).filter(is_hole).unwrap_or(hole);
        let wider = head.hull(tail);
        let more = taken.range().hull(wider);
        let is_taken = taken.range().covers(wider) || taken.widen(more, lock.parts().1);
        drop(lock);
        self.unhook_leaves_of(taken, if is_taken { wider } else { hole }, retired);
    }

    /// Takes out the leaf tables that lie wholly inside the range, a hole or BUSY, and swept (rule 7).
    pub(super) fn unhook_leaves(&self, taken: &Taken<'_, H>, retired: &mut RetiredList) {
        self.unhook_leaves_of(taken, taken.range(), retired);
    }

    fn unhook_leaves_of(&self, taken: &Taken<'_, H>, range: PageRange, retired: &mut RetiredList) {
        debug_assert!(taken.range().covers(range));
        let mut rest = Some(range);
        while let Some(part) = rest {
            let Some(page) = self.table.next_leaf(taken, part) else { break };
            let span = self.leaf_span(page);
            rest = PageRange::new(span.end(), range.end());
            #[cfg(not(mutant = "leaf_with_neighbour"))]
            let whole = range.covers(span);
            #[cfg(mutant = "leaf_with_neighbour")]
            let whole = range.overlaps(span);
            // Without memory to remember it, the table stays until the space goes.
            if whole && retired.try_reserve(1).is_ok() {
                if self.has_shared_table(taken, page) {
                    self.own_table(span, |_, _| Entry::EMPTY, |_, _| true);
                }
                retired.extend(self.table.unhook(page));
            }
        }
    }
}

/// Fills `next` with the mappings that come, `closed` with the VMAs that go, in order. Returns the range of both.
fn build<'a, H: Host, D: LockingDesign>(
    view: View<'a, Vma<H, D>>,
    range: PageRange,
    (each, insert, joins): Wanted<'_, H>,
    (closed, next): (&mut Few<&'a Vma<H, D>>, &mut Few<Mapping<H>>),
) -> Result<PageRange, Unpublished> {
    let mut hull = range;
    // What two VMAs were and stay does not join now, though it might (Linux).
    let mut is_last_new = false;
    let mut push = |Piece { mapping, is_new, goes_on }: Piece<H>| -> Result<bool, Unpublished> {
        let may_join = goes_on || is_new || is_last_new;
        is_last_new = is_new;
        if let Some(last) = next.last_mut()
            && may_join
            && edit::joins(last, &mapping)
        {
            *last = edit::join(last, &mapping);
            return Ok(is_new);
        }
        next.try_reserve(1).map_err(|_| OutOfMemory)?;
        next.push(mapping);
        Ok(is_new)
    };
    let mut close = |vma: &'a Vma<H, D>| -> Result<Mapping<H>, Unpublished> {
        closed.try_reserve(1).map_err(|_| OutOfMemory)?;
        closed.push(vma);
        Ok(vma.close())
    };
    let start = range.start();
    let left = view.before(start).filter(|vma| joins.below && vma.range().end() == start);
    let old = view.from(start).take_while(|vma| vma.range().start() < range.end());

    // The first mapping that comes decides whether the neighbour on the left joins.
    let mut middle: Few<Piece<H>> = Few::new();
    let mut keep_behind = None;
    for vma in old {
        let mapping = close(vma)?;
        hull = hull.hull(vma.range());
        middle.try_reserve(3).map_err(|_| OutOfMemory)?;
        let part = |part: Option<PageRange>| part.and_then(|part| edit::cut(&mapping, part));
        let old = |goes_on| move |mapping| Piece { mapping, is_new: false, goes_on };
        let before = part(PageRange::new(vma.range().start(), start));
        let goes_on = before.is_some();
        middle.extend(before.map(old(false)));
        middle.extend(part(Some(range)).and_then(each).map(|mapping| {
            let is_new = joins.inside || !edit::is_alike(vma.mapping(), &mapping);
            Piece { mapping, is_new, goes_on }
        }));
        keep_behind = part(PageRange::new(range.end(), vma.range().end())).map(old(true));
    }
    let place = middle.iter().take_while(|piece| piece.mapping.range.end() <= start).count();
    if let Some(insert) = insert {
        middle.try_reserve(1).map_err(|_| OutOfMemory)?;
        middle.insert(place, Piece { mapping: insert.clone(), is_new: true, goes_on: false });
    }
    if let (Some(left), Some(first)) = (left, middle.first())
        && first.is_new
        && edit::joins(&left.glance(), &first.mapping)
    {
        // It may have got pages since the glance: then it stays beside, replaced by itself.
        hull = hull.hull(left.range());
        push(Piece { mapping: close(left)?, is_new: false, goes_on: false })?;
    }
    let mut is_last_new = false;
    for piece in middle {
        is_last_new = push(piece)?;
    }
    match keep_behind {
        Some(behind) => _ = push(behind)?,
        None => {
            let right = view.from(range.end()).next().filter(|vma| vma.range().start() == range.end());
            let may_join = |last: &Mapping<H>, right: &Mapping<H>| {
                let fresh = || Mapping { anon: None, ..last.clone() };
                edit::joins(last, right)
                    || joins.grown && right.anon.is_none() && edit::joins(&fresh(), right)
            };
            if let (Some(right), Some(last)) = (right, next.last())
                && is_last_new
                && joins.above
                && last.range.end() == range.end()
                && may_join(last, &right.glance())
            {
                hull = hull.hull(right.range());
                let mapping = close(right)?;
                if may_join(last, &mapping) {
                    let joined = edit::join(last, &mapping);
                    next.pop();
                    next.push(joined);
                } else {
                    next.try_reserve(1).map_err(|_| OutOfMemory)?;
                    next.push(mapping);
                }
            }
        }
    }
    Ok(hull)
}
