//! Unsharing: pages that fork has left shared become the space's own before a store needs that.

use crate::address::{PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::{Host, OutOfMemory, PageTable};
use crate::space::fault::FaultError;
use crate::space::fault::unshare::PageUnshared;
use crate::space::{AddressSpace, Space};

/// The work that a call of [`AddressSpace::unshare`] has done, in pages and leaf tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnshareCost {
    /// The number of pages that were copied.
    pub copied: u64,
    /// The number of pages that all other spaces had let go. They were marked as the space's own, and not copied.
    pub remarked: u64,
    /// The number of pages that came back from swap space, and that other spaces had there too.
    pub read: u64,
    /// The number of leaf tables that the space had together with others, and that were replaced by tables of its own (docs/fork.md).
    pub tables: u64,
}

/// The reason why not all pages are the space's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnshareError {
    /// The address or the length is wrong (EINVAL). Nothing was done.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A page could not be copied or read: ENOMEM if there is no memory, EFAULT if the read failed or the space has exited. The pages
    /// below it are the space's own. The page itself and those above are as before.
    #[error("not every page is the space's own: {error}")]
    Page {
        /// The reason, with the address.
        error: FaultError,
        /// The work done before.
        done: UnshareCost,
    },
}

impl UnshareError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_) => errno::EINVAL,
            Self::Page { error, .. } => error.errno(),
        }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Makes the anonymous pages of `length` bytes at `address` the space's own, so that a later store need not copy one. Returns the
    /// work that this took.
    ///
    /// Call it at a time when the copies hurt least, for pages that fork has left shared and that the program will store to. It has
    /// an effect until the next fork. Linux has no such call. Proposals name it COW_NOW and MADV_UNSHARE.
    ///
    /// `address` is a multiple of the page size. `length` is rounded up to whole pages; 0 is no error. A leaf table that other spaces
    /// have too is replaced by one of the space's own first, if it has a page in the range. Then each page that another space has is
    /// copied, or marked as the space's own if the others have let it go. Unmapped parts, shared mappings, pages of files and pages that
    /// were never touched stay as they are. So does a page in swap space in a mapping that allows no loads.
    ///
    /// Waits for the reads of pages in swap space, and for room in memory. Holds nothing meanwhile, and takes no lock for which
    /// another process waits. The end of the space ends the call.
    ///
    /// # Errors
    /// [`UnshareError`]. It has the work that was done before.
    pub fn unshare(&self, address: VirtAddr, length: u64) -> Result<UnshareCost, UnshareError> {
        let mut cost = UnshareCost::default();
        let range = match PageRange::from_bytes(address, length) {
            Err(RangeError::ZeroLength { .. }) => return Ok(cost),
            range => range?,
        };
        let space = &*self.0;
        let Some(inside) = range.intersection(space.whole()) else { return Ok(cost) };
        let mut result = match space.engine.prepare() {
            Ok(_) => Ok(()),
            Err(OutOfMemory) => Err(FaultError::OutOfMemory { address }),
        };
        space.each_leaf_part(inside, |part| {
            if result.is_ok() {
                result = self.unshare_part(part, &mut cost);
            }
        });
        match result {
            Ok(()) => Ok(cost),
            Err(error) => Err(UnshareError::Page { error, done: cost }),
        }
    }

    /// Unshares the pages of `part`, which one leaf table covers.
    fn unshare_part(&self, part: PageRange, cost: &mut UnshareCost) -> Result<(), FaultError> {
        let space = &*self.0;
        let mut is_copied = false;
        space.own_table(
            part,
            |_, entry| {
                is_copied = true;
                entry
            },
            |_, entry| entry.holds_page(),
        );
        cost.tables += u64::from(is_copied);
        let mut rest = Some(part);
        while let Some(page) = rest.and_then(|part| space.next_shared(part)) {
            match self.unshare_page(page)? {
                PageUnshared::None => {}
                PageUnshared::Copied => cost.copied += 1,
                PageUnshared::Remarked => cost.remarked += 1,
                PageUnshared::ReadIn => cost.read += 1,
            }
            rest = PageRange::new(PageNumber::new(page.get() + 1), part.end());
        }
        Ok(())
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Returns the first page of `part`, which one leaf table covers, that another space may have too.
    fn next_shared(&self, part: PageRange) -> Option<PageNumber> {
        let section = self.engine.enter();
        let leaf = self.table.leaf(&section, part.start())?;
        part.iter().find(|page| self.may_be_shared(self.table.load(leaf, *page)))
    }
}
