//! Measures the cost of a sync of dirty pages, and of reading pages ahead, for a store that takes runs of pages or one
//! page at a time. Prints the number of transfers. `scripts/instructions.sh` does not run it; count its instructions
//! with `valgrind --tool=callgrind --toggle-collect='*measured*'`.
//!
//! `cargo run --release -p faultless-soft --example run_price -- sync|ahead [PAGES A TRANSFER] [MIB]`

use faultless::address::PAGE_SIZE;
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::store::{MAX_PAGES, Store, StoreError, Transfer};
use faultless::{AddressSpace, Advice, Engine, File, Limits, MapRequest};
use faultless_soft::Soft;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A store that takes every write and leaves the buffer of a read unchanged, so that the bytes cost nothing.
struct Sink {
    length: u64,
    max_pages: usize,
    transfers: AtomicU64,
}

impl Store for Sink {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.length)
    }

    fn submit(&self, transfer: Transfer) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
        let bytes = transfer.pages() * PAGE_SIZE as usize;
        transfer.complete(Ok(bytes));
    }

    fn max_pages(&self) -> usize {
        self.max_pages
    }

    fn set_length(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Runs the part that is counted.
#[inline(never)]
fn measured(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    work()
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let max_pages = arguments.next().map_or(Ok(MAX_PAGES), |pages| pages.parse())?;
    let pages = arguments.next().map_or(Ok(64), |mib| mib.parse::<u64>())? * (1 << 20) / PAGE_SIZE;
    let engine = Engine::new(Soft::new(pages + 4096)?, Limits::default())?;
    let sink = Arc::new(Sink { length: pages * PAGE_SIZE, max_pages, transfers: AtomicU64::new(0) });
    let file = File::open_rw(&engine, sink.clone())?;
    let space = AddressSpace::<Soft, Faultless>::new(&engine)?;
    let rights = Protection::READ | Protection::WRITE;
    let at = space.map(MapRequest::shared_file(&file, 0, pages * PAGE_SIZE, rights))?;
    if what == "sync" {
        space.advise(at, pages * PAGE_SIZE, Advice::PopulateWrite)?;
    }
    sink.transfers.store(0, Ordering::Relaxed);
    let start = Instant::now();
    measured(|| match &*what {
        "sync" => Ok(file.sync()?),
        "ahead" => Ok(space.advise(at, pages * PAGE_SIZE, Advice::WillNeed)?),
        other => Err(format!("{other} is not known: give sync or ahead").into()),
    })?;
    let took = start.elapsed();
    let transfers = sink.transfers.load(Ordering::Relaxed);
    println!("{what} of {pages} pages: {transfers} transfers, {} us", took.as_micros());
    Ok(())
}
