//! The cheapest [`Barrier`] that the operating system gives.

use crate::sync::atomic::AtomicUsize;
use crate::sync::{Barrier, FenceBarrier};

/// [`Barrier`] by membarrier(2) where Linux gives it, which stops no section but those of running threads, and them for the
/// moment of an interrupt; a fence everywhere else, and under Miri and loom.
///
/// A section then begins with a plain store. A grace period asks the kernel for a full barrier on every processor that
/// runs a thread of this process, a microsecond or so; after that either the thread's mark is seen, or the thread sees
/// what was stored before. What is freed in batches can pay for that, a single unmap could not: that is why accesses
/// have fences.
#[derive(Debug)]
pub struct StdBarrier {
    /// Whether this process is registered for it. Immutable.
    expedited: bool,
}

impl Default for StdBarrier {
    fn default() -> Self {
        Self::new()
    }
}

impl StdBarrier {
    /// What there is here. Registers this process, once and for all; where the kernel is too old for that, or a sandbox
    /// refuses it, there are fences. A sandbox that refuses membarrier only later on must be set up before this: a grace
    /// period panics that cannot have what was promised.
    pub fn new() -> Self {
        Self { expedited: kernel::register() }
    }

    /// Fences, whatever there is.
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
        // The processor is held back by the other side. Partner: `barrier`.
        compiler_fence(Ordering::SeqCst);
    }

    pub fn barrier() {
        let done = membarrier(MembarrierCommand::PrivateExpedited)
            // Not registered: a child of a process fork, if its kernel does not pass that on.
            .or_else(|_| {
                membarrier(MembarrierCommand::RegisterPrivateExpedited)?;
                membarrier(MembarrierCommand::PrivateExpedited)
            });
        // Nothing weaker will do: sections may be under way that have only been marked.
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

    /// A reader follows a pointer in a section; the writer swings it, waits for a grace period, and spoils what was there.
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
