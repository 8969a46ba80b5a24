//! `vma-lock-retry-uptodate`: as `vma-lock-retry`, but a fault that finds its folio up to date and locked waits for it
//! with the VMA lock held, and goes on (Barry Song's second proposal in the same thread, 27 November 2025: whoever has
//! it locked is likely mapping it, and that is short).
//!
//! What all designs with VMA locks do, and where they differ from Linux, stands in [`super::vma_locked`].
//!
//! | here | there |
//! |---|---|
//! | [`Policy::after_lock`] holds | `filemap_fault`, `do_swap_page`: `folio_test_uptodate` decides for `folio_lock` instead of `lock_folio_maybe_drop_mmap` |
//! | all else as `vma-lock-retry` | |
//!
//! In the scenarios here it cannot differ from `vma-lock-retry` but by noise: faults only look at the folio's lock, so
//! that nobody but a file system ([`faultless::File::try_lock_folio`]) keeps one that is up to date locked.

use super::locks::Policy;
use super::vma_lock_retry::{after_io, again};
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt};

/// The design; see the module.
pub type VmaLockRetryUptodate = VmaLocked<KeepIfUptodate>;

/// Start over under the VMA lock, unless the page is there.
#[derive(Debug)]
pub struct KeepIfUptodate;

impl Policy for KeepIfUptodate {
    const NAME: &'static str = "vma-lock-retry-uptodate";

    fn after_io(attempt: Attempt) -> AfterIo {
        after_io(attempt)
    }

    fn after_lock(_: Attempt) -> AfterIo {
        AfterIo::Hold
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        again(attempt, major)
    }
}
