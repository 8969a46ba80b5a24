//! Files on stores that refuse, fail and are slow. A refused call loses nothing, and a length is reported only when the
//! bytes are there (invariants 9 and 14). A space takes part only in tests of mappings.
#![cfg(not(loom))]

mod beside;
mod flushes;
mod ram;

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::{AddressSpace, Engine, Fault, File, FileError, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use ram::{EIO, Ram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const P: usize = PAGE_SIZE as usize;
type Space = AddressSpace<Soft, Faultless>;

fn engine(frames: u64) -> Arc<Engine<Soft>> {
    Engine::new(Soft::with_caches(frames).unwrap(), Limits::default()).unwrap()
}

fn opened(pages: usize, fill: u8) -> (Arc<Engine<Soft>>, faultless::sync::Shared<File<Soft>>, Arc<Ram>) {
    let engine = engine(64);
    let ram = Ram::new(pages, fill);
    let file = File::open_rw(&engine, ram.clone()).unwrap();
    (engine, file, ram)
}

#[test]
fn invariant_14_a_refused_hole_loses_nothing() {
    let (_engine, file, ram) = opened(4, 1);
    let handle = file.handle();
    handle.write_at(0, &[7; 4 * P]).unwrap();
    ram.refuses.store(true, Ordering::SeqCst);
    for (offset, length) in [(PAGE_SIZE, PAGE_SIZE), (100, 3 * PAGE_SIZE), (0, 4 * PAGE_SIZE)] {
        let refused = handle.punch_hole(offset, length);
        assert!(matches!(refused, Err(FileError::Store(StoreError::Unsupported { .. }))), "{refused:?}");
    }
    let mut bytes = vec![0; 4 * P];
    handle.read_at(0, &mut bytes).unwrap();
    assert!(bytes == [7; 4 * P], "a refused hole removed a page, or zeroed a part of one");
    handle.sync().unwrap();
    assert!(ram.to_vec() == [7; 4 * P], "invariant 9: a page is no longer dirty");
}

#[test]
fn a_hole_whose_ends_cannot_be_read_changes_nothing() {
    let (_engine, file, ram) = opened(4, 1);
    let handle = file.handle();
    handle.write_at(PAGE_SIZE, &[7; P]).unwrap();
    ram.failing_reads.store(1, Ordering::SeqCst);
    assert_eq!(handle.punch_hole(100, 2 * PAGE_SIZE), Err(FileError::Store(EIO)));
    let mut bytes = vec![0; 3 * P];
    handle.read_at(0, &mut bytes).unwrap();
    assert!(bytes[..P] == [1; P] && bytes[P..2 * P] == [7; P] && bytes[2 * P..] == [1; P]);
}

#[test]
fn invariant_14_a_refused_truncation_loses_nothing_that_is_being_written() {
    let (_engine, file, ram) = opened(4, 1);
    let handle = file.handle();
    for page in 0..3 {
        handle.write_at(page * PAGE_SIZE, &[7 + page as u8; P]).unwrap();
    }
    ram.refuses.store(true, Ordering::SeqCst);
    *ram.gate.lock().unwrap() = 1;
    thread::scope(|s| {
        s.spawn(|| handle.sync());
        // The first page waits inside `submit`. The others are under writeback and not submitted.
        drop(ram.changed.wait_while(ram.gate.lock().unwrap(), |gate| *gate != 2).unwrap());
        let cut = s.spawn(|| handle.set_length(PAGE_SIZE));
        for _ in 0..10_000 {
            if file.length() == PAGE_SIZE {
                break;
            }
            thread::yield_now();
        }
        *ram.gate.lock().unwrap() = 0;
        ram.changed.notify_all();
        assert_eq!(cut.join().unwrap(), Err(FileError::Store(EIO)));
    });
    assert_eq!(file.length(), 4 * PAGE_SIZE);
    let mut bytes = [0; 2];
    handle.read_at(PAGE_SIZE, &mut bytes[..1]).unwrap();
    handle.read_at(2 * PAGE_SIZE, &mut bytes[1..]).unwrap();
    assert_eq!(bytes, [8, 9], "bytes that the refused truncation would have cut off are gone");
    handle.sync().unwrap();
    let stored = ram.to_vec();
    assert_eq!([stored[0], stored[P], stored[2 * P], stored[3 * P]], [7, 8, 9, 1]);
}

/// Runs `change` while transfers are held. Releases them after a time in which `change` could have finished too early.
fn beside_held(ram: &Ram, change: impl FnOnce() + Send) {
    thread::scope(|s| {
        let change = s.spawn(change);
        for _ in 0..10_000 {
            if change.is_finished() {
                break;
            }
            thread::yield_now();
        }
        ram.go_on();
    });
    assert_eq!(*ram.wrong.lock().unwrap(), Vec::<String>::new(), "invariant 14");
}

#[test]
fn invariant_14_no_hole_and_no_cut_under_a_read() {
    for cut in [false, true] {
        let (engine, file, ram) = opened(4, 1);
        let space: Space = AddressSpace::new(&engine).unwrap();
        let at = space.map(MapRequest::file(&file, 0, 4 * PAGE_SIZE, Protection::READ)).unwrap();
        ram.holds.store(true, Ordering::SeqCst);
        let page = at.checked_add(2 * PAGE_SIZE).unwrap();
        let Ok(Fault::Pending(pending)) = space.fault(page, Access::Read) else { panic!("a cold page") };
        let handle = file.handle();
        beside_held(&ram, || match cut {
            false => handle.punch_hole(2 * PAGE_SIZE, PAGE_SIZE).unwrap(),
            true => handle.set_length(2 * PAGE_SIZE + 5).unwrap(),
        });
        drop(pending);
        assert_eq!(space.load_u64(page).unwrap(), if cut { 0x01_0101_0101 } else { 0 });
    }
}

#[test]
fn invariant_14_no_cut_under_a_write_of_the_partial_last_page() {
    let (_engine, file, ram) = opened(8, 1);
    let handle = file.handle();
    handle.write_at(0, &[7; 8 * P]).unwrap();
    ram.holds.store(true, Ordering::SeqCst);
    handle.start_sync();
    beside_held(&ram, || handle.set_length(29389).unwrap());
    handle.sync().unwrap();
    assert!(ram.to_vec() == [7; 29389]);
}

#[test]
fn a_file_grows_while_its_last_page_is_written() {
    let (_engine, file, ram) = opened(2, 1);
    let handle = file.handle();
    handle.set_length(6010).unwrap();
    handle.write_at(6000, &[7; 10]).unwrap();
    ram.holds.store(true, Ordering::SeqCst);
    handle.start_sync();
    beside_held(&ram, || assert_eq!(handle.write_at(3 * PAGE_SIZE, &[8; 100]), Ok(100)));
    handle.sync().unwrap();
    let stored = ram.to_vec();
    assert_eq!(stored.len(), 3 * P + 100);
    assert!(stored[6000..6010] == [7; 10] && stored[6010..3 * P].iter().all(|byte| *byte == 0));
    assert!(stored[3 * P..] == [8; 100]);
}

/// Changes of the length and syncs under way, in any order in which four threads make them.
#[test]
fn the_store_is_as_long_as_the_file_whatever_is_under_way() {
    use faultless::store::DelayedStore;
    let engine = engine(256);
    for round in 0..200u64 {
        let ram = Ram::new(8, 1);
        let slow = DelayedStore::new(ram.clone(), std::time::Duration::from_micros(20 * (round % 7)));
        let file = File::open_rw(&engine, Arc::new(slow)).unwrap();
        let handle = file.handle();
        handle.write_at(0, &[7; 8 * P]).unwrap();
        handle.start_sync();
        handle.set_length(29389).unwrap();
        handle.start_sync();
        handle.set_length(6010).unwrap();
        handle.start_sync();
        handle.write_at(1046, &[9; 8551]).unwrap();
        handle.sync().unwrap();
        let stored = ram.to_vec();
        assert_eq!(stored.len(), 9597, "round {round}");
        assert!(stored[..1046] == [7; 1046] && stored[1046..] == [9; 8551], "round {round}");
    }
}

#[test]
fn invariant_14_a_failed_write_leaves_the_length() {
    let engine = engine(64);
    let ram = Arc::new(Ram { bytes: Mutex::new(vec![1; 10]), ..Ram::default() });
    let file = File::open_rw(&engine, ram.clone()).unwrap();
    ram.failing_reads.store(1, Ordering::SeqCst);
    assert_eq!(file.handle().write_at(10, &[7; 100]), Err(FileError::Store(EIO)));
    assert_eq!((file.length(), ram.to_vec().len()), (10, 10));
    assert_eq!(file.handle().write_at(10, &[7; 100]), Ok(100));
    assert_eq!(file.length(), 110);
    ram.refuses.store(true, Ordering::SeqCst);
    assert_eq!(file.handle().write_at(110, &[7; 100]), Err(FileError::Store(EIO)), "the store cannot grow");
    assert_eq!(file.length(), 110);
}

/// The store was made longer for the write, which fails; then the store refuses to become shorter.
#[test]
fn invariant_14_a_store_that_stays_longer_is_asked_again_by_the_next_sync() {
    for is_synced in [true, false] {
        let (engine, file, ram) = opened(1, 1);
        file.handle().set_length(100).unwrap();
        ram.failing_reads.store(1, Ordering::SeqCst);
        // The call that makes it longer succeeds; the call that undoes it fails.
        ram.failing_length.store(2, Ordering::SeqCst);
        assert_eq!(file.handle().write_at(50, &[2; P]), Err(FileError::Store(EIO)));
        assert_eq!((file.length(), ram.to_vec().len()), (100, 50 + P), "the store refused");
        if is_synced {
            ram.failing_length.store(1, Ordering::SeqCst);
            let handle = file.handle();
            assert_eq!(
                handle.sync(),
                Err(FileError::Store(EIO)),
                "it refuses again, and the error is returned"
            );
            assert_eq!((handle.sync(), ram.to_vec().len()), (Ok(()), 100));
        } else {
            drop(file);
            engine.flush();
            assert_eq!(ram.to_vec().len(), 100, "at the end of the file");
        }
    }
}

#[test]
fn invariant_14_a_write_that_runs_out_of_memory_says_how_far_it_came() {
    let engine = engine(64);
    let file = File::in_memory(&engine, 0).unwrap();
    let bytes: Vec<u8> = (0..200 * P + 10).map(|i| (i % 251) as u8 + 1).collect();
    let written = file.handle().write_at(0, &bytes).unwrap();
    assert!(written > 0 && written < bytes.len());
    assert_eq!(file.length(), written as u64, "longer than the written bytes");
    let mut back = vec![0; bytes.len()];
    assert_eq!(file.handle().read_at(0, &mut back), Ok(written));
    assert!(back[..written] == bytes[..written]);
    assert_eq!(file.handle().write_at(written as u64, &bytes), Err(FileError::OutOfMemory));
    assert_eq!(file.length(), written as u64);
}

/// Bytes after the end of a file in memory are kept until the file grows, as in tmpfs.
#[test]
fn invariant_14_a_write_that_fails_leaves_what_is_behind_the_end() {
    let engine = engine(16);
    let file = File::in_memory(&engine, 100).unwrap();
    let space: Space = AddressSpace::new(&engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let at = space.map(MapRequest::shared_file(&file, 0, PAGE_SIZE, rights)).unwrap();
    space.write_bytes(VirtAddr::new(at.get() + 200), &[7]).unwrap();
    let all = File::in_memory(&engine, 0).unwrap();
    assert!(all.handle().write_at(0, &vec![1; 32 * P]).unwrap() < 32 * P, "memory is left");
    assert_eq!(file.handle().write_at(5 * PAGE_SIZE, &[1]), Err(FileError::OutOfMemory));
    file.set_length(300).unwrap();
    let mut back = [0];
    assert_eq!(file.handle().read_at(200, &mut back), Ok(1));
    assert_eq!(back, [7]);
}

#[test]
fn a_file_that_is_longer_than_memory_is_written_and_read() {
    let (_engine, file, ram) = opened(0, 0);
    let bytes: Vec<u8> = (0..200 * P + 10).map(|i| (i % 251) as u8 + 1).collect();
    assert_eq!(file.handle().write_at(0, &bytes), Ok(bytes.len()));
    let mut back = vec![0; bytes.len()];
    assert_eq!(file.handle().read_at(0, &mut back), Ok(bytes.len()));
    assert!(back == bytes);
    file.handle().sync().unwrap();
    assert!(ram.to_vec() == bytes);
}

/// By `read_at` and by a mapping: a thread that sees a length sees the bytes before it.
#[test]
fn invariant_14_a_reader_beside_an_appender_sees_no_zeros() {
    for in_memory in [false, true] {
        let engine = engine(4096);
        let file = match in_memory {
            true => File::in_memory(&engine, 0).unwrap(),
            false => File::open_rw(&engine, Ram::new(0, 0)).unwrap(),
        };
        let space: Space = AddressSpace::new(&engine).unwrap();
        let at = space.map(MapRequest::shared_file(&file, 0, 1024 * PAGE_SIZE, Protection::READ)).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|s| {
            s.spawn(|| {
                let handle = file.handle();
                let mut seen = 0;
                while !done.load(Ordering::Relaxed) {
                    let length = file.length();
                    if length <= seen {
                        continue;
                    }
                    seen = length;
                    let mut last = [0; 64];
                    let read = handle.read_at(length - 64, &mut last).unwrap();
                    assert!(last[..read] == [7; 64][..read], "read_at returns zeros that were never written");
                    let word = space.load_u64(at.checked_add(length - 8).unwrap()).unwrap();
                    assert_eq!(
                        word,
                        u64::from_ne_bytes([7; 8]),
                        "a mapping shows zeros that were never written"
                    );
                }
            });
            let handle = file.handle();
            for i in 0..20_000u64 {
                assert_eq!(handle.write_at(i * 200, &[7; 200]), Ok(200));
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn invariant_9_a_failed_flush_is_told_to_each_handle_and_tried_again() {
    let (_engine, file, ram) = opened(4, 1);
    let (a, b) = (file.handle(), file.handle());
    a.write_at(0, &[7]).unwrap();
    b.write_at(PAGE_SIZE, &[8]).unwrap();
    ram.failing_flushes.store(1, Ordering::SeqCst);
    assert_eq!(a.sync(), Err(FileError::Store(EIO)));
    assert_eq!(ram.to_vec()[0], 1, "the device has lost it");
    assert_eq!(b.sync(), Err(FileError::Store(EIO)), "b wrote before the flush that failed");
    assert_eq!((a.sync(), b.sync(), file.sync()), (Ok(()), Ok(()), Err(FileError::Store(EIO))));
    let flushed = ram.flushed.lock().unwrap();
    assert_eq!(
        (flushed[0], flushed[P]),
        (7, 8),
        "invariant 9: bytes that the device has lost were not written again"
    );
}

/// A thread that wants to write a page back while the store is cut off sleeps until that has ended. (Before a fix it
/// released a pin, took that for memory that became free, and looked again in an endless loop.)
#[test]
fn a_sync_sleeps_while_the_store_is_cut_off() {
    /// Reports when it is asked for a shorter length, and answers when the test allows it.
    struct Asked(Mutex<mpsc::Sender<()>>, Mutex<mpsc::Receiver<()>>);

    impl Store for Asked {
        fn length(&self) -> Result<u64, StoreError> {
            Ok(PAGE_SIZE)
        }

        fn submit(&self, mut transfer: Transfer) {
            if let Bytes::Read(page) = transfer.bytes() {
                page.fill(0);
            }
            transfer.complete(Ok(P));
        }

        fn set_length(&self, _: u64) -> Result<(), StoreError> {
            self.0.lock().unwrap().send(()).unwrap();
            self.1.lock().unwrap().recv().unwrap();
            Ok(())
        }
    }

    // With growing delays, since the test cannot know when the thread has reached its wait. A wait that is over at once
    // is not counted.
    let has_slept = (0..10).any(|round| {
        let (asked, is_asked) = mpsc::channel();
        let (answer, may_answer) = mpsc::channel();
        let engine = engine(8);
        let store = Arc::new(Asked(Mutex::new(asked), Mutex::new(may_answer)));
        let file = File::open_rw(&engine, store).unwrap();
        file.handle().write_at(0, &[7; P]).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| file.handle().set_length(8).unwrap());
            is_asked.recv().unwrap();
            scope.spawn(|| file.handle().sync().unwrap());
            thread::sleep(Duration::from_millis(5 << round));
            answer.send(()).unwrap();
        });
        engine.statistics().get(Counter::ResizeWait) != 0
    });
    assert!(has_slept, "a thread that cannot continue looks again and again");
}
