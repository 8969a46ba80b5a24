//! Dirty pages and their way to the store.
//!
//! ```text
//! store fault (entry announced)                  writeback of a page (folio locked for a moment)
//! ─────────────────────────────                  ───────────────────────────────────────────────
//! folio: DIRTY, unless WRITEBACK (then it waits)  tag Writing, untag Dirty
//! tag Dirty                                       folio: DIRTY becomes WRITEBACK
//! install with the write right                    take the write right from every entry, invalidate
//!                                                 submit; at its end: untag Writing, WRITEBACK ends
//! ```
//! A fault announces the entry before it makes the folio dirty, with a fence between. Writeback reads the entries after
//! the folio, with a fence between. If the fault's step on the folio comes first, writeback finds the announcement or
//! the right. If writeback's comes first, the fault finds WRITEBACK and waits. So if an entry has the write right, its
//! folio is dirty, or writeback is about to take the right. While a page is being written, no thread stores into it.
//! Only the thread that has put a page under writeback takes its right, and only that thread's invalidation counts.
//!
//! The tags name the pages to visit. Dirty is set after the folio is dirty. Writing is set before Dirty is cleared, so
//! that a sync that waits for a range misses no write. A tag may be set without cause.
//!
//! The folio's lock keeps writers by handle, truncation and other writeback away while the state changes. It is not
//! held while entries are read, and no thread waits for one while it has a batch that is not submitted.
//!
//! Consecutive pages of a batch are one transfer, if the store takes such. They end together, so a thread that waits
//! for one of them waits for all. If one of them fails, it and the later ones stay dirty, and are tagged Alone: the
//! next write of each is a transfer of its own, until one succeeds. A sync tries that itself, so that a page that
//! cannot be written keeps no other page from the store.
//!
//! A failed write ends under the lock of the errors, and each sync takes that lock before it looks at the tags. If the end comes
//! first, the sync finds the pages dirty and writes them. If the sync comes first, the failure is one that happened during the sync:
//! the sync returns the error even if another caller has been told of it, and writes the pages that were not tried. A write that
//! a failed flush may have lost ends in the same way, without an error of its own: see flush.rs.

use super::account::{Full, Pin};
use super::index::Tag;
use super::{File, Written, frame_of, no_memory};
use crate::address::PAGE_SIZE;
use crate::engine::StaleBatch;
use crate::errno;
use crate::frame::Reference;
use crate::host::{Clock, Frame, Host};
use crate::stats::Counter;
use crate::store::{Direction, MAX_PAGES, Outcome, Place, Places, Store, StoreError, Transfer};
use crate::sync::atomic::Ordering;
use crate::sync::{full_fence, try_box, try_box_or_back};
use alloc::boxed::Box;
use core::ops::Range;
use core::ptr::NonNull;
use smallvec::SmallVec;

/// The number of pages whose entries are changed together.
#[cfg(not(loom))]
const BATCH: usize = MAX_PAGES;
#[cfg(loom)]
const BATCH: usize = 2;

/// The pages that writeback leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    /// None. It waits for those that cannot be written yet.
    Nothing,
    /// Those that cannot be written yet.
    Busy,
    /// Also those that are written alone, since a write of them, or of a page before them, has failed.
    BusyAndFailed,
}

impl Skip {
    const fn of(pauses: bool) -> Self {
        if pauses { Self::BusyAndFailed } else { Self::Busy }
    }
}

/// The result of starting writes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wrote {
    /// The number of pages whose write was started.
    pub started: u64,
    /// The page behind the last one that was looked at.
    pub next: u64,
}

/// The outcome of beginning a page's writeback.
enum Begun<H: Host> {
    Started(Pin<H>),
    /// There is nothing to write.
    Clean,
    /// The page was not in memory at first, and is now: begin again.
    Again,
    /// The page is locked, or a write of it is under way.
    Busy(Pin<H>),
    /// The file is being cut off or punched there: wait until that has ended.
    Forbidden,
    /// The page has as many pins as can be counted.
    Full(Full),
}

