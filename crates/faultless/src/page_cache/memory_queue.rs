//! The queue for memory: calls and faults that have found none wait for it in the order in which they first asked.
//!
//! An *event* may have made memory free: a pin is dropped, a read or a write ends, or range work or the end of a space
//! has dropped pages. An event gives as many waiters a *turn* as there is room for, the oldest first, and wakes only
//! those. The end of a turn depends on its result:
//!
//! * It found memory, needs none any more, or its space has exited. The turn passes to the next waiter, as after an
//!   event.
//! * It found none. It waits again, in its old place, and passes nothing on. The next event gives turns again.
//!
//! A newcomer waits behind the present waiters, even if it would find memory.
//!
//! ```text
//! look:   seen = events; is there room, and no earlier waiter?                       no: wait with `seen`
//! wait:   lock { into the queue }; fence; events != seen: give turns; until it is my turn: park
//! event:  events += 1; fence; if there are waiters: lock { give turns }; unpark
//! ```
//! So an event between the look and the queue is not missed. The end of a turn or of a wait counts as an event too:
//! another thread may have joined the queue only because of it.

use crate::engine::{Dying, Engine};
use crate::host::{GroupId, Host, OutOfMemory, Park, Sleeper};
use crate::stats::Counter;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, WaitQueue, Waiter, Woken, fence_after_rmw, full_fence, plain, try_box};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::mem;

/// The greatest number of turns at a time: the number of pages that are evicted at once.
const TURNS: u64 = 32;

/// The number of turns without memory after which a call or a fault fails. If all writes fail, the transfers of one thread are the
/// reason for the next turn of another one, and so on without end.
pub(crate) const MOST_TURNS: u32 = 1024;

/// The ticket of a caller that does not wait yet. It is behind all waiters.
pub(crate) const NEWCOMER: u64 = u64::MAX;
/// The ticket of a caller that has a turn. It is before all waiters, even before an older one that has joined the queue
/// since. If the turn were left unused because of that one, both would sleep.
pub(crate) const HAS_TURN: u64 = 0;

/// The queue for memory: see the module.
#[derive(Default)]
pub(crate) struct MemoryQueue {
    inner: Mutex<Inner>,
    /// The number of waiters. Written under the lock; read between the fences of the module.
    waiting: AtomicUsize,
    /// One more than the ticket of the first waiter; zero if there is none. Written under the lock.
    first: plain::AtomicU64,
    next_ticket: plain::AtomicU64,
    /// The number of events. Release and Acquire, so that the cause of the event is visible.
    events: AtomicU64,
}

#[derive(Default)]
struct Inner {
    waiters: WaitQueue,
    /// The number of waiters that have a turn.
    turns: u64,
}

impl MemoryQueue {
    /// Returns the number to wait with. Read it before looking for memory.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Acquire)
    }

    /// Returns whether a caller with `ticket` may take memory, because there is no earlier waiter. Called after
    /// [`MemoryQueue::events`].
    pub fn is_first(&self, ticket: u64) -> bool {
        match self.first.load(plain::Ordering::Relaxed) {
            0 => true,
            first => ticket < first,
        }
    }

    /// Returns a new place in the queue, for a caller that waits for the first time.
    pub fn ticket(&self) -> u64 {
        self.next_ticket.fetch_add(1, plain::Ordering::Relaxed) + HAS_TURN + 1
    }

    /// Notes an event. `room`, called only if there are waiters, returns the number of turns that there is room for.
    fn tell(&self, park: &impl Park, room: impl Fn() -> u64) {
        self.events.fetch_add(1, Ordering::Release);
        full_fence();
        if self.is_waited_for() {
            self.give_turns(park, room);
        }
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    fn end_turns(&self, turns: u64) {
        self.inner.lock().turns -= turns;
    }

    /// Gives turns while there is room.
    #[cold]
    fn give_turns(&self, park: &impl Park, room: impl Fn() -> u64) {
        loop {
            let mut woken = Woken::new();
            let mut inner = self.inner.lock();
            let free = room().min(TURNS).saturating_sub(inner.turns) as usize;
            let count = inner.waiters.take(0, free, &mut woken);
            inner.turns += count as u64;
            self.settle(&inner, 0, count);
            drop(inner);
            let is_all = !woken.is_full();
            woken.wake(park);
            if is_all {
                break;
            }
        }
    }

    /// Updates the counters after a change under the lock.
    fn settle(&self, inner: &Inner, more: usize, less: usize) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.waiting.store(waiting + more - less, Ordering::Relaxed);
        let first = inner.waiters.first_ticket().map_or(0, |ticket| ticket + 1);
        self.first.store(first, plain::Ordering::Relaxed);
    }

    fn add(&self, waiter: &Waiter) {
        let mut inner = self.inner.lock();
        // SAFETY: the waiter is new, and its owner removes it before it is dropped.
        unsafe { inner.waiters.push(waiter) };
        self.settle(&inner, 1, 0);
        drop(inner);
        full_fence();
    }

    /// Removes `waiter`. Returns whether it had a turn; if not, it no longer waits.
    fn remove(&self, waiter: &Waiter) -> bool {
        if waiter.is_woken() {
            return true;
        }
        let mut inner = self.inner.lock();
        if waiter.is_woken() {
            return true;
        }
        // SAFETY: `add` has put it there, and it was not removed since.
        unsafe { inner.waiters.remove(waiter) };
        self.settle(&inner, 0, 1);
        false
    }
}

