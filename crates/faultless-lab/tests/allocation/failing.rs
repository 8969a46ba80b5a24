//! The system's allocator with a count for each thread, and with failures on request.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Frequency of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Often {
    /// Only the n-th allocation fails.
    Once,
    /// The n-th allocation and all later ones fail.
    Always,
}

#[derive(Clone, Copy)]
struct State {
    /// Number of allocations until the failing one, which counts too. 0 means no failure.
    left: u64,
    always: bool,
    has_failed: bool,
    /// Number of allocations of this thread that it has not freed.
    live: i64,
    /// Number of allocations so far.
    made: u64,
}

thread_local! {
    static STATE: Cell<State> =
        const { Cell::new(State { left: 0, always: false, has_failed: false, live: 0, made: 0 }) };
}

/// Counts an allocation. Returns whether it may succeed.
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

// SAFETY: every call goes to the system's allocator, or returns no memory.
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

/// Runs `work` with a failure of its `n`-th allocation (1 is the first). Returns whether the failure occurred.
pub fn with_failure<R>(n: u64, often: Often, work: impl FnOnce() -> R) -> (R, bool) {
    let before = STATE.get();
    STATE.set(State { left: n, always: often == Often::Always, has_failed: false, ..before });
    let result = work();
    let after = STATE.get();
    STATE.set(State { left: 0, ..after });
    (result, after.has_failed)
}

/// Returns the number of allocations that this thread has not freed.
pub fn live() -> i64 {
    STATE.get().live
}

/// Returns the number of allocations in `work`.
pub fn count<R>(work: impl FnOnce() -> R) -> u64 {
    let before = STATE.get().made;
    drop(work());
    STATE.get().made - before
}
