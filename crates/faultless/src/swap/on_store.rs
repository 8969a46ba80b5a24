//! A swap device over a store, such as a file or a partition.
#![forbid(unsafe_code)]

use super::SwapDevice;
use super::places::Places;
use super::slot::Location;
use crate::address::PAGE_SIZE;
use crate::errno;
use crate::host::OutOfMemory;
use crate::store::{Store, StoreError, Transfer};

/// A swap device over a [`Store`]: page `n` of the store is place `n`. The store keeps its length, which the device reads once.
///
/// ```no_run
/// use faultless::store::FileStore;
/// use faultless::swap::StoreDevice;
/// use std::sync::Arc;
///
/// # fn add(engine: &faultless::Engine<faultless_soft::Soft>) -> Result<(), Box<dyn std::error::Error>> {
/// // A file of the size that the swap space shall have.
/// let store = FileStore::open_rw("/var/swap")?;
/// engine.add_swap(Arc::new(StoreDevice::new(store)?))?;
/// # Ok(())
/// # }
/// ```
///
/// The store must allow writes. [`StoreDevice::new`] refuses a store that says that it does not ([`Store::is_writable`]). A store
/// whose writes fail nevertheless gets no more pages after three failures in a row, and no page is lost.
///
/// Make one device of a file. A second one is refused where the store can tell ([`Store::take_alone`]): a
/// [`FileStore`](crate::store::FileStore) takes the file's lock. Two devices over one file would give out the same places, see
/// [`SwapDevice`]. The bytes that the file has when the device is made, as of an earlier engine, are overwritten and never read.
#[derive(Debug)]
pub struct StoreDevice<S> {
    /// Immutable.
    store: S,
    places: Places,
}

/// The reason why a store cannot be a swap device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreDeviceError {
    /// The store can be read only ([`Store::is_writable`]).
    #[error("the store allows no writes: open it for reading and writing")]
    ReadOnly,
    /// Another device, of this engine, another one or another process, is over the same store or file ([`Store::take_alone`]).
    #[error("another device uses the store: give each device a file of its own")]
    InUse,
    /// The store has not told its length.
    #[error("the store does not tell its length")]
    Length(#[source] StoreError),
    /// The store is smaller than a page.
    #[error("the store has {length} bytes, and a page needs {}", PAGE_SIZE)]
    TooSmall {
        /// The length of the store, in bytes.
        length: u64,
    },
    /// There is no memory for one bit a page.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl StoreDeviceError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::ReadOnly => errno::EACCES,
            Self::InUse => errno::EBUSY,
            Self::Length(error) => error.errno(),
            Self::TooSmall { .. } => errno::EINVAL,
            Self::OutOfMemory(_) => errno::ENOMEM,
        }
    }
}

impl<S: Store> StoreDevice<S> {
    /// Makes a device of as many pages as `store` has now. A page that is not whole is left out.
    ///
    /// # Errors
    /// [`StoreDeviceError`]; the store is dropped, and nothing was written to it.
    pub fn new(store: S) -> Result<Self, StoreDeviceError> {
        if !store.is_writable() {
            return Err(StoreDeviceError::ReadOnly);
        }
        let length = store.length().map_err(StoreDeviceError::Length)?;
        let pages = (length / PAGE_SIZE).min(Location::PLACES);
        if pages == 0 {
            return Err(StoreDeviceError::TooSmall { length });
        }
        let places = Places::new(pages)?;
        if !store.take_alone() {
            return Err(StoreDeviceError::InUse);
        }
        Ok(Self { store, places })
    }

    /// Returns the store.
    pub fn store(&self) -> &S {
        &self.store
    }
}

impl<S: Store> SwapDevice for StoreDevice<S> {
    fn capacity(&self) -> u64 {
        self.places.count()
    }

    fn reserve(&self) -> Option<u64> {
        self.places.take()
    }

    fn release(&self, place: u64) {
        self.places.put(place);
    }

    fn submit(&self, transfer: Transfer) {
        self.store.submit(transfer);
    }

    fn max_pages(&self) -> usize {
        self.store.max_pages()
    }
}
