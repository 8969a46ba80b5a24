//! The steps by which a page of a file without a store becomes the page of a swap slot, and the other way. In a slot the folio is
//! anonymous, and CACHED is the swap cache's reference instead of the page cache's.

use super::{
    ANONYMOUS, CACHED, DIRTY, Folio, ISOLATED, LAZY, LOCKED, MAPPINGS, PIN, REFERENCES, UPTODATE, USED2,
    WRITEBACK,
};
use crate::sync::atomic::Ordering;
use crate::tables::Home;

impl Folio {
    /// Makes a file's page the page of the slot with this number. The caller has isolated and pinned it, and keeps other threads from
    /// detaching it. Returns false, and does nothing, if there are other references besides the page cache's. Calls `publish` while
    /// no thread can add a reference: from then on the file names the slot. Acquire, as in the last put, and Release.
    pub(crate) fn leave_file(&self, slot: u64, publish: impl FnOnce()) -> bool {
        let state = |word: u64| word & (ANONYMOUS | UPTODATE | WRITEBACK | LOCKED);
        // The mutant moves a page that a fault has mapped again.
        let counted = if mutant!("file_left_while_mapped") { REFERENCES & !MAPPINGS } else { REFERENCES };
        let mut word = self.word.load(Ordering::Relaxed);
        while word & counted == CACHED | PIN && state(word) == UPTODATE {
            match self.word.compare_exchange(word, 0, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    self.home.store(Home::NONE.bits(), Ordering::Release);
                    self.set_index(slot, Ordering::Relaxed);
                    publish();
                    self.word.store(ANONYMOUS | CACHED | UPTODATE | ISOLATED | PIN, Ordering::Release);
                    return true;
                }
                Err(now) => word = now,
            }
        }
        false
    }

    /// Makes the page of a slot page `index` of the file without a store that `home` names, dirty. The caller has a pin. The file names
    /// the slot, which no entry does, and the caller keeps other threads from changing that. Returns false, and does nothing, if the
    /// folio is not up to date, has left the slot, or is being written. AcqRel. The caller takes the folio out of the slot.
    ///
    /// No write begins, and no thread takes the folio out, while it is pinned. So if the first look finds it ready, it stays ready.
    pub(crate) fn join_file(&self, home: Home, index: u64) -> bool {
        let written = if mutant!("joins_while_written") { 0 } else { WRITEBACK };
        let state = |word: u64| word & (ANONYMOUS | CACHED | UPTODATE | written | MAPPINGS);
        let is_ready = |word: u64| state(word) == ANONYMOUS | CACHED | UPTODATE;
        let mut word = self.word.load(Ordering::Acquire);
        if !is_ready(word) {
            return false;
        }
        // Before the word: a thread that sees the page as a file's looks whose it is (rule H7 of docs/home.md).
        self.home.store(home.bits(), Ordering::Release);
        loop {
            debug_assert!(is_ready(word), "a pinned folio has left its slot: {word:#x}");
            let new = word & !(ANONYMOUS | LAZY | USED2 | WRITEBACK & !written) | DIRTY;
            match self.word.compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        // Until now it was the slot's number. A reclaimer that reads it too early finds the folio pinned.
        self.set_index(index, Ordering::Release);
        true
    }
}
