//! The request and the errors of mremap, and the checks of a request that need only its numbers and one mapping.

use crate::address::{PAGE_SHIFT, PAGE_SIZE, PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::{Host, OutOfMemory};
use crate::protection::Sharing;
use crate::space::LimitError;
use crate::space::change::publish::{Refused, Unpublished};
use crate::vma::tree::Ranged;
use crate::vma::{Mapping, MappingFlags, Vma};

bitflags::bitflags! {
    /// The ways in which memory may move.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct RemapFlags: u8 {
        /// Allows another place, if need be (MREMAP_MAYMOVE).
        const MAY_MOVE = 1 << 0;
        /// Demands the place [`RemapRequest::new`]. Existing mappings there are replaced (MREMAP_FIXED). Needs `MAY_MOVE`.
        const FIXED = 1 << 1;
        /// Keeps the old place mapped, without its pages (MREMAP_DONTUNMAP). Needs `MAY_MOVE`, and as many pages as before.
        const DONT_UNMAP = 1 << 2;
    }
}

/// A request to resize or move memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemapRequest {
    /// The address of the memory.
    pub old: VirtAddr,
    /// The old length in bytes, rounded up to whole pages. With length 0, a shared mapping is mapped once more.
    pub old_length: u64,
    /// The new length in bytes, rounded up to whole pages.
    pub new_length: u64,
    /// The ways in which the memory may move.
    pub flags: RemapFlags,
    /// The new address. With `FIXED`, the memory goes there. With `DONT_UNMAP` alone, it goes there if that place is free.
    pub new: VirtAddr,
}

impl RemapRequest {
    /// Requests another length, at the same place or where there is room.
    pub fn resize(old: VirtAddr, old_length: u64, new_length: u64) -> Self {
        let new = VirtAddr::default();
        Self { old, old_length, new_length, flags: RemapFlags::MAY_MOVE, new }
    }

    /// Requests to move `length` bytes from `old` to `new`, and to replace existing mappings there.
    pub fn to(old: VirtAddr, length: u64, new: VirtAddr) -> Self {
        let flags = RemapFlags::MAY_MOVE | RemapFlags::FIXED;
        Self { old, old_length: length, new_length: length, flags, new }
    }
}

/// The reason why memory was not remapped. Unless a variant says more, the space is as before, with these exceptions:
///
/// * With `FIXED`, mappings at the new place, and the part that was to be cut off, may be gone. Of several mappings, those
///   below the one that failed have moved, as on Linux.
/// * After `OutOfMemory` a mapping may stay split, as on Linux. If there was no memory even to undo, the new place stays in the
///   listing and is a hole to every access, until a call covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemapError {
    /// An address is wrong, or a length is zero or too long (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The flags do not go together, or are unknown (EINVAL).
    #[error("{flags:?} do not go together, or not with {old_length} bytes that become {new_length}")]
    MappingFlags {
        /// The flags asked for.
        flags: RemapFlags,
        /// The old length in bytes.
        old_length: u64,
        /// The new length in bytes.
        new_length: u64,
    },
    /// The new place lies outside of the address space, or the length exceeds the whole space (EINVAL).
    #[error("{length} bytes at {address} do not fit into the address space, {space}")]
    OutOfBounds {
        /// The address that is out of bounds.
        address: VirtAddr,
        /// The length in bytes.
        length: u64,
        /// All pages that can be mapped.
        space: PageRange,
    },
    /// The new place overlaps the old one (EINVAL).
    #[error("the new place {new} overlaps the old one {old}")]
    Overlap {
        /// The address of the old place.
        old: VirtAddr,
        /// The address of the new place.
        new: VirtAddr,
    },
    /// The old length is zero, and the mapping is not shared (EINVAL).
    #[error("the mapping at {address} is private: there is nothing to map a second time")]
    Private {
        /// The old address.
        address: VirtAddr,
    },
    /// A mapping of foreign frames cannot become longer or be mapped a second time (EFAULT). It cannot be moved with
    /// `DONT_UNMAP` (EINVAL).
    #[error(
        "the mapping at {address} shows foreign frames: it is not remapped to {pages} pages with {flags:?}"
    )]
    Foreign {
        /// The old address.
        address: VirtAddr,
        /// The number of pages that it was to have.
        pages: u64,
        /// The flags asked for.
        flags: RemapFlags,
    },
    /// The mapping would reach past the last page a file can have (EINVAL).
    #[error("the mapping would reach past page {first} + {pages} of a file")]
    FileOffset {
        /// The page of the file that it begins with.
        first: u64,
        /// The number of pages that it was to have.
        pages: u64,
    },
    /// Nothing is mapped at the old address (EFAULT).
    #[error("nothing is mapped at {address}")]
    Hole {
        /// The old address.
        address: VirtAddr,
    },
    /// The old range has more than one mapping. Such a range can only be moved to a fixed place, at its old length (EFAULT).
    #[error("the mapping at {address} ends at {end}, before the end of the range to remap")]
    ManyMappings {
        /// The old address.
        address: VirtAddr,
        /// The end of the first mapping.
        end: VirtAddr,
    },
    /// A mapping is sealed (EPERM).
    #[error("the mapping at {address} is sealed")]
    Sealed {
        /// The first address that is sealed.
        address: VirtAddr,
    },
    /// Another mapping is in the way, and the memory may not move (ENOMEM).
    #[error("no room for {pages} pages at {address}, and no leave to move")]
    NoRoom {
        /// The old address.
        address: VirtAddr,
        /// The number of pages that it was to have.
        pages: u64,
    },
    /// There is no free place of that size (ENOMEM).
    #[error("no free place for {pages} pages")]
    NoSpace {
        /// The number of pages asked for.
        pages: u64,
    },
    /// A limit of the space would be exceeded (ENOMEM; EAGAIN for locked memory).
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The space has as many mappings as its limit allows, or so few less that moving might exceed it (ENOMEM).
    #[error("the space has, or nearly has, its limit of {limit} mappings")]
    TooManyMappings {
        /// The limit of mappings.
        limit: usize,
    },
    /// There is no memory for tables and nodes (ENOMEM).
    #[error("out of memory to remap")]
    OutOfMemory,
    /// The space has exited (ENOMEM).
    #[error("the space has exited")]
    Exited,
}

