//! The one place that names atomics and locks: `core`, loom or shuttle behind one facade. Above them the read
//! section ([`Sections`]), what is retired until its grace period ([`Retired`]), and taken ranges ([`Ranges`]).

mod life;
mod mutex;
mod ranges;
mod section;
mod shared;

pub(crate) use life::try_box_or_back;
pub use life::{Life, OutOfMemory, try_box};
#[cfg(feature = "std")]
pub use mutex::Condvar;
pub use mutex::{Mutex, MutexGuard};
pub use ranges::{Choice, Claims, Park, Ranges, RangesGuard, Reservation, Stable, TakenLocked};
pub use section::{Barrier, FenceBarrier, Retired, Section, Sections, SlotIndex};
pub use shared::{Counted, Shared, Weak};

/// Atomics whose order is part of the protocol.
pub mod atomic {
    #[cfg(not(any(loom, shuttle)))]
    pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(loom)]
    pub use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(shuttle)]
    pub use shuttle::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

/// A SeqCst fence. Under loom a fence is no branch point, so that orders which differ only in which of two fences came
/// first would not be tried; there a step on one atomic comes with it.
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

/// Counters that order nothing: plain `core` atomics under every back-end, so that models stay small.
pub mod plain {
    pub use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
}

/// One step of a short wait on another processor.
#[inline]
pub fn spin_loop() {
    #[cfg(not(any(loom, shuttle)))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
}
