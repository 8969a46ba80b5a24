//! Handles of a file: read, write, sync and resize it, each with its own account of errors.

use super::account::{Miss, Pin};
use super::index;
use super::resize::Resize;
use super::{File, FolioLock};
use crate::address::PAGE_SIZE;
use crate::errno;
use crate::host::Host;
use crate::store::StoreError;
use crate::sync::{Mutex, Shared};

bitflags::bitflags! {
    /// What a handle was opened for (O_RDONLY, O_WRONLY, O_RDWR). What the file itself was not opened for, no handle may.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct FileRights: u8 {
        /// To read, and to map: also what is mapped without the right to read.
        const READ = 1;
        /// To write, to resize, to punch holes, and to map shared and writable.
        const WRITE = 2;
    }
}

/// Why a file was not read, written or resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The handle was opened to write only (EBADF).
    #[error("the file was not opened for reading")]
    NotReadable,
    /// The file or the handle was opened to be read only (EBADF; Linux's ftruncate says EINVAL).
    #[error("the file was not opened for writing")]
    NotWritable,
    /// A hole of no bytes (EINVAL).
    #[error("a hole of no bytes")]
    EmptyHole,
    /// Longer than a file can be (EFBIG).
    #[error("byte {end} lies behind the end that a file can have")]
    TooLong {
        /// Where it would end.
        end: u64,
    },
    /// The store failed: now, or at a write that nobody had been told of.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No frame, and nothing could be evicted (ENOMEM).
    #[error("out of memory for a page of the file")]
    OutOfMemory,
}

impl FileError {
    /// Linux's number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotReadable | Self::NotWritable => errno::EBADF,
            Self::EmptyHole => errno::EINVAL,
            Self::TooLong { .. } => errno::EFBIG,
            Self::Store(error) => error.errno(),
            Self::OutOfMemory => errno::ENOMEM,
        }
    }
}

/// An open file: what a descriptor is. It is told once of each time that writeback failed, however often others have
/// been; of what failed before it was opened, only if nobody has been told.
///
/// Dropping it starts nothing and waits for nothing: [`FileHandle::sync`] is the promise.
pub struct FileHandle<H: Host> {
    file: Shared<File<H>>,
    /// Immutable.
    rights: FileRights,
    /// The errors that it has been told of. Protected by its lock.
    seen: Mutex<u64>,
}

impl<H: Host> FileHandle<H> {
    /// The file.
    pub fn file(&self) -> &Shared<File<H>> {
        &self.file
    }

    /// What it was opened for, and the file too.
    pub fn rights(&self) -> FileRights {
        match self.file.writable {
            true => self.rights,
            false => self.rights - FileRights::WRITE,
        }
    }

    fn may(&self, right: FileRights, otherwise: FileError) -> Result<(), FileError> {
        if self.rights.contains(right) { Ok(()) } else { Err(otherwise) }
    }

    /// Reads from byte `offset` on, up to the end of the file; returns how many bytes. Waits for I/O.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, FileError> {
        self.may(FileRights::READ, FileError::NotReadable)?;
        self.file.read_at(offset, bytes)
    }

    /// Writes from byte `offset` on, through the page cache; the file grows if need be. Returns how many bytes: all. Who
    /// maps the file sees them. Waits for reads, and for writes of the same pages that are under way.
    ///
    /// # Errors
    /// [`FileError`]; the pages before the one that failed are written.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize, FileError> {
        self.may(FileRights::WRITE, FileError::NotWritable)?;
        self.file.write_at(offset, bytes)
    }

    /// Writes all that is dirty to the store, and waits for that (fsync).
    ///
    /// # Errors
    /// [`FileError::Store`]: a write failed since this handle was last told. Its page is dirty still, and the next `sync`
    /// tries again.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.finish_writeback(0..index::PAGES);
        let flushed = self.file.flush_store();
        let mut seen = self.file.engine.lock(&self.seen);
        let (result, now) = self.file.errors.lock().report(*seen);
        *seen = now;
        Ok(result.and(flushed)?)
    }

    /// Starts to write all that is dirty, and waits for nothing (sync_file_range). Errors are told by the next
    /// [`FileHandle::sync`].
    pub fn start_sync(&self) {
        self.file.start_writeback(0..index::PAGES);
    }

    /// Makes the file `length` bytes long (ftruncate), its store too; see [`File::set_length`].
    ///
    /// # Errors
    /// [`FileError`]; the file is as before.
    pub fn set_length(&self, length: u64) -> Result<(), FileError> {
        self.may(FileRights::WRITE, FileError::NotWritable)?;
        self.file.set_store_length(length, Resize::Set)
    }

    /// As [`File::punch_hole`].
    ///
    /// # Errors
    /// [`FileError`].
    pub fn punch_hole(&self, offset: u64, length: u64) -> Result<(), FileError> {
        self.may(FileRights::WRITE, FileError::NotWritable)?;
        self.file.punch_hole(offset, length)
    }
}

