//! What is unhooked, and waits to be freed: in a list for each slot, until a grace period has passed that nobody waits
//! for.
//!
//! ```text
//! retire:   lock own list { fence; each thing gets the number begun + 1 }
//!           one has a BATCH behind it, itself counted, and nobody drives: drive up to its number
//!           free of the own list what has a number up to `completed`
//! drive:    begun == completed: begun += 1; heavy; note each slot's odd numbers
//!           all of those have changed: completed = begun           else leave it to a later call
//! ```
//! If a thing's number was read before a period began, its fence comes before that period's `heavy`: whoever that period
//! does not find in a section enters after the thing was unhooked. If it was read later, a later period is asked for.
//!
//! A call frees what it finds due and never waits for that; [`Sections::flush`] does. What is kept: of each slot fewer
//! than `BATCH` things, and what was retired since the oldest section under way began. A section does not sleep, so that
//! is what is retired while one page is copied, or while a thread in a section is preempted. What a slot has left behind,
//! whose thread retires no more, is freed by others' calls, with every `HELP`th period.

use super::atomic::{AtomicBool, AtomicU64, Ordering};
use super::barrier::Barrier;
use super::mutex::{Mutex, MutexGuard};
use super::section::{Sections, Slot, SlotIndex};
use super::{OutOfMemory, fence_after_rmw, full_fence, plain};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::ptr::NonNull;
use smallvec::SmallVec;

/// So many things in one list ask for a grace period. membarrier interrupts every other processor of the process: of two writers
/// at 64 things each pays as much for that as for its changes.
#[cfg(not(loom))]
const BATCH: usize = 256;
#[cfg(loom)]
const BATCH: usize = 1;

/// At each of so many periods somebody looks after lists that have been left behind.
const HELP: u64 = 4;

/// Something that readers may still reach: unhooked, and to be freed after a grace period.
pub struct Retired {
    pointer: NonNull<()>,
    free: unsafe fn(NonNull<()>),
}

// SAFETY: `Retired::new` takes only what may be sent.
unsafe impl Send for Retired {}

impl Retired {
    /// Takes `thing`, which no new reader can find any more.
    pub fn new<T: Send + 'static>(thing: Box<T>) -> Self {
        /// # Safety
        /// `pointer` came from `Box::<T>::into_raw` and is passed once.
        unsafe fn free<T>(pointer: NonNull<()>) {
            // SAFETY: by the contract above.
            drop(unsafe { Box::from_raw(pointer.cast::<T>().as_ptr()) });
        }
        // A Box is never null.
        let pointer = NonNull::from(Box::leak(thing)).cast();
        Self { pointer, free: free::<T> }
    }

    /// Takes what is at `pointer`, which no new reader can find any more, and which `free` frees.
    ///
    /// # Safety
    /// `free` may be called with `pointer` once, by any thread, after a grace period.
    pub unsafe fn from_raw(pointer: NonNull<()>, free: unsafe fn(NonNull<()>)) -> Self {
        Self { pointer, free }
    }

    /// Frees it.
    ///
    /// # Safety
    /// A grace period has passed since it was unhooked.
    pub unsafe fn free(self) {
        // SAFETY: made by `new`, and consumed here.
        unsafe { (self.free)(self.pointer) }
    }
}

const _: () = assert!(size_of::<Retired>() == 16);

/// What a call has unhooked: as few things as most calls do without memory from the allocator.
pub type RetiredList = SmallVec<[Retired; 6]>;

/// No thing has this number.
const NONE: u64 = u64::MAX;

/// What a slot has retired.
pub(super) struct List {
    /// With the number of the period that each waits for, which do not fall. Protected by its lock, which is free but
    /// while somebody helps.
    things: Mutex<VecDeque<(u64, Retired)>>,
    /// The first one's number, or `NONE`. Written under the lock.
    oldest: plain::AtomicU64,
}

type Queue<'a> = MutexGuard<'a, VecDeque<(u64, Retired)>>;

impl Default for List {
    fn default() -> Self {
        Self { things: Mutex::default(), oldest: plain::AtomicU64::new(NONE) }
    }
}

