//! Models of waits that another thread ends: for a place among the pins of a page, and for the end of a change of a
//! file's length. As `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_waits`
#![cfg(loom)]

mod models;
mod zeros;

use faultless::address::PAGE_SIZE;
use faultless::protection::Access;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, Fault, FaultError, File, FileHandle, Limits, MapRequest, PinnedPage, Placement};
use faultless_soft::{Cpu, Soft};
use models::{READ_WRITE, Space, at, beside, close, end, map, model, spawn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zeros::Zeros;

/// Makes a space with a page that has as many I/O pins as can be counted, which is two in a model.
fn pinned() -> (Arc<Engine<Soft>>, Space, [PinnedPage<Soft>; 2]) {
    let engine = Engine::new(Soft::new(6).expect("frames"), Limits::default()).expect("memory for an engine");
    let space = Space::new(&engine).unwrap();
    map(&space, 1, 1);
    space.store_u64(at(1), 1).unwrap();
    let pins = [(); 2].map(|()| space.pin(at(1), Access::Write).unwrap());
    let refused = space.pin(at(1), Access::Write).err();
    assert_eq!(refused, Some(FaultError::TooManyPins { address: at(1) }));
    (engine, space, pins)
}

/// A thread that waits for a place gets it when the second pin goes, although the first one stays.
#[test]
fn a_wait_for_a_place_against_an_unpin() {
    model(3, || {
        let (engine, space, [stays, goes]) = pinned();
        let write = beside(&space, move |other| other.write_remote(at(1), &7_u64.to_ne_bytes()));
        drop(goes);
        assert_eq!(write.join().unwrap(), Ok(8));
        assert_eq!(space.load_u64(at(1)).unwrap(), 7);
        drop(stays);
        end(&engine, space);
    });
}

/// Two threads wait, and two places become free: both are woken.
#[test]
fn two_waits_for_a_place() {
    model(1, || {
        let (engine, space, pins) = pinned();
        let writes = [1, 2].map(|of| {
            let other = space.clone();
            spawn(of, move || other.write_remote(at(1), &7_u64.to_ne_bytes()))
        });
        drop(pins);
        writes.into_iter().for_each(|write| assert_eq!(write.join().unwrap(), Ok(8)));
        end(&engine, space);
    });
}

/// The end of the space ends the wait, although no place becomes free.
#[test]
fn a_wait_for_a_place_against_exit() {
    model(3, || {
        let (engine, space, pins) = pinned();
        let write = beside(&space, move |other| other.write_remote(at(1), &7_u64.to_ne_bytes()));
        space.exit();
        assert!(write.join().unwrap().is_err(), "the write succeeds without a place and without a mapping");
        drop(pins);
        end(&engine, space);
    });
}

/// A store of one page of zeros. It ends each transfer at once, and takes some time to be cut off.
#[derive(Default)]
struct Slow {
    is_asked: AtomicBool,
}

impl Store for Slow {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        assert!(
            !self.is_asked.load(Ordering::Relaxed),
            "invariant 14: a transfer of the removed part begins"
        );
        if let Bytes::Read(bytes) = transfer.bytes() {
            bytes.fill(0);
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }

    fn set_length(&self, _: u64) -> Result<(), StoreError> {
        self.is_asked.store(true, Ordering::Relaxed);
        // Gives other threads time to reach the place where they wait.
        loom::thread::yield_now();
        self.is_asked.store(false, Ordering::Relaxed);
        Ok(())
    }
}

fn slow() -> (Arc<Engine<Soft>>, Shared<File<Soft>>) {
    let engine = Engine::new(Soft::new(6).expect("frames"), Limits::default()).expect("memory for an engine");
    let file = File::open_rw(&engine, Arc::new(Slow::default())).expect("a store with a length");
    (engine, file)
}

/// Cuts off all but the first word of the file while `other` needs its page.
fn beside_a_cut(is_dirty: bool, other: fn(FileHandle<Soft>)) {
    model(2, move || {
        let (engine, file) = slow();
        if is_dirty {
            file.handle().write_at(0, &7_u64.to_ne_bytes()).unwrap();
        }
        let handle = file.handle();
        let thread = spawn(1, move || other(handle));
        file.handle().set_length(8).unwrap();
        thread.join().unwrap();
        let mut word = [1; 9];
        assert_eq!(file.handle().read_at(0, &mut word), Ok(8));
        let kept = if is_dirty { 7 } else { 0 };
        assert_eq!(word[..8], u64::to_ne_bytes(kept), "the rest of the file was lost");
        close(file);
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    });
}

/// A read that misses begins after the store was cut off, or has ended before the store is asked.
#[test]
fn a_read_beside_a_store_that_is_asked() {
    beside_a_cut(false, |handle| {
        let mut byte = [1];
        assert_eq!(handle.read_at(0, &mut byte), Ok(1));
        assert_eq!(byte, [0]);
    });
}

/// The same for a write of a dirty page.
#[test]
fn a_sync_beside_a_store_that_is_asked() {
    beside_a_cut(true, |handle| handle.sync().unwrap());
}

/// A fault is returned as a value, which is ready when the page may be read.
#[test]
fn a_fault_beside_a_store_that_is_asked() {
    model(2, || {
        let (engine, file) = slow();
        let space = Space::new(&engine).unwrap();
        let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(1)));
        space.map(request).unwrap();
        let faults = beside(&space, move |other| {
            let mut fault = other.fault(at(1), Access::Read).unwrap();
            while let Fault::Pending(pending) = fault {
                fault = pending.wait().unwrap();
            }
        });
        file.handle().set_length(8).unwrap();
        faults.join().unwrap();
        assert_eq!(space.load_u64(at(1)).unwrap(), 0);
        close(file);
        end(&engine, space);
    });
}

/// Makes a file of three pages, in an engine that pins only one page for reads at a time.
fn crowded() -> (Arc<Engine<Soft>>, Shared<File<Soft>>) {
    let limits = Limits { cached_pages: 2, ..Limits::default() };
    let engine = Engine::new(Soft::new(6).expect("frames"), limits).expect("memory for an engine");
    engine.queue_pages_for_reclaim();
    let file = File::open(&engine, Arc::new(Zeros(3))).expect("a store with a length");
    (engine, file)
}

fn read(handle: &FileHandle<Soft>, page: u64) {
    let mut byte = [1];
    assert_eq!(handle.read_at(page * PAGE_SIZE, &mut byte), Ok(1));
    assert_eq!(byte, [0]);
}

/// A read that finds too many pages pinned resumes when the pin goes, at any moment.
#[test]
fn a_miss_beside_the_end_of_a_pin() {
    model(2, || {
        let (engine, file) = crowded();
        read(&file.handle(), 0);
        let pin = file.try_lock_folio(0).expect("a page that was read");
        let handle = file.handle();
        let thread = spawn(1, move || read(&handle, 1));
        drop(pin);
        thread.join().unwrap();
        close(file);
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    });
}

/// One pin goes, and two reads resume: the first one passes its turn on.
#[test]
fn two_misses_wait_for_one_place() {
    model(2, || {
        let (engine, file) = crowded();
        read(&file.handle(), 0);
        let pin = file.try_lock_folio(0).expect("a page that was read");
        let threads = [1, 2].map(|of| {
            let handle = file.handle();
            spawn(of, move || read(&handle, u64::from(of)))
        });
        drop(pin);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        close(file);
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    });
}
