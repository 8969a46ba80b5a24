//! Calls that once went on for ever, or slept for ever: each comes to its end.

use crate::until;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, GatedStore, Store, StoreError, Transfer};
use faultless::swap::CompressedMemory;
use faultless::vma::MappingFlags;
use faultless::{
    AddressSpace, Advice, DirtyLimits, Engine, File, ForkError, LimitConfig, Limits, MapRequest, MemoryLimit,
    Placement, Reserve,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

type Space = AddressSpace<Soft>;

const RIGHTS: Protection = Protection::READ.union(Protection::WRITE);

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn anonymous(pages: u64) -> MapRequest<Soft> {
    MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(0)))
}

/// An engine with `frames`, and with swap space in memory if it `swaps`.
fn engine(frames: u64, swaps: bool, limits: Limits) -> Arc<Engine<Soft>> {
    let engine = Engine::new(Soft::with_caches(frames).unwrap(), limits).unwrap();
    if swaps {
        engine.add_swap(Arc::new(CompressedMemory::new(1024, 1024 * PAGE_SIZE as usize).unwrap())).unwrap();
    }
    engine
}

/// Runs `work` on a thread of its own, and waits for its end.
fn ends<R: Send + 'static>(what: &str, work: impl FnOnce() -> R + Send + 'static) -> R {
    let thread = thread::spawn(work);
    until(what, || thread.is_finished());
    thread.join().unwrap()
}

/// A store of zeros, which refuses writes of the pages below `refused`, and counts all writes.
#[derive(Default)]
struct Zeros {
    pages: u64,
    refused: u64,
    writes: AtomicU64,
}

impl Zeros {
    fn new(pages: u64, refused: u64) -> Arc<Self> {
        Arc::new(Self { pages, refused, writes: AtomicU64::new(0) })
    }
}

impl Store for Zeros {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.pages * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        let offset = transfer.offset();
        let result = match transfer.bytes() {
            Bytes::Read(bytes) => {
                bytes.fill(0);
                Ok(PAGE_SIZE as usize)
            }
            Bytes::Write(_) => {
                self.writes.fetch_add(1, Ordering::Relaxed);
                let is_refused = offset < self.refused * PAGE_SIZE;
                if is_refused { Err(StoreError::Io { offset, errno: 5 }) } else { Ok(PAGE_SIZE as usize) }
            }
        };
        transfer.complete(result);
    }
}

/// fork copies the pages that are pinned, in a group that has room for some of the copies, but not for all. It reclaims other pages of
/// the group for them all, or fails if they can never be there together.
#[test]
fn fork_makes_room_for_all_its_copies() {
    for (pinned, swaps, fits) in [(2, true, true), (4, true, true), (5, true, false), (2, false, false)] {
        // The second round is on a machine with so few frames. It has one for zeros.
        for is_group in [true, false] {
            let engine = engine(if is_group { 256 } else { 9 }, swaps, Limits::default());
            let limit = is_group.then(|| MemoryLimit::new(&engine, LimitConfig::max(8)).unwrap());
            let space = match &limit {
                Some(limit) => Space::new_in(&engine, limit).unwrap(),
                None => Space::new(&engine).unwrap(),
            };
            space.map(anonymous(7)).unwrap();
            (0..7).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
            let pins: Vec<_> = (0..pinned).map(|page| space.pin(at(page), Access::Write).unwrap()).collect();
            let (parent, case) = (space.clone(), format!("{pinned} pins, swap {swaps}, group {is_group}"));
            match ends(&case, move || parent.fork()) {
                Ok(child) => {
                    assert!(fits, "{case}");
                    (0..7).for_each(|page| assert_eq!(child.load_u64(at(page)), Ok(page + 1), "{case}"));
                }
                Err(error) => assert_eq!((error, fits), (ForkError::OutOfMemory, false), "{case}"),
            }
            drop(pins);
            (0..7).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1), "{case}"));
        }
    }
}

/// The same for a mapping whose pages are all copied at fork.
#[test]
fn fork_makes_room_for_a_mapping_that_copies() {
    let engine = engine(256, true, Limits::default());
    let limit = MemoryLimit::new(&engine, LimitConfig::max(24)).unwrap();
    let space = Space::new_in(&engine, &limit).unwrap();
    space.map(MapRequest { flags: MappingFlags::COPY_AT_FORK, ..anonymous(20) }).unwrap();
    (0..20).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let parent = space.clone();
    let child = ends("fork", move || parent.fork()).unwrap();
    (0..20).for_each(|page| assert_eq!(child.load_u64(at(page)), Ok(page + 1)));
    (0..20).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
}

