//! Loads and stores of a program. Each try is one access section, and a page fault is served between two tries.

use crate::mmu::{self, PageFault};
use crate::{PhysicalMemory, RadixTable, Soft};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::host::{Entry, Frame, FrameSource, Host, PageTable};
use faultless::protection::Access;
use faultless::{AddressSpace, FaultError};

/// The reason that a load or a store was not done. `F` is the page fault itself ([`PageFault`]), or the error of
/// serving it ([`FaultError`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError<F = FaultError> {
    /// A page fault.
    #[error("{0}")]
    Fault(#[source] F),
    /// The address of a word is not a multiple of eight.
    #[error("a word of eight bytes at {address}, which is not a multiple of eight")]
    Unaligned {
        /// The address of the access.
        address: VirtAddr,
    },
}

impl<F> From<F> for AccessError<F> {
    fn from(fault: F) -> Self {
        Self::Fault(fault)
    }
}

/// The accesses of a processor that runs in a space. The calling thread is the processor; it must be in no section.
///
/// Words are native-endian; a load is Acquire, a store is Release, an addition is both.
pub trait Cpu {
    /// Loads a word. A page fault is returned and not served.
    ///
    /// # Errors
    /// [`AccessError`]; no byte was accessed.
    fn try_load_u64(&self, address: VirtAddr) -> Result<u64, AccessError<PageFault>>;

    /// Stores a word. A page fault is returned and not served.
    ///
    /// # Errors
    /// [`AccessError`]; nothing was stored.
    fn try_store_u64(&self, address: VirtAddr, value: u64) -> Result<(), AccessError<PageFault>>;

    /// Loads a word, and serves page faults.
    ///
    /// # Errors
    /// [`AccessError`].
    fn load_u64(&self, address: VirtAddr) -> Result<u64, AccessError>;

    /// Stores a word, and serves page faults.
    ///
    /// # Errors
    /// [`AccessError`]; nothing was stored.
    fn store_u64(&self, address: VirtAddr, value: u64) -> Result<(), AccessError>;

    /// Adds to a word, wrapping, in one step, and serves page faults. Returns the old value.
    ///
    /// # Errors
    /// [`AccessError`]; nothing was stored.
    fn fetch_add_u64(&self, address: VirtAddr, value: u64) -> Result<u64, AccessError>;

    /// Loads bytes from any address on, word by word, and serves page faults.
    ///
    /// # Errors
    /// [`FaultError`] of the first page that cannot be accessed; the pages before it were read.
    fn read_bytes(&self, address: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError>;

    /// Stores bytes from any address on, word by word, and serves page faults.
    ///
    /// # Errors
    /// [`FaultError`] of the first page that cannot be accessed; the pages before it were written.
    fn write_bytes(&self, address: VirtAddr, bytes: &[u8]) -> Result<(), FaultError>;

    /// Returns whether the page of `address` is mapped and a processor has stored to it since it was mapped.
    fn is_dirty(&self, address: VirtAddr) -> bool;
}

fn aligned<F>(address: VirtAddr) -> Result<(), AccessError<F>> {
    if address.get().is_multiple_of(8) { Ok(()) } else { Err(AccessError::Unaligned { address }) }
}

/// Tries an access once.
#[inline]
fn attempt<D: LockingDesign, R>(
    space: &AddressSpace<Soft, D>,
    address: VirtAddr,
    access: Access,
    operation: impl FnOnce(&PhysicalMemory, Frame, u64) -> R,
) -> Result<R, PageFault> {
    let engine = space.engine();
    let subject = space.root().subject(address.page());
    // SAFETY: dropped here; an access calls no engine.
    let section = unsafe { engine.enter_access(subject) };
    // SAFETY: walked in this engine's section; an access only sets accessed and dirty bits.
    let table = unsafe { space.table() };
    mmu::access(&section, table, engine.host().frames(), address, access, operation)
}

/// Tries an access until it succeeds, and serves the faults between the tries.
#[inline]
fn complete<D: LockingDesign, R>(
    space: &AddressSpace<Soft, D>,
    address: VirtAddr,
    access: Access,
    mut operation: impl FnMut(&PhysicalMemory, Frame, u64) -> R,
) -> Result<R, FaultError> {
    loop {
        match attempt(space, address, access, &mut operation) {
            Ok(result) => return Ok(result),
            Err(PageFault { address, access }) => space.fault_and_wait(address, access)?,
        }
    }
}

/// Returns the address of byte `done` of an access at `address`. The access has not passed the last address: the pages
/// there are beyond every table, so they have faulted.
fn further(address: VirtAddr, done: usize) -> VirtAddr {
    VirtAddr::new(address.get().wrapping_add(done as u64))
}

/// Returns the number of bytes from `address` to the end of its page.
fn left_in_page(address: VirtAddr) -> usize {
    (PAGE_SIZE - address.offset_in_page()) as usize
}

impl<D: LockingDesign> Cpu for AddressSpace<Soft, D> {
    fn try_load_u64(&self, address: VirtAddr) -> Result<u64, AccessError<PageFault>> {
        aligned(address)?;
        Ok(attempt(self, address, Access::Read, PhysicalMemory::load_u64)?)
    }

