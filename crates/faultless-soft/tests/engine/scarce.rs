//! Calls that need a frame while memory is scarce: they make room first.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::Host;
use faultless::protection::Access;
use faultless::store::FileStore;
use faultless::swap::CompressedMemory;
use faultless::{AddressSpace, Engine, File, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use std::io::Write;
use std::sync::Arc;

/// The first page of a space.
const FIRST: VirtAddr = VirtAddr::new(1024 * PAGE_SIZE);

/// Makes an engine with swap that has to make room for each frame, but for its first.
fn engine() -> Arc<Engine<Soft>> {
    let engine = Engine::new(Soft::with_caches(64).unwrap(), Limits::default()).unwrap();
    engine.add_swap(Arc::new(CompressedMemory::new(64, 64 * PAGE_SIZE as usize).unwrap())).unwrap();
    engine.host().frames().make_scarce(2, 1);
    engine
}

/// Makes a space with a page of anonymous memory, in which its number is stored.
fn space(engine: &Arc<Engine<Soft>>) -> AddressSpace<Soft, Faultless> {
    let space = AddressSpace::new(engine).unwrap();
    space.map(MapRequest::anonymous(2 * PAGE_SIZE).at(Placement::Fixed(FIRST))).unwrap();
    space.store_u64(FIRST, 1).unwrap();
    space
}

#[test]
fn fork_beside_a_pin_makes_room_for_the_copy() {
    let engine = engine();
    let space = space(&engine);
    let pin = space.pin(FIRST, Access::Read).unwrap();
    let child = space.fork().unwrap();
    space.store_u64(FIRST, 2).unwrap();
    assert_eq!(child.load_u64(FIRST).unwrap(), 1);
    drop(pin);
}

#[test]
fn a_write_to_a_file_in_memory_makes_room_for_its_page() {
    let engine = engine();
    let space = space(&engine);
    let file = File::in_memory(&engine, PAGE_SIZE).unwrap();
    assert_eq!(file.handle().write_at(0, &[1]).unwrap(), 1);
    assert_eq!(space.load_u64(FIRST).unwrap(), 1);
}

/// Room for the page at one end of the hole is not made at the cost of the other.
#[test]
fn a_hole_between_two_partial_pages_finds_both() {
    let engine = engine();
    let mut real = tempfile::tempfile().unwrap();
    real.write_all(&[7; 2 * PAGE_SIZE as usize]).unwrap();
    let store = FileStore::from_file(real).unwrap();
    let file = File::open_rw(&engine, Arc::new(store)).unwrap();
    file.handle().punch_hole(PAGE_SIZE - 1, 2).unwrap();
    let mut bytes = [1; 4];
    file.handle().read_at(PAGE_SIZE - 2, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 0, 0, 7]);
}
