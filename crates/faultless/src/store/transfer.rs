//! Transfers: runs of pages on their way between a store and memory.

use super::StoreError;
use crate::address::PAGE_SIZE;
use crate::host::Frame;
use alloc::boxed::Box;
use core::ptr::NonNull;
use smallvec::SmallVec;

/// The most pages of one [`Transfer`]: 64, or 256 KiB. A word of the index's tags covers as many pages. A transfer of that size
/// costs a device little more than the moving of its bytes.
pub const MAX_PAGES: usize = 64;

const PAGE: usize = PAGE_SIZE as usize;

/// The direction in which a transfer moves pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the store into memory.
    Read,
    /// From memory to the store.
    Write,
}

/// A page of a [`Transfer`] in memory, with the access that the direction allows. A store matches on it:
///
/// ```
/// # use faultless::store::{Bytes, StoreError, Transfer};
/// # fn read(_: &mut [u8], _: u64) -> Result<usize, StoreError> { Ok(0) }
/// # fn write(_: &[u8], _: u64) -> Result<usize, StoreError> { Ok(0) }
/// fn submit(mut transfer: Transfer) {
///     let result = transfer.move_pages(|offset, page| match page {
///         Bytes::Read(page) => read(page, offset),
///         Bytes::Write(page) => write(page, offset),
///     });
///     transfer.complete(result);
/// }
/// ```
///
/// | | while the transfer is under way | so the store gets |
/// |---|---|---|
/// | [`Direction::Read`] | the page is not up to date: it is mapped nowhere, and neither the engine nor a processor reads or writes it | exclusive access |
/// | [`Direction::Write`] | processors and file handles may read the page; no code writes it, since every write right was taken away before | shared access |
///
/// A store cannot change a page that it writes:
///
/// ```compile_fail,E0594
/// # use faultless::store::{Bytes, Transfer};
/// fn spoil(mut transfer: Transfer) {
///     if let Bytes::Write(page) = transfer.bytes() {
///         page[0] = 1;
///     }
/// }
/// ```
#[derive(Debug)]
pub enum Bytes<'a> {
    /// A page that the store fills, from its start on. Its bytes before that have no meaning.
    Read(&'a mut [u8]),
    /// A page that the store writes to the device. Other threads may read it at the same time.
    Write(&'a [u8]),
}

/// A function that a transfer calls when it has ended, with the number of bytes moved or an error.
pub type Completion = Box<dyn FnOnce(Result<usize, StoreError>) + Send>;

/// The place of a page of a transfer in memory.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub memory: NonNull<u8>,
    /// The frame of that memory, if it is a frame of the engine.
    pub frame: Option<Frame>,
}

/// The pages of a transfer, in the order of their offsets. A single page needs no memory of the allocator.
pub(crate) type Places = SmallVec<[Place; 1]>;

/// A run of pages that is being moved: consecutive pages of the store, from [`Transfer::offset`] on, each in a frame of
/// its own. The owner completes it once. If it is dropped, it completes with [`StoreError::Closed`], so that no thread
/// waits for ever.
///
/// A store gets runs only if it allows them, by [`Store::max_pages`](super::Store::max_pages).
pub struct Transfer {
    direction: Direction,
    offset: u64,
    places: Places,
    completion: Option<Completion>,
}

