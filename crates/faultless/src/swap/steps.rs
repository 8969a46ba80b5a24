//! The steps that change a folio and its slot together. The engine takes them (`cache.rs`), and so do the models.
//!
//! Two threads may be the last to want a page: one drops the last entry's use of the slot, the other the last reference to the folio
//! but that of the swap cache. The later of the two takes the folio out and frees both.
//!
//! ```text
//! an entry goes      slot: count - 1;         fence;  nothing but IN_CACHE?       freeze the folio
//! a pin goes         folio: pins - 1;         fence;  nothing but IN_CACHE?       freeze the folio
//! ```
//! Each passes the fence between its step and its look, so at least one of them sees that the other has gone. A thread that has
//! frozen the folio has it alone. It looks again at slot and folio: it had no reference, so the frame may be another page's by now.

use super::slot::{Left, Location, NotBegun, SwapSlot};
use super::table::SlotTable;
use crate::frame::{Alone, Folio, Reference, Remaining};
use crate::host::{Frame, Slot};
use crate::sync::full_fence;

/// The folios of a machine, and the work that a step leaves to its caller.
pub(crate) trait Surroundings {
    /// Returns the folio of a frame.
    fn folio(&self, frame: Frame) -> &Folio;
    /// Frees a frame. Its folio has no references.
    fn free(&self, frame: Frame);
    /// Counts the eviction of the page in `frame`. Returns the number of those before.
    fn count_eviction(&self, frame: Frame) -> u64 {
        let _ = frame;
        0
    }
    /// Gives a place back to its device.
    fn release(&self, location: Location);
}

/// The outcome of looking for the folio of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// The slot's folio has one more pin, which is the caller's. It may be under a read. A thread that then acts for an entry looks
    /// once more whether the folio is in the slot: another entry may have taken it out.
    Pinned(Frame),
    /// A folio comes or goes, or has as many pins as can be counted: look again.
    Busy,
    /// The slot has no folio.
    Absent,
}

/// The outcome of an attempt to take a folio and its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evicted {
    /// The frame is free.
    Freed,
    /// The folio has other references, or its slot does not have its bytes. Nothing has changed.
    Kept,
}

/// The outcome of an attempt to take the place from a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlaceLeft {
    /// The place is free. Only the folio has the bytes.
    Left,
    /// The folio has left the slot meanwhile, or the slot has no place. Nothing has changed.
    Kept,
}

/// The reason why a folio is not written to its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoWrite {
    /// Nothing has changed: others have the folio, or it has left the slot.
    NotBegun,
    /// The write began, and ended at once: the slot has the bytes, or no entry wants them. The folio's isolation ended with its beginning,
    /// and another thread may have isolated it since.
    Ended,
}

/// The slots of an engine with what surrounds them.
pub(crate) struct Steps<'a, S> {
    pub slots: &'a SlotTable,
    pub around: &'a S,
}

impl<S> Clone for Steps<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Steps<'_, S> {}

impl<'a, S: Surroundings> Steps<'a, S> {
    /// Attaches the pinned folio of `frame` to the free slot `number`, which the caller has from [`SlotTable::take`]. Returns the
    /// generation; `None` if the folio cannot be attached, or is still being taken out of its last slot: the slot is free again, and the
    /// location goes back to its device.
    pub fn attach(self, number: Slot, slot: &SwapSlot, frame: Frame, location: Location) -> Option<u16> {
        let folio = self.around.folio(frame);
        // A thread that takes the folio out of its last slot has perhaps cleared the mark, but not yet read which slot that is.
        let is_leaving = !mutant!("attaches_beside_take_out")
            && self.slots.get(folio.index()).is_some_and(|last| last.attached() == Some(frame));
        // Everything before the folio's mark: a thread that sees the mark may take the folio out at once.
        let generation = slot.begin(frame, location);
        if !is_leaving && folio.attach(number.get()) {
            return Some(generation);
        }
        self.leave(number.get(), slot, None);
        None
    }

    /// Makes the isolated and pinned folio of `frame`, a page of a file without a store, that of the free slot `number`, which the caller
    /// has from [`SlotTable::take`]. The file has the one use of the slot. Calls `leave` with the generation, which has the folio leave
    /// the file ([`Folio::leave_file`]) unless others have it. If it returns false, the slot is free again, the location goes back to its
    /// device, and this returns false.
    pub fn attach_file_page(
        self,
        number: Slot,
        slot: &SwapSlot,
        frame: Frame,
        location: Location,
        leave: impl FnOnce(u16) -> bool,
    ) -> bool {
        let generation = slot.begin_of_file(frame, location);
        if leave(generation) {
            return true;
        }
        // IN_CACHE is left, which is this thread's.
        let _ = slot.put();
        self.leave(number.get(), slot, None);
        false
    }

