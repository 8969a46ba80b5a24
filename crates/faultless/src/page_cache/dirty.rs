//! Dirty pages of files: their number, its limits, and the work that keeps the number below the limits.
//!
//! ```text
//! dirty pages:   0 ───────── background share ───────── limit ─────►
//!                            the worker writes          and threads that make pages dirty are slowed down
//! ```
//! A page counts as long as its file's index has it tagged: as dirty, or as being written. So the counts need no look at folios, and are
//! exact when no thread is at work. A page may be tagged and clean, until writeback comes to it.
//!
//! A thread that makes a page dirty counts it in its own slot. From time to time it adds this count to the one that all threads share,
//! and looks at the limits. If it has to call the worker, or to sleep, it does so at its next fault, or after its write, when it holds
//! nothing: see `Engine::pay_debts` and `Engine::pay_after_write`.
//!
//! The counts and limits are those of the whole engine. The pages of a group of spaces are counted when someone asks.

use super::index::{self, Tag};
use super::writeback::Wrote;
use super::{File, frame_of};
use crate::engine::{Dying, Engine};
use crate::host::{Clock, GroupId, Host, OutOfMemory, Park, Slots};
use crate::limit::Debts;
use crate::stats::Counter;
use crate::sync::plain::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Mutex, Shared, Weak};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The greatest number of pages that a thread counts in its slot.
const MOST_UNCOUNTED: u64 = 32;
/// The number of pages of a file that are written before those of the next file.
const CHUNK: u64 = 1024;
/// The number of pages that a thread over the limit writes itself, if there is no worker.
const FEW: u64 = 64;
/// The number of pages being written below which the worker starts more writes, however low the limits are.
const WRITING: u64 = 64;
/// The number of times that reclaim asks the worker for writes, before it starts them itself.
const PATIENCE: u32 = 128;
/// The longest sleep of a thread over the limit, in nanoseconds. So a device that is stuck, or that refuses all writes, slows threads
/// down and does not stop them.
const LONGEST_SLEEP: u64 = 10_000_000;

/// The dirty pages of an engine.
pub(crate) struct DirtyPages<H: Host> {
    /// The number of pages above which the worker writes. Immutable.
    background: u64,
    /// The number of pages above which threads are slowed down. Immutable.
    limit: u64,
    /// The number of pages tagged Dirty, without those that only slots count; wraps. Atomic.
    dirty: AtomicU64,
    /// The number of pages tagged Writing. Atomic.
    writing: AtomicU64,
    /// The number of files with pages that reclaim has handed over. Atomic; written under the lock of `files`.
    wanted: AtomicU64,
    /// The number of times that reclaim has asked the worker since the worker took a file last. Atomic.
    asked: AtomicU32,
    files: Mutex<Files<H>>,
}

/// The files that may have dirty pages: those with a store, opened for writing. Protected by their lock.
struct Files<H: Host> {
    places: Vec<Place<H>>,
    /// One more than the first free place; 0 for none.
    free: usize,
    /// The place of the file that is written next.
    turn: usize,
}

enum Place<H: Host> {
    /// A file, and whether reclaim has handed pages of it over since the worker took it.
    File(Weak<File<H>>, bool),
    /// A free place, with the next one as in [`Files::free`].
    Free(usize),
}

/// The pages that the thread of a slot has made dirty, and has not added to the common count. Written by the slot's thread alone.
#[derive(Debug, Default)]
pub(crate) struct Dirtied {
    pages: AtomicU32,
    /// The number of pages at which they are added.
    most: AtomicU32,
}

impl Dirtied {
    /// Notes a page. Returns the number of pages if they are to be added now.
    fn note(&self) -> Option<u64> {
        let pages = self.pages.load(Ordering::Relaxed) + 1;
        let is_due = pages >= self.most.load(Ordering::Relaxed);
        self.pages.store(if is_due { 0 } else { pages }, Ordering::Relaxed);
        is_due.then_some(u64::from(pages))
    }
}

/// Returns a count that may have wrapped below zero, since slots count pages late.
fn not_below_zero(count: u64) -> u64 {
    (count as i64).max(0) as u64
}

impl<H: Host> DirtyPages<H> {
    /// Makes the counts of an engine with these limits, in pages.
    pub fn new((background, limit): (u64, u64)) -> Self {
        let files = Files { places: Vec::new(), free: 0, turn: 0 };
        let (dirty, writing, wanted, asked) = Default::default();
        Self { background, limit, dirty, writing, wanted, asked, files: Mutex::new(files) }
    }

