//! Models of homes (docs/home.md), as `loom.rs`. One thread follows the home of a frame, as reclaim will; what it meets is memory
//! until its section ends. A table has two entries here.
#![cfg(loom)]

#[expect(dead_code, reason = "what the other models use too")]
mod models;

use faultless::address::{PAGE_SIZE, PageNumber};
use faultless::host::{Frame, PageTable};
use faultless::stats::Counter;
use faultless::{Engine, Limits};
use faultless_soft::{Cpu, Soft};
use loom::thread::JoinHandle;
use models::{Space, at, end, map, model, spawn};
use std::sync::Arc;

/// `shared_entries`: 2 to share a full table at fork, more to copy each entry.
fn machine(shared_entries: u64) -> Arc<Engine<Soft>> {
    let limits = Limits { shared_entries, ..Limits::default() };
    Engine::new(Soft::new(8).expect("eight frames"), limits).expect("memory for an engine")
}

/// A space with a full leaf table.
fn parent(engine: &Arc<Engine<Soft>>) -> Space {
    let space = Space::new(engine).unwrap();
    map(&space, 0, 2);
    space.store_u64(at(0), 1).unwrap();
    space.store_u64(at(1), 1).unwrap();
    space
}

fn frame(space: &Space, page: u64) -> Frame {
    // SAFETY: it ends before anything waits.
    let section = unsafe { space.engine().enter_section() };
    // SAFETY: it is only read.
    let table = unsafe { space.table() };
    let page = at(page).page();
    table.load(table.leaf(&section, page).unwrap(), page).mapped_frame().unwrap()
}

/// A thread that follows the home of what page 0 shows now.
fn follower(engine: &Arc<Engine<Soft>>, space: &Space) -> JoinHandle<()> {
    let (engine, frame) = (engine.clone(), frame(space, 0));
    spawn(1, move || {
        let home = engine.follow_home(frame);
        assert!(
            home.is_none_or(|page| page == PageNumber::new(0)),
            "a home of no life of this frame: {home:?}"
        );
    })
}

/// Rule H1: the table in which a page is at home is unmapped and freed, and another space maps the page still.
#[test]
fn a_home_against_unmap() {
    model(2, || {
        let engine = machine(u64::MAX);
        let space = parent(&engine);
        let child = space.fork().unwrap();
        let follower = follower(&engine, &space);
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        follower.join().unwrap();
        drop(child);
        end(&engine, space);
    });
}

/// The same, and nobody else maps the page: home names the table to the end, and the frame may have another life.
#[test]
fn a_home_against_unmap_of_the_only_mapping() {
    model(2, || {
        let engine = machine(u64::MAX);
        let space = parent(&engine);
        let follower = follower(&engine, &space);
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        follower.join().unwrap();
        end(&engine, space);
    });
}

/// Rule H1: a copy is mapped in the place of the page, and then the table goes.
#[test]
fn a_home_against_a_copy() {
    model(2, || {
        let engine = machine(u64::MAX);
        let space = parent(&engine);
        let child = space.fork().unwrap();
        let follower = follower(&engine, &space);
        space.store_u64(at(0), 2).unwrap();
        assert_eq!(engine.follow_home(frame(&child, 0)), None, "the entry has let the page go");
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        follower.join().unwrap();
        drop(child);
        end(&engine, space);
    });
}

/// fork shares the table in which the page is at home, the child leaves it, and the parent has it alone again.
#[test]
fn a_home_against_fork() {
    model(2, || {
        let engine = machine(2);
        let space = parent(&engine);
        let follower = follower(&engine, &space);
        let child = space.fork().unwrap();
        assert_ne!(engine.statistics().get(Counter::TablesShared), 0, "nothing is shared");
        assert_eq!(engine.follow_home(frame(&space, 0)), None, "no space has a shared table alone");
        child.store_u64(at(1), 2).unwrap();
        drop(child);
        space.store_u64(at(0), 2).unwrap();
        assert_eq!(engine.follow_home(frame(&space, 0)), Some(PageNumber::new(0)));
        follower.join().unwrap();
        end(&engine, space);
    });
}

/// Rule H5: the last handle goes, without exit.
#[test]
fn a_home_against_the_last_handle() {
    model(3, || {
        let engine = machine(u64::MAX);
        let space = parent(&engine);
        let follower = follower(&engine, &space);
        end(&engine, space);
        follower.join().unwrap();
    });
}