impl RemapError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_)
            | Self::MappingFlags { .. }
            | Self::OutOfBounds { .. }
            | Self::Overlap { .. }
            | Self::Private { .. }
            | Self::FileOffset { .. } => errno::EINVAL,
            Self::Foreign { flags, .. } if flags.contains(RemapFlags::DONT_UNMAP) => errno::EINVAL,
            Self::Hole { .. } | Self::ManyMappings { .. } | Self::Foreign { .. } => errno::EFAULT,
            Self::Sealed { .. } => errno::EPERM,
            Self::Limit(error) => error.errno(),
            Self::NoRoom { .. }
            | Self::NoSpace { .. }
            | Self::TooManyMappings { .. }
            | Self::OutOfMemory
            | Self::Exited => errno::ENOMEM,
        }
    }
}

impl From<OutOfMemory> for RemapError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<Unpublished> for RemapError {
    fn from(error: Unpublished) -> Self {
        match error {
            Unpublished::OutOfMemory => Self::OutOfMemory,
            Unpublished::TooMany { limit } => Self::TooManyMappings { limit },
        }
    }
}

impl From<Refused> for RemapError {
    fn from(error: Refused) -> Self {
        match error {
            Refused::Exited => Self::Exited,
            Refused::Limit(error) => error.into(),
            Refused::Unpublished(error) => error.into(),
        }
    }
}

/// A request whose numbers have been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub start: PageNumber,
    pub old_pages: u64,
    pub new_pages: u64,
    flags: RemapFlags,
    /// The new place, fixed or only preferred.
    pub to: Option<PageRange>,
}

impl Plan {
    /// Checks the numbers and the flags of `request`. `whole` is all that can be mapped.
    pub fn new(request: &RemapRequest, whole: PageRange) -> Result<Self, RemapError> {
        let RemapRequest { old, old_length, new_length, flags, new } = *request;
        let nonsense = RemapError::MappingFlags { flags, old_length, new_length };
        if !RemapFlags::all().contains(flags) {
            return Err(nonsense);
        }
        if old.offset_in_page() != 0 {
            return Err(RangeError::Unaligned { address: old }.into());
        }
        // Lengths that wrap around count as wrapped, as on Linux. Nothing that long is mapped.
        let old_pages = old_length.wrapping_add(PAGE_SIZE - 1) >> PAGE_SHIFT;
        let new_pages = PageRange::from_bytes(VirtAddr::default(), new_length)?.pages();
        let out = |address| RemapError::OutOfBounds { address, length: new_length, space: whole };
        if new_pages > whole.pages() {
            return Err(out(old));
        }
        let placed = flags.intersects(RemapFlags::FIXED | RemapFlags::DONT_UNMAP);
        if placed && !flags.contains(RemapFlags::MAY_MOVE)
            || flags.contains(RemapFlags::DONT_UNMAP) && old_pages != new_pages
        {
            return Err(nonsense);
        }
        let to = match placed {
            true => Some(PageRange::from_bytes(new, new_length)?),
            false => None,
        };
        if let Some(to) = to {
            if !whole.covers(to) {
                return Err(out(new));
            }
            let end = (old.page().get() + old_pages) & (u64::MAX >> PAGE_SHIFT);
            if end > to.start().get() && to.end() > old.page() {
                return Err(RemapError::Overlap { old, new });
            }
        }
        Ok(Self { start: old.page(), old_pages, new_pages, flags, to })
    }

