//! `faultless` on real memory: the page faults of a Linux process, served by the engine through userfaultfd.
//!
//! ```text
//!  a load or a store ──► the kernel: nothing there ──► userfaultfd ──► handler thread ──► AddressSpace::fault
//!          ▲                                                                  │ page work: set the bit, look up
//!          └────────── woken ◄── UFFDIO_COPY, ZEROPAGE, WRITEPROTECT ◄── Table::install, which clears the bit
//! ```
//! A fault that needs I/O is put aside, and the handler goes on with the next; when the read has ended it resumes. The
//! engine's entries are in a table of its own (`table.rs`), which the kernel's page table follows; where a frame's bytes
//! are is in `frames.rs`.
//!
//! ```
//! # use faultless_linux::{OpenError, Region, RegionError};
//! # fn main() -> Result<(), RegionError> {
//! let mut region = match Region::anonymous(64 << 20) {
//!     Err(RegionError::Open(error)) => return Ok(eprintln!("skipped: {error}")),
//!     region => region?,
//! };
//! region[5] = 7;
//! let snapshot = region.snapshot()?;
//! region[5] = 8;
//! assert_eq!((snapshot[5], region[5], region[1 << 20]), (7, 8, 0));
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//! A handler waits for no I/O, but it does wait a moment for a snapshot under way, for a part that is being mapped over, and
//! for memory; all regions of its pager wait with it ([`Options::handlers`]).
//!
//! A signal handler may touch regions: calls of [`Region`], [`Pager`] and [`Serving`] block signals while they last. The
//! engine's own calls, [`Pager::engine`] and [`Serving::space`], do not; block signals around them whose handlers touch regions.
//! Neither the stacks of threads that make calls nor the global allocator's memory may be in a region.
//!
//! A child of fork(2) has neither handlers nor regions. Its calls return [`OpenError::Inherited`], dropping does nothing, and
//! an access to a region is SIGSEGV, until the child itself maps something there: do not use references into a region there.
//! It may call exec, or make a pager of its own. The engine's own calls ([`Pager::engine`], [`Serving::space`]) must not be made
//! in a child: another thread of the parent may have had their locks.
//!
//! The program may drop pages of a region by madvise(MADV_DONTNEED) itself: the next access to each is served as after
//! [`Region::discard`]. But a snapshot that shared such a page has lost it, and its accesses get SIGBUS
//! ([`FaultError::Lost`](faultless::FaultError::Lost)); `discard` keeps what snapshots need. A part that the program unmaps, or moves away by mremap, is SIGSEGV
//! or whatever it maps there; nothing hangs, but the region still protects and drops what is at its addresses, so map
//! nothing else there before the region is gone.
//!
//! A page that is mapped from a file is there twice, in the engine's cache and in the process. Memory is not given back to
//! the operating system before the pager ends. Nothing is evicted while it is mapped, and nothing swapped: when
//! [`Options::memory`] is used up, an access that needs more gets SIGBUS, and can be tried again ([`Region::retry`]).
#![cfg(target_os = "linux")]

pub mod access;
mod entries;
mod error;
mod frames;
#[cfg(feature = "vm-memory")]
mod guest;
mod handler;
mod host;
mod kernel;
mod pager;
mod place;
mod region;
mod table;
mod wake;

pub use error::{OpenError, RegionError};
pub use frames::Frames;
#[cfg(feature = "vm-memory")]
pub use guest::{GuestRegion, GuestRegionError};
pub use host::Linux;
pub use pager::{Options, Pager, ServeError, Serving};
pub use region::Region;
pub use table::{Stale, Table};
pub use wake::WakingPark;
