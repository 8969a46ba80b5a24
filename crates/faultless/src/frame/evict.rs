//! The end of a file's page in memory: eviction takes the frame.

use super::uses::USES;
use super::{CACHED, DIRTY, Folio, ISOLATED, PIN, PINS, REFERENCED, UPTODATE, WRITEBACK};
use crate::sync::atomic::Ordering;

impl Folio {
    /// Returns whether a lookup has found the file's page since the last call. The caller has isolated the folio.
    pub(crate) fn take_referenced(&self) -> bool {
        let is_referenced = self.word.load(Ordering::Relaxed) & REFERENCED != 0;
        if is_referenced {
            self.word.fetch_and(!REFERENCED, Ordering::Relaxed);
        }
        is_referenced
    }

    /// Returns whether others than the caller, who has one pin, have pinned the folio.
    pub(crate) fn is_pinned_by_others(&self) -> bool {
        self.word.load(Ordering::Relaxed) & PINS > PIN
    }

    /// Takes the frame of a file's page that the caller has isolated, if the page cache's reference and the caller's pin are the only
    /// ones, and the page is up to date and clean. The pin is gone then. The caller keeps other threads from detaching the page, and
    /// no processor has an old translation of it. Acquire, as in the last put.
    pub(crate) fn try_evict_isolated(&self) -> bool {
        let is_mutant = mutant!("reclaim_evicts_dirty");
        let ignored = if is_mutant { USES | ISOLATED | DIRTY | WRITEBACK } else { USES | ISOLATED };
        let mut word = self.word.load(Ordering::Relaxed);
        while word & !ignored == CACHED | PIN | UPTODATE {
            match self.word.compare_exchange(word, 0, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }
}
