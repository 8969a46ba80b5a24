//! Anonymous memory that is larger than the machine: pages go to slots and come back, with the bytes that were stored.

use crate::devices::{compressed, file, file_store};
use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::{FaultError, Signal};
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::{Direction, FailingStore, Failure, GatedStore, InjectedError};
use faultless::swap::{StoreDevice, SwapDevice};
use faultless::{
    AddressSpace, Advice, Engine, Fault, Limits, LockMode, MapRequest, Placement, RemapRequest,
    RemoteAdviseError, errno,
};
use faultless_soft::{AccessError, Cpu, Soft};
use std::collections::HashMap;
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

/// The frames of the machine, and the pages of a space: eight times as many.
const FRAMES: u64 = 64;
const PAGES: u64 = 512;

fn engine(device: Arc<dyn SwapDevice>, limits: Limits) -> Arc<Engine<Soft>> {
    let engine = Engine::new(Soft::with_caches(FRAMES).unwrap(), limits).unwrap();
    engine.add_swap(device).unwrap();
    engine
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn space(engine: &Arc<Engine<Soft>>) -> Space {
    let space = Space::new(engine).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    space
}

/// Checks that nothing is left: no frame but the page of zeros, and no slot. Reads ahead may still be under way.
fn end(engine: &Engine<Soft>) {
    engine.flush();
    for _ in 0..10_000 {
        if engine.frame_usage().used > 1 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

/// Stores and loads in random pages, and compares with a model of the memory.
fn random_accesses(space: &Space, model: &mut HashMap<u64, u64>, numbers: &mut Rng, count: u32) {
    for _ in 0..count {
        let (page, word) = (numbers.u64(..PAGES), numbers.u64(..512));
        let place = page * 512 + word;
        let address = VirtAddr::new(at(page).get() + word * 8);
        if numbers.u64(..2) == 0 {
            let value = numbers.u64(..);
            space.store_u64(address, value).unwrap();
            model.insert(place, value);
        } else {
            let expected = model.get(&place).copied().unwrap_or(0);
            assert_eq!(space.load_u64(address).unwrap(), expected, "page {page}, word {word}");
        }
    }
}

#[test]
fn a_space_larger_than_memory_keeps_its_bytes() {
    for device in [compressed(), file()] {
        let engine = engine(device, Limits::default());
        let space = space(&engine);
        let (mut model, mut numbers) = (HashMap::new(), Rng::with_seed(7));
        random_accesses(&space, &mut model, &mut numbers, 20_000);
        assert!(engine.swap_usage().slots > 0, "the test shows something only if pages are swapped");
        space.audit().unwrap();
        for (place, value) in &model {
            let address = VirtAddr::new(at(place / 512).get() + place % 512 * 8);
            assert_eq!(space.load_u64(address).unwrap(), *value);
        }
        space.exit();
        drop(space);
        end(&engine);
    }
}

/// A page that is only loaded keeps its slot, also if reclaim looks at it while it is in use.
#[test]
fn a_page_that_is_not_stored_into_is_written_once() {
    let engine = engine(compressed(), Limits::default());
    let space = space(&engine);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let mut numbers = Rng::with_seed(5);
    for _ in 0..4_000 {
        let page = numbers.u64(..PAGES);
        assert_eq!(space.load_u64(at(page)).unwrap(), page + 1);
    }
    let [reads, writes, young] = [Counter::SwapIns, Counter::SwapOuts, Counter::PassedYoung]
        .map(|counter| engine.statistics().get(counter));
    assert!(writes <= PAGES && reads > 4 * writes && young > 0, "{:?}", engine.statistics());
    drop(space);
    end(&engine);
}

/// The child has what the parent had, wherever the pages are, and each has its own from then on. With shared leaf tables, and
/// with copied entries.
#[test]
fn fork_with_pages_in_slots() {
    for shared_entries in [1, u64::MAX] {
        let engine = engine(compressed(), Limits { shared_entries, ..Limits::default() });
        let (mut numbers, mut model) = (Rng::with_seed(11), HashMap::new());
        let parent = space(&engine);
        random_accesses(&parent, &mut model, &mut numbers, 2_000);
        let mut family = vec![(parent, model)];
        for round in 0..12 {
            let oldest = numbers.u64(..(family.len() as u64)) as usize;
            let (child, model) = (family[oldest].0.fork().unwrap(), family[oldest].1.clone());
            family.push((child, model));
            for (space, model) in &mut family {
                random_accesses(space, model, &mut numbers, 300);
                space.audit().unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
            if family.len() > 4 {
                family.remove(numbers.u64(..4) as usize).0.exit();
            }
        }
        drop(family);
        end(&engine);
    }
}

/// munmap, mprotect, mremap and DONTNEED of pages in slots.
#[test]
fn calls_on_pages_in_slots() {
    let engine = engine(file(), Limits::default());
    let space = space(&engine);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let slots = engine.swap_usage().slots;
    assert!(slots >= PAGES - FRAMES, "{slots} slots");
    space.unmap(at(0), 64 * PAGE_SIZE).unwrap();
    space.protect(at(64), 64 * PAGE_SIZE, Protection::READ).unwrap();
    assert!(space.store_u64(at(64), 0).is_err());
    space.remap(RemapRequest::to(at(128), 64 * PAGE_SIZE, at(4096))).unwrap();
    space.discard(at(192), 64 * PAGE_SIZE).unwrap();
    space.audit().unwrap();
    for page in 64..PAGES {
        let (place, expected) = match page {
            128..192 => (4096 + page - 128, page + 1),
            192..256 => (page, 0),
            _ => (page, page + 1),
        };
        assert_eq!(space.load_u64(at(place)).unwrap(), expected, "page {page}");
    }
    space.protect(at(64), 64 * PAGE_SIZE, Protection::READ | Protection::WRITE).unwrap();
    space.store_u64(at(64), 5).unwrap();
    assert_eq!(space.load_u64(at(64)).unwrap(), 5);
    drop(space);
    end(&engine);
}

/// Reclaims until all pages are in slots.
fn swap_all_out(engine: &Arc<Engine<Soft>>) {
    // The accessed bits are cleared first. The device completes at once.
    (0..8).for_each(|_| _ = engine.reclaim_for_tests(FRAMES));
    assert_eq!(engine.frame_usage().used, 1, "pages stay in memory");
}

/// Does the same with a device that writes later.
fn swap_all_out_and_wait(engine: &Arc<Engine<Soft>>) {
    while engine.frame_usage().used != 1 {
        engine.reclaim_for_tests(FRAMES);
        std::thread::yield_now();
    }
}

/// A page that two spaces have is moved in one of them while it is in a slot. The home of the page must lead to all entries that map
/// it, or be none: a family that it names may end before the other space's entry.
#[test]
fn a_page_in_a_slot_moves_in_one_of_two_spaces() {
    for shared_entries in [1, u64::MAX] {
        for is_in_slot in [true, false] {
            let engine = engine(compressed(), Limits { shared_entries, ..Limits::default() });
            let parent = space(&engine);
            parent.store_u64(at(0), 7).unwrap();
            let child = parent.fork().unwrap();
            swap_all_out(&engine);
            if !is_in_slot {
                assert_eq!(child.load_u64(at(0)).unwrap(), 7);
            }
            child.remap(RemapRequest::to(at(0), PAGE_SIZE, at(4096))).unwrap();
            for (space, page) in [(&child, 4096), (&parent, 0)] {
                assert_eq!(space.load_u64(at(page)).unwrap(), 7);
                space.audit().unwrap();
            }
            child.unmap(at(4096), PAGE_SIZE).unwrap();
            engine.flush();
            parent.audit().unwrap();
            let _ = engine.reclaim_for_tests(FRAMES);
            parent.store_u64(at(0), 8).unwrap();
            assert_eq!(parent.load_u64(at(0)).unwrap(), 8);
            drop((parent, child));
            end(&engine);
        }
    }
}

fn usage(space: &Space) -> (u64, u64) {
    space.usage().iter().fold((0, 0), |(resident, swap), of| (resident + of.resident, swap + of.swap))
}

#[test]
fn advice_reclaims_pages_and_the_call_tells_where_they_are() {
    let engine = engine(compressed(), Limits::default());
    let space = space(&engine);
    (0..8).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    assert_eq!(usage(&space), (8 * PAGE_SIZE, 0));
    space.advise(at(0), 4 * PAGE_SIZE, Advice::PageOut).unwrap();
    assert_eq!(usage(&space), (4 * PAGE_SIZE, 4 * PAGE_SIZE));
    assert_eq!(space.resident(at(0), 8 * PAGE_SIZE).unwrap(), [[false; 4], [true; 4]].concat());
    // Pages that another space has too stay.
    let child = space.fork().unwrap();
    space.advise(at(4), 4 * PAGE_SIZE, Advice::PageOut).unwrap();
    assert_eq!(usage(&space), (4 * PAGE_SIZE, 4 * PAGE_SIZE));
    drop(child);
    // Cold pages go first, although they were used last.
    (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page + 1));
    (8..32).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    space.advise(at(20), 8 * PAGE_SIZE, Advice::Cold).unwrap();
    engine.reclaim_for_tests(1);
    let is_in = space.resident(at(20), 8 * PAGE_SIZE).unwrap();
    assert!(is_in.iter().all(|is_in| !is_in), "{is_in:?}");
    let is_in = space.resident(at(0), 32 * PAGE_SIZE).unwrap();
    assert!(is_in[8..20].iter().all(|is_in| *is_in), "{is_in:?}");
    (0..32).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page + 1));
    drop(space);
    end(&engine);
}

#[test]
fn locked_pages_and_pinned_pages_stay() {
    let engine = engine(compressed(), Limits::default());
    let space = space(&engine);
    (0..8).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    space.lock(at(0), 2 * PAGE_SIZE, LockMode::Now).unwrap();
    let pinned = space.pin(at(2), Access::Write).unwrap();
    let _ = engine.reclaim_for_tests(FRAMES);
    let _ = engine.reclaim_for_tests(FRAMES);
    assert_eq!(space.resident(at(0), 8 * PAGE_SIZE).unwrap(), [[true; 3].as_slice(), &[false; 5]].concat());
    // A page comes back to be locked, and to be pinned.
    space.lock(at(3), PAGE_SIZE, LockMode::Now).unwrap();
    let another = space.pin(at(4), Access::Read).unwrap();
    assert_eq!(space.resident(at(3), 2 * PAGE_SIZE).unwrap(), [true; 2]);
    drop((pinned, another));
    space.unlock_all().unwrap();
    swap_all_out(&engine);
    (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page + 1));
    drop(space);
    end(&engine);
}

