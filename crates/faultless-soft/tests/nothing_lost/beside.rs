//! Concurrent calls, and calls beside operations of the store.

use super::ram::{EIO, Ram};
use super::{P, Space, engine, opened};
use faultless::address::PAGE_SIZE;
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, Direction, Store, StoreError, Transfer};
use faultless::{AddressSpace, Fault, File, FileError, MapRequest};
use faultless_soft::Cpu;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const ROUNDS: u64 = 3_000;

/// A refresh takes clean pages out of the index before it takes them from the spaces. A store between the two makes the
/// folio dirty, and the page returns: a concurrent sync waits for that.
#[test]
fn invariant_9_a_sync_beside_a_refresh_writes_what_was_stored_before_it() {
    let pages = 64;
    let engine = engine(256);
    let ram = Ram::new(pages, 1);
    let file = File::open_rw(&engine, ram.clone()).unwrap();
    let space: Space = AddressSpace::new(&engine).unwrap();
    let length = pages as u64 * PAGE_SIZE;
    let rights = Protection::READ | Protection::WRITE;
    let at = space.map(MapRequest::shared_file(&file, 0, length, rights)).unwrap();
    let done = AtomicBool::new(false);
    let missed = thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = file.refresh(0, length);
            }
        });
        s.spawn(|| {
            // A clean page for each refresh to take.
            while !done.load(Ordering::Relaxed) {
                for page in 1..pages as u64 {
                    space.load_u64(at.checked_add(page * PAGE_SIZE).unwrap()).unwrap();
                }
            }
        });
        let handle = file.handle();
        let mut missed = None;
        for value in 1..ROUNDS {
            space.load_u64(at).unwrap();
            space.store_u64(at, value).unwrap();
            handle.sync().unwrap();
            let stored = u64::from_ne_bytes(ram.to_vec()[..8].try_into().unwrap());
            if stored != value {
                missed = Some((value, stored));
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        missed
    });
    assert_eq!(missed, None, "invariant 9: (stored before the sync, on the store after it)");
}

/// Either comes first: the file is empty, or has every byte of the write.
#[test]
fn invariant_14_a_write_beside_a_truncation_comes_before_or_behind_it() {
    let (engine, file, ram) = opened(3, 1);
    let space: Space = AddressSpace::new(&engine).unwrap();
    let at = space.map(MapRequest::file(&file, 0, 3 * PAGE_SIZE, Protection::READ)).unwrap();
    ram.holds.store(true, Ordering::SeqCst);
    let page = at.checked_add(2 * PAGE_SIZE).unwrap();
    let Ok(Fault::Pending(pending)) = space.fault(page, Access::Read) else { panic!("a cold page") };
    let written = thread::scope(|s| {
        let cut = s.spawn(|| file.handle().set_length(0));
        // By now the truncation has forbidden transfers, and waits for the read.
        thread::sleep(std::time::Duration::from_millis(100));
        let write = s.spawn(|| file.handle().write_at(0, &[7; 3 * P]));
        thread::sleep(std::time::Duration::from_millis(100));
        ram.go_on();
        cut.join().unwrap().unwrap();
        write.join().unwrap()
    });
    drop(pending);
    let written = written.unwrap();
    let mut back = vec![0; 3 * P];
    let read = file.handle().read_at(0, &mut back).unwrap();
    let first: Vec<u8> = back[..read].chunks(P).map(|page| page[0]).collect();
    assert!(
        first.is_empty() || read == written && first.iter().all(|byte| *byte == 7),
        "{written}: {first:?}"
    );
}

