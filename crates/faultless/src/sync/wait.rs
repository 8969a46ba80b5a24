//! Sleeping until another thread makes a change. Sleeping threads are in a queue, and the thread that makes the change wakes
//! only those that wait for it.
//!
//! ```text
//! sleep:  lock { put a waiter into the queue }; fence; until woken, or the change is visible: park
//! wake:   make the change; fence; queue empty: done; else lock { take waiters out, mark them }; unpark each
//! ```
//! Between the two fences, either the sleeper sees the change, or the thread that made it sees the sleeper.
//!
//! A [`Waiter`] is on its thread's stack, or in a box. It is in one queue at most, and leaves it before its memory goes: it is
//! woken, or takes itself out. All of a queue is under one lock, so a waiter that is found there is valid memory. Its thread is
//! woken after the lock is released, by a name that outlives the waiter: [`Sleeper`].

use super::atomic::{AtomicBool, AtomicUsize, Ordering};
use super::life::{OutOfMemory, try_box};
use super::mutex::Mutex;
use super::{full_fence, plain};
use alloc::boxed::Box;
use core::ptr::{self, NonNull};

/// The name by which a host wakes a sleeper: a thread, or any other party that waits for a
/// [`PendingFault`](crate::PendingFault). The host chooses the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sleeper(pub u64);

/// A service that puts threads to sleep and wakes them: a futex, a kernel's wait queue, a condition variable for each thread.
pub trait Park: Send + Sync {
    /// Returns the name of the calling thread. It stays the same until the call of [`Park::park`] that it is given to has
    /// returned.
    fn current(&self) -> Sleeper;

    /// Sleeps until [`Park::unpark`] of `me`, the calling thread. If that was called since the last `park` of this thread
    /// returned, returns at once. May return early: the engine looks again.
    fn park(&self, me: Sleeper);

    /// Ends the sleep of `sleeper`, or its next one. Does nothing for a name that the host has not given. Does not sleep and
    /// calls no engine: the caller may hold a space's short lock. The sleeper may have woken and ended by itself, and its name
    /// may be another thread's by now: that thread must tolerate a needless wake-up.
    fn unpark(&self, sleeper: Sleeper);

    /// Passes a moment of a wait that no wake-up ends: for another processor, or for a thread that holds something for a few
    /// instructions. `look` counts the looks so far, from 0. Where threads are preempted, it spins first, then yields, then
    /// sleeps in bounded steps. A kernel that is not preempted there just spins, and may lower the processor's power.
    fn spin(&self, look: u32);

    /// Passes a moment in which other threads may free memory, after a look for memory has found none. `look` is as for
    /// [`Park::spin`]. There are 48 looks, 100 while another thread evicts, 64 in a group at max, or 4,096 while pages are there that
    /// cannot be taken at the moment. A fault fails after the last. The caller holds no lock. A kernel may free caches of its own here, or sleep for a moment.
    fn wait_for_memory(&self, look: u32) {
        self.spin(look);
    }

    /// Calls `wait`, which waits for a short lock that another thread holds, and returns its result. A host may count these
    /// waits, or lend the holder its priority.
    fn wait_for_lock<R>(&self, wait: impl FnOnce() -> R) -> R
    where
        Self: Sized,
    {
        wait()
    }
}

/// A place in a queue of waiters.
pub(crate) struct Waiter {
    sleeper: Sleeper,
    /// The event that the waiter waits for, which tells waiters in one queue apart.
    key: usize,
    /// The rank of the waiter. Queues are in ascending order of tickets; equal tickets are in order of arrival.
    ticket: u64,
    /// Protected by the queue's lock.
    before: plain::AtomicPtr<Waiter>,
    /// Protected by the queue's lock.
    after: plain::AtomicPtr<Waiter>,
    /// Tells that the waiter is out of its queue, since a thread has woken it. Written under the queue's lock, Release, as the
    /// last access to the waiter; read by its thread, Acquire.
    is_woken: AtomicBool,
}

impl Waiter {
    pub fn new(sleeper: Sleeper, key: usize, ticket: u64) -> Self {
        let nobody = || plain::AtomicPtr::new(ptr::null_mut());
        Self { sleeper, key, ticket, before: nobody(), after: nobody(), is_woken: AtomicBool::new(false) }
    }

    /// Returns whether a thread has taken the waiter out of its queue to wake it.
    pub fn is_woken(&self) -> bool {
        self.is_woken.load(Ordering::Acquire)
    }

    /// Sleeps until the waiter is woken.
    pub fn sleep(&self, park: &impl Park) {
        while !self.is_woken() {
            park.park(self.sleeper);
        }
    }
}

