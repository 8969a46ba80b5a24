//! Taken ranges: range work takes its pages among other range work, under a short lock that also guards the tree.
//! Disjoint ranges go on side by side; overlapping ones are served in the order in which they asked. Letting one go takes no
//! lock where nobody waits: its flag is raised, and whoever has the lock next takes the claim out of the queue.
//!
//! Each thread that waits does so for one claim: for the last of those in its way. When that claim goes, the thread looks
//! again. So in a queue for one place, each claim that goes wakes one thread, which finds itself first.
//!
//! Who has taken a range may change the tree there without the lock, too: an [`Edit`]. It names the pages that the change
//! reads or writes, which no other edit has; and whoever takes the lock waits until there is none, but for those who take
//! theirs by [`Ranges::take_beside`] to change something else.

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

/// Proof that no table over its pages is freed meanwhile: a read section, or the range taken.
///
/// # Safety
/// As long as a value lives, no leaf table that a walk finds with it is freed: a section holds grace periods up, and
/// whoever has taken a range is the only one to unhook its leaf tables.
pub unsafe trait Stable {}
// SAFETY: what is unhooked is freed after a grace period, which waits for this section.
unsafe impl Stable for Section<'_> {}
// SAFETY: as above.
unsafe impl Stable for AccessSection<'_> {}
// SAFETY: what is inside lives as long.
unsafe impl<T: Stable, G> Stable for Pinned<T, G> {}
// SAFETY: a leaf table is unhooked only by who has taken its whole span, and this range overlaps it.
unsafe impl<T: Edited, P: Park> Stable for Reservation<'_, T, P> {}

/// What the holder of a claim says without the lock; on one line.
#[derive(Default)]
struct ClaimSlot {
    /// The claim has been let go. Raised by its holder, Release; lowered under the lock. Partner: the Acquire of who takes the
    /// claim out, whom all see that come to the lock later.
    gone: AtomicBool,
    /// Its edit has been made; until then it does not go. As `gone`.
    edited: AtomicBool,
    /// What the edit comes to. Written before `edited` is raised.
    note: [AtomicU64; 4],
}

/// Claims that are let go by a flag; more at a time take the lock for it.
#[cfg(not(loom))]
const FLAGS: usize = 8;
#[cfg(loom)]
const FLAGS: usize = 2;

/// So many takings remember that somebody met others at work.
const CROWD: u8 = 64;

struct Inner<T> {
    claims: Claims,
    /// So many takings from now on are taken to be among others; see [`BesideGuard::is_crowded`].
    crowd: u8,
    data: T,
}

/// A short lock around `T`, and the ranges taken under it.
pub struct Ranges<T> {
    inner: Mutex<Inner<T>>,
    /// Threads that wait for a release. Changed under `inner`; read by who lets go, after a fence that is a partner of the
    /// one after the change. Apart from the lock, which others take meanwhile.
    waiting: CachePadded<AtomicUsize>,
    /// How many ranges have been left. Changed under `inner` by who has a claim, or takes one out; read by who has let go,
    /// after a fence that is a partner of the one in [`Ranges::take_left`].
    left: AtomicUsize,
    /// By the claims' flags.
    said: [CachePadded<ClaimSlot>; FLAGS],
}

/// A range just taken, with the short lock still held. The lock goes first: bind both, so that it does by itself.
pub type TakenLocked<'a, T, P> = (Reservation<'a, T, P>, RangesGuard<'a, T>);

/// A range just taken, with the short lock held, while others may be at their edits.
pub type TakenBeside<'a, T, P> = (Reservation<'a, T, P>, BesideGuard<'a, T>);

/// As [`TakenLocked`], of two ranges.
pub type TakenBothLocked<'a, T, P> = ((Reservation<'a, T, P>, Reservation<'a, T, P>), RangesGuard<'a, T>);

