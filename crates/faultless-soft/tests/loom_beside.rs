//! Changes of one space side by side under loom, each without the tree lock: every interleaving up to a bound. A leaf has two
//! mappings, so that four make a tree with parts.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_beside`
#![cfg(loom)]

#[expect(dead_code, reason = "what the other models use too")]
mod models;

use faultless::address::PAGE_SIZE;
use faultless::protection::{Access, Protection};
use faultless::{Engine, FaultError, Limits, MapError, MapRequest, Placement};
use faultless_soft::{AccessError, Cpu, Soft};
use models::{READ_WRITE, Space, at, end, model, spawn};
use std::sync::Arc;

/// A space of four pages, each a mapping of its own: rights differ.
fn machine() -> (Arc<Engine<Soft>>, Space) {
    let engine = Engine::new(Soft::new(8).expect("eight frames"), Limits::default()).expect("memory");
    let space = Space::new(&engine).expect("memory for a space");
    [READ_WRITE, Protection::READ, READ_WRITE, Protection::READ].into_iter().zip(0..).for_each(
        |(rights, page)| {
            let request = MapRequest { protection: rights, ..MapRequest::anonymous(PAGE_SIZE) };
            space.map(request.at(Placement::Fixed(at(page)))).expect("a mapping");
        },
    );
    (engine, space)
}

fn is_mapped(space: &Space, page: u64) -> bool {
    !matches!(space.load_u64(at(page)), Err(AccessError::Fault(FaultError::NoMapping { .. })))
}

fn audit(space: &Space) {
    space.audit().unwrap_or_else(|error| panic!("{error}"));
}

/// The first page goes; the last one gets its neighbour's rights and joins it.
#[test]
fn unmap_beside_protect() {
    model(3, || {
        let (engine, space) = machine();
        let other = space.clone();
        let unmap = spawn(1, move || other.unmap(at(0), PAGE_SIZE).unwrap());
        space.protect(at(3), PAGE_SIZE, READ_WRITE).unwrap();
        space.store_u64(at(3), 3).unwrap();
        unmap.join().unwrap();
        audit(&space);
        assert_eq!([0, 1, 2, 3].map(|page| is_mapped(&space, page)), [false, true, true, true]);
        assert_eq!(space.mappings().len(), 2);
        end(&engine, space);
    });
}

/// Two parts of one mapping: both go, whoever comes first.
#[test]
fn two_parts_of_one_mapping() {
    model(3, || {
        let (engine, space) = machine();
        space.protect(at(0), PAGE_SIZE, Protection::READ).unwrap();
        let other = space.clone();
        let unmap = spawn(1, move || other.unmap(at(0), PAGE_SIZE).unwrap());
        space.unmap(at(1), PAGE_SIZE).unwrap();
        unmap.join().unwrap();
        audit(&space);
        assert_eq!([0, 1, 2, 3].map(|page| is_mapped(&space, page)), [false, false, true, true]);
        end(&engine, space);
    });
}

/// The last page goes while a place is looked for: that is found, or there was none yet.
#[test]
fn unmap_beside_a_search() {
    model(3, || {
        let (engine, space) = machine();
        let other = space.clone();
        let unmap = spawn(1, move || other.unmap(at(3), PAGE_SIZE).unwrap());
        match space.map(MapRequest::anonymous(PAGE_SIZE)) {
            Ok(place) => assert_eq!(place, at(3)),
            Err(error) => assert_eq!(error, MapError::NoSpace { pages: 1 }),
        }
        unmap.join().unwrap();
        audit(&space);
        end(&engine, space);
    });
}

/// A fault in one mapping, and a mapping beside it goes with what lies between them and a third.
#[test]
fn a_fault_beside_unmap() {
    model(3, || {
        let (engine, space) = machine();
        let other = space.clone();
        let fault = spawn(1, move || _ = other.fault(at(2), Access::Write));
        space.unmap(at(3), PAGE_SIZE).unwrap();
        fault.join().unwrap();
        audit(&space);
        assert!(is_mapped(&space, 2) && !is_mapped(&space, 3));
        end(&engine, space);
    });
}
