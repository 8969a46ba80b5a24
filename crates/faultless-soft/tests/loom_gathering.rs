//! Models of gathering: a thread moves the arrivals of all slots into reclaim's queues (`reclaim/groups.rs`), and forgets the first use of
//! each by its home. Meanwhile another thread changes the space that has the pages. As `loom.rs`; `reclaim/models.rs` has models of the
//! stacks and the queues alone.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_gathering`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;

use faultless::address::PAGE_SIZE;
use faultless::host::{Entry, Frame, PageTable};
use faultless::{Engine, LimitConfig, Limits, MemoryLimit};
use faultless_soft::{Cpu, Soft};
use loom::thread::JoinHandle;
use models::{Space, at, map, model, spawn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The two entries of a leaf table.
const PAGES: u64 = 2;

/// Makes a machine with pages in reclaim's queues. fork shares a table with `shared_entries` entries.
fn machine(shared_entries: u64) -> Arc<Engine<Soft>> {
    let limits = Limits { shared_entries, ..Limits::default() };
    let engine = Engine::new(Soft::new(10).expect("frames"), limits).expect("memory for an engine");
    engine.queue_pages_for_reclaim();
    engine
}

/// Fills a leaf table of `space`. Page 1 is in the queues, and page 0 is about to be gathered: so few arrivals have their first use
/// forgotten.
fn fill(space: &Space) {
    map(space, 0, PAGES);
    space.store_u64(at(1), 1).unwrap();
    assert_eq!(space.engine().frames_for_reclaim(), [entry(space, 1).mapped_frame().unwrap()]);
    space.store_u64(at(0), 1).unwrap();
}

fn entry(space: &Space, page: u64) -> Entry {
    // SAFETY: dropped before anything waits.
    let section = unsafe { space.engine().enter_section() };
    // SAFETY: only read.
    let table = unsafe { space.table() };
    let page = at(page).page();
    table.load(table.leaf(&section, page).unwrap(), page)
}

/// Starts a thread that gathers.
fn gatherer(engine: &Arc<Engine<Soft>>) -> JoinHandle<Vec<Frame>> {
    let engine = engine.clone();
    spawn(1, move || engine.frames_for_reclaim())
}

/// Asserts that the queues have the pages of these spaces, each once, and no others.
fn assert_queued(engine: &Arc<Engine<Soft>>, spaces: &[&Space]) {
    let frames = |space: &&Space| [0, 1].map(|page| entry(space, page).mapped_frame().unwrap().get());
    let mut mapped: Vec<_> = spaces.iter().flat_map(frames).collect();
    mapped.sort_unstable();
    mapped.dedup();
    let mut queued: Vec<_> = engine.frames_for_reclaim().into_iter().map(Frame::get).collect();
    queued.sort_unstable();
    assert_eq!(queued, mapped, "pages in the queues");
}

fn assert_nothing_is_left(engine: &Engine<Soft>) {
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
}

/// The pages go, and so does the leaf table that the home of an arrival names.
#[test]
fn gathering_against_unmap() {
    model(2, || {
        let engine = machine(u64::MAX);
        let space = Space::new(&engine).unwrap();
        fill(&space);
        let gatherer = gatherer(&engine);
        space.unmap(at(0), PAGES * PAGE_SIZE).unwrap();
        engine.flush();
        gatherer.join().unwrap();
        assert_queued(&engine, &[]);
        drop(space);
        assert_nothing_is_left(&engine);
    });
}

/// fork copies the entries of an arrival, or shares its leaf table, and the child gets a page of its own.
#[test]
fn gathering_against_fork() {
    for shared_entries in [u64::MAX, PAGES] {
        let forgotten = Arc::new(AtomicU64::new(0));
        let count = forgotten.clone();
        model(2, move || {
            let engine = machine(shared_entries);
            let space = Space::new(&engine).unwrap();
            fill(&space);
            let gatherer = gatherer(&engine);
            let child = space.fork().unwrap();
            child.store_u64(at(0), 2).unwrap();
            gatherer.join().unwrap();
            if !entry(&space, 0).has(Entry::ACCESSED) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            assert_queued(&engine, &[&space, &child]);
            drop((space, child));
            assert_nothing_is_left(&engine);
        });
        assert_ne!(
            forgotten.load(Ordering::Relaxed),
            0,
            "no first use is forgotten, so the model checks nothing"
        );
    }
}

/// The space and its group end. Another group begins with the same record, and has the same frames.
#[test]
fn gathering_against_the_end_of_a_group() {
    model(1, || {
        let engine = machine(u64::MAX);
        let begin = || {
            let limit = MemoryLimit::new(&engine, LimitConfig::max(8)).unwrap();
            let space = Space::new_in(&engine, &limit).unwrap();
            (limit, space)
        };
        let (limit, space) = begin();
        fill(&space);
        let gatherer = gatherer(&engine);
        drop((space, limit));
        let (limit, space) = begin();
        map(&space, 0, PAGES);
        (0..PAGES).for_each(|page| space.store_u64(at(page), 2).unwrap());
        gatherer.join().unwrap();
        assert_queued(&engine, &[&space]);
        assert_eq!(limit.usage().resident, PAGES);
        drop((space, limit));
        assert_nothing_is_left(&engine);
    });
}
