//! Memory of this process whose faults the engine serves.

use crate::kernel::BlockedSignals;
use crate::pager::{Pager, Serving};
use crate::table::Table;
use crate::{Linux, OpenError, RegionError};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::OutOfMemory;
use faultless::protection::Protection;
use faultless::store::{FileStore, Store};
use faultless::sync::Shared;
use faultless::{AddressSpace, FaultError, File, MapError, MapRequest, Placement};
use rustix::fs::{OFlags, fcntl_getfl};
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes that come when they are first touched: zeros, or a file's, privately. Derefs to `[u8]`.
///
/// What cannot be read reaches the thread that touches it as SIGBUS, as with a file mapped by the kernel;
/// [`Region::refusal`] says why, and [`Region::retry`] lets it be tried again. A child of fork(2) does not have the
/// region: an access there is SIGSEGV, or meets what the child has mapped there since, and each call returns
/// [`OpenError::Inherited`]. Dropped, the region's memory is gone; dropped in a child, nothing happens.
pub struct Region {
    serving: Serving,
    start: NonNull<u8>,
    length: usize,
    /// The file that pages come from until they are stored to. `None`: zeros.
    file: Option<Shared<File<Linux>>>,
    /// Has the region end with signals blocked. Last, so that it is dropped last.
    signals: Option<BlockedSignals>,
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.serving.is_inherited() {
            // In a child the file never ends: its store's threads are not there.
            return std::mem::forget(self.file.take());
        }
        self.signals = Some(BlockedSignals::asynchronous());
    }
}

// SAFETY: the bytes are the region's own; references to them follow the borrow of the region.
unsafe impl Send for Region {}
// SAFETY: as above; all other methods may be called by any number of threads.
unsafe impl Sync for Region {}

impl Region {
    /// `length` zeros, served by the process's own pager.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn anonymous(length: usize) -> Result<Self, RegionError> {
        Pager::shared()?.anonymous(length)
    }

    /// The bytes of `file` as long as it is now, served by the process's own pager. Stores stay in the region.
    ///
    /// # Errors
    /// [`RegionError`]; [`MapError::NotReadable`] inside it if `file` was opened to write only, as mmap refuses that.
    pub fn file(file: std::fs::File) -> Result<Self, RegionError> {
        Pager::shared()?.file(file)
    }
}

impl Pager {
    /// A region of `length` zeros.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn anonymous(&self, length: usize) -> Result<Region, RegionError> {
        Region::map(self, length, None)
    }

    /// A region of the bytes of `file` as long as it is now. Stores stay in the region.
    ///
    /// # Errors
    /// As [`Region::file`].
    pub fn file(&self, file: std::fs::File) -> Result<Region, RegionError> {
        // A file whose flags cannot be had is refused, or fails, further on.
        let mode = fcntl_getfl(&file).map(|flags| flags & OFlags::RWMODE);
        if mode == Ok(OFlags::WRONLY) {
            return Err(MapError::NotReadable.into());
        }
        self.store(Arc::new(FileStore::from_file(file)?))
    }

    /// A region of what a store holds. Stores to the region stay in it.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn store(&self, store: Arc<dyn Store>) -> Result<Region, RegionError> {
        self.check_process()?;
        let _signals = BlockedSignals::asynchronous();
        let bytes = store.length()?;
        let length = usize::try_from(bytes).map_err(|_| RegionError::NoRoom { length: usize::MAX })?;
        let file = File::open(self.engine(), store)?;
        Region::map(self, length, Some(file))
    }
}

impl Region {
    fn map(pager: &Pager, length: usize, file: Option<Shared<File<Linux>>>) -> Result<Self, RegionError> {
        pager.check_process()?;
        if length == 0 {
            return Err(RegionError::Empty);
        }
        let _signals = BlockedSignals::asynchronous();
        let (engine, pages) = (pager.engine(), (length as u64).div_ceil(PAGE_SIZE));
        let table = engine.host().table(engine.sections(), pages);
        let no_room = |OutOfMemory| RegionError::NoRoom { length };
        let table: Table = table.map_err(no_room)?;
        let start = table.window().pointer();
        // SAFETY: new, and of this pager's host.
        let space = unsafe { AddressSpace::with_table(engine, table) }.map_err(no_room)?;
        let serving = Serving::of(&space).map_err(|_| RegionError::NoRoom { length })?;
        let request = match &file {
            None => MapRequest::anonymous(length as u64),
            Some(file) => MapRequest::file(file, 0, length as u64, Protection::READ | Protection::WRITE),
        };
        space.map(request.at(Placement::Fixed(VirtAddr::new(0))))?;
        Ok(Self { serving, start, length, file, signals: None })
    }

    /// Its address, for accesses that take no reference: to a region that other threads change, or parts of which are
    /// unmapped. Valid as long as the region lives; race as on the kernel's own memory.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The address space behind it. Not for everybody: its calls change the region whoever has references into it.
    pub(crate) fn space(&self) -> &AddressSpace<Linux, Faultless> {
        self.serving.space()
    }

    /// The region as it is now: the same bytes at other addresses, shared until either side writes. One instant: what
    /// threads write meanwhile is in it or is not, in the order in which they wrote. As after fork(2), a page of a file that
    /// was never written here is the file's, read when it is first touched; and what a device writes into memory that the
    /// kernel has pinned for it (O_DIRECT, io_uring) is of no instant.
    ///
    /// # Errors
    /// [`RegionError::Snapshot`]; nothing has changed.
    pub fn snapshot(&self) -> Result<Self, RegionError> {
        self.check_process()?;
        let _signals = BlockedSignals::asynchronous();
        let child = self.space().fork()?;
        let start = child.root().start();
        let serving = Serving::of(&child).map_err(|_| RegionError::NoRoom { length: self.length })?;
        Ok(Self { serving, start, length: self.length, file: self.file.clone(), signals: None })
    }

