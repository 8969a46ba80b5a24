//! Defines [`Region`]: memory of this process whose page faults the engine serves.

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

/// Memory whose pages are filled when they are first touched, with zeros or with a private copy of a file. Derefs to
/// `[u8]`.
///
/// If a page cannot be read, the thread that touches it receives SIGBUS, as with a file that the kernel maps.
/// [`Region::refusal`] returns the reason, and after [`Region::retry`] the access is tried again.
///
/// A child of fork(2) does not have the region. An access there gets SIGSEGV, or finds a mapping that the child has
/// made since; each call returns [`OpenError::Inherited`]. Dropping the region frees its memory; in a child it does
/// nothing.
pub struct Region {
    serving: Serving,
    start: NonNull<u8>,
    length: usize,
    /// The file that pages are read from until they are written. `None`: pages are zeros.
    file: Option<Shared<File<Linux>>>,
    /// Blocks signals while the region ends. It is the last field, so that it is dropped last.
    signals: Option<BlockedSignals>,
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.serving.is_inherited() {
            // In a child the file is never dropped: its store's threads do not exist there.
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
    /// Makes a region of `length` zero bytes, served by the process's shared pager.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn anonymous(length: usize) -> Result<Self, RegionError> {
        Pager::shared()?.anonymous(length)
    }

    /// Makes a region of the bytes of `file`, at its present length, served by the process's shared pager. Writes stay
    /// in the region and do not reach the file.
    ///
    /// # Errors
    /// [`RegionError`]. It holds [`MapError::NotReadable`] if `file` was opened for writing only; mmap refuses that
    /// too.
    pub fn file(file: std::fs::File) -> Result<Self, RegionError> {
        Pager::shared()?.file(file)
    }
}

impl Pager {
    /// Makes a region of `length` zero bytes.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn anonymous(&self, length: usize) -> Result<Region, RegionError> {
        Region::map(self, length, None)
    }

    /// Makes a region of the bytes of `file`, at its present length. Writes stay in the region and do not reach the
    /// file.
    ///
    /// # Errors
    /// As [`Region::file`].
    pub fn file(&self, file: std::fs::File) -> Result<Region, RegionError> {
        // If the flags cannot be read, a later call refuses the file or fails.
        let mode = fcntl_getfl(&file).map(|flags| flags & OFlags::RWMODE);
        if mode == Ok(OFlags::WRONLY) {
            return Err(MapError::NotReadable.into());
        }
        self.store(Arc::new(FileStore::from_file(file)?))
    }

    /// Makes a region of the bytes of `store`. Writes stay in the region and do not reach the store.
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

    /// Returns the region's address, for accesses without a reference.
    ///
    /// Use it if other threads change the region, or if parts of it are unmapped. The address is valid as long as the
    /// region lives. Concurrent accesses race as they do on the kernel's own memory.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Returns the address space of this region. It is not public: its calls change the region even while references
    /// into it live.
    pub(crate) fn space(&self) -> &AddressSpace<Linux, Faultless> {
        self.serving.space()
    }

    /// Makes a copy of the region as it is now, at other addresses. Pages are shared until either side writes.
    ///
    /// The copy is of one instant: it has the writes of other threads up to some point in the order in which they were
    /// made. As after fork(2), a page of a file that was never written here is read from the file when it is first
    /// touched. Writes of a device into memory that the kernel has pinned for it (O_DIRECT, io_uring) belong to no
    /// instant.
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

    /// Drops the pages of `part`, which then reads as zeros or as the file.
    ///
    /// If the pager has a page of the file in its cache, the part shows the bytes that were read at that time.
    /// [`Region::refresh`] reads them again.
    ///
    /// # Errors
    /// [`RegionError::Part`]; nothing has changed.
    pub fn discard(&mut self, part: impl RangeBounds<usize>) -> Result<(), RegionError> {
        // SAFETY: no reference into the region lives, by `&mut self`.
        unsafe { self.discard_shared(part) }
    }

    /// Does what [`Region::discard`] does, while other threads use the region through [`Region::as_ptr`].
    ///
    /// # Safety
    /// There must be no live reference into `part`.
    ///
    /// # Errors
    /// As for [`Region::discard`].
    pub unsafe fn discard_shared(&self, part: impl RangeBounds<usize>) -> Result<(), RegionError> {
        let (at, bytes) = self.part(part)?;
        let _signals = BlockedSignals::asynchronous();
        if bytes != 0 {
            self.space().discard(at, bytes)?;
        }
        Ok(())
    }

    /// Has the file's pages of `part` read again at their next access, here and in snapshots.
    ///
    /// Call it after another program has changed the file. Pages that were written here stay as they are;
    /// [`Region::discard`] drops them. The region keeps the length that the file had: an access beyond the file's new
    /// end gets SIGBUS, and bytes that were appended are not shown. In a region of zeros it does nothing.
    ///
    /// # Safety
    /// There must be no live reference into `part`, nor into the same part of a snapshot of this region, nor of the
    /// region that this one is a snapshot of: the bytes change.
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

    /// Changes the rights of `part`. An access that they do not allow gets SIGSEGV.
    ///
    /// # Safety
    /// While the rights of `part` do not allow the access, there must be no live reference into it. Use
    /// [`Region::as_ptr`].
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

    /// Unmaps `part` for good. Its memory is freed, and an access gets SIGSEGV. The addresses stay reserved for the
    /// region.
    ///
    /// # Safety
    /// There must be no reference into `part`, now or later. Use [`Region::as_ptr`].
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

    /// Serves accesses to `part` again that got SIGBUS. Earlier bytes are kept: a store that found no memory has
    /// changed nothing.
    ///
    /// # Errors
    /// [`RegionError::Part`]; [`RegionError::Open`] in a child of fork(2), as in all calls that can fail.
    pub fn retry(&self, part: impl RangeBounds<usize>) -> Result<(), RegionError> {
        let (at, bytes) = self.part(part)?;
        let _signals = BlockedSignals::asynchronous();
        self.serving.retry(at, bytes);
        Ok(())
    }

    /// Returns the reason if an access to the byte at `offset` gets SIGBUS.
    pub fn refusal(&self, offset: usize) -> Option<FaultError> {
        self.serving.refusal(VirtAddr::new(offset as u64))
    }

    /// Checks that the calling process made the region.
    fn check_process(&self) -> Result<(), RegionError> {
        if self.serving.is_inherited() { Err(OpenError::Inherited.into()) } else { Ok(()) }
    }

    /// Returns the start of `part` and its length in bytes, rounded up to a page at the region's end. Fails in a child
    /// of fork(2).
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
        // SAFETY: the bytes are mapped for reading, except where `protect` or `unmap` was called; their callers
        // guarantee that no reference lives there. Only a holder of `&mut` writes the bytes, or `discard_shared`, whose
        // caller guarantees the same.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` excludes other references.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}
