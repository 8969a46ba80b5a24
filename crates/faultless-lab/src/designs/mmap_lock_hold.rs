//! `mmap-lock-hold`: one lock a space, held through a fault's I/O: Linux before 2.6.37, where `filemap_fault` locked
//! the page with mmap_sem held for reading, and no fault ever started over.
//!
//! What both designs of mmap_lock alone do, and where they differ from Linux, stands in [`super::mmap_locked`]; here
//! besides: munmap did not go on as a reader then (that came with 4.20), and the waits were not killable.

use super::locks::Policy;
use super::mmap_locked::MmapLocked;
use faultless::design::{AfterIo, Attempt};

/// The design; see the module.
pub type MmapLockHold = MmapLocked<Hold>;

/// Hold through every I/O.
#[derive(Debug)]
pub struct Hold;

impl Policy for Hold {
    const NAME: &'static str = "mmap-lock-hold";

    fn after_io(_: Attempt) -> AfterIo {
        AfterIo::Hold
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, ..attempt }
    }
}
