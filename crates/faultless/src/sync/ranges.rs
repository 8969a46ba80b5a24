//! Reservations of ranges. Range work reserves its pages against other range work, under a short lock that also guards the
//! tree. Work on disjoint ranges runs side by side; overlapping requests are served in order. Releasing a range takes no lock
//! if no thread waits: its flag is raised, and the next thread that takes the lock removes the claim from the queue.
//!
//! Each thread that waits does so for one claim: the last of those in its way. When that claim goes, the thread looks again. So
//! in a queue for one place, each claim that goes wakes one thread, which finds itself first.
//!
//! The holder of a range may also change the tree there without the lock, by an [`Edit`]. An edit names the pages that the
//! change reads or writes, which no other edit has. A thread that takes the lock waits until there is no edit. The exception is
//! [`Ranges::take_beside`], for a thread that changes something else.

mod claims;
mod edit;
#[cfg(all(test, feature = "std", not(loom)))]
mod tests;

pub(crate) use claims::ROOM_OF_RANGES;
pub use claims::{Choice, Claims};
pub use edit::{BesideGuard, Edit, Edited};

use claims::PLACES;

use super::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use super::full_fence;
use super::held::Held;
use super::life::OutOfMemory;
use super::mutex::{Mutex, MutexGuard};
use super::section::{AccessSection, Section};
use super::slot::Pinned;
use super::wait::{Park, Waiter, Woken};
use crate::address::{PageNumber, PageRange};
use core::ops::{Deref, DerefMut};
use crossbeam_utils::CachePadded;

/// Proof that no table over its pages is freed meanwhile: a read section, or a reservation.
///
/// # Safety
/// As long as a value lives, no leaf table that a walk finds with it is freed. A section holds grace periods up. The holder of
/// a range is the only one to unhook its leaf tables.
pub unsafe trait Stable {}
// SAFETY: an unhooked table is freed after a grace period, which waits for this section.
unsafe impl Stable for Section<'_> {}
// SAFETY: as above.
unsafe impl Stable for AccessSection<'_> {}
// SAFETY: the value inside lives as long.
unsafe impl<T: Stable, G> Stable for Pinned<T, G> {}
// SAFETY: only the holder of a leaf table's whole span unhooks it, and this range overlaps it.
unsafe impl<T: Edited, P: Park> Stable for Reservation<'_, T, P> {}

/// The flags that the holder of a claim sets without the lock. They lie on one cache line.
#[derive(Default)]
struct ClaimSlot {
    /// Tells that the claim has been released. Raised by its holder, Release; lowered under the lock. Partner: the Acquire of
    /// the thread that removes the claim, which all threads see that take the lock later.
    gone: AtomicBool,
    /// Tells that the claim's edit has been made; until then the claim stays. Raised and lowered as `gone`.
    edited: AtomicBool,
    /// The result of the edit. Written before `edited` is raised.
    note: [AtomicU64; 4],
}

/// The number of claims that can be released by a flag. Further ones are released under the lock.
#[cfg(not(loom))]
const FLAGS: usize = 8;
#[cfg(loom)]
const FLAGS: usize = 2;

/// The number of acquisitions that use the concurrent path after contention was seen.
const CROWD: u8 = 64;

struct Inner<T> {
    claims: Claims,
    /// The number of acquisitions from now on that count as contended; see [`BesideGuard::is_crowded`].
    crowd: u8,
    data: T,
}

/// A short lock around `T`, and the ranges that are reserved under it.
pub struct Ranges<T> {
    inner: Mutex<Inner<T>>,
    /// The number of threads that wait for a release. Changed under `inner`. Read by a thread that releases a claim, after a
    /// fence that is a partner of the one after the change. Apart from the lock, which other threads take meanwhile.
    waiting: CachePadded<AtomicUsize>,
    /// The number of ranges that have been left. Changed under `inner` by a thread that has a claim, or takes a range out. Read
    /// by a thread that has released a claim, after a fence that is a partner of the one in [`Ranges::take_left`].
    left: AtomicUsize,
    /// The flags of claims, by the number of the claim's flag.
    said: [CachePadded<ClaimSlot>; FLAGS],
}

/// A range just reserved, with the short lock still held. The lock is to be released first: bind both, so that it is by itself.
pub type TakenLocked<'a, T, P> = (Reservation<'a, T, P>, RangesGuard<'a, T>);

/// A range just reserved, with the short lock held, while other threads may be at their edits.
pub type TakenBeside<'a, T, P> = (Reservation<'a, T, P>, BesideGuard<'a, T>);

