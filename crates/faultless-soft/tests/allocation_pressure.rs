//! The allocator fails at every point of swap, reclaim and limits: the n-th allocation, once or from then on.
//!
//! Each call succeeds or says that there is no memory. Afterwards each page has its bytes, and the same call succeeds. At the end no
//! frame, slot, place or charge is left. The calls without pressure are swept in `faultless-lab/tests/allocation`, under every design.
#![cfg(not(loom))]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::swap::{CompressedMemory, RemoveSwapError, StoreDevice, SwapDevice, SwapError};
use faultless::{
    AddressSpace, Advice, Engine, FaultError, File, ForkError, Largest, LimitConfig, Limits, MapRequest,
    MemoryLimit, MemoryLimitError, Placement,
};
use faultless_soft::{AccessError, Cpu, Soft};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Arc, Mutex};

type Space = AddressSpace<Soft, Faultless>;

/// The system's allocator, whose n-th allocation fails in a thread that asks for it.
struct Failing;

thread_local! {
    /// The number of allocations until the one that fails, 0 for none, and whether all later ones fail too.
    static LEFT: Cell<(u64, bool)> = const { Cell::new((0, false)) };
    static HAS_FAILED: Cell<bool> = const { Cell::new(false) };
}

fn is_granted() -> bool {
    let (left, is_always) = LEFT.get();
    if left > 1 || left == 1 && !is_always {
        LEFT.set((left - 1, is_always));
    }
    HAS_FAILED.set(HAS_FAILED.get() || left == 1);
    left != 1
}

