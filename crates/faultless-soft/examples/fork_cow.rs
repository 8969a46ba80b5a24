//! Forks a space: both sides share every page until one of them writes to it.
//!
//! `cargo run -p faultless-soft --example fork_cow`

use faultless::address::PAGE_SIZE;
use faultless::design::Faultless;
use faultless::stats::Counter;
use faultless::{AddressSpace, Engine, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::new(Soft::new(1024)?, Limits::default())?;
    let parent: AddressSpace<Soft, Faultless> = AddressSpace::new(&engine)?;
    let memory = parent.map(MapRequest::anonymous(100 * PAGE_SIZE))?;
    for page in 0..100 {
        let at = memory.checked_add(page * PAGE_SIZE).ok_or("the address range ends here")?;
        parent.store_u64(at, page)?;
    }
    let before = engine.frame_usage().used;
    let child = parent.fork()?;
    println!("forked: {} frames before, {} after", before, engine.frame_usage().used);

    parent.store_u64(memory, 1000)?;
    println!("parent {}, child {}", parent.load_u64(memory)?, child.load_u64(memory)?);
    child.store_u64(memory, 2000)?;
    println!("parent {}, child {}", parent.load_u64(memory)?, child.load_u64(memory)?);

    let seen = engine.statistics();
    println!(
        "{} page copied, {} reused in place",
        seen.get(Counter::CowCopies),
        seen.get(Counter::CowReuses)
    );
    drop(child);
    println!("child gone: {} frames", engine.frame_usage().used);
    Ok(())
}
