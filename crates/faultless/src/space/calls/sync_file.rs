//! msync: writes stored bytes back to files.

use crate::address::{PAGE_SIZE, PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::Host;
use crate::page_cache::File;
use crate::protection::Sharing;
use crate::space::{AddressSpace, Space};
use crate::store::StoreError;
use crate::sync::Shared;
use crate::vma::MappingFlags;
use crate::vma::tree::Ranged;
use core::ops::Range;

bitflags::bitflags! {
    /// The work of msync. Without flags it checks only that all of the range is mapped.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct SyncFlags: u8 {
        /// Only checks that all is mapped (MS_ASYNC), as on Linux. Dirty pages are written when the program calls
        /// [`FileHandle::start_sync`](crate::FileHandle::start_sync), as it should from time to time, or when the last handle
        /// goes.
        const ASYNC = 1;
        /// Refuses locked mappings (MS_INVALIDATE). All mappings of a file show the same page anyway.
        const INVALIDATE = 2;
        /// Writes, and waits until that is done (MS_SYNC).
        const SYNC = 4;
    }
}

/// The reason why not everything is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// The address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The flags have both `SYNC` and `ASYNC`, or unknown bits (EINVAL).
    #[error("msync is either synchronous or not, and knows no other flags")]
    MappingFlags,
    /// Nothing is mapped at `address`. All mapped parts of the range have been written (ENOMEM).
    #[error("nothing is mapped at {address}, inside the range to write back; the rest was written")]
    Hole {
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// The mapping at `address` is locked, and `INVALIDATE` was given. The part below it has been written (EBUSY).
    #[error("the mapping at {address} is locked")]
    Locked {
        /// The first address of the locked mapping in the range.
        address: VirtAddr,
    },
    /// A page could not be written, now or before. It is still dirty. The error is reported once. The part behind the mapping
    /// of its file has not been written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SyncError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_) | Self::MappingFlags => errno::EINVAL,
            Self::Hole { .. } => errno::ENOMEM,
            Self::Locked { .. } => errno::EBUSY,
            Self::Store(error) => error.errno(),
        }
    }
}

/// A mapping in the range, by value.
struct Part<H: Host> {
    pages: PageRange,
    flags: MappingFlags,
    /// The file and the pages of it that are shown, if the mapping is shared.
    file: Option<(Shared<File<H>>, Range<u64>)>,
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Writes bytes stored to shared mappings of files, in `length` bytes at `address`, back to the files. With `SYNC`
    /// it waits for that, and holds nothing meanwhile: other threads can map, unmap and fault.
    ///
    /// Errors of writing are those of the file's mappings together, whichever page they were at: see [`File::sync`]. If the
    /// length is zero, or wraps around when it is rounded up to whole pages, there is nothing to do, as on Linux.
    ///
    /// # Errors
    /// [`SyncError`]. A hole does not keep the rest from being written.
    pub fn sync(&self, address: VirtAddr, length: u64, flags: SyncFlags) -> Result<(), SyncError> {
        if flags.contains(SyncFlags::SYNC | SyncFlags::ASYNC) || !SyncFlags::all().contains(flags) {
            return Err(SyncError::MappingFlags);
        }
        if address.offset_in_page() != 0 {
            return Err(RangeError::Unaligned { address }.into());
        }
        let rounded = length.checked_add(PAGE_SIZE - 1).map_or(0, |bytes| bytes & !(PAGE_SIZE - 1));
        if rounded == 0 {
            return Ok(());
        }
        let hole = SyncError::Hole { address };
        // Nothing is mapped past the last address.
        let range = PageRange::from_bytes(address, rounded).map_err(|_| hole)?;
        self.0.sync(range, flags)
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    fn sync(&self, range: PageRange, flags: SyncFlags) -> Result<(), SyncError> {
        self.engine.assert_may_sleep("msync");
        let (mut at, mut hole) = (range.start(), None);
        while at < range.end() {
            let part = self.next_part(at, range.end());
            let start = part.as_ref().map_or(range.end(), |part| part.pages.start());
            if start > at {
                hole = hole.or(Some(SyncError::Hole { address: at.address() }));
            }
            let Some(part) = part else { break };
            if flags.contains(SyncFlags::INVALIDATE) && part.flags.contains(MappingFlags::LOCKED) {
                return Err(SyncError::Locked { address: part.pages.start().address() });
            }
            if let Some((file, pages)) = part.file.filter(|_| flags.contains(SyncFlags::SYNC)) {
                let before = file.finish_writeback(pages);
                file.flush_store();
                file.report_error(before)?;
            }
            at = part.pages.end();
        }
        hole.map_or(Ok(()), Err)
    }

    /// Returns the first mapping from `at` on and before `end`.
    fn next_part(&self, at: PageNumber, end: PageNumber) -> Option<Part<H>> {
        let section = self.engine.enter();
        let vma = self.tree.view(&section).from(at).next()?;
        let pages = PageRange::new(vma.range().start().max(at), vma.range().end().min(end))?;
        let mapping = vma.mapping();
        let shown = mapping.file_page(pages.start()).filter(|_| mapping.sharing == Sharing::Shared);
        let file = shown.map(|(file, page)| (file.clone(), page..page + pages.pages()));
        Some(Part { pages, flags: mapping.flags, file })
    }
}
