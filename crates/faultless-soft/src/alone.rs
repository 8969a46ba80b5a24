//! For the tests of this crate: memory and a table that only the test uses. The unsafe methods are safe here, since a
//! test may do anything to them.

use crate::memory::PhysicalMemory;
use crate::table::{Leaf, RadixTable};
use faultless::address::PageNumber;
use faultless::host::{Entry, Frame, FrameSource, OutOfMemory, PageTable};
use faultless::sync::Retired;
use std::ops::Deref;
#[cfg(not(loom))]
use std::ptr::NonNull;

/// Memory that only the test uses.
pub(crate) struct Frames<M>(pub M);

impl<M: Deref<Target = PhysicalMemory>> Deref for Frames<M> {
    type Target = PhysicalMemory;

    fn deref(&self) -> &PhysicalMemory {
        &self.0
    }
}

impl<M: Deref<Target = PhysicalMemory>> Frames<M> {
    pub fn free(&self, frame: Frame) {
        // SAFETY: only the test uses the memory, and no engine.
        unsafe { self.0.free(frame) }
    }

    pub fn zero(&self, frame: Frame) {
        // SAFETY: as in `free`.
        unsafe { self.0.zero(frame) }
    }

    #[cfg(not(loom))]
    pub fn copy(&self, from: Frame, to: Frame) {
        // SAFETY: as in `free`.
        unsafe { self.0.copy(from, to) }
    }

    #[cfg(not(loom))]
    pub fn memory(&self, frame: Frame) -> NonNull<u8> {
        // SAFETY: as in `free`.
        unsafe { self.0.memory(frame) }
    }

    #[cfg(not(loom))]
    pub fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        // SAFETY: as in `free`.
        unsafe { self.0.read(frame, offset, bytes) }
    }
}

/// A table that only the test uses; no engine changes it.
pub(crate) struct Entries<T>(pub T);

impl<T: Deref<Target = RadixTable>> Deref for Entries<T> {
    type Target = RadixTable;

    fn deref(&self) -> &RadixTable {
        &self.0
    }
}

impl<T: Deref<Target = RadixTable>> Entries<T> {
    pub fn let_go(&self, leaf: Leaf<'_>, page: PageNumber) {
        // SAFETY: only the test uses the table; no engine relies on its entries.
        unsafe { self.0.let_go(leaf, page) }
    }

    pub fn install(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) -> Result<Entry, OutOfMemory> {
        // SAFETY: as in `let_go`.
        unsafe { self.0.install(leaf, page, new) }
    }

    pub fn exchange(&self, leaf: Leaf<'_>, page: PageNumber, seen: Entry, new: Entry) -> Result<(), Entry> {
        // SAFETY: as in `let_go`.
        unsafe { self.0.exchange(leaf, page, seen, new) }
    }

    pub fn unhook(&self, page: PageNumber) -> Option<Retired> {
        // SAFETY: as in `let_go`; only unsafe code can free the result.
        unsafe { self.0.unhook(page) }
    }
}
