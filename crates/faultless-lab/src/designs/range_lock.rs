//! `range-lock`: a lock of page ranges for each space. A fault takes its page for reading. A change takes its range for
//! writing. The tree of VMAs has a short lock of its own.
//!
//! This is the plan that Lespinasse describes (LWN, May 2022: "one lock covering the entire address space that would be
//! held only for short periods, while range locks would be used for longer operations"). He gave it up, "mostly because
//! it made page faults more expensive". The lock is the one that Bueso posted ("locking: Introduce range reader/writer
//! lock", linux-mm, May 2017, and "mm: towards parallel address space operations", February 2018). Dufour replaced
//! mmap_sem by it ("Replace mmap_sem by a range lock", May 2017). Those series take the full range everywhere, as a
//! first step. This model is the last step: each call takes only the range that it works on.
//!
//! | here | there |
//! |---|---|
//! | requests in one structure under a short lock, each with the number of requests that it waits for | `struct range_lock_tree`: an interval tree under a spin lock; `blocking_ranges` in each request |
//! | readers pass each other; any other request waits for all earlier requests that overlap it, held or waiting | `range_read_lock`, `range_write_lock`: fair, first come, first served |
//! | a release decrements the number of each request that waited for it, and wakes those that reach zero | `range_unlock_common`: `range_lock_put`, `wake_up_process` |
//! | a fault takes its page for reading, for the whole of its work | `do_user_addr_fault`: `mm_read_lock(mm, &mmrange)` |
//! | MADV_DONTNEED takes its range for reading | `madvise_need_mmap_write` returns false |
//! | other changes take their range for writing | `mm_write_lock(mm, &mmrange)` |
//! | mmap without an address takes the place that it finds | – (the full range) |
//! | fork, exit, brk, mremap and the growth of a stack take the full range | the same |
//! | a fault that waits for I/O holds nothing and starts over, as often as needed | `lock_page_or_retry` drops the range; there the second attempt holds it |
//! | [`Purpose::Rmap`] takes nothing | `i_mmap_rwsem` or the anon_vma's lock, and the table's |
//!
//! During reclaim for a frame, nothing is held. The patches hold the page's range.
//!
//! Known differences:
//! * The structure is an unordered array that is searched from end to end. It has as many requests as threads that are
//!   in a call or wait for one. An interval tree visits fewer requests if there are many, but more cache lines if there
//!   are few.
//! * Its lock is parking_lot's, which sleeps after it has spun for a while. The patches spin with preemption off.
//! * A request lies in the lock's array. In the patches it lies on its thread's stack. If there is no memory for a
//!   longer array, a request waits until the array is shorter.
//! * A request that has to wait spins for a while and yields the processor a few times before it sleeps. In the patches
//!   it sleeps at once.
//! * mmap without an address tries to take the place that the engine has found and claimed for it. If another request
//!   holds that place, mmap drops everything, waits for the place, and checks whether it is still free.
//! * A wait for the short lock is counted with the waits for ranges, when a range is taken but not when it is released.
//! * Below it, the engine announces in entries and reserves ranges among changes, as under every design.

use crossbeam_utils::Backoff;
use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, LockingDesign, Purpose};
use faultless::host::{Clock, Host, Park};
use faultless::stats::Counter;
use faultless::sync::Shared;
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};
use parking_lot::{Mutex, MutexGuard};
use std::convert::Infallible;
use std::hint::spin_loop;
use std::thread::{Thread, current, park};

/// The `range-lock` design; see the module.
#[derive(Debug)]
pub struct RangeLock;

/// Lock of page ranges.
#[derive(Debug, Default)]
pub struct RangeTree {
    /// The short lock.
    requests: Mutex<Requests>,
}

/// Number of attempts at the short lock before the wait is counted.
const TURNS: usize = 32;

/// Ranges that are held, and requests that wait for one.
#[derive(Debug)]
struct Requests {
    all: Vec<Request>,
    next: u64,
}

/// Initial capacity, so that a request finds a place even if memory is short.
const PLACES: usize = 16;

impl Default for Requests {
    fn default() -> Self {
        Self { all: Vec::with_capacity(PLACES), next: 0 }
    }
}

#[derive(Debug)]
struct Request {
    number: u64,
    range: PageRange,
    reads: bool,
    /// The number of earlier requests that have to be released first (`blocking_ranges`).
    waits_for: usize,
    /// The thread to wake when `waits_for` reaches zero.
    waiter: Option<Thread>,
}

impl Request {
    fn excludes(&self, range: PageRange, reads: bool) -> bool {
        !(self.reads && reads) && self.range.overlaps(range)
    }
}

