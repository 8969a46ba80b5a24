//! `vma-lock-hold-file`: a fault on a page of a file holds the VMA lock through its I/O. A fault on an anonymous page in swap space drops
//! it, and starts over under the VMA lock. It is the third of the ways that Matthew Wilcox named at LSFMM in May 2026.
//!
//! [`super::vma_locked`] states the common behaviour of all designs with VMA locks, and their differences from Linux.
//!
//! | here | there |
//! |---|---|
//! | a page of a file: as `vma-lock-hold` | files: the VMA lock is held |
//! | an anonymous page: as `vma-lock-retry` | anonymous pages: the fault starts over under the VMA lock |
//!
//! Known difference: there is no code of it. A page of a file without a store (shared memory) counts as one of a file, also if it comes
//! from swap space.

use super::locks::Policy;
use super::vma_lock_retry;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt, Awaits};

/// The `vma-lock-hold-file` design; see the module.
pub type VmaLockHoldFile = VmaLocked<HoldForFiles>;

/// Policy: hold the lock through the I/O of files, and start over for anonymous pages.
#[derive(Debug)]
pub struct HoldForFiles;

impl Policy for HoldForFiles {
    const NAME: &'static str = "vma-lock-hold-file";

    fn after_io(attempt: Attempt, awaits: Awaits) -> AfterIo {
        match awaits {
            Awaits::File => AfterIo::Hold,
            Awaits::Anonymous => vma_lock_retry::after_io(attempt),
        }
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        vma_lock_retry::again(attempt, major)
    }
}
