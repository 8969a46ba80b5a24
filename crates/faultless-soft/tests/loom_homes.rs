//! Models of homes (docs/home.md), as `loom.rs`. One thread follows the home of a frame, as reclaim does. The objects
//! that it reaches are not freed before its section ends. A table has two entries here.
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;

use faultless::address::{PAGE_SIZE, PageNumber};
use faultless::host::{Frame, PageTable};
use faultless::protection::Access;
use faultless::stats::Counter;
use faultless::{Advice, Engine, File, Limits, MapRequest, Placement, RemapRequest};
use faultless_soft::{Cpu, Soft};
use loom::thread::JoinHandle;
use models::{READ_WRITE, Space, at, beside, end, in_a_space, map, model, spawn};
use std::sync::Arc;

fn machine(shared_entries: u64) -> Arc<Engine<Soft>> {
    let limits = Limits { shared_entries, ..Limits::default() };
    Engine::new(Soft::new(8).expect("eight frames"), limits).expect("memory for an engine")
}

/// Makes a machine on which fork copies each entry.
fn copying() -> Arc<Engine<Soft>> {
    machine(u64::MAX)
}

/// Makes a machine on which fork shares a full table.
fn sharing() -> Arc<Engine<Soft>> {
    machine(2)
}

/// The page to which page 0 moves in a model.
const MOVED: u64 = 2;

/// Fills a leaf table of `space`.
fn fill(space: &Space) {
    map(space, 0, 2);
    space.store_u64(at(0), 1).unwrap();
    space.store_u64(at(1), 1).unwrap();
}

/// Runs a model in a space with a full leaf table.
fn in_a_full_table(
    engine: fn() -> Arc<Engine<Soft>>,
    body: impl Fn(&Arc<Engine<Soft>>, &Space) + Sync + Send + 'static,
) {
    in_a_space(2, engine, move |engine, space| {
        fill(space);
        body(engine, space);
    });
}

fn frame(space: &Space, page: u64) -> Frame {
    // SAFETY: dropped before anything waits.
    let section = unsafe { space.engine().enter_section() };
    // SAFETY: only read.
    let table = unsafe { space.table() };
    let page = at(page).page();
    table.load(table.leaf(&section, page).unwrap(), page).mapped_frame().unwrap()
}

/// Starts a thread that follows the home of the frame that page 0 has now.
fn follower(engine: &Arc<Engine<Soft>>, space: &Space) -> JoinHandle<()> {
    let (engine, frame) = (engine.clone(), frame(space, 0));
    spawn(1, move || {
        let pages = engine.pages_by_home(frame);
        let is_of_a_life = |page: &PageNumber| [0, MOVED, MOVED + 1].contains(&page.get());
        assert!(pages.iter().all(is_of_a_life), "a home of no life of this frame: {pages:?}");
    })
}

/// Rule H1: the table of a page's home is unmapped and freed, and another space still maps the page.
#[test]
fn a_home_against_unmap() {
    in_a_full_table(copying, |engine, space| {
        let child = space.fork().unwrap();
        let follower = follower(engine, space);
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        follower.join().unwrap();
        drop(child);
    });
}

/// The same if no other space maps the page: the home names the table to the end, and the frame may be allocated again.
#[test]
fn a_home_against_unmap_of_the_only_mapping() {
    in_a_full_table(copying, |engine, space| {
        let follower = follower(engine, space);
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        follower.join().unwrap();
    });
}

/// The same, and the frame is allocated again for a new table. An invalidation waits for no section. So the thread may
/// have seen the mapping of the first life, and read the home of the next.
#[test]
fn a_home_against_the_next_life() {
    in_a_full_table(copying, |engine, space| {
        map(space, MOVED, 1);
        let first = frame(space, 0);
        let follower = follower(engine, space);
        // DontNeed retires nothing, so it waits for no section.
        space.advise(at(0), PAGE_SIZE, Advice::DontNeed).unwrap();
        space.store_u64(at(MOVED), 2).unwrap();
        assert_eq!(frame(space, MOVED), first, "the frame was not allocated again");
        follower.join().unwrap();
    });
}

