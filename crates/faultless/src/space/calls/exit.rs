//! exit, and the end of a space with its last handle.

use crate::address::PageRange;
use crate::design::{Call, LockingDesign};
use crate::host::{Entry, Host, PageTable};
use crate::space::limits::SpaceUsage;
use crate::space::{AddressSpace, Space};
use crate::sync::{ROOM_OF_RANGES, full_fence};
use core::mem::{self, ManuallyDrop};

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Ends the process: everything is unmapped, and nothing can be mapped any more; other handles see an empty space.
    /// Waits for no I/O: faults that do are given up ([`FaultError::Exited`](crate::space::fault::FaultError::Exited)), and what
    /// a read under way has pinned is freed when it completes.
    pub fn exit(&self) {
        let space = &self.0;
        space.engine.assert_may_sleep("exit");
        // Who waits for I/O lets go of what its design keeps meanwhile; only then can that be taken.
        space.space_flags.dying.set(&*space.engine);
        space.map.lock_by(&*space.engine).exited = true;
        space.clear();
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Unmaps everything, sealed or not. Needs no memory: the tree goes as a whole, after a grace period of its own.
    fn clear(&self) {
        let whole = self.whole();
        let mut call = self.change_excluding(Call::Unmap, whole);
        drop(call.take(whole));
        // A host that has no memory to follow keeps mappings without pages, until its table goes.
        let _ = self.table.follow(whole, None);
        let mut lock = call.lock();
        let vmas = self.tree.view_locked(&lock.writer).from(whole.start());
        vmas.for_each(|vma| D::detach(vma.lock(), true));
        // SAFETY: dropped after the grace period at the end; a panic before that leaks it.
        let old = ManuallyDrop::new(unsafe { self.tree.take_all(&mut lock.writer) });
        lock.usage = SpaceUsage::default();
        let is_first = !mem::replace(&mut lock.abandoned, true);
        drop(lock);
        // Partner: the fence after the bit in page work.
        full_fence();
        D::published(call.work());
        // With all of the space taken, so that no other exit sweeps before the host has been told.
        if is_first {
            self.engine.abandon(&self.table);
        }
        call.sweep_away(whole, Some(whole));
        // Before the flush, which frees what is retired by then.
        call.finish();
        self.engine.grace_and_flush();
        self.engine.uncharge(ManuallyDrop::into_inner(old).clear());
    }
}

impl<H: Host, D: LockingDesign> Drop for Space<H, D> {
    fn drop(&mut self) {
        // The last handle: no call is under way, and accesses hold a handle too. Truncation may have come by a weak
        // one, but then it had a handle, and this runs in it.
        // A processor may have the table loaded still, and keep translations: it is in no section. So this comes before the
        // frames, and they before the tables (invariants 3 and 15).
        self.engine.unload(&self.table);
        let whole = self.whole();
        let (mut rest, mut has_tables) = (Some(whole), false);
        while let Some(range) = rest {
            // A section for each leaf: a large space holds nobody's grace period up.
            let section = self.engine.enter();
            let Some(page) = self.table.next_leaf(&section, range) else { break };
            let first = page.align_down(H::Table::LEAF_PAGES);
            let Ok(span) = PageRange::with_pages(first, H::Table::LEAF_PAGES) else { break };
            (rest, has_tables) = (PageRange::new(span.end(), whole.end()), true);
            let Some(leaf) = self.table.leaf(&section, page) else { continue };
            let section = match self.table.is_shared(leaf) {
                false => section,
                true => {
                    // What others have too is theirs.
                    drop(section);
                    self.own_table(span, |_, _| Entry::EMPTY, |_, _| true);
                    self.engine.enter()
                }
            };
            let Some(leaf) = self.table.leaf(&section, page) else { continue };
            for page in span.iter() {
                let entry = self.table.load(leaf, page);
                // As the sweep does it: the child may have the page still.
                if entry.holds_page() && self.table.exchange(leaf, page, entry, Entry::EMPTY).is_ok() {
                    self.leave_home(leaf, page, entry);
                    self.engine.drop_entry(entry);
                }
            }
        }
        self.engine.tell_freed();
        // Rule H5: whoever has followed a home in a section may be in a leaf table of this space, and in its record the name of the
        // space. After exit has waited there is neither, unless a fault has made a table since.
        let is_swept = self.map.lock_by(&*self.engine).abandoned && !has_tables;
        if !is_swept && !cfg!(mutant = "space_without_grace") {
            self.engine.grace();
        }
        // Also what keeps a file, and with it this engine.
        self.engine.flush();
        self.engine.uncharge(ROOM_OF_RANGES + self.tree.clear());
    }
}
