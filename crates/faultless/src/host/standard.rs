//! The host's services on an operating system with `std`: sleeping, a clock, a slot for each thread.

use super::{Clock, Park, Slots};
use crate::sync::{Condvar, Mutex, Sleeper, SlotIndex};
#[cfg(not(loom))]
use crate::sync::{OutOfMemory, Sections};
#[cfg(not(loom))]
use alloc::sync::Arc;

/// An implementation of [`Park`] by a mutex and a condition variable for each thread. A thread's name is its number in
/// [`StdSlots`].
#[derive(Debug, Default)]
pub struct StdPark {
    #[cfg(loom)]
    parkers: [Parker; SlotIndex::MAX as usize],
}

/// The place where one thread sleeps.
#[derive(Debug, Default)]
struct Parker {
    /// Tells whether the thread has been woken since it last slept.
    is_unparked: Mutex<bool>,
    changed: Condvar,
}

/// One parker for each thread of the process, for all engines. Its pages that no thread has touched take no memory.
#[cfg(not(loom))]
static PARKERS: [Parker; SlotIndex::MAX as usize] =
    [const { Parker { is_unparked: Mutex::new(false), changed: Condvar::new() } }; SlotIndex::MAX as usize];

impl StdPark {
    /// Returns the parker of the thread `of`. `None`: no thread has this name, which came from a caller.
    fn parker(&self, of: Sleeper) -> Option<&Parker> {
        let number = usize::try_from(of.0).ok()?;
        #[cfg(loom)]
        return self.parkers.get(number);
        #[cfg(not(loom))]
        return PARKERS.get(number);
    }
}

impl Park for StdPark {
    fn current(&self) -> Sleeper {
        Sleeper(u64::from(StdSlots.current().get()))
    }

    fn park(&self, me: Sleeper) {
        let Some(parker) = self.parker(me) else { return };
        let mut is_unparked = parker.is_unparked.lock();
        while !core::mem::take(&mut *is_unparked) {
            is_unparked = parker.changed.wait(is_unparked);
        }
    }

    fn unpark(&self, sleeper: Sleeper) {
        let Some(parker) = self.parker(sleeper) else { return };
        *parker.is_unparked.lock() = true;
        parker.changed.notify_one();
    }

    #[cfg(not(loom))]
    fn spin(&self, look: u32) {
        const SPINS: u32 = 64;
        const YIELDS: u32 = 80;
        match look {
            0..SPINS => core::hint::spin_loop(),
            SPINS..YIELDS => std::thread::yield_now(),
            // 2, 4, … 64 microseconds: the holder was preempted, and may need this processor.
            _ => std::thread::sleep(core::time::Duration::from_micros(2 << (look - YIELDS).min(5))),
        }
    }

    #[cfg(loom)]
    fn spin(&self, _look: u32) {
        crate::sync::spin_loop();
    }
}

/// An implementation of [`Clock`] by [`std::time::Instant`].
#[derive(Debug)]
pub struct StdClock {
    start: std::time::Instant,
}