// SAFETY: the system's allocator, or null.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on to the system's allocator.
        if is_granted() { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: passed on to the system's allocator.
        if is_granted() { unsafe { System.realloc(pointer, layout, size) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on to the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs `work` with a failure of its `n`-th allocation. Returns whether the failure occurred.
fn with_failure<R>(n: u64, is_always: bool, work: impl FnOnce() -> R) -> (R, bool) {
    HAS_FAILED.set(false);
    LEFT.set((n, is_always));
    let result = work();
    LEFT.set((0, false));
    (result, HAS_FAILED.get())
}

const STORED: u64 = 256;

/// A store in memory that allocates nothing, and runs each transfer at once.
struct Memory(Mutex<Vec<[u8; PAGE_SIZE as usize]>>);

impl Memory {
    fn new() -> Self {
        Self(Mutex::new(vec![[0; PAGE_SIZE as usize]; STORED as usize]))
    }
}

impl Store for Memory {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(STORED * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        let result = transfer.move_pages(|offset, bytes| {
            let stored = &mut self.0.lock().unwrap()[(offset / PAGE_SIZE) as usize];
            match bytes {
                Bytes::Read(page) => page.copy_from_slice(stored),
                Bytes::Write(page) => stored.copy_from_slice(page),
            }
            Ok(PAGE_SIZE as usize)
        });
        transfer.complete(result);
    }

    fn max_pages(&self) -> usize {
        16
    }
}

/// A call that found no memory. Other errors fail the test.
#[derive(Debug)]
struct NoMemory;

fn of_access<T>(result: Result<T, AccessError>) -> Result<T, NoMemory> {
    result.map_err(|error| match error {
        AccessError::Fault(FaultError::OutOfMemory { .. }) => NoMemory,
        // The device or the file had no memory for the transfer.
        AccessError::Fault(FaultError::Io { error, .. }) if error.errno() == 12 => NoMemory,
        error => panic!("{error}"),
    })
}

/// A space in a group of 24 pages, with 48 anonymous pages and 16 of a file. Some are in slots.
struct World {
    engine: Arc<Engine<Soft>>,
    limit: MemoryLimit<Soft>,
    devices: [Arc<dyn SwapDevice>; 2],
    space: Space,
    anonymous: VirtAddr,
    file: VirtAddr,
}

const ANONYMOUS: u64 = 48;
const FILE: u64 = 16;

fn after(at: VirtAddr, page: u64) -> VirtAddr {
    VirtAddr::new(at.get() + page * PAGE_SIZE)
}

impl World {
    fn new() -> Self {
        let engine = Engine::new(Soft::new(128).unwrap(), Limits::default()).unwrap();
        let compressed: Arc<dyn SwapDevice> = Arc::new(CompressedMemory::new(64, usize::MAX).unwrap());
        let stored: Arc<dyn SwapDevice> = Arc::new(StoreDevice::new(Memory::new()).unwrap());
        let devices = [compressed, stored];
        devices.iter().for_each(|device| engine.add_swap(device.clone()).unwrap());
        let limit = MemoryLimit::new(&engine, LimitConfig::max(24)).unwrap();
        let space = Space::new_in(&engine, &limit).unwrap();
        let anonymous = space.map(MapRequest::anonymous(ANONYMOUS * PAGE_SIZE)).unwrap();
        let file = File::open_rw(&engine, Arc::new(Memory::new())).unwrap();
        let rights = Protection::READ | Protection::WRITE;
        let file = space.map(MapRequest::shared_file(&file, 0, FILE * PAGE_SIZE, rights)).unwrap();
        let this = Self { engine, limit, devices, space, anonymous, file };
        (0..ANONYMOUS).for_each(|page| this.space.store_u64(after(anonymous, page), page + 1).unwrap());
        (0..FILE).for_each(|page| this.space.store_u64(after(file, page), page + 100).unwrap());
        this
    }

    fn check(&self, space: &Space) {
        for page in 0..ANONYMOUS {
            assert_eq!(space.load_u64(after(self.anonymous, page)).unwrap(), page + 1, "page {page}");
        }
        for page in 0..FILE {
            assert_eq!(
                space.load_u64(after(self.file, page)).unwrap(),
                page + 100,
                "page {page} of the file"
            );
        }
    }

    fn end(self) {
        let Self { engine, limit, space, .. } = self;
        space.audit().unwrap();
        drop(space);
        engine.flush();
        assert_eq!(engine.frame_usage().used, 1, "frames are left");
        assert_eq!(engine.swap_usage().slots, 0, "slots are left");
        assert!(engine.swap_usage().devices.iter().all(|device| device.pages == 0), "places are left");
        let usage = limit.usage();
        assert_eq!((usage.resident, usage.swap), (0, 0), "charges are left");
    }
}

/// Makes `call` on a new world with each of its allocations failing, and with all failing from every `step`-th on, until none fails. In the
/// second case a fault waits for memory, and that takes time. `call` allocates nothing for its own use.
fn sweep(step: u64, call: impl Fn(&World) -> Result<(), NoMemory>) {
    for is_always in [false, true] {
        for n in (1..).step_by(if is_always { step as usize } else { 1 }) {
            assert!(n < 1000, "the call never gets through");
            let world = World::new();
            let (result, has_failed) = with_failure(n, is_always, || call(&world));
            world.check(&world.space);
            if result.is_err() {
                assert!(has_failed, "a call found no memory, and no allocation had failed");
                call(&world).unwrap();
                world.check(&world.space);
            }
            world.end();
            if !has_failed {
                break;
            }
        }
    }
}

#[test]
fn faults_that_make_room_and_swap_in() {
    sweep(40, |world| {
        (0..ANONYMOUS)
            .try_for_each(|page| of_access(world.space.store_u64(after(world.anonymous, page), page + 1)))
    });
}

#[test]
fn loads_of_pages_in_slots() {
    sweep(1, |world| {
        (0..ANONYMOUS)
            .try_for_each(|page| of_access(world.space.load_u64(after(world.anonymous, page)).map(drop)))
    });
}

#[test]
fn reclaim_of_all_kinds_of_pages() {
    sweep(1, |world| {
        (0..4).for_each(|_| _ = world.engine.reclaim(128));
        Ok(())
    });
}

#[test]
fn page_out() {
    sweep(1, |world| match world.space.advise(world.anonymous, ANONYMOUS * PAGE_SIZE, Advice::PageOut) {
        Ok(()) => Ok(()),
        Err(error) if error.errno() == 12 => Err(NoMemory),
        Err(error) => panic!("{error}"),
    });
}

#[test]
fn fork_of_a_space_with_pages_in_slots() {
    sweep(1, |world| match world.space.fork() {
        Ok(child) => {
            // The child's pages are the parent's, and a store in it takes a page of the same group.
            (0..4).try_for_each(|page| of_access(child.store_u64(after(world.anonymous, page), 7)))
        }
        Err(ForkError::OutOfMemory) => Err(NoMemory),
        Err(error) => panic!("{error}"),
    });
}

#[test]
fn limits_and_groups() {
    sweep(1, |world| {
        let of_limit = |error| match error {
            MemoryLimitError::OutOfMemory => NoMemory,
            error => panic!("{error}"),
        };
        world.limit.set(LimitConfig::max(12)).map_err(of_limit)?;
        let child = world.limit.child(LimitConfig::max(8)).map_err(of_limit)?;
        let space = Space::new_in(&world.engine, &child).map_err(|_| NoMemory)?;
        let at = space.map(MapRequest::anonymous(16 * PAGE_SIZE)).map_err(|_| NoMemory)?;
        (0..16).try_for_each(|page| of_access(space.store_u64(after(at, page), 3)))
    });
}

#[test]
fn a_device_is_removed_and_another_one_added() {
    sweep(40, |world| {
        let device = &world.devices[0];
        match world.engine.remove_swap(device) {
            Ok(removed) => assert_eq!(removed.lost, 0),
            // In the second call it is gone.
            Err(RemoveSwapError::Unknown) => {}
            Err(RemoveSwapError::NoRoom { .. }) => return Err(NoMemory),
            Err(error) => panic!("{error}"),
        }
        match world.engine.add_swap(device.clone()) {
            Ok(()) => Ok(()),
            Err(SwapError::OutOfMemory(_)) => Err(NoMemory),
            Err(error) => panic!("{error}"),
        }
    });
}

/// A machine with free frames, and with clean pages of a file, which reclaim could take at once.
struct Roomy {
    engine: Arc<Engine<Soft>>,
    space: Space,
    /// Pages of a file. The first [`Roomy::READ`] are in memory.
    file: VirtAddr,
    /// Two anonymous pages, which are in slots on a device that has to be read.
    swapped: VirtAddr,
}

impl Roomy {
    const FILE: u64 = 128;
    const READ: u64 = 100;

    fn new() -> Self {
        let engine = Engine::new(Soft::new(512).unwrap(), Limits::default()).unwrap();
        engine.add_swap(Arc::new(StoreDevice::new(Memory::new()).unwrap())).unwrap();
        engine.end_victims(Box::new(Largest)).unwrap();
        let space = Space::new(&engine).unwrap();
        let swapped = space.map(MapRequest::anonymous(2 * PAGE_SIZE)).unwrap();
        // Not one word all over, which needs no device.
        (0..2).for_each(|page| space.store_u64(after(swapped, page), page + 1).unwrap());
        while engine.frame_usage().used != 1 {
            engine.reclaim(2);
        }
        let file = File::open(&engine, Arc::new(Memory::new())).unwrap();
        let request = MapRequest::file(&file, 0, Self::FILE * PAGE_SIZE, Protection::READ);
        let file = space.map(request).unwrap();
        (0..Self::READ).for_each(|page| assert_eq!(space.load_u64(after(file, page)), Ok(0)));
        Self { engine, space, file, swapped }
    }

    /// Makes a fault at `address` with all allocations failing from the `n`-th on. Returns whether it failed. Then it is a typed error, no
    /// page was taken, and no space was ended. The fault is served when the allocator has memory again.
    #[track_caller]
    fn fails_alone(&self, address: VirtAddr, n: u64) -> bool {
        let used = self.engine.frame_usage().used;
        let evictions = self.engine.statistics().get(Counter::Evictions);
        let fault = || self.space.fault_and_wait(address, Access::Read).map(drop);
        let (result, has_failed) = with_failure(n, true, fault);
        let Err(error) = result else { return false };
        assert!(has_failed && matches!(error, FaultError::OutOfMemory { .. }), "{error}");
        let usage = self.engine.frame_usage();
        assert!(usage.used <= used + 1, "{usage:?}");
        let statistics = self.engine.statistics();
        let taken = statistics.get(Counter::Evictions) - evictions;
        assert_eq!(
            taken,
            0,
            "allocation {n}: pages were taken, and the machine has {} free frames",
            usage.limit - usage.used
        );
        assert_eq!(statistics.get(Counter::VictimsEnded), 0, "allocation {n}");
        self.space.fault_and_wait(address, Access::Read).unwrap();
        (0..Self::READ).for_each(|page| assert_eq!(self.space.load_u64(after(self.file, page)), Ok(0)));
        true
    }
}

/// A fault that gets no memory for the read of a file's page fails. The lack of the allocator is no lack of frames: nobody gives a page.
#[test]
fn a_fault_without_memory_for_a_read_takes_no_page() {
    let failed = (1..20).take_while(|n| {
        let world = Roomy::new();
        world.fails_alone(after(world.file, Roomy::READ + 20), *n)
    });
    assert_ne!(failed.count(), 0, "the read needs no memory: the test shows nothing");
}

/// The same for a page that is to be read from its slot.
#[test]
fn a_fault_without_memory_for_a_swap_in_takes_no_page() {
    let failed = (1..20).take_while(|n| {
        let world = Roomy::new();
        world.fails_alone(after(world.swapped, 1), *n)
    });
    assert_ne!(failed.count(), 0, "the read needs no memory: the test shows nothing");
}

/// The same for the table of the first page of a range.
#[test]
fn a_fault_without_memory_for_a_table_takes_no_page() {
    let world = Roomy::new();
    // Far away from all tables.
    let at = Placement::Fixed(VirtAddr::new(1 << 40));
    let untouched = world.space.map(MapRequest::anonymous(PAGE_SIZE).at(at)).unwrap();
    assert!(world.fails_alone(untouched, 1), "the page needs no table: the test shows nothing");
}

/// The same for the place of a new page in a file without a store.
#[test]
fn a_fault_without_memory_for_a_place_in_a_file_takes_no_page() {
    let world = Roomy::new();
    let file = File::in_memory(&world.engine, PAGE_SIZE).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let beside = world.space.map(MapRequest::anonymous(2 * PAGE_SIZE)).unwrap();
    // Its table is there.
    world.space.store_u64(beside, 7).unwrap();
    let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, rights);
    let new = world.space.map(request.at(Placement::Fixed(after(beside, 1)))).unwrap();
    assert!(world.fails_alone(new, 1), "the page needs no place: the test shows nothing");
}
