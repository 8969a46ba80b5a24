//! To share a leaf table with another space, and to get a table of one's own again.

use super::record::PendingLeave;
use crate::address::PageNumber;
use crate::host::{Entry, OutOfMemory, PageTable, ShareLeaves, Table};
use crate::sync::full_fence;

/// How [`Table::unshare`] went.
#[derive(Debug)]
pub(crate) enum Unshared {
    /// The leaf is this space's own, or it is not the one that hangs there: look again.
    Own,
    /// Another thread is at work on it, or another space about to leave it: nothing is done.
    Busy,
    /// The leaf that hangs there now is this space's own.
    Left(PendingLeave),
}

impl<T: PageTable> Table<T> {
    /// Whether the leaf was shared with other tables when it was found. Then its entries are not written but by processors,
    /// which set accessed bits, and no processor stores through it, whatever its entries allow. A leaf that was found by a
    /// range taken, and not in a section, is asked nothing else: others may free it.
    #[inline]
    pub(crate) fn is_shared(&self, leaf: T::Leaf<'_>) -> bool {
        self.sharing().is_some_and(|sharing| sharing.found(leaf).is_shared())
    }

    /// How many other tables have the leaf, which was found in a section.
    pub(crate) fn others<'s>(&'s self, leaf: T::Leaf<'s>) -> u64 {
        self.sharing().map_or(0, |_| self.record(leaf).others())
    }

    /// Hangs the leaf over `page` in `child` as well, which has none there; it was found in a section. When `invalidate` of its
    /// pages has returned, no processor stores through it any more. Takes the memory that [`Table::unshare`] will need. Does not
    /// sleep. False: somebody is at work on it, or the host shares none, and nothing is done.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing is done.
    pub(crate) fn share<'s>(
        &'s self,
        leaf: T::Leaf<'s>,
        child: &Self,
        page: PageNumber,
    ) -> Result<bool, OutOfMemory> {
        let (Some(sharing), Some(of_child)) = (self.sharing(), child.sharing()) else { return Ok(false) };
        let Some(locked) = self.record(leaf).try_lock() else { return Ok(false) };
        let found = sharing.found(leaf);
        if sharing.now(leaf) != found {
            return Ok(false);
        }
        // SAFETY: the child's range is the caller's alone, so nobody else reserves for it or hangs something there; both tables are
        // this engine's, and each space leaves what it shares before it drops its table (`space/calls/exit.rs`). The place has the
        // leaf still, and is changed under the lock alone while it is shared or becomes so.
        unsafe {
            locked.add(of_child.reserve(page)?);
            locked.set_space(None);
            of_child.hang(page, found.shared());
            sharing.put(leaf, found.shared());
        }
        Ok(true)
    }

    /// Gives this space a leaf of its own in the place of the shared one over `page`, which was found in a section: the shared one
    /// where nobody else has it any more, else a copy. `each` is called for the entries that are copied and not empty, and nobody else
    /// is at work on the leaf meanwhile. It says what the copy has, which gets no write right, and counts each frame that the copy
    /// keeps once more; the shared leaf loses the write right of each frame which the copy has too.
    /// Does not sleep, and needs no memory. [`Unshared::Left`] is dropped after `invalidate` of the leaf's pages.
    pub(crate) fn unshare<'s>(
        &'s self,
        leaf: T::Leaf<'s>,
        page: PageNumber,
        mut each: impl FnMut(PageNumber, Entry) -> Entry,
    ) -> Unshared {
        let Some(sharing) = self.sharing() else { return Unshared::Own };
        let Some(locked) = self.record(leaf).try_lock() else { return Unshared::Busy };
        let found = sharing.found(leaf);
        if !found.is_shared() || sharing.now(leaf) != found {
            return Unshared::Own;
        }
        let first = page.align_down(T::LEAF_PAGES).get();
        let pages = || (first..first + T::LEAF_PAGES).map(PageNumber::new);
        // Page work may have come to an entry before the place was marked. Partner: the fence after the bit in page work. If
        // ours comes first, it finds the mark and lets go, so that the leaf in which the bit is set stays as it is; if
        // theirs, the bit is seen.
        full_fence();
        if pages().any(|page| self.load(leaf, page).is_announced()) {
            return Unshared::Busy;
        }
        let entries = || {
            pages().filter_map(|page| {
                let seen = self.load(leaf, page).without(Entry::ANNOUNCED);
                (seen != Entry::EMPTY).then_some((page, seen))
            })
        };
        if locked.others() == 0 {
            locked.set_space(Some(self.space()));
            // SAFETY: the place has the leaf still; nobody else has it, and it is this space's own.
            unsafe { sharing.put(leaf, found.own()) };
            return Unshared::Own;
        }
        let Some(spare) = locked.take_spare() else { return Unshared::Busy };
        // SAFETY: out of the list of this leaf, and so reserved by a table of this host and opened by nobody else.
        let copy = unsafe { sharing.open(leaf, spare) };
        self.record(copy).begin(self.space(), first);
        for (page, seen) in entries() {
            let kept = each(page, seen).without(Entry::WRITE | Entry::ANNOUNCED);
            let is_left = seen.holds_page() && !kept.has_page_of(seen);
            if seen.has(Entry::WRITE) && !is_left {
                // SAFETY: shared, and locked: nobody else but processors writes the entry.
                unsafe { sharing.weaken(leaf, page) };
            }
            if kept != Entry::EMPTY {
                self.fill(copy, page, kept);
            }
        }
        // SAFETY: the place has the shared leaf still; the copy is nobody else's, and filled.
        unsafe { sharing.put(leaf, sharing.found(copy)) };
        Unshared::Left(locked.leave())
    }
}
