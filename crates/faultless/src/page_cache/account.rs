//! The page cache's account, one for each engine: the numbers of cached and pinned folios, and eviction.

use super::folio_list::{FolioList, Isolated};
use super::memory_queue::MemoryQueue;
use crate::engine::{Dying, Engine};
use crate::frame::{Eviction, Reference};
use crate::host::{Frame, FrameSource, FrameUse, GroupId, Host, OutOfMemory};
use crate::reclaim::{Kinds, Reclaimed};
use crate::stats::Counter;
use crate::sync::atomic::Ordering;
use crate::sync::{Held, Park, plain};
use alloc::sync::Arc;

/// The number of pages that are evicted at once.
const FEW: u64 = 32;
/// The number of dirty folios that are written at once if no page can be evicted.
const WRITTEN: usize = 16;
/// The number of folios that eviction checks in one critical section of the list's lock.
const BATCH: usize = 8;
/// The greatest number of folios that one call of [`Engine::evict`] may check and leave on the list.
#[cfg(not(loom))]
const LEAVES: u64 = 512;
#[cfg(loom)]
const LEAVES: u64 = 4;
/// The number of looks for memory before a caller gives up: other threads free some, and others take it. These looks spin
/// ([`Park::wait_for_memory`]), and take less than 50 microseconds.
#[cfg(not(loom))]
const LOOKS: u32 = 48;
#[cfg(loom)]
const LOOKS: u32 = 2;
/// The number of looks while another thread evicts. That thread may have taken the free folios off the list, and may be
/// preempted.
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
    /// Cached pages that are not in use, in the order of the clock's hand.
    pub(crate) idle: FolioList,
    pub(super) cached: plain::AtomicU64,
    /// The number of folios pinned by faults that wait, and by writes under way.
    pub(super) pins: plain::AtomicU64,
    /// The calls and faults that wait for memory.
    pub(crate) queue: MemoryQueue,
    /// The number of reads and writes under way, with those of swap devices.
    pub(crate) transfers: plain::AtomicU64,
    /// The number of threads that evict.
    evictors: plain::AtomicU64,
}

impl Account {
    pub(crate) fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    /// Puts a folio on the list, if the page cache has the only reference to it, as it had a moment ago. A page of a
    /// file in memory is not listed. A page that is being detached is freed with its cache's reference. Waits for
    /// nothing.
    #[cold]
    pub(crate) fn list<H: Host>(&self, engine: &Engine<H>, frame: Frame) {
        let folio = engine.folio(frame);
        if !folio.place().file.load(Ordering::Relaxed).is_null() && folio.try_list() {
            self.idle.push(engine, frame);
        }
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
            Reference::Mapping => Self::OutOfMemory,
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
    /// There is no free frame, and no page can be evicted.
    OutOfMemory,
}

impl From<OutOfMemory> for Miss {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl<H: Host> Engine<H> {
    /// Allocates a frame for a page of a file. If needed, evicts clean pages of files that are not in use, or reclaims mapped and
    /// anonymous pages.
    ///
    /// # Errors
    /// The frames that were freed, which other threads have taken since, and whether pages could not be taken at the moment.
    pub(crate) fn allocate(self: &Arc<Self>, group: GroupId) -> Result<Frame, Reclaimed> {
        let frames = self.host().frames();
        if let Some(frame) = frames.allocate(group, FrameUse::File) {
            return Ok(frame);
        }
        let freed = self.evict_or_reclaim(group);
        frames.allocate(group, FrameUse::File).ok_or(freed)
    }

    /// Evicts pages of files that are not in use, or reclaims mapped and anonymous pages.
    fn evict_or_reclaim(self: &Arc<Self>, group: GroupId) -> Reclaimed {
        match self.evict(group, FEW) {
            0 => self.take_pages(group, FEW, Kinds::All),
            freed => Reclaimed { freed, is_delayed: false },
        }
    }

    /// Makes room after an allocation for `group` failed: evicts, reclaims, or waits for a short time for other threads to free
    /// memory. `look` counts the calls since one of them has freed a frame. Returns `false` if there were enough.
    ///
    /// Another thread may take each frame that this call frees. That is no reason to give up: the memory is in use, not full.
    pub(crate) fn make_room(self: &Arc<Self>, group: GroupId, look: &mut u32) -> bool {
        *look += 1;
        let reclaimed = self.evict_or_reclaim(group);
        if reclaimed.freed != 0 {
            *look = 0;
            return true;
        }
        self.wait_for_memory(*look);
        self.looks_for_room(*look, reclaimed.is_delayed)
    }

