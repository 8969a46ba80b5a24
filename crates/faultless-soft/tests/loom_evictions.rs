//! Models of eviction: reclaim of a page that nobody maps, beside a reader, truncation and the end of the file; and of truncation
//! beside range work of a space that maps the file. As `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_evictions`
#![cfg(loom)]

mod models;

use faultless::address::PAGE_SIZE;
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, File, Limits, MapRequest, Placement, RemapRequest};
use faultless_soft::{Cpu, Soft};
use models::{Space, at, beside, end, map, model, spawn};
use std::sync::Arc;

/// A store of two pages of fives, whose transfers end at once.
struct Fives;

impl Store for Fives {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(2 * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        if let Bytes::Read(bytes) = transfer.bytes() {
            bytes.fill(5);
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}

/// Makes a machine, and a file whose first page is in memory and idle.
fn machine(frames: u64) -> (Arc<Engine<Soft>>, Shared<File<Soft>>) {
    let engine = Engine::new(Soft::new(frames).expect("frames"), Limits::default()).expect("memory");
    engine.queue_pages_for_reclaim();
    let file = File::open(&engine, Arc::new(Fives)).expect("a store with a length");
    read(&file, 0);
    (engine, file)
}

fn read(file: &File<Soft>, page: u64) {
    let mut byte = [0];
    // It reads nothing if the page was cut off.
    if file.handle().read_at(page * PAGE_SIZE, &mut byte) == Ok(1) {
        assert_eq!(byte, [5]);
    }
}

fn assert_nothing_is_left(engine: &Engine<Soft>) {
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: a removed page keeps its frame");
    assert_eq!(engine.cached_pages(), 0);
}

/// A page is detached just before another thread puts it into a queue.
#[test]
fn a_page_that_is_read_against_truncation() {
    model(3, || {
        let (engine, file) = machine(4);
        let other = file.clone();
        let reader = spawn(1, move || read(&other, 1));
        file.set_length(0).unwrap();
        reader.join().unwrap();
        assert_nothing_is_left(&engine);
    });
}

/// A page is cut off when a reader is about to read it, and the file grows again. Another reader that finds the page being read sees the
/// file's bytes, and no error.
#[test]
fn a_read_of_a_page_that_was_cut_off_beside_another() {
    model(3, || {
        let engine = Engine::new(Soft::new(4).expect("frames"), Limits::default()).expect("memory");
        let file = File::open_rw(&engine, Arc::new(Fives)).expect("a store with a length");
        let other = file.clone();
        let reader = spawn(1, move || read(&other, 0));
        file.set_length(0).unwrap();
        file.set_length(PAGE_SIZE).unwrap();
        assert_eq!(file.handle().read_at(0, &mut [0]), Ok(1), "a read of the file as it is now fails");
        reader.join().unwrap();
    });
}

/// Reclaim has taken a page off the queue; meanwhile other threads use it again, or cut it off.
#[test]
fn eviction_against_a_reader_and_truncation() {
    model(2, || {
        // One frame for the page of zeros, one for the file's page, and no other.
        let (engine, file) = machine(2);
        let space = Space::new(&engine).unwrap();
        map(&space, 2, 1);
        let other = file.clone();
        let reader = spawn(1, move || read(&other, 0));
        let _ = space.fault(at(2), Access::Write);
        reader.join().unwrap();
        let queued = engine.frames_for_reclaim().len() as u64;
        assert!(queued >= engine.cached_pages(), "a page is in no queue");
        file.set_length(0).unwrap();
        end(&engine, space);
        assert_nothing_is_left(&engine);
    });
}

/// The file is dropped while eviction has one of its pages.
#[test]
fn eviction_against_the_end_of_the_file() {
    model(3, || {
        let (engine, file) = machine(2);
        let space = Space::new(&engine).unwrap();
        map(&space, 2, 1);
        let other = spawn(1, move || drop(file));
        let _ = space.fault(at(2), Access::Write);
        other.join().unwrap();
        end(&engine, space);
        assert_nothing_is_left(&engine);
    });
}

/// Makes a machine, a file, and a space that maps the file's first page at page 1.
fn mapped() -> (Arc<Engine<Soft>>, Shared<File<Soft>>, Space) {
    let (engine, file) = machine(4);
    let space = Space::new(&engine).unwrap();
    let request = MapRequest::file(&file, 0, PAGE_SIZE, Protection::READ).at(Placement::Fixed(at(1)));
    space.map(request).expect("a mapping");
    space.load_u64(at(1)).expect("the page");
    (engine, file, space)
}

/// unmap has removed the mapping but not yet the page's entry: truncation finds no mapping, and must wait for the
/// entry.
#[test]
fn truncation_against_unmap() {
    model(2, || {
        let (engine, file, space) = mapped();
        let unmap = beside(&space, move |other| other.unmap(at(1), PAGE_SIZE).unwrap());
        file.set_length(0).unwrap();
        assert!(space.try_load_u64(at(1)).is_err(), "invariant 3: a page that was cut off is mapped");
        unmap.join().unwrap();
        end(&engine, space);
        assert_nothing_is_left(&engine);
    });
}

/// remap moves the page, perhaps from a place that truncation has not reached to one that it has passed.
#[test]
fn truncation_against_remap() {
    model(2, || {
        let (engine, file, space) = mapped();
        let remap = beside(&space, move |other| {
            other.remap(RemapRequest::to(at(1), PAGE_SIZE, at(0))).unwrap();
        });
        file.set_length(0).unwrap();
        let is_gone = |page| space.try_load_u64(at(page)).is_err();
        assert!(is_gone(0) && is_gone(1), "invariant 3: a page that was cut off is mapped");
        remap.join().unwrap();
        assert!(is_gone(0) && is_gone(1), "invariant 3: a page that was cut off is mapped");
        end(&engine, space);
        assert_nothing_is_left(&engine);
    });
}