/// Rule H1: a copy is mapped in the page's place, and then the table is freed.
#[test]
fn a_home_against_a_copy() {
    in_a_full_table(copying, |engine, space| {
        let child = space.fork().unwrap();
        let follower = follower(engine, space);
        space.store_u64(at(0), 2).unwrap();
        assert_eq!(
            engine.pages_by_home(frame(&child, 0)).len(),
            2,
            "the child's entry is found through the family"
        );
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        follower.join().unwrap();
        drop(child);
    });
}

/// Rule H1: a page that has lost its only mapping keeps its home while it is pinned. A thread that sees no mapping does not follow it.
#[test]
fn a_home_of_a_pinned_page() {
    in_a_full_table(copying, |engine, space| {
        let (page, pin) = (frame(space, 0), space.pin(at(0), Access::Write).unwrap());
        let follower = follower(engine, space);
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        assert!(engine.pages_by_home(page).is_empty(), "a home of a page that is not mapped");
        drop(pin);
        follower.join().unwrap();
    });
}

/// Rule H1: truncation takes a page's only mapping out of its entry, invalidates, and then drops the mapping. Meanwhile exit, which waits
/// for entries only, frees the table.
#[test]
fn a_home_against_a_mapping_that_is_dropped_late() {
    model(2, || {
        let engine = copying();
        let file = File::in_memory(&engine, 2 * PAGE_SIZE).unwrap();
        let space = Space::new(&engine).unwrap();
        let request = MapRequest::file(&file, 0, 2 * PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(0)));
        space.map(request).unwrap();
        space.store_u64(at(0), 1).unwrap();
        let (copy, cut) = (frame(&space, 0), file.clone());
        let truncation = spawn(1, move || cut.set_length(0).unwrap());
        space.exit();
        let pages = engine.pages_by_home(copy);
        assert!(pages.is_empty(), "a home in a space that has ended: {pages:?}");
        truncation.join().unwrap();
        end(&engine, space);
    });
}

/// fork shares the table of a page's home, the child leaves it, and the parent has it alone again.
#[test]
fn a_home_against_fork() {
    in_a_full_table(sharing, |engine, space| {
        let follower = follower(engine, space);
        let child = space.fork().unwrap();
        assert_ne!(engine.statistics().get(Counter::TablesShared), 0, "nothing is shared");
        assert!(engine.pages_by_home(frame(space, 0)).is_empty(), "no space has a shared table alone");
        child.store_u64(at(1), 2).unwrap();
        drop(child);
        space.store_u64(at(0), 2).unwrap();
        assert_eq!(engine.pages_by_home(frame(space, 0)), [PageNumber::new(0)]);
        follower.join().unwrap();
    });
}

/// Rule H1 for a family: its last table is freed.
#[test]
fn a_home_against_the_end_of_a_family() {
    in_a_full_table(copying, |engine, space| {
        let child = space.fork().unwrap();
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        let follower = follower(engine, &child);
        drop(child);
        follower.join().unwrap();
    });
}

/// By fork a table joins a family, and another one leaves it, while a thread reads the list.
#[test]
fn a_search_against_a_new_relative() {
    in_a_full_table(copying, |engine, space| {
        let first = space.fork().unwrap();
        let follower = follower(engine, space);
        let second = space.fork().unwrap();
        drop(first);
        let found = engine.pages_by_home(frame(&second, 1)).len();
        assert_eq!(found, 2, "a search misses a relative");
        drop(second);
        follower.join().unwrap();
    });
}

/// Rule H1 for a family: a page that another space maps too moves out of the family's tables, and the family ends.
#[test]
fn a_home_of_a_page_that_has_left_its_family() {
    in_a_full_table(copying, |engine, space| {
        let child = space.fork().unwrap();
        child.remap(RemapRequest::to(at(0), 2 * PAGE_SIZE, at(MOVED))).unwrap();
        let follower = follower(engine, space);
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        assert!(engine.pages_by_home(frame(&child, MOVED)).is_empty());
        child.audit().unwrap_or_else(|error| panic!("{error}"));
        follower.join().unwrap();
        drop(child);
    });
}