/// Grace periods that nobody waits for. They come one after the other, and whoever drives them on is alone.
#[derive(Default)]
pub(super) struct Periods {
    /// How many have begun. Written by the driver before its `heavy`; partner: the fence in [`Sections::retire`].
    begun: AtomicU64,
    /// How many have passed: this many or one less than have begun. Written by the driver, Release; partner: the
    /// Acquire of who frees.
    completed: AtomicU64,
    /// Whether somebody drives. Acquire, and Release when it is let go.
    driven: AtomicBool,
    /// The slots from here on, up to the next, have not been seen to pass. The driver's.
    pending: plain::AtomicUsize,
    /// How many slots there were when the period began. The driver's.
    slots: plain::AtomicUsize,
}

/// The odd numbers that the period under way found in a slot, or zeros. The driver's.
#[derive(Default)]
pub(super) struct Awaited {
    sequence: plain::AtomicUsize,
    access: plain::AtomicUsize,
}

impl Awaited {
    fn note(&self, slot: &Slot) {
        let odd = |number: usize| if number & 1 == 1 { number } else { 0 };
        // Acquire: what was done in sections that have ended is seen.
        self.sequence.store(odd(slot.sequence.load(Ordering::Acquire)), plain::Ordering::Relaxed);
        self.access.store(odd(slot.access.load(Ordering::Acquire)), plain::Ordering::Relaxed);
    }

    fn has_passed(&self, slot: &Slot) -> bool {
        let passed = |noted: &plain::AtomicUsize, now: &super::atomic::AtomicUsize| {
            let noted = noted.load(plain::Ordering::Relaxed);
            noted == 0 || now.load(Ordering::Acquire) != noted
        };
        passed(&self.sequence, &slot.sequence) && passed(&self.access, &slot.access)
    }
}

impl Sections {
    /// Takes what was unhooked, of the thread of slot `index`, which is in no section and holds nothing that a drop of what
    /// is freed may want; and frees what is due. Never waits for a section. `things` is empty then, and keeps its room.
    ///
    /// # Errors
    /// There is no memory for the list: the things stay where they are.
    ///
    /// # Safety
    /// Whoever may still reach a thing is in a section of these `Sections`, and `barrier` is what [`Sections::enter`]
    /// demands.
    pub unsafe fn retire(
        &self,
        index: SlotIndex,
        barrier: &impl Barrier,
        things: &mut RetiredList,
    ) -> Result<(), OutOfMemory> {
        let list = &self.slot(index).retired;
        let queue = self.queue(list, things)?;
        // Only for what has waited for a whole batch behind it: else the few that came since the last period began would get
        // one of their own.
        let wanted =
            queue.len().checked_sub(BATCH).and_then(|index| queue.get(index)).map(|(number, _)| *number);
        drop(queue);
        let left_behind = wanted.map_or(0, |wanted| self.drive(barrier, wanted));
        self.free_due(list);
        if left_behind != 0 {
            self.each_slot(|slot| {
                if slot.retired.oldest.load(plain::Ordering::Relaxed) <= left_behind {
                    self.free_due(&slot.retired);
                }
            });
        }
        Ok(())
    }

    /// As [`Sections::retire`], but frees nothing: for a thread that holds what a drop of what is freed may want. A later call
    /// frees what is due.
    ///
    /// # Errors
    /// There is no memory for the list: the things stay where they are.
    pub fn retire_later(&self, index: SlotIndex, things: &mut RetiredList) -> Result<(), OutOfMemory> {
        self.queue(&self.slot(index).retired, things).map(drop)
    }

