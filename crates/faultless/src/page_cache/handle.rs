//! Handles of a file, which read, write, sync and resize it. Each handle has its own account of errors.

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
    /// The access rights of a handle (O_RDONLY, O_WRONLY, O_RDWR). A handle has no right that the file itself was not opened
    /// with.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct FileRights: u8 {
        /// The right to read and to map the file. Even a mapping without the right to read needs it.
        const READ = 1;
        /// The right to write, to resize, to punch holes, and to map shared and writable.
        const WRITE = 2;
    }
}

/// The reason why a file was not read, written or resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The handle was opened to write only (EBADF).
    #[error("the file was not opened for reading")]
    NotReadable,
    /// The file or the handle was opened to be read only (EBADF; Linux's ftruncate says EINVAL).
    #[error("the file was not opened for writing")]
    NotWritable,
    /// The hole has no bytes (EINVAL).
    #[error("a hole of no bytes")]
    EmptyHole,
    /// The file would be longer than a file can be (EFBIG).
    #[error("byte {end} lies behind the end that a file can have")]
    TooLong {
        /// The offset of the end that the file would have, in bytes.
        end: u64,
    },
    /// A page that was to be read anew has bytes that the store does not have yet (EBUSY).
    #[error("the page at byte {offset} has been written, and not synced: reading it anew would lose that")]
    Dirty {
        /// The offset of the page, in bytes.
        offset: u64,
    },
    /// The store failed, now or at an earlier write whose failure was not reported yet.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no free frame, and no page could be evicted (ENOMEM).
    #[error("out of memory for a page of the file")]
    OutOfMemory,
}

impl FileError {
    /// Returns Linux's error number.
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

/// An open file, like a file descriptor. Each handle has its own account of errors. [`FileHandle::sync`] reports the last
/// failure since the handle's last report; several failures in between are reported as one. A failure from before the handle
/// was opened is reported only if no handle has reported it.
///
/// Dropping a handle starts no write and waits for none. Only [`FileHandle::sync`] ensures that the bytes have reached the
/// device.
pub struct FileHandle<H: Host> {
    file: Shared<File<H>>,
    /// Immutable.
    rights: FileRights,
    /// The errors that the handle has reported. Protected by its lock.
    seen: Mutex<u64>,
}

impl<H: Host> FileHandle<H> {
    /// Returns the file.
    pub fn file(&self) -> &FileRef<H> {
        &self.file
    }

    /// Returns the rights that both the handle and its file were opened with.
    pub fn rights(&self) -> FileRights {
        match self.file.writable {
            true => self.rights,
            false => self.rights - FileRights::WRITE,
        }
    }

    fn may(&self, right: FileRights, otherwise: FileError) -> Result<(), FileError> {
        if self.rights.contains(right) { Ok(()) } else { Err(otherwise) }
    }

    /// Reads from byte `offset` on, up to the end of the file, and returns the number of bytes read. Waits for I/O. `bytes` may
    /// lie in memory that the engine itself manages: no lock is held while it is touched.
    ///
    /// # Errors
    /// [`FileError`], if not one byte could be read. After a failure behind the first byte, it returns the number of bytes
    /// read.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, FileError> {
        self.may(FileRights::READ, FileError::NotReadable)?;
        self.file.read_at(offset, bytes)
    }

