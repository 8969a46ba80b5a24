//! Pages of files under memory limits: who pays, what is taken at max, and that all charges end.

use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::{
    AddressSpace, Engine, File, FileRef, LimitConfig, Limits, MapRequest, MemoryLimit, MemoryUsage, Placement,
};
use faultless_soft::{Cpu, Soft};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

type Space = AddressSpace<Soft, Faultless>;

const RIGHTS: Protection = Protection::READ.union(Protection::WRITE);

/// A store whose pages have their number in the first word. Of `fails` transfers, one fails; 0: none.
struct Numbers {
    pages: u64,
    fails: u64,
    transfers: AtomicU64,
}

impl Numbers {
    fn new(pages: u64, fails: u64) -> Arc<Self> {
        Arc::new(Self { pages, fails, transfers: AtomicU64::new(0) })
    }
}

impl Store for Numbers {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.pages * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        let offset = transfer.offset();
        let number = self.transfers.fetch_add(1, Ordering::Relaxed) + 1;
        if self.fails != 0 && number.is_multiple_of(self.fails) {
            return transfer.complete(Err(StoreError::Io { offset, errno: 5 }));
        }
        if let Bytes::Read(bytes) = transfer.bytes() {
            bytes.fill(0);
            bytes[..8].copy_from_slice(&(offset / PAGE_SIZE).to_le_bytes());
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }

