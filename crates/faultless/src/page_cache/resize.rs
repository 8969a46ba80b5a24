//! Truncation, growth and holes.
//!
//! A change that removes bytes has several phases, so that nothing is lost if the store refuses:
//!
//! ```text
//! 1. forbid   no transfer of the pages begins; those under way are awaited      (`Forbidden`)
//! 2. ask      the store; if it refuses, the guard is dropped and all is as before
//! 3. commit   publish the length, detach the pages, take them from every space
//! ```
//! A change that adds bytes grows the store first, and publishes the length last, so that the bytes are there before
//! the length covers them. Meanwhile it holds the lock of the old last page, since the size of that page's transfer
//! depends on the old length.
//!
//! All of them hold the file's `resizing` reservation, here called [`Resizing`].

use super::account::Miss;
use super::index;
use super::writers::Removing;
use super::{File, FileError, FolioLock, NEWCOMER, Pin, frame_of, is_absent};
use crate::address::{PAGE_SIZE, PageNumber, PageRange};
use crate::engine::{Dying, Engine, RemovedBatch};
use crate::frame::Reference;
use crate::host::{Frame, GroupId, Host};
use crate::stats::Counter;
use crate::store::StoreError;
use crate::sync::atomic::Ordering;
use crate::sync::{Reservation, fence_after_rmw, full_fence};
use core::ops::Range;

/// Zeros, to be written in pieces.
static ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];

/// The right to change a file's length, or to punch holes into it: one thread at a time.
pub(super) type Resizing<'a, H> = Reservation<'a, (), Engine<H>>;

/// Says whether reads under way are awaited too, before bytes are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Await {
    /// The store will be asked to remove the bytes, so it must not be reading them.
    ReadsAndWrites,
    /// The store has changed already. A read that ends now uses the new length.
    Writes,
}

impl<H: Host> File<H> {
    /// Sets the file's length to `length` bytes, without asking its store. Call it after another program has changed
    /// the store, or for a file in memory; [`FileHandle::set_length`](super::FileHandle::set_length) changes the store
    /// too. Waits for other changes of the length, and for writes of the removed part.
    ///
    /// Pages after the end are removed from the cache and from every space, with their private copies, dirty or not.
    /// When this returns, no access reaches them. A partial last page is treated as follows:
    /// * The file was opened for reading only: the page is dropped and read again, so that it shows the store's bytes,
    ///   and zeros after the end. Private copies stay.
    /// * The file was opened for writing: the page stays, with zeros after the end. When the file grows again, these
    ///   bytes are zeros (as in ext4); in a file in memory they are the old bytes (as in tmpfs). A page that is in swap space is
    ///   brought back for that.
    ///
    /// # Errors
    /// [`FileError::OutOfMemory`], only for a file in memory: there is no memory to bring its last page back from swap space. The file is
    /// as before.
    pub fn set_length(&self, length: u64) -> Result<(), FileError> {
        let resizing = self.take_resizing();
        let old = self.length();
        if !self.writable {
            self.store_length.store(length, Ordering::Relaxed);
            self.commit(length, old.min(length) / PAGE_SIZE);
        } else if length > old {
            self.store_length.store(length, Ordering::Relaxed);
            self.publish_longer(&resizing, length);
        } else {
            let _last = self.pin_last_page(length)?;
            self.store_length.store(length, Ordering::Relaxed);
            let forbidden =
                Forbidden::begin(&resizing, self, self.first_cut(length)..index::PAGES, Await::Writes);
            self.commit(length, length.div_ceil(PAGE_SIZE));
            drop(forbidden);
        }
        Ok(())
    }

    /// Makes the file and its store `length` bytes long.
    pub(super) fn set_store_length(&self, length: u64) -> Result<(), FileError> {
        if !self.writable {
            return Err(FileError::NotWritable);
        }
        super::handle::check_end(length)?;
        let resizing = self.take_resizing();
        if length > self.length() {
            self.grow_store(&resizing, length)?;
            self.publish_longer(&resizing, length);
            return Ok(());
        }
        let _last = self.pin_last_page(length)?;
        Ok(self.cut(&resizing, length)?)
    }

