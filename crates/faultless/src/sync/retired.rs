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
//! A call frees what it finds due and never waits for that; [`Sections::flush`] does. A period is asked for by
//!
//! * a batch of things behind one of the same list: [`BATCH`];
//! * bytes, over all lists: [`ASK`]. From [`MOST`] on [`Sections::retire`] says so, and the engine waits for a period;
//! * a thing that is the last to keep something that should end soon, a file: at once. If a handle goes later, and only
//!   retired things keep the file then, it is said ([`Sections::hurry`]), and the next call that retires asks for it.
//!
//! Each of the last two frees what is due of all lists, whoever's they are. So what is kept is at most [`MOST`] plus what
//! slots have not told of yet ([`UNTOLD`] for each of the first [`TELLS_LATER`]): 4.5 MiB, however many threads there are.
//! To that comes what the calls under way bring.

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

/// So many things in one list ask for a grace period. membarrier interrupts every other processor of the process: of two writers
/// at 64 things each pays as much for that as for its changes.
#[cfg(not(loom))]
const BATCH: usize = 256;
#[cfg(loom)]
const BATCH: usize = 1;

/// At each of so many periods somebody looks after lists that have been left behind.
const HELP: u64 = 4;

/// So many bytes in all lists ask for a grace period.
const ASK: usize = 1 << 20;
/// From so many on, whoever retires waits for one.
const MOST: usize = 4 << 20;
/// Slots below this tell of what they keep, and of what of it is freed, in steps of [`UNTOLD`] bytes. The others tell of
/// each byte, on a line that all write.
const TELLS_LATER: usize = 64;
/// See [`TELLS_LATER`].
const UNTOLD: usize = 8 << 10;

/// No thing has this number.
const NONE: u64 = u64::MAX;

/// What a slot has retired.
pub(super) struct List {
    /// Its lock is free but while somebody helps.
    queue: Mutex<Queue>,
    /// The first one's number, or `NONE`. Written under the lock.
    oldest: plain::AtomicU64,
    /// Bytes that the queue has from the allocator. Written under the lock.
    room: plain::AtomicUsize,
    /// What the queue may leave untold: see [`TELLS_LATER`]. Immutable.
    untold: usize,
}

impl List {
    /// Whether nothing is in it. Asked by the slot's thread.
    pub(super) fn is_empty(&self) -> bool {
        self.oldest.load(plain::Ordering::Relaxed) == NONE
    }

    /// Bytes that the list has from the allocator.
    pub(super) fn room(&self) -> usize {
        self.room.load(plain::Ordering::Relaxed)
    }
}

/// Things, with the number of the period that each waits for; these do not fall.
#[derive(Default)]
struct Queue {
    things: VecDeque<(u64, Retired)>,
    /// What the things take.
    bytes: usize,
    /// How much of that is in [`Periods::kept`].
    told: usize,
}

impl List {
    /// The list of slot `index`.
    #[inline]
    pub(super) fn new(index: usize) -> Self {
        Self::telling(if index < TELLS_LATER { UNTOLD } else { 0 })
    }

    /// A list that is no slot's.
    pub(super) fn of_all() -> Self {
        Self::telling(0)
    }

    #[inline]
    fn telling(untold: usize) -> Self {
        let (oldest, room) = (plain::AtomicU64::new(NONE), plain::AtomicUsize::new(0));
        Self { queue: Mutex::default(), oldest, room, untold }
    }

    /// After a change of the queue, whose lock the caller has.
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
    /// The slots from here on have not been seen to pass. The driver's.
    pending: plain::AtomicUsize,
    /// Somebody is in a hurry for this period. Grows only. Relaxed: it is looked at again and again.
    hurried: plain::AtomicU64,
    /// Bytes in all lists, but for what is untold. On a line of its own: slots write it now and then.
    kept: CachePadded<plain::AtomicUsize>,
}

impl Periods {
    fn is_hurried(&self) -> bool {
        self.hurried.load(plain::Ordering::Relaxed) > self.completed.load(Ordering::Relaxed)
    }

    /// Slots that are behind with telling of what they have freed make it too large by no more than what others have not
    /// told of.
    fn keeps(&self, bytes: usize) -> bool {
        self.kept.load(plain::Ordering::Relaxed).cast_signed() > bytes.cast_signed()
    }
}

/// What [`Sections::retire`] leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Less than 4 MiB in all lists.
    Little,
    /// 4 MiB or more, all lists together: older sections are under way still. Who can wait for a grace period does.
    TooMuch,
}

