//! Publication: one step in which the map of a range becomes another. Every new mapping comes through
//! [`RangeChange::publish_new`]. In the same step that function checks whether the space has exited and what the limits allow,
//! and adds the flags that mlockall set for new mappings. fork is the exception: it gives a child its mappings itself, since no
//! other thread has the child yet, and the parent has been checked.

use crate::address::PageRange;
use crate::design::LockingDesign;
use crate::host::{Host, OutOfMemory};
use crate::page_cache::Hull;
use crate::protection::{Protection, Sharing};
use crate::space::change::range_change::RangeChange;
use crate::space::change::range_work::TreeLock;
use crate::space::limits::SpaceUsage;
use crate::space::{LimitError, Space, TreeState};
use crate::sync::{Edited, full_fence, try_box};
use crate::vma::tree::{Ranged, View};
use crate::vma::{Backing, Mapping, MappingFlags, Vma, edit};
use alloc::boxed::Box;
use alloc::vec::Vec;
use smallvec::SmallVec;

/// A list that needs no memory from the allocator while it is short, as in most calls.
type Few<T> = SmallVec<[T; 3]>;

/// The reason why a new map could not be published. The old one stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Unpublished {
    OutOfMemory,
    /// The space would have more mappings than it may.
    TooMany {
        limit: usize,
    },
}

impl From<OutOfMemory> for Unpublished {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// The reason why a new mapping was not published. The old map stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Refused {
    /// The space has exited: nothing is mapped any more.
    Exited,
    Limit(LimitError),
    Unpublished(Unpublished),
}

impl From<LimitError> for Refused {
    fn from(error: LimitError) -> Self {
        Self::Limit(error)
    }
}

impl From<Unpublished> for Refused {
    fn from(error: Unpublished) -> Self {
        Self::Unpublished(error)
    }
}

impl From<OutOfMemory> for Refused {
    fn from(error: OutOfMemory) -> Self {
        Self::Unpublished(error.into())
    }
}

/// The origin of a new mapping. It decides which limits are checked, and whether mlockall's flags for new mappings apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Origin {
    /// The mapping is made by mmap or brk: it gets mlockall's flags for new mappings.
    Fresh,
    /// An existing mapping becomes longer, or is shown once more: the new one has its flags.
    Longer,
    /// Pages move there from another place. The mapping has `more` pages besides those that move.
    Moved { more: u64 },
}

/// A part of the new map: an old mapping's, changed or not, or a new one's.
struct Piece<H: Host> {
    mapping: Mapping<H>,
    /// Set if the mapping differs from before.
    is_new: bool,
    /// Set if the piece before it was part of the same VMA.
    goes_on: bool,
}

/// The neighbours that a new mapping may join, if they are like it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) struct Joins {
    pub below: bool,
    pub above: bool,
    /// Set if a part that stayed as it was joins too: it has been cut for the call.
    pub inside: bool,
    /// Set if the mapping is one that becomes longer. A mapping with pages that fork passed on then joins one without pages
    /// (Linux).
    pub grown: bool,
}

impl Joins {
    pub const BOTH: Self = Self { below: true, above: true, inside: false, grown: false };
    /// Joins only the neighbour above. A mapping that grows down and meets another one stays beside it, as on Linux.
    pub const ABOVE: Self = Self { below: false, above: true, inside: false, grown: false };
}

/// The change of each old mapping, the new mapping, and the neighbours that they may join.
pub(in crate::space) type RangeEdit<'a, H> =
    (&'a dyn Fn(Mapping<H>) -> Option<Mapping<H>>, Option<&'a Mapping<H>>, Joins);

/// The reason why there is no draft. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Undrafted {
    Unpublished(Unpublished),
    /// Page work uses a VMA that is to be replaced: see [`LockingDesign::exclude`].
    InUse,
}

impl From<Unpublished> for Undrafted {
    fn from(error: Unpublished) -> Self {
        Self::Unpublished(error)
    }
}

impl From<OutOfMemory> for Undrafted {
    fn from(error: OutOfMemory) -> Self {
        Self::Unpublished(error.into())
    }
}

