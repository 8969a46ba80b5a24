//! `vma-lock-resume`: the VMA lock is let go of for a fault's I/O and taken again after it; if the page can still be
//! mapped, it is (Barry Song, linux-mm, 27 November 2025: release the lock, lock the folio, take the lock again, check
//! again, map; he thought it too complex for then).
//!
//! What all designs with VMA locks do, and where they differ from Linux, stands in [`super::vma_locked`].
//!
//! | here | there |
//! |---|---|
//! | [`AfterIo::Resume`]: the folio stays pinned | "lock the folio": locked, it is not reclaimed |
//! | the VMA lock again, else mmap_lock | "re-acquire the VMA lock or mmap_lock" |
//! | what is compared: file, page, rights, the mapping's serial, an empty entry | "re-check whether we can still map the PTE" |
//!
//! The message has no code; what is compared is this engine's, the same as for `faultless`.

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt};

/// The design; see the module.
pub type VmaLockResume = VmaLocked<Resume>;

/// Take the lock again after the I/O, and go on.
#[derive(Debug)]
pub struct Resume;

impl Policy for Resume {
    const NAME: &'static str = "vma-lock-resume";

    fn after_io(_: Attempt) -> AfterIo {
        AfterIo::Resume
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, slow: false, ..attempt }
    }
}
