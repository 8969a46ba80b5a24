//! A limit below the number of frames, for tests of an engine that reclaims.

use faultless::sync::plain::{AtomicU32, AtomicU64, Ordering};

/// The number of threads that are told apart.
const THREADS: usize = 128;

/// The limit of [`PhysicalMemory::make_scarce`](crate::PhysicalMemory::make_scarce).
#[derive(Debug)]
pub(crate) struct Scarcity {
    /// The number of frames in use from which on allocations are refused. Atomic.
    limit: AtomicU64,
    /// The number of allocations that succeed after a refused one. Atomic.
    granted: AtomicU32,
    /// For each thread, the number of its allocations that are to succeed. Atomic; written by the thread.
    left: [AtomicU32; THREADS],
}

impl Default for Scarcity {
    fn default() -> Self {
        Self {
            limit: AtomicU64::new(u64::MAX),
            granted: AtomicU32::new(1),
            left: [const { AtomicU32::new(0) }; THREADS],
        }
    }
}

impl Scarcity {
    pub fn set(&self, limit: u64, granted: u32) {
        self.granted.store(granted.max(1), Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns whether an allocation by the thread with slot `slot` is to fail, while `used()` frames are in use.
    pub fn refuses(&self, slot: u32, used: impl FnOnce() -> u64) -> bool {
        if used() < self.limit.load(Ordering::Relaxed) {
            return false;
        }
        let place = &self.left[slot as usize % THREADS];
        let left = place.load(Ordering::Relaxed);
        place.store(left.checked_sub(1).unwrap_or(self.granted.load(Ordering::Relaxed)), Ordering::Relaxed);
        left == 0
    }
}
