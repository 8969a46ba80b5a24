//! tour to come
#![cfg_attr(not(feature = "std"), no_std)]
extern crate alloc;

pub mod address;
pub mod design;
mod engine;
pub mod frame;
pub mod host;
mod page_cache;
pub mod protection;
mod space;
pub mod stats;
pub mod store;
pub mod sync;
pub mod vma;

pub use engine::{Engine, Limits};
pub use page_cache::{File, Pin};
pub use space::fault::{self, Fault, FaultError, PendingFault};
pub use space::{
    AddressSpace, DiscardError, ForkError, MapError, MapRequest, MappingInfo, PinnedPage, Placement, ProtectError,
    Source, UnmapError,
};

#[cfg(all(mutant, not(debug_assertions)))]
compile_error!("a mutant is a planted bug: it is built with debug assertions only, never in a release");
