//! What pages are read from and written to: asynchronous, with completion; errors are values.

#[cfg(feature = "std")]
mod delay;
#[cfg(feature = "std")]
mod fail;
#[cfg(feature = "std")]
mod file;

#[cfg(feature = "std")]
//DELAY
#[cfg(feature = "std")]
//FAIL
#[cfg(feature = "std")]
//FILE
use crate::address::PAGE_SIZE;
use alloc::boxed::Box;
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
    /// The store was dropped with the transfer in it.
    #[error("the store was closed before the page at byte {offset} was transferred")]
    Closed {
        /// The offset of the page, in bytes.
        offset: u64,
    },
}

/// Which way a page goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the store into memory.
    Read,
    /// From memory to the store.
    Write,
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

// SAFETY: `Transfer::new` demands memory that is this transfer's alone, from any thread.
unsafe impl Send for Transfer {}

impl Transfer {
    /// A transfer of the page at byte `offset` of the store.
    ///
    /// # Safety
    /// `memory` has `PAGE_SIZE` bytes that stay valid until `completion` is called, and until then nobody else
    /// writes them, nor reads them if the direction is [`Direction::Read`].
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

    /// The page in memory.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: by `new`; `&mut self` keeps it to one user.
        unsafe { core::slice::from_raw_parts_mut(self.memory.as_ptr(), PAGE_SIZE as usize) }
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
pub trait Store: Send + Sync + 'static {
    /// How long it is now, in bytes.
    ///
    /// # Errors
    /// What the file system said.
    fn length(&self) -> Result<u64, StoreError>;

    /// Starts a transfer and returns at once; it completes later, on any thread, or before this returns.
    fn submit(&self, transfer: Transfer);
}
