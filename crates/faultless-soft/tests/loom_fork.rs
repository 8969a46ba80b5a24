//! Models of leaf tables that fork shares (docs/fork.md), as `loom.rs`. A table has two entries here, and is shared if
//! both are used.
#![cfg(loom)]

mod models;

use faultless::address::PAGE_SIZE;
use faultless::protection::Access;
use faultless::stats::Counter;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::{Engine, Fault, File, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use models::{READ_WRITE, Space, at, beside, close, end, map, model, spawn};
use std::sync::Arc;

fn machine() -> Arc<Engine<Soft>> {
    Engine::new(Soft::with_caches(8).expect("eight frames"), Limits::default()).expect("memory for an engine")
}

/// Makes a space with 1 in both pages of a leaf table.
fn parent(engine: &Arc<Engine<Soft>>) -> Space {
    let space = Space::new(engine).unwrap();
    map(&space, 0, 2);
    space.store_u64(at(0), 1).unwrap();
    space.store_u64(at(1), 1).unwrap();
    space
}

/// Forks a child that shares the table.
fn sharing(engine: &Arc<Engine<Soft>>, space: &Space) -> Space {
    let child = space.fork().unwrap();
    assert_ne!(
        engine.statistics().get(Counter::TablesShared),
        0,
        "the table is not shared, so the model checks nothing"
    );
    child
}

fn words(space: &Space) -> (u64, u64) {
    (space.load_u64(at(0)).unwrap(), space.load_u64(at(1)).unwrap())
}

/// Invariant 7: after fork has returned, no store of the parent goes through the table.
#[test]
fn a_store_against_fork() {
    model(2, || {
        let engine = machine();
        let space = parent(&engine);
        let store = beside(&space, move |other| other.store_u64(at(0), 2).unwrap());
        let child = sharing(&engine, &space);
        let cut = child.load_u64(at(0)).unwrap();
        store.join().unwrap();
        assert_eq!(child.load_u64(at(0)).unwrap(), cut, "invariant 7: the child changed after fork");
        assert_eq!(words(&space), (2, 1), "the parent lost a store");
        child.audit().unwrap_or_else(|error| panic!("{error}"));
        drop(child);
        end(&engine, space);
    });
}

/// CVE-2021-4002: a table that one space has left belongs to the other only after no processor of the first uses it.
/// The machine has no caches: with caches each access locks its processor's caches, so every invalidation, even of
/// another table, would wait for it.
#[test]
fn an_access_against_leaving() {
    model(2, || {
        let soft = Soft::new(8).expect("eight frames");
        let engine = Engine::new(soft, Limits::default()).expect("memory for an engine");
        let space = parent(&engine);
        let child = sharing(&engine, &space);
        let access = beside(&space, move |other| {
            assert_eq!(other.try_load_u64(at(0)), Ok(1), "invariant 7: the parent sees the child's store");
        });
        space.store_u64(at(1), 2).unwrap();
        child.store_u64(at(0), 9).unwrap();
        access.join().unwrap();
        assert_eq!((words(&space), words(&child)), ((1, 2), (9, 1)));
        drop(child);
        end(&engine, space);
    });
}

/// Parent and child write at once: one copies the table, the other then has it alone, and both continue.
#[test]
fn both_write() {
    model(2, || {
        let engine = machine();
        let space = parent(&engine);
        let child = sharing(&engine, &space);
        let store = beside(&space, move |other| other.store_u64(at(0), 2).unwrap());
        child.store_u64(at(0), 3).unwrap();
        store.join().unwrap();
        assert_eq!(
            (words(&space), words(&child)),
            ((2, 1), (3, 1)),
            "invariant 6: a store was seen elsewhere"
        );
        assert_eq!(engine.statistics().get(Counter::TablesCopied), 1);
        drop(child);
        end(&engine, space);
    });
}

/// Two faults of one space on one shared table: the table is copied once, and neither page is lost.
#[test]
fn two_faults_on_one_table() {
    model(2, || {
        let engine = machine();
        let space = parent(&engine);
        let child = sharing(&engine, &space);
        let store = beside(&space, move |other| other.store_u64(at(0), 2).unwrap());
        space.store_u64(at(1), 3).unwrap();
        store.join().unwrap();
        assert_eq!((words(&space), words(&child)), ((2, 3), (1, 1)), "a page was lost");
        assert_eq!(engine.statistics().get(Counter::TablesCopied), 1);
        drop(child);
        end(&engine, space);
    });
}

/// A fault that copies the table beside an unmap that does: invariant 3 holds, and the child keeps its pages.
#[test]
fn a_fault_against_unmap() {
    model(2, || {
        let engine = machine();
        let space = parent(&engine);
        let child = sharing(&engine, &space);
        let fault = beside(&space, move |other| {
            let _ = other.store_u64(at(1), 2);
        });
        space.unmap(at(1), PAGE_SIZE).unwrap();
        assert!(space.try_load_u64(at(1)).is_err(), "invariant 3: an access succeeds after unmap");
        fault.join().unwrap();
        assert!(space.try_load_u64(at(1)).is_err(), "invariant 3: an access succeeds after unmap");
        assert_eq!((space.load_u64(at(0)), words(&child)), (Ok(1), (1, 1)));
        drop(child);
        end(&engine, space);
    });
}

/// The child ends while the parent writes: the parent copies the table, or has it alone.
#[test]
fn a_store_against_the_childs_end() {
    model(2, || {
        let engine = machine();
        let space = parent(&engine);
        let child = sharing(&engine, &space);
        let exit = spawn(1, move || drop(child));
        space.store_u64(at(0), 2).unwrap();
        exit.join().unwrap();
        assert_eq!(words(&space), (2, 1));
        end(&engine, space);
    });
}

/// A second fork of a table that the first child is about to leave.
#[test]
fn a_second_fork_against_a_store_of_the_child() {
    model(2, || {
        let engine = machine();
        let space = parent(&engine);
        let child = sharing(&engine, &space);
        let store = spawn(1, move || {
            child.store_u64(at(0), 2).unwrap();
            assert_eq!(words(&child), (2, 1));
        });
        let second = space.fork().unwrap();
        store.join().unwrap();
        space.store_u64(at(1), 3).unwrap();
        assert_eq!(
            (words(&space), words(&second)),
            ((1, 3), (1, 1)),
            "invariant 7: the child changed after fork"
        );
        drop(second);
        end(&engine, space);
    });
}

/// A store full of fives, whose transfers end at once.
struct Fives;

impl Store for Fives {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        if let Bytes::Read(page) = transfer.bytes() {
            page.fill(5);
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}

/// Truncation reaches a page of a shared table in both spaces, even if one of them copies the table meanwhile.
#[test]
fn truncation_of_a_shared_table() {
    model(2, || {
        let engine = machine();
        let file = File::open(&engine, Arc::new(Fives)).expect("a store with a length");
        let space = Space::new(&engine).unwrap();
        map(&space, 0, 1);
        space.store_u64(at(0), 1).unwrap();
        let request = MapRequest::file(&file, 0, PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(1)));
        space.map(request).unwrap();
        if let Fault::Pending(pending) = space.fault(at(1), Access::Write).unwrap() {
            assert!(matches!(pending.wait(), Ok(Fault::Done)));
        }
        let child = sharing(&engine, &space);
        let truncated = file.clone();
        let truncation = spawn(1, move || truncated.set_length(0).unwrap());
        child.store_u64(at(0), 2).unwrap();
        truncation.join().unwrap();
        for space in [&space, &child] {
            assert!(space.try_load_u64(at(1)).is_err(), "invariant 3: a page that was cut off is mapped");
        }
        assert_eq!((space.load_u64(at(0)), child.load_u64(at(0))), (Ok(1), Ok(2)));
        drop(child);
        close(file);
        end(&engine, space);
    });
}
