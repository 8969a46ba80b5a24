//! `vma-lock-hold`: a fault holds the VMA lock through its I/O and never starts over after it. Matthew Wilcox proposed
//! to remove all of "drop the locks while we wait for I/O" (linux-mm, 27 November 2025).
//!
//! [`super::vma_locked`] states the common behaviour of all designs with VMA locks, and their differences from Linux.
//!
//! | here | there |
//! |---|---|
//! | [`AfterIo::Hold`] under either lock | `filemap_fault`, `do_swap_page`, `shmem_fault` without `maybe_unlock_mmap_for_io` |
//! | fork, and every change of such a VMA, waits for its I/O with mmap_lock held for writing | Barry Song, 19 May 2026: threads 4 and 5 of his picture |
//!
//! The message has no code that boots. The waits are killable here, as in Linux without the proposal.

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt, Awaits};

/// The `vma-lock-hold` design; see the module.
pub type VmaLockHold = VmaLocked<Hold>;

/// Policy: hold the lock through every I/O.
#[derive(Debug)]
pub struct Hold;

impl Policy for Hold {
    const NAME: &'static str = "vma-lock-hold";

    fn after_io(_: Attempt, _: Awaits) -> AfterIo {
        AfterIo::Hold
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, slow: false, ..attempt }
    }
}
