//! What the engine needs of a Linux process.

use crate::frames::Frames;
use crate::kernel::Userfault;
use crate::table::Table;
use crate::wake::WakingPark;
use faultless::host::{FenceBarrier, Host, OutOfMemory, StdClock, StdSlots};
use faultless::sync::Sections;
use faultless_soft::MemoryError;
use std::sync::Arc;

/// A Linux process as the engine's host: frames are memory of this process, tables make its pages.
pub struct Linux {
    frames: Arc<Frames>,
    userfault: Arc<Userfault>,
    sections: Arc<Sections>,
    park: WakingPark,
    clock: StdClock,
    /// Of a space that is made without a table: pages.
    default_pages: u64,
}

impl Linux {
    pub(crate) fn new(
        frames: u64,
        default_pages: u64,
        userfault: Arc<Userfault>,
        park: WakingPark,
    ) -> Result<Self, MemoryError> {
        let frames = Arc::new(Frames::new(frames, &userfault)?);
        let (sections, clock) = (Arc::new(Sections::new()), StdClock::default());
        Ok(Self { frames, userfault, sections, park, clock, default_pages })
    }

    /// A table over a new window of `pages` pages.
    pub(crate) fn table(&self, pages: u64) -> Result<Table, OutOfMemory> {
        Table::new(&self.userfault, &self.frames, &self.sections, pages)
    }
}

// SAFETY: the fields are given out as they are, and stay; each keeps its own contract.
unsafe impl Host for Linux {
    type Table = Table;
    type Frames = Frames;
    type Park = WakingPark;
    type Clock = StdClock;
    type Barrier = FenceBarrier;
    type Slots = StdSlots;

    fn frames(&self) -> &Frames {
        &self.frames
    }

    fn park(&self) -> &WakingPark {
        &self.park
    }

    fn clock(&self) -> &StdClock {
        &self.clock
    }

    fn barrier(&self) -> &FenceBarrier {
        &FenceBarrier
    }

    fn slots(&self) -> &StdSlots {
        &StdSlots
    }

    fn sections(&self) -> &Arc<Sections> {
        &self.sections
    }

    fn new_table(&self) -> Result<Table, OutOfMemory> {
        self.table(self.default_pages)
    }

    fn child_table(&self, parent: &Table) -> Result<Table, OutOfMemory> {
        self.table(parent.window().pages())
    }
}
