//! The set of slots that scans look at, with a bit for each. The cost of a scan grows with the slots in use, not with all that
//! ever were.
//!
//! ```text
//! owner:  set bit; enter: store odd; fence; read        scan:  unhook; fence; read bits; read the slots'
//! ```
//! Either the scan sees the bit and the odd number, or the owner sees that the thing is unhooked. The fences are those of
//! sections and grace periods, which are needed anyway.
//!
//! The bit of a slot in use is also cleared while its thread sleeps. So a scan beside thousands of threads that wait for I/O
//! looks at none of them.

use super::atomic::{AtomicU64, AtomicUsize, Ordering};
use super::mutex::Mutex;

/// The number of bits of a word.
const BITS: usize = u64::BITS as usize;

/// A set of bits, one for each of `WORDS * 64` slots. With one word there is no bound.
pub(super) struct Listed<const WORDS: usize> {
    /// The bits of the slots that scans look at. Atomic. A bit is set and cleared by the slot's owner; partners: scans, see
    /// above.
    words: [AtomicU64; WORDS],
    /// The bits of all slots in use, including those of sleeping threads. Atomic; a bit is set and cleared by the slot's owner.
    in_use: [AtomicU64; WORDS],
    /// The index from which on the words of `in_use` are zeros, or their bits are just being set. Atomic; written under
    /// `bounding`.
    bound: AtomicUsize,
    bounding: Mutex<()>,
}

impl<const WORDS: usize> Listed<WORDS> {
    pub(super) fn new() -> Self {
        Self {
            words: core::array::from_fn(|_| AtomicU64::new(0)),
            in_use: core::array::from_fn(|_| AtomicU64::new(0)),
            bound: AtomicUsize::new(0),
            bounding: Mutex::new(()),
        }
    }

    /// Writes an empty set to `place`.
    ///
    /// # Safety
    /// `place` is memory for a set, and is not in use.
    pub(super) unsafe fn write_to(place: *mut Self) {
        // SAFETY: by the contract above; each field is written once, and none is read.
        unsafe {
            for word in 0..WORDS {
                (&raw mut (*place).words[word]).write(AtomicU64::new(0));
                (&raw mut (*place).in_use[word]).write(AtomicU64::new(0));
            }
            (&raw mut (*place).bound).write(AtomicUsize::new(0));
            (&raw mut (*place).bounding).write(Mutex::new(()));
        }
    }

    /// Sets bit `index`. The owner enters its first section after this.
    pub(super) fn set(&self, index: usize) {
        let word = index / BITS;
        // Release: a scan that sees the bit sees the slot.
        self.words[word].fetch_or(1 << (index % BITS), Ordering::Release);
        if WORDS > 1 {
            self.in_use[word].fetch_or(1 << (index % BITS), Ordering::Release);
            // The bound is raised after the bit is set: a thread that lowers the bound later sees the bit, and an earlier
            // lowering is overruled.
            let _bounding = self.bounding.lock();
            if self.bound.load(Ordering::Relaxed) <= word {
                self.bound.store(word + 1, Ordering::Release);
            }
        }
    }

    /// Clears bit `index`. The owner has left its last section.
    pub(super) fn clear(&self, index: usize) {
        self.sleep(index);
        if WORDS == 1 {
            return;
        }
        let before = self.in_use[index / BITS].fetch_and(!(1 << (index % BITS)), Ordering::Release);
        if before == 1 << (index % BITS) {
            let _bounding = self.bounding.lock();
            let mut bound = self.bound.load(Ordering::Relaxed);
            // The words are read under the lock: a bit that was set meanwhile keeps its word.
            let is_empty = |word: usize| {
                mutant!("bound_not_asked_again") && word == index / BITS
                    || self.in_use[word].load(Ordering::Acquire) == 0
            };
            while bound > 0 && is_empty(bound - 1) {
                bound -= 1;
            }
            self.bound.store(bound, Ordering::Release);
        }
    }

    /// Clears the bit of a slot that stays in use. The owner is in no section.
    pub(super) fn sleep(&self, index: usize) {
        // Release: a scan that passes over the slot sees the effects of its sections, as by the number that it would have read.
        let order = if mutant!("unlisted_relaxed") { Ordering::Relaxed } else { Ordering::Release };
        self.words[index / BITS].fetch_and(!(1 << (index % BITS)), order);
    }

