//! Unsharing: pages that fork has left shared, or would leave shared, become each space's own ahead of the first store.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::FaultError;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::swap::CompressedMemory;
use faultless::{
    AddressSpace, Advice, Engine, ForkError, LimitConfig, Limits, MapRequest, MappingFlags, MemoryLimit,
    Placement, UnshareCost, UnshareError,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

const PAGES: u64 = 4;
const LENGTH: u64 = PAGES * PAGE_SIZE;
/// Fork shares each table; fork copies each entry.
const BOTH: [u64; 2] = [1, u64::MAX];

fn engine(frames: u64, shared_entries: u64) -> Arc<Engine<Soft>> {
    let limits = Limits { shared_entries, ..Limits::default() };
    Engine::new(Soft::with_caches(frames).unwrap(), limits).unwrap()
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

/// Makes a space with pages from 0 on, which have their numbers in them.
fn space(engine: &Arc<Engine<Soft>>) -> Space {
    let space = Space::new(engine).unwrap();
    space.map(MapRequest::anonymous(LENGTH).at(Placement::Fixed(at(0)))).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(page), page).unwrap());
    space
}

fn get(engine: &Engine<Soft>, counter: Counter) -> u64 {
    engine.statistics().get(counter)
}

/// Stores to each page, and checks that no store faults.
fn store_without_faults(space: &Space, value: u64) {
    let before = get(space.engine(), Counter::Faults);
    (0..PAGES).for_each(|page| space.store_u64(at(page), value + page).unwrap());
    assert_eq!(get(space.engine(), Counter::Faults), before, "a store faulted");
}

#[track_caller]
fn assert_pages(space: &Space, value: u64) {
    for page in 0..PAGES {
        assert_eq!(space.load_u64(at(page)), Ok(value + page), "page {page}");
    }
    space.audit().unwrap_or_else(|error| panic!("{error}"));
}

fn end(engine: &Engine<Soft>) {
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
}

/// The cost names each copy, and no store afterwards faults or copies. The child keeps the bytes of the fork.
#[test]
fn no_store_copies_after_unsharing() {
    for shared_entries in BOTH {
        let engine = engine(64, shared_entries);
        let parent = space(&engine);
        let child = parent.fork().unwrap();
        let tables = u64::from(shared_entries == 1);
        let cost = parent.unshare(at(0), LENGTH).unwrap();
        assert_eq!(cost, UnshareCost { copied: PAGES, tables, ..UnshareCost::default() });
        let copies = get(&engine, Counter::CowCopies);
        store_without_faults(&parent, 100);
        assert_pages(&parent, 100);
        assert_pages(&child, 0);
        assert_eq!(parent.unshare(at(0), LENGTH), Ok(UnshareCost::default()), "it was done already");
        assert_eq!(get(&engine, Counter::CowCopies), copies);
        drop((parent, child));
        end(&engine);
    }
}

/// Pages that the child has let go are marked as the parent's own, and not copied.
#[test]
fn what_is_exclusive_again_is_not_copied() {
    for shared_entries in BOTH {
        let engine = engine(64, shared_entries);
        let parent = space(&engine);
        let child = parent.fork().unwrap();
        child.store_u64(at(1), 7).unwrap();
        drop(child);
        let remarked = if shared_entries == 1 {
            // The child's table has left the pages to the parent, but for those that were counted twice.
            parent.unshare(at(0), LENGTH).unwrap().remarked
        } else {
            let cost = parent.unshare(at(0), LENGTH).unwrap();
            assert_eq!((cost.copied, cost.tables), (0, 0));
            cost.remarked
        };
        assert_eq!(remarked, PAGES);
        assert_eq!(get(&engine, Counter::CowCopies), 1, "the child's");
        store_without_faults(&parent, 100);
        assert_pages(&parent, 100);
        drop(parent);
        end(&engine);
    }
}

/// Unmapped parts, shared pages of files, and pages that were never touched are passed over. A page in a mapping without rights is
/// copied, and gets none.
#[test]
fn only_pages_that_another_space_has_are_copied() {
    let engine = engine(64, u64::MAX);
    let parent = space(&engine);
    parent.map(MapRequest::anonymous(LENGTH).at(Placement::Fixed(at(8)))).unwrap();
    assert_eq!(parent.load_u64(at(9)), Ok(0));
    parent.protect(at(3), PAGE_SIZE, Protection::empty()).unwrap();
    let child = parent.fork().unwrap();
    let cost = parent.unshare(at(0), 32 * PAGE_SIZE).unwrap();
    assert_eq!(cost, UnshareCost { copied: PAGES, ..UnshareCost::default() });
    assert!(parent.load_u64(at(3)).is_err(), "a page without rights is read");
    parent.protect(at(3), PAGE_SIZE, Protection::READ | Protection::WRITE).unwrap();
    assert_pages(&parent, 0);
    assert_eq!(parent.unshare(at(0), 0), Ok(UnshareCost::default()));
    assert!(matches!(parent.unshare(VirtAddr::new(1), PAGE_SIZE), Err(UnshareError::Range(_))));
    drop((parent, child));
    end(&engine);
}

