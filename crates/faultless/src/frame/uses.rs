//! The folio's part in reclaim's queues: the link, and the count of uses of a page, 0 to 3. The count is two bits of the word:
//!
//! | folio | low bit | high bit |
//! |---|---|---|
//! | anonymous | REFERENCED | USED2 |
//! | of a file | LAZY, which means nothing else there | USED2 |
//!
//! REFERENCED of a file's folio is set by each lookup, for a read by handle too. It is to reclaim as an accessed bit: if it finds one
//! of the two set, it counts one use. So a page that is read once, by a mapping or by a handle, leaves by the small queue.

use super::{ANONYMOUS, CACHED, Folio, LAZY, MAPPING, MAPPINGS, REFERENCED, REFERENCES, USED2};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The largest count of uses.
const MOST: u64 = 3;

/// The bits of a file's folio that tell of its uses, and change nothing else.
pub(super) const USES: u64 = REFERENCED | USED2 | LAZY;

const fn low_bit(word: u64) -> u64 {
    if word & ANONYMOUS != 0 { REFERENCED } else { LAZY }
}

const fn of_word(word: u64) -> u64 {
    (word & USED2 != 0) as u64 * 2 + (word & low_bit(word) != 0) as u64
}

impl Folio {
    /// Returns the frame's place in reclaim's stacks and queues.
    #[inline]
    pub(crate) fn link(&self) -> &AtomicU64 {
        &self.link
    }

    /// Returns the uses of the page. Returns `None` if the frame is free.
    pub(crate) fn uses(&self) -> Option<u64> {
        let word = self.word.load(Ordering::Relaxed);
        (word & REFERENCES != 0).then(|| of_word(word))
    }

    /// Returns whether the page is of a file without a store: only reclaim that swaps can take it.
    ///
    /// The home is read after the word. If both are of different lives of the frame, the thread that begins the page's life comes to
    /// the queues later than the caller, and finds the frame in none.
    pub(crate) fn is_of_file_in_memory(&self) -> bool {
        self.word.load(Ordering::Relaxed) & ANONYMOUS == 0 && self.is_without_store()
    }

    /// Returns whether the page's place, if it has none in memory, is a swap slot: it is anonymous, or of a file without a store.
    pub(crate) fn is_of_swap(&self) -> bool {
        self.word.load(Ordering::Relaxed) & ANONYMOUS != 0 || self.is_without_store()
    }

    /// Returns whether the page is of a file without a store, and one entry maps it.
    pub(crate) fn is_mapped_once_in_memory(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word & (ANONYMOUS | CACHED | MAPPINGS) == CACHED | MAPPING && self.is_without_store()
    }

    /// Counts a use of the page. Reclaim calls it when it has found and cleared the accessed bit of an entry. It changes no
    /// queue.
    pub(crate) fn add_use(&self) {
        self.change_uses(|uses| (uses + 1).min(MOST));
    }

    /// Takes a use of the page back. Called when a queue keeps the page because of it.
    pub(crate) fn take_use(&self) {
        self.change_uses(|uses| uses.saturating_sub(1));
    }

    /// Sets the uses of the page to zero.
    pub(crate) fn forget_uses(&self) {
        self.change_uses(|_| 0);
    }

    /// Changes the uses, if the frame is in use. By then it may be another page than the one that the caller meant,
    /// which changes the order of reclaim alone.
    fn change_uses(&self, change: impl Fn(u64) -> u64) {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & REFERENCES != 0 {
            let uses = change(of_word(word));
            let low = low_bit(word);
            let new = word & !(low | USED2)
                | if uses & 1 != 0 { low } else { 0 }
                | if uses & 2 != 0 { USED2 } else { 0 };
            if new == word {
                return;
            }
            match self.word.compare_exchange_weak(word, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }
}
