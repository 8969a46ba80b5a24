//! Pages of files without a store in swap space. The word of the index names the slot instead of the frame, and is the one use of the
//! slot: no entry names it. Entries that mapped the page are GONE, and a fault asks the file.
//!
//! ```text
//!  reclaim     the entries become GONE; one invalidation; then under the removal lock, with no other reference to the folio:
//!              the word names the slot, and the folio is the slot's. It is written, and freed, as an anonymous one
//!  an access   pins the folio of the slot, or reads it into a new one. Then under the removal lock, if no write of it is under way:
//!              the folio is the file's, and leaves the slot; the word names the frame; the slot's use goes
//!  a cut       under the removal lock: the word names nothing; then the slot's use goes
//! ```
//! So a page that has a frame for the file has no slot, and may be stored into. Under the removal lock nothing waits: transfers begin
//! and end without it.

use super::account::Miss;
use super::word::{SEEN, frame_of, is_absent, slot_of, word_of, word_of_slot};
use super::{File, FileError, Pin};
use crate::frame::Reference;
use crate::host::{Frame, FrameUse, GroupId, Host, Slot};
use crate::swap::{Cached, MOST_AHEAD, SwapIn};
use crate::sync::atomic::Ordering;
use core::ops::Range;
use smallvec::SmallVec;

impl<H: Host> File<H> {
    /// Returns how many of `pages` are in slots. Waits for nothing.
    pub(crate) fn pages_in_slots(&self, pages: Range<u64>) -> u64 {
        let mut count = 0;
        if self.is_in_memory() && self.engine.swaps() {
            self.index.each(pages, &mut |_, word| {
                count += u64::from(slot_of(word.load(Ordering::Relaxed)).is_some());
            });
        }
        count
    }

    /// Makes the page in `frame` that of a slot. The caller has isolated and pinned its folio, no entry maps it, and no processor has
    /// an old translation. Returns false if the page is in use or detached, or if there is no slot; nothing has changed then. The caller
    /// is in no section, and has no lock.
    pub(crate) fn move_to_slot(&self, frame: Frame) -> bool {
        let folio = self.engine.folio(frame);
        self.engine.attach_file_page(frame, |slot, generation| {
            let _guard = self.removal.lock();
            let Some(word) = self.index.get(folio.index()) else { return false };
            let publish = || word.store(word_of_slot(slot, generation), Ordering::Release);
            word.load(Ordering::Relaxed) == word_of(frame) && folio.leave_file(slot.get(), publish)
        })
    }

    /// Pins page `page` of a file without a store, as [`File::read`] does. Makes it of zeros if it is missing. Not inlined, so that its
    /// frame is off the stack while room for another file's page is made.
    #[inline(never)]
    pub(super) fn read_in_memory(&self, page: u64, group: GroupId) -> Result<(Pin<H>, bool), Miss> {
        let (engine, mut look) = (&self.engine, 0);
        loop {
            match self.make_page(page, Reference::Pin, || engine.take_frame(group, FrameUse::File)) {
                Ok(frame) => return Ok((Pin::new(engine, frame), false)),
                Err(Miss::InSlot) => {}
                Err(miss) => return Err(miss),
            }
            if let Some(found) = self.bring_back(page, group)? {
                return Ok(found);
            }
            // Another thread takes the page to a slot, or brings it back, at this moment.
            engine.pause_on_bit(look);
            look += 1;
        }
    }

    /// Pins the folio of page `page`, which was in a slot a moment ago, and makes it the file's if that can be. Starts its read if
    /// it is in no frame; then `group` pays for the frame. The second value tells whether this call has started the read. Returns `None`
    /// if the caller is to look again.
    ///
    /// If the pinned folio is not the file's yet, it is being read or written, or was a moment ago: the caller waits for that, and
    /// looks again.
    ///
    /// # Errors
    /// [`Miss::Lost`], [`Miss::NoFrame`], or [`Miss::OutOfMemory`].
    pub(super) fn bring_back(&self, page: u64, group: GroupId) -> Result<Option<(Pin<H>, bool)>, Miss> {
        let engine = &self.engine;
        let seen = self.index.get(page).map_or(0, |word| word.load(Ordering::Acquire));
        let Some((slot, generation)) = slot_of(seen) else { return Ok(None) };
        match engine.pin_cached(slot) {
            Cached::Busy => return Ok(None),
            Cached::Pinned(frame) => {
                let pin = Pin::new(engine, frame);
                let is_awaited = pin.is_reading() || pin.is_writeback();
                return Ok((self.join(page, frame) || is_awaited).then_some((pin, false)));
            }
            Cached::Absent => {}
        }
        // The slot may be another page's by now.
        let is_still = || self.index.get(page).is_some_and(|word| word.load(Ordering::Acquire) == seen);
        let lost = |error| if is_still() { Err(Miss::Lost(error)) } else { Ok(None) };
        if let Some(error) = engine.is_poisoned(slot) {
            return lost(error);
        }
        let before = engine.payer_and_shadow(slot);
        let frame = engine.take_frame(group, FrameUse::File).ok_or(Miss::NoFrame)?;
        match engine.begin_swap_in(slot, generation, frame, &[]) {
            SwapIn::Started => {
                engine.refaulted_of_file(frame, before);
                Ok(Some((Pin::new(engine, frame), true)))
            }
            // Another thread was faster.
            SwapIn::Lost | SwapIn::Gone => Ok(None),
            SwapIn::Poisoned(error) => lost(error),
            SwapIn::OutOfMemory => Err(Miss::OutOfMemory(None)),
        }
    }

