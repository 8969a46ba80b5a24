//! A call that does range work: what it holds, and the one order in which it releases that.

use crate::address::{PageNumber, PageRange};
use crate::design::{Call, LockingDesign};
use crate::host::{Entry, Host, OutOfMemory};
use crate::space::change::range_work::{FlushBatch, RangeReservation, TreeLock, Weakened};
use crate::space::{Space, TreeState};
use crate::sync::{Choice, Claims, RetiredList};
use crate::vma::Mapping;

/// A call that does range work, and all that it holds but the tree lock.
///
/// Each call makes this value first, so that Rust drops it last, on each way out. The tree lock and sections are locals of the
/// call's function, and are dropped before it. When the value is dropped, it releases what it holds in this order:
///
/// ```text
///   (the sweep; leaf tables are unhooked)   the call has done this before
///   invalidate                              the pages swept, and all pages of the tables unhooked (invariant 15)
///   frames                                  their references are dropped
///   the ranges taken
///   what the design keeps                   other calls go on from here
///   leaf tables that were left              by calls that had claims in one table with us: the last one that asked the design frees it
///   shared tables under a locked mapping    replaced by the space's own (rule H6 of docs/home.md)
///   replaced and unhooked things            retired, when nothing is held
/// ```
pub(in crate::space) struct RangeChange<'a, H: Host, D: LockingDesign> {
    pub space: &'a Space<H, D>,
    /// The pages that processors may still use though their frames stay, and those of leaf tables.
    pub weakened: Weakened,
    /// The ranges taken: one in most calls, two in mremap.
    pub taken: TakenRanges<'a, H>,
    /// The state of the design, or `None` if the design was not asked, since no mapping changes.
    work: Option<D::Range<'a, H>>,
    /// The things that the call has replaced and unhooked.
    pub retired: RetiredList,
    /// A range that covers all locked mappings which the call has published. Its tables are to be the space's own.
    pub locked: Option<PageRange>,
}

/// The ranges that a call has taken.
pub(in crate::space) struct TakenRanges<'a, H: Host>([Option<RangeReservation<'a, H>>; 2]);

impl<'a, H: Host> TakenRanges<'a, H> {
    /// Returns the reservation that covers `range`.
    #[inline]
    pub fn over(&self, range: PageRange) -> &RangeReservation<'a, H> {
        match &self.0 {
            [Some(first), _] if first.range().covers(range) => first,
            [_, Some(second)] if second.range().covers(range) => second,
            _ => panic!("{UNTAKEN}"),
        }
    }

    /// Returns the reservation that covers `range`, to change it.
    #[inline]
    pub fn over_mut(&mut self, range: PageRange) -> &mut RangeReservation<'a, H> {
        match &mut self.0 {
            [Some(first), _] if first.range().covers(range) => first,
            [_, Some(second)] if second.range().covers(range) => second,
            _ => panic!("{UNTAKEN}"),
        }
    }

    #[inline]
    fn hold(&mut self, first: RangeReservation<'a, H>, second: Option<RangeReservation<'a, H>>) {
        debug_assert!(self.0.iter().all(Option::is_none), "a call that waits for a range has taken none");
        self.0 = [Some(first), second];
    }
}