    /// Takes the slot from a folio that a file has again, and the file's use of it ([`Folio::join_file`]).
    pub fn leave_to_file(self, number: Slot) {
        if let Some(slot) = self.slots.get(number.get()) {
            // The use goes first, so that no thread reads the slot again. The folio is no slot's to free, so the slot stays until
            // IN_CACHE goes, which is this thread's.
            if !mutant!("file_keeps_its_slot") {
                let _ = slot.put();
            }
            self.leave(number.get(), slot, None);
        }
    }

    /// Takes the folio of `frame` out of its slot. The caller has another reference to it. Returns false if it has no slot.
    pub fn take_out(self, frame: Frame) -> bool {
        let folio = self.around.folio(frame);
        if !folio.take_cached() {
            return false;
        }
        // The folio is attached to no other slot until this slot no longer names it, which `leave` sees to: `attach` looks.
        let number = folio.index();
        if let Some(slot) = self.slots.get(number) {
            self.leave(number, slot, None);
        }
        true
    }

    /// Drops the use of an entry or a transfer.
    pub fn put(self, number: u64, slot: &SwapSlot) {
        match slot.put() {
            Left::Nothing => self.free_slot(number, slot),
            Left::Folio => {
                if !mutant!("unwant_without_fence") {
                    full_fence();
                }
                self.drop_unwanted(slot);
            }
            Left::Others => {}
        }
    }

    /// Sees to the folio of `frame` after the caller's reference was dropped and only the swap cache's remained.
    pub fn see_to(self, frame: Frame) {
        if !mutant!("unpin_without_fence") {
            full_fence();
        }
        // The frame may be another page's by now, even one of a file. Then the number is not that of a slot, or the slot has another
        // folio; or the folio is that of another slot and is unwanted too.
        if let Some(slot) = self.slots.get(self.around.folio(frame).index()) {
            self.drop_unwanted(slot);
        }
    }

    /// Drops a pin, and sees to the folio.
    #[cfg(all(test, loom))]
    pub fn unpin(self, frame: Frame) {
        match self.around.folio(frame).release(Reference::Pin) {
            Remaining::Nothing => self.around.free(frame),
            Remaining::InSlot => self.see_to(frame),
            Remaining::Others => {}
        }
    }

    /// Frees the folio and the slot, if no entry names the slot and nothing else has the folio.
    fn drop_unwanted(self, slot: &SwapSlot) {
        while slot.state().is_unwanted() {
            let Some(frame) = slot.attached() else { return };
            let folio = self.around.folio(frame);
            let Some(frozen) = folio.freeze(Alone::InCache) else { return };
            let number = folio.index();
            // The slot and the folio may both be in their next lives. An entry comes only through a pin or a mapping of the folio, of
            // which there are none now.
            let is_ours = self.is_attached(number, slot, frame);
            let is_certain = mutant!("no_look_after_the_freeze");
            if is_certain || is_ours && slot.state().is_unwanted() {
                self.leave(number, slot, None);
                return self.around.free(frame);
            }
            folio.unfreeze(frozen);
            // As after a pin: a thread that has dropped an entry meanwhile could not freeze it.
            full_fence();
            if !is_ours {
                // That folio's own slot.
                let Some(other) = self.slots.get(number) else { return };
                return self.drop_unwanted(other);
            }
        }
    }

    /// Returns whether the frozen folio of `frame`, which has this number, is that of `slot`.
    fn is_attached(self, number: u64, slot: &SwapSlot, frame: Frame) -> bool {
        let is_same = self.slots.get(number).is_some_and(|named| core::ptr::eq(named, slot));
        is_same && slot.attached() == Some(frame)
    }

    /// Takes the pinned folio of `frame` and frees it, if the caller's pin is the only reference besides the swap cache's, and the
    /// slot has the bytes or no entry wants them. The pin goes with it.
    pub fn try_evict(self, frame: Frame) -> Evicted {
        let folio = self.around.folio(frame);
        let Some(frozen) = folio.freeze(Alone::InCacheAndPinned) else { return Evicted::Kept };
        let number = folio.index();
        if let Some(slot) = self.slots.get(number) {
            let state = slot.state();
            debug_assert_eq!(slot.attached(), Some(frame), "a folio with another's slot");
            if state.is_written() || state.is_unwanted() {
                let is_early = mutant!("frees_before_it_leaves");
                if is_early {
                    self.around.free(frame);
                }
                self.leave(number, slot, Some(self.around.count_eviction(frame)));
                if !is_early {
                    self.around.free(frame);
                }
                return Evicted::Freed;
            }
        }
        folio.unfreeze(frozen);
        Evicted::Kept
    }