/// The reason why no more pages are gathered for a batch.
enum Gathered<H: Host> {
    /// There is no more to write, or as much as was asked for.
    All,
    /// The batch is full, or there is no memory for a larger one.
    Batch,
    /// The next page is locked, or a write of it is under way.
    Busy(Pin<H>),
    /// The next page has as many pins as can be counted.
    Full(Full),
    /// The file is being cut off or punched at the next page.
    Forbidden,
}

/// Pages that are under writeback and not submitted, in ascending order. A few need no memory of the allocator.
type Batch<H> = SmallVec<[(u64, Pin<H>); 4]>;

/// The pins of consecutive pages that are one transfer. A single pin needs no memory of the allocator.
type Pins<H> = SmallVec<[Pin<H>; 1]>;

/// A write under way, without its pages.
struct Write {
    /// The number of its bytes inside the file. It is less than a whole page only for the last page.
    inside: usize,
    /// True if the store has a copy of the page, which other threads may write meanwhile.
    stays_dirty: bool,
    /// The number of flushes that had failed before the write was submitted.
    flushes: u64,
}

impl<H: Host> File<H> {
    /// Makes page `page` dirty, since a thread stores into it; its `frame` is pinned, mapped or about to be. Returns
    /// `false` if a write of it is under way, which has to end first.
    ///
    /// The caller has the page's entry announced, or the folio locked.
    pub(crate) fn make_dirty(&self, page: u64, frame: Frame) -> bool {
        match self.engine.folio(frame).try_dirty() {
            None => false,
            Some(_) if self.is_in_memory() => true,
            Some(newly) => {
                // Always set if the folio became dirty now: a tag that is set may be older than an untag that saw a
                // clean folio.
                if newly || !self.index.is_tagged(page, Tag::Dirty) {
                    self.tag_dirty_by_me(page);
                }
                true
            }
        }
    }

    /// Makes a page dirty as [`File::make_dirty`] does, for a mapping of space `id`, which gets a right to store next.
    pub(crate) fn make_dirty_for(&self, id: u64, page: u64, frame: Frame) -> bool {
        if !self.is_in_memory() && !mutant!("store_noted_late") {
            self.spaces.note_store(id);
        }
        let is_dirty = self.make_dirty(page, frame);
        if mutant!("store_noted_late") {
            self.spaces.note_store(id);
        }
        is_dirty
    }

    /// Starts to write back the dirty pages of `pages`. Waits for no I/O. Skips pages that are locked or being written.
    pub(crate) fn start_writeback(&self, pages: Range<u64>) {
        self.write_up_to(pages, Skip::Busy, u64::MAX);
    }

    /// Starts to write back the dirty pages of `pages` as [`File::start_writeback`] does, to make room. If the file `pauses`
    /// ([`File::pauses`]), leaves out pages that are written alone since a write has failed.
    pub(crate) fn start_writeback_for_room(&self, pages: Range<u64>, pauses: bool) {
        self.write_up_to(pages, Skip::of(pauses), u64::MAX);
    }

    /// Writes the dirty pages of `pages` back, and waits until that and all earlier writes of them have ended. The
    /// caller holds nothing.
    ///
    /// Returns the number of writes and flushes that had failed when it began. The caller must return each later
    /// failure.
    pub(crate) fn finish_writeback(&self, pages: Range<u64>) -> u64 {
        let look = || {
            let errors = self.engine.lock(&self.errors);
            (errors.count, errors.left_behind)
        };
        let (before, left_behind) = look();
        self.write_up_to(pages.clone(), Skip::Nothing, u64::MAX);
        self.wait_for_writes(pages.clone());
        // Write the pages after one that could not be written: each is now written alone, as if there were no runs.
        // Write also the pages whose write had begun before a flush failed: that failure may have been reported before
        // this call.
        if look().1 != left_behind {
            self.write_up_to(pages.clone(), Skip::Nothing, u64::MAX);
            self.wait_for_writes(pages);
        }
        before
    }

