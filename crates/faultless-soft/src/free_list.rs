//! A list of free frames that many threads use at once.

use faultless::sync::atomic::{AtomicU64, Ordering};
use faultless::sync::plain;

/// A Treiber stack of free frames, on cache lines of its own.
#[repr(align(128))]
pub(crate) struct FreeList {
    /// The top frame's number plus one in the lower half, a tag that grows with each change in the upper one: a
    /// frame that was taken and came back is told apart. Changed by read-modify-writes only, Release by a push,
    /// Acquire by a pop: all use of a frame happens before its next life.
    head: AtomicU64,
    /// Frames that this list's threads took, less those they gave back; wraps. Atomic; the sum over all lists counts.
    pub used: plain::AtomicU64,
}

impl FreeList {
    /// No frames.
    pub fn new() -> Self {
        Self { head: AtomicU64::new(0), used: plain::AtomicU64::new(0) }
    }

    /// Pushes the frames `top`, …, `bottom`, which are linked already but for the last one.
    pub fn push(&self, next: &[plain::AtomicU32], top: u64, bottom: u64) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            next[bottom as usize].store(head as u32, Ordering::Relaxed);
            let new = retag(head, top as u32 + 1);
            match self.head.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the top frame.
    pub fn pop(&self, next: &[plain::AtomicU32]) -> Option<u64> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let top = (head as u32).checked_sub(1)?;
            // Perhaps taken and pushed elsewhere meanwhile: then the tag has changed and this is not used.
            let below = next[top as usize].load(Ordering::Relaxed);
            let new = retag(head, below);
            match self.head.compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(u64::from(top)),
                Err(now) => head = now,
            }
        }
    }
}

fn retag(head: u64, top: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | u64::from(top)
}
