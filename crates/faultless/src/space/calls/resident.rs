//! mincore: which pages are in memory. It only reads, in short sections, and makes no thread wait.

use crate::address::{PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::{Entry, EntryKind, Host, PageTable};
use crate::space::AddressSpace;
use alloc::vec::Vec;

/// The number of pages that are looked at in one section.
pub(in crate::space) const FEW: u64 = 64;

/// The reason why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResidentError {
    /// The address is wrong (EINVAL), or the length is (ENOMEM).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nothing is mapped at `address` (ENOMEM).
    #[error("nothing is mapped at {address}, inside the {range} asked for")]
    Hole {
        /// The range asked for.
        range: PageRange,
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// There is no memory for the answer (EAGAIN).
    #[error("out of memory for the list of the pages of {range} in memory")]
    OutOfMemory {
        /// The range asked for.
        range: PageRange,
    },
}

impl ResidentError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(RangeError::Overflow { .. }) | Self::Hole { .. } => errno::ENOMEM,
            Self::Range(_) => errno::EINVAL,
            Self::OutOfMemory { .. } => errno::EAGAIN,
        }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Returns for each page of `length` bytes at `address` whether an access would need no read (mincore): the mapping has a
    /// page, or its file has the page in memory, or the page is in swap space and its bytes are in memory too.
    ///
    /// A page of untouched anonymous memory is not in memory, and neither is a guard page. A foreign frame is not in memory, as
    /// on Linux, where mincore skips VM_PFNMAP. Each answer was true at some moment during the call. Waits for nothing.
    ///
    /// Differs from Linux: every space that maps a file may learn which of its pages are in memory.
    ///
    /// # Errors
    /// [`ResidentError`].
    pub fn resident(&self, address: VirtAddr, length: u64) -> Result<Vec<bool>, ResidentError> {
        let range = match PageRange::from_bytes(address, length) {
            // Zero bytes are inside the space if they begin there, or just behind it, as on Linux.
            Err(RangeError::ZeroLength { .. }) if address <= self.0.whole().end().address() => {
                return Ok(Vec::new());
            }
            Err(RangeError::ZeroLength { .. }) => return Err(RangeError::Overflow { address, length }.into()),
            range => range?,
        };
        // The range is checked to be mapped before memory for so many answers is allocated.
        let hole = |page: PageNumber| ResidentError::Hole { range, address: page.address() };
        if !self.0.whole().covers(range) {
            return Err(hole(range.start().max(self.0.whole().end())));
        }
        let mut answers = Vec::new();
        let out_of_memory = ResidentError::OutOfMemory { range };
        let mut rest = Some(range);
        while let Some(part) = rest {
            let few = FEW.min(part.pages());
            let end = PageNumber::new(part.start().get() + few);
            rest = PageRange::new(end, part.end());
            answers.try_reserve(few as usize).map_err(|_| out_of_memory)?;
            let section = self.engine().enter();
            let view = self.0.tree.view(&section);
            for page in (part.start().get()..end.get()).map(PageNumber::new) {
                let vma = view.find(page).ok_or_else(|| hole(page))?;
                let entry = self.0.table.leaf(&section, page).map(|leaf| self.0.table.load(leaf, page));
                let is_cached =
                    || vma.mapping().file_page(page).is_some_and(|(file, page)| file.is_cached(page));
                answers.push(match entry.unwrap_or(Entry::EMPTY).kind() {
                    EntryKind::Page(_) | EntryKind::Kept(_) => true,
                    EntryKind::Foreign(_) => false,
                    EntryKind::Swapped(slot, _) => self.engine().is_slot_in_memory(slot),
                    EntryKind::Empty | EntryKind::Guard | EntryKind::Gone(_) => is_cached(),
                });
            }
        }
        Ok(answers)
    }
}
