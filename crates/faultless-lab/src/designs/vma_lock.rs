//! `vma-lock`: a lock in each VMA, let go of for a fault's I/O, after which the fault starts over under mmap_lock: Linux
//! from 6.4 (anonymous memory) and 6.6 (files) on; modelled here as of 6.18.
//!
//! What all designs with VMA locks do, and where they differ from Linux, stands in [`super::vma_locked`].
//!
//! | here | there (6.18) |
//! |---|---|
//! | under the VMA lock: let go, then mmap_lock | `filemap_fault`: `maybe_unlock_mmap_for_io`; `do_user_addr_fault`: `VM_FAULT_RETRY` leads to `lock_mmap` |
//! | under mmap_lock: held through I/O if the first attempt was major, or this was tried before | `VM_FAULT_MAJOR` sets `FAULT_FLAG_TRIED`; so does every retry under mmap_lock |
//! | under mmap_lock and not tried: let go, then mmap_lock again | `fault_flag_allow_retry_first` |

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt};

/// The design; see the module.
pub type VmaLock = VmaLocked<RetryUnderMmapLock>;

/// Start over under mmap_lock.
#[derive(Debug)]
pub struct RetryUnderMmapLock;

impl Policy for RetryUnderMmapLock {
    const NAME: &'static str = "vma-lock";

    fn after_io(attempt: Attempt) -> AfterIo {
        // Tried, it is under mmap_lock.
        if attempt.tried { AfterIo::Hold } else { AfterIo::Retry }
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        let tried = attempt.tried || attempt.slow || major;
        Attempt { retries: attempt.retries + 1, tried, slow: true, ..attempt }
    }
}
