//! Memory without a store under limits, with devices that fail, stall or leave, and beside cuts: charges, slots and frames balance.

use crate::devices::{compressed, disk, file_store};
use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::FaultError;
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, FileStore, GatedStore, Store, StoreError, Transfer};
use faultless::swap::{StoreDevice, SwapDevice};
use faultless::{
    AddressSpace, Advice, Engine, Fault, File, FileError, FileRef, LimitConfig, Limits, LockMode, MapRequest,
    MemoryLimit, MemoryUsage, Placement,
};
use faultless_soft::{Cpu, Soft};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

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

fn map(space: &Space, file: &FileRef<Soft>) {
    let request = MapRequest::shared_file(file, 0, PAGES * PAGE_SIZE, RIGHTS);
    space.map(request.at(Placement::Fixed(at(0)))).unwrap();
}

fn mapped(engine: &Arc<Engine<Soft>>, file: &FileRef<Soft>) -> Space {
    let space = Space::new(engine).unwrap();
    map(&space, file);
    space
}

/// Reclaims until `is_over`, while transfers end.
fn reclaim_until(engine: &Arc<Engine<Soft>>, is_over: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if is_over() {
            return;
        }
        engine.reclaim_for_tests(PAGES);
        sleep(Duration::from_millis(1));
    }
    panic!("{:?}, {:?}: {:?}", engine.frame_usage(), engine.swap_usage(), engine.statistics());
}

fn swap_out(engine: &Arc<Engine<Soft>>) {
    reclaim_until(engine, || engine.frame_usage().used == 1);
}

/// Checks that nothing is left: no frame but the page of zeros, and no slot. Transfers may still be under way.
fn end(engine: &Engine<Soft>) {
    let is_over = || engine.frame_usage().used == 1 && engine.swap_usage().slots == 0;
    for _ in 0..2_000 {
        engine.flush();
        if is_over() {
            return;
        }
        sleep(Duration::from_millis(1));
    }
    panic!("invariant 11: {:?}, {:?}", engine.frame_usage(), engine.swap_usage());
}

fn read(file: &FileRef<Soft>, page: u64) -> Result<u64, FileError> {
    let mut bytes = [0; 8];
    assert_eq!(file.handle().read_at(page * PAGE_SIZE, &mut bytes)?, 8);
    Ok(u64::from_ne_bytes(bytes))
}

fn pages(usage: MemoryUsage) -> (u64, u64, u64) {
    (usage.anonymous, usage.file, usage.swap)
}

/// The group that pays for a page pays for its slot. The group that brings the page back pays for it then.
#[test]
fn the_group_that_brings_a_page_back_pays_for_it() {
    let device = compressed();
    let (engine, file) = machine(256, device.clone());
    let groups = [16, 32].map(|max| MemoryLimit::new(&engine, LimitConfig::max(max)).unwrap());
    let spaces = [0, 1].map(|group| Space::new_in(&engine, &groups[group]).unwrap());
    spaces.iter().for_each(|space| map(space, &file));
    for page in 0..PAGES {
        spaces[0].store_u64(at(page), page + 1).unwrap();
        let usage = groups[0].usage();
        assert!(usage.resident <= 16 && usage.file + usage.swap == page + 1, "page {page}: {usage:?}");
    }
    assert_eq!(pages(groups[1].usage()), (0, 0, 0));
    swap_out(&engine);
    assert_eq!(pages(groups[0].usage()), (0, 0, PAGES));
    (0..8).for_each(|page| assert_eq!(spaces[1].load_u64(at(page)), Ok(page + 1)));
    assert_eq!((pages(groups[0].usage()), pages(groups[1].usage())), ((0, 0, PAGES - 8), (0, 8, 0)));
    assert_eq!(
        (groups[0].usage().refaults, groups[1].usage().refaults),
        (0, 0),
        "to another group it is new"
    );
    assert_eq!(spaces[0].load_u64(at(8)), Ok(9));
    assert_eq!((groups[0].usage().refaults, groups[0].usage().file), (1, 1));
    // A read by handle charges no group.
    assert_eq!(read(&file, 9), Ok(10));
    assert_eq!(pages(groups[0].usage()), (0, 1, PAGES - 10));
    // Pages that come back with the removal of the device are charged as a file's again.
    groups[0].set(LimitConfig::max(256)).unwrap();
    engine.remove_swap(&device).unwrap();
    assert_eq!(pages(groups[0].usage()), (0, PAGES - 9, PAGES - 10));
    (0..PAGES).for_each(|page| assert_eq!(spaces[0].load_u64(at(page)), Ok(page + 1)));
    assert_eq!(pages(groups[0].usage()), (0, PAGES - 9, 0));
    drop((spaces, file));
    end(&engine);
    groups.iter().for_each(|group| assert_eq!(pages(group.usage()), (0, 0, 0)));
}

