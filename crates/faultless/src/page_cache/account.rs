//! The page cache's account, one for each engine: the numbers of cached and pinned folios, and frames for pages of files.

use super::memory_queue::MemoryQueue;
use crate::engine::{Dying, Engine};
use crate::frame::Reference;
use crate::host::{Frame, FrameUse, GroupId, Host, OutOfMemory};
use crate::limit::Shortage;
use crate::stats::Counter;
use crate::store::StoreError;
use crate::sync::atomic::Ordering;
use crate::sync::{Held, Mutex, plain};
use alloc::sync::Arc;

/// The number of looks for memory before a caller gives up: other threads free some, and others take it. These looks spin
/// ([`Park::wait_for_memory`](crate::sync::Park::wait_for_memory)), and take less than 50 microseconds.
#[cfg(not(loom))]
const LOOKS: u32 = 48;
#[cfg(loom)]
const LOOKS: u32 = 2;
/// The number of looks while another thread reclaims. That thread may have taken the pages off the queues, and may be preempted.
#[cfg(not(loom))]
const LOOKS_BESIDE: u32 = 100;
#[cfg(loom)]
const LOOKS_BESIDE: u32 = 2;

/// The number of looks while pages are there that reclaim could not take at the moment: another thread has them, or a fork has
/// stopped the space. Most of these looks sleep.
#[cfg(not(loom))]
pub(super) const LOOKS_DELAYED: u32 = 4096;
#[cfg(loom)]
pub(super) const LOOKS_DELAYED: u32 = 3;

/// The page cache's account, one an engine.
#[derive(Default)]
pub(crate) struct Account {
    /// Held while a thread follows the home of a page to its file. A file that ends takes it once, after it has let its pages go
    /// (rule H7 of docs/home.md).
    pub(super) files: Mutex<()>,
    pub(super) cached: plain::AtomicU64,
    /// The number of folios pinned by faults that wait, and by writes under way.
    pub(super) pins: plain::AtomicU64,
    /// The calls and faults that wait for memory.
    pub(crate) queue: MemoryQueue,
    /// The number of reads and writes under way, with those of swap devices.
    pub(crate) transfers: plain::AtomicU64,
}

impl Account {
    pub(crate) fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    /// Counts pages that are about to be attached. Before that: another thread may take an attached page out at once. Returns the
    /// number before.
    pub(super) fn count_cached(&self, pages: u64) -> u64 {
        self.cached.fetch_add(pages, Ordering::Relaxed)
    }

    /// Takes pages out of the count, which are no longer attached or never were.
    pub(super) fn uncount_cached(&self, pages: u64) {
        let before = self.cached.fetch_sub(pages, Ordering::Relaxed);
        debug_assert!(before >= pages, "{before} pages are cached, and {pages} are taken out");
    }
}

/// A fault's pin on a folio: the folio is not evicted, and its frame is not used otherwise.
pub struct Pin<H: Host> {
    engine: Arc<Engine<H>>,
    frame: Frame,
    /// Tells whether the page is in a [`FolioLock`].
    has_lock: bool,
}

impl<H: Host> Pin<H> {
    /// Makes the guard of a pin that the caller has taken.
    pub(crate) fn new(engine: &Arc<Engine<H>>, frame: Frame) -> Self {
        engine.cache.pins.fetch_add(1, Ordering::Relaxed);
        Self { engine: engine.clone(), frame, has_lock: false }
    }

    /// Returns the frame.
    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// Returns whether the page's read is under way.
    pub fn is_reading(&self) -> bool {
        self.engine.folio(self.frame).is_reading()
    }

    /// Returns whether a file system has the page locked.
    pub fn is_locked(&self) -> bool {
        self.engine.folio(self.frame).is_locked()
    }

    /// Returns whether a write of the page is under way.
    pub fn is_writeback(&self) -> bool {
        self.engine.folio(self.frame).is_writeback()
    }

    /// Sleeps until no write of the page is under way, or until the end of the space.
    pub(crate) fn wait_for_write(&self, dying: Option<&Dying>) {
        self.engine.park_killable(Counter::WritebackWait, self.key(), dying, || self.is_writeback());
    }

    /// Locks the folio, if it is not locked.
    pub(super) fn try_lock(mut self) -> Result<FolioLock<H>, Self> {
        self.has_lock = self.engine.folio(self.frame).try_lock();
        if self.has_lock { Ok(FolioLock(self, Some(Held::new()))) } else { Err(self) }
    }

    fn unlock(&mut self) {
        if core::mem::take(&mut self.has_lock) {
            self.engine.folio(self.frame).unlock();
            self.engine.wake_all(self.key());
        }
    }

    /// Locks the folio, and sleeps until it can. The caller holds nothing that a fault or a write needs.
    pub(super) fn lock(mut self) -> FolioLock<H> {
        loop {
            match self.try_lock() {
                Ok(lock) => return lock,
                Err(pin) => self = pin,
            }
            self.wait_for_lock(None);
        }
    }

