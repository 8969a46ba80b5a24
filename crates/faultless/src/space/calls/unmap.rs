//! munmap: removes mappings.

use crate::address::{PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::errno;
use crate::host::Host;
use crate::space::change::publish::Unpublished;
use crate::space::{AddressSpace, Space};

/// The reason why nothing was unmapped. The space is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnmapError {
    /// The address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A part of the range is sealed (EPERM).
    #[error("the mapping at {address}, inside the {range} to unmap, is sealed")]
    Sealed {
        /// The range asked for.
        range: PageRange,
        /// The first address that is sealed.
        address: VirtAddr,
    },
    /// The range reaches past what the table can address (EINVAL).
    #[error("{range} lies outside of the address space, {space}")]
    OutOfBounds {
        /// The range asked for.
        range: PageRange,
        /// All pages that can be mapped.
        space: PageRange,
    },
    /// To split a mapping would exceed the limit of mappings (ENOMEM).
    #[error("unmapping {range} would split a mapping, and the space has its limit of {limit}")]
    TooManyMappings {
        /// The range asked for.
        range: PageRange,
        /// The limit of mappings.
        limit: usize,
    },
    /// There is no memory for nodes (ENOMEM).
    #[error("out of memory to unmap {range}")]
    OutOfMemory {
        /// The range asked for.
        range: PageRange,
    },
}

impl UnmapError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_) | Self::OutOfBounds { .. } => errno::EINVAL,
            Self::Sealed { .. } => errno::EPERM,
            Self::TooManyMappings { .. } | Self::OutOfMemory { .. } => errno::ENOMEM,
        }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Unmaps `length` bytes at `address`. Holes among them are no error. When this returns, no access to them succeeds and
    /// their frames are free. Waits for other range work on the same pages, and for faults that are at work on them. Waits for
    /// no I/O.
    ///
    /// # Errors
    /// [`UnmapError`]; the space is as before.
    pub fn unmap(&self, address: VirtAddr, length: u64) -> Result<(), UnmapError> {
        let range = PageRange::from_bytes(address, length)?;
        let whole = self.0.whole();
        if !whole.covers(range) {
            return Err(UnmapError::OutOfBounds { range, space: whole });
        }
        self.0.unmap(range)
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    pub(in crate::space) fn unmap(&self, asked: PageRange) -> Result<(), UnmapError> {
        let Some(range) = asked.intersection(self.whole()) else { return Ok(()) };
        let mut call = self.change_excluding(Call::Unmap, range);
        let still =
            call.take_concurrent(range, |taken, claims, view| self.widen_to_leaves(taken, claims, view));
        let view = self.view_of(&still);
        if self.is_hole(view, range) {
            return Ok(());
        }
        if let Some(sealed) = self.first_sealed(view, range) {
            return Err(UnmapError::Sealed { range: asked, address: sealed.address() });
        }
        call.publish_concurrent(still, (range, None), |_| None).map_err(|error| match error {
            Unpublished::OutOfMemory => UnmapError::OutOfMemory { range: asked },
            Unpublished::TooMany { limit } => UnmapError::TooManyMappings { range: asked, limit },
        })?;
        D::published(call.work());
        call.sweep_away(range, Some(call.range()));
        Ok(())
    }
}