    fn wait_for_writes(&self, pages: Range<u64>) {
        let mut rest = pages;
        while let Some(page) = self.index.next_tagged(rest.clone(), Tag::Writing) {
            match self.find(page, Reference::Pin) {
                Ok(Some(frame)) => {
                    let pin = Pin::new(&self.engine, frame);
                    // The tag is set under the lock, and the folio is under writeback before the lock is dropped.
                    if !mutant!("fsync_asks_before_the_lock") {
                        pin.wait_for_lock(None);
                    }
                    pin.wait_for_write(None);
                }
                // The truncation that cut the page off has waited.
                Ok(None) => {}
                Err(full) => {
                    self.engine.wait_for_place(full, None);
                    continue;
                }
            }
            rest.start = page + 1;
        }
    }

    /// Returns the last failed write, if the file itself has not reported it, by its mappings' msync or here, or if it
    /// came since [`File::finish_writeback`] returned `before`.
    pub(crate) fn report_error(&self, before: u64) -> Result<(), StoreError> {
        let mut errors = self.engine.lock(&self.errors);
        let seen = errors.file;
        let (result, seen) = errors.report(seen, before);
        errors.file = seen;
        result
    }

    /// Starts to write back up to `most` dirty pages of `pages`, for a limit, as [`File::start_writeback_for_room`] does.
    pub(super) fn write_some(&self, pages: Range<u64>, most: u64, pauses: bool) -> Wrote {
        self.write_up_to(pages, Skip::of(pauses), most)
    }

    /// Starts to write back up to `most` dirty pages of `pages`, and waits for those that cannot be written yet, or skips them.
    fn write_up_to(&self, pages: Range<u64>, skip: Skip, most: u64) -> Wrote {
        self.engine.assert_may_sleep("writeback");
        if self.is_in_memory() {
            return Wrote { next: pages.end, ..Wrote::default() };
        }
        let mut unsubmitted = Unsubmitted { file: self, batch: Batch::new() };
        let (mut rest, mut wrote) = (pages, Wrote::default());
        loop {
            let gathered = self.gather(&mut rest, skip, most, wrote, &mut unsubmitted.batch);
            wrote.started += unsubmitted.batch.len() as u64;
            // The holder of a page's lock may wait for a page of our batch.
            self.submit_batch(&mut unsubmitted.batch);
            match gathered {
                Gathered::All => return Wrote { next: rest.start, ..wrote },
                Gathered::Batch => {}
                Gathered::Busy(pin) => {
                    pin.wait_for_lock(None);
                    pin.wait_for_write(None);
                }
                Gathered::Full(full) => self.engine.wait_for_place(full, None),
                Gathered::Forbidden => self.wait_while_forbidden(rest.start, None),
            }
        }
    }

    /// Begins the writeback of dirty pages of `rest`, until up to `most` were begun with those that `wrote` has, and takes those that were
    /// looked at out of `rest`. Gathers them in `batch`, which is empty before. Ends before a page that cannot be written yet, or skips
    /// it. Not inlined, so that its frame is off the stack when the batch is submitted.
    #[inline(never)]
    fn gather(
        &self,
        rest: &mut Range<u64>,
        skip: Skip,
        most: u64,
        wrote: Wrote,
        batch: &mut Batch<H>,
    ) -> Gathered<H> {
        let (wait, most) = (skip == Skip::Nothing, most - wrote.started);
        while (batch.len() as u64) < most {
            let Some(page) = self.index.next_tagged(rest.clone(), Tag::Dirty) else {
                rest.start = rest.end;
                return Gathered::All;
            };
            rest.start = page;
            if skip == Skip::BusyAndFailed && self.index.is_tagged(page, Tag::Alone) {
                rest.start = page + 1;
                continue;
            }
            if batch.len() >= BATCH
                || batch.len() == batch.capacity()
                    && batch.try_reserve_exact(BATCH.saturating_sub(batch.len())).is_err()
            {
                return Gathered::Batch;
            }
            match self.begin_writeback(page) {
                Begun::Started(pin) => batch.push((page, pin)),
                Begun::Clean => {}
                Begun::Again if wait => continue,
                Begun::Busy(pin) if wait => return Gathered::Busy(pin),
                Begun::Full(full) if wait => return Gathered::Full(full),
                Begun::Forbidden if wait => return Gathered::Forbidden,
                Begun::Again | Begun::Busy(_) | Begun::Forbidden | Begun::Full(_) => {}
            }
            rest.start = page + 1;
        }
        Gathered::All
    }