/// MADV_FREE needs no swap device: the pages go when memory is short, unless they are stored to before.
#[test]
fn freed_pages_go_when_memory_is_short() {
    for has_swap in [false, true] {
        let engine = Engine::new(Soft::with_caches(FRAMES).unwrap(), Limits::default()).unwrap();
        if has_swap {
            engine.add_swap(compressed()).unwrap();
        }
        let space = space(&engine);
        (0..40).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
        space.advise(at(0), 40 * PAGE_SIZE, Advice::Free).unwrap();
        (0..40).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page + 1, "there is room"));
        // Stored to again: kept.
        (0..8).for_each(|page| space.store_u64(at(page), page + 100).unwrap());
        space.audit().unwrap();
        (64..96).for_each(|page| space.store_u64(at(page), page).unwrap());
        space.audit().unwrap();
        (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page + 100));
        let left = (8..40).filter(|page| match space.load_u64(at(*page)).unwrap() {
            0 => false,
            value => {
                assert_eq!(value, *page + 1);
                true
            }
        });
        assert!(left.count() < 32, "some were dropped");
        (64..96).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page));
        drop(space);
        end(&engine);
    }
}

/// A page after MADV_FREE that fork has passed on is swapped: another space has it too.
#[test]
fn a_freed_page_of_two_spaces_is_swapped() {
    for shared_entries in [1, u64::MAX] {
        let engine = engine(compressed(), Limits { shared_entries, ..Limits::default() });
        let space = space(&engine);
        (0..8).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
        space.advise(at(0), 8 * PAGE_SIZE, Advice::Free).unwrap();
        let child = space.fork().unwrap();
        swap_all_out(&engine);
        for space in [&space, &child] {
            (0..8).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page + 1));
            space.audit().unwrap();
        }
        drop((space, child));
        end(&engine);
    }
}

