//! Swap: the bytes of anonymous pages, and of pages of files without a store, that have no frame; and the folios that have bytes of a
//! slot.
//!
//! An entry names a *slot*, and the slot says where the bytes are. A folio that has them is *attached*: the swap cache is all attached
//! folios. The life of a slot:
//!
//! ```text
//!  free ──attach_slot──► attached, no entry ──count_slot──► attached, named by entries
//!   ▲                        │ unwanted                        │ write_out          ▲
//!   │                        ▼                                 ▼                    │ (failed)
//!   ├──────────────── folio and slot freed              being written ──────────────┘
//!   │                        ▲                                 │ succeeded: WRITTEN
//!   │                        │ last entry gone                 ▼
//!   │                  read, attached ◄──begin_swap_in──  folio evicted, named by entries
//!   │                        │ take_out: an entry gets the write right
//!   └── last entry gone ◄────┴────────────────────────────────┘
//! ```
//! * A slot is free when neither an entry or a transfer (its count) nor a folio (IN_CACHE) has it. One word decides that.
//! * The word of the index of a file without a store counts as an entry. It is then the only one, until the file has the page again
//!   (`page_cache/in_slots.rs`).
//! * A write right means: no slot. So a slot is written at most once in a life, and its bytes never change.
//! * A write or a read has a reference of its own to the slot, taken by generation. So the slot stays what it was.
//! * A thread that changes IN_CACHE owns the slot's folio number until it has done so.
//!
//! | file | |
//! |---|---|
//! | `slot.rs` | one slot: its word, and the steps on it |
//! | `table.rs` | the slots of an engine |
//! | `steps.rs` | the steps that change a folio and its slot together; models in `models.rs` |
//! | `cache.rs` | the interface for the engine's other parts |
//! | `write_out.rs`, `read_in.rs`, `transfer.rs` | transfers to and from devices, with checksums |
//! | `device.rs` | [`SwapDevice`], and the devices of an engine in their order |
//! | `on_store.rs`, `compressed.rs` | devices: over a [`Store`](crate::store::Store), and in memory by LZ4 |
//! | `window.rs` | how many pages a fault reads ahead |
//! | `remove.rs` | takes all pages off a device |
//! | `places.rs` | free places as bits |

mod cache;
#[cfg(feature = "lz4")]
mod compressed;
mod device;
mod entries;
#[cfg(all(test, loom))]
mod models;
mod on_store;
mod places;
mod read_in;
mod remove;
mod slot;
mod steps;
mod table;
#[cfg(all(test, feature = "std", not(loom)))]
pub(crate) mod tests;
mod transfer;
mod window;
mod write_out;

pub(crate) use cache::SwapIn;
#[cfg(feature = "lz4")]
pub use compressed::CompressedMemory;
pub use device::{DeviceUsage, SwapDevice, SwapError};
pub use on_store::{StoreDevice, StoreDeviceError};
pub(crate) use read_in::Named;
pub use remove::{RemoveSwapError, SwapRemoved};
pub(crate) use steps::Cached;
pub(crate) use window::{MOST as MOST_AHEAD, Window};
#[cfg(all(test, feature = "std", not(loom)))]
use write_out::WrittenOut;

use crate::engine::Engine;
use crate::frame::Folio;
use crate::host::{Frame, Host, OutOfMemory};
use crate::reclaim::{Class, PageKind};
use crate::sync::{OnceBox, Sections, try_box};
use alloc::sync::Arc;
use alloc::vec::Vec;
use device::Devices;
use slot::Location;
use steps::{Steps, Surroundings};
use table::SlotTable;

/// The swap of an engine. Empty until the first device is added.
#[derive(Default)]
pub(crate) struct Swap(OnceBox<Space>);

/// The slots and devices of an engine.
struct Space {
    slots: SlotTable,
    devices: Devices,
    /// The sections to which the memory is charged. Immutable.
    sections: Arc<Sections>,
}

impl Space {
    fn new(sections: Arc<Sections>) -> Result<Self, OutOfMemory> {
        sections.charge(size_of::<Self>());
        let slots = SlotTable::new(sections.clone());
        let slots = slots.inspect_err(|_| sections.uncharge(size_of::<Self>()))?;
        Ok(Self { slots, devices: Devices::default(), sections })
    }

    fn add(&self, device: Arc<dyn SwapDevice>) -> Result<(), SwapError> {
        if self.devices.add(device)? {
            self.sections.charge(Devices::ROOM);
        }
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let devices = self.devices.count();
        self.sections.uncharge(size_of::<Self>() + devices * Devices::ROOM);
    }
}

/// The use of an engine's swap space, as [`Engine::swap_usage`] returns it. A snapshot if other threads are in calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwapUsage {
    /// The number of slots in use. A slot is in use from when its page is chosen to be written until no entry names it.
    pub slots: u64,
    /// The use of each device that was not removed, in the order in which they were added.
    pub devices: Vec<DeviceUsage>,
}

impl<H: Host> Engine<H> {
    /// Adds a swap device. Pages are written to the first device that takes them, in the order in which devices were added: add fast
    /// ones first. [`Engine::remove_swap`] removes a device.
    ///
    /// Add the first device before the first page is mapped: reclaim does not find anonymous pages that are older, nor such pages of
    /// files without a store.
    ///
    /// # Errors
    /// [`SwapError`]; the devices are as before. [`SwapError::InUse`] (EBUSY) if the engine uses the device already.
    pub fn add_swap(&self, device: Arc<dyn SwapDevice>) -> Result<(), SwapError> {
        let space = match self.swap.0.get() {
            Some(space) => space,
            None => self.swap.0.set(try_box(Space::new(self.sections().clone())?)?).0,
        };
        space.add(device)?;
        self.start_reclaim();
        Ok(())
    }

    /// Returns how much of the swap space is in use.
    pub fn swap_usage(&self) -> SwapUsage {
        self.swap.0.get().map_or_else(SwapUsage::default, |space| SwapUsage {
            slots: space.slots.used(),
            devices: space.devices.usage().collect(),
        })
    }

    /// Returns whether the engine has, or had, a swap device.
    #[inline]
    pub(crate) fn swaps(&self) -> bool {
        self.swap.0.is_set()
    }

    fn swap_steps(&self) -> Option<(&Space, Steps<'_, Self>)> {
        let space = self.swap.0.get()?;
        Some((space, Steps { slots: &space.slots, around: self }))
    }
}

impl<H: Host> Surroundings for Engine<H> {
    fn folio(&self, frame: Frame) -> &Folio {
        Engine::folio(self, frame)
    }

    fn free(&self, frame: Frame) {
        self.free_frame(frame);
    }

    fn count_eviction(&self, frame: Frame) -> u64 {
        let class = Class { group: Engine::folio(self, frame).group(), kind: PageKind::Anonymous };
        self.evicted(class).get()
    }

    fn release(&self, location: Location) {
        if let Some(device) = self.swap.0.get().and_then(|space| space.devices.get(location.device)) {
            device.release(location.place);
        }
    }
}
