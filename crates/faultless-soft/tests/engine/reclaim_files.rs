//! Mapped files that are larger than the machine: reclaim takes mapped pages of files, and their bytes come back.

use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::{Bytes, FileStore, Store, StoreError, Transfer};
use faultless::swap::CompressedMemory;
use faultless::{
    AddressSpace, Engine, File, FileRef, Limits, LockMode, MapRequest, Placement, RemapRequest, SyncFlags,
};
use faultless_soft::{Cpu, Soft};
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

/// The frames of the machine, and the pages of the file: eight times as many.
const FRAMES: u64 = 64;
const PAGES: u64 = 512;
const RIGHTS: Protection = Protection::READ.union(Protection::WRITE);

fn engine(limits: Limits) -> Arc<Engine<Soft>> {
    Engine::new(Soft::with_caches(FRAMES).unwrap(), limits).unwrap()
}

/// The first word of a page of the file.
fn word_of(page: u64) -> u64 {
    0x1_0000 + page
}

/// A real file. The first word of each page is its own, and the rest is zeros.
fn file(engine: &Arc<Engine<Soft>>) -> FileRef<Soft> {
    let mut file = tempfile::tempfile().unwrap();
    for page in 0..PAGES {
        let mut bytes = [0; PAGE_SIZE as usize];
        bytes[..8].copy_from_slice(&word_of(page).to_le_bytes());
        file.write_all(&bytes).unwrap();
    }
    File::open_rw(engine, Arc::new(FileStore::from_file(file).unwrap())).unwrap()
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn word(page: u64, word: u64) -> VirtAddr {
    VirtAddr::new(at(page).get() + word * 8)
}

fn private(file: &FileRef<Soft>, rights: Protection) -> MapRequest<Soft> {
    MapRequest::file(file, 0, PAGES * PAGE_SIZE, rights).at(Placement::Fixed(at(0)))
}

fn shared(file: &FileRef<Soft>, rights: Protection) -> MapRequest<Soft> {
    MapRequest::shared_file(file, 0, PAGES * PAGE_SIZE, rights).at(Placement::Fixed(at(0)))
}

fn mapped(engine: &Arc<Engine<Soft>>, request: MapRequest<Soft>) -> Space {
    let space = Space::new(engine).unwrap();
    space.map(request).unwrap();
    space
}

/// Checks that nothing is left: no frame but the page of zeros, and no slot.
fn end(engine: &Engine<Soft>) {
    for _ in 0..10_000 {
        engine.flush();
        if engine.frame_usage().used == 1 {
            break;
        }
        // The last writes of a file that was dropped are under way.
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    assert_eq!(engine.cached_pages(), 0, "invariant 11: pages are counted as cached");
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

/// Takes all mapped pages that can be taken.
fn reclaim_all(engine: &Arc<Engine<Soft>>) {
    (0..8).for_each(|_| _ = engine.reclaim_for_tests(FRAMES));
}

#[test]
fn threads_read_a_mapped_file_that_is_larger_than_memory() {
    for request in [private, shared] {
        let engine = engine(Limits::default());
        let file = file(&engine);
        let space = mapped(&engine, request(&file, Protection::READ));
        std::thread::scope(|scope| {
            for thread in 1..5 {
                let space = &space;
                scope.spawn(move || {
                    let mut numbers = Rng::with_seed(thread);
                    for _ in 0..3_000 {
                        let page = numbers.u64(..PAGES);
                        assert_eq!(space.load_u64(at(page)).unwrap(), word_of(page));
                    }
                });
            }
        });
        let statistics = engine.statistics();
        assert!(statistics.get(Counter::Reclaimed) > 0, "mapped pages were taken");
        space.audit().unwrap();
        drop((space, file));
        end(&engine);
    }
}

/// Failed before mapped pages could be taken: out of memory at the ninth page.
#[test]
fn a_cache_with_a_limit_goes_on_when_all_its_pages_are_mapped() {
    let engine = engine(Limits { cached_pages: 8, ..Limits::default() });
    let file = file(&engine);
    let space = mapped(&engine, private(&file, Protection::READ));
    for page in 0..PAGES {
        assert_eq!(space.load_u64(at(page)).unwrap(), word_of(page));
        assert!(engine.cached_pages() <= 8, "{} pages at page {page}", engine.cached_pages());
    }
    std::thread::scope(|scope| {
        for thread in 1..5 {
            let space = &space;
            scope.spawn(move || {
                let mut numbers = Rng::with_seed(thread);
                for _ in 0..1_000 {
                    let page = numbers.u64(..PAGES);
                    assert_eq!(space.load_u64(at(page)).unwrap(), word_of(page));
                }
            });
        }
    });
    drop((space, file));
    end(&engine);
}

/// Stores and loads in random pages, and compares with a model of the memory.
fn random_accesses(space: &Space, model: &mut HashMap<u64, u64>, numbers: &mut Rng, count: u32) {
    for _ in 0..count {
        let (page, place) = (numbers.u64(..PAGES), numbers.u64(..512));
        if numbers.u64(..4) == 0 {
            let value = numbers.u64(..);
            space.store_u64(word(page, place), value).unwrap();
            model.insert(page * 512 + place, value);
        } else {
            let before = if place == 0 { word_of(page) } else { 0 };
            let expected = model.get(&(page * 512 + place)).copied().unwrap_or(before);
            assert_eq!(space.load_u64(word(page, place)).unwrap(), expected, "page {page}, word {place}");
        }
    }
}

/// Copies are swapped, and the file's pages dropped.
#[test]
fn a_private_mapping_with_copies() {
    let engine = engine(Limits::default());
    engine.add_swap(Arc::new(CompressedMemory::new(8192, 8192 * PAGE_SIZE as usize).unwrap())).unwrap();
    let file = file(&engine);
    let space = mapped(&engine, private(&file, RIGHTS));
    let (mut model, mut numbers) = (HashMap::new(), Rng::with_seed(7));
    random_accesses(&space, &mut model, &mut numbers, 10_000);
    assert!(engine.swap_usage().slots > 0, "copies were swapped");
    space.audit().unwrap();
    let mut bytes = [0; 8];
    for page in 0..PAGES {
        file.handle().read_at(page * PAGE_SIZE, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), word_of(page), "a copy got into the file");
    }
    drop((space, file));
    end(&engine);
}

/// Stores are written back before the pages are dropped, and are read again.
#[test]
fn a_shared_mapping_with_stores() {
    let engine = engine(Limits::default());
    let file = file(&engine);
    let spaces = [mapped(&engine, shared(&file, RIGHTS)), mapped(&engine, shared(&file, RIGHTS))];
    let (mut model, mut numbers) = (HashMap::new(), Rng::with_seed(9));
    for round in 0..20 {
        random_accesses(&spaces[round % 2], &mut model, &mut numbers, 500);
        spaces.iter().for_each(|space| space.audit().unwrap());
    }
    let statistics = engine.statistics();
    assert!(statistics.get(Counter::Reclaimed) > 0, "mapped pages were taken");
    drop(spaces);
    let handle = file.handle();
    for (place, value) in &model {
        let mut bytes = [0; 8];
        handle.read_at(place * 8, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), *value, "a store was lost");
    }
    drop((handle, file));
    end(&engine);
}

/// Threads store into pages of their own, in one shared mapping, beside reclaim.
#[test]
fn stores_beside_reclaim_are_kept() {
    let engine = engine(Limits::default());
    let file = file(&engine);
    let space = mapped(&engine, shared(&file, RIGHTS));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let space = &space;
            scope.spawn(move || {
                let mut numbers = Rng::with_seed(thread + 1);
                let mut stamps = vec![0; PAGES as usize];
                for round in 1..2_000 {
                    let page = numbers.u64(..PAGES / 4) * 4 + thread;
                    let seen = space.load_u64(word(page, 5)).unwrap();
                    assert_eq!(seen, stamps[page as usize], "a store to page {page} was lost");
                    stamps[page as usize] = round;
                    space.store_u64(word(page, 5), round).unwrap();
                }
            });
        }
        scope.spawn(|| (0..300).for_each(|_| _ = engine.reclaim_for_tests(8)));
    });
    space.audit().unwrap();
    drop((space, file));
    end(&engine);
}

