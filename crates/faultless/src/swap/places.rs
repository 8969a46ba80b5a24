//! The free and the taken places of a device: one bit each.

use crate::host::OutOfMemory;
use crate::sync::plain::{AtomicU64, Ordering};
use alloc::vec::Vec;

/// A bit for each place of a device. Threads take and give back places without a lock.
#[derive(Debug)]
pub(super) struct Places {
    /// The bit of a place that is taken, or that does not exist.
    words: Vec<AtomicU64>,
    /// The number of places. Immutable.
    count: u64,
    /// The number of places that are taken, or are being looked for. Atomic.
    taken: AtomicU64,
    /// The place at which the next search begins. Atomic.
    next: AtomicU64,
}

const WORD: u64 = 64;

impl Places {
    /// Makes the bits of `count` free places.
    pub fn new(count: u64) -> Result<Self, OutOfMemory> {
        let length = usize::try_from(count.div_ceil(WORD)).map_err(|_| OutOfMemory)?;
        let mut words = Vec::new();
        words.try_reserve_exact(length).map_err(|_| OutOfMemory)?;
        words.resize_with(length, AtomicU64::default);
        if let Some(last) = words.last().filter(|_| !count.is_multiple_of(WORD)) {
            last.store(u64::MAX << (count % WORD), Ordering::Relaxed);
        }
        let (taken, next) = Default::default();
        Ok(Self { words, count, taken, next })
    }

    /// Returns the number of places.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes a free place: the next one after the place that was taken last, beginning again at the end. Acquire: the caller sees what
    /// the last owner did with it.
    pub fn take(&self) -> Option<u64> {
        // Counted first, so that a device that is full is not searched.
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.count {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let start = self.next.load(Ordering::Relaxed) % self.count;
        let words = self.words.len() as u64;
        let first = start / WORD;
        // The first word twice: its places from `start` on, and at the end all of them.
        for step in 0..=words {
            let word = (first + step) % words;
            let from = if step == 0 { start % WORD } else { 0 };
            if let Some(bit) = self.take_in(word as usize, from) {
                let place = word * WORD + bit;
                self.next.store(place + 1, Ordering::Relaxed);
                return Some(place);
            }
        }
        // Other threads have taken what was free behind the search, and given back what it had passed.
        self.taken.fetch_sub(1, Ordering::Relaxed);
        None
    }

    fn take_in(&self, word: usize, from: u64) -> Option<u64> {
        let place = &self.words[word];
        let mut seen = place.load(Ordering::Relaxed);
        loop {
            let free = !seen & (u64::MAX << from);
            let bit = (free != 0).then(|| free.trailing_zeros())?;
            match place.compare_exchange(seen, seen | 1 << bit, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(u64::from(bit)),
                Err(now) => seen = now,
            }
        }
    }

    /// Gives a place back. Release. Ignores a place that does not exist or is free.
    pub fn put(&self, place: u64) {
        let Some(word) = self.words.get((place / WORD) as usize).filter(|_| place < self.count) else {
            return;
        };
        let bit = 1 << (place % WORD);
        if word.fetch_and(!bit, Ordering::Release) & bit != 0 {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn places_follow_each_other_and_begin_again() {
        let places = Places::new(70).unwrap();
        let take = || places.take();
        assert_eq!([take(), take(), take()], [Some(0), Some(1), Some(2)]);
        places.put(1);
        assert_eq!(take(), Some(3), "a run goes on");
        assert_eq!((4..70).map(Some).find(|next| take() != *next), None);
        assert_eq!((take(), take()), (Some(1), None), "the rest, then full");
        places.put(69);
        places.put(69);
        places.put(70);
        places.put(u64::MAX);
        assert_eq!((take(), take()), (Some(69), None));
    }

    #[test]
    fn no_place_has_two_owners() {
        let places = Places::new(100).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let mine: Vec<_> = (0..20).filter_map(|_| places.take()).collect();
                        mine.iter().for_each(|place| places.put(*place));
                    }
                });
            }
        });
        let all: BTreeSet<_> = core::iter::from_fn(|| places.take()).collect();
        assert_eq!((all.len(), all.last()), (100, Some(&99)));
    }
}
