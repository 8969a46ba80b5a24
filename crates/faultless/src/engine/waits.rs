//! Sleeping until a page, a place or memory is there: a table of queues, by the key of the wait.
//!
//! A wait that the end of a space cuts short has its thread in a second queue, that of the space: [`Dying`].

use super::Engine;
use crate::host::{Clock, Host, OutOfMemory, Park, Sleeper, Slots};
use crate::page_cache::Full;
use crate::stats::Counter;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{BoxedWaiter, WaitList, Waiter};
use alloc::vec::Vec;

/// The number of queues, which keys share. With 8,000 threads that each wait for another key, a queue has 8 of them.
/// Looking at a waiter misses the processor's caches.
#[cfg(not(loom))]
const QUEUES: usize = 1024;
#[cfg(loom)]
const QUEUES: usize = 1;

/// Queues of sleeping threads, by a key: a number, mostly an address. A queue that several keys share tells them apart.
pub(crate) struct WaitTable(Vec<WaitList>);

impl WaitTable {
    /// Makes the table with all its queues.
    pub fn new() -> Result<Self, OutOfMemory> {
        let mut queues = Vec::new();
        queues.try_reserve_exact(QUEUES).map_err(|_| OutOfMemory)?;
        queues.resize_with(QUEUES, WaitList::default);
        Ok(Self(queues))
    }

    /// Returns the number of bytes that the table has from the allocator.
    pub fn room(&self) -> usize {
        self.0.capacity() * size_of::<WaitList>()
    }

    fn list(&self, key: usize) -> &WaitList {
        // Keys are addresses, whose low bits say little (Fibonacci hashing).
        let hash = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.0[hash as usize % QUEUES]
    }
}

/// Says whether a space has begun to exit, and lists the threads that sleep in its name.
#[derive(Default)]
pub(crate) struct Dying {
    is_set: AtomicBool,
    waiters: WaitList,
}

impl Dying {
    /// Returns whether the space has begun to exit.
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Runs `sleep`, in which the thread `sleeper` sleeps in the name of the space.
    pub fn with_sleeper<R>(&self, sleeper: Sleeper, sleep: impl FnOnce() -> R) -> R {
        self.waiters.with_waiter(sleeper, 0, |_| sleep())
    }

    /// Notes that the space has begun to exit, and ends all waits in its name.
    pub fn set(&self, park: &impl Park) {
        self.is_set.store(true, Ordering::Release);
        self.waiters.wake(park, 0);
    }
}

/// A registration of a sleeper in two queues. It wakes the sleeper when its space may have ended, or when its wait may be
/// over: once for each. Dropping it ends the registration.
pub(crate) struct Notice(#[expect(dead_code, reason = "they are in queues")] [Option<BoxedWaiter>; 2]);

impl<H: Host> Engine<H> {
    /// Sleeps until `blocked` returns false, and adds the nanoseconds to `counter`. A thread that makes `blocked` return
    /// false then calls [`Engine::wake_all`] with `key`. The caller is in no section of this engine (debug builds panic).
    pub fn park_until(&self, counter: Counter, key: usize, blocked: impl FnMut() -> bool) {
        self.park_killable(counter, key, None, blocked);
    }

    /// Sleeps as [`Engine::park_until`] does. The end of the space that `dying` belongs to ends the wait too.
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
                // A change since then is seen by the second look, in the queue: see `wait.rs`.
                let mut is_enough = || !mutant!("looks_before_it_notes") && is_over();
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

    /// Sleeps until `is_over` returns true, and adds the nanoseconds to `counter`. The caller is in a queue.
    pub(crate) fn sleep_until(&self, counter: Counter, me: Sleeper, mut is_over: impl FnMut() -> bool) {
        self.assert_may_sleep(counter.name());
        let start = self.host.clock().now_ns();
        self.park_while(me, || !is_over());
        self.end_wait(counter, start);
    }

    /// Sleeps while `sleeps` returns true. A thread that makes it return false wakes `me`, the calling thread. Counts no time.
    pub(crate) fn park_while(&self, me: Sleeper, mut sleeps: impl FnMut() -> bool) {
        if H::Slots::ARE_THREADS && sleeps() {
            self.note_sleep();
        }
        while sleeps() {
            self.host.park().park(me);
        }
    }

    /// Notes that the calling thread sleeps, so that no grace period looks at its slot until its next section. Slots are threads.
    pub(crate) fn note_sleep(&self) {
        self.assert_may_sleep("a sleep");
        let (slot, _guard) = self.host.slots().pin();
        // SAFETY: the slot belongs to this thread alone, and this thread is in no section: see above.
        unsafe { self.sections.sleep(slot) };
    }

    /// Wakes all threads that sleep in [`Engine::park_until`] with `key`, so that they look again. Called after a change
    /// of the state that they look at. The caller holds no lock that these threads may need.
    pub fn wake_all(&self, key: usize) {
        self.assert_may_sleep("the lock of a queue");
        self.waits.list(key).wake(self.host.park(), key);
    }

    /// Registers `sleeper` to be woken like a thread that sleeps with `key` and `dying`. Without a key, only the end of
    /// the space wakes it. Afterwards the caller looks once more whether there is still a reason to wait.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the sleeper is not registered.
    ///
    /// # Safety
    /// The engine, and the owner of `dying`, outlive the returned value.
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

    /// Returns the key of [`Engine::wait_for_place`].
    pub(crate) fn place_key(&self, full: Full) -> usize {
        core::ptr::from_ref(self.folio(full.frame)).addr()
    }

    /// Returns whether there is a place in a count that was full.
    pub(crate) fn has_place(&self, full: Full) -> bool {
        !self.folio(full.frame).is_full(full.reference)
    }

    /// Sleeps until there is a place in a count of pins that was full. Another thread may take the place first. The
    /// caller has no reference to the frame. The frame may be another page by then, so the caller looks the page up
    /// again. The caller has no pin that other threads wait for here.
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
        self.end_wait(Counter::RangeWait, start);
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
        self.end_wait(Counter::TreeLockWait, start);
        result
    }
}
