//! Two calls of one space at the same time under loom: what one of them says of the whole space holds for what the other makes.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_calls`
#![cfg(loom)]

#[expect(dead_code, reason = "what the other models use too")]
mod models;

use faultless::address::PAGE_SIZE;
use faultless::vma::Flags;
use faultless::{Engine, Limits, LockAll, MapRequest, Placement};
use faultless_soft::Soft;
use models::{Space, at, end, model, spawn};
use std::sync::Arc;

fn machine() -> (Arc<Engine<Soft>>, Space) {
    let engine = Engine::new(Soft::new(8).expect("eight frames"), Limits::default()).expect("memory");
    let space = Space::new(&engine).expect("memory for a space");
    (engine, space)
}

fn map_first(space: &Space) {
    space.map(MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(0)))).expect("a mapping");
}

fn is_locked(space: &Space) -> bool {
    let mappings = space.mappings();
    assert_eq!(mappings.len(), 1);
    mappings[0].flags.contains(Flags::LOCKED)
}

/// What is mapped beside mlockall is there when it looks, or comes later: locked in both cases.
#[test]
fn mlockall_misses_no_mapping() {
    model(3, || {
        let (engine, space) = machine();
        let other = space.clone();
        let map = spawn(1, move || map_first(&other));
        space.lock_all(LockAll::CURRENT | LockAll::FUTURE | LockAll::ON_FAULT).unwrap();
        map.join().unwrap();
        assert!(is_locked(&space), "neither current nor future");
        end(&engine, space);
    });
}

/// The same of munlockall: nothing is locked when both have returned.
#[test]
fn munlockall_misses_no_mapping() {
    model(3, || {
        let (engine, space) = machine();
        space.lock_all(LockAll::FUTURE | LockAll::ON_FAULT).unwrap();
        let other = space.clone();
        let map = spawn(1, move || map_first(&other));
        space.unlock_all().unwrap();
        map.join().unwrap();
        assert!(!is_locked(&space), "locked after munlockall");
        end(&engine, space);
    });
}
