//! A file's folios: one a page, one read however many ask. Under its limit the cache evicts clean folios that nobody
//! maps or pins, so that a fault that starts over after its read can find the page gone.
//!
//! A word of the index names the frame of a page while the page is *attached*. Looking up: load the word, take a
//! reference unless the frame is free, load the word again. Detaching (eviction, truncation, a failed read) is done
//! under the file's `removal` lock, so that the cache's reference has one owner.

mod ahead;
mod index;

use crate::address::PAGE_SIZE;
use crate::engine::Engine;
use crate::frame::{Reference, Refused};
use crate::host::{Frame, FrameSource, Host, OutOfMemory};
use crate::stats::Counter;
use crate::store::{Direction, Store, StoreError, Transfer};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, Ranges, full_fence, plain};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use index::Index;

/// Pages evicted at once.
const FEW: u64 = 32;
/// How often one looks for memory before there is none: others free some, and others take it.
#[cfg(not(loom))]
const LOOKS: u32 = 100;
#[cfg(loom)]
const LOOKS: u32 = 2;

/// In a word of the index: the page has been in memory before.
const SEEN: u64 = 1;

fn word_of(frame: Frame) -> u64 {
    (frame.get() + 1) << 1 | SEEN
}

fn frame_of(word: u64) -> Option<Frame> {
    (word >> 1).checked_sub(1).and_then(Frame::new)
}

/// A space that may map pages of a file; what truncation needs to know of it.
pub(crate) trait Maps: Send + Sync {
    /// Takes away every page from `first` on that the space shows of file `file`, and every copy made of a page from
    /// `first_copy` on.
    fn drop_pages_of(&self, file: u64, first: u64, first_copy: u64);
}

/// The page cache's account, one an engine.
pub(crate) struct Account<H: Host> {
    /// Cached pages, oldest first, in the order of the clock's hand. Protected by its lock.
    queue: Mutex<VecDeque<(Weak<File<H>>, u64)>>,
    cached: plain::AtomicU64,
    /// Folios pinned by faults that wait.
    pins: plain::AtomicU64,
    /// Counts pins let go; what a queued miss sleeps on.
    unpinned: AtomicU64,
}

