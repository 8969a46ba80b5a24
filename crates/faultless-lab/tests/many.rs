//! Objects that are made and dropped leave no memory behind: files, spaces, mappings, pages, forks, threads. The tests
//! compare the engine's own count ([`Engine::metadata_bytes`]) and the allocator's.
//!
//! An ordinary run makes some thousands of each. `just many` makes and drops a million files, spaces, mappings and
//! pages, and 100,000 threads.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::{AddressSpace, Engine, File, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};

type Space = AddressSpace<Soft, Faultless>;

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);
/// Number of pages of a leaf table.
const LEAF: u64 = 512;

/// The system's allocator with a count of bytes.
struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call goes to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Makes the tests of this file run one at a time, because all count the same bytes.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A store whose pages are full of ones.
struct Ones(u64);

impl Store for Ones {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.0 * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        if let Bytes::Read(bytes) = transfer.bytes() {
            bytes.fill(1);
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}

fn engine() -> Arc<Engine<Soft>> {
    Engine::new(Soft::new(8192).expect("frames"), Limits::default()).expect("memory for an engine")
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn map(space: &Space, page: u64, pages: u64, rights: Protection) {
    let request = MapRequest::anonymous(pages * PAGE_SIZE).protection(rights).at(Placement::Fixed(at(page)));
    space.map(request).expect("a mapping");
}

fn map_file(space: &Space, file: &faultless::sync::Shared<File<Soft>>, page: u64, pages: u64) {
    let request = MapRequest::file(file, 0, pages * PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(page)));
    space.map(request).expect("a mapping");
}

/// Returns the used bytes: by the engine's count, and by the allocator's.
fn used(engine: &Engine<Soft>) -> (i64, i64) {
    (engine.metadata_bytes() as i64, LIVE.load(Ordering::Relaxed))
}

// ---- objects that are made and dropped

fn files(engine: &Arc<Engine<Soft>>, count: u64) {
    let ones: Arc<dyn Store> = Arc::new(Ones(2));
    let space = Space::new(engine).unwrap();
    for n in 0..count {
        let file = File::open(engine, Arc::clone(&ones)).unwrap();
        map_file(&space, &file, 1, 2);
        assert_ne!(space.load_u64(at(1 + n % 2)).unwrap(), 0);
        // Alternately, the handle or the mapping is dropped last.
        if n % 2 == 0 {
            space.unmap(at(1), 2 * PAGE_SIZE).unwrap();
        } else {
            drop(file);
            space.unmap(at(1), 2 * PAGE_SIZE).unwrap();
        }
    }
}

fn spaces(engine: &Arc<Engine<Soft>>, count: u64) {
    let file = File::open(engine, Arc::new(Ones(2))).unwrap();
    let parent = Space::new(engine).unwrap();
    map(&parent, 1, 2, READ_WRITE);
    map_file(&parent, &file, 8, 2);
    parent.store_u64(at(1), 1).unwrap();
    for n in 0..count {
        let space = if n % 2 == 0 { parent.fork().unwrap() } else { Space::new(engine).unwrap() };
        map(&space, 20, 1, READ_WRITE);
        space.store_u64(at(20), n).unwrap();
        if n % 3 == 0 {
            space.exit();
        }
    }
}

fn mappings(engine: &Arc<Engine<Soft>>, count: u64) {
    let space = Space::new(engine).unwrap();
    const AT_ONCE: u64 = 1_000;
    for first in (0..count).step_by(AT_ONCE as usize) {
        for n in first..count.min(first + AT_ONCE) {
            // Neighbours with different rights do not merge. Some mappings have leaf tables of their own.
            let page = 1 + n % AT_ONCE * if n % 2 == 0 { 1 } else { LEAF };
            let rights = if n % 4 < 2 { READ_WRITE } else { Protection::READ };
            let request =
                MapRequest::anonymous(PAGE_SIZE).protection(rights).at(Placement::FixedNoReplace(at(page)));
            if space.map(request).is_ok() {
                let _ = space.load_u64(at(page)).unwrap();
            }
        }
        space.unmap(at(1), AT_ONCE * LEAF * PAGE_SIZE).unwrap();
    }
}

fn pages(engine: &Arc<Engine<Soft>>, count: u64) {
    const AT_ONCE: u64 = 2_000;
    let space = Space::new(engine).unwrap();
    let file = File::in_memory(engine, AT_ONCE * PAGE_SIZE).unwrap();
    for round in 0..count.div_ceil(AT_ONCE) {
        let start = 1 + (round % 50) * 10_000;
        if round % 2 == 0 {
            map(&space, start, AT_ONCE, READ_WRITE);
        } else {
            map_file(&space, &file, start, AT_ONCE);
        }
        (0..AT_ONCE).for_each(|page| space.store_u64(at(start + page), page).unwrap());
        space.unmap(at(start), AT_ONCE * PAGE_SIZE).unwrap();
    }
}

/// Runs `count` threads, 100 at once. Each maps, touches and unmaps a page.
fn threads(engine: &Arc<Engine<Soft>>, count: u64) {
    const AT_ONCE: u64 = 100;
    let space = Space::new(engine).unwrap();
    for _ in 0..count.div_ceil(AT_ONCE) {
        let all = Barrier::new(AT_ONCE as usize);
        std::thread::scope(|scope| {
            for n in 0..AT_ONCE {
                let (space, all) = (&space, &all);
                let work = move || {
                    all.wait();
                    let page = (1 + n) * LEAF;
                    map(space, page, 1, READ_WRITE);
                    space.store_u64(at(page), n).unwrap();
                    space.unmap(at(page), PAGE_SIZE).unwrap();
                };
                std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work).unwrap();
            }
        });
    }
}

