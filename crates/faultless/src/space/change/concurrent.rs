//! Changes of one range that go on beside others: the tree lock is held only while the range is taken. Such a change reads and
//! writes the tree only near its range, and no other thread makes a change near there.

use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::engine::PinnedTo;
use crate::host::{Host, PageTable};
use crate::protection::Protection;
use crate::space::change::publish::{Draft, Joins, Undrafted, Unpublished, fence_of_range_work};
use crate::space::change::range_change::RangeChange;
use crate::space::change::range_work::{RangeReservation, TreeLock};
use crate::space::{Space, TreeState};
use crate::sync::{Claims, Edit, Park, Section};
use crate::vma::tree::{Ranged, Unchanged, View, Writers};
use crate::vma::{Mapping, Vma};

/// The exclusion that keeps the tree still for a thread that has taken a range.
pub(in crate::space) enum Exclusion<'a, H: Host> {
    /// The whole tree stands still: the tree lock is held, and no edit is under way.
    Whole(TreeLock<'a>),
    /// The tree near the range stands still, and the limits have room for any result of the change.
    Neighbourhood(Near<'a, H>),
}

/// An edit under way. The order of the fields is the order in which they are dropped. In a kernel, a thread in a section is not
/// preempted, and others wait for the edit.
pub(in crate::space) struct Near<'a, H: Host> {
    writers: Writers,
    edit: Edit<'a>,
    section: PinnedTo<H, Section<'a>>,
    /// The range that no other edit changes.
    hull: PageRange,
}

impl<H: Host> Exclusion<'_, H> {
    /// Returns the state that limits are checked against, or `None` if there is room for any such change.
    pub fn limited(&self) -> Option<&TreeState> {
        match self {
            Self::Whole(lock) => Some(lock),
            Self::Neighbourhood(_) => None,
        }
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Returns a view of the tree, of which the part stands still that `still` keeps so.
    pub(in crate::space) fn view_of<'l>(&'l self, still: &'l Exclusion<'_, H>) -> View<'l, Vma<H, D>> {
        match still {
            Exclusion::Whole(lock) => self.tree.view_locked(&lock.writer),
            Exclusion::Neighbourhood(near) => self.tree.view(&near.section),
        }
    }
}

impl<'a, H: Host, D: LockingDesign> RangeChange<'a, H, D> {
    /// Takes `range` for a change that looks at nothing farther away than its neighbours. `widen` may take more.
    pub fn take_concurrent(
        &mut self,
        range: PageRange,
        widen: impl FnOnce(&mut RangeReservation<'_, H>, &mut Claims, View<'_, Vma<H, D>>),
    ) -> Exclusion<'a, H> {
        let space = self.space;
        let (mut taken, mut lock) = space.map.take_beside(range, &*space.engine);
        // If a design or a host is asked about each change, changes come one after the other. If no other thread changes
        // anything, the lock is held, since that costs less.
        let may_edit =
            !D::LOCKS_VMAS && space.table.following().is_none() && taken.may_edit() && lock.is_crowded();
        if may_edit && space.has_room_for(lock.data(), lock.edits() + 1) {
            let section = space.engine.enter();
            let view = space.tree.view(&section);
            let hull = view.has_parts().then(|| hull_of(view, range));
            let is_free = |hull: &PageRange| mutant!("edits_of_neighbours") || lock.is_free(*hull);
            if let Some(hull) = hull.filter(is_free) {
                widen(&mut taken, lock.claims_mut(), view);
                // SAFETY: a thread that uses the writer has the lock, and no edit is under way then. The loan ends before our
                // edit.
                let writers = unsafe { lock.data().writer.lend() };
                let edit = lock.edit(&taken, hull);
                self.hold(taken);
                return Exclusion::Neighbourhood(Near { writers, edit, section, hull });
            }
        }
        let mut lock = lock.alone(&*space.engine);
        let (map, claims) = lock.parts();
        widen(&mut taken, claims, space.tree.view_locked(&map.writer));
        self.hold(taken);
        Exclusion::Whole(lock)
    }

    /// Publishes a change that [`RangeChange::take_concurrent`] has taken, as [`RangeChange::publish`] does. The host follows.
    /// `rights` are the new rights.
    pub fn publish_concurrent(
        &mut self,
        still: Exclusion<'a, H>,
        (range, rights): (PageRange, Option<Protection>),
        each: impl Fn(Mapping<H>) -> Option<Mapping<H>>,
    ) -> Result<(), Unpublished> {
        let space = self.space;
        // Locals are dropped in reverse order of declaration, so these go in the order of the fields.
        let Near { hull: near, mut section, edit, writers } = match still {
            Exclusion::Neighbourhood(near) => near,
            Exclusion::Whole(lock) => {
                let lock = space.follow(self.taken.over(range), lock, range, rights)?;
                let published = self.publish(lock, range, each).map(drop);
                return published.inspect_err(|_| space.follow_back(self.taken.over(range), range));
            }
        };
        let wanted = (&each as &dyn Fn(_) -> _, None, Joins::BOTH);
        let draft = space.draft(self.work(), space.tree.view(&section), range, wanted, |_| Ok(()));
        let Draft { hull, goes, mut new, note } = draft.map_err(|error| match error {
            Undrafted::Unpublished(error) => error,
            Undrafted::InUse => {
                unreachable!("a design that locks VMAs makes its changes one after the other")
            }
        })?;
        debug_assert!(near.covers(hull));
        for look in 0.. {
            // SAFETY: no other edit's hull overlaps this one (`sync::Edit`), and a thread that takes the lock waits for the
            // edit. Readers of this tree enter by this engine.
            match unsafe { space.tree.replace_beside(&writers, &section, hull, &mut new, &mut self.retired) }
            {
                Ok(made) => {
                    space.engine.charge(made);
                    break;
                }
                Err(Unchanged::Contended) => {
                    drop(section);
                    space.engine.spin(look);
                    section = space.engine.enter();
                }
                Err(Unchanged::OutOfMemory(error)) => {
                    space.take_back(space.tree.view(&section), hull, goes);
                    return Err(error.into());
                }
            }
        }
        fence_of_range_work();
        edit.done(note);
        Ok(())
    }
}

/// Returns `range`, a page on either side, and the mappings there: all that a change of the range may replace or join.
fn hull_of<H: Host, D: LockingDesign>(view: View<'_, Vma<H, D>>, range: PageRange) -> PageRange {
    let start = range.start().checked_sub(1).unwrap_or(range.start());
    let end = range.end();
    let hull = PageRange::new(start, PageNumber::new(end.get().saturating_add(1))).unwrap_or(range);
    // These are the neighbour below and the mapping that the range begins in, then the one that it ends in and the neighbour
    // above.
    let below = view.from(start).take(2).take_while(|vma| vma.range().start() <= end);
    let above = [PageNumber::new(end.get() - 1), end].into_iter().filter_map(|page| view.find(page));
    below.chain(above).fold(hull, |hull, vma| hull.hull(vma.range()))
}
