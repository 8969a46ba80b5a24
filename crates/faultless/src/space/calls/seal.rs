//! mseal: from now on the mapping is not unmapped, moved, protected anew, mapped over, nor does it lose contents that
//! its owner could not overwrite.

use crate::address::{PageRange, RangeError, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::Host;
use crate::space::AddressSpace;
use crate::space::calls::flags::{Holes, Wrong};
use crate::vma::{Mapping, MappingFlags};

/// Why nothing was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nothing is mapped at `address` (ENOMEM).
    #[error("nothing is mapped at {address}, inside the {range} to seal")]
    Hole {
        /// What was asked for.
        range: PageRange,
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// Splitting a mapping would make more than the limit; what lies below that mapping is sealed, as on Linux (ENOMEM).
    #[error("sealing {range} would split a mapping, and the space has its limit of {limit}")]
    TooManyMappings {
        /// What was asked for.
        range: PageRange,
        /// The limit.
        limit: usize,
    },
    /// No memory for nodes (ENOMEM).
    #[error("out of memory to seal {range}")]
    OutOfMemory {
        /// What was asked for.
        range: PageRange,
    },
}

impl SealError {
    /// Linux's number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_) => errno::EINVAL,
            Self::Hole { .. } | Self::TooManyMappings { .. } | Self::OutOfMemory { .. } => errno::ENOMEM,
        }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// mseal, which has no flags (any is EINVAL): seals `length` bytes at `address`, for ever; length 0 is no error, nor is sealing what is sealed. A child
    /// of fork has the seals. Only the end of the space takes a sealed mapping away. Waits as [`AddressSpace::unmap`].
    ///
    /// What it refuses: unmapping and mapping over any part of it, of which nothing is done then; changing its
    /// protection, where what lies below is done; and, of private anonymous memory without the right to write,
    /// [`Advice`](crate::space::Advice) that loses contents.
    ///
    /// # Errors
    /// [`SealError`]; unless it is `TooManyMappings`, nothing is sealed.
    pub fn seal(&self, address: VirtAddr, length: u64) -> Result<(), SealError> {
        let range = match PageRange::from_bytes(address, length) {
            Err(RangeError::ZeroLength { .. }) => return Ok(()),
            range => range?,
        };
        let space = &*self.0;
        let change = |mapping: &Mapping<H>| mapping.flags | MappingFlags::SEALED;
        let sealed = space.change_flags(range, Holes::Refuse, |_| Ok::<(), ()>(()), |_| None, change);
        sealed.map_err(|wrong| match wrong {
            Wrong::Hole(address) | Wrong::Refused(address, ()) => SealError::Hole { range, address },
            Wrong::TooMany { limit } => SealError::TooManyMappings { range, limit },
            Wrong::All(()) | Wrong::OutOfMemory => SealError::OutOfMemory { range },
        })
    }
}
