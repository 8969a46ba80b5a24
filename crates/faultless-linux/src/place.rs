//! Where a space is in this process.

use crate::kernel::Window;
use faultless::address::{PAGE_SIZE, VirtAddr};
use std::ptr::NonNull;

/// The addresses of this process that a space's pages are at: [`AddressSpace::root`](faultless::AddressSpace::root) of a space on this host.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    start: NonNull<u8>,
    pages: u64,
}

impl Place {
    pub(crate) fn of(window: &Window) -> Self {
        Self { start: window.pointer(), pages: window.pages() }
    }

    /// The first address, to be used.
    pub(crate) fn start(self) -> NonNull<u8> {
        self.start
    }

    /// The addresses.
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        let start = self.start.as_ptr().expose_provenance();
        start..start + (self.pages * PAGE_SIZE) as usize
    }

    /// Where the space's `address` is in this process; `None` outside of the window.
    pub(crate) fn pointer(self, address: VirtAddr) -> Option<*mut u8> {
        let inside = address.get() < self.pages * PAGE_SIZE;
        // In the window, by the line above.
        inside.then(|| self.start.as_ptr().wrapping_add(address.get() as usize))
    }

    /// The space's address that is at `address` of this process.
    pub(crate) fn address_at(self, address: usize) -> Option<VirtAddr> {
        let range = self.range();
        range.contains(&address).then(|| VirtAddr::new((address - range.start) as u64))
    }
}
