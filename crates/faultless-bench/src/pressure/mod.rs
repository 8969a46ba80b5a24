//! Memory pressure: swap, reclaim, a mapped file that is larger than the page cache, the end of a process.

mod exit;
mod files;
mod reclaim;
mod swap;

pub use exit::EXIT;
pub use files::FILES;
pub use reclaim::RECLAIM;
pub use swap::SWAP;

use faultless::AddressSpace;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless_lab::trouble::Trouble;
use faultless_soft::Soft;
use std::error::Error;

type Engine = faultless::Engine<Soft>;
type Space = AddressSpace<Soft, Faultless>;

/// Returns the address of a page, counted from `at`.
fn page_at(at: VirtAddr, page: u64) -> VirtAddr {
    VirtAddr::new(at.get() + page * PAGE_SIZE)
}

#[cold]
fn wrong(error: impl Error) -> Trouble {
    Trouble::Wrong(error.to_string())
}

#[cold]
fn unusable(error: impl Error) -> Trouble {
    Trouble::Input(error.to_string())
}
