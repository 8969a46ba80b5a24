//! Many more threads than pages: each of 500 threads goes on, and none is told that there is no memory while pages can be reclaimed.
//!
//! The work is bounded and no time is asserted. A test of this file that does not end shows that a thread does not go on.

use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::store::{DelayedStore, FileStore};
use faultless::swap::{CompressedMemory, StoreDevice, SwapDevice};
use faultless::{AddressSpace, Engine, File, LimitConfig, Limits, MapRequest, MemoryLimit};
use faultless_soft::{Cpu, Soft};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

type Space = AddressSpace<Soft, Faultless>;

const THREADS: u64 = 500;
/// The pages of the memory that the threads share. Each thread has a word of its own in each page.
const PAGES: u64 = 1024;
/// The accesses of each thread.
const ACCESSES: u64 = 24;

fn word(at: VirtAddr, page: u64, word: u64) -> VirtAddr {
    VirtAddr::new(at.get() + page * PAGE_SIZE + word * 8)
}

fn compressed() -> Arc<dyn SwapDevice> {
    Arc::new(CompressedMemory::new(8 * PAGES, usize::MAX).unwrap())
}

/// A real file of this many pages, which is gone when it is closed.
fn file(pages: u64) -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * PAGE_SIZE).unwrap();
    file
}

/// A device whose transfers take a millisecond each, so that most threads wait for one.
fn slow() -> Arc<dyn SwapDevice> {
    let store = DelayedStore::new(FileStore::from_file(file(8 * PAGES)).unwrap(), Duration::from_millis(1));
    Arc::new(StoreDevice::new(store).unwrap())
}

/// Runs `body` on all threads with its number, and checks that each has made its accesses.
fn run(body: impl Fn(u64) -> u64 + Sync) {
    let made = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (made, body) = (&made, &body);
            let small = std::thread::Builder::new().stack_size(256 << 10);
            small.spawn_scoped(scope, move || made.fetch_add(body(thread), Ordering::Relaxed)).unwrap();
        }
    });
    assert_eq!(made.load(Ordering::Relaxed), THREADS * ACCESSES);
}

/// Checks that nothing is left: no frame but the page of zeros, and no slot. Transfers may still be under way.
fn end(engine: &Engine<Soft>) {
    for _ in 0..10_000 {
        engine.flush();
        if engine.frame_usage().used == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

/// Stores and loads words of the thread's own in random pages, and compares with what it has stored. An error fails the test.
fn own_words(space: &Space, at: VirtAddr, thread: u64) -> u64 {
    let (mut numbers, mut stored) = (Rng::with_seed(thread), std::collections::HashMap::new());
    for access in 0..ACCESSES {
        let page = numbers.u64(..PAGES);
        let place = word(at, page, thread);
        let expected = stored.get(&page).copied().unwrap_or(0);
        if numbers.bool() {
            space.store_u64(place, access + 1).unwrap();
            stored.insert(page, access + 1);
        } else {
            assert_eq!(space.load_u64(place).unwrap(), expected, "thread {thread}, page {page}");
        }
    }
    ACCESSES
}

/// 500 threads in a group of 200 pages, and in one of 64. One space, whose words each thread has for itself.
#[test]
fn each_thread_of_a_small_group_goes_on() {
    for (device, pages) in [(compressed(), 200), (compressed(), 64), (slow(), 200)] {
        let engine = Engine::new(Soft::with_caches(4096).unwrap(), Limits::default()).unwrap();
        engine.add_swap(device).unwrap();
        let limit = MemoryLimit::new(&engine, LimitConfig::max(pages)).unwrap();
        let space = Space::new_in(&engine, &limit).unwrap();
        let at = space.map(MapRequest::anonymous(PAGES * PAGE_SIZE)).unwrap();
        run(|thread| own_words(&space, at, thread));
        let usage = limit.usage();
        assert!(usage.resident <= pages && usage.swap > 0, "{usage:?}");
        assert_eq!(usage.out_of_memory, 0, "{usage:?}");
        space.audit().unwrap();
        drop(space);
        engine.flush();
        end(&engine);
        let usage = limit.usage();
        assert_eq!((usage.resident, usage.swap), (0, 0), "{usage:?}");
    }
}

/// The same in a machine of 256 frames without a group.
#[test]
fn each_thread_of_a_small_machine_goes_on() {
    let engine = Engine::new(Soft::with_caches(256).unwrap(), Limits::default()).unwrap();
    engine.add_swap(compressed()).unwrap();
    let space = Space::new(&engine).unwrap();
    let at = space.map(MapRequest::anonymous(PAGES * PAGE_SIZE)).unwrap();
    run(|thread| own_words(&space, at, thread));
    assert!(engine.statistics().get(Counter::SwapIns) > 0);
    drop(space);
    end(&engine);
}

/// 500 threads read a mapped file, of which the page cache may have fewer pages than there are threads. Each page that was read from
/// the store served a fault that waited for it, but for one in fifty.
#[test]
fn each_reader_of_a_file_goes_on() {
    const CACHED: u64 = 200;
    let limits = Limits { cached_pages: CACHED, ..Limits::default() };
    let engine = Engine::new(Soft::with_caches(4096).unwrap(), limits).unwrap();
    let mut real = file(0);
    for page in 0..PAGES {
        real.write_all(&[&(page + 1).to_le_bytes()[..], &[0; PAGE_SIZE as usize - 8]].concat()).unwrap();
    }
    let store = DelayedStore::new(FileStore::from_file(real).unwrap(), Duration::from_micros(100));
    let file = File::open(&engine, Arc::new(store)).unwrap();
    let space = Space::new(&engine).unwrap();
    let at = space.map(MapRequest::file(&file, 0, PAGES * PAGE_SIZE, Protection::READ)).unwrap();
    space.advise(at, PAGES * PAGE_SIZE, faultless::Advice::Random).unwrap();
    run(|thread| {
        let mut numbers = Rng::with_seed(thread);
        for _ in 0..ACCESSES {
            let page = numbers.u64(..PAGES);
            assert_eq!(space.load_u64(word(at, page, 0)).unwrap(), page + 1, "thread {thread}");
        }
        ACCESSES
    });
    let statistics = engine.statistics();
    drop((space, file));
    end(&engine);
    let (reads, waited) = (statistics.get(Counter::IoReads), statistics.get(Counter::MajorFaults));
    assert!(reads <= waited + waited / 50, "{reads} reads for {waited} faults, {statistics:?}");
}
