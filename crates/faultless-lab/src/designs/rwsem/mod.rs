//! A model of Linux's reader-writer semaphore, which mmap_lock is: `kernel/locking/rwsem.c` of Linux 6.18, with
//! `CONFIG_RWSEM_SPIN_ON_OWNER` and without `CONFIG_PREEMPT_RT`. The behaviour is restated; no code is taken.
//!
//! | here | there |
//! |---|---|
//! | a count of readers, with the bits `WRITER`, `WAITERS`, `HANDOFF` | `sem->count`, with the same bits |
//! | an owner word: the writer, or the last reader and a mark; a mark that forbids spinning | `sem->owner`, `RWSEM_READER_OWNED`, `RWSEM_NONSPINNABLE` |
//! | a reader counts itself in; it has the lock if none of the bits is set | `rwsem_read_trylock` |
//! | otherwise it steals the lock if there is neither a writer nor a hand-off, unless other readers hold the lock | `rwsem_down_read_slowpath`: optimistic lock stealing |
//! | a reader that steals a free lock admits the readers in the queue | the same: `RWSEM_WAKE_READ_OWNED` |
//! | a writer spins while a writer that runs holds the lock, and for 10 to 25 µs while readers hold it | `rwsem_optimistic_spin`, `rwsem_spin_on_owner`, `rwsem_rspin_threshold` |
//! | a spinning writer may take the lock before the queue, unless there is a hand-off | `rwsem_try_write_lock_unqueued` |
//! | a waiter that fails after more than 4 ms demands a hand-off; then the lock goes to the first in the queue | `RWSEM_WAIT_TIMEOUT`, `rwsem_try_write_lock`, `rwsem_mark_wake` |
//! | a wake-up is for a writer that is first in the queue, which then has to take the lock | `rwsem_mark_wake`, `RWSEM_WAKE_ANY` |
//! | or, if a reader is first, for up to 256 readers, past all writers; they have the lock when they wake | `rwsem_mark_wake`, `MAX_READERS_WAKEUP` |
//! | a writer that becomes a reader admits the readers in the queue, if a reader is first | `downgrade_write`, `rwsem_downgrade_wake` |
//!
//! Known differences:
//! * Linux sees whether an owner runs on a processor (`owner_on_cpu`). A program does not. Here a spinner takes an owner
//!   for stopped if the owner has not changed for [`Rules::owner_runs`]. An owner also tells if it sleeps for another lock
//!   ([`Rwsem::owner_sleeps`]).
//! * Linux stops a spinner if the scheduler wants its processor (`need_resched`). Here it stops after [`SLICE`].
//! * Spinners of Linux are in a queue (`osq_lock`), and each spins on its own cache line. Here they compete for one
//!   place, and a writer that gets no place within [`Rules::owner_runs`] sleeps.
//! * A waiter is a value of its own on the heap. In Linux it lies on its thread's stack. The queue's lock is
//!   parking_lot's, not a spin lock.
//! * Linux counts the 4 ms in jiffies. A waiter in Linux may end with its process (`down_read_killable`), and a
//!   real-time task demands the hand-off at once. Neither exists here.
//! * There is no limit on the number of readers (`RWSEM_FLAG_READFAIL`): the count has 56 bits.

mod queue;
mod spin;
#[cfg(test)]
mod tests;

use parking_lot::Mutex;
use queue::{Queue, Wake};
use spin::Owner;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub use spin::SLICE;

/// Bit of the count: a writer holds the lock.
const WRITER: u64 = 1 << 0;
/// Bit of the count: the queue is not empty.
const WAITERS: u64 = 1 << 1;
/// Bit of the count: the lock goes to the first of the queue next. Nobody steals it.
const HANDOFF: u64 = 1 << 2;
/// One reader. The readers are the bits from here on.
const READER: u64 = 1 << 8;
const READERS: u64 = !(READER - 1);
const HELD: u64 = WRITER | READERS;

/// The rules that can be switched off, so that a measurement shows which of them matter. Only the slow paths look at
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Writers spin. The time after which an owner that has not changed counts as stopped; zero: writers do not spin.
    pub owner_runs: Duration,
    /// Readers steal a lock that no writer holds. If not, a reader that finds a queue joins it.
    pub steals: bool,
    /// The time after which a waiter that fails demands a hand-off; [`Duration::MAX`]: never.
    pub hands_off_after: Duration,
    /// The readers that one wake-up admits.
    pub wakes: Wakes,
}

