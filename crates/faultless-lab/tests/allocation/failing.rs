//! The system's allocator, which counts what a thread has, and fails where the thread asks for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// How often an allocation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Often {
    /// The n-th, and no other.
    Once,
    /// The n-th, and all that come later.
    Always,
}

#[derive(Clone, Copy)]
struct State {
    /// Allocations until one fails, that one included; 0: none will.
    left: u64,
    always: bool,
    has_failed: bool,
    /// Allocations of this thread so far, less what it has freed.
    live: i64,
    /// Allocations so far.
    made: u64,
}

thread_local! {
    static STATE: Cell<State> =
        const { Cell::new(State { left: 0, always: false, has_failed: false, live: 0, made: 0 }) };
}

/// Notes an allocation. False: it is to fail.
fn is_granted(new: bool) -> bool {
    let mut state = STATE.get();
    let fails = state.left == 1;
    match state.left {
        0 => {}
        1 if state.always => {}
        _ => state.left -= 1,
    }
    state.has_failed |= fails;
    state.made += 1;
    state.live += i64::from(new && !fails);
    STATE.set(state);
    !fails
}

struct Failing;

// SAFETY: the system's allocator, or no memory.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        if is_granted(true) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        if is_granted(true) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if is_granted(false) {
            // SAFETY: passed on.
            unsafe { System.realloc(pointer, layout, size) }
        } else {
            std::ptr::null_mut()
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let mut state = STATE.get();
        state.live -= 1;
        STATE.set(state);
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs `work`, whose `n`-th allocation fails (1 is the first). Returns whether it came to that.
pub fn with_failure<R>(n: u64, often: Often, work: impl FnOnce() -> R) -> (R, bool) {
    let before = STATE.get();
    STATE.set(State { left: n, always: often == Often::Always, has_failed: false, ..before });
    let result = work();
    let after = STATE.get();
    STATE.set(State { left: 0, ..after });
    (result, after.has_failed)
}

/// Allocations that this thread has not freed.
pub fn live() -> i64 {
    STATE.get().live
}

/// How many allocations `work` makes.
pub fn count<R>(work: impl FnOnce() -> R) -> u64 {
    let before = STATE.get().made;
    drop(work());
    STATE.get().made - before
}
