//! Groups of spaces that pay for their memory up to a limit.

mod stocks;

use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Access;
use faultless::stats::Counter;
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, StoreDevice, SwapDevice};
use faultless::{
    AddressSpace, Engine, FaultError, LimitConfig, Limits, MapRequest, MemoryLimit, MemoryLimitError,
    Placement,
};
use faultless_soft::{Cpu, Soft};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Space = AddressSpace<Soft, Faultless>;
type Limit = MemoryLimit<Soft>;

/// The pages of a space.
const PAGES: u64 = 256;

fn compressed() -> Arc<dyn SwapDevice> {
    Arc::new(CompressedMemory::new(8192, 8192 * PAGE_SIZE as usize).unwrap())
}

/// A real file, which is gone when it is closed.
fn file() -> Arc<dyn SwapDevice> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192 * PAGE_SIZE).unwrap();
    Arc::new(StoreDevice::new(FileStore::from_file(file).unwrap()).unwrap())
}

fn engine(frames: u64, device: Option<Arc<dyn SwapDevice>>) -> Arc<Engine<Soft>> {
    let engine = Engine::new(Soft::with_caches(frames).unwrap(), Limits::default()).unwrap();
    device.into_iter().for_each(|device| engine.add_swap(device).unwrap());
    engine
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn map(space: &Space) {
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
}

fn space(engine: &Arc<Engine<Soft>>, limit: &Limit) -> Space {
    let space = Space::new_in(engine, limit).unwrap();
    map(&space);
    space
}

fn store(space: &Space, pages: std::ops::Range<u64>) {
    pages.for_each(|page| space.store_u64(at(page), page + 1).unwrap());
}

fn check(space: &Space, pages: std::ops::Range<u64>) {
    pages.for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page + 1, "page {page}"));
}

/// Checks that a group pays for nothing.
fn is_empty(limit: &Limit) {
    let usage = limit.usage();
    assert_eq!((usage.resident, usage.anonymous, usage.file, usage.swap), (0, 0, 0, 0), "{usage:?}");
}

/// Checks that nothing is left: no frame but the page of zeros, and no slot.
fn end(engine: &Engine<Soft>) {
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

fn random_stores(space: &Space, seed: u64, count: u32) {
    let (mut model, mut numbers) = (HashMap::new(), Rng::with_seed(seed));
    for _ in 0..count {
        let (page, value) = (numbers.u64(..PAGES), numbers.u64(..));
        let expected = model.get(&page).copied().unwrap_or(0);
        assert_eq!(space.load_u64(at(page)).unwrap(), expected, "page {page}");
        space.store_u64(at(page), value).unwrap();
        model.insert(page, value);
    }
    for (page, value) in model {
        assert_eq!(space.load_u64(at(page)).unwrap(), value, "page {page}");
    }
}

/// Two groups of 32 pages work beside each other in a machine of 256 frames. Neither has more than its limit, and a third one,
/// which does nothing, keeps its pages.
#[test]
fn groups_do_not_take_from_each_other() {
    for device in [compressed(), file()] {
        let engine = engine(256, Some(device));
        let limits: Vec<Limit> = (0..3).map(|_| Limit::new(&engine, LimitConfig::max(32)).unwrap()).collect();
        let spaces: Vec<Space> = limits.iter().map(|limit| space(&engine, limit)).collect();
        let is_over = AtomicBool::new(false);
        store(&spaces[2], 0..30);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..2)
                .map(|number| {
                    let space = &spaces[number];
                    scope.spawn(move || random_stores(space, number as u64 + 7, 4_000))
                })
                .collect();
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for limit in &limits {
                        let usage = limit.usage();
                        assert!(usage.resident <= 32, "{usage:?}");
                    }
                    assert!(engine.frame_usage().used <= 1 + 3 * 32);
                    std::thread::yield_now();
                }
            });
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            is_over.store(true, Ordering::Relaxed);
        });
        for limit in &limits[..2] {
            let usage = limit.usage();
            assert!(
                usage.swap > 0 && usage.reclaimed > 0 && usage.refaults > 0 && usage.max > 0,
                "{usage:?}"
            );
            assert!(usage.scanned >= usage.reclaimed, "{usage:?}");
            assert_eq!((usage.out_of_memory, usage.high), (0, 0));
        }
        let idle = limits[2].usage();
        assert_eq!((idle.resident, idle.swap, idle.scanned), (30, 0, 0), "its pages stay");
        check(&spaces[2], 0..30);
        spaces.iter().for_each(|space| space.audit().unwrap());
        spaces.into_iter().for_each(|space| space.exit());
        engine.flush();
        limits.iter().for_each(is_empty);
        end(&engine);
    }
}

