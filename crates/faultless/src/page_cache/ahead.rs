//! Reads ahead of their use, and looks at what is there.

use super::{File, NEWCOMER, frame_of};
use crate::host::{GroupId, Host};
use crate::sync::atomic::Ordering;

impl<H: Host> File<H> {
    /// Starts the read of `page` if it is not in memory. False: no more now, since it lies past the end, or there is no
    /// room that needs no wait.
    pub(crate) fn start_read(&self, page: u64) -> bool {
        if page >= self.pages() {
            return false;
        }
        let is_there = || {
            let word = self.index.get(page)?;
            frame_of(word.load(Ordering::Acquire))
        };
        // What has no store is not read.
        if is_there().is_some() || self.is_in_memory() {
            return true;
        }
        let (account, limit) = (&self.engine.cache, self.engine.limits().cached_pages);
        let is_full = account.cached() >= limit && self.engine.evict(GroupId::ROOT, 1) == 0;
        let pins = account.pins.load(Ordering::Relaxed);
        // The read has a pin of its own; the caller's goes at once.
        !is_full && (pins == 0 || pins < limit / 2) && self.read(page, false, NEWCOMER).is_ok()
    }

    /// Whether `page` is in memory and read. By the time one knows it may have changed.
    pub(crate) fn is_cached(&self, page: u64) -> bool {
        let Some(word) = self.index.get(page) else { return false };
        let seen = word.load(Ordering::Acquire);
        // Of the page, if it has not gone since.
        let is_uptodate = frame_of(seen).is_some_and(|frame| self.engine.folio(frame).is_uptodate());
        is_uptodate && word.load(Ordering::Acquire) == seen
    }
}
