//! Models of reclaim of a mapped page of a file (docs/pressure.md). As `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_reclaim_files`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;

use faultless::address::PAGE_SIZE;
use faultless::host::{Slots as _, StdSlots};
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, File, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use loom::thread::JoinHandle;
use models::{READ_WRITE, Space, at, beside, map, model, spawn};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A store of one page, whose transfers end at once. It keeps the first word.
struct Word(Mutex<u64>);

impl Store for Word {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        match transfer.bytes() {
            Bytes::Read(page) => page[..8].copy_from_slice(&self.0.lock().unwrap().to_ne_bytes()),
            Bytes::Write(page) => {
                *self.0.lock().unwrap() = u64::from_ne_bytes(page[..8].try_into().expect("eight bytes"));
            }
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }

    fn set_length(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

type Machine = (Arc<Engine<Soft>>, Shared<File<Soft>>, Space);

/// Runs a model in a space that maps a file's page at page 1, with 5 in its first word. Processor 2 has a translation of the page.
/// Reclaim takes it at its next look. Asserts that all is free at the end of each run, and that reclaim takes the page in some runs.
fn with_a_page(
    bound: usize,
    request: fn(&Shared<File<Soft>>) -> MapRequest<Soft>,
    body: impl Fn(Machine) -> Shared<File<Soft>> + Sync + Send + 'static,
) {
    let taken = Arc::new(AtomicU64::new(0));
    let count = taken.clone();
    model(bound, move || {
        let soft = Soft::with_caches(6).expect("frames");
        let engine = Engine::new(soft, Limits::default()).expect("memory for an engine");
        engine.queue_pages_for_reclaim();
        let file = File::open_rw(&engine, Arc::new(Word(Mutex::new(5)))).expect("a store with a length");
        let space = Space::new(&engine).unwrap();
        space.map(request(&file).at(Placement::Fixed(at(1)))).expect("a mapping");
        on_processor(2, || assert_eq!(space.load_u64(at(1)), Ok(5)));
        // The first look clears the accessed bit.
        engine.reclaim_for_tests(0);
        assert_eq!(engine.statistics().get(Counter::Reclaimed), 0, "a page in use was taken");
        let file = body((engine.clone(), file, space));
        if engine.statistics().get(Counter::Reclaimed) != 0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // A model does not drop the fields of an object that it frees.
        file.set_length(0).unwrap();
        engine.flush();
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
        assert_eq!(engine.cached_pages(), 0, "invariant 11: a page is left");
    });
    let taken = taken.load(Ordering::Relaxed);
    println!("reclaim takes the page in {taken} of them");
    assert_ne!(taken, 0, "reclaim takes the page in no run, so the model checks nothing");
}

/// Runs a model in a space and a child that share a leaf table. A store has made page 0 the parent's. At page 1 both map a file's page,
/// with 5 in its first word, which reclaim has taken.
fn with_a_child(bound: usize, body: impl Fn(Machine, Space) -> Shared<File<Soft>> + Sync + Send + 'static) {
    model(bound, move || {
        let soft = Soft::with_caches(8).expect("frames");
        let limits = Limits { shared_entries: 2, ..Limits::default() };
        let engine = Engine::new(soft, limits).expect("memory for an engine");
        engine.queue_pages_for_reclaim();
        let file = File::open_rw(&engine, Arc::new(Word(Mutex::new(5)))).expect("a store with a length");
        let space = Space::new(&engine).unwrap();
        map(&space, 0, 1);
        space.store_u64(at(0), 1).unwrap();
        space.map(private(&file).at(Placement::Fixed(at(1)))).expect("a mapping");
        assert_eq!(space.load_u64(at(1)), Ok(5));
        let child = space.fork().unwrap();
        assert_eq!(engine.statistics().get(Counter::TablesShared), 1, "the table is not shared");
        // The first look clears the accessed bits.
        (0..2).for_each(|_| _ = engine.reclaim_for_tests(0));
        assert_eq!(engine.statistics().get(Counter::Reclaimed), 1, "the file's page is not taken");
        let file = body((engine.clone(), file, space), child);
        // A model does not drop the fields of an object that it frees.
        file.set_length(0).unwrap();
        engine.flush();
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
        assert_eq!(engine.cached_pages(), 0, "invariant 11: a page is left");
    });
}

fn private(file: &Shared<File<Soft>>) -> MapRequest<Soft> {
    MapRequest::file(file, 0, PAGE_SIZE, READ_WRITE)
}

fn shared(file: &Shared<File<Soft>>) -> MapRequest<Soft> {
    MapRequest::shared_file(file, 0, PAGE_SIZE, READ_WRITE)
}

/// Has reclaim try the page once, on a thread of its own.
fn reclaiming(engine: &Arc<Engine<Soft>>) -> JoinHandle<()> {
    let engine = engine.clone();
    spawn(1, move || _ = engine.reclaim_for_tests(0))
}

/// Does `work` as another processor than the calling thread's.
fn on_processor<R>(slot: u32, work: impl FnOnce() -> R) -> R {
    let own = StdSlots.current().get() as u32;
    StdSlots::set_current(slot);
    let result = work();
    StdSlots::set_current(own);
    result
}

/// A store fault finds the page, or its entry without it. The store is kept, though the page is unmapped again while reclaim has it.
#[test]
fn a_store_against_reclaim() {
    with_a_page(2, shared, |(engine, file, space)| {
        let reclaimer = reclaiming(&engine);
        space.store_u64(at(1), 7).unwrap();
        space.unmap(at(1), PAGE_SIZE).unwrap();
        reclaimer.join().unwrap();
        let mut bytes = [0; 8];
        assert_eq!(file.handle().read_at(0, &mut bytes), Ok(8));
        assert_eq!(u64::from_ne_bytes(bytes), 7, "invariant 9: a store was lost");
        end_of(space);
        file
    });
}

/// Rule S3: the space gets a copy of the page. When the store has returned, no processor reads the old page.
#[test]
fn a_private_copy_against_reclaim() {
    with_a_page(2, private, |(engine, file, space)| {
        let reclaimer = reclaiming(&engine);
        space.store_u64(at(1), 7).unwrap();
        let seen = on_processor(2, || space.try_load_u64(at(1)));
        assert!(!matches!(seen, Ok(5)), "rule S3: the old page is read after a store to the new one");
        reclaimer.join().unwrap();
        assert_eq!(space.load_u64(at(1)), Ok(7), "a store was lost");
        end_of(space);
        file
    });
}

/// Rule S1: truncation finds an entry whose page is gone. When it has returned, no processor uses the page.
#[test]
fn truncation_against_reclaim() {
    with_a_page(2, private, |(engine, file, space)| {
        let reclaimer = reclaiming(&engine);
        file.set_length(0).unwrap();
        let seen = on_processor(2, || space.try_load_u64(at(1)));
        assert!(seen.is_err(), "invariant 3: a page that was cut off is mapped");
        reclaimer.join().unwrap();
        end_of(space);
        file
    });
}

/// Rule S1: munmap finds an entry whose page is gone.
#[test]
fn unmap_against_reclaim() {
    with_a_page(2, private, |(engine, file, space)| {
        let reclaimer = reclaiming(&engine);
        space.unmap(at(1), PAGE_SIZE).unwrap();
        let seen = on_processor(2, || space.try_load_u64(at(1)));
        assert!(seen.is_err(), "invariant 3: an access succeeds after unmap");
        reclaimer.join().unwrap();
        end_of(space);
        file
    });
}

/// A load finds the page again: mapped, gone and in the cache, or read anew. The counts agree.
#[test]
fn a_load_against_reclaim() {
    with_a_page(2, private, |(engine, file, space)| {
        let reclaimer = reclaiming(&engine);
        assert_eq!(on_processor(3, || space.load_u64(at(1))), Ok(5));
        reclaimer.join().unwrap();
        space.protect(at(1), PAGE_SIZE, Protection::READ).unwrap();
        assert_eq!(space.load_u64(at(1)), Ok(5));
        end_of(space);
        file
    });
}

/// Both spaces of a shared table load the page. The table stays shared.
#[test]
fn two_loads_in_a_shared_table() {
    with_a_child(1, |(engine, file, space), child| {
        let load = beside(&space, |space| assert_eq!(space.load_u64(at(1)), Ok(5)));
        assert_eq!(child.load_u64(at(1)), Ok(5));
        load.join().unwrap();
        assert_eq!(engine.statistics().get(Counter::TablesCopied), 0, "the page did not come back for both");
        [space, child].into_iter().for_each(end_of);
        file
    });
}

/// A space loads the page of a shared table on one thread, and maps another file over it on another. The child has the old page.
#[test]
fn a_load_in_a_shared_table_against_map_fixed() {
    with_a_child(1, |(engine, file, space), child| {
        let other = File::open_rw(&engine, Arc::new(Word(Mutex::new(6)))).expect("a store with a length");
        let request = private(&other).at(Placement::Fixed(at(1)));
        let map = beside(&space, move |space| {
            space.map(request).expect("a mapping");
            assert_eq!(space.load_u64(at(1)), Ok(6), "invariant 3: the old page is mapped");
        });
        assert!(matches!(space.load_u64(at(1)), Ok(5 | 6)));
        map.join().unwrap();
        assert_eq!((space.load_u64(at(1)), child.load_u64(at(1))), (Ok(6), Ok(5)), "another file's page");
        [space, child].into_iter().for_each(end_of);
        other.set_length(0).unwrap();
        file
    });
}

/// A load in a shared table, while the file is cut. When that has returned, neither space has the page.
#[test]
fn a_load_in_a_shared_table_against_truncation() {
    with_a_child(2, |(_, file, space), child| {
        let load = beside(&child, |child| assert!(!matches!(child.load_u64(at(1)), Ok(value) if value != 5)));
        file.set_length(0).unwrap();
        let seen = [&space, &child].map(|space| space.try_load_u64(at(1)));
        assert!(seen.iter().all(Result::is_err), "invariant 3: a page that was cut off is mapped");
        load.join().unwrap();
        [space, child].into_iter().for_each(end_of);
        file
    });
}

fn end_of(space: Space) {
    space.audit().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(space.taken_ranges(), 0, "invariant 11: a range is taken, but no call is under way");
    drop(space);
}