    /// Writes from byte `offset` on, through the page cache, and returns the number of bytes written. Every mapping of the file
    /// shows them. The file grows by the bytes written: a page's bytes are there before the length covers them. Waits for
    /// reads, and for writes of the same pages that are under way. `bytes` may lie in memory that the engine itself manages: no
    /// lock is held while it is touched.
    ///
    /// A truncation or a hole beside a write takes effect before it or after it. If one removes bytes that the write has
    /// already written, the write ends there, and returns the number of bytes it has written.
    ///
    /// # Errors
    /// [`FileError`], if not one byte could be written; the file is unchanged. After a failure behind the first page, it
    /// returns the number of bytes written, as write(2) does, and the file is not longer than these.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize, FileError> {
        self.may(FileRights::WRITE, FileError::NotWritable)?;
        self.file.write_at(offset, bytes)
    }

    /// Writes all dirty pages to the store, and waits until they have reached the device (fsync).
    ///
    /// # Errors
    /// [`FileError::Store`]: a write or a flush failed since this handle's last report, or during this call. Pages that may not
    /// have reached the device stay dirty, as far as they are in memory, and the next `sync` tries again.
    pub fn sync(&self) -> Result<(), FileError> {
        let before = self.file.finish_writeback(0..index::PAGES);
        self.file.flush_store();
        let mut seen = self.file.engine.lock(&self.seen);
        let (result, now) = self.file.errors.lock().report(*seen, before);
        *seen = now;
        Ok(result?)
    }

    /// Starts to write dirty pages, and waits for no I/O (sync_file_range). Skips pages that are locked, are being written, or
    /// lie where the file is being cut, punched or read anew; these stay dirty. The next [`FileHandle::sync`] reports errors.
    pub fn start_sync(&self) {
        self.file.start_writeback(0..index::PAGES);
    }

    /// Makes the file and its store `length` bytes long (ftruncate); see [`File::set_length`].
    ///
    /// # Errors
    /// [`FileError`]; the file is unchanged.
    pub fn set_length(&self, length: u64) -> Result<(), FileError> {
        self.may(FileRights::WRITE, FileError::NotWritable)?;
        self.file.set_store_length(length)
    }

    /// Replaces `length` bytes from byte `offset` on with zeros: see [`File::punch_hole`].
    ///
    /// # Errors
    /// The errors of [`File::punch_hole`], and [`FileError::NotWritable`] if the handle may not write. The file is unchanged.
    pub fn punch_hole(&self, offset: u64, length: u64) -> Result<(), FileError> {
        self.may(FileRights::WRITE, FileError::NotWritable)?;
        self.file.punch_hole(offset, length)
    }
}

impl<H: Host> File<H> {
    /// Opens a handle with all rights of the file and an account of errors of its own.
    pub fn handle(&self) -> FileHandle<H> {
        self.handle_for(FileRights::all())
    }

    /// Opens a handle with these rights only.
    pub fn handle_for(&self, rights: FileRights) -> FileHandle<H> {
        let seen = self.engine.lock(&self.errors).sample();
        let file = self.this.upgrade().expect("the caller keeps the file alive");
        FileHandle { file, rights, seen: Mutex::new(seen) }
    }

    /// Writes and flushes the file, as [`FileHandle::sync`] does. It shares an account of errors with msync. A failure that one
    /// of the two has reported is not reported by the other, unless it came during both.
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

