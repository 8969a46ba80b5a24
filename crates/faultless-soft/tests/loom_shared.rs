//! Models of shared memory that is written: stores against writeback, unmapping and eviction. As `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_shared`
#![cfg(loom)]

mod models;

use faultless::address::PAGE_SIZE;
use faultless::protection::Access;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, Fault, File, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use models::{READ_WRITE, Space, at, close, end, map, model, spawn};
use std::sync::{Arc, Mutex};

/// A store of one page that keeps what is written; transfers end when the test says so.
struct Kept(Mutex<(Vec<Transfer>, u64)>);

impl Store for Kept {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, transfer: Transfer) {
        self.0.lock().unwrap().0.push(transfer);
    }
}

impl Kept {
    fn end(&self) {
        let transfers = std::mem::take(&mut self.0.lock().unwrap().0);
        for mut transfer in transfers {
            let kept = &mut self.0.lock().unwrap().1;
            match transfer.bytes() {
                Bytes::Read(page) => page[..8].copy_from_slice(&kept.to_ne_bytes()),
                Bytes::Write(page) => *kept = u64::from_ne_bytes(page[..8].try_into().expect("eight bytes")),
            }
            transfer.complete(Ok(PAGE_SIZE as usize));
        }
    }
}

/// A file of one page, and a space with a shared mapping of it at page 1, in which 1 has been stored.
fn stored(frames: u64) -> (Arc<Engine<Soft>>, Shared<File<Soft>>, Arc<Kept>, Space) {
    let soft = Soft::new(frames).expect("frames");
    let engine = Engine::new(soft, Limits::default()).expect("memory for an engine");
    let kept = Arc::new(Kept(Mutex::new((Vec::new(), 0))));
    let file = File::open_rw(&engine, kept.clone()).expect("a store with a length");
    let space = Space::new(&engine).unwrap();
    let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(1)));
    space.map(request).expect("a mapping");
    if let Fault::Pending(pending) = space.fault(at(1), Access::Write).unwrap() {
        kept.end();
        assert!(matches!(pending.wait(), Ok(Fault::Done)));
    }
    space.store_u64(at(1), 1).unwrap();
    (engine, file, kept, space)
}

/// A store that comes while its page is made clean is written by that writeback or by the next.
#[test]
fn a_store_against_writeback() {
    model(2, || {
        let (engine, file, kept, space) = stored(6);
        let other = space.clone();
        let store = spawn(1, move || {
            other.try_store_u64(at(1), 2).is_ok()
                || matches!(other.fault(at(1), Access::Write), Ok(Fault::Done))
                    && other.try_store_u64(at(1), 2).is_ok()
        });
        file.handle().start_sync();
        kept.end();
        let last = if store.join().unwrap() { 2 } else { 1 };
        file.handle().start_sync();
        kept.end();
        assert_eq!(kept.0.lock().unwrap().1, last, "invariant 9: a store was not written");
        close(file);
        end(&engine, space);
    });
}

/// The mapping is being taken away: a hole is published, the entry is there still, and processors store through it. What
/// they stored is written by the writeback that made the page clean, or by the next.
#[test]
fn a_store_against_writeback_and_unmap() {
    model(2, || {
        let (engine, file, kept, space) = stored(6);
        let (other, written, store) = (space.clone(), file.clone(), kept.clone());
        let writeback = spawn(1, move || {
            written.handle().start_sync();
            store.end();
        });
        let store = spawn(2, move || other.try_store_u64(at(1), 2).is_ok());
        space.unmap(at(1), PAGE_SIZE).unwrap();
        writeback.join().unwrap();
        let last = if store.join().unwrap() { 2 } else { 1 };
        file.handle().start_sync();
        kept.end();
        assert_eq!(kept.0.lock().unwrap().1, last, "invariant 9: a store was not written");
        close(file);
        end(&engine, space);
    });
}

/// fsyncgate: a page whose write has failed is written by the next writeback, with what was stored since.
#[test]
fn a_failed_write_stays_dirty() {
    model(2, || {
        let (engine, file, kept, space) = stored(6);
        file.handle().start_sync();
        let transfers = std::mem::take(&mut kept.0.lock().unwrap().0);
        let other = space.clone();
        let store = spawn(1, move || {
            matches!(other.fault(at(1), Access::Write), Ok(Fault::Done))
                && other.try_store_u64(at(1), 2).is_ok()
        });
        // Dropped, they fail.
        drop(transfers);
        let last = if store.join().unwrap() { 2 } else { 1 };
        file.handle().start_sync();
        kept.end();
        assert_eq!(
            kept.0.lock().unwrap().1,
            last,
            "invariant 9: a page whose write failed is not written again"
        );
        close(file);
        end(&engine, space);
    });
}

/// Whoever needs its frame gets it when the page has been written, and not before.
#[test]
fn eviction_against_writeback() {
    model(2, || {
        // The page of zeros, and the file's.
        let (engine, file, kept, space) = stored(2);
        space.unmap(at(1), PAGE_SIZE).unwrap();
        map(&space, 2, 1);
        let other = space.clone();
        let fault = spawn(1, move || {
            let _ = other.fault(at(2), Access::Write);
        });
        file.handle().start_sync();
        kept.end();
        fault.join().unwrap();
        space.unmap(at(2), PAGE_SIZE).unwrap();
        kept.end();
        let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(1)));
        space.map(request).expect("a mapping");
        if let Fault::Pending(pending) = space.fault(at(1), Access::Read).unwrap() {
            kept.end();
            assert!(matches!(pending.wait(), Ok(Fault::Done)));
        }
        assert_eq!(space.load_u64(at(1)).unwrap(), 1, "invariant 9: a dirty page was evicted");
        close(file);
        end(&engine, space);
    });
}