/// A fault that has made room goes on, though a read of another file never ends.
#[test]
fn a_fault_that_has_freed_pages_waits_for_no_transfer() {
    let engine = engine(64, false, Limits::default());
    let gate = Arc::new(GatedStore::new(Zeros { pages: 8, ..Zeros::default() }));
    let stuck = File::open(&engine, gate.clone()).unwrap();
    let beside = Space::new(&engine).unwrap();
    let request = MapRequest::shared_file(&stuck, 0, PAGE_SIZE, Protection::READ);
    beside.map(request.at(Placement::Fixed(at(0)))).unwrap();
    beside.advise(at(0), PAGE_SIZE, Advice::WillNeed).unwrap();
    gate.wait_for(1);
    let file = File::open(&engine, Zeros::new(64, 0)).unwrap();
    let mut bytes = [0; 8];
    // The pages stay in the cache while there is a handle.
    let handle = file.handle();
    for page in 0..56 {
        assert_eq!(handle.read_at(page * PAGE_SIZE, &mut bytes), Ok(8));
    }
    assert!(engine.frame_usage().used > 56, "the frames have pages of the file");
    let space = Space::new(&engine).unwrap();
    space.map(anonymous(40)).unwrap();
    let other = space.clone();
    ends("stores on a machine whose frames have clean pages of a file", move || {
        (0..40).for_each(|page| other.store_u64(at(page), page + 1).unwrap());
    });
    (0..40).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
    gate.open();
}

/// A store over the dirty limit ends, though pages that cannot be written keep the number over the limit. The work that the thread does
/// for the limit must not take the write right from the page that the store is about to use.
#[test]
fn a_store_over_the_dirty_limit_ends() {
    for has_worker in [false, true] {
        let limits = Limits {
            dirty: DirtyLimits::percent(0, 1).unwrap(),
            reserve: Reserve::NONE,
            ..Limits::default()
        };
        let engine = engine(100, false, limits);
        let worker = has_worker.then(|| engine.spawn_background().unwrap());
        let file = File::open_rw(&engine, Zeros::new(64, 2)).unwrap();
        let space = Space::new(&engine).unwrap();
        let request = MapRequest::shared_file(&file, 0, 64 * PAGE_SIZE, RIGHTS);
        space.map(request.at(Placement::Fixed(at(0)))).unwrap();
        let other = space.clone();
        ends("stores into a file with two pages that cannot be written", move || {
            (0..20).for_each(|page| other.store_u64(at(page), page + 1).unwrap());
        });
        (0..20).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
        drop(worker);
    }
}

/// A thread in a group over high has the page that it has just mapped, though this is the only one that the group can give.
#[test]
fn a_thread_over_high_keeps_the_page_of_its_access() {
    let engine = engine(256, true, Limits::default());
    let limit = MemoryLimit::new(&engine, LimitConfig { high: 64, max: 128 }).unwrap();
    let space = Space::new_in(&engine, &limit).unwrap();
    space.map(anonymous(100)).unwrap();
    (0..64).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let pins: Vec<_> = (0..64).map(|page| space.pin(at(page), Access::Write).unwrap()).collect();
    let other = space.clone();
    ends("stores over high", move || {
        for page in (64..80).chain(64..80) {
            other.store_u64(at(page), page + 1).unwrap();
        }
    });
    (0..80).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
    let usage = limit.usage();
    assert!(usage.reclaimed > 0, "pages over high go to swap space: {usage:?}");
    drop(pins);
}

/// The worker sleeps although few frames are free, if the pages that could make room cannot be written.
#[test]
fn the_worker_rests_when_pages_cannot_be_written() {
    let limits = Limits {
        dirty: DirtyLimits::NONE,
        reserve: Reserve::per_mille(600, 700).unwrap(),
        ..Limits::default()
    };
    let engine = engine(64, false, limits);
    let store = Zeros::new(64, 64);
    let file = File::open_rw(&engine, store.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    space.map(anonymous(32)).unwrap();
    let worker = engine.spawn_background().unwrap();
    (0..32).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    (0..16).for_each(|page| assert_eq!(file.handle().write_at(page * PAGE_SIZE, &[1]), Ok(1)));
    engine.wake_background();
    until("the worker has tried to write", || store.writes.load(Ordering::Relaxed) > 0);
    until("the worker rests", || {
        let before = store.writes.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(50));
        store.writes.load(Ordering::Relaxed) == before
    });
    drop(worker);
}