    /// Returns whether pages whose write has failed are left to themselves for a moment ([`Failures::pauses`]). A caller that starts
    /// several writes asks once, so that each page that is dirty gets its try.
    pub(crate) fn pauses(&self) -> bool {
        self.failures.pauses(|| self.engine.host().clock().now_ns())
            && !mutant!("failed_writes_without_pause")
    }

    /// Changes a page's state from dirty to under writeback.
    #[inline(never)]
    fn begin_writeback(&self, page: u64) -> Begun<H> {
        // Checked first without a pin: dropping a pin wakes all that wait here, this thread too, and they would look
        // again as long as the page is forbidden.
        if !mutant!("sync_passes_a_refresh") && self.is_forbidden(page) {
            return Begun::Forbidden;
        }
        let frame = match self.find(page, Reference::Pin) {
            Ok(Some(frame)) => frame,
            Ok(None) => return self.begin_without_page(page),
            Err(full) => return Begun::Full(full),
        };
        let lock = match Pin::new(&self.engine, frame).try_lock() {
            Ok(lock) => lock,
            Err(pin) => return Begun::Busy(pin),
        };
        if lock.0.is_writeback() {
            return Begun::Busy(lock.unlock());
        }
        // Checked with the lock held: a cut lowers the length first, and then locks each page.
        if page >= self.pages() {
            return Begun::Clean;
        }
        if !self.has_in_index(page, frame) {
            drop(lock);
            return self.begin_without_page(page);
        }
        // Checked again with the lock held: `Forbidden::begin` locks each page after it has forbidden transfers.
        if !mutant!("resize_under_transfers") && self.is_forbidden(page) {
            return Begun::Forbidden;
        }
        self.tag_writing(page);
        self.untag_dirty(page);
        if self.engine.folio(frame).begin_writeback() {
            return Begun::Started(lock.unlock());
        }
        self.untag_writing(page);
        Begun::Clean
    }

    /// Begins the writeback of a page that was not in memory. If it is being read anew, it returns to the index if a
    /// store has made it dirty (refresh.rs). Transfers were forbidden before it was taken out, and this call sees that.
    fn begin_without_page(&self, page: u64) -> Begun<H> {
        if !mutant!("sync_passes_a_refresh") && self.is_forbidden(page) {
            return Begun::Forbidden;
        }
        self.untag_dirty(page);
        // It may have been attached, and become dirty, since the lookup.
        let word = self.index.get(page).map_or(0, |word| word.load(Ordering::Acquire));
        if frame_of(word).is_none() {
            return Begun::Clean;
        }
        self.tag_dirty(page);
        Begun::Again
    }

    /// Takes the write rights of the batch's pages, and then submits them and takes them out of the batch. Consecutive pages are one
    /// transfer.
    fn submit_batch(&self, batch: &mut Batch<H>) {
        let (Some((first, _)), Some((last, _)), Some(store)) = (batch.first(), batch.last(), &self.store)
        else {
            return;
        };
        let pages = *first..*last + 1;
        // Partners: the fence after the bit in page work, and that of `FileMappings::note_store`.
        full_fence();
        if !mutant!("writeback_keeps_rights") {
            self.protect_everywhere(pages, batch);
        }
        self.submit_runs(batch, store.max_pages().clamp(1, MAX_PAGES));
    }

    /// Submits the write of pages whose write rights are gone, up to `most` consecutive ones as one transfer.
    #[inline(never)]
    fn submit_runs(&self, batch: &mut Batch<H>, most: usize) {
        while let [(first, ref pin), ..] = batch[..] {
            let mut pins = Pins::new();
            // A pinned page may be written at any time: the store gets a copy, and the page stays dirty. Checked once,
            // because pins for reading come and go meanwhile. A pin for writing cannot come, since no entry has the
            // right.
            let is_copied = self.engine.folio(pin.frame()).is_pinned_for_io();
            let count = if is_copied { 1 } else { self.run_length(batch, most) };
            let count = if pins.try_reserve_exact(count).is_ok() { count } else { 1 };
            pins.extend(batch.drain(..count).map(|(_, pin)| pin));
            self.submit_write(first, pins, is_copied);
        }
    }

