//! A software machine for [`faultless`]: page tables, physical memory and processors made of atomic operations, for
//! emulators, tests and the laboratory.
//!
//! ```text
//!  Cpu::store_u64 ──► access section { walk RadixTable ─► set accessed, dirty ─► word in PhysicalMemory }
//!                          │ not there, or not for this access
//!                          ▼
//!                     fault_and_wait ─► again
//! ```
//! A translation lives as long as the access section in which it was found: there is no translation cache that
//! would outlive it. So [`invalidate`](faultless::host::PageTable::invalidate) is the end of all older sections.

#[cfg(all(mutant, not(debug_assertions)))]
compile_error!("a mutant is a planted bug: it is built with debug assertions only, never in a release");

mod access;
#[cfg(all(test, not(shuttle)))]
mod alone;
mod arena;
mod free_list;
mod memory;
mod mmu;
mod table;

pub use access::{AccessError, Cpu};
pub use memory::{MAX_FRAMES, MemoryError, PhysicalMemory};
pub use mmu::PageFault;
pub use table::{Leaf, Left, RadixTable};

use faultless::host::{Host, OutOfMemory, StdBarrier, StdClock, StdPark, StdSlots};
use faultless::sync::Sections;
use std::sync::Arc;

/// A machine with [`RadixTable`]s and [`PhysicalMemory`], whose processors are the threads of this process.
pub struct Soft {
    memory: PhysicalMemory,
    /// Of all processors: the engine's read sections and the processors' accesses.
    sections: Arc<Sections>,
    barrier: StdBarrier,
    park: StdPark,
    clock: StdClock,
}

// What a mapping costs, its places in the tree apart. Folios: `faultless::frame`.
#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<faultless::vma::Vma<Soft, faultless::design::Faultless>>() <= 128);

impl Soft {
    /// A machine with `frames` frames of memory.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn new(frames: u64) -> Result<Self, MemoryError> {
        Ok(Self {
            memory: PhysicalMemory::new(frames)?,
            sections: Arc::new(Sections::new()),
            barrier: StdBarrier::new(),
            park: StdPark::default(),
            clock: StdClock::default(),
        })
    }
}

// SAFETY: the fields are given out as they are, and stay; each keeps its own contract.
unsafe impl Host for Soft {
    type Table = RadixTable;
    type Frames = PhysicalMemory;
    type Park = StdPark;
    type Clock = StdClock;
    type Barrier = StdBarrier;
    type Slots = StdSlots;

    fn frames(&self) -> &PhysicalMemory {
        &self.memory
    }

    fn park(&self) -> &StdPark {
        &self.park
    }

    fn clock(&self) -> &StdClock {
        &self.clock
    }

    fn barrier(&self) -> &StdBarrier {
        &self.barrier
    }

    fn slots(&self) -> &StdSlots {
        &StdSlots
    }

    fn sections(&self) -> &Arc<Sections> {
        &self.sections
    }

    fn new_table(&self) -> Result<RadixTable, OutOfMemory> {
        RadixTable::new(Arc::clone(&self.sections))
    }
}
