//! Removing a device (swapoff): its pages go back to memory, and from there to other devices.
//!
//! ```text
//! the device takes no more pages
//! each slot whose place is on it:      read into a folio, if it has none
//!                                      the folio isolated, and not being written: not WRITTEN, no place
//!                                      the page cannot be read: poisoned, no place
//!                                      the place is free
//! until the device has no page
//! ```
//! Entries name slots, and so do the indices of files without a store. So no page table is walked. A folio without a place is as one
//! that was never written: reclaim writes it to another device. If there is no room for a page, the device is used again. Pages that
//! are in memory by then stay there.

use super::cache::SwapIn;
use super::device::Attached;
use super::slot::SwapSlot;
use super::steps::{Cached, PlaceLeft, Surroundings as _};
use super::window::MOST;
use super::{Space, SwapDevice};
use crate::engine::Engine;
use crate::errno;
use crate::frame::Reference;
use crate::host::{Frame, FrameUse, GroupId, Host, Park, Slot};
use crate::stats::Counter;
use alloc::sync::Arc;
use core::fmt;
use smallvec::SmallVec;

/// The number of passes over all slots after which a device that still has pages is given up.
const PASSES: u32 = 4096;

/// The result of [`Engine::remove_swap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapRemoved {
    /// The number of pages that left the device and are in memory, or have gone to another device by now.
    pub moved: u64,
    /// The number of pages that could not be read. Each access to them fails as an I/O error does.
    pub lost: u64,
}

/// The reason why a device was not removed. It is in use as before. Each of its pages is on the device or in memory, except `lost` ones:
/// their reads have failed, in the call or before. Each access to them fails as an I/O error does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveSwapError {
    /// The engine does not use the device.
    #[error("the engine does not use this swap device")]
    Unknown,
    /// Another call is removing the device.
    #[error("another call is removing this swap device")]
    UnderWay,
    /// There is no room in memory and on other devices for the pages of the device.
    #[error("there is no room for the {left} pages on the swap device{}", AndLost(*lost))]
    NoRoom {
        /// The number of pages that are still on the device.
        left: u64,
        /// The number of pages that could not be read, as [`SwapRemoved::lost`]. They are not among `left`.
        lost: u64,
    },
    /// Transfers or other work on pages of the device do not end.
    #[error("{left} pages of the swap device stay in use{}", AndLost(*lost))]
    Busy {
        /// The number of pages that are still on the device.
        left: u64,
        /// The number of pages that could not be read, as [`SwapRemoved::lost`]. They are not among `left`.
        lost: u64,
    },
}

impl RemoveSwapError {
    /// Returns the number of Linux's swapoff for the error. Linux has none for [`RemoveSwapError::UnderWay`] and
    /// [`RemoveSwapError::Busy`]: they are EBUSY.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Unknown => errno::EINVAL,
            Self::UnderWay | Self::Busy { .. } => errno::EBUSY,
            Self::NoRoom { .. } => errno::ENOMEM,
        }
    }
}

/// The end of a message: the number of pages that are lost, if any are.
struct AndLost(u64);

impl fmt::Display for AndLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            lost => write!(f, "; {lost} more could not be read and are lost"),
        }
    }
}

/// The outcome of one look at a slot.
enum Look {
    /// The slot has no place on the device.
    Elsewhere,
    /// The page has left the device.
    Moved,
    /// The page cannot be read, and has left the device.
    Lost,
    /// Other work is under way on the page.
    Busy,
}

/// There is no frame, or no memory for a transfer.
struct NoRoom;

impl<H: Host> Engine<H> {
    /// Removes a swap device, as swapoff does. The device takes no more pages from the beginning of the call. Its pages are read
    /// into memory; reclaim moves them to other devices if memory is short. A page that cannot be read is lost: each access to it
    /// fails as an I/O error does. Waits for I/O; other threads go on meanwhile.
    ///
    /// The engine keeps its handle of the device until it ends, and uses the device no more. The device can be added again.
    ///
    /// # Errors
    /// [`RemoveSwapError`]; the device is in use as before. Pages that were read are in memory. Pages that could not be read are lost:
    /// the error has their number.
    pub fn remove_swap(
        self: &Arc<Self>,
        device: &Arc<dyn SwapDevice>,
    ) -> Result<SwapRemoved, RemoveSwapError> {
        self.assert_may_sleep("swapoff");
        let space = self.swap.0.get().ok_or(RemoveSwapError::Unknown)?;
        let (number, attached) = space.devices.find(device).ok_or(RemoveSwapError::Unknown)?;
        if !attached.begin_removal() {
            return Err(RemoveSwapError::UnderWay);
        }
        let result = self.empty(space, number, attached);
        attached.end_removal(result.is_ok());
        result
    }

    /// Takes all pages off a device that takes no more.
    fn empty(
        self: &Arc<Self>,
        space: &Space,
        device: u8,
        attached: &Attached,
    ) -> Result<SwapRemoved, RemoveSwapError> {
        let mut removed = SwapRemoved::default();
        for pass in 0..PASSES {
            for number in 0..space.slots.made() {
                match self.look_at(space, device, number) {
                    Ok(Look::Elsewhere | Look::Busy) => {}
                    Ok(Look::Moved) => removed.moved += 1,
                    Ok(Look::Lost) => removed.lost += 1,
                    Err(NoRoom) => {
                        return Err(RemoveSwapError::NoRoom { left: attached.pages(), lost: removed.lost });
                    }
                }
            }
            if attached.is_empty() {
                return Ok(removed);
            }
            self.host().park().wait_for_memory(pass + 1);
        }
        Err(RemoveSwapError::Busy { left: attached.pages(), lost: removed.lost })
    }

