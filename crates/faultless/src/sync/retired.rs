//! Retired things. They were unhooked, and wait in a list for each slot until a grace period has passed. Then they are
//! freed. No thread waits for that grace period.
//!
//! ```text
//! retire:   lock own list { fence; each thing gets the number begun + 1 }
//!           one has a BATCH behind it, itself counted, and no thread drives: drive up to its number
//!           free the things of the own list with numbers up to `completed`
//! drive:    begun == completed: begun += 1; heavy; note each slot's odd numbers
//!           all of those have changed: completed = begun           else leave it to a later call
//! ```
//! If a thing's number was read before a period began, its fence comes before that period's `heavy`: a thread that the period
//! does not find in a section enters after the thing was unhooked. If the number was read later, a later period is asked for.
//!
//! A call frees the things that it finds due, and never waits for that; [`Sections::flush`] does. A period is asked for by
//!
//! * a batch of things behind one of the same list: [`BATCH`];
//! * bytes, over all lists: [`ASK`]. From [`MOST`] on, [`Sections::retire`] reports it, and the engine waits for a period;
//! * a thing that is the last to keep an object that should end soon, a file: at once. If a handle goes later, and only retired
//!   things keep the file then, a hurry is noted ([`Sections::hurry`]), and the next call that retires asks for a period.
//!
//! Each of the last two frees the things that are due in all lists, regardless of their slots. So the bytes kept are at
//! most [`MOST`] plus those that slots have not reported yet ([`UNTOLD`] for each of the first [`TELLS_LATER`]): 4.5 MiB, for
//! any number of threads. The things of the calls under way come on top of that.

use super::atomic::{AtomicBool, AtomicU64, Ordering};
use super::barrier::Barrier;
use super::mutex::Mutex;
use super::section::Sections;
use super::slot::{Slot, SlotIndex};
use super::{OutOfMemory, fence_after_rmw, full_fence, plain};
use alloc::collections::VecDeque;
use core::mem;
use crossbeam_utils::CachePadded;
pub use thing::{Retired, RetiredKind, RetiredList};

mod thing;

/// The number of things in one list that ask for a grace period. membarrier interrupts every other processor of the process:
/// with two writers and 64 things, each pays as much for that as for its changes.
#[cfg(not(loom))]
const BATCH: usize = 256;
#[cfg(loom)]
const BATCH: usize = 1;

/// The number of periods between two looks at lists that have been left behind.
const HELP: u64 = 4;

/// The number of bytes in all lists that asks for a grace period.
const ASK: usize = 1 << 20;
/// The number of bytes in all lists from which a thread that retires waits for a grace period.
const MOST: usize = 4 << 20;
/// The number of slots that report the bytes that they keep and free in steps of [`UNTOLD`]. The others report each byte, on a
/// line that all write.
const TELLS_LATER: usize = 64;
/// The bytes that a slot may leave unreported: see [`TELLS_LATER`].
const UNTOLD: usize = 8 << 10;

/// A number that no thing has.
const NONE: u64 = u64::MAX;

/// The list of the things that a slot has retired.
pub(super) struct List {
    /// The queue of things. Its lock is contended only while another thread helps.
    queue: Mutex<Queue>,
    /// The number of the first thing, or `NONE`. Written under the lock.
    oldest: plain::AtomicU64,
    /// The bytes that the queue has from the allocator. Written under the lock.
    room: plain::AtomicUsize,
    /// The bytes that the queue may leave unreported: see [`TELLS_LATER`]. Immutable.
    untold: usize,
}

impl List {
    /// Returns whether the list is empty. Called by the slot's thread.
    pub(super) fn is_empty(&self) -> bool {
        self.oldest.load(plain::Ordering::Relaxed) == NONE
    }

    /// Returns the bytes that the list has from the allocator.
    pub(super) fn room(&self) -> usize {
        self.room.load(plain::Ordering::Relaxed)
    }
}

/// A queue of things, each with the number of the period that it waits for. The numbers do not fall.
#[derive(Default)]
struct Queue {
    things: VecDeque<(u64, Retired)>,
    /// The bytes that the things take.
    bytes: usize,
    /// The part of these bytes that is in [`Periods::kept`].
    told: usize,
}

impl List {
    /// Makes the list of slot `index`.
    #[inline]
    pub(super) fn new(index: usize) -> Self {
        Self::telling(if index < TELLS_LATER { UNTOLD } else { 0 })
    }

    /// Makes a list that belongs to no slot.
    pub(super) fn of_all() -> Self {
        Self::telling(0)
    }

