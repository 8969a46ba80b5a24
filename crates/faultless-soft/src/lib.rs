//! A software machine for [`faultless`]: page tables, physical memory and processors made of atomic operations. It is
//! for emulators, tests and the laboratory.
//!
//! ```text
//!  Cpu::store_u64 ──► access section { walk RadixTable ─► set accessed, dirty ─► word in PhysicalMemory }
//!                          │ page absent, or access not allowed
//!                          ▼
//!                     fault_and_wait ─► again
//! ```
//! A translation lives as long as the access section in which it was found: no translation cache outlives it. So
//! [`invalidate`](faultless::host::PageTable::invalidate) only waits for the end of all older sections.
//! [`Soft::with_caches`] makes a machine for tests whose processors keep translations, as hardware does.

mod access;
#[cfg(test)]
mod alone;
mod arena;
mod free_list;
mod memory;
mod mmu;
mod scarcity;
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
    /// A function that is called at the end of each wait. Immutable.
    on_wait: Option<OnWait>,
}

/// A function that is called at the end of a wait, in the thread that has waited. Its arguments are the counter of the
/// wait, and the wait's begin and end in nanoseconds of the machine's clock. [`StdHost::waited`] states what the function
/// may do.
pub type OnWait = fn(Counter, u64, u64);

// A mapping's memory, without its places in the tree. The size of folios is checked in `faultless::frame`.
#[cfg(not(loom))]
const _: () = assert!(size_of::<faultless::vma::Vma<Soft, faultless::design::Faultless>>() <= 128);

impl Soft {
    /// Makes a machine with `frames` frames of memory.
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

    /// Makes the machine call `on_wait` at the end of each wait, in the thread that has waited. Use it to trace a
    /// machine.
    #[must_use]
    pub fn with_trace(self, on_wait: OnWait) -> Self {
        Self { on_wait: Some(on_wait), ..self }
    }

    /// Makes the machine call `pause` in the middle of each copy of bytes into or out of a frame, by a processor or by the engine for a
    /// file's handle. Use it in tests: if `pause` sleeps from time to time, a call that does not wait for a copy under way is found
    /// out soon. The thread is in an access and may hold locks of the engine, so `pause` must not call the engine.
    #[must_use]
    pub fn with_pauses(self, pause: fn()) -> Self {
        Self { memory: self.memory.paused_by(pause), ..self }
    }

    /// Makes a machine whose processors have a TLB and a cache of upper table entries, as hardware has. Use it in
    /// tests: it panics if a frame or a leaf table is freed before its translations were invalidated.
    ///
    /// A translation stays in the caches after the access, until it is invalidated. The first 16 threads have their own
    /// caches; a later thread shares the caches of an earlier one.
    ///
    /// Without debug assertions the machine is the same as that of [`Soft::new`], since the checks would slow every
    /// access.
    ///
    /// # Errors
    /// [`MemoryError`].
    ///
    /// # Panics
    /// Not here, but in a later call that frees too early. The message begins with "invariant 3" or "invariant 15".
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

// SAFETY: each field is returned as it is and does not move; each keeps its own contract.
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
