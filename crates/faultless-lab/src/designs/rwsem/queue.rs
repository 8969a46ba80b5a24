//! The queue of sleeping readers and writers, and wake-ups.

use super::spin::State;
use super::{HANDOFF, HELD, READER, READERS, Rwsem, WAITERS, WRITER, Wakes};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Thread, current, park};
use std::time::{Duration, Instant};

/// Largest number of readers that one wake-up admits (`MAX_READERS_WAKEUP`).
pub(super) const BATCH: usize = 256;

/// Number of times that a writer with a hand-off tries again before it sleeps, while the lock changes hands.
const TRIES: u32 = 16;

/// The waiters, the first to come first.
pub(super) type Queue = VecDeque<Arc<Waiter>>;

/// A thread in the queue.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Immutable.
    thread: Thread,
    /// Immutable.
    writes: bool,
    /// Immutable.
    since: Instant,
    /// Whether the hand-off is for this waiter. Protected by the queue's lock; the waiter itself reads it without.
    hands_off: AtomicBool,
    /// Whether a reader has the lock. Atomic: set once with Release, after the count and the queue have changed; the
    /// waiter reads it with Acquire.
    is_granted: AtomicBool,
}

impl Waiter {
    pub fn new(writes: bool) -> Arc<Self> {
        Arc::new(Self {
            thread: current(),
            writes,
            since: Instant::now(),
            hands_off: AtomicBool::new(false),
            is_granted: AtomicBool::new(false),
        })
    }

    fn has_waited_for(&self, long: Duration) -> bool {
        // No wait is as long as `Duration::MAX`.
        self.since.elapsed() >= long
    }
}

/// The occasion of a wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// The lock seems free (`RWSEM_WAKE_ANY`).
    Any,
    /// Readers seem to hold the lock (`RWSEM_WAKE_READERS`).
    Readers,
    /// The caller holds the lock for reading (`RWSEM_WAKE_READ_OWNED`).
    ReadersOfReader,
}

/// The threads to wake when the queue's lock is released.
#[must_use]
pub(super) struct Woken(Vec<Arc<Waiter>>);

impl Woken {
    const NOBODY: Self = Self(Vec::new());

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn unpark(self) {
        self.0.iter().for_each(|waiter| waiter.thread.unpark());
    }
}

impl Rwsem {
    /// Wakes waiters, if there are any.
    #[cold]
    pub(super) fn wake(&self, wake: Wake) {
        let mut queue = self.queue.lock();
        let woken = self.mark_wake(&mut queue, wake);
        drop(queue);
        woken.unpark();
    }

    /// Admits readers, or chooses a writer to wake. `queue` is this lock's.
    pub(super) fn mark_wake(&self, queue: &mut Queue, wake: Wake) -> Woken {
        let Some(first) = queue.front() else { return Woken::NOBODY };
        if first.writes {
            // It has to take the lock. Until then another writer may take it.
            return if wake == Wake::Any { Woken(vec![first.clone()]) } else { Woken::NOBODY };
        }
        let mut counted = 0;
        if wake != Wake::ReadersOfReader {
            // A writer may steal the lock before a reader is counted in.
            let before = self.count.fetch_add(READER, Ordering::AcqRel);
            if before & WRITER != 0 {
                let mut demanded = 0;
                if first.has_waited_for(self.rules.hands_off_after) {
                    demanded = HANDOFF & !before;
                    first.hands_off.store(true, Ordering::Relaxed);
                }
                self.count.fetch_add(demanded.wrapping_sub(READER), Ordering::AcqRel);
                return Woken::NOBODY;
            }
            self.owner.set_readers();
            counted = 1;
        }
        let admitted = self.take_readers(queue);
        let mut change = (admitted.len() as u64 - counted) * READER;
        // With a reader admitted, nobody has to give way any more. Both bits change with the queue locked only.
        let before = self.count.load(Ordering::Relaxed);
        change = change.wrapping_sub(before & HANDOFF);
        if queue.is_empty() {
            change = change.wrapping_sub(WAITERS);
        }
        self.count.fetch_add(change, Ordering::AcqRel);
        // Only now, so that no reader leaves before it is counted in.
        admitted.iter().for_each(|reader| reader.is_granted.store(true, Ordering::Release));
        Woken(admitted)
    }

