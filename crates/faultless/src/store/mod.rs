//! What pages are read from and written to: asynchronous, with completion; errors are values.

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

#[cfg(feature = "std")]
pub use delay::DelayedStore;
#[cfg(feature = "std")]
pub use fail::{FailingStore, Failure, InjectedError};
#[cfg(feature = "std")]
pub use file::{FileStore, OpenError};
#[cfg(feature = "std")]
pub use gate::GatedStore;

use crate::address::PAGE_SIZE;
use crate::errno;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::NonNull;

/// Why a transfer did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The device or file system said no.
    #[error("I/O error (errno {errno}) at byte {offset}")]
    Io {
        /// The offset of the page, in bytes.
        offset: u64,
        /// The operating system's error number; EIO where it gave none.
        errno: i32,
    },
    /// The file has shrunk: there is nothing at the offset any more.
    #[error("the file ends before byte {offset}")]
    PastEnd {
        /// The offset of the page, in bytes.
        offset: u64,
    },
    /// No space left on the device (ENOSPC).
    #[error("no space left for the page at byte {offset}")]
    NoSpace {
        /// The offset of the page, in bytes.
        offset: u64,
    },
    /// The store cannot do it: be resized, or have holes.
    #[error("the store cannot do that (byte {offset})")]
    Unsupported {
        /// The offset asked for, in bytes.
        offset: u64,
    },
    /// The store was dropped with the transfer in it.
    #[error("the store was closed before the page at byte {offset} was transferred")]
    Closed {
        /// The offset of the page, in bytes.
        offset: u64,
    },
}

impl StoreError {
    /// The error without its offset, as a folio keeps it.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Io { errno, .. } => 4 + (errno as u32 & 0xffff),
            Self::PastEnd { .. } => 0,
            Self::NoSpace { .. } => 1,
            Self::Closed { .. } => 2,
            Self::Unsupported { .. } => 3,
        }
    }

    /// Linux's number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { errno, .. } => *errno,
            Self::PastEnd { .. } | Self::Closed { .. } => errno::EIO,
            Self::NoSpace { .. } => errno::ENOSPC,
            Self::Unsupported { .. } => errno::EOPNOTSUPP,
        }
    }

    /// The inverse of [`StoreError::code`].
    pub(crate) fn from_code(code: u32, offset: u64) -> Self {
        match code {
            0 => Self::PastEnd { offset },
            1 => Self::NoSpace { offset },
            2 => Self::Closed { offset },
            3 => Self::Unsupported { offset },
            errno => Self::Io { offset, errno: (errno - 4) as i32 },
        }
    }
}

/// Which way a page goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the store into memory.
    Read,
    /// From memory to the store.
    Write,
}