/// A publication in preparation.
pub(in crate::space) struct Draft<H: Host, D: LockingDesign> {
    /// The range of pages that it replaces; `goes` is how many VMAs it replaces.
    pub hull: PageRange,
    pub goes: usize,
    pub new: Vec<Box<Vma<H, D>>>,
    /// The change of the space's usage.
    pub note: [u64; 4],
}

/// Fences after a publication. Partner: the fence after the bit in page work.
pub(in crate::space) fn fence_of_range_work() {
    if !mutant!("no_range_fence") {
        full_fence();
    }
}

impl<'a, H: Host, D: LockingDesign> RangeChange<'a, H, D> {
    /// Publishes, in one step, the results of `each` for every mapping inside `range`. Splits at the ends, and merges with
    /// neighbours.
    ///
    /// The caller has taken `range` and passes the tree lock, which is returned. The replaced VMAs are retired when all is
    /// released; the caller sweeps in between.
    ///
    /// # Errors
    /// [`Unpublished`]: the map is as before.
    pub fn publish(
        &mut self,
        lock: TreeLock<'a>,
        range: PageRange,
        each: impl Fn(Mapping<H>) -> Option<Mapping<H>>,
    ) -> Result<TreeLock<'a>, Unpublished> {
        self.publish_joining(lock, range, each, Joins::BOTH)
    }

    /// Publishes as [`RangeChange::publish`]; `joins` are the neighbours to merge with.
    pub fn publish_joining(
        &mut self,
        lock: TreeLock<'a>,
        range: PageRange,
        each: impl Fn(Mapping<H>) -> Option<Mapping<H>>,
        joins: Joins,
    ) -> Result<TreeLock<'a>, Unpublished> {
        self.replace(lock, range, (&each, None, joins))
    }

    /// Publishes `mapping` in place of all mappings in its range, if the limits allow it. Sets the mapping's final flags.
    ///
    /// # Errors
    /// [`Refused`]: the map is as before.
    #[inline]
    pub fn publish_new(
        &mut self,
        lock: TreeLock<'a>,
        (mapping, origin): (&mut Mapping<H>, Origin),
        joins: Joins,
    ) -> Result<TreeLock<'a>, Refused> {
        self.space.admit(&lock, mapping, origin)?;
        let late = mutant!("hull_after_publication").then(|| mapping.clone());
        if late.is_none() {
            self.space.tell_file(mapping);
        }
        let lock = self.replace(lock, mapping.range, (&|_| None, Some(mapping), joins))?;
        if mapping.flags.contains(MappingFlags::LOCKED) {
            self.locked = Some(self.locked.map_or(mapping.range, |all| all.hull(mapping.range)));
        }
        if let Some(mapping) = late {
            self.space.tell_file(&mapping);
        }
        Ok(lock)
    }

    /// Publishes as [`RangeChange::publish_new`] where nothing is mapped, or BUSY, with the host following.
    ///
    /// # Errors
    /// [`Refused`]: the map is as before.
    #[inline]
    pub fn publish_followed(
        &mut self,
        lock: TreeLock<'a>,
        new: (&mut Mapping<H>, Origin),
        joins: Joins,
    ) -> Result<TreeLock<'a>, Refused> {
        let (space, range) = (self.space, new.0.range);
        let lock = space.follow(self.taken.over(range), lock, range, Some(new.0.protection))?;
        let published = self.publish_new(lock, new, joins);
        published.inspect_err(|_| space.follow_back(self.taken.over(range), range))
    }

    /// Publishes a BUSY mapping in place of all mappings in `range`. It stands there until the next mapping comes, and
    /// page work waits there.
    pub fn publish_busy(
        &mut self,
        lock: TreeLock<'a>,
        range: PageRange,
    ) -> Result<TreeLock<'a>, Unpublished> {
        let busy = Mapping {
            range,
            protection: Protection::empty(),
            sharing: Sharing::Shared,
            flags: MappingFlags::empty(),
            backing: Backing::Busy,
            serial: 0,
            shift: 0,
            anon: None,
        };
        self.replace(lock, range, (&|_| None, Some(&busy), Joins::BOTH))
    }

    /// Ends MOVING of all mappings in the range, and joins them with their neighbours if there is memory for that. Page work
    /// goes on there. The caller guarantees that no processor uses swept entries.
    pub fn settle(&mut self, range: PageRange, joins: Joins) {
        self.flush();
        let lock = self.lock();
        let vmas = self.space.tree.view_locked(&lock.writer).from(range.start());
        vmas.take_while(|vma| vma.range().start() < range.end()).for_each(|vma| vma.settle());
        let _ = self.publish_joining(lock, range, Some, joins);
    }

    fn replace(
        &mut self,
        mut lock: TreeLock<'a>,
        range: PageRange,
        wanted: RangeEdit<'_, H>,
    ) -> Result<TreeLock<'a>, Unpublished> {
        let space = self.space;
        let Draft { hull, goes, mut new, note } = loop {
            let view = space.tree.view_locked(&lock.writer);
            // A new mapping may exceed the limit by one: Linux checks before it adds one.
            let limit = space.mapping_limit(&lock);
            let most = limit.saturating_add(usize::from(wanted.1.is_some()));
            let may_be_more = |more| match lock.usage.mappings + more <= most {
                true => Ok(()),
                false => Err(Unpublished::TooMany { limit }),
            };
            match space.draft(self.work(), view, range, wanted, may_be_more) {
                Ok(draft) => break draft,
                Err(Undrafted::Unpublished(error)) => return Err(error),
                // A neighbour that is merged is in use.
                Err(Undrafted::InUse) => lock = self.await_page_work(lock),
            }
        };
        let replaced = space.tree.replace(&mut lock.writer, hull, &mut new, &mut self.retired);
        let made = replaced.map_err(|_| {
            space.take_back(space.tree.view_locked(&lock.writer), hull, goes);
            Unpublished::OutOfMemory
        })?;
        space.engine.charge(made);
        lock.edited(note);
        fence_of_range_work();
        Ok(lock)
    }
}

