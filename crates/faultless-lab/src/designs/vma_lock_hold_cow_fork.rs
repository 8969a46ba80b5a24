//! `vma-lock-hold-cow-fork`: as `vma-lock-hold`, but fork locks only VMAs whose pages it copies. Those are anonymous
//! and copy-on-write VMAs (Barry Song and Suren Baghdasaryan, linux-mm, May 2026).
//!
//! [`super::vma_locked`] states the common behaviour of all designs with VMA locks, and their differences from Linux.
//!
//! | here | there |
//! |---|---|
//! | [`Policy::fork_locks`]: private mappings | `vma_is_anonymous(vma) or is_cow_mapping(vma->vm_flags)` |
//! | all else as `vma-lock-hold` | |
//!
//! A private mapping of a file counts even if it is read-only. `is_cow_mapping` tests whether the mapping *may* become
//! writable (`VM_MAYWRITE`), and a program's code and libraries may. So fork still waits for the I/O of those mappings.

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt, Awaits};
use faultless::host::Host;
use faultless::protection::Sharing;
use faultless::vma::Mapping;

/// The `vma-lock-hold-cow-fork` design; see the module.
pub type VmaLockHoldCowFork = VmaLocked<HoldCowFork>;

/// Policy: hold the lock through every I/O. fork does not lock shared mappings.
#[derive(Debug)]
pub struct HoldCowFork;

impl Policy for HoldCowFork {
    const NAME: &'static str = "vma-lock-hold-cow-fork";

    fn after_io(_: Attempt, _: Awaits) -> AfterIo {
        AfterIo::Hold
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, slow: false, ..attempt }
    }

    fn fork_locks<H: Host>(mapping: &Mapping<H>) -> bool {
        mapping.sharing == Sharing::Private
    }
}
