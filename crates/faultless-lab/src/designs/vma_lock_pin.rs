//! `vma-lock-pin`: as `vma-lock`, but a fault keeps its reference to the folio when it drops the VMA lock for its I/O. It starts over
//! under mmap_lock, and finds the page in memory. The smallest change of Linux that makes each read count. Nobody has posted it; with it
//! the lock and the reference can be told apart: `vma-lock` keeps neither, `vma-lock-retry` the lock, this one the reference, and
//! `vma-lock-resume` both.
//!
//! [`super::vma_locked`] states the common behaviour of all designs with VMA locks, and their differences from Linux.
//!
//! | here | Linux 6.18 with the change |
//! |---|---|
//! | [`AfterIo::RetryPinned`]: the folio stays pinned until the next attempt has ended | `filemap_fault` keeps the reference that `fpin` and `vmf->page` would hold, in place of `folio_put` before `VM_FAULT_RETRY` |
//! | all else as `vma-lock` | |

use super::locks::Policy;
use super::vma_lock::RetryUnderMmapLock;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt, Awaits};

/// The `vma-lock-pin` design; see the module.
pub type VmaLockPin = VmaLocked<RetryPinnedUnderMmapLock>;

/// Policy: start over under mmap_lock, with the folio pinned.
#[derive(Debug)]
pub struct RetryPinnedUnderMmapLock;

impl Policy for RetryPinnedUnderMmapLock {
    const NAME: &'static str = "vma-lock-pin";

    fn after_io(attempt: Attempt, awaits: Awaits) -> AfterIo {
        match RetryUnderMmapLock::after_io(attempt, awaits) {
            AfterIo::Retry => AfterIo::RetryPinned,
            held => held,
        }
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        RetryUnderMmapLock::again(attempt, major)
    }
}
