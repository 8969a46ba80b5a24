//! Makes a machine, a space and a file, and serves the faults on their pages: the code that an embedder writes.
//!
//! `cargo run -p faultless-soft --example first_fault`

use faultless::address::PAGE_SIZE;
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::store::FileStore;
use faultless::{AddressSpace, Engine, Fault, File, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The host: 1,024 frames of memory and page tables, all in software. A kernel uses its own.
    let engine = Engine::new(Soft::new(1024)?, Limits::default())?;
    let space: AddressSpace<Soft, Faultless> = AddressSpace::new(&engine)?;

    // Anonymous memory reads as zeros. The first store allocates a frame.
    let memory = space.map(MapRequest::anonymous(16 * PAGE_SIZE))?;
    println!("{memory}: {}", space.load_u64(memory)?);
    space.store_u64(memory, 42)?;
    println!("{memory}: {}, {} frames in use", space.load_u64(memory)?, engine.frame_usage().used);

    // A file's page must be read, so the fault is returned as a value that holds no lock.
    let file = File::open(&engine, Arc::new(FileStore::open("Cargo.toml")?))?;
    let text = space.map(MapRequest::file(&file, 0, file.length(), Protection::READ))?;
    match space.fault(text, Access::Read)? {
        Fault::Done => println!("{text}: in memory already"),
        Fault::Pending(pending) => {
            println!("{text}: being read; only a thread that calls wait() waits");
            pending.wait()?;
        }
    }
    let mut start = [0; 11];
    space.read_bytes(text, &mut start)?;
    println!("{text}: {:?}", String::from_utf8_lossy(&start));

    // An access to unmapped memory is a typed error.
    space.unmap(memory, 16 * PAGE_SIZE)?;
    println!("{}", space.load_u64(memory).err().map_or("?".into(), |error| error.to_string()));
    Ok(())
}