/// The readers that one wake-up admits, if a reader is first in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakes {
    /// Up to 256 readers, past all writers (Linux 5.3 on).
    Readers,
    /// The readers up to the first writer (Linux before 5.3).
    ReadersBeforeWriter,
    /// The first one.
    One,
}

impl Rules {
    /// The rules of Linux 6.18.
    pub const LINUX: Self = Self {
        owner_runs: Duration::from_micros(50),
        steals: true,
        hands_off_after: Duration::from_millis(4),
        wakes: Wakes::Readers,
    };
}

impl Default for Rules {
    fn default() -> Self {
        Self::LINUX
    }
}

/// Reader-writer semaphore; see the module. It protects no data of its own, and has no guards: [`super::locks`] has
/// them. A hold may end in another thread.
#[derive(Debug, Default)]
pub struct Rwsem {
    /// Atomic. All changes are read-modify-writes. [`WAITERS`] and [`HANDOFF`] change only with the queue locked.
    count: AtomicU64,
    owner: Owner,
    /// Whether a writer spins. Atomic; the spinner sets and clears it.
    spinning: AtomicBool,
    queue: Mutex<Queue>,
    /// Immutable.
    rules: Rules,
}

impl Rwsem {
    /// Returns a free lock with the given rules.
    pub fn with_rules(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Takes the lock for reading if nobody holds it for writing and nobody waits (`down_read_trylock`).
    #[inline]
    pub fn try_read(&self) -> bool {
        let mut count = self.count.load(Ordering::Relaxed);
        while count & (WRITER | WAITERS | HANDOFF) == 0 {
            match self.count.compare_exchange_weak(
                count,
                count + READER,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    self.owner.set_readers();
                    return true;
                }
                Err(now) => count = now,
            }
        }
        false
    }

    /// Takes the lock for reading (`down_read`). May sleep.
    #[inline]
    pub fn read(&self) {
        let count = self.count.fetch_add(READER, Ordering::Acquire) + READER;
        match count & (WRITER | WAITERS | HANDOFF) {
            0 => self.owner.set_readers(),
            _ => self.read_slow(count),
        }
    }

    /// Takes the lock for writing if nobody holds it and nobody waits (`down_write_trylock`).
    #[inline]
    pub fn try_write(&self) -> bool {
        let is_taken = self.count.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if is_taken {
            self.owner.set_writer();
        }
        is_taken
    }

    /// Takes the lock for writing (`down_write`). May sleep.
    #[inline]
    pub fn write(&self) {
        if !self.try_write() {
            self.write_slow();
        }
    }

    /// Ends a hold for reading (`up_read`). The caller has one.
    #[inline]
    pub fn end_read(&self) {
        let count = self.count.fetch_sub(READER, Ordering::AcqRel) - READER;
        if count & (HELD | WAITERS) == WAITERS {
            self.owner.allow_spinning();
            self.wake(Wake::Any);
        }
    }

    /// Ends a hold for writing (`up_write`). The caller has it.
    #[inline]
    pub fn end_write(&self) {
        self.owner.clear();
        if self.count.fetch_sub(WRITER, Ordering::AcqRel) & WAITERS != 0 {
            self.wake(Wake::Any);
        }
    }

    /// Turns a hold for writing into one for reading (`downgrade_write`). The caller has it.
    pub fn downgrade(&self) {
        let before = self.count.fetch_add(READER - WRITER, Ordering::AcqRel);
        self.owner.set_readers();
        if before & WAITERS != 0 {
            self.wake(Wake::ReadersOfReader);
        }
    }

    /// Notes that the writer, which calls this, is about to sleep, or no longer does. Writers do not spin meanwhile.
    pub fn owner_sleeps(&self, sleeps: bool) {
        self.owner.set_sleeping(sleeps);
    }

    /// Goes on as a reader that has counted itself in and has found one of the bits in `count`.
    #[cold]
    fn read_slow(&self, count: u64) {
        let readers = count / READER;
        let joins_readers = self.owner.is_readers() && readers > 1 && count & WRITER == 0;
        if self.rules.steals && !joins_readers && count & (WRITER | HANDOFF) == 0 {
            self.owner.set_readers();
            if readers == 1 && count & WAITERS != 0 {
                self.wake(Wake::ReadersOfReader);
            }
            return;
        }
        self.queue_as_reader();
    }

    #[cold]
    fn write_slow(&self) {
        if !self.spin() {
            self.queue_as_writer();
        }
    }
}
