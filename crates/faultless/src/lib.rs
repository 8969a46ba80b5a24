//! A virtual-memory subsystem in which a page fault waits for no lock it does not need, and no other thread waits for a
//! page fault's I/O: address spaces with mmap and its kin, copy-on-write fork, files with a page cache and writeback.
//! It runs on any machine for which an embedder supplies a *host*, which is page tables, physical memory and a way to
//! sleep: a software machine (`faultless-soft`), a Linux process over userfaultfd (`faultless-linux`), an emulator, a
//! kernel.
//!
//! ```
//! use faultless::address::PAGE_SIZE;
//! use faultless::protection::Access;
//! use faultless::{AddressSpace, Engine, Fault, Limits, MapRequest};
//! use faultless_soft::{Cpu, Soft};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A host: 1,024 frames of memory, and page tables, in software.
//! let engine = Engine::new(Soft::new(1024)?, Limits::default())?;
//! let space: AddressSpace<Soft> = AddressSpace::new(&engine)?;
//!
//! // Anonymous memory reads as zeros. Its mapping goes with the value.
//! let memory = space.map_owned(MapRequest::anonymous(16 * PAGE_SIZE))?;
//! space.store_u64(memory.address(), 42)?;
//!
//! // A fault as a host's handler serves it: one that needs I/O comes back as a value that holds no lock.
//! match space.fault(memory.address(), Access::Write)? {
//!     Fault::Done => {}
//!     Fault::Pending(pending) => drop(pending.wait()?),
//! }
//!
//! // The child has what the parent had at one instant, and its own from then on.
//! let child = space.fork()?;
//! child.store_u64(memory.address(), 7)?;
//! assert_eq!(space.load_u64(memory.address())?, 42);
//! # Ok(())
//! # }
//! ```
//!
//! * [`internals`]: how it works, and a fault's whole way through the code.
//! * [`host`]: bring your own machine; checks that it is right are in `host::conformance`.
//! * [`design`]: the locking designs that this one argues with, as plug-ins of the same engine.
#![cfg_attr(not(feature = "std"), no_std)]
extern crate alloc;

#[macro_use]
mod mutants;

pub mod address;
mod background;
pub mod design;
mod engine;
pub mod errno;
#[doc(hidden)]
pub mod frame;
pub mod host;
pub mod internals;
mod limit;
mod page_cache;
pub mod protection;
mod reclaim;
mod space;
pub mod stats;
pub mod store;
pub mod swap;
#[doc(hidden)]
pub mod sync;
mod tables;
#[doc(hidden)]
pub mod vma;

pub use background::BackgroundError;
#[cfg(all(feature = "std", not(loom)))]
pub use background::BackgroundThread;
pub use engine::{DirtyLimits, Engine, Limits, LimitsError, Reserve};
pub use limit::{
    Candidate, Largest, LimitConfig, MemoryLimit, MemoryLimitError, MemoryUsage, VictimBias, VictimPolicy,
    VictimPolicyError,
};
#[cfg(mutants)]
#[doc(hidden)]
pub use mutants::is_planted;
pub use page_cache::{File, FileError, FileHandle, FileRef, FileRights, FolioLock, Pin};
pub use reclaim::ReclaimOrder;
#[cfg(any(test, feature = "audit"))]
pub use space::AuditError;
pub use space::fault::{self, Fault, FaultError, PendingFault, Signal};
pub use space::{
    AddressSpace, Advice, AdviseError, BrkError, DiscardError, ForeignFrames, ForkError, IsolateCost,
    LimitError, LockAll, LockError, LockMode, MapError, MapRequest, Mapped, MappingInfo, MappingUsage,
    MoveCause, MoveError, MoveRequest, PinnedPage, Placement, ProtectError, RemapError, RemapFlags,
    RemapRequest, RemoteAdviseError, RemoteError, ResidentError, SealError, Source, SpaceLimits, SpaceUsage,
    SyncError, SyncFlags, UnknownAdvice, UnmapError, UnshareCost, UnshareError,
};
pub use vma::MappingFlags;
