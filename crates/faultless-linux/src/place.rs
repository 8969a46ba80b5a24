//! The addresses of a space in this process.

use crate::kernel::Window;
use faultless::address::{PAGE_SIZE, VirtAddr};
use std::ptr::NonNull;

/// The range of addresses in this process where a space's pages are. It is the
/// [`AddressSpace::root`](faultless::AddressSpace::root) of a space on this host.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    start: NonNull<u8>,
    pages: u64,
}

impl Place {
    pub(crate) fn of(window: &Window) -> Self {
        Self { start: window.pointer(), pages: window.pages() }
    }

    /// Returns the first address, as a pointer for accesses.
    pub(crate) fn start(self) -> NonNull<u8> {
        self.start
    }

    /// Returns the range of addresses.
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        let start = self.start.as_ptr().expose_provenance();
        start..start + (self.pages * PAGE_SIZE) as usize
    }

    /// Returns the address in this process of the space's `address`, or `None` outside of the window.
    pub(crate) fn pointer(self, address: VirtAddr) -> Option<*mut u8> {
        let inside = address.get() < self.pages * PAGE_SIZE;
        // Inside the window, as the check above ensures.
        inside.then(|| self.start.as_ptr().wrapping_add(address.get() as usize))
    }

    /// Returns the space's address that is at `address` in this process, or `None` outside of the window.
    pub(crate) fn address_at(self, address: usize) -> Option<VirtAddr> {
        let range = self.range();
        range.contains(&address).then(|| VirtAddr::new((address - range.start) as u64))
    }
}
