//! The stocks of all slots: pages that a memory limit has charged, and that no thread has used yet.

use super::barrier::Barrier;
use super::section::{Sections, wait_out};
use super::slot::{CHUNK_SLOTS, SlotIndex};
use crate::host::GroupId;
use crate::limit::{Debts, Groups, Stock};
use crate::page_cache::Dirtied;

impl Sections {
    /// Returns the groups of the engine's memory limits.
    #[inline]
    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Returns the stock of the thread of slot `index`.
    #[inline]
    pub(crate) fn stock(&self, index: SlotIndex) -> &Stock {
        &self.slot(index).stock
    }

    /// Notes that few frames are free: at its next fault, the thread of slot `index` calls the background worker. For a
    /// [`FrameSource`](crate::host::FrameSource), on the thread that allocates; see [`watch`](crate::host::FrameSource::watch). Waits
    /// for nothing.
    pub fn note_few_frames(&self, index: SlotIndex) {
        self.stock(index).owe(Debts::CALL);
    }

    /// Returns the stocks of all slots, with those of threads that sleep or have ended.
    pub(crate) fn stocks(&self) -> impl Iterator<Item = &Stock> {
        self.made_chunks().flat_map(|chunk| &chunk.slots).map(|slot| &slot.stock)
    }

    /// Returns the count of pages that the thread of slot `index` has made dirty.
    pub(crate) fn dirtied(&self, index: SlotIndex) -> &Dirtied {
        &self.slot(index).dirtied
    }

    /// Returns these counts of all slots, with those of threads that sleep or have ended.
    pub(crate) fn each_dirtied(&self) -> impl Iterator<Item = &Dirtied> {
        self.made_chunks().flat_map(|chunk| &chunk.slots).map(|slot| &slot.dirtied)
    }

    /// Returns the number of slots for which there is memory.
    pub(crate) fn made_slots(&self) -> usize {
        self.made_chunks().count() * CHUNK_SLOTS
    }

    /// Gives the pages of all stocks back whose group `wanted` accepts. Returns their number. Waits until the sections that were
    /// entered before have ended. Only one thread at a time may call it. The caller is in no section.
    pub(crate) fn take_stocks(
        &self,
        barrier: &impl Barrier,
        wanted: impl Fn(GroupId) -> bool,
        mut wait: impl FnMut(u32),
    ) -> u64 {
        let taken = self.stocks().filter(|stock| stock.begin_taking(&wanted)).count();
        if taken == 0 {
            return 0;
        }
        // Its fence is for both kinds of use.
        if !mutant!("stock_taken_in_a_section") {
            self.grace(barrier, &mut wait);
        }
        if !mutant!("stock_taken_at_a_mark") {
            self.stocks().for_each(|stock| wait_out(stock.mark(), || true, &mut wait));
        }
        self.stocks().map(|stock| stock.take_back(&self.groups)).sum()
    }
}
