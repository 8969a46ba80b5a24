//! Limits of dirty pages: background work writes them in file order, and threads over the limit are slowed down.

use crate::stuck::Stuck;
use crate::until;
use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::store::{Bytes, Direction, Store, StoreError, Transfer};
use faultless::swap::CompressedMemory;
use faultless::{AddressSpace, DirtyLimits, Engine, File, FileRef, Limits, MapRequest, Placement, Reserve};
use faultless_soft::{Cpu, Soft};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

const P: usize = PAGE_SIZE as usize;
const FRAMES: u64 = 1024;
const PAGES: u64 = 600;
/// 5 and 10 % of the frames.
const BACKGROUND: u64 = 51;
const LIMIT: u64 = 102;
/// The most pages that a thread counts late.
const LATE: u64 = 32;
const RIGHTS: Protection = Protection::READ.union(Protection::WRITE);

/// A store in memory, which notes the pages that are written to it.
#[derive(Default)]
struct Ram {
    bytes: Mutex<Vec<u8>>,
    written: Mutex<Vec<u64>>,
    /// Whether writes are kept until [`Ram::go_on`].
    holds: AtomicBool,
    held: Mutex<Vec<Transfer>>,
    /// Whether all writes fail.
    fails: AtomicBool,
    /// The number of writes that the background worker has submitted.
    by_worker: AtomicU64,
}

impl Ram {
    fn new() -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(vec![0; PAGES as usize * P]), ..Self::default() })
    }

    fn transfer(&self, mut transfer: Transfer) {
        if transfer.direction() == Direction::Write && self.fails.load(Ordering::Relaxed) {
            let offset = transfer.offset();
            return transfer.complete(Err(StoreError::Io { offset, errno: 5 }));
        }
        let mut bytes = self.bytes.lock().unwrap();
        let result = transfer.move_pages(|offset, page| {
            let offset = offset as usize;
            match page {
                Bytes::Read(page) => {
                    let end = bytes.len().min(offset + P);
                    let there = bytes.get(offset..end).unwrap_or_default();
                    page[..there.len()].copy_from_slice(there);
                    return Ok(there.len());
                }
                // As pwrite: a write behind the end makes the file longer.
                Bytes::Write(page) => {
                    let end = bytes.len().max(offset + P);
                    bytes.resize(end, 0);
                    bytes[offset..offset + P].copy_from_slice(page);
                    self.written.lock().unwrap().push((offset / P) as u64);
                }
            }
            Ok(P)
        });
        drop(bytes);
        transfer.complete(result);
    }

    fn go_on(&self) {
        self.holds.store(false, Ordering::Relaxed);
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        held.into_iter().for_each(|transfer| self.transfer(transfer));
    }

    fn word(&self, page: u64) -> u64 {
        let at = page as usize * P;
        u64::from_le_bytes(self.bytes.lock().unwrap()[at..at + 8].try_into().unwrap())
    }
}

impl Store for Ram {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn submit(&self, transfer: Transfer) {
        if transfer.direction() == Direction::Write && thread::current().name() == Some("faultless-behind") {
            self.by_worker.fetch_add(1, Ordering::Relaxed);
        }
        if transfer.direction() == Direction::Write && self.holds.load(Ordering::Relaxed) {
            return self.held.lock().unwrap().push(transfer);
        }
        self.transfer(transfer);
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        let mut bytes = self.bytes.lock().unwrap();
        let end = bytes.len().min((offset + length) as usize);
        bytes[(offset as usize).min(end)..end].fill(0);
        Ok(())
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        self.bytes.lock().unwrap().resize(length as usize, 0);
        Ok(())
    }
}

fn engine(dirty: DirtyLimits) -> Arc<Engine<Soft>> {
    engine_of(FRAMES, dirty)
}

fn engine_of(frames: u64, dirty: DirtyLimits) -> Arc<Engine<Soft>> {
    let limits = Limits { dirty, reserve: Reserve::NONE, ..Limits::default() };
    Engine::new(Soft::with_caches(frames).unwrap(), limits).unwrap()
}

