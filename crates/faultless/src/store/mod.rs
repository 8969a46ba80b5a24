//! Stores: the source and the destination of pages. Transfers are asynchronous, with completion; errors are values.

#[cfg(feature = "std")]
mod delay;
#[cfg(feature = "std")]
mod fail;
#[cfg(feature = "std")]
mod file;
#[cfg(feature = "std")]
mod gate;
#[cfg(feature = "std")]
mod threads;
mod transfer;

#[cfg(feature = "std")]
pub use delay::DelayedStore;
#[cfg(feature = "std")]
pub use fail::{FailingStore, Failure, InjectedError};
#[cfg(feature = "std")]
pub use file::{FileStore, OpenError};
#[cfg(feature = "std")]
pub use gate::GatedStore;
pub use transfer::{Bytes, Completion, Direction, MAX_PAGES, Transfer};
pub(crate) use transfer::{Outcome, Part, Place, Places};

use crate::errno;
use alloc::sync::Arc;

/// The reason why a transfer did not happen, or not as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The device or file system reported an error.
    #[error("I/O error (errno {errno}) at byte {offset}")]
    Io {
        /// The offset of the page, in bytes.
        offset: u64,
        /// The operating system's error number, or EIO if it gave none.
        errno: i32,
    },
    /// The file has shrunk: there is nothing at the offset any more.
    #[error("the file ends before byte {offset}")]
    PastEnd {
        /// The offset of the page, in bytes.
        offset: u64,
    },
    /// There is no space left on the device (ENOSPC).
    #[error("no space left for the page at byte {offset}")]
    NoSpace {
        /// The offset of the page, in bytes.
        offset: u64,
    },
    /// The store does not support the operation: to be resized, or to have holes.
    #[error("the store cannot do that (byte {offset})")]
    Unsupported {
        /// The requested offset, in bytes.
        offset: u64,
    },
    /// A swap device returned other bytes than were written to it. The page is lost. A [`Store`] does not return this: the engine
    /// finds it by a checksum.
    #[error("other bytes than were written, in the page at byte {offset}")]
    WrongBytes {
        /// The offset of the page, in bytes.
        offset: u64,
    },
    /// The store was dropped before it completed the transfer.
    #[error("the store was closed before the page at byte {offset} was transferred")]
    Closed {
        /// The offset of the page, in bytes.
        offset: u64,
    },
}

impl StoreError {
    /// Returns the error without its offset, as a folio keeps it. An errno above 250, which no system has, becomes EIO.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Io { errno, .. } => {
                5 + u8::try_from(errno).ok().filter(|errno| *errno <= 250).unwrap_or(errno::EIO as u8)
            }
            Self::PastEnd { .. } => 0,
            Self::NoSpace { .. } => 1,
            Self::Closed { .. } => 2,
            Self::Unsupported { .. } => 3,
            Self::WrongBytes { .. } => 4,
        }
    }

    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { errno, .. } => *errno,
            Self::PastEnd { .. } | Self::Closed { .. } | Self::WrongBytes { .. } => errno::EIO,
            Self::NoSpace { .. } => errno::ENOSPC,
            Self::Unsupported { .. } => errno::EOPNOTSUPP,
        }
    }

    /// Returns the offset of the error, in bytes. It lies in a page of the transfer, the first that was not moved.
    pub fn offset(&self) -> u64 {
        match *self {
            Self::Io { offset, .. }
            | Self::PastEnd { offset }
            | Self::NoSpace { offset }
            | Self::Unsupported { offset }
            | Self::WrongBytes { offset }
            | Self::Closed { offset } => offset,
        }
    }

    /// Returns the same error at another byte.
    pub(crate) fn at(self, offset: u64) -> Self {
        Self::from_code(self.code(), offset)
    }

    /// Returns the error of a code, at byte `offset`: the inverse of [`StoreError::code`].
    pub(crate) fn from_code(code: u8, offset: u64) -> Self {
        match code {
            0 => Self::PastEnd { offset },
            1 => Self::NoSpace { offset },
            2 => Self::Closed { offset },
            3 => Self::Unsupported { offset },
            4 => Self::WrongBytes { offset },
            errno => Self::Io { offset, errno: i32::from(errno - 5) },
        }
    }
}

