//! Flushes of the store beside syncs whose writes they cover.

use super::ram::{EIO, Ram};
use super::{P, Space, engine};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Protection;
use faultless::store::{Direction, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{AddressSpace, File, FileError, FileHandle, MapRequest, SyncError, SyncFlags};
use faultless_soft::Soft;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

/// A time in which a thread surely reaches the place where it sleeps.
const SOON: Duration = Duration::from_millis(200);

/// A store whose flush waits for the test after the device has answered.
struct Slow {
    ram: Arc<Ram>,
    /// Whether the next flush waits twice at `answered` before it returns.
    holds: AtomicBool,
    answered: Barrier,
    /// Whether the next flush panics.
    panics: AtomicBool,
    /// Whether the next write panics when it is submitted.
    refuses: AtomicBool,
    flushes: AtomicU64,
}

impl Store for Slow {
    fn length(&self) -> Result<u64, StoreError> {
        self.ram.length()
    }

    fn submit(&self, transfer: Transfer) {
        let refuses = transfer.direction() == Direction::Write && self.refuses.swap(false, Ordering::SeqCst);
        assert!(!refuses, "injected panic of a driver");
        self.ram.submit(transfer);
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.swap(false, Ordering::SeqCst), "injected panic of a driver");
        let result = self.ram.flush();
        if self.holds.swap(false, Ordering::SeqCst) {
            self.answered.wait();
            self.answered.wait();
        }
        result
    }
}

