//! `vma-lock-retry-uptodate`: as `vma-lock-retry`, but a fault that finds its folio up to date and locked waits for it
//! with the VMA lock held, and continues. This is Barry Song's second proposal in the same thread (27 November 2025).
//! His reason: the holder of the folio's lock probably maps the folio, and this is short.
//!
//! [`super::vma_locked`] states the common behaviour of all designs with VMA locks, and their differences from Linux.
//!
//! | here | there |
//! |---|---|
//! | [`Policy::after_lock`] holds | `filemap_fault`, `do_swap_page`: `folio_test_uptodate` selects `folio_lock` instead of `lock_folio_maybe_drop_mmap` |
//! | all else as `vma-lock-retry` | |
//!
//! In the scenarios here it differs from `vma-lock-retry` only by noise. Faults only check the folio's lock, so only a
//! file system ([`faultless::File::try_lock_folio`]) keeps an up-to-date folio locked.

use super::locks::Policy;
use super::vma_lock_retry::{after_io, again};
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt, Awaits};

/// The `vma-lock-retry-uptodate` design; see the module.
pub type VmaLockRetryUptodate = VmaLocked<KeepIfUptodate>;

/// Policy: start over under the VMA lock, unless the page is in memory.
#[derive(Debug)]
pub struct KeepIfUptodate;

impl Policy for KeepIfUptodate {
    const NAME: &'static str = "vma-lock-retry-uptodate";

    fn after_io(attempt: Attempt, _: Awaits) -> AfterIo {
        after_io(attempt)
    }

    fn after_lock(_: Attempt) -> AfterIo {
        AfterIo::Hold
    }

    fn again(attempt: Attempt, major: bool) -> Attempt {
        again(attempt, major)
    }
}