/// Cuts and holes beside reclaim: no access sees bytes that were cut off.
#[test]
fn cuts_and_holes_beside_reclaim() {
    for request in [private, shared] {
        let engine = engine(Limits::default());
        let file = file(&engine);
        let space = mapped(&engine, request(&file, Protection::READ));
        std::thread::scope(|scope| {
            for thread in 1..3 {
                let space = &space;
                scope.spawn(move || {
                    let mut numbers = Rng::with_seed(thread);
                    for _ in 0..3_000 {
                        let page = numbers.u64(..PAGES);
                        if let Ok(seen) = space.load_u64(at(page)) {
                            assert!(seen == word_of(page) || page >= 256 && seen == 0, "page {page}: {seen}");
                        }
                    }
                });
            }
            let cutter = scope.spawn(|| {
                let mut numbers = Rng::with_seed(77);
                let handle = file.handle();
                for page in (256..PAGES).rev().step_by(8) {
                    let hole = 256 + numbers.u64(..(page - 255));
                    handle.punch_hole(hole * PAGE_SIZE, PAGE_SIZE).unwrap();
                    assert!(!matches!(space.load_u64(at(hole)), Ok(seen) if seen != 0), "in the hole");
                    handle.set_length(page * PAGE_SIZE).unwrap();
                    assert!(space.load_u64(at(page)).is_err(), "behind the end");
                }
            });
            scope.spawn(|| (0..300).for_each(|_| _ = engine.reclaim_for_tests(8)));
            cutter.join().unwrap();
        });
        space.audit().unwrap();
        drop((space, file));
        end(&engine);
    }
}

