//! `vma-lock-retry`: as `vma-lock`, but a fault that let go of a VMA lock for its I/O starts over under the VMA lock
//! (Barry Song and Oven Liyang, "mm: continue using per-VMA lock when retrying page faults after I/O", linux-mm,
//! 27 November 2025).
//!
//! What all designs with VMA locks do, and where they differ from Linux, stands in [`super::vma_locked`].
//!
//! | here | there |
//! |---|---|
//! | under the VMA lock: let go, then the VMA lock again | `VM_FAULT_RETRY_VMA` leads to `retry_vma` |
//! | a second attempt, if the first was major, holds the VMA lock through its I/O | `FAULT_FLAG_TRIED` is set before `retry_vma`: `maybe_unlock_mmap_for_io` lets nothing go |
//! | a retry for another reason than I/O goes under mmap_lock | without `VM_FAULT_RETRY_VMA`: `lock_mmap` |
//! | under mmap_lock as `vma-lock` | unchanged |
//!
//! Difference that is known: the patch sets `VM_FAULT_RETRY_VMA` where a folio's lock was waited for, as after read-ahead.
//! A fault that submitted the read itself (`page_not_uptodate`: a file mapped with `MADV_RANDOM`) goes under mmap_lock
//! still: as posted, the patch would be like `vma-lock` in these scenarios, which have no read-ahead. Modelled is what
//! its authors intend and measured, faults with read-ahead.

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt};

/// The design; see the module.
pub type VmaLockRetry = VmaLocked<RetryUnderVmaLock>;

/// Start over under the VMA lock.
#[derive(Debug)]
pub struct RetryUnderVmaLock;

/// As the patch has it.
pub(super) fn again(attempt: Attempt, major: bool) -> Attempt {
    let tried = attempt.tried || attempt.slow || major;
    Attempt { retries: attempt.retries + 1, tried, ..attempt }
}

/// As the patch has it.
pub(super) fn after_io(attempt: Attempt) -> AfterIo {
    if attempt.tried { AfterIo::Hold } else { AfterIo::Retry }
}

impl Policy for RetryUnderVmaLock {
    const NAME: &'static str = "vma-lock-retry";

    fn after_io(attempt: Attempt) -> AfterIo {
        after_io(attempt)
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        again(attempt, major)
    }
}
