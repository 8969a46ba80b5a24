//! Handles of a file: read, write, sync and resize it, each with its own account of errors.

use super::FileRef;
use super::account::{Miss, Pin};
use super::index;
use super::memory_queue::Looking;
use super::writers::{Next, Writing};
use super::{File, FolioLock};
use crate::address::PAGE_SIZE;
use crate::errno;
use crate::frame::Reference;
use crate::host::{GroupId, Host};
use crate::store::StoreError;
use crate::sync::atomic::Ordering;
use crate::sync::{Mutex, Shared};
use alloc::vec::Vec;

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
    /// A page that was to be read anew has bytes that the store does not have (EBUSY).
    #[error("the page at byte {offset} has been written, and not synced: reading it anew would lose that")]
    Dirty {
        /// The offset of the page, in bytes.
        offset: u64,
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
            Self::Dirty { .. } => errno::EBUSY,
            Self::OutOfMemory => errno::ENOMEM,
        }
    }
}

/// An open file: what a descriptor is. Each handle has its own account of errors. [`FileHandle::sync`] returns the last failure
/// since this handle was last told; several failures in between are told as one. A failure from before the handle was opened is
/// told only if nobody has been told of it.
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
    pub fn file(&self) -> &FileRef<H> {
        &self.file
    }

    /// The rights that both the handle and its file were opened with.
    pub fn rights(&self) -> FileRights {
        match self.file.writable {
            true => self.rights,
            false => self.rights - FileRights::WRITE,
        }
    }

    fn may(&self, right: FileRights, otherwise: FileError) -> Result<(), FileError> {
        if self.rights.contains(right) { Ok(()) } else { Err(otherwise) }
    }

    /// Reads from byte `offset` on, up to the end of the file; returns how many bytes. Waits for I/O. `bytes` may lie in memory
    /// that the engine itself manages: nothing is held while it is touched.
    ///
    /// # Errors
    /// [`FileError`], if not one byte could be read. After a failure behind the first byte it returns how many were read.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, FileError> {
        self.may(FileRights::READ, FileError::NotReadable)?;
        self.file.read_at(offset, bytes)
    }

    /// Writes from byte `offset` on, through the page cache, and returns how many bytes. Every mapping of the file shows them.
    /// The file grows by what was written: a page's bytes are there before the length says so. Waits for reads, and for
    /// writes of the same pages that are under way. `bytes` may lie in memory that the engine itself manages: nothing is held
    /// while it is touched.
    ///
    /// A truncation or a hole beside a write comes before it or behind it: a write that loses some of what it has written to one
    /// ends there, and returns how many bytes it has written.
    ///
    /// # Errors
    /// [`FileError`], if not one byte could be written; the file is as before. After a failure behind the first page it returns
    /// how many bytes were written, as write(2) does, and the file is no longer than these.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize, FileError> {
        self.may(FileRights::WRITE, FileError::NotWritable)?;
        self.file.write_at(offset, bytes)
    }

    /// Writes all that is dirty to the store, and waits for that (fsync).
    ///
    /// # Errors
    /// [`FileError::Store`]: a write or a flush failed since this handle was last told, or during this call. Pages that may not
    /// have reached the device are dirty still, as far as they are in memory, and the next `sync` tries again.
    pub fn sync(&self) -> Result<(), FileError> {
        let before = self.file.finish_writeback(0..index::PAGES);
        self.file.flush_store();
        let mut seen = self.file.engine.lock(&self.seen);
        let (result, now) = self.file.errors.lock().report(*seen, before);
        *seen = now;
        Ok(result?)
    }

    /// Starts to write dirty pages, and waits for no I/O (sync_file_range). Passes over pages that are locked, are being written,
    /// or lie where the file is being cut, punched or read anew; these stay dirty. Errors are told by the next
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
        self.file.set_store_length(length)
    }

    /// Makes zeros of `length` bytes from byte `offset` on: see [`File::punch_hole`].
    ///
    /// # Errors
    /// As [`File::punch_hole`], and [`FileError::NotWritable`] if the handle may not write. The file is as before.
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

    /// Writes and flushes as [`FileHandle::sync`]. It reports by the account that it shares with msync: a failure that one of
    /// them has told, the other does not tell again, unless it came during both.
    ///
    /// # Errors
    /// [`FileError::Store`].
    pub fn sync(&self) -> Result<(), FileError> {
        let before = self.finish_writeback(0..index::PAGES);
        self.flush_store();
        Ok(self.report_error(before)?)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, FileError> {
        let mut bounce = bounce_page(bytes.len())?;
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = offset.checked_add(done as u64) else { break };
            let left = self.length().saturating_sub(at);
            let part = part_of_page(at, bytes.len() - done).min(usize::try_from(left).unwrap_or(usize::MAX));
            if part == 0 {
                break;
            }
            let bounce = &mut bounce[..part];
            match self.read_part(at, bounce) {
                Ok(true) => {
                    self.engine.assert_holds_nothing("the buffer of a read by handle");
                    bytes[done..done + part].copy_from_slice(bounce);
                }
                Ok(false) => break,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            done += part;
        }
        Ok(done)
    }

    /// Reads inside one page. False: the file has no such page any more.
    fn read_part(&self, at: u64, bytes: &mut [u8]) -> Result<bool, FileError> {
        if self.is_hole(at / PAGE_SIZE) {
            bytes.fill(0);
            return Ok(true);
        }
        let Some(pin) = self.wait_for_page(at / PAGE_SIZE)? else { return Ok(false) };
        self.engine.frames().read(pin.frame(), (at % PAGE_SIZE) as usize, bytes);
        Ok(true)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize, FileError> {
        if !self.writable {
            return Err(FileError::NotWritable);
        }
        let end = offset.checked_add(bytes.len() as u64).ok_or(FileError::TooLong { end: u64::MAX })?;
        check_end(end)?;
        let mut bounce = bounce_page(bytes.len())?;
        let is_one_part = part_of_page(offset, bytes.len()) == bytes.len();
        let writing = match is_one_part {
            true => None,
            false => Some(self.begin_writing(offset).map_err(|_| FileError::OutOfMemory)?),
        };
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let part = part_of_page(at, bytes.len() - done);
            let bounce = &mut bounce[..part];
            self.engine.assert_holds_nothing("the buffer of a write by handle");
            bounce.copy_from_slice(&bytes[done..done + part]);
            let result = self.write_part(at, bounce, (end, writing.as_ref()));
            if let Ok(Part::Written) = result {
                done += part;
                continue;
            }
            // If the store refuses, the next sync tries again, and tells.
            let _ = self.shrink_store_to_length(&self.take_resizing());
            return if done > 0 { Ok(done) } else { result.map(|_| done) };
        }
        Ok(done)
    }

    /// Writes inside one page, and makes the file longer if need be; the store then becomes `store_end` bytes long at once.
    fn write_part(
        &self,
        at: u64,
        bytes: &[u8],
        (store_end, writing): (u64, Option<&Writing<'_, H>>),
    ) -> Result<Part, FileError> {
        let end = at + bytes.len() as u64;
        let next = || writing.map_or(Next::Write, |writing| writing.go_on_to(end));
        let resizing = loop {
            if end <= self.length() {
                match self.write_inside(at, bytes, &next)? {
                    Inside::Done => return Ok(Part::Written),
                    Inside::End => return Ok(Part::Cut),
                    Inside::Wait => drop(self.take_resizing()),
                    Inside::Gone => {}
                }
                continue;
            }
            let resizing = self.take_resizing();
            if end > self.length() {
                break resizing;
            }
        };
        // Nobody else removes anything now.
        if next() == Next::End {
            return Ok(Part::Cut);
        }
        let old = self.length();
        self.grow_store(&resizing, store_end)?;
        #[cfg(mutant = "length_before_the_bytes")]
        {
            self.publish_longer(&resizing, store_end);
            self.write_inside(at, bytes, &next)?;
            return Ok(Part::Written);
        }
        let page = at / PAGE_SIZE;
        let locked = loop {
            let pin =
                if page < old.div_ceil(PAGE_SIZE) { self.wait_for_page(page)? } else { self.new_page(page)? };
            if let Some(lock) = pin.and_then(|pin| self.lock_dirty(page, pin)) {
                break lock;
            }
        };
        let last = if old / PAGE_SIZE == page { None } else { self.lock_last_page(&resizing, old) };
        let last_page = if old / PAGE_SIZE == page { Some(&locked) } else { last.as_ref() };
        self.zero_behind(last_page, old, at);
        self.engine.frames().write(locked.0.frame(), (at % PAGE_SIZE) as usize, bytes);
        // Release: whoever sees the length sees the bytes. The locks are dropped after it.
        self.length.store(end, Ordering::Release);
        Ok(Part::Written)
    }

    /// Writes inside one page of the file, if `next`, which is asked with the page locked, says so.
    fn write_inside(&self, at: u64, bytes: &[u8], next: &impl Fn() -> Next) -> Result<Inside, FileError> {
        let page = at / PAGE_SIZE;
        let Some(pin) = self.wait_for_page(page)? else { return Ok(Inside::Gone) };
        let Some(lock) = self.lock_dirty(page, pin) else { return Ok(Inside::Gone) };
        // A cut lowers the length first, and makes zeros of the rest of its last page with the lock.
        if at + bytes.len() as u64 > self.length() {
            return Ok(Inside::Gone);
        }
        match next() {
            Next::Wait => return Ok(Inside::Wait),
            Next::End => return Ok(Inside::End),
            Next::Write => {}
        }
        // With the lock no write of it to the store begins.
        self.engine.frames().write(lock.0.frame(), (at % PAGE_SIZE) as usize, bytes);
        Ok(Inside::Done)
    }

    /// Locks a pinned page and makes it dirty, when no write of it is under way. `None`: it is the file's no more.
    pub(super) fn lock_dirty(&self, page: u64, mut pin: Pin<H>) -> Option<FolioLock<H>> {
        loop {
            let lock: FolioLock<H> = pin.lock();
            let frame = lock.0.frame();
            if !self.has_in_index(page, frame) {
                return None;
            }
            if self.make_dirty(page, frame) {
                return Some(lock);
            }
            pin = lock.unlock();
            pin.wait_for_write(None);
        }
    }

    /// Pins page `page`, up to date. `None`: the file has no such page any more.
    pub(super) fn wait_for_page(&self, page: u64) -> Result<Option<Pin<H>>, FileError> {
        let mut looking = Looking::new(&self.engine);
        loop {
            let cuts = self.cuts();
            let pin = match self.read(page, false, looking.ticket()) {
                Ok((pin, _)) => pin,
                Err(Miss::PastEnd) => return Ok(None),
                Err(miss) => {
                    self.wait_after(miss, page, &mut looking)?;
                    continue;
                }
            };
            looking.has_found();
            pin.wait_for_read(None);
            match self.engine.folio(pin.frame()).read_error(page * PAGE_SIZE) {
                None => return Ok(Some(pin)),
                Some(_) if page >= self.pages() => return Ok(None),
                Some(error) if self.is_cut_since(cuts, error) => {}
                Some(error) => return Err(error.into()),
            }
        }
    }

    /// Pins page `page`, which lies behind the end: zeros, and dirty. The caller is the only one to make the file longer.
    /// `None`: somebody who came beside a truncation is about to let it go; look again.
    fn new_page(&self, page: u64) -> Result<Option<Pin<H>>, FileError> {
        let mut looking = Looking::new(&self.engine);
        loop {
            let frame = if self.is_in_memory() {
                self.engine.allocate(GroupId::ROOT).ok_or(Miss::OutOfMemory)
            } else {
                self.room_for_one(looking.ticket())
            };
            let made = frame.and_then(|frame| Ok(self.attach_zeros(page, frame, Reference::Pin)?));
            match made {
                Ok(frame) => return Ok(frame.map(|frame| Pin::new(&self.engine, frame))),
                Err(miss) => self.wait_after(miss, page, &mut looking)?,
            }
        }
    }

    /// Waits for what `miss`, of page `page`, wants, after which one looks again.
    fn wait_after(&self, miss: Miss, page: u64, looking: &mut Looking<H>) -> Result<(), FileError> {
        let events = match miss {
            // Nobody waits for these with a turn that others need.
            Miss::Full(full) => {
                looking.has_found();
                self.engine.wait_for_place(full, None);
                return Ok(());
            }
            Miss::Forbidden => {
                looking.has_found();
                self.wait_while_forbidden(page, None);
                return Ok(());
            }
            Miss::Queue(events) => Some(events),
            // After the transfers under way there may be some.
            Miss::OutOfMemory | Miss::PastEnd => self.engine.wait_for_transfers(),
        };
        looking.wait(events.ok_or(FileError::OutOfMemory)?);
        Ok(())
    }
}

/// What came of a part of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Written,
    /// Some of what was written before it has been cut off or punched out: it is not written.
    Cut,
}

/// What came of a write inside a page of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    Done,
    /// These bytes have been cut off meanwhile, or the page was evicted: look again. The write comes behind that.
    Gone,
    /// See [`Next::Wait`].
    Wait,
    /// See [`Next::End`].
    End,
}

/// How many of `left` bytes from byte `at` on lie in the same page.
fn part_of_page(at: u64, left: usize) -> usize {
    left.min((PAGE_SIZE - at % PAGE_SIZE) as usize)
}

/// Where bytes wait between a frame and memory of the caller, of which `length` are to move: touching the latter may
/// fault, and is done while nothing is held.
fn bounce_page(length: usize) -> Result<Vec<u8>, FileError> {
    let length = length.min(PAGE_SIZE as usize);
    let mut page = Vec::new();
    page.try_reserve_exact(length).map_err(|_| FileError::OutOfMemory)?;
    page.resize(length, 0);
    Ok(page)
}

/// No file's last byte lies behind what an offset with a sign can say.
pub(super) fn check_end(end: u64) -> Result<(), FileError> {
    let most = (index::PAGES * PAGE_SIZE).min(i64::MAX as u64);
    if end > most { Err(FileError::TooLong { end }) } else { Ok(()) }
}
