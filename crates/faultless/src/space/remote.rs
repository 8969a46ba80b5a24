//! Reading and writing the memory of a space from outside: another process's, a debugger's. Pages come by ordinary
//! faults, are pinned while their bytes are copied, and nothing is held across I/O.

use super::{AddressSpace, fault::FaultError};
use crate::address::{PAGE_SIZE, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::Host;
use crate::protection::{Access, Protection};

/// Why not one byte was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the first byte at {address} cannot be reached: {error}")]
pub struct RemoteError {
    /// Where.
    pub address: VirtAddr,
    /// What an access there would have met.
    pub error: FaultError,
}

impl RemoteError {
    /// Linux's number: EFAULT, or ENOMEM without memory.
    pub fn errno(&self) -> i32 {
        match self.error {
            FaultError::OutOfMemory { .. } => errno::ENOMEM,
            _ => errno::EFAULT,
        }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// process_vm_readv of one piece: copies bytes at `address` out, up to the first page that cannot be had, and returns
    /// how many. The mapping must be readable; that it can be written or executed does not do. Waits for the I/O of the
    /// pages, and holds nothing then.
    ///
    /// # Errors
    /// [`RemoteError`]: none could be copied.
    pub fn read_remote(&self, address: VirtAddr, bytes: &mut [u8]) -> Result<usize, RemoteError> {
        let length = bytes.len();
        self.each_page(address, length, |at, done, count| {
            let page = self.pin_with(at, Access::Read, Protection::READ)?;
            page.read(at.offset_in_page() as usize, &mut bytes[done..done + count]);
            Ok(())
        })
    }

    /// process_vm_writev of one piece: as [`AddressSpace::read_remote`], into mappings that can be written.
    ///
    /// # Errors
    /// [`RemoteError`]: none could be copied.
    pub fn write_remote(&self, address: VirtAddr, bytes: &[u8]) -> Result<usize, RemoteError> {
        self.each_page(address, bytes.len(), |at, done, count| {
            let page = self.pin_with(at, Access::Write, Protection::WRITE)?;
            page.write(at.offset_in_page() as usize, &bytes[done..done + count]);
            Ok(())
        })
    }

    /// Calls `copy` for the part of each page: where, how many bytes are done, how many to do.
    fn each_page(
        &self,
        address: VirtAddr,
        length: usize,
        mut copy: impl FnMut(VirtAddr, usize, usize) -> Result<(), FaultError>,
    ) -> Result<usize, RemoteError> {
        let mut done = 0;
        while done < length {
            let next = address.checked_add(done as u64).ok_or(FaultError::NoMapping { address });
            let copied = next.and_then(|at| {
                let count = (length - done).min((PAGE_SIZE - at.offset_in_page()) as usize);
                copy(at, done, count).map(|()| count)
            });
            match copied {
                Ok(count) => done += count,
                Err(error) if done == 0 => return Err(RemoteError { address, error }),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}
