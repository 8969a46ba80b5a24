//! The stocks of all slots: pages that a memory limit has charged, and that no thread has used yet.

use super::barrier::Barrier;
use super::section::{Sections, wait_out};
use super::slot::SlotIndex;
use crate::host::GroupId;
use crate::limit::{Groups, Stock};

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

    /// Returns the stocks of all slots, with those of threads that sleep or have ended.
    pub(crate) fn stocks(&self) -> impl Iterator<Item = &Stock> {
        self.made_chunks().flat_map(|chunk| &chunk.slots).map(|slot| &slot.stock)
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