impl<H: Host> File<H> {
    /// A handle of its own account of errors, for all that the file allows.
    pub fn handle(&self) -> FileHandle<H> {
        self.handle_for(FileRights::all())
    }

    /// A handle for these rights only.
    pub fn handle_for(&self, rights: FileRights) -> FileHandle<H> {
        let seen = self.engine.lock(&self.errors).sample();
        let file = self.this.upgrade().expect("whoever calls this keeps the file");
        FileHandle { file, rights, seen: Mutex::new(seen) }
    }

    /// As [`FileHandle::sync`], with the account that the file's mappings have together: what msync was told of is not told
    /// here, and the other way.
    ///
    /// # Errors
    /// [`FileError::Store`].
    pub fn sync(&self) -> Result<(), FileError> {
        self.finish_writeback(0..index::PAGES);
        let flushed = self.flush_store();
        Ok(self.report_error().and(flushed)?)
    }

    fn set_store_length(&self, length: u64, how: Resize) -> Result<(), FileError> {
        if !self.writable {
            return Err(FileError::NotWritable);
        }
        check_end(length)?;
        let store = |length| self.store.as_ref().map_or(Ok(()), |store| store.set_length(length));
        Ok(self.resize(length, how, store)?)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, FileError> {
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = offset.checked_add(done as u64) else { break };
            let left = self.length().saturating_sub(at);
            let within = (at % PAGE_SIZE) as usize;
            let part = (bytes.len() - done)
                .min(PAGE_SIZE as usize - within)
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            if part == 0 {
                break;
            }
            let part = &mut bytes[done..done + part];
            if self.is_hole(at / PAGE_SIZE) {
                part.fill(0);
            } else {
                let Some(pin) = self.wait_for_page(at / PAGE_SIZE)? else { break };
                self.engine.frames().read(pin.frame(), within, part);
            }
            done += part.len();
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize, FileError> {
        if !self.writable {
            return Err(FileError::NotWritable);
        }
        let end = offset.checked_add(bytes.len() as u64).ok_or(FileError::TooLong { end: u64::MAX })?;
        check_end(end)?;
        let mut done = 0;
        while done < bytes.len() {
            // Again for each page: somebody may cut the file off meanwhile.
            if end > self.length() {
                self.set_store_length(end, Resize::Grow { from: offset })?;
            }
            let at = offset + done as u64;
            let part = (bytes.len() - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            self.write_page(at, &bytes[done..done + part])?;
            done += part;
        }
        Ok(done)
    }

    /// Writes inside one page of the file. What has been cut off meanwhile is not written.
    pub(super) fn write_page(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        let (page, within) = (offset / PAGE_SIZE, (offset % PAGE_SIZE) as usize);
        loop {
            let Some(pin) = self.wait_for_page(page)? else { return Ok(()) };
            let lock: FolioLock<H> = pin.lock();
            let frame = lock.0.frame();
            if !self.is_attached(page, frame) {
                continue;
            }
            if !self.make_dirty(page, frame) {
                let pin = Pin::again(&lock.0);
                drop(lock);
                pin.wait_for_write(&|| false);
                continue;
            }
            // With the lock no write of it begins.
            self.engine.frames().write(frame, within, bytes);
            return Ok(());
        }
    }

    /// Pins page `page`, up to date. `None`: the file has no such page any more.
    fn wait_for_page(&self, page: u64) -> Result<Option<Pin<H>>, FileError> {
        loop {
            let cuts = self.cuts();
            let pin = match self.read(page, false) {
                Ok((pin, _)) => pin,
                Err(Miss::PastEnd) => return Ok(None),
                Err(Miss::Queue(unpinned)) => {
                    self.engine.wait_for_unpin(unpinned, &|| false);
                    continue;
                }
                Err(Miss::OutOfMemory) => return Err(FileError::OutOfMemory),
            };
            pin.wait_for_read(&|| false);
            match self.engine.folio(pin.frame()).read_error(page * PAGE_SIZE) {
                None => return Ok(Some(pin)),
                Some(_) if page >= self.pages() => return Ok(None),
                Some(error) if self.is_cut_since(cuts, error) => {}
                Some(error) => return Err(error.into()),
            }
        }
    }
}

fn check_end(end: u64) -> Result<(), FileError> {
    // No file's last byte lies behind what an offset with a sign can say.
    let most = (index::PAGES * PAGE_SIZE).min(i64::MAX as u64);
    if end > most { Err(FileError::TooLong { end }) } else { Ok(()) }
}
