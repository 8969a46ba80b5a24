//! Runs the `faultless` engine on real memory: it serves the page faults of a Linux process through userfaultfd.
//!
//! ```text
//!  a load or a store ──► the kernel: nothing there ──► userfaultfd ──► handler thread ──► AddressSpace::fault
//!          ▲                                                                  │ page work: set the bit, look up
//!          └────────── woken ◄── UFFDIO_COPY, ZEROPAGE, WRITEPROTECT ◄── Table::install, which clears the bit
//! ```
//! If a fault needs I/O, the handler puts it aside and serves the next one. It resumes the fault when the read has
//! ended. The engine's entries are in a table of its own (`table.rs`), and the kernel's page table follows that table.
//! `frames.rs` records the place of each frame's bytes.
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
//! A handler never waits for I/O. It does wait for a short time for a snapshot that is under way, for a part that is
//! being mapped over, and for memory. While it waits, all regions of its pager wait ([`Options::handlers`]).
//!
//! A signal handler may touch regions: calls of [`Region`], [`Pager`] and [`Serving`] block signals while they last.
//! The engine's own calls, through [`Pager::engine`] and [`Serving::space`], do not. If the handler of a signal touches
//! regions, block that signal around them. The stacks of threads that make calls must not be in a region, and neither
//! must the memory of the global allocator.
//!
//! A child of fork(2) has neither handlers nor regions. Its calls return [`OpenError::Inherited`], and dropping does
//! nothing. An access to a region gets SIGSEGV, until the child itself maps something at the address: do not use
//! references into a region there. The child may call exec, or make a pager of its own. It must not make the engine's
//! own calls ([`Pager::engine`], [`Serving::space`]): another thread of the parent may have held their locks.
//!
//! The program may itself drop pages of a region by madvise(MADV_DONTNEED). The next access to each page is then served
//! as after [`Region::discard`]. But a snapshot that shared such a page has lost it, and its accesses get SIGBUS
//! ([`FaultError::Lost`](faultless::FaultError::Lost)); `discard` keeps the pages that snapshots need. The program may
//! also unmap a part, or move it away by mremap. An access there gets SIGSEGV, or finds the program's new mapping, and
//! no thread hangs. But the region still protects and drops pages at its addresses, so map nothing else there while the
//! region lives.
//!
//! A page that is mapped from a file is in memory twice: in the engine's cache and in the process. The pager keeps its
//! memory until it ends. Nothing is swapped. When [`Options::memory`] is used up, and no page of a file can be reclaimed,
//! an access that needs more gets SIGBUS; it can be tried again ([`Region::retry`]).
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
