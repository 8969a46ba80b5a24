//! `vma-lock-hold`: the VMA lock is held through a fault's I/O, and nothing ever starts over after it (Matthew Wilcox,
//! linux-mm, 27 November 2025: remove all of "drop the locks while we wait for I/O").
//!
//! What all designs with VMA locks do, and where they differ from Linux, stands in [`super::vma_locked`].
//!
//! | here | there |
//! |---|---|
//! | [`AfterIo::Hold`] under either lock | `filemap_fault`, `do_swap_page`, `shmem_fault` without `maybe_unlock_mmap_for_io` |
//! | fork, and all that changes such a VMA, waits for its I/O with mmap_lock held for writing | Barry Song, 19 May 2026: threads 4 and 5 of his picture |
//!
//! The message has no code that boots; the waits are killable here as they are without it.

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt};

/// The design; see the module.
pub type VmaLockHold = VmaLocked<Hold>;

/// Hold through every I/O.
#[derive(Debug)]
pub struct Hold;

impl Policy for Hold {
    const NAME: &'static str = "vma-lock-hold";

    fn after_io(_: Attempt) -> AfterIo {
        AfterIo::Hold
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, slow: false, ..attempt }
    }
}