    /// Sleeps until the page's read has ended, or until the end of the space.
    pub(crate) fn wait_for_read(&self, dying: Option<&Dying>) {
        self.engine.park_killable(Counter::IoWait, self.key(), dying, || self.is_reading());
    }

    /// Sleeps until the folio is unlocked, or until the end of the space.
    pub(crate) fn wait_for_lock(&self, dying: Option<&Dying>) {
        self.engine.park_killable(Counter::FolioLockWait, self.key(), dying, || self.is_locked());
    }

    pub(crate) fn key(&self) -> usize {
        core::ptr::from_ref(self.engine.folio(self.frame)).addr()
    }
}

/// A folio that is locked as a file system locks it, to write it back or to cut it off. Dropping unlocks it. Faults of
/// a design with [`LOCKS_FOLIOS`](crate::design::LockingDesign::LOCKS_FOLIOS) wait for it. Counted as [`Held`] if the
/// engine itself locks; a file system that has locked a folio takes care of its own accesses.
pub struct FolioLock<H: Host>(
    pub(super) Pin<H>,
    #[expect(dead_code, reason = "it counts while the lock lives")] pub(super) Option<Held>,
);

impl<H: Host> FolioLock<H> {
    /// Unlocks the folio and keeps the pin. A new pin could be refused. Two threads that each keep a pin could then
    /// wait for each other.
    pub(super) fn unlock(mut self) -> Pin<H> {
        self.0.unlock();
        self.0
    }
}

impl<H: Host> Drop for Pin<H> {
    fn drop(&mut self) {
        self.unlock();
        self.engine.unpin(self.frame, Reference::Pin);
        self.engine.cache.pins.fetch_sub(1, Ordering::Relaxed);
        self.engine.tell_memory();
    }
}

/// The error of a folio that has as many references of a kind as can be counted. For mappings it is treated as a lack
/// of memory; for pins, the caller waits until others are dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Full {
    pub frame: Frame,
    pub reference: Reference,
}

impl From<Full> for Miss {
    fn from(full: Full) -> Self {
        match full.reference {
            Reference::Mapping => Self::OutOfMemory(None),
            Reference::Pin | Reference::IoPin => Self::Full(full),
        }
    }
}

/// The reason that a page was not found nor its read started.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The file has no such page.
    PastEnd,
    /// Too many folios are pinned, or others wait for memory already. Wait in [`Engine::wait_for_turn`] with this
    /// number, then start over.
    Queue(u64),
    /// No transfer of the page may begin. Wait in [`File::wait_while_forbidden`](super::File::wait_while_forbidden),
    /// then start over.
    Forbidden,
    /// The page has as many pins as can be counted. Wait in [`Engine::wait_for_place`], then start over.
    Full(Full),
    /// There is no memory. In the group that is named, no page can be taken; the root stands for the machine's frames. `None`: the
    /// allocator has no memory, or a count is full.
    OutOfMemory(Option<GroupId>),
    /// There is no frame for a page of a file without a store, or the group that is to pay is at its limit. The caller makes room.
    NoFrame,
    /// The page of a file without a store is in a slot, or on its way there or back.
    InSlot,
    /// The page of a file without a store cannot be had: its slot cannot be read.
    Lost(StoreError),
}

impl From<OutOfMemory> for Miss {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory(None)
    }
}

impl<H: Host> Engine<H> {
    /// Allocates a frame for a page of a file, for which `group` pays. If needed, reclaims pages.
    ///
    /// # Errors
    /// The frames that were freed, which other threads have taken since, and whether pages could not be taken at the moment.
    pub(crate) fn allocate(self: &Arc<Self>, group: GroupId) -> Result<Frame, Shortage> {
        if let Some(frame) = self.take_frame(group, FrameUse::File) {
            self.call_if_owed();
            return Ok(frame);
        }
        let shortage = self.reclaim_for(group, 1);
        self.take_frame(group, FrameUse::File).ok_or(shortage)
    }

    /// Returns whether look number `look` for memory is not the last one. `is_delayed`: pages are there that could not be taken at
    /// the moment.
    pub(crate) fn looks_for_room(&self, look: u32, is_delayed: bool) -> bool {
        if is_delayed { look < LOOKS_DELAYED } else { self.looks_on(look) }
    }

    /// Returns whether look number `look` for memory is not the last one.
    pub(super) fn looks_on(&self, look: u32) -> bool {
        look < LOOKS || look < LOOKS_BESIDE && self.has_reclaimers()
    }

    /// Returns the number to wait with in [`Engine::wait_for_turn`], if reads or writes are under way. When one has
    /// ended, its page can be evicted.
    pub(crate) fn wait_for_transfers(&self) -> Option<u64> {
        let events = self.cache.queue.events();
        (self.cache.transfers.load(Ordering::Relaxed) != 0).then_some(events)
    }
}