/// Opens a file of four pages on a store that holds its next flush.
fn opened() -> (Arc<Slow>, Shared<File<Soft>>, Space, VirtAddr) {
    let engine = engine(64);
    let ram = Ram::new(4, 1);
    let (panics, refuses, flushes) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let (holds, answered) = (AtomicBool::new(true), Barrier::new(2));
    let store = Arc::new(Slow { ram, holds, answered, panics, refuses, flushes });
    let file = File::open_rw(&engine, store.clone()).unwrap();
    let space: Space = AddressSpace::new(&engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let at = space.map(MapRequest::shared_file(&file, 0, 4 * PAGE_SIZE, rights)).unwrap();
    (store, file, space, at)
}

/// The ways to sync: by a handle, by the file, and by msync of a mapping.
const WAYS: usize = 3;

fn sync(way: usize, handle: &FileHandle<Soft>, (space, at): (&Space, VirtAddr)) -> Result<(), FileError> {
    match way {
        0 => handle.sync(),
        1 => handle.file().sync(),
        _ => space.sync(at, PAGE_SIZE, SyncFlags::SYNC).map_err(|error| match error {
            SyncError::Store(error) => FileError::Store(error),
            error => panic!("{error}"),
        }),
    }
}

/// A page is written. A flush of another sync fails, and the device loses the page. No sync has returned the error yet.
#[test]
fn invariant_9_a_sync_beside_a_flush_that_has_failed_is_told() {
    for way in 0..WAYS {
        let (store, file, space, at) = opened();
        let (a, b) = (file.handle(), file.handle());
        b.write_at(0, &[8; P]).unwrap();
        b.start_sync();
        assert_eq!(store.ram.to_vec()[0], 8, "written, and not flushed");
        store.ram.failing_flushes.store(1, Ordering::SeqCst);
        let (sender, receiver) = mpsc::channel();
        thread::scope(|s| {
            let first = s.spawn(|| a.sync());
            store.answered.wait();
            s.spawn(|| sender.send(sync(way, &b, (&space, at))));
            let second = match receiver.recv_timeout(SOON) {
                Err(RecvTimeoutError::Timeout) => None,
                ended => Some(ended.unwrap()),
            };
            let flushed = store.ram.flushed.lock().unwrap()[0];
            store.answered.wait();
            assert_eq!(first.join().unwrap(), Err(FileError::Store(EIO)));
            assert!(
                second != Some(Ok(())) || flushed == 8,
                "invariant 9: way {way}: a sync said Ok, and the device has lost the page"
            );
            let second = second.unwrap_or_else(|| receiver.recv().unwrap());
            assert_eq!(second, Err(FileError::Store(EIO)), "way {way}");
        });
        assert_eq!(sync(way, &b, (&space, at)), Ok(()), "way {way}: each is told only once");
        assert_eq!(store.ram.flushed.lock().unwrap()[0], 8, "way {way}");
    }
}

/// A sync finds a write under way that was submitted before a flush failed. It writes that page again.
#[test]
fn invariant_9_a_sync_writes_again_what_a_flush_may_have_lost() {
    let (store, file, _space, _) = opened();
    let (a, b) = (file.handle(), file.handle());
    let ram = &store.ram;
    b.read_at(0, &mut [0]).unwrap();
    ram.failing_flushes.store(1, Ordering::SeqCst);
    thread::scope(|s| {
        let first = s.spawn(|| a.sync());
        store.answered.wait();
        ram.holds.store(true, Ordering::SeqCst);
        b.write_at(0, &[8; P]).unwrap();
        b.start_sync();
        store.answered.wait();
        assert_eq!(first.join().unwrap(), Err(FileError::Store(EIO)));
        let again = s.spawn(|| a.sync());
        thread::sleep(SOON);
        // The write ends. Its bytes were in the buffers that the failed flush has lost.
        ram.holds.store(false, Ordering::SeqCst);
        let held: Vec<_> = ram.held.lock().unwrap().drain(..).collect();
        assert_eq!(held.len(), 1);
        held.into_iter().for_each(|transfer| transfer.complete(Ok(P)));
        assert_eq!(again.join().unwrap(), Ok(()), "it was told before");
    });
    assert_eq!(
        ram.flushed.lock().unwrap()[0],
        8,
        "invariant 9: a sync said Ok, and the device has lost the page"
    );
}

/// Syncs that start while a flush is under way share the next one, and each is told if it fails.
#[test]
fn syncs_share_a_flush_that_begins_after_their_writes() {
    const SYNCS: u64 = 8;
    for fails in [false, true] {
        let (store, file, _space, _) = opened();
        let handles: Vec<_> = (0..SYNCS).map(|_| file.handle()).collect();
        thread::scope(|s| {
            let first = s.spawn(|| file.handle().sync());
            store.answered.wait();
            let others: Vec<_> = handles.iter().map(|handle| s.spawn(|| handle.sync())).collect();
            thread::sleep(SOON);
            store.ram.failing_flushes.store(u64::from(fails), Ordering::SeqCst);
            let begun = store.flushes.load(Ordering::SeqCst);
            store.answered.wait();
            assert_eq!(begun, 1, "the others wait");
            let told = if fails { Err(FileError::Store(EIO)) } else { Ok(()) };
            // A failure just after its own flush may still come during its call.
            let first = first.join().unwrap();
            assert!(first == Ok(()) || first == told, "{first:?}");
            for other in others {
                assert_eq!(other.join().unwrap(), told);
            }
        });
        assert_eq!(store.flushes.load(Ordering::SeqCst), 2, "one flush for all that waited");
        assert!(handles.iter().all(|handle| handle.sync() == Ok(())), "each is told only once");
    }
}

/// A flush that panics does not keep another sync from returning, and counts as one that has failed.
#[test]
fn a_flush_that_panics_has_failed() {
    let (store, file, _space, _) = opened();
    store.holds.store(false, Ordering::SeqCst);
    store.panics.store(true, Ordering::SeqCst);
    let (a, b) = (file.handle(), file.handle());
    b.write_at(0, &[8; P]).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| a.sync())).is_err());
    assert_eq!(b.sync(), Err(FileError::Store(EIO)));
    assert_eq!(b.sync(), Ok(()));
    assert_eq!(store.ram.flushed.lock().unwrap()[0], 8);
}

/// A store panics when a write is submitted: the writes that were to come after it have failed too. A sync that waits
/// for them is told, and the next one writes the pages.
#[test]
fn a_write_that_panics_keeps_no_other_page_in_writeback() {
    for waits in [false, true] {
        let (store, file, _space, _) = opened();
        store.holds.store(false, Ordering::SeqCst);
        store.refuses.store(true, Ordering::SeqCst);
        let (a, b) = (file.handle(), file.handle());
        // Two transfers of one batch.
        [0, 2].iter().for_each(|page| _ = b.write_at(page * PAGE_SIZE, &[8; P]).unwrap());
        let panics = catch_unwind(AssertUnwindSafe(|| if waits { _ = a.sync() } else { a.start_sync() }));
        assert!(panics.is_err());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send([b.sync(), b.sync()]));
        let synced =
            receiver.recv_timeout(50 * SOON).expect("a sync waits for a write that was not submitted");
        assert!(matches!(synced, [Err(FileError::Store(_)), Ok(())]), "{synced:?}");
        assert!([0, 2].iter().all(|page| store.ram.flushed.lock().unwrap()[page * P] == 8));
    }
}
