//! exit, and the end of a space with its last handle.

use crate::address::{PageNumber, PageRange};
use crate::design::{Call, LockingDesign};
use crate::host::{Entry, Host, PageTable};
use crate::space::limits::SpaceUsage;
use crate::space::{AddressSpace, Space};
use crate::sync::{ROOM_OF_RANGES, full_fence};
use core::mem::{self, ManuallyDrop};

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Ends the process. Everything is unmapped, and nothing can be mapped any more. Other handles see an empty space.
    ///
    /// Waits for no I/O. Faults that wait for I/O are given up
    /// ([`FaultError::Exited`](crate::space::fault::FaultError::Exited)). Pages that a read under way has pinned are
    /// freed when the read completes.
    pub fn exit(&self) {
        let space = &self.0;
        space.engine.assert_may_sleep("exit");
        // Faults that wait for I/O release the locks that their design keeps; only then can these be taken.
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
        // If a host has no memory to follow, it keeps mappings without pages until its table goes.
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
        // The whole space is still taken, so that no other exit sweeps before the host has been told.
        if is_first {
            self.engine.abandon(&self.table);
        }
        call.sweep_away(whole, Some(whole));
        // This comes before the flush, which frees the things retired by then.
        call.finish();
        self.engine.grace_and_flush();
        self.engine.uncharge(ManuallyDrop::into_inner(old).clear());
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Drops the entries of `part`, which one leaf table covers, up to the first with an announcement, and returns its page.
    /// Reclaim comes by the folio, without a handle of the space, and may be at work there.
    fn drop_up_to_a_bit(&self, part: PageRange) -> Option<PageNumber> {
        let section = self.engine.enter();
        let leaf = self.table.leaf(&section, part.start())?;
        for page in part.iter() {
            let entry = self.table.load(leaf, page);
            if !entry.holds_page() && !entry.is_announced() {
                continue;
            }
            if entry.is_announced() || self.table.exchange(leaf, page, entry, Entry::EMPTY).is_err() {
                return Some(page);
            }
            // As in a sweep: the child may still have the page.
            self.leave_home(leaf, page, entry);
            self.engine.drop_entry(entry);
        }
        None
    }
}

impl<H: Host, D: LockingDesign> Drop for Space<H, D> {
    fn drop(&mut self) {
        // This is the last handle: no call is under way, since accesses hold a handle too. Truncation may have come by a weak
        // handle, but then it made a strong one, and this runs in it. A processor may still have the table loaded and keep
        // translations; it is in no section. So the unload comes before the frames, and they come before the tables (invariants
        // 3 and 15).
        self.engine.unload(&self.table);
        let whole = self.whole();
        let (mut rest, mut has_tables) = (Some(whole), false);
        while let Some(range) = rest {
            // There is a section for each leaf, so that a large space does not delay a grace period.
            let section = self.engine.enter();
            let Some(page) = self.table.next_leaf(&section, range) else { break };
            let first = page.align_down(H::Table::LEAF_PAGES);
            let Ok(span) = PageRange::with_pages(first, H::Table::LEAF_PAGES) else { break };
            (rest, has_tables) = (PageRange::new(span.end(), whole.end()), true);
            let Some(leaf) = self.table.leaf(&section, page) else { continue };
            let is_shared = self.table.is_shared(leaf);
            drop(section);
            if is_shared {
                // Entries of a shared table belong to the other spaces.
                self.own_table(span, |_, _| Entry::EMPTY, |_, _| true);
            }
            let (mut part, mut look) = (Some(span), 0);
            while let Some(at) = part.and_then(|part| self.drop_up_to_a_bit(part)) {
                self.engine.pause_on_bit(look);
                look += 1;
                part = PageRange::new(at, span.end());
            }
            self.leave_family(page);
        }
        self.engine.tell_freed();
        // Rule H5: a thread that has followed a home in a section may be in a leaf table of this space, and may use the space's
        // name in the table's record. After exit has waited there are no such threads, unless a fault has made a table since.
        let is_swept = self.map.lock_by(&*self.engine).abandoned && !has_tables;
        // This also drops the handles that keep a file, and with it this engine.
        if is_swept || mutant!("space_without_grace") {
            self.engine.flush();
        } else {
            self.engine.grace_and_flush();
        }
        self.engine.uncharge(ROOM_OF_RANGES + self.tree.clear());
    }
}