    /// Pins the folio of a slot that an entry names, or named a moment ago.
    pub fn pin_cached(self, slot: &SwapSlot) -> Cached {
        let Some(frame) = slot.attached() else {
            return if slot.state().is_in_cache() { Cached::Busy } else { Cached::Absent };
        };
        let folio = self.around.folio(frame);
        if folio.try_get(Reference::Pin).is_err() {
            return Cached::Busy;
        }
        // The frame may have had its next life before it was pinned.
        if slot.attached() == Some(frame) || mutant!("no_recheck_of_slot") {
            return Cached::Pinned(frame);
        }
        match folio.release(Reference::Pin) {
            Remaining::Nothing => self.around.free(frame),
            Remaining::InSlot => self.see_to(frame),
            Remaining::Others => {}
        }
        Cached::Busy
    }

    /// Attaches the new folio of `frame` to a slot whose bytes are to be read. The read has a pin, and so has the caller, unless no
    /// fault needs the page yet (`is_ahead`). The caller has the frame alone. The slot is counted for the read.
    ///
    /// # Errors
    /// [`NotBegun`]: the caller still has the frame alone.
    pub fn begin_read(
        self,
        number: Slot,
        slot: &SwapSlot,
        generation: u16,
        frame: Frame,
        is_ahead: bool,
    ) -> Result<(), NotBegun> {
        slot.begin_read(generation, is_ahead)?;
        self.around.folio(frame).begin_swapped_in(number.get(), if is_ahead { 1 } else { 2 });
        slot.publish(frame);
        Ok(())
    }

    /// Begins the write of the pinned folio of `frame` to its slot, if nothing else has the folio. Returns the slot's number, its
    /// generation and the slot, which is counted for the write. The folio's isolation has ended then.
    ///
    /// # Errors
    /// [`NoWrite`].
    pub fn begin_write(self, frame: Frame) -> Result<(u64, u16, &'a SwapSlot), NoWrite> {
        let folio = self.around.folio(frame);
        if !folio.is_in_slot() {
            return Err(NoWrite::NotBegun);
        }
        let number = folio.index();
        let slot = self.slots.get(number).ok_or(NoWrite::NotBegun)?;
        // The generation before the folio's step: while the folio has its mark, the slot is the one that it names.
        let generation = slot.state().generation();
        if slot.attached() != Some(frame) || !folio.begin_swap_write() {
            return Err(NoWrite::NotBegun);
        }
        // A fault may take the folio out at any time from now on. Then the slot may be another page's.
        if slot.begin_write(generation) {
            return Ok((number, generation, slot));
        }
        folio.end_writeback(false);
        Err(if mutant!("others_isolation_ended") { NoWrite::NotBegun } else { NoWrite::Ended })
    }

    /// Ends the write. The folio stays pinned.
    pub fn end_write(self, number: u64, slot: &SwapSlot, frame: Frame, has_succeeded: bool) {
        // The caller's pin sees to a folio that is alone in its slot now.
        if slot.end_write(has_succeeded) == Left::Nothing {
            self.free_slot(number, slot);
        }
        self.around.folio(frame).end_writeback(false);
    }

    /// Takes the place from a slot that has a folio, and gives it back to its device. From then on only the folio has the bytes. The
    /// caller has pinned the folio and isolated it, and no write of it is under way. So no write begins, the folio is not evicted,
    /// and no other thread changes the place while the slot is in this life.
    pub fn leave_place(self, number: u64, slot: &SwapSlot, generation: u16) -> PlaceLeft {
        // The thread that frees the slot gives its place back. No thread frees it while this reference is held.
        if !slot.try_count(generation) {
            return PlaceLeft::Kept;
        }
        let is_ours = mutant!("swapoff_leaves_written") || slot.unwrite(generation);
        let location = if is_ours { slot.location() } else { None };
        if location.is_some() {
            slot.set_location(None);
        }
        self.put(number, slot);
        location.map_or(PlaceLeft::Kept, |location| {
            self.around.release(location);
            PlaceLeft::Left
        })
    }

    /// Takes the folio out of a slot, and frees the slot if nothing else has it.
    fn leave(self, number: u64, slot: &SwapSlot, evicted_at: Option<u64>) {
        if slot.leave_cache(evicted_at) == Left::Nothing {
            self.free_slot(number, slot);
        }
    }

    fn free_slot(self, number: u64, slot: &SwapSlot) {
        if let Some(location) = self.slots.free(number, slot) {
            self.around.release(location);
        }
    }
}
