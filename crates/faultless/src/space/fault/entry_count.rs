//! The counts that entries stand for. All calls that copy or drop entries use these functions, which match every kind of entry.

use crate::address::PageNumber;
use crate::design::LockingDesign;
use crate::engine::Engine;
use crate::frame::{Reference, Remaining, Share};
use crate::host::{Entry, EntryKind, Frame, Host, OutOfMemory};
use crate::space::Space;
use crate::space::fault::shared_table::LeafOf;
use crate::stats::Counter;

/// The number of frames that are freed at once.
const FREED: usize = 32;

impl<H: Host> Engine<H> {
    /// Drops the counts of `entries`, as [`Engine::drop_entry`] does for each.
    #[inline(never)]
    pub(crate) fn drop_entries(&self, entries: &[Entry]) {
        let (mut free, mut count) = ([self.zero_frame(); FREED], 0);
        for entry in entries {
            let frame = match entry.kind() {
                EntryKind::Page(frame) if frame != self.zero_frame() => frame,
                _ => {
                    self.drop_entry(*entry);
                    continue;
                }
            };
            match self.folio(frame).release(Reference::Mapping) {
                Remaining::Nothing => {}
                left => {
                    self.see_to(frame, left);
                    continue;
                }
            }
            free[count] = frame;
            count += 1;
            if count == FREED {
                self.free_frames(&free);
                count = 0;
            }
        }
        self.free_frames(&free[..count]);
    }

    /// Drops the count of `entry`: the mapping of a frame, or the use of a slot. Called once for each entry taken out of a
    /// table, after the translations that it gave have been invalidated.
    #[inline]
    pub(crate) fn drop_entry(&self, entry: Entry) {
        match entry.kind() {
            EntryKind::Page(frame) => self.put_mapping(frame),
            EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Guard => {}
            EntryKind::Kept(frame) => {
                self.counters().add(Counter::AbsentDropped, 1);
                self.put_mapping(frame);
            }
            EntryKind::Swapped(slot, _) => {
                self.counters().add(Counter::AbsentDropped, 1);
                if !mutant!("slot_not_dropped") {
                    self.put_slot(slot);
                }
            }
            EntryKind::Gone(_) => self.counters().add(Counter::AbsentDropped, 1),
        }
    }

    /// Counts `entry` once more for the table of a child that gets a copy of it. Returns the copy, which has no write right.
    ///
    /// Returns `None` if I/O into the page is under way: the page stays the parent's alone, and nothing was counted. The caller
    /// has announced the entry.
    ///
    /// # Errors
    /// The count is as high as it may be; nothing was counted.
    pub(in crate::space) fn copy_entry(&self, entry: Entry) -> Result<Option<Entry>, OutOfMemory> {
        let copy = entry.without(Entry::HARDWARE | Entry::WRITE);
        let counted = match entry.kind() {
            EntryKind::Page(frame) => self.share(frame)?,
            EntryKind::Kept(frame) => self.share(frame)? && self.count_absent(),
            EntryKind::Swapped(slot, generation) => {
                if self.has_slot(slot) && !self.try_count_slot(slot, generation) {
                    return Err(OutOfMemory);
                }
                self.count_absent()
            }
            EntryKind::Gone(_) => self.count_absent(),
            EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Guard => true,
        };
        Ok(counted.then_some(copy))
    }

    /// Counts `entry` once more for the copy of a shared table. It never fails: [`Engine::is_copy_full`] has left room for
    /// that.
    pub(in crate::space) fn count_copied(&self, entry: Entry) {
        let mapped = match entry.kind() {
            EntryKind::Page(frame) => frame,
            EntryKind::Kept(frame) => {
                self.count_absent();
                frame
            }
            EntryKind::Swapped(slot, _) => {
                self.count_absent();
                if !mutant!("slot_not_counted") {
                    self.count_slot_copy(slot);
                }
                return;
            }
            EntryKind::Gone(_) => {
                self.count_absent();
                return;
            }
            EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Guard => return,
        };
        if mapped != self.zero_frame() && !mutant!("shared_pages_not_counted") {
            self.shared_tables.count_copy(self.folio(mapped));
        }
    }

    /// Returns whether `entry` is counted so often that no further table with it may be shared.
    pub(in crate::space) fn is_copy_full(&self, entry: Entry) -> bool {
        match entry.kind() {
            EntryKind::Page(frame) | EntryKind::Kept(frame) => {
                frame != self.zero_frame() && self.folio(frame).is_mapping_full()
            }
            EntryKind::Swapped(slot, _) => self.is_slot_full(slot),
            EntryKind::Gone(_) => false,
            EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Guard => false,
        }
    }

    /// Counts one more mapping of a page that becomes shared. Returns false if I/O into it is under way.
    fn share(&self, frame: Frame) -> Result<bool, OutOfMemory> {
        if frame == self.zero_frame() {
            return Ok(true);
        }
        match self.folio(frame).try_share() {
            Share::Shared => Ok(true),
            Share::Pinned => Ok(false),
            Share::Full => Err(OutOfMemory),
        }
    }

    fn count_absent(&self) -> bool {
        self.counters().add(Counter::AbsentCopied, 1);
        true
    }

    /// Drops the mapping reference of an entry that is gone. The page of zeros has none.
    fn put_mapping(&self, frame: Frame) {
        if frame != self.zero_frame() {
            self.put(frame, Reference::Mapping);
        }
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Makes the home of the folio that `entry` maps forget the entry of `page` (rule H1 of docs/home.md). Called before
    /// [`Engine::drop_entry`]. The caller has the entry by its bit or by range.
    #[inline]
    pub(in crate::space) fn leave_home<'s>(&'s self, leaf: LeafOf<'s, H>, page: PageNumber, entry: Entry) {
        if let Some(frame) = entry.counted_frame() {
            self.engine.folio(frame).leave_home(|| self.table.home_and_family(leaf, page));
        }
    }
}