impl<'a, H: Host, D: LockingDesign> RangeChange<'a, H, D> {
    /// Waits for page work that uses a VMA that is to be replaced, without the tree lock. The design keeps other threads from changing
    /// the tree meanwhile. Not inlined: most designs never come here, and the stack has no room for it.
    #[cold]
    #[inline(never)]
    fn await_page_work(&mut self, lock: TreeLock<'a>) -> TreeLock<'a> {
        drop(lock);
        let space = self.space;
        D::await_page_work(self.work(), &space.engine);
        space.map.lock_by(&*space.engine)
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Tells the file that `mapping` shows which of its pages are shown, and where. This comes before any thread can find the
    /// mapping: see `page_cache/mappings.rs`. The file lists the space already, since mmap or fork. If the publication fails,
    /// the file believes too much, and nothing is wrong.
    fn tell_file(&self, mapping: &Mapping<H>) {
        if let Backing::File { file, first } = &mapping.backing {
            file.widen(self.id, &Hull::of(mapping.range, *first));
        }
    }

    /// Checks that `mapping` may replace the mappings there, and gives it the flags that mlockall set. No other function
    /// checks this.
    ///
    /// The check is in the step that publishes. mlockall and exit first set their state, and then visit all mappings.
    /// So either they visit this mapping, or this check sees their state.
    fn admit(&self, map: &TreeState, mapping: &mut Mapping<H>, origin: Origin) -> Result<(), Refused> {
        if map.exited {
            return Err(Refused::Exited);
        }
        let pages = mapping.range.pages();
        match origin {
            Origin::Fresh | Origin::Longer => {
                let is_asked = origin == Origin::Fresh && !mapping.is_foreign();
                if is_asked && !mutant!("future_asked_early") {
                    mapping.flags |= map.locks.future;
                }
                // The replaced mapping counts as locked too, as on Linux.
                map.check_locked(mapping.flags, pages)?;
                self.check_limits(map, mapping)?;
            }
            Origin::Moved { more: 0 } => {}
            Origin::Moved { more } => self.check_moved(map, mapping, more)?,
        }
        Ok(())
    }

    /// Drafts a publication: which VMAs go, and which come. Excludes page work by those that go, closes them, and detaches them. All but
    /// neighbours that are merged were excluded before, without the range. `may_be_more` checks that so many more mappings may exist. Not
    /// inlined: what it has on the stack is gone when the tree changes.
    ///
    /// From here to the end of the publication neither a host's table nor a store is called: the host follows before, and the
    /// sweep comes after. A panic here would leave records closed, and first pages of these mappings would wait for ever. Only
    /// the allocator, a design, or a host's `Park` and `Slots` could panic here, and those must not.
    #[inline(never)]
    pub(in crate::space) fn draft<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        view: View<'_, Vma<H, D>>,
        range: PageRange,
        wanted: RangeEdit<'_, H>,
        may_be_more: impl Fn(usize) -> Result<(), Unpublished>,
    ) -> Result<Draft<H, D>, Undrafted> {
        let mut closed: Few<&Vma<H, D>> = Few::new();
        let mut next: Few<Mapping<H>> = Few::new();
        let built = build(view, range, wanted, (&mut closed, &mut next)).map_err(Undrafted::from);
        let built = built.and_then(|hull| {
            if D::LOCKS_VMAS && closed.iter().any(|vma| D::exclude(work, &self.engine, vma.lock()).is_err()) {
                return Err(Undrafted::InUse);
            }
            if next.len() > closed.len() {
                may_be_more(next.len() - closed.len())?;
            }
            let gone = SpaceUsage::default().with(closed.iter().map(|vma| vma.mapping()));
            let note = SpaceUsage::default().with(&next).change_from(gone);
            Ok(Draft { hull, goes: closed.len(), new: self.vmas(work, &mut next)?, note })
        });
        match built {
            Ok(_) => closed.iter().for_each(|vma| D::detach(vma.lock(), true)),
            Err(_) => closed.iter().for_each(|vma| vma.reopen()),
        }
        built
    }

    /// Makes VMAs of `mappings`, which no other thread has yet. Not inlined: the stack has no room for this beside the draft.
    #[inline(never)]
    fn vmas<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        mappings: &mut Few<Mapping<H>>,
    ) -> Result<Vec<Box<Vma<H, D>>>, OutOfMemory> {
        let mut new: Vec<Box<Vma<H, D>>> = Vec::new();
        new.try_reserve_exact(mappings.len()).map_err(|_| OutOfMemory)?;
        for mapping in mappings.drain(..) {
            let vma = try_box(Vma::new(mapping))?;
            let excluded = D::exclude(work, &self.engine, vma.lock());
            debug_assert!(excluded.is_ok(), "page work by a VMA that no other thread has");
            new.push(vma);
        }
        Ok(new)
    }

