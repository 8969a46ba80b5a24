//! The cheapest [`Barrier`] that the operating system offers.

use crate::sync::atomic::AtomicUsize;
use crate::sync::{Barrier, FenceBarrier};

/// An implementation of [`Barrier`] by membarrier(2), where Linux offers it. It interrupts only running threads, and only for a
/// moment. Elsewhere, and under Miri and loom, it is a fence.
///
/// With membarrier, a section begins with a plain store. A grace period asks the kernel for a full barrier on every processor
/// that runs a thread of this process, which takes about a microsecond. After that, either the grace period sees the thread's
/// mark, or the thread sees the stores made before. Frees in batches can pay for that; a single unmap could not, so accesses
/// have fences.
#[derive(Debug)]
pub struct StdBarrier {
    /// Tells whether this process is registered for membarrier(2). Immutable.
    expedited: bool,
}

impl Default for StdBarrier {
    fn default() -> Self {
        Self::new()
    }
}

impl StdBarrier {
    /// Returns the barrier that is available here, and registers this process for membarrier, once and for all. If the kernel
    /// is too old, or a sandbox refuses it, the barrier uses fences. A sandbox that refuses membarrier only later must be set
    /// up before this call: a grace period panics if it cannot have the registered barrier.
    pub fn new() -> Self {
        Self { expedited: kernel::register() }
    }

    /// Returns a barrier that uses fences, even if membarrier is available.
    pub const fn fence() -> Self {
        Self { expedited: false }
    }
}

impl Barrier for StdBarrier {
    #[inline]
    fn mark(&self, word: &AtomicUsize, odd: usize) {
        match self.expedited {
            true => kernel::mark(word, odd),
            false => FenceBarrier.mark(word, odd),
        }
    }

    fn heavy(&self) {
        match self.expedited {
            true => kernel::barrier(),
            false => FenceBarrier.heavy(),
        }
    }

    fn name(&self) -> &'static str {
        if self.expedited { "membarrier" } else { FenceBarrier.name() }
    }
}

#[cfg(all(target_os = "linux", not(any(loom, miri))))]
mod kernel {
    use crate::sync::atomic::{AtomicUsize, Ordering, compiler_fence};
    use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

    pub fn register() -> bool {
        membarrier_query().contains(MembarrierQuery::PRIVATE_EXPEDITED)
            && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
    }

    #[inline]
    pub fn mark(word: &AtomicUsize, odd: usize) {
        word.store(odd, Ordering::Release);
        // The other side orders the processor. Partner: `barrier`.
        compiler_fence(Ordering::SeqCst);
    }

    pub fn barrier() {
        let done = membarrier(MembarrierCommand::PrivateExpedited)
            // Not registered: a child of a process fork, if its kernel does not pass that on.
            .or_else(|_| {
                membarrier(MembarrierCommand::RegisterPrivateExpedited)?;
                membarrier(MembarrierCommand::PrivateExpedited)
            });
        // A weaker barrier is not enough: sections may be under way that were only marked.
        done.expect("membarrier, which this process was registered for");
    }
}

#[cfg(not(all(target_os = "linux", not(any(loom, miri)))))]
mod kernel {
    use crate::sync::atomic::AtomicUsize;
    use crate::sync::{Barrier, FenceBarrier};

    pub fn register() -> bool {
        false
    }

    pub fn mark(word: &AtomicUsize, odd: usize) {
        FenceBarrier.mark(word, odd);
    }

    pub fn barrier() {
        FenceBarrier.heavy();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::host::StdSlots;
    use crate::sync::Sections;
    use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

    /// Runs a reader that follows a pointer in a section, and a writer that replaces it, waits for a grace period, and spoils
    /// the old value.
    fn nothing_goes_under_a_reader(barrier: &StdBarrier) {
        const ROUNDS: u64 = 20_000;
        let (sections, stop) = (Sections::new(), AtomicBool::new(false));
        let mut values = [0u64; 2].map(core::sync::atomic::AtomicU64::new);
        values[0] = 1.into();
        let current = AtomicPtr::new((&raw const values[0]).cast_mut());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: no two threads have the same slot; all have the same barrier.
                    let _section = unsafe { sections.enter(StdSlots.current(), barrier) };
                    // SAFETY: one of `values`, which live longer.
                    let value = unsafe { &*current.load(Ordering::Acquire) };
                    for _ in 0..3 {
                        assert_ne!(value.load(Ordering::Relaxed), 0, "invariant 3: gone under a reader");
                    }
                }
            });
            for round in 0..ROUNDS {
                let (old, new) = (&values[(round % 2) as usize], &values[((round + 1) % 2) as usize]);
                new.store(round + 1, Ordering::Relaxed);
                current.store((&raw const *new).cast_mut(), Ordering::Release);
                sections.grace(barrier, |_| crate::sync::spin_loop());
                old.store(0, Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn grace_periods_by_what_there_is() {
        let barrier = StdBarrier::new();
        println!("the barrier here is {}", barrier.name());
        nothing_goes_under_a_reader(&barrier);
    }

    #[test]
    fn grace_periods_by_fences() {
        assert_eq!(StdBarrier::fence().name(), "fence");
        nothing_goes_under_a_reader(&StdBarrier::fence());
    }
}