/// The odd numbers that the period under way found in a slot, or zeros. The driver's. Those of a slot that is in use only
/// since are from an earlier period or zeros. It has left what they say: no section has the number of an earlier one.
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
    /// Puts `things`, which are unhooked, into the list of the slot that is pinned, and frees what is due. Never waits for a section. `things` is
    /// empty afterwards and keeps its room. Returns [`Kept::TooMuch`] if all lists keep 4 MiB or more: then call
    /// [`Sections::flush`], if the thread can wait.
    ///
    /// The caller is the slot's thread, is in no section, and holds nothing that dropping a freed thing may need: the guard goes
    /// before anything is freed.
    ///
    /// # Errors
    /// There is no memory for the list: the things stay where they are.
    ///
    /// # Safety
    /// Whoever may still reach a thing is in a section of these `Sections`, and `barrier` is what [`Sections::enter`]
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

    /// Says that what has been retired should be freed soon: the next call that retires, or [`Sections::go_on_if_hurried`],
    /// sees to it. Waits for nothing, frees nothing, and may be called anywhere.
    pub(crate) fn hurry(&self) {
        // The thing that it is for has its number already, and that is known here: no more than one more than have begun. A
        // period that begins and ends before this is noted would leave nobody in a hurry, so it is asked again.
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

    /// Frees what somebody is in a hurry for, as far as that goes without waiting. The caller is as in
    /// [`Sections::retire`].
    ///
    /// # Safety
    /// As [`Sections::retire`].
    #[inline]
    pub(crate) unsafe fn go_on_if_hurried(&self, barrier: &impl Barrier) {
        if self.periods.is_hurried() {
            self.go_on(barrier, 0);
        }
    }

    /// Drives the periods on towards number `wanted`, and to what somebody is in a hurry for; and frees what is due of all
    /// lists, if it is time for that.
    fn go_on(&self, barrier: &impl Barrier, wanted: u64) {
        let due = self.drive(barrier, wanted.max(self.periods.hurried.load(plain::Ordering::Relaxed)));
        if due != 0 {
            self.each_list(|list| {
                if list.oldest.load(plain::Ordering::Relaxed) <= due {
                    self.free_due(list);
                }
            });
        }
    }

    /// As [`Sections::retire`], but frees nothing: for a thread that holds what a drop of what is freed may want. A later call
    /// frees what is due.
    ///
    /// # Errors
    /// There is no memory for the list: the things stay where they are.
    pub fn retire_later(&self, index: SlotIndex, things: &mut RetiredList) -> Result<(), OutOfMemory> {
        self.queue(&self.slot(index).retired, things).map(drop)
    }

    /// Hands what a list keeps on to the one that all look after, and gives its memory back. Its slot is given up.
    ///
    /// # Errors
    /// There is no memory for the list of all: nothing has changed.
    pub(super) fn leave_behind(&self, list: &List) -> Result<(), OutOfMemory> {
        let mut queue = list.queue.lock();
        if !queue.things.is_empty() {
            // Nobody takes the two the other way round.
            let mut left = self.left.queue.lock();
            left.things.try_reserve(queue.things.len()).map_err(|_| OutOfMemory)?;
            // They keep their numbers: somebody may be in a hurry for one.
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

    /// Puts them into the list. Returns their number, and that up to which a batch asks for a period: zero for none.
    #[inline]
    fn queue(&self, list: &List, things: &mut RetiredList) -> Result<(u64, u64), OutOfMemory> {
        let periods = &self.periods;
        let mut queue = list.queue.lock();
        queue.things.try_reserve(things.len()).map_err(|_| OutOfMemory)?;
        #[cfg(mutant = "told_before_number")]
        let was_urgent = things.iter().map(Retired::tell).fold(false, |some, is_urgent| some | is_urgent);
        #[cfg(mutant = "number_before_fence")]
        let number = periods.begun.load(Ordering::Relaxed) + 1;
        // After the lock's read-modify-write. Partner: `heavy` of the period that began after `begun` was read.
        fence_after_rmw();
        #[cfg(not(mutant = "number_before_fence"))]
        let number = periods.begun.load(Ordering::Relaxed) + 1;
        let mut is_urgent = false;
        for thing in things.drain() {
            // Told after the number was read, so that whoever is in a hurry because of it asks for that one or a later one;
            // and before anybody can free it.
            #[cfg(not(mutant = "told_before_number"))]
            let was_urgent = thing.tell();
            is_urgent |= was_urgent;
            queue.bytes += thing.bytes();
            queue.things.push_back((number, thing));
        }
        list.settle(&mut queue, periods);
        if is_urgent {
            periods.hurried.fetch_max(number, plain::Ordering::Relaxed);
        }
        // Only for what has waited for a whole batch behind it: else the few that came since the last period began would get
        // one of their own.
        let behind = queue.things.len().checked_sub(BATCH).and_then(|index| queue.things.get(index));
        Ok((number, behind.map_or(0, |(number, _)| *number)))
    }

    /// Waits for a grace period and frees all that was retired before. `always`: also if that is nothing. `wait` as for
    /// [`Sections::grace`]; the caller is in no section, and holds nothing that a drop of what is freed may want.
    ///
    /// # Safety
    /// `barrier` is what [`Sections::enter`] demands: with a weaker one the grace period may end before an older section.
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

    /// Frees all that is retired.
    ///
    /// # Safety
    /// Nobody is in a section or an access, nor will be in one that reaches what was retired.
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

    /// Drives the periods on towards number `wanted`, as far as that goes without waiting, unless somebody else does so
    /// already. Returns the number up to which things in all lists are due, if it is time to look after those; else zero.
    fn drive(&self, barrier: &impl Barrier, wanted: u64) -> u64 {
        let periods = &self.periods;
        if periods.completed.load(Ordering::Acquire) >= wanted
            || periods.driven.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
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
            if was_hurried || periods.keeps(ASK) && !cfg!(mutant = "bytes_free_own_list") {
                due = completed;
            } else if completed.is_multiple_of(HELP) {
                // Those of the last periods have owners who come again.
                due = due.max(completed - HELP / 2);
            }
        }
        periods.driven.store(false, Ordering::Release);
        due
    }

    /// Notes for the period that begins who is in a section.
    fn note_slots(&self) {
        self.find_slot(0, |slot, awaited| (awaited.note(slot), false).1);
        self.periods.pending.store(0, plain::Ordering::Relaxed);
    }

    /// Whether all whom the period under way has found in a section have left it.
    fn have_passed(&self) -> bool {
        let pending = self.periods.pending.load(plain::Ordering::Relaxed);
        let still = self.find_slot(pending, |slot, awaited| !awaited.has_passed(slot));
        self.periods.pending.store(still.unwrap_or(SlotIndex::MAX as usize), plain::Ordering::Relaxed);
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
                // SAFETY: unhooked before it got its number, told then, and that period has passed.
                unsafe { thing.free_told() };
            }
        }
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;
