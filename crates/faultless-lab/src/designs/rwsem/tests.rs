//! Tests of the semaphore's rules. Each test of a rule brings the lock into a state, with real waiters where they matter,
//! and asserts who has the lock next. No test asserts a time. The last ones run many threads; they end only if no
//! wake-up is lost. The laboratory has no loom build.

use super::queue::{BATCH, Waiter};
use super::*;
use std::sync::atomic::AtomicI64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle, scope, yield_now};
use std::time::Instant;

/// Linux's rules without those that depend on time.
const CALM: Rules = Rules { owner_runs: Duration::ZERO, hands_off_after: Duration::MAX, ..Rules::LINUX };
/// Each waiter that fails demands a hand-off.
const IMPATIENT: Rules = Rules { hands_off_after: Duration::ZERO, ..CALM };
/// Longest wait of a test.
const TOO_LONG: Duration = Duration::from_secs(60);

fn until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + TOO_LONG;
    while !is_so() {
        assert!(Instant::now() < end, "it never happens");
        yield_now();
    }
}

/// A thread that takes the lock, tells it, and ends its hold when it is told to.
struct Actor<'s> {
    thread: ScopedJoinHandle<'s, ()>,
    has_it: Receiver<()>,
    leave: Sender<()>,
}

impl<'s> Actor<'s> {
    /// Starts a thread that has to wait, and returns when it is in the queue.
    fn queued(scope: &'s Scope<'s, '_>, lock: &'s Rwsem, writes: bool) -> Self {
        let before = lock.queued();
        let actor = Self::new(scope, lock, writes);
        until(|| lock.queued() == before + 1);
        actor
    }

    fn new(scope: &'s Scope<'s, '_>, lock: &'s Rwsem, writes: bool) -> Self {
        let (tell, has_it) = channel();
        let (leave, told) = channel();
        let thread = scope.spawn(move || {
            if writes {
                lock.write()
            } else {
                lock.read()
            }
            tell.send(()).unwrap();
            told.recv().unwrap();
            if writes { lock.end_write() } else { lock.end_read() }
        });
        Self { thread, has_it, leave }
    }

    fn has_it(&self) {
        self.has_it.recv_timeout(TOO_LONG).expect("it gets the lock");
    }

    fn waits(&self) -> bool {
        self.has_it.try_recv().is_err()
    }