/// The size of a slot's list of retired memory (docs/memory.md), in bytes.
const LIST: i64 = 24 << 10;

type Kind = (&'static str, fn(&Arc<Engine<Soft>>, u64), u64);

/// The kinds of objects, with their numbers in an ordinary run.
const KINDS: [Kind; 5] = [
    ("files", files, 4_000),
    ("spaces", spaces, 4_000),
    ("mappings", mappings, 10_000),
    ("pages", pages, 20_000),
    ("threads", threads, 400),
];

fn end_where_they_began(times: u64) {
    let _alone = alone();
    let engine = engine();
    // This makes everything that is made only once: slots, their lists, caches of frames.
    KINDS.iter().for_each(|(_, work, _)| work(&engine, 2_000));
    engine.flush();
    for (name, work, count) in KINDS {
        let (metadata, live) = used(&engine);
        work(&engine, count * times);
        engine.flush();
        let (metadata_after, live_after) = used(&engine);
        println!(
            "{} {name}: metadata {metadata} -> {metadata_after}, heap {live} -> {live_after}",
            count * times
        );
        assert_eq!(engine.frame_usage().used, 1, "{name}: frames are left");
        // Lists of retired memory keep their capacity, for at most the first 64 slots.
        let lists = if name == "threads" { 64 * LIST } else { LIST };
        assert!(
            metadata_after <= metadata + lists,
            "{name}: the engine has {} more",
            metadata_after - metadata
        );
        // The test harness allocates some memory, too.
        assert!(live_after < live + lists + 4096, "{name}: the heap has {} more", live_after - live);
    }
}

#[test]
fn thousands_of_each_end_where_they_began() {
    end_where_they_began(1);
}

#[test]
#[ignore = "minutes: `just many`"]
fn a_million_of_each_end_where_they_began() {
    end_where_they_began(250);
}

/// Once, 500 threads that had unmapped everything kept 160 MB of leaf tables.
#[test]
fn threads_that_retire_little_keep_little() {
    const THREADS: u64 = 500;
    const EACH: u64 = 80;
    /// The limit of retired memory (docs/memory.md), in bytes.
    const RETIRED: i64 = 4_608 << 10;
    let _alone = alone();
    let engine = engine();
    let space = Space::new(&engine).unwrap();
    let (there, done, go) = (
        Barrier::new(THREADS as usize + 1),
        Barrier::new(THREADS as usize + 1),
        Barrier::new(THREADS as usize + 1),
    );
    let span = EACH * LEAF;
    std::thread::scope(|scope| {
        for n in 0..THREADS {
            let (space, there, done, go) = (&space, &there, &done, &go);
            let work = move || {
                // This makes the slot and the upper tables for the later mappings. They stay as long as the space.
                let first = (1 + n) * span;
                map(space, first, 1, READ_WRITE);
                space.store_u64(at(first), n).unwrap();
                space.unmap(at(first), PAGE_SIZE).unwrap();
                there.wait();
                for page in (first..first + span).step_by(LEAF as usize) {
                    map(space, page, 1, READ_WRITE);
                    space.store_u64(at(page), n).unwrap();
                    space.unmap(at(page), PAGE_SIZE).unwrap();
                }
                done.wait();
                go.wait();
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work).unwrap();
        }
        there.wait();
        engine.flush();
        let (metadata, live) = used(&engine);
        done.wait();
        let (metadata_after, live_after) = used(&engine);
        println!("metadata {metadata} -> {metadata_after}, heap {live} -> {live_after}");
        go.wait();
        let upper = (THREADS * span / (LEAF * LEAF) + 2) as i64 * 4096;
        assert!(metadata_after - metadata < RETIRED + upper, "metadata {metadata} -> {metadata_after}");
        assert!(live_after - live < RETIRED + upper + (1 << 20), "heap {live} -> {live_after}");
    });
}

/// Makes some objects of each kind that is counted.
fn something(engine: &Arc<Engine<Soft>>, ones: &Arc<dyn Store>) -> (Vec<Space>, impl Sized) {
    let (mut spaces, mut files) = (Vec::with_capacity(40), Vec::with_capacity(20));
    for n in 0..20 {
        let file = File::open(engine, Arc::clone(ones)).unwrap();
        let space = Space::new(engine).unwrap();
        map_file(&space, &file, 1, 1_500);
        for page in (0..1_500).step_by(250) {
            assert_ne!(space.load_u64(at(1 + page)).unwrap(), 0);
        }
        for m in 0..200 {
            map(&space, 4_000 + m * 2, 1, if m % 2 == 0 { READ_WRITE } else { Protection::READ });
        }
        (0..100).for_each(|page| space.store_u64(at(4_000 + page * 4), n).unwrap());
        spaces.push(space.fork().unwrap());
        spaces.push(space);
        files.push(file);
    }
    (spaces, files)
}

/// The engine's count must agree with the allocator's.
#[test]
fn metadata_is_what_the_allocator_gave() {
    let _alone = alone();
    let engine = engine();
    let ones: Arc<dyn Store> = Arc::new(Ones(2_000));
    drop(something(&engine, &ones));
    engine.flush();
    let (metadata, live) = used(&engine);
    let made = something(&engine, &ones);
    let (full, full_live) = used(&engine);
    let (said, had) = (full - metadata, full_live - live);
    println!("the engine says {said} bytes, and has {had}");
    assert!(said > 1 << 20, "the test makes something");
    // The difference is the two vectors of the test.
    assert!((-1024..1024).contains(&(had - said)), "the engine says {said} bytes, and has {had}");
    drop(made);
    engine.flush();
    assert!(engine.metadata_bytes() as i64 <= metadata + LIST);
}

/// The bytes of one file, space, page and mapping must be those in docs/memory.md.
#[test]
fn what_each_takes_is_as_documented() {
    let _alone = alone();
    let engine = engine();
    let ones: Arc<dyn Store> = Arc::new(Ones(1 << 20));
    drop(something(&engine, &ones));
    engine.flush();
    let metadata = || engine.metadata_bytes();
    let start = metadata();
    let space = Space::new(&engine).unwrap();
    let of_space = metadata() - start;
    let start = metadata();
    let file = File::open(&engine, Arc::clone(&ones)).unwrap();
    let of_file = metadata() - start;
    map_file(&space, &file, 1, 1 << 20);
    let start = metadata();
    let mut byte = [0];
    file.handle().read_at((1 << 19) * PAGE_SIZE, &mut byte).unwrap();
    let of_page_alone = metadata() - start;
    let start = metadata();
    (0..LEAF).for_each(|page| assert_eq!(file.handle().read_at(page * PAGE_SIZE, &mut byte).unwrap(), 1));
    let of_pages = metadata() - start;
    map(&space, 1 << 30, 1, READ_WRITE);
    engine.flush();
    let start = metadata();
    space.load_u64(at(1 << 30)).unwrap();
    let of_touch_alone = metadata() - start;
    const MAPPINGS: u64 = 30_000;
    let mut of_mappings = [0, 0, 0];
    for (order, of_mapping) in of_mappings.iter_mut().enumerate() {
        let space = Space::new(&engine).unwrap();
        let start = metadata();
        for n in 0..MAPPINGS {
            let place = match order {
                0 => n,
                1 => MAPPINGS - 1 - n,
                _ => n * 7_919 % MAPPINGS,
            };
            map(&space, 1 + place * 2, 1, READ_WRITE);
        }
        engine.flush();
        *of_mapping = (metadata() - start) as u64 / MAPPINGS;
    }
    println!(
        "space {of_space}, file {of_file}, page of a file alone {of_page_alone}, 512 together {of_pages}"
    );
    println!("touch alone {of_touch_alone}, mappings upwards, downwards, mixed {of_mappings:?}");
    assert!(of_space <= 7 << 10, "a space takes {of_space}");
    assert!(of_file <= 7 << 10, "a file takes {of_file}");
    assert!(of_page_alone <= 13 << 10, "a page alone takes {of_page_alone}");
    assert!(of_pages <= 9 << 10, "512 pages take {of_pages}");
    assert!(of_touch_alone <= 13 << 10, "the first touch takes {of_touch_alone}");
    assert!(of_mappings.iter().all(|bytes| *bytes <= 256), "a mapping takes {of_mappings:?}");
}
