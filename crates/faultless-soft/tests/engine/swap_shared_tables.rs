//! Pages that come back from slots into leaf tables that fork has shared: once for all who share the table.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::FaultError;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, StoreDevice, SwapDevice};
use faultless::{AddressSpace, Engine, File, Limits, MapRequest, Placement};
use faultless_soft::{AccessError, Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

/// The pages of one leaf table.
const PAGES: u64 = 512;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn count(engine: &Engine<Soft>, counter: Counter) -> u64 {
    engine.statistics().get(counter)
}

/// Makes an engine that swaps, and a space with [`PAGES`] pages, each with its number plus 1 in its first word.
fn machine(device: Arc<dyn SwapDevice>) -> (Arc<Engine<Soft>>, Space) {
    let engine = Engine::new(Soft::with_caches(4 * PAGES).unwrap(), Limits::default()).unwrap();
    engine.add_swap(device).unwrap();
    let space = Space::new(&engine).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    (engine, space)
}

fn compressed() -> Arc<dyn SwapDevice> {
    Arc::new(CompressedMemory::new(4096, 4096 * PAGE_SIZE as usize).unwrap())
}

fn file() -> Arc<dyn SwapDevice> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096 * PAGE_SIZE).unwrap();
    Arc::new(StoreDevice::new(FileStore::from_file(file).unwrap()).unwrap())
}

/// Puts all pages into slots.
fn swap_out(engine: &Arc<Engine<Soft>>) {
    for _ in 0..1000 {
        if engine.frame_usage().used == 1 {
            return;
        }
        engine.reclaim_for_tests(PAGES);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{} frames are still in use", engine.frame_usage().used);
}

fn end(engine: &Engine<Soft>) {
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

/// 1,000 children of one fork read 512 pages that are in slots: one read for each page, and no table is copied. A store of one child
/// copies the table for this child alone.
#[test]
fn a_thousand_children_read_pages_back_once() {
    for device in [compressed(), file()] {
        let (engine, space) = machine(device);
        let children: Vec<Space> = (0..1000).map(|_| space.fork().unwrap()).collect();
        assert_eq!(count(&engine, Counter::TablesShared), 1000, "the table is not shared");
        swap_out(&engine);
        let before = count(&engine, Counter::SwapIns);
        // Each child begins at another page, so that many of them bring pages back.
        for (child, first) in children.iter().zip(0..) {
            for page in (0..PAGES).map(|page| (first + page) % PAGES).take(if first < 8 { 512 } else { 16 }) {
                assert_eq!(child.load_u64(at(page)), Ok(page + 1));
            }
        }
        assert_eq!(count(&engine, Counter::SwapIns) - before, PAGES, "reads of slots");
        assert_eq!(count(&engine, Counter::TablesCopied), 0, "tables copied");
        children[7].store_u64(at(3), 0).unwrap();
        assert_eq!(count(&engine, Counter::TablesCopied), 1, "tables copied");
        assert_eq!([&space, &children[8]].map(|space| space.load_u64(at(3))), [Ok(4), Ok(4)]);
        children.iter().chain([&space]).for_each(|space| space.audit().unwrap());
        drop((space, children));
        end(&engine);
    }
}

/// The same with threads: many children read the same pages at once.
#[test]
fn children_read_pages_back_at_once() {
    let (engine, space) = machine(file());
    let children: Vec<Space> = (0..64).map(|_| space.fork().unwrap()).collect();
    for _ in 0..4 {
        swap_out(&engine);
        let before = count(&engine, Counter::SwapIns);
        std::thread::scope(|scope| {
            for (part, seed) in children.chunks(16).zip(0..) {
                scope.spawn(move || {
                    let mut numbers = fastrand::Rng::with_seed(seed);
                    for child in part {
                        for _ in 0..PAGES {
                            let page = numbers.u64(..PAGES);
                            assert_eq!(child.load_u64(at(page)), Ok(page + 1));
                        }
                    }
                });
            }
        });
        assert!(count(&engine, Counter::SwapIns) - before <= PAGES, "a page was read twice");
    }
    assert_eq!(count(&engine, Counter::TablesCopied), 0, "tables copied");
    children.iter().for_each(|child| child.audit().unwrap());
    drop((space, children));
    end(&engine);
}

/// A write right means: no slot. The parent takes over the table, whose pages have come back for reading, and stores. Reclaim then
/// writes the new bytes.
#[test]
fn a_store_after_a_takeover_is_written() {
    let (engine, space) = machine(compressed());
    let child = space.fork().unwrap();
    swap_out(&engine);
    (0..PAGES).for_each(|page| assert_eq!(child.load_u64(at(page)), Ok(page + 1)));
    drop(child);
    let before = count(&engine, Counter::TablesCopied);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 7).unwrap());
    assert_eq!(count(&engine, Counter::TablesCopied), before, "the table is not taken over");
    swap_out(&engine);
    (0..PAGES).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 7), "a store was lost"));
    space.audit().unwrap();
    drop(space);
    end(&engine);
}