    /// Drops the pages of `part`: it reads as zeros or as the file afterwards. Pages of the file that the pager has in its
    /// cache show what was read once; [`Region::refresh`] has them read anew.
    ///
    /// # Errors
    /// [`RegionError::Part`]; nothing has changed.
    pub fn discard(&mut self, part: impl RangeBounds<usize>) -> Result<(), RegionError> {
        // SAFETY: no reference into the region lives, by `&mut self`.
        unsafe { self.discard_shared(part) }
    }

    /// [`Region::discard`] while other threads use the region by [`Region::as_ptr`].
    ///
    /// # Safety
    /// No reference into `part` lives.
    ///
    /// # Errors
    /// As there.
    pub unsafe fn discard_shared(&self, part: impl RangeBounds<usize>) -> Result<(), RegionError> {
        let (at, bytes) = self.part(part)?;
        let _signals = BlockedSignals::asynchronous();
        if bytes != 0 {
            self.space().discard(at, bytes)?;
        }
        Ok(())
    }

    /// Has the file's pages of `part` read anew when they are next touched, here and in snapshots: for a file that somebody
    /// else has changed. Pages that were stored to stay as they are; [`Region::discard`] drops them. The region stays as long
    /// as the file was: what the file has lost since is SIGBUS, and what it has gained is not shown. Does nothing in a region
    /// of zeros.
    ///
    /// # Safety
    /// No reference lives into `part`, or into the same part of a snapshot of this region or of the region that it is a
    /// snapshot of: bytes under it change.
    ///
    /// # Errors
    /// [`RegionError::Part`], [`RegionError::Refresh`].
    pub unsafe fn refresh(&self, part: impl RangeBounds<usize>) -> Result<(), RegionError> {
        let (at, bytes) = self.part(part)?;
        let _signals = BlockedSignals::asynchronous();
        if let Some(file) = &self.file {
            file.refresh(at.get(), bytes)?;
        }
        Ok(())
    }

    /// Changes what may be done with `part`. An access that is not allowed gets SIGSEGV.
    ///
    /// # Safety
    /// As long as `part` does not allow it, no reference into it lives: the region is used by [`Region::as_ptr`].
    ///
    /// # Errors
    /// [`RegionError::Part`], [`RegionError::Protect`].
    pub unsafe fn protect(
        &self,
        part: impl RangeBounds<usize>,
        protection: Protection,
    ) -> Result<(), RegionError> {
        let (at, bytes) = self.part(part)?;
        let _signals = BlockedSignals::asynchronous();
        if bytes != 0 {
            self.space().protect(at, bytes, protection)?;
        }
        Ok(())
    }

    /// Unmaps `part` for good: its memory goes, and an access gets SIGSEGV. The addresses stay the region's.
    ///
    /// # Safety
    /// No reference into `part` lives or will: the region is used by [`Region::as_ptr`].
    ///
    /// # Errors
    /// [`RegionError::Part`], [`RegionError::Unmap`].
    pub unsafe fn unmap(&self, part: impl RangeBounds<usize>) -> Result<(), RegionError> {
        let (at, bytes) = self.part(part)?;
        let _signals = BlockedSignals::asynchronous();
        if bytes != 0 {
            self.space().unmap(at, bytes)?;
        }
        Ok(())
    }

    /// Serves accesses to `part` anew that got SIGBUS. Bytes that were there before are there still: a store that found no
    /// memory has changed nothing.
    ///
    /// # Errors
    /// [`RegionError::Part`]; [`RegionError::Open`] in a child of fork(2), as of all calls that can fail.
    pub fn retry(&self, part: impl RangeBounds<usize>) -> Result<(), RegionError> {
        let (at, bytes) = self.part(part)?;
        let _signals = BlockedSignals::asynchronous();
        self.serving.retry(at, bytes);
        Ok(())
    }

    /// Why an access to the byte at `offset` gets SIGBUS, if it does.
    pub fn refusal(&self, offset: usize) -> Option<FaultError> {
        self.serving.refusal(VirtAddr::new(offset as u64))
    }

    /// That the calling process is the one that made the region.
    fn check_process(&self) -> Result<(), RegionError> {
        if self.serving.is_inherited() { Err(OpenError::Inherited.into()) } else { Ok(()) }
    }

    /// Where `part` begins and how long it is, rounded up to a page at the region's end. Nowhere in a child of fork(2).
    fn part(&self, part: impl RangeBounds<usize>) -> Result<(VirtAddr, u64), RegionError> {
        self.check_process()?;
        let start = match part.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match part.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.length,
        };
        let page = PAGE_SIZE as usize;
        let whole = start <= end
            && end <= self.length
            && start.is_multiple_of(page)
            && (end.is_multiple_of(page) || end == self.length);
        if !whole {
            return Err(RegionError::Part { part: start..end, length: self.length });
        }
        Ok((VirtAddr::new(start as u64), ((end - start) as u64).next_multiple_of(PAGE_SIZE)))
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped for reading but where `protect` or `unmap` was called, whose callers see to references; written
        // only by who has the region mutably, or by `discard_shared`, whose caller does the same.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}
