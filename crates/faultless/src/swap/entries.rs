//! The swap cache as faults use it, beyond `cache.rs`: the slots that an entry names, and the folios that have one.

use super::slot::SwapSlot;
use crate::engine::Engine;
use crate::frame::Folio;
use crate::host::{Frame, Host, Slot};
use crate::reclaim::Shadow;

impl<H: Host> Engine<H> {
    /// Returns whether the engine has such a slot.
    pub(crate) fn has_slot(&self, slot: Slot) -> bool {
        self.slot(slot).is_some()
    }

    /// Returns whether neither a folio nor a device has the bytes of `slot`, or whether the slot is in another life. The caller has the
    /// bit of an entry that names it by `generation`: so no other thread takes its folio out at this moment, to attach it again.
    pub(crate) fn is_slot_lost(&self, slot: Slot, generation: u16) -> bool {
        self.slot(slot).is_some_and(|slot| slot.state().is_lost(generation))
    }

    /// Makes each slot that has no folio one that was never written. For tests of slots without bytes.
    #[cfg(any(test, feature = "audit"))]
    pub fn lose_slots_for_tests(&self) {
        if let Some(space) = self.swap.0.get() {
            let slots = (0..space.slots.made()).filter_map(|number| space.slots.get(number));
            slots.for_each(SwapSlot::lose_for_tests);
        }
    }

    /// Returns whether no entry names `slot`, and no device has the bytes of its folio. The caller has the folio isolated.
    pub(crate) fn is_slot_unused(&self, slot: Slot) -> bool {
        let state = self.slot(slot).map(SwapSlot::state);
        state.is_some_and(|state| state.count() == 0 && !state.is_written())
    }

    /// Returns whether a folio that no entry maps has a slot, and is not being written: no device has taken its bytes, or another thread
    /// has a reference. A hint, if the caller has none.
    pub(crate) fn is_left_in_slot(&self, folio: &Folio) -> bool {
        folio.is_in_slot() && folio.mappings() == 0 && !folio.is_writeback()
    }

    /// Returns whether the folio of `slot` was read ahead, and this is the first use of it. An entry names the slot.
    pub(crate) fn is_first_use_of_ahead(&self, slot: Slot) -> bool {
        self.slot(slot).is_some_and(SwapSlot::is_first_use_of_ahead)
    }

    /// Takes the folio of `frame` out of its slot, if it has one that no entry names and the caller's is the only mapping. Returns
    /// whether it did. The caller has the bit of an entry that maps the folio.
    ///
    /// With another mapping, reclaim may be about to make that entry name the slot: the page would be lost.
    pub(crate) fn leave_unused_slot(&self, frame: Frame) -> bool {
        let folio = self.folio(frame);
        // In this order: reclaim counts an entry in the slot before it drops the entry's mapping.
        let is_alone = folio.mappings_before_slot() == 1 || mutant!("slot_left_beside_reclaim");
        if !is_alone || !folio.is_in_slot() {
            return false;
        }
        let slot = Slot::new(folio.index()).and_then(|number| self.slot(number));
        slot.is_some_and(|slot| slot.state().count() == 0) && self.take_out(frame)
    }

    /// Returns whether an entry that has the page of `slot` was moved while others had it too.
    pub(crate) fn is_slot_moved(&self, slot: Slot) -> bool {
        self.slot(slot).is_some_and(|slot| slot.state().is_moved())
    }

    /// Notes that an entry that names `slot` is moved to another place. Called before the entry is there.
    pub(crate) fn note_moved_entry(&self, slot: Slot) {
        // Alone if no other entry names the slot, and no folio is there that another entry may map.
        let is_alone = |slot: &SwapSlot| slot.state().count() <= 1 && !slot.state().is_in_cache();
        if let Some(slot) = self.slot(slot).filter(|slot| !is_alone(slot)) {
            slot.set_moved();
        }
    }

    /// Notes that an entry that maps the folio of `frame` is moved to another place. Returns false if other entries may name its
    /// slot. Called before the entry is there.
    pub(crate) fn note_moved_page(&self, frame: Frame) -> bool {
        let folio = self.folio(frame);
        if !folio.is_in_slot() {
            return true;
        }
        // The entry that is moved keeps the folio, and so the slot.
        let slot = Slot::new(folio.index()).and_then(|number| self.slot(number));
        slot.is_none_or(|slot| {
            slot.set_moved();
            slot.state().count() == 0
        })
    }

    /// Attaches the folio of `frame` to `slot` again, which it has just left. The caller has the bit of the only entry that names the
    /// slot, and a pin.
    pub(crate) fn attach_again(&self, frame: Frame, slot: Slot) {
        // If another thread has begun to read the slot, it was written, and no entry has had the write right since. So that folio gets
        // the bytes of this one, which is freed with its last pin.
        if self.slot(slot).is_some_and(|found| found.attach_again(frame)) {
            let is_attached = self.folio(frame).attach(slot.get());
            debug_assert!(is_attached, "a folio that cannot go back to its slot");
        }
    }

    /// Returns whether the folio of `frame`, which the caller has pinned, is attached to `slot`.
    pub(crate) fn is_attached_to(&self, frame: Frame, slot: Slot) -> bool {
        self.slot(slot).and_then(SwapSlot::attached) == Some(frame)
    }

    /// Returns whether the folio of `slot` is in memory, with its bytes. A hint.
    pub(crate) fn is_slot_in_memory(&self, slot: Slot) -> bool {
        let attached = self.slot(slot).and_then(SwapSlot::attached);
        attached.is_some_and(|frame| self.folio(frame).is_of_slot(slot) && self.folio(frame).is_uptodate())
    }

    /// Returns the time at which the page in `slot` was evicted. If it was not, the present time.
    pub(crate) fn slot_shadow(&self, slot: Slot) -> Shadow {
        let evicted_at = self.slot(slot).and_then(SwapSlot::evicted_at);
        evicted_at.map_or_else(|| self.shadow_now(), Shadow::new)
    }
}
