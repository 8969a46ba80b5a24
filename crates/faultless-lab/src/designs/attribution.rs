//! The division of a wait by what the holder of the lock does meanwhile.
//!
//! A holder publishes its state where it has it: "in I/O", "fork". Nobody reads a clock for that. While a thread waits,
//! a [`Ledger`] adds up the time of each state: at each change, whoever changes it settles the time until then. So an
//! uncontended lock costs its holder one load per change.
//!
//! A writer publishes its state after it has taken the lock, without a fence. If a wait begins within those few
//! nanoseconds, the ledger may miss the change, and settles the old state until the next one.

use faultless::Engine;
use faultless::host::{Clock, Host};
use faultless::stats::Counter;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// The activity of the holder of a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// A fault holds the lock through its I/O, or the holder waits for such a fault.
    Io,
    /// A fork copies.
    Fork,
    /// A call changes mappings.
    Change,
    /// A fault works, or the lock changes hands.
    #[default]
    Fault,
}

/// The number of causes.
pub const CAUSES: usize = 4;

/// Nanoseconds for each [`Cause`], in the order of their declaration.
pub type Parts = [u64; CAUSES];

/// The time of each state of one lock, while a thread waits.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The number of threads that wait. Atomic. A holder that changes its state by a read-modify-write and then sees zero
    /// comes before the first look of every waiter.
    waiters: AtomicU32,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// The state since then, as far as it is settled.
    cause: Cause,
    since: Option<Instant>,
    passed: Parts,
}

impl Book {
    /// Adds the time until now to the state so far. The state from now on is the one that `cause` returns; `None`: the same.
    fn settle(&mut self, cause: impl FnOnce() -> Option<Cause>) -> Parts {
        let now = Instant::now();
        if let Some(since) = self.since.replace(now) {
            self.passed[self.cause as usize] += now.duration_since(since).as_nanos() as u64;
        }
        self.cause = cause().unwrap_or(self.cause);
        self.passed
    }
}

impl Ledger {
    /// Begins a wait. Returns the parts so far, for [`Ledger::end`].
    pub fn begin(&self, cause: impl FnOnce() -> Cause) -> Parts {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        self.book.lock().settle(|| Some(cause()))
    }

    /// Returns whether a thread waits.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) != 0
    }

    /// Notes that the state may have changed. `cause` is called only if a thread waits, and one at a time. The caller has
    /// published the new state.
    #[inline]
    pub fn note(&self, cause: impl FnOnce() -> Option<Cause>) {
        if self.is_awaited() {
            self.settle(cause);
        }
    }

    #[cold]
    fn settle(&self, cause: impl FnOnce() -> Option<Cause>) {
        self.book.lock().settle(cause);
    }

    /// Ends a wait that [`Ledger::begin`] began. Returns its parts.
    pub fn end(&self, begun: Parts) -> Parts {
        let now = self.book.lock().settle(|| None);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        std::array::from_fn(|cause| now[cause] - begun[cause])
    }
}

/// Counts a wait since `start`, by the engine's clock: the whole in `total`, and each of its `parts` in the counter of
/// the cause. The counters' sum is the whole. The host is told of one wait, with the cause of the largest part.
pub fn count_wait<H: Host>(
    engine: &Engine<H>,
    start: u64,
    parts: Parts,
    total: Counter,
    counters: [Counter; CAUSES],
) {
    let now = engine.host().clock().now_ns();
    let waited = now.saturating_sub(start);
    let mut left = waited;
    let mut shares = parts.map(|part| {
        let share = part.min(left);
        left -= share;
        share
    });
    let largest = (0..CAUSES).max_by_key(|cause| shares[*cause]).unwrap_or_default();
    // The two looks at the clock are not at the same moment.
    shares[largest] += left;
    engine.counters().add(total, waited);
    for (counter, share) in counters.into_iter().zip(shares) {
        engine.counters().add(counter, share);
    }
    engine.host().waited(counters[largest], start, now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MOMENT: Duration = Duration::from_millis(5);

    fn at_least(part: u64) -> bool {
        part >= MOMENT.as_nanos() as u64
    }

    /// ```text
    ///   first wait    |--- fault ---|--- I/O ---|
    ///   second wait                 |--- I/O ---|--- fork ---|
    /// ```
    #[test]
    fn each_wait_is_divided_by_the_states_during_it() {
        let ledger = Ledger::default();
        let first = ledger.begin(|| Cause::Fault);
        std::thread::sleep(MOMENT);
        ledger.note(|| Some(Cause::Io));
        let second = ledger.begin(|| Cause::Io);
        std::thread::sleep(MOMENT);
        ledger.note(|| Some(Cause::Fork));
        let [io, fork, change, fault] = ledger.end(first);
        assert!(at_least(io) && at_least(fault), "{io} {fault}");
        assert_eq!(change, 0);
        std::thread::sleep(MOMENT);
        let [io, forked, change, fault] = ledger.end(second);
        assert!(at_least(io) && at_least(forked) && forked > fork, "{io} {forked}");
        assert_eq!((change, fault), (0, 0));
    }

    #[test]
    fn time_without_waiters_is_in_no_wait() {
        let ledger = Ledger::default();
        ledger.end(ledger.begin(|| Cause::Io));
        std::thread::sleep(MOMENT);
        ledger.note(|| unreachable!("nobody waits"));
        assert_eq!(ledger.end(ledger.begin(|| Cause::Fork))[Cause::Io as usize], 0);
    }
}