/// Locked pages and pages that are pinned for I/O stay.
#[test]
fn locked_and_pinned_pages_stay() {
    let (engine, file) = machine(256, compressed());
    let spaces = [mapped(&engine, &file), mapped(&engine, &file)];
    (0..8).for_each(|page| spaces[0].store_u64(at(page), page + 1).unwrap());
    spaces[1].lock(at(0), 2 * PAGE_SIZE, LockMode::Now).unwrap();
    let pinned = spaces[0].pin(at(2), Access::Write).unwrap();
    reclaim_until(&engine, || engine.swap_usage().slots == 5);
    (0..20).for_each(|_| _ = engine.reclaim_for_tests(PAGES));
    assert_eq!((engine.swap_usage().slots, engine.frame_usage().used), (5, 4));
    // mlock brings a page back, and so does a pin.
    spaces[0].lock(at(3), PAGE_SIZE, LockMode::Now).unwrap();
    let another = spaces[1].pin(at(4), Access::Read).unwrap();
    assert_eq!((engine.swap_usage().slots, engine.frame_usage().used), (3, 6));
    drop((pinned, another));
    spaces.iter().for_each(|space| space.unlock(at(0), 8 * PAGE_SIZE).unwrap());
    swap_out(&engine);
    (0..8).for_each(|page| assert_eq!(spaces[1].load_u64(at(page)), Ok(page + 1)));
    spaces.iter().for_each(|space| space.audit().unwrap());
    drop((spaces, file));
    end(&engine);
}

/// Without a device, pages of such files are in no queue, though reclaim takes other pages.
#[test]
fn nothing_changes_without_a_device() {
    let engine = Engine::new(Soft::new(256).unwrap(), Limits::default()).unwrap();
    let limit = MemoryLimit::new(&engine, LimitConfig::max(16)).unwrap();
    let file = File::in_memory(&engine, PAGES * PAGE_SIZE).unwrap();
    let space = Space::new_in(&engine, &limit).unwrap();
    map(&space, &file);
    // Frames that are in a queue from an earlier life.
    let memory = space.map_owned(MapRequest::anonymous(16 * PAGE_SIZE)).unwrap();
    (0..16).for_each(|page| {
        space.store_u64(VirtAddr::new(memory.address().get() + page * PAGE_SIZE), 1).unwrap()
    });
    drop(memory);
    (0..16).for_each(|page| space.store_u64(at(page), page).unwrap());
    assert_eq!(engine.frames_for_reclaim(), []);
    assert!(space.store_u64(at(16), 16).is_err(), "no page can be taken");
    (0..16).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page)));
    drop((space, file));
    end(&engine);
}

/// A page of a leaf table that spaces share since a fork is taken from all, and comes back for all.
#[test]
fn a_shared_leaf_table_with_pages_without_a_store() {
    let soft = Soft::with_caches(256).unwrap();
    let engine = Engine::new(soft, Limits { shared_entries: 1, ..Limits::default() }).unwrap();
    engine.add_swap(compressed()).unwrap();
    let file = File::in_memory(&engine, PAGES * PAGE_SIZE).unwrap();
    (0..8).for_each(|page| {
        assert_eq!(file.handle().write_at(page * PAGE_SIZE, &(page + 1).to_ne_bytes()), Ok(8));
    });
    let space = Space::new(&engine).unwrap();
    let private = MapRequest::file(&file, 0, PAGES * PAGE_SIZE, RIGHTS);
    space.map(private.at(Placement::Fixed(at(0)))).unwrap();
    (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
    space.store_u64(at(9), 7).unwrap();
    let child = space.fork().unwrap();
    swap_out(&engine);
    for (space, value) in [(&space, 20), (&child, 30)] {
        (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
        space.store_u64(at(1), value).unwrap();
        space.audit().unwrap();
    }
    swap_out(&engine);
    assert_eq!((space.load_u64(at(1)), child.load_u64(at(1)), read(&file, 1)), (Ok(20), Ok(30), Ok(2)));
    assert_eq!((space.load_u64(at(9)), child.load_u64(at(9)), read(&file, 9)), (Ok(7), Ok(7), Ok(0)));
    drop((space, child, file));
    end(&engine);
}

/// mincore: a page in a slot is in memory if a folio with its bytes is attached. smaps: a shared mapping counts the file's slots.
#[test]
fn a_page_in_a_slot_is_not_in_memory() {
    let (engine, file) = machine(256, compressed());
    let space = mapped(&engine, &file);
    (0..4).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    swap_out(&engine);
    assert_eq!(space.resident(at(0), 5 * PAGE_SIZE), Ok(vec![false; 5]));
    let [usage] = space.usage()[..] else { panic!("more than one mapping") };
    assert_eq!((usage.resident, usage.swap, usage.swap_proportional), (0, 4 * PAGE_SIZE, 0));
    assert_eq!(read(&file, 1), Ok(2));
    assert_eq!(space.resident(at(0), 3 * PAGE_SIZE), Ok(vec![false, true, false]));
    drop((space, file));
    end(&engine);
}

/// While a page is written to its slot, an access waits, and holds nothing. The end of its space ends the wait.
#[test]
fn an_access_waits_for_the_write_of_its_page() {
    let device = Arc::new(StoreDevice::new(GatedStore::new(file_store())).unwrap());
    let (engine, file) = machine(256, device.clone());
    let spaces = [mapped(&engine, &file), mapped(&engine, &file)];
    // Not the same word all over.
    spaces[0].store_u64(at(0), 1).unwrap();
    reclaim_until(&engine, || device.store().waiting() == 1);
    assert_eq!(spaces[0].resident(at(0), PAGE_SIZE), Ok(vec![true]));
    let [first, second] = [0, 1].map(|space| match spaces[space].fault(at(0), Access::Write).unwrap() {
        Fault::Pending(fault) => fault,
        Fault::Done => panic!("a page that is being written is mapped"),
    });
    assert!(!first.is_ready() && !second.is_ready());
    let [one, two] = spaces;
    two.exit();
    assert!(matches!(second.wait(), Err(FaultError::Exited { .. })));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&file, 0));
        sleep(Duration::from_millis(5));
        device.store().open();
        assert_eq!(reader.join().unwrap(), Ok(1));
    });
    assert!(matches!(first.wait(), Ok(Fault::Done)));
    one.store_u64(at(0), 2).unwrap();
    assert_eq!(read(&file, 0), Ok(2));
    drop((one, two, file));
    end(&engine);
}