/// Two ranges just reserved, with the short lock still held.
pub type TakenBothLocked<'a, T, P> = ((Reservation<'a, T, P>, Reservation<'a, T, P>), RangesGuard<'a, T>);

impl<T: Edited> Ranges<T> {
    /// Makes ranges of which none is reserved.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn try_new(data: T) -> Result<Self, OutOfMemory> {
        Ok(Self::with_room(data, Claims::with_room()?))
    }

    /// Makes ranges of which none is reserved, for a value that is built in place. A result of this size would go by way of the
    /// stack.
    #[inline(always)]
    pub(crate) fn with_room(data: T, claims: Claims) -> Self {
        Self {
            inner: Mutex::new(Inner { claims, crowd: 0, data }),
            waiting: CachePadded::new(AtomicUsize::new(0)),
            left: AtomicUsize::new(0),
            said: core::array::from_fn(|_| CachePadded::default()),
        }
    }

    /// Takes the short lock and waits until no edit is under way. A wait for the lock is counted.
    pub fn lock_by(&self, park: &impl Park) -> RangesGuard<'_, T> {
        self.lock_beside(park).alone(park)
    }

    /// Takes the short lock, while other threads may be at their edits.
    fn lock_beside(&self, park: &impl Park) -> BesideGuard<'_, T> {
        let mut inner = self.inner.try_lock().unwrap_or_else(|| {
            let mut inner = park.wait_for_lock(|| self.inner.lock());
            inner.crowd = CROWD;
            inner
        });
        self.collect(&mut inner);
        BesideGuard { ranges: self, inner }
    }

    /// Removes claims that have been released, and notes which edits have been made.
    #[inline]
    fn collect(&self, inner: &mut Inner<T>) {
        let mut flags = inner.claims.flags;
        while flags != 0 {
            let flag = flags.trailing_zeros() as usize;
            flags &= flags - 1;
            let said = &self.said[flag];
            let (has_edited, has_gone) =
                (said.edited.load(Ordering::Acquire), said.gone.load(Ordering::Acquire));
            if !(has_edited || has_gone) {
                continue;
            }
            let Inner { claims, data, .. } = inner;
            let Some(claim) = claims.flagged(flag) else { continue };
            if has_edited {
                claim.edits = None;
                claims.editing -= 1;
                data.edited(said.note.each_ref().map(|part| part.load(Ordering::Relaxed)));
                said.edited.store(false, Ordering::Relaxed);
            } else if claim.edits.is_some() {
                continue;
            }
            if has_gone {
                claims.remove(claims.ticket_of(flag));
                said.gone.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Makes a reservation of the claim that has been pushed.
    fn reserved<'a, P: Park>(
        &'a self,
        park: &'a P,
        (ticket, flag): (u64, Option<usize>),
        range: PageRange,
    ) -> Reservation<'a, T, P> {
        Reservation { ranges: self, park, ticket, flag, range, held: Some(Held::new()) }
    }

    /// Waits until earlier overlapping claims have gone, reserves `range`, and returns with the short lock held. Several ranges
    /// are reserved by their hull: all at once, so that none of them is waited for while another is held. Needs no memory: if
    /// there is none for a long queue, it waits until the queue is shorter. The caller has reserved nothing.
    pub fn take<'a, P: Park>(&'a self, range: PageRange, park: &'a P) -> TakenLocked<'a, T, P> {
        let mut guard = self.lock_with_room(1, park);
        let claim = guard.inner.claims.push(range);
        guard = self.wait_while(guard, park, |claims| claims.blocker(claim.0, range));
        (self.reserved(park, claim, range), guard)
    }

    /// Reserves `range` as [`Ranges::take`] does, while other threads may be at their edits. For a change that may be made as
    /// an [`Edit`].
    pub fn take_beside<'a, P: Park>(&'a self, range: PageRange, park: &'a P) -> TakenBeside<'a, T, P> {
        let mut guard = self.lock_beside(park);
        if guard.inner.claims.queue.try_reserve(1).is_err() {
            drop(guard);
            guard = self.lock_with_room(1, park).beside(self);
        }
        let claim = guard.inner.claims.push(range);
        let is_crowded = guard.inner.claims.queue.len() > 1;
        guard.inner.crowd = if is_crowded { CROWD } else { guard.inner.crowd.saturating_sub(1) };
        if guard.inner.claims.blocker(claim.0, range).is_some() {
            // The claim in the way may go while the edits end, and is not waited for then.
            let alone = guard.alone(park);
            guard = self.wait_while(alone, park, |claims| claims.blocker(claim.0, range)).beside(self);
        }
        (self.reserved(park, claim, range), guard)
    }

    /// Takes the short lock, with room in the queue for `places` claims, [`PLACES`] at most.
    fn lock_with_room<'a>(&'a self, places: usize, park: &impl Park) -> RangesGuard<'a, T> {
        debug_assert!(places <= PLACES);
        let mut guard = self.lock_by(park);
        // An empty queue has room.
        while guard.inner.claims.queue.try_reserve(places).is_err() {
            guard = self.wait_once(guard, park, &|claims| claims.first_before(u64::MAX));
        }
        guard
    }

    /// Reserves two disjoint ranges, as [`Ranges::take`] does. Both are requested at once, so that no later claim is waited for
    /// while one of them is held.
    pub fn take_both<'a, P: Park>(
        &'a self,
        first: PageRange,
        second: PageRange,
        park: &'a P,
    ) -> TakenBothLocked<'a, T, P> {
        debug_assert!(!first.overlaps(second));
        let mut guard = self.lock_with_room(2, park);
        let claims = (guard.inner.claims.push(first), guard.inner.claims.push(second));
        let (one, other) = (claims.0.0, claims.1.0);
        guard = self.wait_while(guard, park, |claims| {
            claims.blocker(one, first).or_else(|| claims.blocker(other, second))
        });
        ((self.reserved(park, claims.0, first), self.reserved(park, claims.1, second)), guard)
    }

    /// Reserves `range` at once. No claim overlaps it. For a caller that has reserved another range.
    ///
    /// # Errors
    /// [`OutOfMemory`]: `range` is not reserved.
    pub fn take_free<'a, P: Park>(
        &'a self,
        range: PageRange,
        park: &'a P,
        guard: &mut RangesGuard<'a, T>,
    ) -> Result<Reservation<'a, T, P>, OutOfMemory> {
        debug_assert!(guard.inner.claims.overlapping(range).is_none());
        // A thread that holds a reservation cannot wait for room.
        guard.inner.claims.queue.try_reserve(1).map_err(|_| OutOfMemory)?;
        let claim = guard.inner.claims.push(range);
        Ok(self.reserved(park, claim, range))
    }

    /// Reserves the range inside `whole` that `choose` finds, in one step with the search. `choose` picks a range that overlaps
    /// no claim. If only claims are in the way, it reports that, and is called again when all earlier claims have gone. Returns
    /// `None` if `choose` finds no range.
    pub fn take_chosen<'a, P: Park>(
        &'a self,
        park: &'a P,
        whole: PageRange,
        choose: impl Fn(&T, &Claims) -> Choice,
    ) -> Option<TakenLocked<'a, T, P>> {
        let mut guard = self.lock_with_room(1, park);
        let choice = choose(&guard.inner.data, &guard.inner.claims);
        if let Choice::Range(range) = choice {
            debug_assert!(guard.inner.claims.overlapping(range).is_none());
            let claim = guard.inner.claims.push(range);
            return Some((self.reserved(park, claim, range), guard));
        }
        if choice == Choice::Nothing {
            return None;
        }
        drop(guard);
        // The claim queues like all others, so that the search ends: with all of `whole` reserved, there is no other claim.
        let (mut taken, mut guard) = self.take(whole, park);
        let Choice::Range(range) = choose(&guard.inner.data, &Claims::default()) else { return None };
        taken.narrow(range, &mut guard);
        Some((taken, guard))
    }

    /// Returns whether a range has been left that [`Ranges::take_left`] may find. For a thread that has released its claim. The
    /// thread that left the range looks when it releases its claim, and so does each thread whose claim is in the way. The last
    /// of them finds the range.
    #[inline]
    pub fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed) != 0
    }

    /// Returns a range that was left and that no claim overlaps any more. It stays in the list.
    pub fn find_left(&self, park: &impl Park) -> Option<PageRange> {
        // Partner: the fence of a releasing thread, after its flag. Either the flag is seen here, or that thread sees the range
        // that was left.
        full_fence();
        let mut guard = self.lock_beside(park);
        let claims = &mut guard.inner.claims;
        // Room for the claim.
        claims.queue.try_reserve(1).ok()?;
        claims.left.iter().copied().find(|left| claims.overlapping(*left).is_none())
    }

    /// Reserves `range`, which was left, if it is still left and no claim overlaps it.
    pub fn take_left<'a, P: Park>(&'a self, range: PageRange, park: &'a P) -> Option<TakenLocked<'a, T, P>> {
        let mut guard = self.lock_by(park);
        let claims = &mut guard.inner.claims;
        let place = claims.left.iter().position(|left| *left == range)?;
        if claims.overlapping(range).is_some() || claims.queue.try_reserve(1).is_err() {
            return None;
        }
        claims.left.swap_remove(place);
        self.left.store(claims.left.len(), Ordering::Relaxed);
        let claim = claims.push(range);
        Some((self.reserved(park, claim, range), guard))
    }

    /// Waits until a claim over `page` is released, if there is one. For page work that met BUSY and then looks again. Returns
    /// false if there was no such claim.
    pub fn wait_for_release(&self, page: PageNumber, park: &impl Park) -> bool {
        let guard = self.lock_by(park);
        let blocker = |claims: &Claims| claims.ticket_over(page);
        let is_claimed = blocker(&guard.inner.claims).is_some();
        if is_claimed {
            drop(self.wait_once(guard, park, &blocker));
        }
        is_claimed
    }

    /// Waits until all claims that were made before the call are gone, and returns with the short lock held. Unlike a claim, it
    /// keeps no later claim waiting.
    pub fn wait_for_earlier(&self, park: &impl Park) -> RangesGuard<'_, T> {
        let guard = self.lock_by(park);
        let end = guard.inner.claims.next_ticket;
        self.wait_while(guard, park, |claims| claims.first_before(end))
    }

    /// Waits until `blocker` names no claim.
    fn wait_while<'a>(
        &'a self,
        mut guard: RangesGuard<'a, T>,
        park: &impl Park,
        blocker: impl Fn(&Claims) -> Option<u64>,
    ) -> RangesGuard<'a, T> {
        while blocker(&guard.inner.claims).is_some() {
            guard = self.wait_once(guard, park, &blocker);
        }
        guard
    }

    /// Waits until the claim that `blocker` names has gone.
    #[cold]
    fn wait_once<'a>(
        &'a self,
        mut guard: RangesGuard<'a, T>,
        park: &impl Park,
        blocker: &dyn Fn(&Claims) -> Option<u64>,
    ) -> RangesGuard<'a, T> {
        self.count_waiting(1);
        // Partner: the fence of a releasing thread. Either that thread sees the waiter, or its flag is seen here.
        full_fence();
        self.collect(&mut guard.inner);
        let claims = &mut guard.inner.claims;
        if let Some(claim) = blocker(claims).and_then(|ticket| claims.get_mut(ticket)) {
            let waiter = Waiter::new(park.current(), 0, 0);
            // SAFETY: the waiter is new, and stays here until it has been woken; should `park` panic, `Leaving` takes it out.
            unsafe { claim.waiters.push(&waiter) };
            drop(guard);
            let leaving = Leaving { ranges: self, waiter: &waiter };
            waiter.sleep(park);
            core::mem::forget(leaving);
            guard = self.lock_by(park);
        }
        self.count_waiting(-1);
        guard
    }

    /// Adds `by` to the number of waiting threads. The caller holds the lock.
    fn count_waiting(&self, by: isize) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.waiting.store(waiting.wrapping_add_signed(by), Ordering::Relaxed);
    }

    /// Wakes the threads that waited for claims that have gone.
    #[cold]
    fn wake_released(&self, park: &impl Park) {
        loop {
            let mut woken = Woken::new();
            let mut inner = self.inner.lock();
            inner.claims.released.take(0, usize::MAX, &mut woken);
            drop(inner);
            let is_all = !woken.is_full();
            woken.wake(park);
            if is_all {
                break;
            }
        }
    }

    /// Returns the number of ranges that are reserved or waited for.
    pub fn claimed(&self) -> usize {
        let mut inner = self.inner.lock();
        self.collect(&mut inner);
        inner.claims.queue.len()
    }
}