    fn try_store_u64(&self, address: VirtAddr, value: u64) -> Result<(), AccessError<PageFault>> {
        aligned(address)?;
        Ok(attempt(self, address, Access::Write, |memory, frame, at| memory.store_u64(frame, at, value))?)
    }

    fn load_u64(&self, address: VirtAddr) -> Result<u64, AccessError> {
        aligned(address)?;
        Ok(complete(self, address, Access::Read, PhysicalMemory::load_u64)?)
    }

    fn store_u64(&self, address: VirtAddr, value: u64) -> Result<(), AccessError> {
        aligned(address)?;
        Ok(complete(self, address, Access::Write, |memory, frame, at| memory.store_u64(frame, at, value))?)
    }

    fn fetch_add_u64(&self, address: VirtAddr, value: u64) -> Result<u64, AccessError> {
        aligned(address)?;
        Ok(complete(self, address, Access::Write, |memory, frame, at| {
            memory.fetch_add_u64(frame, at, value)
        })?)
    }

    fn read_bytes(&self, address: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        let mut done = 0;
        while done < bytes.len() {
            let address = further(address, done);
            let end = bytes.len().min(done + left_in_page(address));
            let part = &mut bytes[done..end];
            done += complete(self, address, Access::Read, |memory, frame, at| {
                // SAFETY: the access section keeps the frame, and a mapped page is not being filled from a store.
                unsafe { memory.read(frame, at as usize, part) }
            })?;
        }
        Ok(())
    }

    fn write_bytes(&self, address: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        let mut done = 0;
        while done < bytes.len() {
            let address = further(address, done);
            let end = bytes.len().min(done + left_in_page(address));
            let part = &bytes[done..end];
            done += complete(self, address, Access::Write, |memory, frame, at| {
                // SAFETY: as in `read_bytes`; no transfer of the frame is under way while an entry has the write right.
                unsafe { memory.write(frame, at as usize, part) }
            })?;
        }
        Ok(())
    }

    fn is_dirty(&self, address: VirtAddr) -> bool {
        let page = address.page();
        // SAFETY: dropped here; loading an entry calls no engine.
        let section = unsafe { self.engine().enter_section() };
        // SAFETY: walked in this engine's section; nothing is changed.
        let table = unsafe { self.table() };
        page.get() < RadixTable::PAGES
            && table
                .leaf(&section, page)
                .is_some_and(|leaf| table.translate(leaf, page).has(Entry::MAPPED | Entry::DIRTY))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use faultless::design::Faultless;
    use faultless::protection::Protection;
    use faultless::{Engine, Limits, MapRequest};

    fn space(pages: u64) -> (AddressSpace<Soft, Faultless>, VirtAddr) {
        let engine = Engine::new(Soft::new(64).unwrap(), Limits::default()).unwrap();
        let space = AddressSpace::new(&engine).unwrap();
        let start = space.map(MapRequest::anonymous(pages * PAGE_SIZE)).unwrap();
        (space, start)
    }

    #[test]
    fn a_fault_is_served_and_the_access_done() {
        let (space, at) = space(1);
        let fault = PageFault { address: at, access: Access::Write };
        assert_eq!(space.try_store_u64(at, 1), Err(AccessError::Fault(fault)));
        assert_eq!(space.load_u64(at), Ok(0));
        assert!(!space.is_dirty(at));
        assert_eq!(space.store_u64(at, 5), Ok(()));
        assert!(space.is_dirty(at));
        assert_eq!(space.fetch_add_u64(at, 2), Ok(5));
        assert_eq!(space.try_load_u64(at), Ok(7));
    }

    #[test]
    fn wrong_accesses_are_typed_errors() {
        let (space, at) = space(1);
        let odd = VirtAddr::new(at.get() + 4);
        assert_eq!(space.load_u64(odd), Err(AccessError::Unaligned { address: odd }));
        assert_eq!(space.try_store_u64(odd, 0), Err(AccessError::Unaligned { address: odd }));
        let last = VirtAddr::new(u64::MAX - 7);
        let unmapped = FaultError::NoMapping { address: last };
        assert_eq!(space.store_u64(last, 0), Err(AccessError::Fault(unmapped)));
        assert_eq!(space.read_bytes(last, &mut [0; 100]), Err(unmapped));
        assert!(!space.is_dirty(last));
        space.protect(at, PAGE_SIZE, Protection::READ).unwrap();
        assert!(matches!(
            space.store_u64(at, 0),
            Err(AccessError::Fault(FaultError::Protection { access: Access::Write, .. }))
        ));
    }

    #[test]
    fn bytes_cross_pages() {
        let (space, at) = space(3);
        let from = VirtAddr::new(at.get() + PAGE_SIZE - 5);
        let bytes: Vec<u8> = (0..PAGE_SIZE as usize + 9).map(|i| i as u8).collect();
        space.write_bytes(from, &bytes).unwrap();
        let mut read = vec![0; bytes.len()];
        space.read_bytes(from, &mut read).unwrap();
        assert_eq!(read, bytes);
        let end = VirtAddr::new(at.get() + 3 * PAGE_SIZE);
        let over = VirtAddr::new(end.get() - 2);
        assert_eq!(space.write_bytes(over, &[1; 4]), Err(FaultError::NoMapping { address: end }));
        let mut before = [0; 2];
        space.read_bytes(over, &mut before).unwrap();
        assert_eq!(before, [1; 2], "the pages before are written");
    }
}