    /// Returns the number of dirty pages, and of those that are being written.
    pub fn counts(&self) -> (u64, u64) {
        let count = |count: &AtomicU64| not_below_zero(count.load(Ordering::Relaxed));
        (count(&self.dirty), count(&self.writing))
    }

    fn is_over_limit(&self) -> bool {
        let (dirty, writing) = self.counts();
        dirty.saturating_add(writing) > self.limit
    }

    /// Returns the number of pages that the worker is to write.
    fn excess(&self) -> u64 {
        self.counts().0.saturating_sub(self.background)
    }

    fn most_writing(&self) -> u64 {
        self.background.max(WRITING)
    }

    /// Returns whether reclaim has handed over pages that no worker has begun to write.
    fn are_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != 0
    }
}

impl<H: Host> Files<H> {
    /// Takes the place of a file. Returns it, and the number of bytes by which the list has grown.
    fn add(&mut self, file: Weak<File<H>>) -> Result<(usize, usize), OutOfMemory> {
        let before = self.places.capacity();
        if let Some(place) = self.free.checked_sub(1)
            && let Some(Place::Free(next)) = self.places.get(place)
        {
            self.free = *next;
            self.places[place] = Place::File(file, false);
            return Ok((place, 0));
        }
        self.places.try_reserve(1).map_err(|_| OutOfMemory)?;
        self.places.push(Place::File(file, false));
        Ok((self.places.len() - 1, (self.places.capacity() - before) * size_of::<Place<H>>()))
    }

    fn remove(&mut self, place: usize) -> Option<Place<H>> {
        let file = core::mem::replace(self.places.get_mut(place)?, Place::Free(self.free));
        self.free = place + 1;
        Some(file)
    }

    /// Returns the next file after `turn` that is not being dropped. Looks at up to `most` places, and counts these down.
    fn next(&mut self, most: &mut usize) -> Option<Shared<File<H>>> {
        while *most > 0 {
            *most -= 1;
            self.turn = if self.turn + 1 < self.places.len() { self.turn + 1 } else { 0 };
            if let Some(Place::File(file, _)) = self.places.get(self.turn)
                && let Some(file) = file.upgrade()
            {
                return Some(file);
            }
        }
        None
    }

    /// Takes a file that reclaim wants written, if it is not being dropped.
    fn take_wanted(&mut self) -> Option<Option<Shared<File<H>>>> {
        self.places.iter_mut().find_map(|place| match place {
            Place::File(file, is_wanted @ true) => {
                *is_wanted = false;
                Some(file.upgrade())
            }
            _ => None,
        })
    }
}