/// A store of pages, such as a file or a device.
///
/// A store is trusted with contents, not with memory. If a read reports bytes that it did not write, the frame shows its old
/// contents there. No method is called with a lock of the engine held, except the file's own lock for a change of its length.
pub trait Store: Send + Sync + 'static {
    /// Returns the current length of the store, in bytes.
    ///
    /// # Errors
    /// The error of the file system.
    fn length(&self) -> Result<u64, StoreError>;

    /// Starts a transfer and returns at once; it completes later, on any thread, or before this returns. The transfer has at most
    /// [`Store::max_pages`] pages.
    fn submit(&self, transfer: Transfer);

    /// Returns the most pages that one transfer may have, which is a device's limit. The engine gives a transfer at least one
    /// page, and at most [`MAX_PAGES`]. The default is one: such a store gets no runs, and may use [`Transfer::bytes`]. Does
    /// not sleep. The number never changes.
    fn max_pages(&self) -> usize {
        1
    }

    /// Returns whether the store allows writes, as far as it knows. The default is true. A store that returns false cannot be a swap
    /// device. Does not sleep. The answer never changes.
    fn is_writable(&self) -> bool {
        true
    }

    /// Takes the store's bytes for one user, until the store is dropped, if it can keep others away. Called once by each swap device that
    /// is made of a store. Does not sleep.
    ///
    /// Returns false if another user has taken the same bytes, by this store or by another one; nothing is changed then. The default
    /// returns true: such a store cannot tell.
    fn take_alone(&self) -> bool {
        true
    }

    /// Makes the store `length` bytes long. Bytes that it gains are zeros. May wait. No transfer of the bytes that it loses is
    /// under way.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] if the store cannot be resized, or the error of the file system.
    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        Err(StoreError::Unsupported { offset: length })
    }

    /// Replaces `length` bytes from `offset` on with zeros, both multiples of the page size, and frees their space. The length
    /// stays. May wait. No transfer of these bytes is under way.
    ///
    /// # Errors
    /// The errors of [`Store::set_length`].
    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        let _ = length;
        Err(StoreError::Unsupported { offset })
    }

    /// Returns when the bytes of completed writes have reached the device. Waits. A store without buffers has nothing to do. A
    /// file makes one call at a time, and none for a sync that another thread's later call serves.
    ///
    /// # Errors
    /// The error of the file system.
    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl<S: Store + ?Sized> Store for Arc<S> {
    fn length(&self) -> Result<u64, StoreError> {
        (**self).length()
    }

    fn submit(&self, transfer: Transfer) {
        (**self).submit(transfer);
    }

    fn max_pages(&self) -> usize {
        (**self).max_pages()
    }

    fn is_writable(&self) -> bool {
        (**self).is_writable()
    }

    fn take_alone(&self) -> bool {
        (**self).take_alone()
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        (**self).set_length(length)
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        (**self).punch(offset, length)
    }

    fn flush(&self) -> Result<(), StoreError> {
        (**self).flush()
    }
}

/// Helpers for the tests of the stores.
#[cfg(all(test, feature = "std", not(loom)))]
pub(crate) mod testing {
    use super::*;
    use crate::address::PAGE_SIZE;
    use core::ptr::NonNull;
    use std::sync::mpsc::{Receiver, channel};

    type Page = [u8; PAGE_SIZE as usize];

    /// The result of a transfer, and its pages.
    pub(crate) struct Ended {
        pub(crate) result: Result<usize, StoreError>,
        pub(crate) page: Box<Page>,
        pub(crate) more: Vec<Box<Page>>,
    }

    struct Owned(NonNull<Page>);

    // SAFETY: the pointer came out of a Box, and only one of these is made from it.
    unsafe impl Send for Owned {}

    impl Owned {
        fn new(fill: u8) -> Self {
            Self(NonNull::from(Box::leak(Box::new([fill; PAGE_SIZE as usize]))))
        }

        fn into_page(self) -> Box<Page> {
            // SAFETY: it came out of a Box, once; the transfer that used it has ended.
            unsafe { Box::from_raw(self.0.as_ptr()) }
        }
    }

    /// Returns a transfer over a page of its own, with all bytes `fill`. The receiver gets the page when the transfer has
    /// ended.
    pub(crate) fn transfer(direction: Direction, offset: u64, fill: u8) -> (Transfer, Receiver<Ended>) {
        run(direction, offset, &[fill])
    }

    /// Returns a transfer over pages of its own, each full of its byte of `fills`. The receiver gets the pages when the
    /// transfer has ended.
    pub(crate) fn run(direction: Direction, offset: u64, fills: &[u8]) -> (Transfer, Receiver<Ended>) {
        let owned: Vec<_> = fills.iter().map(|fill| Owned::new(*fill)).collect();
        let memory: Vec<_> = owned.iter().map(|owned| owned.0.cast()).collect();
        let (sender, receiver) = channel();
        let completion = Box::new(move |result| {
            let mut pages = owned.into_iter().map(Owned::into_page);
            let page = pages.next().expect("a page");
            // The test may no longer listen.
            let _ = sender.send(Ended { result, page, more: pages.collect() });
        });
        // SAFETY: whole pages that no other code uses, and that the completion, called last, takes back.
        (unsafe { Transfer::of_pages(direction, offset, &memory, completion) }, receiver)
    }

    /// A store that completes at once. Each byte of page `n` is `n`; writes are discarded.
    pub(crate) struct Numbered;

    impl Store for Numbered {
        fn length(&self) -> Result<u64, StoreError> {
            Ok(256 * PAGE_SIZE)
        }

        fn submit(&self, mut transfer: Transfer) {
            let result = transfer.move_pages(|offset, page| {
                if let Bytes::Read(page) = page {
                    page.fill((offset / PAGE_SIZE) as u8);
                }
                Ok(PAGE_SIZE as usize)
            });
            transfer.complete(result);
        }

        fn max_pages(&self) -> usize {
            MAX_PAGES
        }
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::testing::{Numbered, transfer};
    use super::*;
    use crate::address::PAGE_SIZE;

    #[test]
    fn a_dropped_transfer_says_that_the_store_was_closed() {
        let (dropped, ended) = transfer(Direction::Read, 4096, 0);
        drop(dropped);
        assert_eq!(ended.recv().unwrap().result, Err(StoreError::Closed { offset: 4096 }));
    }

    #[test]
    fn a_shared_store_is_a_store() {
        let shared: Arc<dyn Store> = Arc::new(Numbered);
        let (read, ended) = transfer(Direction::Read, 3 * PAGE_SIZE, 0);
        Store::submit(&shared, read);
        let ended = ended.recv().unwrap();
        assert_eq!((ended.result, ended.page[4095]), (Ok(4096), 3));
        assert_eq!(Store::length(&shared), Ok(256 * PAGE_SIZE));
    }
}
