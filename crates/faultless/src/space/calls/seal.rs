//! mseal: a sealed mapping cannot be unmapped, moved, protected anew or mapped over, and does not lose contents that its owner
//! could not overwrite.

use crate::address::{PageRange, RangeError, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::Host;
use crate::space::AddressSpace;
use crate::space::calls::flags::{Holes, Wrong};
use crate::vma::{Mapping, MappingFlags};

/// The reason why nothing was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nothing is mapped at `address` (ENOMEM).
    #[error("nothing is mapped at {address}, inside the {range} to seal")]
    Hole {
        /// The range asked for.
        range: PageRange,
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// To split a mapping would exceed the limit of mappings. The part below that mapping is sealed, as on Linux (ENOMEM).
    #[error("sealing {range} would split a mapping, and the space has its limit of {limit}")]
    TooManyMappings {
        /// The range asked for.
        range: PageRange,
        /// The limit of mappings.
        limit: usize,
    },
    /// There is no memory for nodes (ENOMEM).
    #[error("out of memory to seal {range}")]
    OutOfMemory {
        /// The range asked for.
        range: PageRange,
    },
}

impl SealError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_) => errno::EINVAL,
            Self::Hole { .. } | Self::TooManyMappings { .. } | Self::OutOfMemory { .. } => errno::ENOMEM,
        }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Seals `length` bytes at `address`, for ever (mseal, which has no flags: any is EINVAL). Length 0 is no error, nor is
    /// sealing sealed memory.
    ///
    /// A child of fork has the seals. Only the end of the space removes a sealed mapping. Waits as [`AddressSpace::unmap`].
    ///
    /// A seal refuses these calls:
    ///
    /// * Unmapping or mapping over any part. Nothing is done then.
    /// * Changing the protection. The part below has been changed then.
    /// * [`Advice`](crate::space::Advice) that loses contents, in private anonymous memory that cannot be written.
    ///
    /// # Errors
    /// [`SealError`]. Unless it is `TooManyMappings`, nothing is sealed.
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
