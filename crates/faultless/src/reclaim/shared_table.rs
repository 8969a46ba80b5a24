//! Taking a page out of a leaf table that several spaces share: one change takes it from all of them.
//!
//! No thread announces in such a table. Under the lock of its record, nobody shares, leaves or takes over the table, and only
//! processors write its entries: they set accessed bits. A table under a locked mapping is not shared (rule H6), so no mapping is
//! looked up.

use super::space_head::{Reach, Refusal, Victim, VictimKind};
use crate::engine::{Engine, StaleBatch};
use crate::host::{Entry, EntryKind, Frame, Host, PageTable, ShareLeaves};
use crate::tables::{Home, LeafRecord};

impl<H: Host> Engine<H> {
    /// Tries to take the page of `victim` out of entry `index` of the shared leaf table with `record`, which was found in the present
    /// section. Waits for nothing. If it does, the entry names the slot, which counts one more entry, or is GONE. The mapping is dropped,
    /// and the page is noted in `stale`, which has room.
    ///
    /// # Errors
    /// [`Refusal`]; the entry is as before, but for its accessed bit.
    pub(crate) fn take_shared(
        &self,
        record: &LeafRecord,
        index: u64,
        victim: Victim,
        stale: &mut StaleBatch<'_, H>,
    ) -> Result<(), Refusal> {
        let locked = if mutant!("shared_table_not_locked") { None } else { record.try_lock_shared() };
        if locked.is_none() && !mutant!("shared_table_not_locked") {
            return Err(Refusal::Busy);
        }
        let mut seen = load::<H>(record, index);
        if seen.kind() != EntryKind::Page(victim.frame) {
            return Err(Refusal::Gone);
        }
        // Page work that came before the table was shared lets go without a change.
        if seen.is_announced() {
            return Err(Refusal::Busy);
        }
        while seen.has(Entry::ACCESSED) && victim.reach != Reach::Any {
            match exchange::<H>(record, index, seen, seen.without(Entry::ACCESSED)) {
                Ok(()) => {
                    let age = |near| {
                        let seen = load::<H>(record, near);
                        exchange::<H>(record, near, seen, seen.without(Entry::ACCESSED)).is_ok()
                    };
                    self.look_around(index, |near| load::<H>(record, near), age);
                    return Err(Refusal::Young);
                }
                Err(now) => seen = now,
            }
        }
        if victim.reach == Reach::Nothing {
            return Err(Refusal::Young);
        }
        let folio = self.folio(victim.frame);
        let gone = |seen: Entry| match victim.kind {
            VictimKind::Swapped(slot, generation) => Entry::swapped(slot, generation, seen.bits()),
            VictimKind::File | VictimKind::FileInMemory | VictimKind::Dropped => {
                Entry::gone(victim.frame, seen.bits())
            }
        };
        match victim.kind {
            VictimKind::Swapped(slot, generation) if folio.is_of_slot(slot) => {
                if !self.try_count_slot(slot, generation) {
                    return Err(Refusal::Full);
                }
                folio.leave_home(|| (Home::of_entry(record, index), Home::of_relatives(record, index)));
            }
            VictimKind::Swapped(..) => return Err(Refusal::Busy),
            VictimKind::Dropped => return Err(Refusal::NotAlone),
            VictimKind::File | VictimKind::FileInMemory if folio.is_pinned_for_io() => {
                return Err(Refusal::Pinned);
            }
            VictimKind::File if seen.has(Entry::WRITE) || !folio.is_clean() => return Err(Refusal::Dirty),
            VictimKind::File | VictimKind::FileInMemory => {}
        }
        // The pin of the caller keeps the folio.
        let _ = folio.end_mapping();
        // A processor may use the page meanwhile.
        while let Err(now) = exchange::<H>(record, index, seen, gone(seen)) {
            seen = now;
        }
        stale.touch_in_all(crate::address::PageNumber::new(record.first() + index));
        Ok(())
    }

    /// Gives the page of `frame` a home at entry `index` of the shared leaf table with `record`, which was found in the present section, if
    /// that entry maps it and is its only one. Returns whether it did. Waits for nothing.
    pub(crate) fn give_home_in_shared(&self, record: &LeafRecord, index: u64, frame: Frame) -> bool {
        let Some(_locked) = record.try_lock_shared() else { return false };
        let seen = load::<H>(record, index);
        let is_there = seen.kind() == EntryKind::Page(frame) && !seen.is_announced();
        is_there && self.folio(frame).give_home(Home::of_entry(record, index))
    }
}

fn load<H: Host>(record: &LeafRecord, index: u64) -> Entry {
    // SAFETY: the caller of `take_shared` has found the record in its section; the table has the index.
    unsafe { <H::Table as PageTable>::Sharing::load_by_record(record, index) }
}

fn exchange<H: Host>(record: &LeafRecord, index: u64, seen: Entry, new: Entry) -> Result<(), Entry> {
    // SAFETY: as above, and `take_shared` holds the lock. The frame is freed after the invalidation of the batch.
    unsafe { <H::Table as PageTable>::Sharing::exchange_by_record(record, index, seen, new) }
}
