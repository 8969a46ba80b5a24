//! The end of a space from outside (`AddressSpace::reap`): its memory is free when the call returns, whatever its threads do.

use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::FaultError;
use faultless::protection::{Access, Protection};
use faultless::store::{FileStore, GatedStore};
use faultless::swap::StoreDevice;
use faultless::{AddressSpace, Advice, Engine, File, ForkError, Limits, MapRequest, Placement};
use faultless_soft::{AccessError, Cpu, Soft};
use std::sync::Arc;
use std::thread;

type Space = AddressSpace<Soft, Faultless>;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn map(space: &Space, page: u64, pages: u64) {
    space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(page)))).unwrap();
}

fn stalled(pages: u64) -> GatedStore<FileStore> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * PAGE_SIZE).unwrap();
    GatedStore::new(FileStore::from_file(file).unwrap())
}

/// All devices are stalled: a thread waits for a page of a file, and pages are being written to swap. The memory is free when reap
/// returns, but for the pages under way. These are free when their transfers end.
#[test]
fn the_memory_is_free_while_all_devices_are_stalled() {
    let engine = Engine::new(Soft::with_caches(4096).unwrap(), Limits::default()).unwrap();
    let (swap, store) = (Arc::new(StoreDevice::new(stalled(64)).unwrap()), Arc::new(stalled(1)));
    engine.add_swap(swap.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    map(&space, 0, 2000);
    (0..2000).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let file = File::open(&engine, store.clone()).unwrap();
    let of_file = space.map(MapRequest::file(&file, 0, PAGE_SIZE, Protection::READ)).unwrap();
    while engine.swap_usage().slots < 8 {
        space.advise(at(0), 8 * PAGE_SIZE, Advice::PageOut).unwrap();
    }
    thread::scope(|threads| {
        let waits = threads.spawn(|| space.fault_and_wait(of_file, Access::Read));
        store.wait_for(1);
        assert_eq!(space.reap(), 2000);
        assert_eq!(engine.frame_usage().used, 1 + 8 + 1, "eight pages are being written, one is being read");
        assert!(matches!(waits.join().unwrap(), Err(FaultError::Exited { .. })));
    });
    assert_eq!((space.reap(), space.mappings().len()), (0, 0), "a second caller finds nothing to do");
    let found = space.load_u64(at(0));
    assert!(matches!(found, Err(AccessError::Fault(FaultError::Exited { .. }))), "{found:?}");
    assert_eq!(space.fork().err(), Some(ForkError::Exited));
    swap.store().open();
    store.open();
    drop((space, file));
    while engine.frame_usage().used != 1 {
        thread::yield_now();
    }
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

/// Threads of the space fault, discard, fork and map, while two others end it. The space has no page when either call returns.
#[test]
fn nothing_is_left_whatever_the_threads_of_the_space_do() {
    for shared_entries in [2, u64::MAX] {
        let limits = Limits { shared_entries, ..Limits::default() };
        let engine = Engine::new(Soft::with_caches(4096).unwrap(), limits).unwrap();
        let mut numbers = Rng::with_seed(16);
        for _ in 0..20 {
            let space = Space::new(&engine).unwrap();
            map(&space, 0, 600);
            let (seed, pause) = (numbers.u64(..), numbers.u32(..200_000));
            thread::scope(|threads| {
                for worker in 0..2 {
                    let (space, mut numbers) = (&space, Rng::with_seed(seed + worker));
                    threads.spawn(move || work(space, &mut numbers));
                }
                let mut reapers = Vec::new();
                for _ in 0..2 {
                    let space = &space;
                    reapers.push(threads.spawn(move || {
                        (0..pause).for_each(|_| std::hint::spin_loop());
                        space.reap();
                        assert_eq!(space.table_pages(), (0, 0), "pages are mapped when reap has returned");
                    }));
                }
                reapers.into_iter().for_each(|reaper| reaper.join().unwrap());
            });
            space.audit().unwrap();
            assert_eq!(engine.frame_usage().used, 1, "memory is in use when the space has ended");
        }
    }
}

/// Works in the space until it has ended.
fn work(space: &Space, numbers: &mut Rng) {
    loop {
        let page = numbers.u64(..600);
        match numbers.u32(..40) {
            0 => match space.fork() {
                Ok(child) => drop(child),
                Err(error) => return assert_eq!(error, ForkError::Exited),
            },
            1 => drop(space.discard(at(page), 64.min(600 - page) * PAGE_SIZE)),
            2 => drop(space.unmap(at(page), PAGE_SIZE)),
            3 => drop(space.map(MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(page))))),
            _ => match space.store_u64(at(page), page) {
                Ok(()) | Err(AccessError::Fault(FaultError::NoMapping { .. })) => {}
                Err(AccessError::Fault(FaultError::Exited { .. })) => return,
                Err(other) => panic!("{other}"),
            },
        }
    }
}