/// A page after MADV_FREE goes to a slot, since a child has it too. The store that brings it back makes it a page that is kept.
#[test]
fn a_store_keeps_a_freed_page_that_was_in_a_slot() {
    for shared_entries in [1, u64::MAX] {
        let store = FailingStore::new(
            file_store(),
            Direction::Write,
            Failure::From(1),
            InjectedError::Io { errno: 5 },
        );
        let engine = engine(
            Arc::new(StoreDevice::new(store).unwrap()),
            Limits { shared_entries, ..Limits::default() },
        );
        let space = space(&engine);
        space.store_u64(at(0), 1).unwrap();
        space.advise(at(0), PAGE_SIZE, Advice::Free).unwrap();
        let child = space.fork().unwrap();
        // No entry has the page any more. Its write fails, so it stays in memory, with its slot.
        while engine.statistics().get(Counter::SwapWriteErrors) == 0 {
            engine.reclaim_for_tests(1);
        }
        drop(child);
        let word = VirtAddr::new(at(0).get() + 8);
        space.store_u64(word, 2).unwrap();
        (0..8).for_each(|_| _ = engine.reclaim_for_tests(FRAMES));
        assert_eq!(space.load_u64(word).unwrap(), 2, "a store after MADV_FREE was lost");
        assert_eq!(space.load_u64(at(0)).unwrap(), 1);
        space.audit().unwrap();
        drop(space);
        end(&engine);
    }
}