/// A cut, a hole and the end of the file wait for no transfer of a slot.
#[test]
fn pages_that_are_being_written_are_cut_off() {
    let device = Arc::new(StoreDevice::new(GatedStore::new(file_store())).unwrap());
    let (engine, file) = machine(256, device.clone());
    let space = mapped(&engine, &file);
    (0..6).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    reclaim_until(&engine, || engine.swap_usage().slots == 6 && device.store().waiting() != 0);
    file.punch_hole(0, 2 * PAGE_SIZE).unwrap();
    file.set_length(4 * PAGE_SIZE).unwrap();
    file.set_length(PAGES * PAGE_SIZE).unwrap();
    for page in [0, 1, 4, 5] {
        assert_eq!((space.load_u64(at(page)), read(&file, page)), (Ok(0), Ok(0)), "page {page}");
    }
    drop((space, file));
    device.store().open();
    end(&engine);
}

/// A device whose bytes are not those that were written: an error at each access, and never data.
#[test]
fn a_page_with_wrong_bytes_is_an_error() {
    let disk = disk();
    let other = disk.try_clone().unwrap();
    let device: Arc<dyn SwapDevice> =
        Arc::new(StoreDevice::new(FileStore::from_file(disk).unwrap()).unwrap());
    let (engine, file) = machine(256, device.clone());
    let space = mapped(&engine, &file);
    (0..4).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    swap_out(&engine);
    (0..4096).for_each(|place| other.write_all_at(&[1], place * PAGE_SIZE + 100).unwrap());
    for _ in 0..2 {
        let error = space.fault_and_wait(at(0), Access::Write).unwrap_err();
        assert!(matches!(error, FaultError::Io { error: StoreError::WrongBytes { .. }, .. }), "{error}");
        assert!(matches!(read(&file, 1), Err(FileError::Store(StoreError::WrongBytes { .. }))));
        assert!(file.handle().write_at(2 * PAGE_SIZE + 8, &[1]).is_err());
    }
    // Part of a page cannot be made zeros. A cut in the page needs its bytes, too, and keeps the error.
    assert!(file.punch_hole(PAGE_SIZE, 8).is_err());
    file.handle().set_length(3 * PAGE_SIZE + 8).unwrap();
    assert!(space.load_u64(at(3)).is_err());
    assert_eq!(engine.remove_swap(&device).unwrap().lost, 4);
    assert!(space.load_u64(at(3)).is_err() && read(&file, 0).is_err());
    file.set_length(0).unwrap();
    file.set_length(PAGES * PAGE_SIZE).unwrap();
    (0..4).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(0)));
    space.audit().unwrap();
    drop((space, file));
    end(&engine);
}

/// A store of which some writes fail.
struct Flaky {
    inner: FileStore,
    writes: AtomicU64,
    /// Of so many writes, one fails. 1: all.
    fails: u64,
}

impl Store for Flaky {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, mut transfer: Transfer) {
        let is_write = matches!(transfer.bytes(), Bytes::Write(_));
        if is_write && (self.writes.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(self.fails) {
            let offset = transfer.offset();
            return transfer.complete(Err(StoreError::Io { offset, errno: 5 }));
        }
        self.inner.submit(transfer);
    }
}

