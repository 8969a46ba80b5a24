//! Families: the leaf tables that came from one leaf by copying its entries, at fork or when a space left a shared leaf. All of
//! them may map the same anonymous folio, at the same index (docs/home.md).
//!
//! ```text
//!  Family   newest ──► record ──► record ──► record     changes under the lock, read in sections
//! ```
//! A record leaves the list before its table is retired. It ends a grace period later, and the family ends with its last record.

use super::LeafRecord;
use crate::host::OutOfMemory;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use crate::sync::{Life, Sections, try_box};
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
    /// The sections to which the memory is charged. Immutable.
    charged_to: Arc<Sections>,
    life: Life,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Family>() == 64);

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
        self.life.touch();
        let locked = self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        locked.is_ok().then(|| LockedFamily(self))
    }

    /// Returns the records in the list, the youngest first. The caller is in a section that began before the family ended, and
    /// ends the iteration in it.
    pub fn records<'s>(
        &'s self,
        _section: &'s crate::sync::Section<'_>,
    ) -> impl Iterator<Item = &'s LeafRecord> {
        self.life.touch();
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
        // SAFETY: the family ends with its last record, and this one has not ended.
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
        let founded = Box::into_raw(try_box(Family {
            locked: AtomicBool::new(false),
            newest: AtomicPtr::new(ptr::from_ref(self).cast_mut()),
            members: AtomicU64::new(1),
            charged_to: Arc::clone(sections),
            life: Life::new(),
        })?);
        sections.charge(size_of::<Family>());
        self.family.store(founded, Ordering::Release);
        // SAFETY: it ends with its last record, and this one has not ended.
        Ok(unsafe { &*founded })
    }

    /// Tries to take the record out of its family's list, if it has one. Called once, before the leaf table is retired, when no
    /// entry of it has a page. Returns false, and does nothing, if another thread is at work on the list.
    pub(crate) fn try_leave_family(&self) -> bool {
        let Some(family) = self.family() else { return true };
        let Some(locked) = family.try_lock() else { return false };
        locked.remove(self);
        drop(locked);
        if mutant!("family_without_grace") {
            self.end_kinship();
        }
        true
    }

    /// Ends the record's membership. The last record ends the family: no thread can have found it in a section that is still
    /// under way, since this record has left the list a grace period ago.
    pub(super) fn end_kinship(&self) {
        let Some(family) = NonNull::new(self.family.load(Ordering::Relaxed)) else { return };
        debug_assert!(
            mutant!("relative_stays") || LockedFamily::has_left(self),
            "a leaf table freed in its family's list"
        );
        // SAFETY: this record is counted, so the family has not ended.
        let members = &unsafe { family.as_ref() }.members;
        // Release and Acquire: the last record's thread sees all that others have done with the family.
        if members.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: from the box of `found_family`. No record is left, and no section in which one could have been found.
            let family = unsafe { Box::from_raw(family.as_ptr()) };
            family.life.end();
            family.charged_to.uncharge(size_of::<Family>());
            // A model finds a use after this by the mark, which must stay memory.
            #[cfg(loom)]
            Box::leak(family);
        }
    }
}