    /// Takes the readers out of the queue that one wake-up admits. The first waiter is a reader.
    fn take_readers(&self, queue: &mut Queue) -> Vec<Arc<Waiter>> {
        let most = if self.rules.wakes == Wakes::One { 1 } else { BATCH };
        let (mut admitted, mut stops) = (Vec::new(), false);
        queue.retain(|waiter| {
            stops |= waiter.writes && self.rules.wakes == Wakes::ReadersBeforeWriter;
            if stops || waiter.writes || admitted.len() == most {
                return true;
            }
            admitted.push(waiter.clone());
            false
        });
        admitted
    }

    /// Wakes waiters if no writer holds the lock (`rwsem_cond_wake_waiter`). `count` is the present count.
    fn wake_unless_written(&self, queue: &mut Queue, count: u64) -> Woken {
        if count & WRITER != 0 {
            return Woken::NOBODY;
        }
        if count & READERS != 0 {
            return self.mark_wake(queue, Wake::Readers);
        }
        self.owner.allow_spinning();
        self.mark_wake(queue, Wake::Any)
    }

    /// Waits as a reader that has counted itself in, but may not have the lock.
    pub(super) fn queue_as_reader(&self) {
        let waiter = Waiter::new(false);
        let mut queue = self.queue.lock();
        let mut change = 0u64.wrapping_sub(READER);
        if queue.is_empty() {
            if self.count.load(Ordering::Acquire) & WRITER == 0 {
                drop(queue);
                self.owner.set_readers();
                return;
            }
            change = change.wrapping_add(WAITERS);
        }
        queue.push_back(waiter.clone());
        let count = self.count.fetch_add(change, Ordering::AcqRel).wrapping_add(change);
        let woken = self.wake_unless_written(&mut queue, count);
        drop(queue);
        woken.unpark();
        while !waiter.is_granted.load(Ordering::Acquire) {
            park();
        }
    }

    /// Waits as a writer.
    pub(super) fn queue_as_writer(&self) {
        let waiter = Waiter::new(true);
        let mut queue = self.queue.lock();
        queue.push_back(waiter.clone());
        if queue.len() == 1 {
            self.count.fetch_or(WAITERS, Ordering::AcqRel);
        } else {
            let woken = self.wake_unless_written(&mut queue, self.count.load(Ordering::Acquire));
            if !woken.is_empty() {
                drop(queue);
                woken.unpark();
                queue = self.queue.lock();
            }
        }
        let mut tries = 0;
        while !self.try_write_queued(&mut queue, &waiter) {
            drop(queue);
            // A demand for a hand-off was made: the lock may be free in a moment. After some tries the thread sleeps. The
            // present holder sees that there are waiters, and wakes it.
            let is_next = waiter.hands_off.load(Ordering::Relaxed) && !self.rules.owner_runs.is_zero();
            if is_next && tries < TRIES && self.spin_on_owner() == State::Nobody {
                tries += 1;
            } else {
                tries = 0;
                park();
            }
            queue = self.queue.lock();
        }
    }

    /// Takes the lock for writing as `waiter`, and takes it out of the queue. Demands a hand-off if this fails and the
    /// waiter has waited for long.
    fn try_write_queued(&self, queue: &mut Queue, waiter: &Arc<Waiter>) -> bool {
        let Some(first) = queue.front() else { return false };
        let mut count = self.count.load(Ordering::Relaxed);
        let now = loop {
            let is_demanded = count & HANDOFF != 0;
            if is_demanded && first.hands_off.load(Ordering::Relaxed) && !Arc::ptr_eq(first, waiter) {
                return false;
            }
            let next = if count & HELD == 0 {
                let waiters = if queue.len() == 1 { 0 } else { WAITERS };
                WRITER | waiters
            } else if is_demanded || !waiter.has_waited_for(self.rules.hands_off_after) {
                return false;
            } else {
                count | HANDOFF
            };
            match self.count.compare_exchange_weak(count, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break next,
                Err(now) => count = now,
            }
        };
        if now & HANDOFF != 0 {
            first.hands_off.store(true, Ordering::Relaxed);
            return false;
        }
        queue.retain(|other| !Arc::ptr_eq(other, waiter));
        self.owner.set_writer();
        true
    }
}
