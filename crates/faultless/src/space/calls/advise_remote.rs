//! process_madvise: advice about the memory of another process. The handle of its space is the pidfd.

use crate::address::VirtAddr;
use crate::design::LockingDesign;
use crate::errno;
use crate::host::Host;
use crate::space::{AddressSpace, Advice, AdviseError};

/// The greatest number of ranges in one call (Linux: UIO_MAXIOV).
const MOST: usize = 1024;

/// The reason why a call of [`AddressSpace::advise_remote`] took no advice for a whole range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteAdviseError {
    /// A process may give such advice only about its own memory (EINVAL). Nothing was done.
    #[error("{advice:?} is no advice about the memory of another process")]
    NotRemote {
        /// The advice given.
        advice: Advice,
    },
    /// There are more than 1,024 ranges (EINVAL). Nothing was done.
    #[error("{ranges} ranges: the most in one call are {MOST}")]
    TooMany {
        /// The number of ranges.
        ranges: usize,
    },
    /// The space has exited (ESRCH). Nothing was done.
    #[error("the space has exited")]
    Exited,
    /// The first range was not advised, or only a part of it was. The others were not advised.
    #[error(transparent)]
    Advise(#[from] AdviseError),
}

impl RemoteAdviseError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotRemote { .. } | Self::TooMany { .. } => errno::EINVAL,
            Self::Exited => errno::ESRCH,
            Self::Advise(error) => error.errno(),
        }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Gives `advice` about ranges of the space from outside (process_madvise). Returns the sum of the lengths that were advised, in
    /// bytes.
    ///
    /// A manager of processes calls this, for example to reclaim the pages of a process that is in the background. Each range is an
    /// address, which is a multiple of the page size, and a length in bytes. There may be 1,024 ranges. As on Linux 6.18, only
    /// [`Advice::Cold`], [`Advice::PageOut`] and [`Advice::WillNeed`] are allowed.
    ///
    /// The ranges are advised in their order. An error of a range ends the call, and the sum has the ranges before it. A range that is
    /// advised in part, since a part of it is not mapped, is not in the sum.
    ///
    /// Any thread may call it, whatever the threads of the space do. Waits as [`AddressSpace::advise`] does for this advice: for
    /// processors that use older translations, and for no I/O.
    ///
    /// # Errors
    /// [`RemoteAdviseError`], only if the sum would be 0.
    pub fn advise_remote(
        &self,
        ranges: &[(VirtAddr, u64)],
        advice: Advice,
    ) -> Result<u64, RemoteAdviseError> {
        if ranges.len() > MOST {
            return Err(RemoteAdviseError::TooMany { ranges: ranges.len() });
        }
        if self.0.space_flags.dying.is_set() {
            return Err(RemoteAdviseError::Exited);
        }
        if !matches!(advice, Advice::Cold | Advice::PageOut | Advice::WillNeed) {
            return Err(RemoteAdviseError::NotRemote { advice });
        }
        let mut advised = 0_u64;
        for (address, length) in ranges {
            match self.advise(*address, *length, advice) {
                Ok(()) => advised = advised.saturating_add(*length),
                Err(error) if advised == 0 => return Err(error.into()),
                Err(_) => break,
            }
        }
        Ok(advised)
    }
}