/// A machine without frames takes pages from all groups, whoever needs one.
#[test]
fn a_machine_without_frames_takes_from_all_groups() {
    let engine = engine(64, Some(compressed()));
    let limits: Vec<Limit> = (0..2).map(|_| Limit::new(&engine, LimitConfig::max(48)).unwrap()).collect();
    let inside: Vec<Space> = limits.iter().map(|limit| space(&engine, limit)).collect();
    let outside = Space::new(&engine).unwrap();
    map(&outside);
    for round in 0..4 {
        inside.iter().chain([&outside]).for_each(|space| store(space, round * 64..(round + 1) * 64));
    }
    inside.iter().chain([&outside]).for_each(|space| check(space, 0..PAGES));
    limits.iter().for_each(|limit| assert!(limit.usage().resident <= 48));
    outside.exit();
    inside.into_iter().for_each(|space| space.exit());
    engine.flush();
    limits.iter().for_each(is_empty);
}

/// ```text
/// root ── above (48) ─┬─ left (40)
///                     └─ right (40)
/// ```
#[test]
fn a_group_pays_for_those_below_it() {
    let engine = engine(256, Some(compressed()));
    let above = Limit::new(&engine, LimitConfig::max(48)).unwrap();
    let (left, right) =
        (above.child(LimitConfig::max(40)).unwrap(), above.child(LimitConfig::max(40)).unwrap());
    let spaces = [space(&engine, &left), space(&engine, &right)];
    for round in 0..8 {
        for space in &spaces {
            store(space, round * 16..(round + 1) * 16);
        }
        let (all, l, r) = (above.usage(), left.usage(), right.usage());
        assert!(all.resident <= 48 && l.resident <= 40 && r.resident <= 40, "{all:?} {l:?} {r:?}");
        assert_eq!(all.resident, l.resident + r.resident);
        assert_eq!(all.swap, l.swap + r.swap);
    }
    let [first, second] = spaces;
    check(&first, 0..128);
    check(&second, 0..128);
    // The group above stays, and pays for the pages of the other alone.
    first.exit();
    drop((first, left));
    engine.flush();
    assert_eq!(above.usage().resident, right.usage().resident);
    check(&second, 0..128);
    drop(second);
    engine.flush();
    is_empty(&above);
    end(&engine);
}

/// A space keeps its group, and a group the one above it.
#[test]
fn a_group_lives_as_long_as_its_spaces() {
    let engine = engine(256, Some(compressed()));
    let above = Limit::new(&engine, LimitConfig::max(32)).unwrap();
    let space = space(&engine, &above.child(LimitConfig::max(16)).unwrap());
    store(&space, 0..64);
    assert!(above.usage().resident <= 16, "{:?}", above.usage());
    check(&space, 0..64);
    drop(space);
    engine.flush();
    is_empty(&above);
    let number = above.group();
    drop(above);
    // Numbers are used again.
    for _ in 0..10_000 {
        let limit = Limit::new(&engine, LimitConfig::max(32)).unwrap();
        assert!(limit.group().get() <= number.get() + 1);
    }
    end(&engine);
}

