//! `vma-lock`: a lock in each VMA, dropped for a fault's I/O. Then the fault starts over under mmap_lock. It models
//! Linux 6.18. Linux has this design since 6.4 (anonymous memory) and 6.6 (files).
//!
//! [`super::vma_locked`] states the common behaviour of all designs with VMA locks, and their differences from Linux.
//!
//! | here | there (6.18) |
//! |---|---|
//! | under the VMA lock: drop it, then take mmap_lock | `filemap_fault`: `maybe_unlock_mmap_for_io`; `do_user_addr_fault`: `VM_FAULT_RETRY` leads to `lock_mmap` |
//! | under mmap_lock: hold it through I/O if the first attempt was major, or if this was tried before | `VM_FAULT_MAJOR` sets `FAULT_FLAG_TRIED`; so does every retry under mmap_lock |
//! | under mmap_lock and not tried: drop it, then take mmap_lock again | `fault_flag_allow_retry_first` |

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt, Awaits};

/// The `vma-lock` design; see the module.
pub type VmaLock = VmaLocked<RetryUnderMmapLock>;

/// Policy: start over under mmap_lock.
#[derive(Debug)]
pub struct RetryUnderMmapLock;

impl Policy for RetryUnderMmapLock {
    const NAME: &'static str = "vma-lock";

    fn after_io(attempt: Attempt, _: Awaits) -> AfterIo {
        // An attempt that was tried is under mmap_lock.
        if attempt.tried { AfterIo::Hold } else { AfterIo::Retry }
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        let tried = attempt.tried || attempt.slow || major;
        Attempt { retries: attempt.retries + 1, tried, slow: true, ..attempt }
    }
}
