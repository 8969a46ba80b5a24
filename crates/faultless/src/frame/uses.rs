//! The folio's part in reclaim's queues: the link, and the count of uses of an anonymous page, 0 to 3. The count is two bits of
//! the word, REFERENCED and USED2.

use super::{ANONYMOUS, Folio, REFERENCED, REFERENCES, USED2};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The largest count of uses.
const MOST: u64 = 3;

const fn of_word(word: u64) -> u64 {
    (word & USED2 != 0) as u64 * 2 + (word & REFERENCED != 0) as u64
}

impl Folio {
    /// Returns the frame's place in reclaim's stacks and queues.
    #[inline]
    pub(crate) fn link(&self) -> &AtomicU64 {
        &self.link
    }

    /// Returns the uses of the page, or `None` if the frame is free or the page is not anonymous.
    pub(crate) fn uses(&self) -> Option<u64> {
        let word = self.word.load(Ordering::Relaxed);
        (word & ANONYMOUS != 0 && word & REFERENCES != 0).then(|| of_word(word))
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

    /// Changes the uses, if the frame has an anonymous page. By then it may be another page than the one that the caller meant,
    /// which changes the order of reclaim alone.
    fn change_uses(&self, change: impl Fn(u64) -> u64) {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & ANONYMOUS != 0 && word & REFERENCES != 0 {
            let uses = change(of_word(word));
            let new = word & !(REFERENCED | USED2)
                | if uses & 1 != 0 { REFERENCED } else { 0 }
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
