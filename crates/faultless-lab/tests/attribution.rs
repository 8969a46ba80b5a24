//! A wait is divided by what the holder does while it lasts. Here the holder is a fault whose store is stalled twice:
//!
//! ```text
//!   fault     takes the lock |-- the store takes the transfer --|------ I/O ------|
//!   waiter              begins |- counted as a fault -----------|- counted as I/O -|
//! ```
//! One look at the start of the wait would count all of it as a wait for a fault without I/O.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::protection::{Access, Protection, Sharing};
use faultless::stats::Counter;
use faultless::store::{FileStore, GatedStore, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{AddressSpace, Engine, Fault, File, Limits, MapRequest, Placement, Source};
use faultless_lab::designs::{MmapLockHold, VmaLockHold};
use faultless_soft::Soft;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

/// The part of a wait before the I/O. A slow machine makes it longer.
const BEFORE: Duration = Duration::from_millis(20);
/// The I/O.
const IO: Duration = Duration::from_millis(600);
const TOO_LONG: Duration = Duration::from_secs(60);

const FILE: u64 = 100;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + TOO_LONG;
    while !is_so() {
        assert!(Instant::now() < end, "it never happens");
        sleep(Duration::from_millis(1));
    }
}

/// A store that is slow to take a transfer, and then holds it at a gate.
struct SlowStore {
    gate: GatedStore<FileStore>,
    has_come: AtomicBool,
    takes: AtomicBool,
}

impl Store for SlowStore {
    fn length(&self) -> Result<u64, StoreError> {
        self.gate.length()
    }

    fn submit(&self, transfer: Transfer) {
        self.has_come.store(true, Ordering::SeqCst);
        until(|| self.takes.load(Ordering::SeqCst));
        self.gate.submit(transfer);
    }
}

struct Stalled<D: LockingDesign> {
    space: AddressSpace<Soft, D>,
    store: Arc<SlowStore>,
}

impl<D: LockingDesign> Stalled<D> {
    fn new() -> Self {
        let engine = Engine::new(Soft::new(1024).expect("frames"), Limits::default()).expect("an engine");
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(PAGE_SIZE).expect("a page");
        let gate = GatedStore::new(FileStore::from_file(file).expect("a store"));
        let store = Arc::new(SlowStore { gate, has_come: false.into(), takes: false.into() });
        let file: Shared<File<Soft>> = File::open(&engine, store.clone()).expect("a length");
        let space = AddressSpace::<Soft, D>::new(&engine).expect("a space");
        let source = Source::File { file, first: 0, sharing: Sharing::Private };
        let request = MapRequest { source, ..MapRequest::anonymous(PAGE_SIZE) };
        space.map(request.protection(Protection::READ).at(Placement::Fixed(at(FILE)))).expect("a mapping");
        Self { space, store }
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.space.engine().statistics().get(counter)
    }

    fn map(&self) {
        self.space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
    }

    fn protect(&self) {
        self.space.protect(at(FILE), PAGE_SIZE, Protection::empty()).expect("protected");
    }

    /// Runs a fault whose I/O begins while `first`, and then `second`, wait.
    fn waits_begin_before_io(&self, first: impl FnOnce() + Send, second: impl FnOnce() + Send) {
        let writes = || self.counted(Counter::MmapLockWrite);
        scope(|scope| {
            scope.spawn(|| {
                let mut fault = self.space.fault(at(FILE), Access::Read).expect("no error");
                while let Fault::Pending(pending) = fault {
                    fault = pending.wait().expect("no error");
                }
            });
            until(|| self.store.has_come.load(Ordering::SeqCst));
            let before = writes();
            scope.spawn(first);
            until(|| writes() > before);
            scope.spawn(second);
            // No thread takes the lock any more: all wait.
            let seen = Cell::new(0);
            until(|| {
                sleep(BEFORE);
                seen.replace(writes()) == writes()
            });
            self.store.takes.store(true, Ordering::SeqCst);
            self.store.gate.wait_for(1);
            sleep(IO);
            self.store.gate.open();
        });
    }

    /// Checks that waits for mmap_lock were mostly, but not only, waits for I/O.
    fn mmap_lock_waits_are_for_io(&self, before: Counter) {
        let (io, earlier) = (self.counted(Counter::MmapLockWaitIo), self.counted(before));
        assert!(io > earlier, "I/O {io} ns, before it {earlier} ns");
        let parts = [
            Counter::MmapLockWaitIo,
            Counter::MmapLockWaitFork,
            Counter::MmapLockWaitChange,
            Counter::MmapLockWaitFault,
        ];
        let sum: u64 = parts.into_iter().map(|part| self.counted(part)).sum();
        assert_eq!(self.counted(Counter::MmapLockWait), sum);
    }
}

#[test]
fn a_wait_for_mmap_lock_that_begins_before_the_io() {
    let stalled = Stalled::<MmapLockHold>::new();
    stalled.waits_begin_before_io(|| stalled.map(), || ());
    stalled.mmap_lock_waits_are_for_io(Counter::MmapLockWaitFault);
}

#[test]
fn a_wait_for_a_vma_lock_that_begins_before_the_io() {
    let stalled = Stalled::<VmaLockHold>::new();
    stalled.waits_begin_before_io(|| stalled.protect(), || ());
    let (io, fault) = (stalled.counted(Counter::VmaLockWaitIo), stalled.counted(Counter::VmaLockWaitFault));
    assert!(io > fault, "I/O {io} ns, before it {fault} ns");
    assert_eq!(stalled.counted(Counter::VmaLockWait), io + fault);
}

/// The thread that waits for mmap_lock waits for its writer, and the writer for a VMA whose fault is in I/O.
#[test]
fn a_wait_behind_a_writer_that_waits_for_a_vma_lock() {
    let stalled = Stalled::<VmaLockHold>::new();
    let has_waited = || stalled.counted(Counter::MmapLockWait) != 0;
    let map_until_it_waits = || {
        while !has_waited() {
            stalled.map()
        }
    };
    stalled.waits_begin_before_io(|| stalled.protect(), map_until_it_waits);
    stalled.mmap_lock_waits_are_for_io(Counter::MmapLockWaitChange);
}
