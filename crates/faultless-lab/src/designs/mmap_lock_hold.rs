//! `mmap-lock-hold`: one lock for the whole space, held through a fault's I/O. It models Linux before 2.6.37. There
//! `filemap_fault` locked the page with mmap_sem held for reading, and no fault ever started over.
//!
//! [`super::mmap_locked`] states the common behaviour of both mmap_lock designs, and their differences from Linux. Two
//! more differences apply here. munmap did not continue as a reader then (this came with 4.20), and the waits were not
//! killable.

use super::locks::Policy;
use super::mmap_locked::MmapLocked;
use faultless::design::{AfterIo, Attempt, Awaits};

/// The `mmap-lock-hold` design; see the module.
pub type MmapLockHold = MmapLocked<Hold>;

/// Policy: hold the lock through every I/O.
#[derive(Debug)]
pub struct Hold;

impl Policy for Hold {
    const NAME: &'static str = "mmap-lock-hold";

    fn after_io(_: Attempt, _: Awaits) -> AfterIo {
        AfterIo::Hold
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, ..attempt }
    }
}
