//! A machine, a space, a file, and the faults that bring its pages: what an embedder writes.
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
    // The host: 1,024 frames of memory and page tables, all in software. A kernel brings its own.
    let engine = Engine::new(Soft::new(1024)?, Limits::default())?;
    let space: AddressSpace<Soft, Faultless> = AddressSpace::new(&engine)?;

    // Anonymous memory reads as zeros; the first store brings a frame.
    let memory = space.map(MapRequest::anonymous(16 * PAGE_SIZE))?;
    println!("{memory}: {}", space.load_u64(memory)?);
    space.store_u64(memory, 42)?;
    println!("{memory}: {}, {} frames in use", space.load_u64(memory)?, engine.frame_usage().used);

    // A file's page has to be read: the fault comes back as a value that holds no lock.
    let file = File::open(&engine, Arc::new(FileStore::open("Cargo.toml")?))?;
    let text = space.map(MapRequest::file(&file, 0, file.length(), Protection::READ))?;
    match space.fault(text, Access::Read)? {
        Fault::Done => println!("{text}: in memory already"),
        Fault::Pending(pending) => {
            println!("{text}: being read, and nobody waits but who wants to");
            pending.wait()?;
        }
    }
    let mut start = [0; 11];
    space.read_bytes(text, &mut start)?;
    println!("{text}: {:?}", String::from_utf8_lossy(&start));

    // What is not mapped is a typed error.
    space.unmap(memory, 16 * PAGE_SIZE)?;
    println!("{}", space.load_u64(memory).err().map_or("?".into(), |error| error.to_string()));
    Ok(())
}
