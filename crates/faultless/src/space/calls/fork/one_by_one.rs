//! fork under a design with locks in VMAs, without shared leaf tables: VMA by VMA, as Linux's `dup_mmap` does.
//!
//! ```text
//! the design excludes other changes of mappings; the child gets copies of all mappings
//! each VMA, in order of address:  exclude its page work, which may wait for I/O
//!                                 take its range, here and in the child; copy its entries; release the ranges
//! invalidate; copy the pages into which I/O goes on
//! the design lets all VMAs go together
//! ```
//! Page work on later VMAs goes on meanwhile. That on earlier ones waits, since they stay excluded.
//!
//! No range is taken while the call waits for page work: a fault that keeps the lock of a VMA may wait for a truncation, and that
//! waits for ranges. Other range work may come in between two VMAs if its design lets it pass. It finds each VMA copied, and excluded,
//! or not.

use super::copies::Copies;
use super::{Failed, ForkError, Inherited, has_anonymous_pages, is_inherited};
use crate::address::PageRange;
use crate::design::LockingDesign;
use crate::host::{Host, PageTable};
use crate::space::change::range_change::RangeChange;
use crate::space::change::range_work::RangeReservation;
use crate::space::{AddressSpace, Space};
use crate::vma::tree::Ranged;

/// A mapping whose range is taken in both spaces.
struct Turn<'c, H: Host> {
    mapping: Inherited,
    /// Whether mappings of files may have guard pages.
    has_file_guards: bool,
    child_taken: RangeReservation<'c, H>,
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Makes `child`, which is empty, the child. `call` has taken nothing. The child of a failed call is to be dropped when `call` has
    /// ended.
    #[inline(never)]
    pub(super) fn fork_one_by_one<'s>(
        &'s self,
        call: &mut RangeChange<'s, H, D>,
        child: &AddressSpace<H, D>,
    ) -> Result<(), Failed> {
        let lock = call.lock();
        if lock.exited {
            return Err(Failed::For(ForkError::Exited));
        }
        let child_lock = child.0.map.lock_by(&*self.engine);
        let mut child_lock = self.copy_mappings(&lock, child, child_lock)?;
        child_lock.locks = lock.locks.of_child();
        drop(child_lock);
        drop(lock);
        child.0.space_flags.set_bias(self.space_flags.bias());
        let some_to_copy = self.copy_each(call, &child.0)?;
        if !mutant!("fork_ignores_batches") {
            call.weakened.swept(self, self.whole());
        }
        // After this flush no processor writes through an old translation: the instant ends here.
        call.weakened.flush(self);
        if some_to_copy {
            self.copy_pages_of_each(call, &child.0)?;
        }
        let whole = child.0.whole();
        let (child_taken, child_lock) = child.0.map.take(whole, &*self.engine);
        drop(child_lock);
        Ok(child.0.follow_map(&child_taken, whole)?)
    }

    /// Gives the child the entries of every private mapping that has anonymous pages, mapping by mapping. Returns whether some of the
    /// pages themselves are to be copied.
    fn copy_each<'s>(&'s self, call: &mut RangeChange<'s, H, D>, child: &Self) -> Result<bool, Failed> {
        let (mut rest, mut some_to_copy) = (Some(self.whole()), false);
        while let Some(range) = self.exclude_next(call, &mut rest)? {
            let Some(turn) = self.take_turn(call, child, range) else { continue };
            let RangeChange { taken, weakened, .. } = call;
            let taken = taken.over(range);
            let (mapping, to) = (turn.mapping, (child, &turn.child_taken));
            let mut result = Ok(());
            self.each_table(taken, range, |part| {
                // The thread that ends the space waits for this one.
                if result.is_ok() && self.space_flags.dying.is_set() {
                    result = Err(Failed::For(ForkError::Exited));
                }
                let Some(leaf) = self.table.leaf(taken, part.start()).filter(|_| result.is_ok()) else {
                    return;
                };
                debug_assert!(!self.table.is_shared(leaf), "a table is shared, and fork shares none");
                match mapping.has_pages {
                    true => match self.copy_entries(leaf, to, (part, mapping), weakened) {
                        Ok(to_copy) => some_to_copy |= to_copy,
                        Err(error) => result = Err(error.into()),
                    },
                    false if turn.has_file_guards && mapping.may_have_guards => {
                        result = self.copy_guards(taken, to, part).map_err(Failed::from);
                    }
                    false => {}
                }
            });
            drop(turn);
            call.release();
            result?;
        }
        Ok(some_to_copy)
    }

    /// Copies the pages themselves that [`Space::copy_each`] has left out. No processor writes them.
    fn copy_pages_of_each<'s>(
        &'s self,
        call: &mut RangeChange<'s, H, D>,
        child: &Self,
    ) -> Result<(), Failed> {
        let (mut rest, mut copies) = (Some(self.whole()), Copies::default());
        while let Some(range) = self.exclude_next(call, &mut rest)? {
            let Some(turn) = self.take_turn(call, child, range) else { continue };
            let mut result = Ok(());
            if turn.mapping.has_pages {
                let taken = call.taken.over(range);
                result = self.copy_now(taken, (child, &turn.child_taken), turn.mapping, &mut copies);
            }
            drop(turn);
            call.release();
            result?;
        }
        copies.all()
    }

    /// Excludes page work on the next VMA of `rest`, and returns its range. Nothing is taken.
    ///
    /// # Errors
    /// The space is being ended. The thread that does that waits for this one.
    fn exclude_next<'s>(
        &'s self,
        call: &mut RangeChange<'s, H, D>,
        rest: &mut Option<PageRange>,
    ) -> Result<Option<PageRange>, Failed> {
        let Some(left) = *rest else { return Ok(None) };
        let lock = call.lock();
        let next = self.tree.view_locked(&lock.writer).from(left.start()).next().map(|vma| vma.range());
        drop(lock);
        let Some(range) = next else { return Ok(None) };
        *rest = PageRange::new(range.end(), left.end());
        call.exclude(range, D::fork_excludes);
        if self.space_flags.dying.is_set() {
            return Err(Failed::For(ForkError::Exited));
        }
        Ok(Some(range))
    }

    /// Takes the range of the next VMA in both spaces. Returns `None` if the child does not get the VMA, or has been ended; then nothing
    /// is taken.
    fn take_turn<'s, 'c>(
        &'s self,
        call: &mut RangeChange<'s, H, D>,
        child: &'c Self,
        range: PageRange,
    ) -> Option<Turn<'c, H>> {
        let lock = call.take(range);
        let vma = self.tree.view_locked(&lock.writer).find(range.start());
        let vma = vma.filter(|vma| vma.range() == range && is_inherited(vma));
        // Read after page work on this VMA has stopped: a fault may have made its first page since the mappings were copied.
        let has_pages = vma.is_some_and(has_anonymous_pages);
        // Both tree locks are short here, and the child's is taken inside the parent's elsewhere too.
        let turn = vma.and_then(|vma| {
            let mut child_lock = child.map.lock_by(&*self.engine);
            // A guard page may have come to this VMA before its page work was excluded.
            child_lock.locks.file_guards |= lock.locks.file_guards;
            let copy = child.tree.view_locked(&child_lock.writer).find(range.start())?;
            if copy.range() != range {
                return None;
            }
            if has_pages && copy.record().is_some_and(|record| record.id().is_none()) {
                self.begin_copied_record(vma, copy);
            }
            Some(Inherited::of(vma, copy))
        });
        let has_file_guards = lock.locks.file_guards;
        drop(lock);
        let turn = turn.and_then(|mapping| {
            let (child_taken, child_lock) = child.map.take(range, &*child.engine);
            // The child may be chosen as a victim as soon as it has pages.
            let has_exited = child_lock.exited;
            drop(child_lock);
            (!has_exited).then_some(Turn { mapping, has_file_guards, child_taken })
        });
        if turn.is_none() {
            call.release();
        }
        turn
    }
}