#[test]
fn fork_stays_in_the_group() {
    for shared_entries in [1, u64::MAX] {
        let engine =
            Engine::new(Soft::with_caches(256).unwrap(), Limits { shared_entries, ..Limits::default() })
                .unwrap();
        engine.add_swap(compressed()).unwrap();
        let limit = Limit::new(&engine, LimitConfig::max(24)).unwrap();
        let parent = space(&engine, &limit);
        store(&parent, 0..64);
        let children: Vec<Space> = (0..3).map(|_| parent.fork().unwrap()).collect();
        for (number, child) in children.iter().enumerate() {
            check(child, 0..64);
            (0..64).for_each(|page| child.store_u64(at(page), number as u64).unwrap());
            assert!(limit.usage().resident <= 24, "{:?}", limit.usage());
        }
        check(&parent, 0..64);
        for (number, child) in children.iter().enumerate() {
            (0..64).for_each(|page| assert_eq!(child.load_u64(at(page)).unwrap(), number as u64));
            child.audit().unwrap();
        }
        drop((parent, children));
        engine.flush();
        is_empty(&limit);
        end(&engine);
    }
}

/// A page that fork copies for the child, since a device writes into it, is charged too.
#[test]
fn a_copy_of_fork_is_charged() {
    let engine = engine(64, None);
    let limit = Limit::new(&engine, LimitConfig::max(8)).unwrap();
    let parent = space(&engine, &limit);
    store(&parent, 0..8);
    let pin = parent.pin(at(0), Access::Write).unwrap();
    assert!(parent.fork().is_err(), "the copy would pass max");
    assert_eq!(limit.usage().resident, 8);
    parent.discard(at(7), PAGE_SIZE).unwrap();
    let child = parent.fork().unwrap();
    assert_eq!(limit.usage().resident, 8);
    check(&child, 0..7);
    drop((pin, child, parent));
    engine.flush();
    is_empty(&limit);
    end(&engine);
}

/// Without a swap device a group at max has no page to give. The fault fails, and others do not.
#[test]
fn out_of_memory_is_the_group_s_own() {
    let engine = engine(256, None);
    let limit = Limit::new(&engine, LimitConfig::max(16)).unwrap();
    let (inside, outside) = (space(&engine, &limit), Space::new(&engine).unwrap());
    map(&outside);
    store(&inside, 0..16);
    let error = inside.fault_and_wait(at(16), Access::Write).unwrap_err();
    assert!(matches!(error, FaultError::OutOfMemory { .. }), "{error}");
    assert_eq!(limit.usage().out_of_memory, 1);
    store(&outside, 0..200);
    check(&inside, 0..16);
    inside.discard(at(0), PAGE_SIZE).unwrap();
    store(&inside, 16..17);
    assert_eq!(limit.usage().resident, 16);
    drop((inside, outside));
    engine.flush();
    is_empty(&limit);
    end(&engine);
}

#[test]
fn limits_below_the_usage_take_effect() {
    let engine = engine(512, Some(compressed()));
    let limit = Limit::new(&engine, LimitConfig::max(200)).unwrap();
    let space = space(&engine, &limit);
    store(&space, 0..200);
    assert_eq!(limit.usage().resident, 200);
    limit.set(LimitConfig::max(20)).unwrap();
    assert_eq!(limit.config(), LimitConfig::max(20));
    assert!(limit.usage().resident <= 20, "{:?}", limit.usage());
    check(&space, 0..200);
    assert!(limit.usage().resident <= 20, "{:?}", limit.usage());
    limit.set(LimitConfig::max(LimitConfig::NONE)).unwrap();
    check(&space, 0..200);
    assert_eq!(limit.usage().resident, 200);
    drop(space);
    engine.flush();
    is_empty(&limit);
    end(&engine);
}

/// Without a swap device, nothing can be reclaimed: the change returns, and the next fault fails.
#[test]
fn limits_below_the_usage_without_swap() {
    let engine = engine(256, None);
    let limit = Limit::new(&engine, LimitConfig::max(64)).unwrap();
    let space = space(&engine, &limit);
    store(&space, 0..40);
    limit.set(LimitConfig::max(20)).unwrap();
    assert_eq!(limit.usage().resident, 40);
    assert!(space.fault_and_wait(at(40), Access::Write).is_err());
    check(&space, 0..40);
    space.discard(at(0), 30 * PAGE_SIZE).unwrap();
    store(&space, 40..50);
    assert_eq!(limit.usage().resident, 20);
    drop(space);
    engine.flush();
    is_empty(&limit);
}

