//! The swap cache as the engine's other parts use it: attaching folios to slots, finding them there, counting entries.

use super::Cached;
use super::steps::Surroundings as _;
use crate::engine::Engine;
use crate::host::{Frame, GroupId, Host, Slot};
use crate::reclaim::Shadow;
use crate::stats::Counter;
use crate::store::StoreError;

/// The outcome of [`Engine::begin_swap_in`]. The frame is given back, except in `Started`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SwapIn {
    /// The read is under way or has ended. The caller has a pin of the frame, whose folio tells when the read has ended, and how.
    Started,
    /// A folio is attached, or another thread attaches one: look for it again.
    Lost,
    /// No entry names the slot in this generation any more.
    Gone,
    /// The bytes cannot be had.
    Poisoned(StoreError),
    /// There is no memory for the transfer.
    OutOfMemory,
}

impl<H: Host> Engine<H> {
    /// Attaches the anonymous folio of `frame` to a slot, with a place on a device for its bytes. Returns the slot and its
    /// generation, also if the folio has a slot already. Returns `None` if there is no slot or no place, or if the folio is being
    /// written. The caller has a pin, and has the folio isolated. It is in no section.
    ///
    /// Another thread may take the folio out of the slot at once. So the caller counts an entry by
    /// [`Engine::try_count_slot`].
    pub(crate) fn attach_slot(&self, frame: Frame) -> Option<(Slot, u16)> {
        let (space, steps) = self.swap_steps()?;
        let folio = self.folio(frame);
        if folio.is_in_slot() {
            let number = folio.index();
            return Some((Slot::new(number)?, space.slots.get(number)?.state().generation()));
        }
        let location = space.devices.reserve(0)?;
        match space.slots.take() {
            Ok((number, slot)) => {
                // The count goes with the slot: `SlotTable::free`.
                slot.set_group(folio.group());
                self.sections().groups().add_swap(folio.group());
                steps.attach(number, slot, frame, location).map(|generation| (number, generation))
            }
            Err(_) => {
                self.release(location);
                None
            }
        }
    }

    /// Makes the folio of `frame`, a page of a file without a store that the caller has isolated, that of a slot:
    /// see `Steps::attach_file_page`. Returns false if there is no slot or no place on a device, too. The caller is in no section, and has
    /// no lock.
    pub(crate) fn attach_file_page(&self, frame: Frame, leave: impl FnOnce(Slot, u16) -> bool) -> bool {
        let Some((space, steps)) = self.swap_steps() else { return false };
        let Some(location) = space.devices.reserve(0) else { return false };
        let Ok((number, slot)) = space.slots.take() else {
            self.release(location);
            return false;
        };
        let group = self.folio(frame).group();
        slot.set_group(group);
        self.sections().groups().add_swap(group);
        steps.attach_file_page(number, slot, frame, location, |generation| leave(number, generation))
    }

    /// Takes the slot from a folio that a file without a store has again, and the file's use of it. May be called in a section.
    pub(crate) fn leave_to_file(&self, slot: Slot) {
        if let Some((_, steps)) = self.swap_steps() {
            steps.leave_to_file(slot);
        }
    }

    /// Returns whether a device has a place for a page at the moment. The caller is in no section.
    pub(crate) fn has_place_in_swap(&self) -> bool {
        let location = self.swap_steps().and_then(|(space, _)| space.devices.reserve(0));
        location.is_some_and(|location| {
            self.release(location);
            true
        })
    }

    /// Returns the group that paid for the page of `slot` when it got the slot, and the time of the page's eviction.
    pub(crate) fn payer_and_shadow(&self, slot: Slot) -> (GroupId, Shadow) {
        (self.slot(slot).map_or(GroupId::ROOT, super::slot::SwapSlot::group), self.slot_shadow(slot))
    }

    /// Takes the folio of `frame` out of its slot, before an entry gets the write right. Returns false if it has no slot. The caller
    /// has a mapping or a pin. May be called in a section.
    ///
    /// A write of the folio may be under way. Then the caller gives no write right until it has ended
    /// ([`Folio::is_writeback`](crate::frame::Folio::is_writeback)), or copies the page. No further write begins.
    pub(crate) fn take_out(&self, frame: Frame) -> bool {
        self.swap_steps().is_some_and(|(_, steps)| steps.take_out(frame))
    }

