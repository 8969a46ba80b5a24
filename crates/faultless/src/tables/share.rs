//! Sharing a leaf table with another space, and getting an own table again.

use super::family::Family;
use super::record::{Locked, PendingLeave};
use crate::address::PageNumber;
use crate::host::{Entry, OutOfMemory, PageTable, ShareLeaves, Table};
use crate::sync::{Sections, full_fence};
use alloc::sync::Arc;

/// The outcome of [`Table::unshare`].
#[derive(Debug)]
pub(crate) enum Unshared {
    /// The leaf is this space's own, or another leaf hangs there now. The caller looks again.
    Own,
    /// Another thread is at work on the leaf, or another space is about to leave it. Nothing is done.
    Busy,
    /// The leaf that hangs there now is this space's own.
    Left(PendingLeave),
}

impl<T: PageTable> Table<T> {
    /// Returns whether the leaf was shared with other tables when it was found. If so, only processors write its entries
    /// (they set accessed bits), and no processor stores through it, regardless of its entries. If the caller found the leaf
    /// by a range taken, and not in a section, it may ask nothing else of the leaf: other spaces may free it.
    #[inline]
    pub(crate) fn is_shared(&self, leaf: T::Leaf<'_>) -> bool {
        self.sharing().is_some_and(|sharing| sharing.found(leaf).is_shared())
    }

    /// Tries to lock the record of a shared leaf, for a change of an entry for all spaces that have the leaf. The caller found the
    /// leaf in a section. Returns `None` if another thread is at work on the leaf, or if this space has left it or has it alone.
    /// Does not sleep.
    pub(crate) fn try_lock_shared<'s>(&'s self, leaf: T::Leaf<'s>) -> Option<Locked<'s>> {
        let sharing = self.sharing()?;
        let locked = self.record(leaf).try_lock_shared()?;
        // A space leaves the leaf under the lock. The mutant changes a leaf that others have, by a mapping of this space.
        (sharing.now(leaf) == sharing.found(leaf) || mutant!("shared_place_not_asked")).then_some(locked)
    }

