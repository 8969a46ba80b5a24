//! Models of reclaim and swap of a page that one space has (docs/pressure.md), as `loom.rs`. `loom_swap_shared.rs` has those of
//! several spaces.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_swap`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;
#[expect(dead_code, reason = "other models use it")]
mod swapping;

use faultless::address::PAGE_SIZE;
use faultless::protection::{Access, Protection};
use faultless::{Advice, Fault, LockMode, RemapFlags, RemapRequest};
use faultless_soft::Cpu;
use models::{Space, at, beside, spawn};
use swapping::Processors::{Caching, Walking};
use swapping::{COPIES, Device, audit, reclaim, reclaiming, with_a_page, with_pages, word, words};

/// Reclaim against a processor that stores.
#[test]
fn a_store_against_reclaim() {
    with_a_page(2, Walking, |engine, space| {
        let store = beside(space, |space| space.store_u64(word(1), 2).unwrap());
        reclaim(engine);
        store.join().unwrap();
        assert_eq!(words(space), (1, 2), "a store was lost");
        audit(space);
    });
}

/// The same with a load first, and then reclaim once more: the slot of the first time may have older bytes.
#[test]
fn a_second_reclaim_after_a_store() {
    with_a_page(1, Walking, |engine, space| {
        let store = beside(space, |space| {
            assert_eq!(space.load_u64(word(0)), Ok(1));
            space.store_u64(word(1), 2).unwrap();
        });
        reclaim(engine);
        store.join().unwrap();
        engine.reclaim_for_tests(1);
        assert_eq!(words(space), (1, 2), "a store was lost");
        audit(space);
    });
}

/// MADV_FREE: reclaim drops the page, or the store keeps it. The store is never lost.
#[test]
fn a_store_against_reclaim_of_a_freed_page() {
    with_a_page(2, Walking, |engine, space| {
        space.advise(at(0), PAGE_SIZE, Advice::Free).unwrap();
        let store = beside(space, |space| space.store_u64(word(1), 2).unwrap());
        reclaim(engine);
        store.join().unwrap();
        let (first, second) = words(space);
        assert!(first <= 1 && second == 2, "a store was lost: {first}, {second}");
        audit(space);
    });
}

/// MADV_FREE takes the write right: a processor that has stored before makes a fault when it stores again.
#[test]
fn an_old_store_against_reclaim_of_a_freed_page() {
    with_a_page(1, Caching, |engine, space| {
        space.advise(at(0), PAGE_SIZE, Advice::Free).unwrap();
        let reclaimer = reclaiming(engine, 1);
        space.store_u64(word(1), 2).unwrap();
        reclaimer.join().unwrap();
        // If the store has come first, the page is not one to be dropped any more.
        engine.reclaim_for_tests(1);
        let (first, second) = words(space);
        assert!(first <= 1 && second == 2, "a store was lost: {first}, {second}");
        audit(space);
    });
}

/// MADV_FREE beside reclaim: the page goes to a slot, is dropped, or stays.
#[test]
fn free_against_reclaim() {
    with_a_page(2, Caching, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        space.advise(at(0), PAGE_SIZE, Advice::Free).unwrap();
        space.store_u64(word(1), 2).unwrap();
        reclaimer.join().unwrap();
        let (first, second) = words(space);
        assert!(first <= 1 && second == 2, "a store was lost: {first}, {second}");
        audit(space);
    });
}

/// DONTNEED: nothing is left, whatever comes first.
#[test]
fn dontneed_against_reclaim() {
    with_a_page(2, Walking, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        space.advise(at(0), PAGE_SIZE, Advice::DontNeed).unwrap();
        reclaimer.join().unwrap();
        assert_eq!(engine.swap_usage().slots, 0, "a slot is kept that nobody wants");
        assert_eq!(space.load_u64(at(0)), Ok(0));
        audit(space);
    });
}

/// Rule S2: a processor stores by an old translation while a fault of another one decides whether to copy.
#[test]
fn an_old_store_against_a_store_fault() {
    old_store_against(2, |_| {});
}

/// Rule S2: the same in two faults. The page is read first, and then stored to.
#[test]
fn an_old_store_against_a_load_and_a_store() {
    old_store_against(1, |space| assert_eq!(space.load_u64(word(0)), Ok(1)));
}

fn old_store_against(bound: usize, before: fn(&Space)) {
    with_a_page(bound, Caching, move |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        let faulting = space.clone();
        let faults = spawn(2, move || {
            before(&faulting);
            faulting.store_u64(word(2), 3).unwrap();
        });
        // The processor of this thread, which does nothing meanwhile, has the old translation.
        let storing = space.clone();
        let old = spawn(0, move || storing.try_store_u64(word(1), 2).is_ok());
        faults.join().unwrap();
        reclaimer.join().unwrap();
        let stored = if old.join().unwrap() { 2 } else { 0 };
        assert_eq!(words(space), (1, stored), "a store was lost");
        assert_eq!(space.load_u64(word(2)), Ok(3), "a store was lost");
    });
}

/// Rule S1: munmap finds an entry with a slot, whose old translation may be in use.
#[test]
fn an_access_against_reclaim_and_unmap() {
    with_a_page(2, Caching, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        space.unmap(at(0), PAGE_SIZE).unwrap();
        assert!(space.try_load_u64(at(0)).is_err(), "invariant 3: an access succeeds after unmap");
        reclaimer.join().unwrap();
        assert_eq!(engine.swap_usage().slots, 0, "a slot is kept that nobody wants");
    });
}