/// A store beside MADV_FREE and reclaim: the page has the store's bytes, or it was dropped before the store and zeros with it.
#[test]
fn stores_beside_freeing_are_kept() {
    let engine = engine(compressed(), Limits::default());
    let space = space(&engine);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let space = &space;
            scope.spawn(move || {
                for round in 1..3_000 {
                    let page = (round * 7 + thread) % 16 * 2 + thread;
                    let (first, second) = (at(page), VirtAddr::new(at(page).get() + 8));
                    space.store_u64(first, round).unwrap();
                    space.advise(first, PAGE_SIZE, Advice::Free).unwrap();
                    space.store_u64(second, round).unwrap();
                    assert_eq!(space.load_u64(second).unwrap(), round, "a store after MADV_FREE was lost");
                    let before = space.load_u64(first).unwrap();
                    assert!(before == round || before == 0, "{before} is neither the old word nor zero");
                }
            });
        }
        scope.spawn(|| (0..600).for_each(|_| _ = engine.reclaim_for_tests(8)));
    });
    space.audit().unwrap();
    drop(space);
    end(&engine);
}

/// A device that cannot read a page: each access says so, no access shows other bytes, and the rest is not touched.
#[test]
fn a_page_that_cannot_be_read_is_an_error_at_each_access() {
    let store =
        FailingStore::new(file_store(), Direction::Read, Failure::From(1), InjectedError::Io { errno: 5 });
    let device = Arc::new(StoreDevice::new(store).unwrap());
    let engine = engine(device.clone(), Limits::default());
    let space = space(&engine);
    (0..4).for_each(|page| space.store_u64(at(page), 0x0102_0304 + page).unwrap());
    space.store_u64(VirtAddr::new(at(0).get() + 8), 1).unwrap();
    swap_all_out_and_wait(&engine);
    for _ in 0..2 {
        let error = space.load_u64(at(0)).unwrap_err();
        let AccessError::Fault(error) = error else { panic!("{error}") };
        assert!(matches!(error, FaultError::Io { .. }), "{error}");
        assert_eq!(error.signal(), Signal::NoPage);
    }
    device.store().set(None);
    assert!(space.load_u64(at(0)).is_err(), "the page stays lost");
    (1..4).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), 0x0102_0304 + page));
    space.discard(at(0), PAGE_SIZE).unwrap();
    assert_eq!(space.load_u64(at(0)).unwrap(), 0);
    drop(space);
    end(&engine);
}

/// A device that cannot write: the pages stay in memory, and an access that finds no room fails. Nothing is lost.
#[test]
fn a_device_that_cannot_write_loses_nothing() {
    let store =
        FailingStore::new(file_store(), Direction::Write, Failure::From(1), InjectedError::Io { errno: 5 });
    let engine = engine(Arc::new(StoreDevice::new(store).unwrap()), Limits::default());
    let space = space(&engine);
    let mut stored = 0;
    while space.store_u64(VirtAddr::new(at(stored).get() + 8 * (stored % 8)), stored + 1).is_ok() {
        stored += 1;
        assert!(stored < FRAMES, "more pages than frames");
    }
    assert!(stored > FRAMES / 2, "{stored}");
    for page in 0..stored {
        let address = VirtAddr::new(at(page).get() + 8 * (page % 8));
        assert_eq!(space.load_u64(address).unwrap(), page + 1);
    }
    drop(space);
    end(&engine);
}