/// Without memory the call says how far it came. Nothing is lost, and it goes on when there is memory.
#[test]
fn without_memory_a_part_is_done() {
    // The page of zeros, the parent's pages, and two more.
    let engine = engine(1 + PAGES + 2, u64::MAX);
    let parent = space(&engine);
    let child = parent.fork().unwrap();
    let error = parent.unshare(at(0), LENGTH).unwrap_err();
    let done = UnshareCost { copied: 2, ..UnshareCost::default() };
    assert_eq!(error, UnshareError::Page { error: FaultError::OutOfMemory { address: at(2) }, done });
    assert_pages(&parent, 0);
    assert_pages(&child, 0);
    drop(child);
    assert_eq!(parent.unshare(at(0), LENGTH).unwrap().remarked, 2);
    store_without_faults(&parent, 100);
    drop(parent);
    end(&engine);
}

/// A page in a slot that the child names too is read. A page in a slot that the parent alone names stays there.
#[test]
fn a_page_in_a_slot_is_read_if_another_space_has_it() {
    for shared_entries in BOTH {
        let engine = engine(64, shared_entries);
        engine.add_swap(Arc::new(CompressedMemory::new(64, 64 * PAGE_SIZE as usize).unwrap())).unwrap();
        let parent = space(&engine);
        let child = parent.fork().unwrap();
        let swapped = |space: &Space| space.usage()[0].swap / PAGE_SIZE;
        for _ in 0..100 {
            engine.reclaim_for_tests(64);
        }
        assert_eq!((swapped(&parent), swapped(&child)), (PAGES, PAGES));
        let cost = parent.unshare(at(0), 2 * PAGE_SIZE).unwrap();
        assert_eq!((cost.read, cost.copied), (2, 0));
        assert_eq!((swapped(&parent), swapped(&child)), (PAGES - 2, PAGES));
        assert_pages(&child, 0);
        assert_pages(&parent, 0);
        drop(child);
        for _ in 0..100 {
            engine.reclaim_for_tests(64);
        }
        assert_eq!(swapped(&parent), PAGES);
        assert_eq!(parent.unshare(at(0), LENGTH), Ok(UnshareCost::default()), "no other space has them");
        assert_eq!(swapped(&parent), PAGES);
        drop(parent);
        end(&engine);
    }
}

/// With `CopyAtFork`, neither space faults after the fork. The child's children get copies too, until the advice is taken back.
#[test]
fn fork_copies_what_it_is_advised_to() {
    for shared_entries in BOTH {
        let engine = engine(64, shared_entries);
        let parent = space(&engine);
        parent.advise(at(0), LENGTH, Advice::CopyAtFork).unwrap();
        let child = parent.fork().unwrap();
        assert_eq!(get(&engine, Counter::ForkCopies), PAGES);
        store_without_faults(&parent, 100);
        store_without_faults(&child, 200);
        assert_pages(&parent, 100);
        assert_pages(&child, 200);
        let grandchild = child.fork().unwrap();
        assert_eq!(get(&engine, Counter::ForkCopies), 2 * PAGES, "the child's mapping copies too");
        store_without_faults(&grandchild, 300);
        assert_pages(&child, 200);
        child.advise(at(0), LENGTH, Advice::ShareAtFork).unwrap();
        let last = child.fork().unwrap();
        assert_eq!(get(&engine, Counter::ForkCopies), 2 * PAGES);
        assert_pages(&last, 200);
        drop((parent, child, grandchild, last));
        end(&engine);
    }
}

/// The advice splits a mapping. Pages beside it are shared as always.
#[test]
fn fork_copies_a_part_of_a_mapping() {
    for shared_entries in BOTH {
        let engine = engine(64, shared_entries);
        let parent = space(&engine);
        parent.advise(at(1), 2 * PAGE_SIZE, Advice::CopyAtFork).unwrap();
        assert_eq!(parent.mappings().len(), 3);
        let child = parent.fork().unwrap();
        let copied = |space: &Space| -> Vec<bool> {
            let copies = |info: &faultless::MappingInfo| info.flags.contains(MappingFlags::COPY_AT_FORK);
            space.mappings().iter().map(copies).collect()
        };
        assert_eq!((copied(&parent), copied(&child)), (vec![false, true, false], vec![false, true, false]));
        assert_eq!(get(&engine, Counter::ForkCopies), 2);
        let shared =
            |space: &Space| space.usage().iter().map(|usage| usage.shared_dirty).sum::<u64>() / PAGE_SIZE;
        assert_eq!((shared(&parent), shared(&child)), (2, 2));
        (0..PAGES).for_each(|page| parent.store_u64(at(page), 100 + page).unwrap());
        assert_pages(&child, 0);
        assert_pages(&parent, 100);
        drop((parent, child));
        end(&engine);
    }
}

