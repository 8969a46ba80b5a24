//! Repeats one operation in one thread under one design, in exactly the same way at each run. `just design-price` counts the
//! instructions of `measured` under callgrind. Without callgrind the program prints the time of one operation.
//!
//! `cargo run --release -p faultless-lab --example design_price -- NAME [ROUNDS]`; without a name it runs all of them.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::{Faultless, LockingDesign};
use faultless::protection::{Access, Protection};
use faultless::{AddressSpace, Engine, Limits, MapRequest, Placement};
use faultless_lab::designs::{MmapLock, VmaLock};
use faultless_soft::Soft;
use std::error::Error;
use std::time::Instant;

type Failure = Box<dyn Error>;
type Run = fn(u64) -> Result<f64, Failure>;

const ALL: [(&str, Run); 6] = [
    ("protect-vma-lock", protect::<VmaLock>),
    ("protect-mmap-lock", protect::<MmapLock>),
    ("protect-faultless", protect::<Faultless>),
    ("map-touch-unmap-vma-lock", map_touch_unmap::<VmaLock>),
    ("map-touch-unmap-mmap-lock", map_touch_unmap::<MmapLock>),
    ("map-touch-unmap-faultless", map_touch_unmap::<Faultless>),
];

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next();
    let rounds = arguments.next().map_or(Ok(512), |rounds| rounds.parse())?;
    let is_meant = |known: &&(&str, Run)| name.as_deref().is_none_or(|name| name == known.0);
    let mut known = ALL.iter().filter(is_meant).peekable();
    known.peek().ok_or_else(|| format!("no such name: {}", name.as_deref().unwrap_or_default()))?;
    known.try_for_each(|(name, run)| {
        let nanoseconds = run(rounds)?;
        println!("{name} {rounds} rounds, {nanoseconds:.1} ns each");
        Ok(())
    })
}

/// Runs `each` `rounds` times, and returns the nanoseconds of one. callgrind counts inside this function.
#[inline(never)]
fn measured(rounds: u64, mut each: impl FnMut(u64) -> Result<(), Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    for round in 0..rounds {
        each(round)?;
    }
    Ok(start.elapsed().as_nanos() as f64 / rounds as f64)
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn space<D: LockingDesign>() -> Result<AddressSpace<Soft, D>, Failure> {
    Ok(AddressSpace::new(&Engine::new(Soft::new(512)?, Limits::default())?)?)
}

fn map<D: LockingDesign>(space: &AddressSpace<Soft, D>, page: u64, pages: u64) -> Result<VirtAddr, Failure> {
    Ok(space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(page))))?)
}

/// Takes or returns the rights of 16 pages with frames inside a mapping: one mapping becomes three, or three become one.
fn protect<D: LockingDesign>(rounds: u64) -> Result<f64, Failure> {
    let space = space::<D>()?;
    map(&space, 0, 256)?;
    (128..144).try_for_each(|page| space.fault_and_wait(at(page), Access::Write))?;
    measured(rounds, |round| {
        let write = if round % 2 == 0 { Protection::empty() } else { Protection::WRITE };
        Ok(space.protect(at(128), 16 * PAGE_SIZE, Protection::READ | write)?)
    })
}

/// Maps, touches and unmaps a page, as will-it-scale does. Another mapping keeps the leaf table.
fn map_touch_unmap<D: LockingDesign>(rounds: u64) -> Result<f64, Failure> {
    let space = space::<D>()?;
    space.fault_and_wait(map(&space, 8, 1)?, Access::Write)?;
    measured(rounds, |_| {
        space.fault_and_wait(map(&space, 0, 1)?, Access::Write)?;
        Ok(space.unmap(at(0), PAGE_SIZE)?)
    })
}
