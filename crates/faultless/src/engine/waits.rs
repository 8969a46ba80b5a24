//! Sleeping until a page, a place, or memory is there: a table of queues, by what is waited for.
//!
//! A thread whose wait the end of its space cuts short is in a second queue, the space's: [`Dying`].

use super::Engine;
use crate::host::{Clock, Host, OutOfMemory, Park, Sleeper, Slots};
use crate::page_cache::Full;
use crate::stats::Counter;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{BoxedWaiter, WaitList, Waiter};
use alloc::vec::Vec;

/// Queues that keys share. With 8,000 threads that each wait for something else, 8 are in each: looking at a waiter misses the
/// processor's caches.
#[cfg(not(loom))]
const QUEUES: usize = 1024;
#[cfg(loom)]
const QUEUES: usize = 1;

/// Queues of sleeping threads, by what they wait for: a number, mostly an address. Keys that share a queue are told apart in it.
pub(crate) struct WaitTable(Vec<WaitList>);

impl WaitTable {
    pub fn new() -> Result<Self, OutOfMemory> {
        let mut queues = Vec::new();
        queues.try_reserve_exact(QUEUES).map_err(|_| OutOfMemory)?;
        queues.resize_with(QUEUES, WaitList::default);
        Ok(Self(queues))
    }

    /// Bytes that it has from the allocator.
    pub fn room(&self) -> usize {
        self.0.capacity() * size_of::<WaitList>()
    }

    fn list(&self, key: usize) -> &WaitList {
        // Keys are addresses: their low bits say little (Fibonacci hashing).
        let hash = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.0[hash as usize % QUEUES]
    }
}

/// Whether a space has begun to exit, and who sleeps in its name.
#[derive(Default)]
pub(crate) struct Dying {
    is_set: AtomicBool,
    waiters: WaitList,
}

impl Dying {
    /// Whether it has.
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Runs `sleep`, in which the thread named `sleeper` sleeps in its name.
    pub fn with_sleeper<R>(&self, sleeper: Sleeper, sleep: impl FnOnce() -> R) -> R {
        self.waiters.with_waiter(sleeper, 0, |_| sleep())
    }

    /// It has: ends all waits in its name.
    pub fn set(&self, park: &impl Park) {
        self.is_set.store(true, Ordering::Release);
        self.waiters.wake(park, 0);
    }
}

