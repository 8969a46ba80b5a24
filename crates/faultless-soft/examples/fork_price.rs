//! Compares the cost of fork of a space with much resident memory, and of the first writes after it: with shared leaf
//! tables, and with every entry copied. The two run in turns. Prints medians in microseconds.
//!
//! `cargo run --release -p faultless-soft --example fork_price -- [MIB] [ROUNDS]`

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::stats::Counter;
use faultless::{AddressSpace, Engine, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

/// The pages of a leaf table.
const TABLE: u64 = 512;

struct Side {
    name: &'static str,
    engine: Arc<Engine<Soft>>,
    parent: AddressSpace<Soft, Faultless>,
    memory: VirtAddr,
    pages: u64,
    times: Vec<Times>,
}

/// The times of one round, in microseconds.
struct Times {
    fork: f64,
    sparse: f64,
    dense: f64,
    exit: f64,
}

fn timed<R>(work: impl FnOnce() -> R) -> (f64, R) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64() * 1e6, result)
}

impl Side {
    fn new(name: &'static str, pages: u64, limits: Limits) -> Result<Self, Box<dyn Error>> {
        // While a child lives, each page that its parent writes takes a frame.
        let engine = Engine::new(Soft::new(pages + pages / 4 + 1024)?, limits)?;
        let parent = AddressSpace::new(&engine)?;
        let memory = parent.map(MapRequest::anonymous(pages * PAGE_SIZE))?;
        Ok(Self { name, engine, parent, memory, pages, times: Vec::new() })
    }

    fn write(&self, pages: impl Iterator<Item = u64>) -> Result<(), Box<dyn Error>> {
        for page in pages {
            let at = self.memory.checked_add(page * PAGE_SIZE).ok_or("the addresses end here")?;
            self.parent.store_u64(at, page)?;
        }
        Ok(())
    }

    fn round(&mut self) -> Result<(), Box<dyn Error>> {
        // All pages are resident and belong to the parent alone.
        self.write(0..self.pages)?;
        let (fork, child) = timed(|| self.parent.fork());
        let child = child?;
        let (sparse, written) = timed(|| self.write((0..self.pages).step_by(TABLE as usize)));
        written?;
        // An eighth of the pages, one page after the other.
        let (dense, written) = timed(|| self.write(0..self.pages / 8));
        written?;
        let (exit, ()) = timed(|| drop(child));
        self.times.push(Times { fork, sparse, dense, exit });
        Ok(())
    }

    fn median(&self, of: impl Fn(&Times) -> f64) -> f64 {
        let mut times: Vec<f64> = self.times.iter().map(of).collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or_default()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |or: u64| arguments.next().map_or(Ok(or), |text| text.parse());
    let (mib, rounds) = (number(1024)?, number(7)?);
    let pages = mib * (1 << 20) / PAGE_SIZE;
    let copied = Limits { shared_entries: u64::MAX, ..Limits::default() };
    let mut sides = [Side::new("shared", pages, Limits::default())?, Side::new("copied", pages, copied)?];
    for _ in 0..rounds {
        sides.iter_mut().try_for_each(Side::round)?;
    }
    println!("{mib} MiB resident, {rounds} rounds");
    println!("tables   fork    one write a table    writes to an eighth    all three    child's end");
    for side in &sides {
        let all = side.median(|times| times.fork + times.sparse + times.dense);
        println!(
            "{} {:>7.0} {:>16.0} {:>22.0} {:>14.0} {:>12.0}",
            side.name,
            side.median(|times| times.fork),
            side.median(|times| times.sparse),
            side.median(|times| times.dense),
            all,
            side.median(|times| times.exit),
        );
        let seen = side.engine.statistics();
        println!(
            "       {} tables shared, {} copied; {} pages copied, {} reused",
            seen.get(Counter::TablesShared),
            seen.get(Counter::TablesCopied),
            seen.get(Counter::CowCopies),
            seen.get(Counter::CowReuses)
        );
    }
    let ratio = sides[1].median(|times| times.fork) / sides[0].median(|times| times.fork);
    println!("fork: {ratio:.1} times as fast with shared tables");
    Ok(())
}