/// Over high the thread that has charged reclaims, and goes on.
#[test]
fn over_high_the_thread_reclaims() {
    let engine = engine(512, Some(compressed()));
    let limit = Limit::new(&engine, LimitConfig { high: 32, max: 128 }).unwrap();
    let space = space(&engine, &limit);
    for round in 0..4 {
        store(&space, 0..PAGES);
        let usage = limit.usage();
        assert!(usage.resident < 64, "round {round}: {usage:?}");
        assert_eq!((usage.max, usage.out_of_memory), (0, 0));
    }
    assert!(limit.usage().high > 0 && limit.usage().reclaimed > 0);
    check(&space, 0..PAGES);
    drop(space);
    engine.flush();
    is_empty(&limit);
    end(&engine);
}

/// If no page can be taken, the thread sleeps, holding nothing, and its charge succeeds. The end of the space ends the sleep.
#[test]
fn over_high_without_swap_the_thread_sleeps() {
    let engine = engine(512, None);
    let limit = Limit::new(&engine, LimitConfig { high: 4, max: 200 }).unwrap();
    let space = space(&engine, &limit);
    store(&space, 0..100);
    assert_eq!(limit.usage().resident, 100);
    assert!(engine.statistics().get(Counter::MemoryWait) > 0);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while space.fault_and_wait(at(150), Access::Write).is_ok() {
                let _ = space.discard(at(150), PAGE_SIZE);
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(5));
        space.exit();
        worker.join().unwrap();
    });
    drop(space);
    engine.flush();
    is_empty(&limit);
    end(&engine);
}

#[test]
fn wrong_limits_are_typed_errors() {
    let engine = engine(64, None);
    let new = |high, max| Limit::new(&engine, LimitConfig { high, max }).map(drop);
    assert_eq!(new(LimitConfig::NONE, 0), Err(MemoryLimitError::Zero));
    assert_eq!(new(LimitConfig::NONE, 3), Err(MemoryLimitError::BelowMinimum { pages: 3 }));
    assert_eq!(new(9, 8), Err(MemoryLimitError::HighAboveMax { high: 9, max: 8 }));
    let limit = Limit::new(&engine, LimitConfig::max(16)).unwrap();
    let below = |max| limit.child(LimitConfig::max(max)).map(drop);
    assert_eq!(below(17), Err(MemoryLimitError::AboveParent { max: 17, parent: 16 }));
    let child = limit.child(LimitConfig::max(16)).unwrap();
    assert_eq!(child.set(LimitConfig::max(0)), Err(MemoryLimitError::Zero));
    assert_eq!(child.set(LimitConfig::max(20)), Err(MemoryLimitError::AboveParent { max: 20, parent: 16 }));
    assert_eq!(limit.set(LimitConfig::max(8)), Err(MemoryLimitError::AboveParent { max: 16, parent: 8 }));
    assert_eq!(limit.config(), LimitConfig::max(16), "as before");
    let mut deep = vec![child];
    let error = loop {
        match deep.last().unwrap().child(LimitConfig::max(16)) {
            Ok(child) => deep.push(child),
            Err(error) => break error,
        }
    };
    assert_eq!((error, deep.len()), (MemoryLimitError::TooDeep, 31));
    let other = self::engine(64, None);
    assert_eq!(Space::new_in(&other, &limit).err(), Some(MemoryLimitError::OtherEngine));
}

/// 500 threads, each with a space of its own, in a group that has half a page for each.
#[test]
fn many_threads_in_a_small_group_all_finish() {
    const THREADS: u64 = 500;
    for device in [compressed(), file()] {
        let engine = engine(2048, Some(device));
        let limit = Limit::new(&engine, LimitConfig::max(256)).unwrap();
        let space = space(&engine, &limit);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let space = &space;
                scope.spawn(move || {
                    let mut numbers = Rng::with_seed(thread + 1);
                    for round in 0..20 {
                        let page = numbers.u64(..PAGES);
                        let address = VirtAddr::new(at(page).get() + thread % 512 * 8);
                        space.store_u64(address, thread + round).unwrap();
                        assert_eq!(space.load_u64(address).unwrap(), thread + round);
                    }
                });
            }
        });
        space.audit().unwrap();
        drop(space);
        engine.flush();
        is_empty(&limit);
        end(&engine);
    }
}

