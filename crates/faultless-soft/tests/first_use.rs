//! A thread's first call, if there is no memory for its slot.
#![cfg(not(loom))]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{OutOfMemory, StdSlots};
use faultless::protection::Access;
use faultless::{AddressSpace, Engine, FaultError, Limits, MapError, MapRequest, Placement};
use faultless_soft::Soft;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Barrier;

/// The system's allocator, which fails in a thread that has set `FAILS`.
struct Failing;

thread_local! {
    static FAILS: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: the system's allocator, or null.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if FAILS.with(Cell::get) {
            return std::ptr::null_mut();
        }
        // SAFETY: passed on to the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on to the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

fn without_memory<R>(work: impl FnOnce() -> R) -> R {
    FAILS.set(true);
    let result = work();
    FAILS.set(false);
    result
}

/// Slots are allocated 64 at a time. The first call of the 65th thread returns an out-of-memory error if it can. unmap
/// cannot, and uses the spare slots that the engine keeps for such calls.
#[test]
fn a_first_call_without_memory_says_so_or_takes_the_spare_slots() {
    const CHUNK: u32 = 64;
    type Space = AddressSpace<Soft, Faultless>;
    let engine = Engine::new(Soft::new(64).unwrap(), Limits::default()).unwrap();
    let space = Space::new(&engine).unwrap();
    let at = VirtAddr::new(512 * PAGE_SIZE);
    let request = || MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at));
    space.map(request()).unwrap();
    space.fault_and_wait(at, Access::Write).unwrap();
    let (threads, step) = (130, &Barrier::new(130));
    let call = || {
        let slot = StdSlots.current().get();
        step.wait();
        // The page is mapped, so the fault needs memory only for the slot.
        let fault = || without_memory(|| space.fault_and_wait(at, Access::Write));
        let refused = Err(FaultError::OutOfMemory { address: at });
        assert_eq!(fault(), if slot < CHUNK { Ok(()) } else { refused }, "slot {slot}");
        if slot >= CHUNK {
            assert_eq!(without_memory(|| Space::new(&engine).err()), Some(OutOfMemory));
            assert_eq!(without_memory(|| space.map(request())), Err(MapError::OutOfMemory));
        }
        step.wait();
        if slot == CHUNK {
            without_memory(|| space.discard(at, PAGE_SIZE)).unwrap();
            space.fault_and_wait(at, Access::Write).unwrap();
        }
        step.wait();
        assert_eq!(fault(), if slot < 2 * CHUNK { Ok(()) } else { refused }, "slot {slot}");
        step.wait();
        assert_eq!(space.fault_and_wait(at, Access::Write), Ok(()), "slot {slot}");
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(call)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}
