//! A mapping as a value, which unmaps it when dropped.

use crate::address::{PAGE_SIZE, PageRange, RangeError, VirtAddr};
use crate::design::{Faultless, LockingDesign};
use crate::host::Host;
use crate::protection::Protection;
use crate::space::{AddressSpace, DiscardError, MapError, MapRequest, ProtectError, UnmapError};
use core::fmt;
use core::ops::Range;

/// A mapping that is unmapped when this value is dropped. [`AddressSpace::map_owned`] returns one. It keeps a handle of its
/// space, so the space lives at least as long.
///
/// The addresses belong to this value until then. If a program unmaps some of them by the space, and maps something else there,
/// the drop unmaps that too.
///
/// The drop may sleep, as [`AddressSpace::unmap`] may. If unmapping fails, the mapping stays; [`Mapped::unmap`] returns the
/// reason.
pub struct Mapped<H: Host, D: LockingDesign = Faultless> {
    space: AddressSpace<H, D>,
    range: PageRange,
    /// Leaves the memory mapped when this is dropped.
    stays: bool,
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Maps as [`AddressSpace::map`] does, and returns the mapping as a value.
    ///
    /// # Errors
    /// [`MapError`]; nothing is mapped.
    pub fn map_owned(&self, request: MapRequest<H>) -> Result<Mapped<H, D>, MapError> {
        let length = request.length;
        let address = self.map(request)?;
        // The range has just been mapped, so this cannot fail.
        let range = PageRange::from_bytes(address, length)?;
        Ok(Mapped { space: self.clone(), range, stays: false })
    }
}

impl<H: Host, D: LockingDesign> Mapped<H, D> {
    /// Returns the first address of the mapping.
    pub fn address(&self) -> VirtAddr {
        self.range.start().address()
    }

    /// Returns the length in bytes, a multiple of the page size.
    pub fn length(&self) -> u64 {
        self.range.pages() * PAGE_SIZE
    }

    /// Returns the space that the mapping is in.
    pub fn space(&self) -> &AddressSpace<H, D> {
        &self.space
    }

    /// Returns the address of byte `offset`, or `None` if that is behind the end.
    pub fn at(&self, offset: u64) -> Option<VirtAddr> {
        self.address().checked_add(offset).filter(|_| offset < self.length())
    }

    /// Returns the address and the length of the bytes `part`.
    fn part(&self, part: &Range<u64>) -> Result<(VirtAddr, u64), RangeError> {
        let (address, length) = (self.address(), part.end.saturating_sub(part.start));
        let is_inside = part.start <= part.end && part.end <= self.length();
        let start = address.checked_add(part.start).filter(|_| is_inside);
        start.map(|start| (start, length)).ok_or(RangeError::Outside { address, end: part.end })
    }

    /// Changes the accesses that the bytes `part`, whole pages, allow, as [`AddressSpace::protect`] does.
    ///
    /// # Errors
    /// [`ProtectError`]. If the part reaches behind the end, it is [`RangeError::Outside`], and nothing is done.
    pub fn protect(&self, part: Range<u64>, protection: Protection) -> Result<(), ProtectError> {
        let (start, length) = self.part(&part)?;
        self.space.protect(start, length, protection)
    }

    /// Drops the pages of the bytes `part`, as [`AddressSpace::discard`] does.
    ///
    /// # Errors
    /// [`DiscardError`]. If the part reaches behind the end, it is [`RangeError::Outside`], and nothing is done.
    pub fn discard(&self, part: Range<u64>) -> Result<(), DiscardError> {
        let (start, length) = self.part(&part)?;
        self.space.discard(start, length)
    }

    /// Unmaps the memory, and returns an error if that fails. The drop does the same without returning the error.
    ///
    /// # Errors
    /// [`UnmapError`], with the mapping as it was.
    pub fn unmap(self) -> Result<(), (UnmapError, Self)> {
        match self.space.unmap(self.address(), self.length()) {
            Ok(()) => {
                self.into_address();
                Ok(())
            }
            Err(error) => Err((error, self)),
        }
    }

    /// Keeps the memory mapped as long as the space lives, and returns its first address.
    pub fn into_address(mut self) -> VirtAddr {
        self.stays = true;
        self.address()
    }
}

impl<H: Host, D: LockingDesign> Drop for Mapped<H, D> {
    fn drop(&mut self) {
        if !self.stays {
            // If the memory is sealed, or there is no memory to split what it has joined, it stays, as after munmap on Linux.
            let _ = self.space.unmap(self.address(), self.length());
        }
    }
}

impl<H: Host, D: LockingDesign> fmt::Debug for Mapped<H, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("range", &self.range).finish_non_exhaustive()
    }
}
