//! The host's services on an operating system with `std`: sleeping, a clock, a slot for each thread.

use super::{Clock, Park, Slots};
use crate::sync::{Condvar, Mutex, Sleeper, SlotIndex};

/// [`Park`] by a mutex and a condition variable for each thread. A thread's name is its number in [`StdSlots`].
#[derive(Debug, Default)]
pub struct StdPark {
    #[cfg(any(loom, shuttle))]
    parkers: [Parker; SlotIndex::MAX as usize],
}

/// Where a thread sleeps.
#[derive(Debug, Default)]
struct Parker {
    /// Whether it has been woken since it last slept.
    is_unparked: Mutex<bool>,
    changed: Condvar,
}

/// One a thread of the process, whatever engine it sleeps for. Pages of it that no thread has touched take no memory.
#[cfg(not(any(loom, shuttle)))]
static PARKERS: [Parker; SlotIndex::MAX as usize] =
    [const { Parker { is_unparked: Mutex::new(false), changed: Condvar::new() } }; SlotIndex::MAX as usize];

impl StdPark {
    fn parker(&self, of: Sleeper) -> &Parker {
        #[cfg(any(loom, shuttle))]
        return &self.parkers[of.0 as usize];
        #[cfg(not(any(loom, shuttle)))]
        return &PARKERS[of.0 as usize];
    }
}

impl Park for StdPark {
    fn current(&self) -> Sleeper {
        Sleeper(u64::from(StdSlots.current().get()))
    }

    fn park(&self, me: Sleeper) {
        let parker = self.parker(me);
        let mut is_unparked = parker.is_unparked.lock();
        while !core::mem::take(&mut *is_unparked) {
            is_unparked = parker.changed.wait(is_unparked);
        }
    }

    fn unpark(&self, sleeper: Sleeper) {
        let parker = self.parker(sleeper);
        *parker.is_unparked.lock() = true;
        parker.changed.notify_one();
    }

    #[cfg(not(any(loom, shuttle)))]
    fn pause(&self, look: u32) {
        const SPINS: u32 = 64;
        const YIELDS: u32 = 80;
        match look {
            0..SPINS => core::hint::spin_loop(),
            SPINS..YIELDS => std::thread::yield_now(),
            // 2, 4, … 64 microseconds: the holder was preempted, and needs this processor perhaps.
            _ => std::thread::sleep(core::time::Duration::from_micros(2 << (look - YIELDS).min(5))),
        }
    }

    #[cfg(any(loom, shuttle))]
    fn pause(&self, _look: u32) {
        crate::sync::spin_loop();
    }
}

/// [`Clock`] by [`std::time::Instant`].
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

/// [`Slots`] by thread: a number for each living thread that has used an engine, given back when it ends.
///
/// There are [`SlotIndex::MAX`] numbers, 65,536, for all engines of the process. A thread beyond that sleeps in its first use
/// of an engine until another thread ends: [`StdSlots::waiting`] counts these. A program that needs more threads must not let
/// the first ones wait for the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdSlots;

#[cfg(not(any(loom, shuttle)))]
mod numbers {
    use super::SlotIndex;
    use std::cell::Cell;
    use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

    /// The numbers below `limit`.
    pub struct Pool {
        numbers: Mutex<Numbers>,
        returned: Condvar,
        limit: u32,
    }

    struct Numbers {
        free: Vec<u32>,
        next: u32,
        waiting: usize,
    }

    impl Pool {
        pub const fn new(limit: u32) -> Self {
            let numbers = Mutex::new(Numbers { free: Vec::new(), next: 0, waiting: 0 });
            Self { numbers, returned: Condvar::new(), limit }
        }

        fn lock(&self) -> MutexGuard<'_, Numbers> {
            self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// A number that nobody has. Waits until there is one.
        pub fn take(&self) -> u32 {
            let mut numbers = self.lock();
            loop {
                if let Some(free) = numbers.free.pop() {
                    return free;
                }
                if numbers.next < self.limit {
                    numbers.next += 1;
                    return numbers.next - 1;
                }
                numbers.waiting += 1;
                numbers = self.returned.wait(numbers).unwrap_or_else(PoisonError::into_inner);
                numbers.waiting -= 1;
            }
        }

        pub fn give_back(&self, number: u32) {
            self.lock().free.push(number);
            self.returned.notify_one();
        }

        pub fn waiting(&self) -> usize {
            self.lock().waiting
        }
    }

    static POOL: Pool = Pool::new(SlotIndex::MAX);

    struct Mine(u32);

    impl Drop for Mine {
        fn drop(&mut self) {
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
    pub fn current() -> u32 {
        match INDEX.with(Cell::get) {
            u32::MAX => first_use(),
            index => index,
        }
    }

    #[cold]
    fn first_use() -> u32 {
        let index = MINE.with(|mine| mine.0);
        INDEX.with(|place| place.set(index));
        index
    }
}

#[cfg(any(loom, shuttle))]
mod numbers {
    // A model names its threads itself: thread-locals of the real thread would be shared by all of them.
    #[cfg(loom)]
    loom::thread_local! { static INDEX: std::cell::Cell<u32> = std::cell::Cell::new(0); }
    #[cfg(shuttle)]
    shuttle::thread_local! { static INDEX: std::cell::Cell<u32> = std::cell::Cell::new(0); }

    pub fn current() -> u32 {
        INDEX.with(std::cell::Cell::get)
    }

    pub fn set(index: u32) {
        INDEX.with(|place| place.set(index));
    }
}

impl StdSlots {
    /// How many threads wait for a number now: other than zero only while [`SlotIndex::MAX`] threads have one.
    #[cfg(not(any(loom, shuttle)))]
    pub fn waiting() -> usize {
        numbers::waiting()
    }

    /// Gives the model's thread its slot; threads that live together take different ones.
    #[cfg(any(loom, shuttle))]
    pub fn set_current(index: u32) {
        numbers::set(index);
    }
}

// SAFETY: a number is one thread's until the thread ends; then it is in no section any more. A thread whose
// thread-locals are gone already (a destructor of another one) fails in `with`, it does not share.
unsafe impl Slots for StdSlots {
    #[inline]
    fn current(&self) -> SlotIndex {
        // Numbers stay below MAX, see `take`.
        SlotIndex::new(numbers::current()).expect("a slot number below the maximum")
    }
}

#[cfg(all(test, not(loom), not(shuttle)))]
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