impl<T: Edited> Ranges<T> {
    /// Nothing taken.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn try_new(data: T) -> Result<Self, OutOfMemory> {
        Ok(Self::with_room(data, Claims::with_room()?))
    }

    /// Nothing taken. For a value that is built where it is to be: a result of this size goes by way of the stack.
    #[inline(always)]
    pub(crate) fn with_room(data: T, claims: Claims) -> Self {
        Self {
            inner: Mutex::new(Inner { claims, crowd: 0, data }),
            waiting: CachePadded::new(AtomicUsize::new(0)),
            left: AtomicUsize::new(0),
            said: core::array::from_fn(|_| CachePadded::default()),
        }
    }

    /// The short lock alone: nobody edits. The wait, if there is one, is counted.
    pub fn lock_by(&self, park: &impl Park) -> RangesGuard<'_, T> {
        self.lock_beside(park).alone(park)
    }

    /// The short lock, while others may be at their edits.
    fn lock_beside(&self, park: &impl Park) -> BesideGuard<'_, T> {
        let mut inner = self.inner.try_lock().unwrap_or_else(|| {
            let mut inner = park.wait_for_lock(|| self.inner.lock());
            inner.crowd = CROWD;
            inner
        });
        self.collect(&mut inner);
        BesideGuard { ranges: self, inner }
    }

    /// Takes claims out that have been let go, and notes which edits have been made.
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

    /// What has been pushed, taken.
    fn reserved<'a, P: Park>(
        &'a self,
        park: &'a P,
        (ticket, flag): (u64, Option<usize>),
        range: PageRange,
    ) -> Reservation<'a, T, P> {
        Reservation { ranges: self, park, ticket, flag, range, held: Some(Held::new()) }
    }

    /// Waits out overlapping claims that came earlier, takes `range`, and returns with the short lock held.
    /// Several ranges are taken by their hull: they are taken at once, and none of them is waited for while
    /// another is held. Needs no memory: where there is none for a long queue, waits until it is shorter. The caller has
    /// taken nothing.
    pub fn take<'a, P: Park>(&'a self, range: PageRange, park: &'a P) -> TakenLocked<'a, T, P> {
        let mut guard = self.lock_with_room(1, park);
        let claim = guard.inner.claims.push(range);
        guard = self.wait_while(guard, park, |claims| claims.blocker(claim.0, range));
        (self.reserved(park, claim, range), guard)
    }

    /// As [`Ranges::take`], while others may be at their edits. For a change that may be made as an [`Edit`].
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
            // Who was in the way may go while the edits end, and is not waited for then.
            let alone = guard.alone(park);
            guard = self.wait_while(alone, park, |claims| claims.blocker(claim.0, range)).beside(self);
        }
        (self.reserved(park, claim, range), guard)
    }

    /// The short lock, with places in the queue for so many claims, [`PLACES`] at most.
    fn lock_with_room<'a>(&'a self, places: usize, park: &impl Park) -> RangesGuard<'a, T> {
        debug_assert!(places <= PLACES);
        let mut guard = self.lock_by(park);
        // An empty queue has them.
        while guard.inner.claims.queue.try_reserve(places).is_err() {
            guard = self.wait_once(guard, park, &|claims| claims.first_before(u64::MAX));
        }
        guard
    }

    /// As [`Ranges::take`], of two ranges apart: both are asked for at once, so that nobody who came later is waited for while
    /// one of them is held.
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

    /// Takes `range`, of which nobody has claimed anything, at once; for somebody who has taken another one.
    ///
    /// # Errors
    /// [`OutOfMemory`]: it is not taken.
    pub fn take_free<'a, P: Park>(
        &'a self,
        range: PageRange,
        park: &'a P,
        guard: &mut RangesGuard<'a, T>,
    ) -> Result<Reservation<'a, T, P>, OutOfMemory> {
        debug_assert!(guard.inner.claims.overlapping(range).is_none());
        // Who has taken something cannot wait for a place.
        guard.inner.claims.queue.try_reserve(1).map_err(|_| OutOfMemory)?;
        let claim = guard.inner.claims.push(range);
        Ok(self.reserved(park, claim, range))
    }

    /// Takes the range inside `whole` that `choose` finds, in one step with the search. `choose` picks one that overlaps
    /// no claim; where only claims are in the way it says so, and is asked again when all that came before have gone.
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
        // In the queue like everybody else, so that it ends: with all of it taken there is no other claim.
        let (mut taken, mut guard) = self.take(whole, park);
        let Choice::Range(range) = choose(&guard.inner.data, &Claims::default()) else { return None };
        taken.narrow(range, &mut guard);
        Some((taken, guard))
    }

    /// Whether something has been left that [`Ranges::take_left`] may find. For who has let go: who has left it looks himself
    /// when he lets go, and so does each who has a claim in his way. The last of them finds it.
    #[inline]
    pub fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed) != 0
    }

    /// A range that was left and of which nobody has claimed anything any more; it stays where it is.
    pub fn find_left(&self, park: &impl Park) -> Option<PageRange> {
        // Partner: the fence of who lets go, after his flag. His flag is seen here, or he sees what has been left.
        full_fence();
        let mut guard = self.lock_beside(park);
        let claims = &mut guard.inner.claims;
        // For the claim.
        claims.queue.try_reserve(1).ok()?;
        claims.left.iter().copied().find(|left| claims.overlapping(*left).is_none())
    }

    /// Takes `range`, which was left, if it is left still and nobody has claimed any of it.
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

    /// If a range over `page` is claimed, waits until some claim is let go. For page work that met BUSY and looks
    /// again then. False: there was no such claim.
    pub fn wait_for_release(&self, page: PageNumber, park: &impl Park) -> bool {
        let guard = self.lock_by(park);
        let blocker = |claims: &Claims| claims.ticket_over(page);
        let is_claimed = blocker(&guard.inner.claims).is_some();
        if is_claimed {
            drop(self.wait_once(guard, park, &blocker));
        }
        is_claimed
    }

    /// Waits until all claims that were made before the call are gone, and returns with the short lock held. Keeps no later
    /// claim waiting, unlike a claim of one's own.
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
        // Partner: the fence of who lets go. He sees that somebody waits, or his flag is seen here.
        full_fence();
        self.collect(&mut guard.inner);
        let claims = &mut guard.inner.claims;
        if let Some(claim) = blocker(claims).and_then(|ticket| claims.get_mut(ticket)) {
            let waiter = Waiter::new(park.current(), 0, 0);
            // SAFETY: it is new, and stays here until it has been woken; should `park` panic, `Leaving` takes it out.
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

    /// Under the lock.
    fn count_waiting(&self, by: isize) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.waiting.store(waiting.wrapping_add_signed(by), Ordering::Relaxed);
    }

    /// Wakes who waited for claims that have gone.
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

    /// How many ranges are taken or waited for.
    pub fn claimed(&self) -> usize {
        let mut inner = self.inner.lock();
        self.collect(&mut inner);
        inner.claims.queue.len()
    }
}

