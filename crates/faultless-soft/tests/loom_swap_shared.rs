//! Models of reclaim and swap of a page that several spaces have since a fork (docs/pressure.md), as `loom_swap.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_swap_shared`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;
#[expect(dead_code, reason = "other models use it")]
mod swapping;

use faultless::Engine;
use faultless::address::PAGE_SIZE;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless_soft::{Cpu, Soft};
use models::{Space, at, beside, map, spawn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use swapping::Processors::{Caching, Walking};
use swapping::{
    COPIES, Device, SHARES, audit, on_processor, reclaim, reclaiming, with_a_page, with_pages, word, words,
};

/// Forks a child that shares the leaf table.
fn sharing(engine: &Engine<Soft>, space: &Space) -> Space {
    let child = space.fork().unwrap();
    assert_ne!(engine.statistics().get(Counter::TablesShared), 0, "the table is not shared");
    child
}

/// Runs a model in a space and a child that share a leaf table with two pages.
fn with_a_child(
    bound: usize,
    body: impl Fn(&Arc<Engine<Soft>>, &Space, Space, &Arc<Device>) + Sync + Send + 'static,
) {
    with_pages(bound, (Walking, SHARES, 2), Device::new, move |engine, space, device| {
        let child = sharing(engine, &space);
        body(engine, &space, child, device);
    });
}

/// Puts the pages of a shared table into slots.
fn swap_out(engine: &Arc<Engine<Soft>>) {
    reclaim(engine);
    assert_eq!(engine.swap_usage().slots, 2, "the pages stay in memory, so the model checks nothing");
}

/// Rule S1: fork copies an entry with a slot, whose old translation may be in use.
#[test]
fn an_old_store_against_fork() {
    with_a_page(2, Caching, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        let child = space.fork().unwrap();
        let _ = space.try_store_u64(at(0), 2);
        assert_eq!(child.load_u64(at(0)), Ok(1), "invariant 7: the child changed after fork");
        reclaimer.join().unwrap();
        assert_eq!(child.load_u64(at(0)), Ok(1), "invariant 7: the child changed after fork");
        audit(space);
        audit(&child);
    });
}

/// Rule S2: the page is read in the window, and then fork copies its entry. The entry has the write right, so fork invalidates.
#[test]
fn an_old_store_against_a_load_and_fork() {
    with_a_page(2, Caching, |engine, space| {
        let reclaimer = reclaiming(engine, 1);
        // Another processor than the one that has the old translation.
        on_processor(2, || assert_eq!(space.load_u64(at(0)), Ok(1)));
        let child = space.fork().unwrap();
        let _ = space.try_store_u64(at(0), 2);
        assert_eq!(child.load_u64(at(0)), Ok(1), "invariant 7: the child changed after fork");
        reclaimer.join().unwrap();
        audit(space);
        audit(&child);
    });
}

/// Rule S3: a copy is installed in the place of a page in its slot. No processor reads the old page when the fault has returned.
#[test]
fn an_old_load_against_a_copy() {
    with_a_page(2, Caching, |engine, space| {
        let child = space.fork().unwrap();
        assert_eq!(space.load_u64(at(0)), Ok(1));
        let reclaimer = reclaiming(engine, 1);
        on_processor(2, || space.store_u64(at(0), 2).unwrap());
        assert_eq!(space.load_u64(at(0)), Ok(2), "the old bytes are read after the new ones were stored");
        reclaimer.join().unwrap();
        assert_eq!((space.load_u64(at(0)), child.load_u64(at(0))), (Ok(2), Ok(1)));
        audit(&child);
    });
}

/// Two spaces bring a page back at once. One read is made, and the page is the own one of neither.
#[test]
fn two_spaces_bring_a_page_back() {
    with_pages(2, (Walking, COPIES, 1), Device::new, |engine, space, device| {
        let child = space.fork().unwrap();
        (0..2).for_each(|_| reclaim(engine));
        let load = beside(&space, |space| assert_eq!(space.load_u64(at(0)), Ok(1)));
        assert_eq!(child.load_u64(at(0)), Ok(1));
        load.join().unwrap();
        assert_eq!(device.reads.load(Ordering::Relaxed), 1, "read twice");
        space.store_u64(at(0), 2).unwrap();
        assert_eq!(child.load_u64(at(0)), Ok(1), "invariant 6: a store was seen elsewhere");
        audit(&space);
        audit(&child);
    });
}

