//! `vma-lock-retry`: as `vma-lock`, but a fault that dropped a VMA lock for its I/O starts over under the VMA lock
//! (Barry Song and Oven Liyang, "mm: continue using per-VMA lock when retrying page faults after I/O", linux-mm, 27
//! November 2025).
//!
//! [`super::vma_locked`] states the common behaviour of all designs with VMA locks, and their differences from Linux.
//!
//! | here | there |
//! |---|---|
//! | under the VMA lock: drop it, then take the VMA lock again | `VM_FAULT_RETRY_VMA` leads to `retry_vma` |
//! | a second attempt, if the first was major, holds the VMA lock through its I/O | `FAULT_FLAG_TRIED` is set before `retry_vma`: `maybe_unlock_mmap_for_io` drops nothing |
//! | a retry for another reason than I/O goes under mmap_lock | without `VM_FAULT_RETRY_VMA`: `lock_mmap` |
//! | under mmap_lock as `vma-lock` | unchanged |
//!
//! Known difference: the patch sets `VM_FAULT_RETRY_VMA` after a wait for a folio's lock, as after read-ahead. A fault
//! that submitted the read itself (`page_not_uptodate`: a file mapped with `MADV_RANDOM`) still goes under mmap_lock.
//! These scenarios have no read-ahead, so the patch as posted would behave like `vma-lock` in them. This preset models
//! the case that its authors intend and measured: faults with read-ahead.

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt, Awaits};

/// The `vma-lock-retry` design; see the module.
pub type VmaLockRetry = VmaLocked<RetryUnderVmaLock>;

/// Policy: start over under the VMA lock.
#[derive(Debug)]
pub struct RetryUnderVmaLock;

/// Returns the next attempt, as the patch does.
pub(super) fn again(attempt: Attempt, major: bool) -> Attempt {
    let tried = attempt.tried || attempt.slow || major;
    Attempt { retries: attempt.retries + 1, tried, ..attempt }
}

/// Returns how a fault handles its locks for I/O, as the patch does.
pub(super) fn after_io(attempt: Attempt) -> AfterIo {
    if attempt.tried { AfterIo::Hold } else { AfterIo::Retry }
}

impl Policy for RetryUnderVmaLock {
    const NAME: &'static str = "vma-lock-retry";

    fn after_io(attempt: Attempt, _: Awaits) -> AfterIo {
        after_io(attempt)
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        again(attempt, major)
    }
}
