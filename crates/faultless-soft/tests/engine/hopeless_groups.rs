//! Groups at max none of whose pages can be taken, since all are locked or pinned: a fault ends with a typed error after a bounded
//! number of looks, and other groups go on.

use crate::devices::compressed;
use crate::zeros::Zeros;
use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::FaultError;
use faultless::protection::{Access, Protection};
use faultless::{
    AddressSpace, Engine, File, Largest, LimitConfig, Limits, LockMode, MapRequest, MemoryLimit, Placement,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Space = AddressSpace<Soft, Faultless>;
type Limit = MemoryLimit<Soft>;

const RIGHTS: Protection = Protection::READ.union(Protection::WRITE);
/// The pages of a space's anonymous memory.
const PAGES: u64 = 128;
/// The pages that a group without hope may have, and has.
const MAX: u64 = 16;
/// The page at which a file is mapped.
const FILE_AT: u64 = 1024;
/// The most pages that a fault sees if no other thread reclaims: it looks 64 times, and each look tries all pages 16 times.
const MOST_SCANNED: u64 = 64 * 16 * MAX;
/// The same beside other threads that reclaim: 4096 looks.
const MOST_BESIDE: u64 = 4096 * 16 * MAX;

fn engine() -> Arc<Engine<Soft>> {
    let engine = Engine::new(Soft::with_caches(512).unwrap(), Limits::default()).unwrap();
    engine.add_swap(compressed()).unwrap();
    engine
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn space(engine: &Arc<Engine<Soft>>, limit: &Limit) -> Space {
    let space = Space::new_in(engine, limit).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    space
}

fn store(space: &Space, pages: std::ops::Range<u64>) {
    pages.for_each(|page| space.store_u64(at(page), page + 1).unwrap());
}

fn check(space: &Space, pages: std::ops::Range<u64>) {
    pages.for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1), "page {page}"));
}

/// Stores at random in more pages than the group may have, and compares with a model.
fn work(space: &Space, seed: u64) {
    let (mut model, mut numbers) = ([0; PAGES as usize], Rng::with_seed(seed));
    for round in 1..4_000 {
        let page = numbers.u64(..PAGES);
        assert_eq!(space.load_u64(at(page)), Ok(model[page as usize]), "page {page}");
        space.store_u64(at(page), round).unwrap();
        model[page as usize] = round;
    }
}

fn end(engine: &Engine<Soft>) {
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

/// A group with locked pages and pinned pages of its own, of a file, and of a file without a store. Each kind of fault in it fails, again
/// and again. Meanwhile a group beside it swaps, and loses nothing, and a third one keeps its pages.
#[test]
fn faults_of_a_group_with_held_pages_fail_and_its_neighbours_go_on() {
    let engine = engine();
    let hopeless = Limit::new(&engine, LimitConfig::max(MAX)).unwrap();
    let neighbour = Limit::new(&engine, LimitConfig::max(32)).unwrap();
    let idle = Limit::new(&engine, LimitConfig::max(32)).unwrap();
    let (held, busy, still) = (space(&engine, &hopeless), space(&engine, &neighbour), space(&engine, &idle));
    store(&still, 0..30);
    let with_store = File::open_rw(&engine, Arc::new(Zeros(8))).unwrap();
    let in_memory = File::in_memory(&engine, 8 * PAGE_SIZE).unwrap();
    let of_files = [at(FILE_AT), at(FILE_AT + 8)];
    for (file, place) in [&with_store, &in_memory].into_iter().zip(of_files) {
        let request = MapRequest::shared_file(file, 0, 8 * PAGE_SIZE, RIGHTS);
        held.map(request.at(Placement::Fixed(place))).unwrap();
    }
    store(&held, 0..8);
    held.lock(at(0), 4 * PAGE_SIZE, LockMode::Now).unwrap();
    let mut pins: Vec<_> = (4..8).map(|page| held.pin(at(page), Access::Write).unwrap()).collect();
    for place in of_files {
        held.lock(place, 2 * PAGE_SIZE, LockMode::Now).unwrap();
        for page in 2..4 {
            let address = VirtAddr::new(place.get() + page * PAGE_SIZE);
            pins.push(held.pin(address, Access::Write).unwrap());
        }
    }
    assert_eq!((hopeless.usage().anonymous, hopeless.usage().file), (8, 8));
    let faults: [VirtAddr; 3] = [
        at(9),
        VirtAddr::new(of_files[0].get() + 5 * PAGE_SIZE),
        VirtAddr::new(of_files[1].get() + 5 * PAGE_SIZE),
    ];
    let is_over = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            work(&busy, 7);
            is_over.store(true, Ordering::Relaxed);
        });
        let mut failed = 0;
        while failed < 6 || !is_over.load(Ordering::Relaxed) && !worker.is_finished() {
            let address = faults[failed as usize % 3];
            let before = hopeless.usage();
            let error = held.fault_and_wait(address, Access::Write).unwrap_err();
            assert!(matches!(error, FaultError::OutOfMemory { .. }), "{error}");
            let after = hopeless.usage();
            assert_eq!(after.out_of_memory, before.out_of_memory + 1);
            let scanned = after.scanned - before.scanned;
            assert!(scanned <= MOST_BESIDE, "{scanned} pages");
            failed += 1;
        }
        worker.join().unwrap();
        failed
    });
    assert_eq!(hopeless.usage().out_of_memory, failed);
    let usage = neighbour.usage();
    assert!(usage.swap > 0 && usage.refaults > 0, "{usage:?}");
    assert_eq!((usage.out_of_memory, usage.victims), (0, 0));
    let usage = idle.usage();
    assert_eq!((usage.resident, usage.scanned, usage.swap), (30, 0, 0), "its pages were taken");
    check(&still, 0..30);
    check(&held, 0..8);
    // With a pin less there is hope.
    pins.truncate(7);
    for address in faults {
        held.fault_and_wait(address, Access::Write).unwrap();
    }
    assert_eq!(hopeless.usage().out_of_memory, failed);
    check(&held, 0..8);
    [&held, &busy, &still].into_iter().for_each(|space| space.audit().unwrap());
    drop((pins, held, busy, still, with_store, in_memory));
    end(&engine);
}