/// Rule H2: a copy replaces the page at its home, while the page moves in another space.
#[test]
fn a_copy_against_a_move() {
    in_a_full_table(copying, |engine, space| {
        let child = space.fork().unwrap();
        let copier = beside(space, |space| space.store_u64(at(0), 2).unwrap());
        child.remap(RemapRequest::to(at(0), 2 * PAGE_SIZE, at(MOVED))).unwrap();
        copier.join().unwrap();
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        let pages = engine.pages_by_home(frame(&child, MOVED));
        assert!(
            pages.iter().all(|page| *page == at(MOVED).page()),
            "a home that the page has left: {pages:?}"
        );
        // The memory of a family stays, so a home that names one that has ended leads nowhere. The audit finds that.
        child.audit().unwrap_or_else(|error| panic!("{error}"));
        drop(child);
    });
}

/// Rule H2: a store finds the page to be its space's alone and writes its home, while the page moves. The home is written under the
/// entry's bit, so it never names the place that the page has left.
#[test]
fn a_reuse_against_a_move() {
    in_a_full_table(copying, |engine, space| {
        drop(space.fork().unwrap());
        engine.flush();
        let store = beside(space, |space| _ = space.store_u64(at(0), 2));
        space.remap(RemapRequest::to(at(0), 2 * PAGE_SIZE, at(MOVED))).unwrap();
        store.join().unwrap();
        engine.flush();
        let pages = engine.pages_by_home(frame(space, MOVED));
        assert_eq!(pages, [at(MOVED).page()], "a home that the page has left");
    });
}

/// The frame of a page has its next life in another table, when the table of its first life is freed. A thread that sees the next
/// life's mapping sees its home.
#[test]
fn a_home_against_the_next_life_in_another_table() {
    in_a_full_table(copying, |engine, space| {
        map(space, MOVED, 2);
        let first = frame(space, 0);
        let follower = follower(engine, space);
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        (MOVED..MOVED + 2).for_each(|page| space.store_u64(at(page), 2).unwrap());
        let again = (MOVED..MOVED + 2).any(|page| frame(space, page) == first);
        assert!(again, "the frame was not allocated again");
        follower.join().unwrap();
    });
}

/// Rule H5: the last handle is dropped, without exit.
#[test]
fn a_home_against_the_last_handle() {
    model(3, || {
        let engine = copying();
        let space = Space::new(&engine).unwrap();
        fill(&space);
        let follower = follower(&engine, &space);
        end(&engine, space);
        follower.join().unwrap();
    });
}

/// Rule H1 for a family: its last table leaves it, and stays. The thread has read the family in a page's home.
#[test]
fn a_home_against_isolation() {
    in_a_full_table(copying, |engine, space| {
        let child = space.fork().unwrap();
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        let follower = follower(engine, &child);
        let cost = child.isolate_cowed(at(0), PAGE_SIZE).unwrap();
        assert_eq!((cost.left, cost.remarked), (1, 2));
        follower.join().unwrap();
        assert_eq!(engine.pages_by_home(frame(&child, 0)), [PageNumber::new(0)]);
        drop(child);
    });
}

/// A table with a page that another space has too stays in its family, and a thread finds the page through it.
#[test]
fn a_shared_page_against_isolation() {
    in_a_full_table(copying, |engine, space| {
        let child = space.fork().unwrap();
        let follower = follower(engine, &child);
        child.store_u64(at(1), 2).unwrap();
        let cost = child.isolate_cowed(at(0), PAGE_SIZE).unwrap();
        assert_eq!((cost.left, cost.stayed), (0, 1), "a table with a shared page has left its family");
        assert_eq!(engine.pages_by_home(frame(&child, 0)).len(), 2);
        follower.join().unwrap();
        drop(child);
    });
}