/// With shared leaf tables, and with copied entries. A page in a shared table is taken from all spaces at once.
#[test]
fn fork_beside_reclaim() {
    for shared_entries in [1, u64::MAX] {
        let engine = engine(Limits { shared_entries, ..Limits::default() });
        let file = file(&engine);
        let parent = mapped(&engine, private(&file, Protection::READ));
        let mut numbers = Rng::with_seed(3);
        let mut family = vec![parent];
        for round in 0..12 {
            let oldest = numbers.u64(..(family.len() as u64)) as usize;
            family.push(family[oldest].fork().unwrap());
            if round % 3 == 0 {
                reclaim_all(&engine);
                assert_eq!(engine.frame_usage().used, 1, "pages stay in memory");
            }
            for space in &family {
                for _ in 0..100 {
                    let page = numbers.u64(..PAGES);
                    assert_eq!(space.load_u64(at(page)).unwrap(), word_of(page));
                }
                space.audit().unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
            if family.len() > 4 {
                family.remove(numbers.u64(..4) as usize).exit();
            }
        }
        drop((family, file));
        end(&engine);
    }
}

#[test]
fn locked_pages_and_pinned_pages_stay() {
    let engine = engine(Limits::default());
    let file = file(&engine);
    let space = mapped(&engine, shared(&file, RIGHTS));
    let other = mapped(&engine, shared(&file, RIGHTS));
    let in_memory = || {
        let is_in = space.resident(at(0), 8 * PAGE_SIZE).unwrap();
        (0..8).filter(|page| is_in[*page as usize]).collect::<Vec<_>>()
    };
    (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), word_of(page)));
    (0..8).for_each(|page| assert_eq!(other.load_u64(at(page)).unwrap(), word_of(page)));
    space.lock(at(0), PAGE_SIZE, LockMode::Now).unwrap();
    // Also where one of two spaces has locked the page.
    other.lock(at(1), PAGE_SIZE, LockMode::Now).unwrap();
    let pinned = space.pin(at(2), Access::Read).unwrap();
    let folio = file.try_lock_folio(3).unwrap();
    reclaim_all(&engine);
    assert_eq!(in_memory(), [0, 1, 2, 3]);
    drop((pinned, folio));
    space.unlock_all().unwrap();
    other.unlock_all().unwrap();
    reclaim_all(&engine);
    assert_eq!(in_memory(), []);
    assert_eq!(engine.frame_usage().used, 1);
    (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), word_of(page)));
    // Dirty pages go when they are written.
    (0..8).for_each(|page| space.store_u64(word(page, 1), page).unwrap());
    engine.reclaim_for_tests(FRAMES);
    space.sync(at(0), 8 * PAGE_SIZE, SyncFlags::SYNC).unwrap();
    reclaim_all(&engine);
    assert_eq!(in_memory(), []);
    (0..8).for_each(|page| assert_eq!(space.load_u64(word(page, 1)).unwrap(), page));
    space.audit().unwrap();
    drop((space, other, file));
    end(&engine);
}