const UNTAKEN: &str = "range work on a range that is not taken";

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Begins a call, and asks the design for what it needs for `range`. Called before any range is taken.
    #[inline(always)]
    pub(in crate::space) fn change(&self, call: Call, range: PageRange) -> RangeChange<'_, H, D> {
        let work = D::range_work(&self.lock, &self.engine, &self.tree, call, range);
        self.engine.assert_may_sleep("the tree lock");
        self.begin(Some(work))
    }

    /// Begins a call as [`Space::change`] does, and excludes page work by the VMAs of the range.
    #[inline(always)]
    pub(in crate::space) fn change_excluding(&self, call: Call, range: PageRange) -> RangeChange<'_, H, D> {
        let mut work = D::range_work(&self.lock, &self.engine, &self.tree, call, range);
        self.engine.assert_may_sleep("the tree lock");
        // This comes before it is part of the call, which is too large to be moved.
        self.exclude(&mut work, range, |_| true);
        self.begin(Some(work))
    }

    /// Begins a call that takes ranges and changes no mapping. The design is not asked.
    pub(in crate::space) fn change_nothing(&self) -> RangeChange<'_, H, D> {
        self.engine.assert_may_sleep("the tree lock");
        self.begin(None)
    }

    #[inline(always)]
    fn begin<'a>(&'a self, work: Option<D::Range<'a, H>>) -> RangeChange<'a, H, D> {
        RangeChange {
            space: self,
            weakened: Weakened::new(),
            taken: TakenRanges([None, None]),
            work,
            retired: RetiredList::new(),
            locked: None,
        }
    }

    /// Takes out the leaf tables that a call could not, since others had claims there. Those have ended by now.
    #[cold]
    fn unhook_left(&self) {
        while let Some(span) = self.map.find_left(&*self.engine) {
            let work = D::range_work(&self.lock, &self.engine, &self.tree, Call::Unmap, span);
            let Some((taken, lock)) = self.map.take_left(span, &*self.engine) else { continue };
            let is_hole = self.is_hole(self.tree.view_locked(&lock.writer), span);
            drop(lock);
            let mut tables = RetiredList::new();
            if is_hole {
                // There is nothing to sweep: each call that made a hole of a part of it has swept that part.
                let mut weakened = Weakened::new();
                self.unhook_leaves(&taken, span, &mut weakened, &mut tables);
                weakened.flush(self);
            }
            drop(taken);
            drop(work);
            self.engine.retire_tables(&mut tables);
        }
    }
}

impl<H: Host, D: LockingDesign> Drop for RangeChange<'_, H, D> {
    #[inline]
    fn drop(&mut self) {
        // If the host panics here, things retired below are leaked, since a processor may use it.
        self.flush();
        self.release();
        let has_asked = self.work.take().is_some();
        if let Some(locked) = self.locked {
            self.space.own_locked_tables(locked);
        }
        // A call that has not asked the design may have forbidden transfers of a file. Holders of the design's locks may wait for that.
        if has_asked && self.space.map.is_left() {
            self.space.unhook_left();
        }
        self.space.engine.retire(&mut self.retired);
    }
}

impl<'a, H: Host, D: LockingDesign> RangeChange<'a, H, D> {
    /// Releases all that the call holds, in the order given at the type. Dropping the call does the same.
    #[inline(always)]
    pub fn finish(self) {
        drop(self);
    }

