//! The folios of files. Each page has one folio, and one read serves all threads that ask for it. Above its limit the cache
//! evicts clean folios that are not mapped or pinned, so a fault that starts over after its read may find the page
//! evicted.
//!
//! A word of the index names the frame of a page while the page is *attached*. A lookup loads the word, takes a reference
//! unless the frame is free, and loads the word again. Detaching (eviction, truncation, a failed read) is done under the file's
//! `removal` lock, so that the cache's reference has one owner. A page that was read or written enters reclaim's queues, and
//! eviction is reclaim of a page that nobody uses: see `reclaim.rs`. A page of a file without a store goes to swap space instead:
//! see `in_slots.rs`.
//!
//! Stores through shared mappings and by [`FileHandle`] make folios dirty, and writeback makes them clean: see
//! `writeback.rs`. A sync then flushes the store: see `flush.rs`.

mod account;
mod ahead;
mod dirty;
mod errors;
mod flush;
mod handle;
mod in_slots;
mod index;
mod last_writes;
mod mappings;
mod memory_queue;
mod reading;
mod reclaim;
mod refresh;
mod resize;
mod word;
mod writeback;
mod writers;
mod zeros;

pub(crate) use account::{Account, Full, Miss};
pub use account::{FolioLock, Pin};
pub(crate) use dirty::{Dirtied, DirtyPages};
pub use handle::{FileError, FileHandle, FileRights};
pub(crate) use mappings::Hull;
pub(crate) use memory_queue::{AwaitedTurn, HAS_TURN, MOST_TURNS, NEWCOMER, Turn};

use crate::address::{PAGE_SIZE, PageRange};
use crate::engine::{Engine, RemovedBatch, StaleBatch};
use crate::errno;
use crate::frame::{Reference, Refused};
use crate::host::{Frame, GroupId, Host, OutOfMemory};
use crate::reclaim::Taking;
use crate::stats::Counter;
use crate::store::{Store, StoreError};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{
    Claims, Counted, LeftToRetired, Mutex, Park, ROOM_OF_RANGES, Ranges, RetiredList, Shared, Weak,
    fence_after_rmw, plain,
};
use crate::tables::Home;
use alloc::sync::Arc;
use core::ops::Range;
use core::ptr::NonNull;
use errors::{Errors, Failures};
use index::Index;
use mappings::FileMappings;
use word::{SEEN, eviction_of, frame_of, is_absent, word_of, word_of_evicted};
use writers::Writers;

/// Pages of a file that a writeback is about to write.
pub(crate) struct Written<'a> {
    /// The pages from the first to the last one.
    pub pages: Range<u64>,
    /// Returns whether a frame has one of these pages. Between them lie pages that other threads write.
    pub has: &'a dyn Fn(Frame) -> bool,
}

/// A space that may map pages of a file, as truncation sees it.
pub(crate) trait MappedBy<H: Host>: Send + Sync {
    /// Unmaps every page of `pages` of the file that `file` names from the space, and drops every copy made of a page of `copies`. `shown`
    /// returns the addresses within which the space may show the file, as of the time when it is called. Processors may use the
    /// dropped pages until `removed` is finished.
    fn drop_pages_of(
        &self,
        file: Home,
        pages_and_copies: [Range<u64>; 2],
        shown: &dyn Fn() -> Option<PageRange>,
        removed: &mut RemovedBatch<'_, H>,
    );

    /// Takes the write right away from every entry that maps a page of this file that is `written`. Processors may store into these
    /// until `stale` is finished. `shown` returns the addresses within which the space may show the file, as of the time when it is
    /// called.
    fn protect_pages_of(
        &self,
        file: Home,
        written: &Written<'_>,
        shown: &dyn Fn() -> Option<PageRange>,
        stale: &mut StaleBatch<'_, H>,
    );

    /// Takes page `page` of this file, which is that of `taking`, out of every entry that maps it, until `taking` is over. Only
    /// tries: waits for no bit, no range and no lock. `shown` returns the addresses within which the space may show the file.
    fn give_up_page_of(
        &self,
        file: Home,
        page: u64,
        shown: &dyn Fn() -> Option<PageRange>,
        taking: &mut Taking<'_, '_, H>,
    );
}

impl<H: Host> dyn MappedBy<H> {
    /// Erases the type of a space, which may be of any design.
    pub(crate) fn of<S: MappedBy<H> + 'static>(space: Weak<S>) -> Weak<Self> {
        // SAFETY: it returns the pointer that it gets.
        unsafe { space.unsize(|counted| counted as NonNull<Counted<Self>>) }
    }
}

