//! The interface of a swap device, and the devices of an engine.

use super::slot::Location;
use crate::host::OutOfMemory;
use crate::store::{MAX_PAGES, Transfer};
use crate::sync::OnceBox;
use crate::sync::plain::{AtomicU32, AtomicU64, Ordering};
use crate::sync::try_box;
use alloc::sync::Arc;

/// A place for pages that have no frame, such as a file, a partition or compressed memory.
///
/// The engine takes a place for a page, writes the page there once, reads it any number of times, and releases the place. It checks
/// a checksum after each read, so a device is trusted with neither contents nor memory. A wrong one costs pages: the threads that
/// need them get an error.
///
/// A device is read and written by [`Transfer`]s, whose offset is the place times the page size. It completes each of them, on any
/// thread, or before [`SwapDevice::submit`] returns.
pub trait SwapDevice: Send + Sync + 'static {
    /// Returns the number of pages that the device has room for. A hint for users: [`SwapDevice::reserve`] decides.
    fn capacity(&self) -> u64;

    /// Takes a free place and returns its number, which is below 2^48. Returns `None` if there is none. Consecutive calls return
    /// consecutive places where they can, so that a batch of pages is written as one run. Called in no read section; does not
    /// sleep.
    fn reserve(&self) -> Option<u64>;

    /// Gives a place back. No transfer of it is under way. May be called in a read section, so it takes no lock and does not sleep.
    fn release(&self, place: u64);

    /// Starts a transfer and returns at once; it completes later, on any thread, or before this returns. The transfer has at most
    /// [`SwapDevice::max_pages`] pages, of places that are reserved.
    ///
    /// A device that cannot keep a page, because the page compresses badly or the device is full, completes its write with
    /// [`StoreError::NoSpace`](crate::store::StoreError::NoSpace). The engine then tries the next device, and does not count that as
    /// a failure. After three failed writes in a row, it reserves no more places of the device.
    fn submit(&self, transfer: Transfer);

    /// Returns the most pages that one transfer may have, at least one. The default is one. The number never changes.
    fn max_pages(&self) -> usize {
        1
    }
}

/// The reason why a swap device was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// The device has no room for a page.
    #[error("the swap device has no room for a page")]
    NoRoom,
    /// The engine has as many swap devices as it can have.
    #[error("an engine can have {most} swap devices, and has them")]
    TooManyDevices {
        /// The number of devices that an engine can have.
        most: usize,
    },
    /// There is no memory for the table of slots.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// The use of one swap device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceUsage {
    /// The number of places that hold pages, or are reserved for pages that are about to be written.
    pub pages: u64,
    /// The number of pages that the device has room for: [`SwapDevice::capacity`].
    pub capacity: u64,
    /// Tells whether the device takes pages. It takes none after three writes in a row have failed.
    pub takes_pages: bool,
}

/// The number of failed writes in a row after which a device takes no more pages.
const FAILURES: u32 = 3;

/// A device of an engine.
pub(super) struct Attached {
    /// Immutable.
    device: Arc<dyn SwapDevice>,
    /// The number of places in use. Atomic.
    pages: AtomicU64,
    /// The number of failed writes since the last that succeeded. From [`FAILURES`] on, it does not change. Atomic.
    failures: AtomicU32,
}

impl Attached {
    /// Returns the device.
    pub fn device(&self) -> &dyn SwapDevice {
        &*self.device
    }

    /// Returns the most pages of one transfer.
    pub fn max_pages(&self) -> usize {
        self.device.max_pages().clamp(1, MAX_PAGES)
    }

    fn takes_pages(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < FAILURES
    }

    fn reserve(&self) -> Option<u64> {
        // A number that is too large is a bug of the device. No place has it.
        let place = self.takes_pages().then(|| self.device.reserve())??;
        (place < Location::PLACES).then(|| {
            self.pages.fetch_add(1, Ordering::Relaxed);
            place
        })
    }

    /// Gives a place back.
    pub fn release(&self, place: u64) {
        self.pages.fetch_sub(1, Ordering::Relaxed);
        self.device.release(place);
    }

    /// Notes the result of a write.
    pub fn note(&self, has_succeeded: bool) {
        let next = |failures| (failures < FAILURES).then_some(if has_succeeded { 0 } else { failures + 1 });
        // Nothing to write: the usual case writes no line that threads share.
        if !has_succeeded || self.failures.load(Ordering::Relaxed) != 0 {
            let _ = self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        }
    }

    fn usage(&self) -> DeviceUsage {
        DeviceUsage {
            pages: self.pages.load(Ordering::Relaxed),
            capacity: self.device.capacity(),
            takes_pages: self.takes_pages(),
        }
    }
}

/// The devices of an engine, in the order in which they are tried. None is ever removed.
#[derive(Default)]
pub(super) struct Devices([OnceBox<Attached>; Location::DEVICES]);

impl Devices {
    /// The bytes that one device has from the allocator, besides its own.
    pub const ROOM: usize = size_of::<Attached>();

    /// Adds a device behind the others.
    pub fn add(&self, device: Arc<dyn SwapDevice>) -> Result<(), SwapError> {
        if device.capacity() == 0 {
            return Err(SwapError::NoRoom);
        }
        for place in &self.0 {
            if place.is_set() {
                continue;
            }
            let (pages, failures) = Default::default();
            if place.set(try_box(Attached { device: device.clone(), pages, failures })?).1 {
                return Ok(());
            }
        }
        Err(SwapError::TooManyDevices { most: Location::DEVICES })
    }

    /// Returns a device by its number.
    pub fn get(&self, number: u8) -> Option<&Attached> {
        self.0.get(usize::from(number))?.get()
    }

    /// Reserves a place on the first device from `first` on that has one.
    pub fn reserve(&self, first: u8) -> Option<Location> {
        let devices =
            (0..).zip(&self.0).skip(usize::from(first)).map_while(|(n, place)| Some((n, place.get()?)));
        devices
            .into_iter()
            .find_map(|(device, attached)| attached.reserve().map(|place| Location { device, place }))
    }

    /// Returns the use of each device.
    pub fn usage(&self) -> impl Iterator<Item = DeviceUsage> {
        self.0.iter().map_while(OnceBox::get).map(Attached::usage)
    }
}
