//! Edits: changes of what the lock guards, made without it by who has taken a range.

use super::{ClaimSlot, Claims, Inner, Park, Ranges, RangesGuard, Reservation};
use crate::address::PageRange;
use crate::sync::atomic::Ordering;
use crate::sync::mutex::MutexGuard;

/// What the lock guards, as far as edits change it.
pub trait Edited {
    /// An edit has been made without the lock, and comes to this.
    fn edited(&mut self, note: [u64; 4]) {
        let _ = note;
    }
}

impl Edited for () {}

/// The short lock, held while others may be at their edits.
pub struct BesideGuard<'a, T> {
    pub(super) ranges: &'a Ranges<T>,
    pub(super) inner: MutexGuard<'a, Inner<T>>,
}

impl<'a, T: Edited> BesideGuard<'a, T> {
    /// What the lock guards, without the edits under way; what only they may touch who have the lock alone is not to be used.
    pub fn data(&self) -> &T {
        &self.inner.data
    }

    /// How many are at their edits. None of them begins while the lock is held.
    pub fn edits(&self) -> usize {
        self.inner.claims.editing
    }

    /// Whether others have claimed something or had the lock when it was wanted, now or a few takings ago. In models, always.
    pub fn is_crowded(&self) -> bool {
        cfg!(loom) || self.inner.crowd != 0
    }

    /// Whether nobody edits any of `hull`.
    pub fn is_free(&self, hull: PageRange) -> bool {
        self.inner.claims.editing == 0 || !self.inner.claims.edits().any(|edit| edit.overlaps(hull))
    }

    /// What is claimed, for [`Reservation::widen`].
    pub fn claims_mut(&mut self) -> &mut Claims {
        &mut self.inner.claims
    }

    /// Waits until nobody edits, and keeps the lock meanwhile, so that no new edit begins. An edit ends by itself: who is at one is
    /// in a read section, takes no such lock, sleeps on nothing, and waits at most for another one who changes the tree. So
    /// this is the wait for a short lock whose holder is preempted, no longer: a kernel does not preempt in a section, and
    /// elsewhere `spin` yields and then sleeps in bounded steps. As with that lock, nobody lends the editor a priority.
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

    /// Lets the lock go and begins to edit `hull`, of which nobody edits anything. The caller, who has `taken` and its
    /// flag, changes what the lock guards in no other way until the edit has been made.
    ///
    /// # Panics
    /// `taken` has no flag, see [`Reservation::may_edit`].
    pub fn edit<P: Park>(mut self, taken: &Reservation<'a, T, P>, hull: PageRange) -> Edit<'a> {
        debug_assert!(cfg!(mutant = "edits_of_neighbours") || self.is_free(hull));
        let said = &self.ranges.said[taken.flag.expect("who edits has a flag")];
        if let Some(claim) = self.inner.claims.get_mut(taken.ticket) {
            claim.edits = Some(hull);
            self.inner.claims.editing += 1;
        }
        Edit { said, note: [0; 4] }
    }
}

/// A change being made without the lock. Made when it is dropped.
pub struct Edit<'a> {
    said: &'a ClaimSlot,
    note: [u64; 4],
}

impl Edit<'_> {
    /// It has been made, and comes to this.
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