impl<H: Host> Default for Account<H> {
    fn default() -> Self {
        Self {
            queue: Mutex::new(VecDeque::new()),
            cached: plain::AtomicU64::new(0),
            pins: plain::AtomicU64::new(0),
            unpinned: AtomicU64::new(0),
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
}

/// A fault's pin on a folio: it is not evicted, and its frame is not used for anything else.
pub struct Pin<H: Host> {
    engine: Arc<Engine<H>>,
    frame: Frame,
}

impl<H: Host> Pin<H> {
    fn new(engine: &Arc<Engine<H>>, frame: Frame) -> Self {
        engine.cache.pins.fetch_add(1, Ordering::Relaxed);
        Self { engine: engine.clone(), frame }
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
pub struct FolioLock<H: Host>(Pin<H>);

impl<H: Host> Drop for FolioLock<H> {
    fn drop(&mut self) {
        let engine = &self.0.engine;
        engine.folio(self.0.frame).unlock();
        crate::sync::Park::wake_all(&**engine, self.0.key());
    }
}

impl<H: Host> Drop for Pin<H> {
    fn drop(&mut self) {
        self.engine.put(self.frame, Reference::Pin);
        let account = &self.engine.cache;
        account.pins.fetch_sub(1, Ordering::Relaxed);
        account.unpinned.fetch_add(1, Ordering::Release);
        crate::sync::Park::wake_all(&*self.engine, account.key());
    }
}

/// A folio has as many references of a kind as can be counted: like no memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Full;

impl From<Full> for Miss {
    fn from(_: Full) -> Self {
        Self::OutOfMemory
    }
}

/// Why a page was not found nor its read started.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The file has no such page.
    PastEnd,
    /// Too many folios are pinned: wait until [`Engine::wait_for_unpin`] with this number, then start over.
    Queue(u64),
    /// No memory, and nothing to evict.
    OutOfMemory,
}

impl From<OutOfMemory> for Miss {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// A file's pages in memory.
pub struct File<H: Host> {
    id: u64,
    this: Weak<Self>,
    engine: Arc<Engine<H>>,
    store: Arc<dyn Store>,
    /// Bytes. Lowered before pages are detached (SeqCst fence); read again after a page was attached (SeqCst fence):
    /// either truncation detaches the page, or the reader sees the new length.
    length: AtomicU64,
    index: Index,
    /// Taken while the length changes.
    resizing: Ranges<()>,
    /// Held while the word of an attached page is cleared.
    removal: Mutex<()>,
    /// The spaces that map the file, in the order of their first mapping, so that a fork's child stands behind its
    /// parent and truncation, which goes in this order, finds what was copied meanwhile. Protected by its lock.
    spaces: Mutex<Vec<(u64, Weak<dyn Maps>)>>,
}

impl<H: Host> File<H> {
    /// The file that `store` holds.
    ///
    /// # Errors
    /// What the store says of its length.
    pub fn open(engine: &Arc<Engine<H>>, store: Arc<dyn Store>) -> Result<Arc<Self>, StoreError> {
        let length = store.length()?;
        let id = engine.next_serial();
        let engine = engine.clone();
        Ok(Arc::new_cyclic(|this| Self {
            id,
            this: this.clone(),
            engine,
            store,
            length: AtomicU64::new(length),
            index: Index::new(),
            resizing: Ranges::new(()),
            removal: Mutex::new(()),
            spaces: Mutex::new(Vec::new()),
        }))
    }

    /// A number that no other file of the engine has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How long it is, in bytes.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// How many pages it has; the last may be partial.
    pub fn pages(&self) -> u64 {
        self.length().div_ceil(PAGE_SIZE)
    }

    /// Takes a reference to page `page` if it is attached, read or being read.
    ///
    /// # Errors
    /// [`Full`]: the page has as many references of this kind as can be counted.
    pub(crate) fn find(&self, page: u64, reference: Reference) -> Result<Option<Frame>, Full> {
        let Some(word) = self.index.get(page) else { return Ok(None) };
        let seen = word.load(Ordering::Acquire);
        let Some(frame) = frame_of(seen) else { return Ok(None) };
        match self.engine.folio(frame).try_get(reference) {
            Err(Refused::Full) => return Err(Full),
            Err(Refused::Free) => return Ok(None), // being evicted
            Ok(()) => {}
        }
        if word.load(Ordering::Acquire) == seen {
            return Ok(Some(frame));
        }
        self.engine.put(frame, reference);
        Ok(None)
    }

    /// Whether `frame`, which the caller has pinned, is page `page` of the file still, inside its length.
    pub(crate) fn is_attached(&self, page: u64, frame: Frame) -> bool {
        let attached =
            self.index.get(page).is_some_and(|word| word.load(Ordering::Acquire) == word_of(frame));
        attached && page < self.pages()
    }

    /// Locks page `page` if it is in memory and nobody has it locked.
    pub fn try_lock_folio(&self, page: u64) -> Option<FolioLock<H>> {
        let frame = self.find(page, Reference::Pin).ok().flatten()?;
        let pin = Pin::new(&self.engine, frame);
        self.engine.folio(frame).try_lock().then(|| FolioLock(pin))
    }

    /// Pins page `page`, and starts its read if nobody has; whether it did is the second. `again` tells of a fault that
    /// had its page once.
    pub(crate) fn read(&self, page: u64, again: bool) -> Result<(Pin<H>, bool), Miss> {
        let engine = &self.engine;
        let mut first_look = true;
        loop {
            if page >= self.pages() || page >= index::PAGES {
                return Err(Miss::PastEnd);
            }
            if let Some(frame) = self.find(page, Reference::Pin)? {
                return Ok((Pin::new(engine, frame), false));
            }
            if core::mem::take(&mut first_look) && again {
                engine.counters().add(Counter::RetriesPageGone, 1);
            }
            let frame = self.room_for_one()?;
            let word = self.index.make(page).inspect_err(|_| engine.host().frames().free(frame))?;
            let folio = engine.folio(frame);
            folio.begin_reading(self.id, page);
            let old = word.load(Ordering::Acquire);
            let attached = frame_of(old).is_none()
                && word.compare_exchange(old, word_of(frame), Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if !attached {
                if folio.cancel_reading() {
                    engine.host().frames().free(frame);
                }
                crate::sync::spin_loop();
                continue;
            }
            full_fence();
            let pin = Pin::new(engine, frame);
            engine.cache.cached.fetch_add(1, Ordering::Relaxed);
            let counters = engine.counters();
            counters.add(Counter::IoReads, 1);
            if old & SEEN != 0 {
                counters.add(Counter::IoRereads, 1);
            }
            if page < self.pages() {
                self.submit(page, frame);
            } else {
                self.end_read(page, frame, Err(StoreError::PastEnd { offset: page * PAGE_SIZE }));
            }
            return Ok((pin, true));
        }
    }

    fn submit(&self, page: u64, frame: Frame) {
        let Some(this) = self.this.upgrade() else { return };
        let memory = self.engine.host().frames().memory(frame);
        let completion = Box::new(move |result| this.end_read(page, frame, result));
        // SAFETY: the read's own pin keeps the frame until the completion, and nobody touches the bytes of a folio
        // that is being read.
        let transfer = unsafe { Transfer::new(Direction::Read, page * PAGE_SIZE, memory, completion) };
        self.store.submit(transfer);
    }

    /// The read of `page` into `frame` has ended. On any thread.
    fn end_read(&self, page: u64, frame: Frame, result: Result<usize, StoreError>) {
        let (engine, offset) = (&self.engine, page * PAGE_SIZE);
        let folio = engine.folio(frame);
        let inside = self.length().saturating_sub(offset).min(PAGE_SIZE);
        match result {
            Ok(bytes) if bytes > 0 && inside > 0 => {
                self.zero_tail(frame, (bytes as u64).min(inside));
                folio.finish_read();
                self.enqueue(page);
            }
            Ok(_) => {
                self.detach(page, frame);
                folio.fail_read(StoreError::PastEnd { offset });
            }
            Err(error) => {
                self.detach(page, frame);
                folio.fail_read(error);
            }
        }
        crate::sync::Park::wake_all(&**engine, core::ptr::from_ref(folio).addr());
        engine.put(frame, Reference::Pin);
    }

    /// What lies behind the end of the file reads as zeros.
    fn zero_tail(&self, frame: Frame, from: u64) {
        let from = from.min(PAGE_SIZE) as usize;
        let memory = self.engine.host().frames().memory(frame);
        // SAFETY: the frame's own PAGE_SIZE bytes; its read has ended and nobody sees it up to date yet.
        unsafe { memory.as_ptr().add(from).write_bytes(0, PAGE_SIZE as usize - from) }
    }

    /// Clears the word of `page` if it names `frame`, and drops the cache's reference.
    fn detach(&self, page: u64, frame: Frame) {
        let Some(word) = self.index.get(page) else { return };
        let guard = self.removal.lock();
        if word.load(Ordering::Relaxed) == word_of(frame) {
            word.store(SEEN, Ordering::Release);
            drop(guard);
            self.forget(frame);
        }
    }

    fn forget(&self, frame: Frame) {
        self.engine.cache.cached.fetch_sub(1, Ordering::Relaxed);
        if self.engine.folio(frame).put_cached() {
            self.engine.host().frames().free(frame);
        }
    }

    /// A frame for a new page, under the limits.
    fn room_for_one(&self) -> Result<Frame, Miss> {
        let (engine, account) = (&self.engine, &self.engine.cache);
        let limit = engine.limits().cached_pages;
        for look in 0..LOOKS {
            let unpinned = account.unpinned.load(Ordering::Acquire);
            let pins = account.pins.load(Ordering::Relaxed);
            if pins != 0 && pins >= limit / 2 {
                return Err(Miss::Queue(unpinned));
            }
            let over = (account.cached() + 1).saturating_sub(limit);
            if over > 0 {
                engine.evict(over);
            }
            if account.cached() < limit
                && let Some(frame) = engine.allocate()
            {
                return Ok(frame);
            }
            if pins != 0 {
                return Err(Miss::Queue(unpinned));
            }
            // Others evict too, and may have taken what we made free.
            crate::sync::Park::pause(&**engine, look);
        }
        Err(Miss::OutOfMemory)
    }

    fn enqueue(&self, page: u64) {
        let mut queue = self.engine.lock(&self.engine.cache.queue);
        // Without memory for the queue the page stays until the file goes.
        if queue.try_reserve(1).is_ok() {
            queue.push_back((self.this.clone(), page));
        }
    }

    /// Evicts `page` if nobody uses it. `None`: it is not in memory at all.
    fn evict(&self, page: u64) -> Option<bool> {
        let word = self.index.get(page)?;
        let guard = self.removal.lock();
        let frame = frame_of(word.load(Ordering::Relaxed))?;
        if !self.engine.folio(frame).try_evict() {
            return Some(false);
        }
        word.store(SEEN, Ordering::Release);
        drop(guard);
        self.engine.cache.cached.fetch_sub(1, Ordering::Relaxed);
        self.engine.host().frames().free(frame);
        Some(true)
    }

    /// The file is `length` bytes long now. Pages behind the end go from the cache and from every space, copies of
    /// them too. A partial last page, of before or of now, is read anew, so that what lies behind the end is zero and
    /// what has grown is there; copies of it stay. When this returns, no access reaches what was cut off.
    pub fn set_length(&self, length: u64) {
        self.engine.assert_may_sleep("truncation");
        // One at a time; without memory to queue for it, they may overlap as if they had been called so.
        let whole = crate::address::PageRange::single(crate::address::PageNumber::new(0));
        let taken = self.resizing.take(whole, &*self.engine).map(|(taken, _)| taken);
        let old = self.length.swap(length, Ordering::AcqRel);
        full_fence();
        let first = old.min(length) / PAGE_SIZE;
        self.index.each_from(first, &mut |page, word| {
            if let Some(frame) = frame_of(word.load(Ordering::Acquire)) {
                self.detach(page, frame);
            }
        });
        full_fence();
        let first_copy = length.div_ceil(PAGE_SIZE);
        let mut last = None;
        while let Some((id, space)) = self.space_after(last) {
            last = Some(id);
            if let Some(space) = space.upgrade() {
                space.drop_pages_of(self.id, first, first_copy);
            }
        }
        drop(taken);
    }

    /// The next space behind number `last`, in the order of first mapping.
    fn space_after(&self, last: Option<u64>) -> Option<(u64, Weak<dyn Maps>)> {
        let spaces = self.engine.lock(&self.spaces);
        spaces.iter().find(|(id, _)| last.is_none_or(|last| *id > last)).cloned()
    }

    /// Adds a space before its first page of this file can be mapped. `id` grows with each space made.
    pub(crate) fn register(&self, id: u64, space: Weak<dyn Maps>) -> Result<(), OutOfMemory> {
        let mut spaces = self.engine.lock(&self.spaces);
        if spaces.iter().any(|(other, _)| *other == id) {
            return Ok(());
        }
        spaces.retain(|(_, space)| space.strong_count() != 0);
        spaces.try_reserve(1).map_err(|_| OutOfMemory)?;
        let place = spaces.partition_point(|(other, _)| *other < id);
        spaces.insert(place, (id, space));
        Ok(())
    }
}

impl<H: Host> Drop for File<H> {
    fn drop(&mut self) {
        // No reader is left: reads under way and mappings hold the file.
        let engine = self.engine.clone();
        self.index.each_from(0, &mut |_, word| {
            if let Some(frame) = frame_of(word.load(Ordering::Relaxed)) {
                word.store(0, Ordering::Relaxed);
                engine.cache.cached.fetch_sub(1, Ordering::Relaxed);
                if engine.folio(frame).put_cached() {
                    engine.host().frames().free(frame);
                }
            }
        });
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
            crate::sync::Park::pause(self, look);
        }
        look < LOOKS
    }

    /// Evicts up to `wanted` clean pages that nobody uses; how many it did.
    pub(crate) fn evict(&self, wanted: u64) -> u64 {
        let (mut evicted, mut looks) = (0, 2 * self.lock(&self.cache.queue).len());
        while evicted < wanted && looks > 0 {
            looks -= 1;
            let Some((file, page)) = self.lock(&self.cache.queue).pop_front() else { break };
            match file.upgrade().and_then(|file| file.evict(page)) {
                Some(true) => evicted += 1,
                Some(false) => self.lock(&self.cache.queue).push_back((file, page)),
                None => {}
            }
        }
        self.counters().add(Counter::Evictions, evicted);
        evicted
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
