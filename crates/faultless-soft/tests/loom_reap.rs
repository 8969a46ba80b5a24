//! Models of the end of a space from outside, as `loom.rs`: reap against exit, faults, a fault that resumes, and fork.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_reap`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;
#[expect(dead_code, reason = "other models use it")]
mod swapping;

use faultless::fault::FaultError;
use faultless::protection::Access;
use faultless::{Engine, Fault, ForkError};
use faultless_soft::{AccessError, Cpu, Soft};
use models::{Space, at, beside, in_a_space, map, spawn};
use std::sync::Arc;
use swapping::Processors::Walking;
use swapping::{COPIES, Device, SHARES, reclaim, with_pages};

fn engine() -> Arc<Engine<Soft>> {
    swapping::engine(Walking, &Device::new(), COPIES)
}

/// Asserts that the space has no memory, as after each call that ends it.
fn is_free(engine: &Engine<Soft>) {
    assert_eq!(engine.frame_usage().used, 1, "memory is in use when a call that ends the space has returned");
}

fn has_exited(result: Result<(), AccessError>) -> bool {
    match result {
        Ok(()) => false,
        Err(AccessError::Fault(FaultError::Exited { .. })) => true,
        Err(other) => panic!("{other}"),
    }
}

/// Two threads end the space. Whichever call returns first, the memory is free by then.
#[test]
fn reap_against_exit() {
    in_a_space(3, engine, |engine, space| {
        map(space, 0, 2);
        space.store_u64(at(0), 1).unwrap();
        let (other, machine) = (space.clone(), engine.clone());
        let exit = spawn(1, move || {
            let dropped = other.reap();
            is_free(&machine);
            dropped
        });
        let dropped = space.reap();
        is_free(engine);
        assert_eq!(dropped + exit.join().unwrap(), 1, "a page was dropped twice, or by nobody");
    });
}

/// A thread stores for the first time into a page. Its fault finds the space ended, or the page is dropped.
#[test]
fn reap_against_a_fault() {
    in_a_space(3, engine, |engine, space| {
        map(space, 0, 2);
        space.store_u64(at(0), 1).unwrap();
        let store = beside(space, |space| space.store_u64(at(1), 1));
        let dropped = space.reap();
        let exited = has_exited(store.join().unwrap());
        is_free(engine);
        assert!(dropped == 2 || exited && dropped == 1, "{dropped} pages were dropped");
    });
}

/// The same in a part of the space without a leaf table. The thread that makes the table looks at the mappings before it has any entry,
/// so exit does not wait for it there. The mappings are freed when it has left its section.
#[test]
fn reap_against_a_fault_that_makes_a_table() {
    in_a_space(3, engine, |engine, space| {
        map(space, 0, 4);
        space.store_u64(at(0), 1).unwrap();
        let store = beside(space, |space| space.store_u64(at(2), 1));
        let dropped = space.reap();
        let exited = has_exited(store.join().unwrap());
        is_free(engine);
        assert!(dropped == 2 || exited && dropped == 1, "{dropped} pages were dropped");
    });
}

/// A fault has read its page from a slot, and goes on while the space ends. The page, its slot and its frame are dropped.
#[test]
fn reap_against_a_fault_that_resumes() {
    with_pages(3, (Walking, COPIES, 1), Device::new, |engine, space, _| {
        reclaim(engine);
        let Ok(Fault::Pending(pending)) = space.fault(at(0), Access::Read) else {
            panic!("the page is there")
        };
        let fault = spawn(1, move || match pending.wait() {
            Ok(Fault::Done) | Err(FaultError::Exited { .. }) => {}
            Ok(Fault::Pending(_)) => panic!("the page is read again"),
            Err(other) => panic!("{other}"),
        });
        space.reap();
        fault.join().unwrap();
        is_free(engine);
        assert_eq!(engine.swap_usage().slots, 0, "a slot is kept that nobody wants");
    });
}

fn reap_against_fork(space: &Space, engine: &Engine<Soft>) {
    map(space, 0, 2);
    (0..2).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let fork = beside(space, Space::fork);
    space.reap();
    match fork.join().unwrap() {
        Ok(child) => {
            (0..2).for_each(|page| {
                assert_eq!(child.load_u64(at(page)), Ok(page + 1), "invariant 7: half a child")
            });
            child.audit().unwrap_or_else(|error| panic!("{error}"));
            child.exit();
        }
        Err(error) => assert_eq!(error, ForkError::Exited),
    }
    is_free(engine);
}

/// A fork that copies entries is complete, or there is no child.
#[test]
fn reap_against_a_fork_that_copies() {
    in_a_space(2, engine, |engine, space| reap_against_fork(space, engine));
}

/// The same with a fork that shares the leaf table.
#[test]
fn reap_against_a_fork_that_shares() {
    let engine = || swapping::engine(Walking, &Device::new(), SHARES);
    in_a_space(2, engine, |engine, space| reap_against_fork(space, engine));
}
