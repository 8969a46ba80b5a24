//! Reading pages again, after another program has changed the store.
//!
//! ```text
//! forbid transfers of the pages (resize.rs)
//! for each page:  lock its folio; dirty: refuse; else take it out of the index, and keep it
//! fence; take the pages from every space
//! for each page:  dirty by now: back into the index; else forget it
//! ```
//! A store through a mapping makes the folio dirty while the entry is announced. Either that happens before the entry
//! is removed, or the store finds the page absent and waits until transfers are allowed. A write by handle holds the
//! folio's lock and checks that the page is in the index.

use super::account::Pin;
use super::index::{self, Tag};
use super::resize::{Await, Forbidden};
use super::{File, FileError, SEEN, frame_of, word_of};
use crate::address::PAGE_SIZE;
use crate::frame::Reference;
use crate::host::Host;
use crate::sync::atomic::Ordering;
use crate::sync::full_fence;
use core::ops::Range;

/// The number of pages that are removed from the spaces together.
#[cfg(not(loom))]
const BATCH: usize = 32;
#[cfg(loom)]
const BATCH: usize = 2;

/// Pages that were taken out of the index. The cache still has its references to them.
struct Batch<H: Host> {
    pages: [Option<(u64, Pin<H>)>; BATCH],
    count: usize,
    /// The first page found dirty.
    dirty: Option<u64>,
}

impl<H: Host> File<H> {
    /// Drops the cached pages of `length` bytes at `offset`, and removes them from every mapping, so that the next
    /// access or read gets the store's bytes of that time. Call it after another program has changed the store. Private
    /// copies stay; see [`AddressSpace::discard`](crate::AddressSpace::discard) for those. The length stays; see
    /// [`File::set_length`]. A file in memory has no store, and stays as it is. Waits for I/O.
    ///
    /// # Errors
    /// [`FileError::Dirty`]: a page has bytes that the store does not have. To keep them, call [`File::sync`] first; to
    /// drop them, [`File::set_length`] or punch a hole. If the page was dirty at the beginning, nothing has changed; if
    /// it became dirty meanwhile, other pages may have been dropped. [`FileError::TooLong`]: nothing has changed.
    pub fn refresh(&self, offset: u64, length: u64) -> Result<(), FileError> {
        self.engine.assert_may_sleep("reading a file's pages anew");
        let end = offset.checked_add(length).ok_or(FileError::TooLong { end: u64::MAX })?;
        let pages = offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE).min(index::PAGES);
        if self.is_in_memory() || length == 0 || pages.is_empty() {
            return Ok(());
        }
        let resizing = self.take_resizing();
        let forbidden = Forbidden::begin(&resizing, self, pages.clone(), Await::ReadsAndWrites);
        let dirty = self.first_dirty(pages.clone());
        let mut batch = Batch { pages: [const { None }; BATCH], count: 0, dirty };
        if batch.dirty.is_none() {
            self.index.each(pages, &mut |page, word| {
                if frame_of(word.load(Ordering::Acquire)).is_some() {
                    self.take_clean(page, &mut batch);
                }
            });
            self.drop_batch(&mut batch);
        }
        drop(forbidden);
        batch.dirty.map_or(Ok(()), |page| Err(FileError::Dirty { offset: page * PAGE_SIZE }))
    }

    /// Returns the first dirty page of `pages`.
    #[inline(never)]
    fn first_dirty(&self, mut pages: Range<u64>) -> Option<u64> {
        while let Some(page) = self.index.next_tagged(pages.clone(), Tag::Dirty) {
            match self.find(page, Reference::Pin) {
                Ok(Some(frame)) => {
                    let pin = Pin::new(&self.engine, frame);
                    if self.engine.folio(pin.frame()).is_dirty() {
                        return Some(page);
                    }
                }
                Ok(None) => {}
                Err(full) => {
                    self.engine.wait_for_place(full, None);
                    continue;
                }
            }
            pages.start = page + 1;
        }
        None
    }

    /// Takes `page` out of the index if it is clean.
    fn take_clean(&self, page: u64, batch: &mut Batch<H>) {
        // No transfer of it begins, so this waits only for the locks of other threads.
        let Some(lock) = self.lock_idle(page) else { return };
        let frame = lock.0.frame();
        if self.engine.folio(frame).is_dirty() {
            batch.dirty.get_or_insert(page);
            return;
        }
        let removal = self.removal.lock();
        let word = self.index.get(page).filter(|word| word.load(Ordering::Relaxed) == word_of(frame));
        let Some(word) = word else { return };
        word.store(SEEN, Ordering::Release);
        drop(removal);
        batch.pages[batch.count] = Some((page, lock.unlock()));
        batch.count += 1;
        if batch.count == BATCH {
            self.drop_batch(batch);
        }
    }

    /// Removes the batch's pages from every space. Puts pages that became dirty back into the index, and forgets the
    /// others.
    fn drop_batch(&self, batch: &mut Batch<H>) {
        let count = core::mem::take(&mut batch.count);
        let pages = || batch.pages[..count].iter().flatten().map(|(page, _)| *page);
        let (Some(first), Some(last)) = (pages().min(), pages().max()) else { return };
        // Partner: the fence after the bit in page work.
        full_fence();
        self.drop_everywhere(first..last + 1, 0..0);
        for (page, pin) in batch.pages[..count].iter_mut().filter_map(Option::take) {
            let is_dirty = self.engine.folio(pin.frame()).is_dirty();
            if is_dirty && !mutant!("refresh_drops_late_stores") && self.put_back(page, &pin) {
                batch.dirty.get_or_insert(page);
            } else {
                self.forget(pin.frame());
            }
        }
    }

    /// Puts a page back that was stored into while it was being taken. Returns `false` if a whole page was written
    /// there since, over the stored bytes.
    fn put_back(&self, page: u64, pin: &Pin<H>) -> bool {
        let Some(place) = self.index.get(page) else { return false };
        loop {
            let word = place.load(Ordering::Acquire);
            match frame_of(word) {
                Some(frame) if self.engine.folio(frame).is_uptodate() => return false,
                // Another read has not yet seen that it is forbidden, and will withdraw.
                Some(_) => crate::sync::spin_loop(),
                None => {
                    let new = word_of(pin.frame());
                    if place.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                        self.tag_dirty(page);
                        return true;
                    }
                }
            }
        }
    }
}