    /// Starts the reads of those of `pages` that are in slots, without waiting for them. `group` pays for them. An access makes such a
    /// page the file's. Returns `false` if it stopped early, as [`File::start_reads`] does: making room would need a wait.
    pub(super) fn start_swap_ins(&self, group: GroupId, pages: Range<u64>) -> bool {
        let end = pages.end.min(self.pages()).min(super::index::PAGES);
        let mut rest = Some(pages.start..end).filter(|_| self.engine.swaps());
        while let Some(range) = rest.take() {
            let mut named = SmallVec::<[_; MOST_AHEAD as usize]>::new();
            let last = self.index.each_until(range, &mut |_, word| {
                named.extend(slot_of(word.load(Ordering::Acquire)));
                named.len() == named.inline_size()
            });
            if !self.engine.swap_in_ahead(group, &named) {
                return false;
            }
            rest = last.map(|last| last + 1..end);
        }
        end == pages.end
    }

    /// Makes the pinned folio of `frame` page `page` of the file, if the word of the page names the folio's slot, the page is up to date,
    /// and no write of it is under way. Returns whether it did. Waits for nothing.
    pub(crate) fn join(&self, page: u64, frame: Frame) -> bool {
        let (engine, folio) = (&self.engine, self.engine.folio(frame));
        let is_its_slot = |slot: Slot| folio.is_of_slot(slot) && engine.is_attached_to(frame, slot);
        let Some(word) = self.index.get(page) else { return false };
        let guard = self.removal.lock();
        // The word is a use of the slot. So while it names the slot, that is in this life, and so is its folio.
        let slot =
            slot_of(word.load(Ordering::Relaxed)).map(|(slot, _)| slot).filter(|slot| is_its_slot(*slot));
        let Some(slot) = slot else { return false };
        if !folio.join_file(self.home(), page) {
            return false;
        }
        word.store(word_of(frame), Ordering::Release);
        drop(guard);
        engine.leave_to_file(slot);
        true
    }

    /// Waits for the pinned folio of page `page`, whose read has succeeded, until it is the file's or has to be looked up again. Returns
    /// whether it is the file's. Always true for a file with a store.
    pub(super) fn wait_to_join(&self, page: u64, pin: &Pin<H>) -> bool {
        if !self.is_in_memory() || self.has_in_index(page, pin.frame()) || self.join(page, pin.frame()) {
            return true;
        }
        pin.wait_for_write(None);
        self.join(page, pin.frame())
    }

    /// Detaches every page of `pages`, in memory or in a slot, of a file without a store.
    pub(super) fn detach_in_memory(&self, pages: Range<u64>) {
        self.index.each(pages, &mut |_, word| {
            // Without a page there is nothing to detach: a thread that attaches one looks at the length afterwards.
            if is_absent(word.load(Ordering::Acquire)) {
                return;
            }
            let guard = self.removal.lock();
            // One step: a thread may attach a page without the lock at this moment, and goes by the word afterwards.
            let seen = word.swap(SEEN, Ordering::AcqRel);
            drop(guard);
            self.let_go(seen);
        });
    }

    /// Drops the reference of a word of the index, which the caller alone has cleared.
    pub(super) fn let_go(&self, word: u64) {
        match slot_of(word) {
            Some((slot, _)) if mutant!("cut_keeps_slots") => _ = slot,
            Some((slot, _)) => self.engine.put_slot(slot),
            None => frame_of(word).into_iter().for_each(|frame| self.forget(frame)),
        }
    }

    /// Pins the page in which the file ends after a cut to `length`, if it is partial and exists, so that it is in memory when its end
    /// becomes zeros, and the cut itself waits for no I/O. For a file without a store. A page that cannot be read is an error at each
    /// access, and is not pinned.
    ///
    /// # Errors
    /// [`FileError::OutOfMemory`]: there is no memory for it.
    pub(super) fn pin_last_page(&self, length: u64) -> Result<Option<Pin<H>>, FileError> {
        let page = length / super::PAGE_SIZE;
        let is_needed =
            self.is_in_memory() && !length.is_multiple_of(super::PAGE_SIZE) && !self.is_hole(page);
        match if is_needed { self.wait_for_page(page) } else { Ok(None) } {
            Err(FileError::OutOfMemory) => Err(FileError::OutOfMemory),
            pinned => Ok(pinned.ok().flatten()),
        }
    }
}