    /// Tries to take the page of a slot off the device.
    fn look_at(self: &Arc<Self>, space: &Space, device: u8, number: u64) -> Result<Look, NoRoom> {
        let named = Slot::new(number).zip(space.slots.get(number));
        let Some((slot, found)) = named.filter(|(_, found)| is_on(found, device)) else {
            return Ok(Look::Elsewhere);
        };
        let generation = found.state().generation();
        match self.pin_cached(slot) {
            Cached::Busy => Ok(Look::Busy),
            Cached::Pinned(frame) => Ok(self.take_off(found, (slot, generation), device, frame)),
            Cached::Absent if found.state().is_poisoned() => {
                Ok(self.forget(found, (slot, generation), device))
            }
            Cached::Absent => {
                let Some(frame) = self.read_back(space, device, (slot, generation))? else {
                    return Ok(Look::Busy);
                };
                let look = self.take_off(found, (slot, generation), device, frame);
                // Counted at once if the read has failed, so that an error for the next page has its number.
                let is_lost = matches!(look, Look::Busy) && found.state().is_poisoned();
                Ok(if is_lost { self.forget(found, (slot, generation), device) } else { look })
            }
        }
    }

    /// Reads the page of a slot into memory, with some of those that follow. Returns the frame, pinned, when the read has ended.
    fn read_back(
        self: &Arc<Self>,
        space: &Space,
        device: u8,
        (slot, generation): (Slot, u16),
    ) -> Result<Option<Frame>, NoRoom> {
        let mut look = 0;
        // The group that paid for the page before it was written.
        let found = space.slots.get(slot.get());
        let group = found.map_or(GroupId::ROOT, SwapSlot::group);
        let purpose = found.map_or(FrameUse::Anonymous, |found| found.state().purpose());
        let frame = loop {
            match self.take_frame(group, purpose) {
                Some(frame) => break frame,
                None if self.make_room(group, 1, &mut look).is_ok() => {}
                None => return Err(NoRoom),
            }
        };
        let others = (slot.get() + 1..slot.get() + MOST).filter_map(|number| {
            let (slot, found) = Slot::new(number).zip(space.slots.get(number))?;
            let is_wanted =
                is_on(found, device) && (found.group() == group || mutant!("swapoff_charges_one"));
            is_wanted.then(|| (slot, found.state().generation()))
        });
        let others: SmallVec<[_; MOST as usize]> = others.collect();
        match self.begin_swap_in(slot, generation, frame, &others) {
            SwapIn::Started => {}
            SwapIn::Lost | SwapIn::Gone | SwapIn::Poisoned(_) => return Ok(None),
            SwapIn::OutOfMemory => return Err(NoRoom),
        }
        self.arrived_outside(frame);
        let folio = self.folio(frame);
        self.park_until(Counter::IoWait, core::ptr::from_ref(folio).addr(), || folio.is_reading());
        Ok(Some(frame))
    }

    /// Takes the place from the slot of a pinned folio, and drops the pin.
    fn take_off(&self, found: &SwapSlot, (slot, generation): (Slot, u16), device: u8, frame: Frame) -> Look {
        let folio = self.folio(frame);
        // While this thread has the folio isolated, no entry is taken from it, so no processor has an old translation of it.
        if !folio.isolate_pinned() {
            self.unpin(frame, Reference::Pin);
            return Look::Busy;
        }
        let can_be_moved = folio.is_uptodate() && !folio.is_writeback() && is_on(found, device);
        let steps = self.swap_steps().filter(|_| can_be_moved);
        let left = steps.map(|(_, steps)| steps.leave_place(slot.get(), found, generation));
        folio.end_isolation();
        self.unpin(frame, Reference::Pin);
        match left {
            Some(PlaceLeft::Left) => Look::Moved,
            Some(PlaceLeft::Kept) | None => Look::Busy,
        }
    }

    /// Takes the place from a slot whose bytes cannot be had.
    fn forget(&self, found: &SwapSlot, (slot, generation): (Slot, u16), device: u8) -> Look {
        if !found.try_count(generation) {
            return Look::Busy;
        }
        // No write or read begins, and the slot stays: this thread alone changes the place.
        let mut look = Look::Busy;
        if found.state().is_poisoned()
            && !found.state().is_in_cache()
            && let Some(location) = found.location().filter(|location| location.device == device)
        {
            found.set_location(None);
            self.release(location);
            look = Look::Lost;
        }
        self.put_slot(slot);
        look
    }
}

/// Returns whether a slot has a place on `device`. A hint, unless the caller keeps others from changing it.
fn is_on(slot: &SwapSlot, device: u8) -> bool {
    let state = slot.state();
    !state.is_free()
        && !state.is_pattern()
        && slot.location().is_some_and(|location| location.device == device)
}