impl<H: Host> File<H> {
    /// Lists the file among those that may have dirty pages.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn list_as_writable(&self) -> Result<(), OutOfMemory> {
        let (place, grown) = self.engine.lock(&self.engine.dirty.files).add(self.this.clone())?;
        self.engine.charge(grown);
        self.listed_at.store(place as u64 + 1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the file off that list, and its pages out of the counts. Called when it is dropped.
    pub(super) fn unlist_as_writable(&self) {
        if let Some(place) = self.listed_at.load(Ordering::Relaxed).checked_sub(1) {
            let dirty = &self.engine.dirty;
            let mut files = self.engine.lock(&dirty.files);
            let file = files.remove(place as usize);
            if let Some(Place::File(_, true)) = file {
                dirty.wanted.fetch_sub(1, Ordering::Relaxed);
            }
            drop(files);
            drop(file);
        }
        let mut rest = 0..index::PAGES;
        while let Some(page) = self.index.next_tagged(rest.clone(), Tag::Dirty) {
            self.untag_dirty(page);
            rest.start = page + 1;
        }
    }

    /// Hands page `page`, which is dirty, to the background worker. The worker writes it, and dirty pages after it. The caller calls
    /// the worker afterwards. Returns false if the file is not listed.
    pub(crate) fn hand_over(&self, page: u64) -> bool {
        let engine = &*self.engine;
        let Some(place) = self.listed_at.load(Ordering::Relaxed).checked_sub(1) else { return false };
        let mut files = engine.lock(&engine.dirty.files);
        let Some(Place::File(_, is_wanted)) = files.places.get_mut(place as usize) else { return false };
        if !core::mem::replace(is_wanted, true) {
            engine.dirty.wanted.fetch_add(1, Ordering::Relaxed);
            self.written_to.store(page, Ordering::Relaxed);
        }
        true
    }

    /// Returns the number of pages with `tag` of the groups that `wanted` accepts.
    fn count_tagged(&self, tag: Tag, wanted: impl Fn(GroupId) -> bool) -> u64 {
        let (mut rest, mut count) = (0..index::PAGES, 0);
        while let Some(page) = self.index.next_tagged(rest.clone(), tag) {
            let word = self.index.get(page).map_or(0, |word| word.load(Ordering::Relaxed));
            // The frame may be another page's by now.
            let group = frame_of(word).map(|frame| self.engine.folio(frame).group());
            count += u64::from(group.is_some_and(&wanted));
            rest.start = page + 1;
        }
        count
    }

    /// Tags a page as dirty, and counts it.
    pub(super) fn tag_dirty(&self, page: u64) {
        if self.index.tag(page, Tag::Dirty) {
            self.engine.dirty.dirty.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tags a page as dirty, and counts it for the calling thread, which makes it dirty.
    pub(super) fn tag_dirty_by_me(&self, page: u64) {
        if self.index.tag(page, Tag::Dirty) {
            self.engine.note_dirtied();
        }
    }

    pub(super) fn untag_dirty(&self, page: u64) {
        if self.index.untag(page, Tag::Dirty) && !mutant!("cleaned_pages_count") {
            self.engine.dirty.dirty.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn tag_writing(&self, page: u64) {
        if self.index.tag(page, Tag::Writing) {
            self.engine.dirty.writing.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn untag_writing(&self, page: u64) {
        if self.index.untag(page, Tag::Writing) {
            self.engine.dirty.writing.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Starts to write up to `most` dirty pages, in ascending order from where the last call has stopped, and around. Returns the
    /// number of pages whose write was started. Waits for no I/O.
    fn write_on(&self, most: u64) -> u64 {
        let from = self.written_to.load(Ordering::Relaxed);
        let pauses = self.pauses();
        let Wrote { mut started, mut next, .. } = self.write_some(from..index::PAGES, most, pauses);
        if started < most && from != 0 {
            let around = self.write_some(0..from, most - started, pauses);
            (started, next) = (started + around.started, around.next);
        }
        self.written_to.store(if next == index::PAGES { 0 } else { next }, Ordering::Relaxed);
        started
    }
}

impl<H: Host> Engine<H> {
    /// Returns the number of dirty pages of files with a store, with those that are being written.
    ///
    /// [`Limits::dirty`](crate::Limits::dirty) limits it. The call looks at the slot of each thread, and waits for nothing. The number
    /// is a snapshot if other threads make pages dirty or write them.
    pub fn dirty_pages(&self) -> u64 {
        let counts = &self.dirty;
        let counted =
            counts.dirty.load(Ordering::Relaxed).wrapping_add(counts.writing.load(Ordering::Relaxed));
        let uncounted: u64 = self
            .sections()
            .each_dirtied()
            .map(|dirtied| u64::from(dirtied.pages.load(Ordering::Relaxed)))
            .sum();
        not_below_zero(counted.wrapping_add(uncounted))
    }

    /// Returns the number of dirty pages of the groups that `wanted` accepts, and of those that are being written. Looks at all such pages
    /// of the engine, so that no fault has to count for its group. A snapshot, if other threads make pages dirty or write them.
    pub(crate) fn dirty_pages_of(&self, wanted: impl Fn(GroupId) -> bool) -> (u64, u64) {
        let mut counts = (0, 0);
        let mut at = 0;
        loop {
            let file = {
                let files = self.lock(&self.dirty.files);
                let is_file = |place: &Place<H>| matches!(place, Place::File(..));
                let Some(found) = files.places.iter().skip(at).position(is_file) else { break };
                at += found + 1;
                match &files.places[at - 1] {
                    Place::File(file, _) => file.upgrade(),
                    Place::Free(_) => None,
                }
            };
            if let Some(file) = file {
                counts.0 += file.count_tagged(Tag::Dirty, &wanted);
                counts.1 += file.count_tagged(Tag::Writing, &wanted);
            }
        }
        counts
    }

    /// Counts a page that this thread has made dirty. If that is due, adds the thread's pages to the common count, and notes the work
    /// that the thread has to do at its next fault, or after its write.
    fn note_dirtied(&self) {
        let (slot, _guard) = self.host().slots().pin();
        let dirtied = self.sections().dirtied(slot);
        let Some(pages) = dirtied.note() else { return };
        let counts = &self.dirty;
        counts.dirty.fetch_add(pages, Ordering::Relaxed);
        let (dirty, _) = counts.counts();
        let mut debts = Debts::empty();
        debts.set(Debts::CALL, dirty > counts.background && !mutant!("dirty_pages_not_noted"));
        debts.set(Debts::DIRTY, counts.is_over_limit());
        if !debts.is_empty() {
            self.sections().stock(slot).owe(debts);
        }
        // All slots together count up to half of the rest late.
        let rest = counts.background.saturating_sub(dirty);
        let most = (rest / (2 * self.sections().made_slots() as u64)).clamp(1, MOST_UNCOUNTED);
        dirtied.most.store(most as u32, Ordering::Relaxed);
    }

    /// Does the work that this thread has put off while it made pages dirty by a write by handle. The caller holds nothing.
    pub(super) fn pay_after_write(self: &Arc<Self>) {
        let debts = {
            let (slot, _guard) = self.host().slots().pin();
            self.sections().stock(slot).take_debts(Debts::CALL | Debts::DIRTY)
        };
        if debts.contains(Debts::CALL) {
            self.wake_background();
        }
        if debts.contains(Debts::DIRTY) {
            self.pay_for_dirty(None);
        }
    }

    /// Sleeps while there are more dirty pages than the limit, 10 ms at most. Without a worker, starts some writes first. The end of the
    /// space that `dying` belongs to ends the sleep. The caller holds nothing.
    pub(crate) fn pay_for_dirty(self: &Arc<Self>, dying: Option<&Dying>) {
        self.assert_holds_nothing("a thread over the dirty limit");
        let is_over = || self.dirty.is_over_limit() && !mutant!("dirty_without_limit");
        if !is_over() {
            return;
        }
        self.counters().add(Counter::DirtyThrottled, 1);
        if !self.background.has_worker() {
            self.write_next_files(FEW);
        }
        let (start, mut look) = (self.host().clock().now_ns(), 0);
        let has_time = || self.host().clock().now_ns().saturating_sub(start) < LONGEST_SLEEP;
        while is_over() && has_time() && !dying.is_some_and(Dying::is_set) {
            self.wait_for_memory(look);
            look += 1;
        }
        self.end_wait(Counter::DirtyWait, start);
    }

    /// Starts to write the pages that reclaim has handed over. Then, if there are more dirty pages than the background share, starts to
    /// write dirty pages, in the order of each file, file by file. For the worker.
    pub(crate) fn write_dirty_pages(&self, ends: &impl Fn() -> bool) {
        while self.dirty.are_wanted() && !ends() && !mutant!("handed_pages_stay") {
            let mut files = self.lock(&self.dirty.files);
            let Some(wanted) = files.take_wanted() else { break };
            self.dirty.wanted.fetch_sub(1, Ordering::Relaxed);
            self.dirty.asked.store(0, Ordering::Relaxed);
            drop(files);
            if let Some(file) = wanted {
                file.write_on(CHUNK);
            }
        }
        // Each page once: one whose write fails at once is dirty again.
        let mut left = self.dirty.excess();
        while left > 0 && self.may_write_more() && !ends() {
            let started = self.write_next_files(left.min(CHUNK));
            if started == 0 {
                break;
            }
            left = left.saturating_sub(started);
        }
    }

    /// Returns whether a thread that makes room is to hand dirty pages over to the worker. Otherwise it starts the writes itself: there
    /// is no worker, the worker is writing at the moment, or it was asked [`PATIENCE`] times and has not come.
    pub(crate) fn ask_worker(&self) -> bool {
        let takes_over = self.background.takes_over();
        takes_over
            && (self.dirty.asked.fetch_add(1, Ordering::Relaxed) < PATIENCE
                || mutant!("waits_for_the_worker"))
    }

    /// Returns whether the worker is about to write pages that reclaim has handed to it.
    pub(crate) fn awaits_worker(&self) -> bool {
        self.dirty.are_wanted() && self.background.has_worker()
    }

    /// Returns whether a thread that makes room looks again, since the worker is about to write pages, and does not wait in the queue for
    /// memory yet. `look` counts its looks. A worker that is held up brings no event for the queue. When these looks are over, the
    /// thread has started the writes itself.
    pub(crate) fn looks_for_worker(&self, look: u32) -> bool {
        look < 2 * PATIENCE && self.awaits_worker()
    }

    fn may_write_more(&self) -> bool {
        self.dirty.counts().1 < self.dirty.most_writing()
    }

    /// Starts to write up to `most` dirty pages, of the files whose turn it is. Returns the number of pages.
    fn write_next_files(&self, most: u64) -> u64 {
        let (mut started, mut places) = (0, self.lock(&self.dirty.files).places.len());
        while started < most {
            let file = self.lock(&self.dirty.files).next(&mut places);
            let Some(file) = file else { break };
            started += file.write_on(most - started);
        }
        started
    }

    /// Calls the worker if it is to write more pages. Called when a write has succeeded.
    pub(super) fn go_on_writing(&self) {
        if self.dirty.excess() != 0 && self.may_write_more() {
            self.wake_background();
        }
    }
}