    fn set_length(&self, _length: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn punch(&self, _offset: u64, _length: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

fn engine(frames: u64) -> Arc<Engine<Soft>> {
    Engine::new(Soft::new(frames).unwrap(), Limits::default()).unwrap()
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn mapped(engine: &Arc<Engine<Soft>>, limit: &MemoryLimit<Soft>, request: MapRequest<Soft>) -> Space {
    let space = Space::new_in(engine, limit).unwrap();
    space.map(request.at(Placement::Fixed(at(0)))).unwrap();
    space
}

fn of_file(file: &FileRef<Soft>, pages: u64) -> MapRequest<Soft> {
    MapRequest::shared_file(file, 0, pages * PAGE_SIZE, Protection::READ)
}

fn pages(usage: MemoryUsage) -> (u64, u64) {
    (usage.anonymous, usage.file)
}

/// The group whose space brings a page in pays for it, whoever uses it later. A read by handle charges no group.
#[test]
fn the_group_that_brings_a_page_in_pays_for_it_until_it_goes() {
    let engine = engine(256);
    let group = || MemoryLimit::new(&engine, LimitConfig::max(64)).unwrap();
    let (first, second) = (group(), group());
    let file = File::open_rw(&engine, Numbers::new(32, 0)).unwrap();
    let (one, two) =
        (mapped(&engine, &first, of_file(&file, 32)), mapped(&engine, &second, of_file(&file, 32)));
    let handle = file.handle();
    let mut bytes = [0; 8];
    (0..4).for_each(|page| assert_eq!(handle.read_at(page * PAGE_SIZE, &mut bytes), Ok(8)));
    (0..12).for_each(|page| assert_eq!(one.load_u64(at(page)), Ok(page)));
    (0..16).for_each(|page| assert_eq!(two.load_u64(at(page)), Ok(page)));
    assert_eq!((pages(first.usage()), pages(second.usage())), ((0, 8), (0, 4)));
    assert_eq!((first.usage().major_faults, second.usage().major_faults), (8, 4));
    // A page that is unmapped stays in the cache, and is paid for.
    drop(one);
    assert_eq!(pages(first.usage()), (0, 8));
    handle.punch_hole(4 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    assert_eq!((pages(first.usage()), pages(second.usage())), ((0, 6), (0, 4)));
    handle.set_length(14 * PAGE_SIZE).unwrap();
    assert_eq!((pages(first.usage()), pages(second.usage())), ((0, 6), (0, 2)));
    drop((two, handle, file));
    engine.flush();
    assert_eq!((pages(first.usage()), pages(second.usage())), ((0, 0), (0, 0)));
    assert_eq!(engine.frame_usage().used, 1);
}

/// A group at max reads a file that is larger than its limit, and takes only pages of its own.
#[test]
fn a_group_at_max_takes_pages_of_its_own() {
    const PAGES: u64 = 256;
    let engine = engine(1024);
    let limit = MemoryLimit::new(&engine, LimitConfig::max(32)).unwrap();
    let others = MemoryLimit::new(&engine, LimitConfig::max(256)).unwrap();
    let file = File::open(&engine, Numbers::new(PAGES, 0)).unwrap();
    let other = File::open(&engine, Numbers::new(100, 0)).unwrap();
    let beside = mapped(&engine, &others, of_file(&other, 100));
    (0..100).for_each(|page| assert_eq!(beside.load_u64(at(page)), Ok(page)));
    let space = mapped(&engine, &limit, of_file(&file, PAGES));
    let memory = space.map_owned(MapRequest::anonymous(8 * PAGE_SIZE)).unwrap();
    for page in 0..PAGES {
        space.store_u64(VirtAddr::new(memory.address().get() + page % 8 * PAGE_SIZE), page).unwrap();
        assert_eq!(space.load_u64(at(page)), Ok(page));
        let usage = limit.usage();
        assert!(usage.resident <= 32 && usage.file > 0, "page {page}: {usage:?}");
    }
    assert_eq!(limit.usage().anonymous, 8, "anonymous pages stay: there is no swap device");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let space = &space;
            scope.spawn(move || {
                let mut numbers = Rng::with_seed(thread);
                for _ in 0..2_000 {
                    let page = numbers.u64(..PAGES);
                    assert_eq!(space.load_u64(at(page)), Ok(page));
                }
            });
        }
    });
    assert!(limit.usage().resident <= 32);
    assert_eq!(pages(others.usage()), (0, 100), "a page of another group was taken");
    drop((memory, space, beside, file, other));
    engine.flush();
    assert_eq!((pages(limit.usage()), pages(others.usage())), ((0, 0), (0, 0)));
    assert_eq!(engine.frame_usage().used, 1);
}

/// Pages of a file without a store are charged at their first touch, and cannot be taken.
#[test]
fn pages_without_a_store_are_charged() {
    let engine = engine(128);
    let limit = MemoryLimit::new(&engine, LimitConfig::max(16)).unwrap();
    let file = File::in_memory(&engine, 32 * PAGE_SIZE).unwrap();
    let space = mapped(&engine, &limit, MapRequest::shared_file(&file, 0, 32 * PAGE_SIZE, RIGHTS));
    (0..16).for_each(|page| space.store_u64(at(page), page).unwrap());
    assert_eq!(pages(limit.usage()), (0, 16));
    assert!(space.store_u64(at(16), 16).is_err(), "the group is full, and no page can be taken");
    assert!(limit.usage().out_of_memory > 0);
    file.set_length(8 * PAGE_SIZE).unwrap();
    assert_eq!(pages(limit.usage()), (0, 8));
    (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page)));
    drop((space, file));
    engine.flush();
    assert_eq!(pages(limit.usage()), (0, 0));
    assert_eq!(engine.frame_usage().used, 1);
}

/// When a group has ended, the group above pays for its pages in the cache, and takes them at its own max.
#[test]
fn the_group_above_pays_for_pages_of_a_group_that_ended() {
    let engine = engine(256);
    let above = MemoryLimit::new(&engine, LimitConfig::max(24)).unwrap();
    let file = File::open(&engine, Numbers::new(64, 0)).unwrap();
    let child = above.child(LimitConfig::max(20)).unwrap();
    let space = mapped(&engine, &child, of_file(&file, 64));
    (0..16).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page)));
    drop((space, child));
    engine.flush();
    assert_eq!(pages(above.usage()), (0, 16));
    let space = mapped(&engine, &above, of_file(&file, 64));
    for page in 16..64 {
        assert_eq!(space.load_u64(at(page)), Ok(page));
        assert!(above.usage().resident <= 24);
    }
    drop((space, file));
    engine.flush();
    assert_eq!(pages(above.usage()), (0, 0));
    assert_eq!(engine.frame_usage().used, 1);
}