/// A write that has written nothing yet loses nothing to a truncation: it comes wholly before it or wholly after it.
#[test]
fn a_write_that_has_not_begun_is_not_cut() {
    let (_engine, file, ram) = opened(1, 1);
    ram.holds.store(true, Ordering::SeqCst);
    let written = thread::scope(|s| {
        s.spawn(|| file.handle().read_at(0, &mut [0]));
        thread::sleep(Duration::from_millis(100));
        // The truncation waits for the read.
        let cut = s.spawn(|| file.handle().set_length(0));
        thread::sleep(Duration::from_millis(100));
        // The write waits for the truncation.
        let write = s.spawn(|| file.handle().write_at(2 * PAGE_SIZE, &[7; 2 * P]));
        thread::sleep(Duration::from_millis(100));
        ram.go_on();
        cut.join().unwrap().unwrap();
        write.join().unwrap()
    });
    assert_eq!((written, file.length()), (Ok(2 * P), 4 * PAGE_SIZE));
}

/// The same for a file in memory that is cut off or punched: the rest of the removed part is as if all of it came first
/// or last.
#[test]
fn invariant_14_a_write_beside_a_removal_is_not_torn() {
    let engine = engine(64);
    let file = File::in_memory(&engine, 0).unwrap();
    let start = Barrier::new(2);
    for round in 0..5_000 {
        let is_cut = round % 2 == 0;
        file.handle().set_length(4 * PAGE_SIZE).unwrap();
        file.handle().write_at(0, &[1; 4 * P]).unwrap();
        let written = thread::scope(|s| {
            s.spawn(|| {
                start.wait();
                match is_cut {
                    true => file.handle().set_length(0).unwrap(),
                    false => file.handle().punch_hole(0, 3 * PAGE_SIZE).unwrap(),
                }
            });
            start.wait();
            file.handle().write_at(0, &[2; 4 * P]).unwrap()
        });
        let mut back = vec![0; 4 * P];
        let read = file.handle().read_at(0, &mut back).unwrap();
        let seen: Vec<u8> = back[..read].chunks(P).map(|page| page[0]).collect();
        let is_whole = written == 4 * P && seen == [2; 4];
        // The page after the hole has the written bytes, or, if the write ended early, the old ones.
        let is_removed = if is_cut { seen.is_empty() } else { seen[..3] == [0; 3] && seen[3] != 0 };
        assert!(is_whole || is_removed, "{written} bytes were written, and the pages have {seen:?}");
    }
}

/// EFBIG, as on Linux.
#[test]
fn a_hole_at_the_end_of_all_offsets_is_refused() {
    let engine = engine(16);
    let file = File::in_memory(&engine, PAGE_SIZE).unwrap();
    file.handle().write_at(0, &[7]).unwrap();
    for (offset, length) in [(u64::MAX - 10, 5), (u64::MAX - 10, 100), (i64::MAX as u64 - 4, 5)] {
        let refused = file.punch_hole(offset, length);
        assert!(matches!(refused, Err(FileError::TooLong { .. })), "{offset} + {length}: {refused:?}");
    }
    assert_eq!(file.punch_hole(i64::MAX as u64 - 5, 5), Ok(()));
}

