//! fork: range work on the whole space. At one instant inside it, the child's private memory equals the parent's (invariant 7).
//! Page work is stopped, and the entries are copied and lose their write right. Page work goes on only when no processor uses
//! an older translation. That is the instant: until then, stores by older translations reach pages that both spaces have.
//!
//! A design with locks in VMAs stops page work VMA by VMA, each before it is copied ([`one_by_one`]), if no leaf tables are shared.

mod copies;
mod one_by_one;

use crate::address::{PageNumber, PageRange};
use crate::design::{Call, LockingDesign};
use crate::errno;
use crate::frame::MAX_SAME_PAGE;
use crate::host::{Entry, FrameSource, Host, OutOfMemory, PageTable};
use crate::page_cache::{Hull, MOST_TURNS};
use crate::protection::{Protection, Sharing};
use crate::space::change::range_change::RangeChange;
use crate::space::change::range_work::{RangeReservation, Weakened};
use crate::space::fault::shared_table::LeafOf;
use crate::space::limits::SpaceUsage;
use crate::space::{AddressSpace, Space};
use crate::stats::Counter;
use crate::sync::atomic::Ordering;
use crate::sync::{RangesGuard, RetiredList, try_box};
use crate::vma::tree::{Ranged, View};
use crate::vma::{AnonId, AnonRecord, Backing, Mapping, MappingFlags, Vma};
use alloc::boxed::Box;
use alloc::vec::Vec;
use copies::Copies;

/// The distance, in pages, at which folios' words are fetched ahead of the page being copied.
const AHEAD: u64 = 8;

/// The reason why there is no child. The parent is as before, and no thread has seen half a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForkError {
    /// There is no memory for the child's tables and nodes (ENOMEM).
    #[error("out of memory to fork")]
    OutOfMemory,
    /// The space has exited (ENOMEM).
    #[error("the space has exited")]
    Exited,
}

impl ForkError {
    /// Returns Linux's error number: ENOMEM.
    pub fn errno(&self) -> i32 {
        match self {
            Self::OutOfMemory | Self::Exited => errno::ENOMEM,
        }
    }
}

impl From<OutOfMemory> for ForkError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// The reason why one try to fork has failed. The parent is as before.
enum Failed {
    /// There was no free frame for the copy of a page. The number of copies that the fork makes in all.
    NoFrame(u64),
    /// Another try would fail too.
    For(ForkError),
}