fn flaky(fails: u64) -> Arc<dyn SwapDevice> {
    Arc::new(StoreDevice::new(Flaky { inner: file_store(), writes: AtomicU64::new(0), fails }).unwrap())
}

/// A device that cannot write: the pages stay in memory, and an access that finds no room fails. Nothing is lost.
#[test]
fn a_device_that_cannot_write_loses_nothing() {
    const FRAMES: u64 = 32;
    let (engine, file) = machine(FRAMES, flaky(1));
    let space = mapped(&engine, &file);
    let stored = (0..PAGES).take_while(|page| space.store_u64(at(*page), page + 1).is_ok()).count() as u64;
    assert!(stored > FRAMES / 2 && stored < FRAMES, "{stored} pages");
    for page in 0..stored {
        assert_eq!((space.load_u64(at(page)), read(&file, page)), (Ok(page + 1), Ok(page + 1)));
    }
    drop((space, file));
    end(&engine);
}

/// Threads of two groups, cuts, holes, advice, forks, a device that fails at times and is removed and added: the audits find nothing, and
/// all counts balance at the end. A thread's own page, which no other changes, keeps its bytes.
#[test]
fn counts_balance_beside_cuts_errors_and_swapoff() {
    for seed in 0..3 {
        let device = flaky(if seed == 0 { u64::MAX } else { 11 });
        let (engine, file) = machine(48, device.clone());
        engine.add_swap(compressed()).unwrap();
        let own = File::in_memory(&engine, PAGES * PAGE_SIZE).unwrap();
        let groups = [LimitConfig { high: 14, max: 18 }, LimitConfig::max(24)];
        let groups = groups.map(|config| MemoryLimit::new(&engine, config).unwrap());
        let spaces = [0, 1].map(|group| {
            let space = Space::new_in(&engine, &groups[group]).unwrap();
            map(&space, &file);
            let request = MapRequest::shared_file(&own, 0, PAGES * PAGE_SIZE, RIGHTS);
            space.map(request.at(Placement::Fixed(at(PAGES)))).unwrap();
            let request = MapRequest::file(&file, 0, PAGES * PAGE_SIZE, RIGHTS);
            space.map(request.at(Placement::Fixed(at(2 * PAGES)))).unwrap();
            space
        });
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|thread| {
                    let (spaces, file) = (&spaces, &file);
                    scope.spawn(move || work(seed * 10 + thread, &spaces[thread as usize % 2], file, thread))
                })
                .collect();
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    if engine.remove_swap(&device).is_ok() {
                        engine.add_swap(device.clone()).unwrap();
                    }
                    sleep(Duration::from_millis(2));
                }
            });
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            is_over.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
        });
        spaces.iter().for_each(|space| space.audit().unwrap());
        drop((spaces, file, own));
        end(&engine);
        for group in groups {
            assert_eq!(pages(group.usage()), (0, 0, 0), "seed {seed}: {:?}", group.usage());
        }
    }
}

fn work(seed: u64, space: &Space, file: &FileRef<Soft>, thread: u64) {
    let mut numbers = Rng::with_seed(seed);
    let mut model = [0; 8];
    for round in 1..1_500 {
        let page = numbers.u64(..PAGES);
        match numbers.u64(..60) {
            0 => _ = file.punch_hole(page * PAGE_SIZE + 8, 3 * PAGE_SIZE),
            1 => {
                file.set_length(page * PAGE_SIZE + 8).unwrap();
                file.set_length(PAGES * PAGE_SIZE).unwrap();
            }
            2 => _ = space.advise(at(2 * PAGES), PAGES * PAGE_SIZE, Advice::PageOut),
            3 => _ = space.discard(at(2 * PAGES), PAGES * PAGE_SIZE),
            4 => {
                if let Ok(child) = space.fork() {
                    let _ = child.store_u64(at(page), round);
                    child.audit().unwrap();
                }
            }
            5..15 => _ = file.handle().write_at(page * PAGE_SIZE, &round.to_ne_bytes()),
            15..25 => _ = file.handle().read_at(page * PAGE_SIZE, &mut [0; 8]),
            25..30 => _ = space.store_u64(at(2 * PAGES + page), round),
            30..35 => _ = space.load_u64(at(2 * PAGES + page)),
            35..42 => _ = space.store_u64(at(page), round),
            42..48 => _ = space.load_u64(at(page)),
            _ => {
                let own = numbers.usize(..8);
                let address = at(PAGES + thread * 8 + own as u64);
                if let Ok(word) = space.load_u64(address) {
                    assert_eq!(word, model[own], "a page of the thread's own");
                }
                if space.store_u64(address, round).is_ok() {
                    model[own] = round;
                }
            }
        }
    }
}
