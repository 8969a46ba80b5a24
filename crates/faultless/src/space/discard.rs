//! madvise(MADV_DONTNEED): the pages go, the mapping stays.

use super::{AddressSpace, Space};
use crate::address::{PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::host::Host;
use crate::vma::tree::Ranged;

/// Why not everything was discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscardError {
    /// The address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nothing is mapped at `address`; all that is mapped in the range has been discarded, as Linux does (ENOMEM).
    #[error("nothing is mapped at {address}, inside the {range} to discard; the rest was discarded")]
    Hole {
        /// What was asked for.
        range: PageRange,
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// No memory to take the range (ENOMEM).
    #[error("out of memory to discard {range}")]
    OutOfMemory {
        /// What was asked for.
        range: PageRange,
    },
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Drops the pages of `length` bytes at `address`: private memory reads as zeros or as the file afterwards. When
    /// this returns, no access reaches the old pages. Waits as [`AddressSpace::unmap`].
    ///
    /// # Errors
    /// [`DiscardError`]; a hole does not keep the rest from being discarded.
    pub fn discard(&self, address: VirtAddr, length: u64) -> Result<(), DiscardError> {
        let range = PageRange::from_bytes(address, length)?;
        self.0.discard(range)
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    fn discard(&self, range: PageRange) -> Result<(), DiscardError> {
        let start = range.start().address();
        let inside = range.intersection(self.whole()).ok_or(DiscardError::Hole { range, address: start })?;
        let work = D::range_work(&self.lock, &self.engine, &self.tree, Call::Discard, inside);
        self.engine.assert_may_sleep("the tree lock");
        let (taken, lock) =
            self.map.take(inside, &*self.engine).map_err(|_| DiscardError::OutOfMemory { range })?;
        let hole =
            first_hole(range, self.tree.view_locked(&lock.writer).from(range.start()).map(Ranged::range));
        drop(lock);
        // The mapping stays: no publication, and no leaf table goes (rule 3). The sweep alone waits for
        // faults at work; one that comes later brings a new page, as it may.
        self.sweep_away(&taken, inside);
        drop(taken);
        drop(work);
        match hole {
            Some(page) => Err(DiscardError::Hole { range, address: page.address() }),
            None => Ok(()),
        }
    }
}

fn first_hole(range: PageRange, mapped: impl Iterator<Item = PageRange>) -> Option<PageNumber> {
    let mut end = range.start();
    for part in mapped {
        if part.start() > end || end >= range.end() {
            break;
        }
        end = part.end();
    }
    (end < range.end()).then_some(end)
}