/// Threads with reads that fail, cuts, holes, advice and private copies. All charges end.
#[test]
fn charges_are_zero_after_errors_and_cuts() {
    const PAGES: u64 = 64;
    for seed in 0..4 {
        let engine = engine(512);
        let limit = MemoryLimit::new(&engine, LimitConfig { high: 24, max: 40 }).unwrap();
        let file = File::open_rw(&engine, Numbers::new(PAGES, 7)).unwrap();
        let private = MapRequest::file(&file, 0, PAGES * PAGE_SIZE, RIGHTS);
        let spaces = [mapped(&engine, &limit, private), mapped(&engine, &limit, of_file(&file, PAGES))];
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (spaces, file) = (&spaces, &file);
                scope.spawn(move || {
                    let mut numbers = Rng::with_seed(seed * 10 + thread);
                    for _ in 0..500 {
                        let page = numbers.u64(..PAGES);
                        let space = &spaces[thread as usize % 2];
                        match numbers.u64(..40) {
                            0 => _ = file.handle().punch_hole(page * PAGE_SIZE, PAGE_SIZE),
                            1 => {
                                file.set_length((page + 1) * PAGE_SIZE).unwrap();
                                file.set_length(PAGES * PAGE_SIZE).unwrap();
                            }
                            2..10 => _ = spaces[0].store_u64(at(page % 8), 1),
                            _ => _ = space.load_u64(at(page)),
                        }
                    }
                });
            }
        });
        spaces.iter().for_each(|space| space.audit().unwrap());
        drop((spaces, file));
        engine.flush();
        assert_eq!(pages(limit.usage()), (0, 0), "seed {seed}: {:?}", limit.usage());
        assert_eq!(engine.frame_usage().used, 1);
    }
}

/// A store that keeps writes until it is told to go on.
struct KeepsWrites {
    inner: Arc<Numbers>,
    kept: Mutex<Vec<Transfer>>,
}

impl Store for KeepsWrites {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, mut transfer: Transfer) {
        match transfer.bytes() {
            Bytes::Write(_) => self.kept.lock().unwrap().push(transfer),
            Bytes::Read(_) => self.inner.submit(transfer),
        }
    }
}

/// Dirty pages, and pages that are being written, are counted for the group that pays for them.
#[test]
fn dirty_pages_are_counted_for_the_group_that_pays() {
    let engine = engine(256);
    let above = MemoryLimit::new(&engine, LimitConfig::max(128)).unwrap();
    let groups = [(); 2].map(|()| above.child(LimitConfig::max(64)).unwrap());
    let store = Arc::new(KeepsWrites { inner: Numbers::new(32, 0), kept: Mutex::default() });
    let go_on = || {
        let kept = std::mem::take(&mut *store.kept.lock().unwrap());
        kept.into_iter().for_each(|write| store.inner.submit(write));
    };
    let file = File::open_rw(&engine, store.clone()).unwrap();
    let request = || MapRequest::shared_file(&file, 0, 32 * PAGE_SIZE, RIGHTS);
    let [one, two] = [0, 1].map(|group| mapped(&engine, &groups[group], request()));
    let counts = |limit: &MemoryLimit<Soft>| (limit.usage().dirty, limit.usage().writeback);
    let all = || (counts(&groups[0]), counts(&groups[1]), counts(&above));
    (0..3).for_each(|page| one.store_u64(at(page), 7).unwrap());
    (0..5).for_each(|page| assert!(two.load_u64(at(10 + page)).is_ok()));
    (0..5).for_each(|page| two.store_u64(at(10 + page), 8).unwrap());
    // A page that another group pays for.
    two.store_u64(at(0), 9).unwrap();
    assert_eq!(all(), ((3, 0), (5, 0), (8, 0)));
    file.handle().start_sync();
    assert_eq!(all(), ((0, 3), (0, 5), (0, 8)));
    go_on();
    assert_eq!(all(), ((0, 0), (0, 0), (0, 0)));
    two.store_u64(at(20), 1).unwrap();
    assert_eq!(all(), ((0, 0), (1, 0), (1, 0)));
    file.handle().start_sync();
    go_on();
    assert_eq!(all(), ((0, 0), (0, 0), (0, 0)));
}
