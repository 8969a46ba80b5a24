//! A region as a virtual machine's memory, for the crates of rust-vmm: [`vm_memory`]'s traits.

use crate::Region;
use faultless::address::PAGE_SIZE;
use std::fmt;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

/// A [`Region`] at a place in a virtual machine's physical addresses. A [`vm_memory::GuestRegionCollection`] of these is a
/// `GuestMemory`: devices and loaders use it as they use mapped memory, and its page faults are served.
///
/// It tracks no dirty pages: its bitmap is `()`. Snapshots are those of the region: [`GuestRegion::snapshot`].
///
/// An access to a page that cannot be had (the file cannot be read, or memory is used up) is SIGBUS, as in mapped memory; so give
/// a virtual machine a pager with memory enough ([`Options::memory`](crate::Options::memory)).
///
/// ```
/// use faultless_linux::{GuestRegion, Region, RegionError};
/// use vm_memory::{Bytes, GuestAddress, GuestRegionCollection};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let region = match Region::anonymous(1 << 20) {
///     Err(RegionError::Open(error)) => return Ok(eprintln!("skipped: {error}")),
///     region => region?,
/// };
/// let start = GuestAddress(0x10_0000);
/// let memory = GuestRegionCollection::from_regions(vec![GuestRegion::new(region, start)?])?;
/// memory.write_obj(0x1234_u16, GuestAddress(0x10_2000))?;
/// assert_eq!(memory.read_obj::<u32>(GuestAddress(0x10_2000))?, 0x1234_u32.to_le());
/// # Ok(())
/// # }
/// ```
pub struct GuestRegion {
    region: Region,
    start: GuestAddress,
}

/// Why a region cannot be a virtual machine's memory there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestRegionError {
    /// It has no bytes.
    #[error("a region without bytes cannot be memory of a virtual machine")]
    Empty,
    /// It does not begin with a page of the machine.
    #[error("address {start:#x} is not a multiple of the page size {PAGE_SIZE}")]
    Unaligned {
        /// Where it was to be.
        start: u64,
    },
    /// It would reach past the last address.
    #[error("{length} bytes at {start:#x} reach past the last address")]
    Overflow {
        /// Where it was to be.
        start: u64,
        /// Its length in bytes.
        length: usize,
    },
}

impl GuestRegion {
    /// Makes `region` the memory at `start`, a multiple of the page size.
    ///
    /// # Errors
    /// [`GuestRegionError`]; the region is dropped.
    pub fn new(region: Region, start: GuestAddress) -> Result<Self, GuestRegionError> {
        let (start_at, length) = (start.0, region.len());
        if length == 0 {
            return Err(GuestRegionError::Empty);
        }
        if !start_at.is_multiple_of(PAGE_SIZE) {
            return Err(GuestRegionError::Unaligned { start: start_at });
        }
        match start_at.checked_add(length as u64 - 1) {
            Some(_) => Ok(Self { region, start }),
            None => Err(GuestRegionError::Overflow { start: start_at, length }),
        }
    }

    /// Takes a snapshot of its bytes: as [`Region::snapshot`].
    ///
    /// # Errors
    /// [`RegionError`](crate::RegionError).
    pub fn snapshot(&self) -> Result<Region, crate::RegionError> {
        self.region.snapshot()
    }

    /// Where it is in this process, for a virtual machine's memory slot: page-aligned, [`GuestMemoryRegion::len`] bytes.
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.as_ptr()
    }
}

impl fmt::Debug for GuestRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestRegion").field("start", &self.start).field("length", &self.region.len()).finish()
    }
}

impl GuestMemoryRegion for GuestRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.region.len() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let address = self.check_address(address).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        // Inside, by the line above.
        Ok(self.region.as_ptr().wrapping_add(address.0 as usize))
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let end = usize::try_from(offset.0).ok().and_then(|offset| offset.checked_add(count));
        if end.is_none_or(|end| end > self.region.len()) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let start = self.region.as_ptr().wrapping_add(offset.0 as usize);
        // SAFETY: inside of the region, which lives as long as the slice, and whose accesses end with a signal at worst. Nobody has a
        // reference to its bytes: they are reached by this type only, which gives out pointers and slices of this kind.
        Ok(unsafe { VolatileSlice::new(start, count) })
    }
}

impl GuestMemoryRegionBytes for GuestRegion {}