/// Returns the error of a transfer that could not begin, since there is no memory.
fn no_memory(offset: u64) -> StoreError {
    StoreError::Io { offset, errno: errno::ENOMEM }
}

/// A reference to an open file. It is counted and cloned as an [`Arc`](alloc::sync::Arc) is. When the last one goes, dirty
/// pages are written and the file's pages are freed.
pub type FileRef<H> = Shared<File<H>>;

/// An open file and its pages in memory.
pub struct File<H: Host> {
    id: u64,
    this: Weak<Self>,
    engine: Arc<Engine<H>>,
    /// The store behind the file; `None` for a file in memory only. Immutable.
    store: Option<Arc<dyn Store>>,
    /// Tells whether the file was opened for writing. Immutable.
    writable: bool,
    /// The length in bytes. Raised after the bytes are there (Release). Lowered before pages are detached (SeqCst fence). Read
    /// again after a page was attached (SeqCst fence): either truncation detaches the page, or the reader sees the new length.
    /// Written while `resizing` is taken.
    length: AtomicU64,
    index: Index,
    /// A reservation that is taken while the length changes, a hole is punched or pages are read anew.
    resizing: Ranges<()>,
    /// The length of the store in bytes. The store may be longer than the file while a write makes both longer. Read and
    /// written while `resizing` is taken, or when the file goes.
    store_length: plain::AtomicU64,
    /// Tells whether the store is longer than the file, since a write failed and the store could not be made shorter. Written
    /// while `resizing` is taken.
    has_long_store: plain::AtomicBool,
    /// The first page whose transfers may not begin, and the page behind the last such page. `u64::MAX` means that there is
    /// none. Atomic; written while `resizing` is taken. Partners: see [`File::is_forbidden`].
    forbidden_from: AtomicU64,
    forbidden_end: AtomicU64,
    /// Counts the beginnings and ends of cuts, and withdrawn reads. If the count has changed during a read that found nothing
    /// behind the end, that result may be out of date. Atomic.
    cuts: AtomicU64,
    /// The writes and flushes that failed, and the numbers of flushes. Protected by its lock.
    errors: Mutex<Errors>,
    /// Counts the flushes that failed. Partners: see [`File::make_written_dirty`].
    failed_flushes: AtomicU64,
    /// The failed writes since one has succeeded.
    failures: Failures,
    /// The writes by handle of more than one page that are under way. Protected by its lock.
    writers: Writers,
    /// One more than the file's place among those that may have dirty pages; 0 for none. Written once.
    listed_at: plain::AtomicU64,
    /// The page behind the last one that background work has looked at. Atomic; a hint.
    written_to: plain::AtomicU64,
    /// A lock that is held while the word of an attached page is cleared.
    removal: Mutex<()>,
    /// The spaces that may map the file.
    spaces: FileMappings<H>,
}

/// Writes the fields of a file in place, since stacks have no room for a file. A field that is left out does not compile.
macro_rules! write_fields {
    ($place:ident, $name:ident { $($field:ident: $value:expr,)* } but $written:ident) => {{
        let _ = |all: &Self| { let $name { $($field: _,)* $written: _ } = all; };
        $((&raw mut (*$place).$field).write($value);)*
    }};
}

impl<H: Host> File<H> {
    /// Opens the file that `store` holds, for reading only: shared mappings of it cannot be writable.
    ///
    /// # Errors
    /// [`StoreError`]: the store cannot tell its length. [`StoreError::Io`] with ENOMEM: there is no memory for the file. In
    /// both cases no file is made.
    pub fn open(engine: &Arc<Engine<H>>, store: Arc<dyn Store>) -> Result<FileRef<H>, StoreError> {
        let length = store.length()?;
        Self::new(engine, Some(store), length, false).map_err(|_| no_memory(0))
    }

    /// Opens the file that `store` holds, for reading and writing, by shared mappings and by [`FileHandle`]s.
    ///
    /// # Errors
    /// [`StoreError`]: the store cannot tell its length. [`StoreError::Io`] with ENOMEM: there is no memory for the file. In
    /// both cases no file is made.
    pub fn open_rw(engine: &Arc<Engine<H>>, store: Arc<dyn Store>) -> Result<FileRef<H>, StoreError> {
        let length = store.length()?;
        Self::new(engine, Some(store), length, true).map_err(|_| no_memory(0))
    }

