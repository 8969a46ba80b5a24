//! Edits: changes of the data that the lock guards, made without the lock by the holder of a range.

use super::{ClaimSlot, Claims, Inner, Park, Ranges, RangesGuard, Reservation};
use crate::address::PageRange;
use crate::sync::atomic::Ordering;
use crate::sync::mutex::MutexGuard;

/// The data that the lock guards, as far as edits change it.
pub trait Edited {
    /// Records that an edit has been made without the lock, with the result `note`.
    fn edited(&mut self, note: [u64; 4]) {
        let _ = note;
    }
}

impl Edited for () {}

/// The short lock, held while other threads may be at their edits.
pub struct BesideGuard<'a, T> {
    pub(super) ranges: &'a Ranges<T>,
    pub(super) inner: MutexGuard<'a, Inner<T>>,
}

impl<'a, T: Edited> BesideGuard<'a, T> {
    /// Returns the data that the lock guards, without the edits under way. The caller does not use parts that only a thread
    /// with the lock alone may touch.
    pub fn data(&self) -> &T {
        &self.inner.data
    }

    /// Returns the number of edits under way. None begins while the lock is held.
    pub fn edits(&self) -> usize {
        self.inner.claims.editing
    }

    /// Returns whether other threads have claimed ranges, or held the lock when it was wanted, now or a few acquisitions ago.
    /// In models, always true.
    pub fn is_crowded(&self) -> bool {
        cfg!(loom) || self.inner.crowd != 0
    }

    /// Returns whether no edit overlaps `hull`.
    pub fn is_free(&self, hull: PageRange) -> bool {
        self.inner.claims.editing == 0 || !self.inner.claims.edits().any(|edit| edit.overlaps(hull))
    }

    /// Returns the claims, for [`Reservation::widen`].
    pub fn claims_mut(&mut self) -> &mut Claims {
        &mut self.inner.claims
    }

    /// Waits until no edit is under way, and holds the lock meanwhile, so that no new edit begins. An edit ends by itself: its
    /// thread is in a read section, takes no such lock, sleeps on nothing, and waits at most for another thread that changes
    /// the tree. So this is the wait for a short lock whose holder is preempted, and no longer. A kernel does not preempt in a
    /// section; elsewhere, `spin` yields and then sleeps in bounded steps. As with that lock, no thread lends the editor its
    /// priority.
    #[inline]
    pub fn alone(mut self, park: &impl Park) -> RangesGuard<'a, T> {
        if self.edits() != 0 {
            park.wait_for_lock(|| {
                for look in 0.. {
                    park.spin(look);
                    self.ranges.collect(&mut self.inner);
                    if self.edits() == 0 {
                        break;
                    }
                }
            });
        }
        RangesGuard { inner: self.inner }
    }

    /// Releases the lock and begins to edit `hull`, which no other edit overlaps. The caller, which has `taken` and its flag,
    /// changes the guarded data in no other way until the edit has been made.
    ///
    /// # Panics
    /// Panics if `taken` has no flag; see [`Reservation::may_edit`].
    pub fn edit<P: Park>(mut self, taken: &Reservation<'a, T, P>, hull: PageRange) -> Edit<'a> {
        debug_assert!(mutant!("edits_of_neighbours") || self.is_free(hull));
        let said = &self.ranges.said[taken.flag.expect("a thread that edits has a flag")];
        if let Some(claim) = self.inner.claims.get_mut(taken.ticket) {
            claim.edits = Some(hull);
            self.inner.claims.editing += 1;
        }
        Edit { said, note: [0; 4] }
    }
}

/// An edit that is being made without the lock. It counts as made when it is dropped.
pub struct Edit<'a> {
    said: &'a ClaimSlot,
    note: [u64; 4],
}

impl Edit<'_> {
    /// Ends the edit with the result `note`.
    pub fn done(mut self, note: [u64; 4]) {
        self.note = note;
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        self.said.note.iter().zip(self.note).for_each(|(place, part)| place.store(part, Ordering::Relaxed));
        self.said.edited.store(true, Ordering::Release);
    }
}
