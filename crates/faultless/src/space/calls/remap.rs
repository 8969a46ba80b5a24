//! mremap: makes memory longer or shorter in place, or moves it.

mod plan;

pub use plan::{RemapError, RemapFlags, RemapRequest};

use crate::address::{PageNumber, PageRange, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::host::Host;
use crate::space::calls::populate::Goal;
use crate::space::change::moving::Part;
use crate::space::change::publish::{Joins, Origin};
use crate::space::change::range_change::RangeChange;
use crate::space::change::range_work::TreeLock;
use crate::space::{AddressSpace, Space};
use crate::sync::Choice;
use crate::vma::tree::Ranged;
use crate::vma::{Backing, Mapping, MappingFlags, Vma};
use plan::Plan;

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Makes memory longer or shorter, in place or elsewhere, or moves it (mremap). Returns its address.
    ///
    /// Pages move by their entries: nothing is copied, read or faulted in. When this returns, no access reaches them at the old
    /// place. No access has met a hole at the new place that was not there before. Several mappings, with holes between them,
    /// can be moved together only to a fixed place and at their old length.
    ///
    /// Waits for other range work on either place and for faults that are at work there. Waits for I/O only where locked memory
    /// becomes longer: the new pages are fetched as far as they can be, with nothing held.
    ///
    /// Differs from Linux: with `DONT_UNMAP`, a part of a locked mapping loses its lock, where Linux takes it from the whole
    /// mapping.
    ///
    /// # Errors
    /// [`RemapError`].
    pub fn remap(&self, request: RemapRequest) -> Result<VirtAddr, RemapError> {
        let plan = Plan::new(&request, self.0.whole())?;
        let start = self.0.remap(&plan)?;
        if let Some(more) = plan.growth(start) {
            let _ = self.populate(more, Goal::Lock);
        }
        Ok(start.address())
    }
}

/// The number of mappings that a call may have to add before it has cut any off. Linux refuses a call that close to the limit.
const HEADROOM: usize = 3;

impl<H: Host, D: LockingDesign> Space<H, D> {
    #[inline(never)]
    fn remap(&self, plan: &Plan) -> Result<PageNumber, RemapError> {
        let whole = self.whole();
        if !whole.contains(plan.start) {
            return Err(RemapError::Hole { address: plan.address() });
        }
        let mut call = self.change(Call::Remap, whole);
        let here = plan.here(plan.old_pages.max(1), whole);
        for range in here.into_iter().chain(plan.fixed()) {
            call.exclude(range, |_| true);
        }
        match plan.fixed() {
            Some(target) => call.remap_fixed(plan, target).map(|()| target.start()),
            None => call.remap_near(plan),
        }
    }

    pub(in crate::space) fn refuse_sealed(
        &self,
        lock: &TreeLock<'_>,
        range: PageRange,
    ) -> Result<(), RemapError> {
        match self.first_sealed(self.tree.view_locked(&lock.writer), range) {
            Some(sealed) => Err(RemapError::Sealed { address: sealed.address() }),
            None => Ok(()),
        }
    }

    /// Checks that `more` mappings, besides those that a move may add, are within the limit.
    fn check_count(&self, lock: &TreeLock<'_>, more: usize) -> Result<(), RemapError> {
        let limit = self.mapping_limit(lock);
        match lock.usage.mappings + more >= limit.saturating_sub(HEADROOM) {
            true => Err(RemapError::TooManyMappings { limit }),
            false => Ok(()),
        }
    }

    /// Makes all checks that can be made before anything is changed. Returns the mapping at the old address.
    fn examine<'v>(&'v self, lock: &'v TreeLock<'_>, plan: &Plan) -> Result<&'v Vma<H, D>, RemapError> {
        if plan.to.is_some() {
            self.check_count(lock, 2)?;
        }
        let view = self.tree.view_locked(&lock.writer);
        let vma = view.find(plan.start).filter(|vma| !vma.is_busy());
        let vma = vma.ok_or(RemapError::Hole { address: plan.address() })?;
        plan.check(vma)?;
        if let Some(more) = plan.new_pages.checked_sub(plan.old_pages).filter(|more| *more > 0) {
            lock.check_locked(vma.flags(), more)?;
            lock.check_room(vma.mapping(), more)?;
        }
        Ok(vma)
    }

    /// Returns the mapping to add behind this one, if the old range ends where the mapping does and the new range fits.
    fn room_behind(&self, lock: &TreeLock<'_>, plan: &Plan, vma: &Vma<H, D>) -> Option<Mapping<H>> {
        let end = vma.range().end();
        if plan.old_pages == 0 || plan.start.checked_add(plan.old_pages) != Some(end) {
            return None;
        }
        let range = PageRange::new(end, plan.start.checked_add(plan.new_pages)?)?;
        let next = self.tree.view_locked(&lock.writer).from(end).next();
        let is_free = next.is_none_or(|next| next.range().start() >= range.end());
        (is_free && self.whole().covers(range)).then(|| extension(vma, range))
    }
}

