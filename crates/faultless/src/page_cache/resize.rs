//! Truncation, growth and holes.

use super::account::Miss;
use super::index;
use super::{File, FileError, FolioLock, Maps, Pin, frame_of};
use crate::address::{PAGE_SIZE, PageNumber, PageRange};
use crate::frame::Reference;
use crate::host::{Frame, Host};
use crate::store::StoreError;
use crate::sync::atomic::Ordering;
use crate::sync::{fence_after_rmw, full_fence};
use core::ops::Range;

/// Zeros, for what is written in pieces.
static ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];

/// What becomes of a file that is longer already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Resize {
    /// It is cut off.
    Set,
    /// It stays. If it is not, bytes are written from here on.
    Grow {
        /// The first of them.
        from: u64,
    },
}

impl<H: Host> File<H> {
    /// The file is `length` bytes long now: somebody else has changed it, or it is a file in memory. The store is left
    /// alone; [`FileHandle::set_length`](super::FileHandle::set_length) changes it too.
    ///
    /// Pages behind the end go from the cache and from every space, dirty or not, copies of them too; a write of one that
    /// is under way is awaited first. When this returns, no access reaches what was cut off. A partial last page:
    /// * of a file that is only read, of before or of now, is read anew, so that what lies behind the end is zero and
    ///   what has grown is there; copies of it stay;
    /// * of a file that is written, stays, and is zeros behind the end. What was stored behind the end before it grows is
    ///   zeros afterwards, as in ext4; in a file in memory it is there, as in tmpfs.
    pub fn set_length(&self, length: u64) {
        let resized = self.resize(length, Resize::Set, |_| Ok(()));
        debug_assert!(resized.is_ok(), "nothing was asked of the store");
    }

    /// As [`File::set_length`], the store told at the right moment: before what it has more can be read, and when nothing
    /// is written any more to what it loses.
    pub(super) fn resize(
        &self,
        length: u64,
        how: Resize,
        store: impl FnOnce(u64) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.engine.assert_may_sleep("truncation");
        // One at a time.
        let whole = PageRange::single(PageNumber::new(0));
        let taken = self.resizing.take(whole, &*self.engine).0;
        let old = self.length();
        if length > old && self.writable {
            store(length)?;
            if !self.is_in_memory() {
                let to = match how {
                    Resize::Set => u64::MAX,
                    Resize::Grow { from } => from,
                };
                self.zero(old, to);
            }
            self.length.store(length, Ordering::Release);
            return Ok(());
        }
        if how != Resize::Set {
            return Ok(());
        }
        self.cuts.fetch_add(1, Ordering::AcqRel);
        self.length.store(length, Ordering::Release);
        full_fence();
        let first_copy = length.div_ceil(PAGE_SIZE);
        let first = if self.writable { first_copy } else { old.min(length) / PAGE_SIZE };
        if self.writable {
            // Nothing behind the end is written from now on.
            self.each_attached(first_copy..index::PAGES, |_, _, _lock| {});
            if let Err(error) = store(length) {
                self.length.store(old, Ordering::Release);
                return Err(error);
            }
            self.zero(length, u64::MAX);
        }
        self.each_attached(first..index::PAGES, |page, frame, _lock| self.detach(page, frame));
        self.cuts.fetch_add(1, Ordering::AcqRel);
        fence_after_rmw();
        self.each_space(|space| space.drop_pages_of(self.id, first..u64::MAX, first_copy..u64::MAX));
        drop(taken);
        Ok(())
    }

    /// Makes zeros of what lies behind byte `end` in its page, up to byte `to`, if that page is in memory.
    fn zero(&self, end: u64, to: u64) {
        let (page, within) = (end / PAGE_SIZE, (end % PAGE_SIZE) as usize);
        let length = to.saturating_sub(end).min(PAGE_SIZE - within as u64) as usize;
        if within != 0 && length != 0 {
            self.each_attached(page..page + 1, |_, frame, _lock| {
                self.engine.frames().write(frame, within, &ZEROS[..length]);
            });
        }
    }

    /// Calls `f` for every page of `pages` that is in memory. Of a file that is written: locked, and no write of it under
    /// way.
    fn each_attached(&self, pages: Range<u64>, f: impl Fn(u64, Frame, Option<&FolioLock<H>>)) {
        self.index.each_from(pages.start, &mut |page, word| {
            if page >= pages.end {
                return;
            }
            let Some(frame) = frame_of(word.load(Ordering::Acquire)) else { return };
            if !self.writable {
                return f(page, frame, None);
            }
            loop {
                let Ok(found) = self.find(page, Reference::Pin) else {
                    // Pinned as often as can be counted: others will let go.
                    crate::sync::spin_loop();
                    continue;
                };
                let Some(frame) = found else { return };
                let lock = Pin::new(&self.engine, frame).lock();
                if lock.0.is_writeback() {
                    lock.0.wait_for_write(&|| false);
                }
                if frame_of(word.load(Ordering::Acquire)) == Some(frame) {
                    return f(page, frame, Some(&lock));
                }
            }
        });
    }

