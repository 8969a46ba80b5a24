//! The page cache's account, one an engine: what is cached and pinned, and eviction.

use super::File;
use crate::engine::Engine;
use crate::frame::Reference;
use crate::host::{Frame, FrameSource, Host, OutOfMemory};
use crate::stats::Counter;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, Park, Shared, Weak, plain};
use alloc::collections::VecDeque;
use alloc::sync::Arc;

/// Pages evicted at once.
const FEW: u64 = 32;
/// How often one looks for memory before there is none: others free some, and others take it.
#[cfg(not(loom))]
pub(super) const LOOKS: u32 = 100;
#[cfg(loom)]
pub(super) const LOOKS: u32 = 2;

/// The page cache's account, one an engine.
pub(crate) struct Account<H: Host> {
    /// Cached pages, oldest first, in the order of the clock's hand. Protected by its lock.
    pub(super) queue: Mutex<VecDeque<(Weak<File<H>>, u64)>>,
    pub(super) cached: plain::AtomicU64,
    /// Folios pinned by faults that wait, and by writes under way.
    pub(super) pins: plain::AtomicU64,
    /// Counts pins let go; what a queued miss sleeps on.
    pub(super) unpinned: AtomicU64,
    /// Writes under way.
    pub(super) writes: plain::AtomicU64,
}

impl<H: Host> Default for Account<H> {
    fn default() -> Self {
        Self {
            queue: Mutex::new(VecDeque::new()),
            cached: plain::AtomicU64::new(0),
            pins: plain::AtomicU64::new(0),
            unpinned: AtomicU64::new(0),
            writes: plain::AtomicU64::new(0),
        }
    }
}

impl<H: Host> Account<H> {
    pub(crate) fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    pub(crate) fn key(&self) -> usize {
        core::ptr::from_ref(&self.unpinned).addr()
    }

    /// Puts a page at the end of the clock's way. Without memory for the queue the page stays until the file goes.
    pub(super) fn enqueue(&self, engine: &Engine<H>, file: Weak<File<H>>, page: u64) {
        let mut queue = engine.lock(&self.queue);
        if queue.try_reserve(1).is_ok() {
            queue.push_back((file, page));
        }
    }

    /// Says that memory may have come free.
    pub(super) fn tell_unpinned<P: Park>(&self, park: &P) {
        self.unpinned.fetch_add(1, Ordering::Release);
        park.wake_all(self.key());
    }
}

/// A fault's pin on a folio: it is not evicted, and its frame is not used for anything else.
pub struct Pin<H: Host> {
    engine: Arc<Engine<H>>,
    frame: Frame,
    /// Whether it is in a [`FolioLock`].
    has_lock: bool,
}

impl<H: Host> Pin<H> {
    pub(super) fn new(engine: &Arc<Engine<H>>, frame: Frame) -> Self {
        engine.cache.pins.fetch_add(1, Ordering::Relaxed);
        Self { engine: engine.clone(), frame, has_lock: false }
    }

    /// The frame.
    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// Whether its read is under way.
    pub fn is_reading(&self) -> bool {
        self.engine.folio(self.frame).is_reading()
    }

    /// Whether a file system has it locked.
    pub fn is_locked(&self) -> bool {
        self.engine.folio(self.frame).is_locked()
    }

    /// Whether a write of it is under way.
    pub fn is_writeback(&self) -> bool {
        self.engine.folio(self.frame).is_writeback()
    }

    /// Sleeps until no write of it is under way, or `given_up`.
    pub(crate) fn wait_for_write(&self, given_up: &impl Fn() -> bool) {
        let blocked = || self.is_writeback() && !given_up();
        self.engine.park_killable(Counter::WritebackWait, self.key(), blocked);
    }

    /// Locks it, if nobody has.
    pub(super) fn try_lock(mut self) -> Result<FolioLock<H>, Self> {
        self.has_lock = self.engine.folio(self.frame).try_lock();
        if self.has_lock { Ok(FolioLock(self)) } else { Err(self) }
    }

    fn unlock(&mut self) {
        if core::mem::take(&mut self.has_lock) {
            self.engine.folio(self.frame).unlock();
            self.engine.wake_all(self.key());
        }
    }

    /// Locks it as soon as it can be had. The caller holds nothing that a fault or a write needs.
    pub(super) fn lock(mut self) -> FolioLock<H> {
        loop {
            match self.try_lock() {
                Ok(lock) => return lock,
                Err(pin) => self = pin,
            }
            self.wait_for_lock(&|| false);
        }
    }

    /// Sleeps until its read has ended, or `given_up`.
    pub(crate) fn wait_for_read(&self, given_up: &impl Fn() -> bool) {
        self.engine.park_killable(Counter::IoWait, self.key(), || self.is_reading() && !given_up());
    }

    /// Sleeps until it is unlocked, or `given_up`.
    pub(crate) fn wait_for_lock(&self, given_up: &impl Fn() -> bool) {
        self.engine.park_killable(Counter::FolioLockWait, self.key(), || self.is_locked() && !given_up());
    }

