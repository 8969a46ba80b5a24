//! madvise(MADV_DONTNEED): drops pages and keeps the mapping.

use crate::address::{PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::errno;
use crate::host::Host;
use crate::space::calls::advise::{Advice, Refusal, refuses};
use crate::space::calls::flags::{Holes, Wrong};
use crate::space::{AddressSpace, Space};

/// The reason why not everything was discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscardError {
    /// The address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nothing is mapped at `address`. All mapped parts of the range have been discarded, as on Linux (ENOMEM).
    #[error("nothing is mapped at {address}, inside the {range} to discard; the rest was discarded")]
    Hole {
        /// The range asked for.
        range: PageRange,
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// The mapping at `address` is locked. The part below it has been discarded (EINVAL).
    #[error("the mapping at {address} is locked")]
    Locked {
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// The mapping at `address` is sealed and cannot be written. The part below it has been discarded (EPERM).
    #[error("the mapping at {address} is sealed")]
    Sealed {
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// There is no memory to take the range (ENOMEM).
    #[error("out of memory to discard {range}")]
    OutOfMemory {
        /// The range asked for.
        range: PageRange,
    },
}

impl DiscardError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_) | Self::Locked { .. } => errno::EINVAL,
            Self::Sealed { .. } => errno::EPERM,
            Self::Hole { .. } | Self::OutOfMemory { .. } => errno::ENOMEM,
        }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Drops the pages of `length` bytes at `address`. Private memory then reads as zeros or as the file. When this returns, no
    /// access reaches the old pages. Guard pages stay. Waits as [`AddressSpace::unmap`].
    ///
    /// # Errors
    /// [`DiscardError`]. A hole does not keep the rest from being discarded; a locked or sealed mapping does.
    pub fn discard(&self, address: VirtAddr, length: u64) -> Result<(), DiscardError> {
        match PageRange::from_bytes(address, length) {
            Err(RangeError::ZeroLength { .. }) => Ok(()),
            range => self.0.discard(range?),
        }
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    fn discard(&self, range: PageRange) -> Result<(), DiscardError> {
        let start = range.start().address();
        let inside = range.intersection(self.whole()).ok_or(DiscardError::Hole { range, address: start })?;
        let mut call = self.change(Call::Discard, inside);
        let lock = call.take(inside);
        let reach = self.reach(&lock, range, Holes::Skip, |mapping| refuses(mapping, Advice::DontNeed));
        drop(lock);
        // The mapping stays, so nothing is published and no leaf table goes (rule 3). The sweep alone waits for faults at work.
        // A later fault may bring a new page.
        if let Some(part) = PageRange::new(inside.start(), reach.end.min(inside.end())) {
            call.take_out(part, |_, old| old.dropped());
        }
        match reach.error {
            None => Ok(()),
            Some(Wrong::Refused(address, Refusal::Sealed)) => Err(DiscardError::Sealed { address }),
            Some(Wrong::Refused(address, _)) => Err(DiscardError::Locked { address }),
            Some(Wrong::Hole(address)) => Err(DiscardError::Hole { range, address }),
            Some(Wrong::All(_) | Wrong::TooMany { .. } | Wrong::OutOfMemory) => {
                Err(DiscardError::OutOfMemory { range })
            }
        }
    }
}