    /// Returns whether the request has all of `flags`.
    pub fn has(&self, flags: RemapFlags) -> bool {
        self.flags.contains(flags)
    }

    /// Returns the place where the memory must go, if that is fixed.
    pub fn fixed(&self) -> Option<PageRange> {
        self.to.filter(|_| self.has(RemapFlags::FIXED))
    }

    /// Returns the first address of the old place.
    pub fn address(&self) -> VirtAddr {
        self.start.address()
    }

    /// Returns `pages` pages at the old place, as far as the table has them.
    pub fn here(&self, pages: u64, whole: PageRange) -> Option<PageRange> {
        let end = self.start.get().saturating_add(pages).min(whole.end().get());
        PageRange::new(self.start, PageNumber::new(end))
    }

    /// Returns the pages added, if the memory has become longer and is at `start` now.
    pub fn growth(&self, start: PageNumber) -> Option<PageRange> {
        let end = |pages| start.checked_add(pages);
        PageRange::new(end(self.old_pages)?, end(self.new_pages)?)
    }

    /// Returns the pages to cut off, if the memory becomes shorter.
    pub fn tail(&self, whole: PageRange) -> Result<Option<PageRange>, RemapError> {
        if self.old_pages <= self.new_pages {
            return Ok(None);
        }
        let first = PageNumber::new(self.start.get().saturating_add(self.new_pages));
        let tail = PageRange::with_pages(first, self.old_pages - self.new_pages)?;
        match whole.covers(tail) {
            true => Ok(Some(tail)),
            false => Err(RemapError::OutOfBounds {
                address: self.address(),
                length: self.old_pages << PAGE_SHIFT,
                space: whole,
            }),
        }
    }

    /// Checks the request against `mapping`, as far as foreign frames go. `mapping` begins at or below the old address, or is
    /// one of several. The caller has answered only for the frames that a mapping shows.
    pub fn check_foreign<H: Host>(&self, mapping: &Mapping<H>) -> Result<(), RemapError> {
        match mapping.is_foreign() && (self.new_pages > self.old_pages || self.has(RemapFlags::DONT_UNMAP)) {
            true => {
                Err(RemapError::Foreign { address: self.address(), pages: self.new_pages, flags: self.flags })
            }
            false => Ok(()),
        }
    }

    /// Checks that the mapping at the old address can be remapped so.
    pub fn check<H: Host, D: LockingDesign>(&self, vma: &Vma<H, D>) -> Result<(), RemapError> {
        let mapping = vma.mapping();
        if vma.flags().contains(MappingFlags::SEALED) {
            return Err(RemapError::Sealed { address: vma.range().start().address() });
        }
        if self.old_pages == 0 && mapping.sharing != Sharing::Shared {
            return Err(RemapError::Private { address: self.address() });
        }
        let inside = vma.range().end().get() - self.start.get();
        let must_be_inside = match self.old_pages.cmp(&self.new_pages) {
            core::cmp::Ordering::Less => self.old_pages,
            core::cmp::Ordering::Greater if self.has(RemapFlags::FIXED) => self.new_pages,
            core::cmp::Ordering::Equal if self.has(RemapFlags::DONT_UNMAP) && self.fixed().is_none() => {
                self.old_pages
            }
            _ => 0,
        };
        if must_be_inside > inside {
            let end = vma.range().end().address();
            return Err(RemapError::ManyMappings { address: self.address(), end });
        }
        self.check_foreign(mapping)?;
        match mapping.file_page(self.start) {
            Some((_, first))
                if first.checked_add(self.new_pages).is_none_or(|end| end > u64::MAX >> PAGE_SHIFT) =>
            {
                Err(RemapError::FileOffset { first, pages: self.new_pages })
            }
            _ => Ok(()),
        }
    }
}