/// Has a sleeper woken when the end of its space, or what it waits for, may have come: once for each. Given up by dropping it.
pub(crate) struct Notice(#[expect(dead_code, reason = "they are in queues")] [Option<BoxedWaiter>; 2]);

impl<H: Host> Engine<H> {
    /// Sleeps until `blocked` returns false, and adds the nanoseconds to `counter`. Whoever makes it false then calls
    /// [`Engine::wake_all`] with `key`. The caller is in no section of this engine (debug builds panic).
    pub fn park_until(&self, counter: Counter, key: usize, blocked: impl FnMut() -> bool) {
        self.park_killable(counter, key, None, blocked);
    }

    /// As [`Engine::park_until`]; the end of the space that `dying` tells of ends the wait too.
    pub(crate) fn park_killable(
        &self,
        counter: Counter,
        key: usize,
        dying: Option<&Dying>,
        mut blocked: impl FnMut() -> bool,
    ) {
        self.assert_may_sleep(counter.name());
        let mut is_over = || !blocked() || dying.is_some_and(Dying::is_set);
        if is_over() {
            return;
        }
        let (me, list) = (self.host.park().current(), self.waits.list(key));
        let mut sleep = || {
            while !is_over() {
                // What has changed since is seen by looking again in the queue: see `wait.rs`.
                let mut is_enough = || !cfg!(mutant = "looks_before_it_notes") && is_over();
                let sleep =
                    |waiter: &Waiter| self.sleep_until(counter, me, || waiter.is_woken() || is_enough());
                list.with_waiter(me, key, sleep);
            }
        };
        match dying {
            Some(dying) => dying.with_sleeper(me, sleep),
            None => sleep(),
        }
    }

    /// Sleeps until `is_over`, and adds the nanoseconds to `counter`. The caller is in a queue.
    pub(crate) fn sleep_until(&self, counter: Counter, me: Sleeper, mut is_over: impl FnMut() -> bool) {
        self.assert_may_sleep(counter.name());
        let start = self.host.clock().now_ns();
        if H::Slots::ARE_THREADS && !is_over() {
            let (slot, _guard) = self.host.slots().pin();
            // SAFETY: the slot is this thread's alone, which is in no section: see above.
            unsafe { self.sections.sleep(slot) };
        }
        while !is_over() {
            self.host.park().park(me);
        }
        self.counters().add(counter, self.host.clock().now_ns().saturating_sub(start));
    }

    /// Wakes all who sleep in [`Engine::park_until`] with `key`, to look again. Called after what they look at was changed, by
    /// a thread that holds no lock which they may want.
    pub fn wake_all(&self, key: usize) {
        self.assert_may_sleep("the lock of a queue");
        self.waits.list(key).wake(self.host.park(), key);
    }

    /// Has `sleeper` woken as a thread would be that sleeps with `key` and `dying`; without a key, by the end of the space alone.
    /// The caller looks once more afterwards whether there is something to wait for.
    ///
    /// # Errors
    /// [`OutOfMemory`]: it is not woken.
    ///
    /// # Safety
    /// The engine, and what `dying` is in, outlive what is returned.
    pub(crate) unsafe fn notice(
        &self,
        sleeper: Sleeper,
        key: Option<usize>,
        dying: &Dying,
    ) -> Result<Notice, OutOfMemory> {
        // SAFETY: by the contract above.
        let join = |list: &WaitList, key| unsafe { BoxedWaiter::new(list, sleeper, key) };
        let end = join(&dying.waiters, 0)?;
        let awaited = key.map(|key| join(self.waits.list(key), key)).transpose()?;
        Ok(Notice([Some(end), awaited]))
    }

    /// The key of [`Engine::wait_for_place`].
    pub(crate) fn place_key(&self, full: Full) -> usize {
        core::ptr::from_ref(self.folio(full.frame)).addr()
    }

    /// Whether there is a place in a count that was full.
    pub(crate) fn has_place(&self, full: Full) -> bool {
        !self.folio(full.frame).is_full(full.reference)
    }

    /// Sleeps until there is a place in a count of pins that was full. Others may take the place first. The
    /// caller has no reference to the frame, which may be another page by then: it looks again. It has no pin that others
    /// wait for here.
    pub(crate) fn wait_for_place(&self, full: Full, dying: Option<&Dying>) {
        let blocked = || !self.has_place(full);
        self.park_killable(Counter::MemoryWait, self.place_key(full), dying, blocked);
    }
}

impl<H: Host> Park for Engine<H> {
    fn current(&self) -> Sleeper {
        self.host.park().current()
    }

    fn park(&self, me: Sleeper) {
        self.assert_may_sleep(Counter::RangeWait.name());
        let start = self.host.clock().now_ns();
        self.host.park().park(me);
        self.counters().add(Counter::RangeWait, self.host.clock().now_ns().saturating_sub(start));
    }

    fn unpark(&self, sleeper: Sleeper) {
        self.host.park().unpark(sleeper);
    }

    fn spin(&self, look: u32) {
        self.host.park().spin(look);
    }

    fn wait_for_memory(&self, look: u32) {
        self.host.park().wait_for_memory(look);
    }

    fn wait_for_lock<R>(&self, wait: impl FnOnce() -> R) -> R {
        let start = self.host.clock().now_ns();
        let result = self.host.park().wait_for_lock(wait);
        self.counters().add(Counter::TreeLockWait, self.host.clock().now_ns().saturating_sub(start));
        result
    }
}
