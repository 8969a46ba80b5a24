//! Models of concurrent changes of one space, without the tree lock. loom tries every interleaving up to a bound. A
//! leaf has two mappings, so that four make a tree with several nodes.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_beside`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;

use faultless::address::PAGE_SIZE;
use faultless::protection::{Access, Protection};
use faultless::{Engine, FaultError, Limits, MapError, MapRequest, Placement, ProtectError, SpaceLimits};
use faultless_soft::{AccessError, Cpu, Soft};
use models::{READ_WRITE, Space, at, beside, end, model};
use std::sync::Arc;

/// Makes a space of four pages, each a mapping of its own, since their rights differ.
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

/// Returns whether each page is mapped.
fn mapped(space: &Space) -> [bool; 4] {
    let is_hole =
        |page| matches!(space.load_u64(at(page)), Err(AccessError::Fault(FaultError::NoMapping { .. })));
    [0, 1, 2, 3].map(|page| !is_hole(page))
}

/// The first page is unmapped. The last one gets its neighbour's rights and is merged with it.
#[test]
fn unmap_beside_protect() {
    model(3, || {
        let (engine, space) = machine();
        let unmap = beside(&space, move |other| other.unmap(at(0), PAGE_SIZE).unwrap());
        space.protect(at(3), PAGE_SIZE, READ_WRITE).unwrap();
        space.store_u64(at(3), 3).unwrap();
        unmap.join().unwrap();
        assert_eq!(mapped(&space), [false, true, true, true]);
        assert_eq!(space.mappings().len(), 2);
        end(&engine, space);
    });
}

/// Two parts of one mapping are unmapped: both are gone, in either order.
#[test]
fn two_parts_of_one_mapping() {
    model(3, || {
        let (engine, space) = machine();
        space.protect(at(0), PAGE_SIZE, Protection::READ).unwrap();
        let unmap = beside(&space, move |other| other.unmap(at(0), PAGE_SIZE).unwrap());
        space.unmap(at(1), PAGE_SIZE).unwrap();
        unmap.join().unwrap();
        assert_eq!(mapped(&space), [false, false, true, true]);
        end(&engine, space);
    });
}

/// The last page is unmapped while a search looks for a free place: it finds that place, or there was none yet.
#[test]
fn unmap_beside_a_search() {
    model(3, || {
        let (engine, space) = machine();
        let unmap = beside(&space, move |other| other.unmap(at(3), PAGE_SIZE).unwrap());
        match space.map(MapRequest::anonymous(PAGE_SIZE)) {
            Ok(place) => assert_eq!(place, at(3)),
            Err(error) => assert_eq!(error, MapError::NoSpace { pages: 1 }),
        }
        unmap.join().unwrap();
        end(&engine, space);
    });
}

/// A fault in one mapping while its neighbour is unmapped.
#[test]
fn a_fault_beside_unmap() {
    model(3, || {
        let (engine, space) = machine();
        let fault = beside(&space, move |other| _ = other.fault(at(2), Access::Write));
        space.unmap(at(3), PAGE_SIZE).unwrap();
        fault.join().unwrap();
        assert_eq!(mapped(&space), [true, true, true, false]);
        end(&engine, space);
    });
}

/// A limit holds for a change beside other changes.
#[test]
fn a_limit_beside_unmap() {
    model(3, || {
        let (engine, space) = machine();
        space.set_limits(SpaceLimits { data: 2 * PAGE_SIZE, ..space.limits() });
        let unmap = beside(&space, move |other| other.unmap(at(1), PAGE_SIZE).unwrap());
        let refused = space.protect(at(3), PAGE_SIZE, READ_WRITE);
        assert!(
            matches!(refused, Err(ProtectError::Limit { .. })),
            "a limit on data was exceeded: {refused:?}"
        );
        unmap.join().unwrap();
        assert_eq!(mapped(&space), [true, false, true, true]);
        end(&engine, space);
    });
}