    pub(crate) fn key(&self) -> usize {
        core::ptr::from_ref(self.engine.folio(self.frame)).addr()
    }
}

/// A folio locked as a file system locks it to write it back or to cut it off: faults of a design that says
/// [`LOCKS_FOLIOS`](crate::design::LockingDesign::LOCKS_FOLIOS) wait for it. Unlocked by dropping it.
pub struct FolioLock<H: Host>(pub(super) Pin<H>);

impl<H: Host> FolioLock<H> {
    /// Unlocks it and keeps the pin: a second pin could be refused, and whoever waits for one with another in hand may wait
    /// for its like.
    pub(super) fn unlock(mut self) -> Pin<H> {
        self.0.unlock();
        self.0
    }
}

impl<H: Host> Drop for Pin<H> {
    fn drop(&mut self) {
        self.unlock();
        self.engine.unpin(self.frame, Reference::Pin);
        let account = &self.engine.cache;
        account.pins.fetch_sub(1, Ordering::Relaxed);
        account.tell_unpinned(&*self.engine);
    }
}

/// A folio has as many references of a kind as can be counted. Mappings: that is like no memory. Pins: others let go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Full {
    pub frame: Frame,
    pub reference: Reference,
}

impl From<Full> for Miss {
    fn from(full: Full) -> Self {
        match full.reference {
            Reference::Mapping => Self::OutOfMemory,
            Reference::Pin | Reference::IoPin => Self::Full(full),
        }
    }
}

/// Why a page was not found nor its read started.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The file has no such page.
    PastEnd,
    /// Too many folios are pinned: wait until [`Engine::wait_for_unpin`] with this number, then start over.
    Queue(u64),
    /// The page has as many pins as can be counted: wait in [`Engine::wait_for_place`], then start over.
    Full(Full),
    /// No memory, and nothing to evict.
    OutOfMemory,
}

impl From<OutOfMemory> for Miss {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl<H: Host> Engine<H> {
    /// A frame, if need be one that was a clean page of a file.
    pub(crate) fn allocate(&self) -> Option<Frame> {
        self.host().frames().allocate().or_else(|| {
            self.evict(FEW);
            self.host().frames().allocate()
        })
    }

    /// After an allocation failed for the `look`-th time: evicts, or waits a moment for others to free some. False: that
    /// has been tried often enough.
    pub(crate) fn make_room(&self, look: u32) -> bool {
        if self.evict(FEW) == 0 {
            self.pause(look);
        }
        look < LOOKS
    }

    /// Evicts up to `wanted` clean pages that nobody uses; how many it did. Where there is none but dirty pages, starts
    /// to write some back: they can be evicted when that has ended.
    pub(crate) fn evict(&self, wanted: u64) -> u64 {
        let (mut evicted, mut looks) = (0, 2 * self.lock(&self.cache.queue).len());
        let mut dirty: [Option<(Shared<File<H>>, u64)>; FEW as usize] = [const { None }; FEW as usize];
        let mut count = 0;
        while evicted < wanted && looks > 0 {
            looks -= 1;
            let Some((weak, page)) = self.lock(&self.cache.queue).pop_front() else { break };
            let Some(file) = weak.upgrade() else { continue };
            let found = file.evict(page);
            match found {
                Evicted::Done => evicted += 1,
                Evicted::Absent => {}
                Evicted::InUse | Evicted::Dirty => self.cache.enqueue(self, weak, page),
            }
            if found == Evicted::Dirty && count < dirty.len() {
                dirty[count] = Some((file, page));
                count += 1;
            }
        }
        self.counters().add(Counter::Evictions, evicted);
        if evicted == 0 {
            for (file, page) in dirty.into_iter().flatten() {
                file.start_writeback(page..page + 1);
            }
        }
        evicted
    }

    /// The number to wait with until memory may have come free, if writes are under way.
    pub(crate) fn wait_for_writes(&self) -> Option<u64> {
        let unpinned = self.cache.unpinned.load(Ordering::Acquire);
        (self.cache.writes.load(Ordering::Relaxed) != 0).then_some(unpinned)
    }

    /// Whether a pin has been let go since `seen`, or none is left.
    pub(crate) fn unpinned_since(&self, seen: u64) -> bool {
        let account = &self.cache;
        account.unpinned.load(Ordering::Acquire) != seen || account.pins.load(Ordering::Relaxed) == 0
    }

    /// Sleeps until then, or until `given_up`.
    pub(crate) fn wait_for_unpin(&self, seen: u64, given_up: &impl Fn() -> bool) {
        let key = self.cache.key();
        self.park_killable(Counter::MemoryWait, key, || !self.unpinned_since(seen) && !given_up());
    }
}

/// What came of evicting a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Evicted {
    /// It was not in memory at all.
    Absent,
    Done,
    InUse,
    /// Nobody uses it, and it has to be written first.
    Dirty,
}