/// A turn at taking memory. Dropping passes it to the next waiter.
pub(crate) struct Turn<H: Host> {
    engine: Arc<Engine<H>>,
    /// The number of events after which no memory was found.
    failed: Option<u64>,
}

impl<H: Host> Turn<H> {
    fn new(engine: &Arc<Engine<H>>) -> Self {
        Self { engine: engine.clone(), failed: None }
    }

    /// Ends the turn without passing it on, since it has found no memory after `seen` events.
    pub fn failed(mut self, seen: u64) {
        self.failed = Some(seen);
    }
}

impl<H: Host> Drop for Turn<H> {
    fn drop(&mut self) {
        let (engine, queue) = (&self.engine, &self.engine.cache.queue);
        match self.failed {
            None if mutant!("turn_ends_silently") => {}
            None => engine.end_turn(1),
            Some(seen) => {
                queue.end_turns(1);
                // Partner: an event's fence. A later event finds the turn ended. An earlier event that found it taken
                // is seen here.
                full_fence();
                if queue.events() != seen {
                    queue.give_turns(engine.host().park(), || engine.room_for_turns());
                }
            }
        }
    }
}

/// A place in the queue for a fault whose host does not sleep for it. Its sleeper is woken when its turn has come.
pub(crate) struct AwaitedTurn<H: Host> {
    engine: Arc<Engine<H>>,
    waiter: Box<Waiter>,
    is_taken: bool,
}

impl<H: Host> AwaitedTurn<H> {
    /// # Errors
    /// [`OutOfMemory`]: the place cannot be allocated.
    pub fn new(
        engine: &Arc<Engine<H>>,
        sleeper: Sleeper,
        seen: u64,
        ticket: u64,
    ) -> Result<Self, OutOfMemory> {
        let waiter = try_box(Waiter::new(sleeper, 0, ticket))?;
        let this = Self { engine: engine.clone(), waiter, is_taken: false };
        engine.join_queue(&this.waiter, seen);
        Ok(this)
    }

    /// Returns whether the turn has come.
    pub fn is_turn(&self) -> bool {
        self.waiter.is_woken()
    }

    /// Returns the turn, if it has come. It can be taken once.
    pub fn take_turn(&mut self) -> Option<Turn<H>> {
        if self.is_taken || !self.is_turn() {
            return None;
        }
        self.is_taken = true;
        Some(Turn::new(&self.engine))
    }
}

impl<H: Host> Drop for AwaitedTurn<H> {
    fn drop(&mut self) {
        if !self.is_taken {
            self.engine.leave_queue(&self.waiter);
        }
    }
}

/// Removes a waiter on the stack from the queue.
struct Leaving<'a, H: Host>(&'a Engine<H>, &'a Waiter);

impl<H: Host> Drop for Leaving<'_, H> {
    fn drop(&mut self) {
        self.0.leave_queue(self.1);
    }
}

