//! `vma-lock-hold-cow-fork`: as `vma-lock-hold`, but fork locks only the VMAs whose pages it copies: anonymous and
//! copy-on-write ones (Barry Song and Suren Baghdasaryan, linux-mm, May 2026).
//!
//! What all designs with VMA locks do, and where they differ from Linux, stands in [`super::vma_locked`].
//!
//! | here | there |
//! |---|---|
//! | [`Policy::fork_locks`]: private mappings | `vma_is_anonymous(vma) or is_cow_mapping(vma->vm_flags)` |
//! | all else as `vma-lock-hold` | |
//!
//! A private mapping of a file counts, if it is read-only too: `is_cow_mapping` asks whether it *may* become writable
//! (`VM_MAYWRITE`), and a program's code and libraries may. So fork waits for the I/O of those all the same.

use super::locks::Policy;
use super::vma_locked::VmaLocked;
use faultless::design::{AfterIo, Attempt};
use faultless::host::Host;
use faultless::protection::Sharing;
use faultless::vma::Mapping;

/// The design; see the module.
pub type VmaLockHoldCowFork = VmaLocked<HoldCowFork>;

/// Hold through every I/O; fork leaves shared mappings alone.
#[derive(Debug)]
pub struct HoldCowFork;

impl Policy for HoldCowFork {
    const NAME: &'static str = "vma-lock-hold-cow-fork";

    fn after_io(_: Attempt) -> AfterIo {
        AfterIo::Hold
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, slow: false, ..attempt }
    }

    fn fork_locks<H: Host>(mapping: &Mapping<H>) -> bool {
        mapping.sharing == Sharing::Private
    }
}
