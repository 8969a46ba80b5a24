//! Measures the cost of fsync of one page of a file that many spaces have mapped. Cases: one space shows the page, or
//! all do; and one space stores through its mapping, or all do. Each space has twenty mappings. Other threads have made
//! one access and nothing since, but an invalidation checks each of them. Prints the median and range of the rounds in
//! microseconds.
//!
//! `cargo run --release -p faultless-soft --example fsync_price -- [SPACES] [ROUNDS] [THREADS]`

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::{AddressSpace, Engine, File, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::error::Error;
use std::sync::{Arc, Barrier};
use std::time::Instant;

/// The mappings of a space.
const MAPPINGS: u64 = 20;

/// A store that takes every write and reads as zeros.
struct Sink;

impl Store for Sink {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(1024 * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        if let Bytes::Read(page) = transfer.bytes() {
            page.fill(0);
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}

fn number(argument: Option<String>, otherwise: u64) -> Result<u64, String> {
    let Some(argument) = argument else { return Ok(otherwise) };
    let number = argument.parse().ok().filter(|number| *number > 0);
    number.ok_or(format!("{argument} is not a number greater than 0"))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |otherwise| {
        number(arguments.next(), otherwise).unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(2);
        })
    };
    let (spaces, rounds, threads) = (next(16_000), next(21), next(256));
    println!("{spaces} spaces of {MAPPINGS} mappings, {rounds} rounds, {threads} other threads");
    let cases = [
        ("one shows the page", false, 0),
        ("all show the page", true, 0),
        ("all show it, one stores", true, 1),
        ("all show it, all store", true, spaces as usize),
    ];
    for (who, all_show, storing) in cases {
        let engine = Engine::new(Soft::new(4096)?, Limits::default())?;
        let (file, other) =
            (File::open_rw(&engine, Arc::new(Sink))?, File::open_rw(&engine, Arc::new(Sink))?);
        let rights = Protection::READ | Protection::WRITE;
        let mut kept = Vec::new();
        for number in 0..spaces {
            let space: AddressSpace<Soft, Faultless> = AddressSpace::new(&engine)?;
            let page = if all_show || number == spaces / 2 { 0 } else { 1 };
            let address = space.map(MapRequest::shared_file(&file, page * PAGE_SIZE, PAGE_SIZE, rights))?;
            for page in 1..MAPPINGS {
                // Every second page, so that the mappings are not merged.
                space.map(MapRequest::shared_file(&other, 2 * page * PAGE_SIZE, PAGE_SIZE, rights))?;
            }
            kept.push((space, address));
        }
        let start = kept[0].0.map(MapRequest::anonymous(PAGE_SIZE))?;
        kept[0].0.store_u64(start, 1)?;
        let (accessed, end) = (Barrier::new(threads as usize + 1), Barrier::new(threads as usize + 1));
        let idle = || {
            let loaded = kept[0].0.try_load_u64(start);
            accessed.wait();
            end.wait();
            loaded.map(|_| ())
        };
        std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
            (0..threads).for_each(|_| _ = scope.spawn(idle));
            accessed.wait();
            let measured = measure(&engine, &file, &kept, rounds, storing);
            end.wait();
            let (times, looks) = measured?;
            let (first, middle, last) = (times[0], times[times.len() / 2], times[times.len() - 1]);
            println!("{who}: {middle:.0} ({first:.0} to {last:.0}) µs, {looks} mappings visited");
            Ok(())
        })?;
    }
    Ok(())
}

/// Returns the times of the rounds, shortest first, and the number of mappings that one round visits.
fn measure(
    engine: &Arc<Engine<Soft>>,
    file: &File<Soft>,
    spaces: &[(AddressSpace<Soft, Faultless>, VirtAddr)],
    rounds: u64,
    storing: usize,
) -> Result<(Vec<f64>, u64), Box<dyn Error>> {
    let handle = file.handle();
    let (mut times, before) = (Vec::new(), engine.statistics());
    for round in 0..rounds {
        handle.write_at(0, &[round as u8])?;
        for (space, address) in &spaces[..storing] {
            space.store_u64(*address, round)?;
        }
        let start = Instant::now();
        handle.sync()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok((times, engine.statistics().since(&before).get(Counter::RmapLooks) / rounds))
}
