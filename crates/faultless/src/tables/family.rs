//! Families: the leaf tables that came from one leaf by copying its entries, at fork or when a space left a shared leaf. All of
//! them may map the same anonymous folio, at the same index (docs/home.md).
//!
//! ```text
//!  Family   newest ──► record ──► record ──► record     changes under the lock, read in sections
//! ```
//! A record leaves the list before its table is retired. It ends a grace period later, and the family ends with its last record.
//! A record whose table has no page in common with a relative may leave earlier (`space/calls/isolate.rs`).
//!
//! A home can name a family that has ended: a thread that has replaced a page drops the old mapping after the invalidation, when it
//! has let the entry go, and the tables of all relatives may be gone by then. So the memory of a family stays one, and is the next
//! family's ([`SpareFamilies`]). A thread that comes to it finds no record, or records of other pages, and these are hints.

use super::LeafRecord;
use crate::host::OutOfMemory;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use crate::sync::{Sections, plain, try_box};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::{self, NonNull};

/// The leaf tables that came from one leaf. Homes have no room for the low bits of its address.
#[repr(align(64))]
pub(crate) struct Family {
    /// The lock: set while a record joins or leaves. Atomic. A thread that has a record's lock may try it.
    locked: AtomicBool,
    /// The youngest record of the list. Atomic; written under the lock, read in sections.
    newest: AtomicPtr<LeafRecord>,
    /// The number of records that have joined and have not ended. Atomic.
    members: AtomicU64,
    /// The next spare family, while this one is spare. Atomic. Written by the thread that gives it, and by the one that takes it.
    next_spare: AtomicPtr<Self>,
    /// The sections to which the memory is charged, and among whose spare families this one will be. Immutable.
    sections: plain::AtomicPtr<Sections>,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Family>() == 64);

/// The families that have ended, of one engine. Their memory is given back with the engine: see the module. Until then it stays
/// charged (`Engine::metadata_bytes`). There are at most as many as there were families at one time.
#[derive(Default)]
pub(crate) struct SpareFamilies {
    /// The family that came last; null for none. Atomic.
    newest: AtomicPtr<Family>,
    /// Whether a thread takes a family. One at a time does, so that the first family of the list stays the first until another one
    /// is put before it. Atomic.
    is_taking: AtomicBool,
}

