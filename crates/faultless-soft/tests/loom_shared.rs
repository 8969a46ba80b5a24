//! Models of shared memory that is written: stores beside writeback, unmapping and eviction. As `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_shared`
#![cfg(loom)]

mod models;

use faultless::address::PAGE_SIZE;
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, Fault, File, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use models::{READ_WRITE, Space, at, beside, close, end, map, model, spawn};
use std::sync::{Arc, Mutex};

/// A store of one page that keeps written bytes. Transfers end when the test ends them.
struct Kept(Mutex<(Vec<Transfer>, u64)>);

impl Store for Kept {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, transfer: Transfer) {
        self.0.lock().unwrap().0.push(transfer);
    }

    fn set_length(&self, _: u64) -> Result<(), StoreError> {
        assert!(self.0.lock().unwrap().0.is_empty(), "invariant 14: cut off while a transfer is under way");
        Ok(())
    }
}

impl Kept {
    fn end(&self) {
        let transfers = std::mem::take(&mut self.0.lock().unwrap().0);
        for mut transfer in transfers {
            let mut state = self.0.lock().unwrap();
            match transfer.bytes() {
                Bytes::Read(page) => page[..8].copy_from_slice(&state.1.to_ne_bytes()),
                Bytes::Write(page) => {
                    state.1 = u64::from_ne_bytes(page[..8].try_into().expect("eight bytes"))
                }
            }
            // The completion may let another thread run, and that thread takes this lock.
            drop(state);
            transfer.complete(Ok(PAGE_SIZE as usize));
        }
    }
}

/// Makes a file of one page, and a space with a shared mapping of it at page 1, in which 1 was stored.
fn stored(frames: u64) -> (Arc<Engine<Soft>>, Shared<File<Soft>>, Arc<Kept>, Space) {
    stored_on(Soft::new(frames).expect("frames"))
}

/// The same, on a given machine.
fn stored_on(soft: Soft) -> (Arc<Engine<Soft>>, Shared<File<Soft>>, Arc<Kept>, Space) {
    stored_by(Engine::new(soft, Limits::default()).expect("memory for an engine"))
}