/// A page pinned for writing keeps its file after handles and mappings are dropped. No write of the page is under way
/// while the pin's owner writes, and the owner's bytes reach the store.
#[test]
fn invariant_9_what_a_pin_writes_when_the_file_has_gone_is_not_lost() {
    let (engine, file, ram) = opened(1, 1);
    let space: Space = AddressSpace::new(&engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let at = space.map(MapRequest::shared_file(&file, 0, PAGE_SIZE, rights)).unwrap();
    space.store_u64(at, 5).unwrap();
    let pin = space.pin(at, Access::Write).unwrap();
    ram.holds.store(true, Ordering::SeqCst);
    space.unmap(at, PAGE_SIZE).unwrap();
    drop(file);
    engine.flush();
    assert!(ram.held.lock().unwrap().is_empty(), "the store has bytes that the pin's owner may change");
    assert_eq!(pin.write(0, &[9]), 1);
    drop(pin);
    assert_eq!(ram.held.lock().unwrap().len(), 1, "the last write is under way");
    ram.go_on();
    assert_eq!(ram.to_vec()[0], 9);
}

/// A call that finds no memory waits for the writes under way, also for the last ones of a file that was dropped.
#[test]
fn the_end_of_the_last_writes_wakes_who_waits_for_memory() {
    let engine = engine(16);
    let (ram, other_ram) = (Ram::new(4, 1), Ram::new(1, 1));
    let other = File::open_rw(&engine, other_ram.clone()).unwrap();
    other.handle().read_at(0, &mut [0]).unwrap();
    let file = File::open_rw(&engine, ram.clone()).unwrap();
    file.handle().write_at(0, &[7; 4 * P]).unwrap();
    ram.holds.store(true, Ordering::SeqCst);
    drop(file);
    engine.flush();
    assert_eq!(ram.held.lock().unwrap().len(), 4, "the last writes are under way");
    // Another pin is held all the time.
    let locked = other.try_lock_folio(0).unwrap();
    let memory = File::in_memory(&engine, 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|s| {
        s.spawn(|| {
            let written = memory.handle().write_at(0, &vec![1; 32 * P]).unwrap();
            sender.send(written).unwrap();
        });
        // The thread sleeps by then.
        thread::sleep(Duration::from_millis(200));
        ram.go_on();
        let written = receiver.recv_timeout(Duration::from_secs(60));
        drop(locked);
        assert!(written.is_ok_and(|written| written > 0), "four frames are free, and the writer sleeps");
    });
}

/// A store whose writes are in its buffers at once and end later. Its flush waits for the test.
struct Late {
    ram: Arc<Ram>,
    ending: Mutex<Vec<Transfer>>,
    late: AtomicBool,
    flushing: Barrier,
}

impl Store for Late {
    fn length(&self) -> Result<u64, StoreError> {
        self.ram.length()
    }

    fn submit(&self, mut transfer: Transfer) {
        if transfer.direction() == Direction::Read || !self.late.load(Ordering::SeqCst) {
            return self.ram.submit(transfer);
        }
        let at = transfer.offset() as usize;
        if let Bytes::Write(page) = transfer.bytes() {
            self.ram.bytes.lock().unwrap()[at..at + P].copy_from_slice(page);
        }
        self.ending.lock().unwrap().push(transfer);
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        self.ram.set_length(length)
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        self.ram.punch(offset, length)
    }

    fn flush(&self) -> Result<(), StoreError> {
        if self.late.load(Ordering::SeqCst) {
            self.flushing.wait();
            self.flushing.wait();
        }
        self.ram.flush()
    }
}

/// A write that was submitted before a flush failed and ends after it: the device may have lost its bytes.
#[test]
fn invariant_9_a_failed_flush_beside_a_write_that_ends_later_leaves_the_page_dirty() {
    let engine = engine(16);
    let ram = Ram::new(1, 1);
    let (ending, late) = (Mutex::default(), AtomicBool::new(true));
    let store = Arc::new(Late { ram: ram.clone(), ending, late, flushing: Barrier::new(2) });
    let file = File::open_rw(&engine, store.clone()).unwrap();
    let (a, b) = (file.handle(), file.handle());
    ram.failing_flushes.store(1, Ordering::SeqCst);
    thread::scope(|s| {
        let sync = s.spawn(|| a.sync());
        store.flushing.wait();
        b.write_at(0, &[8; P]).unwrap();
        b.start_sync();
        assert_eq!(store.ending.lock().unwrap().len(), 1);
        store.flushing.wait();
        assert_eq!(sync.join().unwrap(), Err(FileError::Store(EIO)));
    });
    store.late.store(false, Ordering::SeqCst);
    store.ending.lock().unwrap().drain(..).for_each(|transfer| transfer.complete(Ok(P)));
    assert_eq!(b.sync(), Err(FileError::Store(EIO)), "b is told that something may be lost");
    assert_eq!(b.sync(), Ok(()), "and tries again");
    assert_eq!(ram.flushed.lock().unwrap()[0], 8, "the second sync said Ok: on the device");
}
