//! Reads ahead, in runs; and the check whether a page is in memory.

use super::word::slot_of;
use super::{File, NEWCOMER, SEEN, frame_of, index, word_of};
use crate::host::{Frame, GroupId, Host};
use crate::stats::Counter;
use crate::store::{Completion, MAX_PAGES, Place, Places, Store};
use crate::sync::atomic::Ordering;
use crate::sync::{fence_after_rmw, try_box};
use core::ops::Range;
use smallvec::SmallVec;

fn frames_of(places: &[Place]) -> impl Iterator<Item = Frame> {
    places.iter().filter_map(|place| place.frame)
}

impl<H: Host> File<H> {
    /// Starts the reads of those of `pages` that are not in memory, without waiting for them. Consecutive pages are one
    /// transfer, if the store takes such. `group` pays for them. `pages` must not contain a page that the caller is about to
    /// wait for: it would wait for the whole run.
    ///
    /// Returns `false` if it stopped early: a page lies past the end, or making room would need a wait.
    pub(crate) fn start_reads(&self, group: GroupId, pages: Range<u64>) -> bool {
        let Some(store) = &self.store else { return self.start_swap_ins(group, pages) };
        let most = store.max_pages().clamp(1, MAX_PAGES) as u64;
        let end = pages.end.min(self.pages()).min(index::PAGES);
        let mut at = pages.start;
        while let Some(first) = (at..end).find(|page| !self.is_attached_or_read(*page)) {
            let most = end.min(first + most);
            let run = first..(first + 1..most).find(|page| self.is_attached_or_read(*page)).unwrap_or(most);
            let Some(count) = self.start_run(group, run) else { return false };
            at = first + count;
        }
        end == pages.end
    }

    fn is_attached_or_read(&self, page: u64) -> bool {
        self.index.get(page).is_some_and(|word| frame_of(word.load(Ordering::Acquire)).is_some())
    }

    /// Starts the read of `pages`, or of the first of them, and returns their number. Returns `None` if there is no
    /// room, or if no transfer of them may begin.
    ///
    /// All steps that may wait come first. From the first attached page to the submission nothing waits: other threads
    /// may wait for these pages, and hold something that this thread would wait for.
    fn start_run(&self, group: GroupId, pages: Range<u64>) -> Option<u64> {
        let (engine, first) = (&self.engine, pages.start);
        // Counted first, so that a thread that finds the cache full because of this waits, as for any transfer.
        engine.cache.transfers.fetch_add(1, Ordering::Relaxed);
        let mut places = self.places_ahead(group, pages.end - first);
        let has_room = !places.is_empty();
        self.attach_ahead(first, &mut places);
        if places.is_empty() {
            self.end_transfer();
            // If another thread reads the page now, that is not an error.
            return (has_room && self.is_attached_or_read(first)).then_some(0);
        }
        let count = places.len() as u64;
        engine.counters().add(Counter::IoReads, count);
        let Some(completion) = self.completion_ahead(first, &places) else {
            (first..).zip(frames_of(&places)).for_each(|(page, frame)| self.withdraw(page, frame));
            self.end_transfer();
            return None;
        };
        self.submit_reads(first, places, completion);
        Some(count)
    }

    /// Takes frames for up to `count` pages to read ahead, and counts them as cached. May write dirty pages back.
    fn places_ahead(&self, group: GroupId, count: u64) -> Places {
        let (engine, account) = (&self.engine, &self.engine.cache);
        let (limit, pins) = (engine.limits().cached_pages, account.pins.load(Ordering::Relaxed));
        let mut places = Places::new();
        // Waiters for memory come first.
        if !account.queue.is_first(NEWCOMER) || pins != 0 && pins >= limit / 2 {
            return places;
        }
        let count = if places.try_reserve_exact(count as usize).is_ok() { count } else { 1 };
        self.make_room_in_cache(count);
        // All at once, so that several threads together stay below the limit.
        let before = account.count_cached(count);
        let room = limit.saturating_sub(before).min(count);
        places.extend((0..room).map_while(|_| engine.allocate(group).ok().map(|frame| self.place(frame))));
        account.uncount_cached(count - places.len() as u64);
        places
    }

    /// Attaches the frames of `places` as the pages from `first` on, being read. Stops at the first page that cannot be
    /// read now, and frees the other frames.
    fn attach_ahead(&self, first: u64, places: &mut Places) {
        let attached =
            (first..).zip(frames_of(places)).take_while(|(page, frame)| self.attach(*page, *frame));
        let attached = attached.count();
        // The frame that was refused is freed already.
        let others = places.get(attached + 1..).unwrap_or_default();
        frames_of(others).for_each(|frame| self.engine.free_frame(frame));
        self.engine.cache.uncount_cached(others.len() as u64);
        places.truncate(attached);
    }

    /// Attaches `frame`, which is counted as cached, as page `page`, being read. Returns `false` if the page cannot be
    /// read now. Then the frame is free, or a thread that has looked it up frees it.
    fn attach(&self, page: u64, frame: Frame) -> bool {
        let engine = &self.engine;
        let free = || {
            engine.cache.uncount_cached(1);
            engine.free_frame(frame);
        };
        let Ok(word) = self.index.make(page) else {
            free();
            return false;
        };
        let folio = engine.folio(frame);
        folio.begin_reading(self.home(), page, 1);
        let old = word.load(Ordering::Acquire);
        let is_attached = frame_of(old).is_none()
            && word.compare_exchange(old, word_of(frame), Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !is_attached {
            if folio.cancel_reading(1) {
                free();
            } else {
                engine.cache.uncount_cached(1);
            }
            return false;
        }
        // As in `read`.
        fence_after_rmw();
        if page >= self.pages() || self.is_forbidden(page) {
            self.withdraw(page, frame);
            return false;
        }
        if old & SEEN != 0 {
            engine.counters().add(Counter::IoRereads, 1);
        }
        true
    }

    /// Makes the completion of a run. Returns `None` if there is no memory for it.
    fn completion_ahead(&self, first: u64, places: &[Place]) -> Option<Completion> {
        let this = self.this.upgrade()?;
        let mut frames = SmallVec::<[Frame; 1]>::new();
        frames.try_reserve_exact(places.len()).ok()?;
        frames.extend(frames_of(places));
        Some(try_box(move |result| this.end_reads(first, &frames, result)).ok()?)
    }

    /// Returns whether `page` is in memory and read, or is in a slot and its bytes are in memory too. The answer may be out of date
    /// when it is returned.
    pub(crate) fn is_cached(&self, page: u64) -> bool {
        let Some(word) = self.index.get(page) else { return false };
        let seen = word.load(Ordering::Acquire);
        // This is the page's state only if the word has not changed since.
        let is_uptodate = match slot_of(seen) {
            Some((slot, _)) => self.engine.is_slot_in_memory(slot),
            None => frame_of(seen).is_some_and(|frame| self.engine.folio(frame).is_uptodate()),
        };
        is_uptodate && word.load(Ordering::Acquire) == seen
    }
}
