//! Range work: take the range, publish the new mappings, sweep the entries, and only then give frames away.

use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::engine::{Engine, RemovedEntries};
use crate::host::{Entry, FrameSource, Host, OutOfMemory, PageTable};
use crate::protection::Protection;
use crate::space::fault::shared_table::LeafOf;
use crate::space::{Space, TreeState};
use crate::sync::{Claims, RangesGuard, Reservation, RetiredList};
use crate::vma::tree::{Ranged, View};
use crate::vma::{Mapping, Vma};
use alloc::vec::Vec;

pub(in crate::space) type RangeReservation<'a, H> = Reservation<'a, TreeState, Engine<H>>;
pub(in crate::space) type TreeLock<'a> = RangesGuard<'a, TreeState>;

/// The number of entries that are taken out of a table before they are noted together.
#[cfg(not(loom))]
const CHUNK: usize = 32;
#[cfg(loom)]
const CHUNK: usize = 2;

/// The distance, in entries, at which folios' words are fetched ahead of the entry that is taken out.
const AHEAD: u64 = 8;

/// Pages whose translations were weakened, and pages of leaf tables that are unhooked. A processor may still use the
/// old translations until they are invalidated.
#[derive(Default)]
pub(in crate::space) struct Weakened(Option<PageRange>);

impl Weakened {
    /// Makes an empty set of pages.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Adds `page`: its translation was weakened, and no frame goes.
    pub fn touch(&mut self, page: PageNumber) {
        self.touch_all(PageRange::single(page));
    }

    /// Adds `range`: its translations were weakened, or a leaf table over it was unhooked.
    pub fn touch_all(&mut self, range: PageRange) {
        self.0 = Some(self.0.map_or(range, |all| all.hull(range)));
    }

    /// Adds `range`, all of which was swept. Another thread may have weakened a part before, and not invalidated it yet.
    #[inline]
    pub fn swept<H: Host, D: LockingDesign>(&mut self, space: &Space<H, D>, range: PageRange) {
        if space.engine.has_stale() && !mutant!("slots_without_invalidate") {
            self.touch_all(range);
        }
    }

    /// Forgets all pages, for mutants: removed pages can still be reached when they are freed.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    /// Invalidates all pages added.
    #[inline]
    pub fn flush<H: Host, D: LockingDesign>(&mut self, space: &Space<H, D>) {
        if let Some(range) = self.0.take() {
            space.engine.invalidate(&space.table, range);
        }
    }
}

/// Entries that are gone, which a processor may still use until `invalidate`. The code that makes a batch also flushes it. When
/// a panic unwinds, the flush does not happen, and what the entries count is leaked. The batch is large: it lives on the stack
/// during a sweep, and not while the tree changes.
pub(in crate::space) struct FlushBatch<'a, H: Host, D: LockingDesign> {
    space: &'a Space<H, D>,
    entries: RemovedEntries,
    /// The pages of the entries, and those of tables that were unhooked.
    pub weakened: Weakened,
    /// The number of entries with a page that came here so far.
    pub count: u64,
}

impl<'a, H: Host, D: LockingDesign> FlushBatch<'a, H, D> {
    /// Makes an empty batch.
    #[inline]
    pub fn new(space: &'a Space<H, D>) -> Self {
        Self { space, entries: RemovedEntries::default(), weakened: Weakened::new(), count: 0 }
    }

    /// Takes over the counts of `entries`, which were in `part` and hold pages.
    #[inline]
    fn add_all(&mut self, part: PageRange, entries: &[Entry]) {
        if entries.is_empty() {
            return;
        }
        if !self.entries.has_room_for(entries.len()) {
            self.flush();
        }
        self.entries.push_all(entries);
        self.count += entries.len() as u64;
        // The mutant takes an absent page for one that no processor uses.
        if !mutant!("slots_without_invalidate") || entries.iter().any(|entry| !entry.is_absent()) {
            self.weakened.touch_all(part);
        }
    }

    /// Takes over the count of `entry`, which was at `page`. An absent page is invalidated like a present one.
    pub fn add(&mut self, page: PageNumber, entry: Entry) {
        if !entry.holds_page() {
            return;
        }
        if !self.entries.has_room() {
            self.flush();
        }
        self.entries.push(entry);
        self.count += 1;
        // The mutant takes an absent page for one that no processor uses.
        if !entry.is_absent() || !mutant!("slots_without_invalidate") {
            self.weakened.touch(page);
        }
    }