/// The same, by a given engine.
fn stored_by(engine: Arc<Engine<Soft>>) -> (Arc<Engine<Soft>>, Shared<File<Soft>>, Arc<Kept>, Space) {
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

/// A store while its page is made clean: this writeback or the next writes it.
#[test]
fn a_store_against_writeback() {
    model(2, || {
        let (engine, file, kept, space) = stored(6);
        let store = beside(&space, move |other| {
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

/// Writeback takes the write right first, and invalidates later, together with other spaces. mprotect finds no right to
/// take. When it returns, no processor stores by an older translation.
#[test]
fn a_protect_beside_a_writeback() {
    model(2, || {
        let (engine, file, kept, space) = stored_on(Soft::with_caches(6).expect("frames"));
        let (written, store) = (file.clone(), kept.clone());
        let writeback = spawn(1, move || {
            written.handle().start_sync();
            store.end();
        });
        space.protect(at(1), PAGE_SIZE, Protection::READ).unwrap();
        assert!(space.try_store_u64(at(1), 2).is_err(), "invariant 3: a store comes after mprotect");
        writeback.join().unwrap();
        file.handle().start_sync();
        kept.end();
        assert_eq!(kept.0.lock().unwrap().1, 1, "invariant 9: a store was not written");
        close(file);
        end(&engine, space);
    });
}

/// The mapping is being unmapped: a hole is published, the entry still exists, and processors store through it. The
/// writeback that made the page clean, or the next one, writes their stores.
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

/// A space stores into the file for the first time while the page is written back. The walk skips spaces that have not
/// stored. Either it visits this one, or the store finds the page under writeback.
#[test]
fn a_first_store_against_writeback() {
    model(2, || {
        let (engine, file, kept, space) = stored(6);
        let other = Space::new(&engine).unwrap();
        let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(1)));
        other.map(request).expect("a mapping");
        let storer = other.clone();
        let store = spawn(1, move || {
            matches!(storer.fault(at(1), Access::Write), Ok(Fault::Done))
                && storer.try_store_u64(at(1), 2).is_ok()
        });
        file.handle().start_sync();
        kept.end();
        let first = store.join().unwrap();
        // If the writeback missed the entry, this store would make nothing dirty.
        let second = first && other.try_store_u64(at(1), 3).is_ok();
        file.handle().start_sync();
        kept.end();
        let last = if second {
            3
        } else if first {
            2
        } else {
            1
        };
        assert_eq!(kept.0.lock().unwrap().1, last, "invariant 9: a store was not written");
        drop(other);
        close(file);
        end(&engine, space);
    });
}

/// A first mapping of the file appears and is stored through while the page is written back. Either the walk sees that
/// the space shows the page, or the store finds the page under writeback.
#[test]
fn a_new_mapping_against_writeback() {
    model(2, || {
        let (engine, file, kept, space) = stored(6);
        let other = Space::new(&engine).unwrap();
        let (mapper, mapped) = (other.clone(), file.clone());
        let maps = spawn(1, move || {
            let request = MapRequest::shared_file(&mapped, 0, PAGE_SIZE, READ_WRITE);
            mapper.map(request.at(Placement::Fixed(at(1)))).expect("a mapping");
        });
        let stores = |value| {
            matches!(other.fault(at(1), Access::Write), Ok(Fault::Done))
                && other.try_store_u64(at(1), value).is_ok()
        };
        let first = stores(2);
        file.handle().start_sync();
        kept.end();
        // If the writeback missed the entry, this store would make nothing dirty.
        let second = first && other.try_store_u64(at(1), 3).is_ok();
        file.handle().start_sync();
        kept.end();
        let last = if second {
            3
        } else if first {
            2
        } else {
            1
        };
        assert_eq!(kept.0.lock().unwrap().1, last, "invariant 9: a store was not written");
        maps.join().unwrap();
        close(file);
        drop(other);
        end(&engine, space);
    });
}

/// fsyncgate: the next writeback writes a page whose write has failed, with the later stores.
#[test]
fn a_failed_write_stays_dirty() {
    model(2, || {
        let (engine, file, kept, space) = stored(6);
        file.handle().start_sync();
        let transfers = std::mem::take(&mut kept.0.lock().unwrap().0);
        let store = beside(&space, move |other| {
            matches!(other.fault(at(1), Access::Write), Ok(Fault::Done))
                && other.try_store_u64(at(1), 2).is_ok()
        });
        // Transfers that are dropped fail.
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

/// A fault that needs the frame gets it after the page was written, and not before.
#[test]
fn eviction_against_writeback() {
    model(1, || {
        // One frame for the page of zeros, and one for the file's page.
        let engine = Engine::new(Soft::new(2).expect("frames"), Limits::default()).expect("memory");
        engine.queue_pages_for_reclaim();
        let (engine, file, kept, space) = stored_by(engine);
        space.unmap(at(1), PAGE_SIZE).unwrap();
        map(&space, 2, 1);
        let fault = beside(&space, move |other| {
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

/// A store that ends each transfer at once. It holds zeros, except for the first eight bytes of the last write.
struct Quick {
    length: u64,
    kept: Mutex<u64>,
}

impl Store for Quick {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.length)
    }

    fn submit(&self, mut transfer: Transfer) {
        match transfer.bytes() {
            Bytes::Read(bytes) => bytes.fill(0),
            Bytes::Write(bytes) => {
                *self.kept.lock().unwrap() = u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes"));
            }
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }

    fn set_length(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn punch(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

fn quick(length: u64) -> (Arc<Engine<Soft>>, Shared<File<Soft>>, Arc<Quick>) {
    let engine = Engine::new(Soft::new(6).expect("frames"), Limits::default()).expect("memory for an engine");
    let store = Arc::new(Quick { length, kept: Mutex::new(0) });
    let file = File::open_rw(&engine, store.clone()).expect("a store with a length");
    (engine, file, store)
}

/// fsync returns after a page was written, even if another thread has begun to write it.
#[test]
fn a_sync_beside_one_that_begins() {
    model(2, || {
        let (engine, file, store) = quick(PAGE_SIZE);
        file.handle().write_at(0, &7u64.to_ne_bytes()).unwrap();
        let other = file.clone();
        let begins = spawn(1, move || other.handle().start_sync());
        file.handle().sync().unwrap();
        assert_eq!(*store.kept.lock().unwrap(), 7, "sync returned before the page was written");
        begins.join().unwrap();
        close(file);
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    });
}

/// A read that misses while a hole is punched waits for the hole's end, and is woken by it. A pin of another thread
/// stays, so that nothing else can wake it.
#[test]
fn a_miss_beside_a_punch() {
    model(2, || {
        let (engine, file, _store) = quick(PAGE_SIZE);
        let slow = Arc::new(Kept(Mutex::new((Vec::new(), 0))));
        let slow_file = File::open(&engine, slow.clone()).expect("a store with a length");
        let space = Space::new(&engine).unwrap();
        let request =
            MapRequest::file(&slow_file, 0, PAGE_SIZE, Protection::READ).at(Placement::Fixed(at(1)));
        space.map(request).expect("a mapping");
        let Ok(Fault::Pending(pending)) = space.fault(at(1), Access::Read) else { panic!("a cold page") };
        let other = file.clone();
        let reader = spawn(1, move || {
            let mut byte = [1];
            assert_eq!(other.handle().read_at(0, &mut byte), Ok(1));
            assert_eq!(byte, [0]);
        });
        file.handle().punch_hole(0, PAGE_SIZE).unwrap();
        reader.join().unwrap();
        slow.end();
        drop(pending);
        close(file);
        close(slow_file);
        end(&engine, space);
    });
}

/// Invariant 14: a file is cut off while no transfer of the removed part is under way, and none begins meanwhile.
#[test]
fn a_cut_beside_a_writeback() {
    model(2, || {
        let (engine, file, kept, space) = stored(6);
        let (other, store) = (file.clone(), kept.clone());
        let writes = spawn(1, move || {
            other.handle().start_sync();
            // While the write is under way: loom has no step between these two calls at which it changes threads.
            loom::thread::yield_now();
            store.end();
        });
        file.handle().set_length(8).unwrap();
        writes.join().unwrap();
        assert_eq!(space.load_u64(at(1)).unwrap(), 1, "the rest of the file was lost");
        close(file);
        end(&engine, space);
    });
}

/// Invariant 14: a reader beside a write that makes the file longer sees the written bytes, or the old end.
#[test]
fn a_reader_beside_an_appender() {
    model(2, || {
        let (engine, file, _store) = quick(0);
        let other = file.clone();
        let reader = spawn(1, move || {
            let mut byte = [1];
            let read = other.handle().read_at(0, &mut byte).unwrap();
            assert!(read == 0 || byte == [7], "invariant 14: the reader sees zeros that were never written");
        });
        assert_eq!(file.handle().write_at(0, &[7]), Ok(1));
        reader.join().unwrap();
        close(file);
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    });
}