impl<H: Host> Engine<H> {
    /// Returns the number of threads that may look for memory at a time: pins for reads take no more than half of the page
    /// cache.
    fn room_for_turns(&self) -> u64 {
        let pins = self.cache.pins.load(Ordering::Relaxed);
        (self.limits().cached_pages / 2).saturating_sub(pins).max(u64::from(pins == 0))
    }

    /// Notes that memory may have become free.
    pub(crate) fn tell_memory(&self) {
        self.assert_may_sleep("the lock of the queue for memory");
        self.cache.queue.tell(self.host().park(), || self.room_for_turns());
    }

    /// The same, after references to frames have been dropped. Costs one load if there are no waiters.
    #[inline]
    pub(crate) fn tell_freed(&self) {
        // Partner: the fence of a thread that joins the queue. The drops were read-modify-writes.
        fence_after_rmw();
        if self.cache.queue.is_waited_for() {
            self.tell_memory();
        }
    }

    fn end_turn(&self, turns: u64) {
        let queue = &self.cache.queue;
        queue.end_turns(turns);
        queue.tell(self.host().park(), || self.room_for_turns());
    }

    fn join_queue(&self, waiter: &Waiter, seen: u64) {
        let queue = &self.cache.queue;
        queue.add(waiter);
        if queue.events() != seen && !mutant!("event_passed_over") {
            queue.give_turns(self.host().park(), || self.room_for_turns());
        }
    }

    /// Removes a waiter. If its turn has come, ends it.
    fn leave_queue(&self, waiter: &Waiter) {
        let had_turn = self.cache.queue.remove(waiter);
        self.end_turn(u64::from(had_turn));
    }

    /// Sleeps until it is the turn of `ticket`, which has found no memory after `seen` events. Returns `None` if the
    /// space has exited.
    pub(crate) fn wait_for_turn(
        self: &Arc<Self>,
        seen: u64,
        ticket: u64,
        dying: Option<&Dying>,
    ) -> Option<Turn<H>> {
        let me = self.host().park().current();
        let waiter = Waiter::new(me, 0, ticket);
        let sleep = || {
            let leaving = Leaving(self, &waiter);
            self.join_queue(&waiter, seen);
            let is_over = || waiter.is_woken() || dying.is_some_and(Dying::is_set);
            self.sleep_until(Counter::MemoryWait, me, is_over);
            let has_turn = waiter.is_woken();
            if has_turn {
                mem::forget(leaving);
            }
            has_turn.then(|| Turn::new(self))
        };
        match dying {
            Some(dying) => dying.with_sleeper(me, sleep),
            None => sleep(),
        }
    }
}

/// A call on a file that looks for memory repeatedly: its ticket, and its turn while it has one.
pub(crate) struct Looking<H: Host> {
    engine: Arc<Engine<H>>,
    ticket: u64,
    turn: Option<Turn<H>>,
    /// The number of times that it made room in vain.
    look: u32,
    /// The number of its turns.
    turns: u32,
}

impl<H: Host> Looking<H> {
    pub fn new(engine: &Arc<Engine<H>>) -> Self {
        Self { engine: engine.clone(), ticket: NEWCOMER, turn: None, look: 0, turns: 0 }
    }

    /// Makes room for a page that needs no turn. Returns false if it was tried often enough.
    pub fn makes_room(&mut self) -> bool {
        self.engine.make_room(GroupId::ROOT, 1, &mut self.look).is_ok()
    }

    /// Returns the ticket with which to look for memory.
    pub fn ticket(&self) -> u64 {
        if self.turn.is_some() && !mutant!("turn_yields") { HAS_TURN } else { self.ticket }
    }

    /// Ends its turn, since it needs no more memory.
    pub fn has_found(&mut self) {
        self.turn = None;
    }

    /// Returns whether it has had so many turns that it gives up.
    pub fn has_had_its_turns(&self) -> bool {
        self.turns >= MOST_TURNS
    }

    /// Waits for its turn, after no memory was found after `seen` events.
    pub fn wait(&mut self, seen: u64) {
        self.turns += 1;
        if let Some(turn) = self.turn.take() {
            turn.failed(seen);
        }
        if self.ticket == NEWCOMER {
            self.ticket = self.engine.cache.queue.ticket();
        }
        self.turn = self.engine.wait_for_turn(seen, self.ticket, None);
    }
}
