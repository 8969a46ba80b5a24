//! Guard pages: entries that name no frame and refuse every access. They do not split their mapping. They go with the mapping,
//! or when they are removed. Dropping pages keeps them, and a child of fork has them too.

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
    /// Installs guard pages (madvise MADV_GUARD_INSTALL). Waits for a page at work. The mapping stays, so nothing is published.
    pub(in crate::space) fn install_guards(&self, range: PageRange) -> Result<(), AdviseError> {
        self.guard_work(range, Advice::GuardInstall, |call, part| {
            // The tables are made first; after that nothing can fail. The range is taken, so that they stay.
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

    /// Removes guard pages (madvise MADV_GUARD_REMOVE).
    pub(in crate::space) fn remove_guards(&self, range: PageRange) -> Result<(), AdviseError> {
        self.guard_work(range, Advice::GuardRemove, |call, part| {
            let step = |_, old: Entry| if old.is_guard() { Entry::EMPTY } else { old };
            call.sweep(part, step, |_, _, _, _| {});
            Ok(())
        })
    }

    /// Calls `work` for each part of a mapping in `range`, as far as the advice goes.
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
        // The range is taken: its mappings may grow beyond it meanwhile, but do not change inside it.
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

    /// Makes fork look for guards. Anonymous memory counts as having pages from now on, as on Linux, where the mappings that
    /// merge show it. For all other mappings the space remembers it.
    fn mark_guarded(&self, taken: &RangeReservation<'_, H>, part: PageRange) {
        let mut lock = taken.lock();
        let Some(vma) = self.tree.view_locked(&lock.writer).find(part.start()) else { return };
        let is_anonymous = matches!(vma.mapping().backing, Backing::Anonymous);
        if is_anonymous {
            // Records are closed and opened under this lock, so this one is not closed.
            let _ = self.begin_record(self.tree.view_locked(&lock.writer), vma);
        }
        lock.locks.file_guards |= !is_anonymous;
    }

    /// Copies the guards of a file's mapping for fork. Nothing else is copied of a mapping without pages of its own.
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

    /// Puts a guard into a child's table.
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
