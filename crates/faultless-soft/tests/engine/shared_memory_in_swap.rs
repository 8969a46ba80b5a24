//! Memory that has no store (shared anonymous memory, files like memfd) and is larger than the machine: its pages go to slots, and come
//! back for mappings and handles with the bytes that were stored.

use crate::devices::{compressed, file, file_store};
use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::{FaultError, Signal};
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::{Direction, FailingStore, Failure, InjectedError};
use faultless::swap::{CompressedMemory, StoreDevice, SwapDevice};
use faultless::{
    AddressSpace, Engine, File, FileError, FileRef, Limits, MapRequest, Placement, RemapRequest,
};
use faultless_soft::{Cpu, Soft};
use std::collections::HashMap;
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

/// The frames of the machine, and the pages of a file: eight times as many.
const FRAMES: u64 = 64;
const PAGES: u64 = 512;

fn machine(device: Arc<dyn SwapDevice>) -> (Arc<Engine<Soft>>, FileRef<Soft>) {
    let engine = Engine::new(Soft::with_caches(FRAMES).unwrap(), Limits::default()).unwrap();
    engine.add_swap(device).unwrap();
    let file = File::in_memory(&engine, PAGES * PAGE_SIZE).unwrap();
    (engine, file)
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

/// Makes a space that maps the file shared, to read and to write.
fn space(engine: &Arc<Engine<Soft>>, file: &FileRef<Soft>) -> Space {
    let space = Space::new(engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let request = MapRequest::shared_file(file, 0, PAGES * PAGE_SIZE, rights);
    space.map(request.at(Placement::Fixed(at(0)))).unwrap();
    space
}

/// Puts all pages into slots.
fn swap_out(engine: &Arc<Engine<Soft>>) {
    for _ in 0..2000 {
        if engine.frame_usage().used == 1 {
            return;
        }
        engine.reclaim_for_tests(PAGES);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{} frames are still in use: {:?}", engine.frame_usage().used, engine.statistics());
}

/// Checks that nothing is left: no frame but the page of zeros, and no slot. Transfers may still be under way.
fn end(engine: &Engine<Soft>) {
    for _ in 0..2_000 {
        engine.flush();
        if engine.frame_usage().used > 1 || engine.swap_usage().slots != 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

fn read(file: &FileRef<Soft>, page: u64) -> Result<u64, FileError> {
    let mut bytes = [0; 8];
    assert_eq!(file.handle().read_at(page * PAGE_SIZE, &mut bytes)?, 8);
    Ok(u64::from_ne_bytes(bytes))
}

fn write(file: &FileRef<Soft>, page: u64, value: u64) -> Result<usize, FileError> {
    file.handle().write_at(page * PAGE_SIZE, &value.to_ne_bytes())
}

/// Stores, loads, reads and writes at random, by two spaces and a handle, and compares with a model of the file.
#[test]
fn a_file_larger_than_memory_keeps_its_bytes() {
    for device in [compressed(), file()] {
        let (engine, file) = machine(device);
        let spaces = [space(&engine, &file), space(&engine, &file)];
        let (mut model, mut numbers) = (HashMap::new(), Rng::with_seed(7));
        for _ in 0..20_000 {
            let (page, value) = (numbers.u64(..PAGES), numbers.u64(1..));
            let expected = model.get(&page).copied().unwrap_or(0);
            let space = &spaces[numbers.usize(..2)];
            match numbers.u64(..4) {
                0 => {
                    space.store_u64(at(page), value).unwrap();
                    model.insert(page, value);
                }
                1 => {
                    assert_eq!(write(&file, page, value), Ok(8));
                    model.insert(page, value);
                }
                2 => assert_eq!(read(&file, page), Ok(expected), "page {page}"),
                _ => assert_eq!(space.load_u64(at(page)).unwrap(), expected, "page {page}"),
            }
        }
        assert!(engine.swap_usage().slots > 0, "the test shows something only if pages are swapped");
        spaces.iter().for_each(|space| space.audit().unwrap());
        drop(spaces);
        for (page, value) in &model {
            assert_eq!(read(&file, *page), Ok(*value), "page {page}");
        }
        drop(file);
        end(&engine);
    }
}

/// A file that is never mapped is swapped too.
#[test]
fn a_file_that_handles_alone_use_is_swapped() {
    let (engine, file) = machine(compressed());
    (0..PAGES).for_each(|page| assert_eq!(write(&file, page, page + 1), Ok(8)));
    (0..PAGES).for_each(|page| assert_eq!(read(&file, page), Ok(page + 1)));
    swap_out(&engine);
    drop(file);
    end(&engine);
}

/// Memory that a child shares: each sees what the other stores, wherever the pages are.
#[test]
fn shared_anonymous_memory_is_larger_than_the_machine() {
    let (engine, file) = machine(file());
    drop(file);
    let space = Space::new(&engine).unwrap();
    space.map(MapRequest::shared_anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let child = space.fork().unwrap();
    (0..PAGES).for_each(|page| assert_eq!(child.load_u64(at(page)), Ok(page + 1)));
    (0..PAGES).rev().for_each(|page| child.store_u64(at(page), page + 2).unwrap());
    (0..PAGES).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 2)));
    space.remap(RemapRequest::to(at(0), PAGES * PAGE_SIZE, at(2 * PAGES))).unwrap();
    (0..PAGES).for_each(|page| assert_eq!(space.load_u64(at(2 * PAGES + page)), Ok(page + 2)));
    space.unmap(at(2 * PAGES), PAGES * PAGE_SIZE).unwrap();
    (0..PAGES).for_each(|page| assert_eq!(child.load_u64(at(page)), Ok(page + 2)));
    [&space, &child].into_iter().for_each(|space| space.audit().unwrap());
    drop((space, child));
    end(&engine);
}

/// Threads store and load in the same pages, each its own word, with several reclaims at once.
#[test]
fn threads_keep_their_words() {
    let (engine, file) = machine(file());
    let space = space(&engine, &file);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (space, file) = (&space, &file);
            scope.spawn(move || {
                let (mut model, mut numbers) = (vec![0; PAGES as usize], Rng::with_seed(thread));
                for round in 1..4_000 {
                    let page = numbers.u64(..PAGES);
                    let word = VirtAddr::new(at(page).get() + thread * 8);
                    let offset = page * PAGE_SIZE + thread * 8;
                    assert_eq!(space.load_u64(word).unwrap(), model[page as usize], "page {page}");
                    if numbers.bool() {
                        space.store_u64(word, round).unwrap();
                    } else {
                        let bytes = u64::to_ne_bytes(round);
                        assert_eq!(file.handle().write_at(offset, &bytes), Ok(8));
                    }
                    model[page as usize] = round;
                }
            });
        }
    });
    space.audit().unwrap();
    drop((space, file));
    end(&engine);
}