    /// Sets the bit of a slot again after [`Listed::sleep`]. The owner enters its next section after this.
    pub(super) fn wake(&self, index: usize) {
        // Release: as in `set`. The bound is still above it.
        self.words[index / BITS].fetch_or(1 << (index % BITS), Ordering::Release);
    }

    /// Returns the first slot from `first` on that has a bit and for which `f` returns true.
    #[inline]
    pub(super) fn find(&self, first: usize, mut f: impl FnMut(usize) -> bool) -> Option<usize> {
        let bound = if WORDS > 1 { self.bound.load(Ordering::Acquire) } else { WORDS };
        let mut wanted = u64::MAX << (first % BITS);
        for (index, word) in self.words.iter().enumerate().take(bound).skip(first / BITS) {
            // Acquire: the slot has been made. See also `clear`.
            let mut bits = word.load(Ordering::Acquire) & wanted;
            wanted = u64::MAX;
            while bits != 0 {
                let slot = index * BITS + bits.trailing_zeros() as usize;
                if f(slot) {
                    return Some(slot);
                }
                bits &= bits - 1;
            }
        }
        None
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::*;

    fn all(listed: &Listed<4>, first: usize) -> Vec<usize> {
        let mut all = Vec::new();
        assert_eq!(listed.find(first, |slot| (all.push(slot), false).1), None);
        all
    }

    #[test]
    fn bits_are_found_in_order_and_words_without_any_are_not_looked_at() {
        let listed = Listed::<4>::new();
        [200, 3, 64, 63].into_iter().for_each(|slot| listed.set(slot));
        assert_eq!(all(&listed, 0), [3, 63, 64, 200]);
        assert_eq!(all(&listed, 64), [64, 200]);
        assert_eq!(listed.find(4, |slot| slot != 63), Some(64));
        assert_eq!(listed.bound.load(Ordering::Relaxed), 4);
        listed.clear(200);
        assert_eq!((all(&listed, 0), listed.bound.load(Ordering::Relaxed)), (vec![3, 63, 64], 2));
        [3, 64, 63].into_iter().for_each(|slot| listed.clear(slot));
        assert_eq!((all(&listed, 0), listed.bound.load(Ordering::Relaxed)), (vec![], 0));
        listed.set(255);
        assert_eq!(all(&listed, 0), [255]);
    }

    #[test]
    fn a_slot_that_sleeps_keeps_its_place() {
        let listed = Listed::<4>::new();
        [3, 70, 200].into_iter().for_each(|slot| listed.set(slot));
        listed.sleep(200);
        listed.sleep(3);
        assert_eq!(all(&listed, 0), [70]);
        listed.clear(70);
        assert_eq!((all(&listed, 0), listed.bound.load(Ordering::Relaxed)), (vec![], 4));
        listed.wake(200);
        assert_eq!(all(&listed, 0), [200]);
        listed.sleep(200);
        listed.clear(200);
        assert_eq!(listed.bound.load(Ordering::Relaxed), 1, "slot 3 sleeps still");
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::full_fence;
    use loom::thread;
    use std::sync::Arc;

    /// The last bit of the last word goes, and at the same time another one is set in that word: a scan sees it, or its owner
    /// sees the changes made before the scan.
    #[test]
    fn a_bit_that_comes_while_its_word_empties() {
        loom::model(|| {
            let listed = Arc::new(Listed::<2>::new());
            listed.set(64);
            let unhooked = Arc::new(AtomicUsize::new(0));
            let leaver = {
                let listed = listed.clone();
                thread::spawn(move || listed.clear(64))
            };
            let comer = {
                let (listed, unhooked) = (listed.clone(), unhooked.clone());
                thread::spawn(move || {
                    listed.set(65);
                    full_fence();
                    unhooked.load(Ordering::Relaxed) == 1
                })
            };
            unhooked.store(1, Ordering::Relaxed);
            full_fence();
            let is_seen = listed.find(0, |slot| slot == 65).is_some();
            leaver.join().unwrap();
            assert!(comer.join().unwrap() || is_seen, "invariant 3: a scan passes over a slot in use");
            assert_eq!(listed.find(0, |_| true), Some(65), "invariant 3: a slot in use is lost");
        });
    }
}
