//! The end of a file's page in memory: eviction takes the frame.

use super::uses::USES;
use super::{
    CACHED, DIRTY, Eviction, Folio, ISOLATED, LISTED, PIN, REFERENCED, REFERENCES, UPTODATE, WRITEBACK,
};
use crate::sync::atomic::Ordering;

impl Folio {
    /// Tries to evict the folio: takes the frame if the page cache has the only reference besides the list's, and the page is
    /// up to date and clean. The caller has the list's reference and keeps other threads from detaching the page. Acquire, as
    /// in the last put. With `second_chance`, a page used since the last look gets another round instead.
    pub(crate) fn try_evict(&self, second_chance: bool) -> Eviction {
        const IDLE: u64 = CACHED | LISTED;
        let word = self.word.load(Ordering::Relaxed);
        if word & REFERENCES != IDLE {
            return Eviction::InUse;
        }
        if second_chance && word & REFERENCED != 0 {
            self.word.fetch_and(!REFERENCED, Ordering::Relaxed);
            return Eviction::Used;
        }
        let ignored = if mutant!("evicts_dirty") { USES | DIRTY | WRITEBACK } else { USES };
        if word & !ignored == IDLE | UPTODATE
            && self.word.compare_exchange(word, 0, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            return Eviction::Taken;
        }
        if word & DIRTY != 0 { Eviction::Dirty } else { Eviction::InUse }
    }

    /// Takes the frame of a file's page that the caller has isolated, if the page cache's reference and the caller's pin are the only
    /// ones, and the page is up to date and clean. The pin is gone then. The caller keeps other threads from detaching the page, and
    /// no processor has an old translation of it. Acquire, as in the last put.
    pub(crate) fn try_evict_isolated(&self) -> bool {
        let ignored = if mutant!("reclaim_evicts_dirty") { USES | ISOLATED | DIRTY } else { USES | ISOLATED };
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