fn limits() -> DirtyLimits {
    DirtyLimits::percent(5, 10).unwrap()
}

fn file(engine: &Arc<Engine<Soft>>) -> (Arc<Ram>, FileRef<Soft>) {
    let ram = Ram::new();
    (ram.clone(), File::open_rw(engine, ram).unwrap())
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

/// A space that maps the file shared.
fn mapped(engine: &Arc<Engine<Soft>>, file: &FileRef<Soft>) -> AddressSpace<Soft> {
    let space = AddressSpace::<Soft>::new(engine).unwrap();
    let request = MapRequest::shared_file(file, 0, PAGES * PAGE_SIZE, RIGHTS);
    space.map(request.at(Placement::Fixed(at(0)))).unwrap();
    space
}

fn write(file: &FileRef<Soft>, page: u64) {
    assert_eq!(file.handle().write_at(page * PAGE_SIZE, &(page + 1).to_le_bytes()).unwrap(), 8);
}

fn counted(engine: &Engine<Soft>, counter: Counter) -> u64 {
    engine.statistics().get(counter)
}

/// Syncs, and checks that the store has the words of `pages`, and that no page is dirty.
fn check(engine: &Engine<Soft>, ram: &Ram, file: &FileRef<Soft>, pages: std::ops::Range<u64>) {
    file.sync().unwrap();
    assert_eq!(engine.dirty_pages(), 0, "pages count as dirty after a sync");
    pages.for_each(|page| assert_eq!(ram.word(page), page + 1, "page {page} is lost"));
}

/// Pages are made dirty in any order. The worker writes those above the background share, in the order of the file.
#[test]
fn the_worker_writes_in_the_order_of_the_file() {
    let engine = engine(DirtyLimits::percent(5, 100).unwrap());
    let (ram, file) = file(&engine);
    let mut pages: Vec<u64> = (0..300).collect();
    Rng::with_seed(7).shuffle(&mut pages);
    pages.iter().for_each(|page| write(&file, *page));
    assert_eq!(engine.dirty_pages(), 300);
    assert!(ram.written.lock().unwrap().is_empty());
    let worker = engine.spawn_background().unwrap();
    until("the worker has written", || engine.dirty_pages() <= BACKGROUND + LATE);
    drop(worker);
    let written = ram.written.lock().unwrap().clone();
    assert_eq!(written, (0..written.len() as u64).collect::<Vec<_>>(), "not in the order of the file");
    check(&engine, &ram, &file, 0..300);
}

/// The worker is woken when there are more dirty pages than the background share. No thread is slowed down.
#[test]
fn the_worker_is_woken_above_the_background_share() {
    let engine = engine(limits());
    let (ram, file) = file(&engine);
    let worker = engine.spawn_background().unwrap();
    (0..LIMIT - 1).for_each(|page| write(&file, page));
    until("the worker has written", || engine.dirty_pages() <= BACKGROUND);
    assert_eq!(counted(&engine, Counter::DirtyThrottled), 0);
    drop(worker);
    check(&engine, &ram, &file, 0..LIMIT - 1);
}

/// Without a worker, a thread that writes by handle, over the limit, starts writes itself. There are never many more dirty pages.
#[test]
fn without_a_worker_a_write_over_the_limit_starts_writes() {
    let engine = engine(limits());
    let (ram, file) = file(&engine);
    for page in 0..PAGES {
        write(&file, page);
        assert!(engine.dirty_pages() <= LIMIT + LATE, "{} dirty pages", engine.dirty_pages());
    }
    assert!(counted(&engine, Counter::DirtyThrottled) > 0);
    check(&engine, &ram, &file, 0..PAGES);
}

/// The same for stores into a shared mapping.
#[test]
fn without_a_worker_a_store_over_the_limit_starts_writes() {
    let engine = engine(limits());
    let (ram, file) = file(&engine);
    let space = mapped(&engine, &file);
    for page in 0..PAGES {
        space.store_u64(at(page), page + 1).unwrap();
        assert!(engine.dirty_pages() <= LIMIT + LATE, "{} dirty pages", engine.dirty_pages());
    }
    assert!(counted(&engine, Counter::DirtyThrottled) > 0);
    check(&engine, &ram, &file, 0..PAGES);
}

/// A store that is stuck slows down the threads over the limit, with and without a worker, and does not stop them. Nor does one that
/// refuses every write, which does not keep the worker busy for ever either.
#[test]
fn a_store_that_is_stuck_or_broken_does_not_stop_threads() {
    for has_worker in [false, true] {
        let engine = engine(limits());
        let (ram, file) = file(&engine);
        let worker = has_worker.then(|| engine.spawn_background().unwrap());
        ram.holds.store(true, Ordering::Relaxed);
        (0..LIMIT + 20).for_each(|page| write(&file, page));
        assert!(counted(&engine, Counter::DirtyThrottled) > 0);
        ram.fails.store(true, Ordering::Relaxed);
        ram.go_on();
        (0..LIMIT + 40).for_each(|page| write(&file, page));
        drop(worker);
        file.sync().expect_err("all writes fail");
        ram.fails.store(false, Ordering::Relaxed);
        check(&engine, &ram, &file, 0..LIMIT + 40);
    }
}

/// The count of dirty pages is right after all that can happen to such pages: syncs, cuts, holes, stores into pages that are being cut
/// off, writes that fail, the end of a file with dirty pages.
#[test]
fn the_count_is_exact() {
    let engine = engine(limits());
    let (ram, file) = file(&engine);
    let worker = engine.spawn_background().unwrap();
    thread::scope(|scope| {
        for seed in 0..2 {
            let (engine, ram, file) = (&engine, &ram, &file);
            scope.spawn(move || {
                let mut numbers = Rng::with_seed(seed);
                let space = mapped(engine, file);
                for _ in 0..2000 {
                    let page = numbers.u64(..PAGES);
                    match numbers.u32(..40) {
                        0 => file.handle().set_length(page * PAGE_SIZE).unwrap(),
                        1 => file.handle().punch_hole(page * PAGE_SIZE, 50 * PAGE_SIZE).unwrap(),
                        2 => {
                            ram.fails.store(numbers.bool(), Ordering::Relaxed);
                            let _ = file.sync();
                            ram.fails.store(false, Ordering::Relaxed);
                        }
                        3 => drop(file.refresh(page * PAGE_SIZE, 10 * PAGE_SIZE)),
                        4..20 => write(file, page),
                        // Behind the end, the store fails.
                        _ => drop(space.store_u64(at(page), page + 1)),
                    }
                }
            });
        }
    });
    ram.fails.store(false, Ordering::Relaxed);
    let _ = file.sync();
    assert_eq!(engine.dirty_pages(), 0, "pages count as dirty after a sync");
    file.handle().set_length(PAGES * PAGE_SIZE).unwrap();
    (0..20).for_each(|page| write(&file, page));
    drop(worker);
    assert_eq!(engine.dirty_pages(), 20);
    drop(file);
    engine.flush();
    assert_eq!(engine.dirty_pages(), 0, "pages of a file that is gone count as dirty");
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
}

/// Without limits, nothing is written before it has to be.
#[test]
fn without_limits_nothing_is_written_early() {
    let engine = engine(DirtyLimits::NONE);
    let (ram, file) = file(&engine);
    let worker = engine.spawn_background().unwrap();
    (0..PAGES).for_each(|page| write(&file, page));
    drop(worker);
    assert!(ram.written.lock().unwrap().is_empty());
    check(&engine, &ram, &file, 0..PAGES);
}

/// A thread that makes room hands the dirty pages that it meets to the worker, and finds frames when those are written. The file is ten
/// times as large as the machine. There are no limits, so nothing else makes the worker write.
#[test]
fn reclaim_hands_dirty_pages_to_the_worker() {
    let engine = engine_of(64, DirtyLimits::NONE);
    let (ram, file) = file(&engine);
    let worker = engine.spawn_background().unwrap();
    let space = mapped(&engine, &file);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    (0..PAGES).for_each(|page| write(&file, page));
    assert!(ram.by_worker.load(Ordering::Relaxed) > 0, "the worker has written nothing");
    drop(worker);
    check(&engine, &ram, &file, 0..PAGES);
}

/// Lets the worker go on when the test ends, in whatever way.
struct Release(Arc<Stuck>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// Runs `work` while a swap device holds the worker up, on a machine with this many frames, of which another space wants 60.
fn beside_a_worker_that_is_held_up(frames: u64, work: impl FnOnce(&Arc<Engine<Soft>>)) {
    let limits = Limits {
        dirty: DirtyLimits::NONE,
        reserve: Reserve::per_mille(900, 950).unwrap(),
        ..Limits::default()
    };
    let engine = Engine::new(Soft::with_caches(frames).unwrap(), limits).unwrap();
    let stuck = Stuck::new(Arc::new(CompressedMemory::new(1024, 1024 * P).unwrap()));
    engine.add_swap(stuck.clone()).unwrap();
    let worker = engine.spawn_background().unwrap();
    let release = Release(stuck.clone());
    let space = AddressSpace::<Soft>::new(&engine).unwrap();
    space.map(MapRequest::anonymous(60 * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..60).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    until("the worker is at the device", || {
        engine.wake_background();
        stuck.has_worker()
    });
    work(&engine);
    drop(release);
    drop(worker);
    (0..60).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), page + 1));
}