impl Default for StdClock {
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock for StdClock {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

/// An implementation of [`Slots`] by thread. Each living thread that has used an engine has a number, which it gives back when
/// it ends. No grace period looks at the slots of a thread that has ended. A thread whose handle has been joined has ended. A
/// [`std::thread::scope`] may end earlier than its threads.
///
/// There are [`SlotIndex::MAX`] numbers, 65,536, for all engines of the process. A thread beyond that sleeps in its first use
/// of an engine until another thread ends. [`StdSlots::waiting`] counts such threads. A program that needs more threads must
/// not let the first ones wait for the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdSlots;

#[cfg(not(loom))]
mod numbers {
    use super::{OutOfMemory, Sections, SlotIndex};
    use crate::sync::{Condvar, Mutex};
    use std::cell::Cell;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;
    use std::sync::{Arc, Weak};

    /// The pool of the numbers below `limit`.
    pub struct Pool {
        numbers: Mutex<Numbers>,
        returned: Condvar,
        limit: u32,
    }

    struct Numbers {
        /// The numbers that were given back. The lowest is given out first, so that the numbers in use lie close together. It
        /// has room for all numbers that were ever given out.
        free: BinaryHeap<Reverse<u32>>,
        next: u32,
        waiting: usize,
    }

    impl Pool {
        pub const fn new(limit: u32) -> Self {
            let numbers = Mutex::new(Numbers { free: BinaryHeap::new(), next: 0, waiting: 0 });
            Self { numbers, returned: Condvar::new(), limit }
        }

        /// Takes a number that no thread has. Waits until there is one.
        pub fn take(&self) -> u32 {
            let mut numbers = self.numbers.lock();
            loop {
                if let Some(Reverse(free)) = numbers.free.pop() {
                    return free;
                }
                if numbers.next < self.limit {
                    // No number is free now. The end of a thread does not allocate; if there is no memory now, this number may
                    // be lost then.
                    let given_out = numbers.next as usize + 1;
                    let _ = numbers.free.try_reserve(given_out);
                    numbers.next += 1;
                    return numbers.next - 1;
                }
                numbers.waiting += 1;
                numbers = self.returned.wait(numbers);
                numbers.waiting -= 1;
            }
        }

        pub fn give_back(&self, number: u32) {
            let mut numbers = self.numbers.lock();
            if numbers.free.try_reserve(1).is_ok() {
                numbers.free.push(Reverse(number));
            }
            drop(numbers);
            self.returned.notify_one();
        }

        pub fn waiting(&self) -> usize {
            self.numbers.lock().waiting
        }
    }

    static POOL: Pool = Pool::new(SlotIndex::MAX);

    /// The sections of all engines, in which a thread that ends gives up its slot.
    struct Attached {
        /// The sections in the order of their numbers, which are not used again.
        all: Vec<(u64, Weak<Sections>)>,
        next: u64,
    }

    static ATTACHED: Mutex<Attached> = Mutex::new(Attached { all: Vec::new(), next: 0 });

    pub fn attach(sections: &Arc<Sections>) -> Result<(), OutOfMemory> {
        let mut attached = ATTACHED.lock();
        attached.all.try_reserve(1).map_err(|_| OutOfMemory)?;
        let number = attached.next;
        attached.next += 1;
        attached.all.push((number, Arc::downgrade(sections)));
        Ok(())
    }

    pub fn detach(sections: &Sections) {
        ATTACHED.lock().all.retain(|(_, weak)| !std::ptr::eq(weak.as_ptr(), sections));
    }

    struct Mine(u32);

    impl Drop for Mine {
        fn drop(&mut self) {
            if let Some(slot) = SlotIndex::new(self.0) {
                // The sections are visited one at a time, and not under the lock, since the end of the last handle frees
                // retired things. They are found by number, since engines come and go meanwhile.
                let from = |number: u64| {
                    let attached = ATTACHED.lock();
                    let place = attached.all.partition_point(|(known, _)| *known < number);
                    attached.all.get(place).map(|(number, weak)| (*number, weak.upgrade()))
                };
                let mut next = 0;
                while let Some((number, sections)) = from(next) {
                    next = number + 1;
                    // SAFETY: the slot is this thread's, which ends: it is in no section, and waits for nothing. The number
                    // is given back afterwards.
                    sections.inspect(|sections| unsafe { sections.unlist(slot) });
                }
            }
            let _ = INDEX.try_with(|index| index.set(u32::MAX));
            POOL.give_back(self.0);
        }
    }

    thread_local! {
        static INDEX: Cell<u32> = const { Cell::new(u32::MAX) };
        static MINE: Mine = Mine(POOL.take());
    }

    pub fn waiting() -> usize {
        POOL.waiting()
    }

    #[inline]
    pub fn current() -> SlotIndex {
        // One comparison is enough: no slot has the number that means "none yet".
        SlotIndex::new(INDEX.with(Cell::get)).unwrap_or_else(first_use)
    }

    #[cold]
    fn first_use() -> SlotIndex {
        let index = MINE.with(|mine| mine.0);
        INDEX.with(|place| place.set(index));
        SlotIndex::new(index).expect("the pool gives numbers below its limit")
    }
}

#[cfg(loom)]
mod numbers {
    // A model names its threads itself, since all of them would share the thread-locals of the real thread.
    #[cfg(loom)]
    loom::thread_local! { static INDEX: std::cell::Cell<u32> = std::cell::Cell::new(0); }

    pub fn current() -> super::SlotIndex {
        let index = INDEX.with(std::cell::Cell::get);
        super::SlotIndex::new(index).expect("a model has no more threads than slots")
    }

    pub fn set(index: u32) {
        INDEX.with(|place| place.set(index));
    }
}

impl StdSlots {
    /// Returns the slot of the calling thread, which has it until it ends.
    #[inline]
    pub fn current(&self) -> SlotIndex {
        numbers::current()
    }

    /// Returns the number of threads that wait for a slot now. It is other than zero only while [`SlotIndex::MAX`] threads have
    /// one.
    #[cfg(not(loom))]
    pub fn waiting() -> usize {
        numbers::waiting()
    }

    /// Gives the calling thread of a model its slot. Threads that live together take different ones.
    #[cfg(loom)]
    pub fn set_current(index: u32) {
        numbers::set(index);
    }
}

// SAFETY: a number is one thread's until the thread ends; then it is in no section any more. A thread whose
// thread-locals are gone already (a destructor of another one) fails in `with`, it does not share.
unsafe impl Slots for StdSlots {
    const ARE_THREADS: bool = true;

    type Guard = ();

    #[inline]
    fn pin(&self) -> (SlotIndex, ()) {
        (self.current(), ())
    }

    #[cfg(not(loom))]
    fn attach(&self, sections: &Arc<Sections>) -> Result<(), OutOfMemory> {
        numbers::attach(sections)
    }

    #[cfg(not(loom))]
    fn detach(&self, sections: &Sections) {
        numbers::detach(sections);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn living_threads_have_different_slots() {
        let mine = StdSlots.current();
        let other = std::thread::scope(|s| s.spawn(|| StdSlots.current()).join().unwrap());
        assert_ne!(mine, other);
        assert_eq!(mine, StdSlots.current());
    }

    #[test]
    fn a_thread_without_a_slot_is_counted_and_gets_the_next_one() {
        let pool = numbers::Pool::new(2);
        assert_eq!((pool.take(), pool.take(), pool.waiting()), (0, 1, 0));
        std::thread::scope(|scope| {
            let third = scope.spawn(|| pool.take());
            while pool.waiting() == 0 {
                std::thread::yield_now();
            }
            pool.give_back(1);
            assert_eq!(third.join().unwrap(), 1);
        });
        assert_eq!(pool.waiting(), 0);
        assert_eq!(StdSlots::waiting(), 0);
    }

    #[test]
    fn the_lowest_number_goes_first() {
        let pool = numbers::Pool::new(10);
        assert_eq!([0; 5].map(|_| pool.take()), [0, 1, 2, 3, 4]);
        [3, 1, 4].into_iter().for_each(|number| pool.give_back(number));
        assert_eq!([0; 4].map(|_| pool.take()), [1, 3, 4, 5]);
    }

    /// Many threads at once, which end: grace periods look at no slot of theirs, their counts stay, and the numbers are used again.
    #[test]
    fn threads_that_have_ended_are_not_looked_at() {
        use crate::stats::{Counter, Statistics};
        let sections = Arc::new(Sections::new());
        StdSlots.attach(&sections).unwrap();
        for _ in 0..3 {
            let all_here = std::sync::Barrier::new(200);
            std::thread::scope(|scope| {
                let work = || {
                    sections.counters(StdSlots.current()).add(Counter::Faults, 1);
                    all_here.wait();
                    sections.listed()
                };
                let threads: Vec<_> = (0..200).map(|_| scope.spawn(work)).collect();
                threads.into_iter().for_each(|thread| assert!(thread.join().unwrap() > 0));
            });
            assert_eq!(sections.listed(), 0);
        }
        let mut sum = Statistics::default();
        sections.each_counters(|counters| sum.accumulate(counters));
        assert_eq!(sum.get(Counter::Faults), 600);
        StdSlots.detach(&sections);
        std::thread::scope(|scope| _ = scope.spawn(|| sections.counters(StdSlots.current())).join().unwrap());
        assert_eq!(sections.listed(), 1, "of a thread that has ended after the engine went");
    }

    #[test]
    fn a_wake_up_is_not_lost() {
        let (park, (say, hear)) = (StdPark::default(), std::sync::mpsc::channel());
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                let me = park.current();
                say.send(me).unwrap();
                park.park(me);
            });
            park.unpark(hear.recv().unwrap());
            sleeper.join().unwrap();
        });
    }
}