    /// Calls `f` for every space that maps the file, in the order of first mapping.
    pub(super) fn each_space(&self, f: impl Fn(&dyn Maps)) {
        let mut last = None;
        while let Some((id, space)) = self.space_after(last) {
            last = Some(id);
            if let Some(space) = space.upgrade() {
                f(&*space);
            }
        }
    }

    /// Makes zeros of `length` bytes at `offset`, and gives their place in the store back (FALLOC_FL_PUNCH_HOLE with
    /// FALLOC_FL_KEEP_SIZE). Whole pages go from the cache and from every space; private copies stay, as on Linux. Stores
    /// during the call come before the hole or behind it. Waits for I/O.
    ///
    /// # Errors
    /// [`FileError`]: `NotWritable`, `EmptyHole`, and what the store says; then part of the range may be zeros.
    pub fn punch_hole(&self, offset: u64, length: u64) -> Result<(), FileError> {
        self.engine.assert_may_sleep("punching a hole");
        if !self.writable {
            return Err(FileError::NotWritable);
        }
        if length == 0 {
            return Err(FileError::EmptyHole);
        }
        let hole_end = offset.checked_add(length).ok_or(FileError::TooLong { end: u64::MAX })?;
        let whole = PageRange::single(PageNumber::new(0));
        let taken = self.resizing.take(whole, &*self.engine).0;
        let length = self.length();
        let end = match hole_end > length && !self.is_in_memory() {
            false => hole_end,
            true if offset >= length => return Ok(()),
            // Behind the end of a file with a store is nothing: its last page is zeros there, too (ext4; not so tmpfs).
            true => length.next_multiple_of(PAGE_SIZE),
        };
        let pages = offset.div_ceil(PAGE_SIZE)..end / PAGE_SIZE;
        // The ends first, as any write.
        let head_end = end.min(pages.start * PAGE_SIZE);
        self.write_zeros(offset, head_end)?;
        if pages.start <= pages.end {
            self.write_zeros((pages.end * PAGE_SIZE).max(offset), end)?;
        }
        if pages.start < pages.end {
            let held = Punching::begin(self);
            self.each_attached(pages.clone(), |page, frame, _lock| self.detach(page, frame));
            full_fence();
            self.each_space(|space| space.drop_pages_of(self.id, pages.clone(), 0..0));
            let bytes = (pages.end - pages.start) * PAGE_SIZE;
            let punched =
                self.store.as_ref().map_or(Ok(()), |store| store.punch(pages.start * PAGE_SIZE, bytes));
            drop(held);
            punched?;
        }
        drop(taken);
        Ok(())
    }

    /// Whether `page` is one of a file in memory that nobody has touched: zeros without a frame.
    pub(super) fn is_hole(&self, page: u64) -> bool {
        let word = || self.index.get(page).map(|word| word.load(Ordering::Acquire));
        self.is_in_memory() && word().and_then(frame_of).is_none()
    }

    fn write_zeros(&self, mut from: u64, end: u64) -> Result<(), FileError> {
        while from < end {
            let part = (PAGE_SIZE - from % PAGE_SIZE).min(end - from);
            if self.is_hole(from / PAGE_SIZE) {
                from += part;
                continue;
            }
            self.write_page(from, &ZEROS[..part as usize])?;
            from += part;
        }
        Ok(())
    }
}

/// While it lives, no page of the file is read: whoever misses one waits in the queue for memory.
struct Punching<'a, H: Host>(&'a File<H>);

impl<'a, H: Host> Punching<'a, H> {
    fn begin(file: &'a File<H>) -> Self {
        // Counted as a pin, so that who waits does not take the queue to be empty.
        file.engine.cache.pins.fetch_add(1, Ordering::Relaxed);
        file.punching.fetch_add(1, Ordering::AcqRel);
        fence_after_rmw();
        Self(file)
    }
}

impl<H: Host> Drop for Punching<'_, H> {
    fn drop(&mut self) {
        self.0.punching.fetch_sub(1, Ordering::AcqRel);
        let account = &self.0.engine.cache;
        account.pins.fetch_sub(1, Ordering::Relaxed);
        account.tell_unpinned(&*self.0.engine);
    }
}

impl From<Miss> for FileError {
    fn from(miss: Miss) -> Self {
        debug_assert!(!matches!(miss, Miss::PastEnd | Miss::Queue(_)), "seen to by who looked");
        Self::OutOfMemory
    }
}