    /// Waits until no other thread changes the length or punches a hole.
    pub(super) fn take_resizing(&self) -> Resizing<'_, H> {
        self.engine.assert_may_sleep("a change of a file's length");
        self.resizing.take(PageRange::single(PageNumber::new(0)), &*self.engine).0
    }

    /// Makes the store at least `length` bytes long. Transfers may be under way; they are not affected.
    pub(super) fn grow_store(&self, _: &Resizing<'_, H>, length: u64) -> Result<(), StoreError> {
        if let Some(store) = &self.store
            && self.store_length.load(Ordering::Relaxed) < length
        {
            store.set_length(length)?;
            self.store_length.store(length, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes the store as short as the file again, after [`File::grow_store`]. If the store refuses, it stays longer
    /// until the next sync, or the end of the file, tries again. The extra bytes are zeros, and no file of the engine
    /// shows them.
    ///
    /// # Errors
    /// The store refused.
    pub(super) fn shrink_store_to_length(&self, resizing: &Resizing<'_, H>) -> Result<(), StoreError> {
        let length = self.length();
        let is_longer = self.store_length.load(Ordering::Relaxed) > length;
        let result = if is_longer { self.cut(resizing, length) } else { Ok(()) };
        self.has_long_store.store(result.is_err(), Ordering::Relaxed);
        result
    }

    /// Zeroes the bytes after the old end in its page, and publishes a greater length. The store has that length
    /// already.
    pub(super) fn publish_longer(&self, resizing: &Resizing<'_, H>, length: u64) {
        let old = self.length();
        let last = self.lock_last_page(resizing, old);
        self.zero_behind(last.as_ref(), old, length);
        self.length.store(length, Ordering::Release);
        drop(last);
    }

    /// Locks the page in which the file ends at byte `old`, if it is partial and in memory. No transfer of it is under
    /// way then, and none begins until the lock is dropped. (A later change would not await a transfer that has the old
    /// length's size.)
    pub(super) fn lock_last_page(&self, _: &Resizing<'_, H>, old: u64) -> Option<FolioLock<H>> {
        let is_whole = old.is_multiple_of(PAGE_SIZE) || mutant!("grows_under_a_write");
        // A file in memory has no transfers of its own, and keeps the bytes after its end.
        if is_whole || self.is_in_memory() { None } else { self.lock_idle(old / PAGE_SIZE) }
    }

    /// Zeroes the bytes from `end`, the end of the file, to `to`, in the locked last page. A file in memory keeps these
    /// bytes, as tmpfs does.
    pub(super) fn zero_behind(&self, last: Option<&FolioLock<H>>, end: u64, to: u64) {
        if let Some(lock) = last
            && !self.is_in_memory()
        {
            self.zero_part(lock, end, to);
        }
    }

    fn zero_part(&self, lock: &FolioLock<H>, from: u64, to: u64) {
        let within = (from % PAGE_SIZE) as usize;
        let length = to.saturating_sub(from).min(PAGE_SIZE - within as u64) as usize;
        self.engine.frames().write(lock.0.frame(), within, &ZEROS[..length]);
    }

    /// Makes the store, and then the file, shorter.
    fn cut(&self, resizing: &Resizing<'_, H>, length: u64) -> Result<(), StoreError> {
        let pages = self.first_cut(length)..index::PAGES;
        let forbidden = Forbidden::begin(resizing, self, pages, Await::ReadsAndWrites);
        self.store.as_ref().map_or(Ok(()), |store| store.set_length(length))?;
        self.store_length.store(length, Ordering::Relaxed);
        self.commit(length, length.div_ceil(PAGE_SIZE));
        drop(forbidden);
        Ok(())
    }

    /// Returns the first page that a cut to `length` forbids. A file without a store has no transfer of its last page that the length
    /// would change, and the cut itself may have to bring that page back.
    fn first_cut(&self, length: u64) -> u64 {
        if self.is_in_memory() { length.div_ceil(PAGE_SIZE) } else { length / PAGE_SIZE }
    }

    /// Publishes a length that is not greater. Removes the pages from `first` on, and the copies of those after the
    /// end.
    fn commit(&self, length: u64, first: u64) {
        let _removing = self.begin_removing(length..u64::MAX);
        self.cuts.fetch_add(1, Ordering::AcqRel);
        self.length.store(length, Ordering::Release);
        full_fence();
        if self.writable
            && !length.is_multiple_of(PAGE_SIZE)
            && let Some(lock) = self.lock_idle(length / PAGE_SIZE)
        {
            self.zero_part(&lock, length, u64::MAX);
        }
        self.detach_all(first..index::PAGES);
        self.cuts.fetch_add(1, Ordering::AcqRel);
        fence_after_rmw();
        let first_copy = length.div_ceil(PAGE_SIZE);
        self.drop_everywhere(first..u64::MAX, first_copy..u64::MAX);
    }

    /// Removes `pages`, which are detached, from every space, and the private copies of `copies`, a part of them. When
    /// it returns, no processor uses them.
    pub(super) fn drop_everywhere(&self, pages: Range<u64>, copies: Range<u64>) {
        let mut removed = RemovedBatch::open(&self.engine);
        self.each_space(
            &pages,
            |_| true,
            |space, shown| {
                space.drop_pages_of(self.home(), [pages.clone(), copies.clone()], shown, &mut removed);
            },
        );
        removed.finish();
    }

    /// Calls `f` for every page of `pages` that is in memory.
    fn each_attached(&self, pages: Range<u64>, f: impl Fn(u64, Frame)) {
        self.index.each(pages, &mut |page, word| {
            if let Some(frame) = frame_of(word.load(Ordering::Acquire)) {
                f(page, frame);
            }
        });
    }

    /// Detaches every page of `pages`. One that is in a slot leaves it.
    fn detach_all(&self, pages: Range<u64>) {
        match self.is_in_memory() {
            true => self.detach_in_memory(pages),
            false => self.each_attached(pages, |page, frame| self.detach(page, frame)),
        }
    }

    /// Pins page `page` if it is in memory.
    fn pin_attached(&self, page: u64) -> Option<Pin<H>> {
        loop {
            match self.find(page, Reference::Pin) {
                Ok(found) => return found.map(|frame| Pin::new(&self.engine, frame)),
                Err(full) => self.engine.wait_for_place(full, None),
            }
        }
    }

    /// Locks page `page` if it is in memory, once no read and no write of it is under way. Brings it back if it is in a slot.
    pub(super) fn lock_idle(&self, page: u64) -> Option<FolioLock<H>> {
        loop {
            let pin = match self.pin_attached(page) {
                // In a slot, or on its way there or back.
                None if self.is_in_memory() && !self.is_hole(page) => {
                    self.wait_for_page(page).ok().flatten()?
                }
                found => found?,
            };
            pin.wait_for_read(None);
            let lock = pin.lock();
            lock.0.wait_for_write(None);
            if self.has_in_index(page, lock.0.frame()) {
                return Some(lock);
            }
        }
    }

    /// Replaces `length` bytes from byte `offset` on with zeros, and frees their space in the store
    /// (FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE). Whole pages are removed from the cache and from every space;
    /// private copies stay, as on Linux. A store during the call comes before the hole or after it. Waits for I/O.
    ///
    /// # Errors
    /// [`FileError::NotWritable`]; [`FileError::EmptyHole`]: `length` is 0; [`FileError::TooLong`]: the hole ends after
    /// byte 2^63 - 1; [`FileError::Store`]: a partial page could not be read, or the store refused;
    /// [`FileError::OutOfMemory`]. The file is unchanged.
    pub fn punch_hole(&self, offset: u64, length: u64) -> Result<(), FileError> {
        self.engine.assert_may_sleep("punching a hole");
        if !self.writable {
            return Err(FileError::NotWritable);
        }
        if length == 0 {
            return Err(FileError::EmptyHole);
        }
        let hole_end = offset.saturating_add(length);
        // The greatest signed offset. A file in memory may have a hole after its end.
        if hole_end > i64::MAX as u64 {
            return Err(FileError::TooLong { end: hole_end });
        }
        let resizing = self.take_resizing();
        let length = self.length();
        let end = match hole_end > length && !self.is_in_memory() {
            false => hole_end,
            true if offset >= length => return Ok(()),
            // After the end of a file with a store there is nothing: its last page is zeros there, too (as in ext4,
            // unlike tmpfs).
            true => length.next_multiple_of(PAGE_SIZE),
        };
        let pages = offset.div_ceil(PAGE_SIZE)..end / PAGE_SIZE;
        // The parts of pages at both ends are zeroed in memory, so these pages are read first.
        let head = offset..end.min(pages.start * PAGE_SIZE);
        let tail = if pages.start > pages.end { end..end } else { (pages.end * PAGE_SIZE).max(offset)..end };
        let [first, last] = self.pin_ends(&head, &tail)?;
        let _removing = match pages.is_empty() {
            true => self.begin_removing(offset..end),
            false => self.punch_pages(&resizing, pages, offset..end)?,
        };
        for (pin, part) in [(first, head), (last, tail)] {
            if let Some(lock) = pin.and_then(|pin| self.lock_dirty(part.start / PAGE_SIZE, pin)) {
                self.zero_part(&lock, part.start, part.end);
            }
        }
        Ok(())
    }

    /// Punches whole pages, and begins to remove `hole`, in which they lie.
    fn punch_pages(
        &self,
        resizing: &Resizing<'_, H>,
        pages: Range<u64>,
        hole: Range<u64>,
    ) -> Result<Removing<'_, H>, StoreError> {
        let forbidden = Forbidden::begin(resizing, self, pages.clone(), Await::ReadsAndWrites);
        let bytes = (pages.end - pages.start) * PAGE_SIZE;
        self.store.as_ref().map_or(Ok(()), |store| store.punch(pages.start * PAGE_SIZE, bytes))?;
        let removing = self.begin_removing(hole);
        self.detach_all(pages.clone());
        full_fence();
        self.drop_everywhere(pages, 0..0);
        drop(forbidden);
        Ok(removing)
    }

    /// Pins the pages that contain `head` and `tail`, up to date. While the thread waits for memory for one of them, it does not
    /// pin the other. A thread that waits for memory must not keep a pin that it, or another such thread, waits for.
    fn pin_ends(&self, head: &Range<u64>, tail: &Range<u64>) -> Result<[Option<Pin<H>>; 2], FileError> {
        // It fails each time that other threads wait for memory too.
        for _ in 0..100 {
            let first = self.pin_to_zero(head)?;
            // The pin keeps room for the second page from being made at the cost of the first.
            if let Some(last) = self.try_pin_to_zero(tail) {
                return Ok([first, last]);
            }
            drop(first);
            drop(self.pin_to_zero(tail)?);
        }
        Err(FileError::OutOfMemory)
    }

    /// Pins the page that contains `part`, as [`File::pin_to_zero`] does, but does not wait for memory. Returns `None` if it would
    /// have to, or if the page could not be read.
    fn try_pin_to_zero(&self, part: &Range<u64>) -> Option<Option<Pin<H>>> {
        let page = part.start / PAGE_SIZE;
        if part.is_empty() || self.is_hole(page) {
            return Some(None);
        }
        let (pin, _) = self.read(page, false, (NEWCOMER, GroupId::ROOT)).ok()?;
        pin.wait_for_read(None);
        let is_there = self.engine.folio(pin.frame()).is_uptodate() && self.wait_to_join(page, &pin);
        is_there.then_some(Some(pin))
    }

    /// Pins the page that contains `part`, up to date. Returns `None` if there is nothing to zero.
    fn pin_to_zero(&self, part: &Range<u64>) -> Result<Option<Pin<H>>, FileError> {
        let page = part.start / PAGE_SIZE;
        if part.is_empty() || self.is_hole(page) { Ok(None) } else { self.wait_for_page(page) }
    }

    /// Returns whether `page` is an untouched page of a file in memory: zeros without a frame or a slot.
    pub(super) fn is_hole(&self, page: u64) -> bool {
        let has_page = || self.index.get(page).is_some_and(|word| !is_absent(word.load(Ordering::Acquire)));
        self.is_in_memory() && !has_page()
    }

    /// Returns whether transfers of `page` are forbidden. Called by a read after it has attached the page (SeqCst fence), and
    /// by a writeback while it holds the folio's lock.
    pub(crate) fn is_forbidden(&self, page: u64) -> bool {
        let first = self.forbidden_from.load(Ordering::Acquire);
        first <= page && page < self.forbidden_end.load(Ordering::Acquire)
    }

    /// Sleeps until transfers of `page` may begin.
    pub(crate) fn wait_while_forbidden(&self, page: u64, dying: Option<&Dying>) {
        let is_forbidden = || self.is_forbidden(page);
        self.engine.park_killable(Counter::ResizeWait, self.forbidden_key(), dying, is_forbidden);
    }

    /// The key of [`File::wait_while_forbidden`].
    pub(crate) fn forbidden_key(&self) -> usize {
        core::ptr::from_ref(&self.forbidden_from).addr()
    }
}

/// A guard: while it lives, no transfer of a range of the file's pages is under way or begins. A thread that wants one
/// waits in [`File::wait_while_forbidden`]. If it is dropped without a commit, the file is unchanged.
pub(super) struct Forbidden<'a, H: Host>(&'a File<H>);

