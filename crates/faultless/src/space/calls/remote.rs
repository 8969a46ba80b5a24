//! Reading and writing the memory of a space from outside, as for another process or a debugger. Pages come by ordinary faults
//! and are pinned while their bytes are copied. No lock is held across I/O.
//!
//! The caller's buffer may itself be memory of a space of this engine, whose pages come by faults. The thread touches it while
//! it holds only those pins: [`PinnedPage::read`] and [`PinnedPage::write`] go by a page of the engine's own.

use crate::address::{PAGE_SIZE, VirtAddr};
use crate::design::LockingDesign;
use crate::frame::Reference;
use crate::host::Host;
use crate::protection::{Access, Protection};
use crate::space::calls::pin::NotPinned;
use crate::space::{AddressSpace, PinnedPage, fault::FaultError};
use core::ops::Range;
use smallvec::SmallVec;

/// The reason why not a single byte was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the first byte at {address} cannot be reached: {error}")]
pub struct RemoteError {
    /// The address of the first byte asked for.
    pub address: VirtAddr,
    /// The error that an access at that address meets.
    pub error: FaultError,
}

impl RemoteError {
    /// Returns Linux's error number: EFAULT, or ENOMEM without memory.
    pub fn errno(&self) -> i32 {
        self.error.errno()
    }
}

/// The number of pages that are pinned together, before a byte of them is copied. Linux takes 1024.
const RUN: usize = 4;

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Copies bytes at `address` out (process_vm_readv of one piece). Stops at the first page that cannot be had, and returns
    /// the number of bytes copied.
    ///
    /// The mapping must be readable; it is not enough that it can be written or executed. Waits for the I/O of the pages, and
    /// holds nothing then but pins on up to seven pages before the one that it waits for. If a page has as many pins as can
    /// be counted, waits until there are fewer, and holds nothing then.
    ///
    /// # Errors
    /// [`RemoteError`]: not a single byte could be copied.
    pub fn read_remote(&self, address: VirtAddr, bytes: &mut [u8]) -> Result<usize, RemoteError> {
        let length = bytes.len();
        self.copy_remote(address, length, (Access::Read, Protection::READ), |page, offset, part| {
            page.read(offset, &mut bytes[part])
        })
    }

    /// Copies bytes in (process_vm_writev of one piece), as [`AddressSpace::read_remote`] copies them out. The mappings must be
    /// writable.
    ///
    /// # Errors
    /// [`RemoteError`]: not a single byte could be copied.
    pub fn write_remote(&self, address: VirtAddr, bytes: &[u8]) -> Result<usize, RemoteError> {
        self.copy_remote(address, bytes.len(), (Access::Write, Protection::WRITE), |page, offset, part| {
            page.write(offset, &bytes[part])
        })
    }

    /// Calls `copy` for the part of each page, with the page, the offset in it, and the range among `length` bytes. `copy`
    /// returns how many bytes it copied.
    fn copy_remote(
        &self,
        address: VirtAddr,
        length: usize,
        (access, rights): (Access, Protection),
        mut copy: impl FnMut(&PinnedPage<H>, usize, Range<usize>) -> usize,
    ) -> Result<usize, RemoteError> {
        let mut done = 0;
        // fork copies a page that is written through a pin of the kind that fork looks for. It may share a page that is only
        // read.
        let reference = if access == Access::Write { Reference::IoPin } else { Reference::Pin };
        let end_of_part =
            |at: VirtAddr, from: usize| length.min(from + (PAGE_SIZE - at.offset_in_page()) as usize);
        while done < length {
            let mut run = SmallVec::<[PinnedPage<H>; RUN]>::new();
            let (mut pinned, mut stopped) = (done, None);
            while run.len() < RUN && pinned < length {
                let Some(at) = address.checked_add(pinned as u64) else { break };
                match self.pin_with(at, (access, rights), reference) {
                    Ok(page) => {
                        pinned = end_of_part(at, pinned);
                        run.push(page);
                    }
                    Err(why) => {
                        stopped = Some(why);
                        break;
                    }
                }
            }
            let stopped = match stopped {
                None => None,
                Some(NotPinned::Fault(error)) => Some(error),
                Some(NotPinned::Full(page)) => {
                    // Two threads that each keep pins and wait for one more could wait for each other, so pins are dropped first.
                    run.clear();
                    pinned = done;
                    let dying = &self.0.space_flags.dying;
                    self.0.engine.wait_for_place(page, Some(dying));
                    if !dying.is_set() {
                        continue;
                    }
                    Some(FaultError::Exited { address })
                }
            };
            if pinned == done {
                return match (done, stopped) {
                    (0, error) => Err(RemoteError {
                        address,
                        error: error.unwrap_or(FaultError::NoMapping { address }),
                    }),
                    _ => Ok(done),
                };
            }
            for page in &run {
                let at = address.checked_add(done as u64).unwrap_or(address);
                let end = end_of_part(at, done);
                done += copy(page, at.offset_in_page() as usize, done..end);
                if done < end {
                    let address = address.checked_add(done as u64).unwrap_or(address);
                    let lost = RemoteError { address, error: FaultError::Lost { address } };
                    return if done == 0 { Err(lost) } else { Ok(done) };
                }
            }
        }
        Ok(done)
    }
}
