//! exit, reap, and the end of a space with its last handle.
//!
//! exit, reap and the end of a victim (`limit/victim.rs`) are one operation:
//!
//! ```text
//!  dying is set         faults that wait wake up, and give up; fork stops after the leaf table that it is at
//!  the whole range      waits for range work under way, which waits for no I/O and no memory
//!  no mappings          the first caller takes them; a second one has waited until the memory is free, and returns
//!  private mappings     their entries go, in batches: one invalidation, then their frames are free
//!  shared mappings      the same
//!  tables, mappings     freed after a grace period
//! ```
//! A page that is being read or written is freed when its transfer ends. The call does not wait for that.

use crate::address::{PageNumber, PageRange};
use crate::design::{Call, LockingDesign};
use crate::host::{Entry, Host, PageTable};
use crate::protection::Sharing;
use crate::space::change::range_work::FlushBatch;
use crate::space::limits::SpaceUsage;
use crate::space::{AddressSpace, Space};
use crate::sync::{ROOM_OF_RANGES, full_fence};
use crate::vma::Vma;
use crate::vma::tree::Ranged;
use core::mem::{self, ManuallyDrop};

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Ends the process. Everything is unmapped, and nothing can be mapped any more. Other handles see an empty space.
    ///
    /// A process calls this for itself. [`AddressSpace::reap`] is the same operation for a call from outside, and says for what it
    /// waits. Faults that wait for I/O are given up ([`FaultError::Exited`](crate::space::fault::FaultError::Exited)). A page that is
    /// being read or written is freed when its transfer ends.
    pub fn exit(&self) {
        self.reap();
    }

    /// Ends the process from outside and frees its memory, as SIGKILL and process_mrelease do together. Returns the number of pages that
    /// this call has dropped, in memory and in swap space.
    ///
    /// Call it to end a process that does not end by itself, or to get its memory at once. Any thread may call it, while the threads of
    /// the process fault, wait for I/O, fork, unmap or exit. A page that another space has too is dropped here, and not freed.
    ///
    /// Private memory is dropped first. When the call returns, all memory that only this space had is free. The exception is a page that
    /// is being read or written: it is freed when its transfer ends. If two threads end a space at the same time, one does the work. The
    /// other waits for it, and returns 0.
    ///
    /// Waits for other calls that change mappings of the space, for faults that have announced a page, and for processors that use
    /// older translations. None of these waits for I/O or for memory. A fork under way fails
    /// ([`ForkError::Exited`](crate::ForkError::Exited)), after the leaf table that it is at. The call cannot fail.
    pub fn reap(&self) -> u64 {
        self.0.reap()
    }
}

/// Returns whether the mapping is private: its pages are the space's alone, unless fork has shared them.
fn is_private<H: Host, D: LockingDesign>(vma: &Vma<H, D>) -> bool {
    vma.mapping().sharing == Sharing::Private
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Does the work of [`AddressSpace::reap`].
    pub(in crate::space) fn reap(&self) -> u64 {
        self.engine.assert_may_sleep("exit");
        // Faults that wait for I/O release the locks that their design keeps; only then can these be taken.
        self.space_flags.dying.set(&*self.engine);
        self.map.lock_by(&*self.engine).exited = true;
        self.clear()
    }

    /// Unmaps everything, sealed or not. Returns the number of pages. Needs no memory: the tree goes as a whole, after a grace
    /// period of its own.
    fn clear(&self) -> u64 {
        let whole = self.whole();
        // CVE-2018-1000200: the mutant takes the space for ended while another thread still frees its memory.
        if mutant!("reaps_beside_exit") && self.map.lock_by(&*self.engine).abandoned {
            return 0;
        }
        let mut call = self.change_excluding(Call::Unmap, whole);
        let mut lock = call.take(whole);
        // One caller ends a space. A second one has waited until the memory is free.
        if mem::replace(&mut lock.abandoned, true) {
            return 0;
        }
        drop(lock);
        // If a host has no memory to follow, it keeps mappings without pages until its table goes.
        let _ = self.table.follow(whole, None);
        let mut lock = call.lock();
        let vmas = self.tree.view_locked(&lock.writer).from(whole.start());
        vmas.for_each(|vma| D::detach(vma.lock(), true));
        // SAFETY: dropped after the grace period at the end; a panic before that leaks it.
        let old = ManuallyDrop::new(unsafe { self.tree.take_all(&mut lock.writer) });
        lock.usage = SpaceUsage::default();
        drop(lock);
        // Partner: the fence after the bit in page work.
        if !mutant!("exit_without_fence") {
            full_fence();
        }
        D::published(call.work());
        // The whole space is still taken, so no other call sweeps before the host has been told.
        self.engine.abandon(&self.table);
        let mut removed = FlushBatch::new(self);
        let taken = call.taken.over(whole);
        for wanted in [true, false] {
            // SAFETY: this tree is no space's any more, and nobody changes it.
            let vmas = unsafe { old.view_still(taken) }.from(whole.start());
            for vma in vmas.filter(|vma| is_private(vma) == wanted) {
                self.empty(taken, (vma.range(), whole), &mut removed);
            }
            removed.weakened.swept(self, whole);
            removed.flush();
        }
        debug_assert!(self.is_empty(whole), "a page outside of all mappings");
        self.unhook_leaves(taken, whole, &mut removed.weakened, &mut call.retired);
        removed.flush();
        // This comes before the flush, which frees the things retired by then.
        call.finish();
        // f798a1d4f94d: a thread that is in the tree still reads what exit frees.
        if !mutant!("exit_frees_the_tree_early") {
            self.engine.grace_and_flush();
        }
        self.engine.uncharge(ManuallyDrop::into_inner(old).clear());
        removed.count
    }

    /// Returns whether no entry of `range` holds a page, but for those of tables that other spaces have.
    fn is_empty(&self, range: PageRange) -> bool {
        let mut rest = Some(range);
        while let Some(range) = rest {
            let section = self.engine.enter();
            let Some(page) = self.table.next_leaf(&section, range) else { break };
            let span = self.leaf_span(page);
            rest = PageRange::new(span.end(), range.end());
            let leaf = self.table.leaf(&section, page).filter(|leaf| !self.table.is_shared(*leaf));
            if leaf.is_some_and(|leaf| span.iter().any(|page| self.table.load(leaf, page).holds_page())) {
                return false;
            }
        }
        true
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
        self.engine.unlist_space(self.id);
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