/// A page of a shared table is taken, while the parent stores to it.
///
/// If a fault takes the page out of its slot while reclaim makes the other entry name the slot, the page is lost: its next fault
/// finds no bytes, or does not end. loom reports that as too many branches.
#[test]
fn a_store_against_reclaim_from_a_shared_table() {
    with_a_child(2, |engine, space, child, _| {
        let store = beside(space, |space| space.store_u64(word(1), 2).unwrap());
        reclaim(engine);
        store.join().unwrap();
        assert_eq!(
            (words(space), words(&child)),
            ((1, 2), (1, 0)),
            "invariant 6: a store was lost or seen elsewhere"
        );
        audit(space);
        audit(&child);
    });
}

/// The child ends, the parent takes the table over and stores.
#[test]
fn a_childs_end_against_reclaim() {
    with_a_child(2, |engine, space, child, _| {
        let reclaimer = reclaiming(engine, 1);
        drop(child);
        space.store_u64(word(1), 2).unwrap();
        reclaimer.join().unwrap();
        assert_eq!(words(space), (1, 2), "a store was lost");
        audit(space);
    });
}

/// A processor of one of the spaces uses the page. The frame goes to another page after that.
#[test]
fn accesses_against_reclaim_from_a_shared_table() {
    for is_child in [false, true] {
        with_a_child(2, move |engine, space, child, _| {
            let user = if is_child { child.clone() } else { space.clone() };
            let access = spawn(1, move || {
                if let Ok(value) = user.try_load_u64(at(0)) {
                    assert_eq!(value, 1, "invariant 3: an access saw a frame's next life");
                }
            });
            reclaim(engine);
            map(space, 2, 2);
            (2..4).for_each(|page| space.store_u64(at(page), 9).unwrap());
            access.join().unwrap();
        });
    }
}

/// fork shares the table while reclaim is at work in it. When fork has returned, no store of the parent reaches the child.
#[test]
fn fork_shares_a_table_against_reclaim() {
    with_pages(2, (Caching, SHARES, 2), Device::new, |engine, space, _| {
        let reclaimer = reclaiming(engine, 1);
        let child = space.fork().unwrap();
        let _ = space.try_store_u64(at(0), 2);
        assert_eq!(child.load_u64(at(0)), Ok(1), "invariant 7: the child changed after fork");
        reclaimer.join().unwrap();
        assert_eq!(child.load_u64(at(1)), Ok(1), "invariant 7: the child changed after fork");
        audit(&space);
        audit(&child);
    });
}

/// Parent and child read a page of the shared table that is in a slot.
#[test]
fn two_loads_of_a_shared_tables_page() {
    with_a_child(1, |engine, space, child, device| {
        swap_out(engine);
        let load = beside(space, |space| assert_eq!(space.load_u64(at(0)), Ok(1)));
        assert_eq!(child.load_u64(at(0)), Ok(1));
        load.join().unwrap();
        assert_eq!(device.reads.load(Ordering::Relaxed), 1, "read twice");
        assert_eq!(engine.statistics().get(Counter::TablesCopied), 0, "the page did not come back for both");
        audit(space);
        audit(&child);
    });
}

/// The child reads the page of the shared table, while reclaim looks at the table again.
#[test]
fn a_load_against_reclaim_from_a_shared_table() {
    with_a_child(2, |engine, space, child, _| {
        swap_out(engine);
        let reclaimer = reclaiming(engine, 1);
        assert_eq!(child.load_u64(at(0)), Ok(1), "a page was lost");
        reclaimer.join().unwrap();
        assert_eq!((space.load_u64(at(0)), child.load_u64(at(0))), (Ok(1), Ok(1)), "a page was lost");
        assert_eq!(engine.statistics().get(Counter::TablesCopied), 0, "the page did not come back for both");
        audit(space);
        audit(&child);
    });
}

/// The parent reads the page while the child ends, and then has the table alone. It stores to the page that has come back, which goes
/// to its slot again.
#[test]
fn a_load_against_a_takeover() {
    with_a_child(2, |engine, space, child, _| {
        swap_out(engine);
        let end = spawn(1, move || drop(child));
        assert_eq!(space.load_u64(at(0)), Ok(1), "a page was lost");
        end.join().unwrap();
        space.store_u64(word(1), 2).unwrap();
        audit(space);
        // The first look clears the accessed bit.
        (0..2).for_each(|_| reclaim(engine));
        assert_eq!(words(space), (1, 2), "a store was lost");
        audit(space);
    });
}

