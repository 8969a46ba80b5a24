//! The interface of a swap device, and the devices of an engine.

use super::slot::Location;
use crate::errno;
use crate::host::OutOfMemory;
use crate::store::{MAX_PAGES, Transfer};
use crate::sync::OnceBox;
// The models of the engine need no orders of these, and stay small.
#[cfg(all(test, loom))]
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(all(test, loom)))]
use crate::sync::plain::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{fence_after_rmw, full_fence, try_box};
use alloc::sync::Arc;

/// A place for pages that have no frame, such as a file, a partition or compressed memory.
///
/// The engine takes a place for a page, writes the page there once, reads it any number of times, and releases the place. It checks
/// a checksum after each read, so a device is trusted with neither contents nor memory. A wrong one costs pages: the threads that
/// need them get an error.
///
/// A device is read and written by [`Transfer`]s, whose offset is the place times the page size. It completes each of them, on any
/// thread, or before [`SwapDevice::submit`] returns.
///
/// Several engines may use one device. The engines share its places: each place that [`SwapDevice::reserve`] returns is of the engine
/// that called it, until that engine releases it. Two devices over one file are different: they give out the same places. Then each
/// engine overwrites pages of the other. An access to such a page fails as an I/O error does, and the page is lost.
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
#[non_exhaustive]
pub enum SwapError {
    /// The engine uses the device already, or is removing it.
    #[error("the engine uses this swap device already: remove it before it is added again")]
    InUse,
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

impl SwapError {
    /// Returns the number of Linux's swapon for the error.
    pub fn errno(&self) -> i32 {
        match self {
            Self::InUse => errno::EBUSY,
            Self::NoRoom => errno::EINVAL,
            Self::TooManyDevices { .. } => errno::EPERM,
            Self::OutOfMemory(_) => errno::ENOMEM,
        }
    }
}

/// The use of one swap device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceUsage {
    /// The number of places that hold pages, or are reserved for pages that are about to be written.
    pub pages: u64,
    /// The number of pages that the device has room for: [`SwapDevice::capacity`].
    pub capacity: u64,
    /// Tells whether the device takes pages. It takes none after three writes in a row have failed, and while it is being removed.
    pub takes_pages: bool,
}

/// The number of failed writes in a row after which a device takes no more pages.
const FAILURES: u32 = 3;

/// The state of a device: a number in [`Attached`].
mod state {
    pub const IN_USE: u32 = 0;
    /// Its pages are being taken off, and it takes no more.
    pub const LEAVES: u32 = 1;
    /// It has no pages, and gets none.
    pub const REMOVED: u32 = 2;
}

/// A device of an engine.
pub(super) struct Attached {
    /// Immutable.
    device: Arc<dyn SwapDevice>,
    /// The number of places in use, and of reservations under way. Atomic.
    pages: AtomicU64,
    /// The number of failed writes since the last that succeeded. From [`FAILURES`] on, it does not change. Atomic.
    failures: AtomicU32,
    /// See [`state`]. Atomic.
    state: AtomicU32,
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

    fn is(&self, state: u32) -> bool {
        self.state.load(Ordering::Acquire) == state
    }

    fn takes_pages(&self) -> bool {
        self.is(state::IN_USE) && self.failures.load(Ordering::Relaxed) < FAILURES
    }

    /// Returns the number of places in use, and of reservations under way.
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    fn reserve(&self) -> Option<u64> {
        if !self.takes_pages() {
            return None;
        }
        // Partner: `is_empty`. If ours comes first, the removal sees one page more and looks again. If theirs does, this sees that the
        // device leaves.
        self.pages.fetch_add(1, Ordering::Relaxed);
        if !mutant!("reserves_unfenced") {
            fence_after_rmw();
        }
        // A number that is too large is a bug of the device. No place has it.
        let place = if self.takes_pages() { self.device.reserve() } else { None };
        let place = place.filter(|place| *place < Location::PLACES);
        if place.is_none() {
            self.pages.fetch_sub(1, Ordering::Relaxed);
        }
        place
    }