    /// Takes the write right of the pages of `batch`, which lie within `pages`, from every space. When it returns, no processor
    /// stores into them. Not inlined, so that the list of stale parts is off the stack when the bytes are read.
    ///
    /// A page between them may be in another thread's batch. It keeps its right: that thread would find no right to take, and
    /// would not wait for processors that still use it.
    #[inline(never)]
    fn protect_everywhere(&self, pages: Range<u64>, batch: &Batch<H>) {
        let is_ours = |frame| {
            let folio = self.engine.folio(frame);
            let place = batch.binary_search_by_key(&folio.index(), |(page, _)| *page);
            place.is_ok_and(|place| batch[place].1.frame() == frame)
                || mutant!("writeback_protects_others")
                    && folio.is_writeback()
                    && folio.is_page_of(self.home())
        };
        let mut stale = StaleBatch::open(&self.engine);
        let written = Written { pages, has: &is_ours };
        // Only spaces with a right to store. The pages were put under writeback before, and a fence was made.
        let may_store = |id| self.spaces.has_stored(id);
        self.each_space(&written.pages, may_store, |space, shown| {
            space.protect_pages_of(self.home(), &written, shown, &mut stale);
        });
        stale.finish();
    }

    /// Returns the number of `pages`, at most `most`, that are written as one transfer with the first.
    fn run_length(&self, pages: &[(u64, Pin<H>)], most: usize) -> usize {
        let first = pages[0].0;
        let follows = |(place, (page, pin)): &(u64, &(u64, Pin<H>))| {
            *page == first + place && !self.is_written_alone(*page, pin)
        };
        (0..).zip(&pages[..pages.len().min(most)]).take_while(follows).count().max(1)
    }

    fn is_written_alone(&self, page: u64, pin: &Pin<H>) -> bool {
        self.engine.folio(pin.frame()).is_pinned_for_io() || self.index.is_tagged(page, Tag::Alone)
    }

    /// Submits the write of consecutive pages from `first` on, or of a copy of that page if it is alone. No entry has
    /// the right to write them.
    #[inline(never)]
    fn submit_write(&self, first: u64, pins: Pins<H>, is_copied: bool) {
        let (engine, offset) = (&self.engine, first * PAGE_SIZE);
        let (Some(this), Some(store)) = (self.this.upgrade(), &self.store) else { return };
        let frames = engine.frames();
        // The length does not change this until the write has ended: see resize.rs.
        let inside = self.length().saturating_sub(offset).min(pins.len() as u64 * PAGE_SIZE) as usize;
        let tail = inside % PAGE_SIZE as usize;
        if tail != 0 {
            // As in Linux's file systems: bytes after the end are not kept, and are zeros from now on.
            let last = pins[inside / PAGE_SIZE as usize].frame();
            frames.write(last, tail, &[0; PAGE_SIZE as usize][tail..]);
        }
        // From now on the store may have the bytes, and a failed flush may lose them.
        let flushes = self.failed_flushes.load(Ordering::Acquire);
        engine.counters().add(Counter::IoWrites, pins.len() as u64);
        engine.cache.transfers.fetch_add(1, Ordering::Relaxed);
        let mut places = Places::new();
        let (mut moving, mut has_memory) = (None, places.try_reserve_exact(pins.len()).is_ok());
        if is_copied {
            if let Ok(mut copy) = try_box([0; PAGE_SIZE as usize]) {
                frames.read(pins[0].frame(), 0, &mut copy[..]);
                let copy = Moving(NonNull::from(Box::leak(copy)));
                places.push(Place { memory: copy.0.cast(), frame: None });
                moving = Some(copy);
            } else {
                has_memory = false;
            }
        } else if has_memory {
            places.extend(pins.iter().map(|pin| self.place(pin.frame())));
        }
        let write = Write { inside, stays_dirty: moving.is_some(), flushes };
        let end = move |result| {
            drop(moving);
            this.end_write(first, pins, write, result);
        };
        // A write that finds no memory fails like any other: its pages stay dirty.
        let completion = match if has_memory { try_box_or_back(end) } else { Err(end) } {
            Ok(completion) => completion,
            Err(end) => return end(Err(no_memory(offset))),
        };
        // SAFETY: the pins keep the frames, no two of which are the same, until the completion. No thread stores into
        // them: no entry has the write right, and none gets it while the folio is under writeback; a write by handle
        // waits for the same. A copy belongs to the completion.
        let transfer = unsafe { Transfer::of_places(Direction::Write, offset, places, completion) };
        store.submit(transfer);
    }

