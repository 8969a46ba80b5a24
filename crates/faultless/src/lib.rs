//! tour to come
#![cfg_attr(not(feature = "std"), no_std)]
extern crate alloc;

pub mod address;
pub mod frame;
pub mod host;
pub mod protection;
pub mod stats;
pub mod store;
pub mod sync;
pub mod vma;

#[cfg(all(mutant, not(debug_assertions)))]
compile_error!("a mutant is a planted bug: it is built with debug assertions only, never in a release");
