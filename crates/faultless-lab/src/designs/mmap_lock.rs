//! `mmap-lock`: one lock for the whole space, dropped for a fault's first I/O. It models Linux from 2.6.37 to 6.3.
//!
//! Until 5.1, a fault dropped the lock only if it waited for a page that another thread was reading. This preset models
//! the later behaviour.
//!
//! [`super::mmap_locked`] states the common behaviour of both mmap_lock designs, and their differences from Linux.
//!
//! | here | there (6.3) |
//! |---|---|
//! | the first attempt drops the lock before the wait, [`AfterIo::Retry`] | `filemap_fault`: `maybe_unlock_mmap_for_io` drops it, `VM_FAULT_RETRY` |
//! | an attempt that has waited once holds the lock, [`AfterIo::Hold`] | `do_user_addr_fault` sets `FAULT_FLAG_TRIED`: `fault_flag_allow_retry_first` returns false |

use super::locks::Policy;
use super::mmap_locked::MmapLocked;
use faultless::design::{AfterIo, Attempt, Awaits};

/// The `mmap-lock` design; see the module.
pub type MmapLock = MmapLocked<DropOnce>;

/// Policy: drop the lock for the first I/O, and hold it through any later I/O.
#[derive(Debug)]
pub struct DropOnce;

impl Policy for DropOnce {
    const NAME: &'static str = "mmap-lock";

    fn after_io(attempt: Attempt, _: Awaits) -> AfterIo {
        if attempt.tried { AfterIo::Hold } else { AfterIo::Retry }
    }

    fn again(attempt: Attempt, _major: bool) -> Attempt {
        Attempt { retries: attempt.retries + 1, tried: true, ..attempt }
    }
}
