//! The facade for atomics and locks, of `core` or of loom: no other place names them. Above them are the read sections
//! ([`Sections`]), the retired things that wait for their grace period ([`Retired`]), and the reserved ranges ([`Ranges`]).

mod barrier;
mod held;
mod life;
mod listed;
mod meter;
mod modelled;
mod mutex;
mod once_box;
mod ranges;
mod retired;
mod section;
mod shared;
mod short_lock;
mod slot;
mod stocks;
mod wait;

pub use barrier::{Barrier, FenceBarrier, QuiescentStates};
pub use held::Held;
pub use life::{Life, OutOfMemory, try_box};
pub(crate) use life::{try_box_or_back, try_box_uninit, try_box_zeroed};
#[cfg(feature = "std")]
pub use mutex::Condvar;
pub use mutex::{Mutex, MutexGuard};
pub(crate) use once_box::OnceBox;
pub(crate) use ranges::ROOM_OF_RANGES;
pub use ranges::{
    BesideGuard, Choice, Claims, Edit, Edited, Ranges, RangesGuard, Reservation, Stable, TakenLocked,
};
pub use retired::{Kept, Retired, RetiredKind, RetiredList};
pub use section::{AccessSection, Section, Sections};
pub(crate) use shared::LeftToRetired;
pub use shared::{Counted, Shared, Weak};
pub use short_lock::{ShortLock, SpinLock};
pub use slot::{Pinned, SlotIndex};
pub(crate) use wait::{BoxedWaiter, WaitList, WaitQueue, Waiter, Woken};
pub use wait::{Park, Sleeper};

/// The atomics whose order is part of the protocol.
pub mod atomic {
    #[cfg(not(loom))]
    pub(crate) use core::sync::atomic::compiler_fence;
    #[cfg(not(loom))]
    pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(loom)]
    pub use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

/// Makes a SeqCst fence. Under loom, a fence is no branch point, so orders that differ only in which of two fences came first
/// would not be tried. There, a step on an atomic is made with it.
#[inline]
pub fn full_fence() {
    #[cfg(loom)]
    {
        loom::lazy_static! {
            static ref ORDER: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
        }
        ORDER.fetch_add(1, atomic::Ordering::Relaxed);
    }
    atomic::fence(atomic::Ordering::SeqCst);
}

/// Makes a full fence right after an atomic read-modify-write of this thread that took place (a compare-and-swap that
/// succeeded), regardless of its order. Linux calls it `smp_mb__after_atomic`.
///
/// On x86-64 such a step is a locked instruction, and "reads or writes cannot be reordered with I/O instructions, locked
/// instructions, or serializing instructions" (Intel's manual, volume 3, "Memory Ordering in P6 and More Recent Processor
/// Families"); so only the compiler is held back there. Elsewhere it is [`full_fence`].
#[inline]
pub fn fence_after_rmw() {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    atomic::compiler_fence(atomic::Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    full_fence();
}

/// Atomics that order nothing: those of `core` under every back-end, so that models stay small.
pub mod plain {
    pub use core::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
    };
}

/// Makes one step of a short wait for another processor.
#[inline]
pub fn spin_loop() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}