/// A space that takes the right to execute or to read away leaves the table. What comes back in the table later has the rights of the
/// others.
#[test]
fn rights_that_a_space_has_taken_away_stay_away() {
    let (engine, space) = machine(compressed());
    let child = space.fork().unwrap();
    swap_out(&engine);
    space.protect(at(0), PAGES * PAGE_SIZE, Protection::empty()).unwrap();
    assert_eq!(child.load_u64(at(0)), Ok(1));
    assert!(space.load_u64(at(0)).is_err(), "a load succeeds after protect");
    space.protect(at(0), PAGES * PAGE_SIZE, Protection::READ).unwrap();
    assert_eq!((space.load_u64(at(0)), child.load_u64(at(1))), (Ok(1), Ok(2)));
    [&space, &child].into_iter().for_each(|space| space.audit().unwrap());
    drop((space, child));
    end(&engine);
}

/// A page of a file that reclaim has taken out of a shared table comes back for all who share it.
#[test]
fn a_files_page_comes_back_into_a_shared_table() {
    let engine = Engine::new(Soft::with_caches(4 * PAGES).unwrap(), Limits::default()).unwrap();
    engine.queue_pages_for_reclaim();
    let bytes: Vec<u8> = (0..PAGES).flat_map(|page| [page as u8; PAGE_SIZE as usize]).collect();
    let named = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&named, &bytes, 0).unwrap();
    let file = File::open(&engine, Arc::new(FileStore::from_file(named).unwrap())).unwrap();
    let space = Space::new(&engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    space.map(MapRequest::file(&file, 0, PAGES * PAGE_SIZE, rights).at(Placement::Fixed(at(0)))).unwrap();
    // The first page is the space's own, so that fork shares the table.
    space.store_u64(at(0), 9).unwrap();
    let word = |page: u64| u64::from_ne_bytes([page as u8; 8]);
    (1..PAGES).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(word(page))));
    let children: Vec<Space> = (0..10).map(|_| space.fork().unwrap()).collect();
    assert_eq!(count(&engine, Counter::TablesShared), 10, "the table is not shared");
    for _ in 0..3 {
        // The first look clears the accessed bits.
        (0..40).for_each(|_| _ = engine.reclaim_for_tests(0));
        for child in &children {
            (1..PAGES).for_each(|page| assert_eq!(child.load_u64(at(page)), Ok(word(page))));
        }
    }
    assert!(count(&engine, Counter::Reclaimed) > PAGES, "the pages are not taken");
    assert_eq!(count(&engine, Counter::TablesCopied), 0, "tables copied");
    children.iter().chain([&space]).for_each(|space| space.audit().unwrap());
    children[0].store_u64(at(1), 5).unwrap();
    assert_eq!([&space, &children[1]].map(|space| space.load_u64(at(1))), [Ok(word(1)), Ok(word(1))]);
    drop((space, children, file));
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
}

/// A slot without bytes, in a shared table, is an error of each space's access. The fault does not begin over for ever.
#[test]
fn a_slot_without_bytes_is_an_error_for_all() {
    let (engine, space) = machine(compressed());
    let child = space.fork().unwrap();
    assert_eq!(count(&engine, Counter::TablesShared), 1, "the table is not shared");
    swap_out(&engine);
    engine.lose_slots_for_tests();
    for space in [&child, &space] {
        let found = space.load_u64(at(1));
        assert_eq!(found, Err(AccessError::Fault(FaultError::Lost { address: at(1) })));
    }
    drop((space, child));
    end(&engine);
}
