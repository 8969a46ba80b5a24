//! Advice about memory without a store; and reclaim of it where it is mapped often, where devices refuse it, and where memory for the
//! way back is short.

use crate::devices::{compressed, file, file_store};
use crate::until;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::swap::{CompressedMemory, StoreDevice, SwapDevice};
use faultless::{
    AddressSpace, Advice, Engine, Fault, File, FileError, FileRef, LimitConfig, Limits, LockMode, MapRequest,
    MemoryLimit, Placement,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

const RIGHTS: Protection = Protection::READ.union(Protection::WRITE);
const PAGES: u64 = 64;

fn machine(frames: u64, device: Arc<dyn SwapDevice>) -> (Arc<Engine<Soft>>, FileRef<Soft>) {
    let engine = Engine::new(Soft::with_caches(frames).unwrap(), Limits::default()).unwrap();
    engine.add_swap(device).unwrap();
    let file = File::in_memory(&engine, PAGES * PAGE_SIZE).unwrap();
    (engine, file)
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn map(space: &Space, file: &FileRef<Soft>, place: u64) {
    let request = MapRequest::shared_file(file, 0, PAGES * PAGE_SIZE, RIGHTS);
    space.map(request.at(Placement::Fixed(at(place)))).unwrap();
}

/// Stores to each page, not the same word all over.
fn fill(space: &Space) {
    for page in 0..PAGES {
        space.store_u64(at(page), page + 1).unwrap();
        space.store_u64(VirtAddr::new(at(page).get() + 8), 7).unwrap();
    }
}

/// MADV_PAGEOUT takes pages that one entry maps, and MADV_WILLNEED starts to bring them back, without a fault and in runs.
#[test]
fn pages_go_and_come_by_advice() {
    for device in [compressed(), file()] {
        let (engine, file) = machine(256, device);
        let [space, other] = [Space::new(&engine).unwrap(), Space::new(&engine).unwrap()];
        map(&space, &file, 0);
        map(&other, &file, 0);
        fill(&space);
        assert_eq!(other.load_u64(at(0)), Ok(1));
        space.advise(at(0), PAGES * PAGE_SIZE, Advice::PageOut).unwrap();
        until("the pages are out", || {
            engine.swap_usage().slots == PAGES - 1 && engine.frame_usage().used == 2
        });
        assert_eq!(space.resident(at(0), 2 * PAGE_SIZE), Ok(vec![true, false]), "another space maps page 0");
        let before = engine.statistics();
        space.advise(at(0), PAGES * PAGE_SIZE, Advice::WillNeed).unwrap();
        until("the pages are back", || {
            space.resident(at(0), PAGES * PAGE_SIZE).unwrap().iter().all(|is_there| *is_there)
        });
        (0..PAGES).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
        let after = engine.statistics();
        assert_eq!(after.get(Counter::MajorFaults), before.get(Counter::MajorFaults));
        assert_eq!(after.get(Counter::SwapIns) - before.get(Counter::SwapIns), PAGES - 1);
        assert_eq!(engine.swap_usage().slots, 0, "pages in memory have slots");
        [&space, &other].into_iter().for_each(|space| space.audit().unwrap());
    }
}

/// MADV_COLD makes pages the first to be taken, though they were used.
#[test]
fn cold_pages_go_first() {
    let (engine, file) = machine(256, compressed());
    let space = Space::new(&engine).unwrap();
    map(&space, &file, 0);
    fill(&space);
    space.advise(at(8), 8 * PAGE_SIZE, Advice::Cold).unwrap();
    for _ in 0..8 {
        engine.reclaim(0);
    }
    // Of the pages that were used last, those with the advice are not young.
    let resident = space.resident(at(0), PAGES * PAGE_SIZE).unwrap();
    assert!(!resident[8..16].contains(&true), "{resident:?}");
    (0..PAGES).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
}

/// A page that is mapped more often than one search goes is taken by several.
#[test]
fn a_page_that_is_mapped_2500_times_goes_to_swap() {
    let (engine, file) = machine(256, compressed());
    let space = Space::new(&engine).unwrap();
    for place in 0..2500 {
        let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, RIGHTS);
        // Not next to each other, so that no two are one mapping.
        space.map(request.at(Placement::Fixed(at(2 * place)))).unwrap();
        space.store_u64(at(2 * place), 5).unwrap();
    }
    for _ in 0..100 {
        engine.reclaim(1);
    }
    assert_eq!((engine.frame_usage().used, engine.swap_usage().slots), (1, 1));
    assert_eq!(space.load_u64(at(4998)), Ok(5));
}

/// A shorter length needs the last page in memory. If there is no memory for it, the length stays, and so do the bytes.
#[test]
fn a_cut_without_memory_is_an_error() {
    const FRAMES: u64 = 24;
    let (engine, file) = machine(FRAMES, Arc::new(CompressedMemory::new(8, 8 * PAGE_SIZE as usize).unwrap()));
    let space = Space::new(&engine).unwrap();
    map(&space, &file, 0);
    space.store_u64(at(0), 1).unwrap();
    space.store_u64(VirtAddr::new(at(0).get() + 8), 7).unwrap();
    until("the page is out", || {
        engine.reclaim(1);
        engine.swap_usage().slots == 1 && engine.frame_usage().used == 1
    });
    // No page of these can be taken.
    let memory = space.map(MapRequest::anonymous(FRAMES * PAGE_SIZE)).unwrap();
    let page = |number: u64| VirtAddr::new(memory.get() + number * PAGE_SIZE);
    let pins: Vec<_> = (0..FRAMES).map_while(|number| space.pin(page(number), Access::Write).ok()).collect();
    assert_eq!(engine.frame_usage().used, FRAMES);
    assert_eq!(file.set_length(8), Err(FileError::OutOfMemory));
    assert_eq!(file.handle().set_length(8), Err(FileError::OutOfMemory));
    assert_eq!(file.length(), PAGES * PAGE_SIZE);
    // A page that is cut off as a whole needs none.
    drop(pins);
    assert_eq!((space.load_u64(at(0)), space.load_u64(VirtAddr::new(at(0).get() + 8))), (Ok(1), Ok(7)));
    file.set_length(8).unwrap();
    file.set_length(PAGE_SIZE).unwrap();
    assert_eq!((space.load_u64(at(0)), space.load_u64(VirtAddr::new(at(0).get() + 8))), (Ok(1), Ok(0)));
}

/// A group finds its pages in the queue of another group, though the queues of the root are longer than one search looks.
#[test]
fn strays_behind_a_long_queue_are_found() {
    const MANY: u64 = 4500;
    const FEW: u64 = 100;
    let engine = Engine::new(Soft::with_caches(MANY + FEW + 1).unwrap(), Limits::default()).unwrap();
    engine.add_swap(compressed()).unwrap();
    let limits = [0, 1].map(|_| MemoryLimit::new(&engine, LimitConfig::max(FEW)).unwrap());
    let anonymous = |space: &Space, pages: u64| {
        space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    };
    let root = Space::new(&engine).unwrap();
    anonymous(&root, MANY);
    (0..MANY).for_each(|page| root.store_u64(at(page), page + 1).unwrap());
    let [first, second] = [0, 1].map(|group| Space::new_in(&engine, &limits[group]).unwrap());
    anonymous(&first, FEW);
    (0..FEW).for_each(|page| first.store_u64(at(page), page + 1).unwrap());
    // All are in queues now.
    engine.frames_for_reclaim();
    drop(first);
    engine.flush();
    anonymous(&second, 2 * FEW);
    (0..2 * FEW).for_each(|page| second.store_u64(at(page), page + 1).unwrap());
    (0..2 * FEW).for_each(|page| assert_eq!(second.load_u64(at(page)), Ok(page + 1)));
    assert_eq!(limits[1].usage().out_of_memory, 0);
    (0..MANY).for_each(|page| assert_eq!(root.load_u64(at(page)), Ok(page + 1)));
}

/// A group finds its pages in the queue of another group, though most of its pages are in queues of its own: those are locked.
#[test]
fn strays_beside_locked_pages_are_found() {
    const LOCKED: u64 = 8;
    const OTHERS: u64 = 4;
    // So few that the last pages get frames that were the first group's.
    let engine = Engine::new(Soft::with_caches(LOCKED + OTHERS + 2).unwrap(), Limits::default()).unwrap();
    engine.add_swap(compressed()).unwrap();
    let limits = [0, 1].map(|_| MemoryLimit::new(&engine, LimitConfig::max(LOCKED + OTHERS)).unwrap());
    let [first, second] = limits.each_ref().map(|limit| Space::new_in(&engine, limit).unwrap());
    let anonymous = |space: &Space, pages: u64| {
        space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    };
    anonymous(&second, LOCKED + 3 * OTHERS);
    (0..LOCKED).for_each(|page| second.store_u64(at(page), page + 1).unwrap());
    second.lock(at(0), LOCKED * PAGE_SIZE, LockMode::Now).unwrap();
    anonymous(&first, OTHERS + 1);
    (0..=OTHERS).for_each(|page| first.store_u64(at(page), page + 1).unwrap());
    // All are in queues now.
    engine.frames_for_reclaim();
    drop(first);
    engine.flush();
    (LOCKED..LOCKED + 3 * OTHERS).for_each(|page| second.store_u64(at(page), page + 1).unwrap());
    (0..LOCKED + 3 * OTHERS).for_each(|page| assert_eq!(second.load_u64(at(page)), Ok(page + 1)));
    assert_eq!(limits[1].usage().out_of_memory, 0);
}

/// A fault that meets the write of its page to a slot waits for it, and is none that needs I/O of its own.
#[test]
fn a_fault_that_waits_for_a_write_is_no_major_one() {
    let device = Arc::new(StoreDevice::new(faultless::store::GatedStore::new(file_store())).unwrap());
    let (engine, file) = machine(256, device.clone());
    let space = Space::new(&engine).unwrap();
    map(&space, &file, 0);
    space.store_u64(at(0), 1).unwrap();
    until("the write has begun", || {
        engine.reclaim(1);
        device.store().waiting() == 1
    });
    let Fault::Pending(fault) = space.fault(at(0), Access::Read).unwrap() else { panic!("mapped too early") };
    device.store().open();
    assert!(matches!(fault.wait(), Ok(Fault::Done)));
    assert_eq!(space.load_u64(at(0)), Ok(1));
    assert_eq!(engine.statistics().get(Counter::MajorFaults), 0);
}