/// Truncation, a hole and the end of the file give the slots back. The bytes behind the new end are zeros when the file grows again.
#[test]
fn slots_are_free_after_a_cut_a_hole_and_the_end() {
    let (engine, file) = machine(compressed());
    let space = space(&engine, &file);
    (0..PAGES).for_each(|page| {
        space.store_u64(at(page), page + 1).unwrap();
        space.store_u64(VirtAddr::new(at(page).get() + 4088), page + 1).unwrap();
    });
    swap_out(&engine);
    assert_eq!(engine.swap_usage().slots, PAGES);
    file.punch_hole(PAGE_SIZE, 10 * PAGE_SIZE).unwrap();
    assert_eq!(engine.swap_usage().slots, PAGES - 10);
    assert_eq!((space.load_u64(at(1)), space.load_u64(at(11))), (Ok(0), Ok(12)));
    // The hole begins and ends in pages that are in slots.
    file.punch_hole(20 * PAGE_SIZE + 8, 2 * PAGE_SIZE).unwrap();
    let last_word = |page: u64| VirtAddr::new(at(page).get() + 4088);
    assert_eq!((space.load_u64(at(20)), space.load_u64(last_word(20))), (Ok(21), Ok(0)));
    assert_eq!((space.load_u64(at(22)), space.load_u64(last_word(22))), (Ok(0), Ok(23)));
    file.set_length(100 * PAGE_SIZE + 8).unwrap();
    assert!(engine.swap_usage().slots <= 101);
    assert!(space.load_u64(at(101)).is_err(), "an access behind the end succeeds");
    file.set_length(PAGES * PAGE_SIZE).unwrap();
    assert_eq!((space.load_u64(at(100)), space.load_u64(last_word(100))), (Ok(101), Ok(0)));
    assert_eq!((space.load_u64(at(99)), space.load_u64(at(101))), (Ok(100), Ok(0)));
    swap_out(&engine);
    drop((space, file));
    end(&engine);
}