    /// Replaces the entry of `page` with `new`, for all spaces that have the shared leaf, if the entry is still `seen`. Neither has
    /// [`Entry::ANNOUNCED`]. The caller has the lock of [`Table::try_lock_shared`]. `seen` maps no page. If `new` maps one, it is
    /// counted once for this entry. AcqRel.
    ///
    /// # Errors
    /// The entry that is there instead of `seen`. It is unchanged.
    pub(crate) fn exchange_in_all<'s>(
        &'s self,
        leaf: T::Leaf<'s>,
        page: PageNumber,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        debug_assert!(!seen.has(Entry::MAPPED));
        // SAFETY: the caller found the leaf in its section, and has locked it while it is shared. No frame leaves the entry.
        unsafe { T::Sharing::exchange_by_record(self.record(leaf), page.get() % T::LEAF_PAGES, seen, new) }
    }

    /// Returns the number of other tables that have the leaf. The caller found the leaf in a section.
    pub(crate) fn others<'s>(&'s self, leaf: T::Leaf<'s>) -> u64 {
        self.sharing().map_or(0, |_| self.record(leaf).others())
    }

    /// Hangs the leaf over `page` in `child` as well. The caller found the leaf in a section, and `child` has none there.
    /// When `invalidate` of the leaf's pages has returned, no processor stores through it any more. Takes the memory that
    /// [`Table::unshare`] will need; a family is charged to `sections`. Does not sleep. Returns false, and does nothing, if
    /// another thread is at work on the leaf or the host shares no leaves.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing is done then.
    pub(crate) fn share<'s>(
        &'s self,
        leaf: T::Leaf<'s>,
        child: &Self,
        page: PageNumber,
        sections: &Arc<Sections>,
    ) -> Result<bool, OutOfMemory> {
        let (Some(sharing), Some(of_child)) = (self.sharing(), child.sharing()) else { return Ok(false) };
        let Some(locked) = self.record(leaf).try_lock() else { return Ok(false) };
        let found = sharing.found(leaf);
        if sharing.now(leaf) != found {
            return Ok(false);
        }
        // For the copies, which cannot wait for memory.
        self.record(leaf).found_family(sections)?;
        // SAFETY: the child's range is the caller's alone, so no other thread reserves for it or hangs a table there. Both
        // tables are this engine's, and each space leaves what it shares before it drops its table (`space/calls/exit.rs`).
        // The place still has the leaf, and is changed under the lock alone while it is shared or becomes so.
        unsafe {
            locked.add(of_child.reserve(page)?);
            locked.set_space(None);
            of_child.hang(page, found.shared());
            sharing.put(leaf, found.shared());
        }
        Ok(true)
    }

    /// Tries to make `child_leaf` a relative of `leaf`, which is this space's own. Done before an entry of `leaf` is copied to
    /// `child_leaf`. A new family is charged to `sections`. Does not sleep. Returns false, and does nothing, if another thread
    /// is at work on the family.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing is done then.
    pub(crate) fn relate<'s, 'c>(
        &'s self,
        leaf: T::Leaf<'s>,
        (child, child_leaf): (&'c Self, T::Leaf<'c>),
        sections: &Arc<Sections>,
    ) -> Result<bool, OutOfMemory> {
        let family = self.record(leaf).found_family(sections)?;
        let record = child.record(child_leaf);
        if let Some(of_child) = record.family() {
            debug_assert!(core::ptr::eq(family, of_child), "the leaf tables of one place came from two");
            return Ok(true);
        }
        if mutant!("copies_do_not_join") {
            return Ok(true);
        }
        Ok(family.try_lock().map(|family| family.add(record)).is_some())
    }

    /// Gives this space a leaf of its own over `page`, in the place of the shared one, which the caller found in a section.
    /// If no other table has the shared leaf any more, it becomes this space's own; else the space gets a copy. `each` is
    /// called for the entries that are copied and not empty, while no other thread is at work on the leaf. It returns the
    /// copy's entry, which gets no write right, and counts each frame that the copy keeps once more. The shared leaf loses
    /// the write right of each frame which the copy has too. Does not sleep, and needs no memory. The caller drops
    /// [`Unshared::Left`] after `invalidate` of the leaf's pages.
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
        // Page work may have announced in an entry before the place was marked. Partner: the fence after the bit in page
        // work. If our fence comes first, page work finds the mark and releases the entry, so the leaf in which the bit is
        // set stays as it is. If theirs comes first, we see the bit.
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
            // SAFETY: the place still has the leaf; no other table has it, and it is this space's own.
            unsafe { sharing.put(leaf, found.own()) };
            return Unshared::Own;
        }
        // Fork has founded it.
        let Some(family) = self.record(leaf).family().and_then(Family::try_lock) else {
            return Unshared::Busy;
        };
        let mut relatives = Some(family);
        let Some(spare) = locked.take_spare() else { return Unshared::Busy };
        // SAFETY: it comes from the list of this leaf, so a table of this host has reserved it and no other thread has opened
        // it.
        let copy = unsafe { sharing.open(leaf, spare) };
        self.record(copy).begin(self.space(), first);
        for (page, seen) in entries() {
            let kept = each(page, seen).without(Entry::WRITE | Entry::ANNOUNCED);
            let is_left = seen.holds_page() && !kept.has_page_of(seen);
            if seen.has(Entry::WRITE) && !is_left {
                // SAFETY: the leaf is shared and locked: only processors write the entry.
                unsafe { sharing.weaken(leaf, page) };
            }
            if kept != Entry::EMPTY {
                // A copy in which nothing stays, as at exit, gets no relatives.
                if let Some(family) = relatives.take() {
                    family.add(self.record(copy));
                }
                self.fill(copy, page, kept);
            }
        }
        // SAFETY: the place still has the shared leaf; the copy is no other thread's, and is filled.
        unsafe { sharing.put(leaf, sharing.found(copy)) };
        Unshared::Left(locked.leave())
    }
}