/// Removes a waiter from its queue if its thread panics while it sleeps.
struct Leaving<'a, T> {
    ranges: &'a Ranges<T>,
    waiter: &'a Waiter,
}

impl<T> Drop for Leaving<'_, T> {
    fn drop(&mut self) {
        let mut inner = self.ranges.inner.lock();
        let Claims { queue, released, .. } = &mut inner.claims;
        let queues = queue.iter_mut().map(|claim| &mut claim.waiters).chain([released]);
        for queue in queues {
            if queue.has(self.waiter) {
                // SAFETY: it is in this queue.
                unsafe { queue.remove(self.waiter) };
            }
        }
    }
}

/// The short lock, held while no edit is under way. It gives access to the data.
pub struct RangesGuard<'a, T> {
    inner: MutexGuard<'a, Inner<T>>,
}

impl<'a, T> RangesGuard<'a, T> {
    /// Returns the claims.
    pub fn claims(&self) -> &Claims {
        &self.inner.claims
    }

    /// Returns the data and, for [`Reservation::widen`], the claims.
    pub fn parts(&mut self) -> (&T, &mut Claims) {
        let Inner { claims, data, .. } = &mut *self.inner;
        (data, claims)
    }

    /// Turns the guard into that of a thread that may edit. No edit is under way now.
    fn beside(self, ranges: &'a Ranges<T>) -> BesideGuard<'a, T> {
        BesideGuard { ranges, inner: self.inner }
    }
}

impl<T> Deref for RangesGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner.data
    }
}