/// A private copy is made of a page in a slot, and the file keeps its bytes.
#[test]
fn a_private_copy_of_a_page_in_a_slot() {
    let (engine, file) = machine(compressed());
    (0..4).for_each(|page| assert_eq!(write(&file, page, page + 1), Ok(8)));
    let space = Space::new(&engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let request = MapRequest::file(&file, 0, PAGES * PAGE_SIZE, rights);
    space.map(request.at(Placement::Fixed(at(0)))).unwrap();
    swap_out(&engine);
    space.store_u64(at(1), 9).unwrap();
    assert_eq!((space.load_u64(at(1)), read(&file, 1)), (Ok(9), Ok(2)));
    swap_out(&engine);
    assert_eq!((space.load_u64(at(1)), space.load_u64(at(2)), read(&file, 1)), (Ok(9), Ok(3), Ok(2)));
    space.audit().unwrap();
    drop((space, file));
    end(&engine);
}

/// Removal of the device finds the slots that files name, though no entry names them.
#[test]
fn a_device_with_pages_of_files_is_removed() {
    let device = file();
    let engine = Engine::new(Soft::new(2 * PAGES).unwrap(), Limits::default()).unwrap();
    engine.add_swap(device.clone()).unwrap();
    let file = File::in_memory(&engine, PAGES * PAGE_SIZE).unwrap();
    let space = space(&engine, &file);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    swap_out(&engine);
    let removed = engine.remove_swap(&device).unwrap();
    assert_eq!((removed.moved, removed.lost), (PAGES, 0));
    (0..PAGES).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
    drop((space, file));
    end(&engine);
}

/// A page that cannot be read is an error at each access: SIGBUS for a mapping, EIO for a handle. Other pages are there.
#[test]
fn a_page_that_is_lost_is_an_error() {
    let store =
        FailingStore::new(file_store(), Direction::Read, Failure::Once(1), InjectedError::Io { errno: 5 });
    let (engine, file) = machine(Arc::new(StoreDevice::new(store).unwrap()));
    let space = space(&engine, &file);
    (0..2).for_each(|page| {
        space.store_u64(at(page), page + 1).unwrap();
        // Not the same word all over.
        space.store_u64(VirtAddr::new(at(page).get() + 8), 7).unwrap();
    });
    swap_out(&engine);
    for _ in 0..2 {
        let error = space.fault_and_wait(at(0), Access::Read).unwrap_err();
        assert!(matches!(error, FaultError::Io { .. }), "{error:?}");
        assert_eq!(error.signal(), Signal::NoPage);
        assert_eq!(read(&file, 0).unwrap_err().errno(), 5);
        assert_eq!(write(&file, 0, 1).unwrap_err().errno(), 5);
    }
    assert_eq!((space.load_u64(at(1)), read(&file, 1)), (Ok(2), Ok(2)));
    // A hole makes zeros of the page.
    file.punch_hole(0, PAGE_SIZE).unwrap();
    assert_eq!((space.load_u64(at(0)), read(&file, 0)), (Ok(0), Ok(0)));
    drop((space, file));
    end(&engine);
}

/// If the devices are full, pages stay, and nothing is lost. A fault that needs more memory fails.
#[test]
fn a_full_device_keeps_the_pages_in_memory() {
    let device: Arc<dyn SwapDevice> = Arc::new(CompressedMemory::new(8, 8 * PAGE_SIZE as usize).unwrap());
    let (engine, file) = machine(device);
    let space = space(&engine, &file);
    let mut stored = 0;
    for page in 0..PAGES {
        let words = (0..64).all(|word| {
            let address = VirtAddr::new(at(page).get() + word * 64);
            space.store_u64(address, fastrand::u64(1..)).is_ok()
        });
        if !words || space.store_u64(at(page), page + 1).is_err() {
            break;
        }
        stored = page + 1;
    }
    assert!((FRAMES - 8..PAGES).contains(&stored), "{stored} pages");
    let loaded = (0..stored).filter(|page| space.load_u64(at(*page)) == Ok(page + 1)).count() as u64;
    assert!(loaded >= FRAMES / 2, "{loaded} of {stored} pages");
    assert!(engine.statistics().get(Counter::PassedNoSlot) > 0, "no page was offered");
    drop((space, file));
    end(&engine);
}