/// Rule S1: mprotect, and then the page comes back.
#[test]
fn an_access_against_reclaim_and_protect() {
    with_a_page(2, Caching, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        space.protect(at(0), PAGE_SIZE, Protection::READ).unwrap();
        assert!(space.try_store_u64(at(0), 2).is_err(), "invariant 3: a store succeeds after protect");
        reclaimer.join().unwrap();
        assert_eq!(words(space), (1, 0));
        audit(space);
    });
}

/// mremap: the page is at its new place, whether it has a frame or a slot, and no access succeeds at the old one.
#[test]
fn remap_against_reclaim() {
    with_a_page(2, Caching, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        space.remap(RemapRequest::to(at(0), PAGE_SIZE, at(2))).unwrap();
        assert!(space.try_load_u64(at(0)).is_err(), "invariant 3: an access succeeds at the old place");
        reclaimer.join().unwrap();
        assert_eq!(space.load_u64(at(2)), Ok(1), "a page was lost");
        audit(space);
    });
}

/// Rule H3: the page moves away, and its entry gets another page while reclaim is on its way there by the old home.
#[test]
fn a_new_page_at_the_old_home_against_reclaim() {
    with_a_page(2, Walking, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        let mut request = RemapRequest::to(at(0), PAGE_SIZE, at(2));
        request.flags |= RemapFlags::DONT_UNMAP;
        space.remap(request).unwrap();
        space.store_u64(at(0), 9).unwrap();
        reclaimer.join().unwrap();
        assert_eq!((space.load_u64(at(0)), space.load_u64(at(2))), (Ok(9), Ok(1)), "a page was lost");
        audit(space);
    });
}

/// The space ends.
#[test]
fn exit_against_reclaim() {
    with_pages(2, (Walking, COPIES, 1), Device::new, |engine, space, _| {
        let reclaimer = reclaiming(engine, 1);
        space.exit();
        drop(space);
        reclaimer.join().unwrap();
        assert_eq!(engine.swap_usage().slots, 0, "a slot is kept that nobody wants");
    });
}

/// Rule H5: the last handle of the space goes, without exit.
#[test]
fn the_last_handle_against_reclaim() {
    with_pages(2, (Walking, COPIES, 1), Device::new, |engine, space, _| {
        let reclaimer = reclaiming(engine, 1);
        drop(space);
        reclaimer.join().unwrap();
    });
}

/// A page is not reclaimed once its pin for I/O is there.
#[test]
fn a_pin_against_reclaim() {
    with_a_page(2, Walking, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        let pin = space.pin(at(0), Access::Write).unwrap();
        assert!(space.try_load_u64(at(0)).is_ok(), "a pinned page was reclaimed");
        reclaimer.join().unwrap();
        assert_eq!(engine.swap_usage().slots, 0, "a pinned page was reclaimed");
        assert_eq!(pin.write(8, &2_u64.to_ne_bytes()), 8);
        assert_eq!(words(space), (1, 2), "the page is not the pinned one");
        drop(pin);
        audit(space);
    });
}

/// A page is not reclaimed once mlock has returned.
#[test]
fn mlock_against_reclaim() {
    with_a_page(2, Walking, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        space.lock(at(0), PAGE_SIZE, LockMode::Now).unwrap();
        assert!(space.try_load_u64(at(0)).is_ok(), "a locked page was reclaimed");
        reclaimer.join().unwrap();
        assert!(space.try_load_u64(at(0)).is_ok(), "a locked page was reclaimed");
        audit(space);
    });
}

/// A fault has read its page from a slot. Before it goes on, the page is dropped, a new one is stored and goes to the same slot.
#[test]
fn a_fault_that_waited_against_the_next_life_of_its_slot() {
    with_pages(2, (Walking, COPIES, 1), Device::new, |engine, space, _| {
        reclaim(engine);
        let Ok(Fault::Pending(pending)) = space.fault(at(0), Access::Read) else {
            panic!("the page is there")
        };
        // In place, so the folio leaves the slot though the fault has it pinned.
        space.store_u64(at(0), 3).unwrap();
        space.advise(at(0), PAGE_SIZE, Advice::DontNeed).unwrap();
        space.store_u64(at(0), 9).unwrap();
        engine.reclaim_for_tests(1);
        assert_eq!(engine.swap_usage().slots, 1, "a slot for a page that nobody maps");
        let fault = spawn(1, move || drop(pending.wait()));
        assert_eq!(space.load_u64(at(0)), Ok(9), "a page of the slot's earlier life is mapped");
        fault.join().unwrap();
        assert_eq!(space.load_u64(at(0)), Ok(9), "a page of the slot's earlier life is mapped");
        audit(&space);
    });
}

/// The device writes the page while a processor stores: the bytes stay as they are until the write has ended.
#[test]
fn a_store_against_a_write_to_the_device() {
    with_pages(2, (Walking, COPIES, 1), Device::gated, |engine, space, device| {
        reclaim(engine);
        let writes = device.clone();
        let writes = spawn(1, move || writes.end_writes());
        space.store_u64(word(1), 2).unwrap();
        assert_eq!(writes.join().unwrap(), 1);
        assert_eq!(words(&space), (1, 2), "a store was lost");
        audit(&space);
    });
}

/// The same with a load first, which leaves the page in its slot. Then reclaim takes it again.
#[test]
fn a_load_and_a_store_against_a_write_to_the_device() {
    with_pages(2, (Walking, COPIES, 1), Device::gated, |engine, space, device| {
        reclaim(engine);
        let writes = device.clone();
        let writes = spawn(1, move || writes.end_writes());
        assert_eq!(space.load_u64(word(0)), Ok(1));
        space.store_u64(word(1), 2).unwrap();
        writes.join().unwrap();
        engine.reclaim_for_tests(1);
        device.end_writes();
        assert_eq!(words(&space), (1, 2), "a store was lost");
        audit(&space);
    });
}