/// The page of a [`Transfer`] in memory, as the direction allows it. A store matches on it:
///
/// ```
/// # use faultless::store::{Bytes, StoreError, Transfer};
/// # fn read(_: &mut [u8], _: u64) -> Result<usize, StoreError> { Ok(0) }
/// # fn write(_: &[u8], _: u64) -> Result<usize, StoreError> { Ok(0) }
/// fn submit(mut transfer: Transfer) {
///     let offset = transfer.offset();
///     let result = match transfer.bytes() {
///         Bytes::Read(page) => read(page, offset),
///         Bytes::Write(page) => write(page, offset),
///     };
///     transfer.complete(result);
/// }
/// ```
///
/// | | while the transfer is under way | so the store gets |
/// |---|---|---|
/// | [`Direction::Read`] | the page is not up to date: it is mapped nowhere, and neither the engine nor a processor reads or writes it | exclusive access |
/// | [`Direction::Write`] | processors and file handles may read the page; nobody writes it, since every write right was taken away before | shared access |
///
/// A page that is written cannot be changed:
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
    /// To be filled, from its start on. What is in it before is of no meaning.
    Read(&'a mut [u8]),
    /// To be kept. Others may read it at the same time.
    Write(&'a [u8]),
}

/// What a transfer calls when it has ended: with the number of bytes moved.
pub type Completion = Box<dyn FnOnce(Result<usize, StoreError>) + Send>;

/// One page on its way. Whoever has it completes it once; dropped, it completes with [`StoreError::Closed`], so that
/// nobody waits for ever.
pub struct Transfer {
    direction: Direction,
    offset: u64,
    memory: NonNull<u8>,
    completion: Option<Completion>,
}

// SAFETY: `Transfer::new` demands memory that any thread may use: exclusively for a read, shared for a write.
unsafe impl Send for Transfer {}

impl Transfer {
    /// A transfer of the page at byte `offset` of the store.
    ///
    /// # Safety
    /// `memory` has `PAGE_SIZE` initialised bytes that stay valid until `completion` is called or dropped. Until then nobody
    /// else writes them, nor reads them if the direction is [`Direction::Read`].
    pub unsafe fn new(
        direction: Direction,
        offset: u64,
        memory: NonNull<u8>,
        completion: Completion,
    ) -> Self {
        Self { direction, offset, memory, completion: Some(completion) }
    }

    /// Which way the page goes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Where in the store, in bytes; a multiple of the page size.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The page in memory: `PAGE_SIZE` bytes.
    pub fn bytes(&mut self) -> Bytes<'_> {
        let (memory, size) = (self.memory.as_ptr(), PAGE_SIZE as usize);
        match self.direction {
            // SAFETY: by `new` nobody else uses the bytes; `&mut self` keeps them to one user here.
            Direction::Read => Bytes::Read(unsafe { core::slice::from_raw_parts_mut(memory, size) }),
            // SAFETY: by `new` nobody writes the bytes.
            Direction::Write => Bytes::Write(unsafe { core::slice::from_raw_parts(memory, size) }),
        }
    }

    /// Ends the transfer. A read that moved fewer bytes than a page has met the end of the file: whoever asked fills
    /// the rest with zeros.
    pub fn complete(mut self, result: Result<usize, StoreError>) {
        if let Some(completion) = self.completion.take() {
            completion(result);
        }
    }

    /// Calls `before` with the result first, and then what was to be called. For wrappers; `before` gets the
    /// old completion and decides when to call it.
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

/// Something that holds pages.
///
/// A store is trusted with contents, not with memory: a read that says it moved bytes which it did not write shows what the
/// frame held before. No method is called with a lock of the engine held but the file's own for a change of its length.
pub trait Store: Send + Sync + 'static {
    /// How long it is now, in bytes.
    ///
    /// # Errors
    /// What the file system said.
    fn length(&self) -> Result<u64, StoreError>;

    /// Starts a transfer and returns at once; it completes later, on any thread, or before this returns.
    fn submit(&self, transfer: Transfer);

    /// Makes it `length` bytes long; what it has more is zeros. May wait. No transfer of what goes is under way.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] where that cannot be; what the file system said.
    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        Err(StoreError::Unsupported { offset: length })
    }

    /// Makes zeros of `length` bytes from `offset` on, both multiples of the page size, and gives their place back. The
    /// length stays. May wait. No transfer of them is under way.
    ///
    /// # Errors
    /// As [`Store::set_length`].
    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        let _ = length;
        Err(StoreError::Unsupported { offset })
    }

    /// Returns when what writes have moved has reached the device. Waits. A store without buffers has nothing to do.
    ///
    /// # Errors
    /// What the file system said.
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

/// What the tests of the stores share.
#[cfg(all(test, feature = "std", not(loom), not(shuttle)))]
pub(crate) mod testing {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    type Page = [u8; PAGE_SIZE as usize];

    /// How a transfer ended, and its page.
    pub(crate) struct Ended {
        pub(crate) result: Result<usize, StoreError>,
        pub(crate) page: Box<Page>,
    }

    struct Owned(NonNull<Page>);

    // SAFETY: the pointer came out of a Box, and only one of these is made from it.
    unsafe impl Send for Owned {}

    impl Owned {
        fn into_page(self) -> Box<Page> {
            // SAFETY: it came out of a Box, once; the transfer that used it has ended.
            unsafe { Box::from_raw(self.0.as_ptr()) }
        }
    }

    /// A transfer over a page of its own, all bytes `fill`; the receiver gets it when the transfer has ended.
    pub(crate) fn transfer(direction: Direction, offset: u64, fill: u8) -> (Transfer, Receiver<Ended>) {
        let memory = NonNull::from(Box::leak(Box::new([fill; PAGE_SIZE as usize])));
        let owned = Owned(memory);
        let (sender, receiver) = channel();
        let completion = Box::new(move |result| {
            // A test that no longer listens has nothing to be told.
            let _ = sender.send(Ended { result, page: owned.into_page() });
        });
        // SAFETY: a whole page that nobody else knows, and that the completion, called last, takes back.
        (unsafe { Transfer::new(direction, offset, memory.cast(), completion) }, receiver)
    }

    /// A store that answers at once: page `n` is full of the byte `n`; writes go nowhere.
    pub(crate) struct Numbered;

    impl Store for Numbered {
        fn length(&self) -> Result<u64, StoreError> {
            Ok(256 * PAGE_SIZE)
        }

        fn submit(&self, mut transfer: Transfer) {
            let number = (transfer.offset() / PAGE_SIZE) as u8;
            if let Bytes::Read(page) = transfer.bytes() {
                page.fill(number);
            }
            transfer.complete(Ok(PAGE_SIZE as usize));
        }
    }
}

#[cfg(all(test, feature = "std", not(loom), not(shuttle)))]
mod tests {
    use super::testing::{Numbered, transfer};
    use super::*;

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