    #[inline]
    fn queue<'a>(&self, list: &'a List, things: &mut RetiredList) -> Result<Queue<'a>, OutOfMemory> {
        let mut queue = list.things.lock();
        queue.try_reserve(things.len()).map_err(|_| OutOfMemory)?;
        // After the lock's read-modify-write. Partner: `heavy` of the period that began after `begun` was read.
        fence_after_rmw();
        let number = self.periods.begun.load(Ordering::Relaxed) + 1;
        if queue.is_empty() {
            list.oldest.store(number, plain::Ordering::Relaxed);
        }
        queue.extend(things.drain(..).map(|thing| (number, thing)));
        Ok(queue)
    }

    /// Waits for a grace period and frees all that was retired before. `always`: also if that is nothing. `wait` as for
    /// [`Sections::grace`]; the caller is in no section, and holds nothing that a drop of what is freed may want.
    ///
    /// # Safety
    /// `barrier` is what [`Sections::enter`] demands: with a weaker one the grace period may end before an older section.
    pub unsafe fn flush(&self, barrier: &impl Barrier, always: bool, mut wait: impl FnMut(u32)) {
        let mut is_any = always;
        self.each_slot(|slot| is_any |= slot.retired.oldest.load(plain::Ordering::Relaxed) != NONE);
        if !is_any {
            return;
        }
        full_fence();
        let number = self.periods.begun.load(Ordering::Relaxed) + 1;
        let mut look = 0;
        loop {
            self.drive(barrier, number);
            if self.periods.completed.load(Ordering::Acquire) >= number {
                break;
            }
            wait(look);
            look += 1;
        }
        self.each_slot(|slot| self.free_due(&slot.retired));
    }

    /// Frees all that is retired.
    ///
    /// # Safety
    /// Nobody is in a section or an access, nor will be in one that reaches what was retired.
    pub unsafe fn free_all(&self) {
        self.each_slot(|slot| {
            slot.retired.oldest.store(NONE, plain::Ordering::Relaxed);
            let queue = core::mem::take(&mut *slot.retired.things.lock());
            // SAFETY: by the contract above.
            queue.into_iter().for_each(|(_, thing)| unsafe { thing.free() });
        });
    }

    /// Drives the periods on towards number `wanted`, as far as that goes without waiting, unless somebody else does so
    /// already. Returns the number up to which lists have been left behind, if it is time to look after those; else zero.
    fn drive(&self, barrier: &impl Barrier, wanted: u64) -> u64 {
        let periods = &self.periods;
        if periods.completed.load(Ordering::Acquire) >= wanted
            || periods.driven.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return 0;
        }
        let mut left_behind = 0;
        loop {
            let (begun, completed) =
                (periods.begun.load(Ordering::Relaxed), periods.completed.load(Ordering::Relaxed));
            if begun == completed {
                if completed >= wanted {
                    break;
                }
                periods.begun.store(begun + 1, Ordering::Relaxed);
                barrier.heavy();
                self.note_slots();
            }
            if !self.have_passed() {
                break;
            }
            let completed = periods.begun.load(Ordering::Relaxed);
            periods.completed.store(completed, Ordering::Release);
            if completed.is_multiple_of(HELP) {
                left_behind = completed - HELP / 2;
            }
        }
        periods.driven.store(false, Ordering::Release);
        left_behind
    }

    /// Notes for the period that begins who is in a section.
    fn note_slots(&self) {
        let slots = self.used();
        (0..slots).filter_map(|index| self.awaited(index)).for_each(|(slot, awaited)| awaited.note(slot));
        self.periods.pending.store(0, plain::Ordering::Relaxed);
        self.periods.slots.store(slots, plain::Ordering::Relaxed);
    }

    /// Whether all whom the period under way has found in a section have left it.
    fn have_passed(&self) -> bool {
        let slots = self.periods.slots.load(plain::Ordering::Relaxed);
        let pending = self.periods.pending.load(plain::Ordering::Relaxed);
        let is_in = |index: &usize| {
            // A slot that came since has zeros.
            self.awaited(*index).is_some_and(|(slot, awaited)| !awaited.has_passed(slot))
        };
        let still = (pending..slots).find(is_in);
        self.periods.pending.store(still.unwrap_or(slots), plain::Ordering::Relaxed);
        still.is_none()
    }

    /// Frees of a list what has had its period, a few at a time: its lock is not held while that goes on, since dropping a
    /// file, say, may retire more.
    fn free_due(&self, list: &List) {
        loop {
            let completed = self.periods.completed.load(Ordering::Acquire);
            if list.oldest.load(plain::Ordering::Relaxed) > completed {
                return;
            }
            let mut due: [Option<Retired>; 16] = [const { None }; 16];
            let mut queue = list.things.lock();
            for place in &mut due {
                if queue.front().is_none_or(|(number, _)| *number > completed) {
                    break;
                }
                *place = queue.pop_front().map(|(_, thing)| thing);
            }
            list.oldest.store(queue.front().map_or(NONE, |(number, _)| *number), plain::Ordering::Relaxed);
            if queue.is_empty() && queue.capacity() > 4 * BATCH {
                *queue = VecDeque::new();
            }
            drop(queue);
            for thing in due.into_iter().flatten() {
                // SAFETY: unhooked before it got its number, and that period has passed.
                unsafe { thing.free() };
            }
        }
    }
}

#[cfg(all(test, feature = "std", not(loom), not(shuttle)))]
mod tests;