/// If a device holds the worker up, a thread that has handed dirty pages to it writes them itself in the end.
#[test]
fn a_thread_does_not_wait_for_a_worker_that_is_held_up() {
    beside_a_worker_that_is_held_up(64, |engine| {
        let (ram, file) = file(engine);
        let other = mapped(engine, &file);
        let thread = thread::spawn(move || {
            (0..PAGES).for_each(|page| other.store_u64(at(page), page + 1).unwrap());
        });
        until("the thread has made its stores", || thread.is_finished());
        thread.join().unwrap();
        assert_eq!(ram.by_worker.load(Ordering::Relaxed), 0);
        check(engine, &ram, &file, 0..PAGES);
    });
}

/// The same with a dirty page in each of many files: the thread's patience with the worker is one for all files.
#[test]
fn many_files_do_not_wait_for_a_worker_that_is_held_up() {
    beside_a_worker_that_is_held_up(256, |engine| {
        let files: Vec<_> = (0..500).map(|_| file(engine)).collect();
        let written = files.iter().map(|(_, file)| file.clone()).collect::<Vec<_>>();
        let thread = thread::spawn(move || written.iter().for_each(|file| write(file, 1)));
        until("the thread has made its writes", || thread.is_finished());
        thread.join().unwrap();
        assert!(files.iter().all(|(ram, _)| ram.by_worker.load(Ordering::Relaxed) == 0));
        files.iter().for_each(|(_, file)| file.sync().unwrap());
        files.iter().for_each(|(ram, file)| check(engine, ram, file, 1..2));
    });
}

/// Threads that need memory do not have a page written again and again if its writes fail: each page is tried once in 10 ms. When the
/// store takes pages again, there is room.
#[test]
fn pages_whose_writes_fail_are_tried_at_intervals() {
    const SMALL: u64 = 64;
    let engine = engine_of(SMALL, DirtyLimits::NONE);
    let (ram, file) = file(&engine);
    ram.fails.store(true, Ordering::Relaxed);
    let space = mapped(&engine, &file);
    let start = std::time::Instant::now();
    let stored = (0..PAGES).take_while(|page| space.store_u64(at(*page), page + 1).is_ok()).count() as u64;
    assert!(stored < SMALL, "pages are lost");
    let refused = (0..20).filter(|_| space.store_u64(at(stored), 1).is_err()).count();
    assert_eq!(refused, 20);
    let (errors, times) =
        (counted(&engine, Counter::WritebackErrors), start.elapsed().as_millis() as u64 / 10);
    assert!(
        errors > 0 && errors <= SMALL * (times + 3),
        "{errors} writes of {stored} pages in {times} intervals"
    );
    ram.fails.store(false, Ordering::Relaxed);
    until("there is room", || space.store_u64(at(stored), stored + 1).is_ok());
    (0..=stored).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
}