    #[inline]
    fn telling(untold: usize) -> Self {
        let (oldest, room) = (plain::AtomicU64::new(NONE), plain::AtomicUsize::new(0));
        Self { queue: Mutex::default(), oldest, room, untold }
    }

    /// Updates the list's other fields and the reported bytes after a change of the queue. The caller holds the queue's lock.
    fn settle(&self, queue: &mut Queue, periods: &Periods) {
        let oldest = queue.things.front().map_or(NONE, |(number, _)| *number);
        self.oldest.store(oldest, plain::Ordering::Relaxed);
        let kept_room = if self.untold == 0 { 0 } else { 4 * BATCH };
        if queue.things.is_empty() && queue.things.capacity() > kept_room {
            queue.things = VecDeque::new();
        }
        self.room.store(queue.things.capacity() * size_of::<(u64, Retired)>(), plain::Ordering::Relaxed);
        if queue.bytes.abs_diff(queue.told) > self.untold {
            periods.kept.fetch_add(queue.bytes.wrapping_sub(queue.told), plain::Ordering::Relaxed);
            queue.told = queue.bytes;
        }
    }
}

/// Grace periods that no thread waits for. They follow one another, and one thread at a time drives them on.
#[derive(Default)]
pub(super) struct Periods {
    /// The number of periods that have begun. Written by the driver before its `heavy`; partner: the fence in
    /// [`Sections::retire`].
    begun: AtomicU64,
    /// The number of periods that have passed: as many as have begun, or one less. Written by the driver, Release; partner: the
    /// Acquire of a thread that frees.
    completed: AtomicU64,
    /// Tells whether a thread drives the periods. Acquire, and Release when the driver stops.
    driven: AtomicBool,
    /// The first slot that has not been seen to pass. Used by the driver alone.
    pending: plain::AtomicUsize,
    /// The number of the latest period that a hurry asks for. It only grows. Relaxed: it is looked at again and again.
    hurried: plain::AtomicU64,
    /// The bytes in all lists, without unreported ones. On a line of its own, since slots write it now and then.
    kept: CachePadded<plain::AtomicUsize>,
}

impl Periods {
    fn is_hurried(&self) -> bool {
        self.hurried.load(plain::Ordering::Relaxed) > self.completed.load(Ordering::Relaxed)
    }

    /// Returns whether the lists keep more than `bytes` bytes, by the reported sum. Slots that have not yet reported freed
    /// bytes make the sum too large, by no more than the bytes that other slots have not reported.
    fn keeps(&self, bytes: usize) -> bool {
        self.kept.load(plain::Ordering::Relaxed).cast_signed() > bytes.cast_signed()
    }
}

/// The amount of retired bytes that [`Sections::retire`] leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// There are less than 4 MiB in all lists.
    Little,
    /// There are 4 MiB or more in all lists together: older sections are still under way. A thread that can wait for a grace
    /// period does so.
    TooMuch,
}

/// The odd numbers that the period under way found in a slot, or zeros. Used by the driver alone. The numbers of a slot that
/// came into use since are from an earlier period, or zeros. The slot has left the sections of these numbers: no section has
/// the number of an earlier one.
#[derive(Default)]
pub(super) struct Awaited {
    sequence: plain::AtomicUsize,
    access: plain::AtomicUsize,
}