/// A queue of waiters, in order. Its user holds the lock that guards it.
#[derive(Default)]
pub(crate) struct WaitQueue {
    first: Option<NonNull<Waiter>>,
    last: Option<NonNull<Waiter>>,
}

// SAFETY: waiters are atomics and plain values, and stay valid as long as they are in the queue.
unsafe impl Send for WaitQueue {}
// SAFETY: as for `Send`; a shared reference gives access to no waiter.
unsafe impl Sync for WaitQueue {}

/// The number of sleepers that are taken out of a queue at a time, and woken without its lock.
const BATCH: usize = 16;

/// A batch of sleepers that are out of their queue and have to be woken.
#[must_use]
pub(crate) struct Woken {
    sleepers: [Sleeper; BATCH],
    count: usize,
}

impl Woken {
    pub const fn new() -> Self {
        Self { sleepers: [Sleeper(0); BATCH], count: 0 }
    }

    /// Returns whether the batch is full, so that the queue may have more.
    pub fn is_full(&self) -> bool {
        self.count == BATCH
    }

    /// Wakes the sleepers. The caller holds no lock that they may want.
    pub fn wake(&self, park: &impl Park) {
        self.sleepers[..self.count].iter().for_each(|sleeper| park.unpark(*sleeper));
    }
}

impl WaitQueue {
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Returns the ticket of the first waiter.
    pub fn first_ticket(&self) -> Option<u64> {
        // SAFETY: the waiter is in the queue, so it is valid memory.
        self.first.map(|first| unsafe { first.as_ref() }.ticket)
    }

    fn link(place: &plain::AtomicPtr<Waiter>, to: Option<NonNull<Waiter>>) {
        place.store(to.map_or(ptr::null_mut(), NonNull::as_ptr), plain::Ordering::Relaxed);
    }

    fn linked(place: &plain::AtomicPtr<Waiter>) -> Option<NonNull<Waiter>> {
        NonNull::new(place.load(plain::Ordering::Relaxed))
    }

    /// Puts `waiter` into the queue, behind all waiters whose ticket is not greater.
    ///
    /// # Safety
    /// `waiter` is in no queue, and has not been woken. It stays where it is until it is out of this one.
    pub unsafe fn push(&mut self, waiter: &Waiter) {
        let mut before = self.last;
        // SAFETY: the waiter is in the queue, so it is valid memory; here and below.
        while let Some(last) = before.map(|last| unsafe { last.as_ref() })
            && last.ticket > waiter.ticket
        {
            before = Self::linked(&last.before);
        }
        let this = Some(NonNull::from(waiter));
        // SAFETY: as above.
        let after = match before.map(|before| unsafe { before.as_ref() }) {
            Some(before) => {
                let after = Self::linked(&before.after);
                Self::link(&before.after, this);
                after
            }
            None => core::mem::replace(&mut self.first, this),
        };
        // SAFETY: as above.
        match after.map(|after| unsafe { after.as_ref() }) {
            Some(after) => Self::link(&after.before, this),
            None => self.last = this,
        }
        Self::link(&waiter.before, before);
        Self::link(&waiter.after, after);
    }

    /// Takes `waiter` out of the queue.
    ///
    /// # Safety
    /// `waiter` is in this queue.
    pub unsafe fn remove(&mut self, waiter: &Waiter) {
        let (before, after) = (Self::linked(&waiter.before), Self::linked(&waiter.after));
        // SAFETY: the waiter is in the queue, so it is valid memory; here and below.
        match before.map(|before| unsafe { before.as_ref() }) {
            Some(before) => Self::link(&before.after, after),
            None => self.first = after,
        }
        // SAFETY: as above.
        match after.map(|after| unsafe { after.as_ref() }) {
            Some(after) => Self::link(&after.before, before),
            None => self.last = before,
        }
    }

    /// Returns whether `waiter` is in this queue.
    pub fn has(&self, waiter: &Waiter) -> bool {
        let mut next = self.first;
        while let Some(place) = next {
            if ptr::eq(place.as_ptr(), waiter) {
                return true;
            }
            // SAFETY: the waiter is in the queue, so it is valid memory.
            next = Self::linked(&unsafe { place.as_ref() }.after);
        }
        false
    }

    /// Moves all waiters of `other` to the end of this queue, regardless of their tickets.
    pub fn append(&mut self, other: &mut Self) {
        let Some(first) = other.first.take() else { return };
        // SAFETY: the waiter is in a queue, so it is valid memory; here and below.
        Self::link(&unsafe { first.as_ref() }.before, self.last);
        match self.last {
            // SAFETY: as above.
            Some(last) => Self::link(&unsafe { last.as_ref() }.after, Some(first)),
            None => self.first = Some(first),
        }
        self.last = other.last.take();
    }