/// Takes a waiter out whose thread panics while it sleeps.
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

/// The short lock, held, while nobody edits: gives the data.
pub struct RangesGuard<'a, T> {
    inner: MutexGuard<'a, Inner<T>>,
}

impl<'a, T> RangesGuard<'a, T> {
    /// What is claimed.
    pub fn claims(&self) -> &Claims {
        &self.inner.claims
    }

    /// The data and, for [`Reservation::widen`], what is claimed.
    pub fn parts(&mut self) -> (&T, &mut Claims) {
        let Inner { claims, data, .. } = &mut *self.inner;
        (data, claims)
    }

    /// For somebody who may edit: nobody does now.
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

/// A range taken: no other range work touches its pages. Let go by dropping it, which wakes who waits.
pub struct Reservation<'a, T: Edited, P: Park> {
    ranges: &'a Ranges<T>,
    park: &'a P,
    ticket: u64,
    flag: Option<usize>,
    range: PageRange,
    /// `None` once it is let go.
    held: Option<Held>,
}

impl<'a, T: Edited, P: Park> Reservation<'a, T, P> {
    /// Whether it has what an [`Edit`] needs.
    pub fn may_edit(&self) -> bool {
        self.flag.is_some()
    }

    /// The pages taken.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// Takes more, up to `wider`, where nobody else has claimed any of it. Returns whether it did.
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

    /// Leaves something to do about `range`, of which others have claimed something too, to whoever lets go of the last of these
    /// claims and this one: [`Ranges::find_left`].
    ///
    /// # Errors
    /// [`OutOfMemory`]: nobody will do it.
    pub fn leave(&self, range: PageRange, claims: &mut Claims) -> Result<(), OutOfMemory> {
        claims.leave(range)?;
        self.ranges.left.store(claims.left.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Keeps only `range`, a part of what was taken, and lets the rest go.
    pub fn narrow(&mut self, range: PageRange, guard: &mut RangesGuard<'_, T>) {
        debug_assert!(self.range.covers(range));
        let claims = &mut guard.inner.claims;
        if let Some(claim) = claims.queue.iter_mut().find(|claim| claim.ticket == self.ticket) {
            claim.range = range;
            // They look again.
            claims.released.append(&mut claim.waiters);
        }
        self.range = range;
        self.wake_under(guard);
    }

    /// Lets it go by somebody who has the short lock anyhow.
    pub fn finish(mut self, guard: &mut RangesGuard<'_, T>) {
        self.held = None;
        guard.inner.claims.remove(self.ticket);
        self.wake_under(guard);
        core::mem::forget(self);
    }

    /// Wakes who waited for what has gone. They take the short lock afterwards.
    fn wake_under(&self, guard: &mut RangesGuard<'_, T>) {
        while !guard.inner.claims.released.is_empty() {
            let mut woken = Woken::new();
            guard.inner.claims.released.take(0, usize::MAX, &mut woken);
            woken.wake(self.park);
        }
    }

    /// The short lock again, for a second publication.
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
        // By now somebody else may have taken the claim out; who waits is woken here all the same.
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
