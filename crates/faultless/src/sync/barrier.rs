//! The ways to order a read section's entry against a grace period: three back-ends.
//!
//! | | a section's entry | its end | a grace period | for |
//! |---|---|---|---|---|
//! | `StdBarrier` on Linux | a store | a store | a call of the kernel (membarrier), then a look at each slot | programs |
//! | [`FenceBarrier`] | a store and a full fence | a store | a fence, then a look at each slot | everywhere; models |
//! | [`QuiescentStates`] | nothing | nothing | waits until each slot that is online has passed a quiescent state | kernels, emulators with a loop |

use super::atomic::{AtomicUsize, Ordering};
#[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
use super::fence_after_rmw;
use super::full_fence;

/// The order of the entry of a [`Section`](super::Section) against a grace period: after both have run, one of the two sides
/// has seen the other. Accesses, as a processor makes them, have fences of their own with every barrier.
pub trait Barrier: Send + Sync {
    /// Tells whether sections are marked in the slot of their thread. If false, an odd number there means that the thread is
    /// online, and changes with each quiescent state.
    const MARKS: bool = true;
    /// Marks the entry of a section. Stores `odd` in the word of its thread, with Release, ordered before all that follows as
    /// [`Barrier::heavy`] needs it. It should be as cheap as possible.
    fn mark(&self, word: &AtomicUsize, odd: usize);
    /// Orders the stores made before, on all processors, against later marks. Called at the start of a grace period.
    fn heavy(&self);
    /// Returns the name of the mechanism, for reports.
    fn name(&self) -> &'static str;
}

/// A barrier of a SeqCst fence on both sides. It is portable, and the one that loom models.
#[derive(Clone, Copy, Debug, Default)]
pub struct FenceBarrier;

impl Barrier for FenceBarrier {
    #[inline]
    fn mark(&self, word: &AtomicUsize, odd: usize) {
        if mutant!("section_unfenced") {
            word.store(odd, Ordering::Release);
        } else {
            mark_with_fence(word, odd);
        }
    }

    fn heavy(&self) {
        if !mutant!("grace_unfenced") {
            full_fence();
        }
    }

    fn name(&self) -> &'static str {
        "fence"
    }
}

/// A barrier for embedders whose threads, or processors, are in no section again and again by themselves: in the idle loop, at
/// a context switch, at the end of a request. They report it there ([`Sections::quiescent`](super::Sections::quiescent)), and
/// sections cost nothing.
///
/// A slot is online from its first section on. A thread that stays away from quiescent states for long, in a wait or in other
/// code, reports that it is offline ([`Sections::offline`](super::Sections::offline)); its next section brings it back. The
/// engine waits by the methods of the host's [`Park`](super::Park), and calls them in no section. There the host reports one of
/// the two; otherwise two threads that wait for a grace period wait for each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct QuiescentStates;

impl Barrier for QuiescentStates {
    const MARKS: bool = false;

    /// Brings a slot online.
    fn mark(&self, word: &AtomicUsize, odd: usize) {
        mark_with_fence(word, odd);
    }

    fn heavy(&self) {
        full_fence();
    }

    fn name(&self) -> &'static str {
        "quiescent states"
    }
}

/// Stores `odd` with Release, and then makes a full fence. On x86-64 that is one exchange, which costs about half as much as a
/// store and a fence instruction.
#[inline]
pub(super) fn mark_with_fence(word: &AtomicUsize, odd: usize) {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    {
        word.swap(odd, Ordering::AcqRel);
        fence_after_rmw();
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    {
        word.store(odd, Ordering::Release);
        full_fence();
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::*;
    use crate::sync::{Retired, Sections, SlotIndex};
    use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64};

    fn slot(index: u32) -> SlotIndex {
        SlotIndex::new(index).unwrap()
    }

    /// Begins and ends a section of slot `index`.
    fn pass_through(sections: &Sections, index: u32) {
        // SAFETY: tests give each thread its slots.
        drop(unsafe { sections.enter(slot(index), &QuiescentStates) });
    }

    #[test]
    fn a_grace_period_waits_for_a_quiescent_state() {
        let sections = Sections::new();
        pass_through(&sections, 1);
        let mut looks = 0;
        sections.grace(&QuiescentStates, |look| {
            looks += 1;
            if look == 2 {
                // SAFETY: this thread has both slots, and is in no section.
                unsafe { sections.quiescent(slot(1)) };
            }
        });
        assert_eq!(looks, 3, "until then the slot may have been in a section");
    }

    #[test]
    fn nobody_waits_for_who_is_offline() {
        let sections = Sections::new();
        pass_through(&sections, 1);
        // SAFETY: this thread has the slot, and is in no section.
        unsafe { sections.offline(slot(1)) };
        sections.grace(&QuiescentStates, |_| panic!("slot 1 is offline"));
        // SAFETY: as above. Nothing comes of it.
        unsafe { sections.quiescent(slot(1)) };
        sections.grace(&QuiescentStates, |_| panic!("slot 1 is offline still"));
    }

    #[test]
    fn who_retires_does_not_wait_either() {
        let sections = Sections::new();
        pass_through(&sections, 1);
        let things = || (0..1000).map(|_| Retired::new(Box::new(0))).collect();
        for _ in 0..2 {
            // SAFETY: all that enter do so with this barrier.
            unsafe { sections.retire((slot(0), ()), &QuiescentStates, &mut things()) }.unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "a quiescent state inside a read section")]
    #[cfg(debug_assertions)]
    fn a_section_is_no_quiescent_state() {
        let sections = Sections::new();
        // SAFETY: one thread; that the other contract is broken is noticed.
        let _section = unsafe { sections.enter(slot(1), &QuiescentStates) };
        // SAFETY: not so: the check comes first.
        unsafe { sections.quiescent(slot(1)) };
    }

    /// Runs readers that follow a pointer, and a writer that replaces it, waits for a grace period, and spoils the old value.
    #[test]
    fn nothing_goes_under_a_reader() {
        const READERS: u32 = 3;
        let (sections, stop) = (Sections::new(), AtomicBool::new(false));
        let values = [1, 0].map(AtomicU64::new);
        let current = AtomicPtr::new((&raw const values[0]).cast_mut());
        std::thread::scope(|scope| {
            for index in 1..=READERS {
                let (sections, stop, current) = (&sections, &stop, &current);
                scope.spawn(move || {
                    let mut sections_so_far = 0u32;
                    while !stop.load(Ordering::Relaxed) {
                        {
                            // SAFETY: this thread's slot.
                            let _section = unsafe { sections.enter(slot(index), &QuiescentStates) };
                            // SAFETY: one of `values`, which live longer.
                            let value = unsafe { &*current.load(Ordering::Acquire) };
                            for _ in 0..3 {
                                assert_ne!(
                                    value.load(Ordering::Relaxed),
                                    0,
                                    "invariant 3: gone under a reader"
                                );
                            }
                        }
                        sections_so_far += 1;
                        match sections_so_far % 64 {
                            // SAFETY: in no section.
                            0 => unsafe { sections.offline(slot(index)) },
                            // SAFETY: in no section.
                            few if few % 8 == 0 => unsafe { sections.quiescent(slot(index)) },
                            _ => {}
                        }
                    }
                    // SAFETY: in no section.
                    unsafe { sections.offline(slot(index)) };
                });
            }
            for round in 0..500 {
                let (old, new) = (&values[round % 2], &values[(round + 1) % 2]);
                new.store(1, Ordering::Relaxed);
                current.store((&raw const *new).cast_mut(), Ordering::Release);
                sections.grace(&QuiescentStates, |_| std::thread::yield_now());
                old.store(0, Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