    /// Ends the write of the pages from `first` on. Called on any thread.
    fn end_write(&self, first: u64, pins: Pins<H>, write: Write, result: Result<usize, StoreError>) {
        let (engine, offset) = (&self.engine, first * PAGE_SIZE);
        engine.assert_may_sleep("the end of a write");
        let outcome = Outcome::new(offset, pins.len(), result);
        let moved = outcome.moved();
        let is_short = moved < write.inside;
        let failed =
            outcome.error().or(is_short.then(|| StoreError::PastEnd { offset: offset + moved as u64 }));
        let written = if failed.is_some() { moved / PAGE_SIZE as usize } else { pins.len() };
        let pages = first..first + pins.len() as u64;
        for page in first..first + written as u64 {
            self.index.tag(page, Tag::Written);
            if self.index.is_tagged(page, Tag::Alone) {
                self.index.untag(page, Tag::Alone);
            }
        }
        for page in first + written as u64..pages.end {
            self.index.tag(page, Tag::Alone);
        }
        // Partner: the fence of a flush that has failed.
        full_fence();
        let is_lost =
            self.failed_flushes.load(Ordering::Relaxed) != write.flushes && !mutant!("late_ends_are_clean");
        // Held until the last page is dirty again: see the module.
        let errors = (failed.is_some() || is_lost).then(|| {
            let mut errors = self.errors.lock();
            if let Some(error) = failed {
                engine.counters().add(Counter::WritebackErrors, 1);
                // Memory for the transfer may be there at once.
                if error.errno() != errno::ENOMEM {
                    self.failures.note(engine.host().clock().now_ns());
                }
                errors.record(error);
            }
            errors.left_behind += u64::from(is_lost || pins.len() - written > 1);
            errors
        });
        for (page, pin) in pages.zip(&pins) {
            let has_failed = page >= first + written as u64 && !mutant!("failed_write_is_clean");
            let dirty = has_failed || write.stays_dirty || is_lost;
            if dirty {
                self.tag_dirty(page);
            }
            self.untag_writing(page);
            engine.folio(pin.frame()).end_writeback(dirty);
        }
        drop(errors);
        engine.cache.transfers.fetch_sub(1, Ordering::Relaxed);
        pins.iter().for_each(|pin| engine.wake_all(pin.key()));
        if failed.is_none() {
            self.failures.end();
            engine.go_on_writing();
        }
    }
}

/// The pages of a batch that are under writeback and not submitted. When it is dropped, pages are left only if the
/// store has panicked. Then their writes have failed.
struct Unsubmitted<'a, H: Host> {
    file: &'a File<H>,
    batch: Batch<H>,
}

impl<H: Host> Drop for Unsubmitted<'_, H> {
    fn drop(&mut self) {
        let file = self.file;
        for (page, pin) in self.batch.drain(..) {
            let flushes = file.failed_flushes.load(Ordering::Acquire);
            file.engine.cache.transfers.fetch_add(1, Ordering::Relaxed);
            let write = Write { inside: PAGE_SIZE as usize, stays_dirty: false, flushes };
            let error = StoreError::Io { offset: page * PAGE_SIZE, errno: errno::EIO };
            file.end_write(page, Pins::from_buf([pin]), write, Err(error));
        }
    }
}

/// A copy of a page that is being written.
struct Moving(NonNull<[u8; PAGE_SIZE as usize]>);

// SAFETY: the pointer came out of a Box and is this value's alone.
unsafe impl Send for Moving {}

impl Drop for Moving {
    fn drop(&mut self) {
        // SAFETY: it came out of a Box, once, and the transfer that read it has ended.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
