//! Eviction: pages of files that nobody uses go, leave nothing behind, and cost a bounded search if there is no memory.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::{AddressSpace, Engine, File, FileError, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Space = AddressSpace<Soft, Faultless>;

/// A store of pages of ones. It takes every hole and forgets every write, or refuses all writes.
struct Ones {
    pages: u64,
    refuses: AtomicBool,
}

impl Ones {
    fn new(pages: u64) -> Arc<Self> {
        Arc::new(Self { pages, refuses: AtomicBool::new(false) })
    }
}

impl Store for Ones {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.pages * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        match transfer.bytes() {
            Bytes::Read(bytes) => bytes.fill(1),
            Bytes::Write(_) if self.refuses.load(Ordering::Relaxed) => {
                let offset = transfer.offset();
                return transfer.complete(Err(StoreError::Io { offset, errno: 5 }));
            }
            Bytes::Write(_) => {}
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
    Engine::new(Soft::new(frames).expect("frames"), Limits::default()).expect("memory for an engine")
}

fn read(file: &File<Soft>, page: u64) {
    let mut byte = [0];
    assert_eq!(file.handle().read_at(page * PAGE_SIZE, &mut byte), Ok(1));
    assert_eq!(byte, [1]);
}

fn at(start: VirtAddr, page: u64) -> VirtAddr {
    VirtAddr::new(start.get() + page * PAGE_SIZE)
}

/// Asserts that only the page of zeros is left.
fn assert_nothing_is_left(engine: &Engine<Soft>) {
    assert_eq!((engine.cached_pages(), engine.frame_usage().used), (0, 1));
    assert_eq!(engine.frames_for_reclaim(), [], "a queue has a page");
}

/// Failed before a fix: each page kept its file's memory until there was memory pressure.
#[test]
fn a_hundred_thousand_files_that_were_read_and_dropped_leave_nothing() {
    let engine = engine(64);
    let ones = Ones::new(4);
    for _ in 0..100_000 {
        let file = File::open(&engine, ones.clone()).unwrap();
        read(&file, 0);
        read(&file, 3);
        assert_eq!(engine.cached_pages(), 2);
    }
    assert_nothing_is_left(&engine);
    assert_eq!(Arc::strong_count(&ones), 1, "a dropped file keeps its store");
}

/// Failed before a fix: each round left an entry.
#[test]
fn rounds_of_reads_and_holes_or_cuts_leave_nothing() {
    let engine = engine(64);
    let file = File::open_rw(&engine, Ones::new(4)).unwrap();
    let handle = file.handle();
    for round in 0..10_000 {
        read(&file, 1);
        read(&file, 2);
        assert_eq!(engine.cached_pages(), 2, "round {round}");
        handle.punch_hole(PAGE_SIZE, PAGE_SIZE).unwrap();
        assert_eq!(engine.cached_pages(), 1, "round {round}");
        handle.set_length(PAGE_SIZE).unwrap();
        assert_eq!((engine.cached_pages(), engine.frame_usage().used), (0, 1), "round {round}");
        handle.set_length(4 * PAGE_SIZE).unwrap();
    }
    drop((handle, file));
    assert_nothing_is_left(&engine);
}

/// Returns the number of pages that reclaim visits until a store to new memory fails, and at the failures after that.
fn looks_until_no_memory(engine: &Arc<Engine<Soft>>) -> (u64, u64) {
    let space = Space::new(engine).unwrap();
    const MANY: u64 = 5000;
    let start = space.map(MapRequest::anonymous(MANY * PAGE_SIZE)).unwrap();
    let looks = || engine.statistics().get(Counter::ReclaimLooks);
    let before = looks();
    let failed = (0..MANY).find(|page| space.store_u64(at(start, *page), 1).is_err());
    let failed = failed.expect("memory for all");
    let first = looks();
    for page in failed..failed + 10 {
        space.store_u64(at(start, page), 1).expect_err("a store succeeds without memory");
    }
    (first - before, looks() - first)
}

/// Failed before a fix: each failed fault visited all pages two hundred times. Each page is visited until it is taken, and not again.
#[test]
fn a_fault_that_finds_no_memory_looks_at_no_page_that_is_gone() {
    const PAGES: u64 = 4000;
    for is_mapped in [false, true] {
        let engine = engine(PAGES + 100);
        let file = File::open(&engine, Ones::new(PAGES)).unwrap();
        let space = Space::new(&engine).unwrap();
        let start = space.map(MapRequest::file(&file, 0, PAGES * PAGE_SIZE, Protection::READ)).unwrap();
        for page in 0..PAGES {
            if is_mapped {
                space.load_u64(at(start, page)).unwrap();
            } else {
                read(&file, page);
            }
        }
        let (first, then) = looks_until_no_memory(&engine);
        // Once while it is young, and once more.
        assert!((PAGES..=2 * PAGES).contains(&first), "{first} looks at {PAGES} pages, mapped: {is_mapped}");
        assert_eq!(then, 0, "looks at pages that are gone, mapped: {is_mapped}");
        assert_eq!(engine.cached_pages(), 0);
    }
}

/// Pages that cannot be written stay. A fault that finds no others visits a bounded number of them.
#[test]
fn a_fault_that_finds_only_dirty_pages_looks_at_a_bounded_number() {
    let looks = |pages: u64| {
        let engine = engine(pages + 100);
        let ones = Ones::new(pages);
        let file = File::open_rw(&engine, ones.clone()).unwrap();
        let handle = file.handle();
        ones.refuses.store(true, Ordering::Relaxed);
        (0..pages).for_each(|page| _ = handle.write_at(page * PAGE_SIZE, &[2]).unwrap());
        let (_, ten) = looks_until_no_memory(&engine);
        // Invariant 9: no dirty page was dropped.
        let mut byte = [0];
        (0..pages).for_each(|page| {
            handle.read_at(page * PAGE_SIZE, &mut byte).unwrap();
            assert_eq!(byte, [2], "a dirty page was dropped");
        });
        assert!(matches!(handle.sync(), Err(FileError::Store(_))));
        ten
    };
    let (few, many) = (looks(2000), looks(8000));
    assert!(many <= few + few / 10, "visits grow with the pages: {few} at 2,000, {many} at 8,000");
}