    /// Gives a place back.
    pub fn release(&self, place: u64) {
        self.device.release(place);
        // Release, partner: `is_empty`. Nobody calls a device that was removed.
        self.pages.fetch_sub(1, Ordering::Release);
    }

    /// Begins to take the pages off: the device takes no more. Returns false if another thread does that, or has done it.
    pub fn begin_removal(&self) -> bool {
        let begun =
            self.state.compare_exchange(state::IN_USE, state::LEAVES, Ordering::AcqRel, Ordering::Relaxed);
        // Partner: `reserve`.
        if !mutant!("removal_unfenced") {
            full_fence();
        }
        begun.is_ok()
    }

    /// Returns whether a device that leaves has no pages. Then it gets none.
    pub fn is_empty(&self) -> bool {
        self.pages.load(Ordering::Acquire) == 0
    }

    /// Ends the removal. The device is used again if `is_removed` is false.
    pub fn end_removal(&self, is_removed: bool) {
        let state = if is_removed { state::REMOVED } else { state::IN_USE };
        self.state.store(state, Ordering::Release);
    }

    /// Compares the addresses of the devices. A device may have several tables of methods, one for each part of a program.
    fn is_same(&self, device: &Arc<dyn SwapDevice>) -> bool {
        core::ptr::addr_eq(Arc::as_ptr(&self.device), Arc::as_ptr(device))
    }

    /// Uses the device again if it was removed. Returns false if it is in use, or is being removed.
    fn use_again(&self) -> bool {
        let (old, new) = (state::REMOVED, state::IN_USE);
        let is_removed = self.is(state::REMOVED);
        if is_removed {
            self.failures.store(0, Ordering::Relaxed);
        }
        is_removed && self.state.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
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
        DeviceUsage { pages: self.pages(), capacity: self.device.capacity(), takes_pages: self.takes_pages() }
    }
}

/// The devices of an engine, in the order in which they are tried. The place of a device that was removed stays its own. No device has
/// two places: each thread that adds one looks at all places before the first empty one, and none becomes empty again.
#[derive(Default)]
pub(super) struct Devices([OnceBox<Attached>; Location::DEVICES]);

impl Devices {
    /// The bytes that one device has from the allocator, besides its own.
    pub const ROOM: usize = size_of::<Attached>();

    /// Adds a device behind the others, or at its place if it was removed. Returns whether it has a new place.
    pub fn add(&self, device: Arc<dyn SwapDevice>) -> Result<bool, SwapError> {
        if device.capacity() == 0 {
            return Err(SwapError::NoRoom);
        }
        for place in &self.0 {
            let attached = match place.get() {
                Some(attached) => attached,
                None => {
                    let (pages, failures, state) = Default::default();
                    let made = try_box(Attached { device: device.clone(), pages, failures, state })?;
                    match place.set(made) {
                        (_, true) => return Ok(true),
                        // Another thread was first. Its device may be the same.
                        (attached, false) => attached,
                    }
                }
            };
            if attached.is_same(&device) {
                return if attached.use_again() { Ok(false) } else { Err(SwapError::InUse) };
            }
        }
        Err(SwapError::TooManyDevices { most: Location::DEVICES })
    }

    /// Returns the number of places that have a device, in use or removed.
    pub fn count(&self) -> usize {
        self.0.iter().filter(|place| place.is_set()).count()
    }

    /// Returns a device that was not removed, with its number.
    pub fn find(&self, device: &Arc<dyn SwapDevice>) -> Option<(u8, &Attached)> {
        let mut all = (0..).zip(&self.0).filter_map(|(number, place)| Some((number, place.get()?)));
        let same = all.find(|(_, attached)| attached.is_same(device));
        same.filter(|(_, attached)| !attached.is(state::REMOVED))
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
        let in_use = |attached: &&Attached| !attached.is(state::REMOVED);
        self.0.iter().map_while(OnceBox::get).filter(in_use).map(Attached::usage)
    }
}
