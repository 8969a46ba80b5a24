//! Reading the bytes of a slot into a new folio. They are checked before the folio is up to date: a page that cannot be read as it was
//! written is an error at each access, and never data.

use super::cache::SwapIn;
use super::slot::{NotBegun, SwapSlot};
use crate::address::PAGE_SIZE;
use crate::engine::Engine;
use crate::errno;
use crate::frame::Reference;
use crate::host::{Frame, Host, Slot};
use crate::stats::Counter;
use crate::store::{Direction, Places, StoreError};
use crate::sync::atomic::Ordering;
use crate::sync::try_box;
use alloc::sync::Arc;

impl<H: Host> Engine<H> {
    /// Attaches `frame` to `slot` and starts to read the slot's bytes into it. The caller has the frame alone, and an entry with this
    /// slot and generation was there a moment ago. It is in no section. Waits for no I/O, which may have ended when this returns.
    pub(crate) fn begin_swap_in(self: &Arc<Self>, slot: Slot, generation: u16, frame: Frame) -> SwapIn {
        self.assert_may_sleep("swap-in");
        let swap_in = self.try_begin_swap_in(slot, generation, frame);
        if swap_in != SwapIn::Started {
            self.free_frame(frame);
        }
        swap_in
    }

    fn try_begin_swap_in(self: &Arc<Self>, slot: Slot, generation: u16, frame: Frame) -> SwapIn {
        let Some((space, steps)) = self.swap_steps() else { return SwapIn::Gone };
        let Some(found) = space.slots.get(slot.get()) else { return SwapIn::Gone };
        // Made before any thread waits for the read.
        let engine = self.clone();
        let Ok(completion) = try_box(move |result| engine.end_swap_in(slot, frame, result)) else {
            return SwapIn::OutOfMemory;
        };
        match steps.begin_read(slot, found, generation, frame) {
            Ok(()) => {}
            Err(NotBegun::InCache) => return SwapIn::Lost,
            Err(NotBegun::Gone) => return SwapIn::Gone,
            // A slot that was never written has lost its bytes.
            Err(NotBegun::Poisoned) => {
                return SwapIn::Poisoned(found.error().unwrap_or(StoreError::WrongBytes { offset: 0 }));
            }
        }
        self.counters().add(Counter::SwapIns, 1);
        self.cache.transfers.fetch_add(1, Ordering::Relaxed);
        if found.state().is_pattern() {
            self.fill_page(frame, found.pattern());
            self.finish_swap_in(slot, frame, Ok(()));
            return SwapIn::Started;
        }
        let there = found.location().and_then(|from| Some((from, space.devices.get(from.device)?)));
        match there {
            Some((from, attached)) => {
                let places = Places::from_buf([self.place_of(frame)]);
                attached.device().submit(self.swap_transfer(Direction::Read, from.place, places, completion));
            }
            None => completion(Err(StoreError::WrongBytes { offset: 0 })),
        }
        SwapIn::Started
    }

    /// Ends a read. Called on any thread.
    fn end_swap_in(&self, slot: Slot, frame: Frame, result: Result<usize, StoreError>) {
        let found = self.swap.0.get().and_then(|space| Some((space, space.slots.get(slot.get())?)));
        let Some((space, found)) = found else { return };
        let offset = found.location().map_or(0, |location| location.place * PAGE_SIZE);
        let result = match result {
            Ok(moved) if moved as u64 >= PAGE_SIZE => {
                let generation = found.state().generation();
                let checksum = space.checksum(self.bytes_at_rest(frame), slot.get(), generation);
                let is_same = checksum == found.checksum();
                if is_same { Ok(()) } else { Err(StoreError::WrongBytes { offset }) }
            }
            Ok(_) => Err(StoreError::PastEnd { offset }),
            Err(error) => Err(error.at(offset)),
        };
        self.finish_swap_in(slot, frame, result);
    }

    /// Ends a read with its checked result.
    fn finish_swap_in(&self, slot: Slot, frame: Frame, result: Result<(), StoreError>) {
        self.assert_may_sleep("the end of a read");
        let folio = self.folio(frame);
        match result {
            Ok(()) => folio.finish_read(),
            Err(error) => {
                // A device without memory may have some at the next access.
                if error.errno() != errno::ENOMEM {
                    self.poison(slot, error);
                }
                self.take_out(frame);
                folio.fail_read(error);
            }
        }
        self.wake_all(core::ptr::from_ref(folio).addr());
        self.put_slot(slot);
        self.unpin(frame, Reference::Pin);
        self.cache.transfers.fetch_sub(1, Ordering::Relaxed);
        self.tell_memory();
    }

    fn poison(&self, slot: Slot, error: StoreError) {
        let found = self.swap.0.get().and_then(|space| space.slots.get(slot.get()));
        found.into_iter().for_each(|slot: &SwapSlot| slot.poison(error));
    }
}
