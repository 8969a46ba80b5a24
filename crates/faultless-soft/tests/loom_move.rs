//! Models of moving pages within a space (docs/pressure.md), as `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_move`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;
#[expect(dead_code, reason = "other models use it")]
mod swapping;

use faultless::address::PAGE_SIZE;
use faultless::host::{EntryKind, PageTable, StdSlots};
use faultless::stats::Counter;
use faultless::{Engine, Limits, MoveCause, MoveRequest};
use faultless_soft::{Cpu, Soft};
use models::{Space, at, beside, end, map, model, spawn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use swapping::{COPIES, Device, Processors};

/// The places of the page: in two leaf tables.
const FROM: u64 = 0;
const TO: u64 = 2;
/// Another place, in the table of `TO`.
const OTHER: u64 = 3;

fn request() -> MoveRequest {
    MoveRequest::new(at(FROM), PAGE_SIZE, at(TO))
}

/// Runs a model in a space with 5 at `FROM` and no page at `TO`. Processor 2 has a translation of `FROM` for stores. Asserts that
/// the page moves in some runs, and stays in others if `stays`.
fn with_a_page(
    bound: usize,
    stays: bool,
    body: impl Fn(&Arc<Engine<Soft>>, &Space) -> bool + Sync + Send + 'static,
) {
    let counts = Arc::new([const { AtomicU64::new(0) }; 2]);
    let noted = counts.clone();
    model(bound, move || {
        let soft = Soft::with_caches(8).expect("frames");
        let limits = Limits { shared_entries: COPIES, ..Limits::default() };
        let engine = Engine::new(soft, limits).expect("memory for an engine");
        let space = Space::new(&engine).unwrap();
        map(&space, FROM, 1);
        map(&space, TO, 1);
        on_processor(2, || space.store_u64(at(FROM), 5)).unwrap();
        let has_moved = body(&engine, &space);
        noted[usize::from(has_moved)].fetch_add(1, Ordering::Relaxed);
        assert_not_kept(&space);
        end(&engine, space);
    });
    let [stayed, moved] = [&counts[0], &counts[1]].map(|count| count.load(Ordering::Relaxed));
    println!("the page moves in {moved} runs, and stays in {stayed}");
    assert_ne!(moved, 0, "the page moves in no run, so the model checks nothing");
    assert!(!stays || stayed != 0, "the page stays in no run, so the model checks nothing");
}

/// Does `work` as another processor than the calling thread's.
fn on_processor<R>(slot: u32, work: impl FnOnce() -> R) -> R {
    let own = StdSlots.current().get() as u32;
    StdSlots::set_current(slot);
    let result = work();
    StdSlots::set_current(own);
    result
}

fn assert_not_kept(space: &Space) {
    // SAFETY: dropped before anything waits.
    let section = unsafe { space.engine().enter_section() };
    // SAFETY: only read.
    let table = unsafe { space.table() };
    for page in [FROM, TO].map(|page| at(page).page()) {
        let kind = table.leaf(&section, page).map(|leaf| table.load(leaf, page).kind());
        assert!(!matches!(kind, Some(EntryKind::Kept(_))), "an entry is KEPT, and no call moves its page");
    }
}

/// Moves the page, and returns whether it has moved. It stays only if a fault came between.
fn moves(space: &Space) -> bool {
    let result = space.move_pages(request());
    assert_not_kept(space);
    match result {
        Ok(()) => true,
        Err(error) => {
            let is_between = matches!(error.cause, MoveCause::Changed { .. } | MoveCause::Occupied { .. });
            assert!(is_between && error.moved == 0, "{error}");
            false
        }
    }
}

/// A store to the source, by an old translation or by a fault. It is in the page where the page is, or in a page of zeros at the
/// source that it made.
#[test]
fn a_store_to_the_source_against_a_move() {
    with_a_page(3, true, |_, space| {
        let storer = beside(space, |space| {
            // A processor of its own: the other one keeps its translation of the source.
            let is_there = on_processor(3, || matches!(space.try_load_u64(at(TO)), Ok(5)));
            on_processor(2, || space.store_u64(at(FROM), 7)).unwrap();
            is_there
        });
        let has_moved = moves(space);
        let was_there = storer.join().unwrap();
        let later = (space.load_u64(at(FROM)).unwrap(), space.load_u64(at(TO)).unwrap());
        if has_moved {
            assert!(matches!(later, (7, 5) | (0, 7)), "a store was lost: {later:?}");
            assert!(!was_there || later.1 == 5, "a store to the source reached the page after it had moved");
            // Also by a translation that a fault on the page's way has given.
            on_processor(2, || space.store_u64(at(FROM), 9)).unwrap();
            let last = space.load_u64(at(TO)).unwrap();
            assert_eq!(last, later.1, "a store to the source reached the page after it had moved");
        } else {
            assert_eq!(later, (7, 0), "a store was lost");
        }
        has_moved
    });
}

/// A fault puts a page into the target. Either it comes first, and the move leaves it; or it finds the page that moved.
#[test]
fn a_store_to_the_target_against_a_move() {
    with_a_page(3, true, |_, space| {
        let storer = beside(space, |space| space.fetch_add_u64(at(TO), 2).unwrap());
        let has_moved = moves(space);
        let found = storer.join().unwrap();
        let later = (space.load_u64(at(FROM)).unwrap(), space.load_u64(at(TO)).unwrap());
        let expected = if has_moved { (5, (0, 7)) } else { (0, (5, 2)) };
        assert_eq!((found, later), expected, "a page was lost");
        has_moved
    });
}

/// Two moves of one page to two places: it goes to one of them.
#[test]
fn two_moves_of_one_page() {
    with_a_page(3, false, |_, space| {
        map(space, OTHER, 1);
        let other =
            beside(space, |space| space.move_pages(MoveRequest::new(at(FROM), PAGE_SIZE, at(OTHER))).is_ok());
        let first = space.move_pages(request()).is_ok();
        let second = other.join().unwrap();
        assert_ne!(first, second, "the page went to two places, or to none");
        let words = [FROM, TO, OTHER].map(|page| space.load_u64(at(page)).unwrap());
        assert_eq!(words, if first { [0, 5, 0] } else { [0, 0, 5] });
        first
    });
}

/// Invariant 7: the child has the page at one of both places.
#[test]
fn a_move_against_fork() {
    with_a_page(2, true, |engine, space| {
        let mover = beside(space, |space| space.move_pages(request()).is_ok());
        let child = space.fork().unwrap();
        let words = |space: &Space| (space.load_u64(at(FROM)).unwrap(), space.load_u64(at(TO)).unwrap());
        let of_child = words(&child);
        assert!(matches!(of_child, (5, 0) | (0, 5)), "invariant 7: the child has {of_child:?}");
        let has_moved = mover.join().unwrap();
        child.audit().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(words(space), if has_moved { (0, 5) } else { (5, 0) });
        on_processor(2, || space.store_u64(at(FROM), 9)).unwrap();
        space.store_u64(at(TO), 9).unwrap();
        assert_eq!(words(&child), of_child, "invariant 7: the child changed after fork");
        child.audit().unwrap_or_else(|error| panic!("{error}"));
        drop(child);
        engine.flush();
        has_moved
    });
}

/// munmap of the source: no access reaches the page there afterwards.
#[test]
fn a_move_against_unmap() {
    with_a_page(2, true, |_, space| {
        let mover = beside(space, |space| space.move_pages(request()).is_ok());
        space.unmap(at(FROM), PAGE_SIZE).unwrap();
        let seen = on_processor(2, || space.try_load_u64(at(FROM)));
        assert!(seen.is_err(), "invariant 3: an access succeeds after unmap");
        let has_moved = mover.join().unwrap();
        assert_eq!(space.load_u64(at(TO)), Ok(if has_moved { 5 } else { 0 }));
        has_moved
    });
}

/// A thread follows the page's home, as reclaim does, while the page moves and its old table is freed.
#[test]
fn a_home_against_a_move() {
    with_a_page(3, false, |engine, space| {
        let frame = {
            // SAFETY: dropped before anything waits.
            let section = unsafe { engine.enter_section() };
            // SAFETY: only read.
            let table = unsafe { space.table() };
            let page = at(FROM).page();
            table.load(table.leaf(&section, page).unwrap(), page).mapped_frame().unwrap()
        };
        let other = engine.clone();
        let follower = spawn(1, move || {
            let pages = other.pages_by_home(frame);
            assert!(pages.iter().all(|page| [FROM, TO].contains(&page.get())), "{pages:?}");
        });
        assert!(moves(space));
        space.unmap(at(FROM), PAGE_SIZE).unwrap();
        engine.flush();
        follower.join().unwrap();
        let pages: Vec<_> = engine.pages_by_home(frame).into_iter().map(|page| page.get()).collect();
        assert_eq!(pages, [TO], "the page is not at home where it is");
        true
    });
}

/// Reclaim takes the page from the source, from the target, or passes it over. A store by an old translation is not lost, and no
/// access by the old address reaches the page when the move has returned.
#[test]
fn a_move_against_reclaim() {
    let reclaimed = Arc::new(AtomicU64::new(0));
    let count = reclaimed.clone();
    model(2, move || {
        let device = Device::new();
        let engine = swapping::engine(Processors::Caching, &device, COPIES);
        let space = Space::new(&engine).unwrap();
        map(&space, FROM, 1);
        map(&space, TO, 1);
        on_processor(2, || space.store_u64(at(FROM), 5)).unwrap();
        // The first look clears the accessed bit.
        engine.reclaim_for_tests(0);
        let other = engine.clone();
        let reclaimer = spawn(1, move || _ = other.reclaim_for_tests(0));
        let has_moved = space.move_pages(request()).is_ok();
        if has_moved {
            // An old translation may still store, if nobody has invalidated it.
            on_processor(2, || space.store_u64(at(FROM), 7)).unwrap();
            assert_eq!(
                space.load_u64(at(TO)),
                Ok(5),
                "a store to the source reached the page after it had moved"
            );
        }
        reclaimer.join().unwrap();
        let words = (space.load_u64(at(FROM)), space.load_u64(at(TO)));
        assert_eq!(words, if has_moved { (Ok(7), Ok(5)) } else { (Ok(5), Ok(0)) }, "a page was lost");
        if has_moved && engine.statistics().get(Counter::Reclaimed) != 0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
        assert_not_kept(&space);
        end(&engine, space);
    });
    assert_ne!(reclaimed.load(Ordering::Relaxed), 0, "no run has both, so the model checks nothing");
}

/// A move of an empty place in a table that a fork has shared. Meanwhile the space leaves the table, and the child, which has it alone
/// then, exits: the table is freed.
#[test]
fn a_hole_of_a_shared_table_against_its_end() {
    model(3, || {
        let limits = Limits { shared_entries: 1, ..Limits::default() };
        let engine = Engine::new(Soft::new(8).expect("frames"), limits).expect("memory for an engine");
        let space = Space::new(&engine).unwrap();
        map(&space, 0, 2);
        map(&space, TO, 1);
        space.store_u64(at(1), 5).unwrap();
        let child = space.fork().unwrap();
        assert_ne!(engine.statistics().get(Counter::TablesShared), 0, "nothing is shared");
        let mover = beside(&space, |space| space.move_pages(MoveRequest { allow_holes: true, ..request() }));
        space.store_u64(at(1), 6).unwrap();
        drop(child);
        engine.flush();
        assert_eq!(mover.join().unwrap(), Ok(()));
        end(&engine, space);
    });
}