impl SpareFamilies {
    /// Takes a family, if there is one and no other thread takes one at the same time. Waits for nothing.
    fn take(&self) -> Option<&Family> {
        if self.is_taking.swap(true, Ordering::Acquire) {
            return None;
        }
        // Acquire, partner: `give`.
        let mut first = self.newest.load(Ordering::Acquire);
        // SAFETY: null, or a family in the list, whose memory stays.
        while let Some(family) = unsafe { first.as_ref() } {
            let next = family.next_spare.load(Ordering::Relaxed);
            match self.newest.compare_exchange(first, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        self.is_taking.store(false, Ordering::Release);
        // SAFETY: as above.
        unsafe { first.as_ref() }
    }

    /// Gives a family that has ended. Waits for nothing.
    fn give(&self, family: &Family) {
        let place = ptr::from_ref(family).cast_mut();
        let mut first = self.newest.load(Ordering::Relaxed);
        loop {
            family.next_spare.store(first, Ordering::Relaxed);
            match self.newest.compare_exchange(first, place, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }
}

impl Drop for SpareFamilies {
    fn drop(&mut self) {
        let mut first = self.newest.load(Ordering::Relaxed);
        while let Some(family) = NonNull::new(first) {
            // SAFETY: from the box of `found_family`. `&mut self`: no table is left, nor a section in which a home is followed.
            let family = unsafe { Box::from_raw(family.as_ptr()) };
            first = family.next_spare.load(Ordering::Relaxed);
        }
    }
}

/// The locked list of a family. Dropping it unlocks.
pub(crate) struct LockedFamily<'a>(&'a Family);

impl LockedFamily<'_> {
    /// Adds `record`, which is in no family. Its leaf has no entry yet that a relative has too.
    pub fn add(&self, record: &LeafRecord) {
        let (family, place) = (self.0, ptr::from_ref(record).cast_mut());
        debug_assert!(record.family().is_none(), "a table with two families");
        let older = family.newest.load(Ordering::Relaxed);
        record.older.store(older, Ordering::Relaxed);
        record.family.store(ptr::from_ref(family).cast_mut(), Ordering::Release);
        family.members.fetch_add(1, Ordering::Relaxed);
        // SAFETY: a record in the list has not ended, since it leaves the list before that.
        if let Some(older) = unsafe { older.as_ref() } {
            older.newer.store(place, Ordering::Relaxed);
        }
        family.newest.store(place, Ordering::Release);
    }

    /// Takes out `record`, which is in the list. A thread that has found it before still gets from there to the older ones.
    fn remove(&self, record: &LeafRecord) {
        let (older, newer) = (record.older.load(Ordering::Relaxed), record.newer.load(Ordering::Relaxed));
        // SAFETY: a record in the list has not ended, since it leaves the list before that.
        let (before, after) = unsafe { (newer.as_ref(), older.as_ref()) };
        let link = before.map_or(&self.0.newest, |newer| &newer.older);
        debug_assert!(
            ptr::eq(link.load(Ordering::Relaxed), record) && !before.is_some_and(Self::has_left),
            "a family's list whose links differ"
        );
        // Release: a thread that comes this way sees what the older record's maker wrote.
        link.store(older, Ordering::Release);
        if let Some(after) = after {
            after.newer.store(newer, Ordering::Relaxed);
        }
        record.newer.store(ptr::from_ref(record).cast_mut(), Ordering::Relaxed);
    }

    /// Returns whether `record` has left the list.
    fn has_left(record: &LeafRecord) -> bool {
        ptr::eq(record.newer.load(Ordering::Relaxed), record)
    }
}

impl Drop for LockedFamily<'_> {
    fn drop(&mut self) {
        self.0.locked.store(false, Ordering::Release);
    }
}

impl Family {
    /// Tries to take the lock. Acquire, partner: the Release of the thread that had it.
    pub fn try_lock(&self) -> Option<LockedFamily<'_>> {
        let locked = self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        locked.is_ok().then(|| LockedFamily(self))
    }

    /// Returns the records in the list, the youngest first. The caller is in a section that began before the family ended, and
    /// ends the iteration in it.
    pub fn records<'s>(
        &'s self,
        _section: &'s crate::sync::Section<'_>,
    ) -> impl Iterator<Item = &'s LeafRecord> {
        // SAFETY: a record is in the list until its table is retired. It ends after all sections that began before.
        let record = |place: *mut LeafRecord| unsafe { place.as_ref() };
        core::iter::successors(record(self.newest.load(Ordering::Acquire)), move |found| {
            record(found.older.load(Ordering::Acquire))
        })
    }
}

impl LeafRecord {
    /// Returns the family of the leaf table.
    pub(crate) fn family(&self) -> Option<&Family> {
        // SAFETY: null, or a family, whose memory stays.
        unsafe { self.family.load(Ordering::Acquire).as_ref() }
    }

    /// Returns the family of the leaf table, which is founded if there is none. Does not sleep. Called by fork, which has taken the
    /// whole space. If other spaces have the leaf too, it has the record's lock. So one thread at a time founds. The memory is
    /// charged to `sections`.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing has changed.
    pub(crate) fn found_family(&self, sections: &Arc<Sections>) -> Result<&Family, OutOfMemory> {
        if let Some(family) = self.family() {
            return Ok(family);
        }
        let place = ptr::from_ref(self).cast_mut();
        let founded = match sections.families().take() {
            Some(spare) => {
                spare.members.store(1, Ordering::Relaxed);
                // Release: a thread may come here by the home of a page of the family before.
                spare.newest.store(place, Ordering::Release);
                ptr::from_ref(spare).cast_mut()
            }
            None => {
                let made = try_box(Family {
                    locked: AtomicBool::new(false),
                    newest: AtomicPtr::new(place),
                    members: AtomicU64::new(1),
                    next_spare: AtomicPtr::new(ptr::null_mut()),
                    sections: plain::AtomicPtr::new(Arc::as_ptr(sections).cast_mut()),
                })?;
                sections.charge(size_of::<Family>());
                Box::into_raw(made)
            }
        };
        self.family.store(founded, Ordering::Release);
        // SAFETY: from a box, and its memory stays.
        Ok(unsafe { &*founded })
    }