/// Locked pages go with the space that is chosen, and the fault is served.
#[test]
fn a_space_whose_pages_are_locked_is_ended() {
    let engine = engine();
    engine.end_victims(Box::new(Largest)).unwrap();
    let [full, other] = [MAX, 64].map(|max| Limit::new(&engine, LimitConfig::max(max)).unwrap());
    let (locked, needs, larger) = (space(&engine, &full), space(&engine, &full), space(&engine, &other));
    store(&larger, 0..60);
    store(&locked, 0..MAX);
    locked.lock(at(0), MAX * PAGE_SIZE, LockMode::Now).unwrap();
    needs.store_u64(at(0), 1).unwrap();
    assert!(matches!(locked.fault_and_wait(at(0), Access::Read), Err(FaultError::Exited { .. })));
    assert_eq!((full.usage().victims, full.usage().resident), (1, 1));
    let usage = other.usage();
    assert_eq!((usage.victims, usage.resident, usage.scanned), (0, 60, 0), "its pages were taken");
    check(&needs, 0..1);
    check(&larger, 0..60);
    drop((locked, needs, larger));
    end(&engine);
}

/// The end of a space does not free its pinned pages. No other space is ended for them, and the fault fails until the pins go.
#[test]
fn a_fault_fails_if_the_pages_of_the_ended_space_are_pinned() {
    let engine = engine();
    engine.end_victims(Box::new(Largest)).unwrap();
    let [full, other] = [MAX, 64].map(|max| Limit::new(&engine, LimitConfig::max(max)).unwrap());
    let (pinned, needs, larger) = (space(&engine, &full), space(&engine, &full), space(&engine, &other));
    store(&larger, 0..60);
    store(&pinned, 0..MAX);
    let pins: Vec<_> = (0..MAX).map(|page| pinned.pin(at(page), Access::Write).unwrap()).collect();
    // The first fault looks again when the space has ended.
    for looks in [2, 1] {
        let before = full.usage().scanned;
        let error = needs.fault_and_wait(at(0), Access::Write).unwrap_err();
        assert!(matches!(error, FaultError::OutOfMemory { .. }), "{error}");
        let usage = full.usage();
        assert_eq!((usage.victims, usage.resident), (1, MAX));
        assert!(usage.scanned - before <= looks * MOST_SCANNED, "{usage:?}");
    }
    assert!(matches!(pinned.fault_and_wait(at(0), Access::Read), Err(FaultError::Exited { .. })));
    assert_eq!((other.usage().victims, other.usage().scanned), (0, 0));
    check(&larger, 0..60);
    drop(pins);
    store(&needs, 0..MAX);
    check(&needs, 0..MAX);
    drop((pinned, needs, larger));
    end(&engine);
}