impl Requests {
    /// Returns the number of requests that would have to be released first.
    fn before(&self, range: PageRange, reads: bool) -> usize {
        self.all.iter().filter(|other| other.excludes(range, reads)).count()
    }

    /// Adds a request and returns its number. The caller has reserved a place for it.
    fn push(&mut self, range: PageRange, reads: bool, waits_for: usize) -> u64 {
        let (number, waiter) = (self.next, (waits_for != 0).then(current));
        self.next += 1;
        self.all.push(Request { number, range, reads, waits_for, waiter });
        number
    }

    fn is_blocked(&self, number: u64) -> bool {
        self.all.iter().any(|request| request.number == number && request.waits_for != 0)
    }

    fn remove(&mut self, number: u64) {
        let Some(at) = self.all.iter().position(|request| request.number == number) else { return };
        let gone = self.all.swap_remove(at);
        // All requests that it excludes came later, because it waited for the earlier ones.
        for other in self.all.iter_mut().filter(|other| other.excludes(gone.range, gone.reads)) {
            other.waits_for -= 1;
            if other.waits_for == 0
                && let Some(waiter) = other.waiter.take()
            {
                waiter.unpark();
            }
        }
    }
}

impl RangeTree {
    /// Takes `range`, for reading or for writing. Waits for earlier requests that exclude it.
    #[inline]
    fn take<H: Host>(&self, engine: &Engine<H>, range: PageRange, reads: bool) -> Held<'_> {
        engine.assert_may_sleep("a range lock");
        let mut requests = self.with_a_place(engine);
        let waits_for = requests.before(range, reads);
        let number = requests.push(range, reads, waits_for);
        drop(requests);
        if waits_for != 0 {
            self.wait(engine, number);
        }
        Held { tree: self, range, number }
    }

    /// Takes `range` if no request has to be released first and there is a place.
    fn try_take(&self, range: PageRange, reads: bool) -> Option<Held<'_>> {
        let mut requests = self.requests.lock();
        if requests.before(range, reads) != 0 || requests.all.try_reserve(1).is_err() {
            return None;
        }
        let number = requests.push(range, reads, 0);
        Some(Held { tree: self, range, number })
    }

    /// Takes the short lock, with a place for one more request.
    #[inline]
    fn with_a_place<H: Host>(&self, engine: &Engine<H>) -> MutexGuard<'_, Requests> {
        let mut look = 0;
        loop {
            let mut requests = self.short_lock(engine);
            if requests.all.try_reserve(1).is_ok() {
                return requests;
            }
            drop(requests);
            engine.host().park().wait_for_memory(look);
            look += 1;
        }
    }

    /// Takes the short lock. A wait of a few turns is not counted: it ends before a clock could be read.
    #[inline]
    fn short_lock<H: Host>(&self, engine: &Engine<H>) -> MutexGuard<'_, Requests> {
        for _ in 0..TURNS {
            if let Some(requests) = self.requests.try_lock() {
                return requests;
            }
            spin_loop();
        }
        let start = engine.host().clock().now_ns();
        let requests = self.requests.lock();
        engine.end_wait(Counter::RangeLockWait, start);
        requests
    }

    #[cold]
    fn wait<H: Host>(&self, engine: &Engine<H>, number: u64) {
        let start = engine.host().clock().now_ns();
        let backoff = Backoff::new();
        while self.requests.lock().is_blocked(number) {
            match backoff.is_completed() {
                true => park(),
                false => backoff.snooze(),
            }
        }
        engine.end_wait(Counter::RangeLockWait, start);
    }
}

/// Guard of a range that is taken.
#[derive(Debug)]
pub struct Held<'s> {
    tree: &'s RangeTree,
    range: PageRange,
    number: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.tree.requests.lock().remove(self.number);
    }
}

/// Lock that range work holds. It is `None` only while mmap looks for a place.
#[derive(Debug)]
pub struct Range<'s> {
    tree: &'s RangeTree,
    held: Option<Held<'s>>,
}

impl LockingDesign for RangeLock {
    const NAME: &'static str = "range-lock";
    type Space = RangeTree;
    type Vma = ();
    type Outside<'s, H: Host> = Option<Held<'s>>;
    type Inside<'s, H: Host> = ();
    type Kept = Infallible;
    type Range<'s, H: Host> = Range<'s>;
    /// Range work on the whole space already holds all of it.
    type Fork<'s, H: Host> = ();

    #[inline]
    fn outside<'s, H: Host>(
        space: &'s Shared<RangeTree>,
        engine: &'s Engine<H>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Option<Held<'s>> {
        match attempt.purpose {
            Purpose::Rmap => None,
            Purpose::Fault => Some(space.take(engine, PageRange::single(page), true)),
        }
    }