    /// Returns the state of the design, in a call that has asked it.
    pub fn work(&mut self) -> &mut D::Range<'a, H> {
        self.work.as_mut().expect("a call that changes mappings has asked the design")
    }

    /// Takes `range`, and returns the tree lock.
    #[inline]
    pub fn take(&mut self, range: PageRange) -> TreeLock<'a> {
        let (taken, lock) = self.space.map.take(range, &*self.space.engine);
        self.taken.hold(taken, None);
        lock
    }

    /// Takes two ranges that do not overlap, and returns the tree lock.
    pub fn take_both(&mut self, first: PageRange, second: PageRange) -> TreeLock<'a> {
        let ((first, second), lock) = self.space.map.take_both(first, second, &*self.space.engine);
        self.taken.hold(first, Some(second));
        lock
    }

    /// Takes the range that `choose` chooses, and returns the tree lock. Returns `None` if it chooses nothing.
    pub fn take_chosen(&mut self, choose: impl Fn(&TreeState, &Claims) -> Choice) -> Option<TreeLock<'a>> {
        let (taken, lock) = self.space.map.take_chosen(&*self.space.engine, self.space.whole(), choose)?;
        self.taken.hold(taken, None);
        Some(lock)
    }

    /// Holds the range that [`RangeChange::take_concurrent`] has taken, as [`RangeChange::take`] does.
    pub fn hold(&mut self, taken: RangeReservation<'a, H>) {
        self.taken.hold(taken, None);
    }

    /// Takes a second range, which no call has claimed.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the first one alone is taken.
    pub fn take_free(&mut self, range: PageRange, lock: &mut TreeLock<'a>) -> Result<(), OutOfMemory> {
        self.taken.0[1] = Some(self.space.map.take_free(range, &*self.space.engine, lock)?);
        Ok(())
    }

    /// Returns the range that is taken, or the first of two.
    pub fn range(&self) -> PageRange {
        self.taken.0[0].as_ref().expect(UNTAKEN).range()
    }

    /// Takes the tree lock once more.
    pub fn lock(&self) -> TreeLock<'a> {
        self.space.map.lock_by(&*self.space.engine)
    }

    /// Releases the ranges, to start over: nothing has been done. The caller does not hold the tree lock.
    #[inline]
    pub fn release(&mut self) {
        self.taken.0.iter_mut().for_each(|taken| drop(taken.take()));
    }

    /// Releases the ranges under the tree lock that the caller already has. Called only where nothing was swept.
    pub fn release_locked(&mut self, mut lock: TreeLock<'_>) {
        for taken in &mut self.taken.0 {
            if let Some(taken) = taken.take() {
                taken.finish(&mut lock);
            }
        }
    }

    /// Excludes page work by every VMA of `range` that is `wanted`, for a design that does so by VMA. Called before anything is
    /// taken: a thread that has a VMA's lock may wait for ranges.
    pub fn exclude(&mut self, range: PageRange, wanted: impl Fn(&Mapping<H>) -> bool) {
        self.space.exclude(self.work(), range, wanted);
    }

    /// Sweeps as [`Space::sweep`], in a range taken, for a step that takes no page out. `changed` adds each page whose
    /// translation the step weakens.
    pub fn sweep(
        &mut self,
        range: PageRange,
        step: impl Fn(PageNumber, Entry) -> Entry,
        mut changed: impl FnMut(&mut Weakened, PageNumber, Entry, Entry),
    ) {
        let Self { space, weakened, taken, .. } = self;
        space.sweep(taken.over(range), range, step, |page, old, new| changed(weakened, page, old, new));
        weakened.swept(space, range);
    }

    /// Sweeps as [`Space::sweep`], in a range taken, for a step that leaves either no page or the page there was. When it
    /// returns, no processor uses the entries taken out, and their references are dropped.
    #[inline(never)]
    pub fn take_out(&mut self, range: PageRange, step: impl Fn(PageNumber, Entry) -> Entry) {
        let mut removed = FlushBatch::new(self.space);
        let taken = self.taken.over(range);
        self.space.sweep(taken, range, step, |page, old, _| removed.add(page, old));
        removed.weakened.swept(self.space, range);
        // Linux's commit 60bae7370896: the mutant's call does not wait for the flush.
        if mutant!("discard_without_invalidate") {
            removed.weakened.forget();
        }
        removed.flush();
    }

    /// Sweeps all pages of `range`, which is a hole or BUSY by now, and takes out the leaf tables that lie wholly inside
    /// `tables`. When it returns, no processor uses any of them.
    #[inline(never)]
    pub fn sweep_away(&mut self, range: PageRange, tables: Option<PageRange>) {
        let Self { space, taken, retired, .. } = self;
        let mut removed = FlushBatch::new(space);
        let taken = taken.over(range);
        space.empty(taken, (range, range), &mut removed);
        removed.weakened.swept(space, range);
        if let Some(tables) = tables {
            space.unhook_leaves(taken, tables, &mut removed.weakened, retired);
        }
        removed.flush();
    }

    /// Takes out the leaf tables of a hole that has been swept. Its first and last table may reach beyond the taken range. The
    /// rest of these tables is taken too if it is a hole.
    pub fn unhook_around(&mut self, hole: PageRange) {
        let tables = self.around(hole);
        let Self { space, weakened, taken, retired, .. } = self;
        space.unhook_leaves(taken.over(tables), tables, weakened, retired);
    }

    /// Returns a hole that is taken, with the rest of its first and last leaf table where that is a hole too. Takes that rest.
    pub fn around(&mut self, hole: PageRange) -> PageRange {
        let Self { space, taken, .. } = self;
        let taken = taken.over_mut(hole);
        let mut lock = taken.lock();
        let (map, claims) = lock.parts();
        let wider = space.with_leaves(taken, claims, space.tree.view_locked(&map.writer), hole);
        let is_taken = taken.range().covers(wider) || taken.widen(taken.range().hull(wider), claims);
        drop(lock);
        if is_taken { wider } else { hole }
    }

    /// Invalidates weakened translations. When it returns, no processor uses them. Called before page work goes on in a
    /// range that is still taken.
    #[inline]
    pub fn flush(&mut self) {
        self.weakened.flush(self.space);
    }
}
