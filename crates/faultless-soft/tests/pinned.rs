//! A host whose slots belong to processors. While the engine uses a slot's number, its thread stays there; meanwhile
//! the engine does not sleep, wait for other threads, or call a store. The host implements `Host` itself, as a kernel
//! does.
#![cfg(not(loom))]

mod zeros;

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{
    Barrier, FenceBarrier, Host, OutOfMemory, Park, Sleeper, SlotIndex, Slots, StdClock, StdPark, StdSlots,
};
use faultless::protection::{Access, Protection};
use faultless::store::{Store, StoreError, Transfer};
use faultless::sync::{Sections, Shared};
use faultless::{AddressSpace, Engine, File, Limits, MapRequest, Placement, SyncFlags};
use faultless_soft::{PhysicalMemory, RadixTable, Stale};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use zeros::Zeros;

thread_local! {
    /// The number of guards that this thread has. With one it is not preempted.
    static GUARDS: Cell<u32> = const { Cell::new(0) };
}

#[track_caller]
fn assert_preemptible(doing: &str) {
    // While a test fails, guards are dropped late.
    assert!(GUARDS.get() == 0 || std::thread::panicking(), "{doing} with preemption off");
}

/// A guard: preemption is off while it lives.
struct Off;

impl Drop for Off {
    fn drop(&mut self) {
        GUARDS.set(GUARDS.get() - 1);
    }
}

/// Slots that the engine takes for processors', although their numbers come from threads here.
#[derive(Default)]
struct Processors {
    pinned: AtomicU64,
}

// SAFETY: as `StdSlots`.
unsafe impl Slots for Processors {
    type Guard = Off;

    fn pin(&self) -> (SlotIndex, Off) {
        self.pinned.fetch_add(1, Ordering::Relaxed);
        GUARDS.set(GUARDS.get() + 1);
        (StdSlots.current(), Off)
    }
}

#[derive(Default)]
struct Scheduler(StdPark);

impl Park for Scheduler {
    fn current(&self) -> Sleeper {
        self.0.current()
    }
    fn park(&self, me: Sleeper) {
        assert_preemptible("sleeps");
        self.0.park(me);
    }
    fn unpark(&self, sleeper: Sleeper) {
        assert_preemptible("wakes");
        self.0.unpark(sleeper);
    }
    fn spin(&self, look: u32) {
        assert_preemptible("spins");
        self.0.spin(look);
    }
}

#[derive(Default)]
struct Fences;

impl Barrier for Fences {
    fn mark(&self, word: &AtomicUsize, odd: usize) {
        assert!(GUARDS.get() > 0, "a section begins with preemption on");
        FenceBarrier.mark(word, odd);
    }
    fn heavy(&self) {
        assert_preemptible("waits for processors");
        FenceBarrier.heavy();
    }
    fn name(&self) -> &'static str {
        FenceBarrier.name()
    }
}

struct Kernel {
    memory: PhysicalMemory,
    clock: StdClock,
    park: Scheduler,
    barrier: Fences,
    slots: Processors,
}

// SAFETY: each field is returned as it is and does not move; each keeps its own contract.
unsafe impl Host for Kernel {
    type Table = RadixTable;
    type Frames = PhysicalMemory;
    type Park = Scheduler;
    type Clock = StdClock;
    type Barrier = Fences;
    type Slots = Processors;

    fn frames(&self) -> &PhysicalMemory {
        &self.memory
    }
    fn park(&self) -> &Scheduler {
        &self.park
    }
    fn clock(&self) -> &StdClock {
        &self.clock
    }
    fn barrier(&self) -> &Fences {
        &self.barrier
    }
    fn slots(&self) -> &Processors {
        &self.slots
    }
    fn new_table(&self, sections: &Arc<Sections>) -> Result<RadixTable, OutOfMemory> {
        RadixTable::new(Arc::clone(sections))
    }
    fn invalidate_all(&self, sections: &Sections, batch: &mut [Stale], wait: impl FnMut(u32)) {
        Stale::wait_for_all(sections, batch, wait);
    }
}

/// A store of zeros that may sleep.
struct Sleepy;

const PAGES: u64 = 16;

impl Store for Sleepy {
    fn length(&self) -> Result<u64, StoreError> {
        Zeros(PAGES).length()
    }
    fn submit(&self, transfer: Transfer) {
        assert_preemptible("a store is called");
        Zeros(PAGES).submit(transfer);
    }
    fn flush(&self) -> Result<(), StoreError> {
        assert_preemptible("a store is called");
        Ok(())
    }
}

type Space = AddressSpace<Kernel, Faultless>;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// Makes calls of each kind, on pages from `first` on.
fn work(space: &Space, file: &Shared<File<Kernel>>, first: u64) {
    let fixed = |request: MapRequest<Kernel>| request.at(Placement::Fixed(at(first)));
    for round in 0..20 {
        space.map(fixed(MapRequest::anonymous(8 * PAGE_SIZE))).unwrap();
        (0..8).for_each(|page| space.fault_and_wait(at(first + page), Access::Write).unwrap());
        space.protect(at(first + 2), 2 * PAGE_SIZE, Protection::READ).unwrap();
        space.discard(at(first), 4 * PAGE_SIZE).unwrap();
        let child = space.fork().unwrap();
        child.fault_and_wait(at(first + 5), Access::Write).unwrap();
        space.fault_and_wait(at(first + 5), Access::Write).unwrap();
        child.exit();
        drop(child);
        space.unmap(at(first), 8 * PAGE_SIZE).unwrap();
        let shared = MapRequest::shared_file(file, 4 * round % PAGES, 4 * PAGE_SIZE, READ_WRITE);
        space.map(fixed(shared)).unwrap();
        (0..4).for_each(|page| space.fault_and_wait(at(first + page), Access::Read).unwrap());
        space.fault_and_wait(at(first + round % 4), Access::Write).unwrap();
        space.sync(at(first), 4 * PAGE_SIZE, SyncFlags::SYNC).unwrap();
        space.unmap(at(first), 4 * PAGE_SIZE).unwrap();
    }
}

#[test]
fn a_thread_stays_at_its_slot_while_the_engine_uses_it_and_does_not_sleep_there() {
    let host = Kernel {
        memory: PhysicalMemory::new(256).unwrap(),
        clock: StdClock::default(),
        park: Scheduler::default(),
        barrier: Fences,
        slots: Processors::default(),
    };
    // The cache has fewer pages than the file, so that reads evict.
    let engine = Engine::new(host, Limits { cached_pages: 13, ..Limits::default() }).unwrap();
    let file = File::open_rw(&engine, Arc::new(Sleepy)).unwrap();
    let space = Space::new(&engine).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (space, file) = (&space, &file);
            scope.spawn(move || {
                work(space, file, 1000 * (thread + 1));
                assert_eq!(GUARDS.get(), 0, "a guard is left");
            });
        }
    });
    space.exit();
    drop(space);
    engine.flush();
    assert!(engine.host().slots.pinned.load(Ordering::Relaxed) > 1000);
    assert_eq!(GUARDS.get(), 0, "a guard is left");
}
