//! Read-ahead in swap space: runs of accesses wait seldom, and accesses in no order read nothing that they do not need.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::stats::{Counter, Statistics};
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, StoreDevice, SwapDevice};
use faultless::{AddressSpace, Advice, Engine, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

/// The frames of the machine, and the pages of a space: eight times as many.
const FRAMES: u64 = 256;
const PAGES: u64 = 2048;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

/// A real file, which is gone when it is closed.
fn file() -> Arc<dyn SwapDevice> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * PAGES * PAGE_SIZE).unwrap();
    Arc::new(StoreDevice::new(FileStore::from_file(file).unwrap()).unwrap())
}

/// Makes a space whose pages are all written, and most of them swapped.
fn space(device: Arc<dyn SwapDevice>) -> Space {
    let engine = Engine::new(Soft::with_caches(FRAMES).unwrap(), Limits::default()).unwrap();
    engine.add_swap(device).unwrap();
    let space = Space::new(&engine).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    space
}

/// Loads from `pages`, checks the bytes, and returns the events meanwhile.
fn load(space: &Space, pages: impl Iterator<Item = u64>) -> Statistics {
    let before = space.engine().statistics();
    pages.for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1), "page {page}"));
    space.engine().statistics().since(&before)
}

/// Returns the number of pages that were not read ahead.
fn begun_by_faults(events: &Statistics) -> u64 {
    events.get(Counter::SwapIns) - events.get(Counter::SwapAhead)
}

/// Returns pages in no order, the same in each run.
fn in_no_order(count: usize) -> impl Iterator<Item = u64> {
    let mut number = 1_u64;
    let next = move || {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((number >> 33) % PAGES)
    };
    std::iter::from_fn(next).take(count)
}

/// Checks that nothing is left. Reads ahead may still be under way.
fn end(space: Space) {
    let engine = space.engine().clone();
    space.audit().unwrap();
    drop(space);
    engine.flush();
    for _ in 0..10_000 {
        if engine.frame_usage().used > 1 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    assert_eq!((engine.frame_usage().used, engine.swap_usage().slots), (1, 0), "invariant 11");
}

#[test]
fn loads_in_order_wait_a_quarter_as_often() {
    let space = space(file());
    space.advise(at(0), PAGES * PAGE_SIZE, Advice::Random).unwrap();
    let alone = load(&space, 0..PAGES);
    assert_eq!(alone.get(Counter::SwapAhead), 0, "MADV_RANDOM");
    space.advise(at(0), PAGES * PAGE_SIZE, Advice::Normal).unwrap();
    let up = load(&space, 0..PAGES);
    let down = load(&space, (0..PAGES).rev());
    for ahead in [&up, &down] {
        // Each of these made a fault wait. A fault may also find a page that is being read ahead.
        let [waits, alone] = [ahead, &alone].map(begun_by_faults);
        assert!(waits * 4 <= alone, "{waits} waits, and {alone} without read-ahead");
        let [read, hits] = [Counter::SwapAhead, Counter::SwapAheadHits].map(|counter| ahead.get(counter));
        assert!(hits * 10 >= read * 9, "{hits} hits of {read}");
        assert!(ahead.get(Counter::SwapIns) * 10 <= PAGES * 11);
    }
    end(space);
}

#[test]
fn loads_in_no_order_read_no_more_than_they_need() {
    let space = space(file());
    let events = load(&space, in_no_order(20_000));
    let [read, needed] = [Counter::SwapIns, Counter::MajorFaults].map(|counter| events.get(counter));
    assert!(needed > 10_000 && read * 10 <= needed * 11, "{read} pages read, {needed} needed");
    end(space);
}

/// Compressed memory moves a page at a time, before `submit` returns: to read ahead would make the fault wait.
#[test]
fn a_device_that_moves_one_page_at_a_time_is_not_read_ahead() {
    let space = space(Arc::new(CompressedMemory::new(2 * PAGES, usize::MAX).unwrap()));
    let events = load(&space, 0..PAGES);
    assert_eq!((events.get(Counter::SwapAhead), events.get(Counter::SwapAheadHits)), (0, 0));
    end(space);
}

/// Threads run up and down over the same pages, beside stores and forks.
#[test]
fn threads_read_ahead_beside_each_other() {
    let space = space(file());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let space = &space;
            scope.spawn(move || {
                for round in 0..3 {
                    let first = (thread * 512 + round * 256) % PAGES;
                    let pages = (first..first + 512).map(|page| page % PAGES);
                    let is_up = thread % 2 == 0;
                    let one = |page| assert_eq!(space.load_u64(at(page)), Ok(page + 1), "page {page}");
                    if is_up {
                        pages.for_each(one)
                    } else {
                        pages.rev().for_each(one)
                    }
                    (0..64).map(|page| page * 32 + thread).for_each(|page| {
                        space.store_u64(at(page), page + 1).unwrap();
                    });
                }
            });
        }
        scope.spawn(|| {
            for page in 0..16 {
                let child = space.fork().unwrap();
                (page * 64..page * 64 + 32).for_each(|page| {
                    assert_eq!(child.load_u64(at(page)), Ok(page + 1), "page {page} of the child");
                });
                child.exit();
            }
        });
    });
    end(space);
}