// SAFETY: `Transfer::new` demands memory that any thread may use: exclusively for a read, shared for a write.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Makes a transfer of the page at byte `offset` of the store.
    ///
    /// # Safety
    /// `memory` has `PAGE_SIZE` initialised bytes that stay valid until `completion` is called or dropped. Until then no code
    /// else writes them, nor reads them if the direction is [`Direction::Read`].
    pub unsafe fn new(
        direction: Direction,
        offset: u64,
        memory: NonNull<u8>,
        completion: Completion,
    ) -> Self {
        let places = SmallVec::from_buf([Place { memory, frame: None }]);
        // SAFETY: the caller's contract.
        unsafe { Self::of_places(direction, offset, places, completion) }
    }

    /// Makes a transfer of consecutive pages, the first of which is at byte `offset` of the store. For tests of stores.
    ///
    /// # Panics
    /// Panics if there is no page, or if there are more than [`MAX_PAGES`].
    ///
    /// # Safety
    /// Each of `pages` is as [`Transfer::new`] demands. No two of them overlap.
    pub unsafe fn of_pages(
        direction: Direction,
        offset: u64,
        pages: &[NonNull<u8>],
        completion: Completion,
    ) -> Self {
        assert!((1..=MAX_PAGES).contains(&pages.len()), "a transfer has 1 to {MAX_PAGES} pages");
        let places = pages.iter().map(|memory| Place { memory: *memory, frame: None }).collect();
        // SAFETY: the caller's contract.
        unsafe { Self::of_places(direction, offset, places, completion) }
    }

    /// Makes a transfer as [`Transfer::of_pages`] does, with the pages' frames.
    ///
    /// # Safety
    /// The caller guarantees the same as for [`Transfer::of_pages`].
    pub(crate) unsafe fn of_places(
        direction: Direction,
        offset: u64,
        places: Places,
        completion: Completion,
    ) -> Self {
        debug_assert!((1..=MAX_PAGES).contains(&places.len()));
        Self { direction, offset, places, completion: Some(completion) }
    }

    /// Returns the direction of the transfer.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Returns the offset of the first page in the store, in bytes: a multiple of the page size.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the number of pages of the transfer: 1 to [`MAX_PAGES`].
    pub fn pages(&self) -> usize {
        self.places.len()
    }

    /// Returns the frame of page `index`, counted from 0, for a driver that gives its device physical addresses (DMA). Returns
    /// `None` if there is no such page, or if its memory is no frame of the engine, as for a copy of a page that other threads
    /// write meanwhile. Then use [`Transfer::each_page`]. The frame is in use until the transfer is completed. [`Bytes`] states
    /// the access to its bytes.
    pub fn frame(&self, index: usize) -> Option<Frame> {
        self.places.get(index)?.frame
    }

    /// Returns the page in memory, `PAGE_SIZE` bytes, for a store that gets one page at a time.
    ///
    /// # Panics
    /// Panics if the transfer has more than one page.
    pub fn bytes(&mut self) -> Bytes<'_> {
        assert!(self.places.len() == 1, "a run of pages: see `Transfer::each_page`");
        // SAFETY: `&mut self` keeps the bytes to one user here.
        unsafe { self.page(self.places[0]) }
    }

    /// Returns the pages in memory, `PAGE_SIZE` bytes each, in the order of their offsets, for vectored I/O.
    pub fn each_page(&mut self) -> impl ExactSizeIterator<Item = Bytes<'_>> {
        let this = &*self;
        // SAFETY: `&mut self` is borrowed as long as a page is; each page is given out once, and they do not overlap.
        this.places.iter().map(move |place| unsafe { this.page(*place) })
    }

    /// # Safety
    /// As long as the returned value lives, no other code gets the page from this transfer.
    unsafe fn page<'a>(&self, place: Place) -> Bytes<'a> {
        let memory = place.memory.as_ptr();
        match self.direction {
            // SAFETY: by `new` no other code uses the bytes, and by the contract above only this value uses them here.
            Direction::Read => Bytes::Read(unsafe { core::slice::from_raw_parts_mut(memory, PAGE) }),
            // SAFETY: by `new` no code writes the bytes.
            Direction::Write => Bytes::Write(unsafe { core::slice::from_raw_parts(memory, PAGE) }),
        }
    }

    /// Moves the pages one after the other. `move_page` gets the byte offset of a page and its bytes, and returns the number of
    /// bytes that it moved. Stops at the first page of which not all bytes were moved. Returns the result to complete the
    /// transfer with.
    ///
    /// # Errors
    /// The error of `move_page`, at the offset of the page that it was called for.
    pub fn move_pages(
        &mut self,
        mut move_page: impl FnMut(u64, Bytes<'_>) -> Result<usize, StoreError>,
    ) -> Result<usize, StoreError> {
        let (mut moved, first) = (0, self.offset);
        for page in self.each_page() {
            let offset = first + moved as u64;
            let bytes = move_page(offset, page).map_err(|error| error.at(offset))?.min(PAGE);
            moved += bytes;
            if bytes < PAGE {
                break;
            }
        }
        Ok(moved)
    }

    /// Leaves out the pages from `pages` on, for a wrapper that lets only the first ones through. The caller intercepts the
    /// completion and gives the error of the first page left out: a result that does not mention these pages is a short one.
    pub fn truncate(&mut self, pages: usize) {
        self.places.truncate(pages.max(1));
    }

    /// Completes the transfer. Call it when none of its bytes is being moved any more.
    ///
    /// `Ok(n)`: the first `n` bytes were moved. A read that moved fewer bytes than the transfer has met the end of the file:
    /// the engine fills the rest of that page with zeros, and the pages behind it lie past the end. A write that moved fewer
    /// has met the end of the store.
    ///
    /// `Err`: all pages before the one in which [`StoreError::offset`] lies were moved as a whole. That page has the error. The
    /// pages behind it were not tried. If the offset is in none of the pages, no page was moved.
    pub fn complete(mut self, result: Result<usize, StoreError>) {
        if let Some(completion) = self.completion.take() {
            completion(result);
        }
    }

    /// Makes the transfer call `before` with the result and the old completion, which `before` calls in its own time. For
    /// wrappers.
    pub fn intercept(
        mut self,
        before: impl FnOnce(Result<usize, StoreError>, Completion) + Send + 'static,
    ) -> Self {
        if let Some(old) = self.completion.take() {
            self.completion = Some(Box::new(move |result| before(result, old)));
        }
        self
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(completion) = self.completion.take() {
            completion(Err(StoreError::Closed { offset: self.offset }));
        }
    }
}

