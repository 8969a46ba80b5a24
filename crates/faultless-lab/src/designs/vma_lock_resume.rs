//! `vma-lock-resume`: a fault drops the VMA lock for its I/O and takes it again afterwards. If the page can still be
//! mapped, the fault maps it. Barry Song proposed this (linux-mm, 27 November 2025: release the lock, lock the folio,
//! take the lock again, check again, map). He considered it too complex at that time.
//!
//! [`super::vma_locked`] states the common behaviour of all designs with VMA locks, and their differences from Linux.
//!
//! | here | there |
//! |---|---|
//! | [`AfterIo::Resume`]: the folio stays pinned | "lock the folio": a locked folio is not reclaimed |
//! | the VMA lock is taken again, or mmap_lock | "re-acquire the VMA lock or mmap_lock" |
//! | checked again: file, page, rights, the mapping's serial, an empty entry | "re-check whether we can still map the PTE" |
//!
//! The message has no code. The checks are those of this engine, the same as for `faultless`.

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt, Awaits};

/// The `vma-lock-resume` design; see the module.
pub type VmaLockResume = VmaLocked<Resume>;

/// Policy: take the lock again after the I/O, and resume.
#[derive(Debug)]
pub struct Resume;

impl Policy for Resume {
    const NAME: &'static str = "vma-lock-resume";

    fn after_io(_: Attempt, _: Awaits) -> AfterIo {
        AfterIo::Resume
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, slow: false, ..attempt }
    }
}
