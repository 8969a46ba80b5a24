//! A call that does range work: what it holds, and the one order in which it lets go.

use crate::address::{PageNumber, PageRange};
use crate::design::{Call, LockingDesign};
use crate::host::{Entry, Host, OutOfMemory};
use crate::space::change::range_work::{FlushBatch, RangeReservation, TreeLock, Weakened};
use crate::space::{Space, TreeState};
use crate::sync::{Choice, Claims, RetiredList};
use crate::vma::Mapping;

/// A call that does range work, and all that it holds but the tree lock. A verb makes it first, so that Rust drops it last, on
/// each way out: the tree lock and sections are locals of the verb, and go before it. When it is dropped, it lets go in this
/// order:
///
/// ```text
///   (the sweep; leaf tables are unhooked)   by then the verb has done this
///   invalidate                              the pages swept, and all pages of the tables unhooked (invariant 15)
///   frames                                  their references are dropped
///   the ranges taken
///   what the design keeps                   other calls go on from here
///   leaf tables that were left              by those who had claims in one table with us: the last one frees it
///   shared tables under a locked mapping    replaced by the space's own (rule H6 of docs/home.md)
///   what was replaced or unhooked           retired, when nothing is held
/// ```
pub(in crate::space) struct RangeChange<'a, H: Host, D: LockingDesign> {
    pub space: &'a Space<H, D>,
    /// What processors may still use, of pages whose frames stay, and of leaf tables.
    pub weakened: Weakened,
    /// Most calls take one range, mremap two.
    pub taken: TakenRanges<'a, H>,
    /// None: nobody asked the design, since no mapping changes.
    work: Option<D::Range<'a, H>>,
    /// Things that it has replaced and unhooked.
    pub retired: RetiredList,
    /// Where it has published a locked mapping, whose tables are to be the space's own.
    pub locked: Option<PageRange>,
}

/// The ranges that a call has taken.
pub(in crate::space) struct TakenRanges<'a, H: Host>([Option<RangeReservation<'a, H>>; 2]);

impl<'a, H: Host> TakenRanges<'a, H> {
    /// The one that covers `range`.
    #[inline]
    pub fn over(&self, range: PageRange) -> &RangeReservation<'a, H> {
        match &self.0 {
            [Some(first), _] if first.range().covers(range) => first,
            [_, Some(second)] if second.range().covers(range) => second,
            _ => panic!("{UNTAKEN}"),
        }
    }

    /// The same.
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

