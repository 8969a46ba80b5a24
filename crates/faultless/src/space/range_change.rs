//! The end of a call that does range work.

use super::Space;
use crate::design::{Call, LockingDesign};
use crate::host::Host;
use crate::sync::RetiredList;
use core::mem;

/// A call that does range work. Made before it takes anything, so that Rust drops it last, on each way out of the call:
///
/// ```text
///   the tree lock, if it is held still
///   the ranges taken
///   what the design keeps           other calls go on from here
///   leaf tables that were left      by those who had claims in one table with us: the last one frees it
///   what was replaced or unhooked   retired, when nothing is held
/// ```
pub(super) struct RangeChange<'a, H: Host, D: LockingDesign> {
    space: &'a Space<H, D>,
    /// Things that it has replaced and unhooked.
    pub retired: RetiredList,
}

impl<H: Host, D: LockingDesign> Drop for RangeChange<'_, H, D> {
    fn drop(&mut self) {
        if self.space.map.is_left() {
            self.space.unhook_left();
        }
        self.space.engine.retire(mem::take(&mut self.retired));
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    pub(super) fn change(&self) -> RangeChange<'_, H, D> {
        RangeChange { space: self, retired: RetiredList::new() }
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
                self.unhook_leaves(&taken, &mut tables);
            }
            drop(taken);
            drop(work);
            self.engine.retire_tables(tables);
        }
    }
}
