//! `range-lock`: a fault takes its page for reading, a change its range for writing, in one lock of ranges a space; the
//! tree of VMAs has a short lock of its own.
//!
//! That is the plan that Lespinasse tells of (LWN, May 2022: "one lock covering the entire address space that would be held only
//! for short periods, while range locks would be used for longer operations"; he gave it up, "mostly because it made
//! page faults more expensive"), with the lock that Bueso posted for it ("locking: Introduce range reader/writer
//! lock", linux-mm, May 2017, and "mm: towards parallel address space operations", February 2018), by which Dufour replaced
//! mmap_sem ("Replace mmap_sem by a range lock", May 2017). Those series take the full range everywhere, as a first
//! step; modelled is the last one: each call takes what it works on.
//!
//! | here | there |
//! |---|---|
//! | requests in one structure under a short lock, each with the number of those that it waits for | `struct range_lock_tree`: an interval tree under a spin lock; `blocking_ranges` in each request |
//! | readers pass each other; otherwise who overlaps waits for all who came before, waiting or not | `range_read_lock`, `range_write_lock`: fair, first come, first served |
//! | who lets go counts one less in each that waited for him, and wakes those at zero | `range_unlock_common`: `range_lock_put`, `wake_up_process` |
//! | a fault: its page, for reading, for the whole of its work | `do_user_addr_fault`: `mm_read_lock(mm, &mmrange)` |
//! | MADV_DONTNEED: its range, for reading | `madvise_need_mmap_write` says no |
//! | other changes: their range, for writing | `mm_write_lock(mm, &mmrange)` |
//! | mmap without an address: the place that it finds | – (the full range) |
//! | fork, exit, brk, mremap and the growing of a stack: the full range | as there |
//! | a fault that waits for I/O keeps nothing, starts over, and may do so as often as it takes | `lock_page_or_retry` lets the range go; there the second attempt holds it |
//! | [`Purpose::Rmap`] takes nothing | `i_mmap_rwsem` or the anon_vma's lock, and the table's |
//!
//! Kept while room is made for a frame: nothing; there the page's range.
//!
//! Differences that are known:
//! * The structure is an array, in no order, that is looked through: as many requests as threads that are in a call or
//!   wait for one. An interval tree looks at fewer where there are many, at more lines where there are few.
//! * Its lock is parking_lot's, which sleeps when it has spun for a while; there it spins with preemption off.
//! * A request lies in the lock's array, there on its thread's stack. Without memory for a longer one it waits until that is
//!   shorter.
//! * Who has to wait spins for a while, and gives his processor up some times, before he sleeps; there he sleeps at once.
//! * mmap without an address tries to take the place that the engine has found and claimed for it; if somebody has it
//!   already, it lets go of everything, waits for it, and looks whether it is still free.
//! * What is waited for the short lock is counted with the waits for ranges when it is taken, not when a range is let go.
//! * Below it the engine announces in entries and takes ranges among changes, as under every design.

use crossbeam_utils::Backoff;
use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Blocked, Call, LockingDesign, Purpose};
use faultless::host::{Clock, Host, OutOfMemory, Park};
use faultless::stats::Counter;
use faultless::sync::Shared;
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};
use parking_lot::{Mutex, MutexGuard};
use std::convert::Infallible;
use std::hint::spin_loop;
use std::thread::{Thread, current, park};

/// The design; see the module.
#[derive(Debug)]
pub struct RangeLock;

/// A lock of ranges.
#[derive(Debug, Default)]
pub struct RangeTree {
    /// The short lock.
    requests: Mutex<Requests>,
}

/// Looks at the short lock before its wait is counted.
const TURNS: usize = 32;

/// Who has a range, and who waits for one.
#[derive(Debug)]
struct Requests {
    all: Vec<Request>,
    next: u64,
}

/// Places from the beginning, so that one is to be had when memory is not.
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
    /// How many that came before have to go first (`blocking_ranges`).
    waits_for: usize,
    /// Who is to be woken then.
    waiter: Option<Thread>,
}

impl Request {
    fn excludes(&self, range: PageRange, reads: bool) -> bool {
        !(self.reads && reads) && self.range.overlaps(range)
    }
}

impl Requests {
    /// How many would have to go first.
    fn before(&self, range: PageRange, reads: bool) -> usize {
        self.all.iter().filter(|other| other.excludes(range, reads)).count()
    }

    /// The number of a new one. There is a place for it.
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
        // Those that it excludes came later: it had to wait for those before.
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
    /// Takes `range`, for reading or for writing.
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

    /// The same, if nobody has to go first and there is a place.
    fn try_take(&self, range: PageRange, reads: bool) -> Option<Held<'_>> {
        let mut requests = self.requests.lock();
        if requests.before(range, reads) != 0 || requests.all.try_reserve(1).is_err() {
            return None;
        }
        let number = requests.push(range, reads, 0);
        Some(Held { tree: self, range, number })
    }

    /// The short lock, with a place for one more.
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

    /// A wait of some turns is not counted: it is over before a clock is read.
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

/// A range, taken.
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

/// What range work holds: nothing only as long as mmap looks for a place.
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
    /// Range work on the whole space has all of it.
    type Fork<'s, H: Host> = ();

    fn new_vma() -> Result<(), OutOfMemory> {
        Ok(())
    }

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

    fn after_io(_: Attempt) -> AfterIo {
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
        assert!(tree.try_take(range(9, 11), true).is_none(), "the writer has a part of it");
        assert!(tree.try_take(range(9, 10), false).is_none(), "a reader has it");
        assert!(tree.try_take(range(9, 10), true).is_some());
    }

    /// ```text
    ///   has       [0 ........ 10)              reads
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