/// The result of a transfer of `pages` pages at byte `offset`, page by page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// The number of bytes moved, from the first on.
    moved: usize,
    /// The error, if there was one, of the page that follows the moved bytes.
    error: Option<StoreError>,
}

/// The result of a transfer for one page of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The number of bytes that were moved. If it is less than a page, the store has no more.
    Moved(usize),
    Failed(StoreError),
    /// The page was not tried, since a page before it has failed.
    NotTried,
}

impl Outcome {
    pub fn new(offset: u64, pages: usize, result: Result<usize, StoreError>) -> Self {
        match result {
            Ok(moved) => Self { moved: moved.min(pages * PAGE), error: None },
            Err(error) => {
                let before = error.offset().checked_sub(offset).map_or(0, |bytes| bytes / PAGE_SIZE);
                let before = if before < pages as u64 { before as usize } else { 0 };
                Self { moved: before * PAGE, error: Some(error) }
            }
        }
    }

    /// Returns the number of bytes that were moved, from the first on. With an error, they are whole pages.
    pub fn moved(&self) -> usize {
        self.moved
    }

    pub fn error(&self) -> Option<StoreError> {
        self.error
    }

    /// Returns the result for page `index`, counted from 0.
    pub fn part(&self, index: usize) -> Part {
        let moved = self.moved.saturating_sub(index * PAGE).min(PAGE);
        match self.error {
            // All pages behind the end of a file have the same error; a second attempt would not change it.
            Some(error @ StoreError::PastEnd { .. }) if moved == 0 => Part::Failed(error),
            Some(error) if moved == 0 && index * PAGE == self.moved => Part::Failed(error),
            Some(_) if moved == 0 => Part::NotTried,
            _ => Part::Moved(moved),
        }
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::super::testing::{Numbered, run, transfer};
    use super::*;
    use crate::store::Store;

    const EIO: i32 = 5;

    #[test]
    fn the_pages_of_a_run_are_given_out_in_order() {
        let (read, ended) = run(Direction::Read, 3 * PAGE_SIZE, &[0; 3]);
        assert_eq!((read.pages(), read.offset(), read.frame(0)), (3, 3 * PAGE_SIZE, None));
        Numbered.submit(read);
        let ended = ended.recv().unwrap();
        assert_eq!((ended.result, ended.page[0]), (Ok(3 * PAGE), 3));
        assert_eq!(ended.more.iter().map(|page| page[4095]).collect::<alloc::vec::Vec<_>>(), [4, 5]);
    }

    #[test]
    #[should_panic(expected = "a run of pages")]
    fn a_run_is_not_taken_for_a_page() {
        let (mut read, _) = run(Direction::Read, 0, &[0; 2]);
        read.bytes();
    }

    /// Checks errors at the offset of the transfer, and at an offset outside it: a store may return either.
    #[test]
    fn moving_page_by_page_stops_where_it_fails() {
        for wrong in [0, 7, u64::MAX] {
            let (mut write, ended) = run(Direction::Write, PAGE_SIZE, &[0; 3]);
            let mut asked = alloc::vec::Vec::new();
            let result = write.move_pages(|offset, _| {
                asked.push(offset / PAGE_SIZE);
                if offset == 2 * PAGE_SIZE { Err(StoreError::NoSpace { offset: wrong }) } else { Ok(PAGE) }
            });
            write.complete(result);
            assert_eq!(asked, [1, 2]);
            assert_eq!(ended.recv().unwrap().result, Err(StoreError::NoSpace { offset: 2 * PAGE_SIZE }));
        }
        let (mut read, _ended) = run(Direction::Read, 0, &[0; 3]);
        assert_eq!(read.move_pages(|offset, _| Ok(if offset == 0 { PAGE } else { 5 })), Ok(PAGE + 5));
    }

    #[test]
    fn a_result_is_told_page_by_page() {
        let parts = |pages, result| {
            let outcome = Outcome::new(PAGE_SIZE, pages, result);
            (0..pages).map(|page| outcome.part(page)).collect::<alloc::vec::Vec<_>>()
        };
        let (all, none) = (Part::Moved(PAGE), Part::Moved(0));
        assert_eq!(parts(2, Ok(2 * PAGE)), [all; 2]);
        assert_eq!(parts(2, Ok(9 * PAGE)), [all; 2]);
        assert_eq!(parts(3, Ok(PAGE + 5)), [all, Part::Moved(5), none]);
        let error = |offset| StoreError::Io { offset, errno: EIO };
        // In the middle of the second page.
        let at = error(2 * PAGE_SIZE + 7);
        assert_eq!(parts(3, Err(at)), [all, Part::Failed(at), Part::NotTried]);
        for outside in [0, 4 * PAGE_SIZE, u64::MAX] {
            let at = error(outside);
            assert_eq!(parts(3, Err(at)), [Part::Failed(at), Part::NotTried, Part::NotTried]);
        }
        let end = StoreError::PastEnd { offset: 2 * PAGE_SIZE };
        assert_eq!(parts(3, Err(end)), [all, Part::Failed(end), Part::Failed(end)]);
    }

    #[test]
    fn a_page_that_is_left_out_is_not_moved() {
        let (mut read, ended) = run(Direction::Read, 0, &[9; 2]);
        read.truncate(1);
        Numbered.submit(read);
        let ended = ended.recv().unwrap();
        assert_eq!((ended.result, ended.page[0], ended.more[0][0]), (Ok(PAGE), 0, 9));
        let (mut read, _ended) = transfer(Direction::Read, 0, 9);
        read.truncate(0);
        assert_eq!(read.pages(), 1);
    }
}
