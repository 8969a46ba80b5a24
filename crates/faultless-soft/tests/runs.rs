//! Transfers of several pages: the transfers that a store gets, and the state of the pages if such a transfer fails,
//! ends early, is late or is dropped.
#![cfg(not(loom))]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::{Bytes, Direction, GatedStore, MAX_PAGES, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{
    AddressSpace, Advice, Engine, Fault, FaultError, File, FileError, Limits, MapRequest, SyncFlags,
};
use faultless_soft::{AccessError, Cpu, Soft};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const P: usize = PAGE_SIZE as usize;
const EIO: i32 = 5;
type Space = AddressSpace<Soft, Faultless>;
type Gate = GatedStore<Arc<Disk>>;

/// Opens the gate when it is dropped. Without it, a failed assertion in a scope would wait for ever for the scope's
/// threads.
struct OpensAtEnd<'a>(&'a Gate);

impl Drop for OpensAtEnd<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Bytes in memory. Page `n` begins full of the byte `n + 1`.
#[derive(Default)]
struct Disk {
    bytes: Mutex<Vec<u8>>,
    /// A page of which each transfer fails.
    bad: Mutex<Option<u64>>,
    /// The transfers so far: direction, first page, number of pages.
    seen: Mutex<Vec<(Direction, u64, usize)>>,
    /// For each transfer: whether each of its pages is in a frame, and no two in the same one.
    has_frames: Mutex<Vec<bool>>,
    /// Whether transfers are dropped.
    is_gone: Mutex<bool>,
    /// The last length that `set_length` was called with.
    cut: Mutex<Option<u64>>,
}

impl Disk {
    fn new(pages: usize) -> Arc<Self> {
        let bytes = (0..pages * P).map(|at| (at / P + 1) as u8).collect();
        Arc::new(Self { bytes: Mutex::new(bytes), ..Self::default() })
    }

    fn take_seen(&self) -> Vec<(Direction, u64, usize)> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// Returns the first byte of each page.
    fn firsts(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().chunks(P).map(|page| page[0]).collect()
    }
}

impl Store for Disk {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn submit(&self, mut transfer: Transfer) {
        if *self.is_gone.lock().unwrap() {
            return drop(transfer);
        }
        let (first, pages) = (transfer.offset() / PAGE_SIZE, transfer.pages());
        self.seen.lock().unwrap().push((transfer.direction(), first, pages));
        let frames: std::collections::HashSet<_> =
            (0..pages).filter_map(|page| transfer.frame(page)).collect();
        self.has_frames.lock().unwrap().push(frames.len() == pages && transfer.frame(pages).is_none());
        let mut bytes = self.bytes.lock().unwrap();
        let bad = *self.bad.lock().unwrap();
        let result = transfer.move_pages(|offset, page| {
            if bad == Some(offset / PAGE_SIZE) {
                return Err(StoreError::Io { offset, errno: EIO });
            }
            let inside = bytes.get_mut(offset as usize..).unwrap_or_default();
            let length = inside.len().min(P);
            match page {
                Bytes::Read(page) => page[..length].copy_from_slice(&inside[..length]),
                Bytes::Write(page) => inside[..length].copy_from_slice(&page[..length]),
            }
            Ok(length)
        });
        drop(bytes);
        transfer.complete(result);
    }

    fn max_pages(&self) -> usize {
        MAX_PAGES
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        *self.cut.lock().unwrap() = Some(length);
        self.bytes.lock().unwrap().resize(length as usize, 0);
        Ok(())
    }
}

fn engine(frames: u64, cached_pages: u64) -> Arc<Engine<Soft>> {
    let limits = Limits { cached_pages, ..Limits::default() };
    Engine::new(Soft::with_caches(frames).unwrap(), limits).unwrap()
}

struct World {
    engine: Arc<Engine<Soft>>,
    disk: Arc<Disk>,
    gate: Arc<Gate>,
    file: Shared<File<Soft>>,
    space: Space,
    at: VirtAddr,
}

