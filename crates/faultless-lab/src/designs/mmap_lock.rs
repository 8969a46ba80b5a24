//! `mmap-lock`: one lock a space, let go of for a fault's first I/O: Linux from 2.6.37 to 6.3.
//!
//! Until 5.1 only the wait for a page that somebody else was reading let go of it; this is the later one.
//!
//! What both designs of mmap_lock alone do, and where they differ from Linux, stands in [`super::mmap_locked`].
//!
//! | here | there (6.3) |
//! |---|---|
//! | the first attempt drops it before the wait, [`AfterIo::Retry`] | `filemap_fault`: `maybe_unlock_mmap_for_io` drops it, `VM_FAULT_RETRY` |
//! | an attempt that has waited once holds it, [`AfterIo::Hold`] | `do_user_addr_fault` sets `FAULT_FLAG_TRIED`: `fault_flag_allow_retry_first` says no |

use super::locks::Policy;
use super::mmap_locked::MmapLocked;
use faultless::design::{AfterIo, Attempt};

/// The design; see the module.
pub type MmapLock = MmapLocked<DropOnce>;

/// Let go for the first I/O, hold through any other.
#[derive(Debug)]
pub struct DropOnce;

impl Policy for DropOnce {
    const NAME: &'static str = "mmap-lock";

    fn after_io(attempt: Attempt) -> AfterIo {
        if attempt.tried { AfterIo::Hold } else { AfterIo::Retry }
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, tried: true, ..attempt }
    }
}