    #[inline]
    fn inside<'s, H: Host>(
        _: &'s Shared<RangeTree>,
        _: &'s Engine<H>,
        _: View<'s, Vma<H, Self>>,
        _: PageNumber,
        _: Attempt,
    ) -> Result<(), Blocked> {
        Ok(())
    }

    fn blocked<H: Host>(_: &Shared<RangeTree>, _: &Engine<H>, _: &mut Attempt) {}

    fn after_io(_: Attempt, _: Awaits) -> AfterIo {
        AfterIo::Retry
    }

    fn keep<'o, 's, H: Host>(_: &Shared<RangeTree>, _: Option<Held<'o>>, (): ()) -> Option<Infallible> {
        None
    }

    fn range_work<'s, H: Host>(
        space: &'s Shared<RangeTree>,
        engine: &'s Engine<H>,
        _: &'s Tree<Vma<H, Self>>,
        call: Call,
        range: PageRange,
    ) -> Range<'s> {
        let held = match call {
            Call::Place => None,
            _ => Some(space.take(engine, range, call == Call::Discard)),
        };
        Range { tree: space, held }
    }

    fn placed<'s, H: Host>(work: &mut Range<'s>, place: PageRange) -> Result<(), Blocked> {
        if work.held.as_ref().is_none_or(|held| !held.range.covers(place)) {
            work.held = None;
            work.held = Some(work.tree.try_take(place, false).ok_or(Blocked::Wait)?);
        }
        Ok(())
    }

    fn fork<'s, H: Host>(_: &'s Shared<RangeTree>, _: &'s Engine<H>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultless::Limits;
    use faultless_soft::Soft;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::{scope, yield_now};

    fn machine() -> (Arc<Engine<Soft>>, RangeTree) {
        (Engine::new(Soft::new(4).unwrap(), Limits::default()).unwrap(), RangeTree::default())
    }

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(PageNumber::new(start), PageNumber::new(end)).unwrap()
    }

    #[test]
    fn readers_and_disjoint_ranges_pass_each_other() {
        let (engine, tree) = machine();
        let _reader = tree.take(&engine, range(0, 10), true);
        let _other = tree.take(&engine, range(5, 6), true);
        let _writer = tree.take(&engine, range(10, 20), false);
        assert!(tree.try_take(range(9, 11), true).is_none(), "the writer holds a part of it");
        assert!(tree.try_take(range(9, 10), false).is_none(), "a reader holds it");
        assert!(tree.try_take(range(9, 10), true).is_some());
    }

    /// ```text
    ///   holds     [0 ........ 10)              reads
    ///   asks 1          [5 ........ 15)        writes
    ///   asks 2      [3 ... 6)                  reads: would pass the first one
    ///   asks 3                    [12 .. 20)   writes: would find it free
    /// ```
    #[test]
    fn who_overlaps_is_served_in_the_order_of_asking() {
        let (engine, tree) = machine();
        let first = tree.take(&engine, range(0, 10), true);
        let served = AtomicUsize::new(0);
        scope(|scope| {
            let asks = [(range(5, 15), false), (range(3, 6), true), (range(12, 20), false)];
            for (before, (range, reads)) in asks.into_iter().enumerate() {
                let (engine, tree, served) = (&engine, &tree, &served);
                scope.spawn(move || {
                    let held = tree.take(engine, range, reads);
                    let place = served.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(place == 0, before == 0, "the writer that asked first comes first");
                    drop(held);
                });
                while tree.requests.lock().all.len() < before + 2 {
                    yield_now();
                }
            }
            assert_eq!(served.load(Ordering::Relaxed), 0, "all wait");
            drop(first);
        });
        assert_eq!(served.load(Ordering::Relaxed), 3);
        assert!(tree.requests.lock().all.is_empty());
    }

    #[test]
    fn nobody_is_in_it_with_a_writer() {
        let (engine, tree) = machine();
        let inside: [AtomicUsize; 4] = Default::default();
        scope(|scope| {
            for me in 0..4 {
                let (engine, tree, inside) = (&engine, &tree, &inside);
                scope.spawn(move || {
                    for turn in 0..2_000 {
                        let (start, reads) = ((me + turn) % 3, turn % 2 == 0);
                        let held = tree.take(engine, range(start as u64, start as u64 + 2), reads);
                        let add = if reads { 1 } else { 100 };
                        for place in &inside[start..start + 2] {
                            let there = place.fetch_add(add, Ordering::Relaxed);
                            assert!(there == 0 || reads && there < 100, "{there}");
                        }
                        for place in &inside[start..start + 2] {
                            place.fetch_sub(add, Ordering::Relaxed);
                        }
                        drop(held);
                    }
                });
            }
        });
        assert!(tree.requests.lock().all.is_empty());
    }
}
