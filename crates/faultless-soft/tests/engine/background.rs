//! Background reclaim: a reserve of free frames, groups below their high limits, and the life of the worker.

use crate::stuck::Stuck;
use crate::until;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::stats::Counter;
use faultless::swap::{CompressedMemory, SwapDevice};
use faultless::{
    AddressSpace, BackgroundError, Engine, LimitConfig, Limits, MapRequest, MemoryLimit, Placement, Reserve,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const FRAMES: u64 = 1024;

fn compressed() -> Arc<dyn SwapDevice> {
    Arc::new(CompressedMemory::new(8192, 8192 * PAGE_SIZE as usize).unwrap())
}

/// An engine that keeps 10 to 20 % of its frames free.
fn engine(device: Arc<dyn SwapDevice>) -> Arc<Engine<Soft>> {
    let limits = Limits { reserve: Reserve::per_mille(100, 200).unwrap(), ..Limits::default() };
    let engine = Engine::new(Soft::with_caches(FRAMES).unwrap(), limits).unwrap();
    engine.add_swap(device).unwrap();
    engine
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn map(space: &AddressSpace<Soft>, pages: u64) {
    space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
}

fn free(engine: &Engine<Soft>) -> u64 {
    let usage = engine.frame_usage();
    usage.limit - usage.used
}

fn counted(engine: &Engine<Soft>, counter: Counter) -> u64 {
    engine.statistics().get(counter)
}

/// Two threads each write twice as many pages as there are frames, and read them back.
fn work(engine: &Arc<Engine<Soft>>) {
    let pages = 2 * FRAMES;
    std::thread::scope(|scope| {
        for seed in 1..=2 {
            scope.spawn(move || {
                let space = AddressSpace::new(engine).unwrap();
                map(&space, pages);
                (0..pages).for_each(|page| space.store_u64(at(page), page * seed).unwrap());
                for page in 0..pages {
                    assert_eq!(space.load_u64(at(page)).unwrap(), page * seed, "page {page} is lost");
                }
            });
        }
    });
    // A worker may have a last batch of them.
    until("invariant 11: no frame is left", || {
        engine.flush();
        engine.frame_usage().used == 1
    });
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

/// The worker takes part, and no page is lost.
#[test]
fn no_page_is_lost_beside_the_worker() {
    let engine = engine(compressed());
    let worker = engine.spawn_background().unwrap();
    work(&engine);
    assert!(counted(&engine, Counter::ReclaimedInBackground) > 0);
    drop(worker);
}

/// Without a worker all goes on as before, by direct reclaim.
#[test]
fn without_a_worker_each_thread_reclaims_for_itself() {
    let engine = engine(compressed());
    work(&engine);
    assert_eq!(counted(&engine, Counter::ReclaimedInBackground), 0);
    assert!(counted(&engine, Counter::ReclaimedDirectly) > 0);
}

/// The worker wakes when the number of free frames falls below the low mark, and works until the high mark. Nobody has found no frame
/// by then.
#[test]
fn the_worker_keeps_a_reserve() {
    let engine = engine(compressed());
    let worker = engine.spawn_background().unwrap();
    let space = AddressSpace::new(&engine).unwrap();
    let (low, high) = (FRAMES / 10, FRAMES / 5);
    let pages = FRAMES - low + 32;
    map(&space, pages);
    for page in 0..pages {
        space.store_u64(at(page), page).unwrap();
    }
    // It may have been there before the last pages were stored.
    let has_reclaimed = || counted(&engine, Counter::ReclaimedInBackground) >= high - low;
    until("the worker has reclaimed up to the high mark", || has_reclaimed() && free(&engine) >= low);
    assert_eq!(counted(&engine, Counter::ReclaimedDirectly), 0, "a thread has found no frame");
    for page in 0..pages {
        assert_eq!(space.load_u64(at(page)).unwrap(), page);
    }
    drop(worker);
}

/// The worker is called when a group comes near its high limit, and works until an eighth below it. No thread has gone over high.
#[test]
fn the_worker_keeps_a_group_below_high() {
    let engine = engine(compressed());
    let worker = engine.spawn_background().unwrap();
    let limit = MemoryLimit::new(&engine, LimitConfig { high: 64, max: LimitConfig::NONE }).unwrap();
    let space = AddressSpace::<Soft>::new_in(&engine, &limit).unwrap();
    map(&space, 63);
    for page in 0..63 {
        space.store_u64(at(page), page).unwrap();
    }
    let usage = || limit.usage().resident + limit.usage().stock;
    // It begins at 60 pages, and ends at 56. Then the last pages may be stored.
    let has_reclaimed = || counted(&engine, Counter::ReclaimedInBackground) > 0;
    until("the worker has reclaimed an eighth", || has_reclaimed() && usage() < 60);
    assert_eq!((limit.usage().high, counted(&engine, Counter::ReclaimedDirectly)), (0, 0));
    for page in 0..63 {
        assert_eq!(space.load_u64(at(page)).unwrap(), page);
    }
    drop(worker);
}

/// A worker ends when it is told, asleep or not, and another one can follow. There is one at a time.
#[test]
fn the_worker_ends_when_it_is_told() {
    let engine = engine(compressed());
    for _ in 0..20 {
        let worker = engine.spawn_background().unwrap();
        assert_eq!(engine.spawn_background().err(), Some(BackgroundError::Running));
        assert_eq!(engine.run_background(|| true), Err(BackgroundError::Running));
        drop(worker);
    }
    assert_eq!(engine.run_background(|| true), Ok(()));
    let (has_begun, ends) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (engine, has_begun, ends) = (&engine, &has_begun, &ends);
        let asks = || {
            has_begun.store(true, Ordering::Relaxed);
            ends.load(Ordering::Relaxed)
        };
        let worker = scope.spawn(move || engine.run_background(asks));
        until("the worker has begun", || has_begun.load(Ordering::Relaxed));
        work(engine);
        ends.store(true, Ordering::Relaxed);
        engine.wake_background();
        assert_eq!(worker.join().unwrap(), Ok(()));
    });
    let worker = engine.spawn_background().unwrap();
    work(&engine);
    drop(worker);
}

/// The thread does not keep the engine alive, and ends with it.
#[test]
fn the_worker_does_not_keep_the_engine() {
    let engine = engine(compressed());
    let worker = engine.spawn_background().unwrap();
    work(&engine);
    let weak = Arc::downgrade(&engine);
    drop(engine);
    until("the engine is gone", || weak.strong_count() == 0);
    drop(worker);
}

/// A worker that is held up by a slow device holds up nobody else, and ends when the device lets it go.
#[test]
fn a_worker_that_waits_for_a_slow_device_delays_nobody() {
    let stuck = Stuck::new(compressed());
    let engine = engine(stuck.clone());
    let worker = engine.spawn_background().unwrap();
    let space = AddressSpace::new(&engine).unwrap();
    // With some faults after the first direct reclaim, which may have all pages in hand while the worker looks for some.
    let pages = FRAMES + 64;
    map(&space, pages);
    (0..pages).for_each(|page| space.store_u64(at(page), page).unwrap());
    until("the worker is at the device", || stuck.has_worker());
    let other = AddressSpace::new(&engine).unwrap();
    map(&other, 2 * FRAMES);
    (0..2 * FRAMES).for_each(|page| other.store_u64(at(page), page).unwrap());
    assert!(counted(&engine, Counter::ReclaimedDirectly) > 0);
    stuck.let_go();
    drop(worker);
    (0..pages).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page));
    (0..2 * FRAMES).for_each(|page| assert_eq!(other.load_u64(at(page)).unwrap(), page));
}