/// exit and the end of a space wait for no device. Pages that a read or a write under way has are freed at its end; a fault that waits
/// for its read is told that the space has exited.
#[test]
fn exit_waits_for_no_device() {
    let device = Arc::new(StoreDevice::new(GatedStore::new(file_store())).unwrap());
    let engine = engine(device.clone(), Limits::default());
    let space = space(&engine);
    let store = |pages: std::ops::Range<u64>| {
        pages.for_each(|page| {
            space.store_u64(VirtAddr::new(at(page).get() + 8 * (page % 8)), page + 1).unwrap()
        });
    };
    store(0..4);
    space.advise(at(0), 4 * PAGE_SIZE, Advice::PageOut).unwrap();
    let gate = device.store();
    while engine.frame_usage().used != 1 {
        gate.pass(gate.waiting());
        std::thread::yield_now();
    }
    store(4..40);
    space.advise(at(4), 4 * PAGE_SIZE, Advice::PageOut).unwrap();
    let Fault::Pending(pending) = space.fault(at(0), Access::Read).unwrap() else { panic!("it is read") };
    assert_eq!(engine.frame_usage().used, 1 + 36 + 1);
    space.exit();
    assert_eq!(engine.frame_usage().used, 1 + 4 + 1, "four pages are being written, one is being read");
    assert!(matches!(pending.wait(), Err(FaultError::Exited { .. })));
    drop(space);
    gate.open();
    while engine.frame_usage().used != 1 {
        std::thread::yield_now();
    }
    end(&engine);
}

/// A slot that has neither a folio nor written bytes is an error of the access (SIGBUS). The fault does not begin over for ever.
#[test]
fn a_slot_without_bytes_is_an_error_of_the_access() {
    let engine = engine(compressed(), Limits::default());
    let space = space(&engine);
    (0..4).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    while engine.frame_usage().used != 1 {
        space.advise(at(0), 4 * PAGE_SIZE, Advice::PageOut).unwrap();
    }
    engine.lose_slots_for_tests();
    for access in [Access::Read, Access::Write] {
        let found = space.fault(at(1), access).err();
        assert_eq!(found, Some(FaultError::Lost { address: at(1) }));
        assert_eq!(found.map(|error| error.signal()), Some(Signal::NoPage));
    }
    space.exit();
    drop(space);
    end(&engine);
}

/// mincore tells a page in swap space from one whose bytes are in memory too. smaps tells the pages in swap space, and each space's part
/// of those that two have.
#[test]
fn mincore_and_smaps_tell_swap() {
    let engine = engine(file(), Limits { shared_entries: u64::MAX, ..Limits::default() });
    let space = space(&engine);
    (0..4).for_each(|page| space.store_u64(VirtAddr::new(at(page).get() + 8), page + 7).unwrap());
    let page_out = || {
        while engine.frame_usage().used != 1 {
            engine.reclaim(4);
            std::thread::yield_now();
        }
    };
    page_out();
    assert_eq!(space.resident(at(0), 5 * PAGE_SIZE).unwrap(), [false; 5]);
    let child = space.fork().unwrap();
    for usage in [space.usage()[0], child.usage()[0]] {
        assert_eq!((usage.resident, usage.swap, usage.swap_proportional), (0, 4 * PAGE_SIZE, 2 * PAGE_SIZE));
    }
    // One space brings a page back for a load: the slot has its bytes too, and the other space needs no read.
    assert_eq!(space.load_u64(VirtAddr::new(at(2).get() + 8)), Ok(9));
    assert!(space.resident(at(2), PAGE_SIZE).unwrap()[0] && child.resident(at(2), PAGE_SIZE).unwrap()[0]);
    let (usage, of_child) = (space.usage()[0], child.usage()[0]);
    assert_eq!((usage.resident, usage.swap), (PAGE_SIZE, 3 * PAGE_SIZE));
    assert_eq!((of_child.resident, of_child.swap), (0, 4 * PAGE_SIZE));
    assert_eq!(
        of_child.swap_proportional,
        3 * PAGE_SIZE / 2 + PAGE_SIZE,
        "one page is in its slot for the child alone"
    );
    child.exit();
    space.exit();
    drop((child, space));
    end(&engine);
}

