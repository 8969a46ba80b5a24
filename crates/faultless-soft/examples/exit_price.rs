//! Measures the end of a space with much anonymous memory while its devices are stalled: a thread of the space waits for a read of
//! a file, and pages of the space are being written to swap. Prints how long the call takes, after which the anonymous memory is free.
//!
//! `cargo run --release -p faultless-soft --example exit_price -- [MIB] [ROUNDS]`

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::FaultError;
use faultless::protection::{Access, Protection};
use faultless::store::{FileStore, GatedStore};
use faultless::swap::StoreDevice;
use faultless::{AddressSpace, Advice, Engine, File, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

type Failure = Box<dyn Error + Send + Sync>;

/// The pages that are being written to swap when the space ends.
const WRITTEN: u64 = 256;

/// Makes a store of `pages` pages, all of whose transfers wait.
fn stalled(pages: u64) -> Result<GatedStore<FileStore>, Failure> {
    let file = tempfile::tempfile()?;
    file.set_len(pages * PAGE_SIZE)?;
    Ok(GatedStore::new(FileStore::from_file(file)?))
}

fn page_of(memory: VirtAddr, page: u64) -> Result<VirtAddr, Failure> {
    Ok(memory.checked_add(page * PAGE_SIZE).ok_or("the addresses end here")?)
}

/// Ends a space of `pages` pages. Returns the milliseconds that it takes until its memory is free.
fn round(pages: u64) -> Result<f64, Failure> {
    let engine = Engine::new(Soft::new(pages + 1024)?, Limits::default())?;
    engine.add_swap(Arc::new(StoreDevice::new(stalled(2 * WRITTEN)?)?))?;
    let space: AddressSpace<Soft, Faultless> = AddressSpace::new(&engine)?;
    let memory = space.map(MapRequest::anonymous(pages * PAGE_SIZE))?;
    for page in 0..pages {
        space.store_u64(page_of(memory, page)?, page + 1)?;
    }
    let file = File::open(&engine, Arc::new(stalled(16)?))?;
    let of_file = space.map(MapRequest::file(&file, 0, 16 * PAGE_SIZE, Protection::READ))?;
    // The first look takes the accessed bits. The pages of the second one are under way until the process ends.
    for _ in 0..2 {
        space.advise(memory, WRITTEN * PAGE_SIZE, Advice::PageOut)?;
    }
    thread::scope(|threads| {
        let waits = threads.spawn(|| space.fault_and_wait(of_file, Access::Read));
        while engine.statistics().get(faultless::stats::Counter::MajorFaults) == 0 {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        measured(|| space.exit());
        let took = start.elapsed().as_secs_f64() * 1e3;
        // Those of pages under way, of the file, and of zeros.
        let used = engine.frame_usage().used;
        if used > WRITTEN + 17 {
            return Err(format!("{used} frames are in use after exit").into());
        }
        match waits.join() {
            Ok(Err(FaultError::Exited { .. })) => Ok(took),
            other => Err(format!("the thread that waits found {other:?}").into()),
        }
    })
}

/// callgrind counts inside this function (`--toggle-collect`).
#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |or: u64| arguments.next().map_or(Ok(or), |text| text.parse());
    let (mib, rounds) = (number(1024)?, number(7)?);
    let pages = mib * (1 << 20) / PAGE_SIZE;
    let mut times = (0..rounds).map(|_| round(pages)).collect::<Result<Vec<_>, _>>()?;
    times.sort_by(f64::total_cmp);
    let of = |index: usize| times.get(index).copied().unwrap_or_default();
    let (fastest, median, slowest) = (of(0), of(times.len() / 2), of(times.len().saturating_sub(1)));
    println!("{mib} MiB: {fastest:.2} ms, median {median:.2}, slowest {slowest:.2}");
    println!("{:.1} ns a page in the median", median * 1e6 / pages as f64);
    Ok(())
}