    /// Reads bytes inside one page. Returns false if the file no longer has the page.
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
                self.engine.pay_after_write();
                done += part;
                continue;
            }
            // If the store refuses, the next sync tries again and reports the error.
            let _ = self.shrink_store_to_length(&self.take_resizing());
            return if done > 0 { Ok(done) } else { result.map(|_| done) };
        }
        Ok(done)
    }

    /// Writes bytes inside one page, and makes the file longer if needed. The store then becomes `store_end` bytes long at
    /// once.
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
        // No other thread removes bytes now.
        if next() == Next::End {
            return Ok(Part::Cut);
        }
        let old = self.length();
        self.grow_store(&resizing, store_end)?;
        if mutant!("length_before_the_bytes") {
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
        // Release: a thread that sees the length sees the bytes. The locks are dropped after it.
        self.length.store(end, Ordering::Release);
        Ok(Part::Written)
    }

    /// Writes bytes inside one page of the file, if `next` agrees. `next` is called with the page locked.
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
        // While the lock is held, no write of the page to the store begins.
        self.engine.frames().write(lock.0.frame(), (at % PAGE_SIZE) as usize, bytes);
        Ok(Inside::Done)
    }

    /// Locks a pinned page and makes it dirty, once no write of it is under way. Returns `None` if the page is no longer the
    /// file's.
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

    /// Pins page `page` once it is up to date. Returns `None` if the file no longer has such a page.
    pub(super) fn wait_for_page(&self, page: u64) -> Result<Option<Pin<H>>, FileError> {
        let mut looking = Looking::new(&self.engine);
        loop {
            let cuts = self.cuts();
            let pin = match self.read(page, false, (looking.ticket(), GroupId::ROOT)) {
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
                None if self.wait_to_join(page, &pin) => return Ok(Some(pin)),
                // A cut or a hole has come between.
                None => {}
                Some(_) if page >= self.pages() => return Ok(None),
                // The next look finds the error, if the page is still in the slot.
                Some(error) if self.is_in_memory() && error.errno() != errno::ENOMEM => {}
                Some(error) if self.is_cut_since(cuts, error) => {}
                Some(error) => return Err(error.into()),
            }
        }
    }

    /// Pins page `page`, which lies behind the end, filled with zeros and dirty. The caller is the only one to make the file
    /// longer. Returns `None` if a thread that met a truncation is about to drop the page; the caller looks again.
    fn new_page(&self, page: u64) -> Result<Option<Pin<H>>, FileError> {
        let mut looking = Looking::new(&self.engine);
        loop {
            let frame = if self.is_in_memory() {
                self.engine.allocate(GroupId::ROOT).map_err(|_| Miss::NoFrame)
            } else {
                self.room_for_one(looking.ticket(), GroupId::ROOT)
            };
            let made = frame.and_then(|frame| Ok(self.attach_zeros(page, frame, Reference::Pin)?));
            match made {
                Ok(frame) => return Ok(frame.map(|frame| Pin::new(&self.engine, frame))),
                Err(miss) => self.wait_after(miss, page, &mut looking)?,
            }
        }
    }

    /// Waits until the cause of `miss`, of page `page`, has passed. The caller then looks again.
    fn wait_after(&self, miss: Miss, page: u64, looking: &mut Looking<H>) -> Result<(), FileError> {
        let events = match miss {
            // A thread that waits for these gives up its turn first, since other threads may need the turn.
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
            Miss::NoFrame if looking.makes_room() => return Ok(()),
            // The transfers under way may free frames when they end.
            Miss::OutOfMemory(_) | Miss::NoFrame | Miss::PastEnd => self.engine.wait_for_transfers(),
            Miss::Lost(error) => return Err(error.into()),
            Miss::InSlot => return Ok(()),
        };
        let events = events.filter(|_| !looking.has_had_its_turns());
        looking.wait(events.ok_or(FileError::OutOfMemory)?);
        Ok(())
    }
}

/// The outcome of one part of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Written,
    /// Bytes that the same write had written before were cut off or punched out. This part is not written.
    Cut,
}

/// The outcome of a write inside a page of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    Done,
    /// The bytes have been cut off meanwhile, or the page was evicted. The caller looks again; the write comes after the cut.
    Gone,
    /// The write has to wait: see [`Next::Wait`].
    Wait,
    /// The write has to end: see [`Next::End`].
    End,
}

/// Returns the number of the `left` bytes from byte `at` on that lie in the same page.
fn part_of_page(at: u64, left: usize) -> usize {
    left.min((PAGE_SIZE - at % PAGE_SIZE) as usize)
}

/// Makes a buffer between a frame and memory of the caller, for `length` bytes, one page at most. An access to the caller's
/// memory may fault, so it is made while no lock is held.
fn bounce_page(length: usize) -> Result<Vec<u8>, FileError> {
    let length = length.min(PAGE_SIZE as usize);
    let mut page = Vec::new();
    page.try_reserve_exact(length).map_err(|_| FileError::OutOfMemory)?;
    page.resize(length, 0);
    Ok(page)
}

/// Checks that a file may end at byte `end`: the last byte of a file lies at an offset that a signed number can hold.
pub(super) fn check_end(end: u64) -> Result<(), FileError> {
    let most = (index::PAGES * PAGE_SIZE).min(i64::MAX as u64);
    if end > most { Err(FileError::TooLong { end }) } else { Ok(()) }
}
