//! Models of two concurrent calls of one space: a call for the whole space also covers a mapping that the other one
//! makes.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_calls`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;

use faultless::address::{PAGE_SIZE, PageNumber, PageRange};
use faultless::host::PageTable;
use faultless::protection::Protection;
use faultless::vma::MappingFlags;
use faultless::{Engine, Limits, LockAll, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use models::{Space, at, beside, end, model, spawn};
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
    mappings[0].flags.contains(MappingFlags::LOCKED)
}

/// A mapping that is made beside mlockall exists when mlockall looks, or is made later. It is locked in both cases.
#[test]
fn mlockall_misses_no_mapping() {
    model(3, || {
        let (engine, space) = machine();
        let map = beside(&space, move |other| map_first(&other));
        space.lock_all(LockAll::CURRENT | LockAll::FUTURE | LockAll::ON_FAULT).unwrap();
        map.join().unwrap();
        assert!(is_locked(&space), "mlockall missed the mapping, as a current and as a future one");
        end(&engine, space);
    });
}

/// The same for munlockall: nothing is locked after both have returned.
#[test]
fn munlockall_misses_no_mapping() {
    model(3, || {
        let (engine, space) = machine();
        space.lock_all(LockAll::FUTURE | LockAll::ON_FAULT).unwrap();
        let map = beside(&space, move |other| map_first(&other));
        space.unlock_all().unwrap();
        map.join().unwrap();
        assert!(!is_locked(&space), "locked after munlockall");
        end(&engine, space);
    });
}

/// Returns whether the leaf table of the first two pages is reachable.
fn has_leaf(space: &Space) -> bool {
    // SAFETY: dropped at the end of this function, which calls nothing that waits for it.
    let section = unsafe { space.engine().enter_section() };
    let leaf = PageRange::new(PageNumber::new(0), PageNumber::new(2)).unwrap();
    // SAFETY: in a section, and changes nothing.
    unsafe { space.table() }.next_leaf(&section, leaf).is_some()
}

/// The first page is unmapped beside `other`; then both pages are holes. The table was freed with the last of them.
fn the_table_goes(second: bool, other: fn(&Space)) {
    model(3, move || {
        let (engine, space) = machine();
        map_first(&space);
        if second {
            let request = MapRequest::anonymous(PAGE_SIZE).protection(Protection::READ);
            space.map(request.at(Placement::Fixed(at(1)))).unwrap();
        }
        space.store_u64(at(0), 1).unwrap();
        assert!(has_leaf(&space));
        let others = space.clone();
        let thread = spawn(1, move || other(&others));
        space.unmap(at(0), PAGE_SIZE).unwrap();
        thread.join().unwrap();
        assert_eq!(space.mappings().len(), 0);
        assert!(!has_leaf(&space), "the table stays although nothing is mapped there");
        end(&engine, space);
    });
}

#[test]
fn neighbours_that_go_at_once_take_their_table_along() {
    the_table_goes(true, |space| space.unmap(at(1), PAGE_SIZE).unwrap());
}

/// The other call has claimed a hole, and unmaps nothing.
#[test]
fn a_call_on_the_hole_beside_takes_the_table_along() {
    the_table_goes(false, |space| space.unmap(at(1), PAGE_SIZE).unwrap());
    the_table_goes(false, |space| _ = space.discard(at(1), PAGE_SIZE));
}