impl From<OutOfMemory> for Failed {
    fn from(out_of_memory: OutOfMemory) -> Self {
        Self::For(out_of_memory.into())
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Makes a child with the same mappings. Its private memory equals the parent's at one instant during the call.
    ///
    /// Waits for other range work and for faults at work, for no I/O. Faults of the parent wait while entries are copied. The
    /// child lacks mappings with [`MappingFlags::DONT_FORK`], has those with [`MappingFlags::WIPE_ON_FORK`] empty, and has no
    /// locks. It has copies of its own of the anonymous pages of mappings with [`MappingFlags::COPY_AT_FORK`]. Faults of the
    /// parent wait while these copies are made.
    ///
    /// # Errors
    /// [`ForkError`]; the parent is as before.
    pub fn fork(&self) -> Result<Self, ForkError> {
        let (engine, group, mut look, mut turns) = (&self.0.engine, self.0.group(), 0, 0);
        loop {
            match self.try_fork() {
                Ok(child) => return Ok(child),
                Err(Failed::For(error)) => return Err(error),
                // Nothing is held here, and the copies that were made are gone again. All have to be there together.
                Err(Failed::NoFrame(copies)) => match engine.make_room(group, copies, &mut look) {
                    Ok(()) => {}
                    Err(full)
                        if engine.could_have_room(full, copies)
                            && engine.end_a_victim((full, copies), &self.0.space_flags.dying, &mut turns) =>
                    {
                        look = 0;
                    }
                    Err(_) => return Err(ForkError::OutOfMemory),
                },
            }
            // Other threads may take each frame that is made free.
            turns += 1;
            if turns > MOST_TURNS {
                return Err(ForkError::OutOfMemory);
            }
        }
    }

    /// Tries once to make a child.
    #[inline(never)]
    fn try_fork(&self) -> Result<Self, Failed> {
        let space = &*self.0;
        let table = space.engine.host().child_table(space.engine.sections(), &space.table)?;
        // SAFETY: new, and of this engine's host.
        let child = unsafe { Self::with_table_in(&space.engine, table, space.limit.clone()) }?;
        self.fork_into(child)
    }

    /// Makes `child`, which is empty, the child. Not inlined: the stack has no room for this and for the making of a space.
    #[inline(never)]
    fn fork_into(&self, child: Self) -> Result<Self, Failed> {
        let space = &*self.0;
        let whole = space.whole();
        let mut call = space.change(Call::Fork, whole);
        if D::LOCKS_VMAS && !space.may_share_tables() {
            let made = space.fork_one_by_one(&mut call, &child);
            call.finish();
            return made.map(|()| child);
        }
        call.exclude(whole, D::fork_excludes);
        let lock = call.take(whole);
        if lock.exited {
            return Err(Failed::For(ForkError::Exited));
        }
        // All memory but that of the child's tables and of copies of pages is allocated before any thread is stopped. The tree
        // cannot change: the whole range is taken.
        let (child_taken, child_lock) = child.0.map.take(whole, &*space.engine);
        let mut child_lock = space.copy_mappings(&lock, &child, child_lock)?;
        child_lock.locks = lock.locks.of_child();
        child.0.space_flags.set_bias(space.space_flags.bias());
        let has_file_guards = lock.locks.file_guards;
        // From here on this waits for other processors, so the locks are released. Both trees stay as they are, since the whole
        // range of each is taken: a thread takes a range before it changes the tree there.
        drop(child_lock);
        drop(lock);
        let early =
            mutant!("fork_reads_records_early").then(|| space.pages_of_records(call.taken.over(whole)));
        let frozen = D::fork(&space.lock, &space.engine);
        let copied = space.copy_pages(&mut call, (&child.0, &child_taken), has_file_guards, early.as_deref());
        drop(frozen);
        let followed = child.0.follow_map(&child_taken, whole);
        drop(child_taken);
        let made = copied.and(followed.map_err(Failed::from));
        // As dup_mmap's error path: the half-made child stays where the files find it.
        if made.is_err() && mutant!("failed_fork_stays") {
            core::mem::forget(child.clone());
        }
        made?;
        Ok(child)
    }
}

/// The properties of a mapping on which it depends how its pages get into the child.
#[derive(Clone, Copy)]
struct Inherited {
    range: PageRange,
    /// Whether there are anonymous pages that the child gets.
    has_pages: bool,
    /// Whether the pages themselves are copied at once.
    is_copied: bool,
    /// Whether there may be guard pages that the child gets, and no anonymous ones.
    may_have_guards: bool,
    /// The right to store, if the mapping gives it.
    write: u64,
    #[cfg(loom)]
    record: Option<AnonId>,
}

impl Inherited {
    /// Returns the properties of a mapping. Its copy's record has begun, if it is to.
    fn of<H: Host, D: LockingDesign>(vma: &Vma<H, D>, copy: &Vma<H, D>) -> Self {
        Self {
            range: vma.range(),
            has_pages: copy.record().and_then(AnonRecord::id).is_some(),
            is_copied: is_copied_at_fork(vma),
            may_have_guards: !vma.mapping().flags.contains(MappingFlags::WIPE_ON_FORK)
                && !is_plain_anonymous(vma),
            write: write_of(vma),
            #[cfg(loom)]
            record: vma.record().and_then(AnonRecord::id),
        }
    }
}

/// Returns whether a child gets this mapping.
fn is_inherited<H: Host, D: LockingDesign>(vma: &&Vma<H, D>) -> bool {
    !vma.mapping().flags.contains(MappingFlags::DONT_FORK)
}

/// Returns whether the mapping has anonymous pages, or had some.
fn has_anonymous_pages<H: Host, D: LockingDesign>(vma: &Vma<H, D>) -> bool {
    vma.record().is_some_and(|record| record.id().is_some())
}

/// Returns whether fork copies the pages of this mapping at once.
fn is_copied_at_fork<H: Host, D: LockingDesign>(vma: &Vma<H, D>) -> bool {
    vma.mapping().flags.contains(MappingFlags::COPY_AT_FORK)
}

/// Returns whether this is private anonymous memory. Guard pages in such memory have made a record.
fn is_plain_anonymous<H: Host, D: LockingDesign>(vma: &Vma<H, D>) -> bool {
    vma.record().is_some() && matches!(vma.mapping().backing, Backing::Anonymous)
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Gives the child copies of all mappings. Registers the child with their files when the mappings are complete, and before
    /// the child has its first page.
    #[inline(never)]
    fn copy_mappings<'c>(
        &self,
        lock: &RangesGuard<'_, crate::space::TreeState>,
        child: &'c AddressSpace<H, D>,
        mut map: RangesGuard<'c, crate::space::TreeState>,
    ) -> Result<RangesGuard<'c, crate::space::TreeState>, OutOfMemory> {
        let view = self.tree.view_locked(&lock.writer);
        let mut copies: Vec<Box<Vma<H, D>>> = Vec::new();
        copies.try_reserve_exact(lock.usage.mappings).map_err(|_| OutOfMemory)?;
        for vma in view.from(PageNumber::new(0)).filter(is_inherited) {
            let mapping = vma.glance();
            // A child has no locks.
            let flags = mapping.flags.difference(MappingFlags::LOCKS);
            let mapping = Mapping { anon: None, flags, ..mapping };
            // CVE-2024-27022: the mapping is linked before it is set up, and a truncation under way finds it.
            if mutant!("fork_links_early")
                && let Backing::File { file, first } = &mapping.backing
            {
                file.register(0, || child.as_mapped_by(), &Hull::of(mapping.range, *first))?;
            }
            copies.push(try_box(Vma::new(mapping))?);
        }
        // The child's tree is empty, so nothing is replaced.
        let made =
            child.0.tree.replace(&mut map.writer, self.whole(), &mut copies, &mut RetiredList::new())?;
        self.engine.charge(made);
        let copied = child.0.tree.view_locked(&map.writer).from(PageNumber::new(0)).map(Vma::mapping);
        map.usage = SpaceUsage::default().with(copied);
        (map.limits, map.heap) = (lock.limits, lock.heap);
        for vma in child.0.tree.view_locked(&map.writer).from(PageNumber::new(0)) {
            if !mutant!("fork_links_early")
                && let Backing::File { file, first } = &vma.mapping().backing
            {
                file.register(child.0.id, || child.as_mapped_by(), &Hull::of(vma.range(), *first))?;
            }
        }
        Ok(map)
    }

    /// Returns whether fork may share leaf tables between spaces of the engine.
    fn may_share_tables(&self) -> bool {
        self.table.sharing().is_some() && self.engine.limits().shared_entries <= H::Table::LEAF_PAGES
    }

    /// Lets the child have anonymous pages in `copy`, its copy of `vma`, before it has the first one.
    fn begin_copied_record(&self, vma: &Vma<H, D>, copy: &Vma<H, D>) {
        if let Some(record) = copy.record()
            && !vma.mapping().flags.contains(MappingFlags::WIPE_ON_FORK)
        {
            debug_assert!(vma.mapping().sharing == Sharing::Private);
            record.begin(AnonId::inherited(self.engine.next_serial()));
        }
    }

    /// Returns a view of the tree, all of which is taken.
    fn view_taken<'t>(&'t self, taken: &'t RangeReservation<'_, H>) -> View<'t, Vma<H, D>> {
        debug_assert!(taken.range().covers(self.whole()));
        // SAFETY: a thread takes a part of the tree before it changes it, and all of it is taken. When it was, the tree lock
        // was held and no edit was under way.
        unsafe { self.tree.view_still(taken) }
    }

    /// Returns which private mappings have anonymous pages now. For a mutant.
    fn pages_of_records(&self, taken: &RangeReservation<'_, H>) -> Vec<bool> {
        let lock = taken.lock();
        let view = self.tree.view_locked(&lock.writer);
        view.from(PageNumber::new(0)).filter(is_inherited).map(has_anonymous_pages).collect()
    }

    /// Gives the child the entries of every private mapping that has anonymous pages. Leaf tables are shared where that pays;
    /// the entries of the others are copied. The child faults pages of files in itself. Page work is stopped, and no lock is
    /// held: this waits for grace periods and invalidations.
    #[inline(never)]
    fn copy_pages(
        &self,
        call: &mut RangeChange<'_, H, D>,
        (child, child_taken): (&Self, &RangeReservation<'_, H>),
        has_file_guards: bool,
        early: Option<&[bool]>,
    ) -> Result<(), Failed> {
        let (taken, weakened) = (call.taken.over(self.whole()), &mut call.weakened);
        let pairs = || {
            let parents = self.view_taken(taken).from(PageNumber::new(0)).filter(is_inherited);
            parents.zip(child.view_taken(child_taken).from(PageNumber::new(0)))
        };
        for (i, (vma, copy)) in pairs().enumerate() {
            // This is read after page work has stopped: a fault may have made the first page since the mappings were copied.
            if early.map_or_else(|| has_anonymous_pages(vma), |early| early[i]) {
                self.begin_copied_record(vma, copy);
            }
        }
        // Pinned pages stay the parent's alone.
        let shares_more = early.is_none() && self.space_flags.pins.load(Ordering::Acquire) == 0;
        let (mut result, mut has_copies) = (Ok(()), false);
        let mut shared: Option<PageRange> = None;
        let mut mappings = pairs().peekable();
        self.each_table(taken, self.whole(), |span| {
            if result.is_err() {
                return;
            }
            // The thread that ends the space waits for this one.
            if self.space_flags.dying.is_set() {
                return result = Err(Failed::For(ForkError::Exited));
            }
            let vmas = self.view_taken(taken).from(span.start());
            match self.share_table(span, vmas, shares_more, child) {
                Ok(false) => {}
                Ok(true) => return shared = Some(shared.map_or(span, |shared| shared.hull(span))),
                Err(error) => return result = Err(error.into()),
            }
            while mappings.next_if(|(vma, _)| vma.range().end() <= span.start()).is_some() {}
            // A table that is shared already, and not to be shared this time, is replaced by the parent's own first.
            if self.has_shared_table(taken, span.start()) {
                self.own_table(span, |_, entry| entry, |_, _| true);
            }
            let Some(leaf) = self.table.leaf(taken, span.start()) else { return };
            while let Some(&(vma, copy)) = mappings.peek().filter(|(vma, _)| vma.range().start() < span.end())
            {
                let Some(part) = vma.range().intersection(span) else { return };
                let mapping = Inherited::of(vma, copy);
                let copied = match mapping.has_pages {
                    true => self.copy_entries(leaf, (child, child_taken), (part, mapping), weakened),
                    false if has_file_guards && mapping.may_have_guards => {
                        self.copy_guards(taken, (child, child_taken), part).map(|()| false)
                    }
                    false => Ok(false),
                };
                match copied {
                    Ok(some_to_copy) => has_copies |= some_to_copy,
                    Err(error) => return result = Err(Failed::from(error)),
                }
                if vma.range().end() > span.end() {
                    break;
                }
                mappings.next();
            }
        });
        if let Some(shared) = shared {
            // Page work that came to an entry before its table was shared ends before this returns.
            self.engine.grace();
            if !mutant!("shared_without_invalidate") {
                weakened.touch_all(shared);
            }
        }
        let copy_pages = || {
            let mut copies = Copies::default();
            let mappings = pairs().filter(|_| has_copies).map(|(vma, copy)| Inherited::of(vma, copy));
            let mut wanted = mappings.filter(|mapping| mapping.has_pages);
            wanted
                .try_for_each(|mapping| self.copy_now(taken, (child, child_taken), mapping, &mut copies))?;
            copies.all()
        };
        let early = mutant!("copied_before_invalidate").then(copy_pages);
        if !mutant!("fork_ignores_batches") {
            weakened.swept(self, self.whole());
        }
        // After this flush no processor writes through an old translation: the instant ends here.
        weakened.flush(self);
        result?;
        early.unwrap_or_else(copy_pages)
    }

    /// Shares the leaf table over `span` with the child if that is allowed and pays; `vmas` are those from its start on.
    ///
    /// All mappings there must be private, go to the child as they are and not be locked, and one must have anonymous pages.
    /// The table must have enough entries, or be shared already. Its pages must have room for one more count when it is copied.
    fn share_table<'v>(
        &self,
        span: PageRange,
        vmas: impl Iterator<Item = &'v Vma<H, D>>,
        shares_more: bool,
        child: &Self,
    ) -> Result<bool, OutOfMemory> {
        let enough = self.engine.limits().shared_entries;
        if !self.may_share_tables() {
            return Ok(false);
        }
        let (mut mapped, mut has_pages, mut of_files) = (0, false, 0);
        for vma in vmas.take_while(|vma| vma.range().start() < span.end()) {
            let flags = vma.mapping().flags;
            // Rule H6 forbids to share a table under a locked mapping.
            let is_locked = flags.contains(MappingFlags::LOCKED) && !mutant!("locked_table_shared");
            let not_shared = MappingFlags::WIPE_ON_FORK | MappingFlags::COPY_AT_FORK;
            let is_shareable = is_inherited(&vma) && !flags.intersects(not_shared) && !is_locked;
            let Some(record) = vma.record().filter(|_| is_shareable) else {
                return Ok(false);
            };
            has_pages |= record.id().is_some();
            // Each mapping shows a page of a file once. A space has an anonymous page once.
            of_files += u64::from(matches!(vma.mapping().backing, Backing::File { .. }));
            mapped += vma.range().intersection(span).map_or(0, PageRange::pages);
        }
        if mapped < enough || !has_pages || of_files > MAX_SAME_PAGE {
            return Ok(false);
        }
        let mut look = 0;
        loop {
            let section = self.engine.enter();
            let Some(leaf) = self.table.leaf(&section, span.start()) else { return Ok(false) };
            let is_entry = |page: &PageNumber| self.table.load(leaf, *page) != Entry::EMPTY;
            if !self.table.is_shared(leaf)
                && (!shares_more
                    || (span.iter().filter(is_entry).take(enough as usize).count() as u64) < enough)
            {
                return Ok(false);
            }
            let is_full = |page: PageNumber| self.engine.is_copy_full(self.table.load(leaf, page));
            if !self.engine.shared_tables.try_count(|| span.iter().any(is_full)) {
                return Ok(false);
            }
            let shared = self.table.share(leaf, &child.table, span.start(), self.engine.sections());
            drop(section);
            if let Ok(true) = shared {
                self.engine.counters().add(Counter::TablesShared, 1);
                return Ok(true);
            }
            self.engine.shared_tables.uncount();
            shared?;
            self.engine.pause_on_bit(look);
            look += 1;
        }
    }

    /// Copies the entries of `part` of `mapping`, which `leaf` covers. Returns true if some of the pages themselves are to be copied,
    /// since they are pinned, or since the mapping copies at fork. The child does not have these pages yet.
    fn copy_entries<'p>(
        &'p self,
        leaf: LeafOf<'p, H>,
        (child, child_taken): (&Self, &RangeReservation<'_, H>),
        (part, mapping): (PageRange, Inherited),
        weakened: &mut Weakened,
    ) -> Result<bool, OutOfMemory> {
        let mut to_copy = false;
        let mut child_leaf = None;
        for page in part.iter() {
            // Another processor may have written the folios' words last, at a fault. Some are fetched while this one is
            // counted.
            if let Some(ahead) = page.checked_add(AHEAD).filter(|ahead| part.contains(*ahead))
                && let Some(frame) = self.table.load(leaf, ahead).mapped_frame()
            {
                self.engine.host().frames().prefetch(frame);
            }
            let Some(entry) = self.announce_page(leaf, page) else {
                if self.table.load(leaf, page).is_guard() {
                    child.fill_guard(child_taken, page)?;
                }
                continue;
            };
            // The bit is held while the counts change: a thread that comes by the file or the folio waits for it.
            let related = match child_leaf {
                _ if mapping.is_copied && self.is_anonymous(entry) => Ok(false),
                Some(_) => Ok(true),
                // The child's range is taken, so its tables stay.
                None => self.make_relative(leaf, (child, child_taken), page).map(|leaf| {
                    child_leaf = Some(leaf);
                    true
                }),
            };
            let shared =
                related.and_then(|related| if related { self.engine.copy_entry(entry) } else { Ok(None) });
            match (shared, child_leaf) {
                // Truncation comes to the child after the parent, whose entry has our bit. By then this entry is there.
                (Ok(Some(new)), Some(child_leaf)) => child.table.fill(child_leaf, page, new),
                (Ok(_), _) => to_copy = true,
                (Err(error), _) => {
                    self.table.let_go(leaf, page);
                    return Err(error);
                }
            }
            // An old translation of an absent page may still give the right.
            if entry.has(Entry::WRITE) || entry.is_absent() && !mutant!("slots_copied_without_invalidate") {
                weakened.touch(page);
                // Nothing new is mapped, so a host needs no memory for this.
                if self.table.install(leaf, page, entry.without(Entry::WRITE)).is_ok() {
                    continue;
                }
            }
            self.table.let_go(leaf, page);
        }
        Ok(to_copy)
    }

    /// Returns whether `entry` has an anonymous page in memory.
    fn is_anonymous(&self, entry: Entry) -> bool {
        entry.counted_frame().is_some_and(|frame| self.engine.folio(frame).is_anonymous())
    }

    /// Returns the child's leaf table for copies of entries of `leaf`, the table over `page`. It is in the same family.
    fn make_relative<'p, 'c>(
        &'p self,
        leaf: LeafOf<'p, H>,
        (child, child_taken): (&'c Self, &'c RangeReservation<'_, H>),
        page: PageNumber,
    ) -> Result<LeafOf<'c, H>, OutOfMemory> {
        let child_leaf = child.table.make_leaf(child_taken, page)?;
        let mut look = 0;
        let sections = self.engine.sections();
        while !self.table.relate(leaf, (&child.table, child_leaf), sections)? {
            self.engine.pause_on_bit(look);
            look += 1;
        }
        Ok(child_leaf)
    }

    /// Sets the bit in the entry of `page` if it holds a page.
    pub(in crate::space) fn announce_page(
        &self,
        leaf: <H::Table as PageTable>::Leaf<'_>,
        page: PageNumber,
    ) -> Option<Entry> {
        let mut look = 0;
        loop {
            let entry = self.table.load(leaf, page);
            if entry.is_announced() {
                self.engine.pause_on_bit(look);
                look += 1;
                continue;
            }
            if !entry.holds_page() {
                return None;
            }
            if self.table.try_announce(leaf, page, entry) {
                return Some(entry);
            }
        }
    }
}

/// Returns the right to store, if the mapping gives it.
fn write_of<H: Host, D: LockingDesign>(vma: &Vma<H, D>) -> u64 {
    if vma.mapping().protection.contains(Protection::WRITE) { Entry::WRITE } else { 0 }
}