impl<'a, H: Host> Forbidden<'a, H> {
    /// Forbids transfers of `pages`, and then waits for those under way.
    pub(super) fn begin(_: &Resizing<'_, H>, file: &'a File<H>, pages: Range<u64>, which: Await) -> Self {
        file.forbidden_end.store(pages.end, Ordering::Release);
        file.forbidden_from.store(pages.start, Ordering::Release);
        let forbidden = Self(file);
        // Partner: the fence of a read that has attached its page. If ours comes first, the read sees that it is
        // forbidden, and withdraws. If the read's comes first, we find the page. A writeback checks under the folio's
        // lock, taken below.
        full_fence();
        if mutant!("resize_under_transfers") {
            return forbidden;
        }
        file.each_attached(pages, |page, _| {
            let Some(pin) = file.pin_attached(page) else { return };
            if which == Await::ReadsAndWrites {
                pin.wait_for_read(None);
            }
            let lock = pin.lock();
            lock.0.wait_for_write(None);
        });
        forbidden
    }
}

impl<H: Host> Drop for Forbidden<'_, H> {
    fn drop(&mut self) {
        // Release: a thread that sees that transfers are allowed also sees the new length, and the pages detached.
        self.0.forbidden_from.store(u64::MAX, Ordering::Release);
        self.0.engine.wake_all(self.0.forbidden_key());
    }
}

impl From<Miss> for FileError {
    fn from(miss: Miss) -> Self {
        debug_assert!(
            matches!(miss, Miss::OutOfMemory(_) | Miss::NoFrame | Miss::Lost(_)),
            "seen to by the caller"
        );
        match miss {
            Miss::Lost(error) => error.into(),
            _ => Self::OutOfMemory,
        }
    }
}
