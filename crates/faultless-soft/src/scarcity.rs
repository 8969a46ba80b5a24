//! A limit below the number of frames, for tests of an engine that reclaims.

use faultless::sync::plain::{AtomicBool, AtomicU64, Ordering};

/// The number of threads that are told apart.
const THREADS: usize = 128;

/// The limit of [`PhysicalMemory::make_scarce`](crate::PhysicalMemory::make_scarce).
#[derive(Debug)]
pub(crate) struct Scarcity {
    /// The number of frames in use from which on allocations are refused. Atomic.
    limit: AtomicU64,
    /// For each thread, whether its last allocation was refused. Atomic; written by the thread.
    refused: [AtomicBool; THREADS],
}

impl Default for Scarcity {
    fn default() -> Self {
        Self { limit: AtomicU64::new(u64::MAX), refused: [const { AtomicBool::new(false) }; THREADS] }
    }
}

impl Scarcity {
    pub fn set(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns whether an allocation by the thread with slot `slot` is to fail, while `used()` frames are in use.
    pub fn refuses(&self, slot: u32, used: impl FnOnce() -> u64) -> bool {
        let refused = &self.refused[slot as usize % THREADS];
        let refuses = !refused.load(Ordering::Relaxed) && used() >= self.limit.load(Ordering::Relaxed);
        refused.store(refuses, Ordering::Relaxed);
        refuses
    }
}