    /// Returns whether look number `look` for memory is not the last one. `is_delayed`: pages are there that could not be taken at
    /// the moment.
    pub(crate) fn looks_for_room(&self, look: u32, is_delayed: bool) -> bool {
        if is_delayed { look < LOOKS_DELAYED } else { self.looks_on(look) }
    }

    /// Returns whether look number `look` for memory is not the last one.
    pub(super) fn looks_on(&self, look: u32) -> bool {
        look < LOOKS || look < LOOKS_BESIDE && self.cache.evictors.load(Ordering::Relaxed) != 0
    }

    /// Evicts up to `wanted` clean pages that are not in use, and returns their number. If there are only dirty pages,
    /// starts to write some back; they can be evicted after that.
    ///
    /// Checks the oldest idle folios first. It ends because each check takes a folio off the list, except for
    /// [`LEAVES`]:
    /// * A clean folio that is not in use is evicted.
    /// * A folio in use is taken off the list. It returns when its last user leaves, so later calls do not check it
    ///   again.
    /// * A folio that was used since the last check goes to the young end, in the first half of [`LEAVES`]. After that
    ///   its use does not count, so that a call finds a page to evict however many were used.
    /// * A dirty folio goes to the young end, so that later calls check others.
    ///
    /// There is one list, of the one `group`.
    pub(crate) fn evict(&self, _group: GroupId, wanted: u64) -> u64 {
        let mut dirty: [Option<Isolated<H>>; WRITTEN] = [const { None }; WRITTEN];
        let evicted = self.evict_clean(wanted, &mut dirty);
        for Isolated { frame, file } in dirty.iter_mut().filter_map(Option::take) {
            if evicted != 0 {
                self.cache.idle.push(self, frame);
                continue;
            }
            let page = self.folio(frame).index();
            file.start_writeback(page..page + 1);
            // A page that could not be written is still idle. It goes to the young end.
            self.put_listed(frame);
        }
        evicted
    }

    /// Does the work of [`Engine::evict`], and leaves the `dirty` folios to the caller. Not inlined, since the stack
    /// has no room for this and for writeback.
    #[inline(never)]
    fn evict_clean(&self, wanted: u64, dirty: &mut [Option<Isolated<H>>]) -> u64 {
        let idle = &self.cache.idle;
        self.cache.evictors.fetch_add(1, Ordering::Relaxed);
        let (mut evicted, mut looks, mut left) = (0, 0, 0);
        let mut dirties = dirty.iter_mut();
        while evicted < wanted && left < LEAVES {
            let mut batch: [Option<Isolated<H>>; BATCH] = [const { None }; BATCH];
            let most = (wanted - evicted).min(LEAVES - left).min(BATCH as u64) as usize;
            let count = idle.isolate(self, &mut batch[..most]);
            if count == 0 {
                break;
            }
            looks += count as u64;
            for folio in batch.iter_mut().filter_map(Option::take) {
                match folio.file.evict(folio.frame, left < LEAVES / 2) {
                    Eviction::Taken => evicted += 1,
                    Eviction::InUse => self.put_listed(folio.frame),
                    Eviction::Used => {
                        left += 1;
                        idle.push(self, folio.frame);
                    }
                    Eviction::Dirty => match dirties.next() {
                        // Kept off the list, so that no thread checks it again meanwhile.
                        Some(place) => *place = Some(folio),
                        None => {
                            left += 1;
                            idle.push(self, folio.frame);
                        }
                    },
                }
            }
        }
        self.cache.evictors.fetch_sub(1, Ordering::Relaxed);
        self.counters().add(Counter::Evictions, evicted);
        self.counters().add(Counter::EvictionLooks, looks);
        evicted
    }

    /// Returns the number to wait with in [`Engine::wait_for_turn`], if reads or writes are under way. When one has
    /// ended, its page can be evicted.
    pub(crate) fn wait_for_transfers(&self) -> Option<u64> {
        let events = self.cache.queue.events();
        (self.cache.transfers.load(Ordering::Relaxed) != 0).then_some(events)
    }
}