/// The same with more pages than the group may have, and a space for every ten threads.
#[test]
fn many_threads_over_many_pages_all_finish() {
    const SPACES: usize = 50;
    let engine = engine(4096, Some(compressed()));
    let limit = Limit::new(&engine, LimitConfig::max(256)).unwrap();
    let spaces: Vec<Space> = (0..SPACES).map(|_| space(&engine, &limit)).collect();
    std::thread::scope(|scope| {
        for (thread, space) in (0..10).flat_map(|_| &spaces).enumerate() {
            scope.spawn(move || {
                let (mut numbers, place) = (Rng::with_seed(thread as u64 + 1), (thread / SPACES * 8) as u64);
                for round in 0..20 {
                    let address = VirtAddr::new(at(numbers.u64(..64)).get() + place);
                    space.store_u64(address, round).unwrap();
                    assert_eq!(space.load_u64(address).unwrap(), round);
                }
            });
        }
    });
    assert!(limit.usage().reclaimed > 0 && limit.usage().resident <= 256, "{:?}", limit.usage());
    assert_eq!(limit.usage().out_of_memory, 0);
    drop(spaces);
    engine.flush();
    is_empty(&limit);
    end(&engine);
}

/// The smallest group makes progress, also where each store copies a page.
#[test]
fn the_smallest_limit_suffices() {
    let engine = engine(64, Some(compressed()));
    let limit = Limit::new(&engine, LimitConfig::max(LimitConfig::MINIMUM)).unwrap();
    let parent = space(&engine, &limit);
    store(&parent, 0..32);
    let child = parent.fork().unwrap();
    store(&parent, 0..32);
    check(&child, 0..32);
    drop((parent, child));
    engine.flush();
    is_empty(&limit);
    end(&engine);
}

/// The faults of a group are those of its spaces, whichever thread has them, and the ones of threads that have ended.
#[test]
fn faults_are_counted_for_the_group_of_their_space() {
    const THREADS: u64 = 3;
    let engine = engine(1024, None);
    let above = Limit::new(&engine, LimitConfig::max(512)).unwrap();
    let below = [(); 2].map(|()| above.child(LimitConfig::max(256)).unwrap());
    let spaces = [space(&engine, &below[0]), space(&engine, &below[1])];
    let alone = Space::new(&engine).unwrap();
    map(&alone);
    let touch = |number: u64| {
        for page in number * 20..(number + 1) * 20 {
            // By turns, so that the stock of the thread goes from group to group.
            for (space, pages) in [(&spaces[0], 1), (&spaces[1], 2), (&alone, 1)] {
                (0..pages).for_each(|more| {
                    space.fault_and_wait(at(page + more * 100), Access::Write).unwrap();
                });
            }
        }
    };
    let faults = |limit: &Limit| limit.usage().faults;
    touch(0);
    assert_eq!((faults(&below[0]), faults(&below[1]), faults(&above)), (20, 40, 60));
    std::thread::scope(|scope| {
        for number in 1..THREADS {
            scope.spawn(move || touch(number));
        }
    });
    assert_eq!((faults(&below[0]), faults(&below[1]), faults(&above)), (60, 120, 180));
    drop(spaces);
    engine.flush();
    assert_eq!((faults(&below[0]), faults(&below[1]), faults(&above)), (60, 120, 180));
    // A new group may get the record of one that has ended, and has had no fault.
    drop(below);
    assert_eq!(faults(&above), 180);
    for _ in 0..4 {
        let next = above.child(LimitConfig::max(256)).unwrap();
        assert_eq!(faults(&next), 0);
        let space = space(&engine, &next);
        space.fault_and_wait(at(0), Access::Write).unwrap();
        assert_eq!(faults(&next), 1);
    }
    assert_eq!(faults(&above), 184);
}