/// Makes a file of `pages` pages, mapped shared. The gate is open.
fn world(pages: usize, cached_pages: u64) -> World {
    let engine = engine(4 * MAX_PAGES as u64, cached_pages);
    let disk = Disk::new(pages);
    let gate = Arc::new(GatedStore::new(disk.clone()));
    let file = File::open_rw(&engine, gate.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let at = space.map(MapRequest::shared_file(&file, 0, (pages * P) as u64, rights)).unwrap();
    World { engine, disk, gate, file, space, at }
}

impl World {
    fn address(&self, page: u64) -> VirtAddr {
        VirtAddr::new(self.at.get() + page * PAGE_SIZE)
    }

    fn will_need(&self, pages: u64) {
        self.space.advise(self.at, pages * PAGE_SIZE, Advice::WillNeed).unwrap();
    }

    fn load(&self, page: u64) -> Result<u8, AccessError> {
        self.space.load_u64(self.address(page)).map(|word| word as u8)
    }

    /// Makes pages dirty: page `n` is full of `100 + n`. If the cache is empty, lets the reads of the pages pass the
    /// closed gate.
    fn write(&self, pages: std::ops::Range<u64>) {
        let handle = self.file.handle();
        if self.engine.cached_pages() == 0 {
            self.gate.pass((pages.end - pages.start) as usize);
        }
        for page in pages {
            assert_eq!(handle.write_at(page * PAGE_SIZE, &[100 + page as u8; P]), Ok(P));
        }
        self.disk.take_seen();
        self.disk.has_frames.lock().unwrap().clear();
    }

    /// Asserts that all counts are back at their start values.
    fn ends_clean(self) {
        let Self { engine, disk, gate, file, space, .. } = self;
        drop((gate, file, space));
        engine.flush();
        drop(disk);
        assert_eq!(engine.cached_pages(), 0);
        assert_eq!(engine.frame_usage().used, 1, "frames other than the page of zeros are left");
    }
}

use Direction::{Read, Write};

#[test]
fn a_sync_writes_consecutive_pages_as_one_transfer() {
    let pages = MAX_PAGES + 8;
    let w = world(pages, 4096);
    w.gate.open();
    w.write(0..pages as u64);
    w.file.sync().unwrap();
    assert_eq!(w.disk.take_seen(), [(Write, 0, 64), (Write, 64, 8)]);
    assert!(
        w.disk.has_frames.lock().unwrap().iter().all(|has| *has),
        "a driver does not find each page's frame"
    );
    assert_eq!(w.disk.firsts(), (100..100 + pages as u8).collect::<Vec<_>>());
    // A hole among the dirty pages ends a run.
    w.write(0..3);
    w.write(4..6);
    w.file.sync().unwrap();
    assert_eq!(w.disk.take_seen(), [(Write, 0, 3), (Write, 4, 2)]);
    assert_eq!(w.engine.statistics().get(Counter::IoWrites), 77, "pages are counted");
    w.ends_clean();
}

/// The last page is partial: the file keeps its size, and bytes after its end are not written.
#[test]
fn a_run_ends_with_the_file() {
    let w = world(4, 4096);
    w.gate.open();
    w.file.handle().set_length(3 * PAGE_SIZE + 5).unwrap();
    w.space.fault_and_wait(w.address(3), Access::Write).unwrap();
    w.write(0..3);
    w.space.store_u64(VirtAddr::new(w.address(3).get()), u64::MAX).unwrap();
    w.disk.take_seen();
    w.file.sync().unwrap();
    assert_eq!(w.disk.take_seen(), [(Write, 0, 4)]);
    assert_eq!(w.disk.bytes.lock().unwrap()[3 * P..], [255; 5]);
    w.ends_clean();
}

/// Failed before `left_behind`: the pages after the bad one were still dirty when sync returned, and each sync left
/// them so.
#[test]
fn an_error_in_the_middle_of_a_written_run_keeps_that_page_dirty_and_no_other() {
    let w = world(8, 4096);
    w.gate.open();
    w.write(0..8);
    *w.disk.bad.lock().unwrap() = Some(3);
    let error = StoreError::Io { offset: 3 * PAGE_SIZE, errno: EIO };
    assert_eq!(w.file.sync(), Err(FileError::Store(error)));
    assert_eq!(w.disk.firsts(), [100, 101, 102, 4, 104, 105, 106, 107]);
    assert_eq!(w.disk.take_seen()[0], (Write, 0, 8));
    // It is written alone while it fails, and later like any other page.
    assert_eq!(w.file.sync(), Err(FileError::Store(error)));
    assert_eq!(w.disk.take_seen(), [(Write, 3, 1)]);
    *w.disk.bad.lock().unwrap() = None;
    assert_eq!(w.file.sync(), Ok(()));
    assert_eq!((w.disk.take_seen(), w.disk.firsts()[3]), (vec![(Write, 3, 1)], 103));
    w.write(0..8);
    assert_eq!(w.file.sync(), Ok(()));
    assert_eq!(w.disk.take_seen(), [(Write, 0, 8)]);
    w.ends_clean();
}

/// Another program has made the store shorter. The pages beyond its end stay dirty, and the error names the first.
#[test]
fn a_short_write_keeps_the_pages_behind_it_dirty() {
    let w = world(6, 4096);
    w.gate.open();
    w.write(0..6);
    w.disk.bytes.lock().unwrap().truncate(2 * P + 5);
    let Err(FileError::Store(StoreError::PastEnd { .. })) = w.file.sync() else {
        panic!("it has no room for all")
    };
    assert_eq!(w.disk.take_seen()[0], (Write, 0, 6));
    assert_eq!(w.disk.firsts(), [100, 101, 102]);
    w.disk.bytes.lock().unwrap().resize(6 * P, 0);
    assert_eq!(w.file.sync(), Ok(()));
    assert_eq!(w.disk.firsts(), (100..106).collect::<Vec<_>>());
    w.ends_clean();
}

#[test]
fn pages_that_are_read_ahead_are_one_transfer() {
    let w = world(16, 4096);
    w.gate.open();
    assert_eq!(w.load(5), Ok(6));
    assert_eq!(w.disk.take_seen(), [(Read, 5, 1)], "a fault reads its page and no other");
    w.will_need(16);
    assert_eq!(w.disk.take_seen(), [(Read, 0, 5), (Read, 6, 10)]);
    let loaded: Vec<_> = (0..16).map(|page| w.load(page).unwrap()).collect();
    assert_eq!(loaded, (1..=16).collect::<Vec<_>>());
    assert_eq!(w.disk.take_seen(), []);
    assert_eq!(w.engine.statistics().get(Counter::IoReads), 16);
    w.ends_clean();
}

/// Otherwise the access to the first page would wait for the bytes of the others.
#[test]
fn the_page_that_is_waited_for_is_apart_from_the_run() {
    let w = world(64, 4096);
    w.gate.open();
    w.space.advise(w.at, 64 * PAGE_SIZE, Advice::PopulateRead).unwrap();
    let expected = [(Read, 0, 1), (Read, 1, 31), (Read, 32, 1), (Read, 33, 31)];
    assert_eq!(w.disk.take_seen(), expected);
    w.ends_clean();
}

#[test]
fn a_short_read_in_a_run_is_the_end_of_the_file() {
    let w = world(8, 4096);
    w.gate.open();
    w.disk.bytes.lock().unwrap().truncate(2 * P + 8);
    w.will_need(8);
    assert_eq!(w.disk.take_seen(), [(Read, 0, 8)]);
    assert_eq!((w.load(1), w.load(2)), (Ok(2), Ok(3)));
    let behind = VirtAddr::new(w.address(2).get() + 8);
    assert_eq!(w.space.load_u64(behind), Ok(0), "zeros after the end");
    assert!(w.disk.take_seen().is_empty());
    for page in 3..8 {
        assert!(w.load(page).is_err(), "page {page} lies past the end");
    }
    w.ends_clean();
}

fn pending(w: &World, page: u64) -> faultless::PendingFault<Soft, Faultless> {
    match w.space.fault(w.address(page), Access::Read).unwrap() {
        Fault::Pending(pending) => pending,
        Fault::Done => panic!("page {page} came without a read"),
    }
}

/// The failed page returns its error to the threads that wait for it. A later page may be good: a thread that waits for
/// it reads it alone.
#[test]
fn an_error_in_the_middle_of_a_read_run_is_told_of_that_page_only() {
    let w = world(6, 4096);
    w.will_need(6);
    let waits: Vec<_> = (0..6).map(|page| pending(&w, page)).collect();
    assert_eq!(w.gate.waiting(), 1, "one run, and none of its pages is read a second time");
    *w.disk.bad.lock().unwrap() = Some(2);
    w.gate.open();
    let ended: Vec<_> = waits.into_iter().map(|pending| pending.wait()).collect();
    for (page, ended) in ended.into_iter().enumerate() {
        match (page, ended) {
            (2, Err(error)) => {
                assert!(matches!(error, FaultError::Io { .. }), "{error}")
            }
            (2, Ok(_)) => panic!("the page cannot be read"),
            (_, Ok(Fault::Done)) => {}
            (_, Ok(Fault::Pending(pending))) => assert!(matches!(pending.wait(), Ok(Fault::Done))),
            (_, Err(error)) => panic!("page {page}: {error}"),
        }
    }
    for page in [0, 1, 3, 4, 5] {
        assert_eq!(w.load(page), Ok(page as u8 + 1));
    }
    w.ends_clean();
}

/// A cut waits for the whole run that contains its first page, and does not ask the store before.
#[test]
fn truncation_waits_for_runs_under_way() {
    for direction in [Read, Write] {
        let w = world(8, 4096);
        if direction == Read {
            w.will_need(8);
        } else {
            w.write(0..8);
        }
        thread::scope(|scope| {
            let _opens = OpensAtEnd(&w.gate);
            let sync = (direction == Write).then(|| scope.spawn(|| w.file.sync()));
            w.gate.wait_for(1);
            assert_eq!(w.gate.waiting(), 1);
            let cut = scope.spawn(|| w.file.handle().set_length(4 * PAGE_SIZE + 5));
            thread::sleep(Duration::from_millis(50));
            assert!(!cut.is_finished() && w.disk.cut.lock().unwrap().is_none(), "{direction:?}");
            w.gate.open();
            assert_eq!(cut.join().unwrap(), Ok(()));
            assert!(sync.is_none_or(|sync| sync.join().unwrap().is_ok()));
        });
        assert_eq!(w.file.length(), 4 * PAGE_SIZE + 5);
        assert!(w.load(4).is_ok() && w.load(5).is_err());
        w.ends_clean();
    }
}

/// A cut beside a failing run: the pages that were not moved are dirty when the cut passes them, and gone after it.
#[test]
fn truncation_takes_what_a_failed_run_has_left_dirty() {
    let w = world(8, 4096);
    w.write(0..8);
    *w.disk.bad.lock().unwrap() = Some(2);
    thread::scope(|scope| {
        let sync = scope.spawn(|| w.file.sync());
        w.gate.wait_for(1);
        let cut = scope.spawn(|| w.file.handle().set_length(PAGE_SIZE));
        thread::sleep(Duration::from_millis(20));
        w.gate.open();
        assert_eq!(cut.join().unwrap(), Ok(()));
        assert!(sync.join().unwrap().is_err());
    });
    *w.disk.bad.lock().unwrap() = None;
    w.disk.take_seen();
    assert_eq!(w.file.sync(), Ok(()));
    assert!(w.disk.take_seen().is_empty(), "the dirty pages were cut off");
    assert_eq!(w.disk.firsts(), [100]);
    w.ends_clean();
}

#[test]
fn a_store_that_drops_a_run_fails_its_pages_and_no_count_is_left() {
    let w = world(8, 4096);
    w.gate.open();
    w.write(0..4);
    *w.disk.is_gone.lock().unwrap() = true;
    let Err(FileError::Store(StoreError::Closed { .. })) = w.file.sync() else {
        panic!("nothing was written")
    };
    w.space.advise(w.address(4), 4 * PAGE_SIZE, Advice::WillNeed).unwrap();
    assert!((4..8).all(|page| w.load(page).is_err()));
    // The pages are still dirty.
    *w.disk.is_gone.lock().unwrap() = false;
    assert_eq!(w.file.sync(), Ok(()));
    assert_eq!(w.disk.firsts(), [100, 101, 102, 103, 5, 6, 7, 8]);
    assert_eq!(w.load(7), Ok(8));
    w.ends_clean();
}

/// Runs under way count as reads under way: other faults wait for memory, and get no error. A run takes only as many
/// pages as the limit allows.
#[test]
fn runs_stay_below_the_limit_and_others_wait_for_them() {
    let w = world(32, 8);
    let quick = File::open(&w.engine, Disk::new(1)).unwrap();
    let other = Space::new(&w.engine).unwrap();
    let at = other.map(MapRequest::file(&quick, 0, PAGE_SIZE, Protection::READ)).unwrap();
    w.will_need(32);
    assert_eq!((w.gate.waiting(), w.engine.cached_pages()), (1, 8));
    let Fault::Pending(pending) = other.fault(at, Access::Read).unwrap() else { panic!("the cache is full") };
    w.gate.open();
    assert!(pending.wait().is_ok(), "memory comes when the run ends");
    assert_eq!(w.disk.take_seen(), [(Read, 0, 8)]);
    drop((other, quick));
    w.ends_clean();
}

/// A pinned page may change while it is written. So it is a transfer of its own, of a copy, and stays dirty.
#[test]
fn a_page_pinned_for_a_device_is_no_part_of_a_run() {
    let w = world(4, 4096);
    w.gate.open();
    w.write(0..4);
    w.space.fault_and_wait(w.address(2), Access::Write).unwrap();
    let pinned = w.space.pin(w.address(2), Access::Write).unwrap();
    assert_eq!(w.file.sync(), Ok(()));
    assert_eq!(w.disk.take_seen(), [(Write, 0, 2), (Write, 2, 1), (Write, 3, 1)]);
    assert_eq!(*w.disk.has_frames.lock().unwrap(), [true, false, true], "a copy is in no frame");
    drop(pinned);
    assert_eq!(w.file.sync(), Ok(()));
    assert_eq!(w.disk.take_seen(), [(Write, 2, 1)]);
    w.ends_clean();
}

/// Each handle is told of an error once, however many pages of the run failed.
#[test]
fn a_failed_run_is_told_once_to_each_handle() {
    let w = world(4, 4096);
    w.gate.open();
    let handles = [w.file.handle(), w.file.handle()];
    w.write(0..4);
    *w.disk.bad.lock().unwrap() = Some(1);
    assert!(matches!(handles[0].sync(), Err(FileError::Store(StoreError::Io { errno: EIO, .. }))));
    *w.disk.bad.lock().unwrap() = None;
    assert!(handles[1].sync().is_err(), "the handle was not told before");
    assert_eq!(handles.each_ref().map(|handle| handle.sync()), [Ok(()), Ok(())]);
    drop(handles);
    w.ends_clean();
}

/// msync of all mappings shares one account of errors. Failed before a sync reported each failure that came while it
/// waited: one of these syncs returned Ok, and the page was not in the store.
#[test]
fn a_failed_write_is_told_to_each_msync_that_waited_for_it() {
    for pages in [1, 4] {
        let w = world(4, 4096);
        w.write(0..pages);
        *w.disk.bad.lock().unwrap() = Some(0);
        thread::scope(|scope| {
            let _opens = OpensAtEnd(&w.gate);
            let sync = || w.space.sync(w.at, pages * PAGE_SIZE, SyncFlags::SYNC);
            let syncs = [scope.spawn(sync), scope.spawn(sync)];
            w.gate.wait_for(1);
            // Until the other sync waits for the same write.
            thread::sleep(Duration::from_millis(50));
            assert_eq!(w.gate.waiting(), 1);
            w.gate.open();
            for sync in syncs {
                assert!(sync.join().unwrap().is_err(), "a run of {pages}");
            }
        });
        assert!((1..pages).all(|page| w.disk.firsts()[page as usize] == 100 + page as u8));
        *w.disk.bad.lock().unwrap() = None;
        assert_eq!((w.file.sync(), w.disk.firsts()[0]), (Ok(()), 100));
        w.ends_clean();
    }
}
