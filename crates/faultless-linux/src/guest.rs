//! A region as the memory of a virtual machine: implements the traits of rust-vmm's [`vm_memory`].

use crate::Region;
use faultless::address::PAGE_SIZE;
use std::fmt;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

/// A [`Region`] at an address of a virtual machine's physical memory.
///
/// A [`vm_memory::GuestRegionCollection`] of these is a `GuestMemory`. Devices and loaders use it as they use mapped
/// memory, and its page faults are served.
///
/// It tracks no dirty pages: its bitmap is `()`. For a snapshot call [`GuestRegion::snapshot`].
///
/// If a page cannot be served (the file cannot be read, or memory is used up), an access gets SIGBUS, as in mapped
/// memory. So give a virtual machine's pager enough memory ([`Options::memory`](crate::Options::memory)).
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

/// Errors of [`GuestRegion::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestRegionError {
    /// The region has no bytes.
    #[error("a region without bytes cannot be memory of a virtual machine")]
    Empty,
    /// The address is not a multiple of the page size.
    #[error("address {start:#x} is not a multiple of the page size {PAGE_SIZE}")]
    Unaligned {
        /// The address in the machine.
        start: u64,
    },
    /// The region would reach past the last address.
    #[error("{length} bytes at {start:#x} reach past the last address")]
    Overflow {
        /// The address in the machine.
        start: u64,
        /// The region's length in bytes.
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

    /// Takes a snapshot of the region, as [`Region::snapshot`] does.
    ///
    /// # Errors
    /// [`RegionError`](crate::RegionError).
    pub fn snapshot(&self) -> Result<Region, crate::RegionError> {
        self.region.snapshot()
    }

    /// Returns the region's address in this process, for a virtual machine's memory slot. It is page-aligned, and
    /// [`GuestMemoryRegion::len`] bytes begin there.
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
        // Inside the region, as the check above ensures.
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
        // SAFETY: the bytes are inside the region, which outlives the slice; an access ends with a signal at worst. No
        // reference to them exists: only this type reaches them, and it returns pointers and slices of this kind only.
        Ok(unsafe { VolatileSlice::new(start, count) })
    }
}

impl GuestMemoryRegionBytes for GuestRegion {}