    /// Opens the first `goes` VMAs of `hull`, which a draft has closed, since they stay.
    pub(in crate::space) fn take_back(&self, view: View<'_, Vma<H, D>>, hull: PageRange, goes: usize) {
        view.from(hull.start()).take(goes).for_each(|vma| {
            D::detach(vma.lock(), false);
            vma.reopen();
        });
    }
}

/// Fills `next` with the new mappings and `closed` with the VMAs that go, both in order. Returns the range of both. Each step
/// is a function of its own, so that the stack has room for one at a time.
fn build<'a, H: Host, D: LockingDesign>(
    view: View<'a, Vma<H, D>>,
    range: PageRange,
    wanted: RangeEdit<'_, H>,
    (closed, next): (&mut Few<&'a Vma<H, D>>, &mut Few<Mapping<H>>),
) -> Result<PageRange, Unpublished> {
    let joins = wanted.2;
    let mut pieces: Few<Piece<H>> = Few::new();
    let mut hull = cut_up(view, range, wanted, (closed, &mut pieces))?;
    // The first new mapping decides whether the neighbour on the left joins.
    if joins.below
        && let Some(first) = pieces.first().filter(|first| first.is_new)
        && let Some(left) = view.before(range.start()).filter(|vma| vma.range().end() == range.start())
        && edit::joins(&left.glance(), &first.mapping)
    {
        // The neighbour may have got pages since the glance. Then it stays beside, replaced by itself.
        hull = hull.hull(left.range());
        next.push(close(closed, left)?);
    }
    let is_last_new = join_up(&mut pieces, next)?;
    if joins.above
        && is_last_new
        && next.last().is_some_and(|last| last.range.end() == range.end())
        && let Some(right) = view.from(range.end()).next()
        && right.range().start() == range.end()
    {
        hull = join_right(right, joins, (closed, next))?.map_or(hull, |right| hull.hull(right));
    }
    Ok(hull)
}