/// munmap, mprotect, mremap, DONTNEED and fork over entries whose pages are gone.
#[test]
fn calls_on_pages_that_are_gone() {
    let engine = engine(Limits::default());
    let file = file(&engine);
    let space = mapped(&engine, private(&file, RIGHTS));
    (0..40).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), word_of(page)));
    reclaim_all(&engine);
    assert_eq!(engine.frame_usage().used, 1);
    space.unmap(at(0), 8 * PAGE_SIZE).unwrap();
    space.protect(at(8), 8 * PAGE_SIZE, Protection::READ).unwrap();
    space.remap(RemapRequest::to(at(16), 8 * PAGE_SIZE, at(4096))).unwrap();
    space.discard(at(24), 8 * PAGE_SIZE).unwrap();
    let child = space.fork().unwrap();
    for space in [&space, &child] {
        space.audit().unwrap();
        assert!(space.load_u64(at(0)).is_err() && space.store_u64(at(8), 1).is_err());
        for page in 8..40 {
            let place = if (16..24).contains(&page) { 4096 + page - 16 } else { page };
            assert_eq!(space.load_u64(at(place)).unwrap(), word_of(page), "page {page}");
        }
        space.store_u64(at(32), 5).unwrap();
        assert_eq!(space.load_u64(at(32)).unwrap(), 5);
    }
    drop((space, child, file));
    end(&engine);
}

/// Pages of a file without a store are not taken, and are in no queue.
#[test]
fn pages_without_a_store_stay() {
    let engine = engine(Limits::default());
    let file = File::in_memory(&engine, 8 * PAGE_SIZE).unwrap();
    let space =
        mapped(&engine, MapRequest::shared_file(&file, 0, 8 * PAGE_SIZE, RIGHTS).at(Placement::Fixed(at(0))));
    (0..8).for_each(|page| space.store_u64(at(page), page).unwrap());
    assert_eq!(engine.frames_for_reclaim(), []);
    reclaim_all(&engine);
    assert_eq!(engine.frame_usage().used, 9);
    (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page));
    drop((space, file));
    end(&engine);
}

/// A store of many pages of zeros.
struct Zeros(u64);

impl Store for Zeros {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.0 * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        let Bytes::Read(bytes) = transfer.bytes() else { panic!("nothing is stored") };
        bytes.fill(0);
        let moved = bytes.len();
        transfer.complete(Ok(moved));
    }
}

/// A page that is loaded once leaves before pages that are in use.
#[test]
fn a_scan_does_not_push_out_pages_in_use() {
    const SCAN: u64 = 16_384;
    const USED: u64 = 100;
    // Its processors keep no translations, and so set the accessed bit at each use.
    let engine = Engine::new(Soft::new(1024).unwrap(), Limits::default()).unwrap();
    let file = File::open(&engine, Arc::new(Zeros(SCAN))).unwrap();
    let request = MapRequest::file(&file, 0, SCAN * PAGE_SIZE, Protection::READ);
    let space = mapped(&engine, request.at(Placement::Fixed(at(0))));
    let reads = || engine.statistics().get(Counter::IoReads);
    let mut again = 0;
    for page in USED..SCAN {
        assert_eq!(space.load_u64(at(page)), Ok(0));
        let before = reads();
        assert_eq!(space.load_u64(at(page % USED)), Ok(0));
        if page > SCAN / 4 {
            again += reads() - before;
        }
    }
    // Without the bits, each would be read again at each tenth use or so.
    assert!(again < 200, "pages in use were read again {again} times");
    drop((space, file));
    end(&engine);
}