impl Awaited {
    fn note(&self, slot: &Slot) {
        let odd = |number: usize| if number & 1 == 1 { number } else { 0 };
        // Acquire: the effects of sections that have ended are seen.
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
    /// Puts `things`, which are unhooked, into the list of the pinned slot, and frees the things that are due. Never waits for
    /// a section. `things` is empty afterwards and keeps its room. Returns [`Kept::TooMuch`] if all lists keep 4 MiB or more:
    /// then call [`Sections::flush`], if the thread can wait.
    ///
    /// The caller is the slot's thread, is in no section, and holds nothing that the drop of a freed thing may need. The guard
    /// is dropped before anything is freed.
    ///
    /// # Errors
    /// Fails if there is no memory for the list: the things stay where they are.
    ///
    /// # Safety
    /// Every thread that may still reach a thing is in a section of these `Sections`, and `barrier` is as [`Sections::enter`]
    /// demands.
    pub unsafe fn retire(
        &self,
        (slot, guard): (SlotIndex, impl Sized),
        barrier: &impl Barrier,
        things: &mut RetiredList,
    ) -> Result<Kept, OutOfMemory> {
        let (list, periods) = (&self.slot(slot).retired, &self.periods);
        let (number, batch) = self.queue(list, things)?;
        drop(guard);
        self.go_on(barrier, if periods.keeps(ASK) { number } else { batch });
        self.free_due(list);
        Ok(if periods.keeps(MOST) { Kept::TooMuch } else { Kept::Little })
    }

    /// Asks that the retired things be freed soon. The next call that retires, or [`Sections::go_on_if_hurried`], does so.
    /// Waits for nothing, frees nothing, and may be called anywhere.
    pub(crate) fn hurry(&self) {
        // The thing that the hurry is for has its number already, and that is known here: at most one more than the periods
        // begun. If a period began and ended before the hurry is noted, no period would be asked for, so the number is read
        // again.
        let mut begun = self.periods.begun.load(Ordering::Relaxed);
        loop {
            self.periods.hurried.fetch_max(begun + 1, plain::Ordering::Relaxed);
            let now = self.periods.begun.load(Ordering::Relaxed);
            if now == begun {
                break;
            }
            begun = now;
        }
    }

    /// Frees the things that a hurry asks for, as far as possible without waiting. The caller is as in [`Sections::retire`].
    ///
    /// # Safety
    /// The caller guarantees the same as for [`Sections::retire`].
    #[inline]
    pub(crate) unsafe fn go_on_if_hurried(&self, barrier: &impl Barrier) {
        if self.periods.is_hurried() {
            self.go_on(barrier, 0);
        }
    }

    /// Drives the periods on towards number `wanted`, and to the period that a hurry asks for. Frees the things that are due in
    /// all lists, if it is time for that.
    #[inline]
    fn go_on(&self, barrier: &impl Barrier, wanted: u64) {
        let wanted = wanted.max(self.periods.hurried.load(plain::Ordering::Relaxed));
        if self.periods.completed.load(Ordering::Acquire) < wanted {
            self.go_on_to(barrier, wanted);
        }
    }

    #[inline(never)]
    fn go_on_to(&self, barrier: &impl Barrier, wanted: u64) {
        let due = self.drive(barrier, wanted);
        if due != 0 {
            self.each_list(|list| {
                if list.oldest.load(plain::Ordering::Relaxed) <= due {
                    self.free_due(list);
                }
            });
        }
    }

    /// Puts `things` into the list of slot `index`, as [`Sections::retire`] does, but frees nothing. For a thread that holds
    /// something that the drop of a freed thing may need. A later call frees the things that are due.
    ///
    /// # Errors
    /// Fails if there is no memory for the list: the things stay where they are.
    pub fn retire_later(&self, index: SlotIndex, things: &mut RetiredList) -> Result<(), OutOfMemory> {
        self.queue(&self.slot(index).retired, things).map(drop)
    }

    /// Moves the things of a list to the list that all threads look after, and gives its memory back. Its slot is given up.
    ///
    /// # Errors
    /// Fails if there is no memory for the list of all: nothing has changed.
    pub(super) fn leave_behind(&self, list: &List) -> Result<(), OutOfMemory> {
        let mut queue = list.queue.lock();
        if !queue.things.is_empty() {
            // No thread takes the two locks in the other order.
            let mut left = self.left.queue.lock();
            left.things.try_reserve(queue.things.len()).map_err(|_| OutOfMemory)?;
            // The things keep their numbers, since a hurry may ask for one.
            left.things.extend(queue.things.drain(..));
            left.things.make_contiguous().sort_unstable_by_key(|(number, _)| *number);
            left.bytes += mem::take(&mut queue.bytes);
            self.left.settle(&mut left, &self.periods);
        }
        queue.things = VecDeque::new();
        self.periods.kept.fetch_sub(mem::take(&mut queue.told), plain::Ordering::Relaxed);
        list.settle(&mut queue, &self.periods);
        Ok(())
    }

    /// Puts `things` into the list. Returns their number, and the number up to which a batch asks for a period, or zero for
    /// none.
    #[inline]
    fn queue(&self, list: &List, things: &mut RetiredList) -> Result<(u64, u64), OutOfMemory> {
        let periods = &self.periods;
        let mut queue = list.queue.lock();
        queue.things.try_reserve(things.len()).map_err(|_| OutOfMemory)?;
        let mut is_urgent = false;
        if mutant!("told_before_number") {
            things.iter().for_each(|thing| is_urgent |= thing.tell());
        }
        let next = || periods.begun.load(Ordering::Relaxed) + 1;
        let early = mutant!("number_before_fence").then(next);
        // After the lock's read-modify-write. Partner: `heavy` of the period that began after `begun` was read.
        fence_after_rmw();
        let number = early.unwrap_or_else(next);
        for thing in things.drain() {
            // The things are told after the number was read, so that a hurry that follows asks for that period or a later one;
            // and before any thread can free them.
            if !mutant!("told_before_number") {
                is_urgent |= thing.tell();
            }
            queue.bytes += thing.bytes();
            queue.things.push_back((number, thing));
        }
        list.settle(&mut queue, periods);
        if is_urgent {
            periods.hurried.fetch_max(number, plain::Ordering::Relaxed);
        }
        // It is asked for only by things with a whole batch behind them: otherwise the few that came since the last period
        // began would get one of their own.
        let behind = queue.things.len().checked_sub(BATCH).and_then(|index| queue.things.get(index));
        Ok((number, behind.map_or(0, |(number, _)| *number)))
    }

    /// Waits for a grace period and frees all things that were retired before. With `always`, it waits even if there are none.
    /// `wait` is as for [`Sections::grace`]. The caller is in no section, and holds nothing that the drop of a freed thing may
    /// need.
    ///
    /// # Safety
    /// `barrier` is as [`Sections::enter`] demands: with a weaker one, the grace period may end before an older section.
    pub unsafe fn flush(&self, barrier: &impl Barrier, always: bool, mut wait: impl FnMut(u32)) {
        let mut is_any = always;
        self.each_list(|list| is_any |= list.oldest.load(plain::Ordering::Relaxed) != NONE);
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
        self.each_list(|list| self.free_due(list));
    }

    /// Frees all retired things.
    ///
    /// # Safety
    /// No thread is in a section or an access, nor will be in one that reaches a retired thing.
    pub unsafe fn free_all(&self) {
        self.each_list(|list| {
            let mut queue = list.queue.lock();
            let things = mem::take(&mut queue.things);
            queue.bytes = 0;
            list.settle(&mut queue, &self.periods);
            drop(queue);
            for (_, thing) in things {
                self.uncharge(thing.charged());
                // SAFETY: by the contract above.
                unsafe { thing.free_told() };
            }
        });
    }

    /// Drives the periods on towards number `wanted`, as far as possible without waiting, unless another thread already does
    /// so. Returns the number up to which things in all lists are due, if it is time to look after those; otherwise zero.
    fn drive(&self, barrier: &impl Barrier, wanted: u64) -> u64 {
        let periods = &self.periods;
        if periods.driven.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return 0;
        }
        let mut due = 0;
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
            let was_hurried = periods.is_hurried();
            periods.completed.store(completed, Ordering::Release);
            if was_hurried || periods.keeps(ASK) && !mutant!("bytes_free_own_list") {
                due = completed;
            } else if completed.is_multiple_of(HELP) {
                // The things of the last periods have owners that come again.
                due = due.max(completed - HELP / 2);
            }
        }
        periods.driven.store(false, Ordering::Release);
        due
    }

    /// Notes for the period that begins which threads are in a section.
    fn note_slots(&self) {
        self.find_slot(0, |slot, awaited| (awaited.note(slot), false).1);
        self.periods.pending.store(0, plain::Ordering::Relaxed);
    }

    /// Returns whether all threads that the period under way has found in a section have left it.
    fn have_passed(&self) -> bool {
        let pending = self.periods.pending.load(plain::Ordering::Relaxed);
        let still = self.find_slot(pending, |slot, awaited| !awaited.has_passed(slot));
        self.periods.pending.store(still.unwrap_or(SlotIndex::MAX as usize), plain::Ordering::Relaxed);
        still.is_none()
    }

    /// Frees the things of a list whose period has passed, a few at a time. The list's lock is not held meanwhile, since the
    /// drop of a file, say, may retire more.
    fn free_due(&self, list: &List) {
        loop {
            let completed = self.periods.completed.load(Ordering::Acquire);
            if list.oldest.load(plain::Ordering::Relaxed) > completed {
                return;
            }
            let mut due: [Option<Retired>; 16] = [const { None }; 16];
            let mut charged = 0;
            let mut queue = list.queue.lock();
            for place in &mut due {
                if queue.things.front().is_none_or(|(number, _)| *number > completed) {
                    break;
                }
                let Some((_, thing)) = queue.things.pop_front() else { break };
                queue.bytes -= thing.bytes();
                charged += thing.charged();
                *place = Some(thing);
            }
            list.settle(&mut queue, &self.periods);
            drop(queue);
            self.uncharge(charged);
            for thing in due.into_iter().flatten() {
                // SAFETY: the thing was unhooked before it got its number, was told then, and that period has passed.
                unsafe { thing.free_told() };
            }
        }
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;