    /// Counts one more entry that names `slot`, if the slot still has this generation and is in use. Returns false if not, or if the
    /// count is full.
    pub(crate) fn try_count_slot(&self, slot: Slot, generation: u16) -> bool {
        self.slot(slot).is_some_and(|slot| slot.try_count(generation))
    }

    /// Counts one more entry for the copy of a shared table, which cannot be refused. An entry that names `slot` stays meanwhile.
    pub(crate) fn count_slot_copy(&self, slot: Slot) {
        if self.slot(slot).is_some_and(super::slot::SwapSlot::count_copy) {
            self.shared_tables.note_full_page();
        }
    }

    /// Returns whether no further table with an entry that names `slot` may be shared:
    /// [`Folio::is_mapping_full`](crate::frame::Folio::is_mapping_full) is the same for a page.
    pub(crate) fn is_slot_full(&self, slot: Slot) -> bool {
        self.slot(slot).is_some_and(super::slot::SwapSlot::is_full)
    }

    /// Drops an entry's use of `slot`. Frees the slot and its folio, if this was the last use. May be called in a section.
    pub(crate) fn put_slot(&self, slot: Slot) {
        if let Some((space, steps)) = self.swap_steps()
            && let Some(found) = space.slots.get(slot.get())
        {
            steps.put(slot.get(), found);
        }
    }

    /// Sees to the folio of `frame` after a pin or mapping of it was dropped and only the swap cache's reference remained: if no
    /// entry names its slot, frees both. [`Engine::put`] and [`Engine::unpin`] call it. May be called in a section.
    pub(crate) fn see_to_cached(&self, frame: Frame) {
        if let Some((_, steps)) = self.swap_steps() {
            steps.see_to(frame);
        }
    }

    /// Returns the frame whose folio is attached to `slot`. A hint, unless the caller has a reference to the folio.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn slot_frame(&self, slot: Slot) -> Option<Frame> {
        self.slot(slot)?.attached()
    }

    /// Returns the number of entries that name `slot`, and of transfers of it under way.
    pub(crate) fn slot_count(&self, slot: Slot) -> u64 {
        self.slot(slot).map_or(0, |slot| slot.state().count())
    }

    /// Returns whether others than one entry may have the page of `slot`: they name the slot, or map its folio. A transfer under
    /// way counts as such a use. A hint.
    pub(crate) fn is_slot_shared(&self, slot: Slot) -> bool {
        self.slot(slot).is_some_and(|slot| {
            let is_mapped = |frame| self.folio(frame).mappings() != 0;
            slot.state().count() > 1 || slot.attached().is_some_and(is_mapped)
        })
    }

    /// Returns whether one entry alone has the page of `slot`, which has no folio. `None` if it has one by now. The caller has the bit of
    /// an entry that names the slot. Both facts are in one word.
    pub(crate) fn is_alone_out_of_memory(&self, slot: Slot) -> Option<bool> {
        let state = self.slot(slot)?.state();
        (!state.is_in_cache()).then(|| state.count() == 1)
    }

    /// Returns why the bytes of `slot` cannot be had, if so. An entry names the slot.
    pub(crate) fn is_poisoned(&self, slot: Slot) -> Option<StoreError> {
        self.slot(slot)?.error()
    }

    /// Pins the folio of `slot`, which an entry names.
    pub(crate) fn pin_cached(&self, slot: Slot) -> Cached {
        let found = self.swap_steps().and_then(|(space, steps)| Some((space.slots.get(slot.get())?, steps)));
        let cached = found.map_or(Cached::Absent, |(slot, steps)| steps.pin_cached(slot));
        if matches!(cached, Cached::Pinned(_)) {
            self.counters().add(Counter::SwapCacheHits, 1);
        }
        cached
    }

    pub(super) fn slot(&self, slot: Slot) -> Option<&super::slot::SwapSlot> {
        self.swap.0.get()?.slots.get(slot.get())
    }
}