    /// Tries to take the record out of its family's list, if it has one. Called once, before the leaf table is retired, when no
    /// entry of it has a page. Returns false, and does nothing, if another thread is at work on the list.
    pub(crate) fn try_leave_family(&self) -> bool {
        let Some(family) = self.family() else { return true };
        let Some(locked) = family.try_lock() else { return false };
        locked.remove(self);
        true
    }

    /// Tries to take the record out of its family, while its leaf table stays. No entry of the table has a page that a relative has
    /// too, or will have one before the returned value has ended. `None` if there is no family, or if another thread is at work on
    /// its list: then nothing is done.
    ///
    /// Sections that are under way may still find the record in the list, and the family by the record. They may also write the
    /// family into homes of the table's pages.
    pub(crate) fn try_isolate(&self) -> Option<FormerMember<'_>> {
        let family = self.family()?;
        let locked = family.try_lock()?;
        locked.remove(self);
        drop(locked);
        let family = NonNull::from(family);
        self.family.store(ptr::null_mut(), Ordering::Release);
        Some(FormerMember { record: self, family })
    }

    /// Ends the record's membership. The last record ends the family, whose memory is a spare family's then.
    pub(super) fn end_kinship(&self) {
        let Some(family) = NonNull::new(self.family.load(Ordering::Relaxed)) else { return };
        debug_assert!(
            mutant!("relative_stays") || LockedFamily::has_left(self),
            "a leaf table freed in its family's list"
        );
        // SAFETY: this record is counted, and it has left the list a grace period ago.
        unsafe { end_membership(family) };
    }
}

/// A record that has left its family while its leaf table stays. If the value is dropped without [`FormerMember::end`], the
/// family's memory leaks.
#[must_use]
pub(crate) struct FormerMember<'a> {
    record: &'a LeafRecord,
    family: NonNull<Family>,
}

impl FormerMember<'_> {
    /// Ends the membership. The record may join another family then.
    ///
    /// # Safety
    /// No home of the table's pages names the family. Since then, and since [`LeafRecord::try_isolate`], all sections that were
    /// under way have ended.
    pub unsafe fn end(self) {
        self.record.older.store(ptr::null_mut(), Ordering::Relaxed);
        self.record.newer.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: the record is counted still, and has left the list; by the contract above.
        unsafe { end_membership(self.family) };
    }
}

/// Counts one record of `family` less. The last one ends the family, whose memory is a spare family's then.
///
/// # Safety
/// The record is counted, and is in the list no more.
unsafe fn end_membership(family: NonNull<Family>) {
    // SAFETY: the memory of families stays.
    let family = unsafe { family.as_ref() };
    // Release and Acquire: the last record's thread sees all that others have done with the family.
    if family.members.fetch_sub(1, Ordering::AcqRel) == 1 {
        // SAFETY: the engine keeps its sections, and a leaf table ends before the engine: with its space, which has a handle of
        // the engine, or as a retired thing, which the engine's drop frees.
        let sections = unsafe { &*family.sections.load(Ordering::Relaxed) };
        sections.families().give(family);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn the_memory_of_a_family_that_has_ended_is_the_next_familys() {
        let sections = Sections::try_shared().expect("memory");
        let found = |record: &LeafRecord| ptr::from_ref(record.found_family(&sections).expect("memory"));
        let leave = |record: &LeafRecord| {
            assert!(record.try_leave_family());
            record.end();
        };
        let [one, next, third] = [const { LeafRecord::new() }; 3];
        let first = found(&one);
        leave(&one);
        // These would get the memory if the allocator had it.
        let others: Vec<_> = (0..100).map(|_| Box::new(LeafRecord::new())).collect();
        assert_eq!(found(&next), first, "a home that names the family leads to other memory");
        assert_ne!(found(&third), first, "two families in one place");
        leave(&next);
        leave(&third);
        drop(others);
    }
}