    /// Invalidates, then drops the references (rule 6).
    pub fn flush(&mut self) {
        self.weakened.flush(self.space);
        self.entries.drop_all(&self.space.engine);
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Excludes page work by every VMA of `range` that is `wanted`, for a design that does so by VMA. Called before the range
    /// is taken: a thread that has a VMA's lock may wait for ranges. The design keeps others from changing the tree meanwhile.
    pub(in crate::space) fn exclude<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        range: PageRange,
        wanted: impl Fn(&Mapping<H>) -> bool,
    ) {
        let mut rest = D::LOCKS_VMAS.then_some(range);
        while let Some(part) = rest.take() {
            let lock = self.map.lock_by(&*self.engine);
            let vmas = self.tree.view_locked(&lock.writer).from(part.start());
            let in_use = vmas
                .take_while(|vma| vma.range().start() < part.end())
                .filter(|vma| wanted(vma.mapping()))
                .find(|vma| D::exclude(work, &self.engine, vma.lock()).is_err())
                .map(|vma| vma.range().start().max(part.start()));
            drop(lock);
            if let Some(start) = in_use {
                D::await_page_work(work, &self.engine);
                rest = PageRange::new(start, part.end());
            }
        }
    }

    /// Has a host with mappings of its own follow the change that is about to be published. The range is taken, so no
    /// other call changes its map while the tree lock is released.
    pub(in crate::space) fn follow<'s>(
        &'s self,
        taken: &RangeReservation<'_, H>,
        lock: TreeLock<'s>,
        range: PageRange,
        rights: Option<Protection>,
    ) -> Result<TreeLock<'s>, OutOfMemory> {
        debug_assert!(taken.range().covers(range));
        if self.table.following().is_none() {
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

    /// Has the host follow the map as it is, since the change was not published. If the host refuses a part now, it
    /// has refused it before, and that part is as it was.
    pub(in crate::space) fn follow_back(&self, taken: &RangeReservation<'_, H>, range: PageRange) {
        let _ = self.follow_map(taken, range);
    }

    /// Has the host follow the map as it is.
    pub(in crate::space) fn follow_map(
        &self,
        taken: &RangeReservation<'_, H>,
        range: PageRange,
    ) -> Result<(), OutOfMemory> {
        if self.table.following().is_none() {
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

    /// Visits every existing entry of the range taken. Waits where an entry has the bit, and replaces each entry by the
    /// entry that `step` returns for it. When it returns, any thread that looked the old mapping up has finished.
    pub(in crate::space) fn sweep(
        &self,
        taken: &RangeReservation<'_, H>,
        range: PageRange,
        step: impl Fn(PageNumber, Entry) -> Entry,
        mut changed: impl FnMut(PageNumber, Entry, Entry),
    ) {
        debug_assert!(taken.range().covers(range));
        self.each_table(taken, range, |part| {
            // No thread is at work on a shared table: one that comes later has seen the mark after the sweep, and so the new
            // map.
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
                        // No step replaces a page by another one.
                        if !new.holds_page() {
                            self.leave_home(leaf, page, seen);
                        }
                        changed(page, seen, new);
                        break;
                    }
                }
            }
        });
    }

    /// Takes all entries of the range taken out, and waits where an entry has the bit. All of `gone`, which covers the range, is a
    /// hole or BUSY: if a table that other spaces share has to be replaced, entries of `gone` are not copied. When it returns,
    /// any thread that looked the old mapping up has finished.
    pub(in crate::space) fn empty(
        &self,
        taken: &RangeReservation<'_, H>,
        (range, gone): (PageRange, PageRange),
        removed: &mut FlushBatch<'_, H, D>,
    ) {
        debug_assert!(taken.range().covers(range) && gone.covers(range));
        self.each_table(taken, range, |part| {
            // As in `sweep`, of which this is the form for entries that all go.
            let becomes = |page, entry| if gone.contains(page) { Entry::EMPTY } else { entry };
            let changes = |_, entry| entry != Entry::EMPTY;
            if self.has_shared_table(taken, part.start()) && !self.own_table(part, becomes, changes) {
                return;
            }
            let Some(leaf) = self.table.leaf(taken, part.start()) else { return };
            let mut rest = Some(part);
            while let Some(part) = rest {
                let end = PageNumber::new(part.start().get() + CHUNK as u64).min(part.end());
                rest = PageRange::new(end, part.end());
                if let Some(chunk) = PageRange::new(part.start(), end) {
                    self.empty_chunk(leaf, chunk, removed);
                }
            }
        });
    }

    /// Takes the entries of `chunk` out of `leaf`, which is this space's own.
    #[inline]
    fn empty_chunk<'t>(&'t self, leaf: LeafOf<'t, H>, chunk: PageRange, removed: &mut FlushBatch<'_, H, D>) {
        let (mut entries, mut count) = ([Entry::EMPTY; CHUNK], 0);
        for page in chunk.iter() {
            let ahead = PageNumber::new(page.get() + AHEAD);
            if ahead < chunk.end()
                && let Some(frame) = self.table.load(leaf, ahead).counted_frame()
            {
                self.engine.host().frames().prefetch(frame);
            }
            let (mut seen, mut look) = (self.table.load(leaf, page), 0);
            while seen != Entry::EMPTY {
                if seen.is_announced() && !mutant!("sweeps_past_the_bit") {
                    self.engine.pause_on_bit(look);
                    look += 1;
                    seen = self.table.load(leaf, page);
                    continue;
                }
                match self.table.exchange(leaf, page, seen, Entry::EMPTY) {
                    Err(now) => seen = now,
                    Ok(()) => {
                        if seen.holds_page() {
                            self.leave_home(leaf, page, seen);
                            entries[count] = seen;
                            count += 1;
                        }
                        break;
                    }
                }
            }
        }
        removed.add_all(chunk, &entries[..count]);
    }

    /// Calls `f` for every leaf table under the range, with the part of the range that it covers. Each is this space's own.
    pub(in crate::space) fn each_leaf<'t>(
        &'t self,
        taken: &'t RangeReservation<'_, H>,
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

    /// Calls `f` for the part of the range under every existing leaf table.
    pub(in crate::space) fn each_table(
        &self,
        taken: &RangeReservation<'_, H>,
        range: PageRange,
        mut f: impl FnMut(PageRange),
    ) {
        let mut rest = Some(range);
        while let Some(range) = rest {
            let Some(page) = self.table.next_leaf(taken, range) else { break };
            let part = self.leaf_span(page).intersection(range);
            rest = part.and_then(|part| PageRange::new(part.end(), range.end()));
            part.into_iter().for_each(&mut f);
        }
    }

    /// Returns the pages of the leaf table over `page`.
    pub(in crate::space) fn leaf_span(&self, page: PageNumber) -> PageRange {
        let pages = H::Table::LEAF_PAGES;
        let start = page.align_down(pages);
        PageRange::with_pages(start, pages).expect("the table's pages have addresses")
    }

    /// Widens a range that is about to become a hole to whole leaf tables, where the rest of a table is a hole too. So the
    /// table can go with its last mapping.
    pub(in crate::space) fn widen_to_leaves(
        &self,
        taken: &mut RangeReservation<'_, H>,
        claims: &mut Claims,
        view: View<'_, Vma<H, D>>,
    ) {
        let wider = self.with_leaves(taken, claims, view, taken.range());
        if wider != taken.range() {
            taken.widen(wider, claims);
        }
    }

    /// Returns `range`, which is taken and becomes a hole, and the rest of the leaf tables at its ends, where that is a hole
    /// and no other call has claimed any of it.
    ///
    /// If others have claims there, and nothing else is in the way, the last of these calls takes the table out:
    /// [`RangeChange`](crate::space::change::range_change::RangeChange). A later call finds our claim, or our hole. Without
    /// memory to remember the table, it stays until a call makes a hole of all of it, or the space goes.
    pub(in crate::space) fn with_leaves(
        &self,
        taken: &RangeReservation<'_, H>,
        claims: &mut Claims,
        view: View<'_, Vma<H, D>>,
        range: PageRange,
    ) -> PageRange {
        let first = self.leaf_span(range.start());
        let last = self.leaf_span(PageNumber::new(range.end().get() - 1));
        let (head, tail) =
            (PageRange::new(first.start(), range.start()), PageRange::new(range.end(), last.end()));
        let mut wider = range;
        for (span, rest) in [(first, head), (last, tail)] {
            let Some(rest) = rest else { continue };
            let mut mapped = view.from(rest.start()).map_while(|vma| vma.range().intersection(rest));
            if !claims.is_claimed_beside(taken, rest) {
                wider = if mapped.next().is_none() { wider.hull(rest) } else { wider };
            } else if !mutant!("leaf_left_to_nobody")
                && mapped.all(|part| claims.is_claimed_beside(taken, part))
            {
                let _ = taken.leave(span, claims);
            }
        }
        wider
    }

    /// Returns whether nothing is mapped in `range`.
    pub(in crate::space) fn is_hole(&self, view: View<'_, Vma<H, D>>, range: PageRange) -> bool {
        view.from(range.start()).next().is_none_or(|vma| vma.range().start() >= range.end())
    }

    /// Takes out the leaf tables that lie wholly inside `range`, which is a hole or BUSY, and swept (rule 7). The tables may be
    /// freed when `weakened` has been flushed, and not before. A processor's walker is in no section, and keeps what it has
    /// read of the upper tables until the flush reaches it (invariant 15).
    pub(in crate::space) fn unhook_leaves(
        &self,
        taken: &RangeReservation<'_, H>,
        range: PageRange,
        weakened: &mut Weakened,
        retired: &mut RetiredList,
    ) {
        debug_assert!(taken.range().covers(range));
        let mut rest = Some(range);
        while let Some(part) = rest {
            let Some(page) = self.table.next_leaf(taken, part) else { break };
            let span = self.leaf_span(page);
            rest = PageRange::new(span.end(), range.end());
            let whole = range.covers(span) || mutant!("leaf_with_neighbour") && range.overlaps(span);
            // Without memory to remember it, the table stays until the space goes.
            if whole && retired.try_reserve(1).is_ok() {
                if self.has_shared_table(taken, page) {
                    self.own_table(span, |_, _| Entry::EMPTY, |_, _| true);
                }
                if mutant!("invalidate_before_unhook") {
                    weakened.touch_all(span);
                    weakened.flush(self);
                }
                self.leave_family(page);
                retired.extend(self.table.unhook(page));
                if !mutant!("invalidate_before_unhook") {
                    weakened.touch_all(span);
                }
            }
        }
    }
}
