//! A host in a process with `std`. It supplies frames and tables; this module supplies the rest.

use super::{
    FrameSource, Host, OutOfMemory, PageTable, Park, Sections, StdBarrier, StdClock, StdPark, StdSlots,
};
use crate::stats::Counter;
use alloc::sync::Arc;

/// The sleeping, clock and barrier services of a host in a process with `std`. `P` is the service by which its threads sleep.
#[derive(Debug, Default)]
pub struct StdServices<P = StdPark> {
    park: P,
    clock: StdClock,
    barrier: StdBarrier,
}

impl<P: Park> StdServices<P> {
    /// Returns the services of a host whose threads sleep by `park`. With [`StdPark`], [`Default`] makes the same.
    pub fn with_park(park: P) -> Self {
        Self { park, clock: StdClock::default(), barrier: StdBarrier::new() }
    }
}

/// A [`Host`] whose processors are the threads of this process. Each type with this trait is a [`Host`], with a slot for each
/// thread ([`StdSlots`]). Implement it instead of [`Host`] if only frames, tables and perhaps the sleeping are the host's own.
///
/// # Safety
/// The implementation guarantees the same as for [`Host`].
pub unsafe trait StdHost: Sized + Send + Sync + 'static {
    /// The page table of one space.
    type Table: PageTable;
    /// The physical memory.
    type Frames: FrameSource;
    /// The service by which threads sleep; mostly [`StdPark`].
    type Park: Park;

    /// Returns the physical memory: [`Host::frames`].
    fn frames(&self) -> &Self::Frames;

    /// Returns all other services, which the host keeps for as long as it lives.
    fn services(&self) -> &StdServices<Self::Park>;

    /// Makes an empty table for a new space: [`Host::new_table`].
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn new_table(&self, sections: &Arc<Sections>) -> Result<Self::Table, OutOfMemory>;

    /// Makes an empty table for the child of a space that has `parent`: [`Host::child_table`].
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn child_table(
        &self,
        sections: &Arc<Sections>,
        parent: &Self::Table,
    ) -> Result<Self::Table, OutOfMemory> {
        let _ = parent;
        self.new_table(sections)
    }

    /// Invalidates pages of several tables: [`Host::invalidate_all`].
    fn invalidate_all(
        &self,
        sections: &Sections,
        batch: &mut [<Self::Table as PageTable>::Stale],
        wait: impl FnMut(u32),
    );

    /// Returns whether the calling thread serves an interrupt: [`Host::is_in_interrupt`]. The default is false; a machine that
    /// models interrupts overrides it.
    fn is_in_interrupt(&self) -> bool {
        false
    }

    /// Tells the host that the calling thread has waited: [`Host::waited`].
    #[inline]
    fn waited(&self, counter: Counter, from_ns: u64, to_ns: u64) {
        let _ = (counter, from_ns, to_ns);
    }
}

// SAFETY: frames and tables are the type's own, by the contract of `StdHost`. The services are given out as they are, and stay.
unsafe impl<M: StdHost> Host for M {
    type Table = M::Table;
    type Frames = M::Frames;
    type Park = M::Park;
    type Clock = StdClock;
    type Barrier = StdBarrier;
    type Slots = StdSlots;

    #[inline]
    fn frames(&self) -> &M::Frames {
        StdHost::frames(self)
    }

    #[inline]
    fn park(&self) -> &M::Park {
        &self.services().park
    }

    #[inline]
    fn clock(&self) -> &StdClock {
        &self.services().clock
    }

    #[inline]
    fn barrier(&self) -> &StdBarrier {
        &self.services().barrier
    }

    #[inline]
    fn slots(&self) -> &StdSlots {
        &StdSlots
    }

    fn new_table(&self, sections: &Arc<Sections>) -> Result<M::Table, OutOfMemory> {
        StdHost::new_table(self, sections)
    }

    fn child_table(&self, sections: &Arc<Sections>, parent: &M::Table) -> Result<M::Table, OutOfMemory> {
        StdHost::child_table(self, sections, parent)
    }

    fn invalidate_all(
        &self,
        sections: &Sections,
        batch: &mut [<M::Table as PageTable>::Stale],
        wait: impl FnMut(u32),
    ) {
        StdHost::invalidate_all(self, sections, batch, wait);
    }

    fn is_in_interrupt(&self) -> bool {
        StdHost::is_in_interrupt(self)
    }

    #[inline]
    fn waited(&self, counter: Counter, from_ns: u64, to_ns: u64) {
        StdHost::waited(self, counter, from_ns, to_ns);
    }
}
