//! The bytes that an engine has from the allocator for itself.

use super::plain::{AtomicUsize, Ordering};
use crossbeam_utils::CachePadded;

#[cfg(not(loom))]
const SHARDS: usize = 16;
#[cfg(loom)]
const SHARDS: usize = 1;

/// A sum of bytes in several words, so that threads which allocate and free at once mostly write different lines.
pub(super) struct Meter([CachePadded<AtomicUsize>; SHARDS]);

impl Default for Meter {
    fn default() -> Self {
        Self(core::array::from_fn(|_| CachePadded::default()))
    }
}

impl Meter {
    /// Returns the word of the calling thread. Stacks of threads lie at least a page apart, and a thread is mostly in the same
    /// few pages of its own.
    #[inline]
    fn mine(&self) -> &AtomicUsize {
        let here = 0_u8;
        let page = (&raw const here).addr() >> 14;
        // Fibonacci hashing.
        let hash = (page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.0[hash as usize % SHARDS]
    }

    /// Adds `bytes`, which have come from the allocator.
    #[inline]
    pub(super) fn add(&self, bytes: usize) {
        self.mine().fetch_add(bytes, Ordering::Relaxed);
    }

    /// Subtracts `bytes`, which have gone back to the allocator. Any thread may have added them.
    #[inline]
    pub(super) fn subtract(&self, bytes: usize) {
        // One word alone may be negative.
        self.mine().fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns the sum. It may miss the changes of threads that allocate and free meanwhile, but is never negative.
    pub(super) fn sum(&self) -> usize {
        let sum = self.0.iter().fold(0_usize, |sum, word| sum.wrapping_add(word.load(Ordering::Relaxed)));
        sum.cast_signed().max(0).cast_unsigned()
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_others_free_is_subtracted() {
        let meter = Meter::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| meter.add(3)));
            }
        });
        assert_eq!(meter.sum(), 24_000);
        (0..1000).for_each(|_| meter.subtract(24));
        assert_eq!(meter.sum(), 0);
    }
}
