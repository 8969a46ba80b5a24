//! How a read section's entry and a grace period are ordered against each other.

use super::atomic::{AtomicUsize, Ordering};
#[cfg(all(target_arch = "x86_64", not(any(loom, shuttle, miri))))]
use super::fence_after_rmw;
use super::full_fence;

/// How the entry of a [`Section`](super::Section) and a grace period are ordered: after both have run, one of the two
/// sides has seen the other. Accesses as a processor makes them have fences of their own, whatever this is.
pub trait Barrier: Send + Sync {
    /// A section's entry: stores `odd` in the word of its thread, with Release, ordered before all that follows as
    /// [`Barrier::heavy`] needs it. As cheap as can be.
    fn mark(&self, word: &AtomicUsize, odd: usize);
    /// At the start of a grace period: orders what was stored before, on all processors, against later marks.
    fn heavy(&self);
    /// What it is made of, for reports.
    fn name(&self) -> &'static str;
}

/// A SeqCst fence on both sides: portable, and what loom models.
#[derive(Clone, Copy, Debug, Default)]
pub struct FenceBarrier;

impl Barrier for FenceBarrier {
    #[inline]
    fn mark(&self, word: &AtomicUsize, odd: usize) {
        mark_with_fence(word, odd);
    }

    fn heavy(&self) {
        full_fence();
    }

    fn name(&self) -> &'static str {
        "fence"
    }
}

/// Stores `odd` with Release, and then a full fence. On x86-64 that is one exchange, about half as dear as a store and a
/// fence instruction.
#[inline]
pub(super) fn mark_with_fence(word: &AtomicUsize, odd: usize) {
    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle, miri))))]
    {
        word.swap(odd, Ordering::AcqRel);
        fence_after_rmw();
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, shuttle, miri)))))]
    {
        word.store(odd, Ordering::Release);
        full_fence();
    }
}