    fn leaves(self) {
        self.leave.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

impl Rwsem {
    fn queued(&self) -> usize {
        self.queue.lock().len()
    }

    fn has(&self, bits: u64) -> bool {
        self.count.load(Ordering::Acquire) & bits == bits
    }

    fn readers(&self) -> u64 {
        self.count.load(Ordering::Acquire) / READER
    }

    /// Adds a waiter that never runs.
    fn add_idle(&self, writes: bool) {
        self.queue.lock().push_back(Waiter::new(writes));
        self.count.fetch_or(WAITERS, Ordering::AcqRel);
    }

    fn is_idle(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0 && self.queued() == 0
    }
}

#[test]
fn tries_fail_beside_a_writer_a_waiter_and_a_hand_off() {
    let lock = Rwsem::with_rules(CALM);
    assert!(lock.try_read() && lock.try_read() && !lock.try_write());
    lock.end_read();
    lock.end_read();
    assert!(lock.try_write() && !lock.try_read() && !lock.try_write());
    lock.end_write();
    assert!(lock.is_idle());
    for bit in [WAITERS, HANDOFF] {
        lock.count.store(bit, Ordering::Relaxed);
        assert!(!lock.try_read() && !lock.try_write());
    }
}

#[test]
fn a_reader_steals_a_lock_that_a_woken_writer_has_not_taken() {
    let lock = Rwsem::with_rules(CALM);
    lock.add_idle(true);
    lock.read();
    assert!(lock.readers() == 1 && lock.queued() == 1);
}

#[test]
fn a_reader_does_not_join_readers_past_the_queue() {
    let lock = Rwsem::with_rules(CALM);
    scope(|scope| {
        lock.read();
        let writer = Actor::queued(scope, &lock, true);
        let reader = Actor::queued(scope, &lock, false);
        lock.end_read();
        writer.has_it();
        assert!(reader.waits());
        writer.leaves();
        reader.has_it();
        reader.leaves();
    });
    assert!(lock.is_idle());
}

#[test]
fn without_stealing_a_reader_joins_the_queue() {
    let lock = Rwsem::with_rules(Rules { steals: false, ..CALM });
    scope(|scope| {
        lock.add_idle(true);
        let reader = Actor::queued(scope, &lock, false);
        assert!(lock.queued() == 2 && lock.readers() == 0);
        lock.queue.lock().pop_front();
        lock.wake(Wake::Any);
        reader.has_it();
        reader.leaves();
    });
    assert!(lock.is_idle());
}

#[test]
fn a_reader_that_steals_admits_the_readers_in_the_queue() {
    let lock = Rwsem::with_rules(CALM);
    for writes in [false, true, false] {
        lock.add_idle(writes);
    }
    lock.read();
    assert!(lock.readers() == 3 && lock.queued() == 1);
}

#[test]
fn a_spinning_writer_passes_the_queue() {
    let lock = Rwsem::with_rules(CALM);
    lock.add_idle(true);
    assert!(lock.try_write_unqueued() && lock.has(WRITER | WAITERS));
    assert!(!lock.try_write_unqueued());
}

#[test]
fn nobody_passes_a_hand_off() {
    let lock = Rwsem::with_rules(IMPATIENT);
    scope(|scope| {
        lock.read();
        let first = Actor::queued(scope, &lock, true);
        until(|| lock.has(HANDOFF));
        // The lock is about to be free. Even then neither a reader nor a writer takes it.
        let reader = Actor::queued(scope, &lock, false);
        let second = Actor::queued(scope, &lock, true);
        assert!(!lock.try_read() && !lock.try_write() && !lock.try_write_unqueued());
        lock.end_read();
        first.has_it();
        assert!(reader.waits() && second.waits());
        first.leaves();
        reader.has_it();
        assert!(second.waits());
        reader.leaves();
        second.has_it();
        second.leaves();
    });
    assert!(lock.is_idle());
}

#[test]
fn a_free_lock_in_hand_off_is_not_stolen() {
    let lock = Rwsem::with_rules(CALM);
    scope(|scope| {
        lock.add_idle(true);
        lock.count.fetch_or(HANDOFF, Ordering::AcqRel);
        assert!(!lock.try_write_unqueued());
        let reader = Actor::queued(scope, &lock, false);
        // The waiter gives up. The lock goes to the next one, and the demand is met.
        lock.queue.lock().pop_front();
        lock.wake(Wake::Any);
        reader.has_it();
        assert!(!lock.has(HANDOFF));
        reader.leaves();
    });
    assert!(lock.is_idle());
}

#[test]
fn a_reader_that_has_waited_demands_a_hand_off_of_a_thief() {
    for (rules, demands) in [(IMPATIENT, true), (CALM, false)] {
        let lock = Rwsem::with_rules(rules);
        lock.add_idle(false);
        // A writer has stolen the lock before the wake-up.
        assert!(lock.try_write_unqueued());
        lock.wake(Wake::Any);
        assert_eq!(lock.has(HANDOFF), demands);
        assert!(lock.readers() == 0 && lock.queued() == 1);
        // At its end the reader gets the lock.
        lock.end_write();
        assert!(lock.readers() == 1 && !lock.has(HANDOFF) && lock.queued() == 0);
    }
}

/// ```text
///   queue    R  W  R  W  R        the first wake-up admits the three readers; the writers follow in their order
/// ```
#[test]
fn a_wake_up_admits_readers_past_writers() {
    let lock = Rwsem::with_rules(CALM);
    scope(|scope| {
        lock.write();
        let [a, first, b, second, c] =
            [false, true, false, true, false].map(|writes| Actor::queued(scope, &lock, writes));
        lock.end_write();
        for reader in [&a, &b, &c] {
            reader.has_it();
        }
        assert!(lock.readers() == 3 && lock.queued() == 2);
        for reader in [a, b, c] {
            reader.leaves();
        }
        first.has_it();
        assert!(second.waits());
        first.leaves();
        second.has_it();
        second.leaves();
    });
    assert!(lock.is_idle());
}

#[test]
fn the_number_of_readers_of_a_wake_up() {
    let admitted = |wakes, waiters: &[bool]| {
        let lock = Rwsem::with_rules(Rules { wakes, ..CALM });
        waiters.iter().for_each(|writes| lock.add_idle(*writes));
        lock.wake(Wake::Any);
        assert_eq!(lock.queued() + lock.readers() as usize, waiters.len());
        lock.readers() as usize
    };
    let mixed = [false, false, true, false];
    assert_eq!(admitted(Wakes::Readers, &mixed), 3);
    assert_eq!(admitted(Wakes::ReadersBeforeWriter, &mixed), 2);
    assert_eq!(admitted(Wakes::One, &mixed), 1);
    assert_eq!(admitted(Wakes::Readers, &[true, false]), 0);
    assert_eq!(admitted(Wakes::Readers, &[false; BATCH + 44]), BATCH);
}

#[test]
fn a_downgrade_admits_the_readers_if_one_is_first() {
    let lock = Rwsem::with_rules(CALM);
    scope(|scope| {
        lock.write();
        let [reader, writer] = [false, true].map(|writes| Actor::queued(scope, &lock, writes));
        lock.downgrade();
        reader.has_it();
        assert!(writer.waits() && lock.readers() == 2);
        reader.leaves();
        lock.end_read();
        writer.has_it();
        writer.leaves();
    });
    assert!(lock.is_idle());
}

#[test]
fn a_downgrade_admits_nobody_if_a_writer_is_first() {
    let lock = Rwsem::with_rules(CALM);
    scope(|scope| {
        lock.write();
        let [writer, reader] = [true, false].map(|writes| Actor::queued(scope, &lock, writes));
        lock.downgrade();
        assert!(writer.waits() && reader.waits() && lock.readers() == 1 && lock.queued() == 2);
        lock.end_read();
        writer.has_it();
        writer.leaves();
        reader.has_it();
        reader.leaves();
    });
    assert!(lock.is_idle());
}

#[test]
fn writers_stop_to_spin_on_readers_that_stay() {
    let lock = Rwsem::with_rules(Rules { owner_runs: Rules::LINUX.owner_runs, ..CALM });
    scope(|scope| {
        lock.read();
        let writer = Actor::queued(scope, &lock, true);
        // The slice may have ended first, on a processor that other threads want.
        assert!(lock.owner.may_not_spin() || !lock.spin());
        lock.end_read();
        writer.has_it();
        assert!(!lock.owner.may_not_spin());
        writer.leaves();
    });
    assert!(lock.is_idle());
}

#[test]
fn writers_do_not_spin_on_an_owner_that_sleeps() {
    let lock = Rwsem::with_rules(Rules { owner_runs: Duration::from_secs(3600), ..CALM });
    lock.write();
    lock.owner_sleeps(true);
    assert!(!lock.spin());
    lock.owner_sleeps(false);
    scope(|scope| {
        // Now it spins until the owner leaves, and is in no queue.
        let writer = Actor::new(scope, &lock, true);
        until(|| lock.spinning.load(Ordering::Relaxed));
        assert_eq!(lock.queued(), 0);
        lock.end_write();
        writer.has_it();
        writer.leaves();
    });
    assert!(lock.is_idle());
}

/// Threads take the lock in all ways. A writer excludes all, and readers exclude writers.
fn exclusion(rules: Rules) {
    const THREADS: u64 = 6;
    const TURNS: u64 = 3000;
    let lock = Rwsem::with_rules(rules);
    // The readers inside, or -1 for a writer.
    let inside = AtomicI64::new(0);
    let read = || {
        assert!(inside.fetch_add(1, Ordering::Relaxed) >= 0, "a reader beside a writer");
        std::hint::spin_loop();
        inside.fetch_sub(1, Ordering::Relaxed);
    };
    let write = || {
        assert_eq!(inside.swap(-1, Ordering::Relaxed), 0, "a writer beside others");
        std::hint::spin_loop();
        inside.store(0, Ordering::Relaxed);
    };
    scope(|scope| {
        for thread in 0..THREADS {
            let (lock, read, write) = (&lock, &read, &write);
            scope.spawn(move || {
                for turn in 0..TURNS {
                    match (turn * 7 + thread * 3) % 8 {
                        0 | 1 => {
                            lock.write();
                            write();
                            lock.end_write();
                        }
                        2 => {
                            lock.write();
                            write();
                            lock.downgrade();
                            read();
                            lock.end_read();
                        }
                        3 => {
                            if lock.try_write() {
                                write();
                                lock.end_write();
                            }
                        }
                        4 => {
                            if lock.try_read() {
                                read();
                                lock.end_read();
                            }
                        }
                        _ => {
                            lock.read();
                            read();
                            if turn % 64 == 0 {
                                yield_now();
                            }
                            lock.end_read();
                        }
                    }
                }
            });
        }
    });
    assert!(lock.is_idle());
}

#[test]
fn exclusion_under_the_rules_of_linux() {
    exclusion(Rules::LINUX);
}

#[test]
fn exclusion_without_spinning() {
    exclusion(CALM);
}

#[test]
fn exclusion_with_a_hand_off_at_each_failure() {
    exclusion(IMPATIENT);
    exclusion(Rules { hands_off_after: Duration::ZERO, ..Rules::LINUX });
}

#[test]
fn exclusion_without_stealing_and_batches() {
    exclusion(Rules { steals: false, wakes: Wakes::ReadersBeforeWriter, ..CALM });
    exclusion(Rules { wakes: Wakes::One, ..CALM });
}