/// Advice from outside is that of process_madvise on Linux 6.18: the same kinds, the same sums, the same errors.
#[test]
fn advice_from_outside_is_that_of_process_madvise() {
    let engine = engine(compressed(), Limits::default());
    let space = space(&engine);
    (0..16).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    space.unmap(at(8), PAGE_SIZE).unwrap();
    let (four, one, hole) = ((at(0), 4 * PAGE_SIZE), (at(4), PAGE_SIZE), (at(7), 3 * PAGE_SIZE));
    let is_refused = |advice| {
        let error = space.advise_remote(&[four], advice).unwrap_err();
        (error, error.errno()) == (RemoteAdviseError::NotRemote { advice }, errno::EINVAL)
    };
    let own = [0, 1, 2, 4, 8, 9, 10, 18, 22, 102].map(|number| Advice::try_from(number).unwrap());
    assert!(own.into_iter().all(is_refused));
    for advice in [Advice::WillNeed, Advice::Cold, Advice::PageOut] {
        assert_eq!(space.advise_remote(&[four, one], advice), Ok(5 * PAGE_SIZE));
    }
    let advise =
        |ranges: &[(VirtAddr, u64)]| space.advise_remote(ranges, Advice::Cold).map_err(|error| error.errno());
    assert_eq!(advise(&[four, one, hole]), Ok(5 * PAGE_SIZE));
    assert_eq!(advise(&[hole, four]), Err(errno::ENOMEM));
    assert_eq!(advise(&[four, (VirtAddr::new(at(0).get() + 1), PAGE_SIZE)]), Ok(4 * PAGE_SIZE));
    assert_eq!(advise(&[four, (at(0), 0)]), Ok(4 * PAGE_SIZE));
    assert_eq!(advise(&[(at(0), 100)]), Ok(100));
    assert_eq!(advise(&[]), Ok(0));
    assert_eq!(advise(&[four; 1025]), Err(errno::EINVAL));
    assert_eq!(space.usage()[0].swap, 5 * PAGE_SIZE, "PageOut has an effect on the pages of both ranges");
    (0..4).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
    space.exit();
    assert_eq!((advise(&[four]), advise(&[])), (Err(errno::ESRCH), Err(errno::ESRCH)));
    drop(space);
    end(&engine);
}

/// Threads store into pages of their own, while a child after the other is forked, checked and ended.
#[test]
fn threads_beside_forks() {
    for shared_entries in [1, u64::MAX] {
        let engine = engine(compressed(), Limits { shared_entries, ..Limits::default() });
        let space = space(&engine);
        (0..PAGES).for_each(|page| space.store_u64(at(page), 0).unwrap());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let space = &space;
                scope.spawn(move || {
                    let mut numbers = Rng::with_seed(thread + 1);
                    let mut stamps = vec![0; (PAGES / 4) as usize];
                    for round in 1..4_000 {
                        let mine = numbers.u64(..PAGES / 4);
                        let page = mine * 4 + thread;
                        let seen = space.load_u64(at(page)).unwrap();
                        assert_eq!(seen, stamps[mine as usize], "a store to page {page} was lost");
                        stamps[mine as usize] = round;
                        space.store_u64(at(page), round).unwrap();
                    }
                });
            }
            scope.spawn(|| {
                let mut numbers = Rng::with_seed(99);
                for _ in 0..60 {
                    let child = space.fork().unwrap();
                    let seen: Vec<_> = (0..64).map(|_| numbers.u64(..PAGES)).collect();
                    let before: Vec<_> = seen.iter().map(|page| child.load_u64(at(*page)).unwrap()).collect();
                    let after: Vec<_> = seen.iter().map(|page| child.load_u64(at(*page)).unwrap()).collect();
                    assert_eq!(before, after, "invariant 7: a child's page changed");
                    child.exit();
                }
            });
        });
        space.audit().unwrap();
        drop(space);
        end(&engine);
    }
}