    /// Takes waiters of `key` out until `woken` is full or has `most`. Returns the number taken.
    pub fn take(&mut self, key: usize, most: usize, woken: &mut Woken) -> usize {
        let (mut next, mut count) = (self.first, 0);
        while let Some(place) = next
            && count < most
            && !woken.is_full()
        {
            // SAFETY: the waiter is in the queue, so it is valid memory until it is marked.
            let waiter = unsafe { place.as_ref() };
            next = Self::linked(&waiter.after);
            if waiter.key == key {
                // SAFETY: found in the queue.
                unsafe { self.remove(waiter) };
                woken.sleepers[woken.count] = waiter.sleeper;
                woken.count += 1;
                count += 1;
                waiter.is_woken.store(true, Ordering::Release);
            }
        }
        count
    }
}

/// A queue of waiters with a lock of its own.
#[derive(Default)]
pub(crate) struct WaitList {
    queue: Mutex<WaitQueue>,
    /// The number of waiters in the queue. Written under the lock; read by waking threads, between the fences of the module.
    waiting: AtomicUsize,
}

impl WaitList {
    /// Runs `sleep` with a waiter of `key` in the queue.
    pub fn with_waiter<R>(&self, sleeper: Sleeper, key: usize, sleep: impl FnOnce(&Waiter) -> R) -> R {
        let waiter = Waiter::new(sleeper, key, 0);
        let listed = Listed::new(self, &waiter);
        let result = sleep(&waiter);
        drop(listed);
        result
    }

    /// Wakes all threads that wait for `key`. Called after the state that they look at was changed. The caller holds no lock
    /// that they may want.
    pub fn wake(&self, park: &impl Park, key: usize) {
        if !mutant!("wakes_unfenced") {
            full_fence();
        }
        while self.waiting.load(Ordering::Relaxed) != 0 {
            let mut woken = Woken::new();
            let mut queue = self.queue.lock();
            let count = queue.take(key, usize::MAX, &mut woken);
            self.count(0, count);
            drop(queue);
            let is_all = !woken.is_full();
            woken.wake(park);
            if is_all {
                break;
            }
        }
    }

    /// Adds `more` to the number of waiters and subtracts `less`. The caller holds the lock.
    fn count(&self, more: usize, less: usize) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.waiting.store(waiting + more - less, Ordering::Relaxed);
    }

    fn add(&self, waiter: &Waiter) {
        let mut queue = self.queue.lock();
        // SAFETY: the waiter is new, and its owner takes it out again before it goes.
        unsafe { queue.push(waiter) };
        self.count(1, 0);
        drop(queue);
        if !mutant!("sleeps_unfenced") {
            full_fence();
        }
    }

    fn remove(&self, waiter: &Waiter) {
        // The mark is set under the lock, as the last access.
        if waiter.is_woken() {
            return;
        }
        let mut queue = self.queue.lock();
        if !waiter.is_woken() {
            // SAFETY: `add` has put it there, and it was not taken out since.
            unsafe { queue.remove(waiter) };
            self.count(0, 1);
        }
    }
}

/// A waiter on the stack, in a list. It is taken out when this is dropped.
struct Listed<'a>(&'a WaitList, &'a Waiter);

impl<'a> Listed<'a> {
    fn new(list: &'a WaitList, waiter: &'a Waiter) -> Self {
        list.add(waiter);
        Self(list, waiter)
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.remove(self.1);
    }
}

/// A waiter in a box, in a list. It is taken out when this is dropped. If this is forgotten, the waiter and its memory stay.
pub(crate) struct BoxedWaiter {
    list: NonNull<WaitList>,
    waiter: Box<Waiter>,
}

// SAFETY: threads share the list already.
unsafe impl Send for BoxedWaiter {}
// SAFETY: as above.
unsafe impl Sync for BoxedWaiter {}

impl BoxedWaiter {
    /// Puts a waiter of `key` into `list`.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the list is unchanged.
    ///
    /// # Safety
    /// The list outlives this.
    pub unsafe fn new(list: &WaitList, sleeper: Sleeper, key: usize) -> Result<Self, OutOfMemory> {
        let waiter = try_box(Waiter::new(sleeper, key, 0))?;
        list.add(&waiter);
        Ok(Self { list: NonNull::from(list), waiter })
    }
}

impl Drop for BoxedWaiter {
    fn drop(&mut self) {
        // SAFETY: the list lives, by `new`.
        unsafe { self.list.as_ref() }.remove(&self.waiter);
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(all(test, feature = "std", not(loom)))]
mod tests;
