//! Guard pages: entries that name no frame and refuse every access, in the middle of a mapping that stays one. They
//! go with the mapping, or when they are removed; dropping pages leaves them, and a child of fork has them too.

use crate::address::{PageNumber, PageRange};
use crate::design::{Call, LockingDesign};
use crate::host::{Entry, Host, OutOfMemory, PageTable};
use crate::space::Space;
use crate::space::calls::advise::{Advice, AdviseError, refuses};
use crate::space::calls::flags::Holes;
use crate::space::change::range_change::RangeChange;
use crate::space::change::range_work::RangeReservation;
use crate::vma::Backing;
use crate::vma::tree::Ranged;

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// madvise(MADV_GUARD_INSTALL). A page at work is waited for; the mapping stays, so nothing is published.
    pub(in crate::space) fn install_guards(&self, range: PageRange) -> Result<(), AdviseError> {
        self.guard_work(range, Advice::GuardInstall, |call, part| {
            // The tables first: then nothing can fail. Ours is the range, so that they stay.
            let taken = call.taken.over(part);
            let mut rest = Some(part);
            while let Some(pages) = rest {
                self.table.make_leaf(taken, pages.start())?;
                let leaf = pages.start().align_down(H::Table::LEAF_PAGES);
                let end = leaf.checked_add(H::Table::LEAF_PAGES).unwrap_or(part.end());
                rest = PageRange::new(end, part.end());
            }
            self.mark_guarded(taken, part);
            let guard = Entry::from_bits(Entry::GUARD);
            call.take_out(part, |_, _| guard);
            Ok(())
        })
    }

    /// madvise(MADV_GUARD_REMOVE).
    pub(in crate::space) fn remove_guards(&self, range: PageRange) -> Result<(), AdviseError> {
        self.guard_work(range, Advice::GuardRemove, |call, part| {
            let step = |_, old: Entry| if old.is_guard() { Entry::EMPTY } else { old };
            call.sweep(part, step, |_, _, _, _| {});
            Ok(())
        })
    }

    /// Does `work` on each part of a mapping in `range`, as far as advice goes.
    fn guard_work(
        &self,
        range: PageRange,
        advice: Advice,
        work: impl Fn(&mut RangeChange<'_, H, D>, PageRange) -> Result<(), OutOfMemory>,
    ) -> Result<(), AdviseError> {
        let hole = AdviseError::Hole { range, advice, address: range.start().address() };
        let inside = range.intersection(self.whole()).ok_or(hole)?;
        let mut call = self.change(Call::Discard, inside);
        let lock = call.take(inside);
        let reach = self.reach(&lock, range, Holes::Skip, |mapping| refuses(mapping, advice));
        drop(lock);
        let mut rest = PageRange::new(inside.start(), reach.end.min(inside.end()));
        // The range is ours: its mappings may grow beyond it meanwhile, and are the same in it.
        while let Some(part) = rest {
            let lock = call.lock();
            let next = self.tree.view_locked(&lock.writer).from(part.start()).next();
            let Some(mapped) = next.and_then(|vma| vma.range().intersection(part)) else { break };
            drop(lock);
            rest = PageRange::new(mapped.end(), part.end());
            work(&mut call, mapped).map_err(|OutOfMemory| AdviseError::OutOfMemory { range, advice })?;
        }
        call.finish();
        reach.error.map_or(Ok(()), |wrong| Err(self.advise_error(range, advice, wrong)))
    }

    /// Has fork look for guards: anonymous memory counts as having pages from now on, as on Linux, where one sees it in what
    /// merges; for all else the space remembers it.
    fn mark_guarded(&self, taken: &RangeReservation<'_, H>, part: PageRange) {
        let mut lock = taken.lock();
        let Some(vma) = self.tree.view_locked(&lock.writer).find(part.start()) else { return };
        let is_anonymous = matches!(vma.mapping().backing, Backing::Anonymous);
        if is_anonymous {
            // Records are closed and opened under this lock, so that it is not closed.
            let _ = self.begin_record(self.tree.view_locked(&lock.writer), vma);
        }
        lock.locks.file_guards |= !is_anonymous;
    }

    /// The guards of a file's mapping, for fork: nothing else is copied of one without pages of its own.
    pub(in crate::space) fn copy_guards(
        &self,
        taken: &RangeReservation<'_, H>,
        (child, child_taken): (&Self, &RangeReservation<'_, H>),
        range: PageRange,
    ) -> Result<(), OutOfMemory> {
        let mut result = Ok(());
        self.each_leaf(taken, range, |leaf, part| {
            for page in part.iter() {
                if result.is_ok() && self.table.load(leaf, page).is_guard() {
                    result = child.fill_guard(child_taken, page);
                }
            }
        });
        result
    }

    /// A child's guard.
    pub(in crate::space) fn fill_guard(
        &self,
        taken: &RangeReservation<'_, H>,
        page: PageNumber,
    ) -> Result<(), OutOfMemory> {
        let leaf = self.table.make_leaf(taken, page)?;
        self.table.fill(leaf, page, Entry::from_bits(Entry::GUARD));
        Ok(())
    }
}