impl<T> DerefMut for RangesGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner.data
    }
}

/// A reserved range: no other range work touches its pages. Dropping it releases the range and wakes the threads that wait for
/// it.
pub struct Reservation<'a, T: Edited, P: Park> {
    ranges: &'a Ranges<T>,
    park: &'a P,
    ticket: u64,
    flag: Option<usize>,
    range: PageRange,
    /// The record that the range is held; `None` once it is released.
    held: Option<Held>,
}

impl<'a, T: Edited, P: Park> Reservation<'a, T, P> {
    /// Returns whether the reservation has the flag that an [`Edit`] needs.
    pub fn may_edit(&self) -> bool {
        self.flag.is_some()
    }

    /// Returns the reserved pages.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// Widens the reservation to `wider`, if no other claim overlaps that. Returns whether it did.
    pub fn widen(&mut self, wider: PageRange, claims: &mut Claims) -> bool {
        if claims.is_claimed_beside(self, wider) {
            return false;
        }
        if let Some(claim) = claims.get_mut(self.ticket) {
            claim.range = wider;
        }
        self.range = wider;
        true
    }

    /// Leaves work on `range`, which other claims overlap too. The holder that releases the last of these claims and this one
    /// does it: [`Ranges::find_left`].
    ///
    /// # Errors
    /// [`OutOfMemory`]: the work is not left, and no thread will do it.
    pub fn leave(&self, range: PageRange, claims: &mut Claims) -> Result<(), OutOfMemory> {
        claims.leave(range)?;
        self.ranges.left.store(claims.left.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Narrows the reservation to `range`, a part of it, and releases the rest.
    pub fn narrow(&mut self, range: PageRange, guard: &mut RangesGuard<'_, T>) {
        debug_assert!(self.range.covers(range));
        let claims = &mut guard.inner.claims;
        if let Some(claim) = claims.queue.iter_mut().find(|claim| claim.ticket == self.ticket) {
            claim.range = range;
            // The waiters look again.
            claims.released.append(&mut claim.waiters);
        }
        self.range = range;
        self.wake_under(guard);
    }

    /// Releases the reservation under the short lock, which the caller holds anyway.
    pub fn finish(mut self, guard: &mut RangesGuard<'_, T>) {
        self.held = None;
        guard.inner.claims.remove(self.ticket);
        self.wake_under(guard);
        core::mem::forget(self);
    }

    /// Wakes the threads that waited for claims that have gone. They take the short lock afterwards.
    fn wake_under(&self, guard: &mut RangesGuard<'_, T>) {
        while !guard.inner.claims.released.is_empty() {
            let mut woken = Woken::new();
            guard.inner.claims.released.take(0, usize::MAX, &mut woken);
            woken.wake(self.park);
        }
    }

    /// Takes the short lock again, for a second publication.
    pub fn lock(&self) -> RangesGuard<'a, T> {
        self.ranges.lock_by(self.park)
    }
}

impl<T: Edited, P: Park> Drop for Reservation<'_, T, P> {
    fn drop(&mut self) {
        let ranges = self.ranges;
        if let Some(flag) = self.flag {
            ranges.said[flag].gone.store(true, Ordering::Release);
            full_fence();
            if ranges.waiting.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
        // Another thread may have removed the claim by now. The waiters are woken here all the same.
        let mut guard = ranges.lock_beside(self.park);
        let claims = &mut guard.inner.claims;
        if claims.get_mut(self.ticket).is_some_and(|claim| claim.edits.is_none()) {
            claims.remove(self.ticket);
        }
        let is_waited_for = !claims.released.is_empty();
        drop(guard);
        if is_waited_for {
            ranges.wake_released(self.park);
        }
    }
}