/// A page that the parent shares with its own parent is copied for the child, and stays shared. A page after MADV_FREE is kept once
/// the parent may store without a fault.
#[test]
fn fork_copies_shared_and_lazily_freed_pages() {
    let engine = engine(64, u64::MAX);
    let first = space(&engine);
    let second = first.fork().unwrap();
    second.advise(at(0), LENGTH, Advice::CopyAtFork).unwrap();
    second.store_u64(at(1), 101).unwrap();
    second.advise(at(1), PAGE_SIZE, Advice::Free).unwrap();
    let third = second.fork().unwrap();
    assert_eq!(get(&engine, Counter::ForkCopies), PAGES);
    store_without_faults(&third, 300);
    second.store_u64(at(1), 201).unwrap();
    for _ in 0..100 {
        engine.reclaim_for_tests(64);
    }
    assert_eq!((second.load_u64(at(0)), second.load_u64(at(1))), (Ok(0), Ok(201)), "a store was lost");
    assert_pages(&first, 0);
    assert_pages(&third, 300);
    drop((first, second, third));
    end(&engine);
}

/// Without memory for a copy there is no child, and the parent is as before.
#[test]
fn a_fork_without_memory_for_copies_fails() {
    let engine = engine(1 + PAGES + 2, u64::MAX);
    let parent = space(&engine);
    parent.advise(at(0), LENGTH, Advice::CopyAtFork).unwrap();
    assert!(parent.fork().is_err());
    assert_pages(&parent, 0);
    (0..PAGES).for_each(|page| parent.store_u64(at(page), 100 + page).unwrap());
    assert_pages(&parent, 100);
    parent.advise(at(0), LENGTH, Advice::ShareAtFork).unwrap();
    let child = parent.fork().unwrap();
    assert_pages(&child, 100);
    drop((parent, child));
    end(&engine);
}

/// A call that copies many pages in a group over high makes room as it goes.
#[test]
fn copies_over_high_make_room() {
    const MANY: u64 = 256;
    let engine = engine(4096, u64::MAX);
    engine.add_swap(Arc::new(CompressedMemory::new(4096, 4096 * PAGE_SIZE as usize).unwrap())).unwrap();
    let limit = MemoryLimit::new(&engine, LimitConfig { high: MANY + 64, max: 4096 }).unwrap();
    let parent = Space::new_in(&engine, &limit).unwrap();
    parent.map(MapRequest::anonymous(MANY * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..MANY).for_each(|page| parent.store_u64(at(page), page + 1).unwrap());
    let child = parent.fork().unwrap();
    child.unshare(at(0), MANY * PAGE_SIZE).unwrap();
    // Each batch of charges is up to 64 pages.
    let resident = limit.usage().resident;
    assert!(resident <= MANY + 64 + 2 * 64, "{resident} pages, and high is {}", MANY + 64);
    for space in [&parent, &child] {
        (0..MANY).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
    }
    drop((parent, child));
    end(&engine);
}

/// The end of the parent ends a fork that copies pages, before all are copied.
#[test]
fn the_end_of_the_parent_ends_a_fork_that_copies() {
    const MANY: u64 = 8192;
    let has_ended_early = (0..50).any(|_| {
        let engine = engine(2 * MANY + 64, u64::MAX);
        let parent = Space::new(&engine).unwrap();
        parent.map(MapRequest::anonymous(MANY * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
        parent.advise(at(0), MANY * PAGE_SIZE, Advice::CopyAtFork).unwrap();
        (0..MANY).for_each(|page| parent.store_u64(at(page), page).unwrap());
        let result = std::thread::scope(|scope| {
            let fork = scope.spawn(|| parent.fork().map(drop));
            while get(&engine, Counter::ForkCopies) == 0 && !fork.is_finished() {
                std::hint::spin_loop();
            }
            parent.reap();
            fork.join().unwrap()
        });
        let copies = get(&engine, Counter::ForkCopies);
        drop(parent);
        end(&engine);
        assert!(result.is_ok() || result == Err(ForkError::Exited), "{result:?}");
        result.is_err() && copies < MANY
    });
    assert!(has_ended_early, "fork has copied all pages in each of 50 runs");
}