impl<H: Host, D: LockingDesign> RangeChange<'_, H, D> {
    /// Moves the memory to a given place.
    fn remap_fixed(&mut self, plan: &Plan, target: PageRange) -> Result<(), RemapError> {
        self.take_to_move(plan, target)?;
        if plan.old_pages == 0 {
            self.map_again(plan, target)
        } else if plan.old_pages == plan.new_pages {
            self.move_all(plan, target)
        } else {
            self.move_resized(plan, target)
        }
    }

    /// Takes both places, and makes all checks that can be made before anything is changed. Not inlined: the move goes deep
    /// into the stack, and needs nothing of this frame.
    #[inline(never)]
    fn take_to_move(&mut self, plan: &Plan, target: PageRange) -> Result<(), RemapError> {
        let source = plan.here(plan.old_pages.max(1), self.space.whole()).unwrap_or(target);
        let lock = match source.overlaps(target) {
            // The mapping is mapped a second time, over its own end.
            true => self.take(source.hull(target)),
            false => self.take_both(source, target),
        };
        self.space.examine(&lock, plan).map(|_| ())
    }

    /// Moves each mapping on its own, one by one, as Linux does. If one fails, those moved before it stay moved.
    fn move_all(&mut self, plan: &Plan, target: PageRange) -> Result<(), RemapError> {
        let space = self.space;
        let mut rest = plan.here(plan.old_pages, space.whole());
        while let Some(range) = rest {
            let lock = self.lock();
            let next = space.tree.view_locked(&lock.writer).from(range.start()).next();
            let Some((vma, source)) = next.and_then(|vma| Some((vma, vma.range().intersection(range)?)))
            else {
                break;
            };
            if vma.flags().contains(MappingFlags::SEALED) {
                return Err(RemapError::Sealed { address: vma.range().start().address() });
            }
            plan.check_foreign(vma.mapping())?;
            space.check_count(&lock, 0)?;
            drop(lock);
            let start = target.start().get() + (source.start().get() - plan.start.get());
            let target = PageRange::with_pages(PageNumber::new(start), source.pages())?;
            self.move_part(Part { source, target, keeps: plan.has(RemapFlags::DONT_UNMAP) })?;
            rest = PageRange::new(source.end(), range.end());
        }
        Ok(())
    }

    /// Moves one mapping that becomes longer or shorter at the new place. Not inlined, as [`RangeChange::take_to_move`].
    #[inline(never)]
    fn move_resized(&mut self, plan: &Plan, target: PageRange) -> Result<(), RemapError> {
        let source = PageRange::with_pages(plan.start, plan.old_pages.min(plan.new_pages))?;
        self.vacate(target)?;
        // Linux checks that the end can be cut off only after the mappings at the target are gone.
        self.cut_to(plan).inspect_err(|_| self.give_up_move(None, target))?;
        self.move_vacated(Part { source, target, keeps: false })
    }

    /// Cuts off the pages beyond the new length.
    fn cut_to(&mut self, plan: &Plan) -> Result<(), RemapError> {
        if let Some(tail) = plan.tail(self.space.whole())? {
            self.cut_off(tail)?;
        }
        self.space.check_count(&self.lock(), 0)
    }

    fn cut_off(&mut self, tail: PageRange) -> Result<(), RemapError> {
        let lock = self.lock();
        self.space.refuse_sealed(&lock, tail)?;
        Ok(self.unmap_taken(lock, tail)?)
    }

    /// Maps the object of a shared mapping at a second place too (old length zero). Not inlined, as [`RangeChange::take_to_move`].
    #[inline(never)]
    fn map_again(&mut self, plan: &Plan, target: PageRange) -> Result<(), RemapError> {
        self.vacate(target)?;
        self.map_vacated(plan, target).inspect_err(|_| self.give_up_move(None, target))
    }

    fn map_vacated(&mut self, plan: &Plan, target: PageRange) -> Result<(), RemapError> {
        let lock = self.lock();
        // The source may have gone with the mappings at the target.
        let vma = self.space.tree.view_locked(&lock.writer).find(plan.start).filter(|vma| !vma.is_busy());
        let mapping = vma.ok_or(RemapError::Hole { address: plan.address() })?.glance();
        let backing = match mapping.file_page(plan.start) {
            Some((file, first)) => Backing::File { file: file.clone(), first },
            None => mapping.backing.clone(),
        };
        let mut again = Mapping { range: target, backing, ..mapping };
        drop(self.publish_followed(lock, (&mut again, Origin::Longer), Joins::BOTH)?);
        Ok(())
    }

    /// Remaps in place, or where there is room.
    fn remap_near(&mut self, plan: &Plan) -> Result<PageNumber, RemapError> {
        let Some((source, target)) = self.remap_in_place(plan)? else { return Ok(plan.start) };
        if plan.old_pages == 0 {
            self.map_again(plan, target)?;
        } else {
            let keeps = plan.has(RemapFlags::DONT_UNMAP);
            self.move_part(Part { source, target, keeps })?;
        }
        Ok(target.start())
    }

    /// Remaps in place. If that is not possible, takes a place for the memory, and returns the pages and the place. Not inlined,
    /// as [`RangeChange::take_to_move`].
    #[inline(never)]
    fn remap_in_place(&mut self, plan: &Plan) -> Result<Option<(PageRange, PageRange)>, RemapError> {
        let space = self.space;
        let whole = space.whole();
        let here = plan.here(plan.old_pages.max(plan.new_pages), whole).unwrap_or(whole);
        let mut claim = here;
        loop {
            let mut lock = self.take(claim);
            let vma = space.examine(&lock, plan)?;
            if plan.old_pages >= plan.new_pages && !plan.has(RemapFlags::DONT_UNMAP) {
                let tail = plan.tail(whole)?;
                drop(lock);
                tail.map_or(Ok(()), |tail| self.cut_off(tail))?;
                return Ok(None);
            }
            if let Some(mut more) = space.room_behind(&lock, plan, vma) {
                let joins = Joins { grown: true, ..Joins::BOTH };
                drop(self.publish_followed(lock, (&mut more, Origin::Longer), joins)?);
                return Ok(None);
            }
            if !plan.has(RemapFlags::MAY_MOVE) {
                return Err(RemapError::NoRoom { address: plan.address(), pages: plan.new_pages });
            }
            space.check_count(&lock, 0)?;
            let old = plan.here(plan.old_pages.max(1), whole).unwrap_or(here);
            let is_all = claim == whole;
            if !is_all {
                self.taken.over_mut(claim).narrow(old, &mut lock);
            }
            let choice = match is_all {
                // All other claims are later than this one.
                true => space.free_place_at(&lock, &Default::default(), plan.to, plan.new_pages),
                false => space.free_place_at(&lock, lock.claims(), plan.to, plan.new_pages),
            };
            let target = match choice {
                Choice::Range(target) => target,
                Choice::Claimed if !is_all => {
                    drop(lock);
                    self.release();
                    claim = whole;
                    continue;
                }
                _ => return Err(RemapError::NoSpace { pages: plan.new_pages }),
            };
            if !is_all {
                self.take_free(target, &mut lock)?;
            }
            return Ok(Some((old, target)));
        }
    }
}

/// Returns a mapping like `vma` for a range beside it that has no pages yet. It joins `vma`, also where fork has passed pages
/// on.
pub(in crate::space) fn extension<H: Host, D: LockingDesign>(
    vma: &Vma<H, D>,
    range: PageRange,
) -> Mapping<H> {
    let mapping = vma.glance();
    let backing = match &mapping.backing {
        Backing::File { file, first } => {
            let behind = range.start().get().wrapping_sub(mapping.range.start().get());
            Backing::File { file: file.clone(), first: first.wrapping_add(behind) }
        }
        other => other.clone(),
    };
    Mapping { range, backing, ..mapping }
}