    /// Makes a file of `length` zero bytes that has no store (memfd, or the file behind shared anonymous memory). Pages are
    /// made at their first touch, without I/O, and stay until they are cut off or the file goes. If memory is short and the engine has
    /// a swap device, they go to slots, as anonymous pages do, and come back at the next access. They are not counted as cached.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn in_memory(engine: &Arc<Engine<H>>, length: u64) -> Result<FileRef<H>, OutOfMemory> {
        Self::new(engine, None, length, true)
    }

    fn new(
        engine: &Arc<Engine<H>>,
        store: Option<Arc<dyn Store>>,
        length: u64,
        writable: bool,
    ) -> Result<FileRef<H>, OutOfMemory> {
        // Frees dropped files that wait to be freed, before the next file is made.
        engine.retire(&mut RetiredList::new());
        let id = engine.next_serial();
        let engine = engine.clone();
        let room = Claims::with_room()?;
        let sections = Arc::clone(engine.sections());
        let make = |this: &Weak<Self>, place: *mut Self| {
            // SAFETY: the file's memory; every field of it is written, as the macro checks.
            unsafe {
                Index::write(&raw mut (*place).index, Arc::clone(&sections));
                write_fields!(place, File {
                    id: id,
                    this: this.clone(),
                    engine: engine,
                    store: store,
                    writable: writable,
                    length: AtomicU64::new(length),
                    resizing: Ranges::with_room((), room),
                    store_length: plain::AtomicU64::new(length),
                    has_long_store: plain::AtomicBool::new(false),
                    forbidden_from: AtomicU64::new(u64::MAX),
                    forbidden_end: AtomicU64::new(0),
                    cuts: AtomicU64::new(0),
                    errors: Mutex::default(),
                    failed_flushes: AtomicU64::new(0),
                    failures: Failures::default(),
                    writers: Writers::default(),
                    listed_at: plain::AtomicU64::new(0),
                    written_to: plain::AtomicU64::new(0),
                    removal: Mutex::new(()),
                    spaces: FileMappings::default(),
                } but index);
            }
        };
        // SAFETY: it writes the whole value.
        let file = unsafe { Shared::try_new_retirable_in_place(&sections, make) }?;
        sections.charge(ROOM_OF_RANGES);
        if writable && !file.is_in_memory() {
            file.list_as_writable()?;
        }
        Ok(file)
    }

    /// Returns whether the file was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Returns whether the file has no store. Its pages are never written back or evicted. They may be in slots of swap space.
    pub fn is_in_memory(&self) -> bool {
        self.store.is_none()
    }

    /// Returns the home of the file's folios.
    pub(crate) fn home(&self) -> Home {
        Home::of_file(self.this.as_raw(), self.store.is_some())
    }

    /// Returns a number that no other file of the engine has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the length of the file, in bytes.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Returns the number of pages of the file; the last may be partial.
    pub fn pages(&self) -> u64 {
        self.length().div_ceil(PAGE_SIZE)
    }

    /// Returns the count of cuts. It is read before the lookup of a page, and given to [`File::is_cut_since`] if the page's
    /// read has failed.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// Returns whether a read that ended with `error` tells nothing about the file as it is now: it was cut off meanwhile, and
    /// may have grown since. The caller then looks again.
    pub(crate) fn is_cut_since(&self, cuts: u64, error: StoreError) -> bool {
        matches!(error, StoreError::PastEnd { .. }) && self.cuts() != cuts
    }

    /// Takes a reference to page `page` if it is attached, read or being read.
    ///
    /// # Errors
    /// [`Full`]: the page has the largest number of references of this kind that can be counted.
    pub(crate) fn find(&self, page: u64, reference: Reference) -> Result<Option<Frame>, Full> {
        let Some(word) = self.index.get(page) else { return Ok(None) };
        self.find_by(word, word.load(Ordering::Acquire), reference)
    }

    /// Takes a reference to the page whose word is `word`, and was `seen` a moment ago, as [`File::find`] does.
    #[inline]
    fn find_by(&self, word: &AtomicU64, seen: u64, reference: Reference) -> Result<Option<Frame>, Full> {
        let Some(frame) = frame_of(seen) else { return Ok(None) };
        match self.engine.folio(frame).try_get(reference) {
            Err(Refused::Full) => return Err(Full { frame, reference }),
            Err(Refused::Free) => return Ok(None), // being evicted
            Ok(()) => {}
        }
        if word.load(Ordering::Acquire) == seen {
            return Ok(Some(frame));
        }
        self.engine.put(frame, reference);
        Ok(None)
    }

    /// Returns whether `frame`, which the caller has pinned, is still page `page` of the file, inside its length.
    pub(crate) fn is_attached(&self, page: u64, frame: Frame) -> bool {
        self.has_in_index(page, frame) && page < self.pages()
    }

    /// Returns whether the index names `frame` as page `page`, wherever the file ends.
    fn has_in_index(&self, page: u64, frame: Frame) -> bool {
        self.index.get(page).is_some_and(|word| word.load(Ordering::Acquire) == word_of(frame))
    }

    /// Locks page `page` if it is in memory and not locked.
    pub fn try_lock_folio(&self, page: u64) -> Option<FolioLock<H>> {
        let frame = self.find(page, Reference::Pin).ok().flatten()?;
        let pin = Pin::new(&self.engine, frame);
        // A file system that has locked a folio takes care of its own accesses.
        pin.try_lock().ok().map(|lock| FolioLock(lock.0, None))
    }

    /// Pins page `page`, and starts its read if no thread has done so. The second value tells whether this call started the
    /// read. `again` tells that the fault has had its page once. `ticket` is its place in the queue for memory. If the page is
    /// brought in, `group` pays for it.
    pub(crate) fn read(
        &self,
        page: u64,
        again: bool,
        (ticket, group): (u64, GroupId),
    ) -> Result<(Pin<H>, bool), Miss> {
        if self.is_in_memory() {
            return self.read_in_memory(page, group);
        }
        let engine = &self.engine;
        let mut first_look = true;
        loop {
            if page >= self.pages() || page >= index::PAGES {
                return Err(Miss::PastEnd);
            }
            if let Some(frame) = self.find(page, Reference::Pin)? {
                return Ok((Pin::new(engine, frame), false));
            }
            if self.is_forbidden(page) {
                return Err(Miss::Forbidden);
            }
            if core::mem::take(&mut first_look) && again {
                engine.counters().add(Counter::RetriesPageGone, 1);
            }
            let frame = self.room_for_one(ticket, group)?;
            let memory = self.index.make(page).and_then(|word| {
                // If the word changes, another thread reads the page.
                let distance = engine.distance_of(group, eviction_of(word.load(Ordering::Relaxed)));
                Ok((word, self.completion(page, frame, distance)?))
            });
            let (word, completion) = memory.inspect_err(|_| engine.free_frame(frame))?;
            let folio = engine.folio(frame);
            folio.begin_reading(self.home(), page, 2);
            let is_late = mutant!("cached_counted_late");
            if !is_late {
                engine.cache.count_cached(1);
            }
            let old = word.load(Ordering::Acquire);
            let attached = frame_of(old).is_none()
                && word.compare_exchange(old, word_of(frame), Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if !attached {
                engine.cache.uncount_cached(1);
                if folio.cancel_reading(2) {
                    engine.free_frame(frame);
                }
                crate::sync::spin_loop();
                continue;
            }
            fence_after_rmw();
            let pin = Pin::new(engine, frame);
            if is_late {
                engine.cache.count_cached(1);
            }
            engine.cache.transfers.fetch_add(1, Ordering::Relaxed);
            // Partner: the fence of `Forbidden::begin`, which may have come too early to find the page.
            if !mutant!("resize_under_transfers") && self.is_forbidden(page) {
                self.withdraw(page, frame);
                self.end_transfer();
                return Err(Miss::Forbidden);
            }
            if page >= self.pages() {
                if mutant!("cut_read_fails") {
                    completion(Err(StoreError::PastEnd { offset: page * PAGE_SIZE }));
                    return Ok((pin, true));
                }
                // Another thread may have found the page after the file has grown again. It is to look again, and not to see an error.
                self.withdraw(page, frame);
                self.end_transfer();
                continue;
            }
            engine.counters().add(Counter::IoReads, 1);
            if old & SEEN != 0 {
                engine.counters().add(Counter::IoRereads, 1);
            }
            self.submit(page, frame, completion);
            return Ok((pin, true));
        }
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

    /// Drops the cache's reference to `frame`, whose page the caller alone has detached.
    fn forget(&self, frame: Frame) {
        if !self.is_in_memory() {
            self.engine.cache.uncount_cached(1);
        }
        if self.engine.folio(frame).put_cached() {
            self.engine.free_frame(frame);
        }
    }

    /// Returns a frame for a new page, under the limits, for a caller with this `ticket`. `group` pays for it.
    ///
    /// A caller whose group is at max waits here, and not in the queue for memory: others, whose groups have room, would wait behind
    /// it. It ends after a number of looks.
    fn room_for_one(&self, ticket: u64, group: GroupId) -> Result<Frame, Miss> {
        let (engine, account) = (&self.engine, &self.engine.cache);
        let limit = engine.limits().cached_pages;
        let (mut look, mut is_delayed, mut full) = (0, false, None);
        while engine.looks_on(look) || is_delayed && look < account::LOOKS_DELAYED {
            let events = account.queue.events();
            let pins = account.pins.load(Ordering::Relaxed);
            if !account.queue.is_first(ticket) || pins != 0 && pins >= limit / 2 {
                return Err(Miss::Queue(events));
            }
            is_delayed = self.make_room_in_cache(1);
            full = None;
            if account.cached() < limit {
                match engine.allocate(group) {
                    Ok(frame) => return Ok(frame),
                    Err(shortage) => {
                        full = shortage.full;
                        is_delayed |= shortage.reclaimed.is_delayed;
                        // Other threads have taken these: memory is in use, not full.
                        if shortage.reclaimed.freed != 0 {
                            look = 0;
                        }
                    }
                }
            }
            let may_change = pins != 0 || account.transfers.load(Ordering::Relaxed) != 0;
            if may_change && full.is_none() && !engine.looks_for_worker(look) {
                return Err(Miss::Queue(events));
            }
            is_delayed |= may_change;
            // Other threads evict too, and may have taken the frame that this one made free.
            engine.wait_for_memory(look);
            look += 1;
        }
        engine.note_out_of_memory(full);
        Err(Miss::OutOfMemory(Some(full.unwrap_or(GroupId::ROOT))))
    }

    /// Returns the number of living spaces that have mapped the file.
    #[cfg(any(test, feature = "audit"))]
    pub fn spaces(&self) -> usize {
        self.spaces.living(&self.engine)
    }

    /// Calls `f` for every space that may show one of `pages` and is `wanted`, in ascending order of numbers. The second argument of
    /// `f` returns the addresses within which the space may show the file, as of the time when it is called. The state of the pages
    /// has been changed before.
    fn each_space(
        &self,
        pages: &Range<u64>,
        wanted: impl Fn(u64) -> bool,
        mut f: impl FnMut(&dyn MappedBy<H>, &dyn Fn() -> Option<PageRange>),
    ) {
        self.spaces.each(&self.engine, pages, wanted, |id, space| {
            f(space, &|| self.spaces.addresses(&self.engine, id));
            true
        });
    }

    /// Lists a space, if it is not listed, and lets it show the part of the file in `hull`. `id` grows with each new space.
    pub(crate) fn register(
        &self,
        id: u64,
        space: impl FnOnce() -> Weak<dyn MappedBy<H>>,
        hull: &Hull,
    ) -> Result<(), OutOfMemory> {
        self.spaces.register(&self.engine, id, space, hull)
    }

    /// Lets space `id`, which is listed, show the part of the file in `hull`. Called before a mapping of it can be seen.
    pub(crate) fn widen(&self, id: u64, hull: &Hull) {
        self.spaces.widen(&self.engine, id, hull);
    }
}

impl<H: Host> LeftToRetired for File<H> {
    fn left_to_retired(&self) {
        self.engine.sections().hurry();
    }
}

impl<H: Host> Drop for File<H> {
    fn drop(&mut self) {
        // No reader is left: reads and writes under way, and mappings, hold the file. The counts of handles order all use of the file
        // before this, but they are not part of a model.
        #[cfg(loom)]
        drop(self.removal.lock());
        self.write_the_last();
        self.unlist_as_writable();
        self.index.each(0..index::PAGES, &mut |_, word| {
            let seen = word.load(Ordering::Relaxed);
            if !is_absent(seen) {
                word.store(0, Ordering::Relaxed);
                self.let_go(seen);
            }
        });
        // Rule H7: no page names the file any more, and a reclaimer that has read such a home has left the file when this returns.
        drop(self.engine.lock(&self.engine.cache.files));
        self.engine.uncharge(ROOM_OF_RANGES + self.spaces.room(&self.engine));
    }
}