const UNTAKEN: &str = "range work on what is not taken";

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Begins a call, and asks the design for what it needs for `range`. Call it before any range is taken.
    #[inline(always)]
    pub(in crate::space) fn change(&self, call: Call, range: PageRange) -> RangeChange<'_, H, D> {
        let work = D::range_work(&self.lock, &self.engine, &self.tree, call, range);
        self.engine.assert_may_sleep("the tree lock");
        self.begin(Some(work))
    }

    /// The same, and excludes page work by the VMAs of the range.
    #[inline(always)]
    pub(in crate::space) fn change_excluding(&self, call: Call, range: PageRange) -> RangeChange<'_, H, D> {
        let mut work = D::range_work(&self.lock, &self.engine, &self.tree, call, range);
        self.engine.assert_may_sleep("the tree lock");
        // Before it is part of the call, which is too large to be moved.
        self.exclude(&mut work, range, |_| true);
        self.begin(Some(work))
    }

    /// Begins a call that takes ranges and changes no mapping: the design is not asked.
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

    /// Takes out the leaf tables that somebody could not, since others had claims there, who have let go by now.
    #[cold]
    fn unhook_left(&self) {
        while let Some(span) = self.map.find_left(&*self.engine) {
            let work = D::range_work(&self.lock, &self.engine, &self.tree, Call::Unmap, span);
            let Some((taken, lock)) = self.map.take_left(span, &*self.engine) else { continue };
            let is_hole = self.is_hole(self.tree.view_locked(&lock.writer), span);
            drop(lock);
            let mut tables = RetiredList::new();
            if is_hole {
                // Nothing to sweep: who made a hole of a part of it has swept that.
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
        // Should the host panic here, what is retired below is leaked: a processor may use it.
        self.flush();
        self.release();
        self.work = None;
        if let Some(locked) = self.locked {
            self.space.own_locked_tables(locked);
        }
        if self.space.map.is_left() {
            self.space.unhook_left();
        }
        self.space.engine.retire(&mut self.retired);
    }
}

impl<'a, H: Host, D: LockingDesign> RangeChange<'a, H, D> {
    /// Lets all go, in the order that stands at the type; so does dropping it.
    #[inline(always)]
    pub fn finish(self) {
        drop(self);
    }

    /// What the design keeps, for one who has asked it.
    pub fn work(&mut self) -> &mut D::Range<'a, H> {
        self.work.as_mut().expect("a call that changes mappings has asked the design")
    }

    /// Takes `range`; the tree lock comes too.
    #[inline]
    pub fn take(&mut self, range: PageRange) -> TreeLock<'a> {
        let (taken, lock) = self.space.map.take(range, &*self.space.engine);
        self.taken.hold(taken, None);
        lock
    }

    /// Takes two ranges that do not overlap.
    pub fn take_both(&mut self, first: PageRange, second: PageRange) -> TreeLock<'a> {
        let ((first, second), lock) = self.space.map.take_both(first, second, &*self.space.engine);
        self.taken.hold(first, Some(second));
        lock
    }

    /// Takes what `choose` chooses. None: nothing.
    pub fn take_chosen(&mut self, choose: impl Fn(&TreeState, &Claims) -> Choice) -> Option<TreeLock<'a>> {
        let (taken, lock) = self.space.map.take_chosen(&*self.space.engine, self.space.whole(), choose)?;
        self.taken.hold(taken, None);
        Some(lock)
    }

    /// As [`RangeChange::take`]: what [`Space::take_concurrent`] has taken.
    pub fn hold(&mut self, taken: RangeReservation<'a, H>) {
        self.taken.hold(taken, None);
    }

    /// Takes a second range, which nobody has claimed.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the first one alone is taken.
    pub fn take_free(&mut self, range: PageRange, lock: &mut TreeLock<'a>) -> Result<(), OutOfMemory> {
        self.taken.0[1] = Some(self.space.map.take_free(range, &*self.space.engine, lock)?);
        Ok(())
    }

    /// The range that is taken, or the first of two.
    pub fn range(&self) -> PageRange {
        self.taken.0[0].as_ref().expect(UNTAKEN).range()
    }

    /// The tree lock, once more.
    pub fn lock(&self) -> TreeLock<'a> {
        self.space.map.lock_by(&*self.space.engine)
    }

    /// Lets the ranges go, to start over: nothing has been done. The caller has not the tree lock.
    #[inline]
    pub fn release(&mut self) {
        self.taken.0.iter_mut().for_each(|taken| drop(taken.take()));
    }

    /// Lets the ranges go under the tree lock that the caller already has. Only where nothing was swept.
    pub fn release_locked(&mut self, mut lock: TreeLock<'_>) {
        for taken in &mut self.taken.0 {
            if let Some(taken) = taken.take() {
                taken.finish(&mut lock);
            }
        }
    }

    /// Excludes page work by every VMA of `range` that is `wanted`, for a design that does so by VMA. Before anything is taken:
    /// who has a VMA's lock may wait for ranges.
    pub fn exclude(&mut self, range: PageRange, wanted: impl Fn(&Mapping<H>) -> bool) {
        self.space.exclude(self.work(), range, wanted);
    }

    /// As [`Space::sweep`], of what is taken, for a step that takes no page out. `changed` says what is weakened.
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

    /// As [`Space::sweep`], of what is taken, for a step that leaves no page or what there was. When it returns, no processor
    /// uses what was taken out, whose references are dropped.
    #[inline(never)]
    pub fn take_out(&mut self, range: PageRange, step: impl Fn(PageNumber, Entry) -> Entry) {
        let mut removed = FlushBatch::new(self.space);
        let taken = self.taken.over(range);
        self.space.sweep(taken, range, step, |page, old, _| removed.add(page, old));
        removed.weakened.swept(self.space, range);
        // 60bae7370896: the call does not wait for the flush.
        #[cfg(mutant = "discard_without_invalidate")]
        removed.weakened.forget();
        removed.flush();
    }

    /// Sweeps all pages of `range` away, which is a hole or BUSY by now, and takes out the leaf tables that lie wholly inside
    /// `tables`. When it returns, no processor uses any of that.
    #[inline(never)]
    pub fn sweep_away(&mut self, range: PageRange, tables: Option<PageRange>) {
        let Self { space, taken, retired, .. } = self;
        let mut removed = FlushBatch::new(space);
        let taken = taken.over(range);
        space.sweep(taken, range, |_, _| Entry::EMPTY, |page, old, _| removed.add(page, old));
        removed.weakened.swept(space, range);
        if let Some(tables) = tables {
            space.unhook_leaves(taken, tables, &mut removed.weakened, retired);
        }
        removed.flush();
    }

    /// Takes out the leaf tables of a hole that has been swept. Its first and last table may reach beyond the taken range: the
    /// rest of these is taken too if that is a hole.
    pub fn unhook_around(&mut self, hole: PageRange) {
        let tables = self.around(hole);
        let Self { space, weakened, taken, retired, .. } = self;
        space.unhook_leaves(taken.over(tables), tables, weakened, retired);
    }

    /// A hole that is taken, and the rest of its first and last leaf table if that is a hole too, which is taken then.
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

    /// Returns when no processor uses what was weakened: before page work goes on in a range that is taken still.
    #[inline]
    pub fn flush(&mut self) {
        self.weakened.flush(self.space);
    }
}