/// The child reads the page, while the parent shares the table with another child.
#[test]
fn a_load_against_another_fork() {
    with_a_child(1, |engine, space, child, _| {
        swap_out(engine);
        let load = beside(&child, |child| assert_eq!(child.load_u64(at(0)), Ok(1), "a page was lost"));
        let other = space.fork().unwrap();
        assert_eq!(other.load_u64(at(0)), Ok(1), "a page was lost");
        load.join().unwrap();
        space.store_u64(word(1), 2).unwrap();
        assert_eq!((words(space), words(&child), words(&other)), ((1, 2), (1, 0), (1, 0)), "invariant 6");
        [space, &child, &other].into_iter().for_each(audit);
    });
}

/// The parent reads the page on one thread, and unmaps it on another.
#[test]
fn a_load_against_unmap_in_its_own_space() {
    with_a_child(2, |engine, space, child, _| {
        swap_out(engine);
        let load = beside(space, |space| assert!(!matches!(space.load_u64(at(0)), Ok(value) if value != 1)));
        space.unmap(at(0), PAGE_SIZE).unwrap();
        assert!(space.load_u64(at(0)).is_err(), "invariant 3: an access succeeds after unmap");
        load.join().unwrap();
        assert!(space.load_u64(at(0)).is_err(), "invariant 3: an access succeeds after unmap");
        assert_eq!((child.load_u64(at(0)), child.load_u64(at(1))), (Ok(1), Ok(1)), "a page was lost");
        audit(space);
        audit(&child);
    });
}

/// The parent reads the page on one thread, and takes all rights away on another.
#[test]
fn a_load_against_protect_in_its_own_space() {
    with_a_child(2, |engine, space, child, _| {
        swap_out(engine);
        let load = beside(space, |space| assert!(!matches!(space.load_u64(at(0)), Ok(value) if value != 1)));
        space.protect(at(0), PAGE_SIZE, Protection::empty()).unwrap();
        assert!(space.load_u64(at(0)).is_err(), "invariant 3: a load succeeds after protect");
        load.join().unwrap();
        assert!(space.load_u64(at(0)).is_err(), "invariant 3: a load succeeds after protect");
        assert_eq!(child.load_u64(at(0)), Ok(1), "a page was lost");
        audit(space);
        audit(&child);
    });
}

/// The child reads the page while the parent stores to it.
#[test]
fn a_load_against_a_store_of_a_shared_tables_page() {
    with_a_child(1, |engine, space, child, _| {
        swap_out(engine);
        let store = beside(space, |space| space.store_u64(word(1), 2).unwrap());
        assert_eq!(child.load_u64(at(0)), Ok(1));
        store.join().unwrap();
        assert_eq!(
            (words(space), words(&child)),
            ((1, 2), (1, 0)),
            "invariant 6: a store was lost or seen elsewhere"
        );
        audit(space);
        audit(&child);
    });
}

/// The child reads the page while the parent unmaps it.
#[test]
fn a_load_against_unmap_of_a_shared_tables_page() {
    with_a_child(1, |engine, space, child, _| {
        swap_out(engine);
        let load = beside(&child, |child| assert_eq!(child.load_u64(at(0)), Ok(1), "a page was lost"));
        space.unmap(at(0), PAGE_SIZE).unwrap();
        assert!(space.load_u64(at(0)).is_err(), "invariant 3: an access succeeds after unmap");
        load.join().unwrap();
        assert!(space.load_u64(at(0)).is_err(), "invariant 3: an access succeeds after unmap");
        assert_eq!((space.load_u64(at(1)), child.load_u64(at(1))), (Ok(1), Ok(1)), "a page was lost");
        audit(space);
        audit(&child);
    });
}

/// The child reads the page while the parent takes all rights away.
#[test]
fn a_load_against_protect_of_a_shared_tables_page() {
    with_a_child(1, |engine, space, child, _| {
        swap_out(engine);
        let load = beside(&child, |child| assert_eq!(child.load_u64(at(0)), Ok(1), "a page was lost"));
        space.protect(at(0), PAGE_SIZE, Protection::empty()).unwrap();
        assert!(space.load_u64(at(0)).is_err(), "invariant 3: a load succeeds after protect");
        load.join().unwrap();
        assert!(space.load_u64(at(0)).is_err(), "invariant 3: a load succeeds after protect");
        audit(space);
        audit(&child);
    });
}

/// The parent copies a table with slots, while the child ends.
#[test]
fn a_copy_of_slots_against_the_childs_end() {
    with_a_child(1, |engine, space, child, _| {
        swap_out(engine);
        let end = spawn(1, move || drop(child));
        space.store_u64(at(0), 2).unwrap();
        end.join().unwrap();
        assert_eq!((space.load_u64(at(0)), space.load_u64(at(1))), (Ok(2), Ok(1)), "a page was lost");
        audit(space);
    });
}