fn close<'a, H: Host, D: LockingDesign>(
    closed: &mut Few<&'a Vma<H, D>>,
    vma: &'a Vma<H, D>,
) -> Result<Mapping<H>, OutOfMemory> {
    closed.try_reserve(1).map_err(|_| OutOfMemory)?;
    closed.push(vma);
    Ok(vma.close())
}

/// Closes the VMAs in `range`, and cuts them into pieces, with the results of `each`, and the new mapping.
#[inline(never)]
fn cut_up<'a, H: Host, D: LockingDesign>(
    view: View<'a, Vma<H, D>>,
    range: PageRange,
    (each, insert, joins): RangeEdit<'_, H>,
    (closed, pieces): (&mut Few<&'a Vma<H, D>>, &mut Few<Piece<H>>),
) -> Result<PageRange, OutOfMemory> {
    let mut hull = range;
    let start = range.start();
    for vma in view.from(start).take_while(|vma| vma.range().start() < range.end()) {
        let mapping = close(closed, vma)?;
        hull = hull.hull(vma.range());
        pieces.try_reserve(3).map_err(|_| OutOfMemory)?;
        let part = |part: Option<PageRange>| part.and_then(|part| edit::cut(&mapping, part));
        let mut goes_on = false;
        if let Some(mapping) = part(PageRange::new(vma.range().start(), start)) {
            pieces.push(Piece { mapping, is_new: false, goes_on });
            goes_on = true;
        }
        if let Some(mapping) = part(Some(range)).and_then(each) {
            let is_new = joins.inside || !edit::is_alike(vma.mapping(), &mapping);
            pieces.push(Piece { mapping, is_new, goes_on });
        }
        if let Some(mapping) = part(PageRange::new(range.end(), vma.range().end())) {
            pieces.push(Piece { mapping, is_new: false, goes_on: true });
        }
    }
    if let Some(insert) = insert {
        let place = pieces.iter().take_while(|piece| piece.mapping.range.end() <= start).count();
        pieces.try_reserve(1).map_err(|_| OutOfMemory)?;
        pieces.insert(place, Piece { mapping: insert.clone(), is_new: true, goes_on: false });
    }
    Ok(hull)
}

/// Appends `pieces` to `next`, joined where they may join. Returns whether the last one is new.
#[inline(never)]
fn join_up<H: Host>(pieces: &mut Few<Piece<H>>, next: &mut Few<Mapping<H>>) -> Result<bool, OutOfMemory> {
    // Two VMAs that both stay as they were do not join now, though they could (Linux).
    let mut is_last_new = false;
    next.try_reserve(pieces.len()).map_err(|_| OutOfMemory)?;
    for Piece { mapping, is_new, goes_on } in pieces.drain(..) {
        let may_join = goes_on || is_new || is_last_new;
        is_last_new = is_new;
        match next.last_mut() {
            Some(last) if may_join && edit::joins(last, &mapping) => *last = edit::join(last, &mapping),
            _ => next.push(mapping),
        }
    }
    Ok(is_last_new)
}

/// Replaces the neighbour on the right too, if it may join the last of `next`. Returns its range then.
#[inline(never)]
fn join_right<'a, H: Host, D: LockingDesign>(
    right: &'a Vma<H, D>,
    joins: Joins,
    (closed, next): (&mut Few<&'a Vma<H, D>>, &mut Few<Mapping<H>>),
) -> Result<Option<PageRange>, OutOfMemory> {
    let may_join = |last: &Mapping<H>, right: &Mapping<H>| {
        let fresh = || Mapping { anon: None, ..last.clone() };
        edit::joins(last, right) || joins.grown && right.anon.is_none() && edit::joins(&fresh(), right)
    };
    next.try_reserve(1).map_err(|_| OutOfMemory)?;
    let Some(last) = next.last_mut().filter(|last| may_join(last, &right.glance())) else { return Ok(None) };
    let mapping = close(closed, right)?;
    if may_join(last, &mapping) {
        *last = edit::join(last, &mapping);
    } else {
        // The neighbour has got pages since the glance. It stays beside, replaced by itself.
        next.push(mapping);
    }
    Ok(Some(right.range()))
}
