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
//! [`Soft::with_caches`] makes a machine for tests whose processors keep translations, as hardware does.

mod access;
#[cfg(test)]
mod alone;
mod arena;
mod free_list;
mod memory;
mod mmu;
mod table;

pub use access::{AccessError, Cpu};
pub use memory::{MAX_FRAMES, MemoryError, PhysicalMemory};
pub use mmu::PageFault;
pub use table::{Leaf, RadixTable, Stale, Tag};

use faultless::host::{OutOfMemory, StdHost, StdPark, StdServices};
use faultless::stats::Counter;
use faultless::sync::Sections;
use std::sync::Arc;

/// A machine with [`RadixTable`]s and [`PhysicalMemory`], whose processors are the threads of this process.
pub struct Soft {
    memory: PhysicalMemory,
    /// The processors' caches of page tables, on a machine made by [`Soft::with_caches`]. Immutable.
    #[cfg(debug_assertions)]
    processors: Option<Arc<table::Processors>>,
    services: StdServices,
    /// A function that is told of each wait. Immutable.
    on_wait: Option<OnWait>,
}

/// A function that is told of a wait of the calling thread: what it waited for, and from when to when, by the machine's clock in
/// nanoseconds. [`StdHost::waited`] says what the function may do.
pub type OnWait = fn(Counter, u64, u64);

// The memory of a mapping, without its places in the tree. For folios see `faultless::frame`.
#[cfg(not(loom))]
const _: () = assert!(size_of::<faultless::vma::Vma<Soft, faultless::design::Faultless>>() <= 128);

impl Soft {
    /// A machine with `frames` frames of memory.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn new(frames: u64) -> Result<Self, MemoryError> {
        Ok(Self {
            memory: PhysicalMemory::new(frames)?,
            #[cfg(debug_assertions)]
            processors: None,
            services: StdServices::default(),
            on_wait: None,
        })
    }

    /// Makes the machine call `on_wait` at the end of each wait, in the thread that has waited. A trace of a machine is made so.
    #[must_use]
    pub fn with_trace(self, on_wait: OnWait) -> Self {
        Self { on_wait: Some(on_wait), ..self }
    }

    /// As [`Soft::new`], with processors that have a TLB and a cache of upper table entries, as hardware has. Use it in
    /// tests: a frame or a leaf table that is freed before its translations were invalidated ends the test.
    ///
    /// Translations stay in the caches when the access has ended, until they are invalidated. The first 16 threads have caches of
    /// their own; a thread beyond these shares the caches of an earlier one.
    ///
    /// Without debug assertions the machine is as [`Soft::new`] makes it: the checks would slow every access.
    ///
    /// # Errors
    /// [`MemoryError`].
    ///
    /// # Panics
    /// Later, in whichever call frees too early: the message begins with "invariant 3" or "invariant 15".
    pub fn with_caches(frames: u64) -> Result<Self, MemoryError> {
        let soft = Self::new(frames)?;
        #[cfg(debug_assertions)]
        let soft = {
            let processors = Some(table::Processors::new());
            Self { memory: soft.memory.cached_by(processors.clone()), processors, ..soft }
        };
        Ok(soft)
    }
}

// SAFETY: the fields are given out as they are, and stay; each keeps its own contract.
unsafe impl StdHost for Soft {
    type Table = RadixTable;
    type Frames = PhysicalMemory;
    type Park = StdPark;

    fn frames(&self) -> &PhysicalMemory {
        &self.memory
    }

    fn services(&self) -> &StdServices {
        &self.services
    }

    fn new_table(&self, sections: &Arc<Sections>) -> Result<RadixTable, OutOfMemory> {
        let table = RadixTable::new(Arc::clone(sections));
        #[cfg(debug_assertions)]
        let table = table.map(|table| table.cached_by(self.processors.clone()));
        table
    }

    fn invalidate_all(&self, sections: &Sections, batch: &mut [Stale], wait: impl FnMut(u32)) {
        Stale::wait_for_all(sections, batch, wait);
        #[cfg(debug_assertions)]
        if let Some(processors) = self.processors.as_ref().filter(|_| !faultless::mutant!("no_invalidate")) {
            batch.iter().for_each(|stale| processors.forget(*stale));
        }
    }

    #[inline]
    fn waited(&self, counter: Counter, from_ns: u64, to_ns: u64) {
        if let Some(on_wait) = self.on_wait {
            on_wait(counter, from_ns, to_ns);
        }
    }
}
